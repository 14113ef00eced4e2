"""A live stream that a test pushes events into."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from django.db import connections, models

from live_cache.changes import RowChange, encode_record
from live_cache.events.ledger import LedgerLiveStream
from live_cache.ledger.clocks import MAX_RECORD_BYTES, ROWS_SLOT, TABLE_SLOT
from live_cache.ledger.process import ProcessLedger
from live_cache.names import clock_of, database_name
from live_cache.sql import normalize_table

__all__ = ["ManualLiveStream"]


class ManualLiveStream(LedgerLiveStream):
    """
    A live stream of its own, whose events are those that are pushed: for tests of whoever consumes events.

    It behaves as those of caches do: order, positions, gaps, and a log of bounded length. Only tables that somebody has
    subscribed to have a log.
    """

    def __init__(self) -> None:
        self._own = ProcessLedger(lease_s=10)
        super().__init__(self._own)

    def push(
        self,
        table: type[models.Model] | str,
        *,
        inserted: Iterable[Any] = (),
        updated: Iterable[Any] | Mapping[Any, Iterable[str]] = (),
        deleted: Iterable[Any] = (),
        using: str = "default",
    ) -> None:
        """
        Tell of one commit. Without rows it is one that may have changed any row of *table*.

        Args:
            table: A model (the table of its own, not those of its parents), or the name of a table.
            inserted: Primary keys; a tuple for a composite one.
            updated: Primary keys, or a mapping from them to the columns that have changed; else any column has.
            deleted: Primary keys.

        Raises:
            ValueError: The rows are more than a ledger tells at once.
        """
        columns = updated if isinstance(updated, Mapping) else {}
        rows = [
            *(RowChange("insert", _key(key), None, None, None) for key in inserted),
            *(
                RowChange("update", _key(key), frozenset(columns[key]) if key in columns else None, None, None)
                for key in updated
            ),
            *(RowChange("delete", _key(key), None, None, None) for key in deleted),
        ]
        record = encode_record(rows or None)
        if len(record) > MAX_RECORD_BYTES:
            raise ValueError(f"{len(rows)} rows are more than one record holds. Push them in several calls.")
        clock = _clock(table, using)
        self._own.tick({clock: {ROWS_SLOT if rows else TABLE_SLOT}}, records={clock: record})

    def lose(self, table: type[models.Model] | str, *, using: str = "default") -> None:
        """Lose what was told of *table*, as a ledger that was emptied does: its subscribers see a gap."""
        self._own.reset([_clock(table, using)])


def _key(key: Any) -> tuple[Any, ...]:
    return key if isinstance(key, tuple) else (key,)


def _clock(table: type[models.Model] | str, using: str) -> str:
    name = table if isinstance(table, str) else table._meta.db_table
    return clock_of(database_name(connections[using]), normalize_table(name))
