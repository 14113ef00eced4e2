"""Rows and values: whatever is stored comes back equal in value and in type, and everything else is refused by name."""

from __future__ import annotations

import enum
import io
import ipaddress
import struct
import uuid
from collections import OrderedDict, namedtuple
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal, localcontext
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.db import connections
from django.db.models import TextChoices
from django.utils.safestring import SafeString
from hypothesis import example, given, settings
from hypothesis import strategies as st
from psycopg.types.range import Range

from live_cache.exceptions import FrameError, UncachableValueError
from live_cache.ledger.clocks import Dependency, Stamp
from live_cache.rows import (
    EntryHeader,
    decode_entry,
    decode_value,
    encode_entry,
    encode_value,
    register_codec,
)
from live_cache.rows.packed import HOLE, pack, unpack
from live_cache.rows.primitives import dump, load

KEY = "shop.product/5f3a/page_1x50"
HEADER = EntryHeader(
    fetched_at_ns=1_790_000_000_123_456_789,
    expires_at_ns=None,
    dependencies=(Dependency("default/shop_product", (0, 7, 4095)), Dependency("default/shop_maker")),
    stamps=(Stamp("default/shop_product", b"\0epoch\xff", 2**60), Stamp("default/shop_maker", b"", 0)),
)
FEW = settings(max_examples=60, deadline=None)


def shape(value: Any) -> Any:
    """Return something whose equality is exactness: types, bits, order of keys, folds, and identities of zones."""
    kind = type(value)
    if kind in (list, tuple):
        return kind, [shape(inner) for inner in value]
    if kind is dict:
        return kind, [(shape(key), shape(inner)) for key, inner in value.items()]
    if kind is float:
        return kind, struct.pack(">d", value)
    if kind is Decimal:
        return kind, value.as_tuple()
    if kind is datetime:
        return kind, value.replace(tzinfo=None), value.fold, shape(value.tzinfo)
    if kind is time:
        return kind, value.replace(tzinfo=None), value.fold, shape(value.tzinfo)
    if kind is timezone:
        return kind, value is UTC, value.__reduce__()
    if kind is ZoneInfo:
        return kind, id(value)
    if kind is memoryview:
        return kind, value.format, value.ndim, value.tobytes()
    if kind is uuid.UUID:
        return kind, value, value.is_safe
    if kind is Range:
        return kind, shape(value.lower), shape(value.upper), value.bounds, value.isempty
    return kind, value


def there_and_back(rows: Sequence[Sequence[object]]) -> list[tuple[Any, ...]]:
    """Return the rows of an entry that was encoded and decoded."""
    return decode_entry(encode_entry(HEADER, rows, key=KEY), key=KEY).rows()


def assert_exact(values: Sequence[object]) -> None:
    """Hold the values against what comes back: as one column, beside another, and each as a value of its own."""
    rows = [(value, index) for index, value in enumerate(values)]
    assert shape(there_and_back(rows)) == shape(rows)
    for value in values[:3]:
        assert shape(decode_value(encode_value(value, key=KEY), key=KEY)) == shape(value)
        (packed,) = load(dump([pack(value)]))
        assert type(packed) not in (list, dict)
        assert packed != HOLE
        assert shape(unpack(packed)) == shape(value)


