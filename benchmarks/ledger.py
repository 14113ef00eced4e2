"""
What the ledgers cost: microseconds for a reading, a tick, an intent with its tick, and records of 300 bytes.

    python benchmarks/ledger.py [redis://127.0.0.1:6379/15]

The best of several rounds, in one process, with nobody else at work. Keys in Redis have a prefix of their own and are
deleted at the end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import LOG_LENGTH, NEWBORN, ROWS_SLOT, Dependency
from live_cache.ledger.host import HostLedger
from live_cache.ledger.process import ProcessLedger
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection

CLOCKS = [f"default/bench_{number}" for number in range(3)]
PAGE = Dependency(CLOCKS[0], tuple(range(52)))
ROUNDS = 7
TITLES = ["1 clock", "52 slots", "3 clocks", "tick", "declare+tick"]
LOG_TITLES = ["tick", "declare+tick", "1 record", "64 records", f"{LOG_LENGTH} records", "1, known"]
"""Records as a process gets them that has seen none, and one that it has seen, which matters with Redis only."""


def best_us(function: Callable[[], object], count: int) -> float:
    """Return microseconds per call in the best round."""
    function()
    rounds = []
    for _ in range(ROUNDS):
        start_ns = time.perf_counter_ns()
        for _ in range(count):
            function()
        rounds.append((time.perf_counter_ns() - start_ns) / count / 1000)
    return min(rounds)


def measure(ledger: Ledger, count: int) -> list[float]:
    """Return the figures of *ledger* in the order of TITLES."""
    for reading in ledger.read([Dependency(clock) for clock in CLOCKS]):
        ledger.reap(reading.clock, {NEWBORN}, epoch=reading.epoch)
    table, three = [Dependency(CLOCKS[0])], [Dependency(clock) for clock in CLOCKS]
    change = {CLOCKS[0]: {2, 3, 4}}

    def write() -> None:
        ledger.tick(change, intent_id=ledger.declare(change, fence="pg:1"))

    return [
        best_us(lambda: ledger.read(table), count),
        best_us(lambda: ledger.read([PAGE]), count),
        best_us(lambda: ledger.read(three), count),
        best_us(lambda: ledger.tick(change), count),
        best_us(write, count),
    ]


def measure_log(ledger: Ledger, count: int, view: Callable[[], Ledger]) -> list[float]:
    """
    Return the figures of the log in the order of LOG_TITLES.

    Args:
        view: Makes a ledger on the same clocks that has fetched nothing yet.
    """
    rows = {CLOCKS[0]: {ROWS_SLOT}}
    records = {CLOCKS[0]: bytes(range(250)) + bytes(50)}

    def write() -> None:
        intent_id = ledger.declare(rows, fence="pg:1", records=records)
        ledger.tick(rows, intent_id=intent_id, records=records)

    figures = [
        best_us(lambda: ledger.tick(rows, records=records), count),
        best_us(write, count),
    ]
    while ledger.read([Dependency(CLOCKS[0])])[0].seq < 2 * LOG_LENGTH:
        ledger.tick(rows, records=records)
    (now,) = ledger.read([Dependency(CLOCKS[0])])

    def look(asked: Ledger, length: int) -> None:
        found = asked.log(now.clock, now.epoch, now.seq - length, now.seq)
        assert found is not None
        assert len(found) == length

    for length in (1, 64, LOG_LENGTH):
        figures.append(best_us(lambda length=length: look(view(), length), max(3, count // length)))  # type: ignore[misc]  # bound now
    figures.append(best_us(lambda: look(ledger, 1), count))
    return figures


def show(name: str, figures: list[float]) -> None:
    """Print one line."""
    print(f"{name:10}" + "".join(f"{figure:14.1f}" for figure in figures))


def main(url: str) -> None:
    """Measure every ledger; Redis only if it answers."""
    logs = []
    print(f"{'us':10}" + "".join(f"{title:>14}" for title in TITLES))
    process = ProcessLedger(lease_s=10)
    show(process.name, measure(process, 5000))
    logs.append((process.name, measure_log(process, 5000, lambda: process)))
    with tempfile.TemporaryDirectory() as directory:
        host = HostLedger(Path(directory) / "ledger", lease_s=10)
        show(host.name, measure(host, 2000))
        logs.append((host.name, measure_log(host, 2000, lambda: host)))
    connection = RedisConnection(url)
    prefix = "live_cache_bench:"
    try:
        redis = RedisLedger(connection, prefix=prefix, lease_s=10)
        show(redis.name, measure(redis, 300))
        new = partial(RedisLedger, connection, prefix=prefix, lease_s=10)
        logs.append((redis.name, measure_log(redis, 300, new)))
        connection.client.delete(*[f"{prefix}clock:{{{clock}}}" for clock in CLOCKS])
    except LedgerUnavailableError as error:
        print(f"redis      not measured: {error}")
    print(f"\n{'us':10}" + "".join(f"{title:>14}" for title in LOG_TITLES))
    for name, figures in logs:
        show(name, figures)


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379/15")
