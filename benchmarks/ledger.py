"""
What the ledgers cost: microseconds for a reading, a tick, and an intent with its tick.

    python benchmarks/ledger.py [redis://127.0.0.1:6379/15]

The best of several rounds, in one process, with nobody else at work. Keys in Redis have a prefix of their own and are
deleted at the end.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, Dependency
from live_cache.ledger.host import HostLedger
from live_cache.ledger.process import ProcessLedger
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection

CLOCKS = [f"default/bench_{number}" for number in range(3)]
PAGE = Dependency(CLOCKS[0], tuple(range(52)))
ROUNDS = 7


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


def measure(ledger: Ledger, count: int) -> None:
    """Print one line for *ledger*."""
    for reading in ledger.read([Dependency(clock) for clock in CLOCKS]):
        ledger.reap(reading.clock, {NEWBORN}, epoch=reading.epoch)
    table, three = [Dependency(CLOCKS[0])], [Dependency(clock) for clock in CLOCKS]
    change = {CLOCKS[0]: {1, 2, 3}}

    def write() -> None:
        ledger.tick(change, intent_id=ledger.declare(change, fence="pg:1"))

    figures = [
        best_us(lambda: ledger.read(table), count),
        best_us(lambda: ledger.read([PAGE]), count),
        best_us(lambda: ledger.read(three), count),
        best_us(lambda: ledger.tick(change), count),
        best_us(write, count),
    ]
    print(f"{ledger.name:10}" + "".join(f"{figure:14.1f}" for figure in figures))


def main(url: str) -> None:
    """Measure every ledger; Redis only if it answers."""
    titles = ["1 clock", "52 slots", "3 clocks", "tick", "declare+tick"]
    print(f"{'us':10}" + "".join(f"{title:>14}" for title in titles))
    measure(ProcessLedger(lease_s=10), 5000)
    with tempfile.TemporaryDirectory() as directory:
        measure(HostLedger(Path(directory) / "ledger", lease_s=10), 2000)
    connection = RedisConnection(url)
    prefix = "live_cache_bench:"
    try:
        measure(RedisLedger(connection, prefix=prefix, lease_s=10), 300)
        connection.client.delete(*[f"{prefix}clock:{{{clock}}}" for clock in CLOCKS])
    except LedgerUnavailableError as error:
        print(f"redis      not measured: {error}")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379/15")
