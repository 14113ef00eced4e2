"""The proof as aligned text."""

from __future__ import annotations

from collections.abc import Sequence

from example_project.airports.proof.measure import Timing
from example_project.airports.proof.run import Proof

__all__ = ["render_report"]


def render_report(proof: Proof) -> str:
    """Return the tables of reads and writes, and the verdict as the last line."""
    return "\n".join(["", _reads_table(proof), "", _writes_table(proof), "", *_verdict(proof)])


def _reads_table(proof: Proof) -> str:
    warm = _common_tier([read.warm for read in proof.reads])
    first = _common_tier([read.new_process for read in proof.reads])
    head = ["Read", "database", "cold: store", "speed", f"warm: {warm}", "speed", f"new process: {first}", "speed"]
    rows = []
    for read in proof.reads:
        row = [read.name, _microseconds(read.database)]
        for timing in (read.cold, read.warm, read.new_process):
            row += [_microseconds(timing), f"{read.database.duration_us / timing.duration_us:.1f}x"]
        rows.append(row)
    note = "Times are medians, each query built afresh; speed is the database's time divided by this one."
    return f"{_aligned(head, rows)}\n{note}"


def _writes_table(proof: Proof) -> str:
    head = ["Write", "reads changed", "every live read fresh"]
    rows = [
        [write.name, f"{write.changed_count} of {write.read_count}", "yes" if write.is_fresh else "NO"]
        for write in proof.writes
    ]
    return _aligned(head, rows)


def _verdict(proof: Proof) -> list[str]:
    if proof.problems:
        return [*proof.problems, f"FAILED: {len(proof.problems)} problems."]
    return [
        f"PASSED: {len(proof.writes)} kinds of write, {proof.comparison_count} comparisons with the database and no "
        f"difference; {proof.warm_read_count} warm reads and no query."
    ]


def _common_tier(timings: Sequence[Timing]) -> str:
    tiers = {timing.tier or "database" for timing in timings}
    return " or ".join(sorted(tiers))


def _microseconds(timing: Timing) -> str:
    return f"{timing.duration_us:,.0f} µs"


def _aligned(head: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    lines = [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in [head, *rows]
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])
