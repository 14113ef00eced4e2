"""Every kind of write is seen by the next live read; what is rolled back is not."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db import connections, models, transaction
from django.db.models import F

from live_cache import live, recording
from tests.cache_kinds import wait_for_hits
from tests.testapp.models import Author, Book, BookPlace, Category, Country, Ebook, Library, Profile, Tag

Snapshot = dict[str, Any]


def live_state(alias: str) -> Snapshot:
    """Read everything that the writes of these tests touch, live."""
    return _state(lambda queryset: live(queryset.using(alias)))


def database_state(alias: str) -> Snapshot:
    """Read the same from the database."""
    return _state(lambda queryset: queryset.using(alias))


def _state(read: Callable[[Any], Any]) -> Snapshot:
    return {
        "books": list(read(Book.objects.order_by("pk")).values_list()),
        "joined": list(read(Book.objects.order_by("author__name", "pk")).values_list("pk", "author__country__name")),
        "tags": list(read(Book.objects.filter(tags__name="red").order_by("pk")).values_list("pk", flat=True)),
        "count": read(Book.objects.all()).count(),
        "ebooks": [(e.pk, e.title, e.format) for e in read(Ebook.objects.order_by("pk"))],
        "authors": list(read(Author.objects.order_by("pk")).values_list()),
        "profiles": list(read(Profile.objects.order_by("pk")).values_list("bio", flat=True)),
        "places": list(read(BookPlace.objects.order_by("pk")).values_list("copies", flat=True)),
        "total": read(Book.objects.all()).aggregate(total=models.Sum("price"))["total"],
    }


@pytest.fixture
def shop(alias: str) -> str:
    """Two authors, three books, an e-book, tags, and a library."""
    country = Country.objects.using(alias).create(code="GB", name="Britain")
    ann = Author.objects.using(alias).create(name="Ann", country=country)
    bob = Author.objects.using(alias).create(name="Bob")
    Profile.objects.using(alias).create(author=ann, bio="Writes.")
    red = Tag.objects.using(alias).create(name="red")
    for index, author in enumerate((ann, bob, ann)):
        book = Book.objects.using(alias).create(title=f"Book {index}", author=author, price=Decimal(index + 1))
        book.tags.add(red)
    Ebook.objects.using(alias).create(title="E", author=bob, format="pdf")
    library = Library.objects.using(alias).create(name="Town")
    BookPlace.objects.using(alias).create(library=library, book=book, copies=2)
    Category.objects.using(alias).create(name="Novels", slug="novels")
    return alias


def save(alias: str) -> None:
    book = Book.objects.using(alias).order_by("pk")[0]
    book.title = "Saved"
    book.save()


def save_expression(alias: str) -> None:
    book = Book.objects.using(alias).order_by("pk")[0]
    book.pages = F("pages") + 7
    book.save()


def save_by_key(alias: str) -> None:
    first = Book.objects.using(alias).order_by("pk")[0]
    Book(pk=first.pk, title="By key", author_id=first.author_id).save(using=alias)


def bulk_update(alias: str) -> None:
    books = list(Book.objects.using(alias).all())
    for book in books:
        book.price += 1
    Book.objects.using(alias).bulk_update(books, ["price"])


def upsert(alias: str) -> None:
    first = Book.objects.using(alias).order_by("pk")[0]
    connection = connections[alias]
    options: dict[str, Any] = {"update_conflicts": True, "update_fields": ["title"]}
    if connection.features.supports_update_conflicts_with_target:
        options["unique_fields"] = ["id"]
    Book.objects.using(alias).bulk_create([Book(pk=first.pk, title="Upsert", author_id=first.author_id)], **options)


def delete_author(alias: str) -> None:
    BookPlace.objects.using(alias).all().delete()
    Author.objects.using(alias).get(name="Ann").delete()


def save_child(alias: str) -> None:
    ebook = Ebook.objects.using(alias).get()
    ebook.title, ebook.format = "Child", "epub"
    ebook.save()


def cursor_execute(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute("UPDATE testapp_book SET title = %s WHERE pages >= %s", ["Raw", 0])


def cursor_executemany(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.executemany("UPDATE testapp_book SET pages = %s WHERE title = %s", [(5, "Book 0"), (6, "Book 1")])


def raw_delete(alias: str) -> None:
    queryset: Any = Profile.objects.using(alias).all()
    queryset._raw_delete(alias)


def through_delete(alias: str) -> None:
    Book.tags.through.objects.using(alias).all().delete()


def first_book(alias: str) -> Any:
    return Book.objects.using(alias).order_by("pk")[0]


WRITES: dict[str, Callable[[str], object]] = {
    "save": save,
    "save of an expression": save_expression,
    "save by primary key": save_by_key,
    "save of some fields": lambda alias: Book(pk=first_book(alias).pk, pages=3).save(
        using=alias, update_fields=["pages"]
    ),
    "create": lambda alias: Book.objects.using(alias).create(title="N", author=Author.objects.using(alias).first()),
    "update": lambda alias: Book.objects.using(alias).filter(pages=0).update(price=F("price") * 2),
    "bulk_create": lambda alias: Book.objects.using(alias).bulk_create(
        [Book(title="Bulk", author_id=first_book(alias).author_id) for _ in range(3)]
    ),
    "upsert": upsert,
    "bulk_update": bulk_update,
    "delete": lambda alias: BookPlace.objects.using(alias).all()[0].delete(),
    "queryset delete": lambda alias: Book.objects.using(alias).filter(title="Book 0").delete(),
    "delete with cascades": delete_author,
    "raw delete": raw_delete,
    "foreign key": lambda alias: Book.objects.using(alias).update(author=Author.objects.using(alias).get(name="Bob")),
    "joined table": lambda alias: Country.objects.using(alias).update(name="UK"),
    "ordering table": lambda alias: Author.objects.using(alias).filter(name="Ann").update(name="Zoe"),
    "m2m add": lambda alias: (
        Book.objects.using(alias).get(title="E").tags.add(Tag.objects.using(alias).get(name="red"))
    ),
    "m2m remove": lambda alias: first_book(alias).tags.remove(Tag.objects.using(alias).get(name="red")),
    "m2m set": lambda alias: first_book(alias).tags.set([]),
    "m2m clear": lambda alias: first_book(alias).tags.clear(),
    "m2m through": through_delete,
    "through model": lambda alias: BookPlace.objects.using(alias).update(copies=9),
    "child of multi-table inheritance": save_child,
    "get_or_create": lambda alias: Author.objects.using(alias).get_or_create(name="New"),
    "update_or_create": lambda alias: Author.objects.using(alias).update_or_create(
        name="Bob", defaults={"name": "Rob"}
    ),
    "cursor.execute": cursor_execute,
    "cursor.executemany": cursor_executemany,
}


@pytest.mark.parametrize("name", WRITES)
def test_write_is_seen(shop: str, cache: str, name: str) -> None:
    """After the write has returned, every live read equals the database."""
    before = live_state(shop)
    assert before == database_state(shop)
    with recording() as reads:
        assert live_state(shop) == before
    assert all(read.is_hit for read in reads), [read.reason for read in reads]
    WRITES[name](shop)
    after = database_state(shop)
    assert after != before
    assert live_state(shop) == after


@pytest.mark.parametrize("name", WRITES)
def test_write_in_a_transaction_is_seen_inside_and_after(shop: str, cache: str, name: str) -> None:
    """Inside, the transaction sees its own write; after the COMMIT everybody does."""
    before = live_state(shop)
    with transaction.atomic(using=shop):
        WRITES[name](shop)
        assert live_state(shop) == database_state(shop)
    assert live_state(shop) == database_state(shop) != before


@pytest.mark.parametrize("name", WRITES)
def test_rolled_back_write_is_seen_by_nobody(shop: str, cache: str, name: str) -> None:
    """Inside, the transaction sees it; after the ROLLBACK the reads are the old ones, and still hits."""
    before = live_state(shop)
    with transaction.atomic(using=shop):
        WRITES[name](shop)
        assert live_state(shop) == database_state(shop)
        transaction.set_rollback(True, using=shop)
    with recording() as reads:
        assert live_state(shop) == database_state(shop) == before
    assert all(read.is_hit for read in reads), [read.reason for read in reads]


@pytest.mark.parametrize("name", ["save", "update", "cursor.execute"])
def test_write_on_each_cache(shop: str, cache_kind: str, name: str) -> None:
    """The same over each ledger and tier."""
    before = live_state(shop)
    wait_for_hits(lambda: live_state(shop))
    WRITES[name](shop)
    after = database_state(shop)
    assert live_state(shop) == after != before
    with recording() as reads:
        assert live_state(shop) == after
    assert all(read.is_hit for read in reads), [read.reason for read in reads]


def test_savepoint_rollback(shop: str, cache: str) -> None:
    """What was rolled back to a savepoint is not seen; what was written around it is."""
    live_state(shop)
    with transaction.atomic(using=shop):
        Author.objects.using(shop).filter(name="Bob").update(name="Kept")
        with transaction.atomic(using=shop):
            Book.objects.using(shop).update(title="Lost")
            assert live_state(shop) == database_state(shop)
            transaction.set_rollback(True, using=shop)
        assert live_state(shop) == database_state(shop)
    after = live_state(shop)
    assert after == database_state(shop)
    assert "Lost" not in {row[1] for row in after["books"]}
    assert "Kept" in {row[1] for row in after["authors"]}


def test_other_connections_do_not_see_uncommitted_rows(
    shop: str, cache: str, second_connection: Callable[[str], Any]
) -> None:
    """A reader beside an open transaction keeps reading the committed rows, from the cache."""
    other = second_connection(shop)
    before = live_state(shop)
    with transaction.atomic(using=shop):
        if connections[shop].vendor == "sqlite":
            Author.objects.using(shop).filter(pk=0).update(name="nobody")
        else:
            save(shop)
        with recording() as own:
            live_state(shop)
        assert other.run(live_state, shop) == before
        transaction.set_rollback(True, using=shop)
    written = "testapp.author/" if connections[shop].vendor == "sqlite" else "testapp.book/"
    assert not any(read.is_hit for read in own if read.cache_key.startswith(written))
    assert other.run(live_state, shop) == before


def test_raw_transaction_control(shop: str, cache: str) -> None:
    """BEGIN, COMMIT and ROLLBACK sent as SQL are understood."""
    connection = connections[shop]
    before = live_state(shop)
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE testapp_book SET title = 'Raw'")
        assert live_state(shop) == database_state(shop)
        cursor.execute("ROLLBACK")
        assert live_state(shop) == database_state(shop) == before
        cursor.execute("BEGIN")
        cursor.execute("UPDATE testapp_book SET title = 'Raw'")
        cursor.execute("COMMIT")
    assert live_state(shop) == database_state(shop) != before


def test_manual_transactions(shop: str, cache: str) -> None:
    """Under set_autocommit(False) nothing is cached, and the COMMIT is seen (T21)."""
    before = live_state(shop)
    transaction.set_autocommit(False, using=shop)
    try:
        Book.objects.using(shop).update(title="By hand")
        with recording() as reads:
            assert live_state(shop) == database_state(shop)
        assert not any(read.is_hit for read in reads)
        transaction.rollback(using=shop)
        assert live_state(shop) == before
        Book.objects.using(shop).update(title="By hand")
        transaction.commit(using=shop)
    finally:
        transaction.rollback(using=shop)
        transaction.set_autocommit(True, using=shop)
    assert live_state(shop) == database_state(shop) != before


def test_a_statement_that_is_not_understood_counts_as_a_write_of_everything(shop: str, cache: str) -> None:
    """Nothing is served from before such a statement."""
    live_state(shop)
    with connections[shop].cursor() as cursor:
        if cursor.db.vendor == "sqlite":
            cursor.executescript("SELECT 1")
        else:
            cursor.execute({"postgresql": "DO $$ BEGIN END $$", "mysql": "XA RECOVER"}[cursor.db.vendor])
    with recording() as reads:
        assert live_state(shop) == database_state(shop)
    assert not any(read.is_hit for read in reads)


def test_on_commit_callback_reads_the_new_rows(shop: str, cache: str) -> None:
    """The tick comes before every on_commit callback, also those registered before the write (T23)."""
    live_state(shop)
    seen: list[Any] = []
    with transaction.atomic(using=shop):
        transaction.on_commit(lambda: seen.append(live_state(shop)), using=shop)
        save(shop)
    assert seen == [database_state(shop)]


def test_signals_cover_models_that_no_cursor_writes(shop: str, cache: str) -> None:
    """post_save of a model whose save() never passes a cursor of Django marks its table stale."""
    list(live(Author.objects.using(shop)))
    author = Author.objects.using(shop).first()
    for signal in (models.signals.pre_save, models.signals.post_save):
        signal.send(sender=Author, instance=author, using=shop, raw=False, update_fields=None, created=False)
    with recording() as reads:
        list(live(Author.objects.using(shop)))
    assert not reads[0].is_hit


def test_signals_that_are_received_on_request(shop: str, cache: str) -> None:
    """post_delete and m2m_changed of a model that no cursor writes, after connect_unseen()."""
    from live_cache.writes.recent import recently_written
    from live_cache.writes.signals import connect_unseen

    connect_unseen(Book)
    through = Book.tags.through
    book = first_book(shop)
    try:
        for send in (
            lambda: models.signals.post_delete.send(sender=Book, instance=book, using=shop, origin=book),
            lambda: models.signals.m2m_changed.send(
                sender=through, instance=book, action="post_add", reverse=False, model=Tag, pk_set={1}, using=shop
            ),
        ):
            recently_written(shop).clear()
            list(live(Book.objects.using(shop).filter(tags__name="red")))
            send()
            with recording() as reads:
                list(live(Book.objects.using(shop).filter(tags__name="red")))
            assert not reads[0].is_hit
    finally:
        models.signals.post_delete.disconnect(sender=Book, dispatch_uid="live_cache.writes.signals")
        models.signals.m2m_changed.disconnect(sender=through, dispatch_uid="live_cache.writes.signals")


def test_adding_to_a_relation_asks_no_more_than_django_does(shop: str, cache: str) -> None:
    """No receiver of m2m_changed makes Django look up what is there before it adds."""
    assert not models.signals.m2m_changed.has_listeners(Book.tags.through)
    assert not models.signals.post_delete.has_listeners(Book)


def test_failing_statement_in_autocommit_changes_nothing(shop: str, cache: str) -> None:
    """A write that the database refuses leaves the connection usable and the reads right."""
    from django.db import Error

    before = live_state(shop)
    with pytest.raises(Error):
        Category.objects.using(shop).create(name="Again", slug="novels")
    with pytest.raises(Error), connections[shop].cursor() as cursor:
        cursor.execute("UPDATE no_such_table SET x = 1")
    assert not connections[shop].in_atomic_block
    assert live_state(shop) == database_state(shop) == before


def test_insert_returning_in_autocommit_is_committed_before_it_is_seen(
    shop: str, cache: str, second_connection: Callable[[str], Any]
) -> None:
    """SQLite ends an INSERT … RETURNING only when its rows are taken: the tick must not come before."""
    other = second_connection(shop)
    live_state(shop)
    connection = connections[shop]
    sql = "INSERT INTO testapp_author (name) VALUES ('Ret')"
    with connection.cursor() as cursor:
        cursor.execute(f"{sql} RETURNING id" if connection.vendor != "mysql" else sql)
        assert "Ret" in {row[1] for row in other.run(live_state, shop)["authors"]}
        if connection.vendor != "mysql":
            assert len(cursor.fetchone()) == 1
            assert cursor.fetchone() is None
