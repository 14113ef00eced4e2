"""
The other cases in which caches of querysets go stale, each staged (docs/explanation/consistency.md lists them all).

Those whose race is between a reader and a writer run on each ledger, with and without a tier in memory; those that are
about what a write changes, or about the life of a connection, run on one.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from decimal import Decimal
from functools import partial
from typing import Any

import pytest
from django.db import Error, OperationalError, connections, transaction
from django.db.models import Count, OuterRef, Q, Subquery

from live_cache import disabled, live, recording
from live_cache.assembly import get_assembly
from live_cache.exceptions import StoreUnavailableError
from live_cache.stores.memory import MemoryStore
from live_cache.writes.transactions import state_of
from tests.cache_kinds import wait_for_hits
from tests.gate import Gate
from tests.machine.faults import FickleLedger, Holds
from tests.testapp.models import Author, Book, Category, Country, Shelf, Tag

LEDGERS = pytest.mark.parametrize("cache_kind", ["process", "host", "redis", "memory+redis"], indirect=True)

Look = Callable[[], list[Any]]


def books(alias: str) -> Any:
    return Book.objects.using(alias).order_by("pk")


def titles(alias: str) -> list[str]:
    return list(live(books(alias)).values_list("title", flat=True))


def true_titles(alias: str) -> list[str]:
    return list(books(alias).values_list("title", flat=True))


def assert_true(alias: str) -> None:
    """The live read, the next one, and the database agree."""
    assert titles(alias) == titles(alias) == true_titles(alias)


@pytest.fixture
def book(alias: str) -> Book:
    """One book."""
    made: Book = Book.objects.using(alias).create(title="old", author=Author.objects.using(alias).create(name="Ann"))
    return made


@pytest.fixture
def other(alias: str, second_connection: Callable[[str], Any]) -> Any:
    """A second connection."""
    return second_connection(alias)


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Holds:
    """Points at which readers and writers are held."""
    return Holds(monkeypatch)


def write(alias: str, title: str) -> None:
    Book.objects.using(alias).update(title=title)


# -- fills ------------------------------------------------------------------------------------------------------------


@LEDGERS
@pytest.mark.parametrize("point", [*Holds.WRITER])
def test_t1_t2_reader_fills_while_the_writer_stands_at_each_step(
    alias: str, book: Book, cache_kind: str, other: Any, holds: Holds, point: str
) -> None:
    """Whatever a reader fills around the writer's COMMIT is not served later if it is old."""
    assert_true(alias)
    seen: list[bool] = []

    def fill() -> None:
        get_assembly().store.clear()
        seen.append(other.run(titles, alias) == other.run(true_titles, alias))
        seen.append(other.run(titles, alias) == other.run(true_titles, alias))

    holds.at(threading.get_ident(), point, fill)
    write(alias, "new")
    assert seen == [True, True]
    assert other.run(titles, alias) == ["new"]
    assert_true(alias)


@LEDGERS
@pytest.mark.parametrize("point", [*Holds.READER])
@pytest.mark.parametrize("is_empty", [False, True], ids=["row", "no row"])
def test_t1_writer_commits_while_the_reader_stands_at_each_step(
    alias: str, book: Book, cache_kind: str, other: Any, holds: Holds, point: str, is_empty: bool
) -> None:
    """An old result, also an empty one, is stored with an old stamp, and not served."""
    if is_empty:
        Book.objects.using(alias).all().delete()

    def commit() -> None:
        other.run(write, alias, "new")
        other.run(lambda: Book.objects.using(alias).create(title="more", author_id=book.author_id))

    holds.at(threading.get_ident(), point, commit)
    titles(alias)
    assert other.run(titles, alias) == other.run(true_titles, alias)
    assert_true(alias)


@LEDGERS
def test_t5_lost_clock_does_not_go_back(alias: str, book: Book, cache_kind: str, other: Any) -> None:
    """The clock is lost around a reader's transaction; what was read there is not brought back by its end."""
    get_assembly().ledger.reset()
    with transaction.atomic(using=alias):
        titles(alias)
        other.run(write, alias, "new")
        titles(alias)
    assert other.run(titles, alias) == ["new"]
    assert_true(alias)


