"""Random writes: each is a name with two numbers, which choose rows and values."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final

from django.contrib.contenttypes.models import ContentType
from django.db import connections, models
from django.db.models import F

from tests.machine.queries import POOLS
from tests.testapp.models import (
    AllFields,
    Author,
    Book,
    BookPlace,
    Category,
    Country,
    Ebook,
    LegacyTag,
    Library,
    LoadedBook,
    MadeBook,
    Profile,
    Review,
    Seat,
    Shelf,
    Tag,
)

__all__ = ["COMMON_WRITES", "RAW_WRITES", "TABLES", "WRITES", "SkippedError", "empty", "seed"]


class SkippedError(Exception):
    """There is no row for this write."""


def _nth(model: Any, alias: str, number: int) -> Any:
    rows = list(model._base_manager.using(alias).order_by("pk"))
    if not rows:
        raise SkippedError
    return rows[number % len(rows)]


def _one(kind: str, number: int) -> Any:
    return POOLS[kind][number % len(POOLS[kind])]


def _execute(alias: str, sql: str, parameters: list[Any] | None = None) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, parameters)


def _set(model: Any, **kinds: str) -> Callable[[str, int, int], object]:
    """Return a write that loads the nth row, sets its attributes and saves it."""

    def write(alias: str, n: int, v: int) -> None:
        row = _nth(model, alias, n)
        for name, kind in kinds.items():
            setattr(row, name, _one(kind, v))
        row.save()

    return write


def _move(model: Any, name: str, target: Any) -> Callable[[str, int, int], object]:
    """Return a write that points a foreign key of the nth row elsewhere."""

    def write(alias: str, n: int, v: int) -> None:
        row = _nth(model, alias, n)
        setattr(row, name, _nth(target, alias, v))
        row.save(update_fields=[name])

    return write


def _expression(alias: str, n: int, v: int) -> None:
    book = _nth(Book, alias, n)
    book.pages = F("pages") + v
    book.save()


def _by_key(alias: str, n: int, v: int) -> None:
    book = _nth(Book, alias, n)
    Book(pk=book.pk, title=_one("char", v), author_id=book.author_id).save(using=alias)


def _deferred(alias: str, n: int, v: int) -> None:
    key = _nth(Book, alias, n).pk
    book = Book.objects.using(alias).only("title").get(pk=key)
    book.title = _one("char", v)
    book.save()


def _bulk_update(alias: str, n: int, v: int) -> None:
    books = list(Book.objects.using(alias).order_by("pk")[: n + 1])
    for book in books:
        book.price, book.title = _one("decimal", v), _one("char", v + book.pk)
    Book.objects.using(alias).bulk_update(books, ["price", "title"])


def _upsert(alias: str, n: int, v: int) -> None:
    book = _nth(Book, alias, n)
    options: dict[str, Any] = {"update_conflicts": True, "update_fields": ["title"]}
    if connections[alias].features.supports_update_conflicts_with_target:
        options["unique_fields"] = ["id"]
    Book.objects.using(alias).bulk_create(
        [Book(pk=book.pk, title=_one("char", v), author_id=book.author_id)], **options
    )


def _bulk_create(alias: str, n: int, v: int) -> None:
    author = _nth(Author, alias, n)
    Book.objects.using(alias).bulk_create([Book(title=_one("char", v + i), author=author) for i in range(2)])


def _create_ebook(alias: str, n: int, v: int) -> None:
    Ebook.objects.using(alias).create(title=_one("char", v), author=_nth(Author, alias, n), format=_one("char", n))


def _create_review(alias: str, n: int, v: int) -> None:
    kind = ContentType.objects.db_manager(alias).get_for_model(Book)
    Review.objects.using(alias).create(content_type=kind, object_id=str(_nth(Book, alias, n).pk), stars=v)


def _all_fields(alias: str, n: int, v: int) -> None:
    AllFields.objects.using(alias).update(
        decimal=_one("decimal", v),
        null_date=_one("date", v),
        small_integer=v,
        json={"k": _one("json", v)},
        null_float=_one("float", v),
        binary=bytes([v]),
    )


def _executemany(alias: str, n: int, v: int) -> None:
    with connections[alias].cursor() as cursor:
        cursor.executemany("UPDATE testapp_book SET pages = %s WHERE title = %s", [(v, "A"), (n, "B")])


def _raw_delete(alias: str, n: int, v: int) -> None:
    queryset: Any = Profile.objects.using(alias).filter(author=_nth(Author, alias, n))
    queryset._raw_delete(alias)


def _seat(alias: str, n: int, v: int) -> None:
    seat, is_new = Seat.objects.using(alias).get_or_create(hall=_one("char", v), number=n)
    if not is_new:
        Seat.objects.using(alias).filter(pk=seat.pk).update(taken=not seat.taken)


WRITES: Final[dict[str, Callable[[str, int, int], object]]] = {
    "save a book": _set(Book, title="char", price="decimal"),
    "save numbers of a book": _set(Book, pages="integer", rating="float", published="date"),
    "save the data of a book": lambda alias, n, v: (
        Book.objects.using(alias).filter(pk=_nth(Book, alias, n).pk).update(data={"k": _one("json", v)})
    ),
    "save an author": _set(Author, name="char"),
    "save a category": _set(Category, name="char"),
    "save a tag": _set(Tag, name="char"),
    "save a legacy tag": _set(LegacyTag, name="char"),
    "save a country": _set(Country, name="char"),
    "save a profile": _set(Profile, bio="char"),
    "save an e-book": _set(Ebook, title="char", format="char"),
    "save a library": _set(Library, name="char"),
    "save a place": _set(BookPlace, copies="integer"),
    "save a shelf": _set(Shelf, label="char"),
    "save a loaded book": _set(LoadedBook, title="char"),
    "save a made book": _set(MadeBook, title="char"),
    "save an expression": _expression,
    "save by key": _by_key,
    "save a deferred book": _deferred,
    "give a book another author": _move(Book, "author", Author),
    "give a book another category": _move(Book, "category", Category),
    "give an author another country": _move(Author, "country", Country),
    "give a category another parent": _move(Category, "parent", Category),
    "give a shelf another book": _move(Shelf, "book", Book),
    "create a book": lambda alias, n, v: Book.objects.using(alias).create(
        title=_one("char", v), author=_nth(Author, alias, n), price=_one("decimal", v)
    ),
    "create an author": lambda alias, n, v: Author.objects.using(alias).create(name=_one("char", v)),
    "create an e-book": _create_ebook,
    "create a shelf": lambda alias, n, v: Shelf.objects.using(alias).create(
        label=_one("char", v), book=_nth(Book, alias, n)
    ),
    "create a review": _create_review,
    "bulk_create": _bulk_create,
    "upsert": _upsert,
    "bulk_update": _bulk_update,
    "update books": lambda alias, n, v: (
        Book.objects.using(alias).filter(pages__gte=n).update(price=F("price") + v, in_print=bool(v % 2))
    ),
    "update over a relation": lambda alias, n, v: (
        Book.objects.using(alias).filter(author__name=_one("char", n)).update(title=_one("char", v))
    ),
    "update authors": lambda alias, n, v: Author.objects.using(alias).update(name=_one("char", v)),
    "update e-books": lambda alias, n, v: Ebook.objects.using(alias).update(pages=n, format=_one("char", v)),
    "update every field type": _all_fields,
    "delete a book": lambda alias, n, v: _nth(Book, alias, n).delete(),
    "delete an author": lambda alias, n, v: _nth(Author, alias, n).delete(),
    "delete a tag": lambda alias, n, v: _nth(Tag, alias, n).delete(),
    "delete an e-book": lambda alias, n, v: _nth(Ebook, alias, n).delete(),
    "delete keeping the parent": lambda alias, n, v: _nth(Ebook, alias, n).delete(keep_parents=True),
    "delete a category": lambda alias, n, v: _nth(Category, alias, n).delete(),  # protected: may raise
    "delete books": lambda alias, n, v: Book.objects.using(alias).filter(title=_one("char", v)).delete(),
    "delete a country": lambda alias, n, v: _nth(Country, alias, n).delete(),
    "raw delete": _raw_delete,
    "m2m add": lambda alias, n, v: _nth(Book, alias, n).tags.add(_nth(Tag, alias, v)),
    "m2m remove": lambda alias, n, v: _nth(Book, alias, n).tags.remove(_nth(Tag, alias, v)),
    "m2m set": lambda alias, n, v: _nth(Book, alias, n).tags.set([_nth(Tag, alias, v)]),
    "m2m clear": lambda alias, n, v: _nth(Book, alias, n).tags.clear(),
    "m2m from the other side": lambda alias, n, v: _nth(Tag, alias, n).books.add(_nth(Book, alias, v)),
    "through model": lambda alias, n, v: BookPlace.objects.using(alias).create(
        library=_nth(Library, alias, n), book=_nth(Book, alias, v), copies=v
    ),
    "through table": lambda alias, n, v: (
        Book.tags.through.objects.using(alias).filter(book=_nth(Book, alias, n)).delete()
    ),
    "get_or_create": lambda alias, n, v: Tag.objects.using(alias).get_or_create(name=_one("char", v)),
    "update_or_create": lambda alias, n, v: Country.objects.using(alias).update_or_create(
        code=_one("code", n), defaults={"name": _one("char", v)}
    ),
    "composite key": _seat,
    "taken slug": lambda alias, n, v: Category.objects.using(alias).create(
        name="A", slug=_nth(Category, alias, n).slug
    ),
    "raw update": lambda alias, n, v: _execute(
        alias, "UPDATE testapp_book SET title = %s WHERE pages >= %s", [_one("char", v), n]
    ),
    "raw update of authors": lambda alias, n, v: _execute(
        alias, "update testapp_author set name = %s", [_one("char", v)]
    ),
    "raw insert": lambda alias, n, v: _execute(
        alias, "/* x */ INSERT INTO testapp_tag (name) VALUES (%s)", [_one("char", v)]
    ),
    "raw delete of the through table": lambda alias, n, v: _execute(alias, "DELETE FROM testapp_book_tags"),
    "raw executemany": _executemany,
    # Refused at once or, where constraints are deferred, at COMMIT.
    "raw dangling key": lambda alias, n, v: _execute(
        alias, "UPDATE testapp_shelf SET book_id = -1, label = %s", [_one("char", v)]
    ),
}

COMMON_WRITES: Final = (
    "update books", "update authors", "save a book", "save an author", "save a tag", "save a country", "create a book",
    "delete a book", "bulk_update", "m2m set", "raw update",
)  # fmt: skip
"""Writes that change most results; drawn more often."""

RAW_WRITES: Final = (
    "raw update", "raw update of authors", "raw insert", "raw executemany", "update authors", "update books",
    "raw delete of the through table",
)  # fmt: skip
"""Writes that open no transaction of their own, for a transaction that was begun by SQL."""

TABLES: Final[tuple[type[models.Model], ...]] = (
    Review, Seat, LoadedBook, MadeBook, AllFields, Shelf, BookPlace, Library, Book.tags.through, Ebook, Book, Profile,
    Tag, Author, Country, Category,
)  # fmt: skip
"""What the writes write, children before their parents. Category refers to itself."""


def empty(alias: str) -> None:
    """Delete every row."""
    _execute(alias, "UPDATE testapp_category SET parent_id = NULL")
    for model in TABLES:
        _execute(alias, f"DELETE FROM {model._meta.db_table}")


def seed(alias: str) -> None:
    """Make a small shop."""
    countries = Country.objects.using(alias).bulk_create([Country(code="GB", name="A"), Country(code="DE", name="B")])
    authors = [Author.objects.using(alias).create(name=name, country=countries[0]) for name in ("A", "B")]
    authors.append(Author.objects.using(alias).create(name="Zoe"))
    Profile.objects.using(alias).create(author=authors[0], bio="A")
    parent = Category.objects.using(alias).create(name="A", slug="A")
    category = Category.objects.using(alias).create(name="B", slug="B", parent=parent)
    tags = [Tag.objects.using(alias).create(name=name) for name in ("A", "B")]
    books = [
        Book.objects.using(alias).create(
            title=title,
            author=author,
            category=(category, None)[index % 2],
            price=Decimal(index),
            pages=index,
            published=POOLS["date"][index % 2],
            data={"k": index},
        )
        for index, (title, author) in enumerate(zip("ABa", authors, strict=True))
    ]
    books[0].tags.set(tags)
    books[1].tags.set(tags[:1])
    Ebook.objects.using(alias).create(title="B", author=authors[0], format="A")
    library = Library.objects.using(alias).create(name="A")
    BookPlace.objects.using(alias).create(library=library, book=books[0], copies=1)
    Shelf.objects.using(alias).bulk_create([Shelf(label=label, book=books[0]) for label in "AB"])
    Seat.objects.using(alias).create(hall="A", number=1)
    LoadedBook.objects.using(alias).create(title="A")
    MadeBook.objects.using(alias).create(title="A")
    AllFields.objects.using(alias).create()
