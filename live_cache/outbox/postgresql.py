"""
The outbox on PostgreSQL: triggers per statement, which see all rows of it in transition tables.

Each table has one function, in PL/pgSQL, that names its columns. A trigger must never break the statement of a writer,
so whatever the function does not expect (a column that was added, dropped, renamed, or has another type by now) makes
it tell the table. It runs with the rights of whoever has installed it: writers need none for the outbox.
"""

from __future__ import annotations

import hashlib
import select
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

from live_cache.changes import MAX_ROWS
from live_cache.outbox.dialect import (
    EVENTS,
    MAX_TEXT,
    OUTBOX,
    Column,
    Dialect,
    Line,
    Table,
    Waiting,
    missing_table,
    rows_of,
)

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["PostgresqlDialect"]

_LOCK: Final = 1_279_476_559
"""First half of the key of the advisory lock; the second is the outbox."""
_MAX_CHANGES: Final = 512 * 1024
"""Bytes of JSON above which a statement is told as a change of the table: no record could hold it."""
_NAMES_PER_OBJECT: Final = 40
"""json_build_object() takes 100 arguments at most."""
_LOOK_AT_ALL_S: Final = 60.0
"""Seconds between two looks at the whole outbox. Lines that were restored from a backup have old transactions."""
_KINDS: Final = {
    **dict.fromkeys(("int2", "int4", "int8"), "i"),
    **dict.fromkeys(("text", "varchar"), "s"),
    "bool": "b",
    "uuid": "u",
    "date": "d",
    "timestamptz": "t",
    "numeric": "n",
}

_RELATION: Final = """
    SELECT c.oid::bigint, n.nspname, c.relname, c.relkind::text, c.relispartition
        OR EXISTS (SELECT 1 FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid OR i.inhparent = c.oid)
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.oid = {}
"""
# The table, the partitions and children below it, and all above any of these.
_FAMILY: Final = """
    WITH RECURSIVE below AS (
        SELECT %s::oid AS oid UNION SELECT i.inhrelid FROM pg_catalog.pg_inherits i JOIN below b ON i.inhparent = b.oid
    ), above AS (
        SELECT oid FROM below UNION SELECT i.inhparent FROM pg_catalog.pg_inherits i JOIN above a ON i.inhrelid = a.oid
    )
    SELECT a.oid::bigint, c.relname, a.oid IN (SELECT oid FROM below)
    FROM above a JOIN pg_catalog.pg_class c ON c.oid = a.oid ORDER BY a.oid
"""
_COLUMNS: Final = """
    SELECT a.attname, CASE WHEN n.nspname = 'pg_catalog' THEN t.typname ELSE '' END,
        pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname), a.attgenerated = 'v',
        pg_catalog.array_position(k.indkey::int2[], a.attnum)
    FROM pg_catalog.pg_attribute a
    JOIN pg_catalog.pg_type t ON t.oid = a.atttypid JOIN pg_catalog.pg_namespace n ON n.oid = t.typnamespace
    LEFT JOIN pg_catalog.pg_index k ON k.indrelid = a.attrelid AND k.indisprimary
    WHERE a.attrelid = %s AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum
"""


