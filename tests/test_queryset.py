"""What a live queryset does for its callers: it reads as a QuerySet, and the second read makes no query."""

from __future__ import annotations

import copy
import datetime
import pickle
from decimal import Decimal
from typing import Any

import django
import pytest
from django.core.paginator import Paginator
from django.db import connections, models
from django.db.models import Avg, Case, Count, Exists, F, Max, Min, OuterRef, Q, Sum, Value, When
from django.db.models.functions import Coalesce, Length, Lower, Now, TruncYear, Upper
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.views.generic import ListView

from live_cache import LiveQuerySet, disabled, invalidate, live, recording
from live_cache.exceptions import ConfigurationError, InvalidKeyError
from tests.compared import state_of_row
from tests.testapp.models import AllFields, Author, Book, Category, CheapBook, Country, LoadedBook, MadeBook, Shelf, Tag

SHAPES: dict[str, Any] = {
    "all": lambda qs: qs.order_by("pk"),
    "filter": lambda qs: qs.filter(category__slug="novels").order_by("pk"),
    "exclude": lambda qs: qs.exclude(price__gt=10).order_by("pk"),
    "exclude over a relation": lambda qs: qs.exclude(tags__name="red").order_by("pk"),
    "Q": lambda qs: qs.filter(Q(price__lt=5) | ~Q(title__startswith="B")).order_by("pk"),
    "F": lambda qs: qs.filter(pages__gt=F("price")).order_by("pk"),
    "in": lambda qs: qs.filter(pages__in=[100, 200, 300]).order_by("pk"),
    "range and null": lambda qs: qs.filter(rating__isnull=True, price__range=(1, 50)).order_by("pk"),
    "slice": lambda qs: qs.order_by("pk")[2:5],
    "slice to the end": lambda qs: qs.order_by("pk")[2:],
    "order by relation": lambda qs: qs.order_by("author__name", "-pk"),
    "reverse": lambda qs: qs.order_by("pk").reverse(),
    "values": lambda qs: qs.order_by("pk").values("title", "price", "author__name"),
    "values_list": lambda qs: qs.order_by("pk").values_list("pk", "created", "isbn"),
    "values_list flat": lambda qs: qs.order_by("pk").values_list("title", flat=True),
    "values_list named": lambda qs: qs.order_by("pk").values_list("title", "pages", named=True),
    "only": lambda qs: qs.order_by("pk").only("title"),
    "defer": lambda qs: qs.order_by("pk").defer("data", "created"),
    "distinct": lambda qs: qs.values_list("pages", flat=True).distinct().order_by("pages"),
    "select_related": lambda qs: qs.select_related("author__country", "category").order_by("pk"),
    "annotate": lambda qs: qs.annotate(n=Count("tags"), size=Length("title")).order_by("pk"),
    "annotate group": lambda qs: qs.values("category__name").annotate(total=Sum("price"), n=Count("pk")).order_by("n"),
    "alias": lambda qs: qs.alias(n=Count("tags")).filter(n__gte=1).order_by("pk"),
    "case": lambda qs: qs.annotate(k=Case(When(price__lt=10, then=Value("low")), default=Value("high"))).order_by("pk"),
    "functions": lambda qs: qs.annotate(u=Upper("title"), l=Lower("title"), c=Coalesce("rating", 0.0)).order_by("pk"),
    "exists": lambda qs: qs.filter(Exists(Tag.objects.filter(books=OuterRef("pk")))).order_by("pk"),
    "subquery in": lambda qs: qs.filter(author__in=Author.objects.filter(country="GB")).order_by("pk"),
    "json": lambda qs: qs.filter(data__kind="x").order_by("pk"),
    "trunc": lambda qs: qs.annotate(y=TruncYear("created", tzinfo=datetime.UTC)).order_by("pk"),
    "dates": lambda qs: qs.dates("published", "year"),
    "union": lambda qs: qs.filter(pages=100).union(qs.filter(pages=200)).order_by("pk"),
    "reverse relation": lambda qs: qs.filter(shelves__label="A1").order_by("pk"),
}


