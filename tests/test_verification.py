"""The online verifier: it finds a planted stale entry, drops it everywhere, and never takes a fresh one for stale."""

from __future__ import annotations

import io
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import DatabaseError, connections, transaction
from django.db.models import Avg, Count

from live_cache import live, recording
from live_cache.assembly import get_assembly
from live_cache.ledger.clocks import take_stamps
from live_cache.rows import EntryHeader, decode_entry, encode_entry
from live_cache.verification import Verification, verifying
from tests.cache_kinds import caches_of, wait_for_hits
from tests.testapp.models import Author, Book


def books(alias: str) -> Any:
    return live(Book.objects.using(alias).order_by("pk"))


def titles(alias: str) -> list[str]:
    return [book.title for book in books(alias)]


@pytest.fixture
def book(alias: str) -> Book:
    """One book."""
    author = Author.objects.using(alias).create(name="Ann")
    return Book.objects.using(alias).create(title="old", author=author)


@pytest.fixture
def counted() -> Callable[[], dict[str, int]]:
    """Return the counters of the verifier."""
    return lambda: {
        name: number for name, number in get_assembly().metrics.snapshot().items() if name.startswith("verified")
    }


def plant(queryset: Any, change: Callable[[list[tuple[Any, ...]]], list[tuple[Any, ...]]]) -> None:
    """Put other rows into the entry of *queryset*, with stamps of this moment: a stale entry that looks fresh."""
    assembly = get_assembly()
    plan = queryset._make_plan(queryset.query, queryset._suffix(), queryset._result_kind())
    data = assembly.store.get(plan.entry_key)
    assert isinstance(data, bytes)
    entry = decode_entry(data, key=plan.entry_key)
    stamps = take_stamps(assembly.ledger.read(plan.dependencies))
    header = EntryHeader(time.time_ns(), None, plan.dependencies, stamps)
    assembly.store.put(plan.entry_key, encode_entry(header, change(entry.rows()), key=plan.entry_key))


