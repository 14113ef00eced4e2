"""Each write tells exactly the rows that it has changed: kind, key, columns, before- and after-image."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from datetime import time as clock_time
from decimal import Decimal
from itertools import product
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.db import DatabaseError, OperationalError, connections, models, transaction
from django.db.models import Case, F, Value, When
from django.db.models.functions import Lower, Now, Upper
from django.test import TestCase
from django.test.utils import CaptureQueriesContext

from live_cache.assembly import get_assembly
from live_cache.changes import MAX_ROWS, RowChange, decode_record
from live_cache.ledger.clocks import ROWS_SLOT, TABLE_SLOT, Dependency, Reading
from live_cache.names import clock_of, database_name
from live_cache.sql import normalize_table
from live_cache.writes.answers import answer_of, loads_of
from live_cache.writes.hooks import Hook
from live_cache.writes.images import Columns, columns_of
from live_cache.writes.plain_tables import forget_plain_tables, is_plain
from live_cache.writes.transactions import state_of
from tests.cache_kinds import caches_of
from tests.made_models import made_models
from tests.testapp.models import (
    AllFields,
    Author,
    Book,
    BookPlace,
    Category,
    CheapBook,
    Country,
    Ebook,
    Library,
    Profile,
    Seat,
    Tag,
)

if TYPE_CHECKING:
    _Char = models.CharField[Any, Any]
else:
    _Char = models.CharField

UNTOLD = (models.BinaryField, models.JSONField, models.FileField, models.FilePathField, models.GenericIPAddressField)
"""Fields whose values stand in no image."""


@pytest.fixture(params=["process", "redis"])
def ledger_kind(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> str:
    """Run the test with the ledger of the process, and with the one in Redis."""
    kind: str = request.param
    url = request.getfixturevalue("redis_url") if kind == "redis" else None
    settings.CACHES = caches_of(kind, tmp_path, url)
    forget_plain_tables()
    return kind


@dataclass
class Told:
    """What one call has told of a table."""

    rows: list[Any] = field(default_factory=list)
    """RowChanges; Any, since sets are compared with frozensets."""
    notes: list[str] = field(default_factory=list)
    """Of ticks of the whole table."""

    @property
    def kinds(self) -> list[str]:
        return [change.kind for change in self.rows]


class Watch:
    """Watches tables of a database, as cached queries do, and reads what is told of them."""

    def __init__(self, alias: str, *watched: Any) -> None:
        self.alias = alias
        self.ledger = get_assembly("default").ledger
        self._seen = {model: self._read(model) for model in watched}
        self._wait()

    def _clock(self, model: Any) -> str:
        return clock_of(database_name(connections[self.alias]), normalize_table(model._meta.db_table))

    def _read(self, model: Any) -> Reading:
        return self.ledger.read([Dependency(self._clock(model), (TABLE_SLOT, ROWS_SLOT))])[0]

    def _wait(self) -> None:
        """Wait until the hint is so old that it is asked for again."""
        end = time.monotonic() + 10
        while not all(self.ledger.is_watched([self._clock(model)]) for model in self._seen):
            assert time.monotonic() < end
            time.sleep(0.05)

    def told(self, model: Any) -> Told:
        """Return what was told since the last call."""
        before, now = self._seen[model], self._read(model)
        self._seen[model] = now
        records = self.ledger.log(self._clock(model), now.epoch, before.seq, now.seq)
        assert records is not None
        told = Told()
        for data in records:
            record = decode_record(data) if data else None
            if record is None or record.rows is None:
                told.notes.append(record.note if record else "")
                assert now.slots[0] > before.seq
            else:
                told.rows += record.rows
        if not told.notes:
            assert now.slots[0] <= before.seq, "slot 0 was ticked without a record"
        assert (now.slots[1] > before.seq) == bool(told.rows)
        return told


def image(model: Any, alias: str, **key: Any) -> dict[str, Any]:
    """Return what the ORM reads of one row and an image holds."""
    fields = [
        one for one in model._meta.local_concrete_fields if not isinstance(getattr(one, "target_field", one), UNTOLD)
    ]
    values = model._base_manager.using(alias).filter(**key).values_list(*[one.attname for one in fields]).get()
    named = {one.column: value for one, value in zip(fields, values, strict=True)}
    return {name: value for name, value in named.items() if not (isinstance(value, str) and len(value) > 200)}


def same(left: Any, right: Any) -> bool:
    """Return whether two images are equal in values and types."""
    return left == right and {n: type(v) for n, v in left.items()} == {n: type(v) for n, v in right.items()}


@pytest.fixture
def shop(alias: str, ledger_kind: str) -> str:
    """Two authors, three books, an e-book, tags, and a library."""
    country = Country.objects.using(alias).create(code="GB", name="Britain")
    ann = Author.objects.using(alias).create(name="Ann", country=country)
    bob = Author.objects.using(alias).create(name="Bob")
    red = Tag.objects.using(alias).create(name="red")
    for index, author in enumerate((ann, bob, ann)):
        book = Book.objects.using(alias).create(
            title=f"Book {index}", author=author, price=Decimal(index + 1), rating=index / 3, data={"a": index}
        )
        book.tags.add(red)
    Ebook.objects.using(alias).create(title="E", author=bob, format="pdf")
    library = Library.objects.using(alias).create(name="Town")
    BookPlace.objects.using(alias).create(library=library, book=book, copies=2)
    return alias


def book(alias: str, title: str = "Book 0") -> Any:
    return Book.objects.using(alias).get(title=title)


def _save(alias: str) -> None:
    one = book(alias)
    one.title, one.price = "Saved", Decimal("7.5")
    one.save()


def _save_expression(alias: str) -> None:
    one = book(alias)
    one.pages = F("pages") + 7
    one.save()


def _save_deferred(alias: str) -> None:
    one = Book.objects.using(alias).only("title").get(title="Book 0")
    one.title = "Deferred"
    one.save()


def _save_proxy(alias: str) -> None:
    one = CheapBook.objects.using(alias).get(title="Book 0")
    one.pages = 3
    one.save()


def _raw(alias: str, sql: str, parameters: Any = None) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, parameters)


UPDATES: dict[str, tuple[Callable[[str], object], set[str]]] = {
    "save": (_save, {"title", "price"}),
    "save of an expression": (_save_expression, {"pages"}),
    "save of a deferred instance": (_save_deferred, {"title"}),
    "save of a proxy": (_save_proxy, {"pages"}),
    "save of some fields": (
        lambda alias: Book(pk=book(alias).pk, pages=3, title="no").save(using=alias, update_fields=["pages"]),
        {"pages"},
    ),
    "update": (lambda alias: Book.objects.using(alias).filter(title="Book 0").update(price=F("price") * 3), {"price"}),
    "update of a text by its upper case": (
        lambda alias: Book.objects.using(alias).filter(pk=book(alias).pk).update(title=Upper("title")),
        {"title"},
    ),
    "update to null": (
        lambda alias: Book.objects.using(alias).filter(title="Book 0").update(rating=None, data=None),
        {"rating", "data"},
    ),
    "update of JSON": (
        lambda alias: Book.objects.using(alias).filter(title="Book 0").update(data={"a": [1]}),
        {"data"},
    ),
    "update by a function": (
        lambda alias: (
            Book.objects.using(alias).annotate(low=Lower("title")).filter(low="book 0").update(in_print=False)
        ),
        {"in_print"},
    ),
    "update of a case": (
        lambda alias: Book.objects.using(alias).update(
            pages=Case(When(title="Book 0", then=Value(5)), default=F("pages"))
        ),
        {"pages"},
    ),
    "update to the time of the database": (
        lambda alias: Book.objects.using(alias).filter(title="Book 0").update(created=Now()),
        {"created"},
    ),
    "foreign key": (
        lambda alias: (
            Book.objects.using(alias).filter(title="Book 0").update(author=Author.objects.using(alias).last())
        ),
        {"author_id"},
    ),
    "raw SQL": (
        lambda alias: _raw(alias, "UPDATE testapp_book SET title = %s, pages = 1 WHERE title = %s", ["R", "Book 0"]),
        {"title", "pages"},
    ),
    "raw SQL without parameters": (
        lambda alias: _raw(alias, "UPDATE testapp_book SET title = 'R' WHERE title = 'Book 0'"),
        {"title"},
    ),
    "raw SQL with a percent sign": (
        lambda alias: _raw(alias, "UPDATE testapp_book SET title = '5%%' WHERE title LIKE 'B%%0' AND pages = %s", [0]),
        {"title"},
    ),
}


@pytest.mark.parametrize("name", UPDATES)
def test_update_tells_the_row_as_it_was_and_is(shop: str, name: str) -> None:
    """One row, its key, the columns that differ, and both images as the ORM reads them."""
    write, columns = UPDATES[name]
    key = book(shop).pk
    before = image(Book, shop, pk=key)
    watch = Watch(shop, Book)
    write(shop)
    told = watch.told(Book)
    after = image(Book, shop, pk=key)
    assert told.notes == []
    (change,) = told.rows
    assert (change.kind, change.key, change.columns) == ("update", (key,), columns)
    assert same(change.before, before)
    assert same(change.after, after)
    assert "data" not in after


@pytest.mark.parametrize("name", UPDATES)
def test_update_inside_a_block_is_told_at_its_commit(shop: str, name: str) -> None:
    """The rows are told once, by the COMMIT; and a ROLLBACK tells nothing."""
    watch = Watch(shop, Book)
    with transaction.atomic(using=shop):
        UPDATES[name][0](shop)
        assert watch.told(Book) == Told()
        assert state_of(connections[shop]).has_written({"testapp_book"})
        transaction.set_rollback(True, using=shop)
    assert watch.told(Book) == Told()
    with transaction.atomic(using=shop):
        UPDATES[name][0](shop)
    assert watch.told(Book).kinds == ["update"]


def _create(alias: str) -> Any:
    return Book.objects.using(alias).create(
        title="New", author=Author.objects.using(alias).first(), price=Decimal("1.239"), rating=0.1
    )


CREATES: dict[str, Callable[[str], object]] = {
    "create": _create,
    "save": lambda alias: Book(title="New", author=Author.objects.using(alias).first()).save(using=alias),
    "save with a key": lambda alias: Book(pk=4711, title="New", author=Author.objects.using(alias).first()).save(
        using=alias
    ),
    "bulk_create": lambda alias: Book.objects.using(alias).bulk_create(
        [Book(title="New", author=Author.objects.using(alias).first())]
    ),
    "get_or_create": lambda alias: Book.objects.using(alias).get_or_create(
        title="New", author=Author.objects.using(alias).first()
    ),
    "expression": lambda alias: Book.objects.using(alias).create(
        title=Lower(Value("NEW")), author=Author.objects.using(alias).first()
    ),
}


@pytest.mark.parametrize("name", CREATES)
def test_insert_tells_the_row(shop: str, name: str) -> None:
    """One row, with its key and its image."""
    before = set(Book.objects.using(shop).values_list("pk", flat=True))
    watch = Watch(shop, Book)
    CREATES[name](shop)
    told = watch.told(Book)
    new = Book.objects.using(shop).exclude(pk__in=before).get()
    assert told.notes == []
    (change,) = told.rows
    assert (change.kind, change.key, change.columns, change.before) == ("insert", (new.pk,), None, None)
    assert same(change.after, image(Book, shop, pk=new.pk))


def test_insert_gives_the_caller_what_it_asked_for(shop: str) -> None:
    """The instances get their keys and nothing else, in order, with one statement as ever."""
    watch = Watch(shop, Author, Seat, Country)
    with CaptureQueriesContext(connections[shop]) as queries:
        made = Author.objects.using(shop).bulk_create([Author(name=f"N{index}") for index in range(3)])
    assert len([query for query in queries if "INSERT" in query["sql"]]) == 1
    assert [author.name for author in made] == ["N0", "N1", "N2"]
    assert {author.pk: author.name for author in made} == dict(
        Author.objects.using(shop).filter(name__startswith="N").values_list("pk", "name")
    )
    assert sorted(watch.told(Author).rows, key=str) == sorted(
        [RowChange("insert", (one.pk,), None, None, image(Author, shop, pk=one.pk)) for one in made], key=str
    )
    manager: Any = Country._base_manager.using(shop)
    given = manager._insert([Country(code="IT", name="Italy")], fields=Country._meta.fields, using=shop)
    assert given == []
    (code, name, _) = Country._meta.concrete_fields
    given = manager._insert(
        [Country(code="ES", name="Spain")], fields=Country._meta.fields, returning_fields=[name, code], using=shop
    )
    expected = [["Spain", "ES"]] if connections[shop].features.can_return_rows_from_bulk_insert else []
    assert list(map(list, given)) == expected
    assert [change.key for change in watch.told(Country).rows] == [("IT",), ("ES",)]
    Seat.objects.using(shop).bulk_create([Seat(hall="A", number=1), Seat(hall="A", number=2)])
    assert [change.key for change in watch.told(Seat).rows] == [("A", 1), ("A", 2)]
    Country.objects.using(shop).create(code="FR", name="France")
    assert [change.key for change in watch.told(Country).rows] == [("FR",)]


def test_every_field_has_the_value_that_the_orm_reads(alias: str, ledger_kind: str) -> None:
    """Inserted, changed and deleted: the images of a row with every kind of field are equal to what the ORM reads."""
    watch = Watch(alias, AllFields)
    one = AllFields.objects.using(alias).create(
        char="é" * 200,
        text="long" * 51,
        decimal=Decimal("1.5"),
        datetime=datetime(2024, 3, 31, 0, 30, 0, 123456, tzinfo=UTC),
        duration=timedelta(days=-1, microseconds=5),
        small_integer=21,
        float=0.1,
        json={"a": 1},
    )
    inserted = image(AllFields, alias, pk=one.pk)
    (change,) = watch.told(AllFields).rows
    assert same(change.after, inserted)
    assert "text" not in inserted
    assert inserted["generated"] == 42
    AllFields.objects.using(alias).filter(pk=one.pk).update(
        boolean=True,
        null_boolean=False,
        date=date(1999, 12, 31),
        null_decimal=Decimal("0.000001"),
        null_duration=timedelta(1),
        null_date=date(2000, 2, 29),
        null_datetime=datetime(2030, 1, 1, tzinfo=UTC),
        null_time="23:59:59.999999",
        null_float=1e300,
        null_uuid="12345678123456781234567812345678",
        small_integer=3,
        binary=b"\xff",
        ip_address="::1",
    )
    updated = image(AllFields, alias, pk=one.pk)
    (change,) = watch.told(AllFields).rows
    assert same(change.before, inserted)
    assert same(change.after, updated)
    assert change.columns == {name for name in updated if updated[name] != inserted[name]} | {"binary", "ip_address"}
    assert "generated" in change.columns
    AllFields.objects.using(alias).all().delete()
    (change,) = watch.told(AllFields).rows
    assert same(change.before, updated)


def test_delete_tells_the_rows_that_are_gone(shop: str) -> None:
    """delete() of an instance and of a queryset, raw, and by cascade: each table tells its rows."""
    watch = Watch(shop, Book, BookPlace, Author, Book.tags.through, Profile)
    place = BookPlace.objects.using(shop).get()
    before = image(BookPlace, shop, pk=place.pk)
    place.delete()
    told = watch.told(BookPlace)
    (change,) = told.rows
    assert (change.kind, change.after) == ("delete", None)
    assert same(change.before, before)
    through = Book.tags.through
    links = {
        row.pk: image(through, shop, pk=row.pk)
        for row in through._base_manager.using(shop).filter(book__author__name="Ann")
    }
    books = {row.pk: image(Book, shop, pk=row.pk) for row in Book.objects.using(shop).filter(author__name="Ann")}
    ann = Author.objects.using(shop).get(name="Ann")
    key = ann.pk
    ann.delete()
    assert {change.key: change.before for change in watch.told(Book).rows} == {(pk,): row for pk, row in books.items()}
    assert {change.key: change.before for change in watch.told(through).rows} == {
        (pk,): row for pk, row in links.items()
    }
    assert [change.key for change in watch.told(Author).rows] == [(key,)]
    assert watch.told(Profile) == Told()  # it had no rows of Ann: the DELETE found none
    _raw(shop, "DELETE FROM testapp_bookplace")
    assert watch.told(BookPlace) == Told()


def test_relations_between_tables(shop: str) -> None:
    """add(), remove(), set() and clear() of a many-to-many field tell the rows of the table between, and no others."""
    through = Book.tags.through
    watch = Watch(shop, Book, Tag, through)
    one = Book.objects.using(shop).get(title="E")
    red = Tag.objects.using(shop).get(name="red")
    one.tags.add(red)
    kinds = watch.told(through).kinds
    one.tags.remove(red)
    kinds += watch.told(through).kinds
    first = book(shop)
    first.tags.set([])
    kinds += watch.told(through).kinds
    red.books.clear()
    kinds += watch.told(through).kinds
    # add() of rows that may be there is an INSERT that ignores conflicts, which does not tell what it has done.
    assert kinds == ["delete", "delete", "delete", "delete"] or kinds == ["insert"] + ["delete"] * 4
    assert watch.told(Book) == Told()
    assert watch.told(Tag) == Told()


def test_inheritance_tells_both_tables(shop: str) -> None:
    """Each table of a child model tells its own row, and one that is not touched tells nothing."""
    watch = Watch(shop, Book, Ebook)
    one = Ebook.objects.using(shop).get()
    one.format = "mobi"
    one.save()
    (change,) = watch.told(Ebook).rows
    assert (change.key, change.columns) == ((one.pk,), {"format"})
    assert change.after == {"book_ptr_id": one.pk, "format": "mobi", "size_bytes": 0}
    assert watch.told(Book) == Told()
    one.title, one.size_bytes = "F", 5
    one.save()
    assert [change.columns for change in watch.told(Book).rows] == [{"title"}]
    assert [change.columns for change in watch.told(Ebook).rows] == [{"size_bytes"}]
    Ebook.objects.using(shop).update(title="G", format="x")
    assert [change.columns for change in watch.told(Book).rows] == [{"title"}]
    assert [change.columns for change in watch.told(Ebook).rows] == [{"format"}]
    new = Ebook.objects.using(shop).create(title="N", author=Author.objects.using(shop).last())
    assert [(change.kind, change.key) for change in watch.told(Book).rows] == [("insert", (new.pk,))]
    assert [(change.kind, change.key) for change in watch.told(Ebook).rows] == [("insert", (new.pk,))]
    new.delete()
    assert watch.told(Book).kinds == watch.told(Ebook).kinds == ["delete"]


def test_bulk_update_tells_each_row(shop: str) -> None:
    """Only the rows and columns that differ."""
    books = list(Book.objects.using(shop).order_by("pk"))
    watch = Watch(shop, Book)
    for index, one in enumerate(books):
        one.pages = index
        one.created += timedelta(index)
        one.in_print = True
    Book.objects.using(shop).bulk_update(books, ["pages", "created", "in_print"])
    told = watch.told(Book)
    assert told.notes == []
    assert {change.key: change.columns for change in told.rows} == {
        (one.pk,): {"pages", "created"} for one in books[1:]
    }
    for change in told.rows:
        assert change.key is not None
        assert same(change.after, image(Book, shop, pk=change.key[0]))


def test_composite_key(shop: str) -> None:
    """The key has its parts in order; each part may be of its own type."""
    Seat.objects.using(shop).create(hall="A", number=2)
    Seat.objects.using(shop).create(hall="B", number=1)
    watch = Watch(shop, Seat)
    Seat.objects.using(shop).filter(hall="A").update(taken=True)
    (change,) = watch.told(Seat).rows
    assert (change.key, change.columns) == (("A", 2), {"taken"})
    Seat.objects.using(shop).update(taken=F("taken"))
    assert watch.told(Seat) == Told()
    Seat.objects.using(shop).update(taken=Case(When(taken=True, then=Value(False)), default=Value(True)))
    assert sorted(change.key or () for change in watch.told(Seat).rows) == [("A", 2), ("B", 1)]
    seat = Seat.objects.using(shop).get(hall="B")
    seat.delete()
    assert [change.key for change in watch.told(Seat).rows] == [("B", 1)]


def test_a_write_that_changes_nothing_tells_nothing(shop: str) -> None:
    """No tick, and the transaction has written nothing."""
    watch = Watch(shop, Book)
    one = book(shop)
    seen = watch.ledger.clocks()
    one.save()
    Book.objects.using(shop).update(pages=F("pages") + 0)
    Book.objects.using(shop).filter(title="none").update(pages=5)
    Book.objects.using(shop).filter(title="none").delete()
    with transaction.atomic(using=shop):
        one.save()
        assert not state_of(connections[shop]).has_writes
    assert watch.told(Book) == Told()
    assert watch.ledger.clocks() == seen


def test_savepoints(shop: str) -> None:
    """What a savepoint has taken back is told too, beside what stayed: each change is right by itself."""
    watch = Watch(shop, Author)
    key = Author.objects.using(shop).get(name="Ann").pk
    with transaction.atomic(using=shop):
        Author.objects.using(shop).filter(pk=key).update(name="One")
        with transaction.atomic(using=shop):
            Author.objects.using(shop).filter(pk=key).update(name="Two")
            transaction.set_rollback(True, using=shop)
        Author.objects.using(shop).filter(pk=key).update(name="Three")
    told = watch.told(Author)
    steps = [((change.before or {})["name"], (change.after or {})["name"]) for change in told.rows]
    assert steps == [("Ann", "One"), ("One", "Two"), ("One", "Three")]


def _executemany(alias: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.executemany("UPDATE testapp_book SET pages = %s WHERE title = %s", [(5, "Book 0"), (6, "Book 1")])


def _upsert(alias: str) -> None:
    options: dict[str, Any] = {"update_conflicts": True, "update_fields": ["title"]}
    if connections[alias].features.supports_update_conflicts_with_target:
        options["unique_fields"] = ["id"]
    first = book(alias)
    Book.objects.using(alias).bulk_create([Book(pk=first.pk, title="Upsert", author_id=first.author_id)], **options)


def _in_raw_transaction(alias: str) -> None:
    connection = connections[alias]
    connection.ensure_connection()
    with connection.cursor() as cursor:
        cursor.execute("BEGIN")
        cursor.execute("UPDATE testapp_book SET pages = 9")
        cursor.execute("COMMIT")


def _under_manual_autocommit(alias: str) -> None:
    transaction.set_autocommit(False, using=alias)
    try:
        Book.objects.using(alias).update(pages=9)
        with transaction.atomic(using=alias):
            Book.objects.using(alias).update(pages=10)
        transaction.commit(using=alias)
    finally:
        transaction.set_autocommit(True, using=alias)


BY_TABLE: dict[str, Callable[[str], object]] = {
    "more rows than the bound": lambda alias: Book.objects.using(alias).bulk_create(
        [Book(title="B", author=Author.objects.using(alias).first()) for _ in range(MAX_ROWS + 1)]
    ),
    "primary key": lambda alias: _raw(
        alias, "UPDATE testapp_book SET id = 999 WHERE id = %s", [Ebook.objects.using(alias).get().pk + 1]
    ),
    "executemany": _executemany,
    "upsert": _upsert,
    "ignored conflicts": lambda alias: Book.objects.using(alias).bulk_create(
        [Book(pk=4712, title="I", author=Author.objects.using(alias).first())], ignore_conflicts=True
    ),
    "joined condition": lambda alias: Book.objects.using(alias).filter(tags__name="red").update(pages=3),
    "subquery": lambda alias: _raw(
        alias, "UPDATE testapp_book SET pages = 3 WHERE author_id IN (SELECT id FROM testapp_author)"
    ),
    "clock in the condition": lambda alias: _raw(
        alias, "UPDATE testapp_book SET pages = 3 WHERE created < CURRENT_TIMESTAMP"
    ),
    "unknown function": lambda alias: (
        Book.objects.using(alias).filter(pages__lt=models.functions.Random() * 0 + 5).update(pages=4)
    ),
    "raw INSERT": lambda alias: _raw(alias, "INSERT INTO testapp_book SELECT * FROM testapp_book WHERE id = -1"),
    "raw transaction": _in_raw_transaction,
    "manual autocommit": _under_manual_autocommit,
}


@pytest.mark.parametrize("name", BY_TABLE)
def test_what_cannot_be_told_by_row_is_told_by_table(shop: str, name: str) -> None:
    """Such a write ticks slot 0, as each one did before, with a note of the reason."""
    if name == "ignored conflicts" and shop == "postgresql":
        pytest.skip("PostgreSQL returns the rows that it has added.")
    watch = Watch(shop, Book)
    BY_TABLE[name](shop)
    told = watch.told(Book)
    assert told.rows == []
    assert told.notes
    assert name in ("raw transaction", "manual autocommit") or all(told.notes)


def test_a_table_once_written_as_a_whole_stays_so(shop: str) -> None:
    """One record of a transaction tells either rows or the table; more than the bound in sum are the table."""
    watch = Watch(shop, Book, Author)
    with transaction.atomic(using=shop):
        Book.objects.using(shop).filter(title="Book 0").update(pages=1)
        Book.objects.using(shop).filter(tags__name="red").update(pages=3)
        Book.objects.using(shop).filter(title="Book 0").update(pages=1)
        Author.objects.using(shop).filter(name="Ann").update(name="A")
    assert watch.told(Book).rows == []
    assert watch.told(Author).kinds == ["update"]
    with transaction.atomic(using=shop):
        for number in range(MAX_ROWS + 1):
            Author.objects.using(shop).filter(name="A").update(name=f"A{number}")
            Author.objects.using(shop).filter(name=f"A{number}").update(name="A")
    assert watch.told(Author) == Told(notes=[f"more than {MAX_ROWS} rows"])


def test_long_records_are_told_by_table(shop: str) -> None:
    """What no log takes is a change of the table."""
    many = [Book(title="x" * 20 + str(i), author=Author.objects.using(shop).first()) for i in range(MAX_ROWS)]
    made = Book.objects.using(shop).bulk_create(many)
    watch = Watch(shop, Book)
    with transaction.atomic(using=shop):
        Book.objects.using(shop).filter(pk__in=[one.pk for one in made]).update(title="y" * 24)
    told = watch.told(Book)
    assert told.rows == []
    assert len(told.notes) == 1


TRIGGERS = {
    "sqlite": [
        "CREATE TRIGGER live_cache_trigger AFTER UPDATE ON testapp_author BEGIN"
        " UPDATE testapp_author SET name = 'hidden' WHERE id <> NEW.id; END",
    ],
    "mysql": ["CREATE TRIGGER live_cache_trigger BEFORE UPDATE ON testapp_author FOR EACH ROW SET NEW.name = 'hidden'"],
    "postgresql": [
        "CREATE OR REPLACE FUNCTION live_cache_hide() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN NEW.name = 'hidden'; RETURN NEW; END $$",
        "CREATE TRIGGER live_cache_trigger BEFORE UPDATE ON testapp_author FOR EACH ROW"
        " EXECUTE FUNCTION live_cache_hide()",
    ],
}


@pytest.fixture
def trigger(shop: str) -> Iterator[str]:
    """A trigger on authors, made by this process."""
    vendor = connections[shop].vendor
    for sql in TRIGGERS[vendor]:
        _raw(shop, sql)
    yield shop
    _raw(shop, "DROP TRIGGER live_cache_trigger" + (" ON testapp_author" if vendor == "postgresql" else ""))
    if vendor == "postgresql":
        _raw(shop, "DROP FUNCTION live_cache_hide()")


def test_tables_with_triggers_are_told_by_table(trigger: str) -> None:
    """The rows that a trigger changes are named by no statement."""
    watch = Watch(trigger, Author)
    Author.objects.using(trigger).filter(name="Ann").update(name="x")
    Author.objects.using(trigger).create(name="y")
    told = watch.told(Author)
    assert told.rows == []
    assert len(told.notes) == 2


def test_a_new_trigger_is_noticed(shop: str) -> None:
    """What this process sends is noticed at once."""
    watch = Watch(shop, Author)
    Author.objects.using(shop).filter(name="Ann").update(name="x")
    assert watch.told(Author).kinds == ["update"]
    vendor = connections[shop].vendor
    for sql in TRIGGERS[vendor]:
        _raw(shop, sql)
    try:
        watch.told(Author)
        Author.objects.using(shop).filter(name="Bob").update(name="z")
        told = watch.told(Author)
    finally:
        _raw(shop, "DROP TRIGGER live_cache_trigger" + (" ON testapp_author" if vendor == "postgresql" else ""))
        if vendor == "postgresql":
            _raw(shop, "DROP FUNCTION live_cache_hide()")
    assert told.rows == []
    assert told.notes


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
@pytest.mark.parametrize(
    "sql",
    [
        "ALTER TABLE testapp_author ENABLE ROW LEVEL SECURITY",
        "CREATE RULE live_cache_rule AS ON DELETE TO testapp_author DO ALSO NOTIFY live_cache",
        "CREATE TABLE live_cache_child () INHERITS (testapp_author)",
    ],
)
def test_tables_of_postgresql_that_are_more_than_tables(shop: str, sql: str) -> None:
    """Row policies, rules and children are told by table."""
    watch = Watch(shop, Author)
    _raw(shop, sql)
    try:
        watch.told(Author)
        Author.objects.using(shop).filter(name="Ann").update(name="x")
        Author.objects.using(shop).create(name="new")
        told = watch.told(Author)
    finally:
        _raw(shop, "DROP TABLE IF EXISTS live_cache_child")
        _raw(shop, "DROP RULE IF EXISTS live_cache_rule ON testapp_author")
        _raw(shop, "ALTER TABLE testapp_author DISABLE ROW LEVEL SECURITY")
    assert told.rows == []
    assert len(told.notes) == 2


def test_a_foreign_key_that_acts_on_its_own_table(shop: str) -> None:
    """Rows that the database deletes with others of the same table are named by no statement."""
    connection = connections[shop]
    for sql in (
        "CREATE TABLE live_cache_a (id integer PRIMARY KEY)",
        "CREATE TABLE live_cache_b (id integer PRIMARY KEY, parent_id integer, FOREIGN KEY (parent_id)"
        " REFERENCES live_cache_b (id) ON DELETE CASCADE)",
        "CREATE TABLE live_cache_c (id integer PRIMARY KEY, parent_id integer, FOREIGN KEY (parent_id)"
        " REFERENCES live_cache_a (id) ON DELETE CASCADE)",
    ):
        _raw(shop, sql)
    try:
        with transaction.atomic(using=shop):
            assert is_plain(connection, "live_cache_a")
            assert not is_plain(connection, "live_cache_b")
            assert is_plain(connection, "live_cache_c")
            assert not is_plain(connection, "live_cache_none")
    finally:
        for name in "cba":
            _raw(shop, f"DROP TABLE live_cache_{name}")


def steps_of_two_writers(shop: str, other: Any) -> list[tuple[str, str]]:
    """Let *other* write the row that an open transaction has written, and return the names before and after."""
    watch = Watch(shop, Author)
    key = Author.objects.using(shop).get(name="Ann").pk
    with transaction.atomic(using=shop):
        Author.objects.using(shop).filter(pk=key).update(name="First")
        waiting = other.start(lambda: Author.objects.using(shop).filter(pk=key).update(name="Second"))
        time.sleep(0.3)
        assert not waiting.done()
    assert waiting.result(10) == 1
    return [((change.before or {})["name"], (change.after or {})["name"]) for change in watch.told(Author).rows]


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_two_writers_of_one_row(shop: str, second_connection: Any) -> None:
    """The second waits for the first, and its before-image is what the first has committed."""
    steps = steps_of_two_writers(shop, second_connection(shop))
    assert set(steps) == {("Ann", "First"), ("First", "Second")}


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_a_row_that_comes_to_match_meanwhile(shop: str, second_connection: Any) -> None:
    """A phantom between the lock and the statement makes the row count differ: the table is told."""
    watch = Watch(shop, Author)
    other = second_connection(shop)

    def add(execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        if "UPDATE" in sql:
            other.run(lambda: Author.objects.using(shop).create(name="Zoe"))
        return execute(sql, parameters, many, context)

    with connections[shop].execute_wrapper(add):
        Author.objects.using(shop).filter(name__gt="Ab").update(country=None)
    told = watch.told(Author)
    assert told.kinds == ["insert"]
    assert told.notes == ["rows that others have changed or added meanwhile"]


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_a_row_that_another_holds_is_passed_by(shop: str, second_connection: Any) -> None:
    """By other columns than the key nobody waits for rows that do not match, as UPDATE itself does not."""
    watch = Watch(shop, Author)
    other = second_connection(shop)
    with transaction.atomic(using=shop):
        Author.objects.using(shop).filter(name="Ann").update(name="Held")
        assert other.run(lambda: Author.objects.using(shop).filter(name="Bob").update(name="Rob")) == 1
    assert sorted((change.after or {})["name"] for change in watch.told(Author).rows) == ["Held", "Rob"]


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
def test_images_in_an_old_snapshot(shop: str, second_connection: Any) -> None:
    """Under REPEATABLE READ a row that the statement leaves alone is not shown as it was long ago."""
    watch = Watch(shop, Author)
    key = Author.objects.using(shop).get(name="Ann").pk
    connection = connections[shop]
    other = second_connection(shop)
    _raw(shop, "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with transaction.atomic(using=shop):
            assert Author.objects.using(shop).get(pk=key).name == "Ann"
            other.run(lambda: Author.objects.using(shop).filter(pk=key).update(name="New"))
            assert [c.columns for c in watch.told(Author).rows] == [{"name"}]
            Author.objects.using(shop).filter(pk=key).update(name="New")
    finally:
        connection.close()
    assert watch.told(Author) == Told()


@pytest.mark.parametrize("alias", ["default"], indirect=True)
def test_sqlite_waits_for_the_lock_before_it_reads(shop: str, second_connection: Any) -> None:
    """A write that finds another writer waits for it, as it would alone, and sees what that one has committed."""
    steps = steps_of_two_writers(shop, second_connection(shop))
    assert steps == [("Ann", "First"), ("First", "Second")]


@pytest.mark.parametrize("alias", ["default"], indirect=True)
def test_sqlite_keeps_the_lock_in_mind_for_one_transaction_only(shop: str, second_connection: Any) -> None:
    """A transaction that changed nothing, and took the lock for it, lets the next one take it anew."""
    watch = Watch(shop, Author)
    one = Author.objects.using(shop).get(name="Ann")
    with transaction.atomic(using=shop):
        one.save()
        assert state_of(connections[shop]).has_sqlite_lock
    other = second_connection(shop)
    with transaction.atomic(using=shop):
        assert not state_of(connections[shop]).has_sqlite_lock
        other.run(lambda: Author.objects.using(shop).filter(pk=one.pk).update(name="Other"))
        Author.objects.using(shop).filter(pk=one.pk).update(name="Mine")
    assert [(c.before or {})["name"] for c in watch.told(Author).rows] == ["Ann", "Other"]


def test_statements_that_fail(shop: str) -> None:
    """The error is the user's own, the block goes on as before, and the table is told."""
    watch = Watch(shop, Category)
    Category.objects.using(shop).create(name="A", slug="a")
    other = Category.objects.using(shop).create(name="B", slug="b")
    watch.told(Category)
    with transaction.atomic(using=shop):
        with pytest.raises(DatabaseError), transaction.atomic(using=shop):
            Category.objects.using(shop).filter(pk=other.pk).update(slug="a")
        with pytest.raises(DatabaseError), transaction.atomic(using=shop):
            Category.objects.using(shop).create(name="C", slug="a")
    assert watch.told(Category).rows == []
    with pytest.raises(DatabaseError):
        _raw(shop, "UPDATE testapp_category SET nothing = 1")
    assert watch.told(Category) == Told()