@pytest.fixture
def books(alias: str, cache: str) -> models.QuerySet[Book]:
    """Seven books in the database of the test, with authors, categories and tags."""
    britain = Country.objects.using(alias).create(code="GB", name="Britain")
    authors = [Author.objects.using(alias).create(name=name, country=britain) for name in ("Ann", "Bob")]
    authors.append(Author.objects.using(alias).create(name="Cid"))
    novels = Category.objects.using(alias).create(name="Novels", slug="novels")
    red = Tag.objects.using(alias).create(name="red")
    for index in range(7):
        book = Book.objects.using(alias).create(
            title=f"{'AB'[index % 2]} book {index}",
            author=authors[index % 3],
            category=novels if index % 2 else None,
            price=Decimal(index * 3) + Decimal("0.50"),
            pages=100 * (index % 3 + 1),
            rating=None if index % 2 else index / 3,
            published=timezone.now().date(),
            data={"kind": "x", "n": [index, None, 1.5]} if index % 2 else None,
        )
        if index % 3 == 0:
            book.tags.add(red)
            Shelf.objects.using(alias).create(label="A1", book=book)
    return Book.objects.using(alias).all()


def queries_of(alias: str, function: Any) -> tuple[Any, int]:
    with CaptureQueriesContext(connections[alias]) as captured:
        result = function()
    return result, len(captured)


@pytest.mark.parametrize("shape", SHAPES)
def test_second_read_makes_no_query_and_equals_the_database(alias: str, books: Any, shape: str) -> None:
    """Each shape of a query is cached, in value and in Python type."""
    build = SHAPES[shape]
    expected = [state_of_row(row) for row in build(books)]
    first = live(build(books))
    assert [state_of_row(row) for row in first] == expected
    second, query_count = queries_of(alias, lambda: list(live(build(books))))
    assert (query_count, [state_of_row(row) for row in second]) == (0, expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_write_to_the_table_is_seen_by_every_shape(alias: str, books: Any, shape: str) -> None:
    """After a commit the next read equals the database again."""
    build = SHAPES[shape]
    list(live(build(books)))
    books.filter(title__startswith="A").update(price=1, pages=300, title="C", published=None)
    assert [state_of_row(row) for row in live(build(books))] == [state_of_row(row) for row in build(books)]


@pytest.mark.parametrize(
    "name",
    ["count", "exists", "first", "last", "get", "aggregate", "in_bulk", "contains", "sliced count", "latest"],
)
def test_single_results_are_cached_and_seen_fresh(alias: str, books: Any, name: str) -> None:
    """count(), get() and their like make no second query, and see a write."""
    key = books.order_by("pk")[3].pk
    book = books.get(pk=key)
    call: Any = {
        "count": lambda qs: qs.count(),
        "exists": lambda qs: qs.filter(price__gt=10).exists(),
        "first": lambda qs: state_of_row(qs.order_by("pk").first()),
        "last": lambda qs: state_of_row(qs.order_by("pk").last()),
        "get": lambda qs: state_of_row(qs.get(pk=key)),
        "aggregate": lambda qs: qs.aggregate(
            Avg("price"), top=Max("price"), low=Min("rating"), n=Count("author__name")
        ),
        "in_bulk": lambda qs: {k: state_of_row(v) for k, v in qs.in_bulk([key]).items()},
        "contains": lambda qs: qs.contains(book),
        "sliced count": lambda qs: qs.order_by("pk")[1:4].count(),
        "latest": lambda qs: state_of_row(qs.latest("pk")),
    }[name]
    expected = call(books)
    assert call(live(books)) == expected
    assert queries_of(alias, lambda: call(live(books))) == (expected, 0)
    books.filter(pk=key).update(price=99)
    Book.objects.using(alias).create(title="New", author=Author.objects.using(alias).first())
    assert call(live(books)) == call(books)


def test_aggregates_of_other_expressions_are_other_entries(alias: str, books: Any) -> None:
    """Two aggregates over one queryset do not share an entry."""
    assert live(books).aggregate(x=Max("price")) == books.aggregate(x=Max("price"))
    assert live(books).aggregate(x=Min("price")) == books.aggregate(x=Min("price"))
    assert live(books).aggregate(x=Max("pages")) == books.aggregate(x=Max("pages"))


def test_aggregates_have_the_order_and_the_names_that_django_gives_them(alias: str, books: Any) -> None:
    """Those with a name come first, and one without a name takes the place of one that was given its name."""
    for _ in range(2):
        values = live(books).aggregate(Sum("pages"), n=Count("pk"))
        assert list(values.items()) == list(books.aggregate(Sum("pages"), n=Count("pk")).items())
        assert live(books).aggregate(pages__sum=Count("pk")) == {"pages__sum": 7}
        assert live(books).aggregate(Sum("pages"), pages__sum=Count("pk")) == {"pages__sum": 1300}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (["a, b"], ["a", "b"]),
        (["a', 'b"], ["a", "b"]),
    ],
)
def test_parameters_never_collide(alias: str, books: Any, one: Any, other: Any) -> None:
    """Parameters that look alike in text are different keys (T28, T29)."""
    books.filter(pages=100).update(title="a")
    keys = {live(books.filter(title__in=values)).live_explain().cache_key for values in (one, other)}
    assert len(keys) == 2


