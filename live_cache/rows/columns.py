"""
One column of values to a codec number and primitive data, and back.

The codec is chosen by looking at the values, not at the model field: SQLite and JSONField give columns of several
types, and annotations have no field. A codec that stores a whole column at once is several times faster than cells, and
whatever it does not hold exactly falls back to cells.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time
from decimal import Decimal
from itertools import chain, repeat
from operator import attrgetter, is_, is_not, ne
from typing import Any, Final, cast
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

from live_cache.exceptions import FrameError
from live_cache.rows.cells import INT_MAX, INT_MIN, MAX_DEPTH, decode_cell, encode_cell, is_stored_zone, uuids_of

__all__ = ["decode_column", "encode_column"]

# Codec numbers. A number is never used again for something else; a new layout gets a new number.
_PLAIN: Final = 0
_CELLS: Final = 1
_DECIMAL: Final = 2
_DATETIME: Final = 3
_DATETIME_ZONE: Final = 4
_DATE: Final = 5
_TIME: Final = 6
_UUID: Final = 7

_PLAIN_TYPES: Final = frozenset({type(None), bool, int, float, str, bytes, list, dict})
_NONE: Final = type(None)
_SEPARATOR: Final = "\n"
_WIDEST_LEVEL: Final = 1_000_000
_UUID_SIZE: Final = 16

_tzinfo_of: Final = attrgetter("tzinfo")
_fold_of: Final = attrgetter("fold")
_is_safe_of: Final = attrgetter("is_safe")


def encode_column(values: Sequence[object]) -> tuple[int, object]:
    """
    Return the codec number and the data of a column of at least one value.

    Raises:
        UncachableValueError: No codec stores a value exactly. The message names its type.
    """
    types = set(map(type, values))
    if types <= _PLAIN_TYPES:
        if _is_plain(values, types):
            return _PLAIN, values if type(values) is list else list(values)
    else:
        has_null = _NONE in types
        types.discard(_NONE)
        if len(types) == 1:
            encode = _ENCODERS.get(types.pop())
            if encode is not None:
                encoded = encode(values, has_null)
                if encoded is not None:
                    return encoded
    return _CELLS, list(map(encode_cell, values))


def decode_column(codec: int, data: Any) -> Sequence[Any]:
    """
    Return the values of a column.

    Raises:
        FrameError: The codec is unknown here, or the data does not fit it.
        Exception: Whatever malformed data makes a constructor raise. The caller makes it a FrameError.
    """
    if codec == _PLAIN:
        if not isinstance(data, list):
            raise FrameError("A plain column of the entry is not an array.")
        return data
    decode = _DECODERS.get(codec)
    if decode is None:
        raise FrameError(f"The codec number {codec!r} of a column is unknown.")
    return decode(data)


def _is_plain(values: Sequence[object], types: set[type]) -> bool:
    """Return whether CBOR holds the values and all that is in them exactly. Walks level by level: that is fastest."""
    by_type: Mapping[type, Sequence[Any]] = {types.pop(): values} if len(types) == 1 else _by_type(values)
    for _ in range(MAX_DEPTH):
        if not by_type:
            return True
        inner: list[Iterable[object]] = []
        for value_type, same in by_type.items():
            if value_type is str:
                if not _are_utf8(same):
                    return False
            elif value_type is int:
                if min(same) < INT_MIN or max(same) > INT_MAX:
                    return False
            elif value_type is float:
                if any(map(ne, same, same)):  # NaN: its sign and payload would be lost
                    return False
            elif value_type is dict:
                if sum(map(len, same)) > _WIDEST_LEVEL or not _are_text_keys(list(chain.from_iterable(same))):
                    return False
                inner.extend(map(dict.values, same))
            elif value_type is list:
                if sum(map(len, same)) > _WIDEST_LEVEL:
                    return False
                inner.extend(same)
            elif value_type not in _PLAIN_TYPES:
                return False
        by_type = _by_type(chain.from_iterable(inner))
    return False


def _by_type(values: Iterable[object]) -> dict[type, list[Any]]:
    groups: defaultdict[type, list[Any]] = defaultdict(list)
    for value in values:
        groups[type(value)].append(value)
    return groups


def _are_utf8(texts: Iterable[str]) -> bool:
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:  # a lone surrogate; two of them do not become a pair when they are joined
        return False
    return True


def _are_text_keys(keys: list[object]) -> bool:
    return set(map(type, keys)) <= {str} and _are_utf8(cast("list[str]", keys))


def _join(values: Sequence[Any], to_text: Callable[[Any], str], has_null: bool) -> str:
    """Return the texts of all values as one, null as an empty text: one long text is read faster than many."""
    if has_null:
        return _SEPARATOR.join(["" if value is None else to_text(value) for value in values])
    return _SEPARATOR.join(map(to_text, values))


def _split(data: str, from_text: Callable[[str], Any]) -> list[Any]:
    texts = data.split(_SEPARATOR)
    if "" in texts:
        return [from_text(text) if text else None for text in texts]
    return list(map(from_text, texts))


def _encode_decimals(values: Sequence[Any], has_null: bool) -> tuple[int, object] | None:
    return _DECIMAL, _join(values, str, has_null)


def _encode_dates(values: Sequence[Any], has_null: bool) -> tuple[int, object] | None:
    return _DATE, _join(values, date.isoformat, has_null)


def _encode_datetimes(values: Sequence[Any], has_null: bool) -> tuple[int, object] | None:
    present = [value for value in values if value is not None] if has_null else values
    zone = present[0].tzinfo
    # Identity, since zones that are equal may have different names and rules.
    if any(map(_fold_of, present)) or not all(map(is_, map(_tzinfo_of, present), repeat(zone))):
        return None
    if zone is not None and zone is not UTC and not is_stored_zone(zone):
        return None
    # Taken apart and put together without its zone, a datetime is written much faster than by replace() or as it is.
    naive = map(datetime.combine, map(datetime.date, present), map(datetime.time, present))
    offset = "+00:00" if zone is UTC else ""
    texts = [text + offset for text in map(datetime.isoformat, naive)]
    if has_null:
        remaining = iter(texts)
        texts = ["" if value is None else next(remaining) for value in values]
    joined = _SEPARATOR.join(texts)
    return (_DATETIME, joined) if zone is None or zone is UTC else (_DATETIME_ZONE, [zone.key, joined])


def _encode_times(values: Sequence[Any], has_null: bool) -> tuple[int, object] | None:
    present = [value for value in values if value is not None] if has_null else values
    if any(map(_fold_of, present)) or any(map(is_not, map(_tzinfo_of, present), repeat(None))):
        return None
    return _TIME, _join(values, time.isoformat, has_null)


def _encode_uuids(values: Sequence[Any], has_null: bool) -> tuple[int, object] | None:
    if has_null or any(map(is_not, map(_is_safe_of, values), repeat(SafeUUID.unknown))):
        return None
    return _UUID, b"".join([value.int.to_bytes(_UUID_SIZE, "big") for value in values])


def _decode_zoned_datetimes(data: list[Any]) -> list[datetime | None]:
    key, text = data
    zone = ZoneInfo(key)
    naive = _split(text, datetime.fromisoformat)
    return [None if value is None else value.replace(tzinfo=zone) for value in naive]


_ENCODERS: Final[dict[type, Callable[[Sequence[Any], bool], tuple[int, object] | None]]] = {
    Decimal: _encode_decimals,
    datetime: _encode_datetimes,
    date: _encode_dates,
    time: _encode_times,
    UUID: _encode_uuids,
}

_DECODERS: Final[dict[int, Callable[[Any], Sequence[Any]]]] = {
    _CELLS: lambda data: list(map(decode_cell, data)),
    _DECIMAL: lambda data: _split(data, Decimal),
    _DATETIME: lambda data: _split(data, datetime.fromisoformat),
    _DATETIME_ZONE: _decode_zoned_datetimes,
    _DATE: lambda data: _split(data, date.fromisoformat),
    _TIME: lambda data: _split(data, time.fromisoformat),
    _UUID: uuids_of,
}
