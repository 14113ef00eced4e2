"""
What the database takes for equal, and how it sorts, beside what live_cache.shapes says of it.

Whatever is said definitely must be what the database says; what is not known may be said not to be known. Then live
reads of the values that Python and some database see differently.
"""

from __future__ import annotations

import datetime
import decimal
from collections.abc import Callable, Iterator
from contextlib import closing
from decimal import Decimal
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import EmptyResultSet
from django.db import Error, NotSupportedError, connections, models, transaction
from django.db.models import Count, Q
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from live_cache import live, recording
from live_cache.shapes.catalog import CatalogMemo
from live_cache.shapes.conditions import read_where
from live_cache.shapes.text_rules import text_rules_of
from live_cache.shapes.truth import FALSE, NULL, TRUE, position
from live_cache.writes.answers import answer_of, loads_of
from live_cache.writes.images import Columns
from tests.deep import deep
from tests.made_models import made_models
from tests.testapp.models import AllFields, Part

PROFILE: Final = settings(
    max_examples=deep(5, 400),
    derandomize=deep(True, False),
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)

BERLIN, NEW_YORK = ZoneInfo("Europe/Berlin"), ZoneInfo("America/New_York")

# -- values -----------------------------------------------------------------------------------------------------------

_letters = st.sampled_from("aAbBzZéÉeßsS_%\\'\" \tiIÅA\u0130\u0131\u0301")
_texts = st.one_of(st.text(_letters, max_size=4), st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=4))
_places = st.sampled_from(["0", "0.000001", "-0.000001", "0.5", "0.1", "0.3", "99999999.999999", "99999999.999998"])
_decimals = st.one_of(
    _places.map(Decimal), st.decimals(-(10**8), 10**8, places=6), st.integers(-3, 3).map(lambda n: Decimal(n) / 2)
)
_floats = st.one_of(
    st.sampled_from([0.0, -0.0, 0.1, 0.1 + 0.2, 0.3, 1.0, 1.0 + 2**-52, 1e308, 5e-324, 2.0**53, 2.0**53 + 2]),
    st.floats(-1e30, 1e30, allow_nan=False, allow_subnormal=False),
)
_night = st.sampled_from(  # the hour that comes twice in Berlin, and around it
    [datetime.datetime(2023, 10, 29, hour, minute, fold=fold) for hour in (0, 1, 2, 3) for minute in (0, 30)
     for fold in (0, 1)]
)  # fmt: skip
_zones = st.sampled_from([datetime.UTC, BERLIN, NEW_YORK, datetime.timezone(datetime.timedelta(hours=5, minutes=30))])
_moments = st.one_of(_night, st.datetimes(datetime.datetime(1990, 1, 1), datetime.datetime(2037, 1, 1)))
_aware = st.builds(lambda moment, zone: moment.replace(tzinfo=zone), _moments, _zones)
_days = [datetime.date(2024, 2, 28), datetime.date(2024, 2, 29), datetime.date(2024, 3, 1)]
_edges = [2**53, 2**53 + 1, 2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1, 0, 1, -1]

# MariaDB takes no others than those with a known version.
_codes = [UUID("00000000-0000-4000-8000-000000000001"), UUID("f0000000-0000-4000-8000-000000000001")]

