"""
The outbox on SQLite: triggers per row.

What REPLACE deletes, in INSERT, UPDATE or the definition of a table, runs no trigger, so the table is told before a row
is written that meets another one. Values are of any type there: only texts and whole numbers are told.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from live_cache.exceptions import ConfigurationError
from live_cache.outbox.dialect import (
    EVENTS,
    MAX_TEXT,
    OUTBOX,
    Column,
    Line,
    Table,
    Waiting,
    missing_table,
    trigger_name,
)
from live_cache.outbox.rowwise import RowwiseDialect

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["SqliteDialect"]

_LOOK_S: Final = 0.005
"""Pause between two looks at the number by which SQLite tells that somebody has committed; one takes 2 us."""
_CONFLICT: Final = "conflict"
_JULIAN: Final = "(julianday('now') - 2440587.5) * 86400.0"


class SqliteDialect(RowwiseDialect):
    """See Dialect."""

    vendor = "sqlite"

    def describe(self, connection: BaseDatabaseWrapper, table: str) -> list[Table]:
        ((file,),) = _rows(connection, "SELECT file FROM pragma_database_list WHERE name = 'main'")
        if not file:
            raise ConfigurationError(
                f"The database {connection.alias!r} is in the memory of this process: nobody else can write to it."
            )
        found = self._table_names(connection, table)
        if not found:
            raise missing_table(connection, table)
        (name,) = found
        columns, key = [], []
        query = "SELECT name, lower(type), pk, hidden FROM pragma_table_xinfo(?) ORDER BY cid"
        for column, declared, position, hidden in _rows(connection, query, name):
            columns.append(Column(column, _kind(declared), is_computed=hidden > 1))
            if position:
                key.append((position, column))
        keys = tuple(column for _, column in sorted(key))
        return [Table(name, self.quote(name), tuple(columns), keys, "" if keys else "no primary key")]

    def outbox_statements(self) -> list[str]:
        # AUTOINCREMENT: an id that was deleted does not come again.
        return [
            f"CREATE TABLE IF NOT EXISTS {OUTBOX} (id integer PRIMARY KEY AUTOINCREMENT, table_name text NOT NULL,"
            f" kind text NOT NULL, changes text, at real NOT NULL DEFAULT ({_JULIAN}))"
        ]

    def install_statements(self, connection: BaseDatabaseWrapper, table: Table, *, notifies: bool) -> list[str]:
        statements = self.drop_statements(connection, table)
        for event in EVENTS:
            when = f" WHEN NOT ({self.is_unchanged(table)})" if event == "update" else ""
            statements.append(
                f"CREATE TRIGGER {trigger_name(event, table.name)} AFTER {event.upper()} ON {table.quoted}"
                f" FOR EACH ROW{when} BEGIN {'; '.join(self.tell(table, event))}; END"
            )
        if not table.untold:
            conflict = self._conflict(connection, table)
            is_other = " OR ".join(f"NOT ({self._is_old_key(table, name)})" for name in table.key)
            for event, condition in (("INSERT", conflict), ("UPDATE", f"({is_other}) AND ({conflict})")):
                name = trigger_name(f"{_CONFLICT}_{event.lower()}", table.name)
                statements.append(
                    f"CREATE TRIGGER {name} BEFORE {event} ON {table.quoted} FOR EACH ROW"
                    f" WHEN EXISTS (SELECT 1 FROM {table.quoted} AS held WHERE {condition})"
                    f" BEGIN {self._line(table.name, _CONFLICT, 'NULL')}; END"
                )
        return statements

    def drop_outbox_statements(self, connection: BaseDatabaseWrapper) -> list[str]:
        with suppress(OSError):
            _lock_path(connection).unlink(missing_ok=True)
        return super().drop_outbox_statements(connection)

    def prepare(self, connection: BaseDatabaseWrapper) -> None:
        """Do nothing: a connection of SQLite is ready."""

    def read(self, connection: BaseDatabaseWrapper, limit: int) -> list[Line]:
        found = _rows(
            connection,
            # As bytes: what is no UTF-8 must not keep the rest from being read.
            f"SELECT id, '', table_name, kind, CAST(changes AS BLOB), max({_JULIAN} - at, 0.0)"
            f" FROM {OUTBOX} ORDER BY id LIMIT {int(limit)}",
        )
        return [Line(*row) for row in found]

    def waiting(self, connection: BaseDatabaseWrapper) -> Waiting:
        (row,) = _rows(connection, f"SELECT count(*), max({_JULIAN} - min(at), 0.0) FROM {OUTBOX}")
        return Waiting(*row)

    def take_turn(self, connection: BaseDatabaseWrapper) -> bool:
        if _HOLDER not in connection.__dict__:
            holder = _lock(connection)
            if holder is None:
                return False
            connection.__dict__[_HOLDER] = holder
        return True

    def has_listener(self, connection: BaseDatabaseWrapper) -> bool:
        if not _lock_path(connection).exists():
            return False
        holder = _lock(connection)
        if holder is None:
            return True
        os.close(holder)
        return False

    def wait(self, connection: BaseDatabaseWrapper, timeout_s: float) -> None:
        end = time.monotonic() + timeout_s
        seen = connection.__dict__.get(_SEEN)
        while True:
            ((version,),) = _rows(connection, "PRAGMA data_version")
            if version != seen or time.monotonic() >= end:
                connection.__dict__[_SEEN] = version
                return
            time.sleep(min(_LOOK_S, timeout_s))

    def close(self, connection: BaseDatabaseWrapper) -> None:
        holder = connection.__dict__.pop(_HOLDER, None)
        if holder is not None:
            os.close(holder)
        super().close(connection)

    def quote(self, name: str) -> str:
        return '"{}"'.format(name.replace('"', '""'))

    def literal(self, text: str) -> str:
        return "'{}'".format(text.replace("'", "''"))

    def value(self, column: Column, value: str) -> str:
        if column.kind == "s":
            is_told = f"typeof({value}) = 'text' AND length({value}) <= {MAX_TEXT}"
            return f"CASE WHEN {value} IS NOT NULL THEN CASE WHEN {is_told} THEN '=' || {value} ELSE '' END END"
        return f"CASE WHEN typeof({value}) IN ('integer', 'text', 'null') THEN {value} ELSE 0.5 END"

    def is_same(self, old: str, new: str) -> str:
        return f"(typeof({old}) = typeof({new}) AND {old} IS {new} COLLATE BINARY)"

    def changes(self, before: str, after: str, columns: str) -> str:
        return f"JSON_ARRAY(JSON_ARRAY({before}, {after}, {columns}))"

    def _is_old_key(self, table: Table, name: str) -> str:
        return f"held.{self.quote(name)} IS OLD.{self.quote(name)}"

    def _conflict(self, connection: BaseDatabaseWrapper, table: Table) -> str:
        """Return SQL that tells whether the row *held* stands in the way of NEW; too often rather than too rarely."""
        ways = [" AND ".join(f"held.{self.quote(name)} = NEW.{self.quote(name)}" for name in table.key)]
        for (index,) in _rows(connection, 'SELECT name FROM pragma_index_list(?) WHERE "unique"', table.name):
            found = _rows(connection, "SELECT name, coll FROM pragma_index_xinfo(?) WHERE key", index)
            if any(column is None for column, _ in found):
                return "1"  # an expression
            ways.append(
                " AND ".join(
                    f"held.{self.quote(column)} = NEW.{self.quote(column)} COLLATE {self.quote(collation)}"
                    for column, collation in found
                )
            )
        return " OR ".join(f"({way})" for way in ways)

    def _table_names(self, connection: BaseDatabaseWrapper, name: str) -> list[str]:
        query = "SELECT name FROM sqlite_master WHERE type = 'table' AND lower(name) = lower(?)"
        return [str(row[0]) for row in _rows(connection, query, name.strip('"').replace('""', '"'))]

    def _triggers(self, connection: BaseDatabaseWrapper, table: str) -> list[str]:
        return [name for name, its_table in self._tables_of_triggers(connection).items() if its_table == table]

    def _tables_of_triggers(self, connection: BaseDatabaseWrapper) -> dict[str, str]:
        query = f"SELECT name, tbl_name FROM sqlite_master WHERE type = 'trigger' AND substr(name, 1, ?) = '{OUTBOX}_'"
        return dict(_rows(connection, query, len(OUTBOX) + 1))


_HOLDER: Final = "_live_cache_outbox_holder"
_SEEN: Final = "_live_cache_outbox_version"
"""Attributes of the listener's connection: the file whose lock it holds, and the last version that it has seen."""


def _rows(connection: BaseDatabaseWrapper, query: str, *parameters: object) -> list[Any]:
    # Past Django's cursor class, which reads %s and not ?.
    connection.ensure_connection()
    driver: Any = connection.connection
    return list(driver.execute(query, parameters).fetchall())


def _kind(declared: str) -> str:
    """Return the kind of values of a column that was declared so, as the schema editor of Django does."""
    name = declared.partition("(")[0].strip()
    if name in ("bool", "date"):
        return name[0]
    if name == "datetime":
        return "t"
    if name.removesuffix(" unsigned") in ("integer", "bigint", "smallint"):
        return "i"
    return "s" if name in ("char", "varchar", "text") else ""


def _lock_path(connection: BaseDatabaseWrapper) -> Path:
    # NAME may be a URI, and relative. Every database that describe() lets through has a file.
    files = {name: file for _, name, file in _rows(connection, "PRAGMA database_list")}
    return Path(f"{files['main']}-{OUTBOX}-lock")


def _lock(connection: BaseDatabaseWrapper) -> int | None:
    """Return an open file whose lock is held from now on, or None if somebody else has it."""
    import fcntl

    holder = os.open(_lock_path(connection), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(holder)
        return None
    return holder
