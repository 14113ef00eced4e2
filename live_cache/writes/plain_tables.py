"""
Which tables change only by what a statement says: no triggers, no rules, no other table's rows in between.

The catalog of the database tells. Each process asks once per table, again after ten seconds, and after a change of the
schema that it has sent itself. Triggers of the outbox do not count: they write to no other table.
"""

from __future__ import annotations

import time
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["ASK_AGAIN_S", "forget_plain_tables", "is_plain"]

ASK_AGAIN_S: Final = 10.0
"""How long a trigger that somebody else has made may go unnoticed."""

_answers: dict[tuple[str, object, str], tuple[float, bool]] = {}


def is_plain(connection: BaseDatabaseWrapper, table: str) -> bool:
    """
    Return whether rows of *table* are changed by no more than the statements that name it, and may be read and locked.

    Call it on an open connection. On SQLite it begins to read, so the write lock must be held.

    Args:
        table: The name as it stands in the statement, with its quotes.

    Raises:
        Exception: Whatever the driver raises.
    """
    # Not names.shared_database_name(), which takes longer than the look-up and tells no more within one process.
    key = connection.alias, connection.settings_dict["NAME"], table
    now_s = time.monotonic()
    known = _answers.get(key)
    if known is not None and now_s - known[0] < ASK_AGAIN_S:
        return known[1]
    ask = _QUESTIONS.get(connection.vendor)
    answer = ask is not None and ask(connection, table)
    _answers[key] = now_s, answer
    return answer


def forget_plain_tables() -> None:
    """Ask again: the schema may have been changed."""
    _answers.clear()


def _rows(connection: BaseDatabaseWrapper, query: str, *parameters: str) -> list[tuple[Any, ...]]:
    driver: Any = connection.connection
    # By the driver's cursor, so that nobody who watches Django's takes this for a query of the user.
    with closing(driver.cursor()) as cursor:
        cursor.execute(query, parameters)
        return list(cursor.fetchall())


# A foreign key with an action changes rows of the table that it is in. Where that leads back to the table that is
# written, its statement changes more rows than it names. Rows that others refer to may not be hidden from the reader
# by a policy either, and both reading and locking them must be allowed.
_POSTGRESQL: Final = """
    SELECT c.relkind = 'r' AND NOT c.relispartition AND NOT c.relrowsecurity
        AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_rewrite w WHERE w.ev_class = c.oid)
        AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgrelid = c.oid AND NOT t.tgisinternal
                        AND NOT pg_catalog.starts_with(t.tgname::text, 'live_cache_outbox_'))
        AND NOT EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid OR i.inhparent = c.oid)
        AND pg_catalog.has_table_privilege(c.oid, 'SELECT') AND pg_catalog.has_table_privilege(c.oid, 'UPDATE')
        AND c.oid NOT IN (
            WITH RECURSIVE action AS (
                SELECT conrelid, confrelid FROM pg_catalog.pg_constraint
                WHERE contype = 'f' AND (confdeltype NOT IN ('a', 'r') OR confupdtype NOT IN ('a', 'r'))
            ), reached AS (
                SELECT conrelid FROM action WHERE confrelid = c.oid
                UNION SELECT a.conrelid FROM action a JOIN reached r ON a.confrelid = r.conrelid
            ) SELECT conrelid FROM reached
        )
    FROM pg_catalog.pg_class c WHERE c.oid = pg_catalog.to_regclass(%s)
"""


def _ask_postgresql(connection: BaseDatabaseWrapper, table: str) -> bool:
    rows = _rows(connection, _POSTGRESQL, table)
    return bool(rows and rows[0][0])


# Columns that SELECT * does not show would change unseen. Foreign keys are asked for one step: all those of a schema
# make the server open every table of it.
_MYSQL: Final = """
    SELECT t.table_type = 'BASE TABLE' AND t.engine = 'InnoDB'
        AND NOT EXISTS (SELECT 1 FROM information_schema.triggers g
                        WHERE g.event_object_schema = DATABASE() AND g.event_object_table = %s
                        AND LEFT(g.trigger_name, 18) <> 'live_cache_outbox_')
        AND NOT EXISTS (SELECT 1 FROM information_schema.columns c
                        WHERE c.table_schema = DATABASE() AND c.table_name = %s AND c.extra LIKE '%%INVISIBLE%%')
        AND NOT EXISTS (SELECT 1 FROM information_schema.referential_constraints r
                        WHERE r.constraint_schema = DATABASE() AND r.table_name = %s
                        AND r.referenced_table_name = r.table_name
                        AND (r.delete_rule NOT IN ('RESTRICT', 'NO ACTION')
                             OR r.update_rule NOT IN ('RESTRICT', 'NO ACTION')))
    FROM information_schema.tables t WHERE t.table_schema = DATABASE() AND t.table_name = %s
"""


def _ask_mysql(connection: BaseDatabaseWrapper, table: str) -> bool:
    name = table.strip("`").replace("``", "`")
    rows = _rows(connection, _MYSQL, name, name, name, name)
    return len(rows) == 1 and bool(rows[0][0])


def _ask_sqlite(connection: BaseDatabaseWrapper, table: str) -> bool:
    quote = table[0]
    name = (table[1:-1].replace(quote * 2, quote) if quote in '"`' else table).lower()
    found = _rows(
        connection,
        "SELECT type, sql FROM sqlite_master WHERE lower(tbl_name) = ? AND type <> 'index'"
        " AND NOT (type = 'trigger' AND substr(name, 1, 18) = 'live_cache_outbox_')"
        " UNION ALL SELECT type, sql FROM sqlite_temp_master WHERE lower(tbl_name) = ?",
        name,
        name,
    )
    if [kind for kind, _ in found] != ["table"]:
        return False
    text = found[0][1].lower()
    # ON CONFLICT REPLACE in the definition lets any statement delete other rows.
    if "virtual" in text.split("(", 1)[0] or "conflict" in text:
        return False
    actions: dict[str, set[str]] = {}
    for child, parent in _rows(
        connection,
        'SELECT lower(m.name), lower(f."table") FROM sqlite_master m, pragma_foreign_key_list(m.name) f'
        " WHERE m.type = 'table' AND (f.on_delete NOT IN ('NO ACTION', 'RESTRICT')"
        " OR f.on_update NOT IN ('NO ACTION', 'RESTRICT'))",
    ):
        actions.setdefault(parent, set()).add(child)
    reached: set[str] = set()
    to_visit = [name]
    while to_visit:
        children = actions.get(to_visit.pop(), set()) - reached
        reached |= children
        to_visit += children
    return name not in reached


_QUESTIONS: Final = {"postgresql": _ask_postgresql, "mysql": _ask_mysql, "sqlite": _ask_sqlite}
