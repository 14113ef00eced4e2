"""What django.contrib.postgres adds: its fields, lookups, functions and collations are cached exactly, or refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import pytest
from django.db import connections, models, transaction
from django.db.models import F, Func, OuterRef, Q, Value
from django.db.models.functions import Cast
from django.test.utils import modify_settings

from live_cache import live
from tests.compared import state_of_row
from tests.made_models import made_models
from tests.servers import MISSING
from tests.test_queryset import queries_of

pytest.importorskip("psycopg")

from django.contrib.postgres import aggregates, expressions, fields, functions, search
from psycopg.types.range import Range

ALIAS = "postgresql"
pytestmark = [
    pytest.mark.skipif(ALIAS in MISSING, reason="POSTGRESQL IS MISSING"),
    pytest.mark.django_db(transaction=True, databases=[ALIAS]),
]

UTC = datetime.UTC
MARCH, APRIL = datetime.date(2026, 3, 1), datetime.date(2026, 4, 1)
NOON = datetime.datetime(2026, 3, 1, 12, tzinfo=UTC)


class CITextField(models.TextField):  # type: ignore[type-arg]  # not generic when it runs
    """A column of the extension citext, whose field Django 5.2 has only in old migrations."""

    def db_type(self, connection: Any) -> str:
        """Return the type of the extension."""
        return "citext"


def make_thing() -> type[models.Model]:
    class Thing(models.Model):
        """A column of each type."""

        name = models.CharField(max_length=50)
        text = models.TextField(default="")
        folded = models.CharField(max_length=50, db_collation="live_cache_folded")
        ci = CITextField()
        tags = fields.ArrayField(models.CharField(max_length=20), null=True)
        matrix = fields.ArrayField(fields.ArrayField(models.IntegerField(null=True)))
        prices = fields.ArrayField(models.DecimalField(max_digits=8, decimal_places=2))
        days = fields.ArrayField(models.DateField())
        hstore = fields.HStoreField(null=True)
        integers = fields.IntegerRangeField(null=True)
        big_integers = fields.BigIntegerRangeField(null=True)
        decimals = fields.DecimalRangeField(null=True)
        dates = fields.DateRangeField(null=True)
        times = fields.DateTimeRangeField(null=True)
        vector = search.SearchVectorField(null=True)

        class Meta:
            app_label = "testapp"

    return Thing


@pytest.fixture(scope="module")
def thing(django_db_setup: None, django_db_blocker: Any) -> Iterator[Any]:
    """The model, with its table, the extensions and the collation that it needs, and django.contrib.postgres."""
    connection: Any = connections[ALIAS]
    with django_db_blocker.unblock():
        with connection.cursor() as cursor:
            for name in ("hstore", "citext", "pg_trgm", "unaccent"):
                cursor.execute(f"CREATE EXTENSION IF NOT EXISTS {name}")
            cursor.execute(
                "CREATE COLLATION live_cache_folded (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )
        with (
            modify_settings(INSTALLED_APPS={"append": "django.contrib.postgres"}),
            made_models(ALIAS) as create_tables,
        ):
            model = make_thing()
            create_tables(model)
            connection.close()  # the next one knows the types, and its search path is in no doubt
            yield model
        with connection.cursor() as cursor:
            cursor.execute("DROP COLLATION live_cache_folded")
        connection.close()


@pytest.fixture
def things(thing: Any, cache: str) -> Any:
    """Three rows: one filled, one with empty values, one with nulls. All managers of this database."""
    manager = thing.objects.using(ALIAS)
    filled: dict[str, Any] = {
        "name": "Crème brûlée",
        "text": "The cook makes a cake",
        "folded": "Sugar",
        "ci": "Sugar",
        "tags": ["a", "b"],
        "matrix": [[1, None], [3, 4]],
        "prices": [Decimal("1.50"), Decimal("2.00")],
        "days": [MARCH],
        "hstore": {"colour": "red", "none": None},
        "integers": (1, 5),
        "big_integers": (2**40, None),
        "decimals": Range(Decimal("1.50"), Decimal("2.5"), "(]"),
        "dates": (MARCH, APRIL),
        "times": (NOON, NOON + datetime.timedelta(days=1)),
    }
    manager.create(**filled)
    empty = {
        "tags": [], "matrix": [], "prices": [], "days": [], "hstore": {}, "name": "Tart", "folded": "", "ci": "",
        **{name: Range(empty=True) for name in ("integers", "big_integers", "decimals", "dates", "times")},
    }  # fmt: skip
    manager.create(**empty)
    manager.create(name="Null", matrix=[[1]], prices=[], days=[], folded="salt", ci="salt")
    manager.update(vector=search.SearchVector("text", config="english"))
    return manager.order_by("pk")


def change(things: Any) -> None:
    """Change every column of the first row, in a transaction."""
    with transaction.atomic(using=ALIAS):
        things.filter(name__startswith="Cr").update(
            name="Pie",
            text="Nothing",
            folded="Pepper",
            ci="Pepper",
            tags=["b", "c", "d"],
            matrix=[[9]],
            prices=[Decimal("7.00")],
            days=[APRIL],
            hstore={"size": "big"},
            integers=(10, 20),
            big_integers=(1, 2),
            decimals=(7, 8),
            dates=(APRIL, None),
            times=(NOON + datetime.timedelta(days=40), None),
            vector=search.SearchVector(Value("nothing"), config="english"),
        )


def column(name: str) -> Callable[[Any], Any]:
    return lambda things: things.values_list(name, flat=True)


ARRAYS: dict[str, Callable[[Any], Any]] = {
    "array": column("tags"),
    "array of arrays": column("matrix"),
    "array of decimals": column("prices"),
    "array of dates": column("days"),
    "array contains": lambda t: t.filter(tags__contains=["a"]),
    "array contains a column": lambda t: t.filter(tags__contains=[F("tags__0")]),
    "array of decimals contains": lambda t: t.filter(prices__contains=[Decimal("1.5")]),
    "array contained by": lambda t: t.filter(tags__contained_by=["a", "b", "c"]),
    "array overlaps": lambda t: t.filter(tags__overlap=["a", "z"]),
    "array overlaps a subquery": lambda t: t.filter(tags__overlap=t.filter(name="Crème brûlée").values("tags__0")),
    "array is": lambda t: t.filter(tags=["a", "b"]),
    "array in": lambda t: t.filter(tags__in=[["a", "b"], ["c"]]),
    "array length": lambda t: t.filter(tags__len=2),
    "array index": lambda t: t.filter(tags__0="a"),
    "array of arrays index": lambda t: t.filter(matrix__1__0=3),
    "array slice": lambda t: t.filter(tags__0_1=["a"]).values_list("tags__0_1"),
    "array isnull": lambda t: t.annotate(first=F("tags__0")).filter(first__isnull=False),
    "ArrayAgg": lambda t: t.values("folded").annotate(
        all=aggregates.ArrayAgg("name", distinct=True, default=Value([]), filter=Q(pk__gt=0))
    ),
    "ArraySubquery": lambda t: t.annotate(
        same=expressions.ArraySubquery(t.filter(tags__len=OuterRef("tags__len")).values("name"))
    ),
}

HSTORES: dict[str, Callable[[Any], Any]] = {
    "hstore": column("hstore"),
    "hstore key": lambda t: t.filter(hstore__colour="red").values_list("hstore__colour", "hstore__none"),
    "hstore contains": lambda t: t.filter(hstore__contains={"colour": "red"}),
    "hstore contained by": lambda t: t.filter(hstore__contained_by={"colour": "red", "none": None}),
    "hstore has key": lambda t: t.filter(hstore__has_key="colour"),
    "hstore has keys": lambda t: t.filter(hstore__has_keys=["colour", "none"]),
    "hstore has any keys": lambda t: t.filter(hstore__has_any_keys=["colour", "x"]),
    "hstore keys and values": lambda t: t.filter(hstore__keys__contains=["colour"], hstore__values__contains=["red"]),
    "hstore text": lambda t: t.filter(hstore__colour__icontains="RE"),
}

RANGES: dict[str, Callable[[Any], Any]] = {
    **{name: column(name) for name in ("integers", "big_integers", "decimals", "dates", "times")},
    "range contains a value": lambda t: t.filter(integers__contains=3),
    "range contains a range": lambda t: t.filter(integers__contains=Range(2, 3)),
    "range of dates contains": lambda t: t.filter(dates__contains=datetime.date(2026, 3, 5)),
    "range of dates contains a time": lambda t: t.filter(dates__contains=NOON),
    "range of times contains": lambda t: t.filter(times__contains=NOON),
    "range contained by": lambda t: t.filter(integers__contained_by=(0, 9)),
    "value in a range": lambda t: t.alias(three=Cast(F("matrix__1__0"), models.IntegerField())).filter(
        three__contained_by=Range(0, 9)
    ),
    "range overlaps": lambda t: t.filter(integers__overlap=(4, 9)),
    "range before": lambda t: t.filter(integers__fully_lt=(6, 9)),
    "range after": lambda t: t.filter(integers__fully_gt=(6, 9)),
    "range not before": lambda t: t.filter(integers__not_lt=(6, 9)),
    "range not after": lambda t: t.filter(integers__not_gt=(4, 9)),
    "range adjacent": lambda t: t.filter(integers__adjacent_to=(5, 9)),
    "range ends": lambda t: t.filter(integers__startswith=1, integers__endswith=5).values_list("decimals__endswith"),
    "range is": lambda t: t.filter(dates=(MARCH, APRIL)),
    "range empty": lambda t: t.annotate(e=F("integers__isempty")).values_list("e", "decimals__lower_inc"),
    "range bounds": lambda t: t.values_list(
        "decimals__upper_inc", "big_integers__upper_inf", "big_integers__lower_inf"
    ),
    "range in a list": lambda t: t.filter(integers__in=[Range(1, 5), Range(7, 8)]),
}

TEXTS: dict[str, Callable[[Any], Any]] = {
    "citext": lambda t: t.filter(ci="SUGAR").values_list("ci"),
    "citext in": lambda t: t.filter(ci__in=["SUGAR", "Salt"]).values_list("ci"),
    "folding collation": lambda t: t.filter(folded="SUGAR").values_list("folded"),
    "folding collation, grouped": lambda t: t.values("folded").annotate(n=models.Count("pk")),
    "unaccent": lambda t: t.filter(name__unaccent="Creme brulee"),
    "unaccent, with a lookup": lambda t: t.filter(name__unaccent__icontains="CREME"),
    "trigram_similar": lambda t: t.filter(name__trigram_similar="Crème brulé"),
    "trigram_word_similar": lambda t: t.filter(text__trigram_word_similar="cook"),
    "trigram_strict_word_similar": lambda t: t.filter(text__trigram_strict_word_similar="cook"),
    "trigram functions": lambda t: t.annotate(
        a=search.TrigramSimilarity("text", "cook"),
        b=search.TrigramDistance("text", "cook"),
        c=search.TrigramWordSimilarity("cook", "text"),
        d=search.TrigramWordDistance("cook", "text"),
        e=search.TrigramStrictWordSimilarity("cook", "text"),
        f=search.TrigramStrictWordDistance("cook", "text"),
    ),
    "search lookup": lambda t: t.filter(text__search="cooks"),
    "search lookup with a query": lambda t: t.filter(text__search=search.SearchQuery("cooks", config="english")),
    "SearchVectorField": column("vector"),
    "SearchVectorField, searched": lambda t: t.filter(vector=search.SearchQuery("cooks", config="english")),
    "SearchVector": lambda t: t.annotate(
        v=search.SearchVector("text", "name", weight="A", config="english")
        + search.SearchVector("folded", weight="B", config="english")
    ).filter(v=search.SearchQuery("cook") & ~search.SearchQuery("salt") | search.SearchQuery("x", search_type="raw")),
    "SearchVector of a column that is no text": lambda t: t.annotate(v=search.SearchVector("prices")),
    "SearchRank": lambda t: t.annotate(
        a=search.SearchRank("vector", search.SearchQuery("cook"), weights=[0.1, 0.2, 0.3, 1.0], normalization=2),
        b=search.SearchRank(F("vector"), search.SearchQuery("cook"), cover_density=True),
    ),
    "SearchHeadline": lambda t: t.annotate(
        h=search.SearchHeadline("text", search.SearchQuery("cook"), config="english", start_sel="<b>", stop_sel="</b>")
    ),
}

AGGREGATES: dict[str, Callable[[Any], Any]] = {
    "statistics": lambda t: t.annotate(n=F("matrix__0__0"))
    .values("n")
    .annotate(
        a=aggregates.Corr("pk", "n"),
        b=aggregates.CovarPop("pk", "n"),
        c=aggregates.CovarPop("pk", "n", sample=True),
        d=aggregates.RegrCount("pk", "n"),
        e=aggregates.RegrAvgY("pk", "n"),
    )
    .order_by("n"),
    "BoolOr and JSONBAgg": lambda t: t.values("folded")
    .annotate(a=aggregates.BoolOr(Q(tags__len=2)), b=aggregates.JSONBAgg("name"))
    .order_by("folded"),
}  # fmt: skip

SHAPES = {**ARRAYS, **HSTORES, **RANGES, **TEXTS, **AGGREGATES}


def rows_of(queryset: Any) -> list[Any]:
    return [types_of(state_of_row(row)) for row in queryset]


def types_of(value: Any) -> Any:
    """A value beside the types of all that it holds."""
    if isinstance(value, list | tuple):
        return type(value), [types_of(item) for item in value]
    if isinstance(value, dict):
        return {key: types_of(item) for key, item in value.items()}
    if isinstance(value, Range):
        return type(value), value.bounds, types_of(value.lower), types_of(value.upper), value.isempty
    return (type(value), value.tzinfo, value) if isinstance(value, datetime.datetime) else (type(value), value)


@pytest.mark.parametrize("name", SHAPES)
def test_shape(things: Any, name: str) -> None:
    """The second read makes no query and equals the database; the read after a write equals it again."""
    build = SHAPES[name]
    explanation = live(build(things)).live_explain()
    assert explanation.is_cachable, explanation.reason
    expected = rows_of(build(things))
    assert rows_of(live(build(things))) == expected
    assert queries_of(ALIAS, lambda: rows_of(live(build(things)))) == (expected, 0)
    change(things)
    changed = rows_of(build(things))
    assert changed != expected, "the write of this shape changes nothing"
    assert rows_of(live(build(things))) == changed
    assert queries_of(ALIAS, lambda: rows_of(live(build(things)))) == (changed, 0)


WRITES: dict[str, Callable[[Any], object]] = {
    "save": lambda t: save(t, tags=["new"], hstore={"new": "1"}, integers=(7, 9)),
    "save of one column": lambda t: save(t, ["hstore"], hstore={"new": "1"}),
    "bulk_update": lambda t: t.bulk_update([set_values(t[0], integers=Range(7, 9))], ["integers"]),
    "append in SQL": lambda t: t.filter(pk=t[0].pk).update(
        tags=Func(F("tags"), Value("z"), function="array_append", output_field=fields.ArrayField(models.TextField()))
    ),
    "delete": lambda t: t.filter(tags__contains=["a"]).delete(),
    "create": lambda t: t.create(name="New", matrix=[], prices=[], days=[], hstore={"a": "b"}, ci="x", folded="x"),
    "bulk_create with conflicts": lambda t: t.bulk_create(
        [set_values(t[0], hstore={"up": "sert"})],
        update_conflicts=True,
        unique_fields=["id"],
        update_fields=["hstore"],
    ),
    "raw SQL": lambda t: execute("UPDATE testapp_thing SET hstore = hstore || 'raw=>1'::hstore"),
}


def set_values(row: Any, **values: Any) -> Any:
    row.__dict__.update(values)
    return row


def save(things: Any, update_fields: list[str] | None = None, **values: Any) -> None:
    set_values(things[0], **values).save(update_fields=update_fields)


def execute(sql: str) -> None:
    with connections[ALIAS].cursor() as cursor:
        cursor.execute(sql)


@pytest.mark.parametrize("name", WRITES)
def test_write_is_seen(things: Any, name: str) -> None:
    """Each way to write such a column."""
    before = rows_of(live(things))
    assert queries_of(ALIAS, lambda: rows_of(live(things))) == (before, 0)
    WRITES[name](things)
    assert rows_of(live(things)) == rows_of(things) != before


def test_options_of_the_base_field_are_part_of_the_key(things: Any) -> None:
    """Two arrays of decimals with other places are two results."""
    found = []
    for places in (1, 2):
        field = fields.ArrayField(models.DecimalField(max_digits=6, decimal_places=places))
        queryset = things.annotate(made=Cast("prices", field)).values_list("made", flat=True)
        found.append(rows_of(live(queryset)))
        assert found[-1] == rows_of(queryset)
    assert found[0] != found[1] or str(found[0]) != str(found[1])


VOLATILE: dict[str, Callable[[Any], Any]] = {
    "RandomUUID": lambda t: t.annotate(x=functions.RandomUUID()),
    "RandomUUID in ORDER BY": lambda t: t.order_by(functions.RandomUUID()),
    "RandomUUID in an array": lambda t: t.filter(tags__contains=[Cast(functions.RandomUUID(), models.TextField())]),
    "RandomUUID in a list": lambda t: t.filter(name__in=[Cast(functions.RandomUUID(), models.TextField())]),
    "TransactionNow": lambda t: t.annotate(x=functions.TransactionNow()),
    "TransactionNow in a range": lambda t: t.filter(times__contains=functions.TransactionNow()),
    "TransactionNow against a bound": lambda t: t.filter(times__startswith__lt=functions.TransactionNow()),
    "Func in a template": lambda t: t.filter(tags=Func(Value("a"), function="ARRAY", template="array[random()::text]")),
    "Func": lambda t: t.annotate(x=Func(F("tags"), function="cardinality", output_field=models.IntegerField())),
}


@pytest.mark.parametrize("name", VOLATILE)
def test_never_cached(things: Any, name: str) -> None:
    """What makes another value each time is refused by its name, wherever it stands."""
    explanation = live(VOLATILE[name](things)).live_explain()
    assert not explanation.is_cachable
    assert name.split()[0] in explanation.reason


def test_a_changed_threshold_is_not_shared(things: Any) -> None:
    """A connection whose setting changes what a lookup finds reads past the cache."""
    similar = things.filter(name__trigram_similar="Crème brulé").values_list("name", flat=True)
    before = list(live(similar))
    assert before
    execute("SET pg_trgm.similarity_threshold = 0.99")
    try:
        assert list(live(similar)) == list(similar) == []
    finally:
        connections[ALIAS].close()
    assert list(live(similar)) == before
