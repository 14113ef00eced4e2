"""Events from the records of a ledger's log. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from live_cache.changes import Record, RowChange, decode_record
from live_cache.events.base import Changed, Deleted, Inserted, LiveEvent, Updated
from live_cache.exceptions import FrameError

__all__ = ["decoded", "events_of", "gap", "tells_rows"]

UNREADABLE: Final = Record(0, None, "a record that this version cannot read")


def decoded(raw: bytes) -> Record | None:
    """Return the record of one tick, as Ledger.log() gives it; None for a tick that had none."""
    if not raw:
        return None
    try:
        return decode_record(raw)
    except FrameError:
        return UNREADABLE


def tells_rows(raw: bytes) -> bool:
    """
    Return whether a tick with this record has touched ROWS_SLOT and no other slot.

    That of a key, or of a table, has a record for people, which tells no row, or none.
    """
    record = decoded(raw)
    return record is not None and bool(record.rows)


def events_of(record: Record | None, *, table: str, database: str, epoch: bytes, seq: int) -> Iterator[LiveEvent]:
    """
    Yield what one tick has changed. Nothing, if it has only invalidated a cache key.

    A row without a key is one of several that are not told apart: any row may be it, so the table has changed.
    """
    at_ns = record.at_ns or None if record is not None else None
    rows = None if record is None else record.rows
    if rows is None or any(row.key is None for row in rows):
        note = "" if record is None else record.note
        yield Changed(table=table, database=database, epoch=epoch, seq=seq, at_ns=at_ns, note=note)
        return
    for row in rows:
        # An update of no column is there for readers who judge entries (outbox/decoding.py), and has changed nothing.
        if row.columns is None or row.columns:
            yield _event_of(row, table=table, database=database, epoch=epoch, seq=seq, at_ns=at_ns)


def gap(*, table: str, database: str, epoch: bytes, seq: int, note: str) -> Changed:
    """Return what stands for events that are lost."""
    return Changed(table=table, database=database, epoch=epoch, seq=seq, is_gap=True, note=note)


def _event_of(row: RowChange, *, table: str, database: str, epoch: bytes, seq: int, at_ns: int | None) -> LiveEvent:
    assert row.key is not None
    if row.kind == "update":
        return Updated(
            table=table, database=database, epoch=epoch, seq=seq, at_ns=at_ns, key=row.key, columns=row.columns
        )
    kind = Inserted if row.kind == "insert" else Deleted
    return kind(table=table, database=database, epoch=epoch, seq=seq, at_ns=at_ns, key=row.key)
