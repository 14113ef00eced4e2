"""
An exact check of what was read: several readers and writers, faults, and a version on every row.

    python -m benchmarks.history [--seconds S] [--fault NAME] [--database NAME|URL] [--location NAME] [--no-peers]

Every committed write adds one to the version of its rows, and shared memory holds how many have been committed. A read
of any shape (get, page, join, aggregate, count, subquery, values) that began after a commit had returned must show it,
must not show what was rolled back, and must hold each row where its version puts it. At the end, with nobody writing,
every process asks every question once more and compares with the database ("wrong keys").

Faults: slowfill (readers sleep between SELECT and store), crash (writers are killed at random and right after
COMMIT), flush (the cache or its ledger is emptied, in part or whole), snapshot (readers in old snapshots), stop (a
reader or writer stands still for up to 1 s), database (a PostgreSQL of the run crashes and recovers). Of the Redis, in
a cluster of one primary at a time: restart (it is killed and starts again, empty), freeze (it is stopped for up to
1.5 s), full (it has less memory than it uses, under each policy of eviction), failover (a primary is killed behind a
Sentinel or in a cluster, and with it what it has not replicated), reshard (a cluster moves slots), cut (connections to
it are lost, and for a moment none is let in). Of the network to a single Redis and to the server of the database: pause
(for up to 3 s nothing comes through on all or half of the connections, in one direction or both, and then all of it
comes; some writers are killed meanwhile).

With --mode bounded a read must show what was committed --max-lag-ms before it began. Reads that do not show all that
was committed when they began are counted by their lag: "lag ms" are the median, the 99th percentile and the longest.

Exit status 1 if this package shows one stale read, wrong key or error. Counts are exact, times say nothing.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from benchmarks.project import book as columns
from benchmarks.project.answers import ITEMS, MAKERS, ROWS, group_of, maker_of
from benchmarks.project.book import Book
from benchmarks.project.errors import BenchmarkError
from benchmarks.project.lags import PAUSE_S, Lags
from benchmarks.project.runs import Bench, Result, add_options, is_child, print_table, run_and_show, run_child
from benchmarks.project.workers import Workers, close_everything

__all__ = ["main"]

SINGLE: Final = ("memory+redis", "redis")
REDIS: Final = (*SINGLE, "memory+sentinel", "memory+cluster")
REDIS_FAULTS: Final = {
    "cut": REDIS,
    "restart": REDIS,
    "freeze": REDIS,
    "full": REDIS,
    "pause": SINGLE,
    "failover": ("memory+sentinel", "memory+cluster"),
    "reshard": ("memory+cluster",),
}
"""Faults of the Redis, and the locations whose Redis can have them."""
FAULTS: Final = ("none", "slowfill", "crash", "flush", "snapshot", "stop", "database", *REDIS_FAULTS)
WRITER_PAUSE_S: Final = 0.2
END_S: Final = 60.0
# How long a system is left alone, in seconds, from and to.
FAULT_PAUSES_S: Final = {
    "crash": (0.3, 2.0),
    "flush": (0.02, 0.2),
    "stop": (0.05, 0.3),
    "cut": (0.1, 0.5),
    "pause": (0.2, 0.8),
    "database": (1.0, 2.5),
    "restart": (0.5, 1.5),
    "freeze": (0.3, 1.0),
    "full": (0.1, 0.5),
    "failover": (0.5, 2.0),
    "reshard": (0.1, 0.5),
}
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
    "failed_writes": "failed writes",
    "faults": "faults",
    "lagging": "lagging",
    "lag_ms": "lag ms",
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
    results = run_and_show("benchmarks.history", options, _show)
    if results is None:
        return 2
    ours = results[0]
    if ours["stale_reads"] or ours["wrong_keys"] or ours["errors"]:
        print("This package failed:", *ours["samples"], sep="\n  ", file=sys.stderr)
        return 1
    return 0


def _show(options: argparse.Namespace, results: Sequence[Result]) -> None:
    print(f"{options.database}, fault {options.fault}, {options.seconds:g} s; ours on {options.location}")
    print_table(results, COLUMNS)


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
    parser.add_argument(
        "--mode", choices=("strict", "bounded"), default="strict", help="of ours (default: %(default)s)"
    )
    parser.add_argument("--max-lag-ms", type=float, default=100.0, help="of --mode bounded (default: %(default)s)")
    add_options(parser)
    parser.set_defaults(location=None)
    options = parser.parse_args(argv)
    if options.readers < 1 or not 1 <= options.writers <= 6 or not options.seconds > 0:
        parser.error("--seconds must be more than 0, --readers 1 or more, --writers 1 to 6.")
    _check_fault(parser, options)
    # Short, so that what a killed writer or a new ledger holds back is soon let go, and is let go many times in a run.
    options.lease_s = 0.3
    return options


def _check_fault(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    fault = options.fault
    places = REDIS_FAULTS.get(fault, ())
    if options.location is None:
        options.location = places[0] if places else "memory+redis"
    if places and options.location not in places:
        parser.error(f"--fault {fault} needs --location {' or '.join(places)}.")
    if fault == "database" and options.database != "postgresql":
        parser.error("--fault database needs --database postgresql.")
    if options.peers and places and "redis" not in places:
        print(f"Without peers: neither has a Redis that can have --fault {fault}.", file=sys.stderr)
        options.peers = False
    options.is_redis_failing = bool(places)


def _run(bench: Bench) -> dict[str, Any]:
    from benchmarks.project.questions import questions

    options = bench.options
    _fill(options["writers"])
    book = Book(rows=ROWS, readers=options["readers"], writers=options["writers"])
    lags = Lags(rows=ROWS, readers=options["readers"]) if options["mode"] == "bounded" else None
    workers = Workers()
    try:
        if lags is not None:
            workers.start(_note_floors, book, lags)
        readers = {workers.start(_read, slot, book, lags, bench) for slot in range(options["readers"])}
        writers = {workers.start(_write, slot, 0, book, bench): slot for slot in range(options["writers"])}
        faults = _Faults(
            bench,
            workers,
            book,
            sorted(readers),
            writers,
            lambda slot, life: workers.start(_write, slot, life, book, bench),
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
        "lagging": 0 if lags is None else lags.total,
        "lag_ms": "" if lags is None else " / ".join(f"{lag:g}" for lag in lags.quantiles_ms((0.5, 0.99, 1.0))),
        "stale_reads": read[columns.STALE],
        "wrong_keys": read[columns.WRONG],
        "keys": options["readers"] * len(questions()),
        "errors": read[columns.ERRORS] + written[columns.FALSE_ALARMS],
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


def _note_floors(book: Book, lags: Lags) -> None:
    """Be the process that notes what had been committed, until the readers stop."""
    from benchmarks.project.workers import is_orphan

    while book.phase != columns.STOPPED_READERS and not is_orphan():
        lags.note(book.floors())
        time.sleep(PAUSE_S)


def _read(slot: int, book: Book, lags: Lags | None, bench: Bench) -> None:
    """Be one reader."""
    from benchmarks.project.faults import pause_fills
    from benchmarks.project.reading import Reader

    fault = bench.options["fault"]
    if fault == "slowfill":
        pause_fills(_chance(bench, "pause", slot))
    in_snapshots = fault == "snapshot" and slot % 2 == 0
    Reader(
        slot,
        book,
        _chance(bench, "reader", slot),
        bench.directory,
        in_snapshots=in_snapshots,
        is_database_failing=fault == "database",
        lags=lags,
        max_lag_ms=bench.options["max_lag_ms"] if lags is not None else 0.0,
    ).run()


def _write(slot: int, life: int, book: Book, bench: Bench) -> None:
    """Be one writer: the first one of this slot, or after *life* deaths."""
    from benchmarks.project.faults import die_after_commits
    from benchmarks.project.writing import Writer

    fault = bench.options["fault"]
    writer = Writer(
        slot,
        book,
        _chance(bench, "writer", slot, life),
        bench.directory,
        has_unknown_outcomes=fault in ("crash", "database", *REDIS_FAULTS),
        is_database_failing=fault == "database",
    )
    if fault == "crash":
        writer.find_outcome()  # in peace
        die_after_commits(_chance(bench, "death", slot, life))
    writer.run(pause_s=WRITER_PAUSE_S)


class _Faults:
    """What the first process does while the others work: it makes things go wrong, and replaces killed writers."""

    def __init__(
        self,
        bench: Bench,
        workers: Workers,
        book: Book,
        readers: list[int],
        writers: dict[int, int],
        replace: Callable[[int, int], int],
    ) -> None:
        self.count = 0
        self._book = book
        self._quiet_until_s = 0.0
        self._bench = bench
        self._workers = workers
        self._readers = readers
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
        from benchmarks.project.faults import flush, pause, stop

        if fault == "crash":
            self._kill_writer()
            return  # counted when it has ended, as those that kill themselves are
        self.count += 1
        if fault == "flush":
            flush(self._bench, self._workers, self._chance)
        elif fault == "stop":
            stop(self._chance.choice([*self._readers, *sorted(self._writers)]), self._chance)
        elif self._bench.database is not None:
            self._bench.database.restart()
        elif fault == "pause":
            pause(self._bench, self._chance, self._kill_writer)
        else:
            self._bench.redis.faults[fault](self._chance)

    def _kill_writer(self) -> None:
        self._workers.kill(self._chance.choice(sorted(self._writers)))

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