class PostgresqlDialect(Dialect):
    """See Dialect."""

    vendor = "postgresql"
    rebuilds_tables = False

    def exists(self, connection: BaseDatabaseWrapper) -> bool:
        return bool(rows_of(connection, f"SELECT pg_catalog.to_regclass('{OUTBOX}') IS NOT NULL")[0][0])

    def describe(self, connection: BaseDatabaseWrapper, table: str) -> list[Table]:
        quoted = connection.ops.quote_name(table)
        found = rows_of(connection, _RELATION.format("pg_catalog.to_regclass(%s)"), (quoted,))
        if not found or found[0][3] not in "rp":
            raise missing_table(connection, table)
        oid, _, name, _, is_in_family = found[0]
        if not is_in_family:
            return [_describe(connection, oid, ())]
        family = rows_of(connection, _FAMILY, (oid,))
        also = tuple(sorted({str(member[1]) for member in family} - {name}))
        return [_describe(connection, member, (name, *also)) for member, _, is_below in family if is_below]

    def outbox_statements(self) -> list[str]:
        # Lines live for a moment: without vacuum each look at the table would pass by all the dead ones.
        return [
            f"CREATE TABLE IF NOT EXISTS {OUTBOX} (id bigint GENERATED ALWAYS AS IDENTITY,"
            " txid xid8 NOT NULL DEFAULT pg_catalog.pg_current_xact_id(), table_name text NOT NULL,"
            " kind text NOT NULL, changes text, at timestamptz NOT NULL DEFAULT pg_catalog.clock_timestamp(),"
            " PRIMARY KEY (txid, id))"
            " WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)"
        ]

    def install_statements(self, connection: BaseDatabaseWrapper, table: Table, *, notifies: bool) -> list[str]:
        (schema,) = rows_of(connection, "SELECT pg_catalog.quote_ident(pg_catalog.current_schema())")[0]
        digest = hashlib.blake2b(table.quoted.encode(), digest_size=6).hexdigest()
        function = f"{schema}.{OUTBOX}_{digest}"
        notify = f"    PERFORM pg_catalog.pg_notify('{OUTBOX}', '');\n" if notifies else ""
        body = _body(table, f"{schema}.{OUTBOX}", notify)
        tag = "$live_cache$"
        while tag in body:  # a column may be called so
            tag = f"{tag[:-1]}_$"
        statements = [
            *self.drop_statements(connection, table),
            f"CREATE OR REPLACE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER"
            f" SET search_path = pg_catalog, pg_temp AS {tag}\n{body}{tag}",
        ]
        if table.untold:
            triggers = {"any": "INSERT OR UPDATE OR DELETE OR TRUNCATE"}
        else:
            triggers = {event: event.upper() for event in (*EVENTS, "truncate")}
        for event, clause in triggers.items():
            referencing = "" if event in ("any", "truncate") else f" REFERENCING{_TRANSITIONS[event]}"
            statements += [
                f"CREATE TRIGGER {OUTBOX}_{event} AFTER {clause} ON {table.quoted}{referencing}"
                f" FOR EACH STATEMENT EXECUTE FUNCTION {function}()",
                # Also for sessions whose session_replication_role is replica.
                f"ALTER TABLE {table.quoted} ENABLE ALWAYS TRIGGER {OUTBOX}_{event}",
            ]
        return statements

    def drop_statements(self, connection: BaseDatabaseWrapper, table: Table) -> list[str]:
        found = rows_of(
            connection,
            "SELECT t.tgname, t.tgfoid::pg_catalog.regproc::text, EXISTS (SELECT 1 FROM pg_catalog.pg_trigger o"
            " WHERE o.tgfoid = t.tgfoid AND o.tgrelid <> t.tgrelid)"
            " FROM pg_catalog.pg_trigger t WHERE t.tgrelid = pg_catalog.to_regclass(%s)"
            f" AND {_is_ours('t.tgname')} ORDER BY t.tgname",
            (table.quoted,),
        )
        functions = sorted({function for _, function, is_shared in found if not is_shared})
        return [
            *(f"DROP TRIGGER IF EXISTS {name} ON {table.quoted}" for name, _, _ in found),
            *(f"DROP FUNCTION IF EXISTS {function}()" for function in functions),
        ]

    def drop_outbox_statements(self, connection: BaseDatabaseWrapper) -> list[str]:
        # Of tables that were dropped with their triggers.
        left = rows_of(
            connection,
            "SELECT p.oid::pg_catalog.regproc::text FROM pg_catalog.pg_proc p"
            " WHERE p.pronamespace = pg_catalog.current_schema()::pg_catalog.regnamespace"
            f" AND {_is_ours('p.proname')} AND NOT EXISTS"
            " (SELECT 1 FROM pg_catalog.pg_trigger t WHERE t.tgfoid = p.oid) ORDER BY 1",
        )
        return [*(f"DROP FUNCTION IF EXISTS {name}()" for (name,) in left), f"DROP TABLE IF EXISTS {OUTBOX}"]

    def tables_with_triggers(self, connection: BaseDatabaseWrapper) -> list[str]:
        found = rows_of(
            connection,
            "SELECT DISTINCT c.relname FROM pg_catalog.pg_trigger t"
            " JOIN pg_catalog.pg_proc p ON p.oid = t.tgfoid JOIN pg_catalog.pg_class c ON c.oid = t.tgrelid"
            " WHERE p.pronamespace = pg_catalog.current_schema()::pg_catalog.regnamespace"
            f" AND {_is_ours('t.tgname')} ORDER BY 1",
        )
        return [str(name) for (name,) in found]

    def notifies(self, connection: BaseDatabaseWrapper) -> bool:
        query = (
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_proc p"
            " WHERE p.pronamespace = pg_catalog.current_schema()::pg_catalog.regnamespace"
            f" AND {_is_ours('p.proname')} AND pg_catalog.strpos(p.prosrc, 'pg_catalog.pg_notify(') > 0)"
        )
        return bool(rows_of(connection, query)[0][0])

    def prepare(self, connection: BaseDatabaseWrapper) -> None:
        rows_of(connection, f"LISTEN {OUTBOX}")
        driver: Any = connection.connection
        if hasattr(driver, "add_notify_handler"):  # psycopg 3; psycopg2 has a list
            notified: list[Any] = []
            connection.__dict__[_NOTIFIED] = notified
            driver.add_notify_handler(notified.append)

    def read(self, connection: BaseDatabaseWrapper, limit: int) -> list[Line]:
        _notifications(connection).clear()  # first: one that comes with the answer may be of lines that it lacks
        now_s = time.monotonic()
        if now_s >= connection.__dict__.get(_LOOK_AT_ALL_AT_S, 0.0):
            connection.__dict__[_LOOK_AT_ALL_AT_S] = now_s + _LOOK_AT_ALL_S
            connection.__dict__.pop(_SEEN, None)
        found = rows_of(connection, _READ, {"seen": connection.__dict__.get(_SEEN), "limit": limit})
        lines = [Line(*row[1:]) for row in found if row[1] is not None]
        # What this snapshot shows is known when the lines are gone; where there may be more of them, it is not.
        connection.__dict__[_READ_NOW] = found[0][0] if len(lines) < limit else None
        if not lines:
            self._note_seen(connection)
        return lines

    def delete(self, connection: BaseDatabaseWrapper, lines: Collection[Line]) -> None:
        rows_of(
            connection,
            f"DELETE FROM {OUTBOX} o USING unnest(%s::text[], %s::bigint[]) AS gone (txid, id)"
            " WHERE o.txid = gone.txid::xid8 AND o.id = gone.id",
            ([line.transaction for line in lines], [line.id for line in lines]),
        )
        self._note_seen(connection)

    def _note_seen(self, connection: BaseDatabaseWrapper) -> None:
        seen = connection.__dict__.get(_READ_NOW)
        if seen is not None:
            connection.__dict__[_SEEN] = seen

    def waiting(self, connection: BaseDatabaseWrapper) -> Waiting:
        found = rows_of(
            connection,
            "SELECT pg_catalog.count(*), pg_catalog.date_part('epoch', pg_catalog.clock_timestamp()"
            f" - pg_catalog.min(at)) FROM {OUTBOX}",
        )
        return Waiting(*found[0])

    def take_turn(self, connection: BaseDatabaseWrapper) -> bool:
        query = f"SELECT pg_catalog.pg_try_advisory_lock({_LOCK}, '{OUTBOX}'::pg_catalog.regclass::oid::bigint::int)"
        return bool(rows_of(connection, query)[0][0])

    def has_listener(self, connection: BaseDatabaseWrapper) -> bool:
        query = (
            "SELECT EXISTS (SELECT 1 FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_database d ON d.oid = l.database"
            f" WHERE l.locktype = 'advisory' AND l.granted AND l.classid = {_LOCK} AND l.objsubid = 2"
            f" AND l.objid = '{OUTBOX}'::pg_catalog.regclass AND d.datname = pg_catalog.current_database())"
        )
        return bool(rows_of(connection, query)[0][0])

    def wait(self, connection: BaseDatabaseWrapper, timeout_s: float) -> None:
        driver: Any = connection.connection
        # One that comes from now on makes the socket readable; the next query takes it from there.
        if not _notifications(connection):
            select.select([driver.fileno()], [], [], timeout_s)


