"""What one transaction has written so far, and the ticks that tell it."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from live_cache.changes import MAX_ROWS, RowCells, RowChange, encode_record
from live_cache.exceptions import UncachableValueError
from live_cache.ledger.clocks import MAX_RECORD_BYTES, ROWS_SLOT, TABLE_SLOT

__all__ = ["NOTE_MANY", "Pending", "Ticks"]

_NOTE_EVERYTHING: Final = "a statement that may write any table"
_ROWS: Final = frozenset((ROWS_SLOT,))
_TABLE: Final = frozenset((TABLE_SLOT,))
NOTE_MANY: Final = f"more than {MAX_ROWS} rows"


@dataclass(frozen=True, slots=True)
class Ticks:
    """What Ledger.declare() and tick() take."""

    slots: dict[str, frozenset[int]] = field(default_factory=dict)
    records: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of_tables(cls, clocks: Iterable[str], note: str = "") -> Ticks:
        """Return ticks of whole tables."""
        slots = dict.fromkeys(clocks, frozenset((TABLE_SLOT,)))
        return cls(slots, dict.fromkeys(slots, encode_record(None, note=note)) if note else {})

    def __bool__(self) -> bool:
        return bool(self.slots)

    def __or__(self, other: Ticks) -> Ticks:
        """Return one tick per clock for both. A record holds the rows of one commit: two of them are the table."""
        merged = Ticks({**self.slots, **other.slots}, {**self.records, **other.records})
        for clock in self.slots.keys() & other.slots.keys():
            if self.slots[clock] != other.slots[clock] or self.records.get(clock) != other.records.get(clock):
                merged.slots[clock] = frozenset((TABLE_SLOT,))
                merged.records.pop(clock, None)
        return merged

    def rows_only(self) -> dict[str, bytes]:
        """Return the records that tell rows: all that an intent needs."""
        if not self.records:
            return self.records
        return {clock: record for clock, record in self.records.items() if TABLE_SLOT not in self.slots[clock]}


class Pending:
    """
    The writes since the last COMMIT or ROLLBACK: by row where the rows are known, else by table.

    A table that was once written as a whole stays so. What a savepoint takes back stays too: it does no harm.
    """

    __slots__ = ("_notes", "_rows", "is_everything")

    def __init__(self) -> None:
        self._notes: dict[str, str] = {}
        self._rows: dict[str, list[RowChange | RowCells]] = {}
        self.is_everything = False
        """Whether a statement was not understood, so that any table may have been written."""

    def __bool__(self) -> bool:
        return self.is_everything or bool(self._notes) or bool(self._rows)

    @property
    def tables(self) -> set[str]:
        """Tables of which something was written, normalised."""
        return {*self._notes, *self._rows}

    def touches(self, tables: Collection[str]) -> bool:
        """Return whether what was written could be in one of *tables*."""
        return self.is_everything or any(table in self._notes or table in self._rows for table in tables)

    def is_told_by_row(self, table: str) -> bool:
        """Return whether it is of use to know which rows of *table* change."""
        return not self.is_everything and table not in self._notes

    def add_tables(self, tables: Iterable[str], *, is_everything: bool, note: str) -> None:
        """Note that any row of *tables* may have changed."""
        for table in tables:
            self._notes.setdefault(table, note)
            self._rows.pop(table, None)
        self.is_everything = self.is_everything or is_everything

    def add_rows(self, table: str, changes: Sequence[RowChange | RowCells]) -> None:
        """Note what has become of rows of *table*."""
        if not changes or table in self._notes:
            return
        rows = self._rows.setdefault(table, [])
        rows += changes
        if len(rows) > MAX_ROWS:
            self.add_tables((table,), is_everything=False, note=NOTE_MANY)

    def clear(self) -> None:
        """Forget everything."""
        self._notes.clear()
        self._rows.clear()
        self.is_everything = False

    def ticks(self, clocks: Mapping[str, Collection[str]]) -> Ticks:
        """
        Return the ticks of all that was written.

        Args:
            clocks: The clocks of each table: of `tables`, and of all that a statement may have written that may write
                any table. Of a table with more than one clock no rows are told.
        """
        slots: dict[str, frozenset[int]] = {}
        records: dict[str, bytes] = {}
        for table, named in clocks.items():
            record = b""
            if not self.is_everything and len(named) == 1 and table in self._rows:
                record = _record_of(self._rows[table])
            slot = _ROWS if record else _TABLE
            if not record and (note := _NOTE_EVERYTHING if self.is_everything else self._notes.get(table, NOTE_MANY)):
                record = encode_record(None, note=note)
            for clock in named:
                slots[clock] = slot
                if record:
                    records[clock] = record
        return Ticks(slots, records)


def _record_of(rows: Sequence[RowChange | RowCells]) -> bytes:
    """Return the record of *rows*, or nothing if a log does not take it."""
    try:
        record = encode_record(rows, limit_bytes=MAX_RECORD_BYTES)
    except UncachableValueError:
        return b""
    return record if len(record) <= MAX_RECORD_BYTES else b""
