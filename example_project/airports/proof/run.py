"""Run the proof: measure every read, then write in every way and compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from example_project.airports.proof import measure
from example_project.airports.proof.compare import difference, flatten
from example_project.airports.proof.measure import Timing
from example_project.airports.proof.reads import NamedRead, Subject
from example_project.airports.proof.writes import WRITES, Write, everything_put_back
from live_cache.conf import settings

__all__ = ["MeasuredRead", "MeasuredWrite", "Proof", "prove"]


@dataclass(frozen=True, slots=True)
class MeasuredRead:
    """One read in every temperature."""

    name: str
    database: Timing
    cold: Timing
    warm: Timing
    new_process: Timing


@dataclass(frozen=True, slots=True)
class MeasuredWrite:
    """What the live reads said after one write."""

    name: str
    changed_count: int
    """How many reads have another answer than before."""
    read_count: int
    is_fresh: bool
    """Whether every live read equalled the database."""


@dataclass(slots=True)
class Proof:
    """Everything that was seen. It holds if problems is empty."""

    reads: list[MeasuredRead] = field(default_factory=list)
    writes: list[MeasuredWrite] = field(default_factory=list)
    comparison_count: int = 0
    warm_read_count: int = 0
    problems: list[str] = field(default_factory=list)


def prove(
    reads: Sequence[NamedRead],
    subject: Subject,
    *,
    child_arguments: Sequence[str],
    writes: Sequence[Write] = WRITES,
    say: Callable[[str], None] = lambda text: None,
) -> Proof:
    """
    Measure *reads*, run *writes* with a comparison after each, and put every row back.

    Args:
        child_arguments: Of manage.py, for a process that prints measure.observe_first_reads().
        say: Called with one line before each step that takes a while.
    """
    proof = Proof()
    say("Filling the cache ...")
    if not measure.wait_until_settled(reads, at_most_s=settings.lease_s + 5):
        proof.problems.append("Not every read became a hit; what follows says which.")
    with everything_put_back(subject):
        say("Measuring ...")
        proof.reads.extend(_measured_reads(proof, reads, child_arguments))
        say("Writing, and comparing every live read with the database after each write ...")
        for write in writes:
            proof.writes.append(_measured_write(proof, write, reads, subject))
    for read in reads:
        _compare(proof, read, "putting everything back")
    return proof


def _measured_reads(proof: Proof, reads: Sequence[NamedRead], child_arguments: Sequence[str]) -> Iterator[MeasuredRead]:
    database = [measure.observe_plain(read) for read in reads]
    cold = [measure.observe_cold(read) for read in reads]
    warm = [measure.observe_warm(read) for read in reads]
    first = measure.observe_new_process(child_arguments)
    for read, timings, (new_process, found) in zip(reads, zip(database, cold, warm, strict=True), first, strict=True):
        measured = MeasuredRead(read.name, *timings, new_process)
        for timing, where in ((measured.warm, "in this process"), (measured.new_process, "in a new process")):
            proof.warm_read_count += 1
            if timing.tier is None or timing.query_count:
                queries = "1 query" if timing.query_count == 1 else f"{timing.query_count} queries"
                because = f" ({timing.reason})" if timing.reason else ""
                proof.problems.append(
                    f"{read.name}: a warm read {where} did not come from the cache alone: {queries}{because}."
                )
        if not measured.database.query_count or not measured.cold.query_count:
            proof.problems.append(f"{read.name}: a read that must ask the database made no query.")
        proof.comparison_count += 1
        if found:
            proof.problems.append(f"{read.name}: in a new process, {found}.")
        yield measured


def _measured_write(proof: Proof, write: Write, reads: Sequence[NamedRead], subject: Subject) -> MeasuredWrite:
    before = []
    for read in reads:
        seen = measure.observe(read.live)
        if not seen.is_hit:
            # A read that is not cached is always fresh: the write would prove nothing.
            proof.problems.append(f"{read.name}: not in the cache before {write.name} ({seen.reason}).")
        before.append(flatten(seen.value))
    write.run(subject)
    changed = 0
    is_fresh = True
    for read, old in zip(reads, before, strict=True):
        value, is_equal = _compare(proof, read, write.name)
        changed += flatten(value) != old
        is_fresh = is_fresh and is_equal
    if write.is_visible and not changed:
        proof.problems.append(f"{write.name}: no read shows the change, so it proves nothing.")
    if not write.is_visible and changed:
        proof.problems.append(f"{write.name}: {changed} reads changed, and none should have.")
    return MeasuredWrite(write.name, changed, len(reads), is_fresh)


def _compare(proof: Proof, read: NamedRead, after: str) -> tuple[object, bool]:
    """Compare the first live read and the one after it, that the first one filled. Return the database's answer."""
    live_values = [read.live(), read.live()]
    plain = read.plain()
    is_equal = True
    for value in live_values:
        proof.comparison_count += 1
        found = difference(value, plain)
        if found:
            is_equal = False
            proof.problems.append(f"{read.name}: after {after}, {found}.")
    return plain, is_equal