NIGHT_BEGINS = datetime.datetime(2023, 10, 28, 22, 30, tzinfo=datetime.UTC)
VALUES: Final[dict[str, st.SearchStrategy[Any]]] = {
    "null_char": _texts,
    "null_text": _texts,
    "null_slug": st.text(st.sampled_from("aAbB-_ "), max_size=3),
    "null_decimal": _decimals,
    "null_float": _floats,
    "null_big_integer": st.one_of(st.sampled_from(_edges), st.integers(-(2**63), 2**63 - 1)),
    "null_small_integer": st.integers(-(2**15), 2**15 - 1),
    "null_positive_integer": st.one_of(st.integers(0, 3), st.integers(0, 2**31 - 1)),
    "null_boolean": st.booleans(),
    "null_date": st.one_of(st.dates(datetime.date(1000, 1, 1)), st.sampled_from(_days)),
    "null_datetime": _aware,
    "null_time": st.one_of(st.times(), st.sampled_from([datetime.time(0), datetime.time(0, 0, 0, 1)])),
    "null_duration": st.timedeltas(datetime.timedelta(days=-(10**5)), datetime.timedelta(days=10**5)),
    "null_uuid": st.one_of(st.uuids(version=4), st.sampled_from(_codes)),
}
ASKED: Final[dict[str, st.SearchStrategy[Any]]] = {
    "null_decimal": st.one_of(_places.map(lambda text: Decimal(text) + Decimal("0.0000004")), _decimals),
    "null_big_integer": st.one_of(st.sampled_from([*_edges, 2**63, -(2**63) - 1]), st.integers(-5, 5)),
    "null_small_integer": st.one_of(st.integers(-(2**15), 2**15 - 1), st.sampled_from([2**15, -(2**31), 2**40])),
    "null_positive_integer": st.one_of(st.integers(-2, 3), st.sampled_from([2**31, 2**32])),
}
TEXT_LOOKUPS: Final = (
    "iexact", "contains", "icontains", "startswith", "istartswith", "endswith", "iendswith",
)  # fmt: skip
ORDER_LOOKUPS: Final = ("lt", "lte", "gt", "gte")


_hours = [NIGHT_BEGINS + datetime.timedelta(minutes=30 * n) for n in range(8)]
CORNERS: Final[dict[str, tuple[list[Any], list[Any]]]] = {
    "null_decimal": (
        [Decimal(n) / 10 for n in range(4)],
        [Decimal(n) / 10 + Decimal(f"{sign}0.0000004") for n in range(4) for sign in ("", "-")],
    ),
    "null_datetime": (_hours, [hour.astimezone(zone) for hour in _hours for zone in (BERLIN, datetime.UTC)]),
}
"""Values held and asked for that are compared in any case."""


def fill(alias: str, name: str, values: list[Any]) -> None:
    """Make a row with each of *values*, and one with NULL."""
    rows = AllFields.objects.using(alias)
    rows.all().delete()
    rows.bulk_create([AllFields(**{name: value}) for value in [*values, None]])


def images_of(alias: str) -> dict[int, dict[str, Any]]:
    """Return what a writer would tell of each row, by its key."""
    connection = connections[alias]
    with closing(connection.create_cursor()) as cursor:
        cursor.execute("SELECT * FROM testapp_allfields")
        answer = answer_of(cursor)
        loads = None if answer.oids is None else loads_of(cursor, answer.oids)
    columns = Columns(AllFields, connection, answer.names, loads)
    images = [columns.image(row, connection) for row in answer.rows]
    return {image["id"]: image for image in images}


def conditions_of(name: str, value: Any, other: Any) -> Iterator[Q]:
    """Yield conditions of each kind with *value*."""
    lookups = ["exact"]
    if name not in ("null_uuid", "null_boolean"):
        lookups += ORDER_LOOKUPS
    if isinstance(value, str):
        lookups += TEXT_LOOKUPS
    for lookup in lookups:
        yield Q(**{f"{name}__{lookup}": value})
        yield ~Q(**{f"{name}__{lookup}": value})
    yield Q(**{f"{name}__in": [value, other]})
    yield ~Q(**{f"{name}__in": [value, other]})
    if name != "null_uuid":
        yield Q(**{f"{name}__range": (value, other)})
    yield Q(**{name: value}) | Q(**{f"{name}__isnull": True})
    yield ~(Q(**{name: value}) & Q(**{f"{name}__isnull": False}))


@pytest.mark.parametrize("name", VALUES)
def test_what_is_said_of_a_condition_is_what_the_database_says(alias: str, name: str) -> None:
    """A condition that is said to hold holds, and one that is said not to hold does not."""
    assert check_conditions(alias, name) > 40, "too little is said for this test to tell anything"


