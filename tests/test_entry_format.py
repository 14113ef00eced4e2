"""The bytes are what docs/reference/entry-format.md says, and hostile bytes are a FrameError and nothing else."""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from hashlib import blake2b
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import cbor2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from live_cache.exceptions import FrameError
from live_cache.frame import KIND_CBOR, KIND_ROWS, seal
from live_cache.ledger.clocks import Dependency, Stamp
from live_cache.rows import EntryHeader, decode_entry, decode_value, encode_entry, encode_value

KEY = "shop.product/5f3a/page_1x50"
HEADER = EntryHeader(17, 18, (Dependency("default/shop_product", (0, 300)),), (Stamp("default/shop_product", b"e", 5),))
BERLIN = ZoneInfo("Europe/Berlin")

# A reader written from the page alone. It imports neither live_cache nor cbor2 ---------------------------------------


def read_item(data: bytes, at: int) -> tuple[Any, int]:
    """Read one CBOR item; return it, and where it ends."""
    major, low = data[at] >> 5, data[at] & 31
    size = {24: 1, 25: 2, 26: 4, 27: 8}.get(low, 0)
    argument = int.from_bytes(data[at + 1 : at + 1 + size], "big") if size else low
    at += 1 + size
    if major in (0, 1):
        return (argument if major == 0 else -1 - argument), at
    if major in (2, 3):
        raw = data[at : at + argument]
        return (raw if major == 2 else raw.decode()), at + argument
    if major in (4, 5):
        items = []
        for _ in range(argument * (major - 3)):
            item, at = read_item(data, at)
            items.append(item)
        return (items if major == 4 else dict(zip(items[::2], items[1::2], strict=True))), at
    if low in (20, 21, 22):
        return {20: False, 21: True, 22: None}[low], at
    return struct.unpack({2: ">e", 4: ">f", 8: ">d"}[size], data[at - size : at])[0], at


def read_zone(zone: Any) -> Any:
    """Read the zone of a date and time, or of a time."""
    return timezone(timedelta(*zone[:3]), *zone[3:]) if isinstance(zone, list) else zone and ZoneInfo(zone)


def read_cell(cell: Any) -> Any:
    """Read a cell of the types that the test uses."""
    if isinstance(cell, dict):
        return {key: read_cell(inner) for key, inner in cell.items()}
    if not isinstance(cell, list):
        return cell
    code, *items = cell
    readers: dict[Any, Callable[[], Any]] = {
        0: lambda: [read_cell(item) for item in items],
        1: lambda: tuple(read_cell(item) for item in items),
        2: lambda: {read_cell(k): read_cell(v) for k, v in zip(items[::2], items[1::2], strict=True)},
        3: lambda: int.from_bytes(items[0], "big", signed=True),
        5: lambda: items[0].decode("utf-8", "surrogatepass"),
        7: lambda: Decimal(items[0]),
        8: lambda: datetime.fromisoformat(items[0]).replace(fold=items[1], tzinfo=read_zone(items[2])),
        11: lambda: timedelta(*items),
        12: lambda: UUID(bytes=items[0]),
    }
    return readers[code]()


def read_column(codec: int, data: Any) -> list[Any]:
    """Read a whole column."""
    if codec == 4:
        return [naive and naive.replace(tzinfo=ZoneInfo(data[0])) for naive in read_column(3, data[1])]
    if codec == 7:
        return [UUID(bytes=data[start : start + 16]) for start in range(0, len(data), 16)]
    if codec in (0, 1):
        return [cell if codec == 0 else read_cell(cell) for cell in data]
    readers: dict[int, Callable[[str], Any]] = {
        2: Decimal,
        3: datetime.fromisoformat,
        5: date.fromisoformat,
        6: time.fromisoformat,
    }
    return [readers[codec](line) if line else None for line in data.split("\n")]


def read_entry(frame: bytes, key: str, mac_key: bytes = b"") -> list[Any]:
    """Read an entry: its header, and its rows at the end."""
    magic, version, kind, scheme, length = struct.unpack(">4sBBBQ", frame[:15])
    assert (magic, version, kind, scheme) == (bytes.fromhex("F54C4346"), 1, 1, bool(mac_key))
    check, payload = (frame[15:31], frame[31:]) if scheme else (frame[15:19], frame[19:])
    covered = frame[:15] + struct.pack(">I", len(key.encode())) + key.encode() + payload
    mac = blake2b(covered, digest_size=16, key=mac_key, person=b"live_cache.frame").digest()
    assert (len(payload), check) == (length, mac if scheme else zlib.crc32(covered).to_bytes(4, "big"))
    (*header, row_count, column_count, columns), end = read_item(payload, 0)
    flat, columns_end = read_item(columns, 0)
    assert (end, columns_end, len(flat)) == (len(payload), len(columns), 2 * column_count)
    rows = list(zip(*map(read_column, flat[::2], flat[1::2]), strict=True))
    assert len(rows) == row_count
    return [*header, rows]


