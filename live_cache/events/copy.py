"""
The copy of the clocks that reads in bounded mode are checked against, in place of a round trip to the ledger.

It is what the follower of the ledger keeps: the seq, the open intents and the records of each clock, as of a moment
that it knows. What a slot holds follows from the last reading that a strict check has made of it, and from the records
since then, as long as they tell rows; else the ledger is asked.

Why a read may rely on it: a head that was asked for at the moment t has every tick that was over at t, in the epoch
that the clock had then. So has every reading that is derived from it. A read that began at most *max_lag_s* after t
misses nothing that was committed longer ago than that. Whatever keeps the copy from being renewed (a stopped thread or
process, a cut link, a server that is away) lets it grow old, and then the ledger is asked as usual.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from live_cache.conf import settings
from live_cache.events.following import HEARTBEAT_S, follower_of
from live_cache.ledger.clocks import ROWS_SLOT, Dependency, Reading
from live_cache.ledger.lease_time import now_s

if TYPE_CHECKING:
    from live_cache.events.following import Head
    from live_cache.ledger.base import Ledger

__all__ = ["ClockCopy", "copy_of"]

MAX_KEPT: Final = 16_384
"""Readings that are kept, the last used of each dependency."""
UNUSED_S: Final = 60.0
"""After which a clock that no bounded read depends on is followed no longer."""
LOOKS_PER_LAG: Final = 3
"""How often the copy is renewed in the time that it may be old, so that one look may be late."""


@dataclass(frozen=True, slots=True)
class _Kept:
    """A reading with its slots, from a strict check."""

    reading: Reading
    asked_at_s: float


class ClockCopy:
    """The copy of one ledger in this process. Safe to share between threads. Made by copy_of()."""

    wants_ticks = True

    def __init__(self, ledger: Ledger) -> None:
        self._follower = follower_of(ledger)
        self._lock = threading.Lock()
        self._kept: OrderedDict[Dependency, _Kept] = OrderedDict()
        self._used_at_s: dict[str, float] = {}

    def readings(self, dependencies: Sequence[Dependency], *, began_s: float, alias: str) -> list[Reading] | None:
        """
        Return readings that have all that was ticked LIVE_CACHE_MAX_LAG_MS before *began_s*, and all that this process
        has ticked; None if the copy does not tell. From memory alone.

        Args:
            began_s: When the read began, by now_s().
            alias: Of the database.
        """
        self._use(dependencies, alias)
        oldest_s = began_s - settings.max_lag_s
        readings = []
        for dependency in dependencies:
            head, kept = self._follower.head(dependency.clock), self._kept.get(dependency)
            if head is None or kept is None:
                return None
            since_s = max(oldest_s, self._follower.ticked_at_s(dependency.clock))
            reading = _derived(dependency, head, kept, since_s=since_s)
            if reading is None:
                return None
            readings.append(reading)
        return readings

    def keep(self, dependencies: Sequence[Dependency], readings: Sequence[Reading], *, began_s: float) -> None:
        """Keep what a strict check has read of the ledger, after *began_s*, by now_s()."""
        for dependency, reading in zip(dependencies, readings, strict=True):
            self._kept[dependency] = _Kept(reading, began_s)
            while len(self._kept) > MAX_KEPT:
                try:
                    self._kept.popitem(last=False)
                except KeyError:  # another thread was faster
                    break

    def heartbeat_s(self) -> float:
        """See Listener.heartbeat_s(). Clocks that nobody uses any more are forgotten here."""
        old_s = now_s() - UNUSED_S
        with self._lock:
            unused = [clock for clock, used_at_s in self._used_at_s.items() if used_at_s < old_s]
            for clock in unused:
                del self._used_at_s[clock]
            is_used = bool(self._used_at_s)
            if unused:
                self._follower.unfollow(unused, self)
        return settings.max_lag_s / LOOKS_PER_LAG if is_used else HEARTBEAT_S

    def wake(self) -> None:
        """See Listener.wake(). Nobody waits."""

    def after_fork_in_child(self) -> None:
        """See Listener.after_fork_in_child()."""
        self._lock = threading.Lock()

    def _use(self, dependencies: Sequence[Dependency], alias: str) -> None:
        used_at_s = now_s()
        with self._lock:
            new = [dependency.clock for dependency in dependencies if dependency.clock not in self._used_at_s]
            for dependency in dependencies:
                self._used_at_s[dependency.clock] = used_at_s
            if new:
                self._follower.follow(new, alias, self)
        self._follower.run()  # it may be the first read in a child of fork()


def _derived(dependency: Dependency, head: Head, kept: _Kept, *, since_s: float) -> Reading | None:
    """Return the newest reading of *dependency* that is known, if it was asked for after *since_s*. Pure."""
    now, last = head.reading, kept.reading
    if last.epoch == now.epoch and last.seq <= now.seq and head.asked_at_s > since_s:
        if last.seq == now.seq:
            return Reading(now.clock, now.epoch, now.seq, last.slots, now.intents)
        if last.seq >= head.wide_seq:
            slots = zip(dependency.slots, last.slots, strict=True)
            ticked = tuple([now.seq if slot == ROWS_SLOT else seq for slot, seq in slots])
            return Reading(now.clock, now.epoch, now.seq, ticked, now.intents)
        return None
    # The check was made after the head was asked for, perhaps in an epoch that is newer, and is young enough itself.
    return last if kept.asked_at_s > since_s and kept.asked_at_s > head.asked_at_s else None


_copies: weakref.WeakKeyDictionary[Ledger, ClockCopy] = weakref.WeakKeyDictionary()
_copies_lock = threading.Lock()


def copy_of(ledger: Ledger) -> ClockCopy | None:
    """Return the one copy of *ledger* in this process; None if the ledger itself is as near: on this host."""
    if not ledger.is_shared_by_hosts:
        return None
    copy = _copies.get(ledger)
    if copy is None:
        with _copies_lock:
            copy = _copies.get(ledger)
            if copy is None:
                copy = _copies[ledger] = ClockCopy(ledger)
    return copy


def _after_fork_in_child() -> None:
    global _copies_lock
    _copies_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
