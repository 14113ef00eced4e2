"""
Single flight: of many readers that miss one entry, one fetches; the others wait until it is stored, and look again.

Nobody takes rows out of the hands of the filler. Who has waited looks into the tiers anew, with a reading of his own
that he requests after the wait, so that is_fresh() decides for him as for any other reader (rules 2 and 16). A flight
therefore has no part in freshness: it may end early, twice or never, and only the number of fetches differs.

Threads of one process wait for each other by an event. Of several processes the first to find the lease of the entry
free, in the farthest tier, fetches; the first reader of each other process asks now and then whether it still stands.
A lease that its owner does not give back, since he was killed, ends by the time of the tier.
"""

from __future__ import annotations

import os
import threading
import time
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self

from django.db import DatabaseError, Error

from live_cache.chance import chance
from live_cache.conf import settings
from live_cache.exceptions import StoreError
from live_cache.stores.forks import ForkAware

if TYPE_CHECKING:
    from live_cache.metrics import Metrics
    from live_cache.stores.base import Missing, Store

__all__ = ["Flights", "Turn"]

MAX_WAITS: Final = 2
"""Fillers that a reader waits for before it fetches by itself: where writes outrun the fills, waiting is in vain."""
SHORTEST_LEASE_S: Final = 1.0
"""So that a fetch that usually takes milliseconds may take its time on a busy server."""
_FIRST_PAUSE_S: Final = 0.005
_LONGEST_PAUSE_S: Final = 0.02
_MAX_TIMES: Final = 4096
_COUNTERS: Final = 256

# Whoever fills an entry waits for nobody: what a fetch reads within itself could wait for that very fetch.
_is_filling: ContextVar[bool] = ContextVar("live_cache_is_filling", default=False)


