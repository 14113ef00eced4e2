"""The ledger in Redis: loss, failover, scripts, the round trip shared with the store."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger import base
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading, is_fresh, take_stamps
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection
from live_cache.stores.base import MISS
from live_cache.stores.redis import RedisStore
from live_cache.testing.ledgers import CLOCK, LedgerSuite
from tests import server_programs

DEPENDENCY = Dependency(CLOCK, (0, 5))
PREFIX = "t[1]*:"
ROOT = Path(__file__).parent.parent


class TestRedisLedger(LedgerSuite):
    name = "redis"
    lease_s = 0.2

    @pytest.fixture(autouse=True)
    def _state(self, redis_url: str) -> Iterator[None]:
        self.connection = RedisConnection(redis_url, timeout_s=5)
        yield
        self.connection.close()

    def make_ledger(self) -> RedisLedger:
        return RedisLedger(self.connection, prefix=PREFIX, lease_s=self.lease_s)

    def lose(self, clock: str) -> None:
        self.connection.client.delete(f"{PREFIX}clock:{{{clock}}}")

    def let_pass(self, seconds: float) -> None:
        time.sleep(seconds)  # The server's clock cannot be set.


@pytest.fixture
def ledger(redis_ledger: RedisLedger) -> RedisLedger:
    return redis_ledger


@pytest.fixture
def private(private_redis_ledger: RedisLedger) -> RedisLedger:
    return private_redis_ledger


def read(ledger: RedisLedger) -> Reading:
    return ledger.read([DEPENDENCY])[0]


def settle(ledger: RedisLedger) -> Reading:
    ledger.reap(CLOCK, {NEWBORN}, epoch=read(ledger).epoch)
    return read(ledger)


def test_scripts_survive_script_flush(ledger: RedisLedger) -> None:
    """A server that has forgotten the scripts gets them again, in every kind of step."""
    seq = settle(ledger).seq
    client = ledger.connection.client
    client.script_flush()
    intent_id = ledger.declare({CLOCK: {5}, "other": {7}}, fence="x")
    client.script_flush()
    assert ledger.tick({CLOCK: {5}, "other": {7}}, intent_id=intent_id)
    client.script_flush()
    assert seq + 1 == read(ledger).seq
    client.script_flush()
    assert [] == ledger.expired(CLOCK)
    client.script_flush()
    assert ledger.reset() == 1


def test_flushall_and_restart(private: RedisLedger, private_redis: Any) -> None:
    """After FLUSHALL, and after a restart, every clock is new and has a hold."""
    epochs = {settle(private).epoch}
    private.connection.client.flushall()
    assert [NEWBORN] == [intent.id for intent in read(private).intents]
    epochs.add(read(private).epoch)
    private_redis.restart()
    epochs.add(read(private).epoch)
    assert len(epochs) == 3


def test_tick_is_delivered_when_the_server_is_back(
    private: RedisLedger, private_redis: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ticks made while the server was away reach it before the next read of this process."""
    monkeypatch.setattr(base, "DELIVERY_PAUSE_S", 1000)  # not by themselves
    settle(private)
    private_redis.stop()
    assert not private.tick({CLOCK: {5}})
    with pytest.raises(LedgerUnavailableError):
        private.read([DEPENDENCY])
    with pytest.raises(LedgerUnavailableError):
        private.declare({CLOCK: {5}}, fence="x")
    assert private.undelivered_count == 1
    private_redis.start()
    other = RedisLedger(RedisConnection(private_redis.url, timeout_s=2, retry_pause_s=0), lease_s=1000)
    born = read(other)
    after = read(private)
    assert (born.epoch, born.seq + 1, 0) == (after.epoch, after.seq, private.undelivered_count)
    other.close()


def test_server_that_restarts_with_its_data(tmp_path: Path) -> None:
    """A server that comes back with a snapshot of earlier times is another server: the clocks start new epochs."""
    arguments = ("--dir", str(tmp_path), "--dbfilename", "dump.rdb")
    server = server_programs.start_redis(arguments=arguments)
    url = f"redis://127.0.0.1:{server.port}/0"
    ledger = RedisLedger(RedisConnection(url, timeout_s=2, retry_pause_s=0), lease_s=1000)
    try:
        settle(ledger)
        intent_id = ledger.declare({CLOCK: {9}}, fence="x")
        stamps = take_stamps([read(ledger)])
        ledger.connection.client.save()
        ledger.tick({CLOCK: {5}})
        server.stop(kill=True)
        server = server_programs.start_redis(port=server.port, arguments=arguments)
        assert ledger.connection.client.exists(f"live_cache:clock:{{{CLOCK}}}")
        reading = read(ledger)
        assert not is_fresh(stamps, [reading], [DEPENDENCY])
        assert stamps[0].epoch != reading.epoch
        assert {intent_id, NEWBORN} == {intent.id for intent in reading.intents}
    finally:
        ledger.close()
        server.stop(kill=True)


