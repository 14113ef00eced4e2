"""
The outbox on MariaDB and MySQL: triggers per row.

Foreign keys change rows of other tables there without a trigger of these, so the triggers of a table tell such tables
too. TRUNCATE runs no trigger at all. A statement of many rows writes as many lines.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from live_cache.outbox.dialect import (
    EVENTS,
    MAX_TEXT,
    OUTBOX,
    Column,
    Line,
    Table,
    Waiting,
    missing_table,
    rows_of,
    trigger_name,
)
from live_cache.outbox.rowwise import RowwiseDialect

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["MysqlDialect"]

_KINDS: Final = {
    **dict.fromkeys(("tinyint", "smallint", "mediumint", "int", "bigint"), "i"),
    **dict.fromkeys(("char", "varchar", "tinytext", "text", "mediumtext", "longtext"), "s"),
    "uuid": "u",
    "date": "d",
    "datetime": "t",
    "decimal": "n",
}
_LOCK: Final = f"CONCAT('{OUTBOX}.', LEFT(SHA1(DATABASE()), 40))"
_COLUMNS: Final = """
    SELECT column_name, data_type, extra, generation_expression IS NOT NULL AND generation_expression <> ''
    FROM information_schema.columns WHERE table_schema = DATABASE() AND table_name = %s ORDER BY ordinal_position
"""
_KEY: Final = """
    SELECT column_name FROM information_schema.key_column_usage
    WHERE table_schema = DATABASE() AND table_name = %s AND constraint_name = 'PRIMARY' ORDER BY ordinal_position
"""
_ACTIONS: Final = """
    SELECT referenced_table_name, table_name FROM information_schema.referential_constraints
    WHERE constraint_schema = DATABASE()
    AND (delete_rule NOT IN ('RESTRICT', 'NO ACTION') OR update_rule NOT IN ('RESTRICT', 'NO ACTION'))