_NOTIFIED: Final = "_live_cache_outbox_notified"
_SEEN: Final = "_live_cache_outbox_seen"
_READ_NOW: Final = "_live_cache_outbox_read_now"
_LOOK_AT_ALL_AT_S: Final = "_live_cache_outbox_look_at_all_at_s"
"""
Attributes of the listener's connection: notifications that came; a snapshot all of whose lines are deleted; the one of
the last look; and when to look at everything again.
"""
# Of what the snapshot showed nothing is left, so only the rest has to be looked for: transactions that began after it,
# and those that were running. Else each look would pass by all the lines that were deleted since vacuum was last able
# to remove some, and while somebody reads for an hour that is never.
_READ: Final = f"""
    WITH seen AS MATERIALIZED (
        SELECT pg_catalog.pg_current_snapshot()::text AS now, COALESCE(%(seen)s, '1:1:')::pg_snapshot AS before
    ), line AS MATERIALIZED (
        SELECT o.* FROM {OUTBOX} o WHERE o.txid >= (SELECT pg_catalog.pg_snapshot_xmax(before) FROM seen)
        UNION ALL
        SELECT o.* FROM {OUTBOX} o WHERE o.txid = ANY (ARRAY(
            SELECT running FROM seen, pg_catalog.pg_snapshot_xip(before) running
        ))
    )
    SELECT seen.now, line.id, line.txid::text, line.table_name, line.kind, line.changes,
        pg_catalog.date_part('epoch', pg_catalog.clock_timestamp() - line.at)
    FROM seen LEFT JOIN (SELECT * FROM line ORDER BY id LIMIT %(limit)s) line ON true ORDER BY line.id
"""
_TRANSITIONS: Final = {
    "insert": " NEW TABLE AS live_cache_new",
    "update": " OLD TABLE AS live_cache_old NEW TABLE AS live_cache_new",
    "delete": " OLD TABLE AS live_cache_old",
}


