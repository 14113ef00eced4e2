"""
How many queries a herd makes: readers in several processes that miss one entry at the same moment.

    python -m benchmarks.flights [--rounds N] [--readers N] [--processes N] [--query-ms N]
                                 [--promotion] [--database NAME|URL] [--location NAME] [--no-peers] [--json]

Each round drops the entry by a write, and lets every reader, each in a thread of its own, ask the same slow query at
once. In a second series a process begins to fetch it and is killed in the middle, before the readers come. Then one
reader alone measures what a miss costs, with leases and without. With --promotion there is one series more: the entry
is fresh in the farther tier, and in the memory of no process; counted is how often the readers ask that tier for it.

Exit status 1 if this package makes more than one query in a round, or more than two where the first was killed, or if
a reader waits for longer than a lease, or if a promotion makes a query. Counts are exact; times are of this machine and
this run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

from benchmarks.project.errors import BenchmarkError
from benchmarks.project.runs import Bench, Result, add_options, is_child, print_table, run_and_show, run_child
from benchmarks.project.shared import Cells
from benchmarks.project.workers import Workers

__all__ = ["main"]

ROWS: Final = 10
ANSWER_S: Final = 60.0
MISSES: Final = 200
LEASE_S: Final = 5.0
"""The default of LIVE_CACHE_FILL_LEASE_S."""
GO: Final = 0
READY, QUERIES, WAITS, LONGEST_US, STALE, FAR = range(6)
COLUMNS: Final = {
    "system": "system",
    "readers": "readers",
    "queries": "queries",
    "most_queries": "most",
    "waits": "waits",
    "longest_ms": "longest ms",
    "killed_queries": "killed: queries",
    "killed_most_queries": "most",
    "killed_longest_ms": "longest ms",
    "promotion_far": "promotion: far reads",
    "promotion_most_far": "most",
    "promotion_longest_ms": "longest ms",
    "stale": "stale",
    "miss_us": "miss us",
    "miss_alone_us": "without lease",
    "miss_trips": "trips",
    "miss_alone_trips": "without lease",
}


def main(argv: list[str] | None = None) -> int:
    """Run every system and print what happened."""
    if is_child():
        return run_child(_run)
    options = _parse(argv)
    results = run_and_show("benchmarks.flights", options, _show)
    if results is None:
        return 2
    ours = results[0]
    longest_ms = max(ours["longest_ms"], ours["killed_longest_ms"])
    is_wrong = (
        ours["most_queries"] > 1 or ours["killed_most_queries"] > 2 or ours["stale"] or ours.get("promotion_queries")
    )
    return 1 if is_wrong or longest_ms > 1000 * (LEASE_S + 1) + options.query_ms else 0


def _show(options: argparse.Namespace, results: Sequence[Result]) -> None:
    print(
        f"{options.database}, {options.rounds} rounds, {options.readers} readers in {options.processes} processes, "
        f"a query of {options.query_ms} ms; ours on {options.location}"
    )
    print_table(results, COLUMNS)


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.flights", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--rounds", type=int, default=10, help="of each series (default: %(default)s)")
    parser.add_argument("--readers", type=int, default=200, help="in all processes together (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=4, help="default: %(default)s")
    parser.add_argument("--query-ms", type=int, default=50, help="what the query takes at least (default: %(default)s)")
    parser.add_argument("--promotion", action="store_true", help="count reads of the farther tier, too")
    add_options(parser)
    options = parser.parse_args(argv)
    if min(options.rounds, options.readers, options.processes, options.query_ms) < 1:
        parser.error("All numbers must be 1 or more.")
    options.lease_s = 1.0
    options.on_ledger_loss = "serve"
    return options


def _run(bench: Bench) -> dict[str, Any]:
    from benchmarks.project.models import Item, Maker
    from benchmarks.project.systems import current
    from benchmarks.project.workers import close_everything

    maker = Maker.objects.create()
    Item.objects.bulk_create([Item(maker=maker, group=0) for _ in range(ROWS)])
    if current().name == "live_cache":
        from benchmarks.project.settling import settle

        settle([Item])
    result: dict[str, Any] = {"readers": bench.options["readers"]}
    workers = Workers()
    try:
        for name, is_killed in (("", False), ("killed_", True)):
            rounds = [_round(bench.options, workers, is_killed=is_killed) for _ in range(bench.options["rounds"])]
            result[f"{name}queries"] = sum(one["queries"] for one in rounds)
            result[f"{name}most_queries"] = max(one["queries"] for one in rounds)
            result[f"{name}longest_ms"] = max(one["longest_us"] for one in rounds) / 1000
            for key in ("waits", "stale"):
                result[key] = result.get(key, 0) + sum(one[key] for one in rounds)
        if bench.options["promotion"] and current().name == "live_cache":
            rounds = [_round(bench.options, workers, is_promotion=True) for _ in range(bench.options["rounds"])]
            result["promotion_queries"] = sum(one["queries"] for one in rounds)
            result["promotion_far"] = sum(one["far"] for one in rounds)
            result["promotion_most_far"] = max(one["far"] for one in rounds)
            result["promotion_longest_ms"] = max(one["longest_us"] for one in rounds) / 1000
            result["stale"] += sum(one["stale"] for one in rounds)
    finally:
        workers.close()
    if workers.failed:
        raise BenchmarkError(f"{workers.failed} processes failed.")
    result |= _measure_misses() if current().name == "live_cache" else dict.fromkeys(list(COLUMNS)[-4:], "")
    close_everything()
    return result


def _round(
    options: dict[str, Any], workers: Workers, *, is_killed: bool = False, is_promotion: bool = False
) -> dict[str, int]:
    """
    Drop the entry, and let everybody read at once. The query of a killed filler counts.

    Args:
        is_promotion: Fetch it again before that.
    """
    from benchmarks.project.models import Item
    from benchmarks.project.systems import current
    from benchmarks.project.workers import close_everything

    with current().truth():
        item = Item.objects.order_by("pk")[0]
    _question()  # so that there is an entry to drop
    item.version += 1
    item.save()
    if is_promotion:
        _question()
    close_everything()
    control, readers = Cells(1, 1), Cells(options["processes"] + 1, 6)
    if is_killed:
        filler = workers.start(_fetch_for_ever, options["processes"], readers)
        _wait_for(workers, lambda: readers.get(options["processes"], QUERIES) == 1)
        workers.kill(filler)
        workers.wait({filler}, timeout_s=ANSWER_S)
    share, rest = divmod(options["readers"], options["processes"])
    pids = {
        workers.start(_read, number, share + (number < rest), options["query_ms"], item.version, control, readers)
        for number in range(options["processes"])
    }
    _wait_for(workers, lambda: all(readers.get(number, READY) for number in range(options["processes"])))
    control.set(0, GO, 1)
    workers.wait(pids, timeout_s=ANSWER_S)
    _, queries, waits, _, stale, far = readers.sums()
    longest_us = max(readers.get(number, LONGEST_US) for number in range(readers.rows))
    return {"queries": queries, "waits": waits, "longest_us": longest_us, "stale": stale, "far": far}


def _read(number: int, threads: int, query_ms: int, floor: int, control: Cells, readers: Cells) -> None:
    """Be one process of readers."""
    from django.db import connections

    is_open, lock = threading.Event(), threading.Lock()
    looked = _far_lookups(is_first=True)
    seconds: list[float] = []
    versions: list[int] = []

    def read() -> None:
        is_open.wait()
        started_s = time.monotonic()
        version = _question()[0].version
        with lock:
            seconds.append(time.monotonic() - started_s)
            versions.append(version)
        connections.close_all()

    with _slow_queries(lambda: time.sleep(query_ms / 1000)) as queries:
        started = [threading.Thread(target=read) for _ in range(threads)]
        for thread in started:
            thread.start()
        readers.set(number, READY, 1)
        while not control.get(0, GO):
            time.sleep(0.001)
        is_open.set()
        for thread in started:
            thread.join()
    readers.set(number, QUERIES, len(queries))
    readers.set(number, WAITS, _waits())
    readers.set(number, FAR, _far_lookups() - looked)
    readers.set(number, LONGEST_US, int(max(seconds) * 1e6))
    readers.set(number, STALE, sum(version < floor for version in versions))


def _fetch_for_ever(number: int, readers: Cells) -> None:
    """Be a filler that is killed in the middle of its query."""

    def stay() -> None:
        readers.set(number, QUERIES, 1)
        time.sleep(ANSWER_S)

    with _slow_queries(stay):
        _question()


@contextmanager
def _slow_queries(pause: Callable[[], object]) -> Iterator[list[str]]:
    """Call *pause* within each query for items, on connections that are opened inside; and collect those queries."""
    from django.db.backends.signals import connection_created

    seen: list[str] = []

    def run(execute: Callable[..., Any], sql: Any, *arguments: Any) -> Any:
        if str(sql).startswith("SELECT") and "project_item" in str(sql):
            seen.append(str(sql))
            pause()
        return execute(sql, *arguments)

    def prepare(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(run)

    connection_created.connect(prepare)
    try:
        yield seen
    finally:
        connection_created.disconnect(prepare)


def _measure_misses() -> dict[str, float]:
    """Return what a miss costs one reader alone, in microseconds and in round trips to Redis."""
    from django.test import override_settings

    from benchmarks.project.models import Item
    from live_cache import live
    from live_cache.redis_connection import RedisConnection

    run, trips = RedisConnection.run, [0]

    def counted(self: RedisConnection, *arguments: Any, **options: Any) -> list[Any]:
        trips[0] += 1
        return run(self, *arguments, **options)

    found: dict[str, float] = {}
    RedisConnection.run = counted  # type: ignore[method-assign]  # to count what it sends
    try:
        for name, lease_s in (("miss", LEASE_S), ("miss_alone", 0)):
            times_us = []
            trips[0] = 0
            with override_settings(LIVE_CACHE_FILL_LEASE_S=lease_s):
                for number in range(MISSES):
                    queryset = live(Item.objects.filter(group=0, version__gt=-1 - number).order_by("pk"), name)
                    started_s = time.perf_counter()
                    list(queryset)
                    times_us.append((time.perf_counter() - started_s) * 1e6)
            found[f"{name}_us"] = round(statistics.median(times_us), 1)
            found[f"{name}_trips"] = trips[0] / MISSES
    finally:
        RedisConnection.run = run  # type: ignore[method-assign]  # as it was
    return found


def _question() -> list[Any]:
    """Ask the one query through the cache of this process's system."""
    from benchmarks.project.models import Item
    from benchmarks.project.systems import current

    return list(current().cached(Item.objects.filter(group=0).order_by("pk")))


def _waits() -> int:
    """Return how many reads of this process waited for another one's fetch."""
    from benchmarks.project.systems import current

    if current().name != "live_cache":
        return 0
    from live_cache.assembly import get_assembly

    return get_assembly().metrics.snapshot().get("waits", 0)


def _far_lookups(*, is_first: bool = False) -> int:
    """Return how often this process asked the farthest tier for entries; at first, forget what is in its memory."""
    from benchmarks.project.systems import current

    if current().name != "live_cache":
        return 0
    from live_cache.assembly import get_assembly

    tiers = get_assembly().tiers
    if is_first and len(tiers) > 1:
        tiers[0].clear()  # the parent's, before the fork
    metrics = tiers[-1].metrics()
    return metrics.hits + metrics.misses


def _wait_for(workers: Workers, is_true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + ANSWER_S
    while not is_true():
        workers.ended()
        if time.monotonic() > end_s or workers.failed:
            raise BenchmarkError("A process does not answer.")
        time.sleep(0.001)


if __name__ == "__main__":
    sys.exit(main())
