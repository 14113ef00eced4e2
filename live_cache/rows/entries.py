"""Whole entries, and single values of the cache API, to framed bytes and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from live_cache.exceptions import FrameError, UncachableValueError
from live_cache.frame import KIND_CBOR, KIND_ROWS, seal, unseal
from live_cache.ledger.clocks import SLOT_COUNT, Dependency, Stamp
from live_cache.rows.cells import INT_MAX, INT_MIN
from live_cache.rows.columns import decode_column, encode_column
from live_cache.rows.primitives import dump, load

__all__ = ["Entry", "EntryHeader", "decode_entry", "decode_value", "encode_entry", "encode_value", "restamp_entry"]

_ENTRY_KINDS: Final = frozenset({KIND_ROWS})
_VALUE_KINDS: Final = frozenset({KIND_CBOR})


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """What decides whether an entry may be served, readable without its rows."""

    fetched_at_ns: int
    """When the SELECT began, in nanoseconds since 1970. For people and bounded modes; takes no part in validity."""
    expires_at_ns: int | None
    """When the entry ends, in nanoseconds since 1970. None: only when something changes. Stored as 2262 if later."""
    dependencies: tuple[Dependency, ...]
    stamps: tuple[Stamp, ...]
    """One per dependency, in the same order."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An entry whose header is decoded, and whose rows are decoded when they are asked for."""

    header: EntryHeader
    row_count: int
    column_count: int
    _columns: bytes = field(repr=False)

    def rows(self) -> list[tuple[Any, ...]]:
        """
        Return row_count tuples of column_count values each, in SELECT order. Each call returns new objects.

        Raises:
            FrameError: The rows are malformed, or hold a codec, a time zone or a type that this process lacks.
        """
        try:
            return self._decode_rows()
        except FrameError:
            raise
        except Exception as error:  # malformed data meets many constructors, registered ones too
            raise FrameError(f"The rows of the entry cannot be decoded: {error}") from error

    def _decode_rows(self) -> list[tuple[Any, ...]]:
        flat = load(self._columns)
        codecs, columns = flat[::2], flat[1::2]
        if not len(codecs) == len(columns) == self.column_count:
            raise FrameError("The number of columns of the entry is not what its header says.")
        rows = list(zip(*map(decode_column, codecs, columns), strict=True))
        if len(rows) != self.row_count:
            raise FrameError("The number of rows of the entry is not what its header says.")
        return rows


def encode_entry(
    header: EntryHeader,
    rows: Sequence[Sequence[object]],
    *,
    key: str,
    mac_keys: Sequence[bytes] = (),
    column_names: Sequence[str] = (),
) -> bytes:
    """
    Return the bytes to store under *key*. What comes back from decode_entry() equals the rows in value and in type.

    Identity does not come back: a list that stands in two places comes back as two lists.

    Args:
        rows: As Django's compiler yields them after its converters. All of one length, at least one column.
        mac_keys: See frame.seal().
        column_names: For messages only.

    Raises:
        UncachableValueError: No codec stores a value exactly. The message names its column and type.
        ValueError: The rows differ in length or have no columns, or the header could never be decoded.
    """
    columns = list(zip(*rows, strict=True))
    if rows and not columns:
        raise ValueError("Rows without columns cannot be stored.")
    flat: list[object] = []
    for index, values in enumerate(columns):
        try:
            flat += encode_column(values)
        except Exception as error:  # also what hostile classes raise: a value must never break the read that found it
            name = f" ({column_names[index]})" if index < len(column_names) else ""
            raise UncachableValueError(f"Column {index}{name} cannot be stored. {_reason(error)}") from error
    document = [*_header_fields(header), len(rows), len(columns), dump(flat)]
    return seal(dump(document), kind=KIND_ROWS, key=key, mac_keys=mac_keys)


def restamp_entry(entry: Entry, stamps: tuple[Stamp, ...], *, key: str, mac_keys: Sequence[bytes] = ()) -> bytes:
    """Return the bytes of *entry* with other stamps. Its rows are not decoded."""
    header = replace(entry.header, stamps=stamps)
    document = [*_header_fields(header), entry.row_count, entry.column_count, entry._columns]
    return seal(dump(document), kind=KIND_ROWS, key=key, mac_keys=mac_keys)


