"""
Runs a workload through the cache of one system, beside an oracle that knows when a result really changed.

At each read the same query is also run on the database. The oracle holds a digest of what it fetched last for that
query; where the digest of the result of now is the same, it needs no fetch. An answer that differs from the result of
now in any value or type is stale: nothing else is running.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.project.asking import Statements
from benchmarks.project.systems import System
from benchmarks.workloads.base import Read, Workload

__all__ = ["Kind", "Truth", "run_workload"]

_MAX_SAMPLES = 5


@dataclass(slots=True)
class Kind:
    """What became of the reads of one kind."""

    reads: int = 0
    fetches: int = 0
    """Reads that sent a statement to the database."""
    oracle: int = 0
    """Reads that an oracle would have sent there."""
    stale: int = 0
    queries: int = 0
    """Statements that the reads sent."""
    distinct: int = 0
    """Different queries."""
    reasons: dict[str, int] = field(default_factory=dict)
    """Of the fetches of this package, by ReadRecord.reason; "link set" for a hit that has asked for nothing but one."""


class Truth:
    """The results of now, and what the oracle fetched last."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._known: dict[tuple[str, tuple[object, ...]], tuple[int, bytes]] = {}
        self._fetched: dict[tuple[str, tuple[object, ...]], bytes] = {}

    def look(self, read: Read, answer: Any, write_count: int) -> tuple[bool, bool, bool]:
        """Return whether *answer* is stale, whether the query is new, and whether the oracle fetches it."""
        key = (read.kind, read.parameters)
        seen = _digest(answer)
        known = self._known.get(key)
        if not self._system.caches:  # its answer is the result of now
            known = (write_count, seen)
        elif known is None or known[0] != write_count:
            with self._system.truth():
                known = (write_count, _digest(read.ask(lambda queryset: queryset)))
        self._known[key] = known
        is_new, is_changed = key not in self._fetched, self._fetched.get(key) != known[1]
        self._fetched[key] = known[1]
        return seen != known[1], is_new, is_changed


def run_workload(workload: Workload, *, operations: int, write_share: float = 0.1) -> dict[str, Any]:
    """Do *operations* reads and writes, and return counts, in all and by kind of query."""
    system, chance = workload.system, workload.chance
    statements, truth = Statements(), Truth(system)
    kinds: dict[str, Kind] = {}
    write_count = write_queries = 0
    samples: list[str] = []
    for _ in range(operations):
        before = statements.count
        if chance.random() < write_share:
            workload.write()
            write_count += 1
            write_queries += statements.count - before
            continue
        read = workload.read()
        kind = kinds.setdefault(read.kind, Kind())
        with _recording(system) as reasons:
            answer = read.ask(system.cached)
        query_count = statements.count - before
        kind.reads += 1
        kind.queries += query_count
        if query_count:
            kind.fetches += 1
            for reason in reasons():
                kind.reasons[reason] = kind.reasons.get(reason, 0) + 1
        is_stale, is_new, is_changed = truth.look(read, answer, write_count)
        kind.distinct += is_new
        kind.oracle += is_changed
        kind.stale += is_stale
        if is_stale and len(samples) < _MAX_SAMPLES:
            samples.append(f"{read.kind} {read.parameters}: {str(answer)[:300]}")
    rows = {name: {**asdict(kind), "ratio": _ratio(kind)} for name, kind in sorted(kinds.items())}
    total = {name: sum(row[name] for row in rows.values()) for name in ("reads", "fetches", "oracle", "stale")}
    return {
        **total,
        "ratio": total["oracle"] / max(total["fetches"], 1),
        "queries": sum(kind.queries for kind in kinds.values()),
        "distinct": sum(kind.distinct for kind in kinds.values()),
        "writes": write_count,
        "write_queries": write_queries,
        "kinds": rows,
        "samples": samples,
    }


def _ratio(kind: Kind) -> float:
    return kind.oracle / max(kind.fetches, 1)


def _digest(answer: Any) -> bytes:
    """Return a digest that differs where a value or its type does: repr() tells 1, 1.0, True and Decimal apart."""
    return hashlib.blake2b(repr(answer).encode(), digest_size=16).digest()


@contextmanager
def _recording(system: System) -> Iterator[Callable[[], list[str]]]:
    """Yield what tells why reads inside the block asked the database; of other packages nothing is known."""
    if system.name != "live_cache":
        yield list
        return
    from live_cache import recording

    with recording() as records:
        yield lambda: [record.reason or "link set" for record in records]
