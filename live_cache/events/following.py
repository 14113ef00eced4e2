"""
What one process knows of the clocks that somebody in it follows: a copy of their heads, kept by one thread per ledger.

The thread looks at the clocks that it was told of, and at all of them at each heartbeat, since a wake-up may be lost.
Each head says when it was asked for, so that whoever uses it knows how old it may be. The thread begins with the first
clock that is followed and ends with the last.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

from django.db import connections

from live_cache.events.reading import tells_rows
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger import fences
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading
from live_cache.ledger.lease_time import now_s
from live_cache.ledger.wake_ups import WakeUps
from live_cache.names import is_private_database
from live_cache.replicas import primary_of

__all__ = ["Follower", "Head", "Listener", "follower_of"]

logger = logging.getLogger("live_cache.events")

HEARTBEAT_S: Final = 1.0
"""Between two looks at all clocks: how late an event may be whose wake-up was lost."""
LEAST_PAUSE_S: Final = 0.002
"""Between two looks, however often the thread is woken."""
LOOK_SHARE: Final = 50
"""Where it looks without being woken, the thread pauses at least this many times what the last look took of a CPU."""
RETRY_S: Final = 0.1
"""Between two looks while the ledger does not answer."""


@dataclass(frozen=True, slots=True)
class Head:
    """The state of one clock at one moment."""

    reading: Reading
    """Without slots but that of the table."""
    asked_at_s: float
    """Before the reading was requested, by now_s(): every tick that was over by then is in it."""
    wide_seq: int
    """Each tick after this seq has touched ROWS_SLOT alone, as its record tells."""


class Listener(Protocol):
    """Who follows a clock. The calls must be quick and must not raise."""

    wants_ticks: bool
    """Whether to look at what each tick has touched. Otherwise Head.wide_seq is that of the reading."""

    def heartbeat_s(self) -> float:
        """Return how often to look at all clocks, at least. Called in the thread."""
        ...

    def wake(self) -> None:
        """Look at the heads: one has moved. Called in the thread."""
        ...

    def after_fork_in_child(self) -> None:
        """Replace locks that another thread of the parent may have held."""
        ...


class Follower:
    """
    Follows clocks of one ledger for all of this process. Safe to share between threads.

    Made by follower_of(), one per ledger. It holds its listeners weakly: one that is forgotten is followed no longer.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = weakref.ref(ledger)
        self._lock = threading.Lock()
        self._listeners: dict[str, weakref.WeakSet[Listener]] = {}
        self._aliases: dict[str, str] = {}
        self._heads: dict[str, Head] = {}
        self._ticked_at_s: dict[str, float] = {}
        self._thread: threading.Thread | None = None
        self._wake_ups: WakeUps | None = None
        self._is_silent = False
        ledger.tick_listener = self._note_ticks

    def follow(self, clocks: Collection[str], alias: str, listener: Listener) -> None:
        """
        Follow *clocks* for *listener*, until unfollow() or until nobody else holds it.

        Args:
            alias: Of the database, which is asked about writers that have died.
        """
        with self._lock:
            for clock in clocks:
                self._listeners.setdefault(clock, weakref.WeakSet()).add(listener)
                self._aliases[clock] = alias
        self.run(clocks)

    def unfollow(self, clocks: Iterable[str], listener: Listener) -> None:
        """Forget that *listener* follows *clocks*."""
        with self._lock:
            for clock in clocks:
                if (listeners := self._listeners.get(clock)) is not None:
                    listeners.discard(listener)

    def head(self, clock: str) -> Head | None:
        """Return the newest head of *clock*, or None if it was not looked at yet."""
        return self._heads.get(clock)

    def ticked_at_s(self, clock: str) -> float:
        """Return when this process last ticked *clock*, by now_s(), or 0: a head that was asked for later has it."""
        return self._ticked_at_s.get(clock, 0.0)

    def run(self, clocks: Iterable[str] = ()) -> None:
        """Start the thread if it is not there, as in a child of fork(), and have it look at *clocks*."""
        thread = self._thread
        if thread is not None and thread.is_alive() and not clocks:
            return
        with self._lock:
            if self._thread is None or not self._thread.is_alive():
                ledger = self._ledger()
                if ledger is None:
                    return
                self._wake_ups = ledger.wake_ups()
                self._thread = threading.Thread(
                    target=self._follow, args=(self._wake_ups,), name=f"live-cache-{ledger.name}", daemon=True
                )
                self._thread.start()
            wake_ups = self._wake_ups
        if wake_ups is not None:
            wake_ups.wake(clocks)

    def after_fork_in_child(self) -> None:
        """Forget the parent's thread and its connection."""
        self._lock = threading.Lock()
        self._thread = self._wake_ups = None
        for listeners in list(self._listeners.values()):
            for listener in list(listeners):
                listener.after_fork_in_child()

    def _note_ticks(self, clocks: Iterable[str]) -> None:
        clocks = [clock for clock in clocks if clock in self._listeners]
        for clock in clocks:
            self._ticked_at_s[clock] = now_s()
        wake_ups = self._wake_ups
        if wake_ups is not None:
            wake_ups.wake(clocks)

    def _follow(self, wake_ups: WakeUps) -> None:
        told: frozenset[str] | None = None
        heartbeat_at_s = looked_at_s = 0.0
        while clocks := self._followed():
            began_s = now_s()
            if wake_ups.look_every_s is not None or told is None or began_s >= heartbeat_at_s:
                wanted = clocks
                heartbeat_at_s = began_s + self._heartbeat_s()
            else:
                wanted = [clock for clock in clocks if clock in told or clock not in self._heads]
            pause_s = heartbeat_at_s - began_s
            if wanted:
                time.sleep(max(0.0, looked_at_s + LEAST_PAUSE_S - began_s))
                looked_at_s, used_s = now_s(), time.thread_time()
                if not self._look(wanted):
                    pause_s = RETRY_S
                    heartbeat_at_s = 0.0
                elif wake_ups.look_every_s is not None:
                    pause_s = max(wake_ups.look_every_s, LOOK_SHARE * (time.thread_time() - used_s))
            told = wake_ups.wait(clocks, pause_s)
        wake_ups.close()

    def _followed(self) -> list[str]:
        """Return the clocks that are followed, and forget the thread if there are none."""
        with self._lock:
            for clock in [clock for clock, listeners in self._listeners.items() if not listeners]:
                del self._listeners[clock], self._aliases[clock]
                self._heads.pop(clock, None)
                self._ticked_at_s.pop(clock, None)
            if not self._listeners:
                self._thread = self._wake_ups = None
            return list(self._listeners)

    def _look(self, clocks: Sequence[str]) -> bool:
        """Look at *clocks*, and wake who follows those that have moved. Return whether the ledger has answered."""
        ledger = self._ledger()
        if ledger is None:
            return False
        asked_at_s = now_s()
        try:
            readings = ledger.read([Dependency(clock) for clock in clocks])
        except Exception as error:  # The thread must not end: it is tried again.
            if not self._is_silent:
                is_known = isinstance(error, LedgerUnavailableError)
                logger.warning("A ledger that is followed does not answer.", exc_info=not is_known)
            self._is_silent = True
            return False
        if self._is_silent:
            logger.warning("A ledger that is followed answers again.")
            self._is_silent = False
        moved = []
        for reading in readings:
            old = self._heads.get(reading.clock)
            self._heads[reading.clock] = Head(reading, asked_at_s, self._wide_seq(ledger, old, reading))
            if old is None or (old.reading.epoch, old.reading.seq) != (reading.epoch, reading.seq):
                moved.append(reading.clock)
        for listener in self._listeners_of(moved):
            listener.wake()
        try:
            self._settle(ledger, readings)
        except Exception:  # The ledger, or a database that is not there: the intents wait.
            logger.warning("What writers have left that died before their tick could not be settled.", exc_info=True)
        return True

    def _heartbeat_s(self) -> float:
        with self._lock:
            listeners = {listener for each in self._listeners.values() for listener in each}
        return min([HEARTBEAT_S, *(listener.heartbeat_s() for listener in listeners)])

    def _wide_seq(self, ledger: Ledger, old: Head | None, now: Reading) -> int:
        """Return Head.wide_seq of a reading that came after *old*."""
        if old is None or old.reading.epoch != now.epoch:
            return now.seq
        if old.reading.seq == now.seq:
            return old.wide_seq
        if not any(listener.wants_ticks for listener in self._listeners_of((now.clock,))):
            return now.seq
        try:
            raws = ledger.log(now.clock, now.epoch, old.reading.seq, now.seq)
        except LedgerUnavailableError:
            raws = None
        if raws is None:
            return now.seq
        wide = [now.seq - back for back, raw in enumerate(reversed(raws)) if not tells_rows(raw)]
        return wide[0] if wide else old.wide_seq

    def _listeners_of(self, clocks: Iterable[str]) -> set[Listener]:
        with self._lock:
            return {listener for clock in clocks for listener in self._listeners.get(clock, ())}

    def _settle(self, ledger: Ledger, readings: Iterable[Reading]) -> None:
        """
        Reap the intents of writers that died between COMMIT and tick, so that their changes are told.

        The hold of a new clock tells of no change, unless writers may not know of it; readers of entries look after it.
        """
        if not ledger.is_shared_by_processes:
            return
        by_alias: dict[str, list[Reading]] = {}
        for reading in readings:
            intents = tuple(x for x in reading.intents if x.id != NEWBORN or ledger.has_deaf_writers)
            if intents and (alias := self._aliases.get(reading.clock)) is not None:
                by_alias.setdefault(alias, []).append(replace(reading, intents=intents))
        for alias, held in by_alias.items():
            connection = connections[alias]  # of this thread
            connection = primary_of(connection) or connection  # a replica knows nothing of writers
            if is_private_database(connection):
                continue
            try:
                fences.settle(ledger, connection, held)
            finally:
                if connection.connection is not None:
                    connection.close()


_followers: weakref.WeakKeyDictionary[Ledger, Follower] = weakref.WeakKeyDictionary()
_followers_lock = threading.Lock()


def follower_of(ledger: Ledger) -> Follower:
    """Return the one follower of *ledger* in this process."""
    with _followers_lock:
        follower = _followers.get(ledger)
        if follower is None:
            follower = _followers[ledger] = Follower(ledger)
        return follower


def _after_fork_in_child() -> None:
    global _followers_lock
    _followers_lock = threading.Lock()
    for follower in list(_followers.values()):
        follower.after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
