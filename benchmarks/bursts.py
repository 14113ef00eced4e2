"""
The natural-rate run: bursts of saves on one row, readers of one query, and afterwards the cache against the database.

    python -m benchmarks.bursts [--bursts N] [--atomic] [--database NAME|URL] [--location NAME] [--no-peers] [--json]

One process saves a row ten times as fast as it can, while four processes read the query that shows it. A few
milliseconds later every reader is stopped. Now nothing is in flight, and what each process reads through its cache is
compared with the database: if one differs, nothing will ever repair it, and the burst counts as stale for ever.
Meanwhile each reader checks each read: one that began after a save had returned must not show less than that save.

Exit status 1 if this package shows one stale burst or one stale read. Counts are exact, times say nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.project.answers import SHELVES
from benchmarks.project.errors import BenchmarkError
from benchmarks.project.runs import Bench, Result, add_options, is_child, print_table, run_and_show, run_child
from benchmarks.project.shared import Cells
from benchmarks.project.workers import Workers, is_orphan

__all__ = ["main"]

SAVES: Final = 10
ROWS: Final = 10
SETTLE_S: Final = 10.0
ANSWER_S: Final = 60.0
RUN, PAUSE, CHECK = 0, 1, 2
"""What the readers do, as the remainder of the shared step number by 3."""
STEP, STOP, FLOOR = range(3)
DONE_STEP, READS, HITS, STALE_READS, SEEN = range(5)
COLUMNS: Final = {
    "system": "system",
    "bursts": "bursts",
    "stale_bursts": "stale for ever",
    "stale_percent": "%",
    "reads": "reads",
    "stale_reads": "stale reads",
    "hits": "hits",
    "hit_percent": "hits %",
    "seconds": "seconds",
}


def main(argv: list[str] | None = None) -> int:
    """Run every system and print what happened."""
    if is_child():
        return run_child(_run)
    options = _parse(argv)
    results = run_and_show("benchmarks.bursts", options, _show)
    if results is None:
        return 2
    return 1 if results[0]["stale_bursts"] or results[0]["stale_reads"] else 0


def _show(options: argparse.Namespace, results: Sequence[Result]) -> None:
    mode = "atomic" if options.atomic else "autocommit"
    print(f"{options.database}, {mode}, {options.readers} readers; ours on {options.location}")
    print_table(results, COLUMNS)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.bursts", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--bursts", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--atomic", action="store_true", help="each save in atomic(); else in autocommit mode")
    parser.add_argument("--readers", type=int, default=4, help="reader processes (default: %(default)s)")
    add_options(parser)
    options = parser.parse_args(argv)
    if options.bursts < 1 or options.readers < 1:
        parser.error("--bursts and --readers must be 1 or more.")
    options.lease_s = 1.0
    options.on_ledger_loss = "serve"
    return options


def _run(bench: Bench) -> dict[str, Any]:
    from benchmarks.project.models import Item, Maker
    from benchmarks.project.workers import close_everything

    maker = Maker.objects.create()
    Item.objects.bulk_create([Item(maker=maker, group=0) for _ in range(ROWS)])
    close_everything()
    control, readers = Cells(1, 3), Cells(bench.options["readers"], 5)
    workers = Workers()
    try:
        pids = {workers.start(_read, number, control, readers) for number in range(readers.rows)}
        result = _write(bench.options, control, readers, workers)
        control.set(0, STOP, 1)
        workers.wait(pids, timeout_s=ANSWER_S)
    finally:
        workers.close()
    if workers.failed:
        raise BenchmarkError(f"{workers.failed} readers failed.")
    reads, hits, stale_reads = (readers.sums()[column] for column in (READS, HITS, STALE_READS))
    return {
        **result,
        "stale_percent": 100 * result["stale_bursts"] / result["bursts"],
        "reads": reads,
        "stale_reads": stale_reads,
        "hits": hits,
        "hit_percent": 100 * hits / max(reads, 1),
    }


def _question() -> list[Any]:
    """Ask the one query through the cache of this process's system."""
    from benchmarks.project.models import Item
    from benchmarks.project.systems import current

    return list(current().cached(Item.objects.filter(group=0).order_by("pk")))


def _read(number: int, control: Cells, readers: Cells) -> None:
    """Be one reader, until the end."""
    from benchmarks.project.asking import Statements

    statements = Statements()
    while not control.get(0, STOP) and not is_orphan():
        step = control.get(0, STEP)
        if step % 3 != RUN and readers.get(number, DONE_STEP) == step:
            time.sleep(0.0001)
            continue
        if step % 3 != PAUSE:
            floor, before = control.get(0, FLOOR), statements.count
            seen = _question()[0].version
            readers.add(number, READS, 1)
            readers.add(number, HITS, statements.count == before)
            readers.add(number, STALE_READS, seen < floor)
            readers.set(number, SEEN, seen)
        if step % 3 != RUN:
            readers.set(number, DONE_STEP, step)


def _write(options: dict[str, Any], control: Cells, readers: Cells, workers: Workers) -> dict[str, Any]:
    """Be the writer, and look at the cache after each burst."""
    from contextlib import nullcontext

    from django.db import transaction

    from benchmarks.project.models import Item
    from benchmarks.project.systems import current

    system, chance = current(), random.Random(options["seed"])
    _settle(readers)
    with system.truth():
        item = Item.objects.order_by("pk")[0]
    stale, started_s = 0, time.monotonic()
    for _ in range(options["bursts"]):
        for _ in range(SAVES):
            item.version += 1
            item.shelf = item.version % SHELVES
            with transaction.atomic() if options["atomic"] else nullcontext():
                item.save()
            control.set(0, FLOOR, item.version)
        time.sleep(0.001 + 0.004 * chance.random())
        _step(control, readers, workers)  # now all have stopped
        with system.truth():
            truth = Item.objects.get(pk=item.pk).version
        if truth != item.version:
            raise BenchmarkError(f"The database says {truth} after version {item.version} was saved.")
        own = _question()[0].version
        _step(control, readers, workers)  # now all have read once more
        stale += any(seen != truth for seen in (own, *(readers.get(number, SEEN) for number in range(readers.rows))))
        control.add(0, STEP, 1)
    return {"bursts": options["bursts"], "stale_bursts": stale, "seconds": time.monotonic() - started_s}


def _step(control: Cells, readers: Cells, workers: Workers) -> None:
    """Begin the next step, and wait until every reader is through with it."""
    control.add(0, STEP, 1)
    step, end_s = control.get(0, STEP), time.monotonic() + ANSWER_S
    while any(readers.get(number, DONE_STEP) != step for number in range(readers.rows)):
        if workers.ended() or time.monotonic() > end_s:
            raise BenchmarkError("A reader does not answer.")
        time.sleep(0.0001)


def _settle(readers: Cells) -> None:
    """Wait until each reader had a hit: a clock that was just made holds its table back for a lease."""
    end_s = time.monotonic() + SETTLE_S
    while time.monotonic() < end_s and not all(readers.get(number, HITS) for number in range(readers.rows)):
        time.sleep(0.01)


if __name__ == "__main__":
    sys.exit(main())