@pytest.fixture
def local_time(alias: str) -> Iterator[None]:
    """Let the database keep local time, as TIME_ZONE in DATABASES does."""
    connection: Any = connections[alias]

    def set_zone(name: str | None) -> None:
        connection.close()
        connection.settings_dict["TIME_ZONE"] = name
        for cached in ("timezone", "timezone_name"):
            connection.__dict__.pop(cached, None)

    before = connection.settings_dict["TIME_ZONE"]
    set_zone("Europe/Berlin")
    yield
    set_zone(before)


def test_what_is_said_of_local_time_is_what_the_database_says(alias: str, local_time: None) -> None:
    """An hour comes twice when summer time ends: to some databases it is the same, to others it is not."""
    assert check_conditions(alias, "null_datetime") > 10, "too little is said for this test to tell anything"


def compare_conditions(alias: str, name: str, held: list[Any], asked: list[Any]) -> int:
    """Compare what is said of rows with *held* by conditions on *asked*; return how often something definite was."""
    n_definite = 0
    text = text_rules_of(connections[alias], ())
    fill(alias, name, held)
    images = images_of(alias)
    rows = AllFields.objects.using(alias)
    for value in asked:
        for condition in conditions_of(name, value, asked[0]):
            queryset = rows.filter(condition)
            said = read_where(queryset.query.where, "testapp_allfields")
            try:
                found = set(queryset.values_list("pk", flat=True))
            except (EmptyResultSet, Error, OverflowError, decimal.InvalidOperation):
                continue
            for key, image in images.items():
                truth = said.truth(image, text)
                if truth == TRUE:
                    assert key in found, (str(said), image[name])
                elif not truth & TRUE:
                    assert key not in found, (str(said), image[name])
                n_definite += truth in (FALSE, NULL, TRUE)
    return n_definite


def check_conditions(alias: str, name: str) -> int:
    """Compare, for random values; return how often something definite was said."""
    n_definite = compare_conditions(alias, name, *CORNERS[name]) if name in CORNERS else 0

    @PROFILE
    @given(data=st.data())
    def check(data: st.DataObject) -> None:
        nonlocal n_definite
        held = data.draw(st.lists(VALUES[name], min_size=3, max_size=6))
        some = st.one_of(ASKED.get(name, VALUES[name]), st.sampled_from(held))
        n_definite += compare_conditions(alias, name, held, data.draw(st.lists(some, min_size=2, max_size=3)))

    check()
    return n_definite


@pytest.mark.parametrize("name", VALUES)
def test_what_is_said_of_an_order_is_how_the_database_sorts(alias: str, name: str) -> None:
    """A row that is said to stand behind another one never stands before it."""
    text = text_rules_of(connections[alias], ())

    @PROFILE
    @given(held=st.lists(VALUES[name], min_size=3, max_size=8), is_descending=st.booleans())
    def check(held: list[Any], is_descending: bool) -> None:
        fill(alias, name, held)
        images = images_of(alias)
        order = ("-" if is_descending else "") + name
        keys = list(AllFields.objects.using(alias).order_by(order, "pk").values_list("pk", flat=True))
        for i, before in enumerate(keys):
            for after in keys[i + 1 :]:
                pair = images[before][name], images[after][name]
                assert position(pair[:1], pair[1:], (is_descending,), text) != 1, pair
                assert position(pair[1:], pair[:1], (is_descending,), text) != -1, pair

    check()


# -- live reads -------------------------------------------------------------------------------------------------------