@pytest.mark.parametrize("write", [_save, _create, lambda alias: book(alias).tags.clear()])
def test_nobody_sees_our_queries(shop: str, write: Callable[[str], object]) -> None:
    """Neither the query log nor execute wrappers see more statements for a watched table than for an unwatched one."""
    seen: list[str] = []

    def note(execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        seen.append(sql)
        return execute(sql, parameters, many, context)

    counts = []
    for watched in ((), (Book, Book.tags.through)):
        Watch(shop, *watched)
        seen.clear()
        capture = CaptureQueriesContext(connections[shop])
        with connections[shop].execute_wrapper(note), capture as queries, transaction.atomic(using=shop):
            write(shop)
            transaction.set_rollback(True, using=shop)
        counts.append((len(seen), len([query for query in queries if query["sql"] not in ("BEGIN", "ROLLBACK")])))
    assert counts[0] == counts[1]


def test_unwatched_tables_cost_no_query(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no clock is, no cursor is made but the user's own."""
    made: list[str] = []
    connection: Any = connections[shop]
    original = connection.create_cursor

    def make(run: Callable[..., Any], *arguments: Any) -> Any:
        made.append("")
        return run(*arguments)

    monkeypatch.setitem(connection.__dict__, "create_cursor", Hook(make, original))
    one = book(shop)
    get_assembly("default").ledger.reset()
    with transaction.atomic(using=shop):
        made.clear()
        one.save()
        assert len(made) == 1
        made.clear()
        _create(shop)
        assert len(made) == 2  # the author, and the book


def test_switched_off(shop: str, settings: Any) -> None:
    """LIVE_CACHE_PRECISE = False tells each write by table, and sends what Django sends."""
    settings.LIVE_CACHE_PRECISE = False
    watch = Watch(shop, Book)
    with CaptureQueriesContext(connections[shop]) as queries:
        _save(shop)
        _create(shop)
    told = watch.told(Book)
    assert (told.rows, len(told.notes)) == ([], 2)
    insert = next(query["sql"] for query in queries if "INSERT" in query["sql"])
    assert "title" not in insert.partition("RETURNING")[2]


class TestInsideTestCase(TestCase):
    """Blocks of a TestCase are told by table: their rows are visible to one connection."""

    def test_by_table(self) -> None:
        watch = Watch("default", Author)
        Author.objects.create(name="A")
        Author.objects.update(name="B")
        with transaction.atomic():
            Author.objects.update(name="C")
        told = watch.told(Author)
        assert told.rows == []
        assert len(told.notes) >= 3


@pytest.fixture
def odd_model(alias: str, ledger_kind: str) -> Iterator[Any]:
    """A model with columns of other names, defaults of the database, and fields with values of their own."""

    class Shouted(_Char):
        def from_db_value(self, value: Any, expression: Any, connection: Any) -> Any:
            return value.upper()

    class Plain(_Char):
        """Differs by name only."""

    with made_models(alias) as create_tables:

        class Odd(models.Model):
            renamed = models.CharField(max_length=20, db_column="Other Name", db_default="def")
            stamped = models.DateTimeField(db_default=Now())
            shouted = Shouted(max_length=20, default="quiet")
            plain = Plain(max_length=20, default="plain")

            class Meta:
                app_label = "testapp"

        create_tables(Odd)
        yield Odd


def test_columns_of_other_names_and_defaults_of_the_database(alias: str, odd_model: Any) -> None:
    """Images go by the name of the column, and hold what the database has filled in."""
    watch = Watch(alias, odd_model)
    one = odd_model.objects.using(alias).create()
    assert one.shouted == "quiet"
    (change,) = watch.told(odd_model).rows
    row = odd_model.objects.using(alias).get()
    assert change.after == {"id": one.pk, "Other Name": "def", "stamped": row.stamped, "plain": "plain"}
    odd_model.objects.using(alias).update(renamed="x", shouted="loud")
    (change,) = watch.told(odd_model).rows
    assert change.columns == {"Other Name", "shouted"}
    assert change.after == {"id": one.pk, "Other Name": "x", "stamped": row.stamped, "plain": "plain"}


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_values_that_python_does_not_have(shop: str) -> None:
    """A row that the driver cannot read is written as ever, and told by table."""
    _raw(shop, "UPDATE testapp_book SET created = 'infinity' WHERE title = 'Book 0'")
    watch = Watch(shop, Book)
    with transaction.atomic(using=shop):
        assert Book.objects.using(shop).filter(title="Book 0").update(pages=77) == 1
    assert watch.told(Book).notes == ["rows that could not be read"]
    assert Book.objects.using(shop).filter(pages=77).count() == 1


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_rows_as_they_were_sent_tell_what_loaded_rows_tell(alias: str) -> None:
    """Of each type: the values, whichever zone the session is in, and which of them have changed."""
    connection = connections[alias]
    rows = AllFields.objects.using(alias)
    rows.create()
    rows.create(null_date=date(9999, 12, 31), null_datetime=datetime(2026, 10, 25, 0, 30, tzinfo=UTC), float=0.1)
    rows.create(null_decimal=Decimal("0.000000"), float=-0.0, null_char="é", null_time=clock_time(23, 59, 59, 999999))
    for zone in (None, "Asia/Kolkata"):
        with _session_in_zone(connection, zone), closing(connection.create_cursor()) as cursor:
            cursor.execute("SELECT *, NULL::testapp_allfields AS unknown FROM testapp_allfields ORDER BY id")
            names, sent, oids = answer_of(cursor)
            loaded = cursor.fetchall()
            assert oids is not None
            by_loads = Columns(AllFields, connection, names, loads_of(cursor, oids))
            by_driver = columns_of(AllFields, connection, names)
            assert [by_loads.raw_key(row) for row in sent] == [by_driver.raw_key(row) for row in loaded]
            for here, there in product(zip(sent, loaded, strict=True), repeat=2):
                assert by_loads.deleted(here[0], connection) == by_driver.deleted(here[1], connection)
                of_sent = by_loads.updated(here[0], there[0], connection)
                assert of_sent == by_driver.updated(here[1], there[1], connection)
                assert (of_sent is None) == (here is there)


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_images_are_read_in_the_zone_of_their_session(alias: str) -> None:
    """What was prepared for one zone is not used for another."""
    connection, rows = connections[alias], AllFields.objects.using(alias)
    one = rows.create()
    for zone in (None, "Asia/Kolkata", "Pacific/Apia", None):
        with _session_in_zone(connection, zone):
            watch = Watch(alias, AllFields)
            one.integer += 1
            one.save()
            (change,) = watch.told(AllFields).rows
            assert change.after is not None
            assert repr(change.after["datetime"]) == repr(rows.get().datetime)


@contextmanager
def _session_in_zone(connection: Any, zone: str | None) -> Iterator[None]:
    """Be as if TIME_ZONE of the database were *zone*."""
    before = connection.settings_dict["TIME_ZONE"]

    def change(zone: str | None) -> None:
        connection.settings_dict["TIME_ZONE"] = zone
        for name in ("timezone", "timezone_name"):
            connection.__dict__.pop(name, None)
        connection.ensure_timezone()

    change(zone)
    try:
        yield
    finally:
        change(before)


def test_database_cascades(alias: str, ledger_kind: str) -> None:
    """DB_CASCADE of Django 6.1: the row that is deleted is told, and the table whose rows go with it as a whole."""
    if django.VERSION < (6, 1):
        pytest.skip("DB_CASCADE is new in Django 6.1.")
    with made_models(alias) as create_tables:

        class Parent(models.Model):
            name = models.CharField(max_length=10)

            class Meta:
                app_label = "testapp"

        class Child(models.Model):
            parent = models.ForeignKey(Parent, on_delete=models.DB_CASCADE)

            class Meta:
                app_label = "testapp"

        create_tables(Parent, Child)
        parent = Parent._base_manager.using(alias).create(name="p")
        Child._base_manager.using(alias).create(parent=parent)
        watch = Watch(alias, Parent, Child)
        key = parent.pk
        parent.delete()
        assert [change.key for change in watch.told(Parent).rows] == [(key,)]
        assert watch.told(Child).notes == ["rows that the database deletes with others"]


def test_signals_add_nothing(shop: str) -> None:
    """post_save knows that the write was seen, also where it changed nothing."""
    watch = Watch(shop, Author)
    one = Author.objects.using(shop).get(name="Ann")
    one.save()
    one.name = "New"
    one.save()
    assert watch.told(Author).notes == []


@pytest.mark.parametrize("alias", ["postgresql", "mariadb"], indirect=True)
def test_a_deadlock_is_that_of_the_user(shop: str, second_connection: Any) -> None:
    """The transaction that the database has given up raises, although it was our query that met the other one."""
    Watch(shop, Author)
    ann, bob = Author.objects.using(shop).order_by("name").values_list("pk", flat=True)
    other = second_connection(shop)

    def rename(key: int) -> None:
        Author.objects.using(shop).filter(pk=key).update(name=F("name"), country=None)

    def begin() -> None:
        transaction.set_autocommit(True, using=shop)
        block = transaction.atomic(using=shop)
        block.__enter__()
        rename(bob)
        blocks.append(block)

    blocks: list[Any] = []
    errors: list[BaseException] = []
    try:
        with transaction.atomic(using=shop):
            rename(ann)
            other.run(begin)
            waiting = other.start(rename, ann)
            time.sleep(0.3)
            rename(bob)
    except OperationalError as error:
        errors.append(error)
    try:
        waiting.result(10)
    except OperationalError as error:
        errors.append(error)
    other.run(lambda: blocks[0].__exit__(*((OperationalError, errors[0], None) if errors else (None,) * 3)))
    assert len(errors) == 1