ROW = (
    1, -(2**63), 2**64, 1.5, -0.0, "Zürich", "\ud800", b"\xff", True, None, Decimal("-1.50"), [1, {"a": None}],
    {"b": 1, "a": 2}, (1, Decimal(2)), {1: "a"}, datetime(2026, 1, 31, 12, tzinfo=UTC),
    datetime(2026, 1, 31, 12, 0, 0, 1), datetime(2026, 7, 1, tzinfo=BERLIN),
    datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=BERLIN),
    datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=1), "X")), date(2026, 1, 31), time(12, 30),
    timedelta(-1, 2, 3), UUID(int=9),
)  # fmt: skip


@pytest.mark.parametrize("mac_key", [b"", b"sixteen bytes..."], ids=["crc", "mac"])
def test_a_reader_written_from_the_page_reads_an_entry(mac_key: bytes) -> None:
    """Without this package and without a CBOR library."""
    rows = [ROW, ROW, (None,) * len(ROW)]
    frame = encode_entry(HEADER, rows, key=KEY, mac_keys=(mac_key,) if mac_key else ())
    expected = [17, 18, [["default/shop_product", [0, 300]]], [["default/shop_product", b"e", 5]], rows]
    actual = read_entry(frame, KEY, mac_key)
    assert expected == actual
    assert repr(expected) == repr(actual)
    assert [rows[:2]] == read_entry(encode_entry(HEADER, rows[:2], key=KEY), KEY)[4:]


def test_the_bytes_stay_what_they_are() -> None:
    """Version 1 of the format, byte for byte: a change of these bytes needs a new version."""
    header = EntryHeader(1, None, (Dependency("c"),), (Stamp("c", b"e", 2),))
    rows = [(1, Decimal("1.50"), "a"), (2, None, "b")]
    assert encode_entry(header, rows, key="k").hex() == (
        "f54c43460101000000000000000025bb716a67"
        "8701f68182616381008183616341650202035286008201020265312e35300a008261616162"
    )


# Hostile bytes in an intact frame ------------------------------------------------------------------------------------


def as_entry(payload: bytes) -> bytes:
    """Return a frame of an entry with any payload."""
    return seal(payload, kind=KIND_ROWS, key=KEY)


def entry_with(columns: bytes, rows: int = 1, count: int = 1) -> bytes:
    """Return an entry with any columns."""
    return as_entry(cbor2.dumps([1, None, [], [], rows, count, columns]))


def read_all(frame: bytes) -> Any:
    """Decode header and rows."""
    return decode_entry(frame, key=KEY).rows()


HOSTILE_ITEMS = {
    "nothing": "",
    "tag: date and time": "c074323032362d30312d33315431323a30303a30305a",
    "tag: timestamp": "c11a514b67b0",
    "tag: big integer": "c249010000000000000000",
    "tag: negative big integer": "c349010000000000000000",
    "tag: decimal": "c482211904d2",
    "tag: shared value, holding itself": "d81c81d81d00",
    "tag: regular expression": "d8236161",
    "tag: MIME": "d8246161",
    "tag: UUID": "d8255000000000000000000000000000000000",
    "tag: string reference": "d9010081d81900",
    "tag: set": "d901028101",
    "tag: self-described": "d9d9f701",
    "tag: unknown": "d9ffff01",
    "tag: largest": "dbffffffffffffffff01",
    "endless array": "9f01ff",
    "endless map": "bf616101ff",
    "endless text": "7f6161ff",
    "endless bytes": "5f4161ff",
    "endless and cut short": "9f01",
    "array of 2^64": "9bffffffffffffffff",
    "array of 2^32": "9b0000000100000000",
    "map of 2^64": "bbffffffffffffffff",
    "bytes of 2^64": "5bffffffffffffffff",
    "text of 2^63": "7b8000000000000000",
    "deep arrays": "81" * 100_000 + "01",
    "deep maps": "a16161" * 100_000 + "01",
    "deep tags": "c1" * 100_000 + "01",
    "repeated key": "a2616101616102",
    "array as a key": "a1810102",
    "number as a key": "a10102",
    "not UTF-8": "62c328",
    "half a surrogate": "63eda080",
    "break": "ff",
    "reserved": "1c",
    "reserved simple value": "f818",
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_ITEMS)
def test_hostile_items_are_refused(name: str) -> None:
    """As the whole payload, in the header, in a plain column, in a cell, and in a value."""
    item = bytes.fromhex(HOSTILE_ITEMS[name])
    frames = [
        as_entry(item),
        as_entry(b"\x87" + item + cbor2.dumps(None) + b"\x80\x80\x00\x00\x41\x80"),
        entry_with(item),
        entry_with(b"\x82\x00\x81" + item),
        entry_with(b"\x82\x00\x81\x81" + item),
        entry_with(b"\x82\x01\x81\x82\x00" + item),
    ]
    for frame in frames:
        with pytest.raises(FrameError):
            read_all(frame)
    with pytest.raises(FrameError):
        decode_value(seal(b"\x82\x00\x81" + item, kind=KIND_CBOR, key=KEY), key=KEY)