def _describe(connection: BaseDatabaseWrapper, oid: int, family: tuple[str, ...]) -> Table:
    """
    Return one table.

    Args:
        family: Its partitions, children and parents by name, and its own name, if it has any.
    """
    ((_, schema, name, _, _),) = rows_of(connection, _RELATION.format("%s"), (oid,))
    columns, key = [], []
    for column, type_name, full_type, is_virtual, position in rows_of(connection, _COLUMNS, (oid,)):
        columns.append(Column(column, _KINDS.get(type_name, ""), full_type, is_virtual))
        if position is not None:
            key.append((position, column))
    untold = ""
    if family:
        untold = "partitions or inheritance"
    elif not key:
        untold = "no primary key"
    elif any(column.is_computed for column in columns):
        untold = "a virtual generated column"
    return Table(
        name,
        f"{_quote(schema)}.{_quote(name)}",
        tuple(columns),
        tuple(column for _, column in sorted(key)),
        untold,
        tuple(member for member in family if member != name),
    )


def _notifications(connection: BaseDatabaseWrapper) -> list[Any]:
    """Return the notifications that have come and are not heeded yet."""
    found = connection.__dict__.get(_NOTIFIED, getattr(connection.connection, "notifies", None))
    return found if isinstance(found, list) else []


def _is_ours(name: str) -> str:
    return f"pg_catalog.starts_with({name}::text, '{OUTBOX}_')"


def _quote(name: str) -> str:
    return '"{}"'.format(name.replace('"', '""'))


def _literal(text: str) -> str:
    # With E'' it means the same whatever standard_conforming_strings is.
    return "E'{}'".format(text.replace("\\", "\\\\").replace("'", "\\'"))