def test_failover(private: RedisLedger, private_redis: Any) -> None:
    """A replica is refused on connections from before and after, and once promoted it starts new epochs."""
    before = settle(private)
    second = server_programs.start_redis()
    replica = RedisLedger(
        RedisConnection(f"redis://127.0.0.1:{second.port}/0", timeout_s=2, retry_pause_s=0), lease_s=1000
    )
    client = replica.connection.client
    try:
        client.ping()  # this connection stays open over the changes of role
        client.execute_command("REPLICAOF", "127.0.0.1", str(private_redis.port))
        deadline_s = time.monotonic() + 10
        while not client.exists(f"live_cache:clock:{{{CLOCK}}}") and time.monotonic() < deadline_s:
            time.sleep(0.02)
        for use in (
            lambda: read(replica),
            lambda: replica.declare({CLOCK: {5}, "unknown": {7}}, fence="x"),
            lambda: replica.declare({"unknown": {5}}, fence="x"),
            lambda: replica.expired(CLOCK),
            lambda: replica.reset([CLOCK]),
            lambda: replica.reap(CLOCK, {NEWBORN}),
        ):
            with pytest.raises(LedgerUnavailableError, match="primary"):
                use()
        assert not replica.tick({"unknown": {5}})
        client.execute_command("REPLICAOF", "NO", "ONE")
        after = read(replica)
        assert before.epoch != after.epoch
        assert [NEWBORN] == [intent.id for intent in after.intents]
        assert after == read(replica)
    finally:
        replica.close()
        second.stop(kill=True)


def test_full_server_never_keeps_an_unticked_clock(private: RedisLedger) -> None:
    """When memory is full and may not be freed, a change that cannot be written drops the clock instead."""
    client = private.connection.client
    stamps = take_stamps([settle(private)])
    client.config_set("maxmemory", 1)
    assert private.tick({CLOCK: {5}})
    assert not client.exists(f"live_cache:clock:{{{CLOCK}}}")
    client.config_set("maxmemory", 0)
    assert not is_fresh(stamps, [read(private)], [DEPENDENCY])
    settle(private)
    client.config_set("maxmemory", 1)
    private.declare({CLOCK: {5}}, fence="x")
    assert not client.exists(f"live_cache:clock:{{{CLOCK}}}")


def test_eviction(private: RedisLedger) -> None:
    """Clocks that the server evicts are lost clocks."""
    client = private.connection.client
    before = settle(private)
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.config_set("maxmemory", client.info("memory")["used_memory"] + 200_000)
    for number in range(5000):
        client.set(f"filler:{number}", "x" * 1000)
        if not client.exists(f"live_cache:clock:{{{CLOCK}}}"):
            break
    else:
        pytest.fail("The clock was not evicted.")
    assert before.epoch != read(private).epoch


def test_read_with_entry_is_one_round_trip(ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry and its clocks come in one pipeline when they live together, in two when they do not."""
    together = RedisStore(ledger.connection, prefix="e:")
    apart = RedisStore(RedisConnection(ledger.connection.url), prefix="e:")
    together.put("k", b"value")
    expected = settle(ledger)
    trips = []
    run = ledger.connection.run
    monkeypatch.setattr(ledger.connection, "run", lambda commands, **how: trips.append(len(commands)) or run(commands))
    assert ([expected, expected], b"value") == ledger.read_with_entry([DEPENDENCY, DEPENDENCY], together, "k")
    assert [3] == trips
    assert ([expected], MISS) == ledger.read_with_entry([DEPENDENCY], together, "unknown")
    assert ([expected], b"value") == ledger.read_with_entry([DEPENDENCY], apart, "k")
    assert [3, 2, 1] == trips
    apart.close()


def test_read_with_entry_without_a_server(private: RedisLedger, private_redis: Any) -> None:
    """When the server of both is away, the ledger is what is missed."""
    store = RedisStore(private.connection)
    private_redis.stop()
    with pytest.raises(LedgerUnavailableError):
        private.read_with_entry([DEPENDENCY], store, "k")


def test_close_leaves_connections_in_use_alone(ledger: RedisLedger) -> None:
    """A thread that closes the ledger, as every request does at its end, breaks no step of another thread."""
    pool = ledger.connection.client.connection_pool
    settle(ledger)
    busy = pool.get_connection()
    busy.send_command("PING")
    ledger.close()
    assert busy.read_response() == b"PONG"
    pool.release(busy)


def test_key_of_another_kind(ledger: RedisLedger) -> None:
    """A foreign value where a clock should be is an unavailable ledger, never a fresh entry."""
    ledger.connection.client.set(f"live_cache:clock:{{{CLOCK}}}", "mine")
    with pytest.raises(LedgerUnavailableError):
        read(ledger)


def test_fences_keep_their_text(ledger: RedisLedger) -> None:
    """Whatever a fence looks like, it comes back as it was."""
    settle(ledger)
    for fence in ("pg:12", "a b\nc", "", "é%20"):
        intent_id = ledger.declare({CLOCK: {5}}, fence=fence)
        assert [fence] == [intent.fence for intent in read(ledger).intents]
        ledger.retract([CLOCK], intent_id)


PROGRAM = """
import sys, threading
sys.path.insert(0, {root!r})
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection
ledger = RedisLedger(RedisConnection({url!r}, timeout_s=10), lease_s=1000)
def work():
    for _ in range(25):
        intent_id = ledger.declare({{{clock!r}: {{5}}}}, fence="x")
        assert ledger.tick({{{clock!r}: {{5}}}}, intent_id=intent_id)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""


def test_processes_and_threads_lose_no_tick(ledger: RedisLedger) -> None:
    """Four processes with four threads each: seq counts every tick, and readers meanwhile never see it go back."""
    before = settle(ledger)
    program = PROGRAM.format(root=str(ROOT), url=ledger.connection.url, clock=CLOCK)
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(4)]
    is_over = threading.Event()
    seen = [before.seq]

    def watch() -> None:
        while not is_over.is_set():
            reading = read(ledger)
            assert reading.slots[1] <= reading.seq >= seen[-1]
            seen.append(reading.seq)

    watcher = threading.Thread(target=watch)
    watcher.start()
    codes = [process.wait(60) for process in processes]
    is_over.set()
    watcher.join()
    after = read(ledger)
    assert ([0] * 4, before.seq + 400, ()) == (codes, after.seq, after.intents)
    assert sorted(seen) == seen