class Flights(ForkAware):
    """
    The fetches of one cache alias that others wait for.

    Args:
        metrics: Of the alias.
        lease_store: The tier in which processes meet. None: this process flies alone.
        is_keeping: Whether a tier keeps what is stored, so that waiting can be worth it.
    """

    def __init__(self, metrics: Metrics, *, lease_store: Store | None, is_keeping: bool = True) -> None:
        self.metrics = metrics
        self.lease_store = lease_store
        self.is_keeping = is_keeping
        self._lock = threading.Lock()
        self._flights: dict[str, _Flight] = {}
        # How many flights have ended, by the hash of their key: who has become the filler must know whether another
        # one landed after he had looked.
        self._landings = [0] * _COUNTERS
        self._times = _FetchTimes()
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Forget the flights: their fillers are threads of the parent."""
        self._lock = threading.Lock()
        self._flights = {}

    def turn(self, key: str) -> Turn:
        """Return the part of one read of the entry under *key*; use it in a with statement."""
        return Turn(self, key)

    def landings(self, key: str) -> int:
        """Return how many flights of *key*, and of keys that share its counter, have ended."""
        return self._landings[hash(key) % _COUNTERS]

    def is_worth_waiting(self, key: str) -> bool:
        """Return whether a fetch of *key* may serve those who wait for it."""
        return self.is_keeping and not _is_filling.get() and self._times.was_stored(key) and settings.fill_lease_s > 0

    def lease_s(self, key: str) -> float:
        """Return how long others wait for a fetch of *key*: twice what it usually takes, within bounds."""
        longest_s = settings.fill_lease_s
        usual_s = self._times.usual_s(key)
        return longest_s if usual_s is None else min(max(2 * usual_s, SHORTEST_LEASE_S), longest_s)

    def note(self, key: str, took_s: float, *, is_stored: bool) -> None:
        """Remember how long a fetch took, and whether its rows could be stored."""
        self._times.note(key, took_s, is_stored=is_stored)

    def board(self, key: str) -> tuple[_Flight, bool]:
        """Return the flight of *key* that is under way, or a new one; and whether it is new."""
        with self._lock:
            flight = self._flights.get(key)
            if flight is not None:
                return flight, False
            flight = self._flights[key] = _Flight(time.monotonic() + settings.fill_lease_s)
            return flight, True

    def land(self, key: str, flight: _Flight) -> None:
        """End a flight: those who wait go on, and a later reader begins another."""
        with self._lock:
            self._landings[hash(key) % _COUNTERS] += 1
            if self._flights.get(key) is flight:
                del self._flights[key]
        flight.end()

    def abandon(self, key: str, flight: _Flight) -> None:
        """Let the next reader begin another flight, since the filler of this one is too slow. It may still land."""
        with self._lock:
            if self._flights.get(key) is flight:
                del self._flights[key]


class Turn:
    """
    What one read does about the flights of its entry: a with statement around all its looks and its fetch.

        with flights.turn(key) as turn:
            while True:
                turn.look()
                ...                                   # look into the tiers; a fresh entry ends the read
                if turn.is_mine(seen): break          # False: somebody has landed, so look again
            ...                                       # fetch and store
    """

    __slots__ = (
        "_does_without_lease",
        "_filling",
        "_flight",
        "_flights",
        "_give_up_s",
        "_has_looked_again",
        "_is_lease_held",
        "_key",
        "_seen_landings",
        "_shares_errors",
        "has_news",
        "token",
        "waits",
    )

    def __init__(self, flights: Flights, key: str) -> None:
        self._flights = flights
        self._key = key
        self._flight: _Flight | None = None
        self._filling: Token[bool] | None = None
        self._seen_landings = 0
        self._has_looked_again = False
        self._does_without_lease = False
        self._is_lease_held = False
        self.has_news = False
        """Whether the last leads_at_once() found that the entry was stored meanwhile."""
        self._give_up_s: float | None = None
        self.waits = 0
        """Fillers that this read has waited for."""
        self.token: bytes | None = None
        """What the lease in the farthest tier holds, if this read owns it."""
        self._shares_errors = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.leave()

    def look(self) -> None:
        """Tell that the read is about to look into the tiers."""
        self._seen_landings = self._flights.landings(self._key)

    def is_mine(self, seen: bytes | Missing) -> bool:
        """
        Return whether this read is to fetch now. Else it is to look again: somebody may have stored the entry.

        Waits for the filler that is under way, but not longer than his lease, and for two fillers at most. A read that
        has waited for two fetches by itself.

        Args:
            seen: What the last look found in the farthest tier.

        Raises:
            DatabaseError: The filler in this process met it. A new object; the filler's own is its __cause__.
        """
        if self._flight is None:
            if self.waits >= MAX_WAITS or not self._flights.is_worth_waiting(self._key):
                return True
            flight, is_new = self._flights.board(self._key)
            if not is_new:
                self._wait_for(flight)
                return False
            self._flight = flight
            self._filling = _is_filling.set(True)
        is_news = False
        store = self._flights.lease_store
        if store is not None and self.token is None and not self._does_without_lease:
            token = os.urandom(12)
            try:
                is_taken, held = store.take_lease(self._key, token, timeout_s=self._flights.lease_s(self._key))
            except StoreError:  # without the tier there is nobody to meet
                self._does_without_lease = True
            else:
                if not is_taken and self.waits < MAX_WAITS:
                    self._wait_for_lease(store)
                    return False
                self._does_without_lease = self._is_lease_held = not is_taken
                self.token = token if is_taken else None
                is_news = is_taken and held != seen
        is_news = is_news or self._flights.landings(self._key) != self._seen_landings
        # Once is enough: what lands from now on has other keys, or comes from fillers who took too long.
        if is_news and not self._has_looked_again:
            self._has_looked_again = True
            return False
        return True

    def leads_at_once(self, seen: bytes | Missing) -> bool:
        """
        Return whether this read can fetch now, since nobody else does. Waits for nobody; else as is_mine().

        If not, has_news tells whether somebody has stored the entry since the last look.
        """
        self.has_news = False
        waits, self.waits = self.waits, MAX_WAITS
        try:
            if self._flight is None:
                if not self._flights.is_worth_waiting(self._key):
                    return True
                flight, is_new = self._flights.board(self._key)
                if not is_new:
                    return False
                self._flight, self._filling = flight, _is_filling.set(True)
            is_mine = self.is_mine(seen)
        finally:
            self.waits = waits
        if is_mine and not self._is_lease_held:
            return True
        self.has_news = not is_mine
        self._has_looked_again = self._does_without_lease = False
        self.leave()
        return False

    def fail(self, error: Error) -> None:
        """Tell those who wait for this read that the database answered with an error, if it would meet them too."""
        if self._flight is not None and self._shares_errors and isinstance(error, DatabaseError):
            self._flight.error = error

    def leave(self) -> None:
        """End the flight, if this read leads one: with its fetch, or before, if that will not serve anybody."""
        if self._filling is not None:
            _is_filling.reset(self._filling)
            self._filling = None
        flight, self._flight = self._flight, None
        if flight is None:
            return
        try:
            self._give_lease_back()
        finally:
            self._flights.land(self._key, flight)

    def fetching(self, *, shares_errors: bool) -> None:
        """
        Tell that the read fetches now: those who wait for it wait for one lease from here.

        Args:
            shares_errors: Whether an error of the database would meet those who wait, too.
        """
        self._shares_errors = shares_errors
        if self._flight is not None:
            self._flights.metrics.count("flights")
            self._flight.deadline_s = time.monotonic() + self._flights.lease_s(self._key)

    def _wait_for(self, flight: _Flight) -> None:
        if flight.wait(until_s=self._begin_to_wait()):
            if flight.error is not None:
                self._flights.metrics.count("waits.failed")
                raise _copy_of(flight.error) from flight.error
        elif flight.deadline_s <= time.monotonic():
            self._flights.abandon(self._key, flight)

    def _wait_for_lease(self, store: Store) -> None:
        """Wait until nobody holds the lease, asking every 5 to 20 ms, or until the store does not answer."""
        assert self._flight is not None
        end_s = min(self._begin_to_wait(), time.monotonic() + settings.fill_lease_s)
        self._flight.deadline_s = end_s + SHORTEST_LEASE_S  # until this read has looked, and fetches
        pause_s = _FIRST_PAUSE_S
        while (remaining_s := end_s - time.monotonic()) > 0:
            time.sleep(min(pause_s * chance.uniform(0.75, 1.25), remaining_s))
            pause_s = min(pause_s * 1.5, _LONGEST_PAUSE_S)
            try:
                if not store.is_leased(self._key):
                    return
            except StoreError:
                return

    def _begin_to_wait(self) -> float:
        """Count a wait, and return until when this read may wait at all, by time.monotonic()."""
        self.waits += 1
        if self._give_up_s is None:
            self._give_up_s = time.monotonic() + MAX_WAITS * settings.fill_lease_s
        return self._give_up_s

    def _give_lease_back(self) -> None:
        store, token = self._flights.lease_store, self.token
        if store is not None and token is not None:
            self.token = None
            try:
                store.release_lease(self._key, token)
            except StoreError:
                self._flights.metrics.count("store_errors")


class _Flight:
    """One fetch, as the threads of this process see it."""

    __slots__ = ("_ended", "deadline_s", "error")

    def __init__(self, deadline_s: float) -> None:
        self._ended = threading.Event()
        self.deadline_s = deadline_s
        """By time.monotonic(): when those who wait give up. The filler moves it when his fetch begins."""
        self.error: DatabaseError | None = None

    def wait(self, *, until_s: float) -> bool:
        """Wait for the end, at most until the deadline and *until_s*. Return whether it has ended."""
        while not self._ended.wait(max(0.0, min(self.deadline_s, until_s) - time.monotonic())):
            if time.monotonic() >= min(self.deadline_s, until_s):
                return False
        return True

    def end(self) -> None:
        """Let those who wait go on."""
        self._ended.set()


class _FetchTimes:
    """
    How long the fetches of the last 4,096 to 8,192 entries took, and whether their rows could be stored.

    Threads share it: a step is one operation of a dict, and what is lost makes a lease longer.
    """

    def __init__(self) -> None:
        # As in known_entries: the older generation is dropped as a whole.
        self._young: dict[int, float | None] = {}
        self._old: dict[int, float | None] = {}

    def note(self, key: str, took_s: float, *, is_stored: bool) -> None:
        usual_s = self.usual_s(key)
        # The slowest of late, forgotten by a tenth with each faster one.
        self._young[hash(key)] = max(took_s, 0.9 * (usual_s or 0.0)) if is_stored else None
        if len(self._young) >= _MAX_TIMES:
            self._old, self._young = self._young, {}

    def usual_s(self, key: str) -> float | None:
        known = hash(key)
        return self._young.get(known, self._old.get(known))

    def was_stored(self, key: str) -> bool:
        """Return False if the last fetch of *key* could not be stored."""
        known = hash(key)
        return self._young.get(known, self._old.get(known, 0.0)) is not None


def _copy_of(error: DatabaseError) -> DatabaseError:
    """Return an error of the same class: one object raised in two threads would mix their tracebacks."""
    try:
        return type(error)(*error.args)
    except Exception:  # a subclass of the project with arguments of its own
        return DatabaseError(*error.args)
