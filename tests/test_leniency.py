"""What a queryset may ask for besides "never stale": each is off by default, and none serves rows beyond its bound."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import OperationalError, connections

from live_cache import live, recording
from live_cache.assembly import get_assembly
from live_cache.read_records import ReadRecord
from live_cache.stores.base import StoredValue
from tests.cache_kinds import wait_for_hits
from tests.gate import Gate
from tests.testapp.models import Author, Book

pytestmark = pytest.mark.usefixtures("default_fill_lease")


@pytest.fixture
def book(alias: str) -> Book:
    """One book."""
    author = Author.objects.using(alias).create(name="Ann")
    return Book.objects.using(alias).create(title="old", author=author)


def titles(alias: str, **options: Any) -> list[str]:
    return [book.title for book in live(Book.objects.using(alias).order_by("pk"), **options)]


def read(alias: str, **options: Any) -> tuple[list[str], ReadRecord]:
    """Return the titles and how they were read."""
    with recording() as records:
        found = titles(alias, **options)
    return found, records[0]


def counter(name: str) -> int:
    return get_assembly().metrics.snapshot().get(name, 0)


def failing(execute: Any, sql: str, *arguments: Any) -> Any:
    """Be a database that is down."""
    if "testapp_book" in sql:
        raise OperationalError("the server is gone")
    return execute(sql, *arguments)


# -- refresh_after ----------------------------------------------------------------------------------------------------


def test_old_entry_is_fetched_early_by_one_reader(alias: str, book: Book, cache_kind: str) -> None:
    """One of ten readers fetches; the others have their hit at once; the entry is young again."""
    wait_for_hits(lambda: titles(alias))
    time.sleep(0.11)
    is_slow = threading.Event()

    def slow(execute: Any, sql: str, *arguments: Any) -> Any:
        if "testapp_book" in sql:
            is_slow.set()
            time.sleep(0.3)
        return execute(sql, *arguments)

    def read_slowly() -> ReadRecord:
        with connections[alias].execute_wrapper(slow):
            found = read(alias, refresh_after=0.1)[1]
        connections[alias].close()
        return found

    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(read_slowly)
        assert is_slow.wait(10)
        others = [read(alias, refresh_after=0.1) for _ in range(5)]
        assert not early.done()
        assert early.result(10).reason == "ahead"
    assert all(rows == ["old"] and record.is_hit for rows, record in others)
    assert counter("misses.ahead") == 1
    young = early.result().fetched_at_ns
    assert read(alias, refresh_after=60)[1].fetched_at_ns == young


def test_refresh_ahead_that_fails_is_a_hit(alias: str, book: Book, cache: str) -> None:
    """The rows are fresh; that the database is gone is nobody's error yet."""
    wait_for_hits(lambda: titles(alias))
    time.sleep(0.02)
    with connections[alias].execute_wrapper(failing):
        rows, record = read(alias, refresh_after=0.01)
    assert (rows, record.is_hit) == (["old"], True)
    counts = get_assembly().metrics.snapshot()
    assert counts["hits"] + counts["misses"] == counts["lookups"]
    assert "misses.ahead" not in counts
    assert read(alias, refresh_after=0.01)[1].reason == "ahead"


def test_refresh_of_another_process_is_taken(alias: str, book: Book, cache_kind: str) -> None:
    """Where the farthest tier has a younger entry than the memory of this process, nobody fetches again."""
    assembly = get_assembly()
    if len(assembly.tiers) == 1:
        return
    wait_for_hits(lambda: titles(alias))
    (key,) = [key for key in assembly.tiers[0].keys("live") if "testapp.book" in key]
    held = assembly.tiers[0].get(key)
    assert isinstance(held, bytes)
    list(live(Book.objects.using(alias).order_by("pk")).fresh())
    assembly.tiers[0].put(key, held)
    time.sleep(0.02)
    assert read(alias, refresh_after=0.01)[1].is_hit
    _, record = read(alias, refresh_after=0.01)
    assert record.reason == "ahead"


# -- stale_while_revalidate -------------------------------------------------------------------------------------------


