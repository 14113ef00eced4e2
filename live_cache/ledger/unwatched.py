"""
What a process believes for a while: that clocks which did not exist when it asked do not exist now.

Only with LIVE_CACHE_UNWATCHED_LEASE_S, and only because every process holds a clock that it sees for the first time for
that long. A process believes for half of it, counted from before it asked; the rest is for clocks that run unequally,
and for what is on its way.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Final

from live_cache.ledger.clocks import Reading
from live_cache.ledger.lease_time import now_s

__all__ = ["UnwatchedClocks"]

MAX_CLOCKS: Final = 4096
"""Clocks, and births, that are remembered. What is forgotten is asked for, or waited for, again."""


class UnwatchedClocks:
    """
    Several threads may use it at once: each step is one operation of a dict.

    Args:
        lease_s: Seconds that a newborn clock is held at least. 0: nothing is believed, and nothing held for it.
        clock: Seconds that never go back.
    """

    def __init__(self, lease_s: float, clock: Callable[[], float] = now_s) -> None:
        self._lease_s = lease_s
        self._clock = clock
        self._until_s: dict[str, float] = {}
        self._births: dict[tuple[str, bytes], float] = {}

    @property
    def is_on(self) -> bool:
        """Whether anything is believed at all."""
        return self._lease_s > 0

    def forgotten(self) -> UnwatchedClocks:
        """Return one that knows nothing yet, for a child of fork()."""
        return UnwatchedClocks(self._lease_s, self._clock)

    def are_all(self, clocks: Collection[str]) -> bool:
        """Return whether it may be believed that none of *clocks* exists."""
        if not self._until_s:
            return False
        now_s = self._clock()
        return all(self._until_s.get(clock, 0.0) > now_s for clock in clocks)

    def ask(self, clocks: Sequence[str], exist: Callable[[Sequence[str]], Collection[str]]) -> Collection[str]:
        """
        Return what *exist* says of *clocks*: which of them exist. The others need not be asked for again for a while.

        Raises:
            LedgerUnavailableError: What *exist* raises.
        """
        asked_s = self._clock()
        existing = exist(clocks)
        if self.is_on:
            if len(self._until_s) > MAX_CLOCKS:
                self._until_s.clear()
            until_s = asked_s + self._lease_s / 2
            self._until_s.update({clock: until_s for clock in clocks if clock not in existing})
        return existing

    def see(self, reading: Reading) -> None:
        """Note that a clock was read, so that it exists."""
        if self._until_s:
            self._until_s.pop(reading.clock, None)

    def may_be_believed(self, newborn: Reading) -> bool:
        """Return whether another process may still believe that this clock, which has its first hold, is not there."""
        if not self.is_on:
            return False
        if len(self._births) > MAX_CLOCKS:
            self._births.clear()
        now_s = self._clock()
        return now_s < self._births.setdefault((newborn.clock, newborn.epoch), now_s) + self._lease_s