NIGHT = datetime.datetime(2023, 10, 29, 0, 30, tzinfo=datetime.UTC)
# Each: column, what is asked for, what is stored: equal to some database, or to Python, and not to the other.
PAIRS: Final[dict[str, tuple[str, Any, Any]]] = {
    "case": ("label", "a", "A"),
    "accents": ("label", "e", "é"),
    "one letter for two": ("label", "ss", "ß"),
    "trailing spaces": ("label", "b", "b  "),
    "a trailing tab": ("label", "b", "b\t"),
    "composed letters": ("label", "\u00e9", "e\u0301"),
    "a capital with a dot": ("label", "i", "\u0130"),
    "wildcards": ("label", "a_", "ab"),
    "empty": ("label", "", " "),
    "an enum": ("kind", Part.Kind.SMALL, Part.Kind.LARGE),
    "an enum by its value": ("kind", "a", Part.Kind.SMALL),
    "decimals": ("weight", Decimal("1.5"), Decimal("1.500")),
    "a decimal with more places": ("weight", Decimal("1.5004"), Decimal("1.500")),
    "a float that is nearly it": ("size", 0.3, 0.1 + 0.2),
    "minus zero": ("size", 0.0, -0.0),
    "time zones": ("made_at", NIGHT.astimezone(BERLIN), NIGHT),
    "an hour that comes twice": ("made_at", NIGHT.astimezone(BERLIN), NIGHT + datetime.timedelta(hours=1)),
    "microseconds": ("made_at", NIGHT, NIGHT + datetime.timedelta(microseconds=1)),
    "times": ("opens", datetime.time(1), datetime.time(1, 0, 0, 1)),
    "durations": ("lasts", datetime.timedelta(days=1), datetime.timedelta(hours=24)),
    "JSON numbers": ("notes", 1, 1.0),
    "JSON truth": ("notes", 1, True),
    "JSON objects": ("notes", {"a": 1, "b": 2}, {"b": 2, "a": 1}),
    "JSON null": ("notes", None, models.Value(None, models.JSONField())),
    "booleans": ("is_new", True, True),
    "UUIDs": ("code", UUID(int=10), UUID(int=10)),
}


def questions(parts: Any, name: str, asked: Any) -> list[Any]:
    """Return querysets that compare the column in each way."""
    same = Q(**{name: asked})
    found = [
        parts.filter(same).order_by("pk"),
        parts.exclude(same).order_by("pk"),
        parts.filter(same | Q(amount=7)).order_by("pk").values_list("pk", name),
        parts.filter(**{f"{name}__in": [asked]}).order_by("pk").values_list("pk"),
        parts.order_by(name, "pk")[:2],
        parts.order_by(f"-{name}", "-pk").values_list("pk")[1:3],
    ]
    if name not in ("notes", "is_new", "code"):
        found += [parts.filter(**{f"{name}__{lookup}": asked}).order_by("pk") for lookup in ("lt", "gte")]
        found.append(parts.filter(**{f"{name}__range": (asked, asked)}).values_list("pk"))
    if name == "label":
        found += [parts.filter(**{f"label__{lookup}": asked}).values_list("pk") for lookup in TEXT_LOOKUPS]
    if name != "notes":
        found += [
            parts.order_by(name).values_list(name).distinct(),
            parts.filter(same).order_by(name).values(name).annotate(n=Count("pk")),
        ]
    return found


def steps(alias: str, name: str, asked: Any, stored: Any, model: Any) -> Iterator[None]:
    """Write the column in each way, stopping after each write."""
    rows = model._base_manager.using(alias)
    rows.create(pk=5, **{name: stored})
    yield
    rows.create(pk=6, **{name: asked})
    yield
    rows.filter(pk=6).update(**{name: stored})
    yield
    rows.filter(pk=5).update(**{name: None})
    yield
    rows.filter(pk=5).update(**{name: asked})
    yield
    rows.get(pk=5).save()
    yield
    rows.filter(pk=6).delete()
    yield
    rows.filter(**{name: asked}).delete()
    yield


def is_possible(queryset: Any) -> bool:
    """Return whether the database can do this: PostgreSQL has no LIKE for some collations."""
    try:
        list(queryset.all())
    except NotSupportedError:
        return False
    return True


