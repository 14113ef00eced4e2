"""
Precision: a write drops the results that it could have changed, and no others. One case for each rule of
docs/explanation/precision.md, both ways, on every database.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import models, transaction
from django.db.models import Count, F, Q, Sum
from django.utils import timezone

from live_cache import live, recording
from tests.cache_kinds import caches_of
from tests.test_async_reads import comparable
from tests.testapp.models import Author, Book, Category, Country, Tag

pytestmark = pytest.mark.django_db(transaction=True)


class Format(models.TextChoices):
    """Titles, as an enumeration."""

    FIRST = "Book 0"


@pytest.fixture
def shop(alias: str, settings: Any, tmp_path: Any) -> str:
    """Two authors, two categories, and ten books whose prices, pages and dates are in one order."""
    settings.CACHES = caches_of("process", tmp_path, None)
    country = Country.objects.using(alias).create(code="DE", name="Germany")
    ann, ben = (Author.objects.using(alias).create(name=name, country=country) for name in ("Ann", "Ben"))
    novels, poems = (Category.objects.using(alias).create(name=name, slug=name) for name in ("novels", "poems"))
    for number in range(10):
        Book.objects.using(alias).create(
            title=f"Book {number}",
            author=(ann, ben)[number % 2],
            category=(novels, poems)[number % 2],
            price=Decimal(number * 10),
            pages=number * 100,
            published=date(2024, 1, 1) + timedelta(days=number),
        )
    return alias


def book(shop: str, number: int) -> Any:
    """Return the queryset of one book."""
    return Book.objects.using(shop).filter(title=f"Book {number}")


def new_book(shop: str, **values: Any) -> None:
    """Add a book of Ann's."""
    Book.objects.using(shop).create(**({"title": "New", "author": Author.objects.using(shop).get(name="Ann")} | values))


def novels(shop: str) -> Category:
    return Category.objects.using(shop).get(name="novels")


def save_of_one_field(shop: str) -> None:
    found = book(shop, 1).get()
    found.rating = 4.5
    found.save()


Query = Callable[[Any], Any]
Write = Callable[[str], object]

BY_CATEGORY: Query = lambda books: list(books.filter(category__slug="novels").values_list("pk", "title"))  # noqa: E731
NOVELS: Query = lambda books: list(books.filter(category=novels(books.db)).order_by("pk").only("title", "price"))  # noqa: E731
CHEAP: Query = lambda books: list(books.filter(price__lt=25).values_list("title", flat=True).order_by("pk"))  # noqa: E731
PAGE: Query = lambda books: list(books.order_by("-published", "-pk").values_list("pk", "published", "title")[2:5])  # noqa: E731
FIRST_PAGE: Query = lambda books: list(books.order_by("pages", "pk").values_list("pk", "pages", "title")[:3])  # noqa: E731
WITH_AUTHORS: Query = lambda books: [  # noqa: E731
    (each.title, each.author.name) for each in books.filter(pages__lt=300).select_related("author").order_by("pk")
]
COUNT: Query = lambda books: books.filter(in_print=True, pages__gte=500).count()  # noqa: E731
ANY_DEAR: Query = lambda books: books.filter(price__gt=85).exists()  # noqa: E731
SUMS: Query = lambda books: list(books.order_by("category").values("category").annotate(Sum("pages")))  # noqa: E731
EITHER: Query = lambda books: list(books.filter(Q(pages=100) | Q(price__gte=80)).order_by("pk").values_list("pk"))  # noqa: E731
NOT_OLD: Query = lambda books: list(  # noqa: E731
    books.exclude(published__lt=date(2024, 1, 5)).order_by("pk").values_list("pk", flat=True)
)
BY_CHOICE: Query = lambda books: list(books.filter(title=Format.FIRST).values_list("pk", "pages"))  # noqa: E731
CATEGORIES_SHOWN: Query = lambda books: list(books.order_by("category").values_list("category").distinct())  # noqa: E731
TAGGED: Query = lambda books: list(books.annotate(Count("tags")).order_by("pk").values_list("pk", "tags__count"))  # noqa: E731

