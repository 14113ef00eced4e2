"""
One value to a self-describing cell and back.

A cell is a primitive. Values that CBOR holds exactly stand as they are; every other value is an array that begins with
its code, as docs/reference/entry-format.md lists them. Types are compared with ``is``, never with isinstance(): a
subclass that came back as its base class would not be the same value.
"""

from __future__ import annotations

import ipaddress
import struct
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final, cast
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from live_cache.exceptions import FrameError, UncachableValueError
from live_cache.rows.registry import codec_by_name, codec_for_type, reserve

__all__ = [
    "INT_MAX",
    "INT_MIN",
    "MAX_DEPTH",
    "decode_cell",
    "encode_cell",
    "encode_cells",
    "is_stored_zone",
    "uuids_of",
]

INT_MIN: Final = -(2**63)
INT_MAX: Final = 2**63 - 1
MAX_DEPTH: Final = 64
"""How many containers may stand inside each other. Well below what the CBOR reader and Python's stack allow."""

# Codes. A code is never used again for something else; a new meaning gets a new number.
_LIST: Final = 0
_TUPLE: Final = 1
_DICT: Final = 2
_INT: Final = 3
_FLOAT: Final = 4
_STR: Final = 5
_MEMORYVIEW: Final = 6
_DECIMAL: Final = 7
_DATETIME: Final = 8
_DATE: Final = 9
_TIME: Final = 10
_TIMEDELTA: Final = 11
_UUID: Final = 12
_IP: Final = 13
_RANGE: Final = 14

_DOUBLE: Final = struct.Struct(">d")
_UUID_HALVES: Final = struct.Struct(">QQ")
_new_object: Final = object.__new__
_IP_TYPES: Final = (
    ipaddress.IPv4Address,
    ipaddress.IPv4Interface,
    ipaddress.IPv4Network,
    ipaddress.IPv6Address,
    ipaddress.IPv6Interface,
    ipaddress.IPv6Network,
)
_IP_BY_NAME: Final[dict[str, Callable[[str], object]]] = {cls.__name__: cls for cls in _IP_TYPES}


def encode_cell(value: object, depth: int = 0) -> object:
    """
    Return *value* as a cell.

    Args:
        depth: How many containers *value* stands in.

    Raises:
        UncachableValueError: No codec stores it, or something in it, exactly. The message names the type.
    """
    value_type = type(value)
    encoder = _ENCODERS.get(value_type)
    if encoder is not None:
        if depth > MAX_DEPTH:
            raise UncachableValueError(f"The value has more than {MAX_DEPTH} containers inside each other.")
        return encoder(value, depth)
    codec = codec_for_type(value_type)
    if codec is not None:
        try:
            plain = codec.encode(value)
        except Exception as error:
            raise UncachableValueError(f"The codec {codec.name!r} failed on a {_type_name(value)}.") from error
        return [codec.name, encode_cell(plain, depth + 1)]
    if value_type is _range_type():
        return _encode_range(value, depth)
    raise UncachableValueError(
        f"No codec stores a {_type_name(value)} exactly. Register one with live_cache.rows.register_codec()."
    )


def encode_cells(values: Iterable[object]) -> list[object]:
    """See encode_cell(). Most values of a row are cells as they are, which this sees without calling anything."""
    cells: list[object] = []
    for value in values:
        kind = type(value)
        if value is None or kind is bool:
            cells.append(value)
        elif kind is str:
            cells.append(value if value.isascii() else encode_cell(value))  # type: ignore[attr-defined]  # it is a str
        elif kind is int:
            cells.append(value if INT_MIN <= value <= INT_MAX else encode_cell(value))  # type: ignore[operator]
        else:
            cells.append(encode_cell(value))
    return cells


def decode_cell(cell: Any) -> Any:
    """
    Return the value that encode_cell() turned into *cell*.

    Raises:
        FrameError: The code is unknown here.
        Exception: Whatever a malformed cell makes a constructor raise. The caller makes it a FrameError.
    """
    cell_type = type(cell)
    if cell_type is list:
        code = cell[0]
        if type(code) is int:
            return _DECODERS[code](cell)
        codec = codec_by_name(code)
        if codec is None:
            raise FrameError(f"No codec called {code!r} is registered in this process.")
        (_, plain) = cell
        return codec.decode(decode_cell(plain))
    if cell_type is dict:
        return {_checked_key(key): decode_cell(inner) for key, inner in cell.items()}
    if cell_type in _BARE_TYPES:
        return cell
    raise FrameError(f"A cell of the entry has the type {_type_name(cell)}.")