@LEDGERS
@pytest.mark.parametrize("shift_s", [-3600, 3600])
def test_t6_wall_clock_takes_no_part(
    alias: str, book: Book, cache_kind: str, other: Any, monkeypatch: pytest.MonkeyPatch, shift_s: int
) -> None:
    """The writer's clock is an hour off, and both writes fall into one tick of it."""
    now = time.time_ns()
    assert_true(alias)
    monkeypatch.setattr(time, "time_ns", lambda: now + shift_s * 10**9)
    monkeypatch.setattr(time, "time", lambda: now / 1e9 + shift_s)
    for title in ("one", "two"):
        write(alias, title)
        assert titles(alias) == other.run(titles, alias) == [title]


@LEDGERS
def test_t7_ticks_of_two_writers_may_come_in_any_order(
    alias: str, book: Book, cache_kind: str, other: Any, holds: Holds
) -> None:
    """W1 commits and stands before its tick; W2 commits and ticks; readers fill; then W1 ticks."""
    assert_true(alias)
    seen = []

    def overtake() -> None:
        other.run(write, alias, "second")
        seen.append(other.run(titles, alias))

    holds.at(threading.get_ident(), "before tick", overtake)
    write(alias, "first")
    assert seen == [["second"]]
    assert titles(alias) == other.run(titles, alias) == ["second"]


@pytest.mark.parametrize("cache_kind", ["memory+redis", "memory+disk"], indirect=True)
def test_t8_promotion_in_flight_is_not_served_after_a_write(
    alias: str, book: Book, cache_kind: str, other: Any, monkeypatch: pytest.MonkeyPatch, gate: Gate
) -> None:
    """A reader has the far tier's answer and has not put it into memory yet; a write comes between."""
    wait_for_hits(lambda: titles(alias))
    tiers = get_assembly().tiers
    tiers[0].clear()
    store = get_assembly().store
    put_near = type(store).put_near
    is_first = [True]

    def hold(self: Any, *args: Any, **kwargs: Any) -> Any:
        if is_first:
            is_first.clear()
            gate.arrive_and_wait()
        return put_near(self, *args, **kwargs)

    monkeypatch.setattr(type(store), "put_near", hold)
    reading = other.start(titles, alias)
    gate.wait_arrived()
    write(alias, "new")
    gate.open()
    assert reading.result(10) == ["old"]
    assert other.run(titles, alias) == titles(alias) == ["new"]


