"""The SQL of triggers that run once for each row: what SQLite and MariaDB have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection
from typing import TYPE_CHECKING, ClassVar

from live_cache.outbox.dialect import OUTBOX, Column, Dialect, Line, Table, rows_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["RowwiseDialect"]


class RowwiseDialect(Dialect):
    """A dialect whose triggers see one row, and write one line for it."""

    tells_rows_if: ClassVar[str] = ""
    """SQL that tells whether the session is one whose rows may be told. Empty: each is."""

    def exists(self, connection: BaseDatabaseWrapper) -> bool:
        return OUTBOX in self._table_names(connection, OUTBOX)

    def drop_statements(self, connection: BaseDatabaseWrapper, table: Table) -> list[str]:
        return [f"DROP TRIGGER IF EXISTS {name}" for name in sorted(self._triggers(connection, table.name))]

    def drop_outbox_statements(self, connection: BaseDatabaseWrapper) -> list[str]:
        return [f"DROP TABLE IF EXISTS {OUTBOX}"]

    def delete(self, connection: BaseDatabaseWrapper, lines: Collection[Line]) -> None:
        rows_of(connection, f"DELETE FROM {OUTBOX} WHERE id IN ({', '.join(str(line.id) for line in lines)})")

    @abstractmethod
    def _table_names(self, connection: BaseDatabaseWrapper, name: str) -> list[str]:
        """Return the names of tables that are *name*, but for what the database takes for the same."""

    @abstractmethod
    def _triggers(self, connection: BaseDatabaseWrapper, table: str) -> list[str]:
        """Return the names of our triggers of *table*."""

    @abstractmethod
    def quote(self, name: str) -> str:
        """Return *name* quoted."""

    @abstractmethod
    def literal(self, text: str) -> str:
        """Return *text* as a string of SQL."""

    @abstractmethod
    def value(self, column: Column, value: str) -> str:
        """Return SQL that gives *value*, of a column with a kind, as JSON may hold it."""

    @abstractmethod
    def is_same(self, old: str, new: str) -> str:
        """Return SQL that tells whether two values are the same, however the column compares."""

    @abstractmethod
    def changes(self, before: str, after: str, columns: str) -> str:
        """Return SQL that gives the JSON of one row; each argument is SQL too."""

    def image(self, table: Table, row: str) -> str:
        """Return SQL that gives the image of *row*, NEW or OLD."""
        pairs = [
            f"{self.literal(f'{column.kind}:{column.name}')}, {self.value(column, f'{row}.{self.quote(column.name)}')}"
            for column in table.columns
            if column.kind and not column.is_computed
        ]
        return f"JSON_OBJECT({', '.join(pairs)})"

    def is_unchanged(self, table: Table) -> str:
        """Return SQL that tells whether an UPDATE has left the row as it was."""
        parts = [self._is_column_same(column) for column in table.columns]
        return " AND ".join(parts)

    def tell(self, table: Table, event: str) -> list[str]:
        """Return the statements that a trigger runs for one row."""
        also = [self._line(name, event, "NULL") for name in table.also if event != "insert"]
        if table.untold:
            return [self._line(table.name, event, "NULL"), *also]
        if event == "insert":
            changes = self.changes("NULL", self.image(table, "NEW"), "NULL")
        elif event == "delete":
            changes = self.changes(self.image(table, "OLD"), "NULL", "NULL")
        else:
            names = [
                f"CASE WHEN {self._is_column_same(column)} THEN NULL ELSE {self.literal(column.name)} END"
                for column in table.columns
            ]
            told = self.changes(self.image(table, "OLD"), self.image(table, "NEW"), f"JSON_ARRAY({', '.join(names)})")
            is_key_same = " AND ".join(
                self.is_same(f"OLD.{self.quote(name)}", f"NEW.{self.quote(name)}") for name in table.key
            )
            changes = f"CASE WHEN {is_key_same} THEN {told} END"
        if self.tells_rows_if:
            changes = f"CASE WHEN {self.tells_rows_if} THEN {changes} END"
        return [self._line(table.name, event, changes), *also]

    def _is_column_same(self, column: Column) -> str:
        if column.is_computed:
            return "0"
        return self.is_same(f"OLD.{self.quote(column.name)}", f"NEW.{self.quote(column.name)}")

    def _line(self, table: str, kind: str, changes: str) -> str:
        return f"INSERT INTO {OUTBOX} (table_name, kind, changes) VALUES ({self.literal(table)}, '{kind}', {changes})"

    def tables_with_triggers(self, connection: BaseDatabaseWrapper) -> list[str]:
        return sorted(set(self._tables_of_triggers(connection).values()))

    @abstractmethod
    def _tables_of_triggers(self, connection: BaseDatabaseWrapper) -> dict[str, str]:
        """Return the table of each of our triggers, by its name."""
