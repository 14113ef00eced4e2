"""The read surface of the ORM: each shape is cached, equals the database, and sees the writes that change it."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest
from django.db import connections, models
from django.db.models import (
    Avg,
    Case,
    Count,
    DateTimeField,
    DecimalField,
    Exists,
    ExpressionWrapper,
    F,
    FilteredRelation,
    FloatField,
    Func,
    IntegerField,
    Max,
    Min,
    OuterRef,
    Q,
    StdDev,
    Subquery,
    Sum,
    TextField,
    Value,
    Variance,
    When,
    Window,
    functions,
)
from django.db.models.expressions import RawSQL, RowRange
from django.utils import timezone

from live_cache import LiveManager, live, recording, register_codec
from tests.compared import state_of_row
from tests.test_queryset import books, queries_of
from tests.testapp.models import (
    Author,
    Book,
    BookPlace,
    Category,
    CheapBook,
    Country,
    Currency,
    Ebook,
    Library,
    Profile,
    Seat,
    Shelf,
    Tag,
)

__all__ = ["books"]


def update_books(alias: str) -> None:
    """Change columns of one book that every shape over books looks at."""
    book = Book.objects.using(alias).order_by("pk")[2]
    Book.objects.using(alias).filter(pk=book.pk).update(
        title="A book changed",
        pages=200,
        price=Decimal("7.25"),
        rating=9.5,
        category=Category.objects.using(alias).get(),
        published=datetime.date(1999, 2, 3),
        created=datetime.datetime(1999, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    )


def add_book(alias: str) -> None:
    Book.objects.using(alias).create(
        title="A new book",
        author=Author.objects.using(alias).order_by("pk")[1],
        category=Category.objects.using(alias).get(),
        price=3,
        pages=100,
        published=datetime.date(1998, 2, 3),
        created=datetime.datetime(1998, 2, 3, 4, 5, 6, tzinfo=datetime.UTC),
    )


def update_authors(alias: str) -> None:
    Author.objects.using(alias).filter(name="Ann").update(name="Zoe", country=None)


def retag(alias: str) -> None:
    book = Book.objects.using(alias).order_by("pk")[1]
    book.tags.add(Tag.objects.using(alias).get())
    Shelf.objects.using(alias).create(label="A1", book=book)


def newest(alias: str) -> Any:
    return Book.objects.using(alias).filter(author=OuterRef("pk")).order_by("-pk")


# Each: the queryset over books, and one write at least that changes what it yields.
SHAPES: dict[str, tuple[Callable[[str, Any], Any], Callable[[str], None]]] = {
    "union of three, sliced": (
        lambda a, qs: (
            qs.filter(pages=100).union(qs.filter(pages=200), qs.filter(pages=300)).order_by("-pages", "pk")[1:6]
        ),
        update_books,
    ),
    "union all": (
        lambda a, qs: (
            qs.filter(pages=100)
            .values_list("pk", "pages")
            .union(qs.filter(pages__lt=300).values_list("pk", "pages"), all=True)
            .order_by("pk", "pages")
        ),
        add_book,
    ),
    "union of other tables": (
        lambda a, qs: Author.objects.using(a).values_list("name").union(qs.values_list("title")).order_by("name"),
        update_authors,
    ),
    "intersection": (
        lambda a, qs: (
            qs.filter(pages__gte=200)
            .values_list("pages", "title")
            .intersection(qs.filter(price__lt=15).values_list("pages", "title"))
            .order_by("pages", "title")
        ),
        update_books,
    ),
    "difference": (
        lambda a, qs: qs.values_list("title").difference(qs.filter(pages=100).values_list("title")).order_by("title"),
        update_books,
    ),
    "union as a subquery": (
        lambda a, qs: qs.filter(
            pk__in=qs.filter(pages=100).values("pk").union(qs.filter(pages=200).values("pk"))
        ).order_by("pk"),
        update_books,
    ),
    "dates": (lambda a, qs: qs.dates("published", "month", order="DESC"), update_books),
    "datetimes": (lambda a, qs: qs.datetimes("created", "day", tzinfo=datetime.UTC), update_books),
    "order by a relation, nulls last": (
        lambda a, qs: qs.order_by(F("author__country__name").asc(nulls_last=True), "-pk"),
        update_authors,
    ),
    "order by an expression": (
        lambda a, qs: qs.order_by(functions.Length("title").desc(), F("pages") * -1, "pk"),
        update_books,
    ),
    "order by a subquery": (
        lambda a, qs: Author.objects.using(a).order_by(
            Subquery(newest(a).values("title")[:1]).desc(nulls_last=True), "pk"
        ),
        lambda a: Book.objects.using(a).filter(author__name="Bob").update(title="ZZZ"),
    ),
    "Meta.ordering through two relations": (lambda a, qs: Shelf.objects.using(a).all(), retag),
    "FilteredRelation": (
        lambda a, qs: (
            Author.objects.using(a)
            .annotate(thick=FilteredRelation("books", condition=Q(books__pages__gte=200)))
            .filter(thick__isnull=False)
            .values_list("name", "thick__title")
            .order_by("thick__pk")
        ),
        update_books,
    ),
    "Subquery in an annotation": (
        lambda a, qs: Author.objects.using(a).annotate(last=Subquery(newest(a).values("title")[:1])).order_by("pk"),
        add_book,
    ),
    "Subquery in WHERE": (
        lambda a, qs: qs.filter(
            pk__in=Subquery(Author.objects.using(a).annotate(top=Subquery(newest(a).values("pk")[:1])).values("top"))
        ).order_by("pk"),
        add_book,
    ),
    "nested OuterRef": (
        lambda a, qs: (
            Country.objects.using(a)
            .filter(
                Exists(
                    Author.objects.using(a).filter(
                        Exists(Book.objects.using(a).filter(author=OuterRef("pk"), pages__gt=Value(50))),
                        country=OuterRef("pk"),
                    )
                )
            )
            .order_by("pk")
        ),
        lambda a: Author.objects.using(a).update(country=None),
    ),
    "not Exists": (
        lambda a, qs: qs.filter(~Exists(Tag.objects.using(a).filter(books=OuterRef("pk"), name="red"))).order_by("pk"),
        retag,
    ),
    "Exists as an annotation": (
        lambda a, qs: qs.annotate(tagged=Exists(Tag.objects.using(a).filter(books=OuterRef("pk")))).order_by("pk"),
        retag,
    ),
    "window": (
        lambda a, qs: (
            qs.annotate(
                place=Window(functions.RowNumber(), partition_by=["author"], order_by=F("price").desc()),
                total=Window(Sum("pages"), order_by=[F("pk").asc()], frame=RowRange(start=None, end=0)),
                before=Window(functions.Lag("title"), order_by="pk"),
                share=Window(functions.Ntile(3), order_by="pk"),
            )
            .order_by("pk")
            .values_list("pk", "place", "total", "before", "share")
        ),
        update_books,
    ),
    "filter on a window": (
        lambda a, qs: (
            qs.annotate(place=Window(functions.Rank(), partition_by="author", order_by="-pages"))
            .filter(place=1)
            .order_by("pk")
        ),
        update_books,
    ),
    "Case in filter, order and aggregate": (
        lambda a, qs: (
            qs.alias(k=Case(When(pages__gte=200, then=Value(1)), default=Value(0)))
            .filter(k=1)
            .values("category__name")
            .annotate(n=Count("pk", filter=Q(price__gt=5)), rated=Count("rating", distinct=True))
            .order_by("category__name")
        ),
        update_books,
    ),
    "values after annotate": (
        lambda a, qs: (
            qs.values("author__name").annotate(n=Count("pk"), mean=Avg("price")).filter(n__gt=1).order_by("n", "mean")
        ),
        add_book,
    ),
    "group by with extra columns": (
        lambda a, qs: (
            Author.objects.using(a)
            .annotate(
                n=Count("books", distinct=True),
                low=Min("books__price"),
                high=Max("books__pages"),
                sum=Sum("books__price", default=Decimal(0)),
            )
            .order_by("-n", "pk")
        ),
        add_book,
    ),
    "statistics": (
        lambda a, qs: (
            qs.values("category").annotate(s=StdDev("pages"), v=Variance("pages", sample=True)).order_by("category")
        ),
        add_book,
    ),
    "alias and F arithmetic": (
        lambda a, qs: (
            qs.alias(cost=F("price") * F("pages"))
            .filter(cost__gt=100)
            .annotate(
                half=ExpressionWrapper(F("price") / 2, DecimalField(max_digits=10, decimal_places=3)),
                m=F("pages") % 7,
                late=F("created") + datetime.timedelta(days=1),
            )
            .order_by("pk")
        ),
        update_books,
    ),
    "text functions": (
        lambda a, qs: qs.annotate(
            joined=functions.Concat(
                "title", Value("-"), functions.Cast("pages", TextField()), output_field=TextField()
            ),
            left=functions.Left("title", 3),
            sub=functions.Substr("title", 2, 3),
            at=functions.StrIndex("title", Value("o")),
            padded=functions.LPad(functions.Trim("title"), 20, Value(".")),
            rep=functions.Repeat("title", 2),
            swapped=functions.Replace("title", Value("b"), Value("p")),
            turned=functions.Reverse("title"),
            md5=functions.MD5("title"),
            ord=functions.Ord("title"),
        ).order_by("pk"),
        update_books,
    ),
    "number functions": (
        lambda a, qs: (
            qs.annotate(
                a=functions.Abs(F("pages") * -1),
                r=functions.Round("price"),
                s=functions.Sqrt("pages"),
                g=functions.Greatest("pages", Value(150)),
                n=functions.NullIf("pages", Value(100)),
                c=functions.Coalesce("rating", Value(-1.0)),
                p=functions.Power("pages", 2),
                m=functions.Mod("pages", 7),
            )
            .order_by("pk")
            .values_list("a", "r", "s", "g", "n", "c", "p", "m")
        ),
        update_books,
    ),
    "date functions": (
        lambda a, qs: (
            qs.annotate(
                y=functions.ExtractYear("created"),
                w=functions.ExtractWeek("published"),
                d=functions.TruncMonth("published"),
                q=functions.TruncQuarter("published"),
            )
            .filter(created__year__gte=1990, published__month__gte=1)
            .order_by("pk")
        ),
        update_books,
    ),
    "JSON": (
        lambda a, qs: qs.filter(data__n__0__gte=1).annotate(kind=F("data__kind"), first=F("data__n__0")).order_by("pk"),
        lambda a: Book.objects.using(a).filter(data__kind="x").update(data={"kind": "y", "n": [7]}),
    ),
    "JSON keys": (
        lambda a, qs: qs.filter(data__has_key="n", data__has_any_keys=["kind", "z"]).order_by("pk"),
        lambda a: Book.objects.using(a).filter(data__kind="x").update(data={"other": 1}),
    ),
    "lookups": (
        lambda a, qs: (
            qs.filter(
                title__icontains="BOOK",
                title__iregex=r"^[ab]",
                pages__in=[100, 200, 300],
                author__name__istartswith="a",
            )
            .exclude(Q(title__endswith="9") | Q(rating__gt=100))
            .order_by("pk")
        ),
        update_authors,
    ),
    "expressions in a list": (
        lambda a, qs: qs.filter(pages__in=[F("author__pk") * 100, Value(200), 300]).order_by("pk"),
        update_books,
    ),
    "expressions as the ends of a range": (
        lambda a, qs: qs.filter(pages__range=(F("price") * 10, 250)).order_by("pk"),
        update_books,
    ),
    "only and select_related": (
        lambda a, qs: qs.select_related("author").only("title", "author__name").order_by("pk"),
        update_authors,
    ),
    "select_related of a child": (
        lambda a, qs: Ebook.objects.using(a).select_related("author__country", "category").order_by("pk"),
        lambda a: Country.objects.using(a).update(name="UK"),
    ),
    "named tuples of expressions": (
        lambda a, qs: qs.order_by("pk").values_list("title", functions.Upper("author__name"), named=True),
        update_authors,
    ),
    "distinct": (
        lambda a, qs: qs.order_by("author__name").values_list("author__name", "in_print").distinct(),
        update_authors,
    ),
    "reverse and slice": (lambda a, qs: qs.order_by("title", "pk").reverse()[1:5], update_books),
    "proxy": (lambda a, qs: CheapBook.objects.using(a).order_by("pk"), update_books),
    "multi-table child": (
        lambda a, qs: Ebook.objects.using(a).order_by("pk"),
        lambda a: Ebook.objects.using(a).update(size_bytes=5),
    ),
    "multi-table child, written through the parent": (
        lambda a, qs: Ebook.objects.using(a).order_by("pk"),
        lambda a: Book.objects.using(a).filter(title="E-book").update(price=55),
    ),
    "multi-table parent, written through the child": (
        lambda a, qs: qs.filter(title__startswith="E").order_by("pk"),
        lambda a: Ebook.objects.using(a).update(title="E-book 2"),
    ),
    "parent link": (
        lambda a, qs: qs.filter(ebook__format="epub").values("title", "ebook__size_bytes").order_by("pk"),
        lambda a: Ebook.objects.using(a).update(size_bytes=6),
    ),
    "abstract base": (
        lambda a, qs: Library.objects.using(a).filter(created__isnull=False).order_by("pk"),
        lambda a: Library.objects.using(a).create(name="Second"),
    ),
    "many to many through": (
        lambda a, qs: (
            Library.objects.using(a)
            .filter(bookplace__copies__gt=1, books__pages__gte=100)
            .values_list("name", "books__title", "bookplace__copies")
            .order_by("books__pk")
        ),
        lambda a: BookPlace.objects.using(a).update(copies=9),
    ),
    "foreign key to a column that is no primary key": (
        lambda a, qs: (
            Currency.objects.using(a).filter(pegged_to__symbol="EUR").select_related("pegged_to").order_by("pk")
        ),
        lambda a: Currency.objects.using(a).filter(symbol="EUR").update(rate=2),
    ),
    "composite primary key": (
        lambda a, qs: Seat.objects.using(a).filter(pk__in=[("A", 1), ("A", 2)]).order_by("pk"),
        lambda a: Seat.objects.using(a).filter(number=1).update(taken=True),
    ),
    "composite primary key, values": (
        lambda a, qs: Seat.objects.using(a).values_list("pk", "taken").order_by("pk"),
        lambda a: Seat.objects.using(a).filter(pk=("A", 2)).delete(),
    ),
}


@pytest.fixture
def shop(alias: str, books: Any) -> str:
    """The books, and rows of the other models."""
    author = Author.objects.using(alias).order_by("pk")[0]
    Profile.objects.using(alias).create(author=author, bio="Writes")
    Ebook.objects.using(alias).create(title="E-book", author=author, price=5, published=timezone.now().date())
    library = Library.objects.using(alias).create(name="City")
    for index, book in enumerate(Book.objects.using(alias).order_by("pk")[:3]):
        BookPlace.objects.using(alias).create(library=library, book=book, copies=index)
    euro = Currency.objects.using(alias).create(symbol="EUR")
    Currency.objects.using(alias).create(symbol="DKK", pegged_to=euro)
    for number in range(3):
        Seat.objects.using(alias).create(hall="A", number=number)
    return alias


def rows_of(queryset: Any) -> list[Any]:
    return [state_of_row(row) for row in queryset]


@pytest.mark.parametrize("name", SHAPES)
def test_shape(shop: str, name: str) -> None:
    """The second read makes no query and equals the database; the read after a write equals it again."""
    build, write = SHAPES[name]

    def plain() -> Any:
        return build(shop, Book.objects.using(shop).all())

    expected = rows_of(plain())
    assert rows_of(live(plain())) == expected
    found, query_count = queries_of(shop, lambda: rows_of(live(plain())))
    assert (query_count, found) == (0, expected)
    write(shop)
    changed = rows_of(plain())
    assert changed != expected, "the write of this shape changes nothing"
    assert rows_of(live(plain())) == changed
    assert queries_of(shop, lambda: rows_of(live(plain()))) == (changed, 0)


RESULTS: dict[str, Callable[[Any], Any]] = {
    "slice with a step": lambda qs: [row.pk for row in qs.order_by("pk")[0:6:2]],
    "index": lambda qs: state_of_row(qs.order_by("price")[1]),
    "first of values": lambda qs: qs.order_by("price").values("title").first(),
    "last": lambda qs: state_of_row(qs.order_by("price").last()),
    "earliest": lambda qs: state_of_row(qs.earliest("published", "pk")),
    "latest": lambda qs: state_of_row(qs.latest("rating", "pages", "pk")),
    "in_bulk of everything": lambda qs: {key: state_of_row(row) for key, row in qs.in_bulk().items()},
    "len": lambda qs: len(qs.filter(pages=200)),
    "bool": lambda qs: bool(qs.filter(title="A new book")),
    "count of a group": lambda qs: qs.values("pages").annotate(n=Count("pk")).filter(n__gt=2).count(),
    "count of distinct": lambda qs: qs.values("published").distinct().count(),
    "exists of a slice": lambda qs: qs.order_by("pk")[8:9].exists(),
    "aggregate over a slice": lambda qs: qs.order_by("-pk")[:3].aggregate(Sum("pages")),
    "aggregate over an annotation": lambda qs: qs.annotate(n=Count("tags")).aggregate(Max("n"), Avg("n")),
    "aggregate with a filter": lambda qs: qs.aggregate(n=Count("pk", filter=Q(pages=100)), s=Sum("price", default=0)),
    "aggregate of arithmetic": lambda qs: qs.aggregate(x=Sum(F("price") * F("pages"), output_field=FloatField())),
    "combined by |": lambda qs: [
        row.pk for row in (qs.filter(pages=100) | qs.filter(title="A new book")).order_by("pk")
    ],
    "combined by &": lambda qs: [
        row.pk for row in (qs.filter(pages=100) & qs.filter(published__year=1998)).order_by("pk")
    ],
}


@pytest.mark.parametrize("name", RESULTS)
def test_result(shop: str, name: str) -> None:
    """What is built on a live queryset is cached, equals the database, and sees writes."""
    call = RESULTS[name]
    books_of = Book.objects.using(shop).all
    expected = call(books_of())
    assert call(live(books_of())) == expected
    assert queries_of(shop, lambda: call(live(books_of()))) == (expected, 0)
    add_book(shop)
    update_books(shop)
    assert call(live(books_of())) == call(books_of())


def test_related_managers_are_live(shop: str) -> None:
    """Reverse, many-to-many and generic managers have live() where the model's manager has it."""
    author: Any = Author.objects.using(shop).order_by("pk")[0]
    tag: Any = Tag.objects.using(shop).get()
    reads: list[Callable[[], Any]] = [
        lambda: rows_of(author.books.live().order_by("pk")),
        lambda: author.books.live().count(),
        lambda: rows_of(tag.books.live().order_by("pk")),
        lambda: rows_of(live(Book.objects.using(shop).order_by("pk")[0].tags)),  # a plain manager
    ]
    for read in reads:
        first = read()
        assert queries_of(shop, read)[0] == first
    before = [read() for read in reads]
    retag(shop)
    add_book(shop)
    Book.objects.using(shop).order_by("pk")[0].tags.clear()
    author.books.create(title="Own")
    after = [read() for read in reads]
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert after[0] == rows_of(author.books.order_by("pk"))
    assert after[2] == rows_of(tag.books.order_by("pk"))
    assert after[3] == []


