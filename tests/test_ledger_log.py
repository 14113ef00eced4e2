"""Records that wait for a ledger, and what the Redis ledger and its process remember of them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger import base, redis_memory
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import LOG_LENGTH, NEWBORN, ROWS_SLOT, Dependency, Reading
from live_cache.ledger.process import ProcessLedger
from live_cache.ledger.redis import RedisLedger
from live_cache.ledger.redis_memory import KnownRecords, Watched
from live_cache.redis_connection import RedisConnection
from live_cache.testing.ledger_logs import is_whole
from live_cache.testing.ledgers import CLOCK
from tests import server_programs

ROOT = Path(__file__).parent.parent
ROWS = frozenset((ROWS_SLOT,))
DEPENDENCY = Dependency(CLOCK, (0, ROWS_SLOT, 5))


def read(ledger: Ledger) -> Reading:
    return ledger.read([DEPENDENCY])[0]


def settle(ledger: Ledger) -> Reading:
    ledger.reap(CLOCK, {NEWBORN}, epoch=read(ledger).epoch)
    return read(ledger)


def log(ledger: Ledger, since: Reading) -> list[bytes] | None:
    now = read(ledger)
    return ledger.log(CLOCK, now.epoch, since.seq, now.seq)


# -- ticks that are kept ----------------------------------------------------------------------------------------------


class FailingLedger(ProcessLedger):
    is_away = False

    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]) -> None:
        if self.is_away:
            raise LedgerUnavailableError("away")
        super()._tick(changes, intent_id, records)


def test_kept_tick_keeps_its_record() -> None:
    """What could not be told is told later, in order."""
    ledger = FailingLedger(lease_s=10)
    before = settle(ledger)
    ledger.is_away = True
    for number in range(5):
        assert not ledger.tick({CLOCK: ROWS}, records={CLOCK: b"%d" % number})
    ledger.is_away = False
    assert log(ledger, before) == [b"0", b"1", b"2", b"3", b"4"]
    assert read(ledger).slots[0] == before.slots[0]


def test_many_kept_ticks_become_one_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is merged has no record, and so is for the table; slots without rows stay as they are."""
    monkeypatch.setattr(base, "MAX_UNDELIVERED", 10)
    ledger = FailingLedger(lease_s=10)
    before = settle(ledger)
    ledger.read([Dependency("other")])
    ledger.is_away = True
    for number in range(11):
        ledger.tick({CLOCK: ROWS | {5}, "other": {7}}, records={CLOCK: b"%d" % number})
    assert ledger.undelivered_count == 1
    ledger.is_away = False
    now = read(ledger)
    assert (before.seq + 1, before.slots[1], before.seq + 1) == now.slots
    assert log(ledger, before) == [b""]
    assert ledger.read([Dependency("other", (0, 1, 7))])[0].slots == (0, 0, 1)


def test_long_records_that_are_kept_become_one_tick_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is away costs no more memory than a log."""
    monkeypatch.setattr(base, "LOG_BYTES", 1000)
    ledger = FailingLedger(lease_s=10)
    before = settle(ledger)
    ledger.is_away = True
    for number in range(11):
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"%02d" % number * 50})
    assert ledger.undelivered_count == 1
    ledger.is_away = False
    assert read(ledger).slots[0] == before.seq + 1


# -- what a process knows ---------------------------------------------------------------------------------------------


def numbered(first: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, end)]


def test_known_records() -> None:
    """A run grows at its end; what does not join it, or is of another epoch, takes its place."""
    known = KnownRecords()
    assert known.records("c", b"e", 0, 5) == []
    known.learn("c", b"e", 3, numbered(3, 6))
    assert known.records("c", b"e", 2, 5) == numbered(3, 6)
    assert known.records("c", b"e", 4, 9) == numbered(5, 6)
    assert known.records("c", b"e", 1, 5) == []
    assert known.records("c", b"f", 2, 5) == []
    assert known.records("d", b"e", 2, 5) == []
    known.learn("c", b"e", 6, numbered(6, 8))
    known.learn("c", b"e", 4, numbered(4, 10))  # another thread asked for the same
    assert known.records("c", b"e", 2, 20) == numbered(3, 10)
    known.learn("c", b"e", 11, numbered(11, 12))
    assert known.records("c", b"e", 2, 20) == []
    assert known.records("c", b"e", 10, 20) == numbered(11, 12)
    known.learn("c", b"f", 12, numbered(12, 13))
    assert known.records("c", b"e", 10, 20) == []
    assert known.records("c", b"f", 11, 12) == numbered(12, 13)


def test_known_records_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The newest of the clocks used last stay; the count of bytes is that of what is there."""
    known = KnownRecords()
    for first in range(1, 4 * LOG_LENGTH, 100):
        known.learn("c", b"e", first, numbered(first, first + 100))
    end = first + 100
    assert known.records("c", b"e", end - 1 - LOG_LENGTH, end) == numbered(end - LOG_LENGTH, end)
    (run,) = known._runs.values()
    assert len(run.records) <= 2 * LOG_LENGTH
    assert known._size_bytes == run.size_bytes == sum(len(r) + redis_memory.RECORD_BYTES for r in run.records)
    monkeypatch.setattr(redis_memory, "KNOWN_BYTES", 10_000)
    for name in ("d", "e", "f"):
        known.learn(name, b"e", 1, [b"x" * 4000])
    assert ["e", "f"] == list(known._runs)
    assert known._size_bytes == 2 * (4000 + redis_memory.RECORD_BYTES)


