"""A record is read as what was written, or not at all."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db import connection

from live_cache.changes import UPDATE_OF_COLUMNS, RowCells, RowChange, decode_record, encode_record, layout_of
from live_cache.exceptions import FrameError, UncachableValueError
from live_cache.rows.primitives import dump, load
from live_cache.writes.images import columns_of
from tests.testapp.models import Book

IMAGE: dict[str, Any] = {
    "id": 7,
    "none": None,
    "flag": True,
    "ratio": -0.0,
    "text": "a\ud800b",
    "raw": b"\0",
    "price": Decimal("1.00"),
    "day": date(2024, 2, 29),
    "moment": datetime(2024, 2, 29, 12, tzinfo=UTC),
    "hour": time(12, 30),
    "lasts": timedelta(days=-1),
    "uuid": UUID(int=5),
    "large": 2**70,
}
OTHER = IMAGE | {"price": Decimal("1.0"), "text": "b"}
LESS = {name: value for name, value in OTHER.items() if name not in ("text", "raw")}


def exactly(rows: Any) -> str:
    """Return what tells values that are equal from each other, and not the order of images."""
    return repr(
        [
            (
                row.kind,
                row.key,
                row.columns and sorted(row.columns),
                *(image and sorted(image.items()) for image in (row.before, row.after)),
            )
            for row in rows
        ]
    )


@pytest.mark.parametrize(
    "change",
    [
        RowChange("insert", (7,), None, None, IMAGE),
        RowChange("insert", None, None, None, None),
        RowChange("insert", (7, "x"), None, None, {}),
        RowChange("delete", (7,), None, IMAGE, None),
        RowChange("delete", (7,), None, None, None),
        RowChange("update", (7,), frozenset({"price", "text"}), IMAGE, OTHER),
        RowChange("update", (7,), frozenset({"price", "text", "raw", "json"}), IMAGE, LESS),
        RowChange("update", (7,), frozenset({"price", "text", "raw", "json"}), LESS, IMAGE),
        RowChange("update", (7,), frozenset({"day"}), IMAGE, OTHER),
        RowChange("update", (7,), frozenset({"day"}), LESS, IMAGE),
        RowChange("update", (7,), frozenset(), IMAGE, IMAGE),
        RowChange("update", (7,), None, IMAGE, OTHER),
        RowChange("update", (7,), None, {}, IMAGE),
        RowChange("update", (7,), frozenset({"price"}), None, OTHER),
        RowChange("update", (7,), frozenset({"price"}), OTHER, None),
        RowChange("update", None, frozenset({"price"}), None, None),
    ],
)
def test_what_is_read_is_what_was_written(change: RowChange) -> None:
    """Values, their types, and which columns an image does not have."""
    read = decode_record(encode_record([change, change], note="why"))
    assert read.note == "why"
    assert read.rows is not None
    assert exactly(read.rows) == exactly([change, change])


def test_rows_of_several_layouts_stand_in_one_record() -> None:
    """An insert that the ORM has returned, and an update that was read from the table."""
    rows = [
        RowChange("insert", (1,), None, None, {"a": 1, "b": 2}),
        RowChange("delete", (2,), None, {"b": 2}, None),
        RowChange("insert", (3,), None, None, {"a": 3, "b": 4}),
    ]
    cells = RowCells(layout_of(("z", "a")), UPDATE_OF_COLUMNS, 4, b"\1", [5, 6], [7])
    update = RowChange("update", (4,), frozenset({"a"}), {"z": 5, "a": 6}, {"z": 5, "a": 7})
    assert decode_record(encode_record([*rows, cells])).rows == (*rows, update)
    assert decode_record(encode_record(())).rows == ()
    assert decode_record(encode_record(None, note="all")).rows is None


def test_a_table_may_have_more_columns_than_a_byte_counts() -> None:
    """PostgreSQL allows 1,600."""
    before = {f"c{number}": number for number in range(400)}
    after = before | {"c3": 0, "c300": 0}
    change = RowChange("update", (0,), frozenset({"c3", "c300"}), before, after)
    assert decode_record(encode_record([change])).rows == (change,)


def test_the_longest_values_are_left_out_of_a_record_that_is_too_long() -> None:
    """They are unknown then, before and after; what else has changed is told."""
    before = {"id": 1, "long": "x" * 25, "odd": "\ud800" * 25, "raw": b"x" * 25, "short": "x" * 24}
    after = before | {"long": "y" * 25, "short": "y"}
    change = RowChange("update", (1,), frozenset({"long", "short"}), before, after)
    (read,) = decode_record(encode_record([change], limit_bytes=20)).rows or ()
    assert read == RowChange("update", (1,), change.columns, {"id": 1, "short": "x" * 24}, {"id": 1, "short": "y"})
    assert (change,) == decode_record(encode_record([change], limit_bytes=2000)).rows


def test_a_value_that_no_image_holds_is_refused() -> None:
    with pytest.raises(UncachableValueError):
        encode_record([RowChange("insert", (1,), None, None, {"a": object()})])


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((0,), 1),
        ((3,), []),
        ((3,), layout_of(("a",))),
        ((3,), [layout_of(("a",))]),
        ((3,), b"\xff"),
        ((3,), ["a"]),
        ((4,), [0]),
        ((4, 0), 1),
        ((4, 1), 1),
        ((4, 1), 3 | 4),
        ((4, 1), 3 | 8),
        ((4, 1), 9),
        ((4, 1), 16),
        ((4, 2), b"\x63"),
        ((4, 3), None),
        ((4, 3), b"\5"),
        ((4, 3), [5]),
        ((4, 3), b"\0\1"),
        ((4, 6), b"\x63"),
        ((4, 6), b"\0\xff"),
    ],
)
def test_a_record_of_another_shape_is_refused(path: tuple[int, ...], value: Any) -> None:
    """Its reader then takes it for a change of anything."""
    record = load(encode_record([RowChange("update", (1,), frozenset({"b"}), {"a": 1, "b": 2}, {"a": 1, "b": 3})]))
    assert record[4][:4] == [0, UPDATE_OF_COLUMNS | 4 | 8, 1, b"\1"]
    decode_record(dump(record))
    *outer, last = path
    part = record
    for step in outer:
        part = part[step]
    part[last] = value
    with pytest.raises(FrameError):
        decode_record(dump(record))


def test_a_row_of_the_driver_is_told_as_its_images() -> None:
    """The short way of a save() tells what the long one by images does, with what SQLite may hold in any column."""
    columns = columns_of(Book, connection, tuple([str(field.column) for field in Book._meta.local_concrete_fields]))
    day, moment, uuid = "2024-02-29", "2024-02-29 12:00:00", UUID(int=5).hex
    rows = [
        (1, "é", 2, None, 1.5, 0.5, 2**63, day, moment, 1, uuid, "{}"),
        (1, "e", 2, 3, 1.5, -0.0, True, day, moment, True, uuid, "[]"),
        (1, "e" * 201, 2, 3, 2, 0.0, 1, None, moment, 2, uuid, "[]"),
        (1, "\ud800", 2, 3, 2, float("nan"), 1.0, "no day", None, "x", uuid, None),
    ]
    for before in rows:
        image = columns.image(before, connection)
        assert exactly([RowChange("delete", (1,), None, image, None)]) == exactly(
            told_by(columns.deleted(before, connection))
        )
        for after in rows:
            updated = columns.updated(before, after, connection)
            if after is before:
                assert updated is None
                continue
            assert updated is not None
            pairs = zip(columns.names, before, after, strict=True)
            changed = frozenset([name for name, old, new in pairs if repr(old) != repr(new)])
            change = RowChange("update", (1,), changed, image, columns.image(after, connection))
            assert exactly([change]) == exactly(told_by(updated))


def told_by(cells: RowCells) -> Any:
    return decode_record(encode_record([cells])).rows
