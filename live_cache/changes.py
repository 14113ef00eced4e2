"""
Changes of rows: what a writer tells through the ledger's log, and a reader judges his entries by.

A record is what one tick has changed in one table: rows, with their values before and after where they are known, or
the whole table. Images hold what the database holds, as Python values, by the name of the column. What an image does
not have is not known, and so could be anything.
"""

from __future__ import annotations

import time
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast

from live_cache.exceptions import FrameError
from live_cache.rows.packed import HOLE, is_long, pack, unpack
from live_cache.rows.primitives import dump, load

__all__ = [
    "DELETE",
    "MAX_ROWS",
    "UPDATE_OF_COLUMNS",
    "ChangeKind",
    "Image",
    "Record",
    "RowCells",
    "RowChange",
    "decode_record",
    "encode_record",
    "key_of",
    "layout_of",
    "numbers_of",
]

MAX_ROWS: Final = 900
"""Rows of one table that one transaction changes precisely; more are a change of the table."""

ChangeKind: TypeAlias = Literal["insert", "update", "delete"]
Image: TypeAlias = Mapping[str, Any]
"""Values by column. A value is None, bool, int, float, str, bytes, Decimal, date, datetime, time, timedelta or UUID."""

_VERSION: Final = 3
_SHORT_CHARS: Final = 24
INSERT, UPDATE, DELETE, UPDATE_OF_COLUMNS = range(4)
_KINDS: Final[tuple[ChangeKind, ...]] = ("insert", "update", "delete", "update")
_HAS_BEFORE: Final = 4
_HAS_AFTER: Final = 8
"""Added to the kind of a row if the image follows."""
_HEAD: Final = 4
"""How much stands before the images of a row."""


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


class RowCells(NamedTuple):
    """
    A RowChange as it stands in a record.

    An image is a list of packed cells (live_cache.rows.packed) and holes, one for each name of the layout.
    """

    layout: bytes
    """Names of columns, from layout_of()."""
    kind: int
    """Of _KINDS. After UPDATE_OF_COLUMNS the row is as before, but for the columns."""
    key: Any
    """A packed cell, which is never None, or a list of several; None: any row."""
    columns: bytes | list[int] | None
    """Numbers of names, from numbers_of()."""
    before: list[object] | None
    after: list[object] | None
    """After UPDATE_OF_COLUMNS one cell or hole for each of the columns, and no others."""


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


def encode_record(
    rows: Sequence[RowChange | RowCells] | None, *, note: str = "", limit_bytes: int | None = None
) -> bytes:
    """
    Return the record of a change that is being committed now.

    Args:
        rows: None stands for the whole table.
        limit_bytes: Length above which the longest values are left out of the images. It may still be exceeded.

    Raises:
        UncachableValueError: An image holds a value of another type than images have.
    """
    at_ns = time.time_ns()
    if rows is None:
        return dump([_VERSION, at_ns, note, None])
    told = _as_cells(rows)
    record = _encode(told, at_ns, note)
    if limit_bytes is not None and len(record) > limit_bytes:
        record = _encode([_shortened(row) for row in told], at_ns, note)
    return record


def decode_record(data: bytes) -> Record:
    """
    Return what encode_record() has encoded.

    Raises:
        FrameError: It is no record, or one of another version.
    """
    try:
        version, at_ns, note, layouts, *encoded = load(data)
        if version != _VERSION:
            raise FrameError(f"A record of the log has the version {version!r}.")
        if layouts is None:
            return Record(at_ns, None, note)
        names = [_names_in(layout) for layout in (layouts if type(layouts) is list else [layouts])]
        return Record(at_ns, tuple([_decode_row(row, names) for row in encoded]), note)
    except FrameError:
        raise
    except Exception as error:  # whatever unpacking something of another shape raises
        raise FrameError(f"A record of the log is malformed: {error}") from error


@lru_cache(maxsize=512)
def layout_of(names: tuple[str, ...]) -> bytes:
    """Return *names* as a record holds them. They are the same for most changes of a table."""
    return dump(list(names))


def key_of(cells: list[Any]) -> Any:
    """Return the key of a row, whose values are packed, as RowCells have it."""
    return cells[0] if len(cells) == 1 and cells[0] is not None else cells


def numbers_of(changed: list[int], names: Sequence[str]) -> bytes | list[int]:
    """Return the numbers of some of *names* as a row holds them. A list takes the encoder far longer than bytes."""
    return bytes(changed) if len(names) <= 256 else changed


