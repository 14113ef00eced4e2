"""Settings of a session that SQL has changed: such a connection neither reads nor fills what others share."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from django.db import connections, transaction
from django.db.models import CharField
from django.db.models.functions import Cast

from live_cache import live, recording
from tests.testapp.models import Author, Book

CREATED = datetime.datetime(2024, 5, 1, 23, 30, tzinfo=datetime.UTC)
TIME_ZONE = "SET TIME ZONE 'Asia/Tokyo'"


class Case(NamedTuple):
    alias: str
    sql: str
    query: Callable[[Any], Any]


def created_as_text(books: Any) -> Any:
    return books.annotate(text=Cast("created", CharField())).values_list("text")


def found_by_stem(books: Any) -> Any:
    from django.contrib.postgres.search import SearchQuery, SearchVector

    return books.annotate(words=SearchVector("title")).filter(words=SearchQuery("run")).values_list("title")


def in_capitals(books: Any) -> Any:
    return books.annotate(text=Cast("title", CharField())).filter(text="RUNNING_1").values_list("title")


def in_small_letters(books: Any) -> Any:
    return books.filter(title__contains="running").values_list("title")


def with_a_line(books: Any) -> Any:
    return books.filter(title__contains="_").values_list("title")


CASES = [
    Case("postgresql", TIME_ZONE, created_as_text),
    Case("postgresql", "SELECT set_config('TimeZone', 'Asia/Tokyo', false)", created_as_text),
    Case("postgresql", "SET datestyle = 'German'", created_as_text),
    Case("postgresql", "SET default_text_search_config = 'simple'", found_by_stem),
    Case("mariadb", "SET NAMES utf8mb4 COLLATE utf8mb4_bin", in_capitals),
    Case("mariadb", "SET collation_connection = utf8mb4_bin", in_capitals),
    Case("mariadb", "SET SESSION sql_mode = 'NO_BACKSLASH_ESCAPES'", with_a_line),
    Case("mariadb", "SET sql_select_limit = 0", with_a_line),
    Case("default", "PRAGMA case_sensitive_like = ON", in_small_letters),
]
case_by_case = pytest.mark.parametrize(
    ("alias", "sql", "query"), CASES, ids=[f"{case.alias}-{case.sql}" for case in CASES], indirect=["alias"]
)


@pytest.fixture
def books(alias: str, cache: str) -> Iterator[Any]:
    """One book, on each connection of the test with the settings that Django gives it."""
    author = Author.objects.using(alias).create(name="Ann")
    Book.objects.using(alias).create(title="Running_1", created=CREATED, author=author)
    yield Book.objects.using(alias).order_by("pk")
    connections[alias].close()


def send(alias: str, sql: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)


def fetched(query: Any) -> list[Any]:
    """Return what the database says now."""
    return list(query.all())


def read(query: Any) -> tuple[list[Any], bool]:
    """Return what a live read gives, and whether it is a hit."""
    with recording() as reads:
        rows = list(live(query))
    return rows, reads[-1].is_hit


@case_by_case
def test_changed_connection_reads_nothing_of_others(alias: str, sql: str, query: Any, books: Any) -> None:
    """What others have stored is not served under another setting; a new connection has it again."""
    before = fetched(query(books))
    assert [read(query(books)), read(query(books))] == [(before, False), (before, True)]
    send(alias, sql)
    changed = fetched(query(books))
    assert changed != before
    assert [read(query(books)), read(query(books))] == [(changed, False), (changed, False)]
    with recording() as reads:
        read(query(books))
    assert "a setting of the connection was changed" in reads[0].reason
    connections[alias].close()
    assert fetched(query(books)) == before
    assert read(query(books)) == (before, True)


@case_by_case
def test_changed_connection_stores_nothing(
    alias: str, sql: str, query: Any, books: Any, second_connection: Any
) -> None:
    """What it has read is not served to others."""
    before = fetched(query(books))
    send(alias, sql)
    assert read(query(books))[0] == fetched(query(books)) != before
    assert second_connection(alias).run(read, query(books)) == (before, False)


@pytest.mark.parametrize(
    ("alias", "sql"),
    [
        ("postgresql", "SET work_mem = '8MB'"),
        ("postgresql", "SET LOCAL statement_timeout = 5000"),
        ("postgresql", "SELECT set_config('application_name', 'shop', false)"),
        ("mariadb", "SET foreign_key_checks = 1, SESSION innodb_lock_wait_timeout = 20"),
        ("default", "PRAGMA cache_size = 4000"),
    ],
    indirect=["alias"],
)
def test_harmless_settings(alias: str, sql: str, books: Any) -> None:
    """What changes no row leaves the cache to the connection."""
    before = read(books.values_list("title"))[0]
    send(alias, sql)
    assert read(books.values_list("title")) == (before, True)


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_what_django_sends_when_it_connects(alias: str, books: Any) -> None:
    """Django sets two things on each connection to MySQL by its own cursor: the cache is there, in a block too."""
    before = read(books.values_list("title"))[0]
    for _ in range(2):
        connections[alias].close()
        with transaction.atomic(using=alias):
            assert read(books.values_list("title")) == (before, True)


@pytest.mark.parametrize(
    "sql", ["SET LOCAL TIME ZONE 'Asia/Tokyo'", "SELECT set_config('TimeZone', 'Asia/Tokyo', true)"]
)
@pytest.mark.parametrize("is_kept", [True, False])
@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_local_settings_end_with_the_transaction(alias: str, sql: str, books: Any, is_kept: bool) -> None:
    """SET LOCAL holds until the end of the transaction, not of the block inside it that sent it."""
    query = created_as_text(books)
    before = read(query)[0]
    with transaction.atomic(using=alias):
        with transaction.atomic(using=alias):
            send(alias, sql)
        assert read(query) == (fetched(query), False)
        assert fetched(query) != before
        transaction.set_rollback(not is_kept, using=alias)
    assert fetched(query) == before
    assert read(query) == (before, True)


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_lasting_settings_outlive_the_transaction(alias: str, books: Any) -> None:
    """SET beside SET LOCAL holds until the connection is closed."""
    query = created_as_text(books)
    before = read(query)[0]
    with transaction.atomic(using=alias):
        send(alias, TIME_ZONE)
        send(alias, "SET LOCAL datestyle = 'German'")
    assert read(query) == (fetched(query), False)
    assert fetched(query) != before


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_tenants_do_not_speak_for_settings(alias: str, books: Any, settings: Any) -> None:
    """LIVE_CACHE_TENANT answers for the schema, the role and row policies, and for nothing else."""
    settings.LIVE_CACHE_TENANT = lambda using: "acme"
    query = created_as_text(books)
    before = read(query)[0]
    send(alias, "SET app.tenant = 'acme'")
    assert read(query) == (before, True)
    send(alias, TIME_ZONE)
    assert read(query) == (fetched(query), False)
    assert fetched(query) != before


class OneConnection:
    """A pool that lends its one connection again as it was given back, as psycopg_pool does."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver
        driver._pool = self

    def open(self) -> None:
        """Do nothing: it is open."""

    def getconn(self) -> Any:
        return self.driver

    def putconn(self, driver: Any) -> None:
        assert driver is self.driver


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_pooled_connection_keeps_its_settings(alias: str, books: Any, monkeypatch: Any) -> None:
    """A connection that comes back from a pool is the session that it was."""
    query = created_as_text(books)
    before = read(query)[0]
    connection: Any = connections[alias]
    driver = connection.connection
    monkeypatch.setitem(type(connection)._connection_pools, alias, OneConnection(driver))
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "pool", True)
    connection.close()
    assert read(query) == (before, True)
    send(alias, TIME_ZONE)
    connection.close()
    connection.ensure_connection()
    assert connection.connection is driver
    assert read(query) == (fetched(query), False)
    assert fetched(query) != before
    monkeypatch.undo()
    driver.close()
