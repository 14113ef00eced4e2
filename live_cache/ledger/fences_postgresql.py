"""
Fences of PostgreSQL: every transaction that has written holds the lock of its own transaction id until it is over.

pg_locks shows these locks to every role. A lock goes after the transaction has left the list of running ones, so a
snapshot taken later sees its commit; pg_xact_status() of some versions answers earlier than that. A snapshot's xmin and
xmax are no proof: a running transaction with the highest id so far is at or above xmax, like those that do not exist
yet. On a standby the locks of the primary are missing, so it is never asked.
"""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["XID", "is_over", "session_token", "token_of", "writer_token", "writers_in_progress"]

NONE_ASSIGNED = "pg:none"
XID: Final = "pg_catalog.pg_current_xact_id_if_assigned()::text"
"""The id of the running transaction, in SQL: the same from its first write to its end."""

_WRITERS: Final = """
SELECT pg_catalog.pg_is_in_recovery(), ARRAY(
    SELECT CASE l.locktype WHEN 'relation' THEN l.virtualtransaction ELSE l.transactionid::text END
    FROM pg_catalog.pg_locks l
    WHERE (l.locktype = 'transactionid' AND l.mode = 'ExclusiveLock' AND l.granted)
       OR (l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'
           AND l.database = (SELECT d.oid FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database())
           AND EXISTS (SELECT 1 FROM pg_catalog.pg_class c WHERE c.oid = l.relation AND c.relkind IN ('r', 'p', 'f')))
)
"""


def writer_token(connection: BaseDatabaseWrapper) -> str:
    """Return ``pg:<xid8>``, or ``pg:none`` for a transaction that has written nothing."""
    return token_of(_row(connection, f"SELECT {XID}")[0])


def token_of(xid: str | bytes | None) -> str:
    """Return the fence of the transaction that has answered *xid* to XID; bytes are what the server has sent."""
    if xid is None:
        return NONE_ASSIGNED
    return f"pg:{xid.decode() if isinstance(xid, bytes) else xid}"


def session_token(connection: BaseDatabaseWrapper) -> str:
    """
    Return ``pg-session:<pid>``. Used again for a later session, a pid only looks alive for longer.

    Empty behind a pooler (PgBouncer): it tells the driver a pid of its own, and the next statement may run in
    another session.
    """
    pid = _row(connection, "SELECT pg_catalog.pg_backend_pid()")[0]
    info: Any = connection.connection.info  # psycopg 3 and psycopg2 2.8.6 agree on this
    return f"pg-session:{pid}" if info.backend_pid == pid else ""


def is_over(connection: BaseDatabaseWrapper, token: str) -> bool:
    """See fences.is_over(). An id that a restored database has not reached again is of a transaction that is over."""
    kind, _, number = token.partition(":")
    if token == NONE_ASSIGNED:
        return True
    if not number.isdecimal():
        return False
    if kind == "pg":
        in_progress = writers_in_progress(connection)
        return in_progress is not None and str(int(number) % 2**32) not in in_progress
    if kind == "pg-session":
        query = (
            "SELECT NOT pg_catalog.pg_is_in_recovery() AND NOT EXISTS"
            " (SELECT 1 FROM pg_catalog.pg_stat_activity WHERE pid = %s)"
        )
        return _row(connection, query, int(number))[0] is True
    return False


def writers_in_progress(connection: BaseDatabaseWrapper) -> frozenset[str] | None:
    """
    See fences.writers_in_progress(). Of every database of the server, and prepared transactions too.

    A statement that writes has the lock of its table, or waits for it, before its transaction gets an id. So whoever
    has such a lock in this database counts as well, by the name that a transaction has from its beginning. VACUUM has
    it of indexes only.
    """
    is_standby, names = _row(connection, _WRITERS)
    return None if is_standby else frozenset(names)


def _row(connection: BaseDatabaseWrapper, query: str, *parameters: int) -> tuple[Any, ...]:
    connection.ensure_connection()
    driver: Any = connection.connection
    # By the driver's cursor, so that nobody who watches Django's takes this for a query of the user.
    with closing(driver.cursor()) as cursor:
        cursor.execute(query, parameters or None)
        row: tuple[Any, ...] = cursor.fetchone()
    return row