def test_stale_rows_are_served_while_another_reader_fetches(
    alias: str, book: Book, cache_kind: str, second_connection: Callable[[str], Any]
) -> None:
    """Who fetches has the new rows; who comes meanwhile has the old ones at once, and who wants no old ones waits."""
    wait_for_hits(lambda: titles(alias, stale_while_revalidate=60))
    Book.objects.using(alias).update(title="new")
    gate = Gate()

    def held(execute: Any, sql: str, *arguments: Any) -> Any:
        if "testapp_book" in sql:
            gate.arrive_and_wait()
        return execute(sql, *arguments)

    def fetch() -> list[str]:
        with connections[alias].execute_wrapper(held):
            return titles(alias, stale_while_revalidate=60)

    filling = second_connection(alias).start(fetch)
    gate.wait_arrived()
    rows, record = read(alias, stale_while_revalidate=60)
    assert (rows, record.is_hit, record.reason) == (["old"], False, "served stale while revalidate")
    strict = second_connection(alias).start(titles, alias)
    time.sleep(0.05)
    assert not strict.done()
    gate.open()
    assert filling.result(10) == strict.result(10) == ["new"]
    assert read(alias, stale_while_revalidate=60)[0] == ["new"]
    assert counter("stale.while_revalidate") == counter("stale") == 1


def test_alone_it_fetches(alias: str, book: Book, cache_kind: str) -> None:
    """Without a filler nothing is served stale."""
    wait_for_hits(lambda: titles(alias, stale_while_revalidate=60))
    Book.objects.using(alias).update(title="new")
    assert titles(alias, stale_while_revalidate=60) == ["new"]
    assert counter("stale") == 0


def test_rows_beyond_the_bound_are_not_served(
    alias: str, book: Book, cache: str, second_connection: Callable[[str], Any]
) -> None:
    """The bound counts from the last time that the entry was seen fresh; then the reader waits as any other."""
    wait_for_hits(lambda: titles(alias, stale_while_revalidate=0.2))
    Book.objects.using(alias).update(title="new")
    time.sleep(0.25)
    gate = Gate()

    def held(execute: Any, sql: str, *arguments: Any) -> Any:
        if "testapp_book" in sql:
            gate.arrive_and_wait()
        return execute(sql, *arguments)

    def fetch() -> list[str]:
        with connections[alias].execute_wrapper(held):
            return titles(alias)

    filling = second_connection(alias).start(fetch)
    gate.wait_arrived()
    reading = second_connection(alias).start(titles, alias, stale_while_revalidate=0.2)
    time.sleep(0.05)
    assert not reading.done()
    gate.open()
    assert filling.result(10) == reading.result(10) == ["new"]


# -- stale_if_error ---------------------------------------------------------------------------------------------------


