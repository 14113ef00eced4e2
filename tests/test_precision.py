"""
Precision: a write drops the results that it could have changed, and no others. One case for each rule of
docs/explanation/precision.md, both ways, on every database.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import date, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import DatabaseError, connections, models, transaction
from django.db.models import Count, F, Q, Sum
from django.db.models.functions import TruncYear
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from live_cache import live, recording
from live_cache.links import LinkReader
from live_cache.shapes import links
from tests.cache_kinds import caches_of
from tests.compared import comparable
from tests.conftest import SecondConnection
from tests.machine.faults import Holds
from tests.precision import broken
from tests.test_async_reads import hops_of
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
YEARS: Query = lambda books: list(books.dates("published", "year"))  # noqa: E731
TAGGED: Query = lambda books: list(books.annotate(Count("tags")).order_by("pk").values_list("pk", "tags__count"))  # noqa: E731

BY_ANN: Query = lambda books: list(books.filter(author__name="Ann").order_by("pk").values_list("pk", "title"))  # noqa: E731
ANN_OR_DEAR: Query = lambda books: list(  # noqa: E731
    books.filter(Q(author__name__icontains="ann") | Q(price__gte=90)).order_by("pk").values_list("pk", "title")
)
NOVEL_OR_DEAR: Query = lambda books: list(  # noqa: E731
    books.filter(Q(category__slug="novels") | Q(price__gte=90)).order_by("pk").values_list("pk", "title")
)
NO_NOVEL: Query = lambda books: list(  # noqa: E731
    books.filter(~Q(category__slug="novels")).order_by("pk").values_list("pk", "title")
)
TOP_OF_ANN: Query = lambda books: list(books.filter(author__name="Ann").order_by("-published").values("published")[:2])  # noqa: E731
BY_BEA: Query = lambda books: list(books.filter(author__name="Bea").order_by("pk").values_list("title"))  # noqa: E731
OF_ANN: Query = lambda books: books.filter(author__name="Ann", in_print=True).count()  # noqa: E731
PAGES_OF_ANN: Query = lambda books: list(  # noqa: E731
    books.filter(author__name="Ann").order_by("category").values("category").annotate(Sum("pages"))
)
RED: Query = lambda books: list(books.filter(tags=red(books.db)).order_by("-published").values("published")[:2])  # noqa: E731

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
    "shown already among years": (YEARS, lambda shop: new_book(shop, published=date(2024, 12, 31))),
    "a book of another author, inserted": (BY_ANN, lambda shop: add_book_of_ben(shop)),
    "a book that comes to the window, of another author": (
        TOP_OF_ANN,
        lambda shop: book(shop, 1).update(published=date(2025, 1, 1)),
    ),
    "a book that leaves an author for one who is not asked for": (
        BY_BEA,
        lambda shop: book(shop, 0).update(author=author(shop, "Ben")),
    ),
    "a book of another author, deleted": (BY_ANN, lambda shop: book(shop, 1).delete()),
    "a book of neither": (ANN_OR_DEAR, lambda shop: book(shop, 1).update(title="Other")),
    "a book of no category": (NOVEL_OR_DEAR, lambda shop: new_book(shop, category=None)),
    "a book of another category": (NOVEL_OR_DEAR, lambda shop: book(shop, 1).update(title="Other")),
    "another author's, for a count": (OF_ANN, lambda shop: book(shop, 1).update(in_print=False)),
    "another author's, for a sum": (PAGES_OF_ANN, lambda shop: book(shop, 1).update(pages=7)),
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
    "a new year": (YEARS, lambda shop: new_book(shop, published=date(2025, 1, 1))),
    "new to DISTINCT": (CATEGORIES_SHOWN, lambda shop: new_book(shop, category=None)),
    "a book that comes to an author": (BY_ANN, lambda shop: book(shop, 1).update(author=author(shop, "Ann"))),
    "a book that leaves an author": (BY_ANN, lambda shop: book(shop, 0).update(author=author(shop, "Ben"))),
    "a book of the author, inserted": (BY_ANN, lambda shop: new_book(shop)),
    "an author who comes to match": (BY_ANN, lambda shop: rename(shop, "Ben", "Ann")),
    "an author who matches no more": (BY_ANN, lambda shop: rename(shop, "Ann", "Ada")),
    "an author, deleted with his books": (BY_ANN, lambda shop: author(shop, "Ann").delete()),
    "an author and a book of his, in one transaction": (BY_ANN, lambda shop: add_author_and_book(shop)),
    "an author who leaves, and his book that comes": (BY_ANN, lambda shop: leave_and_come(shop)),
    "a book of the author that comes to the window": (
        TOP_OF_ANN,
        lambda shop: book(shop, 0).update(published=date(2025, 1, 1)),
    ),
    "a book of one of two": (ANN_OR_DEAR, lambda shop: book(shop, 0).update(title="Other")),
    "a book that comes to a category": (NOVEL_OR_DEAR, lambda shop: book(shop, 1).update(category=novels(shop))),
    "a book of no category, where none is asked for": (NO_NOVEL, lambda shop: new_book(shop, category=None)),
    "one more of the author's, for a count": (OF_ANN, lambda shop: book(shop, 1).update(author=author(shop, "Ann"))),
    "another of the author's, for a sum": (PAGES_OF_ANN, lambda shop: book(shop, 0).update(pages=7)),
    "a row of a many-to-many field": (
        TAGGED,
        lambda shop: book(shop, 1).get().tags.add(Tag.objects.using(shop).create(name="x")),
    ),
}
"""What changes the result."""


def author(shop: str, name: str) -> Author:
    return Author.objects.using(shop).get(name=name)


def rename(shop: str, name: str, other: str) -> None:
    Author.objects.using(shop).filter(name=name).update(name=other)


def add_book_of_ben(shop: str) -> None:
    Book.objects.using(shop).create(title="New", author=author(shop, "Ben"))


def add_author_and_book(shop: str) -> None:
    with transaction.atomic(using=shop):
        Book.objects.using(shop).create(title="New", author=Author.objects.using(shop).create(name="Ann"))


def leave_and_come(shop: str) -> None:
    """Each could be excluded by what the other is now."""
    with transaction.atomic(using=shop):
        book(shop, 0).update(author=author(shop, "Ben"))
        rename(shop, "Ann", "Ada")


def red(shop: str) -> Tag:
    return Tag.objects.using(shop).get_or_create(name="red")[0]


def tag(shop: str, number: int) -> None:
    Book.tags.through._base_manager.using(shop).create(book=book(shop, number).get(), tag=red(shop))


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


def test_a_moment_of_a_month_that_is_shown_changes_nothing(shop: str) -> None:
    """Of a list of months, in UTC; elsewhere a month may begin at another moment than it seems."""
    months: Query = lambda books: list(books.datetimes("created", "month"))  # noqa: E731
    with timezone.override("UTC"):
        read(shop, months)
        new_book(shop)
        assert read(shop, months) == (plainly(shop, months), True)
        new_book(shop, created=timezone.now() - timedelta(days=99))
        assert read(shop, months) == (plainly(shop, months), False)


def test_no_date_is_in_no_year(shop: str) -> None:
    """A row without a date is judged, too."""
    years: Query = lambda books: list(books.values_list(TruncYear("published")).distinct())  # noqa: E731
    read(shop, years)
    new_book(shop, published=None)
    assert read(shop, years) == (plainly(shop, years), False)


def test_a_referred_row_that_others_are_not_judged_by_changes_nothing(shop: str) -> None:
    """An author comes without books; only one whose name may match is judged, as MariaDB does not tell."""
    read(shop, ANN_OR_DEAR)
    Author.objects.using(shop).create(name="Cid")
    assert read(shop, ANN_OR_DEAR) == (plainly(shop, ANN_OR_DEAR), shop != "mariadb")
    Author.objects.using(shop).create(name="Hannah")
    assert read(shop, ANN_OR_DEAR) == (plainly(shop, ANN_OR_DEAR), False)


def test_writes_are_told_by_table_if_told_so(shop: str, settings: Any) -> None:
    """LIVE_CACHE_PRECISE = False drops all that reads the table."""
    settings.LIVE_CACHE_PRECISE = False
    read(shop, NOVELS)
    book(shop, 1).update(pages=F("pages") + 1)
    assert not read(shop, NOVELS)[1]


def test_what_was_proven_is_not_proven_again(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second read after a change judges nothing."""
    from live_cache.shapes.scope import Scope

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