"""


class MysqlDialect(RowwiseDialect):
    """See Dialect."""

    vendor = "mysql"
    is_schema_transactional = False
    tells_rows_if = "@@foreign_key_checks"  # readers rely on them when they judge rows

    def describe(self, connection: BaseDatabaseWrapper, table: str) -> list[Table]:
        found = self._table_names(connection, table)
        if not found:
            raise missing_table(connection, table)
        (name,) = found
        columns = tuple(
            Column(column, _KINDS.get(data_type, ""), is_computed=bool(is_generated))
            for column, data_type, _, is_generated in rows_of(connection, _COLUMNS, (name,))
        )
        key = tuple(str(row[0]) for row in rows_of(connection, _KEY, (name,)))
        untold = "" if key else "no primary key"
        return [Table(name, self.quote(name), columns, key, untold, _changed_with(connection, name))]

    def outbox_statements(self) -> list[str]:
        return [
            f"CREATE TABLE IF NOT EXISTS {OUTBOX} (id bigint NOT NULL AUTO_INCREMENT PRIMARY KEY,"
            " table_name varchar(64) NOT NULL, kind varchar(16) NOT NULL, changes longtext,"
            " at timestamp(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)) ENGINE = InnoDB CHARACTER SET utf8mb4"
        ]

    def install_statements(self, connection: BaseDatabaseWrapper, table: Table, *, notifies: bool) -> list[str]:
        statements = self.drop_statements(connection, table)
        for event in EVENTS:
            told = "; ".join(self.tell(table, event))
            if event == "update":
                told = f"IF NOT ({self.is_unchanged(table)}) THEN {told}; END IF"
            name = trigger_name(event, table.name)
            statements.append(
                f"CREATE TRIGGER {name} AFTER {event.upper()} ON {table.quoted} FOR EACH ROW BEGIN {told}; END"
            )
        return statements

    def prepare(self, connection: BaseDatabaseWrapper) -> None:
        # The locks of REPEATABLE READ may keep writers waiting behind the end of the table, for the time of a DELETE. A
        # binary log of statements takes nothing less.
        binlog = dict(rows_of(connection, "SHOW VARIABLES WHERE Variable_name IN ('log_bin', 'binlog_format')"))
        if binlog.get("log_bin") != "ON" or binlog.get("binlog_format") != "STATEMENT":
            rows_of(connection, "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")

    def read(self, connection: BaseDatabaseWrapper, limit: int) -> list[Line]:
        found = rows_of(
            connection,
            "SELECT id, '', table_name, kind, changes, TIMESTAMPDIFF(MICROSECOND, at, NOW(6)) / 1e6"
            f" FROM {OUTBOX} ORDER BY id LIMIT %s",
            (limit,),
        )
        return [Line(*row) for row in found]

    def waiting(self, connection: BaseDatabaseWrapper) -> Waiting:
        query = f"SELECT COUNT(*), TIMESTAMPDIFF(MICROSECOND, MIN(at), NOW(6)) / 1e6 FROM {OUTBOX}"
        ((lines, oldest_s),) = rows_of(connection, query)
        return Waiting(lines, None if oldest_s is None else float(oldest_s))

    def take_turn(self, connection: BaseDatabaseWrapper) -> bool:
        return bool(rows_of(connection, f"SELECT GET_LOCK({_LOCK}, 0)")[0][0] == 1)

    def has_listener(self, connection: BaseDatabaseWrapper) -> bool:
        return rows_of(connection, f"SELECT IS_USED_LOCK({_LOCK})")[0][0] is not None

    def wait(self, connection: BaseDatabaseWrapper, timeout_s: float) -> None:
        time.sleep(timeout_s)

    def quote(self, name: str) -> str:
        return "`{}`".format(name.replace("`", "``"))

    def literal(self, text: str) -> str:
        return "'{}'".format(text.replace("\\", "\\\\").replace("'", "''"))

    def value(self, column: Column, value: str) -> str:
        if column.kind == "i":
            return value
        # Columns of one table may have several character sets, which JSON_OBJECT refuses to mix.
        text = f"CONVERT({value} USING utf8mb4) COLLATE utf8mb4_bin"
        return f"IF(CHAR_LENGTH({value}) > {MAX_TEXT}, '', CONCAT('=', {text}))" if column.kind == "s" else text

    def is_same(self, old: str, new: str) -> str:
        # By bytes too: texts that a collation takes for equal, and floats that are shown alike.
        return f"({old} <=> {new} AND BINARY {old} <=> BINARY {new})"

    def changes(self, before: str, after: str, columns: str) -> str:
        return f"JSON_ARRAY(JSON_ARRAY({before}, {after}, {columns}))"

    def _table_names(self, connection: BaseDatabaseWrapper, name: str) -> list[str]:
        query = (
            "SELECT table_name FROM information_schema.tables"
            " WHERE table_schema = DATABASE() AND table_name = %s AND table_type = 'BASE TABLE'"
        )
        return [str(row[0]) for row in rows_of(connection, query, (name.strip("`").replace("``", "`"),))]

    def _triggers(self, connection: BaseDatabaseWrapper, table: str) -> list[str]:
        return [name for name, its_table in self._tables_of_triggers(connection).items() if its_table == table]

    def _tables_of_triggers(self, connection: BaseDatabaseWrapper) -> dict[str, str]:
        query = (
            "SELECT trigger_name, event_object_table FROM information_schema.triggers"
            f" WHERE trigger_schema = DATABASE() AND LEFT(trigger_name, {len(OUTBOX) + 1}) = '{OUTBOX}_'"
        )
        return dict(rows_of(connection, query))


def _changed_with(connection: BaseDatabaseWrapper, table: str) -> tuple[str, ...]:
    """Return the tables whose rows foreign keys change when rows of *table* are deleted, or their keys changed."""
    actions: dict[str, set[str]] = {}
    for parent, child in rows_of(connection, _ACTIONS):
        actions.setdefault(parent, set()).add(child)
    reached: set[str] = set()
    to_visit = [table]
    while to_visit:
        children = actions.get(to_visit.pop(), set()) - reached
        reached |= children
        to_visit += children
    return tuple(sorted(reached))
