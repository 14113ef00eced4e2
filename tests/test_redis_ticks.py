"""A tick in Redis that COMMIT does not wait for: nobody is served what it drops, and it is never lost in silence."""

from __future__ import annotations

import linecache
import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import redis
from asgiref.sync import async_to_sync
from django.db import connections, transaction
from django.test import override_settings

from benchmarks.project.link import Link
from live_cache import live, recording
from live_cache.assembly import close_all, get_assembly
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger import base
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading, is_fresh, take_stamps
from live_cache.ledger.redis import RedisLedger
from live_cache.ledger.redis_owed import OwedTicks
from live_cache.redis_connection import RedisConnection
from live_cache.testing.ledgers import CLOCK
from tests.cache_kinds import caches_of, wait_for_hits
from tests.forks import forking, run_in_fork
from tests.test_interrupts import Tracer, interrupting
from tests.testapp.models import Author

DEPENDENCY = Dependency(CLOCK, (0, 5))
FILES = ("ledger/redis_owed.py", "redis_exchange.py", "ledger/redis.py", "redis_connection.py", "redis_sending.py")


def read(ledger: RedisLedger) -> Reading:
    return ledger.read([DEPENDENCY])[0]


def settled(ledger: RedisLedger) -> Reading:
    """Return a reading of the clock without its hold, and let the ledger know that its scripts are there."""
    ledger.reap(CLOCK, {NEWBORN}, epoch=read(ledger).epoch)
    ledger.tick({CLOCK: {0}})
    return read(ledger)


def write(ledger: RedisLedger, between: Callable[[], object] = int) -> bool:
    """Declare and tick a change, as a commit does, with something *between* the two."""
    intent_id = ledger.declare({CLOCK: {5}}, fence="x")
    between()
    return ledger.tick({CLOCK: {5}}, intent_id=intent_id, is_announced=True)


def owed(ledger: RedisLedger) -> int:
    return len(ledger._owed._owed)


def at_hand(ledger: RedisLedger) -> list[Any]:
    """Return the connections that nobody uses and that no pool has."""
    return [idle for connections in ledger.connection._at_hand.values() for idle in connections._idle]


def soon(expected: object, look: Callable[[], object]) -> None:
    """Assert that *look* returns *expected*, in a while."""
    end_s = time.monotonic() + 10
    while look() != expected and time.monotonic() < end_s:
        time.sleep(0.01)
    assert expected == look()


@pytest.fixture
def ledger(private_redis_ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch) -> RedisLedger:
    """The ledger of a writer, whose kept ticks are not delivered behind the test's back."""
    monkeypatch.setattr(base, "DELIVERY_PAUSE_S", 1000)
    settled(private_redis_ledger)
    return private_redis_ledger


@pytest.fixture
def other(private_redis: Any) -> Iterator[RedisLedger]:
    """The same ledger as another process sees it."""
    made = RedisLedger(RedisConnection(private_redis.url, timeout_s=5), lease_s=1000)
    yield made
    made.close()


@pytest.fixture
def link(private_redis: Any) -> Iterator[Link]:
    made = Link("127.0.0.1", private_redis.port)
    yield made
    made.close()


@pytest.fixture
def far_ledger(link: Link) -> Iterator[RedisLedger]:
    """The ledger of a writer whose network can be held up."""
    connection = RedisConnection(f"redis://127.0.0.1:{link.port}/0", timeout_s=5, read_timeout_s=0.2, retry_pause_s=0)
    made = RedisLedger(connection, lease_s=1000)
    settled(made)
    yield made
    connection.close()


# -- what others see --------------------------------------------------------------------------------------------------


def test_a_tick_under_way(far_ledger: RedisLedger, other: RedisLedger, link: Link) -> None:
    """The writer goes on at once. Until the tick arrives its intent stands, then it is gone, with one tick."""
    before = read(other)
    stamps = take_stamps([before])
    started_s = time.monotonic()
    assert write(far_ledger, lambda: link.hold("to_server"))
    assert time.monotonic() - started_s < 4  # An answer would be waited for 5 s.
    assert owed(far_ledger) == 1
    meanwhile = read(other)
    assert (before.seq, 1) == (meanwhile.seq, len(meanwhile.intents))
    assert not is_fresh(stamps, [meanwhile], [DEPENDENCY])
    link.go_on()
    soon((before.seq + 1, ()), lambda: (read(other).seq, read(other).intents))
    assert not is_fresh(stamps, [read(other)], [DEPENDENCY])