def test_stale_rows_are_served_when_the_database_fails(
    alias: str, book: Book, cache_kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Within the bound, logged and counted; without the option the error is raised."""
    wait_for_hits(lambda: titles(alias, stale_if_error=60))
    Book.objects.using(alias).update(title="new")
    with connections[alias].execute_wrapper(failing):
        rows, record = read(alias, stale_if_error=60)
        assert (rows, record.is_hit, record.reason) == (["old"], False, "served stale if error")
        with pytest.raises(OperationalError):
            titles(alias)
    assert "served stale" in caplog.text
    assert counter("stale.if_error") == 1
    assert titles(alias, stale_if_error=60) == ["new"]


def test_error_is_raised_beyond_the_bound(alias: str, book: Book, cache: str) -> None:
    """Rows that were last seen fresh too long ago are not served."""
    wait_for_hits(lambda: titles(alias, stale_if_error=0.1))
    Book.objects.using(alias).update(title="new")
    time.sleep(0.15)
    with connections[alias].execute_wrapper(failing), pytest.raises(OperationalError):
        titles(alias, stale_if_error=0.1)


def test_process_that_never_saw_the_entry_fresh_raises(
    alias: str, book: Book, cache_kind: str, run_process: Any
) -> None:
    """What another process has stored is not served stale: how old it is cannot be known."""
    wait_for_hits(lambda: titles(alias, stale_if_error=60))
    Book.objects.using(alias).update(title="new")
    get_assembly().sightings._young.clear()
    with connections[alias].execute_wrapper(failing), pytest.raises(OperationalError):
        titles(alias, stale_if_error=60)


def test_expired_entry_is_kept_for_the_bound(alias: str, book: Book, cache_kind: str) -> None:
    """It has expired, so it is fetched; when that fails, it is still there."""
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    options = {"timeout": 0.3, "stale_if_error": 60}
    assert titles(alias, **options) == titles(alias, **options) == ["old"]
    time.sleep(0.35)
    with connections[alias].execute_wrapper(failing):
        rows, record = read(alias, **options)
    assert (rows, record.reason) == (["old"], "served stale if error")
    assert read(alias, **options)[1].reason == "expired"


def test_all_who_wait_for_a_fetch_that_fails_have_stale_rows(alias: str, book: Book, cache_kind: str) -> None:
    """One query, and nobody sees its error."""
    wait_for_hits(lambda: titles(alias, stale_if_error=60))
    Book.objects.using(alias).update(title="new")
    queries: list[str] = []
    ready = threading.Barrier(6)

    def slow_and_failing(execute: Any, sql: str, *arguments: Any) -> Any:
        if "testapp_book" in sql:
            queries.append(sql)
            time.sleep(0.3)
        return failing(execute, sql, *arguments)

    def read_one() -> list[str]:
        try:
            with connections[alias].execute_wrapper(slow_and_failing):
                ready.wait(10)
                return titles(alias, stale_if_error=60)
        finally:
            connections[alias].close()

    with ThreadPoolExecutor(6) as pool:
        assert [one.result(10) for one in [pool.submit(read_one) for _ in range(6)]] == [["old"]] * 6
    assert len(queries) == 1


# -- jitter, negative results, and what is refused --------------------------------------------------------------------


def test_jitter_shortens_timeouts(alias: str, book: Book, cache: str) -> None:
    """Each entry has its own, none longer than the timeout, none shorter than its share allows."""
    wait_for_hits(lambda: titles(alias))
    for number in range(20):
        list(live(Book.objects.using(alias).filter(pk__gt=-number), "jitter", timeout=100, timeout_jitter=0.5))
    stored = [get_assembly().store.get_with_expiry(key) for key in get_assembly().store.keys("live/jitter")]
    lives_s = [one.expires_in_s for one in stored if isinstance(one, StoredValue) and one.expires_in_s is not None]
    assert len(lives_s) == 20
    assert all(49 < life_s <= 100 for life_s in lives_s)
    assert max(lives_s) - min(lives_s) > 5


def test_row_that_is_not_there_is_cached_until_it_comes(alias: str, book: Book, cache_kind: str) -> None:
    """get() of a missing key is a hit the next time, and the insert drops it."""
    wait_for_hits(lambda: titles(alias))
    authors = Author.objects.using(alias)
    missing = book.author.pk + 1000

    def get() -> ReadRecord:
        with recording() as records, pytest.raises(Author.DoesNotExist):
            live(authors.all()).get(pk=missing)
        return records[0]

    end = time.monotonic() + 10
    while not get().is_hit:
        assert time.monotonic() < end
        time.sleep(0.15)
    authors.create(pk=missing, name="Late")
    assert live(authors.all()).get(pk=missing).name == "Late"


NEGATIVE: dict[str, Callable[[Any], Any]] = {
    "rows": lambda authors: list(authors.filter(name="nobody")),
    "first": lambda authors: authors.filter(name="nobody").order_by("pk").first(),
    "count": lambda authors: authors.filter(name="nobody").count(),
    "exists": lambda authors: authors.filter(name="nobody").exists(),
}


@pytest.mark.parametrize("shape", NEGATIVE)
def test_results_without_rows_have_a_timeout_of_their_own(alias: str, book: Book, cache: str, shape: str) -> None:
    """Zero keeps none of them; the rows that come are kept as ever."""
    wait_for_hits(lambda: titles(alias))
    authors = Author.objects.using(alias)

    def hits(**options: Any) -> list[bool]:
        with recording() as records:
            for _ in range(2):
                NEGATIVE[shape](live(authors.all(), **options))
        return [record.is_hit for record in records]

    before = get_assembly().metrics.snapshot().get("empty_fetches", 0)
    assert hits(empty_timeout=0) == [False, False]
    assert get_assembly().metrics.snapshot()["empty_fetches"] == before + 2
    assert hits(timeout=100, empty_timeout=5) == [False, True]
    stored = [get_assembly().store.get_with_expiry(key) for key in get_assembly().store.keys("live/testapp.author")]
    assert [one.expires_in_s <= 5 for one in stored if isinstance(one, StoredValue) and one.expires_in_s] == [True]
    authors.create(name="nobody")
    assert hits(empty_timeout=0) == [False, True]
    assert get_assembly().metrics.snapshot()["empty_fetches"] == before + 3


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "options",
    [{"refresh_after": 0}, {"stale_while_revalidate": -1}, {"stale_if_error": 0}, {"timeout_jitter": 1.5}],
    ids=["refresh_after", "stale_while_revalidate", "stale_if_error", "timeout_jitter"],
)
def test_options_out_of_range_are_refused(cache: str, options: dict[str, float]) -> None:
    """With the name of the option."""
    with pytest.raises(ValueError, match=next(iter(options))):
        live(Book.objects.all(), **options)  # type: ignore[arg-type]  # mypy takes them for any argument