any_text = st.text(st.characters(exclude_categories=()), max_size=20)
ints = (
    st.integers() | st.integers(-(2**64) - 1, 2**64 + 1) | st.sampled_from([2**63, 2**63 - 1, -(2**63), -(2**63) - 1])
)
# Quiet NaNs of every payload; a processor may make signalling ones quiet on the way through a register.
any_nan = st.integers(0, 2**51 - 1).map(lambda bits: struct.unpack(">d", struct.pack(">Q", 0xFFF8 << 48 | bits))[0])
floats = st.floats() | any_nan
decimals = st.decimals() | st.from_regex(r"-?[0-9]{1,40}(\.[0-9]{0,40})?(E[+-]?[0-9]{1,6})?", fullmatch=True).map(
    Decimal
)
offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23))
fixed_zones = st.builds(timezone, offsets) | st.builds(timezone, offsets, st.text(max_size=5))
zones: st.SearchStrategy[tzinfo | None] = st.none() | st.just(UTC) | st.timezones() | fixed_zones
datetimes = st.datetimes(timezones=zones)
times = st.times(timezones=zones)
json_values = st.recursive(
    st.none() | st.booleans() | ints | floats | any_text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
ip_addresses = st.ip_addresses() | st.sampled_from(
    [
        ipaddress.ip_address("fe80::1%eth0"),
        ipaddress.ip_interface("10.1.2.3/8"),
        ipaddress.ip_interface("fe80::1%eth0/64"),
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("2001:db8::/32"),
    ]
)
bounds = st.none() | ints | decimals | st.dates() | datetimes
ranges = st.builds(Range, bounds, bounds, st.sampled_from(["[)", "(]", "()", "[]"]), st.booleans())
uuids = st.builds(uuid.UUID, int=st.integers(0, 2**128 - 1), is_safe=st.sampled_from(uuid.SafeUUID))

BY_TYPE: dict[str, st.SearchStrategy[Any]] = {
    "bool": st.booleans(),
    "int": ints,
    "float": floats,
    "str": any_text,
    "bytes": st.binary(max_size=40),
    "memoryview": st.binary(max_size=40).map(lambda raw: memoryview(raw)),
    "decimal": decimals,
    "datetime": datetimes,
    "date": st.dates(),
    "time": times,
    "timedelta": st.timedeltas(),
    "uuid": uuids,
    "json": json_values,
    "ip": ip_addresses,
    "range": ranges,
}
anything = st.recursive(
    st.one_of(st.none(), *BY_TYPE.values()),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(any_text | ints | st.dates() | st.tuples(ints), inner, max_size=3)
    ),
    max_leaves=8,
)


@pytest.mark.parametrize("name", BY_TYPE)
@given(data=st.data())
@FEW
def test_a_column_of_one_type(name: str, data: st.DataObject) -> None:
    """With and without nulls."""
    cell = BY_TYPE[name]
    assert_exact(data.draw(st.lists(cell, min_size=1, max_size=5) | st.lists(cell | st.none(), min_size=1, max_size=5)))


@given(values=st.lists(anything, min_size=1, max_size=5))
@example(values=[1, True, 1.0, "1", b"1", Decimal(1), None, 0, False, -0.0])
@FEW
def test_a_mixed_column(values: list[Any]) -> None:
    """Equal values of different types stay apart; containers hold anything."""
    assert_exact(values)


EXTREMES: dict[str, list[Any]] = {
    "int": [0, -1, 2**63 - 1, -(2**63)],
    "big int": [2**63, -(2**63) - 1, 2**64, 10**5000, -(10**5000), 128, -128, 255, 256],
    "float": [0.0, -0.0, float("inf"), float("-inf"), 5e-324, 1.7976931348623157e308, 0.1],
    "nan": [float("nan"), -float("nan"), 1.0],
    "str": ["", "\n", "\0", "\r\n", "é", "😀", "\ud83d", "\ude00\ud83d", "\ud83d\ude00", "a" * 100_000],
    "empty lines": ["", "", None],
    "decimal": [
        Decimal(text) for text in ("0", "-0", "0.00", "-0E+3", "1E+3", "1.50", "NaN", "-NaN7", "sNaN12", "-sNaN")
    ],
    "decimal infinity": [Decimal("Infinity"), Decimal("-Infinity"), Decimal("1E+999999999"), Decimal("9" * 400)],
    "naive": [datetime.min, datetime.max, datetime(2026, 1, 31, 12), datetime(1, 1, 1, 0, 0, 0, 1)],
    "utc": [datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), None],
    "utc and naive": [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1)],
    "utc under another name": [datetime(2026, 1, 1, tzinfo=zone) for zone in (UTC, timezone(timedelta(0), "GMT"))],
    "two names of utc": [datetime(2026, 1, 1, tzinfo=z) for z in (UTC, timezone(timedelta(0), "GMT"), ZoneInfo("UTC"))],
    "zone": [
        datetime(2026, 10, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")),
        None,
        datetime.max.replace(tzinfo=ZoneInfo("Asia/Tokyo")),
    ],
    "one zone": [datetime(2026, month, 25, 2, 30, tzinfo=ZoneInfo("Europe/Berlin")) for month in (3, 7, 10)],
    "fold": [datetime(2026, 10, 25, 2, 30, fold=fold, tzinfo=ZoneInfo("Europe/Berlin")) for fold in (0, 1)],
    "naive fold": [datetime(2026, 10, 25, 2, 30, fold=1), datetime(2026, 10, 25, 2, 30)],
    "offset": [datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=-5, seconds=1, microseconds=2), "LMT"))],
    "date": [date.min, date.max, None],
    "time": [time.min, time.max, time(12), None],
    "time fold": [time(2, fold=1), time(2, tzinfo=UTC), time(2, tzinfo=ZoneInfo("Europe/Berlin"))],
    "timedelta": [timedelta.min, timedelta.max, timedelta(microseconds=-1), timedelta(0)],
    "uuid": [uuid.UUID(int=0), uuid.UUID(int=2**128 - 1), uuid.UUID("12345678-1234-5678-1234-567812345678")],
    "uuid or null": [uuid.UUID(int=1), None],
    "uuid of this host": [uuid.uuid1()],
    "json": [{}, [], {"": None}, {"b": 1, "a": [1.0, True, {"c": "\ud800"}]}, "text", 1, None, {"a": 2**64}],
    "json keys": [{"\ud800": 1}, {"b": 0, "a": 0}, {"a": 0, "b": 0}],
    "dict": [{1: "a", "1": "b", None: [], (1, 2): {}, b"\0": float("nan")}],
    "array": [[], [None], [[1, 2], [3, None]], [Decimal("1.0"), None], [date(2026, 1, 1)], [b"\0"]],
    "tuple": [(), (1,), ((),), [()]],
    "bytes": [b"", b"\n", bytes(range(256)), None],
    "memoryview": [
        memoryview(b""),
        memoryview(bytearray(b"\0\xff")),
        memoryview(b"abcd")[1:3],
        memoryview(b"abcd")[::2],
    ],
    "range": [Range(1, 5), Range(None, None), Range(empty=True), Range(Decimal("1.0"), None, "(]"), None],
    "null": [None, None],
}


