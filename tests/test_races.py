"""
Staged races: a reader held between its SELECT and its store, a writer held or killed around its COMMIT.

The numbers (T1, T2, ...) are those under which the races are described in docs/explanation/consistency.md.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from live_cache import live, reader, recording
from live_cache.assembly import get_assembly
from tests.cache_kinds import caches_of, wait_for_hits
from tests.gate import Gate
from tests.testapp.models import Author, Book


def titles(alias: str) -> list[str]:
    return [book.title for book in live(Book.objects.using(alias).order_by("pk"))]


def true_titles(alias: str) -> list[str]:
    return [book.title for book in Book.objects.using(alias).order_by("pk")]


@pytest.fixture
def book(alias: str) -> Book:
    """One book."""
    author = Author.objects.using(alias).create(name="Ann")
    return Book.objects.using(alias).create(title="old", author=author)


@pytest.fixture
def held_store(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """A gate at which the first reader stops between its SELECT and its store."""
    gate = Gate()
    store = reader._store
    is_first = [True]

    def hold(*args: Any) -> None:
        if is_first:
            is_first.clear()
            gate.arrive_and_wait()
        store(*args)

    monkeypatch.setattr(reader, "_store", hold)
    return gate


def test_t1_fill_that_races_with_a_commit_is_never_served(
    alias: str, book: Book, cache_kind: str, second_connection: Callable[[str], Any], held_store: Gate
) -> None:
    """Reader: SELECT (old); writer: UPDATE, COMMIT; reader: store. The old rows are in the store and are not fresh."""
    other = second_connection(alias)
    reading = other.start(titles, alias)
    held_store.wait_arrived()
    book.title = "new"
    book.save()
    held_store.open()
    assert reading.result(10) == ["old"]
    assert titles(alias) == other.run(titles, alias) == ["new"]


def test_t2_fill_inside_the_writers_transaction_is_never_served(
    alias: str, book: Book, cache_kind: str, second_connection: Callable[[str], Any]
) -> None:
    """A reader that fills between the UPDATE and the COMMIT stores old rows with an old stamp."""
    other = second_connection(alias)
    assert other.run(titles, alias) == ["old"]
    get_assembly().store.clear()
    with transaction.atomic(using=alias):
        Book.objects.using(alias).update(title="new")
        assert other.run(titles, alias) == ["old"]
        with recording() as own:
            assert titles(alias) == ["new"]
        assert not own[0].is_hit
    assert titles(alias) == other.run(titles, alias) == ["new"]


def test_t3_snapshot_transaction_neither_reads_nor_fills(
    alias: str, book: Book, cache_kind: str, second_connection: Callable[[str], Any]
) -> None:
    """A reader whose snapshot is older than a commit goes to the database and stores nothing."""
    other = second_connection(alias)
    connection = connections[alias]

    def read_in_snapshot() -> list[str]:
        if connections[alias].vendor == "sqlite":
            with transaction.atomic(using=alias):
                list(Author.objects.using(alias))
                other.run(lambda: Book.objects.using(alias).update(title="new"))
                return titles(alias)
        scope = "SESSION CHARACTERISTICS AS" if connection.vendor == "postgresql" else "SESSION"
        with connections[alias].cursor() as cursor:
            cursor.execute(f"SET {scope} TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        with transaction.atomic(using=alias):
            list(Author.objects.using(alias))
            other.run(lambda: Book.objects.using(alias).update(title="new"))
            return titles(alias)

    try:
        assert read_in_snapshot() == ["old"]
        assert other.run(titles, alias) == ["new"]
    finally:
        connection.close()
    assert titles(alias) == ["new"]


@pytest.mark.django_db(transaction=True)
def test_unfinished_cursor_on_sqlite_does_not_fill(
    book_on_sqlite: Book, cache_kind: str, second_connection: Callable[[str], Any]
) -> None:
    """An unfinished SELECT pins an autocommit connection to the old snapshot: nothing is stored from it (rule 15)."""
    other = second_connection("default")
    Author.objects.bulk_create([Author(name=f"a{index}") for index in range(300)])
    rows = Author.objects.iterator(chunk_size=10)
    next(rows)
    other.run(lambda: Book.objects.update(title="new"))
    assert titles("default") == ["old"]
    assert other.run(titles, "default") == ["new"]
    list(rows)
    assert titles("default") == ["new"]


@pytest.fixture
def book_on_sqlite(transactional_db: None) -> Book:
    """One book in SQLite."""
    return Book.objects.create(title="old", author=Author.objects.create(name="Ann"))


def test_flushed_redis_is_a_miss_and_nothing_is_stale(
    alias: str, book: Book, settings: Any, private_redis: Any, second_connection: Callable[[str], Any], held_store: Gate
) -> None:
    """FLUSHALL between a reader's reading and its store: the stamp is of a lost epoch (T25)."""
    settings.CACHES = caches_of("memory+redis", Path(), private_redis.url)
    import redis

    other = second_connection(alias)
    reading = other.start(titles, alias)
    held_store.wait_arrived()
    redis.Redis.from_url(private_redis.url).flushall()
    Book.objects.using(alias).update(title="new")
    held_store.open()
    assert reading.result(10) == ["old"]
    assert titles(alias) == ["new"]
    assert titles(alias) == other.run(titles, alias) == ["new"]
    wait_for_hits(lambda: titles(alias))