# -- link sets --------------------------------------------------------------------------------------------------------


class Around:
    """Runs a write when a read comes to a link set, before its SELECT or after it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads = 0
        self.before: Callable[[], object] | None = None
        self.after: Callable[[], object] | None = None
        values = LinkReader.values

        def around(reader: LinkReader, link: Any) -> Any:
            self.reads += 1
            self._run("before")
            found = values(reader, link)
            self._run("after")
            return found

        monkeypatch.setattr(LinkReader, "values", around)

    def _run(self, when: str) -> None:
        write = getattr(self, when)
        setattr(self, when, None)
        if write is not None:
            write()


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch) -> Around:
    """What happens while a link set is read."""
    return Around(monkeypatch)


def plainly(shop: str, query: Query) -> Any:
    return comparable(query(Book.objects.using(shop)))


def test_a_link_set_is_read_once_for_all_that_ask_the_same(shop: str, around: Around) -> None:
    """Its SELECT is one of few, shared by every page, count and list with this condition."""
    for query in (BY_ANN, OF_ANN, PAGES_OF_ANN):
        read(shop, query)
    with CaptureQueriesContext(connections[shop]) as sent:
        for _ in range(3):
            add_book_of_ben(shop)
            for query in (BY_ANN, OF_ANN, PAGES_OF_ANN):
                assert read(shop, query) == (plainly(shop, query), True)
    assert around.reads >= 3
    assert len([each for each in sent.captured_queries if "DISTINCT" in each["sql"]]) == 1


def test_rows_between_two_tables_are_linked_to(shop: str, around: Around) -> None:
    """A book comes to the window if it has the tag; what else of it changes is judged by the same set."""
    for number in (0, 2, 4):
        tag(shop, number)
    read(shop, RED)
    book(shop, 1).update(published=date(2025, 1, 1))
    assert read(shop, RED) == (plainly(shop, RED), True)
    book(shop, 0).update(published=date(2025, 1, 2))
    assert read(shop, RED) == (plainly(shop, RED), False)
    with transaction.atomic(using=shop):
        tag(shop, 3)
        book(shop, 3).update(published=date(2025, 1, 3))
    assert read(shop, RED) == (plainly(shop, RED), False)
    with transaction.atomic(using=shop):
        book(shop, 3).get().tags.clear()
        book(shop, 3).update(published=date(2025, 1, 4))
    assert read(shop, RED) == (plainly(shop, RED), False)
    assert around.reads


def test_what_is_added_to_a_many_to_many_field_is_told_by_row(shop: str) -> None:
    """Another tag drops nothing, nor one that is there already; MariaDB does not tell which rows it has ignored."""
    blue = Tag.objects.using(shop).create(name="blue")
    for number in (0, 2, 4):
        tag(shop, number)
    first = book(shop, 0).get()
    read(shop, RED)
    for tags in ([blue], [red(shop)], [blue, red(shop)]):
        through = Book.tags.through._base_manager.using(shop)
        through.bulk_create([through.model(book=first, tag=each) for each in tags], ignore_conflicts=True)
        assert read(shop, RED) == (plainly(shop, RED), shop != "mariadb")
        read(shop, RED)
    with transaction.atomic(using=shop):
        book(shop, 5).get().tags.add(red(shop), blue)
    assert read(shop, RED) == (plainly(shop, RED), False)
    assert through.filter(book=first).count() == 2


def test_a_link_set_is_not_read_where_it_cannot_help(shop: str, around: Around) -> None:
    """What is excluded without it, or is dropped by the row that is linked to, asks for none."""
    read(shop, BY_ANN)
    rename(shop, "Ann", "Ada")
    add_book_of_ben(shop)
    assert not read(shop, BY_ANN)[1]
    book(shop, 1).update(pages=3)
    assert read(shop, BY_ANN)[1]
    assert around.reads == 0


def test_a_partner_that_leaves_before_the_set_is_read(shop: str, around: Around) -> None:
    """The read shows the new book with the others of its author, or none of them: never the others alone."""
    before = read(shop, BY_ANN)[0]
    new_book(shop)
    with_new = plainly(shop, BY_ANN)
    around.before = lambda: rename(shop, "Ann", "Ada")
    found, _ = read(shop, BY_ANN)
    assert around.reads == 1
    assert before
    assert found in (with_new, plainly(shop, BY_ANN))
    assert read(shop, BY_ANN)[0] == plainly(shop, BY_ANN)


def test_a_partner_that_is_inserted_after_the_set_was_read(shop: str, around: Around) -> None:
    """A book that refers to it, inserted in the same gap, is not excluded for good."""
    read(shop, BY_ANN)
    add_book_of_ben(shop)
    around.after = lambda: add_author_and_book(shop)
    read(shop, BY_ANN)
    assert around.reads == 1
    for _ in range(2):
        assert read(shop, BY_ANN)[0] == plainly(shop, BY_ANN)
    assert len(plainly(shop, BY_ANN)[1]) == 6


def test_a_partner_that_comes_and_goes_around_the_set(shop: str, around: Around) -> None:
    """A book that is moved while its author matches is told, though he matches neither before nor after."""
    read(shop, BY_ANN)
    add_book_of_ben(shop)

    def come_and_go() -> None:
        rename(shop, "Ben", "Ann")
        book(shop, 3).update(title="Mine")
        rename(shop, "Ann", "Ada")

    around.after = come_and_go
    read(shop, BY_ANN)
    assert around.reads == 1
    assert read(shop, BY_ANN)[0] == plainly(shop, BY_ANN)


def test_a_change_in_commit_holds_what_is_linked_to_it(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an author is renamed, between COMMIT and tick, nobody judges a book by whether he matches."""
    read(shop, BY_ANN)
    add_book_of_ben(shop)
    reasons: list[str] = []
    other = SecondConnection(shop)

    def look() -> None:
        with recording() as records:
            assert comparable(BY_ANN(live(Book.objects.using(shop)))) == plainly(shop, BY_ANN)
        reasons.append(records[-1].reason)

    holds = Holds(monkeypatch)
    holds.at(threading.get_ident(), "before tick", lambda: other.run(look))
    try:
        rename(shop, "Ben", "Ann")
    finally:
        other.close()
    assert reasons == ["held"]
    assert read(shop, BY_ANN)[0] == plainly(shop, BY_ANN)


