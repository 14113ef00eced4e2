"""What each live read leaves behind: a record for people, and exact counters."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from live_cache.metrics import Metrics
    from live_cache.plan import Plan
    from live_cache.shapes.causes import DroppedBy

__all__ = [
    "MISS_REASONS",
    "ReadRecord",
    "Result",
    "Rows",
    "count_hit",
    "count_miss",
    "is_recording",
    "recorded",
    "recording",
    "unrecorded",
]

Rows = Sequence[tuple[Any, ...]]


MISS_REASONS: Final = frozenset(
    {"cold", "expired", "evicted", "row", "bucket", "table", "key", "held", "unknown", "corrupt", "unanswered"}
    | {"refreshed"}
)
"""Why a read found nothing that may be served; what it fetched instead is as the latest commits have left it."""


@dataclass(frozen=True, slots=True)
class ReadRecord:
    """What one live read did."""

    is_hit: bool
    tier: str | None
    """The tier that had the entry: memory, disk, redis; None where the database answered."""
    reason: str
    """
    Empty for a hit. For a miss: cold, expired, evicted, row, bucket, table, key, held, unknown, corrupt, unanswered,
    different, ahead, refreshed (docs/reference/metrics.md); else why the cache was bypassed, why rows were not stored,
    or why older rows were served.
    """
    cache_key: str
    """Empty for a query that has no plan."""
    page_suffix: str
    duration_us: float
    fetched_at_ns: int
    """When the rows were read from the database, in nanoseconds since the epoch."""
    dropped_by: DroppedBy | None = None
    """
    The write that dropped the entry; None if there was none. What only the ledger knows of a write that is told by
    table or by key, when it was and how, is asked for inside recording() alone.
    """


@dataclass(frozen=True, slots=True)
class Result:
    """Rows and the record of how they came."""

    rows: Rows
    record: ReadRecord


_recordings: ContextVar[tuple[list[ReadRecord], ...]] = ContextVar("live_cache_recordings", default=())


@contextmanager
def recording() -> Iterator[list[ReadRecord]]:
    """Collect a ReadRecord of every live read inside the block, in order. For tests, badges and panels."""
    records: list[ReadRecord] = []
    token = _recordings.set((*_recordings.get(), records))
    try:
        yield records
    finally:
        _recordings.reset(token)


@contextmanager
def unrecorded() -> Iterator[None]:
    """Leave the reads inside the block out of every recording(): nobody has asked for them."""
    token = _recordings.set(())
    try:
        yield
    finally:
        _recordings.reset(token)


def is_recording() -> bool:
    """Return whether this thread or task is inside recording()."""
    return bool(_recordings.get())


def recorded(
    rows: Rows,
    started: float,
    plan: Plan | None,
    *,
    tier: str | None = None,
    reason: str = "",
    fetched_at_ns: int = 0,
    dropped_by: DroppedBy | None = None,
) -> Result:
    """Return *rows* with the record of a read that began at *started*, by time.perf_counter()."""
    record = ReadRecord(
        is_hit=tier is not None,
        tier=tier,
        reason=reason,
        cache_key="" if plan is None else plan.cache_key,
        page_suffix="" if plan is None else plan.page_suffix,
        duration_us=(time.perf_counter() - started) * 1e6,
        fetched_at_ns=fetched_at_ns,
        dropped_by=dropped_by,
    )
    for records in _recordings.get():
        records.append(record)
    return Result(rows, record)


def count_hit(metrics: Metrics, tier: str) -> None:
    """Count a lookup that found a fresh entry in *tier*."""
    metrics.count_together("lookups", "hits", f"hits.{tier}")


def count_miss(metrics: Metrics, reason: str) -> None:
    """Count a lookup that found none, for one *reason*."""
    metrics.count_together("lookups", "misses", f"misses.{reason}")