@pytest.mark.parametrize("name", EXTREMES)
def test_extremes(name: str) -> None:
    """First and last values of each type, and those that are easily lost."""
    assert_exact(EXTREMES[name])
    for value in EXTREMES[name]:
        assert_exact([value])


# What Django's compiler yields after its converters, on SQLite, PostgreSQL (psycopg 3) and MariaDB alike, unless noted.
FIELD_VALUES: dict[str, list[Any]] = {
    "AutoField": [1, 2**31 - 1],
    "BigAutoField": [2**63 - 1],
    "BigIntegerField": [-(2**63), 2**63 - 1],
    "BinaryField": [b"\0\xff", memoryview(b"\0\xff")],  # a memoryview where a driver returns one
    "BooleanField": [True, False],
    "BooleanField in an expression": [1, 0],  # SQLite and MariaDB, where Django cannot know that it is a condition
    "CharField": ["", "Zürich", "\U0001f600"],
    "DateField": [date(2026, 1, 31)],
    "DateTimeField": [datetime(2026, 1, 31, 12, 0, 0, 1, tzinfo=UTC)],
    "DateTimeField, USE_TZ=False": [datetime(2026, 1, 31, 12)],
    "DateTimeField, TIME_ZONE of the database": [datetime(2026, 1, 31, 12, tzinfo=ZoneInfo("Europe/Berlin"))],
    "DecimalField": [Decimal("1.50"), Decimal("0.000000"), Decimal("-12345678901234.567890")],
    "DurationField": [timedelta(days=-1, microseconds=1)],
    "FloatField": [1.5, float("nan"), float("inf")],  # the last two on PostgreSQL only
    "ForeignKey, OneToOneField": [1, "DE", uuid.UUID(int=5)],
    "GenericIPAddressField": ["127.0.0.1", "::1"],
    "IntegerField and its kin": [0, -32768, 2**31 - 1],
    "JSONField": [{"a": [1, 2.0, None, True, "x"]}, [], "text", 1, 1.0, True, None],
    "TimeField": [time(12, 0, 0, 1)],
    "UUIDField": [uuid.UUID(int=7)],
    "ArrayField": [[1, None], [["a"], ["b"]], [Decimal("1.00")], [uuid.UUID(int=7)]],
    "HStoreField": [{"a": "b", "c": None}],
    "IntegerRangeField": [Range(1, 5), Range(empty=True)],
    "DecimalRangeField": [Range(Decimal("1.5"), None, "[)")],
    "DateTimeRangeField": [Range(datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 2, 1, tzinfo=UTC))],
    "DateRangeField": [Range(date(2026, 1, 1), date(2026, 2, 1))],
}


@pytest.mark.parametrize("field", FIELD_VALUES)
def test_values_of_model_fields(field: str) -> None:
    """The Python value of each field that Django has, with and without null."""
    assert_exact(FIELD_VALUES[field])
    assert_exact([None, *FIELD_VALUES[field], None])


