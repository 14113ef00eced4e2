"""Single traps: a read that is cached, a write that changes its result in a way that is easily overlooked."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from django.db import connections, models, transaction
from django.db.models import Case, Count, Exists, F, OuterRef, Q, Value, When, Window
from django.db.models.functions import Cast, Now, Rank

from live_cache import RawSQL, live, recording
from tests.machine.queries import frozen
from tests.testapp.models import AllFields, Author, Book, BookPlace, Country, Library, Part, Profile, Tag

B = Book.objects.using


class Trap(NamedTuple):
    """A read, and a write that changes what it yields."""

    read: Callable[[str], Any]
    """Makes the queryset, given the alias."""
    write: Callable[[str], object]
    prepare: Callable[[str], object] = lambda alias: None


def rows(queryset: Any) -> list[Any]:
    return [frozen(row) for row in queryset]


def raw(alias: str, sql: str, *parameters: Any) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, parameters)


def make_rows(alias: str) -> None:
    for code, name in (("GB", "Britain"), ("DE", "Germany")):
        Country.objects.using(alias).create(code=code, name=name)
    authors = [
        Author.objects.using(alias).create(pk=n, name=name, country_id=code)
        for n, name, code in ((1, "Ann", "GB"), (2, "Bob", "DE"), (3, "Cid", None))
    ]
    for n in range(1, 7):
        Book.objects.using(alias).create(
            pk=n,
            title="abcdef"[n - 1],
            author=authors[n % 3],
            price=Decimal(n),
            pages=n % 3,
            rating=n / 2,
            created=datetime.datetime(2024, 1, n, tzinfo=datetime.UTC),
            published=datetime.date(2024, 1, n),
        )
    Profile.objects.using(alias).create(pk=1, author=authors[0], bio="x")
    for n in (1, 2):
        Tag.objects.using(alias).create(pk=n, name=f"t{n}")
    Book.objects.using(alias).get(pk=1).tags.add(1)


def replace_author(alias: str) -> None:
    with transaction.atomic(using=alias):
        Author.objects.using(alias).filter(pk=1)._raw_delete(alias)
        Author.objects.using(alias).create(pk=1, name="New")


TRAPS = {
    "a referred row is deleted and made anew in one transaction": Trap(
        lambda alias: B(alias).select_related("author").filter(author=1).order_by("pk"),
        replace_author,
        lambda alias: Profile.objects.using(alias).all().delete(),
    ),
    "a referred row is deleted and made anew, and comes to match": Trap(
        lambda alias: B(alias).filter(author__name="New").order_by("pk"),
        replace_author,
        lambda alias: Profile.objects.using(alias).all().delete(),
    ),
    "a foreign key that is compared, and followed to what is shown": Trap(
        lambda alias: B(alias).filter(author__in=[1, 2]).values_list("title", "author__name").order_by("pk"),
        lambda alias: B(alias).filter(author=1).update(author=2),
    ),
    "a one-to-one row asked to be absent is deleted": Trap(
        lambda alias: (
            Author.objects.using(alias).filter(profile__author__isnull=True).select_related("profile").order_by("pk")
        ),
        lambda alias: Profile.objects.using(alias).get(author=1).delete(),
    ),
    "a one-to-one row excluded by its key is deleted": Trap(
        lambda alias: Author.objects.using(alias).exclude(profile__author=1).select_related("profile").order_by("pk"),
        lambda alias: Profile.objects.using(alias).get(author=1).delete(),
    ),
    "a union shows a column that its first part also compares": Trap(
        lambda alias: (
            B(alias)
            .filter(price__lt=10)
            .order_by()
            .values_list("pk", "price")
            .union(Author.objects.using(alias).values_list("pk", "pk"))
        ),
        lambda alias: B(alias).filter(pk=3).update(price=4.5),
    ),
    "ranks of rows that an OR beside a window leaves out": Trap(
        lambda alias: (
            B(alias)
            .annotate(r=Window(Rank(), order_by=F("price").asc()))
            .filter(Q(pages=1, r=3) | Q(pages=1, r=1))
            .order_by("pk")
        ),
        lambda alias: B(alias).filter(pk=2).update(price=100),
    ),
    "a column of raw SQL without its table": Trap(
        lambda alias: (
            B(alias)
            .annotate(x=RawSQL("price * 2", (), models.FloatField(), tables=()))
            .values_list("pk", "x")
            .order_by("pk")
        ),
        lambda alias: B(alias).filter(pk=3).update(price=40),
    ),
    "deleted from a group that is written in another case": Trap(
        lambda alias: B(alias).filter(pages__gte=0).values("title").annotate(n=Count("pk")).order_by("title"),
        lambda alias: B(alias).filter(pk=2).delete(),
        lambda alias: B(alias).filter(pk=2).update(title="A"),
    ),
    "a page sorted by the name of what it shows": Trap(
        lambda alias: (
            B(alias)
            .filter(pages__lt=50)
            .annotate(x=Case(When(pages=1, then=Value(0)), default=Value(1)))
            .order_by("x", "-pk")[:2]
        ),
        lambda alias: B(alias).filter(pk=6).update(pages=1),
    ),
    "a column that is compared twice, once in what Django leaves out": Trap(
        lambda alias: (
            B(alias).filter(Q(pages__in=[]) | Q(title__gte=""), pages__lt=F("price")).order_by("pk").values_list("pk")
        ),
        lambda alias: B(alias).filter(pk=6).update(pages=1000),
    ),
    "a column that is compared twice, once beside what Django leaves out": Trap(
        lambda alias: (
            B(alias)
            .filter(Q(pages__gt=10**30, rating__gt=-5) | Q(title__gte=""), rating__lt=F("price"))
            .order_by("pk")
            .values_list("pk")
        ),
        lambda alias: B(alias).filter(pk=6).update(rating=1000),
    ),
    "the same in a subquery": Trap(
        lambda alias: (
            Author.objects.using(alias)
            .filter(
                Exists(
                    B(alias)
                    .filter(Q(pages__gt=10**30, rating__gt=-5) | Q(title__gte=""), rating__lt=F("price"))
                    .filter(author=OuterRef("pk"), pk=6)
                )
            )
            .order_by("pk")
        ),
        lambda alias: B(alias).filter(pk=6).update(rating=1000),
    ),
    "NULL is not below a number that Django leaves out": Trap(
        lambda alias: AllFields.objects.using(alias).filter(null_integer__lt=10**30).order_by("pk").values_list("pk"),
        lambda alias: AllFields.objects.using(alias).create(null_integer=None),
        lambda alias: AllFields.objects.using(alias).create(null_integer=1),
    ),
}


@pytest.mark.parametrize("name", TRAPS)
def test_the_trap_is_seen(name: str, alias: str, cache: str) -> None:
    """A live read after the write yields what the database says."""
    if connections[alias].vendor == "mysql" and "made anew" in name:
        pytest.skip("MySQL checks foreign keys at once.")
    check(alias, TRAPS[name])


def check(alias: str, trap: Trap) -> None:
    """Cache what the trap reads, write, and compare."""
    make_rows(alias)
    trap.prepare(alias)
    read, write = trap.read, trap.write
    before = rows(read(alias))
    rows(live(read(alias)))
    with recording() as records:
        assert rows(live(read(alias))) == before
    assert records[0].is_hit, records
    write(alias)
    expected = rows(read(alias))
    assert expected != before
    assert rows(live(read(alias))) == expected


def test_learned_from_a_query_without_the_column(alias: str, cache: str) -> None:
    """Django leaves a comparison out that no number of the column can fail; the next value is compared."""
    make_rows(alias)
    places = BookPlace.objects.using(alias)
    library = Library.objects.using(alias).create(name="L")
    one = places.create(library=library, book_id=1, copies=5)

    def read(limit: int) -> Any:
        return places.filter(Q(copies__gt=limit) | Q(pk__lt=0)).order_by("pk").values_list("pk")

    rows(live(read(-(10**30))))
    rows(live(read(1)))
    with recording() as records:
        assert len(rows(live(read(1)))) == 1
    assert records[0].is_hit
    places.filter(pk=one.pk).update(copies=0)
    assert rows(live(read(1))) == []


def test_an_aggregate_over_a_column_that_is_also_left_out(alias: str, cache: str) -> None:
    """The comparison that stands in the SQL is the one that Django cannot leave out."""
    make_rows(alias)
    books = B(alias).filter(Q(pages__gt=10**30, rating__gt=-5) | Q(title__gte=""), rating__lt=F("price"))
    for _ in range(2):
        with recording() as records:
            assert live(books).aggregate(n=Count("pk")) == {"n": 6}
    assert records[0].is_hit
    B(alias).filter(pk=6).update(rating=1000)
    assert live(books).aggregate(n=Count("pk")) == {"n": 5}


NOW: list[datetime.datetime] = []


def keep_now(alias: str) -> None:
    """Let the database set the time of one book, remove the others, and keep the time as the ORM shows it."""
    B(alias).filter(pk=1).update(created=Now())
    B(alias).exclude(pk=1).delete()
    NOW[:] = [B(alias).get(pk=1).created]


SQLITE = {
    "a decimal that is only nearly what it is shown as": Trap(
        lambda alias: B(alias).exclude(price=Decimal("11.00")).order_by("pk").values_list("pk"),
        lambda alias: B(alias).filter(pk=1).delete(),
        lambda alias: B(alias).filter(pk=1).update(price=F("pages") * 0 + 11.000000000000002),
    ),
    "nearly equal decimals in a DISTINCT": Trap(
        lambda alias: B(alias).values_list("price").distinct().order_by("price"),
        lambda alias: Book(author_id=1, title="n", price=11).save(using=alias),
        lambda alias: B(alias).filter(pk=1).update(price=F("pages") * 0 + 11.000000000000002),
    ),
    "a time of the database with three digits": Trap(
        lambda alias: B(alias).filter(created__lt=NOW[0]).order_by("pk").values_list("pk"),
        lambda alias: B(alias).filter(pk=1).delete(),
        lambda alias: keep_now(alias),
    ),
    "a text that ends for LIKE": Trap(
        lambda alias: B(alias).filter(title__iexact="abc").order_by("pk").values_list("pk"),
        lambda alias: B(alias).filter(pk=1).delete(),
        lambda alias: B(alias).filter(pk=1).update(title="abc\0def"),
    ),
    "a pattern that ends for LIKE": Trap(
        lambda alias: B(alias).filter(title__contains="z\0y").order_by("pk").values_list("pk"),
        lambda alias: B(alias).filter(pk=1).delete(),
        lambda alias: B(alias).filter(pk=1).update(title="xz"),
    ),
}


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", SQLITE)
def test_sqlite_keeps_what_it_is_given(name: str, cache: str) -> None:
    """SQLite compares what it was given, the ORM shows something smoother."""
    check("default", SQLITE[name])


def make_parts(alias: str) -> None:
    """Two parts that last a year: one as PostgreSQL keeps it, and one of as many days as that is shown as."""
    parts = Part.objects.using(alias)
    parts.create(pk=1, lasts=datetime.timedelta(365))
    parts.create(pk=2, lasts=datetime.timedelta(1))
    parts.filter(pk=2).update(lasts=Cast(Value("1 year"), models.DurationField()))


POSTGRESQL = {
    "a year is not 365 days": Trap(
        lambda alias: Part.objects.using(alias).exclude(lasts=datetime.timedelta(365)).order_by("pk"),
        lambda alias: Part.objects.using(alias).filter(pk=2).delete(),
        make_parts,
    ),
    "a year is shorter than 362 days": Trap(
        lambda alias: Part.objects.using(alias).filter(lasts__lt=datetime.timedelta(362)).order_by("pk"),
        lambda alias: Part.objects.using(alias).filter(pk=2).delete(),
        make_parts,
    ),
    "a year becomes 365 days": Trap(
        lambda alias: Part.objects.using(alias).filter(lasts=datetime.timedelta(365)).order_by("pk"),
        lambda alias: Part.objects.using(alias).filter(pk=2).update(lasts=datetime.timedelta(365)),
        make_parts,
    ),
    "365 days beside a year in a DISTINCT": Trap(
        lambda alias: Part.objects.using(alias).values_list("lasts").distinct().order_by("lasts"),
        lambda alias: Part.objects.using(alias).create(pk=3, lasts=datetime.timedelta(365)),
        lambda alias: (make_parts(alias), Part.objects.using(alias).filter(pk=1).delete()),
    ),
}


@pytest.mark.parametrize("name", POSTGRESQL)
def test_postgresql_keeps_years(name: str, alias: str, cache: str) -> None:
    """PostgreSQL compares a year as twelve months of thirty days; its driver shows 365 days."""
    if connections[alias].vendor != "postgresql":
        pytest.skip("Durations are numbers there.")
    check(alias, POSTGRESQL[name])
