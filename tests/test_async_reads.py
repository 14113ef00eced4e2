"""Async twins of live querysets: they read as the sync ones, and a hit in memory makes no query and takes no thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.db import connections, models, transaction
from django.db.models import Max

from live_cache import LiveQuerySet, live, recording
from tests.cache_kinds import caches_of
from tests.compared import comparable
from tests.test_queryset import books, queries_of
from tests.testapp.models import Author, Book, LoadedBook

__all__ = ["books"]

TWINS: dict[str, Callable[[Any, Any], Awaitable[Any]]] = {
    "acount": lambda qs, book: qs.acount(),
    "aexists": lambda qs, book: qs.filter(pages=100).aexists(),
    "aget": lambda qs, book: qs.aget(pk=book.pk),
    "afirst": lambda qs, book: qs.order_by("title").afirst(),
    "alast": lambda qs, book: qs.order_by("title").alast(),
    "aearliest": lambda qs, book: qs.aearliest("created"),
    "alatest": lambda qs, book: qs.alatest("created"),
    "ain_bulk": lambda qs, book: qs.ain_bulk([book.pk]),
    "aaggregate": lambda qs, book: qs.aaggregate(top=Max("pages")),
    "acontains": lambda qs, book: qs.filter(pages__lt=1000).acontains(book),
    "async for": lambda qs, book: everything(qs.order_by("pk")),
    "async for values": lambda qs, book: everything(qs.order_by("pk").values("title", "author__name")),
    "select_related": lambda qs, book: everything(qs.select_related("author__country").order_by("pk")),
    "prefetch_related": lambda qs, book: prefetched(qs.prefetch_related("tags", "author__books").order_by("pk")),
}


async def everything(queryset: Any) -> list[Any]:
    return [row async for row in queryset]


async def prefetched(queryset: Any) -> list[Any]:
    rows = [row async for row in queryset]
    return [(row, [tag.name for tag in row.tags.all()], [b.pk for b in row.author.books.all()]) for row in rows]


def run_async(function: Callable[[], Awaitable[Any]]) -> Any:
    """Await what *function* returns."""

    async def run() -> Any:
        return await function()

    return async_to_sync(run)()


def hops_of(function: Callable[[], Awaitable[Any]]) -> tuple[Any, int]:
    """Run *function* on a loop whose calls of run_in_executor() are counted; asgiref makes one for each hop."""
    hops = 0

    async def run() -> Any:
        nonlocal hops
        loop = asyncio.get_running_loop()
        original = loop.run_in_executor

        def run_in_executor(*args: Any) -> Any:
            nonlocal hops
            hops += 1
            return original(*args)

        loop.run_in_executor = run_in_executor  # type: ignore[method-assign,assignment]  # the loop of this test alone
        return await function()

    result = async_to_sync(run)()
    return result, hops


@pytest.fixture(params=["process", "host"])
def near_cache(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> str:
    """A cache whose hits need no I/O."""
    kind: str = request.param
    settings.LIVE_CACHE_LEASE_S = 0.5  # how long the clocks of a new ledger are held
    settings.CACHES = caches_of(kind, tmp_path, None)
    return kind


def warm(read: Callable[[], Any]) -> None:
    """Read until the clocks of a new ledger are no longer held, and the entries are stored."""
    from tests.cache_kinds import wait_for_hits

    wait_for_hits(read)


@pytest.mark.parametrize("name", TWINS)
def test_a_hit_stays_on_the_loop_and_equals_the_database(alias: str, books: Any, near_cache: str, name: str) -> None:
    """Each twin is async, equals its sync original, and a hit makes no query and no hop to a thread."""
    twin = TWINS[name]
    book = books.order_by("pk")[2]
    plain: Any = models.QuerySet(Book, using=alias)
    expected = comparable(run_async(lambda: twin(plain, book)))
    warm(lambda: run_async(lambda: twin(live(books), book)))
    (result, hops), query_count = queries_of(alias, lambda: hops_of(lambda: twin(live(books), book)))
    # Since Django 6.1 in_bulk() asks a SQLite connection for its limits, which the loop's connection cannot.
    allowed_hops = (0, 1) if name == "ain_bulk" and alias == "default" else (0,)
    assert (comparable(result), query_count) == (expected, 0)
    assert hops in allowed_hops


@pytest.mark.parametrize("name", TWINS)
def test_a_write_is_seen_by_each_twin(alias: str, books: Any, cache: str, name: str) -> None:
    """After a commit the twin answers what the database answers."""
    twin = TWINS[name]
    book = books.order_by("pk")[2]
    run_async(lambda: twin(live(books), book))
    books.filter(pk=book.pk).update(title="ZZZ", pages=5000, created="2001-01-01T00:00Z")
    Book.objects.using(alias).create(title="AAA", pages=1, author=Author.objects.using(alias).order_by("pk")[0])
    expected = comparable(run_async(lambda: twin(models.QuerySet(Book, using=alias), book)))
    result, hops = hops_of(lambda: twin(live(books), book))
    assert comparable(result) == expected
    # Of these two the memory tier may tell that the write has changed nothing.
    assert hops or name in ("aexists", "afirst")


def test_twins_are_coroutine_functions() -> None:
    """Frameworks that inspect a callable see that it must be awaited."""
    for name in TWINS:
        if name.startswith("a") and " " not in name:
            assert inspect.iscoroutinefunction(getattr(LiveQuerySet, name))


@pytest.mark.parametrize("kind", ["process", "redis", "disk"])
def test_a_miss_or_a_far_tier_does_not_block_the_loop(
    alias: str, books: Any, settings: Any, tmp_path: Any, kind: str, request: pytest.FixtureRequest
) -> None:
    """While a thread waits, for the database or for a far tier, other tasks go on."""
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    settings.CACHES = caches_of(kind, tmp_path, url)
    result, hops = hops_of(lambda: everything(live(books).order_by("pk")))
    assert (len(result), hops) == (7, 1)

    if kind != "process":
        assert hops_of(lambda: everything(live(books).order_by("pk")))[1] == 1


def test_other_tasks_run_while_the_database_is_slow(alias: str, books: Any, cache: str, gate: Any) -> None:
    """A fetch that waits leaves the loop free, and a hit is served meanwhile."""
    queryset = live(books.order_by("pk"))
    list(queryset.all())
    is_waiting = threading.Event()
    may_go_on = threading.Event()

    def slow(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        is_waiting.set()
        assert may_go_on.wait(10)
        return execute(sql, params, many, context)

    async def read_slowly() -> int:
        def run() -> int:
            with connections[alias].execute_wrapper(slow):
                return len(list(live(books.filter(pages=100))))

        return await sync_to_async(run)()

    async def both() -> tuple[int, int]:
        task = asyncio.create_task(read_slowly())
        while not is_waiting.is_set():
            await asyncio.sleep(0)
        rows = [row async for row in queryset.all()]
        may_go_on.set()
        return len(rows), await task

    assert async_to_sync(both)() == (7, 3)


def test_own_uncommitted_writes_are_seen_from_the_loop(alias: str, books: Any, cache: str) -> None:
    """A coroutine that is run inside a transaction of its thread reads what that transaction has written."""
    queryset = books.order_by("pk").values_list("title", flat=True)

    async def titles() -> list[str]:
        return [title async for title in live(queryset)]

    before = async_to_sync(titles)()
    with transaction.atomic(using=alias):
        books.update(title="Uncommitted")
        assert set(async_to_sync(titles)()) == {"Uncommitted"}
        transaction.set_rollback(True, using=alias)
    assert async_to_sync(titles)() == before


def test_transaction_begun_in_the_thread_of_a_coroutine(alias: str, books: Any, cache: str) -> None:
    """Own writes are seen also where the transaction is entered and left by sync_to_async()."""
    queryset = books.order_by("pk").values_list("title", flat=True)

    async def read() -> tuple[set[str], set[str]]:
        [title async for title in live(queryset)]
        block = transaction.atomic(using=alias)
        await sync_to_async(block.__enter__)()
        await books.aupdate(title="Uncommitted")
        inside = {title async for title in live(queryset)}
        await sync_to_async(transaction.set_rollback)(True, using=alias)
        await sync_to_async(block.__exit__)(None, None, None)
        return inside, {title async for title in live(queryset)}

    inside, after = async_to_sync(read)()
    assert inside == {"Uncommitted"}
    assert "Uncommitted" not in after


def test_tenants_are_asked_in_the_thread(alias: str, books: Any, cache: str, settings: Any) -> None:
    """The tenant may be a property of the thread's connection, so nothing is answered on the loop."""
    seen: set[bool] = set()

    def tenant(using: str) -> str:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            seen.add(False)
        else:
            seen.add(True)
        return "one"

    settings.LIVE_CACHE_TENANT = tenant
    for _ in range(2):
        assert len(async_to_sync(everything)(live(books))) == 7
    assert seen == {False}