def retitled(rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    return [tuple("planted" if cell in ("old", "new") else cell for cell in row) for row in rows]


def test_planted_stale_entry_is_found_and_dropped(
    alias: str, book: Book, cache_kind: str, settings: Any, counted: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The reader gets the rows of the database, the entry is stale for everybody, and it is logged and counted."""
    wait_for_hits(lambda: titles(alias))
    plant(books(alias), retitled)
    assert titles(alias) == ["planted"]
    settings.LIVE_CACHE_VERIFY_RATE = 1
    with recording() as reads, caplog.at_level(logging.ERROR, "live_cache.verify"):
        assert titles(alias) == ["old"]
    assert (reads[0].is_hit, reads[0].reason) == (False, "different")
    assert "1 of its 1 rows are not in the 1 of the database" in caplog.text
    assert "planted" not in caplog.text
    assert counted() == {"verified": 1, "verified.different": 1}
    with recording() as reads:
        assert titles(alias) == ["old"]
    assert not reads[0].is_hit
    assert titles(alias) == ["old"]
    assert counted() == {"verified": 2, "verified.different": 1, "verified.equal": 1}


def test_caller_key_is_dropped(alias: str, book: Book, cache: str, settings: Any) -> None:
    """The same under a key that the caller gave."""

    def read() -> list[str]:
        return [each.title for each in live(Book.objects.using(alias).order_by("pk"), "front/page")]

    wait_for_hits(read)
    plant(live(Book.objects.using(alias).order_by("pk"), "front/page"), retitled)
    settings.LIVE_CACHE_VERIFY_RATE = 1
    assert read() == ["old"]
    settings.LIVE_CACHE_VERIFY_RATE = 0
    assert read() == ["old"]


@pytest.mark.parametrize(
    "change",
    [lambda rows: rows[:-1], lambda rows: [*rows, rows[0]], lambda rows: rows[::-1]],
    ids=["missing", "added", "moved"],
)
def test_missing_added_and_moved_rows_are_differences(
    alias: str, book: Book, cache: str, change: Callable[[Any], Any]
) -> None:
    """In a total order, a row in another place is one too."""
    Book.objects.using(alias).create(title="other", author=book.author)
    wait_for_hits(lambda: titles(alias))
    plant(books(alias), change)
    with verifying() as found:
        assert titles(alias) == ["old", "other"]
    assert [one.verdict for one in found] == ["different"]


def test_counts_and_aggregates_are_verified(alias: str, book: Book, cache: str) -> None:
    """Each kind of hit, none is taken for different."""
    Book.objects.using(alias).create(title="other", author=book.author)

    def read() -> None:
        queryset = live(Book.objects.using(alias).order_by("title"))
        queryset.count()
        queryset.exists()
        queryset.aggregate(Avg("pk"), Count("pk"))
        queryset.get(pk=book.pk)
        queryset.first()
        list(queryset[:1])
        list(queryset.values_list("author__name", flat=True))
        list(live(Author.objects.using(alias).annotate(n=Count("books")).prefetch_related("books")))

    wait_for_hits(read)
    with verifying() as found:
        read()
    assert [one.verdict for one in found] == ["equal"] * 9


def test_order_that_nobody_asked_for_is_no_difference(alias: str, book: Book, cache: str) -> None:
    """Without ORDER BY, and among ties, rows may change places; on a page with ties they may be others."""
    for number in range(3):
        Book.objects.using(alias).create(title="old", author=Author.objects.using(alias).create(name=f"{number}"))
    queries = [
        lambda: live(Book.objects.using(alias)),
        lambda: live(Book.objects.using(alias).order_by("title")),
        lambda: live(Book.objects.using(alias).values_list("author", "title").order_by("title")),
    ]
    for query in queries:
        wait_for_hits(lambda query=query: list(query()))
        plant(query(), lambda rows: rows[::-1])
        with verifying() as found:
            list(query())
        assert [one.verdict for one in found] == ["equal"]

    def page() -> Any:
        return live(Book.objects.using(alias).order_by("title"))[:2]

    wait_for_hits(lambda: list(page()))
    every_row = [tuple(row) for row in Book.objects.using(alias).values_list()]
    plant(page(), lambda rows: every_row[2:])
    with verifying() as found:
        list(page())
    assert [one.verdict for one in found] == ["undecided"]
    assert "ties" in found[0].note


def test_commit_between_hit_and_select_is_no_difference(
    alias: str, book: Book, cache_kind: str, second_connection: Callable[[str], Any]
) -> None:
    """
    The entry was fresh when it was read; a commit returns; the verifying SELECT shows it.

    The reading after the SELECT explains the difference.
    """
    wait_for_hits(lambda: titles(alias))
    other = second_connection(alias)

    def commit_first(execute: Any, sql: str, *arguments: Any) -> Any:
        if "testapp_book" in sql:
            other.run(lambda: Book.objects.using(alias).update(title="new"))
        return execute(sql, *arguments)

    with verifying() as found, connections[alias].execute_wrapper(commit_first):
        assert titles(alias) == ["old"]
    assert found == [Verification(found[0].cache_key, found[0].page_suffix, "undecided", "it was changed meanwhile")]
    assert titles(alias) == ["new"]


def test_error_of_the_database_leaves_the_hit(alias: str, book: Book, cache: str) -> None:
    """The hit is served, also inside a transaction, which is not broken by it."""
    wait_for_hits(lambda: titles(alias))

    def fail(execute: Any, sql: str, *arguments: Any) -> Any:
        return execute("SELECT nothing FROM nowhere" if "testapp_book" in sql else sql, *arguments)

    with verifying() as found, connections[alias].execute_wrapper(fail):
        assert titles(alias) == ["old"]
        assert [one.verdict for one in found] == ["undecided"]
    if alias == "default":
        return
    with transaction.atomic(using=alias):
        with verifying() as found, connections[alias].execute_wrapper(fail):
            assert titles(alias) == ["old"]
        assert [one.verdict for one in found] == ["undecided"]
        assert Author.objects.using(alias).count() == 1


def test_rate_is_a_share_of_hits(alias: str, book: Book, cache: str, settings: Any, counted: Any) -> None:
    """About a tenth of the hits; none by default."""
    wait_for_hits(lambda: titles(alias))
    for _ in range(20):
        titles(alias)
    assert counted() == {}
    settings.LIVE_CACHE_VERIFY_RATE = 0.1
    random.seed(1)
    for _ in range(300):
        titles(alias)
    assert 10 <= counted()["verified"] <= 60
    assert counted() == {"verified": counted()["verified"], "verified.equal": counted()["verified"]}


@pytest.mark.django_db(transaction=True)
def test_hit_on_an_event_loop_is_verified_in_a_thread(cache: str, settings: Any, counted: Any) -> None:
    """The loop's own hit is let go, and the thread's is verified."""
    import asyncio

    Book.objects.create(title="old", author=Author.objects.create(name="Ann"))
    wait_for_hits(lambda: titles("default"))
    plant(books("default"), retitled)
    settings.LIVE_CACHE_VERIFY_RATE = 1

    async def read() -> list[str]:
        return [book.title async for book in books("default")]

    assert asyncio.run(read()) == ["old"]
    assert counted() == {"verified": 1, "verified.different": 1}


@pytest.fixture(params=["memory+disk", "memory+redis"])
def shared_kind(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> str:
    """Two kinds of cache that processes share."""
    kind: str = request.param
    settings.CACHES = caches_of(kind, tmp_path, request.getfixturevalue("redis_url") if "redis" in kind else None)
    return kind


def write_for(alias: str, seconds: float) -> int:
    """
    Write as fast as it goes, in single saves, transactions and rollbacks. Return how many commits there were.

    On a machine with little time for it, it takes longer than *seconds*.
    """
    end, commits, chance = time.monotonic() + seconds, 0, random.Random(3)
    keys = list(Book.objects.using(alias).values_list("pk", flat=True))
    while time.monotonic() < end or (commits < 20 and time.monotonic() < end + 40):
        try:
            with transaction.atomic(using=alias):
                Book.objects.using(alias).filter(pk=chance.choice(keys)).update(title=f"{commits}")
                if chance.random() < 0.2:
                    transaction.set_rollback(True, using=alias)
                if chance.random() < 0.2:
                    Book.objects.using(alias).create(title="more", author_id=Author.objects.using(alias).first().pk)
        except DatabaseError:  # a deadlock, or SQLite's lock: the other writer goes on
            continue
        commits += 1
        time.sleep(chance.random() * 0.01)
    return commits


def test_never_cries_wolf_under_load(
    alias: str, book: Book, shared_kind: str, settings: Any, run_process: Any, counted: Any
) -> None:
    """Two processes write, four threads read with every hit verified: many equal ones, and no difference."""
    for number in range(5):
        Book.objects.using(alias).create(title=f"{number}", author=book.author)
    wait_for_hits(lambda: titles(alias))
    settings.LIVE_CACHE_VERIFY_RATE = 1
    writers = [run_process.start(write_for, alias, 3.0) for _ in range(2)]
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            queryset = live(Book.objects.using(alias).order_by("title"))
            list(queryset[:3])
            queryset.count()
            titles(alias)
            list(live(Book.objects.using(alias).filter(title__gt="3")))
        connections[alias].close()

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    commits = sum(writer.wait(60).value for writer in writers)
    is_over.set()
    for thread in threads:
        thread.join(30)
    assert commits > 10
    assert counted()["verified.equal"] > 10
    assert "verified.different" not in counted()


# -- the command ------------------------------------------------------------------------------------------------------


def verified_books() -> Any:
    """Return what LIVE_CACHE_VERIFY names here."""
    return [live(Book.objects.order_by("pk")), Book.objects.order_by("title")[:5]]


def read_books() -> None:
    """Read by itself."""
    live(Book.objects.all()).count()


def run(*args: str) -> dict[str, Any]:
    stdout = io.StringIO()
    call_command("live_cache", "verify", *args, "--format", "json", stdout=stdout)
    found: dict[str, Any] = json.loads(stdout.getvalue())
    return found


@pytest.fixture
def sqlite_book(transactional_db: None, cache: str) -> Iterator[Book]:
    """One book in SQLite, whose clocks hold nothing."""
    made = Book.objects.create(title="old", author=Author.objects.create(name="Ann"))
    wait_for_hits(lambda: titles("default"))
    return made


def test_command_reads_what_it_is_told(sqlite_book: Book, settings: Any) -> None:
    """By --queryset, else by the setting: a function that returns querysets, and one that reads."""
    settings.LIVE_CACHE_VERIFY = ["tests.test_verification.verified_books", read_books]
    first = run()
    assert [line["result"] for line in first["reads"]] == ["equal", "no hit", "no hit"]
    assert [line["result"] for line in run()["reads"]] == ["equal", "equal", "equal"]
    assert [line["read"] for line in run("--queryset", "tests.test_verification.read_books")["reads"]] == [
        "tests.test_verification.read_books"
    ]
    stdout = io.StringIO()
    call_command("live_cache", "verify", stdout=stdout)
    assert "tests.test_verification.verified_books" in stdout.getvalue()


def test_command_fails_on_a_difference(sqlite_book: Book, settings: Any) -> None:
    """Once: the entry is dropped."""
    settings.LIVE_CACHE_VERIFY = ("tests.test_verification.verified_books",)
    plant(books("default"), retitled)
    with pytest.raises(CommandError, match="1 of 2 reads differ"):
        run()
    run()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("", "Name what to read"),
        ("tests.test_verification.nothing", "cannot be imported"),
        ("tests.test_verification.run.__doc__", "cannot be imported"),
        ("tests.settings.SECRET_KEY", "gives str"),
    ],
)
def test_command_says_what_is_wrong(sqlite_book: Book, path: str, message: str) -> None:
    """Nothing named, no such path, no queryset."""
    with pytest.raises(CommandError, match=message):
        run(*(["--queryset", path] if path else []))


def test_change_that_link_sets_are_asked_about(alias: str, book: Book, cache: str, second_connection: Any) -> None:
    """
    A commit between the hit and its verification, by a row of which only a link set says whether it matters.

    That it does explains the difference; that it does not leaves the verdict as it is.
    """
    other = second_connection(alias)
    ann, bob = book.author, Author.objects.using(alias).create(name="Bob")

    def read() -> list[str]:
        return [each.title for each in live(Book.objects.using(alias).filter(author__name="Ann").order_by("pk"))]

    for author, verdict, expected in ((bob, "equal", ["old"]), (ann, "undecided", ["old", "new"])):
        wait_for_hits(read)
        add = [lambda author=author: Book.objects.using(alias).create(title="new", author=author)]

        def commit(execute: Any, sql: str, *arguments: Any, add: list[Any] = add) -> Any:
            if "testapp_book" in sql and add:
                other.run(add.pop())
            return execute(sql, *arguments)

        with connections[alias].execute_wrapper(commit), verifying() as found:
            assert read() == ["old"]
        assert not add
        assert [one.verdict for one in found] == [verdict]  # and nothing of the link sets that were read
        assert read() == expected