@lru_cache(maxsize=512)
def _names_in(layout: bytes) -> tuple[str, ...]:
    return tuple(load(layout))


def _encode(rows: Sequence[RowCells], at_ns: int, note: str) -> bytes:
    # All in few lists, each of which takes the encoder as long as three cells. Each layout stands once.
    numbers: dict[bytes, int] = {}
    encoded: list[list[Any]] = []
    for layout, kind, key, columns, before, after in rows:
        number = numbers.setdefault(layout, len(numbers))
        has = _HAS_BEFORE * (before is not None) | _HAS_AFTER * (after is not None)
        encoded.append([number, kind | has, key, columns, *(before or ()), *(after or ())])
    (*layouts,) = numbers
    return dump([_VERSION, at_ns, note, layouts[0] if len(layouts) == 1 else layouts, *encoded])


def _as_cells(rows: Sequence[RowChange | RowCells]) -> Sequence[RowCells]:
    changes = [row for row in rows if isinstance(row, RowChange)]
    if not changes:
        return cast("Sequence[RowCells]", rows)
    # One layout for all of these, whatever their images do not have.
    names: dict[str, None] = {}
    for change in changes:
        for some in (change.before, change.after, change.columns and sorted(change.columns)):
            names.update(dict.fromkeys(some or ()))
    all_names = tuple(names)
    return [row if isinstance(row, RowCells) else _cells_of(row, all_names) for row in rows]


def _cells_of(change: RowChange, names: tuple[str, ...]) -> RowCells:
    before, after, columns = change.before, change.after, change.columns
    kind = _KINDS.index(change.kind)
    numbers = None
    names_after: Sequence[str] = names
    if columns is not None:
        changed = [number for number, name in enumerate(names) if name in columns]
        numbers = numbers_of(changed, names)
        if kind == UPDATE and before is not None and after is not None and _is_same_but(columns, before, after):
            kind = UPDATE_OF_COLUMNS
            names_after = [names[number] for number in changed]
    return RowCells(
        layout_of(names),
        kind,
        None if change.key is None else key_of([pack(value) for value in change.key]),
        numbers,
        None if before is None else _cells(before, names),
        None if after is None else _cells(after, names_after),
    )


def _is_same_but(columns: Container[str], before: Image, after: Image) -> bool:
    """Return whether two images have and hold the same, where no other than *columns* are looked at."""
    return all(
        name in columns or _is_same(before.get(name, _ABSENT), after.get(name, _ABSENT)) for name in {**before, **after}
    )


def _cells(image: Image, names: Sequence[str]) -> list[object]:
    return [pack(image[name]) if name in image else HOLE for name in names]


def _shortened(row: RowCells) -> RowCells:
    return row._replace(before=_short_cells(row.before), after=_short_cells(row.after))


def _short_cells(cells: list[object] | None) -> list[object] | None:
    return None if cells is None else [HOLE if is_long(cell, chars=_SHORT_CHARS) else cell for cell in cells]


def _decode_row(encoded: list[Any], layouts: list[tuple[str, ...]]) -> RowChange:
    number, what, key, columns = encoded[:_HEAD]
    names = layouts[number]
    kind = what % _HAS_BEFORE
    changed = None if columns is None else [names[number] for number in columns]
    before = after = None
    end = _HEAD
    if what & _HAS_BEFORE:
        end += len(names)
        before = _decode_image(encoded[_HEAD:end], names)
    if what & _HAS_AFTER:
        after = _decode_image(encoded[end:], names if kind != UPDATE_OF_COLUMNS else changed or ())
    elif end != len(encoded):
        raise FrameError("A row in a record of the log has more cells than names.")
    if kind == UPDATE_OF_COLUMNS:
        if before is None or changed is None or after is None:
            raise FrameError("An update of columns in a record of the log lacks them, or an image.")
        after = {name: value for name, value in before.items() if name not in changed} | after
    return RowChange(
        _KINDS[kind],
        None if key is None else tuple(map(unpack, key)) if type(key) is list else (unpack(key),),
        None if changed is None else frozenset(changed),
        before,
        after,
    )


def _decode_image(cells: list[Any], names: Sequence[str]) -> dict[str, Any]:
    return {
        name: unpack(cell) if type(cell) is bytes else cell
        for name, cell in zip(names, cells, strict=True)
        if cell != HOLE
    }


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