def keeps_up(alias: str, model: Any, name: str, asked: Any, stored: Any) -> None:
    """Compare every question with the database after each write."""
    parts = model._base_manager.using(alias)
    parts.create(pk=1, **{name: asked})
    parts.create(pk=2, **{name: stored})
    n_hits = 0
    plain = [question for question in questions(parts, name, asked) if is_possible(question)]
    cached = [live(each) for each in plain]
    for each in cached:
        list(each.all())
    for _ in steps(alias, name, asked, stored, model):
        for one, other in zip(plain, cached, strict=True):
            expected = _values(one.all())
            with recording() as reads:
                assert _values(other.all()) == expected, str(one.query)
            n_hits += reads[0].is_hit
            assert _values(other.all()) == expected, str(one.query)
    assert n_hits, "nothing was ever served from the cache"


def _values(queryset: Any) -> list[Any]:
    return [
        {name: value for name, value in row.__dict__.items() if name != "_state"}
        if isinstance(row, models.Model)
        else row
        for row in queryset
    ]


# Of "JSON null": Django 6.1 has a JSONNull for it, and earlier versions nothing but None.
@pytest.mark.filterwarnings("ignore:Using None as the right-hand side of an exact lookup on JSONField")
@pytest.mark.parametrize("name", PAIRS)
def test_live_reads_see_what_the_database_takes_for_equal(name: str, alias: str, cache: str) -> None:
    """Whatever the database takes for equal or not."""
    keeps_up(alias, Part, *PAIRS[name])


COLLATIONS: Final[dict[str, tuple[str, ...]]] = {
    "sqlite": ("NOCASE", "RTRIM", "BINARY"),
    "postgresql": ("C", "precise_ci"),
    "mysql": ("utf8mb4_bin", "utf8mb4_unicode_ci", "utf8mb4_nopad_bin"),
}


@pytest.fixture
def make_model(alias: str) -> Iterator[Callable[..., Any]]:
    """Make a table whose texts have a collation of their own, of which the model tells, or only the *definition*."""
    connection = connections[alias]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute(
                "CREATE COLLATION IF NOT EXISTS precise_ci"
                " (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
            )

    with made_models(alias) as create_tables:

        def make(collation: str | None = None, definition: str = "") -> Any:
            class Collated(models.Model):
                label = models.CharField(max_length=20, null=True, db_collation=collation)
                if definition:
                    label.db_type = lambda connection: definition  # type: ignore[method-assign]  # of this field alone
                amount = models.IntegerField(null=True)

                class Meta:
                    app_label = "testapp"

            create_tables(Collated)
            return Collated

        yield make


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("pair", ["case", "accents", "trailing spaces"])
def test_live_reads_see_collations(
    pair: str, number: int, alias: str, cache: str, make_model: Callable[[str], Any]
) -> None:
    """A column may have a collation of its own, by which other texts are equal than in other columns."""
    collations = COLLATIONS[connections[alias].vendor]
    if number >= len(collations):
        pytest.skip("There are no more collations.")
    model = make_model(collations[number])
    name, asked, stored = PAIRS[pair]
    keeps_up(alias, model, name, asked, stored)


DEFINITIONS: Final[dict[str, tuple[str, ...]]] = {
    "sqlite": ("varchar(20) COLLATE NOCASE", "varchar(20) COLLATE RTRIM"),
    "postgresql": ("citext", "char(20)", 'varchar(20) COLLATE "precise_ci"'),
    "mysql": ("varchar(20) COLLATE utf8mb4_unicode_ci",),
}