KEPT: dict[str, tuple[Query, Write]] = {
    "a column that is not named": (NOVELS, lambda shop: book(shop, 0).update(pages=F("pages") + 1)),
    "another bucket": (NOVELS, lambda shop: book(shop, 1).update(title="Other")),
    "another bucket, inserted": (NOVELS, lambda shop: new_book(shop, category=None)),
    "another bucket, deleted": (NOVELS, lambda shop: book(shop, 3).delete()),
    "outside of a range": (CHEAP, lambda shop: book(shop, 9).update(price=Decimal(99))),
    "a save of one field": (NOVELS, save_of_one_field),
    "a save of nothing": (NOVELS, lambda shop: book(shop, 0).get().save()),
    "a rollback": (NOVELS, lambda shop: roll_back(shop)),
    "behind the window": (PAGE, lambda shop: book(shop, 2).update(title="Renamed")),
    "behind the window, inserted": (PAGE, lambda shop: new_book(shop, published=date(2020, 1, 1))),
    "behind the window, deleted": (PAGE, lambda shop: book(shop, 0).delete()),
    "before the window, renamed": (PAGE, lambda shop: book(shop, 9).update(title="Renamed")),
    "before the window, moved there": (
        PAGE,
        lambda shop: book(shop, 9).update(published=date(2025, 1, 1)),
    ),
    "the name of somebody not shown": (
        WITH_AUTHORS,
        lambda shop: Author.objects.using(shop).create(name="New").save(),
    ),
    "somebody else's row": (WITH_AUTHORS, lambda shop: Country.objects.using(shop).update(population=1)),
    "a column that is only shown, for a count": (COUNT, lambda shop: book(shop, 8).update(title="Other")),
    "still counted": (COUNT, lambda shop: book(shop, 8).update(pages=801)),
    "one more of those that exist": (ANY_DEAR, lambda shop: new_book(shop, price=Decimal(95))),
    "another column of a sum": (SUMS, lambda shop: book(shop, 2).update(price=Decimal(3))),
    "neither of two": (EITHER, lambda shop: book(shop, 4).update(price=Decimal(41), pages=401)),
    "old, and older": (NOT_OLD, lambda shop: book(shop, 1).update(published=date(2023, 1, 1))),
    "shown already by DISTINCT": (CATEGORIES_SHOWN, lambda shop: new_book(shop, category=novels(shop))),
}
"""What leaves the result as it is, and is known to do so."""

DROPPED: dict[str, tuple[Query, Write]] = {
    "a column that is shown": (NOVELS, lambda shop: book(shop, 0).update(title="Renamed")),
    "into the bucket": (NOVELS, lambda shop: book(shop, 1).update(category=novels(shop))),
    "out of the bucket": (NOVELS, lambda shop: book(shop, 0).update(category=None)),
    "into the bucket, inserted": (NOVELS, lambda shop: new_book(shop, category=novels(shop))),
    "a column of the other table": (
        BY_CATEGORY,
        lambda shop: Category.objects.using(shop).filter(name="novels").update(slug="prose"),
    ),
    "into a range": (CHEAP, lambda shop: book(shop, 9).update(price=Decimal(9))),
    "into the window": (PAGE, lambda shop: book(shop, 0).update(published=date(2024, 1, 7))),
    "before the window, inserted": (PAGE, lambda shop: new_book(shop, published=date(2025, 1, 1))),
    "before the window, deleted": (PAGE, lambda shop: book(shop, 9).delete()),
    "inside of the window": (PAGE, lambda shop: book(shop, 6).update(title="Renamed")),
    "to the top of the first page": (FIRST_PAGE, lambda shop: new_book(shop, pages=-1)),
    "the name of somebody shown": (
        WITH_AUTHORS,
        lambda shop: Author.objects.using(shop).filter(name="Ben").update(name="Bob"),
    ),
    "out of the count": (COUNT, lambda shop: book(shop, 8).update(in_print=False)),
    "the last that exists": (ANY_DEAR, lambda shop: book(shop, 9).delete()),
    "the column of a sum": (SUMS, lambda shop: book(shop, 2).update(pages=1)),
    "the second of two": (EITHER, lambda shop: book(shop, 4).update(price=Decimal(80))),
    "old no more": (NOT_OLD, lambda shop: book(shop, 1).update(published=date(2025, 1, 1))),
    "new to DISTINCT": (CATEGORIES_SHOWN, lambda shop: new_book(shop, category=None)),
    "a row of a many-to-many field": (
        TAGGED,
        lambda shop: book(shop, 1).get().tags.add(Tag.objects.using(shop).create(name="x")),
    ),
}
"""What changes the result."""