def is_stored_zone(zone: tzinfo | None) -> bool:
    """Return whether *zone* is exactly what ZoneInfo(key) returns; one read from a file, or uncached, is not."""
    if type(zone) is not ZoneInfo or zone.key is None:
        return False
    try:
        return ZoneInfo(zone.key) is zone
    except Exception:  # a key that names no zone here, whatever the zone's own origin
        return False


_UNKNOWN_SAFETY: Final = SafeUUID.unknown
# UUID forbids assignment, and its constructor checks a lot; its slots' descriptors take a third of the time.
_set_uuid_int: Final[Callable[[UUID, int], None]] = UUID.__dict__["int"].__set__
_set_uuid_is_safe: Final[Callable[[UUID, SafeUUID], None]] = UUID.__dict__["is_safe"].__set__


def uuids_of(raw: bytes) -> list[UUID]:
    """Return one UUID(bytes=...) for each 16 bytes of *raw*."""
    uuids = []
    for high, low in _UUID_HALVES.iter_unpack(raw):
        value = _new_object(UUID)
        _set_uuid_int(value, high << 64 | low)
        _set_uuid_is_safe(value, _UNKNOWN_SAFETY)
        uuids.append(value)
    return uuids


def _type_name(value: object) -> str:
    value_type = type(value)
    if value_type.__module__ == "builtins":
        return value_type.__qualname__
    return f"{value_type.__module__}.{value_type.__qualname__}"


def _bare(value: Any, _: int) -> object:
    return value