def test_values_of_another_type_are_other_entries(alias: str, books: Any) -> None:
    """Value(1), Value("1"), Value(True) and Value(1.0) are four results (T30)."""
    values: list[Any] = [1, "1", True, 1.0]
    for value in values:
        queryset = books.annotate(v=Value(value)).order_by("pk").values_list("v", flat=True)
        assert [(type(v), v) for v in live(queryset)] == [(type(v), v) for v in queryset]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("random", "Random order"),
        ("now", "Now"),
        ("for update", "locks rows"),
        ("extra", "extra()"),
        ("none", "without the database"),
        ("iterable", "iterable class"),
        ("unmanaged", "no managed model"),
    ],
)
def test_what_cannot_be_cached_goes_to_the_database(alias: str, books: Any, name: str, reason: str) -> None:
    """The database answers, and the explanation says why."""

    class OwnIterable(models.query.ModelIterable):  # type: ignore[name-defined]  # not in the stubs
        pass

    queryset = {
        "random": lambda: books.order_by("?"),
        "now": lambda: books.annotate(t=Now()),
        "for update": lambda: books.select_for_update(),
        "extra": lambda: books.extra(where=["1=1"]),
        "none": lambda: books.none(),
        "iterable": lambda: books.all(),
        "unmanaged": lambda: books.all(),
    }[name]()
    if name == "iterable":
        queryset._iterable_class = OwnIterable
    if name == "unmanaged":
        queryset = View.objects.using(alias)
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE VIEW testapp_book_view AS SELECT id FROM testapp_book")
    try:
        explanation = live(queryset).live_explain()
        assert not explanation.is_cachable
        assert reason in explanation.reason
        if name != "for update":
            assert len(live(queryset)) == len(queryset.all())
    finally:
        if name == "unmanaged":
            with connections[alias].cursor() as cursor:
                cursor.execute("DROP VIEW testapp_book_view")


class View(models.Model):
    """An unmanaged model over a view, whose tables nobody declares."""

    class Meta:
        app_label = "testapp"
        managed = False
        db_table = "testapp_book_view"


def test_pages_slices_and_paginator_share_an_entry(alias: str, books: Any) -> None:
    """page(2, 3), [3:6] and Paginator(…, 3).page(2) are one entry."""
    ordered = books.order_by("pk")
    expected = list(ordered[3:6])
    assert list(live(ordered, page_size=3).page(2)) == expected
    assert queries_of(alias, lambda: list(live(ordered)[3:6])) == (expected, 0)
    paginator = Paginator(live(ordered), 3)
    assert paginator.count == 7
    assert queries_of(alias, lambda: list(paginator.page(2))) == (expected, 0)
    assert live(ordered).page(2, 3).live_explain().page_suffix == "page_2x3"


def test_list_view_works_on_a_live_queryset(alias: str, books: Any, rf: Any) -> None:
    """A ListView with pagination reads a live queryset as any other."""

    class Books(ListView):  # type: ignore[type-arg]  # not generic when it runs
        queryset = live(books.order_by("pk"))
        paginate_by = 3
        allow_empty = False

    response = Books.as_view()(rf.get("/?page=2"))
    assert response.context_data["object_list"][0].pk == books.order_by("pk")[3].pk


def test_clones_stay_live_and_writes_go_to_the_database(alias: str, books: Any) -> None:
    """The mode survives clones; get_or_create, update_or_create and delete read from the database."""
    queryset = live(books, "shelf", timeout=60)
    for clone in (queryset.all(), queryset.filter(pages=100), queryset.order_by("pk")[1:2], queryset | queryset):
        assert clone.is_live
    author = Author.objects.using(alias).first()
    assert live(books).get_or_create(title="Made", defaults={"author": author})[1]
    assert not live(books).get_or_create(title="Made", defaults={"author": author})[1]
    assert not live(books).update_or_create(title="Made", defaults={"pages": 5})[1]
    assert live(books).get(title="Made").pages == 5
    assert live(books.filter(title="Made")).delete()[0] == 1
    assert not live(books).filter(title="Made").exists()
    assert len(list(live(books).iterator())) == 7


