"""How whoever follows clocks is woken: by ticks of its own process, and over Redis."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.clocks import NEWBORN, ROWS_SLOT, Dependency
from live_cache.ledger.process import ProcessLedger
from live_cache.ledger.redis import RedisLedger
from live_cache.ledger.redis_wake_ups import RedisWakeUps
from live_cache.ledger.wake_ups import LocalWakeUps
from live_cache.redis_connection import RedisConnection
from live_cache.testing.ledgers import CLOCK, OTHER

ROWS = {CLOCK: {ROWS_SLOT}}
RECORDS = {CLOCK: b"row"}


# -- in one process ---------------------------------------------------------------------------------------------------


def test_local_wake_ups() -> None:
    """Who waits is woken at once, and who comes later is told of what was ticked meanwhile, once."""
    wake_ups = LocalWakeUps()
    threading.Timer(0.05, wake_ups.wake, [[CLOCK]]).start()
    began_s = time.monotonic()
    assert wake_ups.wait([CLOCK], 10) == {CLOCK}
    assert time.monotonic() - began_s < 5
    wake_ups.wake([CLOCK])
    wake_ups.wake([OTHER])
    assert wake_ups.wait([CLOCK], 10) == {CLOCK, OTHER}
    assert wake_ups.wait([CLOCK], 0.01) == frozenset()


class FailingLedger(ProcessLedger):
    is_away = False

    def _tick(self, *args: Any) -> None:
        if self.is_away:
            raise LedgerUnavailableError("away")
        super()._tick(*args)


def test_listener_is_told_of_each_tick() -> None:
    """Of one that is kept, too, of what is reaped, and of a reset; not of what is only declared or taken back."""
    ledger = FailingLedger(lease_s=10)
    told: list[list[str]] = []
    ledger.tick_listener = lambda clocks: told.append(sorted(clocks))
    reading = ledger.read([Dependency(CLOCK)])[0]
    ledger.retract([CLOCK], ledger.declare({CLOCK: {5}}, fence=""))
    assert told == []
    ledger.tick(ROWS, records=RECORDS)
    ledger.reap(CLOCK, {ledger.declare({CLOCK: {5}}, fence="")}, epoch=reading.epoch)
    ledger.reset()
    ledger.is_away = True
    ledger.tick({OTHER: {5}, CLOCK: {5}})
    assert told == [[CLOCK], [CLOCK], [CLOCK], sorted([CLOCK, OTHER])]


def test_listener_that_fails_stops_no_writer(caplog: pytest.LogCaptureFixture) -> None:
    """Its error is logged, and the tick stands."""
    ledger = ProcessLedger(lease_s=10)
    ledger.tick_listener = lambda clocks: 1 / 0  # type: ignore[assignment, return-value]  # raises
    before = ledger.read([Dependency(CLOCK)])[0]
    assert ledger.tick(ROWS, records=RECORDS)
    assert ledger.read([Dependency(CLOCK)])[0].seq == before.seq + 1
    assert "ZeroDivisionError" in caplog.text


# -- over Redis -------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(private_redis: Any) -> Iterator[RedisLedger]:
    connection = RedisConnection(private_redis.url, timeout_s=2, retry_pause_s=0)
    yield RedisLedger(connection, lease_s=1000)
    connection.close()


@pytest.fixture
def wake_ups(ledger: RedisLedger) -> Iterator[RedisWakeUps]:
    made = ledger.wake_ups()
    yield made
    made.close()


def settled(ledger: RedisLedger) -> None:
    ledger.reap(CLOCK, {NEWBORN}, epoch=ledger.read([Dependency(CLOCK)])[0].epoch)


def hear(wake_ups: RedisWakeUps, *, timeout_s: float = 2.0) -> frozenset[str] | None:
    """Wait until something is told."""
    until_s = time.monotonic() + timeout_s
    while time.monotonic() < until_s:
        told = wake_ups.wait([CLOCK], 0.05)
        if told is None or told:
            return told
    return frozenset()


@pytest.mark.parametrize(
    "change",
    [
        lambda ledger: ledger.tick(ROWS, records=RECORDS),
        lambda ledger: ledger.reap(CLOCK, {ledger.declare({CLOCK: {5}}, fence="")}),
        lambda ledger: ledger.reset([CLOCK]),
        lambda ledger: (ledger.connection.client.flushall(), ledger.read([Dependency(CLOCK)])),
    ],
    ids=["tick", "reap", "reset", "birth"],
)
def test_redis_tells_each_change(
    ledger: RedisLedger, wake_ups: RedisWakeUps, change: Callable[[RedisLedger], object]
) -> None:
    """Of the clocks that are waited for, and of no other."""
    settled(ledger)
    assert hear(wake_ups) == {CLOCK}  # the subscription
    assert hear(wake_ups, timeout_s=0.1) == frozenset()
    other = RedisLedger(RedisConnection(ledger.connection.url, timeout_s=2), lease_s=1000)
    change(other)
    assert hear(wake_ups) == {CLOCK}
    other.read([Dependency(OTHER)])
    other.tick({OTHER: {5}})
    assert hear(wake_ups, timeout_s=0.1) == frozenset()
    other.close()


def test_lost_connection_is_told(ledger: RedisLedger, wake_ups: RedisWakeUps, private_redis: Any) -> None:
    """That any clock may have been ticked unnoticed, or all of them by their new subscriptions; then it hears again."""
    settled(ledger)
    assert hear(wake_ups) == {CLOCK}
    client: Any = ledger.connection.client
    assert client.client_kill_filter(_type="pubsub") == 1
    ledger.tick(ROWS, records=RECORDS)  # nobody hears this
    assert hear(wake_ups) in (None, {CLOCK})
    hear(wake_ups, timeout_s=0.2)
    ledger.tick(ROWS, records=RECORDS)
    assert hear(wake_ups) == {CLOCK}
    private_redis.restart()
    assert hear(wake_ups) is None
    settled(ledger)
    while hear(wake_ups) is None:
        pass
    hear(wake_ups, timeout_s=0.2)
    ledger.tick(ROWS, records=RECORDS)
    assert hear(wake_ups) == {CLOCK}


def test_dead_server_is_no_error(ledger: RedisLedger, wake_ups: RedisWakeUps, private_redis: Any) -> None:
    """wait() says that nothing is known, and takes its time over it from the second failure on."""
    settled(ledger)
    assert hear(wake_ups) == {CLOCK}
    private_redis.stop()
    assert [wake_ups.wait([CLOCK], 0.1) for _ in range(3)] == [None, None, None]


def test_nobody_is_subscribed_for_clocks_that_are_not_waited_for(ledger: RedisLedger, wake_ups: RedisWakeUps) -> None:
    """Channels go with the clocks, and the connection with the last one."""
    client: Any = ledger.connection.client

    def channels() -> int:
        return len(client.pubsub_channels())

    wake_ups.wait([CLOCK, OTHER], 0.05)
    assert channels() == 2
    wake_ups.wait([CLOCK], 0.05)
    assert channels() == 1
    wake_ups.wait([], 0.01)
    until_s = time.monotonic() + 5
    while channels():
        assert time.monotonic() < until_s