@pytest.mark.parametrize("number", range(3))
@pytest.mark.parametrize("pair", ["case", "trailing spaces"])
def test_live_reads_see_collations_that_no_field_tells_of(
    pair: str, number: int, alias: str, cache: str, make_model: Callable[..., Any]
) -> None:
    """SQL of a migration, or a table older than its model, may have made a column one that compares otherwise."""
    definitions = DEFINITIONS[connections[alias].vendor]
    if number >= len(definitions):
        pytest.skip("There are no more definitions.")
    if definitions[number] == "citext":
        try:
            with connections[alias].cursor() as cursor:
                cursor.execute("CREATE EXTENSION IF NOT EXISTS citext")
        except Error:
            pytest.skip("The server has no citext.")
    model = make_model(definition=definitions[number])
    name, asked, stored = PAIRS[pair]
    keeps_up(alias, model, name, asked, stored)


@pytest.mark.parametrize("kind", ["float", "enum"])
def test_live_reads_see_columns_of_other_types_than_their_fields(kind: str, alias: str, cache: str) -> None:
    """A float of single precision is another number than it is shown as, and an enum has an order of its own."""
    vendor = connections[alias].vendor
    if vendor == "sqlite" or (kind == "enum" and vendor != "postgresql"):
        pytest.skip("The database has no such type that a field of Django could stand for.")
    if kind == "enum":
        with connections[alias].cursor() as cursor:
            cursor.execute("DROP TYPE IF EXISTS live_cache_mood CASCADE")
            cursor.execute("CREATE TYPE live_cache_mood AS ENUM ('z', 'm', 'a')")
    definition = "live_cache_mood" if kind == "enum" else "real" if vendor == "postgresql" else "float"

    with made_models(alias) as create_tables:

        class Odd(models.Model):
            x: Any = models.CharField(max_length=10) if kind == "enum" else models.FloatField()
            x.db_type = lambda connection: definition

            class Meta:
                app_label = "testapp"

        create_tables(Odd)
        odd = Odd._base_manager.using(alias)
        if kind == "enum":
            values: list[Any] = ["z", "m", "a", "z", "m"]
            questions = [odd.order_by("x")[:2], odd.order_by("-x")[:2], odd.order_by("x")[1:2], odd.filter(x__gt="m")]
        else:
            values = [5.0, 1.1, 1234567.5, 1.1]
            questions = [odd.exclude(x=1.1), odd.filter(x__lte=1.1), odd.filter(x__gt=1.1), odd.filter(x__lt=1234568)]
        plain = [question.values_list("x", flat=True) for question in questions]
        key = None
        for value in values:
            for each in plain:
                list(live(each.all()))
            if key is not None:
                odd.filter(pk=key).update(x=value)
                assert [sorted(live(each.all())) for each in plain] == [sorted(each.all()) for each in plain]
            key = odd.create(x=value).pk
            assert [sorted(live(each.all())) for each in plain] == [sorted(each.all()) for each in plain]


def test_what_others_ask_before_the_commit_of_a_change(
    alias: str, make_model: Callable[..., Any], second_connection: Callable[[str], Any]
) -> None:
    """Another thread that asks for the rules of a column sees the old ones, and they do not stay."""
    connection = connections[alias]
    if connection.vendor != "postgresql":
        pytest.skip("A change of the schema commits at once, or cannot change a collation.")
    table = make_model()._meta.db_table

    def is_exact() -> bool:
        return text_rules_of(connections[alias], {table}).is_equality_exact

    assert is_exact()
    with transaction.atomic(using=alias), connection.cursor() as cursor:
        cursor.execute(f'ALTER TABLE {table} ALTER label TYPE varchar(20) COLLATE "precise_ci"')
        assert second_connection(alias).run(is_exact)
    assert not is_exact()


def test_an_answer_of_the_catalog_that_a_change_overtakes(alias: str) -> None:
    """It is given to the one who asked, and not kept: the next one asks again."""
    n_asked = 0

    def ask(connection: Any) -> int:
        nonlocal n_asked
        n_asked += 1
        if n_asked == 1:
            memo.forget()
        return n_asked

    memo = CatalogMemo(ask)
    assert [memo.of(connections[alias]) for _ in range(3)] == [1, 2, 2]
