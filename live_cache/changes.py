"""
Changes of rows: what a writer tells through the ledger's log, and a reader judges his entries by.

A record is what one tick has changed in one table: rows, with their values before and after where they are known, or
the whole table. Images hold what the database holds, as Python values, by the name of the column. What an image does
not have is not known, and so could be anything.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

from live_cache.exceptions import FrameError
from live_cache.rows.cells import decode_cell, encode_cells
from live_cache.rows.primitives import dump, load

__all__ = ["MAX_ROWS", "ChangeKind", "Image", "Record", "RowChange", "decode_record", "encode_record"]

MAX_ROWS: Final = 900
"""Rows of one table that one transaction changes precisely; more are a change of the table."""

ChangeKind: TypeAlias = Literal["insert", "update", "delete"]
Image: TypeAlias = Mapping[str, Any]
"""Values by column. A value is None, bool, int, float, str, bytes, Decimal, date, datetime, time, timedelta or UUID."""

_VERSION: Final = 1
_SHORT_CHARS: Final = 24
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
    _values: dict[str, frozenset[Any] | None] = field(default_factory=dict, init=False, repr=False, compare=False)

    def values_of(self, column: str) -> frozenset[Any] | None:
        """Return all that *column* holds in the rows, before and after: whole numbers, texts and None; else None."""
        try:
            return self._values[column]
        except KeyError:
            found = self._values[column] = self._collect(column)
            return found

    def _collect(self, column: str) -> frozenset[Any] | None:
        values: set[Any] = set()
        for row in self.rows or ():
            images = [row.before] * (row.kind != "insert") + [row.after] * (row.kind != "delete")
            for image in images:
                if image is None or column not in image or type(image[column]) not in _PLAIN:
                    return None
                values.add(image[column])
        return frozenset(values)


def encode_record(rows: Sequence[RowChange] | None, *, note: str = "", limit_bytes: int | None = None) -> bytes:
    """
    Return the record of a change that is being committed now.

    Args:
        rows: None stands for the whole table.
        limit_bytes: Length above which the longest values are left out of the images. It may still be exceeded.

    Raises:
        UncachableValueError: An image holds a value of another type than images have.
    """
    at_ns = time.time_ns()
    record = _encode(rows, at_ns, note, longest=None)
    if rows is not None and limit_bytes is not None and len(record) > limit_bytes:
        record = _encode(rows, at_ns, note, longest=_SHORT_CHARS)
    return record


def decode_record(data: bytes) -> Record:
    """
    Return what encode_record() has encoded.

    Raises:
        FrameError: It is no record, or one of another version.
    """
    try:
        version, at_ns, note, names, encoded = load(data)
        if version != _VERSION:
            raise FrameError(f"A record of the log has the version {version!r}.")
        return Record(at_ns, None if encoded is None else tuple([_decode_row(row, names) for row in encoded]), note)
    except FrameError:
        raise
    except Exception as error:  # whatever unpacking something of another shape raises
        raise FrameError(f"A record of the log is malformed: {error}") from error


def _encode(rows: Sequence[RowChange] | None, at_ns: int, note: str, *, longest: int | None) -> bytes:
    # Each column is named once, and stands in the rows by its number there.
    numbers: dict[str, int] = {}
    encoded = None if rows is None else [_encode_row(row, numbers, longest) for row in rows]
    return dump([_VERSION, at_ns, note, list(numbers), encoded])


def _encode_row(row: RowChange, numbers: dict[str, int], longest: int | None) -> list[object]:
    before, after = row.before, row.after
    if longest is not None:
        before, after = _short(before, longest), _short(after, longest)
    missing: list[int] = []
    if row.kind == "update" and before is not None and after is not None:
        # Most columns of an updated row are as they were, and most of those hold the same objects.
        if not before.keys() <= after.keys():
            missing = [numbers.setdefault(name, len(numbers)) for name in before if name not in after]
        others = [item for item in after.items() if before.get(item[0], _ABSENT) is not item[1]]
        after = {name: value for name, value in others if not _is_same(before.get(name, _ABSENT), value)}
    return [
        _KINDS.index(row.kind),
        None if row.key is None else encode_cells(row.key),
        None if row.columns is None else [numbers.setdefault(name, len(numbers)) for name in sorted(row.columns)],
        _encode_image(before, numbers),
        _encode_image(after, numbers),
        missing,
    ]


def _decode_row(encoded: list[Any], names: list[str]) -> RowChange:
    kind, key, columns, raw_before, raw_after, missing = encoded
    before, after = _decode_image(raw_before, names), _decode_image(raw_after, names)
    if _KINDS[kind] == "update" and before is not None and after is not None:
        after = before | after
        for number in missing:
            del after[names[number]]
    return RowChange(
        _KINDS[kind],
        None if key is None else tuple(map(decode_cell, key)),
        None if columns is None else frozenset([names[number] for number in columns]),
        before,
        after,
    )


def _short(image: Image | None, longest: int) -> Image | None:
    if image is None:
        return image
    return {name: value for name, value in image.items() if not isinstance(value, str | bytes) or len(value) <= longest}


def _encode_image(image: Image | None, numbers: dict[str, int]) -> object:
    if image is None:
        return None
    flat: list[object] = [None] * (2 * len(image))
    flat[::2] = [numbers.setdefault(name, len(numbers)) for name in image]
    flat[1::2] = encode_cells(image.values())
    return flat


def _decode_image(flat: list[Any] | None, names: list[str]) -> dict[str, Any] | None:
    if flat is None:
        return None
    return {names[number]: decode_cell(cell) for number, cell in zip(flat[::2], flat[1::2], strict=True)}


_ABSENT: Final = object()


def _is_same(before: object, after: object) -> bool:
    """Return whether two values are equal in value and in type, so that one may stand for the other."""
    kind = type(before)
    if kind is not type(after):
        return False
    if kind in _PLAIN:
        return before == after
    return before is after or (before == after and repr(before) == repr(after))


_PLAIN: Final = frozenset({type(None), bool, int, str, bytes})
