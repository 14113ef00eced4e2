"""What a process remembers of the Redis ledger, to save round trips: records, which never change, and a hint."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from live_cache.ledger.clocks import LOG_LENGTH

__all__ = ["KnownRecords", "Watched"]

KNOWN_BYTES: Final = 16 * 1024 * 1024
"""Of the records of all clocks that a process remembers."""
RECORD_BYTES: Final = 64
"""What a record costs beside its own length."""
WATCHED_S: Final = 1.0
MAX_WATCHED: Final = 4096


@dataclass(slots=True)
class _Run:
    """Records of one clock without a gap: those of the seqs first, first + 1, ..."""

    epoch: bytes
    first: int
    records: list[bytes] = field(default_factory=list)
    size_bytes: int = 0

    @property
    def end(self) -> int:
        return self.first + len(self.records)


class KnownRecords:
    """
    The records that were fetched, per clock one run of the newest. Safe to share between threads.

    A record never changes within its epoch, so what is known needs no second look.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._runs: OrderedDict[str, _Run] = OrderedDict()
        self._size_bytes = 0

    def records(self, clock: str, epoch: bytes, after: int, until: int) -> list[bytes]:
        """Return the records of the seqs after < seq <= until, as many of the first as are known."""
        with self._lock:
            run = self._runs.get(clock)
            if run is None or run.epoch != epoch or after + 1 < run.first:
                return []
            return run.records[after + 1 - run.first : until + 1 - run.first]

    def learn(self, clock: str, epoch: bytes, first: int, records: Sequence[bytes]) -> None:
        """Remember the records of the seqs from *first* on."""
        with self._lock:
            run = self._runs.get(clock)
            if run is None or run.epoch != epoch or not run.first <= first <= run.end:
                self._forget(clock)
                run = self._runs[clock] = _Run(epoch, first)
            new = records[run.end - first :]
            run.records.extend(new)
            self._grow(run, sum(map(len, new)) + RECORD_BYTES * len(new))
            if len(run.records) > 2 * LOG_LENGTH:
                old = run.records[:-LOG_LENGTH]
                del run.records[:-LOG_LENGTH]
                run.first += len(old)
                self._grow(run, -sum(map(len, old)) - RECORD_BYTES * len(old))
            self._runs.move_to_end(clock)
            while self._size_bytes > KNOWN_BYTES and len(self._runs) > 1:
                self._forget(next(iter(self._runs)))

    def _grow(self, run: _Run, size_bytes: int) -> None:
        run.size_bytes += size_bytes
        self._size_bytes += size_bytes

    def _forget(self, clock: str) -> None:
        run = self._runs.pop(clock, None)
        if run is not None:
            self._size_bytes -= run.size_bytes


class Watched:
    """
    Which clocks exist, as they were up to WATCHED_S ago. A hint.

    Several threads may use it at once: each step is one operation of a dict.

    Args:
        clock: Monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, bool]] = {}

    def ask(self, clocks: Iterable[str]) -> bool | None:
        """Return whether one of them exists, or None if that is not known."""
        now_s = self._clock()
        is_complete = True
        for clock in clocks:
            until_s, exists = self._known.get(clock, (0.0, False))
            if until_s <= now_s:
                is_complete = False
            elif exists:
                return True
        return False if is_complete else None

    def see(self, clock: str) -> None:
        """Note that a clock was just read, so that it exists."""
        known = self._known.get(clock)
        if known is not None and not known[1]:
            self._known.pop(clock, None)

    def learn(self, clocks: Sequence[str], answers: Iterable[int]) -> None:
        """Remember for each clock whether it exists."""
        if len(self._known) > MAX_WATCHED:
            self._known.clear()
        until_s = self._clock() + WATCHED_S
        self._known.update({clock: (until_s, bool(answer)) for clock, answer in zip(clocks, answers, strict=True)})