@pytest.mark.parametrize(
    "make",
    [lambda manager: manager.live(), live, lambda manager: live(manager).fresh()],
    ids=["method", "function", "fresh"],
)
def test_what_a_related_manager_has_begun_goes_on(shop: str, make: Any) -> None:
    """The first filter() on a manager of a many-to-many field speaks of the same row as the manager's own."""
    red: Any = Tag.objects.using(shop).get()
    blue = Tag.objects.using(shop).create(name="blue")
    both = Book.objects.using(shop).filter(tags=red)[0]
    both.tags.add(blue)
    assert list(red.books.filter(tags=blue)) == list(make(red.books).filter(tags=blue)) == []
    assert list(make(red.books).filter().filter(tags=blue)) == [both]


class CustomQuerySet(models.QuerySet[Book]):
    def thick(self) -> CustomQuerySet:
        return self.filter(pages__gte=200)


class CustomManager(LiveManager[Book]):
    def thick(self) -> Any:
        return self.get_queryset().filter(pages__gte=200)


def test_custom_managers_and_querysets(shop: str) -> None:
    """as_manager(), from_queryset() and subclasses of LiveManager are cached as what they are."""
    as_manager: Any = CustomQuerySet.as_manager()
    from_queryset: Any = models.Manager.from_queryset(CustomQuerySet)()
    own: Any = CustomManager()
    for manager in (as_manager, from_queryset, own):
        manager.model = Book
        queryset = manager.using(shop) if manager is not own else manager.db_manager(shop)
        for _ in range(2):
            result, query_count = queries_of(
                shop, lambda queryset=queryset: rows_of(live(queryset.thick().order_by("pk")))
            )
        assert (result, query_count) == (rows_of(Book.objects.using(shop).filter(pages__gte=200).order_by("pk")), 0)


