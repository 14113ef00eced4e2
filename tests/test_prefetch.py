"""prefetch_related() of live querysets: a hit makes no query, and a write to any of the tables is seen."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.contenttypes.models import ContentType
from django.contrib.contenttypes.prefetch import GenericPrefetch
from django.db import connections, models
from django.db.models import Count, Prefetch
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from live_cache import disabled, live, recording
from tests.testapp.models import (
    Author,
    Book,
    Category,
    Country,
    Currency,
    Library,
    Profile,
    Review,
    Shelf,
    Tag,
)


@pytest.fixture
def shop(alias: str, cache: str) -> str:
    """Two authors with books, tags, shelves, profiles, libraries and reviews."""
    ContentType.objects.clear_cache()  # emptied tables have other keys
    country = Country.objects.using(alias).create(code="GB", name="Britain")
    red, blue = (Tag.objects.using(alias).create(name=name) for name in ("red", "blue"))
    novels = Category.objects.using(alias).create(name="Novels", slug="novels")
    library = Library.objects.using(alias).create(name="City")
    book_type = ContentType.objects.db_manager(alias).get_for_model(Book)
    author_type = ContentType.objects.db_manager(alias).get_for_model(Author)
    for name in ("Ann", "Bob"):
        author = Author.objects.using(alias).create(name=name, country=country)
        Profile.objects.using(alias).create(author=author, bio=f"{name} writes")
        Review.objects.using(alias).create(content_type=author_type, object_id=str(author.pk), stars=4)
        for number in range(3):
            book = Book.objects.using(alias).create(
                title=f"{name} {number}", author=author, category=novels, pages=number
            )
            book.tags.add(red, *([blue] if number == 1 else []))
            Shelf.objects.using(alias).create(label=f"S{number}", book=book)
            library.books.add(book)
            Review.objects.using(alias).create(content_type=book_type, object_id=str(book.pk), stars=number)
    Author.objects.using(alias).create(name="Cid")
    return alias


def tree(value: Any) -> Any:
    """What a row and everything prefetched to it looks like, without a query."""
    if isinstance(value, models.Model):
        content: dict[str, Any] = {}
        for name, item in value.__dict__.items():
            if name == "_prefetched_objects_cache":
                content[name] = {key: tree(rows) for key, rows in item.items()}
            elif not name.startswith("_"):
                content[name] = tree(item)
        content["fields_cache"] = {
            name: (type(item), getattr(item, "pk", None)) for name, item in value._state.fields_cache.items()
        }
        related = {name: tree_of_related(item) for name, item in value._state.fields_cache.items() if item is not None}
        return type(value), value._state.db, content, related
    if isinstance(value, list | models.QuerySet):
        return [tree(item) for item in value]
    return type(value), value


def tree_of_related(item: models.Model) -> Any:
    """One level only: a row and its parent refer to each other."""
    return type(item), {name: value for name, value in item.__dict__.items() if not name.startswith("_")}


SHAPES: dict[str, Any] = {
    "forward": lambda a: Book.objects.using(a).prefetch_related("author").order_by("pk"),
    "forward, none there": lambda a: Author.objects.using(a).prefetch_related("country").order_by("pk"),
    "reverse": lambda a: Author.objects.using(a).prefetch_related("books").order_by("pk"),
    "many to many": lambda a: Book.objects.using(a).prefetch_related("tags").order_by("pk"),
    "reverse many to many": lambda a: Tag.objects.using(a).prefetch_related("books").order_by("pk"),
    "many to many through": lambda a: Library.objects.using(a).prefetch_related("books").order_by("pk"),
    "one to one": lambda a: Profile.objects.using(a).prefetch_related("author").order_by("pk"),
    "reverse one to one": lambda a: Author.objects.using(a).prefetch_related("profile").order_by("pk"),
    "nested": lambda a: Author.objects.using(a).prefetch_related("books__tags", "books__shelves").order_by("pk"),
    "several": lambda a: Book.objects.using(a).prefetch_related("tags", "author__country", "shelves").order_by("pk"),
    "Prefetch with queryset": lambda a: (
        Author.objects.using(a)
        .prefetch_related(Prefetch("books", Book.objects.using(a).filter(pages__gt=0).order_by("-pages")))
        .order_by("pk")
    ),
    "Prefetch to_attr": lambda a: (
        Author.objects.using(a)
        .prefetch_related(Prefetch("books", Book.objects.using(a).order_by("title"), to_attr="own_books"))
        .order_by("pk")
    ),
    "Prefetch nested": lambda a: (
        Author.objects.using(a)
        .prefetch_related(
            Prefetch(
                "books",
                Book.objects.using(a).select_related("category").prefetch_related(Prefetch("tags", to_attr="labels")),
                to_attr="own_books",
            )
        )
        .order_by("pk")
    ),
    "Prefetch sliced": lambda a: (
        Author.objects.using(a)
        .prefetch_related(Prefetch("books", Book.objects.using(a).order_by("-pages")[:2], to_attr="best"))
        .order_by("pk")
    ),
    "Prefetch annotated": lambda a: (
        Author.objects.using(a)
        .prefetch_related(Prefetch("books", Book.objects.using(a).annotate(n=Count("tags")).order_by("pk")))
        .order_by("pk")
    ),
    "generic foreign key": lambda a: Review.objects.using(a).prefetch_related("target").order_by("pk"),
    "generic foreign key, nested": lambda a: (
        Review.objects.using(a).filter(content_type__model="book").prefetch_related("target__tags").order_by("pk")
    ),
    "GenericPrefetch": lambda a: (
        Review.objects.using(a)
        .prefetch_related(GenericPrefetch("target", [Book.objects.using(a).only("title"), Author.objects.using(a)]))
        .order_by("pk")
    ),
    "after select_related": lambda a: (
        Book.objects.using(a).select_related("author").prefetch_related("author__books").order_by("pk")
    ),
    "sliced": lambda a: Book.objects.using(a).prefetch_related("tags").order_by("pk")[1:4],
}

WRITES: dict[str, Any] = {
    "book": lambda a: Book.objects.using(a).filter(pages=1).update(title="Changed", pages=5),
    "author": lambda a: Author.objects.using(a).filter(name="Ann").update(name="Anna", country=None),
    "tag": lambda a: Tag.objects.using(a).filter(name="red").update(name="crimson"),
    "tags of a book": lambda a: Book.objects.using(a).order_by("pk")[1].tags.clear(),
    "books of a tag": lambda a: Tag.objects.using(a).order_by("pk")[1].books.set(Book.objects.using(a).filter(pages=0)),
    "profile": lambda a: Profile.objects.using(a).order_by("pk")[0].delete(),
    "place": lambda a: Library.objects.using(a).get().books.remove(Book.objects.using(a).order_by("pk")[0]),
    "shelf": lambda a: Shelf.objects.using(a).filter(label="S1").delete(),
    "country": lambda a: Country.objects.using(a).update(name="UK"),
    "new": lambda a: Book.objects.using(a).create(title="New", author=Author.objects.using(a).get(name="Cid"), pages=9),
    "review": lambda a: Review.objects.using(a).filter(stars=2).update(object_id="1"),
}


@pytest.fixture(params=SHAPES)
def shape(request: pytest.FixtureRequest, alias: str) -> str:
    """A shape that Django can read from this database."""
    name: str = request.param
    if name.startswith("generic foreign key") and alias != "default":
        pytest.skip("Django prefetches a GenericForeignKey from the routers' database.")
    return name


def test_a_hit_makes_no_query_and_equals_the_database(shop: str, shape: str) -> None:
    """Main query and prefetches come from the cache, in value, type and structure."""
    build = SHAPES[shape]
    expected = [tree(row) for row in build(shop)]
    assert [tree(row) for row in live(build(shop))] == expected
    with CaptureQueriesContext(connections[shop]) as captured:
        found = [tree(row) for row in live(build(shop))]
    assert (len(captured), found) == (0, expected)


def test_writes_to_every_table_are_seen(shop: str, shape: str) -> None:
    """After each write the next live read equals the database, and some of the writes changed it."""
    build = SHAPES[shape]
    before = [tree(row) for row in live(build(shop))]
    changes = 0
    for write in WRITES.values():
        write(shop)
        expected = [tree(row) for row in build(shop)]
        assert [tree(row) for row in live(build(shop))] == expected
        changes += expected != before
        before = expected
    assert changes


def test_relations_of_managers_with_prefetches_of_their_own(shop: str) -> None:
    """A custom queryset that prefetches by itself is followed."""
    queryset = Author.objects.using(shop).prefetch_related(
        Prefetch("books", Book.objects.using(shop).prefetch_related("shelves"))
    )
    for _ in range(2):
        rows = list(live(queryset))
    with CaptureQueriesContext(connections[shop]) as captured:
        labels = [shelf.label for author in rows for book in author.books.all() for shelf in book.shelves.all()]
    assert (len(captured), len(labels)) == (0, 6)


def test_a_prefetch_that_cannot_be_cached_goes_to_the_database(shop: str) -> None:
    """The main query is a hit, the uncachable part is one query, and it is right."""
    queryset = Author.objects.using(shop).prefetch_related(
        Prefetch("books", Book.objects.using(shop).filter(created__lte=Now()))
    )
    expected = [[book.pk for book in author.books.all()] for author in queryset.order_by("pk")]
    list(live(queryset.order_by("pk")))
    with CaptureQueriesContext(connections[shop]) as captured, recording() as reads:
        rows = list(live(queryset.order_by("pk")))
    assert len(captured) == 1
    assert [read.is_hit for read in reads] == [True, False]
    assert "Now" in reads[1].reason
    assert [[book.pk for book in author.books.all()] for author in rows] == expected


def test_a_prefetch_queryset_keeps_its_own_options(shop: str) -> None:
    """A Prefetch queryset that is live itself keeps its key; others take the options of the main queryset."""
    own = live(Book.objects.using(shop).all(), "own")
    with recording() as reads:
        list(live(Author.objects.using(shop).prefetch_related(Prefetch("books", own), "profile"), "main"))
    assert [read.cache_key.partition("/")[0] for read in reads] == ["main", "own", "main"]


def test_refresh_fetches_the_prefetches_too(shop: str) -> None:
    """fresh() asks the database for every part."""
    queryset = Author.objects.using(shop).prefetch_related("books__tags")
    list(live(queryset))
    with CaptureQueriesContext(connections[shop]) as captured:
        list(live(queryset).fresh())
    assert len(captured) == 3
    with disabled(), CaptureQueriesContext(connections[shop]) as captured:
        list(live(queryset))
    assert len(captured) == 3


def test_uncommitted_writes_are_seen_in_prefetches(shop: str) -> None:
    """Inside a transaction the prefetch of a table with own writes comes from the database."""
    from django.db import transaction

    queryset = Author.objects.using(shop).prefetch_related("books").order_by("pk")
    list(live(queryset))
    with transaction.atomic(using=shop):
        Book.objects.using(shop).update(title="Uncommitted")
        titles = {book.title for author in live(queryset) for book in author.books.all()}
        assert titles == {"Uncommitted"}
        transaction.set_rollback(True, using=shop)
    titles = {book.title for author in live(queryset) for book in author.books.all()}
    assert "Uncommitted" not in titles


def test_self_reference_by_a_column_that_is_no_primary_key(shop: str) -> None:
    """A foreign key with to_field prefetches both ways."""
    euro = Currency.objects.using(shop).create(symbol="EUR")
    Currency.objects.using(shop).create(symbol="DKK", pegged_to=euro)
    queryset = Currency.objects.using(shop).prefetch_related("pegged_to", "currency_set").order_by("pk")
    expected = [tree(row) for row in queryset]
    for _ in range(2):
        with CaptureQueriesContext(connections[shop]) as captured:
            assert [tree(row) for row in live(queryset)] == expected
    assert len(captured) == 0
