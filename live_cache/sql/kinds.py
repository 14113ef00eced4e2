"""What a statement can be: StatementKind, Statement, and how the findings become one."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from live_cache.sql.clauses import Clauses

__all__ = ["KNOWN_VENDORS", "Statement", "StatementKind", "commits_on_schema_change", "result", "unknown"]

KNOWN_VENDORS = frozenset({"mysql", "postgresql", "sqlite"})


class StatementKind(enum.Enum):
    """What a statement does, as far as caches are concerned."""

    READ = "read"
    WRITE = "write"
    SCHEMA = "schema"
    BEGIN = "begin"
    COMMIT = "commit"
    ROLLBACK = "rollback"
    SAVEPOINT = "savepoint"
    ROLLBACK_TO_SAVEPOINT = "rollback to savepoint"
    RELEASE_SAVEPOINT = "release savepoint"
    SESSION = "session"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Statement:
    """
    What a statement does. The flags hold for every kind; look at them before the kind.

    Attributes:
        kind: READ and SESSION change no row, except through `functions`. Of UNKNOWN nothing is known.
        written: Tables that the statement names and may change, as normalize_table() names them. Not those that change
            through a view, a trigger, a foreign key with an action, inheritance or a function. An empty set of a
            SCHEMA statement is certain: no row changes.
        read: Tables that it reads by name, at any depth. Views count as tables.
        functions: Functions that it calls by name, lower case, last part. Some are syntax, such as ``coalesce``.
        commits_implicitly: The open transaction is committed by it, whatever its kind. Of an UNKNOWN one, it may be:
            what was changed before it may be committed now or later, and what follows may be in the same transaction.
        changes_search_path: Afterwards the same names may stand for other rows: another schema, role or database, a
            setting that a row policy may look at, a temporary table that hides a table.
        changes_values: Afterwards the same query may give other values or other rows: a time zone, a collation, a mode
            of SQL, or any setting that is not known to be harmless.
        ends_with_transaction: What `changes_search_path` and `changes_values` tell is over when the transaction is.
        changes_isolation: Afterwards the isolation level of the connection, or of this transaction, is not known.
        locks_rows: A query with FOR UPDATE or the like.
        may_delete: Rows of the tables that it writes may be deleted, also by REPLACE or MERGE, so that the database may
            cascade to other tables.
        is_limited_to_session: What it changes, other connections never see, and this one only through
            `changes_search_path` and `changes_values`. False where that is not certain.
    """

    kind: StatementKind
    written: frozenset[str] = frozenset()
    read: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    commits_implicitly: bool = False
    changes_search_path: bool = False
    changes_values: bool = False
    ends_with_transaction: bool = False
    changes_isolation: bool = False
    locks_rows: bool = False
    may_delete: bool = False
    is_limited_to_session: bool = False


def commits_on_schema_change(vendor: str) -> bool:
    """Return whether DDL and the like commit the open transaction."""
    return vendor not in ("postgresql", "sqlite")


def unknown(vendor: str, *, is_switching: bool = True) -> Statement:
    """Return the Statement of which nothing is known, except that it leaves the session's settings alone if so told."""
    return Statement(
        StatementKind.UNKNOWN,
        commits_implicitly=vendor not in ("postgresql", "sqlite"),
        changes_search_path=is_switching,
        changes_values=is_switching,
        changes_isolation=is_switching,
    )


def result(
    c: Clauses,
    kind: StatementKind,
    *,
    commits: bool = False,
    switches: bool = False,
    values: bool = False,
    isolation: bool = False,
    is_local: bool = False,
    is_limited: bool = False,
) -> Statement:
    """Return the Statement of *kind* with the findings of *c*, or an UNKNOWN one if they are unclear."""
    if c.is_unclear:
        return Statement(
            StatementKind.UNKNOWN,
            commits_implicitly=commits,
            changes_search_path=c.changes_search_path,
            changes_values=c.changes_values,
            changes_isolation=c.changes_isolation,
        )
    if "pg_settings" in c.written:  # a view whose UPDATE is a SET
        switches = values = isolation = True
    return Statement(
        kind,
        written=frozenset(c.written),
        read=frozenset(c.read_tables),
        functions=frozenset(c.functions),
        commits_implicitly=commits,
        changes_search_path=switches or c.changes_search_path,
        changes_values=values or c.changes_values,
        ends_with_transaction=is_local or (c.has_local_setting and not (switches or values)),
        changes_isolation=isolation or c.changes_isolation,
        locks_rows=c.locks_rows,
        may_delete=c.may_delete,
        is_limited_to_session=is_limited,
    )
