"""
How a process that follows clocks learns that it is worth looking at them again.

A wake-up is a hint: it may be lost, come twice, or come for nothing. The clock and its log are the truth, and whoever
follows them looks at all of them from time to time, whether he was woken or not.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable

__all__ = ["LocalWakeUps", "WakeUps"]


class WakeUps(ABC):
    """The wake-ups of one ledger in one process. wait() is called by one thread, wake() by any."""

    look_every_s: float | None = None
    """How often to look without being woken, where nobody wakes for the ticks of other processes; None: see above."""

    @abstractmethod
    def wait(self, clocks: Collection[str], timeout_s: float) -> frozenset[str] | None:
        """
        Wait until one of *clocks* may have been ticked, at most *timeout_s* seconds.

        It may return sooner, with nothing. Never raises because a server does not answer.

        Returns:
            The clocks that were told, others perhaps among them; None if any may have been ticked unnoticed.
        """

    @abstractmethod
    def wake(self, clocks: Iterable[str]) -> None:
        """Wake who waits, because this process has ticked *clocks*."""

    @abstractmethod
    def close(self) -> None:
        """Release connections. The next wait() opens them again."""


class LocalWakeUps(WakeUps):
    """Tells of the ticks of this process only."""

    def __init__(self, *, look_every_s: float | None = None) -> None:
        self.look_every_s = look_every_s
        self._condition = threading.Condition()
        self._told: set[str] = set()

    def wait(self, clocks: Collection[str], timeout_s: float) -> frozenset[str]:
        """See WakeUps.wait()."""
        with self._condition:
            if not self._told:
                self._condition.wait(timeout_s)
            told = frozenset(self._told)
            self._told.clear()
        return told

    def wake(self, clocks: Iterable[str]) -> None:
        """See WakeUps.wake()."""
        with self._condition:
            self._told.update(clocks)
            self._condition.notify_all()

    def close(self) -> None:
        """See WakeUps.close()."""