def test_models_with_code_of_their_own_are_built_in_the_thread(alias: str, cache: str) -> None:
    """A from_db() of the project may wait for anything, so it does not run on the loop."""
    LoadedBook.objects.using(alias).create(title="x")
    queryset = LoadedBook.objects.using(alias).all()
    for _ in range(2):
        result, hops = hops_of(lambda: everything(live(queryset)))
        assert result[0].loaded["title"] == "x"
    assert hops == 1


def test_methods_of_a_custom_queryset_answer_themselves(alias: str, books: Any, cache: str) -> None:
    """A count() of the project is asked, sync and async, whatever the cache holds."""

    class Estimating(models.QuerySet[Book]):
        def count(self) -> int:
            return 1000 + super().count()

    queryset = Estimating(Book, using=alias)
    for _ in range(2):
        assert live(queryset).count() == 1007
        assert run_async(lambda: live(queryset).acount()) == 1007


def test_aiterator_is_never_cached(alias: str, books: Any, cache: str) -> None:
    """aiterator() streams from the database."""

    async def stream() -> list[Any]:
        keys: list[Any] = [row.pk async for row in live(books.order_by("pk")).aiterator()]
        return keys

    with recording() as reads:
        for _ in range(2):
            keys, query_count = queries_of(alias, lambda: async_to_sync(stream)())
            assert (len(keys), query_count) == (7, 1)
    assert not reads


def test_tasks_at_once_read_the_same(alias: str, books: Any, cache: str) -> None:
    """Many tasks of one loop read one queryset, each with its own rows."""

    async def many() -> list[Any]:
        return await asyncio.gather(*[everything(live(books).order_by("pk")) for _ in range(20)])

    results = async_to_sync(many)()
    assert {tuple(row.pk for row in rows) for rows in results} == {tuple(row.pk for row in books.order_by("pk"))}
    assert len({id(rows[0]) for rows in results}) == 20


def test_exceptions_of_a_hit_are_raised(alias: str, books: Any, cache: str) -> None:
    """aget() raises DoesNotExist and MultipleObjectsReturned, from the cache too."""
    for _ in range(2):
        with pytest.raises(Book.DoesNotExist):
            run_async(lambda: live(books).aget(pk=-1))
        with pytest.raises(Book.MultipleObjectsReturned):
            run_async(lambda: live(books).aget(pages=100))