@pytest.mark.parametrize(
    ("name", "build", "reason"),
    [
        (
            "Now inside",
            lambda qs: qs.filter(created__lt=functions.Coalesce(functions.Now(), Value(None, DateTimeField()))),
            "Now",
        ),
        (
            "Now in a subquery",
            lambda qs: qs.filter(author__in=Author.objects.using(qs.db).filter(books__created__lt=functions.Now())),
            "Now",
        ),
        ("Now in ORDER BY", lambda qs: qs.order_by(Case(When(created__lt=functions.Now(), then=1), default=2)), "Now"),
        ("Now in a union", lambda qs: qs.union(qs.filter(created__lt=functions.Now())), "Now"),
        ("Random", lambda qs: qs.annotate(x=functions.Random()), "Random"),
        ("Random in a list", lambda qs: qs.filter(rating__in=[F("price"), functions.Random()]), "Random"),
        ("Now in a range", lambda qs: qs.filter(created__range=(F("created"), functions.Now())), "Now"),
        ("random order nested", lambda qs: qs.filter(pk__in=qs.order_by("?")[:2]), "Random order"),
        ("random order by expression", lambda qs: qs.order_by(functions.Random()), "Random"),
        ("Func", lambda qs: qs.annotate(x=Func("pages", function="ABS", output_field=IntegerField())), "Func"),
        ("function option", lambda qs: qs.annotate(x=functions.Abs("pages", function="random")), "SQL text"),
        ("template option", lambda qs: qs.annotate(x=functions.Abs("pages", template="random()")), "SQL text"),
        ("RawSQL", lambda qs: qs.annotate(x=RawSQL("SELECT 1", ())), "RawSQL"),
        ("RawSQL in filter", lambda qs: qs.filter(pk__in=RawSQL("SELECT 1", ())), "RawSQL"),
        ("extra where", lambda qs: qs.extra(where=["1=1"]), "extra()"),
        ("extra select", lambda qs: qs.extra(select={"x": "random()"}), "extra()"),
        ("extra tables", lambda qs: qs.extra(tables=["testapp_tag"]), "extra()"),
        ("subclass of a known function", lambda qs: qs.annotate(x=OwnUpper("title")), "OwnUpper"),
        ("select_for_update", lambda qs: qs.select_for_update(), "locks rows"),
        ("lookup of a project", lambda qs: qs.filter(OwnLookup(F("pages"), 5)), "OwnLookup"),
    ],
)
def test_never_cached(shop: str, name: str, build: Any, reason: str) -> None:
    """The explanation names the cause, and each read asks the database."""
    explanation = live(build(Book.objects.using(shop).all())).live_explain()
    assert not explanation.is_cachable
    assert reason in explanation.reason