def author_names() -> list[str]:
    return [author.name for author in live(Author.objects.order_by("pk"))]


def names_over(url: str) -> list[object]:
    """Return the names by a live read over the Redis at *url*, and whether it was a hit."""
    with override_settings(CACHES=caches_of("redis", Path(), url)), recording() as reads:
        return [author_names(), reads[0].is_hit]


def test_a_save_whose_tick_is_under_way(
    settings: Any,
    tmp_path: Path,
    private_redis: Any,
    link: Link,
    transactional_db: None,
    run_process: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """save() returns, and another process does not serve the older row, before the tick arrives and after it."""
    settings.CACHES = caches_of("redis", tmp_path, f"redis://127.0.0.1:{link.port}/0")
    author = Author.objects.create(name="Old")
    wait_for_hits(author_names)
    author.save()
    assert [["Old"], True] == run_process(names_over, private_redis.url).value
    send = OwedTicks.send

    def holding(self: OwedTicks, *arguments: Any, **options: Any) -> bool:
        link.hold("to_server")
        return send(self, *arguments, **options)

    monkeypatch.setattr(OwedTicks, "send", holding)
    author.name = "New"
    author.save()
    assert owed(get_assembly().ledger) == 1  # type: ignore[arg-type]  # it is a RedisLedger
    assert [["New"], False] == run_process(names_over, private_redis.url).value
    link.go_on()
    soon([["New"], True], lambda: run_process(names_over, private_redis.url).value)
    assert author_names() == ["New"]
    close_all()


# -- settling ---------------------------------------------------------------------------------------------------------

USES: dict[str, Callable[[RedisLedger], object]] = {
    "read": read,
    "declare": lambda ledger: ledger.declare({CLOCK: {5}}, fence="x"),
    "tick": lambda ledger: ledger.tick({CLOCK: {7}}),
    "retract": lambda ledger: ledger.retract([CLOCK], "id"),
    "reap": lambda ledger: ledger.reap(CLOCK, ["id"]),
    "expired": lambda ledger: ledger.expired(CLOCK),
    "reset": lambda ledger: ledger.reset(["unknown"]),
    "clocks": lambda ledger: ledger.clocks(),
    "deliver": lambda ledger: ledger.deliver(),
    "close": lambda ledger: ledger.close(),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
def test_the_next_use_settles(ledger: RedisLedger, use: Callable[[RedisLedger], object]) -> None:
    """Whatever the process does next with the ledger comes after the tick."""
    assert write(ledger)
    assert owed(ledger) == 1
    use(ledger)
    assert (0, 0) == (owed(ledger), ledger.undelivered_count)


def test_a_read_sees_every_tick_of_its_process(ledger: RedisLedger) -> None:
    """Each write, by any thread, is in the reading that is requested next."""
    seq = read(ledger).seq
    for number in range(200):
        writers = [threading.Thread(target=write, args=(ledger,)) for _ in range(number % 3)]
        for writer in writers:
            writer.start()
        write(ledger)
        for writer in writers:
            writer.join()
        seq += 1 + len(writers)
        assert (seq, ()) == (read(ledger).seq, read(ledger).intents)


def test_threads_settle_for_each_other(ledger: RedisLedger) -> None:
    """Many write and read at once: every tick is counted, none is kept, and no answer goes to the wrong one."""
    seq = read(ledger).seq
    failed: list[BaseException] = []

    def work() -> None:
        try:
            for _ in range(50):
                assert write(ledger)
                assert read(ledger).clock == CLOCK
                assert ledger.log("unknown", b"", 0, 1) is None
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == failed
    assert (seq + 600, ()) == (read(ledger).seq, read(ledger).intents)
    assert (0, 0) == (owed(ledger), ledger.undelivered_count)


def test_a_read_waits_no_longer_than_for_its_own_answer(far_ledger: RedisLedger, link: Link) -> None:
    """What is owed stays owed then; when it is there, it is settled, and was one tick."""
    before = read(far_ledger)
    write(far_ledger, lambda: link.hold("to_server"))
    started_s = time.monotonic()
    for _ in range(3):
        with pytest.raises(LedgerUnavailableError):
            read(far_ledger)
    assert time.monotonic() - started_s < 2.5  # Four times 0.2 on an idle machine.
    assert (1, 0) == (owed(far_ledger), far_ledger.undelivered_count)
    link.go_on()

    def outcome() -> object:
        try:
            return read(far_ledger).seq, owed(far_ledger)
        except LedgerUnavailableError:
            return None

    soon((before.seq + 1, 0), outcome)


def test_an_event_loop_never_waits(settings: Any, tmp_path: Path, redis_url: str, transactional_db: None) -> None:
    """An async read settles in the thread that asks the ledger."""
    settings.CACHES = caches_of("memory+redis", tmp_path, redis_url)
    author = Author.objects.create(name="Old")
    query = Author.objects.order_by("pk")
    wait_for_hits(lambda: list(live(query)))
    author.save()
    ledger: Any = get_assembly().ledger
    threads: list[threading.Thread] = []
    settle = ledger._owed.settle

    def noting() -> Any:
        threads.append(threading.current_thread())
        return settle()

    async def names() -> list[str]:
        assert owed(ledger) == 1
        ledger._owed.settle = noting
        found = [author.name async for author in live(query)]
        assert threading.current_thread() not in threads
        return found

    author.name = "New"
    author.save()
    assert ["New"] == async_to_sync(names)()
    assert threads
    assert owed(ledger) == 0
    del ledger._owed.settle
    close_all()


# -- what goes wrong --------------------------------------------------------------------------------------------------


class Failures:
    """What a ledger reports of ticks that failed after all."""

    def __init__(self, ledger: RedisLedger, caplog: pytest.LogCaptureFixture) -> None:
        self.count = 0
        self._caplog = caplog
        ledger.failure_listener = self._note

    def _note(self) -> None:
        self.count += 1

    @property
    def logged(self) -> int:
        return sum("ticks are kept" in record.message for record in self._caplog.records)


@pytest.fixture
def failures(ledger: RedisLedger, caplog: pytest.LogCaptureFixture) -> Failures:
    caplog.set_level(logging.ERROR)
    return Failures(ledger, caplog)


def test_the_server_has_forgotten_the_script(ledger: RedisLedger, failures: Failures) -> None:
    """The tick is kept, and delivered with its text before the next reading. The one after it is waited for."""
    seq = read(ledger).seq
    write(ledger, ledger.connection.client.script_flush)
    after = read(ledger)
    assert (seq + 1, (), 0) == (after.seq, after.intents, ledger.undelivered_count)
    assert (1, 1) == (failures.count, failures.logged)
    ledger.connection._known_scripts.clear()
    write(ledger)
    assert owed(ledger) == 0
    write(ledger)
    assert owed(ledger) == 1


def busy_then(client: redis.Redis, *command: str) -> None:
    """Keep the server busy, then run *command* before it hears of anybody else."""
    script = "local t = redis.call('TIME') local e = t[1] * 1000000 + t[2] + 300000 repeat t = redis.call('TIME') "
    with client.pipeline(transaction=False) as sent:
        sent.execute_command("EVAL", script + "until t[1] * 1000000 + t[2] > e", 0)
        sent.execute_command(*command)
        sent.execute()


def test_the_connection_is_lost(
    ledger: RedisLedger, other: RedisLedger, failures: Failures, private_redis: Any
) -> None:
    """A tick that was sent and never executed is kept and delivered over another connection."""
    seq = read(ledger).seq
    with redis.Redis.from_url(private_redis.url) as client:
        client.ping()
        killing = threading.Thread(target=busy_then, args=(client, "CLIENT", "KILL", "TYPE", "normal"))

        def kill() -> None:
            killing.start()
            time.sleep(0.1)

        write(ledger, kill)
        killing.join()
    assert (seq, 1) == (read(other).seq, len(read(other).intents))
    after = read(ledger)
    assert (seq + 1, (), 0) == (after.seq, after.intents, ledger.undelivered_count)
    assert (1, 1) == (failures.count, failures.logged)


def test_the_server_is_no_primary_any_more(ledger: RedisLedger, failures: Failures) -> None:
    """A tick that was refused is kept, and delivered when it is taken."""
    client = ledger.connection.client
    before = read(ledger)
    # Of a port where nobody answers, so that the data stays.
    write(ledger, lambda: client.execute_command("REPLICAOF", "127.0.0.1", "1"))
    with pytest.raises(LedgerUnavailableError, match="primary"):
        read(ledger)
    assert (1, 1, 1) == (failures.count, failures.logged, ledger.undelivered_count)
    client.execute_command("REPLICAOF", "NO", "ONE")
    after = read(ledger)
    assert before.epoch != after.epoch
    assert ({NEWBORN}, 0) == ({intent.id for intent in after.intents}, ledger.undelivered_count)


def test_the_server_is_gone(ledger: RedisLedger, failures: Failures, private_redis: Any, other: RedisLedger) -> None:
    """The tick is kept until there is one again, and reaches it before the next reading."""
    write(ledger, private_redis.freeze)
    private_redis.kill()
    with pytest.raises(LedgerUnavailableError):
        read(ledger)
    assert (1, 1, 1, 0) == (failures.count, failures.logged, ledger.undelivered_count, owed(ledger))
    private_redis.start()
    born = read(other)
    after = read(ledger)
    assert (born.epoch, born.seq + 1, 0) == (after.epoch, after.seq, ledger.undelivered_count)


def test_the_server_is_frozen_for_long(
    private_redis: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the time of a patient call nothing is expected any more: the tick is kept, and the connection closed."""
    monkeypatch.setattr(base, "DELIVERY_PAUSE_S", 1000)
    connection = RedisConnection(private_redis.url, timeout_s=0.5, read_timeout_s=0.1, retry_pause_s=0)
    ledger = RedisLedger(connection, lease_s=1000)
    failures = Failures(ledger, caplog)
    seq = settled(ledger).seq
    write(ledger, private_redis.freeze)
    with pytest.raises(LedgerUnavailableError):
        read(ledger)
    assert (1, 0) == (owed(ledger), failures.count)
    (given_up,) = ledger._owed._owed
    time.sleep(0.5)
    with pytest.raises(LedgerUnavailableError):
        read(ledger)
    assert (0, 1, 1) == (owed(ledger), failures.count, ledger.undelivered_count)
    assert given_up.exchange.connection is None
    private_redis.thaw()

    def outcome() -> object:
        try:
            return read(ledger).seq > seq, ledger.undelivered_count
        except LedgerUnavailableError:
            return None

    soon((True, 0), outcome)
    connection.close()


def test_a_late_failure_is_counted(
    settings: Any, tmp_path: Path, redis_url: str, transactional_db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an error of the ledger, of the cache that writes."""
    settings.CACHES = caches_of("redis", tmp_path, redis_url)
    author = Author.objects.create(name="Old")
    wait_for_hits(author_names)
    author.save()
    send = OwedTicks.send

    def forgetting(self: OwedTicks, *arguments: Any, **options: Any) -> bool:
        self._connection.client.script_flush()
        return send(self, *arguments, **options)

    monkeypatch.setattr(OwedTicks, "send", forgetting)
    before = get_assembly().metrics.snapshot().get("ledger_errors", 0)
    author.name = "New"
    author.save()
    assert before == get_assembly().metrics.snapshot().get("ledger_errors", 0)
    assert author_names() == ["New"]
    assert before + 1 == get_assembly().metrics.snapshot()["ledger_errors"]
    wait_for_hits(author_names)
    close_all()


# -- who has to wait --------------------------------------------------------------------------------------------------


def test_a_slow_commit_waits_for_its_tick(ledger: RedisLedger) -> None:
    """From half of the lease on, counted from before the declaration is sent."""
    now_s = [0.0]
    ledger._owed._clock = lambda: now_s[0]
    ledger._owed._lease_s = 10.0
    run = ledger._run

    def slow(*arguments: Any, **options: Any) -> Any:
        found = run(*arguments, **options)
        now_s[0] += 2.0
        return found

    for seconds, is_left in ((2.9, 1), (3.0, 0), (100.0, 0)):
        ledger._run = slow  # type: ignore[method-assign]
        intent_id = ledger.declare({CLOCK: {5}}, fence="x")
        ledger._run = run  # type: ignore[method-assign]
        now_s[0] += seconds
        assert ledger.tick({CLOCK: {5}}, intent_id=intent_id, is_announced=True)
        assert is_left == owed(ledger)
        read(ledger)


def test_a_tick_without_an_answered_declaration_waits(ledger: RedisLedger, private_redis: Any) -> None:
    """Nor is one left that is not only of a COMMIT, tells more than was declared, or whose script may not be there."""

    def declare() -> str:
        return ledger.declare({CLOCK: {5}}, fence="x")

    ledger.tick({CLOCK: {5}}, is_announced=True)
    assert owed(ledger) == 0
    ledger.tick({CLOCK: {5}}, intent_id="unknown", is_announced=True)
    assert owed(ledger) == 0
    ledger.tick({CLOCK: {5}}, intent_id=declare())
    assert owed(ledger) == 0
    ledger.tick({CLOCK: {5}, "other": {5}}, intent_id=declare(), is_announced=True)
    assert owed(ledger) == 0
    intent_id = declare()
    ledger.tick({CLOCK: {5}}, intent_id=intent_id, is_announced=True)
    assert owed(ledger) == 1
    ledger.tick({CLOCK: {5}}, intent_id=intent_id, is_announced=True)
    assert owed(ledger) == 0
    new = RedisLedger(RedisConnection(private_redis.url, timeout_s=5), lease_s=1000)
    write(new)
    assert owed(new) == 0
    write(new)
    assert owed(new) == 1
    new.close()


@pytest.mark.django_db(transaction=True, databases=["postgresql"])
def test_a_statement_that_was_not_sent_yet_waits(settings: Any, tmp_path: Path, redis_url: str) -> None:
    """It declares before the database knows of it; so the hold of a clock that is born meanwhile may end too early."""
    settings.CACHES = caches_of("redis", tmp_path, redis_url)
    authors = Author.objects.using("postgresql")
    author = authors.create(name="Old")
    wait_for_hits(lambda: list(live(authors.order_by("pk"))))
    ledger: Any = get_assembly().ledger
    statement = "DO $$ BEGIN UPDATE testapp_author SET name = 'New'; END $$"
    for author.name in ("One", "Two"):
        author.save()
    assert owed(ledger) == 1
    with connections["postgresql"].cursor() as cursor:
        cursor.execute(statement)
    assert owed(ledger) == 0
    assert ["New"] == [found.name for found in live(authors.order_by("pk"))]
    close_all()


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_statement_that_commits_by_itself_waits(alias: str, settings: Any, tmp_path: Path, redis_url: str) -> None:
    """What it writes after that is not of the transaction that was declared."""
    settings.CACHES = caches_of("redis", tmp_path, redis_url)
    authors = Author.objects.using(alias)
    author = authors.create(name="Old")
    wait_for_hits(lambda: list(live(authors.order_by("pk"))))
    ledger: Any = get_assembly().ledger
    for author.name in ("One", "Two"):
        author.save()
    assert owed(ledger) == 1
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        authors.update(name="New")
        cursor.execute("DROP TABLE IF EXISTS nothing_is_called_so")
        assert owed(ledger) == 0
    assert ["New"] == [found.name for found in live(authors.order_by("pk"))]
    close_all()


def test_a_declaration_that_failed_gives_nothing_to_rely_on(ledger: RedisLedger, private_redis: Any) -> None:
    """With the server frozen only for the declaration the tick is waited for."""
    private_redis.freeze()
    with pytest.raises(LedgerUnavailableError):
        ledger.declare({CLOCK: {5}}, fence="x")
    private_redis.thaw()
    assert ledger.tick({CLOCK: {5}})
    assert (0, {}) == (owed(ledger), ledger._owed._declared)


def test_intents_that_are_never_ticked_are_forgotten(ledger: RedisLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their number is bounded."""
    monkeypatch.setattr("live_cache.ledger.redis_owed.MAX_DECLARED", 3)
    for _ in range(20):
        ledger.declare({CLOCK: {5}}, fence="x")
        assert len(ledger._owed._declared) <= 4


# -- forks, interrupts, connections -----------------------------------------------------------------------------------


@forking
def test_a_fork_owes_nothing(ledger: RedisLedger) -> None:
    """The child has a ledger of its own to use, and the parent gets its answer."""
    seq = read(ledger).seq
    assert write(ledger)

    def child() -> None:
        assert owed(ledger) == 0
        assert seq + 1 == read(ledger).seq
        assert write(ledger)
        assert seq + 2 == read(ledger).seq

    def idle_child() -> None:
        assert not at_hand(ledger)
        assert write(ledger)
        assert seq + 3 == read(ledger).seq

    assert run_in_fork(child) == 0
    assert owed(ledger) == 1
    assert len(at_hand(ledger)) == 1
    assert seq + 2 == read(ledger).seq
    assert len(at_hand(ledger)) == 2
    assert run_in_fork(idle_child) == 0
    seq += 1
    after = read(ledger)
    assert (seq + 2, (), 0, 0) == (after.seq, after.intents, owed(ledger), ledger.undelivered_count)
    assert write(ledger)
    assert seq + 3 == read(ledger).seq


class SignalTracer(Tracer):
    """
    Raises where a signal handler could.

    The line of a "with" is also traced before it is left, and no signal is handled there: its lock would stay locked.
    """

    def line(self, frame: FrameType, event: str, argument: object) -> Any:
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        return self.line if "with self._lock" in text else super().line(frame, event, argument)


def test_an_interrupt_at_every_line(ledger: RedisLedger) -> None:
    """Of a tick and of the reading that settles it: the tick arrives, once or twice, and all works on."""
    number = 0
    while True:
        seq = read(ledger).seq
        intent_id = ledger.declare({CLOCK: {5}}, fence="x")
        tracer = SignalTracer(number, *FILES)
        with interrupting(tracer):
            ledger.tick({CLOCK: {5}}, intent_id=intent_id, is_announced=True)
            read(ledger)
        if not tracer.where:
            break
        after = read(ledger)
        assert seq < after.seq <= seq + 2, tracer.where
        assert (after.intents, owed(ledger), ledger.undelivered_count) == ((), 0, 0), tracer.where
        assert write(ledger), tracer.where
        assert read(ledger).seq == after.seq + 1, tracer.where
        number += 1
    assert number > 100, "so few lines: are these the right files?"


def test_connections_are_used_again(ledger: RedisLedger, private_redis: Any) -> None:
    """A thread that writes needs one for its changes, and one for its readings; a dead one is replaced at once."""
    client = ledger.connection.client

    def ids() -> set[str]:
        return {found["id"] for found in client.client_list()}

    for _ in range(3):
        write(ledger)
        read(ledger)
    before = ids()
    for _ in range(20):
        write(ledger)
        read(ledger)
    assert before == ids()
    with redis.Redis.from_url(private_redis.url) as killer:
        killer.execute_command("CLIENT", "KILL", "TYPE", "normal")
    seq = read(ledger).seq
    assert write(ledger)
    assert seq + 1 == read(ledger).seq
    assert (0, False) == (ledger.undelivered_count, ledger.connection.patient_breaker.is_open)
    ledger.close()
    assert not at_hand(ledger)
    assert seq + 1 == read(ledger).seq


def test_a_connection_is_given_back_once(ledger: RedisLedger) -> None:
    """An interrupt may let an exchange end twice, and meanwhile another thread may use its connection."""
    assert write(ledger)
    (owed_tick,) = ledger._owed._owed
    read(ledger)
    found = at_hand(ledger)
    for _ in range(2):
        owed_tick.exchange.release()
        owed_tick.exchange.give_up()
    assert found == at_hand(ledger)
    assert len(set(found)) == len(found)


def test_a_pool_of_one_connection(private_redis: Any) -> None:
    """None is kept from it."""
    ledger = RedisLedger(RedisConnection(private_redis.url + "?max_connections=1", timeout_s=5), lease_s=1000)
    seq = settled(ledger).seq
    for _ in range(5):
        write(ledger)
        seq += 1
        assert seq == read(ledger).seq
        assert ledger.connection.facts()["role"] == "master"
    assert ledger.undelivered_count == 0
    ledger.close()