def test_bytes_behind_the_cbor_are_refused() -> None:
    """Behind the payload, and behind the columns in it."""
    columns = cbor2.dumps([0, [1]])
    assert read_all(entry_with(columns)) == [(1,)]
    for tail in (b"\0", b"\xf6", columns, b"\xff", bytes(100_000)):
        with pytest.raises(FrameError, match="follow"):
            read_all(entry_with(columns + tail))
        with pytest.raises(FrameError, match="follow"):
            read_all(as_entry(cbor2.dumps([1, None, [], [], 1, 1, columns]) + tail))
        with pytest.raises(FrameError, match="follow"):
            decode_value(seal(cbor2.dumps([0, [1]]) + tail, kind=KIND_CBOR, key=KEY), key=KEY)


@pytest.mark.parametrize(
    ("rows", "columns", "flat"),
    [
        (2, 1, [0, [1]]),
        (2**62, 0, []),
        (1, 0, []),
        (-1, 0, []),
        (1, 2, [0, [1]]),
        (1, 2**62, [0, [1]]),
        (1, 1, [0, [1], 0]),
        (1, 1, [0]),
        (1, 2, [0, [1], 0, [1, 2]]),
        (2, 1, [2, "1.5"]),
        (1, 1, [7, bytes(15)]),
        (1, 1, [7, bytes(32)]),
        (True, 1, [0, [1]]),
        (1.0, 1, [0, [1]]),
        (None, None, []),
    ],
)  # fmt: skip
def test_numbers_that_do_not_fit_are_refused(rows: Any, columns: Any, flat: list[Any]) -> None:
    """Rows and columns are counted against what is there, before anything of their size is made."""
    with pytest.raises(FrameError):
        read_all(entry_with(cbor2.dumps(flat), rows, columns))


@pytest.mark.parametrize(
    "column",
    [
        [99, []], [-1, [1]], ["a", [1]], [None, [1]], [[], [1]], [0, "a"], [0, {"a": 1}], [0, 1], [1, 1], [1, [[]]],
        [1, [[99, 1]]], [1, [[-1]]], [1, [["unknown", 1]]], [1, [[None]]], [1, [[[]]]], [1, [[{}]]], [1, [{b"a": 1}]],
        [1, [cbor2.undefined]], [1, [cbor2.CBORSimpleValue(3)]],
        [1, [[2, 1]]], [1, [[2, [0], 1]]], [1, [[3, "a"]]], [1, [[4, b"1234567"]]], [1, [[5, b"\xff"]]], [1, [[6, 1]]],
        [1, [[7, "abc"]]], [1, [[7, 1, 2]]], [1, [[8, "2026-01-01"]]], [1, [[8, "x", 0, None]]],
        [1, [[8, "2026-01-01", 2, None]]], [1, [[8, "2026-01-01", 0, "../../etc/passwd"]]],
        [1, [[8, "2026-01-01", 0, "No/Where"]]], [1, [[8, "2026-01-01", 0, [5, 0, 0]]]], [1, [[9, "2026-13-01"]]],
        [1, [[10, "25:00", 0, None]]], [1, [[11, 10**10, 0, 0]]], [1, [[11, "a", 0, 0]]], [1, [[12, b"short"]]],
        [1, [[12, bytes(16), 7]]], [1, [[13, "ip_address", "::1"]]], [1, [[13, "IPv4Address", "::1"]]],
        [1, [[13, "__class__", "a"]]], [1, [[14, 1, 2, "]["]]], [1, [[14, 1, 2]]], [2, "a"], [2, b"1"], [2, ["1"]],
        [3, "2026"], [3, 1], [4, ["Europe/Berlin"]], [4, ["/etc/passwd", "2026-01-01"]], [4, [None, "2026-01-01"]],
        [5, "2026-02-30"], [6, "noon"], [7, "a"], [7, [bytes(16)]],
    ],
    ids=repr,
)  # fmt: skip
def test_malformed_columns_are_refused(column: list[Any]) -> None:
    """Whatever the constructors of the types raise."""
    with pytest.raises(FrameError):
        read_all(entry_with(cbor2.dumps(column)))
    with pytest.raises(FrameError):
        decode_value(seal(cbor2.dumps(column), kind=KIND_CBOR, key=KEY), key=KEY)


