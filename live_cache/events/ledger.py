"""The live stream that every cache has: the log of its ledger. In one process, on one host, or over Redis."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from django.db import connections, models

from live_cache.assembly import get_assembly
from live_cache.events.base import LiveEvent, LiveStream, Position, Subscription
from live_cache.events.following import HEARTBEAT_S, RETRY_S, Follower, Head, follower_of
from live_cache.events.reading import decoded, events_of, gap
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.lease_time import now_s
from live_cache.names import clock_of, database_name
from live_cache.sql import normalize_table
from live_cache.writes.signals import tables_of

if TYPE_CHECKING:
    from live_cache.ledger.base import Ledger

__all__ = ["LedgerLiveStream", "live_stream"]

BATCH: Final = 64
"""Records that a subscription fetches at once."""
_OVERRUN: Final = "the log no longer reaches back"
_NEW_EPOCH: Final = "the clock of the table is a new one"
_UNKNOWN: Final = "the position does not know the table"


def live_stream(using_cache: str = "default") -> LiveStream:
    """
    Return the live stream of the cache *using_cache*: what every process that shares its ledger has committed.

    Raises:
        ConfigurationError: There is no such alias in CACHES, or it has another backend.
    """
    return LedgerLiveStream(get_assembly(using_cache).ledger)


_Place: TypeAlias = tuple[bytes, int]
"""Epoch and seq."""


@dataclass(frozen=True, slots=True)
class _Gap:
    """Stands among the records for those that are lost."""

    note: str


class LedgerLiveStream(LiveStream):
    """The events that the log of *ledger* tells."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def subscribe(
        self, *tables: type[models.Model] | str, using: str = "default", position: Position | None = None
    ) -> Subscription:
        """See LiveStream.subscribe()."""
        names = sorted({name for table in tables for name in _names_of(table)})
        if not names:
            raise ValueError("Name at least one model or table to subscribe to.")
        database = database_name(connections[using])
        return LedgerSubscription(
            self._ledger, {clock_of(database, name): name for name in names}, using=using, position=position
        )


