"""How old the answers of bounded reads are: the floors of the last seconds, and what was measured by them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Final

from benchmarks.project.shared import Cells

__all__ = ["Lags", "now_us"]

KEPT: Final = 4096
"""Moments whose floors are kept. One that an answer must not be older than has to be among them."""
PAUSE_S: Final = 0.0005
STEP_US: Final = 500
STEPS: Final = 4000
"""Lags are counted in steps of STEP_US; the last step has all that is longer."""
_TIME: Final = 0


def now_us() -> int:
    """Return microseconds of a clock that all processes of this machine share."""
    return time.monotonic_ns() // 1000


class Lags:
    """
    What one process notes of the floors, and how many reads of each reader lagged behind them for how long.

    The lag of an answer is the time since a moment whose floors it does not show: never more than it was, and less by
    the time between two moments, about a millisecond.
    """

    def __init__(self, *, rows: int, readers: int) -> None:
        self._moments = Cells(KEPT, 1 + rows)
        self._counts = Cells(readers, STEPS)
        self._next = 0

    def note(self, floors: Sequence[int]) -> None:
        """Keep the floors of a moment that is over now. For one process."""
        number = self._next % KEPT
        self._moments.set(number, _TIME, 0)
        for row, floor in enumerate(floors, start=1):
            self._moments.set(number, row, floor)
        self._moments.set(number, _TIME, now_us())
        self._next += 1

    def lag_us(self, began_us: int, is_right: Callable[[Sequence[int]], bool]) -> int:
        """
        Return how long ago the answer of a read that began at *began_us* was right, 0 if that is too short to tell.

        Args:
            is_right: Whether the answer shows all that these floors demand.
        """
        lag_us = 0
        for at_us, floors in self._before(began_us):
            if is_right(floors):
                break
            lag_us = began_us - at_us
        return lag_us

    def count(self, reader: int, lag_us: int) -> None:
        """Count one read of *reader* that showed less than was committed when it began."""
        self._counts.add(reader, min(lag_us // STEP_US, STEPS - 1), 1)

    def quantiles_ms(self, shares: Sequence[float]) -> list[float]:
        """Return the lag that each of *shares* of the counted reads did not exceed, rounded up to a step."""
        counts = self._counts.sums()
        found = []
        for share in shares:
            wanted = share * sum(counts)
            step = next(step for step, seen in enumerate(accumulate(counts)) if seen >= wanted)
            found.append((step + 1) * STEP_US / 1000 if wanted else 0.0)
        return found

    @property
    def total(self) -> int:
        """How many reads were counted."""
        return sum(self._counts.sums())

    def _before(self, at_us: int) -> Iterator[tuple[int, list[int]]]:
        """Yield the moments that were over at *at_us* with their floors, the newest first."""
        moments = [(self._moments.get(number), number) for number in range(KEPT)]
        for noted_us, number in sorted(moments, reverse=True):
            if not 0 < noted_us <= at_us:
                continue
            again_us, *floors = self._moments.row(number)
            if again_us == self._moments.get(number) == noted_us:  # else it is being written again: it is the oldest
                yield noted_us, floors
