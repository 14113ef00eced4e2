"""
Counters of a store: exact under threads, without a lock that a fork could leave held.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator

from live_cache.stores.base import StoreMetrics

__all__ = ["StoreCounters", "Tally"]


class Tally:
    """A count that many threads raise at once, in 50 ns and without a lock."""

    __slots__ = ("_pairs", "_ticks", "add_one")

    add_one: Callable[[], int]
    """Raise the count by one. What it returns means nothing."""

    def __init__(self) -> None:
        # A step of itertools.count runs in C and cannot be interrupted by another thread, unlike `number += 1`.
        # To read a count one has to step it, so every reading steps a second count too, and the difference is
        # the value. zip steps both within one call in C.
        self._ticks = itertools.count()
        self._pairs: Iterator[tuple[int, int]] = zip(self._ticks, itertools.count(), strict=True)
        self.add_one = self._ticks.__next__

    def add(self, number: int) -> None:
        """Raise the count by *number*."""
        deque(itertools.islice(self._ticks, number), maxlen=0)

    @property
    def value(self) -> int:
        """The count now."""
        ticks, readings = next(self._pairs)
        return ticks - readings


class StoreCounters:
    """
    What a store counts, in this process.

    Lookups are not counted but summed from hits and misses, so the three agree at every moment.
    """

    __slots__ = ("_evictions", "deletes", "errors", "hits", "misses", "puts", "rejected_puts")

    def __init__(self) -> None:
        self.hits = Tally()
        self.misses = Tally()
        self.puts = Tally()
        self.rejected_puts = Tally()
        self.deletes = Tally()
        self.errors = Tally()
        self._evictions = {reason: Tally() for reason in ("expired", "entries", "bytes", "rejected")}

    def count_lookup(self, *, is_hit: bool) -> None:
        """Count one lookup."""
        (self.hits if is_hit else self.misses).add_one()

    def count_lookups(self, *, hits: int, misses: int) -> None:
        """Count the lookups of one get_many()."""
        self.hits.add(hits)
        self.misses.add(misses)

    def count_evictions(self, reason: str, number: int = 1) -> None:
        """Count *number* entries that went for *reason*: expired, entries, bytes or rejected."""
        self._evictions[reason].add(number)

    def snapshot(self, *, entries: int | None = None, size_bytes: int | None = None) -> StoreMetrics:
        """Return the counters of this moment. Only the reasons that occurred are in evictions."""
        hits, misses = self.hits.value, self.misses.value
        evictions = {reason: tally.value for reason, tally in self._evictions.items()}
        return StoreMetrics(
            lookups=hits + misses,
            hits=hits,
            misses=misses,
            puts=self.puts.value,
            rejected_puts=self.rejected_puts.value,
            deletes=self.deletes.value,
            errors=self.errors.value,
            evictions={reason: number for reason, number in evictions.items() if number},
            entries=entries,
            size_bytes=size_bytes,
        )
