"""
Changes of rows: what a writer tells through the ledger's log, and a reader judges his entries by.

A record is what one tick has changed in one table: rows, with their values before and after where they are known, or
the whole table. Images hold what the database holds, as Python values, by the name of the column. What an image does
not have is not known, and so could be anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from live_cache.exceptions import FrameError
from live_cache.rows.cells import decode_cell, encode_cell
from live_cache.rows.primitives import dump, load

__all__ = ["MAX_ROWS", "ChangeKind", "Image", "Record", "RowChange", "decode_record", "encode_record"]

MAX_ROWS: Final = 100
"""Rows of one table that one transaction changes precisely; more are a change of the table."""

ChangeKind: TypeAlias = Literal["insert", "update", "delete"]
Image: TypeAlias = Mapping[str, Any]
"""Values by column. A value is None, bool, int, float, str, bytes, Decimal, date, datetime, time, timedelta or UUID."""

_VERSION: Final = 1
_KINDS: Final[tuple[ChangeKind, ...]] = ("insert", "update", "delete")


@dataclass(frozen=True, slots=True)
class RowChange:
    """What happened to one row, or to one of several rows that are not told apart."""

    kind: ChangeKind
    key: tuple[Any, ...] | None
    """Values of the primary key, in the order of its columns. None: any row."""
    columns: frozenset[str] | None
    """Columns whose values an update has changed. None: any. Of an insert or delete None."""
    before: Image | None
    """The row as it was; None where that is not known, and for an insert."""
    after: Image | None
    """The row as it is now, whole; None where that is not known, and for a delete."""


@dataclass(frozen=True, slots=True)
class Record:
    """What one tick has changed in one table."""

    at_ns: int
    """When the change was committed, in nanoseconds since 1970 by the writer's clock. For people only."""
    rows: tuple[RowChange, ...] | None
    """None: any row of the table."""
    note: str = ""
    """How the table was written, for people: why it is not told by row."""


def encode_record(rows: Sequence[RowChange] | None, *, note: str = "") -> bytes:
    """
    Return the record of a change that is being committed now.

    Args:
        rows: None stands for the whole table.

    Raises:
        UncachableValueError: An image holds a value of another type than images have.
    """
    encoded = None if rows is None else [_encode_row(row) for row in rows]
    return dump([_VERSION, time.time_ns(), encoded, note])


def decode_record(data: bytes) -> Record:
    """
    Return what encode_record() has encoded.

    Raises:
        FrameError: It is no record, or one of another version.
    """
    try:
        version, at_ns, encoded, note = load(data)
        if version != _VERSION:
            raise FrameError(f"A record of the log has the version {version!r}.")
        return Record(at_ns, None if encoded is None else tuple([_decode_row(row) for row in encoded]), note)
    except FrameError:
        raise
    except Exception as error:  # whatever unpacking something of another shape raises
        raise FrameError(f"A record of the log is malformed: {error}") from error


def _encode_row(row: RowChange) -> list[object]:
    after = row.after
    if row.kind == "update" and row.before is not None and after is not None:
        # Most columns of an updated row are as they were.
        before = row.before
        after = {name: value for name, value in after.items() if not _is_same(before.get(name, _ABSENT), value)}
        if missing := [name for name in before if name not in row.after]:  # type: ignore[operator]  # checked above
            return [*_head(row), _encode_image(before), _encode_image(after), missing]
    return [*_head(row), _encode_image(row.before), _encode_image(after), []]


def _head(row: RowChange) -> list[object]:
    return [
        _KINDS.index(row.kind),
        None if row.key is None else list(map(encode_cell, row.key)),
        None if row.columns is None else sorted(row.columns),
    ]


def _decode_row(encoded: list[Any]) -> RowChange:
    kind, key, columns, raw_before, raw_after, missing = encoded
    before, after = _decode_image(raw_before), _decode_image(raw_after)
    if _KINDS[kind] == "update" and before is not None and after is not None:
        after = before | after
        for name in missing:
            del after[name]
    return RowChange(
        _KINDS[kind],
        None if key is None else tuple(map(decode_cell, key)),
        None if columns is None else frozenset(columns),
        before,
        after,
    )


def _encode_image(image: Image | None) -> object:
    return None if image is None else {name: encode_cell(value) for name, value in image.items()}


def _decode_image(encoded: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if encoded is None else {name: decode_cell(cell) for name, cell in encoded.items()}


_ABSENT: Final = object()


def _is_same(before: object, after: object) -> bool:
    """Return whether two values are equal in value and in type, so that one may stand for the other."""
    return type(before) is type(after) and (before is after or (before == after and repr(before) == repr(after)))