C: Any = [["c", [0]]]
S: Any = [["c", b"e", 2]]


@pytest.mark.parametrize(
    "document",
    [
        [], {}, 1, None, "a", [1] * 6, [1] * 8, [None, None, C, S, 0, 0, b"\x80"], [True, None, C, S, 0, 0, b"\x80"],
        [1, "a", C, S, 0, 0, b"\x80"], [1, None, [], S, 0, 0, b"\x80"], [1, None, C, [], 0, 0, b"\x80"],
        [1, None, None, S, 0, 0, b"\x80"], [1, None, [["d", [0]]], S, 0, 0, b"\x80"],
        [1, None, [[1, [0]]], [[1, b"e", 2]], 0, 0, b"\x80"],
        [1, None, [["c", []]], S, 0, 0, b"\x80"], [1, None, [["c", [-1]]], S, 0, 0, b"\x80"],
        [1, None, [["c", [4096]]], S, 0, 0, b"\x80"], [1, None, [["c", ["a"]]], S, 0, 0, b"\x80"],
        [1, None, [["c", [True]]], S, 0, 0, b"\x80"], [1, None, C, [["c", "e", 2]], 0, 0, b"\x80"],
        [1, None, C, [["c", b"e", "2"]], 0, 0, b"\x80"], [1, None, C, [["c", b"e"]], 0, 0, b"\x80"],
        [1, None, C, S, 0, 0, "a"], [1, None, C, S, 0, 0, [0]],
    ],
    ids=repr,
)  # fmt: skip
def test_malformed_headers_are_refused(document: Any) -> None:
    """Before the ledger sees any of it."""
    with pytest.raises(FrameError):
        decode_entry(as_entry(cbor2.dumps(document)), key=KEY)


@given(payload=st.binary(max_size=60))
@settings(max_examples=300, deadline=None)
def test_random_payloads(payload: bytes) -> None:
    """In an intact frame: decoded, or a FrameError."""
    for frame in (as_entry(payload), entry_with(payload), entry_with(b"\x82\x01\x81" + payload)):
        with suppress(FrameError):
            read_all(frame)
    with suppress(FrameError):
        decode_value(seal(payload, kind=KIND_CBOR, key=KEY), key=KEY)


def test_damaged_payloads_with_a_right_checksum() -> None:
    """The frame would find the damage; behind it, nothing but FrameError may leave the decoder either."""
    chance = random.Random(4)
    intact = encode_entry(HEADER, [ROW, ROW], key=KEY)[19:]
    value = encode_value(list(ROW), key=KEY)[19:]
    for _ in range(15_000):
        for payload, kind in ((intact, KIND_ROWS), (value, KIND_CBOR)):
            damaged = bytearray(payload)
            for _ in range(chance.randrange(1, 4)):
                damaged[chance.randrange(len(damaged))] = chance.randrange(256)
            frame = seal(bytes(damaged), kind=kind, key=KEY)
            with suppress(FrameError):
                read_all(frame) if kind == KIND_ROWS else decode_value(frame, key=KEY)


def test_entries_and_values_do_not_stand_for_each_other() -> None:
    """Their kinds keep them apart."""
    with pytest.raises(FrameError, match="kind"):
        decode_value(encode_entry(HEADER, [(1,)], key=KEY), key=KEY)
    with pytest.raises(FrameError, match="kind"):
        decode_entry(encode_value(1, key=KEY), key=KEY)
