"""RawSQL with declared tables: cached, fresh after a write to any table that it reads, and refused where it writes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.db import connections, transaction
from django.db.models import CharField, DecimalField, Exists, FloatField, IntegerField, Max, OuterRef, Sum, expressions
from django.db.models.functions import Coalesce

from live_cache import RawSQL, live
from tests.test_queryset import books, queries_of
from tests.test_read_surface import rows_of, update_authors, update_books
from tests.testapp.models import Author, Book, Country, Tag

__all__ = ["books"]

NAME = "SELECT name FROM testapp_author WHERE testapp_author.id = testapp_book.author_id"
OF_AUTHOR = "SELECT MAX(b.pages) FROM testapp_book b WHERE b.author_id = testapp_author.id"
Build = Callable[[str, Any], Any]

SHAPES: dict[str, tuple[Build, Callable[[str], None]]] = {
    "its own columns": (
        lambda a, qs: qs.annotate(x=RawSQL("testapp_book.pages * %s", (2,), IntegerField(), tables=[])).order_by("pk"),
        update_books,
    ),
    "a table that it names": (
        lambda a, qs: qs.annotate(x=RawSQL(NAME, (), CharField(), tables=[Author])).order_by("pk"),
        update_authors,
    ),
    "a table that it names, and nobody else": (
        lambda a, qs: qs.annotate(x=RawSQL(NAME, tables=[])).order_by("pk").values_list("x"),
        update_authors,
    ),
    "filter": (
        lambda a, qs: qs.filter(
            author__in=RawSQL("SELECT id FROM testapp_author WHERE name LIKE %s", ["A%"], tables=["testapp_author"])
        ).order_by("pk"),
        update_authors,
    ),
    "order": (lambda a, qs: qs.order_by(RawSQL(NAME, tables=[Author]).desc(), "pk"), update_authors),
    "subquery": (
        lambda a, qs: (
            Author.objects.using(a)
            .filter(Exists(qs.filter(author=OuterRef("pk"), pages__lt=RawSQL("%s + 1", [300], tables=[]))))
            .annotate(x=RawSQL(OF_AUTHOR, tables=[Book]))
            .order_by("pk")
        ),
        lambda a: Book.objects.using(a).filter(pages=300).update(pages=290),
    ),
    "union": (
        lambda a, qs: qs.filter(pk=RawSQL("SELECT MIN(id) FROM testapp_book", tables=[Book]))
        .values_list("title")
        .union(Author.objects.using(a).values_list("name"))
        .order_by("title"),
        update_authors,
    ),
    "inside a function": (
        lambda a, qs: qs.order_by(Coalesce(RawSQL("testapp_book.rating", (), FloatField(), tables=[]), 0.0), "pk"),
        update_books,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SHAPES)
def test_shape(alias: str, books: Any, name: str) -> None:
    """The second read makes no query and equals the database; the read after a write equals it again."""
    build, write = SHAPES[name]
    explanation = live(build(alias, books)).live_explain()
    assert explanation.is_cachable, explanation.reason
    expected = rows_of(build(alias, books))
    assert rows_of(live(build(alias, books))) == expected
    assert queries_of(alias, lambda: rows_of(live(build(alias, books)))) == (expected, 0)
    write(alias)
    changed = rows_of(build(alias, books))
    assert changed != expected
    assert rows_of(live(build(alias, books))) == changed


RESULTS: dict[str, Callable[[Any], Any]] = {
    "count": lambda qs: qs.filter(pages__gt=RawSQL("SELECT MIN(pages) FROM testapp_book", tables=[Book])).count(),
    "exists": lambda qs: qs.filter(pages__lt=RawSQL("%s", [150], tables=[])).exists(),
    "aggregate": lambda qs: qs.aggregate(x=Sum(RawSQL("testapp_book.pages * %s", [3], IntegerField(), tables=[]))),
    "aggregate over it": lambda qs: qs.annotate(n=RawSQL(NAME, (), CharField(), tables=[])).aggregate(Max("n")),
}


@pytest.mark.parametrize("name", RESULTS)
def test_result(alias: str, books: Any, name: str) -> None:
    """count(), exists() and aggregate()."""
    call = RESULTS[name]
    expected = call(books)
    assert call(live(books)) == expected
    assert queries_of(alias, lambda: call(live(books))) == (expected, 0)
    books.filter(author__name="Cid").delete()
    Author.objects.using(alias).update(name="Zoe")
    Book.objects.using(alias).update(pages=400)
    assert call(live(books)) == call(books) != expected


def test_parameters_are_part_of_the_key(alias: str, books: Any) -> None:
    """Other parameters, other types of equal ones, other texts and other fields are other entries."""
    made = [
        RawSQL("%s", [parameter], field, tables=[])
        for parameter in (1, "1", Decimal(1), Decimal("1.00"), 2)
        for field in (IntegerField(), CharField(), DecimalField(max_digits=5, decimal_places=2))
    ]
    made.append(RawSQL("(%s)", [1], IntegerField(), tables=[]))
    keys = {live(books.annotate(x=each)).live_explain().cache_key for each in made}
    assert len(keys) == len(made)


@pytest.fixture
def function(alias: str, books: Any) -> Iterator[str]:
    """A function of the database that reads a table which the SQL that calls it does not name."""
    vendor = connections[alias].vendor
    if vendor == "sqlite":
        pytest.skip("SQLite has no functions in SQL")
    body = "(SELECT COUNT(*) FROM testapp_tag)"
    create = (
        f"CREATE OR REPLACE FUNCTION live_cache_tags() RETURNS bigint AS $$ SELECT {body} $$ LANGUAGE sql"
        if vendor == "postgresql"
        else f"CREATE OR REPLACE FUNCTION live_cache_tags() RETURNS bigint READS SQL DATA RETURN {body}"
    )
    execute(alias, create)
    yield "live_cache_tags()"
    execute(alias, "DROP FUNCTION live_cache_tags")


def execute(alias: str, sql: str) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql)
    connections[alias].close()  # what is not understood leaves the search path in doubt


@pytest.mark.parametrize("is_aggregate", [False, True])
def test_tables_that_only_a_function_reads(alias: str, books: Any, function: str, is_aggregate: bool) -> None:
    """A write to a declared table is seen, also by the connection that has not committed it."""

    def read(queryset: Any) -> Any:
        raw = RawSQL(function, (), IntegerField(), tables=[Tag])
        if is_aggregate:
            return queryset.aggregate(x=Max(raw))
        return list(queryset.annotate(x=raw).order_by("pk").values_list("x", flat=True))

    before = read(books)
    assert read(live(books)) == before
    assert queries_of(alias, lambda: read(live(books))) == (before, 0)
    with transaction.atomic(using=alias):
        Tag.objects.using(alias).create(name="new")
        assert read(live(books)) == read(books) != before
    assert read(live(books)) == read(books) != before


def test_aggregate_over_a_declared_table(alias: str, books: Any, function: str) -> None:
    """What the query below an aggregate declares counts for the aggregate."""

    def read(queryset: Any) -> Any:
        return queryset.annotate(n=RawSQL(function, (), IntegerField(), tables=[Tag])).aggregate(Max("n"))

    before = read(books)
    assert read(live(books)) == before
    Tag.objects.using(alias).create(name="new")
    assert read(live(books)) == read(books) != before


REFUSED: dict[str, tuple[Build, str]] = {
    "Django's own": (lambda a, qs: qs.annotate(x=expressions.RawSQL("1", ())), "live_cache.RawSQL"),
    "a subclass": (lambda a, qs: qs.annotate(x=OwnRawSQL("1", tables=[])), "live_cache.RawSQL"),
    "a table of no model": (
        lambda a, qs: qs.annotate(x=RawSQL("SELECT 1 FROM elsewhere", tables=[])),
        "'elsewhere' belongs to no managed model",
    ),
    "a declared table of no model": (
        lambda a, qs: qs.annotate(x=RawSQL("1", tables=["Elsewhere"])),
        "'elsewhere' belongs to no managed model",
    ),
    "a text that ends the statement": (
        lambda a, qs: qs.annotate(x=RawSQL("1); DELETE FROM testapp_tag; SELECT (1", tables=[])),
        "not understood as a plain read",
    ),
    "a text that locks": (
        lambda a, qs: qs.annotate(x=RawSQL("SELECT id FROM testapp_author LIMIT 1 FOR UPDATE", tables=[Author])),
        "not understood as a plain read",
    ),
    "a function that writes": (
        lambda a, qs: qs.annotate(x=RawSQL("Live_Cache_Writes(1)", tables=[])),
        "live_cache_writes() is in LIVE_CACHE_WRITING_FUNCTIONS",
    ),
    "beside a volatile expression": (
        lambda a, qs: qs.annotate(x=RawSQL("1", tables=[])).order_by("?"),
        "Random order",
    ),
}


class OwnRawSQL(RawSQL):
    """A subclass, whose as_sql() may say anything."""


@pytest.mark.parametrize("name", REFUSED)
def test_refused(alias: str, books: Any, settings: Any, name: str) -> None:
    """The explanation says why, and nothing is sent."""
    settings.LIVE_CACHE_WRITING_FUNCTIONS = ["live_cache_writes"]
    build, reason = REFUSED[name]
    explanation = live(build(alias, books)).live_explain()
    assert not explanation.is_cachable
    assert reason in explanation.reason


@pytest.mark.parametrize("tables", ["testapp_author", [5], [None], [Country()]])
def test_wrong_declarations(tables: Any) -> None:
    """A name instead of a list, and what names no table."""
    with pytest.raises(TypeError, match="tables"):
        RawSQL("1", tables=tables)
    with pytest.raises(TypeError, match="tables"):
        RawSQL("1")  # type: ignore[call-arg]  # the point of the test
