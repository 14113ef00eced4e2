"""
How soon an event arrives after its commit, and what following costs.

    python benchmarks/events.py [redis://127.0.0.1:6379/15]

A writer ticks once every 20 ms, as a commit does right after COMMIT; a consumer waits for events. "sync" and "async"
are milliseconds from the return of the tick to the arrival of the event (below zero: it came first), the median and the
99th percentile. With the ledger of a process the writer is a thread, elsewhere another process. "idle" is the share of
one CPU that a process needs to follow 1 and 50 clocks in which nothing happens.

Keys in Redis have a prefix of their own and are deleted at the end.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from live_cache.changes import RowChange, encode_record
from live_cache.events.ledger import LedgerSubscription
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import ROWS_SLOT
from live_cache.ledger.host import HostLedger
from live_cache.ledger.process import ProcessLedger
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection

PREFIX = "live_cache_bench_events:"
CLOCK = "default@bench/item"
TICKS = 300
PAUSE_S = 0.02
IDLE_S = 3.0


def make(name: str, place: str) -> Ledger:
    """Return the ledger called *name* at its directory or URL."""
    if name == "redis":
        return RedisLedger(RedisConnection(place), prefix=PREFIX, lease_s=10)
    return HostLedger(place, lease_s=10) if name == "host" else ProcessLedger(lease_s=10)


def write(ledger: Ledger, returned_s: dict[int, float]) -> None:
    """Tick, and note by key when each tick had returned."""
    for number in range(TICKS):
        record = encode_record([RowChange("insert", (number,), None, None, {"id": number, "title": "x" * 50})])
        ledger.tick({CLOCK: {ROWS_SLOT}}, records={CLOCK: record})
        returned_s[number] = time.monotonic()  # one clock for all processes of the machine
        time.sleep(PAUSE_S)


def write_elsewhere(name: str, place: str) -> None:
    """Run in another process."""
    returned_s: dict[int, float] = {}
    write(make(name, place), returned_s)
    print(json.dumps(returned_s))


def take(subscription: LedgerSubscription, arrived_s: dict[int, float]) -> None:
    """Note by key when each event came."""
    while len(arrived_s) < TICKS:
        event = subscription.get(10)
        arrived_s[event.key[0]] = time.monotonic()  # type: ignore[union-attr]  # all are insertions


def take_asynchronously(subscription: LedgerSubscription, arrived_s: dict[int, float]) -> None:
    """Do the same in an event loop."""

    async def run() -> None:
        while len(arrived_s) < TICKS:
            event = await subscription.aget(10)
            arrived_s[event.key[0]] = time.monotonic()  # type: ignore[union-attr]  # all are insertions

    asyncio.run(run())


def latencies_ms(
    name: str, place: str, ledger: Ledger, consume: Callable[[LedgerSubscription, dict[int, float]], None]
) -> list[float]:
    """Return how long each event took, sorted."""
    arrived_s: dict[int, float] = {}
    with LedgerSubscription(ledger, {CLOCK: "item"}, using="default") as subscription:
        consumer = threading.Thread(target=consume, args=(subscription, arrived_s))
        consumer.start()
        time.sleep(0.5)
        returned_s: dict[int, float] = {}
        if name == "process":
            write(ledger, returned_s)
        else:
            command = [sys.executable, __file__, "--write", name, place]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            returned_s = {int(number): at_s for number, at_s in json.loads(done.stdout).items()}
        consumer.join()
    return sorted((arrived_s[number] - at_s) * 1000 for number, at_s in returned_s.items())


def idle_percent(ledger: Ledger, count: int) -> float:
    """Return the share of one CPU that this process takes to follow *count* clocks."""
    clocks = {f"default@bench/idle_{number}": f"idle_{number}" for number in range(count)}
    with LedgerSubscription(ledger, clocks, using="default"):
        time.sleep(0.5)
        began_s, used_s = time.monotonic(), time.process_time()
        time.sleep(IDLE_S)
        return 100 * (time.process_time() - used_s) / (time.monotonic() - began_s)


def measure(name: str, place: str) -> None:
    """Print one line."""
    ledger = make(name, place)
    cells = []
    for consume in (take, take_asynchronously):
        found = latencies_ms(name, place, ledger, consume)
        cells += [statistics.median(found), found[int(len(found) * 0.99)]]
    cells += [idle_percent(ledger, 1), idle_percent(ledger, 50)]
    print(f"{name:10}" + "".join(f"{cell:14.2f}" for cell in cells))


def main(url: str) -> None:
    """Measure every ledger; Redis only if it answers."""
    titles = ["sync median ms", "p99 ms", "async median", "p99 ms", "idle %, 1", "idle %, 50"]
    print(f"{'':10}" + "".join(f"{title:>14}" for title in titles))
    measure("process", "")
    with tempfile.TemporaryDirectory() as directory:
        measure("host", str(Path(directory) / "ledger"))
    try:
        measure("redis", url)
    except LedgerUnavailableError as error:
        print(f"redis      not measured: {error}")
    else:
        client = RedisConnection(url).client
        client.delete(*client.scan_iter(PREFIX + "*", count=1000))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--write"]:
        write_elsewhere(*sys.argv[2:])
    else:
        main(sys.argv[1] if len(sys.argv) > 1 else "redis://127.0.0.1:6379/15")