@pytest.mark.django_db(transaction=True)
def test_a_process_that_does_nothing_more_delivers_its_ticks(
    book_on_sqlite: Book, settings: Any, private_redis: Any, run_process: Any
) -> None:
    """What a writer commits while he takes Redis for dead is seen by others in the end, although he is idle then."""
    settings.CACHES = caches_of("memory+redis", Path(), private_redis.url)
    settings.CACHES["default"]["OPTIONS"] = {"SOCKET_TIMEOUT_S": 0.3}
    wait_for_hits(lambda: titles("default"))
    private_redis.freeze()
    Book.objects.update(title="new")
    private_redis.thaw()
    ledger = get_assembly().ledger
    end_s = time.monotonic() + 10
    while ledger.undelivered_count and time.monotonic() < end_s:
        time.sleep(0.01)
    assert run_process(titles, "default").value == ["new"]


def test_dead_redis_sends_reads_to_the_database_and_keeps_the_ticks(
    alias: str, book: Book, settings: Any, private_redis: Any
) -> None:
    """While Redis is down reads are right and commits go on; what was written then is not stale later (T24)."""
    settings.CACHES = caches_of("memory+redis", Path(), private_redis.url)
    assert titles(alias) == titles(alias) == ["old"]
    private_redis.kill()
    callbacks: list[int] = []
    with transaction.atomic(using=alias):
        Book.objects.using(alias).update(title="new")
        transaction.on_commit(lambda: callbacks.append(1), using=alias)
    assert callbacks == [1]
    assert titles(alias) == ["new"]
    assert get_assembly().ledger.undelivered_count > 0
    private_redis.start()
    assert titles(alias) == titles(alias) == ["new"]
    assert get_assembly().ledger.undelivered_count == 0


@pytest.mark.django_db(transaction=True)
def test_an_outage_of_the_ledger_is_logged_once(
    book_on_sqlite: Book, settings: Any, private_redis: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Its beginning and its end are logged, and not each read between them."""
    settings.CACHES = {"default": {"BACKEND": "live_cache.backend.LiveCache", "LOCATION": [private_redis.url]}}
    titles("default")
    private_redis.kill()
    for _ in range(5):
        assert titles("default") == ["old"]
    private_redis.start()
    wait_for_hits(lambda: titles("default"))
    messages = [record.getMessage() for record in caplog.records if record.name == "live_cache.read"]
    assert sum("does not answer" in message for message in messages) == 1
    assert sum("answers again" in message for message in messages) == 1


def test_ledger_loss_refuse_rolls_back(alias: str, book: Book, settings: Any, private_redis: Any) -> None:
    """With LIVE_CACHE_ON_LEDGER_LOSS = "refuse" the write raises before COMMIT and nothing is changed."""
    from django.db import OperationalError

    settings.LIVE_CACHE_ON_LEDGER_LOSS = "refuse"
    settings.CACHES = caches_of("redis", Path(), private_redis.url)
    assert titles(alias) == ["old"]
    private_redis.kill()
    with pytest.raises(OperationalError, match="nothing was committed"):
        Book.objects.using(alias).update(title="new")
    with pytest.raises(OperationalError, match="nothing was committed"), transaction.atomic(using=alias):
        Book.objects.using(alias).update(title="new")
    assert not connections[alias].in_atomic_block
    assert true_titles(alias) == titles(alias) == ["old"]


# -- other processes --------------------------------------------------------------------------------------------------


def write_title(alias: str, title: str) -> None:
    """Run in another process: change every title."""
    Book.objects.using(alias).update(title=title)


def read_titles_twice(alias: str) -> list[Any]:
    """Run in another process: read, wait for hits, and read again."""
    first = titles(alias)
    wait_for_hits(lambda: titles(alias))
    return [first, titles(alias)]


def commit_and_die(alias: str, title: str) -> None:
    """Run in another process: be killed after the database has committed and before the tick."""
    from live_cache.writes.transactions import ConnectionState

    def die(self: Any, changes: Any, **options: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    ConnectionState._tick = die  # type: ignore[method-assign]  # the process dies in its place
    Book.objects.using(alias).update(title=title)


SHARED_KINDS = pytest.mark.parametrize(
    "cache_kind", ["host", "disk", "memory+disk", "redis", "memory+redis"], indirect=True
)


@SHARED_KINDS
def test_two_processes(alias: str, book: Book, cache_kind: str, run_process: Any) -> None:
    """A write in one process is seen by the next read in another, both ways, also over ``memory://`` alone."""
    assert titles(alias) == titles(alias) == ["old"]
    run_process(write_title, alias, "theirs")
    assert titles(alias) == titles(alias) == ["theirs"]
    assert run_process(read_titles_twice, alias).value == [["theirs"], ["theirs"]]
    write_title(alias, "ours")
    assert run_process(read_titles_twice, alias).value == [["ours"], ["ours"]]


@SHARED_KINDS
def test_process_killed_between_commit_and_tick(
    alias: str, book: Book, cache_kind: str, run_process: Any, settings: Any
) -> None:
    """Its intent keeps everybody at the database until the lease is over and the database says that it is done."""
    settings.LIVE_CACHE_LEASE_S = 0.3
    assert titles(alias) == titles(alias) == ["old"]
    process = run_process.start(commit_and_die, alias, "new")
    assert process.wait(check=False).returncode == -signal.SIGKILL
    assert true_titles(alias) == ["new"]
    with recording() as reads:
        assert titles(alias) == ["new"]
    assert not reads[0].is_hit
    wait_for_hits(lambda: titles(alias))
    assert titles(alias) == ["new"]
