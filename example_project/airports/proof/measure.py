"""Times of reads: of the database, of a miss, of a hit in this process, and of the first read in a new process."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from django.db import connection

from example_project.airports.badge import QueryCounter
from example_project.airports.models import Airport, Country
from example_project.airports.proof.compare import difference
from example_project.airports.proof.reads import NamedRead
from live_cache import invalidate, live, recording

__all__ = [
    "Observation",
    "Timing",
    "median",
    "observe",
    "observe_cold",
    "observe_first_reads",
    "observe_new_process",
    "observe_plain",
    "observe_warm",
    "wait_until_settled",
]

COLD_ROUNDS: Final = 3
WARM_ROUNDS: Final = 15
PROCESS_ROUNDS: Final = 3

# The child prints log lines too, if something is wrong; its result stands behind this mark.
RESULT_MARK: Final = "live-cache-demo-result:"


@dataclass(frozen=True, slots=True)
class Observation:
    """One read that was watched."""

    value: Any
    duration_us: float
    query_count: int
    tier: str | None
    """The tier that served all of it; None where the database did."""
    reason: str
    """Why the database was asked; empty for a hit."""

    @property
    def is_hit(self) -> bool:
        """Whether a tier answered, and the database was not asked at all."""
        return self.tier is not None and self.query_count == 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Several observations of one read, without its rows."""

    duration_us: float
    """The median."""
    query_count: int
    """The most queries that one of them made."""
    tier: str | None
    """The tier of all of them, or None where they differ or the database answered."""
    reason: str


def observe(question: Callable[[], Any]) -> Observation:
    """Ask *question* and return the answer, with what it cost."""
    queries = QueryCounter()
    with connection.execute_wrapper(queries), recording() as records:
        started_ns = time.perf_counter_ns()
        value = question()
        duration_us = (time.perf_counter_ns() - started_ns) / 1000
    tiers = {record.tier if record.is_hit else None for record in records}
    return Observation(
        value=value,
        duration_us=duration_us,
        query_count=queries.count,
        tier=tiers.pop() if len(tiers) == 1 else None,
        reason="; ".join(record.reason for record in records if record.reason),
    )


def median(observations: Sequence[Observation | Timing]) -> Timing:
    """Return the median of *observations*, which must not be empty."""
    tiers = {one.tier for one in observations}
    return Timing(
        duration_us=statistics.median(one.duration_us for one in observations),
        query_count=max(one.query_count for one in observations),
        tier=tiers.pop() if len(tiers) == 1 else None,
        reason=next((one.reason for one in observations if one.reason), ""),
    )


def wait_until_settled(reads: Sequence[NamedRead], *, at_most_s: float) -> bool:
    """
    Read until every second read is a hit, and return whether that came true.

    The clock of a table that was never read before holds its entries back for one lease.
    """
    deadline = time.monotonic() + at_most_s
    for read in reads:
        while not (observe(read.live), observe(read.live))[1].is_hit:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
    return True


def observe_plain(read: NamedRead) -> Timing:
    """Return the time of the database for *read*: without the package, in the same process."""
    observe(read.plain)  # the first one opens files and prepares statements
    return median([observe(read.plain) for _ in range(WARM_ROUNDS)])


def observe_cold(read: NamedRead) -> Timing:
    """Return the time of a miss: the query, and storing its rows in every tier."""
    observations = []
    for _ in range(COLD_ROUNDS):
        invalidate(Airport)
        observations.append(observe(read.live))
    return median(observations)


def observe_warm(read: NamedRead) -> Timing:
    """Return the time of a hit in this process."""
    observe(read.live)
    return median([observe(read.live) for _ in range(WARM_ROUNDS)])


def observe_new_process(arguments: Sequence[str]) -> list[tuple[Timing, str]]:
    """
    Return the time of each read as the first one of a new process, and where its rows differ from the database.

    Args:
        arguments: Of manage.py, for the child that prints observe_first_reads().

    Raises:
        RuntimeError: A child failed. The message is what it said.
    """
    rounds = [_run_child(arguments) for _ in range(PROCESS_ROUNDS)]
    found = []
    for same_read in zip(*rounds, strict=True):
        timing = median([Timing(**one["timing"]) for one in same_read])
        found.append((timing, next((one["difference"] for one in same_read if one["difference"]), "")))
    return found


def observe_first_reads(reads: Sequence[NamedRead]) -> str:
    """Return what a child prints: JSON of one first read each, compared with the database afterwards."""
    observe(lambda: live(Country.objects.all()).count())  # opens the tiers and the ledger, which no read should pay for
    observations = [observe(read.live) for read in reads]
    results = [
        {"timing": asdict(median([seen])), "difference": difference(seen.value, read.plain())}
        for read, seen in zip(reads, observations, strict=True)
    ]
    return RESULT_MARK + json.dumps(results)


def _run_child(arguments: Sequence[str]) -> list[dict[str, Any]]:
    manage = Path(__file__).resolve().parents[3] / "manage.py"
    child = subprocess.run(
        [sys.executable, str(manage), *arguments], capture_output=True, text=True, encoding="utf-8", check=False
    )
    marked = [line for line in child.stdout.splitlines() if line.startswith(RESULT_MARK)]
    if child.returncode or not marked:
        raise RuntimeError(f"The child process failed:\n{child.stdout}{child.stderr}")
    results: list[dict[str, Any]] = json.loads(marked[-1].removeprefix(RESULT_MARK))
    return results
