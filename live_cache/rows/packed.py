"""
One value to a packed cell and back, for records.

A packed cell is a scalar that CBOR holds: a list inside of a list takes the encoder longer than what stands in it, and
each save() of a watched table encodes a row. What CBOR holds exactly stands as it is; every other value is bytes, of
which the first says what the others are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from live_cache.rows.cells import INT_MAX, INT_MIN, decode_cell, encode_cell
from live_cache.rows.primitives import dump, load

__all__ = ["HOLE", "is_long", "pack", "unpack"]

HOLE: Final = b""
"""Stands where there is no value. No packed cell is empty."""

_CELL: Final = b"\x00"
"""Begins the CBOR of a cell (live_cache.rows.cells), as any value can be packed."""
_DECIMAL: Final = b"\x01"
_NAIVE_DATETIME: Final = b"\x02"
_UTC_DATETIME: Final = b"\x03"
_DATE: Final = b"\x04"
_UUID: Final = b"\x05"

_SINCE: Final = struct.Struct(">ciII")
"""Code, and days, seconds and microseconds since 1970 began."""
_NAIVE_START: Final = datetime(1970, 1, 1)
_UTC_START: Final = datetime(1970, 1, 1, tzinfo=UTC)


def pack(value: Any) -> Any:
    """
    Return *value* as a packed cell.

    Raises:
        UncachableValueError: No codec stores it exactly.
    """
    kind = type(value)
    if kind is int:
        if INT_MIN <= value <= INT_MAX:
            return value
    elif kind is str:
        if value.isascii():
            return value
    elif value is None or kind is bool:
        return value
    elif kind is Decimal:
        return _DECIMAL + str(value).encode()
    elif kind is datetime:
        zone = value.tzinfo
        if not value.fold and (zone is UTC or zone is None):
            since = value - (_NAIVE_START if zone is None else _UTC_START)
            code = _NAIVE_DATETIME if zone is None else _UTC_DATETIME
            return _SINCE.pack(code, since.days, since.seconds, since.microseconds)
    elif kind is date:
        return _DATE + value.isoformat().encode()
    elif kind is UUID and value.is_safe is _UNKNOWN_SAFETY:
        return _UUID + value.bytes
    cell = encode_cell(value)
    return cell if type(cell) in _SCALARS else _CELL + dump(cell)


def unpack(packed: Any) -> Any:
    """
    Return the value that pack() turned into *packed*.

    Raises:
        FrameError: A cell in it is malformed.
        Exception: Whatever else a packed cell makes raise that pack() has not made. The caller makes it a FrameError.
    """
    return _UNPACKERS[packed[:1]](packed) if type(packed) is bytes else packed


def is_long(packed: Any, *, chars: int) -> bool:
    """Return whether *packed* is a text, or bytes, of more than *chars*."""
    value = unpack(packed) if packed else None
    return isinstance(value, str | bytes) and len(value) > chars


def _as_datetime(packed: bytes) -> datetime:
    code, days, seconds, microseconds = _SINCE.unpack(packed)
    return (_NAIVE_START if code == _NAIVE_DATETIME else _UTC_START) + timedelta(days, seconds, microseconds)


_UNKNOWN_SAFETY: Final = UUID(int=0).is_safe
_SCALARS: Final = frozenset({type(None), bool, int, float, str})
_UNPACKERS: Final[dict[bytes, Callable[[bytes], Any]]] = {
    _CELL: lambda packed: decode_cell(load(packed[1:])),
    _DECIMAL: lambda packed: Decimal(packed[1:].decode()),
    _NAIVE_DATETIME: _as_datetime,
    _UTC_DATETIME: _as_datetime,
    _DATE: lambda packed: date.fromisoformat(packed[1:].decode()),
    _UUID: lambda packed: UUID(bytes=packed[1:]),
}
