"""Live events over each ledger: what is told of a commit, in which order, and where a consumer goes on."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import threading
import time
from typing import Any

import pytest
from django.db import connection, connections, transaction

from live_cache import invalidate
from live_cache.assembly import get_assembly
from live_cache.changes import RowChange, encode_record
from live_cache.events import (
    Changed,
    Deleted,
    Inserted,
    LiveEvent,
    Position,
    Subscription,
    Updated,
    live_stream,
)
from live_cache.events import ledger as ledger_stream
from live_cache.events.following import follower_of
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import LOG_LENGTH, NEWBORN, ROWS_SLOT
from live_cache.names import clock_of, database_name
from tests.cache_kinds import caches_of
from tests.testapp.models import Author, Book, Ebook

pytestmark = pytest.mark.django_db(transaction=True)

SHARED_KINDS = pytest.mark.parametrize("cache_kind", ["host", "redis"], indirect=True)
BOOKS, AUTHORS = "testapp_book", "testapp_author"


def drained(subscription: Subscription) -> list[LiveEvent]:
    """Return all events that there are."""
    events = []
    while (event := subscription.get(0)) is not None:
        events.append(event)
    return events


def shown(events: list[LiveEvent]) -> list[tuple[Any, ...]]:
    """Return kind and table of each event, with its key, columns and whether it is a gap, where it has them."""
    return [
        (
            type(event).__name__,
            event.table.removeprefix("testapp_"),
            *([event.pk] if isinstance(event, Inserted | Updated | Deleted) else []),
            *([sorted(event.columns or ())] if isinstance(event, Updated) else []),
            *(["gap"] if isinstance(event, Changed) and event.is_gap else []),
        )
        for event in events
    ]


def clock(table: str) -> str:
    return clock_of(database_name(connection), table)


def ledger() -> Ledger:
    return get_assembly().ledger


def settle(*tables: str) -> None:
    """Lift the holds of new clocks, whose end is told as a change of the table."""
    from live_cache.ledger.clocks import Dependency

    for reading in ledger().read([Dependency(clock(table)) for table in tables]):
        ledger().reap(reading.clock, {NEWBORN}, epoch=reading.epoch)


# -- what is told -----------------------------------------------------------------------------------------------------


def test_each_change_is_told(cache_kind: str) -> None:
    """By row where the rows are known, with key and columns; one commit has one seq, and the clock's epoch."""
    settle(BOOKS, AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        assert drained(subscription) == []
        before_ns = time.time_ns()
        ann = Author.objects.create(name="Ann")
        key = ann.pk
        Author.objects.filter(pk=key).update(name="Anna")
        with transaction.atomic():
            bob = Author.objects.create(name="Bob")
            ann.delete()
        invalidate(Author)
        events = drained(subscription)
        assert shown(events) == [
            ("Inserted", "author", key),
            ("Updated", "author", key, ["name"]),
            ("Inserted", "author", bob.pk),
            ("Deleted", "author", key),
            ("Changed", "author"),
        ]
        first, second, third, fourth, last = events
        assert [second.seq, third.seq, fourth.seq, last.seq] == [first.seq + n for n in (1, 2, 2, 3)]
        assert len({event.epoch for event in events}) == 1
        assert {event.model for event in events} == {Author}
        assert {event.database for event in events} == {"default"}
        assert all(event.at_ns is not None and before_ns <= event.at_ns <= time.time_ns() for event in events)
        assert isinstance(last, Changed)
        assert last.note == "invalidate(testapp.Author)"


def test_what_is_not_committed_is_not_told(cache_kind: str) -> None:
    """Neither is a rollback, nor another table, nor a key."""
    settle(BOOKS, AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        with transaction.atomic():
            Author.objects.create(name="Ann")
            transaction.set_rollback(True)
        with transaction.atomic():
            Author.objects.create(name="Bob")
            assert drained(subscription) == []
        invalidate("testapp.author/0123")
        assert shown(drained(subscription)) == [("Inserted", "author", Author.objects.get().pk)]
        assert drained(subscription) == []


def test_rows_that_are_not_told_apart_are_the_table(cache: str) -> None:
    """A change of a row without a key could be one of any row; a record that cannot be read too."""
    settle(AUTHORS)
    name = clock(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        rows = [RowChange("insert", (1,), None, None, None), RowChange("delete", None, None, None, None)]
        for record in (encode_record(rows), b"\xff"):
            ledger().tick({name: {ROWS_SLOT}}, records={name: record})
            assert shown(drained(subscription)) == [("Changed", "author")]


def test_a_model_with_parents_is_all_its_tables(cache: str) -> None:
    """A row of a child is one in each of its tables."""
    settle(BOOKS, "testapp_ebook")
    with live_stream().subscribe(Ebook) as subscription:
        ann = Author.objects.create(name="Ann")
        book = Ebook.objects.create(title="a", author=ann)
        assert {(event.table, event.pk) for event in drained(subscription) if isinstance(event, Inserted)} == {
            (BOOKS, book.pk),
            ("testapp_ebook", book.pk),
        }


def test_tables_are_named_as_models_or_by_name(cache: str) -> None:
    """However the name is written in SQL; at least one, and on an alias that exists."""
    with live_stream().subscribe('"testapp_author"', Book) as subscription:
        Author.objects.create(name="Ann")
        assert [event.table for event in drained(subscription)] == [AUTHORS]
    with pytest.raises(ValueError, match="at least one"):
        live_stream().subscribe()


def test_each_subscription_has_all_events(cache_kind: str) -> None:
    """Independently of what others have taken."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as one, live_stream().subscribe(Author) as two:
        Author.objects.create(name="Ann")
        first = drained(one)
        Author.objects.create(name="Bob")
        assert len(first) == len(drained(one)) == 1
        assert len(drained(two)) == 2


# -- waiting ----------------------------------------------------------------------------------------------------------


def test_get_waits_for_a_commit(cache_kind: str) -> None:
    """It returns soon after the commit, and None when its time is over."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.01) is None
        for name in ("Ann", "Bob"):
            timer = threading.Timer(0.1, lambda name=name: (Author.objects.create(name=name), connection.close()))  # type: ignore[misc]  # bound now
            timer.start()
            event = subscription.get(10)
            timer.join()
            assert isinstance(event, Inserted)
        assert subscription.get(0.01) is None
        assert subscription.age_s is not None
        assert subscription.age_s < 5


def test_events_are_awaited(cache_kind: str) -> None:
    """An async consumer gets the same, and the loop goes on meanwhile."""
    settle(AUTHORS)

    async def consume() -> tuple[list[LiveEvent], LiveEvent | None, int]:
        turns = 0

        async def turn() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0.005)

        with live_stream().subscribe(Author) as subscription:
            task = asyncio.create_task(turn())
            writing = asyncio.create_task(asyncio.to_thread(write_two))
            events = []
            async for event in subscription:
                events.append(event)
                if len(events) == 2:
                    break
            nothing = await subscription.aget(0.05)
            await writing
            task.cancel()
        return events, nothing, turns

    def write_two() -> None:
        time.sleep(0.1)
        Author.objects.create(name="Ann")
        time.sleep(0.1)
        Author.objects.create(name="Bob")
        connection.close()

    events, nothing, turns = asyncio.run(consume())
    assert [type(event) for event in events] == [Inserted, Inserted]
    assert nothing is None
    assert turns > 5


def test_log_that_takes_its_time_blocks_no_loop(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Records may be a round trip away; other tasks go on meanwhile."""
    settle(AUTHORS)
    log = ledger().log

    def slow_log(*args: Any) -> Any:
        time.sleep(0.5)
        return log(*args)

    monkeypatch.setattr(ledger(), "log", slow_log)

    async def consume() -> tuple[LiveEvent | None, float]:
        longest_s = 0.0

        async def turn() -> None:
            nonlocal longest_s
            while True:
                began_s = time.monotonic()
                await asyncio.sleep(0.01)
                longest_s = max(longest_s, time.monotonic() - began_s)

        with live_stream().subscribe(Author) as subscription:
            await asyncio.to_thread(lambda: (Author.objects.create(name="Ann"), connection.close()))
            task = asyncio.create_task(turn())
            await asyncio.sleep(0.02)
            event = await subscription.aget(10)
            await asyncio.sleep(0.02)
            task.cancel()
        return event, longest_s

    event, longest_s = asyncio.run(consume())
    assert isinstance(event, Inserted)
    assert longest_s < 0.4


def test_cancelled_consumer_loses_nothing(cache_kind: str) -> None:
    """An aget() that is cancelled, at whatever moment, leaves its event to the next."""
    settle(AUTHORS)
    names = [str(number) for number in range(30)]

    async def consume() -> list[LiveEvent]:
        with live_stream().subscribe(Author) as subscription:
            await asyncio.to_thread(write)
            events: list[LiveEvent] = []
            for number in range(2000):
                task = asyncio.create_task(subscription.aget(0.2))
                for _ in range(number % 4):
                    await asyncio.sleep(0)
                if number % 3:
                    task.cancel()
                try:
                    event = await task
                except asyncio.CancelledError:
                    continue
                if event is None:
                    break
                events.append(event)
            return events

    def write() -> None:
        for name in names:
            Author.objects.create(name=name)
        connection.close()

    seqs = [event.seq for event in asyncio.run(consume())]
    assert seqs == list(range(seqs[0], seqs[0] + len(names)))


def test_close_ends_the_iteration(cache: str) -> None:
    """Whoever waits is woken, and nothing can be taken any more."""
    subscription = live_stream().subscribe(Author)
    threading.Timer(0.1, subscription.close).start()
    assert list(subscription) == []
    with pytest.raises(ValueError, match="closed"):
        subscription.get(0)


def test_thread_ends_with_the_last_subscription(cache_kind: str) -> None:
    """Also if it was forgotten and not closed."""
    subscriptions = [live_stream().subscribe(Author), live_stream().subscribe(Book)]
    assert subscriptions[0].get(0.05) is None
    follower = follower_of(ledger())
    thread = follower._thread
    assert thread is not None
    subscriptions.pop().close()
    subscriptions.clear()
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    with live_stream().subscribe(Author) as subscription:
        Author.objects.create(name="Ann")
        while not isinstance(subscription.get(5), Inserted):
            pass


# -- positions and gaps -----------------------------------------------------------------------------------------------


def test_position_goes_on_after_a_pause(cache_kind: str) -> None:
    """What came while nobody was subscribed is told, once; the position is kept as text."""
    settle(BOOKS, AUTHORS)
    with live_stream().subscribe(Author, Book) as subscription:
        ann = Author.objects.create(name="Ann")
        (first,) = drained(subscription)
        text = str(subscription.position)
    Author.objects.create(name="Bob")
    Book.objects.create(title="a", author=ann)
    position = Position.parse(text)
    assert position.covers(first)
    with live_stream().subscribe(Book, Author, position=position) as subscription:
        events = drained(subscription)
        assert {(type(event), event.table) for event in events} == {(Inserted, AUTHORS), (Inserted, BOOKS)}
        assert not any(position.covers(event) for event in events)
        assert all(subscription.position.covers(event) for event in events)


def test_position_counts_whole_commits(cache: str) -> None:
    """Who stops in the middle of a commit gets all of it again."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        Author.objects.bulk_create([Author(name=name) for name in "abc"])
        before = subscription.position
        assert isinstance(subscription.get(0), Inserted)
        assert isinstance(subscription.get(0), Inserted)
        assert before == subscription.position
        assert isinstance(subscription.get(0), Inserted)
        assert before != subscription.position
    with live_stream().subscribe(Author, position=before) as subscription:
        assert len(drained(subscription)) == 3


def test_table_that_the_position_does_not_know_begins_with_a_gap(cache: str) -> None:
    """Also where the position was made for another one, and where it says more than there was."""
    settle(BOOKS, AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        position = subscription.position
    ((name, (epoch, seq)),) = position.seqs.items()
    beyond = Position({name: (epoch, seq + 5)})
    elsewhere = Position({name: (b"0" * 16, seq)})
    with live_stream().subscribe(Book, Author, position=position) as subscription:
        assert shown(drained(subscription)) == [("Changed", "book", "gap")]
        assert subscription.position.seqs.keys() == {clock(BOOKS), clock(AUTHORS)}
    for wrong in (beyond, elsewhere):
        with live_stream().subscribe(Author, position=wrong) as subscription:
            assert shown(drained(subscription)) == [("Changed", "author", "gap")]
            assert drained(subscription) == []


@pytest.mark.parametrize("text", ["", "x", "!!!!", "gA" * 40_000, "é", "9_8", "oWFhAQ"])
def test_wrong_position_is_refused(text: str) -> None:
    """Text that comes from outside raises ValueError and nothing else."""
    with pytest.raises(ValueError, match="is no position"):
        Position.parse(text)


def test_slow_consumer_is_told_a_gap(cache_kind: str) -> None:
    """When the log has moved on, one event stands for all that is lost, and what comes after it is told."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        Author.objects.create(name="Ann")
        first = subscription.get(0)
        records = {clock(AUTHORS): b"x"}
        for _ in range(LOG_LENGTH + 10):
            ledger().tick({clock(AUTHORS): {ROWS_SLOT}}, records=records)
        Author.objects.create(name="Bob")
        events = drained(subscription)
        assert first is not None
        (lost,) = [event for event in events if isinstance(event, Changed) and event.is_gap]
        assert lost.seq >= first.seq + LOG_LENGTH + 10
        Author.objects.create(name="Cid")
        (last,) = drained(subscription)
        assert isinstance(last, Inserted)


def test_a_consumer_that_lags_holds_a_bounded_number_of_records(cache: str) -> None:
    """It fetches a batch at a time, whatever the log holds."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        for number in range(3 * ledger_stream.BATCH):
            Author.objects.create(name=str(number))
        seqs = []
        while (event := subscription.get(0)) is not None:
            assert isinstance(subscription, ledger_stream.LedgerSubscription)
            assert len(subscription._raws) <= ledger_stream.BATCH
            seqs.append(event.seq)
        assert seqs == list(range(seqs[0], seqs[0] + 3 * ledger_stream.BATCH))


def test_busy_table_holds_back_no_other(cache: str) -> None:
    """Tables take turns, a batch each."""
    settle(BOOKS, AUTHORS)
    with live_stream().subscribe(Author, Book) as subscription:
        ann = Author.objects.create(name="0")
        for number in range(3 * ledger_stream.BATCH):
            Author.objects.filter(pk=ann.pk).update(name=str(number + 1))
        Book.objects.create(title="a", author=ann)
        tables = [event.table for event in drained(subscription)]
        assert tables.index(BOOKS) <= ledger_stream.BATCH


def test_new_epoch_is_a_gap(cache_kind: str) -> None:
    """A clock that was lost begins anew; what was told before it is no longer certain."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        Author.objects.create(name="Ann")
        ledger().reset([clock(AUTHORS)])
        settle(AUTHORS)
        assert ("Changed", "author", "gap") in shown(drained(subscription))
        Author.objects.create(name="Bob")
        (event,) = drained(subscription)
        assert isinstance(event, Inserted)
        position = subscription.position
    ledger().reset([clock(AUTHORS)])
    with live_stream().subscribe(Author, position=position) as subscription:
        assert shown(drained(subscription))[0] == ("Changed", "author", "gap")


# -- other processes --------------------------------------------------------------------------------------------------


def create_authors(names: list[str]) -> None:
    """Run in another process."""
    for name in names:
        Author.objects.create(name=name)


def commit_and_die(name: str) -> None:
    """Run in another process: be killed after the database has committed and before the tick."""
    from live_cache.writes.transactions import ConnectionState

    def die(self: Any, changes: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    ConnectionState._tick = die  # type: ignore[method-assign]  # the process dies in its place
    Author.objects.create(name=name)


@SHARED_KINDS
def test_other_processes_are_heard(cache_kind: str, run_process: Any) -> None:
    """Two of them write at once; each commit is told once, in the order of the sequence."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        names = [[f"{letter}{number}" for number in range(20)] for letter in "ab"]
        processes = [run_process.start(create_authors, each) for each in names]
        events = [subscription.get(30) for _ in range(40)]
        for process in processes:
            process.wait()
        assert subscription.get(0) is None
        assert all(isinstance(event, Inserted) for event in events)
        seqs = [event.seq for event in events if event is not None]
        assert seqs == list(range(seqs[0], seqs[0] + 40))
        assert {event.pk for event in events if isinstance(event, Inserted)} == set(
            Author.objects.values_list("pk", flat=True)
        )


@SHARED_KINDS
@pytest.mark.parametrize("using", ["default", "replica"])
def test_writer_that_dies_before_its_tick_is_told_in_the_end(
    cache_kind: str, using: str, run_process: Any, settings: Any
) -> None:
    """Nobody reads, so the follower itself asks the database, the primary, and reaps the intent."""
    settings.LIVE_CACHE_LEASE_S = 0.3
    if using == "replica":
        using = next((alias for alias in connections if alias != "default"), "")
        if not using:
            pytest.skip("POSTGRESQL AND MARIADB ARE MISSING: there is no second alias")
        settings.LIVE_CACHE_REPLICAS = {using: "default"}
    settle(AUTHORS)
    with live_stream().subscribe(Author, using=using) as subscription:
        process = run_process.start(commit_and_die, "Ann")
        assert process.wait(check=False).returncode == -signal.SIGKILL
        assert drained(subscription) == []
        event = subscription.get(10)
        assert isinstance(event, Inserted)
        assert (event.pk, event.database) == (Author.objects.get().pk, using)


@pytest.mark.parametrize("cache_kind", ["host"], indirect=True)
def test_intents_that_cannot_be_settled_hold_back_no_event(
    cache_kind: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the database does that is asked about them."""
    settle(AUTHORS)
    monkeypatch.setattr("live_cache.ledger.fences.settle", lambda *args: 1 / 0)
    ledger().declare({clock(AUTHORS): {ROWS_SLOT}}, fence="nobody", records={clock(AUTHORS): b"x"})
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.1) is None
        Author.objects.create(name="Ann")
        assert isinstance(subscription.get(5), Inserted)
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("cache_kind", ["host"], indirect=True)
def test_look_that_had_to_wait_for_a_cpu_delays_no_other(
    cache_kind: str, run_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pause between two looks goes by what they cost, and not by how long a busy machine took over them."""
    settle(AUTHORS)
    read = ledger().read

    def slow_read(dependencies: Any) -> Any:
        time.sleep(0.2)
        return read(dependencies)

    monkeypatch.setattr(ledger(), "read", slow_read)
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.5) is None
        run_process(create_authors, ["Ann"])
        assert isinstance(subscription.get(1), Inserted)


@SHARED_KINDS
def test_child_of_fork_goes_on(cache_kind: str) -> None:
    """It gets what comes after the fork by itself, whatever the threads of the parent were doing."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.05) is None
        read_end, write_end = os.pipe()
        child = os.fork()
        if not child:
            code = 1
            try:
                connection.close()
                os.write(write_end, b"r")
                event = subscription.get(10)
                code = 0 if isinstance(event, Inserted) else 2
            finally:
                os._exit(code)
        assert os.read(read_end, 1) == b"r"
        Author.objects.create(name="Ann")
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert isinstance(subscription.get(10), Inserted)
        os.close(read_end)
        os.close(write_end)


# -- Redis ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def private(private_redis: Any, settings: Any, tmp_path: Any) -> Any:
    settings.CACHES = caches_of("redis", tmp_path, private_redis.url)
    return private_redis


def kill_subscriber(client: Any) -> None:
    """Cut the connection that hears of ticks, once it is there."""
    until_s = time.monotonic() + 5
    while not client.client_kill_filter(_type="pubsub"):
        assert time.monotonic() < until_s
        time.sleep(0.01)


def test_cut_connection_loses_no_event(private: Any) -> None:
    """Neither what came while it was away, nor what came after."""
    settle(AUTHORS)
    client: Any = get_assembly().ledger.connection.client  # type: ignore[attr-defined]  # of Redis
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.1) is None
        for _ in range(5):
            kill_subscriber(client)
            Author.objects.create(name="Ann")
            assert isinstance(subscription.get(5), Inserted)
        Author.objects.create(name="Bob")
        assert isinstance(subscription.get(5), Inserted)
        assert subscription.get(0) is None


def test_lost_wake_up_costs_a_heartbeat(private: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The log is the truth: without any message an event comes with the next look at all clocks."""
    from live_cache.ledger.redis_wake_ups import RedisWakeUps

    monkeypatch.setattr(RedisWakeUps, "_hear", lambda self, timeout_s: time.sleep(timeout_s) or frozenset())
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.1) is None
        Author.objects.create(name="Ann")
        assert isinstance(subscription.get(3), Inserted)


def test_flushed_and_restarted_redis_is_a_gap(private: Any) -> None:
    """As soon as the server answers again; then the stream goes on."""
    settle(AUTHORS)
    client: Any = get_assembly().ledger.connection.client  # type: ignore[attr-defined]  # of Redis
    with live_stream().subscribe(Author) as subscription:
        for lose in (client.flushall, private.restart):
            assert subscription.get(0.1) is None
            lose()
            began_s = time.monotonic()
            event = subscription.get(20)
            assert isinstance(event, Changed)
            assert event.is_gap
            assert time.monotonic() - began_s < 10  # it was woken
            settle(AUTHORS)
            assert shown(drained(subscription)) == [("Changed", "author")]  # the end of the new hold
            Author.objects.create(name="Ann")
            assert isinstance(subscription.get(5), Inserted)


def test_dead_redis_has_no_events(private: Any) -> None:
    """get() waits, age_s tells how long already; a new subscription raises."""
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        assert subscription.get(0.1) is None
        private.stop()
        assert subscription.get(1.5) is None
        assert subscription.age_s is not None
        assert subscription.age_s > 1
        with pytest.raises(LedgerUnavailableError):
            live_stream().subscribe(Author)
        Author.objects.create(name="Ann")  # its tick is kept
        private.start()
        event = subscription.get(5)
        assert isinstance(event, Changed)
        assert event.is_gap


def test_user_who_may_not_publish_ticks_all_the_same(private: Any) -> None:
    """The channels of a user may be restricted; then a heartbeat brings the event."""
    client: Any = get_assembly().ledger.connection.client  # type: ignore[attr-defined]  # of Redis
    client.acl_setuser("default", enabled=True, nopass=True, reset_channels=True, keys=["*"], categories=["+@all"])
    settle(AUTHORS)
    with live_stream().subscribe(Author) as subscription:
        Author.objects.create(name="Ann")
        assert isinstance(subscription.get(5), Inserted)
