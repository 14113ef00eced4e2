"""
An exact check of what was read: several readers and writers, faults, and a version on every row.

    python -m benchmarks.history [--seconds S] [--fault NAME] [--database NAME|URL] [--location NAME] [--no-peers]

Every committed write adds one to the version of its rows, and shared memory holds how many have been committed. A read
of any shape (get, page, join, aggregate, count, subquery, values) that began after a commit had returned must show it,
must not show what was rolled back, and must hold each row where its version puts it. At the end, with nobody writing,
every process asks every question once more and compares with the database ("wrong keys").

Faults: slowfill (readers sleep between SELECT and store), crash (writers are killed at random and right after COMMIT),
flush (the cache or its ledger is emptied, in part or whole), snapshot (readers in old snapshots), restart (the Redis is
killed and started again).

Exit status 1 if this package shows one stale read, wrong key or error. Counts are exact, times say nothing.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from benchmarks.project import book as columns
from benchmarks.project.answers import ITEMS, MAKERS, ROWS, group_of, maker_of
from benchmarks.project.book import Book
from benchmarks.project.errors import BenchmarkError
from benchmarks.project.runs import Bench, add_options, is_child, print_table, run_child, run_systems
from benchmarks.project.workers import Workers, close_everything

__all__ = ["main"]

FAULTS: Final = ("none", "slowfill", "crash", "flush", "snapshot", "restart")
WRITER_PAUSE_S: Final = 0.2
END_S: Final = 60.0
# How long a system is left alone, in seconds, from and to.
FAULT_PAUSES_S: Final = {"crash": (0.1, 0.6), "flush": (0.02, 0.2), "restart": (0.5, 1.5)}
QUIET_DEATHS: Final = 0.7
"""After how many of the deaths nobody writes for a while."""
QUIET_S: Final = (0.1, 0.6)
COLUMNS: Final = {
    "system": "system",
    "reads": "reads",
    "hits": "hits",
    "hit_percent": "hits %",
    "commits": "commits",
    "rollbacks": "rollbacks",
    "faults": "faults",
    "stale_reads": "stale reads",
    "wrong_keys": "wrong keys",
    "keys": "of",
    "errors": "errors",
}


def main(argv: list[str] | None = None) -> int:
    """Run every system and print what happened."""
    if is_child():
        return run_child(_run)
    options = _parse(argv)
    try:
        results = run_systems("benchmarks.history", options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        print(f"{options.database}, fault {options.fault}, {options.seconds:g} s; ours on {options.location}")
        print_table(results, COLUMNS)
    ours = results[0]
    if ours["stale_reads"] or ours["wrong_keys"] or ours["errors"]:
        print("This package failed:", *ours["samples"], sep="\n  ", file=sys.stderr)
        return 1
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.history", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each system (default: %(default)s)")
    parser.add_argument("--fault", choices=FAULTS, default="none", help="default: %(default)s")
    parser.add_argument("--readers", type=int, default=3, help="reader processes (default: %(default)s)")
    parser.add_argument("--writers", type=int, default=2, help="writer processes, 1 to 6 (default: %(default)s)")
    parser.add_argument(
        "--on-ledger-loss",
        choices=("serve", "refuse"),
        default="refuse",
        help="our LIVE_CACHE_ON_LEDGER_LOSS (default: %(default)s)",
    )
    add_options(parser)
    options = parser.parse_args(argv)
    if options.readers < 1 or not 1 <= options.writers <= 6 or not options.seconds > 0:
        parser.error("--seconds must be more than 0, --readers 1 or more, --writers 1 to 6.")
    # Short, so that what a killed writer or a new ledger holds back is soon let go, and is let go many times in a run.
    options.lease_s = 0.3
    return options


def _run(bench: Bench) -> dict[str, Any]:
    from benchmarks.project.questions import questions

    options = bench.options
    _fill(options["writers"])
    book = Book(rows=ROWS, readers=options["readers"], writers=options["writers"])
    workers = Workers()
    try:
        readers = {workers.start(_read, slot, book, bench) for slot in range(options["readers"])}
        writers = {workers.start(_write, slot, 0, book, bench): slot for slot in range(options["writers"])}
        faults = _Faults(
            bench, workers, book, writers, lambda slot, life: workers.start(_write, slot, life, book, bench)
        )
        faults.run(seconds=options["seconds"])
        book.enter(columns.STOPPED_WRITERS)
        workers.wait(set(writers), timeout_s=END_S)
        book.enter(columns.STOPPED_READERS)
        workers.wait(readers, timeout_s=END_S)
    finally:
        workers.close()
    if workers.failed:
        raise BenchmarkError(f"{workers.failed} processes of {options['system']} failed.")
    read, written = book.readers.sums(), book.writers.sums()
    samples = [line for path in sorted(bench.directory.glob("samples-*.txt")) for line in path.read_text().splitlines()]
    return {
        "reads": read[columns.READS],
        "hits": read[columns.HITS],
        "hit_percent": 100 * read[columns.HITS] / max(read[columns.READS], 1),
        "commits": written[columns.COMMITS],
        "rollbacks": written[columns.ROLLBACKS],
        "failed_writes": written[columns.FAILURES],
        "faults": faults.count,
        "stale_reads": read[columns.STALE],
        "wrong_keys": read[columns.WRONG],
        "keys": options["readers"] * len(questions()),
        "errors": read[columns.ERRORS],
        "samples": samples,
    }


def _fill(writers: int) -> None:
    """Make the rows, all of version 0."""
    from benchmarks.project.models import Item, Maker, Mark

    Maker.objects.bulk_create([Maker(pk=number + 1) for number in range(MAKERS)])
    Item.objects.bulk_create(
        [Item(pk=row + 1, maker_id=maker_of(row) - ITEMS + 1, group=group_of(row)) for row in range(ITEMS)]
    )
    Mark.objects.bulk_create([Mark(pk=slot + 1) for slot in range(writers)])
    close_everything()


def _chance(bench: Bench, *name: object) -> random.Random:
    return random.Random(f"{bench.options['seed']} {name}")


def _read(slot: int, book: Book, bench: Bench) -> None:
    """Be one reader."""
    from benchmarks.project.faults import pause_fills
    from benchmarks.project.reading import Reader

    fault = bench.options["fault"]
    if fault == "slowfill":
        pause_fills(_chance(bench, "pause", slot))
    in_snapshots = fault == "snapshot" and slot % 2 == 0
    Reader(slot, book, _chance(bench, "reader", slot), bench.directory, in_snapshots=in_snapshots).run()


def _write(slot: int, life: int, book: Book, bench: Bench) -> None:
    """Be one writer: the first one of this slot, or after *life* deaths."""
    from benchmarks.project.faults import die_after_commits
    from benchmarks.project.writing import Writer

    fault = bench.options["fault"]
    writer = Writer(
        slot, book, _chance(bench, "writer", slot, life), has_unknown_outcomes=fault in ("crash", "restart")
    )
    if fault == "crash":
        writer.find_outcome()  # in peace
        die_after_commits(_chance(bench, "death", slot, life))
    writer.run(pause_s=WRITER_PAUSE_S)


class _Faults:
    """What the first process does while the others work: it makes things go wrong, and replaces killed writers."""

    def __init__(
        self, bench: Bench, workers: Workers, book: Book, writers: dict[int, int], replace: Callable[[int, int], int]
    ) -> None:
        self.count = 0
        self._book = book
        self._quiet_until_s = 0.0
        self._bench = bench
        self._workers = workers
        self._writers = writers
        self._replace = replace
        self._chance = _chance(bench, "faults")

    def run(self, *, seconds: float) -> None:
        """Go on for that long."""
        fault = self._bench.options["fault"]
        end_s = time.monotonic() + seconds
        next_s = time.monotonic() + self._pause_s(fault)
        while time.monotonic() < end_s:
            time.sleep(0.005)
            self._replace_ended()
            if self._book.is_quiet and time.monotonic() >= self._quiet_until_s:
                self._book.keep_quiet(is_quiet=False)
            if time.monotonic() >= next_s:
                self._make(fault)
                next_s = time.monotonic() + self._pause_s(fault)
        # The outcome of what a killed writer has left is found by the one in its place.
        time.sleep(0.1)
        self._replace_ended()

    def _pause_s(self, fault: str) -> float:
        pauses = FAULT_PAUSES_S.get(fault)
        return self._chance.uniform(*pauses) if pauses else float("inf")

    def _make(self, fault: str) -> None:
        from benchmarks.project.faults import flush

        if fault == "crash":
            self._workers.kill(self._chance.choice(sorted(self._writers)))
            return  # counted when it has ended, as those that kill themselves are
        self.count += 1
        if fault == "flush":
            flush(self._bench, self._workers, self._chance)
        elif fault == "restart":
            self._bench.restart_redis()

    def _replace_ended(self) -> None:
        for pid in self._workers.ended():
            slot = self._writers.pop(pid, None)
            if self._workers.failed or slot is None:
                raise BenchmarkError("A process failed.")
            self.count += 1
            time.sleep(0.05)  # what its connection still has in the pipe is executed before the next one asks
            if self._chance.random() < QUIET_DEATHS:
                # The next write to its tables would hide what a killed writer has left undone.
                self._book.keep_quiet(is_quiet=True)
                self._quiet_until_s = time.monotonic() + self._chance.uniform(*QUIET_S)
            self._writers[self._replace(slot, self.count)] = slot


if __name__ == "__main__":
    sys.exit(main())