def test_rows_of_every_field_from_a_database(alias: str) -> None:
    """The types that the three databases really return, with extremes, and with null in every column that allows it."""
    from tests.testapp.models import AllFields

    manager = AllFields._default_manager.using(alias)
    manager.create()
    manager.create(
        big_integer=-(2**63),
        binary=b"\0\xff",
        boolean=True,
        char="Zürich \U0001f600",
        decimal=Decimal("-12345678901234.567890"),
        duration=timedelta(days=-1, microseconds=1),
        float=0.1,
        json={"b": [1, 2.5, None, True], "a": "é"},
        null_binary=b"",
        null_boolean=False,
        null_date=date(9999, 12, 31),
        null_datetime=datetime(2026, 10, 25, 0, 30, tzinfo=UTC),
        null_decimal=Decimal("0.000000"),
        null_json=[],
        null_time=time(23, 59, 59, 999999),
    )
    rows = list(manager.order_by("pk").values_list())
    assert shape(there_and_back(rows)) == shape(rows)


@pytest.mark.django_db(databases=["postgresql"])
def test_types_that_only_postgresql_has() -> None:
    """Ranges, arrays and raw columns as its driver returns them."""
    from tests.servers import MISSING

    if "postgresql" in MISSING:
        pytest.skip(f"postgresql IS MISSING: {MISSING['postgresql'].reason}")
    with connections["postgresql"].cursor() as cursor:
        cursor.execute(
            "SELECT int4range(1, 5), 'empty'::int8range, numrange(1.50, NULL), daterange('2026-01-01', '2026-02-01'),"
            " tstzrange(now(), NULL), ARRAY[1, NULL], ARRAY[ARRAY['a'], ARRAY['b']], ARRAY[1.50], 'NaN'::numeric,"
            " 'NaN'::float8, '-Infinity'::float8, '\\x00ff'::bytea, interval '-1 day', gen_random_uuid(), '::1'::inet,"
            " now(), now()::timestamp, time '12:00', '{\"a\": 1}'::json, 12345678901234567890::numeric"
        )
        rows = cursor.fetchall()
    assert shape(there_and_back(rows)) == shape(rows)


class Colour(TextChoices):
    RED = "red"


class Plain:
    """A class without a codec."""


class OwnInt(int):
    """A subclass of a stored type."""