def decode_entry(data: bytes, *, key: str, mac_keys: Sequence[bytes] = ()) -> Entry:
    """
    Return the entry that encode_entry() made for *key*. Only its header is decoded here.

    Raises:
        FrameError: See frame.unseal(); or the header is malformed. Entry.rows() raises it for malformed rows.
    """
    _, payload = unseal(data, kinds=_ENTRY_KINDS, key=key, mac_keys=mac_keys)
    document = load(payload)
    try:
        fetched_at_ns, expires_at_ns, raw_dependencies, raw_stamps, row_count, column_count, columns = document
        header = EntryHeader(
            fetched_at_ns,
            expires_at_ns,
            tuple([Dependency(clock, tuple(slots)) for clock, slots in raw_dependencies]),
            tuple([Stamp(clock, epoch, seq) for clock, epoch, seq in raw_stamps]),
        )
        _check_header(header)
    except Exception as error:  # whatever unpacking something of another shape raises
        raise FrameError(f"The header of the entry is malformed: {error}") from error
    if type(row_count) is not int or type(column_count) is not int or type(columns) is not bytes:
        raise FrameError("The header of the entry is malformed.")
    return Entry(header, row_count, column_count, columns)


def encode_value(value: object, *, key: str, mac_keys: Sequence[bytes] = ()) -> bytes:
    """
    Return the bytes to store one value of the cache API under *key*, exact in value and in type.

    Raises:
        UncachableValueError: No codec stores it, or something in it, exactly. The message names the type.
    """
    try:
        column = list(encode_column((value,)))
    except Exception as error:  # as in encode_entry()
        raise UncachableValueError(f"The value of {key!r} cannot be stored. {_reason(error)}") from error
    return seal(dump(column), kind=KIND_CBOR, key=key, mac_keys=mac_keys)


def decode_value(data: bytes, *, key: str, mac_keys: Sequence[bytes] = ()) -> Any:
    """
    Return the value that encode_value() stored under *key*.

    Raises:
        FrameError: See frame.unseal(); or the value is malformed, or needs a codec that this process lacks.
    """
    _, payload = unseal(data, kinds=_VALUE_KINDS, key=key, mac_keys=mac_keys)
    column = load(payload)
    try:
        codec, cells = column
        (value,) = decode_column(codec, cells)
    except FrameError:
        raise
    except Exception as error:  # as in Entry.rows()
        raise FrameError(f"The value cannot be decoded: {error}") from error
    return value


def _reason(error: Exception) -> str:
    return str(error) if isinstance(error, UncachableValueError) else f"{type(error).__name__}: {error}"


def _header_fields(header: EntryHeader) -> list[object]:
    _check_header(header)
    return [
        header.fetched_at_ns,
        None if header.expires_at_ns is None else min(header.expires_at_ns, INT_MAX),
        [[dependency.clock, list(dependency.slots)] for dependency in header.dependencies],
        [[stamp.clock, stamp.epoch, stamp.seq] for stamp in header.stamps],
    ]


def _check_header(header: EntryHeader) -> None:
    """Raise ValueError unless the header has the right types and ranges, when it is written and when it is read."""
    if not _is_int64(header.fetched_at_ns) or type(header.expires_at_ns) not in (int, type(None)):
        raise ValueError("The times of the header are not integers of 64 bits.")
    if len(header.dependencies) != len(header.stamps):
        raise ValueError("The header does not have one stamp per dependency.")
    for dependency, stamp in zip(header.dependencies, header.stamps, strict=True):
        slots = dependency.slots
        if type(dependency.clock) is not str or type(stamp.clock) is not str or dependency.clock != stamp.clock:
            raise ValueError("A dependency and its stamp do not name the same clock.")
        if type(stamp.epoch) is not bytes or not _is_int64(stamp.seq):
            raise ValueError(f"The stamp of the clock {stamp.clock!r} is malformed.")
        if set(map(type, slots)) != {int} or min(slots) < 0 or max(slots) >= SLOT_COUNT:
            raise ValueError(f"The slots of the clock {stamp.clock!r} are malformed.")


def _is_int64(number: object) -> bool:
    return type(number) is int and INT_MIN <= number <= INT_MAX