def test_watched_is_forgotten_after_a_second() -> None:
    """A hint is used again for one second."""
    now_s = [10.0]
    watched = Watched(lambda: now_s[0])
    assert watched.ask(["a"]) is None
    watched.learn(["a", "b"], [0, 1])
    assert [False, True, True, None] == [watched.ask(c) for c in (["a"], ["b"], ["a", "b"], ["a", "c"])]
    now_s[0] += 0.9
    assert watched.ask(["a"]) is False
    now_s[0] += 0.2
    assert [None, None] == [watched.ask(c) for c in (["a"], ["b"])]


# -- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(redis_ledger: RedisLedger) -> RedisLedger:
    return redis_ledger


@pytest.fixture
def private(private_redis_ledger: RedisLedger) -> RedisLedger:
    return private_redis_ledger


@pytest.fixture
def trips(ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many commands each round trip had."""
    made: list[int] = []
    run = ledger.connection.run

    def counted(commands: Any, **how: Any) -> Any:
        made.append(len(commands))
        return run(commands, **how)

    monkeypatch.setattr(ledger.connection, "run", counted)
    return made


def test_each_record_is_fetched_once(ledger: RedisLedger, trips: list[int]) -> None:
    """What the process has seen of a log costs no round trip, and what it has not is all that is asked for."""
    before = settle(ledger)
    for number in range(10):
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"%d" % number})
    trips.clear()
    e, s = before.epoch, before.seq
    assert ledger.log(CLOCK, e, s, s + 5) == numbered(0, 5)
    assert trips == [1]
    assert ledger.log(CLOCK, e, s, s + 5) == numbered(0, 5)
    assert ledger.log(CLOCK, e, s + 2, s + 4) == numbered(2, 4)
    assert trips == [1]
    ledger.connection.client.hdel(f"live_cache:clock:{{{CLOCK}}}", f"l{s + 1}")  # nobody looks there again
    assert ledger.log(CLOCK, e, s, s + 10) == numbered(0, 10)
    assert trips == [1, 1]
    assert ledger.log(CLOCK, e, s + 5, s + 10) == numbered(5, 10)
    assert trips == [1, 1]


def test_threads_and_a_child_share_what_is_known(ledger: RedisLedger) -> None:
    """A child made by fork() asks for itself, even if a thread of the parent was looking at that moment."""
    before = settle(ledger)
    ledger.tick({CLOCK: ROWS}, records={CLOCK: b"row"})
    assert log(ledger, before) == [b"row"]
    with ledger._known._lock:
        ledger._after_fork_in_child()
        assert ledger.log(CLOCK, before.epoch, before.seq, before.seq + 1) == [b"row"]


def test_is_watched_is_one_round_trip_a_second(ledger: RedisLedger, trips: list[int]) -> None:
    """All clocks are asked for together, and again after a second."""
    now_s = [10.0]
    ledger._watched = Watched(lambda: now_s[0])
    assert not ledger.is_watched([CLOCK, "other"])
    assert trips == [2]
    assert not ledger.is_watched(["other"])
    another = RedisLedger(ledger.connection, prefix=ledger.prefix, lease_s=ledger.lease_s)
    another.read([Dependency(CLOCK), Dependency("third")])
    trips.clear()
    assert not ledger.is_watched([CLOCK])
    ledger.read([Dependency(CLOCK)])
    assert ledger.is_watched([CLOCK])  # what this process has read, it knows to be there
    trips.clear()
    now_s[0] += 1.1
    assert ledger.is_watched([CLOCK, "other"])
    assert ledger.is_watched([CLOCK])
    assert trips == [2]


def test_without_a_server(private: RedisLedger, private_redis: Any) -> None:
    """A server that is away has no log; whether a table is watched is not known, so it is."""
    before = settle(private)
    private.tick({CLOCK: ROWS}, records={CLOCK: b"row"})
    private_redis.stop()
    assert private.is_watched(["never read"])
    with pytest.raises(LedgerUnavailableError):
        private.log(CLOCK, before.epoch, before.seq, before.seq + 1)
    assert not private.tick({CLOCK: ROWS}, records={CLOCK: b"late"})
    private_redis.start()
    now = settle(private)
    assert private.log(CLOCK, before.epoch, before.seq, before.seq + 1) is None
    assert private.undelivered_count == 0
    private.tick({CLOCK: ROWS}, records={CLOCK: b"row"})
    assert log(private, now) == [b"row"]


def test_record_that_a_full_server_refuses_drops_the_clock(private: RedisLedger) -> None:
    """A change that cannot be told must not look like none: neither as a tick nor as an intent."""
    client = private.connection.client
    key = f"live_cache:clock:{{{CLOCK}}}"
    for change in (
        lambda: private.tick({CLOCK: ROWS}, records={CLOCK: b"x" * 1000}),
        lambda: private.declare({CLOCK: ROWS}, fence="", records={CLOCK: b"x" * 1000}),
    ):
        settle(private)
        client.config_set("maxmemory", 1)
        change()
        assert not client.exists(key)
        client.config_set("maxmemory", 0)


def test_log_fields_are_trimmed(ledger: RedisLedger) -> None:
    """The hash has no more than the log keeps, and its count of bytes is right."""
    before = settle(ledger)
    for _ in range(LOG_LENGTH + 50):
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"x" * 9})
    client = ledger.connection.client
    key = f"live_cache:clock:{{{CLOCK}}}"
    held: dict[bytes, bytes] = client.hgetall(key)  # type: ignore[assignment]  # its answers are bytes
    fields = {name for name in held if name.startswith(b"l")}
    last = before.seq + LOG_LENGTH + 50
    assert fields == {b"l%d" % seq for seq in range(last - LOG_LENGTH + 1, last + 1)}
    assert (b"%d" % (last - LOG_LENGTH), b"%d" % (LOG_LENGTH * 10)) == (held[b"f"], held[b"b"])


def test_log_of_a_promoted_server(private: RedisLedger, private_redis: Any) -> None:
    """A server that was promoted, and may count on in the epoch of the old one, has no log of that epoch."""
    second = server_programs.start_redis()
    connection = RedisConnection(f"redis://127.0.0.1:{second.port}/0", timeout_s=2, retry_pause_s=0)
    promoted = RedisLedger(connection, lease_s=1000)
    client: Any = connection.client
    key = f"live_cache:clock:{{{CLOCK}}}"
    try:
        settle(private)
        client.execute_command("REPLICAOF", "127.0.0.1", str(private_redis.port))
        while not client.exists(key):
            time.sleep(0.01)
        before = settle(private)  # a server with its first replica has a new identity
        while client.hmget(key, "e", "q") != [before.epoch, b"%d" % before.seq]:
            time.sleep(0.01)
        client.execute_command("REPLICAOF", "NO", "ONE")
        private.tick({CLOCK: ROWS}, records={CLOCK: b"lost"})
        promoted.tick({CLOCK: ROWS}, records={CLOCK: b"other"})
        assert client.hget(key, "e") == before.epoch
        assert promoted.log(CLOCK, before.epoch, before.seq, before.seq + 1) is None
        assert private.log(CLOCK, before.epoch, before.seq, before.seq + 1) == [b"lost"]
    finally:
        promoted.close()
        second.stop(kill=True)


PROGRAM = """
import sys
sys.path.insert(0, {root!r})
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection
from live_cache.testing.ledger_logs import ROWS, whole_record
ledger = RedisLedger(RedisConnection({url!r}, timeout_s=10), lease_s=1000)
for number in range(40):
    told = {{{clock!r}: whole_record(f"{name}.{{number}}", 50 + 50 * number)}}
    intent_id = ledger.declare({{{clock!r}: ROWS}}, fence="x", records=told)
    assert ledger.tick({{{clock!r}: ROWS}}, intent_id=intent_id, records=told)
"""


def test_processes_lose_and_mix_no_record(ledger: RedisLedger) -> None:
    """Eight processes tell 40 changes each, while this one reads: all are in the log, whole, and nothing else."""
    before = settle(ledger)
    processes = []
    for name in range(8):
        program = PROGRAM.format(root=str(ROOT), url=ledger.connection.url, clock=CLOCK, name=name)
        processes.append(subprocess.Popen([sys.executable, "-c", program], env={**os.environ}))
    while any(process.poll() is None for process in processes):
        now = read(ledger)
        records = ledger.log(CLOCK, now.epoch, before.seq, now.seq)
        assert records is not None
        assert len(records) == now.seq - before.seq
        assert all(map(is_whole, records))
        assert all(is_whole(intent.record) for intent in now.intents)
    assert [0] * 8 == [process.returncode for process in processes]
    told = log(RedisLedger(ledger.connection, lease_s=1000), before)
    assert told is not None
    names = [record.partition(b"|")[0].decode() for record in told]
    assert sorted(names) == sorted(f"{name}.{number}" for name in range(8) for number in range(40))
    assert all(map(is_whole, told))