def _encode_int(value: int, _: int) -> object:
    if INT_MIN <= value <= INT_MAX:
        return value
    return [_INT, value.to_bytes(value.bit_length() // 8 + 1, "big", signed=True)]


def _encode_float(value: float, _: int) -> object:
    return value if value == value else [_FLOAT, _DOUBLE.pack(value)]  # CBOR writers fold all NaNs into one


def _encode_str(value: str, _: int) -> object:
    return value if _is_utf8(value) else [_STR, value.encode("utf-8", "surrogatepass")]


def _encode_memoryview(value: memoryview, _: int) -> object:
    if value.format != "B" or value.ndim != 1:
        raise UncachableValueError("No codec stores a memoryview that is not a plain row of bytes.")
    return [_MEMORYVIEW, value.tobytes()]


def _encode_dict(value: dict[object, object], depth: int) -> object:
    depth += 1
    if all(type(key) is str and _is_utf8(key) for key in value):
        return {key: encode_cell(inner, depth) for key, inner in value.items()}
    flat: list[object] = [_DICT]
    for key, inner in value.items():
        flat.append(encode_cell(key, depth))
        flat.append(encode_cell(inner, depth))
    return flat


def _encode_datetime(value: datetime, depth: int) -> object:
    return [_DATETIME, value.replace(tzinfo=None).isoformat(), value.fold, _encode_zone(value.tzinfo, depth)]


def _encode_time(value: time, depth: int) -> object:
    return [_TIME, value.replace(tzinfo=None).isoformat(), value.fold, _encode_zone(value.tzinfo, depth)]


def _encode_zone(zone: tzinfo | None, _: int) -> object:
    if zone is None:
        return None
    if zone is UTC:
        return [0, 0, 0]  # what follows comes to the same
    if type(zone) is timezone:
        arguments = cast("tuple[Any, ...]", zone.__reduce__()[1])  # as pickle asks it: offset, and name if given
        offset = arguments[0]
        return [offset.days, offset.seconds, offset.microseconds, *map(_clean_name, arguments[1:])]
    if is_stored_zone(zone):
        return zone.key  # type: ignore[attr-defined]  # is_stored_zone() has made sure of ZoneInfo
    raise UncachableValueError(f"No codec stores the time zone of type {_type_name(zone)} exactly.")


def _clean_name(name: str) -> str:
    if type(name) is not str or not _is_utf8(name):
        raise UncachableValueError("No codec stores the name of the time zone exactly.")
    return name


def _encode_timedelta(value: timedelta, _: int) -> object:
    return [_TIMEDELTA, value.days, value.seconds, value.microseconds]


def _encode_uuid(value: UUID, _: int) -> object:
    if value.is_safe is _UNKNOWN_SAFETY:
        return [_UUID, value.bytes]
    return [_UUID, value.bytes, value.is_safe.value]


def _encode_range(value: Any, depth: int) -> object:
    if value.isempty:
        return [_RANGE, None, None, None]
    depth += 1
    return [_RANGE, encode_cell(value.lower, depth), encode_cell(value.upper, depth), value.bounds]


def _is_utf8(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _range_type() -> type | None:
    """Return psycopg's Range, once something has imported it: before, no value can have that type."""
    module = sys.modules.get("psycopg.types.range")
    return None if module is None else getattr(module, "Range", None)


def _decode_int(cell: list[Any]) -> int:
    (_, raw) = cell
    return int.from_bytes(raw, "big", signed=True)


def _decode_float(cell: list[Any]) -> float:
    (_, raw) = cell
    (value,) = _DOUBLE.unpack(raw)
    return float(value)


def _decode_str(cell: list[Any]) -> str:
    (_, raw) = cell
    return bytes.decode(raw, "utf-8", "surrogatepass")


def _decode_memoryview(cell: list[Any]) -> memoryview:
    (_, raw) = cell
    return memoryview(raw)


def _decode_dict(cell: list[Any]) -> dict[Any, Any]:
    values = map(decode_cell, cell[1:])
    return dict(zip(values, values, strict=True))


def _decode_decimal(cell: list[Any]) -> Decimal:
    (_, text) = cell
    return Decimal(text)


def _decode_datetime(cell: list[Any]) -> datetime:
    (_, text, fold, zone) = cell
    return datetime.fromisoformat(text).replace(fold=fold, tzinfo=_decode_zone(zone))


def _decode_date(cell: list[Any]) -> date:
    (_, text) = cell
    return date.fromisoformat(text)


def _decode_time(cell: list[Any]) -> time:
    (_, text, fold, zone) = cell
    return time.fromisoformat(text).replace(fold=fold, tzinfo=_decode_zone(zone))


def _decode_zone(cell: Any) -> tzinfo | None:
    if cell is None:
        return None
    if type(cell) is str:
        return ZoneInfo(cell)
    days, seconds, microseconds, *name = cell
    return timezone(timedelta(days, seconds, microseconds), *name)


def _decode_timedelta(cell: list[Any]) -> timedelta:
    (_, days, seconds, microseconds) = cell
    return timedelta(days, seconds, microseconds)


def _decode_uuid(cell: list[Any]) -> UUID:
    (_, raw, *safety) = cell
    return UUID(bytes=raw, is_safe=SafeUUID(*safety) if safety else _UNKNOWN_SAFETY)


def _decode_ip(cell: list[Any]) -> object:
    (_, name, text) = cell
    return _IP_BY_NAME[name](text)


def _decode_range(cell: list[Any]) -> object:
    from psycopg.types.range import Range  # only where a range is read: psycopg is optional

    (_, lower, upper, bounds) = cell
    if bounds is None:
        return Range(empty=True)
    return Range(decode_cell(lower), decode_cell(upper), bounds)


def _checked_key(key: object) -> str:
    if type(key) is not str:
        raise FrameError("A key of a map is not text.")
    return key


_BARE_TYPES: Final = frozenset({type(None), bool, int, float, str, bytes})

_ENCODERS: Final[dict[type, Callable[[Any, int], object]]] = {
    type(None): _bare,
    bool: _bare,
    bytes: _bare,
    int: _encode_int,
    float: _encode_float,
    str: _encode_str,
    list: lambda value, depth: [_LIST, *[encode_cell(inner, depth + 1) for inner in value]],
    tuple: lambda value, depth: [_TUPLE, *[encode_cell(inner, depth + 1) for inner in value]],
    dict: _encode_dict,
    memoryview: _encode_memoryview,
    Decimal: lambda value, _: [_DECIMAL, str(value)],
    datetime: _encode_datetime,
    date: lambda value, _: [_DATE, value.isoformat()],
    time: _encode_time,
    timedelta: _encode_timedelta,
    UUID: _encode_uuid,
    **{cls: lambda value, _: [_IP, type(value).__name__, str(value)] for cls in _IP_TYPES},
}

_DECODERS: Final[dict[int, Callable[[list[Any]], object]]] = {
    _LIST: lambda cell: [decode_cell(inner) for inner in cell[1:]],
    _TUPLE: lambda cell: tuple([decode_cell(inner) for inner in cell[1:]]),
    _DICT: _decode_dict,
    _INT: _decode_int,
    _FLOAT: _decode_float,
    _STR: _decode_str,
    _MEMORYVIEW: _decode_memoryview,
    _DECIMAL: _decode_decimal,
    _DATETIME: _decode_datetime,
    _DATE: _decode_date,
    _TIME: _decode_time,
    _TIMEDELTA: _decode_timedelta,
    _UUID: _decode_uuid,
    _IP: _decode_ip,
    _RANGE: _decode_range,
}

reserve({*_ENCODERS})