class OwnZone(tzinfo):
    """A zone that has no name to find it by."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        """Return what UTC returns."""
        return timedelta(0)

    dst = utcoffset

    def tzname(self, _: datetime | None) -> str:
        """Return a name that is no key."""
        return "own"


Point = namedtuple("Point", "x y")
# The smallest file of a zone: a head, one offset of zero, and its name.
ZONE_FILE = io.BytesIO(b"TZif" + bytes(16) + struct.pack(">6I", 0, 0, 0, 0, 1, 4) + bytes(6) + b"XYZ\0")

REFUSED: dict[str, tuple[Any, str]] = {
    "SafeString": (SafeString("a"), "django.utils.safestring.SafeString"),
    "TextChoices": (Colour.RED, "Colour"),
    "Enum": (enum.Enum("Shape", "ROUND").ROUND, "Shape"),  # type: ignore[attr-defined]  # made at run time
    "int subclass": (OwnInt(1), "OwnInt"),
    "named tuple": (Point(1, 2), "Point"),
    "ordered dict": (OrderedDict(a=1), "collections.OrderedDict"),
    "set": ({1}, "set"),
    "frozenset": (frozenset({1}), "frozenset"),
    "bytearray": (bytearray(b"a"), "bytearray"),
    "complex": (1j, "complex"),
    "object": (Plain(), "Plain"),
    "class": (Plain, "type"),
    "own zone": (datetime(2026, 1, 1, tzinfo=OwnZone()), "OwnZone"),
    "uncached zone": (datetime(2026, 1, 1, tzinfo=ZoneInfo.no_cache("Europe/Berlin")), "zoneinfo.ZoneInfo"),
    "zone of a file": (datetime(2026, 1, 1, tzinfo=ZoneInfo.from_file(ZONE_FILE)), "zoneinfo.ZoneInfo"),
    "numbers in a memoryview": (memoryview(b"12345678").cast("I"), "memoryview"),
}


WRAPS: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "list": lambda value: [value],
    "dict": lambda value: {"a": [value]},
    "tuple": lambda value: {"a": (1, value)},
    "range": Range,
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("name", REFUSED)
def test_other_types_are_refused_by_name(name: str, wrap: str) -> None:
    """Alone, inside containers, and beside values that can be stored. The message names the column and the type."""
    value, type_name = REFUSED[name]
    wrapped = WRAPS[wrap](value)
    for values in ([wrapped], [None, wrapped], ["a", wrapped]):
        with pytest.raises(UncachableValueError, match=type_name) as caught:
            encode_entry(HEADER, [(1, each) for each in values], key=KEY, column_names=("id", "colour"))
        assert "Column 1 (colour)" in str(caught.value)
    with pytest.raises(UncachableValueError, match=type_name):
        encode_value(wrapped, key=KEY)
    with pytest.raises(UncachableValueError, match=type_name):
        pack(wrapped)


@pytest.mark.parametrize("value", [{SafeString("a"): 1}, {Colour.RED: 1}, {frozenset(): 1}])
def test_keys_of_other_types_are_refused(value: Any) -> None:
    """Also where they equal a key that another row has as plain text."""
    with pytest.raises(UncachableValueError):
        there_and_back([({"a": 1, "red": 1},), (value,)])


def test_values_that_hold_themselves_are_refused() -> None:
    """And whatever is too deep to be read back."""
    knot: list[Any] = [1]
    knot += [knot] * 1000
    ring: dict[str, Any] = {}
    ring["ring"] = [ring]
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    for value in (knot, ring, deep, (deep,)):
        with pytest.raises(UncachableValueError):
            encode_value(value, key=KEY)


@pytest.mark.parametrize("leaf", [1, 2**64, Decimal(1)])
def test_the_deepest_value_that_is_accepted_comes_back(leaf: Any) -> None:
    """What can be written can be read: the limits of writer and reader fit."""
    value, accepted = leaf, 0
    for depth in range(1, 100):
        value = [value] if depth % 2 else {"a": value}
        try:
            data = encode_value(value, key=KEY)
        except UncachableValueError:
            break
        assert shape(decode_value(data, key=KEY)) == shape(value)
        accepted = depth
    assert 60 <= accepted <= 65


def test_the_context_of_decimals_takes_no_part() -> None:
    """A context of small precision, with traps, neither rounds nor raises."""
    values = [Decimal("1.23456789"), Decimal("1E-300"), Decimal("sNaN")]
    with localcontext() as context:
        context.prec, context.Emax, context.Emin, context.capitals = 2, 5, -5, 0
        context.traps = dict.fromkeys(context.traps, True)
        assert_exact(values)


def test_each_read_gives_new_objects() -> None:
    """Nothing mutable is shared between two reads of one entry."""
    entry = decode_entry(encode_entry(HEADER, [({"a": []},)], key=KEY), key=KEY)
    entry.rows()[0][0]["a"].append("changed")
    assert entry.rows() == [({"a": []},)]


def test_header_and_sizes() -> None:
    """They are there before the rows are decoded."""
    entry = decode_entry(encode_entry(HEADER, [[1, "a"], [2, "b"], [3, "c"]], key=KEY), key=KEY)
    assert (entry.header, entry.row_count, entry.column_count) == (HEADER, 3, 2)
    assert entry.rows() == [(1, "a"), (2, "b"), (3, "c")]


@pytest.mark.parametrize("expires_at_ns", [None, 0, 2**63 - 1])
def test_no_rows(expires_at_ns: int | None) -> None:
    """An empty result is a result."""
    header = EntryHeader(0, expires_at_ns, (), ())
    entry = decode_entry(encode_entry(header, [], key=KEY), key=KEY)
    assert (entry.header, entry.row_count, entry.column_count, entry.rows()) == (header, 0, 0, [])


def test_a_timeout_of_a_thousand_years() -> None:
    """It ends in 2262, where 64 bits of nanoseconds end, instead of never being readable."""
    entry = decode_entry(encode_entry(EntryHeader(0, 10**21, (), ()), [], key=KEY), key=KEY)
    assert entry.header.expires_at_ns == 2**63 - 1


@pytest.mark.parametrize("rows", [[(1, 2), (1,)], [()], [(), ()]])
def test_ragged_rows_are_an_error(rows: list[tuple[int, ...]]) -> None:
    """They are a mistake of the caller, and no miss."""
    with pytest.raises(ValueError, match=r"shorter|longer|without columns"):
        encode_entry(HEADER, rows, key=KEY)


@pytest.mark.parametrize(
    "header",
    [
        EntryHeader(0, None, (Dependency("a"),), ()),
        EntryHeader(0, None, (Dependency("a"),), (Stamp("b", b"", 0),)),
        EntryHeader(0, None, (Dependency("a", ()),), (Stamp("a", b"", 0),)),
        EntryHeader(0, None, (Dependency("a", (4096,)),), (Stamp("a", b"", 0),)),
        EntryHeader(0, None, (Dependency("a", (-1,)),), (Stamp("a", b"", 0),)),
        EntryHeader(2**63, None, (), ()),
        EntryHeader(0, None, (Dependency("a"),), (Stamp("a", b"", 2**63),)),
        EntryHeader(0.5, None, (), ()),  # type: ignore[arg-type]  # what is refused
    ],
)
def test_headers_that_could_not_be_read_are_not_written(header: EntryHeader) -> None:
    """They would be misses for ever."""
    with pytest.raises(ValueError, match=r"header|clock"):
        encode_entry(header, [(1,)], key=KEY)


class Money:
    """A type of the project, with a codec."""

    def __init__(self, amount: Decimal, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __eq__(self, other: object) -> bool:
        return type(other) is Money and (self.amount, self.currency) == (other.amount, other.currency)

    def __hash__(self) -> int:
        return hash((self.amount, self.currency))


class Euro(Money):
    """A subclass, which its codec does not cover."""


def encode_money(money: Money) -> object:
    """Return what stands for it."""
    return (money.amount, money.currency)


def decode_money(plain: tuple[Decimal, str]) -> Money:
    """Return it again."""
    return Money(*plain)


class TestRegisteredCodecs:
    """register_codec() covers exactly one type, under a name that stands in the bytes."""

    @pytest.fixture(autouse=True)
    def registry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Give each test a registry of its own, with one codec."""
        monkeypatch.setattr("live_cache.rows.registry._by_type", {})
        monkeypatch.setattr("live_cache.rows.registry._by_name", {})
        register_codec(Money, name="money.1", encode=encode_money, decode=decode_money)

    def test_round_trip(self) -> None:
        """In columns and in containers; registering it again changes nothing."""
        register_codec(Money, name="money.1", encode=encode_money, decode=decode_money)
        money = Money(Decimal("1.50"), "EUR")
        assert_exact([money, None, [money], {"a": money}, {money: 1}])

    def test_subclasses_are_refused(self) -> None:
        """They would come back as their base."""
        with pytest.raises(UncachableValueError, match="Euro"):
            encode_value(Euro(Decimal(1), "EUR"), key=KEY)

    def test_conflicts(self) -> None:
        """One type, one name, one codec; and the built-in ones stay."""
        with pytest.raises(ValueError, match=r"'money\.2'.*conflicts.*'money\.1' of .*Money"):
            register_codec(Money, name="money.2", encode=encode_money, decode=decode_money)
        with pytest.raises(ValueError, match=r"'money\.1' of .*Plain conflicts"):
            register_codec(Plain, name="money.1", encode=str, decode=lambda _: Plain())
        with pytest.raises(ValueError, match="built-in"):
            register_codec(Decimal, name="decimal", encode=str, decode=Decimal)
        with pytest.raises(ValueError, match="non-empty"):
            register_codec(Plain, name="", encode=str, decode=lambda _: Plain())
        with pytest.raises(UncachableValueError):
            encode_value(Plain(), key=KEY)

    def test_a_name_that_this_process_lacks_is_a_miss(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The header is still read."""
        data = encode_entry(HEADER, [(Money(Decimal(1), "EUR"),)], key=KEY)
        monkeypatch.setattr("live_cache.rows.registry._by_name", {})
        entry = decode_entry(data, key=KEY)
        assert entry.header == HEADER
        with pytest.raises(FrameError, match=r"money\.1"):
            entry.rows()

    def test_codecs_that_fail(self) -> None:
        """Writing is refused, reading is a miss, whatever they raise."""
        register_codec(Plain, name="plain.1", encode=lambda _: 1, decode=lambda _: Plain.missing)  # type: ignore[attr-defined]  # raises
        with pytest.raises(FrameError):
            decode_value(encode_value(Plain(), key=KEY), key=KEY)
        register_codec(Euro, name="euro.1", encode=lambda _: {1}, decode=lambda plain: plain)
        with pytest.raises(UncachableValueError, match="set"):
            encode_value(Euro(Decimal(1), "EUR"), key=KEY)
        register_codec(OwnInt, name="int.1", encode=lambda value: 1 // 0, decode=OwnInt)
        with pytest.raises(UncachableValueError, match=r"int\.1"):
            encode_value(OwnInt(1), key=KEY)