@pytest.mark.parametrize("function", ["UUID4", "UUID7"])
def test_functions_of_newer_djangos_are_not_cached(shop: str, function: str) -> None:
    """What makes a new value for each row is never cached."""
    kind = getattr(functions, function, None)
    if kind is None:
        pytest.skip("This Django does not have it.")
    explanation = live(Book.objects.using(shop).annotate(x=kind())).live_explain()
    assert function in explanation.reason


class OwnUpper(functions.Upper):
    """A function of a project, whatever it does."""


class OwnLookup(models.lookups.Exact):  # type: ignore[name-defined,misc]  # not in the stubs
    """A lookup of a project, whatever it does."""


def test_reads_that_are_not_for_the_cache(shop: str) -> None:
    """raw, iterator, refresh_from_db, get_or_create, update_or_create and explain ask the database each time."""
    queryset = live(Book.objects.using(shop).order_by("pk"))
    book = queryset[0]
    reads: dict[str, Callable[[], Any]] = {
        "raw": lambda: list(queryset.raw("SELECT * FROM testapp_book")),
        "iterator": lambda: list(queryset.iterator()),
        "refresh_from_db": lambda: book.refresh_from_db(),
        "get_or_create": lambda: queryset.get_or_create(pk=book.pk),
        "update_or_create": lambda: queryset.update_or_create(pk=book.pk, defaults={"pages": 7}),
        "update_or_create that creates": lambda: queryset.update_or_create(
            title="Made", pages=9, create_defaults={"author_id": book.author_id, "title": "Other"}
        ),
        "explain": lambda: queryset.explain(),
    }
    with recording() as records:
        for read in reads.values():
            for _ in range(2):
                assert queries_of(shop, read)[1] >= 1
    assert not [record for record in records if record.is_hit]
    assert live(Book.objects.using(shop)).filter(pages=7).get() == book