@LEDGERS
def test_t9_entry_and_stamp_are_one_value(
    alias: str, book: Book, cache_kind: str, other: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that comes as soon as the value is in the first tier finds nothing half stored."""
    farthest = get_assembly().tiers[-1]
    is_first = [True]

    def and_write(put: Callable[..., Any]) -> Callable[..., Any]:
        def put_and_write(*args: Any, **kwargs: Any) -> Any:
            result = put(*args, **kwargs)
            if is_first:
                is_first.clear()
                other.run(write, alias, "new")
            return result

        return put_and_write

    for name in ("put_many", "put_and_release"):
        monkeypatch.setattr(farthest, name, and_write(getattr(farthest, name)))
    titles(alias)
    assert not is_first
    assert_true(alias)


# -- images -----------------------------------------------------------------------------------------------------------


def test_t11_two_writers_of_one_row(alias: str, cache: str, other: Any) -> None:
    """W1 has loaded the row; W2 moves it and commits; R caches; W1 saves. The result that lost the row is dropped."""
    author = Author.objects.using(alias).create(name="Ann")
    for name in "abc":
        Category.objects.using(alias).create(name=name, slug=name)
    a, b, c = Category.objects.using(alias).order_by("name")
    Book.objects.using(alias).create(title="x", author=author, category=a)
    loaded = Book.objects.using(alias).get()

    def counts() -> list[int]:
        return [live(Book.objects.using(alias).filter(category=each)).count() for each in (a, b, c)]

    assert counts() == [1, 0, 0]
    other.run(lambda: Book.objects.using(alias).update(category=b))
    assert counts() == [0, 1, 0]
    loaded.category = c
    loaded.save()
    assert counts() == other.run(counts) == [0, 0, 1]


def test_t12_before_image_is_not_taken_from_the_cache(alias: str, book: Book, cache: str, other: Any) -> None:
    """An instance that came from the cache is saved after others have changed the row."""
    cached = live(books(alias)).get(pk=book.pk)
    cached = live(books(alias)).get(pk=book.pk)
    other.run(lambda: Book.objects.using(alias).update(pages=5))
    by_pages = [list(live(books(alias).filter(pages=pages))) for pages in (0, 5)]
    assert [len(found) for found in by_pages] == [0, 1]
    cached.title = "saved"
    cached.save()
    assert [live(books(alias).filter(pages=pages)).count() for pages in (0, 5)] == [1, 0]
    assert_true(alias)


@pytest.mark.parametrize("how", ["deferred delete", "save by key", "upsert", "database cascade"])
def test_t13_write_without_a_before_image(alias: str, book: Book, cache: str, how: str) -> None:
    """The row's old values are unknown to Python."""
    Shelf.objects.using(alias).create(label="A", book=book)

    def look() -> list[Any]:
        return [
            list(live(books(alias).filter(pages=0)).values_list("title", flat=True)),
            live(Author.objects.using(alias)).count(),
            live(Shelf.objects.using(alias)).count(),
            [author.n for author in live(Author.objects.using(alias).annotate(n=Count("books")).order_by("pk"))],
        ]

    before = look()
    if how == "deferred delete":
        Book.objects.using(alias).only("pk").get(pk=book.pk).delete()
    elif how == "save by key":
        Book(pk=book.pk, title="by key", pages=9, author_id=book.author_id).save(using=alias)
    elif how == "upsert":
        options: dict[str, Any] = {"update_conflicts": True, "update_fields": ["title", "pages"]}
        if connections[alias].features.supports_update_conflicts_with_target:
            options["unique_fields"] = ["id"]
        row = Book(pk=book.pk, title="upsert", pages=9, author_id=book.author_id)
        Book.objects.using(alias).bulk_create([row], **options)
    else:
        Author.objects.using(alias).all().delete()
    with disabled():
        after = look()
    assert look() == after != before


@pytest.mark.parametrize("one", [Decimal(1), Decimal("1.00"), "1"])
def test_t15_equal_in_sql_and_different_in_python(alias: str, book: Book, cache: str, one: Any) -> None:
    """A write of 1.00 drops the results that were asked for 1, and of A those for a where the database ignores case."""

    def look() -> list[Any]:
        return [
            live(books(alias).filter(price=one)).count(),
            live(books(alias).filter(title__iexact="OLD")).count(),
            live(books(alias).filter(title="OLD")).count(),
        ]

    for changes in ({"price": Decimal("1.00")}, {"price": 1}, {"title": "OLD"}, {"title": "Old"}, {"price": 2}):
        look()
        Book.objects.using(alias).update(**changes)
        with disabled():
            expected = look()
        assert look() == expected


def check_each(steps: Iterable[Callable[[], object]], look: Callable[[], Any]) -> None:
    """After each of *steps*, live reads see what the database says."""
    for step in steps:
        look()
        step()
        with disabled():
            expected = look()
        assert look() == expected


def test_t16_null_extended_joins(alias: str, book: Book, cache: str) -> None:
    """Results that show what is missing are dropped when it comes, and when it goes."""

    def look() -> list[Any]:
        authors = Author.objects.using(alias)
        return [
            live(authors.filter(books__isnull=True)).count(),
            live(authors.filter(country__name__isnull=True)).count(),
            live(authors.exclude(books__tags__name="red")).count(),
            live(books(alias).exclude(Q(shelves__label="A") | Q(tags__name="red"))).count(),
        ]

    steps: list[Callable[[], object]] = [
        lambda: Author.objects.using(alias).create(name="No books"),
        lambda: Author.objects.using(alias).update(
            country=Country.objects.using(alias).create(code="GB", name="Britain")
        ),
        lambda: book.tags.add(Tag.objects.using(alias).create(name="red")),
        lambda: book.tags.clear(),
        lambda: Shelf.objects.using(alias).create(label="A", book=book),
        lambda: Shelf.objects.using(alias).all().delete(),
    ]
    check_each(steps, look)


def test_t17_tables_that_only_a_part_of_the_query_names(alias: str, book: Book, cache: str) -> None:
    """Tables of ORDER BY, of select_related(), of nested subqueries and of combined queries are dependencies."""
    author = book.author

    def look() -> list[Any]:
        newest = Shelf.objects.filter(book=OuterRef("pk")).order_by("-pk").values("label")[:1]
        nested = Author.objects.using(alias).filter(country__in=Country.objects.using(alias).filter(name="Britain"))
        combined = books(alias).order_by().values_list("pk")
        return [
            [each.pk for each in live(books(alias).order_by("author__country__name", "pk"))],
            [each.author.name for each in live(books(alias).select_related("author"))],
            [each.pk for each in live(books(alias).order_by(Subquery(newest), "pk"))],
            live(books(alias).filter(author__in=nested)).count(),
            sorted(live(combined.union(combined.filter(author__in=nested).union(combined.filter(tags__name="x"))))),
            list(live(combined.filter(pk__lt=0).union(Tag.objects.using(alias).values_list("pk")))),
        ]

    Book.objects.using(alias).create(title="b", author=Author.objects.using(alias).create(name="Bob"))
    steps: list[Callable[[], object]] = [
        lambda: (
            Author.objects.using(alias)
            .filter(pk=author.pk)
            .update(country=Country.objects.using(alias).create(code="GB", name="Britain"))
        ),
        lambda: Author.objects.using(alias).filter(name="Bob").update(name="Zoe"),
        lambda: Shelf.objects.using(alias).create(label="A", book=book),
        lambda: Country.objects.using(alias).update(name="Bretagne"),
        lambda: Tag.objects.using(alias).create(name="x"),
    ]
    check_each(steps, look)


# -- the life of a connection -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["durable", "database is away"])
def test_t19_failing_enter_leaves_no_level_behind(
    alias: str, book: Book, cache: str, other: Any, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """After many atomic() that could not begin, writes are seen at once, and reads are hits."""
    assert_true(alias)
    for _ in range(50):
        if how == "durable":
            with transaction.atomic(using=alias), pytest.raises(RuntimeError, match="durable"):
                transaction.atomic(using=alias, durable=True).__enter__()
        else:
            connections[alias].close()
            with monkeypatch.context() as patch:
                patch.setattr(connections[alias], "get_new_connection", _refuse)
                with pytest.raises(OperationalError):
                    transaction.atomic(using=alias).__enter__()
    write(alias, "new")
    assert other.run(titles, alias) == ["new"]
    with recording() as reads:
        assert titles(alias) == ["new"]
    assert reads[0].is_hit
    assert not state_of(connections[alias]).has_writes


def _refuse(*args: Any) -> None:
    raise OperationalError("The database is away.")


@LEDGERS
@pytest.mark.parametrize("error", [OperationalError, RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("takes_effect", [True, False], ids=["committed", "not committed"])
def test_t20_failing_commit(
    alias: str, book: Book, cache_kind: str, other: Any, settings: Any, error: Any, takes_effect: bool
) -> None:
    """COMMIT raises, after or before it took effect: what the database says is read, and no uncommitted row is."""
    assert_true(alias)
    hooked: Any = connections[alias]
    commit = hooked._commit.original

    def fail() -> None:
        if takes_effect:
            commit()
        raise error("COMMIT failed.")

    def write_and_commit() -> None:
        with transaction.atomic(using=alias):
            write(alias, "new")
            titles(alias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hooked._commit, "original", fail)
        # Of an error that is none of the database's, Django turns autocommit on, which PostgreSQL's driver refuses.
        with pytest.raises((error, Error)):
            write_and_commit()
    if error is not OperationalError:
        hooked.close()
    expected = other.run(true_titles, alias)
    assert expected == ["new"] or not takes_effect
    assert other.run(titles, alias) == titles(alias) == true_titles(alias) == expected
    write(alias, "newer")
    assert other.run(titles, alias) == titles(alias) == ["newer"]


def test_t21_manual_transaction_is_not_published(alias: str, book: Book, cache: str, other: Any) -> None:
    """Rows read under set_autocommit(False) do not survive its rollback."""
    transaction.set_autocommit(False, using=alias)
    try:
        write(alias, "by hand")
        assert titles(alias) == ["by hand"]
        assert other.run(titles, alias) == ["old"]
        transaction.rollback(using=alias)
        assert titles(alias) == ["old"]
    finally:
        transaction.rollback(using=alias)
        transaction.set_autocommit(True, using=alias)
    assert other.run(titles, alias) == titles(alias) == ["old"]


@LEDGERS
@pytest.mark.parametrize("how", ["down", "answers", "ticks", "declares"])
def test_t24_ledger_lost_around_a_commit(alias: str, book: Book, cache_kind: str, other: Any, how: str) -> None:
    """Nothing leaves the committed atomic(), later callbacks run, and the tick arrives before the ledger's next use."""
    assert_true(alias)
    called: list[int] = []
    fickle = FickleLedger()
    try:
        with transaction.atomic(using=alias):
            write(alias, "new")
            for index in range(2):
                transaction.on_commit(partial(called.append, index), using=alias)
            fickle.breaks(how)
        assert called == [0, 1]
        assert other.run(titles, alias) == titles(alias) == ["new"]
    finally:
        fickle.restore()
    assert other.run(titles, alias) == titles(alias) == ["new"]
    assert get_assembly().ledger.undelivered_count == 0


@pytest.mark.parametrize("cache_kind", ["host", "redis", "memory+redis"], indirect=True)
def test_t25_entries_or_clocks_evicted(alias: str, book: Book, cache_kind: str, other: Any) -> None:
    """What was evicted is a miss: the entries alone, the clocks alone, or both."""
    ledger, store = get_assembly().ledger, get_assembly().store
    evictions: list[list[Callable[[], object]]] = [[store.clear], [ledger.reset], [store.clear, ledger.reset]]
    for index, evict in enumerate(evictions):
        titles(alias)
        other.run(write, alias, f"title {index}")
        for drop in evict:
            drop()
        assert titles(alias) == other.run(titles, alias) == [f"title {index}"]


def test_t26_disabled_ends_with_an_exception(alias: str, book: Book, cache: str) -> None:
    """After an error inside disabled() the cache is in use again, and writes inside were seen."""
    assert_true(alias)

    def write_and_fail() -> None:
        with disabled():
            write(alias, "new")
            raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        write_and_fail()
    assert titles(alias) == ["new"]
    with recording() as reads:
        titles(alias)
    assert reads[0].is_hit


@LEDGERS
def test_t27_nothing_but_entries_is_read_as_one(alias: str, book: Book, cache_kind: str) -> None:
    """A foreign value under an entry's key is a miss, and is replaced."""
    wait_for_hits(lambda: titles(alias))
    for store in get_assembly().tiers:
        for name in list(store.keys("live")):
            store.put(name, b"LOCK")
    assert titles(alias) == ["old"]
    with recording() as reads:
        assert titles(alias) == ["old"]
    assert reads[0].is_hit


def test_t24_store_that_takes_nothing_new(alias: str, book: Book, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tier that can be read and not written keeps its old entry; the ledger decides that it is not served."""
    assert_true(alias)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise StoreUnavailableError("read only")

    for name in ("put", "put_many", "delete", "delete_many"):
        monkeypatch.setattr(MemoryStore, name, refuse)
    write(alias, "new")
    assert titles(alias) == titles(alias) == ["new"]


# -- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.django_db(transaction=True, databases=["default", "postgresql"])
def test_t31_databases_are_apart(cache: str) -> None:
    """The same query on two databases is two entries, and a write to one leaves the other's."""
    if "postgresql" not in connections:
        pytest.skip("POSTGRESQL IS MISSING")
    for name in ("default", "postgresql"):
        Book.objects.using(name).create(title=name, author=Author.objects.using(name).create(name="Ann"))
    assert [titles("default"), titles("postgresql")] == [["default"], ["postgresql"]]
    write("default", "new")
    with recording() as reads:
        assert titles("postgresql") == ["postgresql"]
    assert reads[0].is_hit
    assert titles("default") == ["new"]


def test_t32_tenants_are_apart(alias: str, book: Book, cache: str, settings: Any) -> None:
    """The tenant is part of each key, under a caller's key too."""
    tenants = ["one"]
    settings.LIVE_CACHE_TENANT = lambda using: tenants[0]
    keys = set()
    for tenants[0] in ("one", "two"):
        keys |= {live(books(alias), key).live_explain().cache_key for key in (None, "shared")}
        with recording() as reads:
            titles(alias)
        assert not reads[0].is_hit
    assert len(keys) == 4


def test_t35_reads_that_must_see_the_database(alias: str, book: Book, cache: str, monkeypatch: Any) -> None:
    """refresh_from_db(), select_for_update(), iterator() and get_or_create() ask the database."""
    manager = live(books(alias))
    list(manager)
    with transaction.atomic(using=alias), recording() as reads:
        assert [each.title for each in live(books(alias).select_for_update())] == ["old"]
        assert not any(read.is_hit for read in reads)
    with recording() as reads:
        book.refresh_from_db()
        list(live(books(alias)).iterator())
        live(books(alias)).get_or_create(pk=book.pk)
    assert not any(read.is_hit for read in reads)
