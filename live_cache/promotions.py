"""
Promotions: of many threads that miss an entry in memory, one looks into the farther tiers and copies it to the nearer
ones; the others wait for that, and look into memory again.

As with flights.py, nobody takes rows from anybody: who has waited judges the entry under a reading of his own. He waits
for a moment at most; an error, or an entry that is not copied, only means that he looks into the farther tiers himself.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

from live_cache.stores.forks import ForkAware

__all__ = ["LONGEST_WAIT_S", "Promotions"]

LONGEST_WAIT_S: Final = 0.2
"""Far above what a farther tier takes to answer where all is well: then the next of those who wait looks there."""
MAX_WAITS: Final = 2

# What is read while an entry is judged, such as a link set, waits for nobody: it could be waited for itself.
_is_promoting: ContextVar[bool] = ContextVar("live_cache_is_promoting", default=False)


class Promotions(ForkAware):
    """The looks into farther tiers of one cache alias that other threads wait for."""

    def __init__(self) -> None:
        self._running: dict[str, threading.Event] = {}
        self.landed = 0
        """How many have ended, more or less: who begins one must know whether another ended after he had looked."""
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Forget them: they are of threads of the parent."""
        self._running = {}

    @contextmanager
    def turn(self, key: str) -> Iterator[bool]:
        """Yield whether this thread has waited for another one's look for *key*; others may wait for its own then."""
        if _is_promoting.get():
            yield False
            return
        mine = threading.Event()
        has_waited = False
        for _ in range(MAX_WAITS):
            running = self._running.setdefault(key, mine)
            if running is mine:
                break
            has_waited = True
            if running.wait(LONGEST_WAIT_S):
                break
            self._end(key, running)
        if running is not mine:
            yield True
            return
        token = _is_promoting.set(True)
        try:
            yield has_waited
        finally:
            _is_promoting.reset(token)
            self.landed += 1
            self._end(key, mine)
            mine.set()

    def _end(self, key: str, event: threading.Event) -> None:
        # Another thread may come between the two steps; then one more looks for itself.
        if self._running.get(key) is event:
            self._running.pop(key, None)
