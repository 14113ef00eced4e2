"""
How soon a live read shows what somebody outside of Django has committed, and what triggers cost.

    python -m benchmarks.outbox [--writes N] [--database NAME|URL] [--location NAME] [--notify] [--json]

A connection of the driver alone commits changes of a row, at random moments. A listener runs in a process of its own,
and this one reads a live query again and again until it shows the change: the *lag* is the time from the return of the
COMMIT to the return of that read. Beside it a query of another row is read, which no write should drop.

Then the same connection writes to a table without triggers and with them: microseconds for a statement of one row in
autocommit mode, and for one of 500 rows. At last Django saves a row, and its query is read for a while after each save:
with triggers the listener ticks the save a second time, which may cost one more fetch.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.project.errors import BenchmarkError
from benchmarks.project.runs import Bench, Result, add_options, is_child, print_table, run_and_show, run_child

__all__ = ["main"]

ROWS: Final = 500
PAUSE_S: Final = 0.1
GIVE_UP_S: Final = 30.0
SAVES: Final = 40
READ_AFTER_SAVE_S: Final = 0.15
COLUMNS: Final = {
    "median_ms": "lag ms",
    "p99_ms": "99 %",
    "max_ms": "most",
    "other_hit_percent": "other hits %",
    "one_us": "1 row us",
    "one_told_us": "with triggers",
    "many_us": f"{ROWS} rows us",
    "many_told_us": "with triggers",
    "fetches": "fetches/save",
    "fetches_told": "with triggers",
}


def main(argv: list[str] | None = None) -> int:
    """Run and print; exit status 1 if the median of the lag is 100 ms or more."""
    if is_child():
        return run_child(_run)
    options = _parse(argv)
    results = run_and_show("benchmarks.outbox", options, _show)
    if results is None:
        return 2
    return 1 if results[0]["median_ms"] >= 100 else 0


def _show(options: argparse.Namespace, results: Sequence[Result]) -> None:
    print(f"{options.database}, {options.writes} writes; ours on {options.location}")
    print_table(results, {"system": "system", **COLUMNS})


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.outbox", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--writes", type=int, default=200, help="default: %(default)s")
    parser.add_argument("--notify", action="store_true", help="PostgreSQL: wake the listener by NOTIFY")
    add_options(parser)
    options = parser.parse_args(argv)
    if options.writes < 2:
        parser.error("--writes must be 2 or more.")
    if options.location == "process":
        parser.error("A listener in another process does not reach the ledger of this one.")
    options.peers = False  # they have nothing of the kind
    options.is_durable = True
    options.lease_s = 1.0
    options.on_ledger_loss = "serve"
    return options


def _run(bench: Bench) -> dict[str, Any]:
    from django.db import connection

    from benchmarks.project.models import Item, Maker
    from benchmarks.project.workers import Workers, close_everything
    from live_cache.outbox.installing import install_triggers
    from tests.outside import outside

    maker = Maker.objects.create()
    Item.objects.bulk_create([Item(maker=maker, group=number % 2) for number in range(ROWS)])
    with outside("default") as writer:
        one_us, many_us = _write_us(writer)
    fetches = _fetches_per_save()
    install_triggers(connection, [Item._meta.db_table], notifies=bench.options["notify"])
    close_everything()
    workers = Workers()
    try:
        pid = workers.start(_listen)
        with outside("default") as writer:
            lags_ms, other_hits = _lags_ms(writer, bench.options)
            fetches_told = _fetches_per_save()
            one_told_us, many_told_us = _write_us(writer)
        workers.kill(pid)
    finally:
        workers.close()
    return {
        "median_ms": statistics.median(lags_ms),
        "p99_ms": statistics.quantiles(lags_ms, n=100, method="inclusive")[98],
        "max_ms": max(lags_ms),
        "other_hit_percent": 100 * other_hits,
        "one_us": one_us,
        "one_told_us": one_told_us,
        "many_us": many_us,
        "many_told_us": many_told_us,
        "fetches": fetches,
        "fetches_told": fetches_told,
    }


def _listen() -> None:
    from live_cache.outbox.listener import Listener

    Listener().run(threading.Event())


def _lags_ms(writer: Any, options: dict[str, Any]) -> tuple[list[float], float]:
    """Return the lag of each write, and the share of hits of the query that no write concerns."""
    from benchmarks.project.models import Item
    from live_cache import live, recording

    chance = random.Random(options["seed"])
    first, second = Item.objects.order_by("pk")[:2]
    ours, other = Item.objects.filter(pk=first.pk), Item.objects.filter(pk=second.pk)
    table, version = Item._meta.db_table, first.version
    cursor = writer.cursor()
    time.sleep(2 * options["lease_s"])  # until the clocks are no longer new, and somebody listens
    lags_ms: list[float] = []
    hits = reads = 0
    for number in range(options["writes"] + 1):
        live(ours.all())[0]
        time.sleep(chance.uniform(0, PAUSE_S))
        version += 1
        cursor.execute(f"UPDATE {table} SET version = {version} WHERE id = {first.pk}")
        committed_s = time.perf_counter()
        while live(ours.all())[0].version < version:
            if time.perf_counter() - committed_s > GIVE_UP_S:
                raise BenchmarkError("A change was not seen.")
            time.sleep(0.001)
        if number:  # the first one waits for the listener to begin
            lags_ms.append((time.perf_counter() - committed_s) * 1000)
            with recording() as records:
                live(other.all())[0]
            reads += 1
            hits += records[0].is_hit
        else:
            live(other.all())[0]
    return lags_ms, hits / reads


def _write_us(writer: Any) -> tuple[float, float]:
    """Return microseconds for an UPDATE of one row, and for one of all rows: medians."""
    from benchmarks.project.models import Item

    cursor, table = writer.cursor(), Item._meta.db_table
    cursor.execute(f"SELECT min(id) FROM {table}")
    (key,) = cursor.fetchone()
    return (
        _median_us(cursor, f"UPDATE {table} SET version = version + 1 WHERE id = {key}", 300),
        _median_us(cursor, f"UPDATE {table} SET version = version + 1", 20),
    )


def _median_us(cursor: Any, sql: str, count: int) -> float:
    times_us = []
    for _ in range(count):
        began_ns = time.perf_counter_ns()
        cursor.execute(sql)
        times_us.append((time.perf_counter_ns() - began_ns) / 1000)
    return statistics.median(times_us)


def _fetches_per_save() -> float:
    """Return how often a query is fetched after a save of its row by Django, which is read for a while then."""
    from benchmarks.project.models import Item
    from live_cache import live, recording

    item = Item.objects.order_by("pk")[2]
    question = Item.objects.filter(pk=item.pk)
    fetches = 0
    for number in range(SAVES + 5):
        item.version += 1
        item.save()
        until_s = time.perf_counter() + READ_AFTER_SAVE_S
        with recording() as records:
            while time.perf_counter() < until_s:
                live(question.all())[0]
                time.sleep(0.002)
        if number >= 5:
            fetches += sum(not record.is_hit for record in records)
    return fetches / SAVES


if __name__ == "__main__":
    sys.exit(main())
