"""Live events over a cluster of Redis, and through a failover: real servers, started here."""

from __future__ import annotations

import time

import pytest

from live_cache.changes import RowChange, encode_record
from live_cache.events import Changed, Inserted, Subscription
from live_cache.events.ledger import LedgerSubscription
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import ROWS_SLOT
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection
from tests.redis_groups import start_cluster, start_sentinels

CLOCKS = {f"default@0/table{number}": f"table{number}" for number in range(12)}


@pytest.fixture(autouse=True)
def _needs_redis(request: pytest.FixtureRequest) -> None:
    """Skip, loudly, where there is no program of Redis."""
    request.getfixturevalue("private_redis")


def insert(ledger: Ledger, clock: str, key: int) -> bool:
    record = encode_record([RowChange("insert", (key,), None, None, None)])
    return ledger.tick({clock: {ROWS_SLOT}}, records={clock: record})


def next_row(subscription: Subscription) -> tuple[str, int]:
    """Return table and key of the next row; what tells of the table alone is passed by."""
    until_s = time.monotonic() + 10
    while time.monotonic() < until_s:
        event = subscription.get(1)
        if isinstance(event, Inserted):
            return event.table, event.pk
    raise TimeoutError("No row was told.")


def test_events_over_a_cluster() -> None:
    """Clocks lie on several nodes; each of them wakes the consumer, and each log is read where it is."""
    with start_cluster() as cluster:
        writers = RedisConnection(cluster.url, timeout_s=5)
        readers = RedisConnection(cluster.url, timeout_s=5)
        writer = RedisLedger(writers, lease_s=1000)
        with LedgerSubscription(RedisLedger(readers, lease_s=1000), CLOCKS, using="default") as subscription:
            assert subscription.get(0.2) is None
            latencies_s = []
            for key, (clock, table) in enumerate(CLOCKS.items()):
                assert insert(writer, clock, key)
                began_s = time.monotonic()
                assert next_row(subscription) == (table, key)
                latencies_s.append(time.monotonic() - began_s)
            assert sorted(latencies_s)[len(latencies_s) // 2] < 0.5  # woken, not found by a heartbeat
        writers.close()
        readers.close()


def test_failover_is_a_gap() -> None:
    """The promoted server may lack the last ticks: its clocks begin anew, and the stream goes on there."""
    with start_sentinels() as group:
        connection = RedisConnection(group.url, timeout_s=5, retry_pause_s=0)
        ledger = RedisLedger(connection, lease_s=1000)
        clock, table = next(iter(CLOCKS.items()))
        with LedgerSubscription(ledger, {clock: table}, using="default") as subscription:
            insert(ledger, clock, 1)
            assert next_row(subscription) == (table, 1)
            group.lose_primary()
            until_s = time.monotonic() + 30
            while not (isinstance(event := subscription.get(1), Changed) and event.is_gap):
                assert time.monotonic() < until_s
            while not insert(ledger, clock, 2):
                assert time.monotonic() < until_s
            assert next_row(subscription) == (table, 2)
        connection.close()
