"""
A circuit breaker: a server or a disk that does not answer is left alone, and tried again by one caller at a time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from live_cache.chance import chance
from live_cache.stores.counters import Tally
from live_cache.stores.forks import ForkAware

__all__ = ["CircuitBreaker"]

_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
# Each pause is up to this part longer, so that the processes of a project do not all try at one moment.
_JITTER: Final = 0.5


class CircuitBreaker(ForkAware):
    """
    Opens with a failure; while it is open, nobody has to wait for what would fail.

    After a pause one caller is let through to probe. A probe that fails doubles the pause, up to 10 seconds and jitter;
    one that succeeds closes the breaker. A probe that never reports delays the next by one pause. Safe between threads
    and across a fork.

        turn = breaker.admit()       # None: do without
        ...
        breaker.succeed(turn)        # or fail(turn)

    Args:
        pause_s: Seconds from the first failure to the first probe.
        longest_pause_s: What the pause grows to.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        *,
        pause_s: float = _FIRST_PAUSE_S,
        longest_pause_s: float = _LONGEST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._first_pause_s = pause_s
        self._longest_pause_s = longest_pause_s
        self._clock = clock
        self._lock = threading.Lock()
        self._pause_s = pause_s
        # None: closed. Read without the lock, by everybody.
        self._retry_at_s: float | None = None
        # Raised whenever it opens, closes, or begins a probe: a report of an earlier turn tells nothing about now.
        self._turn = 0
        self.closed_count = 0
        """How often it went from open to closed. To be compared with what it was, not added up."""
        self.opened = Tally()
        """How often it went from closed to open."""
        self.skipped = Tally()
        """Calls that were refused while it was open."""
        self.probed = Tally()
        """Calls that were let through while it was open."""
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Replace the lock."""
        self._lock = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the last that was heard is a failure."""
        return self._retry_at_s is not None

    def admit(self) -> int | None:
        """Return a turn, to be given to succeed() or fail(); or None, if the caller is to do without."""
        turn = self._turn
        if self._retry_at_s is None:
            return turn
        with self._lock:
            now_s = self._clock()
            if self._retry_at_s is None:
                return self._turn
            if now_s < self._retry_at_s:
                self.skipped.add_one()
                return None
            self._turn += 1
            self._retry_at_s = now_s + self._jittered()
            self.probed.add_one()
            return self._turn

    def succeed(self, turn: int) -> None:
        """Note that an answer came: a probe closes the breaker."""
        if self._retry_at_s is None:
            return
        with self._lock:
            if turn == self._turn:
                self._close()

    def fail(self, turn: int) -> None:
        """Note that no answer came: it opens, or stays open for longer."""
        with self._lock:
            if turn != self._turn:
                return
            self._turn += 1
            if self._retry_at_s is None:
                self._pause_s = self._first_pause_s
                self.opened.add_one()
            else:
                self._pause_s = min(self._pause_s * 2, self._longest_pause_s)
            self._retry_at_s = self._clock() + self._jittered()

    def trip(self) -> None:
        """Open it, if it is closed, for what another caller than an admitted one has seen."""
        if self._retry_at_s is None:
            self.fail(self._turn)

    def revive(self) -> None:
        """Close it, if it is open: an answer has come, too late for whoever asked."""
        if self._retry_at_s is None:
            return
        with self._lock:
            if self._retry_at_s is not None:
                self._close()

    def _close(self) -> None:
        self._turn += 1
        self._retry_at_s = None
        self.closed_count += 1

    def _jittered(self) -> float:
        return self._pause_s * (1 + chance.random() * _JITTER)