NO_SLUG: Query = lambda books: list(  # noqa: E731
    books.filter(Q(category__slug__isnull=True) | Q(price__gte=90)).order_by("pk").values_list("pk")
)


def stop_printing_and_leave(shop: str) -> None:
    """The books are in print no more, and their author has another name: each explains why the other does not count."""
    with transaction.atomic(using=shop):
        Book.objects.using(shop).filter(author=author(shop, "Ann")).update(in_print=False)
        rename(shop, "Ann", "Ada")


def come_after_the_set(shop: str) -> None:
    add_book_of_ben(shop)
    read(shop, OF_ANN)
    rename(shop, "Ben", "Ann")
    read(shop, OF_ANN)
    Book.objects.using(shop).create(title="New", author=Author.objects.using(shop).latest("pk"))


NEEDED: dict[Callable[[pytest.MonkeyPatch], None], tuple[Query, Write]] = {
    broken.link_both_ways: (OF_ANN, stop_printing_and_leave),
    broken.anchor_what_is_linked: (OF_ANN, lambda shop: author(shop, "Ann").delete()),
    broken.keep_link_sets: (OF_ANN, come_after_the_set),
    broken.take_outer_links_for_inner: (NO_SLUG, lambda shop: new_book(shop, category=None)),
}
"""Rules of link sets, each left out, with what is stale then."""