class Summary(models.Model):
    """A view."""

    title = models.CharField(max_length=200)
    name = models.CharField(max_length=100)

    class Meta:
        app_label = "testapp"
        managed = False
        db_table = "testapp_summary"


def test_views_are_cached_once_their_tables_are_declared(shop: str, settings: Any) -> None:
    """A view in LIVE_CACHE_UNMANAGED_TABLES sees every write to what it reads, also through another view."""
    quote = connections[shop].ops.quote_name
    with connections[shop].cursor() as cursor:
        cursor.execute("CREATE VIEW testapp_names AS SELECT id, name FROM testapp_author")
        cursor.execute(
            f"CREATE VIEW testapp_summary AS SELECT b.id, b.title, n.{quote('name')} FROM testapp_book b "
            "JOIN testapp_names n ON n.id = b.author_id"
        )
    try:
        queryset = models.QuerySet(Summary, using=shop).order_by("pk")
        settings.LIVE_CACHE_UNMANAGED_TABLES = {"testapp_summary": ["testapp_book", "testapp_names"]}
        assert "testapp_names" in live(queryset).live_explain().reason
        settings.LIVE_CACHE_UNMANAGED_TABLES |= {"testapp_names": ["testapp_author"]}
        for write in (lambda: None, lambda: update_authors(shop), lambda: update_books(shop)):
            write()
            expected = rows_of(queryset.all())
            assert rows_of(live(queryset)) == expected
            assert queries_of(shop, lambda: rows_of(live(queryset))) == (expected, 0)
    finally:
        with connections[shop].cursor() as cursor:
            cursor.execute("DROP VIEW testapp_summary")
            cursor.execute("DROP VIEW testapp_names")