def test_fresh_fetches_and_stores(alias: str, books: Any) -> None:
    """fresh() asks the database whatever is cached; the next read is a hit again."""
    list(live(books.order_by("pk")))
    assert queries_of(alias, lambda: list(live(books.order_by("pk")).fresh()))[1] == 1
    assert queries_of(alias, lambda: list(live(books.order_by("pk"))))[1] == 0


def test_invalidate_drops_every_entry_of_the_queryset_and_no_other(alias: str, books: Any) -> None:
    """invalidate() marks pages and counts of one queryset stale."""
    one, other = live(books.filter(pages=100)), live(books.filter(pages=200))
    for queryset in (one, other):
        list(queryset.all())
        queryset.count()
    one.invalidate()
    assert queries_of(alias, lambda: (list(one.all()), one.count()))[1] == 2
    assert queries_of(alias, lambda: (list(other.all()), other.count()))[1] == 0


def test_invalidating_a_key_covers_the_keys_below_it(alias: str, books: Any) -> None:
    """``client`` covers ``client/7`` and not ``clients``."""
    for key in ("client", "client/7", "clients"):
        list(live(books, key))
    invalidate("client")
    hits = []
    for key in ("client", "client/7", "clients"):
        with recording() as reads:
            list(live(books, key))
        hits.append(reads[0].is_hit)
    assert hits == [False, False, True]


def test_invalidating_a_key_as_it_is_listed(alias: str, books: Any) -> None:
    """The full key of one result set, automatic or of a caller, drops that one."""
    for key in (None, "shelf"):
        one, other = live(books.filter(pages=100), key), live(books.filter(pages=200), key)
        full_key = one.live_explain().cache_key
        for queryset in (one, other):
            list(queryset.all())
        invalidate(full_key, using=alias)
        assert queries_of(alias, lambda queryset=one: list(queryset.all()))[1] == 1
        assert queries_of(alias, lambda queryset=other: list(queryset.all()))[1] == 0


def test_two_querysets_under_one_key_never_share_rows(alias: str, books: Any) -> None:
    """A caller's key is combined with a fingerprint."""
    assert {b.pages for b in live(books.filter(pages=100), "page")} == {100}
    assert {b.pages for b in live(books.filter(pages=200), "page")} == {200}


def test_invalidating_a_model_by_class_and_by_label(alias: str, books: Any) -> None:
    """invalidate(Model) and invalidate("app.model") mark every result of the table stale."""
    for target in (Book, "testapp.book"):
        list(live(books))
        assert queries_of(alias, lambda: list(live(books)))[1] == 0
        invalidate(target, using=alias)
        assert queries_of(alias, lambda: list(live(books)))[1] == 1


def test_disabled_sends_reads_to_the_database(alias: str, books: Any, settings: Any) -> None:
    """Inside disabled(), and with LIVE_CACHE_ENABLED = False, nothing is read from the cache."""
    list(live(books))
    with disabled():
        assert queries_of(alias, lambda: list(live(books)))[1] == 1
    assert queries_of(alias, lambda: list(live(books)))[1] == 0
    settings.LIVE_CACHE_ENABLED = False
    assert queries_of(alias, lambda: list(live(books)))[1] == 1