@pytest.mark.parametrize("is_broken", [False, True])
@pytest.mark.parametrize("break_it", NEEDED, ids=lambda function: function.__name__)
def test_each_rule_of_link_sets_is_needed(
    shop: str, break_it: Callable[[pytest.MonkeyPatch], None], is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without it a read is stale, with it none is."""
    query, write = NEEDED[break_it]
    if is_broken:
        break_it(monkeypatch)
    before = read(shop, query)[0]
    write(shop)
    assert before != plainly(shop, query)
    assert (read(shop, query)[0] != plainly(shop, query)) is is_broken


@pytest.mark.parametrize("is_broken", [False, True])
def test_link_sets_are_judged_by_newer_readings(
    shop: str, around: Around, is_broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under the old ones, a read shows some books of an author, and not the one that came before he left."""
    if is_broken:
        broken.judge_link_sets_by_old_readings(monkeypatch)
    read(shop, OF_ANN)
    new_book(shop)
    at_the_start = plainly(shop, OF_ANN)
    around.before = lambda: rename(shop, "Ann", "Ada")
    found = read(shop, OF_ANN)[0]
    assert (found not in (at_the_start, plainly(shop, OF_ANN))) is is_broken


def test_a_link_set_that_is_too_large_says_nothing(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then each row of the table counts."""
    monkeypatch.setattr(links, "MAX_VALUES", 0)
    read(shop, BY_ANN)
    add_book_of_ben(shop)
    assert read(shop, BY_ANN) == (plainly(shop, BY_ANN), False)


def test_a_link_set_that_fails_says_nothing(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry is stale, the reader goes to the database, and says what has happened."""
    read(shop, BY_ANN)
    add_book_of_ben(shop)

    def fail(*args: Any) -> Any:
        raise DatabaseError("gone")

    with monkeypatch.context() as patch:
        patch.setattr(LinkReader, "_values", fail)
        assert read(shop, BY_ANN) == (plainly(shop, BY_ANN), False)
    assert read(shop, BY_ANN) == (plainly(shop, BY_ANN), True)


def test_a_link_set_that_breaks_a_transaction_raises_its_error(shop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As any query would: the reader cannot go to the database, where the transaction refuses whatever follows."""
    if connections[shop].vendor == "sqlite":
        pytest.skip("A read in a transaction of SQLite goes to the database, and asks for no link set.")
    read(shop, BY_ANN)
    add_book_of_ben(shop)

    def fail(reader: LinkReader, link: Any) -> Any:
        with reader.connection.cursor() as cursor:
            cursor.execute("SELECT nothing FROM nowhere")

    with monkeypatch.context() as patch:
        patch.setattr(LinkReader, "_values", fail)
        with pytest.raises(DatabaseError, match=r"(?i)nowhere"), transaction.atomic(using=shop):
            read(shop, BY_ANN)
    assert read(shop, BY_ANN) == (plainly(shop, BY_ANN), True)


def test_a_link_set_on_an_event_loop(shop: str) -> None:
    """Its SELECT takes a thread; from memory it is read on the loop, where nobody need ask for the table's engine."""
    queryset = live(Book.objects.using(shop).filter(author__name="Ann"))
    is_asked = connections[shop].vendor == "mysql"

    def count() -> tuple[int, bool]:
        number, hops = hops_of(queryset.acount)
        return number, hops > 0

    assert count() == (5, True)
    add_book_of_ben(shop)
    assert count() == (5, True)
    add_book_of_ben(shop)
    assert count() == (5, is_asked)
    rename(shop, "Ben", "Ann")
    assert count() == (12, True)


def test_a_link_set_says_nothing_on_a_connection_that_may_see_an_older_state(
    shop: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An unfinished cursor pins SQLite to the rows from before: a set of then would exclude what has come since."""
    if connections[shop].vendor != "sqlite":
        pytest.skip("Only SQLite's connection has one snapshot for all its cursors.")
    said = []
    values = LinkReader.values
    monkeypatch.setattr(LinkReader, "values", lambda self, link: said.append(values(self, link)) or said[-1])
    read(shop, BY_ANN)
    add_book_of_ben(shop)
    with connections[shop].cursor() as cursor:
        cursor.execute("SELECT id FROM testapp_book")
        cursor.fetchone()
        read(shop, BY_ANN)
    assert said == [None]
    assert read(shop, BY_ANN) == (plainly(shop, BY_ANN), True)


def test_explain_says_what_a_result_is_linked_to(shop: str) -> None:
    """In words; and it judges as a reader does."""
    read(shop, BY_ANN)
    add_book_of_ben(shop)
    live_books = live(Book.objects.using(shop).filter(author__name="Ann").order_by("pk").values_list("pk", "title"))
    text = str(live_books.live_explain())
    assert "author_id among those of testapp_author.id where name = 'Ann'" in text
    assert "fresh" in text