class Money:
    """A value of a third party's type."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    __hash__ = None  # type: ignore[assignment]  # it has no order and is no key


class MoneyField(models.IntegerField):  # type: ignore[type-arg]  # not generic when it runs
    """A field of a third party, whose values have a type of their own."""

    kind: type[Money] = Money

    def from_db_value(self, value: int | None, expression: Any, connection: Any) -> Money | None:
        return None if value is None else self.kind(value)


def test_fields_of_third_parties_need_a_codec(shop: str) -> None:
    """Without register_codec() such a column goes to the database; with it, it is cached in its own type."""
    kind: Any = type(f"Money{shop}", (Money,), {})  # codecs stay registered
    field = MoneyField()
    field.kind = kind
    build = Book.objects.using(shop).annotate(cost=functions.Cast("pages", field)).order_by("pk").values_list
    first = [row[0] for row in live(build("cost"))]
    assert all(type(value) is kind for value in first)
    assert queries_of(shop, lambda: list(live(build("cost"))))[1] == 1
    register_codec(kind, name=f"tests.money.{shop}", encode=lambda money: money.cents, decode=kind)
    list(live(build("cost")))
    second, query_count = queries_of(shop, lambda: [row[0] for row in live(build("cost"))])
    assert (second, query_count) == (first, 0)
    assert all(type(value) is kind for value in second)


def test_time_zone_is_part_of_what_depends_on_it(shop: str) -> None:
    """A truncated or extracted time is another result in another time zone."""
    import zoneinfo

    queryset = Book.objects.using(shop).annotate(h=functions.ExtractHour("created")).order_by("pk").values_list("h")
    for zone in ("Asia/Tokyo", "America/Lima", "Asia/Tokyo"):
        with timezone.override(zoneinfo.ZoneInfo(zone)):
            assert list(live(queryset)) == list(queryset.all())


@pytest.mark.parametrize("name", ["aggregates", "array subquery", "search", "distinct on"])
def test_postgresql(shop: str, name: str) -> None:
    """What django.contrib.postgres adds is cached too."""
    if shop != "postgresql":
        pytest.skip("Only PostgreSQL has it.")
    from django.contrib.postgres import aggregates, expressions, search

    books_of = Book.objects.using(shop)
    vector = search.SearchVector("title", config="english")
    query = search.SearchQuery("book", config="english")
    build: Callable[[], Any] = {
        "aggregates": lambda: (
            Author.objects.using(shop)
            .annotate(all=aggregates.ArrayAgg("books__title"), any=aggregates.BoolOr("books__in_print"))
            .order_by("pk")
        ),
        "array subquery": lambda: Author.objects.using(shop).annotate(
            titles=expressions.ArraySubquery(newest(shop).values("title"))
        ),
        "search": lambda: (
            books_of.annotate(found=vector, rank=search.SearchRank(vector, query))
            .filter(found=query)
            .values_list("title", "rank")
            .order_by("-rank", "pk")
        ),
        "distinct on": lambda: books_of.order_by("author", "-pk").distinct("author"),
    }[name]
    expected = rows_of(build())
    assert rows_of(live(build())) == expected
    assert queries_of(shop, lambda: rows_of(live(build()))) == (expected, 0)
    add_book(shop)
    changed = rows_of(build())
    assert changed != expected
    assert rows_of(live(build())) == changed