def test_live_queryset_pickles(alias: str, books: Any) -> None:
    """An evaluated live queryset pickles with its rows and its options."""
    queryset = live(books.order_by("pk"), "pickled")
    same = pickle.loads(pickle.dumps(queryset))
    assert list(same) == list(queryset)
    assert same.filter(pages=100).is_live


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "read",
    [list, lambda qs: qs.count(), lambda qs: qs.exists(), lambda qs: qs.aggregate(n=Count("pk"))],
    ids=["rows", "count", "exists", "aggregate"],
)
def test_the_database_of_one_read_is_not_that_of_the_queryset(cache: str, settings: Any, read: Any) -> None:
    """What is made of a queryset while another thread evaluates it asks the routers for itself, above all to write."""
    settings.DATABASE_ROUTERS = ["tests.test_orm_found.CountingRouter"]
    queryset = live(Tag.objects.all())
    meanwhile = []

    def look(execute: Any, *args: Any) -> Any:
        meanwhile.append(queryset.filter(name="red")._db)
        return execute(*args)

    with connections["default"].execute_wrapper(look):
        read(queryset)
    assert meanwhile == [None]
    assert queryset.last_read is not None


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda queryset: pickle.loads(pickle.dumps(queryset))])
def test_copies_of_a_queryset_read_as_it_does(alias: str, books: Any, duplicate: Any) -> None:
    """Whatever live() was not given stays so in a copy, which shares the entries."""
    queryset = live(books.order_by("pk")).prefetch_related(models.Prefetch("tags", live(Tag.objects.all())))
    same = duplicate(queryset)
    for query_count in (2, 0):
        found = queries_of(alias, lambda: list(same.filter(pages=100)))
        assert found == (list(books.filter(pages=100).order_by("pk")), query_count)
    assert queries_of(alias, lambda: list(queryset.filter(pages=100)))[1] == 0


def test_class_of_a_foreign_queryset_keeps_its_methods(alias: str, books: Any) -> None:
    """live() of a queryset with custom methods keeps them, also a method called live (Wagtail)."""

    class PageQuerySet(models.QuerySet[Book]):
        def live(self) -> PageQuerySet:
            return self.filter(in_print=True)

    queryset = live(PageQuerySet(Book, using=alias))
    assert isinstance(queryset, PageQuerySet)
    assert isinstance(queryset, LiveQuerySet)
    assert queryset.is_live
    published: Any = queryset.live()
    assert published.is_live
    assert len(published) == 7


def test_models_with_their_own_from_db_or_init_are_built_by_it(alias: str, cache: str) -> None:
    """The fast path is for plain models only."""
    LoadedBook.objects.using(alias).create(title="x")
    MadeBook.objects.using(alias).create(title="x")
    for _ in range(2):
        assert live(LoadedBook.objects.using(alias)).get().loaded["title"] == "x"
        assert live(MadeBook.objects.using(alias)).get().shout == "X"