def _body(table: Table, outbox: str, notify: str) -> str:
    tell_others = ""
    if table.also:
        names = ", ".join(map(_literal, table.also))
        tell_others = (
            f"    INSERT INTO {outbox} (table_name, kind)"
            f" SELECT name, pg_catalog.lower(TG_OP) FROM pg_catalog.unnest(ARRAY[{names}]) name;\n"
        )
    if table.untold:
        return (
            "BEGIN\n"
            f"    INSERT INTO {outbox} (table_name, kind) VALUES (TG_TABLE_NAME, pg_catalog.lower(TG_OP));\n"
            f"{tell_others}{notify}    RETURN NULL;\nEND\n"
        )
    branches = "".join(_branch(table, event) for event in EVENTS)
    return f"""DECLARE
    told text;
    n bigint;
    is_known boolean := false;
BEGIN
{branches}    IF is_known AND told IS NULL THEN
        RETURN NULL;
    END IF;
    -- As a replica it does not enforce foreign keys, which readers rely on when they judge rows.
    IF is_known IS NOT TRUE OR pg_catalog.octet_length(told) > {_MAX_CHANGES}
        OR pg_catalog.current_setting('session_replication_role') = 'replica' THEN
        told := NULL;
    END IF;
    INSERT INTO {outbox} (table_name, kind, changes) VALUES (TG_TABLE_NAME, pg_catalog.lower(TG_OP), told);
{tell_others}{notify}    RETURN NULL;
END
"""


def _branch(table: Table, event: str) -> str:
    """Return the part of the function that gathers the rows of one kind of statement."""
    source = "live_cache_old" if event == "delete" else "live_cache_new"
    # Equal, with these very types and no other columns: else it raises, or is false.
    same = ", ".join(f"r.{_quote(column.name)}::{column.type_name}" for column in table.columns)
    if event == "update":
        key = " AND ".join(f"o.{_quote(name)} = w.{_quote(name)}" for name in table.key)
        first = _quote(table.key[0])
        # A full join never compares each row with each. A row that finds no partner had its key changed.
        gather = (
            "SELECT pg_catalog.json_agg(pg_catalog.json_build_array("
            f"{_image(table, 'o')}, {_image(table, 'w')}, {_changed(table)}))::text,"
            f" COALESCE(pg_catalog.bool_and(o.{first} IS NOT NULL AND w.{first} IS NOT NULL), true) AND is_known"
            " INTO told, is_known"
            f" FROM live_cache_old o FULL JOIN live_cache_new w ON {key}"
            f" WHERE o.{first} IS NULL OR w.{first} IS NULL OR o *<> w"
        )
    else:
        image = _image(table, "r")
        images = f"NULL, {image}" if event == "insert" else f"{image}, NULL"
        gather = (
            f"SELECT pg_catalog.json_agg(pg_catalog.json_build_array({images}, NULL))::text INTO told FROM {source} r"
        )
    return f"""    IF TG_OP = '{event.upper()}' THEN
        SELECT pg_catalog.count(*) INTO n FROM (SELECT FROM {source} LIMIT {MAX_ROWS + 1}) few;
        IF n = 0 THEN
            RETURN NULL;
        END IF;
        IF n <= {MAX_ROWS} THEN
            BEGIN
                SELECT ROW({same}) *= r INTO is_known FROM {source} r LIMIT 1;
                {gather};
            EXCEPTION WHEN OTHERS THEN
                is_known := false;
            END;
        END IF;
    END IF;
"""


def _image(table: Table, row: str) -> str:
    pairs = [
        f"{_literal(f'{column.kind}:{column.name}')}, {_value(column, f'{row}.{_quote(column.name)}')}"
        for column in table.columns
        if column.kind
    ]
    parts = [
        f"pg_catalog.json_build_object({', '.join(pairs[start : start + _NAMES_PER_OBJECT])})"
        for start in range(0, len(pairs), _NAMES_PER_OBJECT)
    ]
    return parts[0] if len(parts) == 1 else f"pg_catalog.json_build_array({', '.join(parts)})"


def _value(column: Column, value: str) -> str:
    if column.kind == "s":
        return f"CASE WHEN pg_catalog.length({value}) > {MAX_TEXT} THEN '' ELSE '=' || {value} END"
    return f"{value}::text" if column.kind in "nu" else value


def _changed(table: Table) -> str:
    names = [
        f"CASE WHEN pg_catalog.record_image_ne(ROW(o.{quoted}), ROW(w.{quoted})) THEN {_literal(column.name)} END"
        for column in table.columns
        for quoted in [_quote(column.name)]
    ]
    return f"ARRAY[{', '.join(names)}]"
