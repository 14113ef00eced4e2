"""Expressions that only newer versions of Django have: cached where they give the same rows each time, else refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import NotSupportedError, connections, models
from django.db.models import Count, F, Q, Value, functions

from live_cache import live
from tests.test_queryset import books, queries_of
from tests.test_read_surface import rows_of
from tests.testapp.models import Author, Book

__all__ = ["books"]

needs_6_1 = pytest.mark.skipif(not hasattr(models, "JSONNull"), reason="came with Django 6.1")


def newer(name: str) -> Any:
    return getattr(models, name)


# Each over the authors; what it yields changes with change().
AGGREGATES: dict[str, Callable[[Any], Any]] = {
    "StringAgg": lambda qs: qs.annotate(x=newer("StringAgg")("books__title", Value("; "), order_by="books__pk")),
    "StringAgg, the delimiter a column": lambda qs: qs.annotate(x=newer("StringAgg")("books__title", F("name"))),
    "StringAgg, filtered": lambda qs: qs.annotate(
        x=newer("StringAgg")("books__title", Value(","), filter=Q(books__pages__gt=100), order_by="-books__title")
    ),
    "Count, filtered": lambda qs: qs.annotate(x=Count("books", filter=Q(books__pages__gt=100))),
    "BitAnd": lambda qs: qs.annotate(x=newer("BitAnd")("books__pages")),
    "BitOr": lambda qs: qs.annotate(x=newer("BitOr")("books__pages", filter=Q(books__pages__gt=0))),
    "BitXor": lambda qs: qs.annotate(x=newer("BitXor")("books__pages")),
    "BitOr, with a default": lambda qs: qs.annotate(x=newer("BitOr")("books__pages", default=0)),
    # All values of a group are one, so that any is the same.
    "AnyValue": lambda qs: qs.values("name").annotate(x=newer("AnyValue")(F("books__author__name"))),
}


def change(alias: str) -> None:
    author = Author.objects.using(alias).order_by("pk")[0]
    Author.objects.using(alias).filter(pk=author.pk).update(name="Zoe")
    Book.objects.using(alias).create(title="A new book", author=author, pages=4097)


def rows_or_skip(queryset: Any) -> Any:
    """The rows of the database, or a skip where this database does not have the function."""
    try:
        return rows_of(queryset)
    except NotSupportedError as error:
        pytest.skip(str(error))


def check(alias: str, build: Callable[[], Any], write: Callable[[], object]) -> None:
    """The second read makes no query and equals the database; the read after *write* equals it again."""
    expected = rows_or_skip(build())
    explanation = live(build()).live_explain()
    assert explanation.is_cachable, explanation.reason
    assert rows_of(live(build())) == expected
    assert queries_of(alias, lambda: rows_of(live(build()))) == (expected, 0)
    write()
    changed = rows_of(build())
    assert changed != expected
    assert rows_of(live(build())) == changed


@needs_6_1
@pytest.mark.parametrize("name", AGGREGATES)
def test_aggregate(alias: str, books: Any, name: str) -> None:
    """Aggregates of Django 6.1, also with a filter, an order and a default."""
    if name.endswith("a column") and connections[alias].vendor == "mysql":
        pytest.skip("SEPARATOR takes a literal only")
    check(alias, lambda: AGGREGATES[name](Author.objects.using(alias).order_by("pk")), lambda: change(alias))


@needs_6_1
def test_other_delimiters_are_other_entries(alias: str, books: Any) -> None:
    """The delimiter is part of the key, as a value and as an expression."""
    found = []
    delimiters = [Value(";"), Value(","), *([F("name")] if connections[alias].vendor != "mysql" else [])]
    for delimiter in delimiters:
        queryset = Author.objects.using(alias).annotate(x=newer("StringAgg")("books__title", delimiter))
        found.append(rows_of(live(queryset)))
        assert found[-1] == rows_of(queryset)
    assert all(one != other for index, one in enumerate(found) for other in found[:index])


@needs_6_1
@pytest.mark.parametrize("is_annotated", [False, True])
def test_json_null(alias: str, books: Any, is_annotated: bool) -> None:
    """JSONNull() is the JSON null, and another entry than None."""
    Book.objects.using(alias).filter(title__startswith="A").update(data=newer("JSONNull")())

    def build() -> Any:
        if is_annotated:
            return books.annotate(x=newer("JSONNull")()).order_by("pk")
        return books.filter(data=newer("JSONNull")()).order_by("pk")

    assert rows_of(live(books.filter(data=newer("JSONNull")()))) != rows_of(live(books.filter(data__isnull=True)))
    check(alias, build, lambda: books.filter(title__startswith="A").update(data={"a": 1}))


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("Now", lambda: newer("StringAgg")(functions.Cast(functions.Now(), models.TextField()), Value(","))),
        ("Random", lambda: newer("StringAgg")("title", functions.Cast(functions.Random(), models.TextField()))),
        ("UUID4", lambda: functions.UUID4()),  # type: ignore[attr-defined,unused-ignore]  # Django 6.1
    ],
)
@needs_6_1
def test_never_cached(alias: str, books: Any, name: str, build: Callable[[], Any]) -> None:
    """What is volatile is found in the arguments too, also in the delimiter."""
    explanation = live(books.annotate(x=build())).live_explain()
    assert not explanation.is_cachable
    assert name in explanation.reason
