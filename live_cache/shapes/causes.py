"""What dropped an entry, for people and counters: a small description of one write, without its values."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from live_cache.changes import Record, RowChange

__all__ = ["DroppedBy"]


@dataclass(frozen=True, slots=True)
class DroppedBy:
    """
    A write that was enough to drop an entry. Others may have come before and after it.

    For people: what decides is the ledger, not this.
    """

    reason: str
    """
    ``row``: a row that the result shows. ``bucket``: a row that fulfils the conditions of the query, before or after.
    ``table``: any change of the table counts, or nobody knows which rows were changed. ``key``: invalidate() of a key.
    ``held``: the write is being committed. ``unknown``: the ledger does not tell.
    """
    table: str = ""
    kind: str = ""
    """insert, update or delete; empty where that is not known."""
    columns: tuple[str, ...] | None = None
    """Columns that an update has changed, sorted. None: not known, or no update."""
    key: tuple[Any, ...] | None = None
    """Primary key of the row. None: not known."""
    at_ns: int | None = None
    """When it was committed, in nanoseconds since 1970, by the clock of the writer's host. None: not known."""
    note: str = ""
    """Why it is not told by row, or what is known beside."""

    @classmethod
    def of(cls, reason: str, table: str, record: Record | None, change: RowChange | None = None) -> DroppedBy:
        """Return the description of *change*, which is told by *record*. Either may be unknown."""
        if record is None:
            return cls(reason, table)
        at_ns = record.at_ns or None
        if change is None and record.rows and len(record.rows) == 1:
            change = record.rows[0]
        if change is None:
            return cls(reason, table, at_ns=at_ns, note=record.note)
        columns = None if change.columns is None else tuple(sorted(change.columns))
        return cls(reason, table, change.kind, columns, change.key, at_ns, record.note)

    @property
    def age_s(self) -> float | None:
        """Seconds since the write, by the clocks of both hosts. None: not known."""
        return None if self.at_ns is None else max(time.time_ns() - self.at_ns, 0) / 1e9

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, with age_s. What JSON does not know in a key is text."""
        age_s = self.age_s
        return {
            "reason": self.reason,
            "table": self.table,
            "kind": self.kind,
            "columns": None if self.columns is None else list(self.columns),
            "key": None if self.key is None else [value if type(value) is int else str(value) for value in self.key],
            "at_ns": self.at_ns,
            "age_s": None if age_s is None else round(age_s, 3),
            "note": self.note,
        }

    def __str__(self) -> str:
        if self.kind:
            text = f"{self.kind} of {self.table}"
            if self.key is not None:
                text += " " + ", ".join(map(str, self.key))
            if self.columns:
                text += f" ({', '.join(self.columns)})"
        elif self.reason == "key":
            text = "invalidation of a cache key"
        elif self.reason == "unknown":
            text = "not told by the ledger"
        else:
            text = f"write of {self.table}, told by table"
        if self.note:
            text += f": {self.note}"
        age_s = self.age_s
        return text if age_s is None else f"{text}, {_shown(age_s)} ago"


def _shown(age_s: float) -> str:
    for limit_s, unit_s, unit in ((120, 1, "s"), (7200, 60, "min"), (172_800, 3600, "h")):
        if age_s < limit_s:
            return f"{age_s / unit_s:.1f} {unit}" if unit == "s" else f"{age_s / unit_s:.0f} {unit}"
    return f"{age_s / 86_400:.0f} days"