def test_annotations_are_set_as_attributes(alias: str, books: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """An annotation may have the name of a property of the model, which takes it, or refuses it."""

    def n_books(author: Any) -> str:
        return f"{author.__dict__['counted']} books"

    def count(author: Any, value: int) -> None:
        author.__dict__["counted"] = value

    monkeypatch.setattr(Author, "n", property(n_books, count), raising=False)
    authors = Author.objects.using(alias).annotate(n=Count("books")).order_by("pk")
    for _ in range(2):
        assert [author.n for author in live(authors)] == ["3 books", "2 books", "2 books"]
    monkeypatch.setattr(Author, "n", property(n_books))
    with pytest.raises(AttributeError):
        list(live(authors))


def test_init_signals_are_sent_for_cached_instances(alias: str, books: Any) -> None:
    """Receivers of post_init see cached instances as they see fetched ones."""
    seen: list[Any] = []

    def receiver(instance: Any, **kwargs: Any) -> None:
        seen.append(instance.title)

    list(live(books))
    models.signals.post_init.connect(receiver, sender=Book)
    try:
        rows = list(live(books))
    finally:
        models.signals.post_init.disconnect(receiver, sender=Book)
    assert seen == [row.title for row in rows]


def test_reverse_manager_sets_the_parent_and_does_not_store_it(alias: str, books: Any) -> None:
    """Rows of a reverse manager know their parent, which is the caller's own object (T18)."""
    author = Author.objects.using(alias).get(name="Ann")
    for _ in range(2):
        rows = list(live(author.books.all()))  # type: ignore[attr-defined]  # reverse manager
        assert all(row.author is author for row in rows)


def test_proxy_and_filtered_manager(alias: str, books: Any) -> None:
    """A proxy with its own manager is cached as what it is."""
    for _ in range(2):
        rows = list(live(CheapBook.objects.using(alias).order_by("pk")))
        assert all(type(row) is CheapBook and row.price < 10 for row in rows)


def test_every_field_type_comes_back_equal_in_value_and_type(alias: str, cache: str) -> None:
    """All fields of Django, empty and filled."""
    AllFields.objects.using(alias).create()
    AllFields.objects.using(alias).create(
        binary=b"\x00\xff",
        json={"a": [1, None, 2.5, "x"]},
        decimal=Decimal("-1.500000"),
        null_json=[1],
        null_float=-0.0,
    )
    expected = [state_of_row(row) for row in AllFields.objects.using(alias).order_by("pk")]
    first = [state_of_row(row) for row in live(AllFields.objects.using(alias).order_by("pk"))]
    second, query_count = queries_of(alias, lambda: list(live(AllFields.objects.using(alias).order_by("pk"))))
    assert normalized(first) == normalized(expected)
    assert normalized([state_of_row(row) for row in second]) == normalized(expected)
    assert query_count == 0


def normalized(states: list[Any]) -> Any:
    """Memoryviews compare by identity of their format; compare their bytes."""
    return [
        {name: (kind, bytes(value) if kind is memoryview else value) for name, (kind, value) in state[1].items()}
        for state in states
    ]


def test_mutable_values_are_not_shared_between_reads(alias: str, books: Any) -> None:
    """Changing a JSON value that was read does not change the next read."""
    row = live(books.filter(data__isnull=False)).first()
    assert row is not None
    row.data["kind"] = "changed"
    again = live(books.filter(data__isnull=False)).first()
    assert again is not None
    assert again.data["kind"] == "x"


def test_fetched_at_is_the_time_of_the_fetch(alias: str, books: Any) -> None:
    """A hit tells when its rows were read from the database."""
    first = live(books)
    fetched_at = first.fetched_at
    assert fetched_at is not None
    assert live(books).fetched_at == fetched_at
    other = live(books.filter(pages=100)).fetched_at
    assert other is not None
    assert other > fetched_at


@pytest.mark.django_db
def test_bad_options_are_refused_with_their_name() -> None:
    """Each wrong argument of live() is named."""
    queryset = Book.objects.all()
    with pytest.raises(ConfigurationError, match="nope"):
        live(queryset, using_cache="nope")
    with pytest.raises(ValueError, match="eventual"):
        live(queryset, mode="eventual")
    with pytest.raises(InvalidKeyError, match="empty"):
        live(queryset, "a//b")
    with pytest.raises(ValueError, match="page_size"):
        live(queryset, page_size=0)
    with pytest.raises(ValueError, match="size"):
        live(queryset).page(1)
    with pytest.raises(ValueError, match="count from 1"):
        live(queryset).page(0, 5)
    with pytest.raises(TypeError, match="int"):
        live(5)  # type: ignore[arg-type]  # the point of the test
    with pytest.raises(TypeError, match="live"):
        LiveQuerySet(Book).fresh()


def test_live_needs_the_app(settings: Any) -> None:
    """Without the app no write would be seen, so nothing may be read live."""
    settings.INSTALLED_APPS = [name for name in settings.INSTALLED_APPS if name != "live_cache"]
    with pytest.raises(ConfigurationError, match="INSTALLED_APPS"):
        live(Book.objects.all())


def test_await_and_async_iteration(alias: str, books: Any) -> None:
    """The async twins of a live queryset read the same."""
    from asgiref.sync import async_to_sync

    async def read() -> tuple[Any, ...]:
        queryset = live(books.order_by("pk"))
        return (
            await queryset.acount(),
            [book.pk async for book in queryset],
            (await queryset.afirst()).pk,
            (await queryset.aget(pk=books_keys[0])).pk,
        )

    books_keys = list(books.order_by("pk").values_list("pk", flat=True))
    expected = (7, books_keys, books_keys[0], books_keys[0])
    assert async_to_sync(read)() == expected
    assert async_to_sync(read)() == expected


@pytest.mark.skipif(django.VERSION < (6, 0), reason="AsyncPaginator came with Django 6.0")
def test_async_paginator_works_on_a_live_queryset(alias: str, books: Any) -> None:
    """AsyncPaginator counts and slices a live queryset; the second time it makes no query."""
    from asgiref.sync import async_to_sync
    from django.core import paginator

    async def read() -> tuple[int, list[int]]:
        pages: Any = paginator.AsyncPaginator(live(books.order_by("pk")), 3)  # type: ignore[attr-defined]  # Django 6
        page = await pages.apage(2)
        return await pages.acount(), [book.pk async for book in page.object_list]

    expected = (7, list(books.order_by("pk").values_list("pk", flat=True)[3:6]))
    assert async_to_sync(read)() == expected
    with recording() as reads:
        assert async_to_sync(read)() == expected
    assert all(record.is_hit for record in reads)