def roll_back(shop: str) -> None:
    with transaction.atomic(using=shop):
        book(shop, 0).update(title="Never")
        transaction.set_rollback(True, using=shop)


def read(shop: str, query: Query) -> tuple[Any, bool]:
    """Return what the live query gives, and whether it was a hit."""
    with recording() as records:
        found = query(live(Book.objects.using(shop)))
    return comparable(found), records[-1].is_hit


@pytest.mark.parametrize("case", KEPT)
def test_what_changes_nothing_drops_nothing(shop: str, case: str) -> None:
    """The next read is a hit, and equals the database."""
    query, write = KEPT[case]
    read(shop, query)
    assert read(shop, query)[1]
    write(shop)
    assert (comparable(query(Book.objects.using(shop))), True) == read(shop, query)


@pytest.mark.parametrize("case", DROPPED)
def test_what_changes_the_result_drops_it(shop: str, case: str) -> None:
    """The next read fetches, and equals the database, which says something else than before."""
    query, write = DROPPED[case]
    before, _ = read(shop, query)
    assert read(shop, query) == (before, True)
    write(shop)
    now = comparable(query(Book.objects.using(shop)))
    assert now != before
    assert (now, False) == read(shop, query)


@pytest.mark.parametrize("case", ["another bucket of texts", "another choice"])
def test_texts_are_compared_where_the_database_takes_only_the_same_for_equal(shop: str, case: str) -> None:
    """On MariaDB equal texts may differ, so there every write of the table drops it."""
    query: Query = BY_CHOICE if case == "another choice" else lambda books: list(books.filter(title="Book 0"))
    read(shop, query)
    book(shop, 5).update(title="Book V", pages=7)
    assert (comparable(query(Book.objects.using(shop))), shop != "mariadb") == read(shop, query)


def test_writes_are_told_by_table_if_told_so(shop: str, settings: Any) -> None:
    """LIVE_CACHE_PRECISE = False drops all that reads the table."""
    settings.LIVE_CACHE_PRECISE = False
    read(shop, NOVELS)
    book(shop, 1).update(pages=F("pages") + 1)
    assert not read(shop, NOVELS)[1]


def test_what_was_proven_is_not_proven_again(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second read after a change judges nothing."""
    from live_cache.shapes.shape import Scope

    judged = []
    cause = Scope.cause
    monkeypatch.setattr(Scope, "cause", lambda self, *args, **kw: judged.append(args) or cause(self, *args, **kw))
    read(shop, NOVELS)
    book(shop, 1).update(title="Other")
    for expected in (1, 1, 2):
        if expected == 2:
            book(shop, 3).update(created=timezone.now())
            book(shop, 3).update(title="Another")
        assert read(shop, NOVELS)[1]
        assert expected <= len(judged)
    assert len(judged) == 3


def test_an_entry_outlives_the_log(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lags behind is stored again, so that it stays fresh when the log no longer reaches back to its fill."""
    from live_cache.ledger import process
    from live_cache.shapes import witness

    monkeypatch.setattr(process, "LOG_LENGTH", 8)
    monkeypatch.setattr(witness, "LOG_LENGTH", 8)
    read(shop, NOVELS)
    for number in range(30):
        book(shop, 1).update(title=f"Other {number}")
        Book.objects.using(shop).filter(title=f"Other {number}").update(title="Book 1")
        assert read(shop, NOVELS)[1]
    witness._states.clear()  # as another process
    assert read(shop, NOVELS)[1]


def test_an_entry_behind_the_log_is_stale(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody has read while more was written than the log keeps is fetched again."""
    from live_cache.ledger import process

    monkeypatch.setattr(process, "LOG_LENGTH", 8)
    read(shop, NOVELS)
    for number in range(9):
        book(shop, 1).update(pages=number + 1000)
    with recording() as records:
        assert comparable(NOVELS(Book.objects.using(shop))) == comparable(NOVELS(live(Book.objects.using(shop))))
    assert (records[-1].is_hit, records[-1].reason) == (False, "unknown")