class LedgerSubscription(Subscription):
    """
    A place in the log of each of some clocks.

    get() with no time to wait looks at the clocks itself; otherwise the follower of the ledger does, for all
    subscriptions of this process.

    Args:
        tables: The table of each clock.

    Raises:
        LedgerUnavailableError: The ledger does not answer.
    """

    wants_ticks = False

    def __init__(
        self, ledger: Ledger, tables: Mapping[str, str], *, using: str, position: Position | None = None
    ) -> None:
        self._ledger = ledger
        self._tables = dict(tables)
        self._turns = list(tables)
        """The order in which logs are fetched. Belongs to whoever fetches."""
        self._database = using
        self._is_closed = False
        self._woken = threading.Event()
        self._alarm: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None
        self._fetching = threading.Lock()
        """Held by whoever fetches. What is fetched is added at once, so that the consumer never waits for it."""
        self._fetched: dict[str, _Place] = {}
        self._raws: deque[tuple[str, _Place, bytes | _Gap]] = deque()
        """Records that were fetched, BATCH of them at most, or gaps, one per clock at most."""
        self._events: deque[LiveEvent] = deque()
        """Of one record."""
        self._next_place: tuple[str, _Place] | None = None
        """Of that record, once its last event is taken."""
        self._taken: dict[str, _Place] = {}
        self._heads: dict[str, Head] = {}
        """As this subscription has seen them itself."""
        # A clock that does not exist is made here: from now on writers tell it what they change.
        self._look()
        for clock, head in self._heads.items():
            now = head.reading.epoch, head.reading.seq
            kept = now if position is None else position.seqs.get(clock)
            if kept is not None and kept[0] == now[0] and 0 <= kept[1] <= now[1]:
                self._fetched[clock] = self._taken[clock] = kept
            else:
                self._skip(clock, now, _UNKNOWN if kept is None else _NEW_EPOCH)
        self._follower: Follower = follower_of(ledger)
        self._follower.follow(self._tables, using, self)

    def get(self, timeout_s: float | None = None) -> LiveEvent | None:
        """See Subscription.get()."""
        until_s = None if timeout_s is None else now_s() + timeout_s
        if timeout_s is not None and timeout_s <= 0 and not (self._raws or self._events):
            self._refuse_closed()
            with suppress(LedgerUnavailableError):
                self._look()
        while True:
            self._refuse_closed()
            self._woken.clear()
            if (event := self._take()) is not None:
                return event
            pause_s = self._fetch()
            if pause_s == 0:
                continue
            wait_s = _shorter(until_s, pause_s)
            if wait_s is not None and wait_s <= 0:
                return None
            self._follower.run()
            self._woken.wait(wait_s)

    async def aget(self, timeout_s: float | None = None) -> LiveEvent | None:
        """See Subscription.get()."""
        until_s = None if timeout_s is None else now_s() + timeout_s
        alarm = asyncio.Event()
        self._alarm = asyncio.get_running_loop(), alarm
        while True:
            self._refuse_closed()
            alarm.clear()
            if (event := self._take()) is not None:
                return event
            # Heads are in memory; the log behind them may be a round trip away.
            pause_s = await asyncio.to_thread(self._fetch) if self._is_behind() else None
            if pause_s == 0:
                continue
            wait_s = _shorter(until_s, pause_s)
            if wait_s is not None and wait_s <= 0:
                return None
            self._follower.run()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await alarm.wait()

    @property
    def position(self) -> Position:
        """See Subscription.position."""
        return Position(dict(self._taken))

    @property
    def age_s(self) -> float | None:
        """See Subscription.age_s."""
        return now_s() - min(self._head(clock).asked_at_s for clock in self._tables)

    def close(self) -> None:
        """See Subscription.close()."""
        self._is_closed = True
        self._follower.unfollow(self._tables, self)
        self.wake()

    def heartbeat_s(self) -> float:
        """See Listener.heartbeat_s()."""
        return HEARTBEAT_S

    def wake(self) -> None:
        """See Listener.wake()."""
        self._woken.set()
        if (waiting := self._alarm) is not None:
            loop, alarm = waiting
            with suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(alarm.set)

    def after_fork_in_child(self) -> None:
        """See Listener.after_fork_in_child()."""
        self._woken = threading.Event()
        self._fetching = threading.Lock()
        self._alarm = None

    def _refuse_closed(self) -> None:
        if self._is_closed:
            raise ValueError("The subscription is closed.")

    def _look(self) -> None:
        asked_at_s = now_s()
        for reading in self._ledger.read([Dependency(clock) for clock in self._tables]):
            self._heads[reading.clock] = Head(reading, asked_at_s, reading.seq)

    def _head(self, clock: str) -> Head:
        """Return the newest head of *clock*: one that was asked for earlier may be of an older epoch."""
        own, followed = self._heads[clock], self._follower.head(clock)
        return own if followed is None or followed.asked_at_s < own.asked_at_s else followed

    def _is_behind(self) -> bool:
        return any(_is_before(self._fetched[clock], self._head(clock)) for clock in self._tables)

    def _take(self) -> LiveEvent | None:
        """Return the next event of those that were fetched."""
        while True:
            if self._events:
                event = self._events.popleft()
                if not self._events:
                    self._arrive()
                return event
            if not self._raws:
                return None
            clock, (epoch, seq), raw = self._raws.popleft()
            taken = self._taken.get(clock)
            if taken is not None and taken[0] == epoch and seq <= taken[1] and not isinstance(raw, _Gap):
                continue  # fetched twice, around a fork
            self._next_place = clock, (epoch, seq)
            told: dict[str, Any] = {
                "table": self._tables[clock],
                "database": self._database,
                "epoch": epoch,
                "seq": seq,
            }
            if isinstance(raw, _Gap):
                self._events.append(gap(**told, note=raw.note))
            else:
                self._events.extend(events_of(decoded(raw), **told))
            if not self._events:
                self._arrive()

    def _arrive(self) -> None:
        if self._next_place is not None:
            clock, place = self._next_place
            self._taken[clock] = place
            self._next_place = None

    def _fetch(self) -> float | None:
        """
        Fetch the next records, if there are any.

        Returns:
            After how many seconds to try again: 0 if something may be taken now, None if nothing is known to come.
        """
        with self._fetching:
            if self._raws or self._events:
                return 0
            pause_s = None
            for clock in tuple(self._turns):
                fetched, head = self._fetched[clock], self._head(clock)
                if not _is_before(fetched, head):
                    continue
                epoch, seq = head.reading.epoch, head.reading.seq
                # The next turn begins behind it, so that a busy table holds back no other.
                self._turns.remove(clock)
                self._turns.append(clock)
                if fetched[0] != epoch:
                    self._skip(clock, (epoch, seq), _NEW_EPOCH)
                    return 0
                until = min(seq, fetched[1] + BATCH)
                try:
                    raws = self._ledger.log(clock, epoch, fetched[1], until)
                except LedgerUnavailableError:
                    pause_s = RETRY_S
                    continue
                if raws is None:
                    self._skip(clock, (epoch, seq), _OVERRUN)
                    return 0
                # In this order: a fork in between makes the child fetch them again, and none is left out.
                self._raws.extend((clock, (epoch, fetched[1] + n), raw) for n, raw in enumerate(raws, start=1))
                self._fetched[clock] = epoch, until
                return 0
            return pause_s

    def _skip(self, clock: str, place: _Place, note: str) -> None:
        """Go on at *place*, with a gap in place of all that was before it."""
        self._raws.append((clock, place, _Gap(note)))
        self._fetched[clock] = place


def _is_before(place: _Place, head: Head) -> bool:
    return place[0] != head.reading.epoch or place[1] < head.reading.seq


def _shorter(until_s: float | None, pause_s: float | None) -> float | None:
    left_s = None if until_s is None else until_s - now_s()
    return min((s for s in (left_s, pause_s) if s is not None), default=None)


def _names_of(table: type[models.Model] | str) -> frozenset[str]:
    return frozenset((normalize_table(table),)) if isinstance(table, str) else tables_of(table)
