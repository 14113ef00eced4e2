"""
Fences of MySQL and MariaDB: the thread of the writer, and the list of InnoDB's transactions.

A thread leaves the process list after its transaction was committed or rolled back. information_schema.innodb_trx
(PROCESS privilege) is a copy that is made anew only when nobody has read it for 0.1 s, so an answer counts only if it
shows the very query that asks.
"""

from __future__ import annotations

import hashlib
import secrets
import weakref
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["ASK_EVERY_S", "is_over", "session_token", "writer_token", "writers_in_progress"]

ASK_EVERY_S: Final = 0.25
"""Pause of one process between two questions about all writers: InnoDB answers anew only after 0.1 s without any."""
SERVER_STATUS_IN_TRANS: Final = 1
ACCESS_DENIED: Final = 1227


@dataclass(slots=True)
class _Session:
    """What is known of one connection to the server."""

    server: str
    """Names the server and the user: only threads of the same user are sure to be listed."""
    thread_id: int
    is_alone: bool
    """Whether this server takes all writes of the database: no replica, no node of a multi-primary cluster."""
    is_pooled: bool
    """Whether a proxy may run the next transaction in another thread."""
    has_privilege: bool = True
    """Whether innodb_trx may be read, as far as is known."""


_sessions: weakref.WeakKeyDictionary[Any, _Session] = weakref.WeakKeyDictionary()


def writer_token(connection: BaseDatabaseWrapper) -> str:
    """Return ``mysql:<server>:<thread id>``. Asks the server once per connection; each time behind a proxy."""
    session = _session(connection)
    return f"mysql:{session.server}:{session.thread_id}"


def session_token(connection: BaseDatabaseWrapper) -> str:
    """Return ``mysql-session:<server>:<thread id>``; empty behind a proxy."""
    session = _session(connection)
    return "" if session.is_pooled else f"mysql-session:{session.server}:{session.thread_id}"


def is_over(connection: BaseDatabaseWrapper, token: str) -> bool:
    """See fences.is_over()."""
    kind, _, rest = token.partition(":")
    server, _, number = rest.partition(":")
    if kind not in {"mysql", "mysql-session"} or not number.isdecimal():
        return False
    session = _session(connection)
    if server != session.server:
        return False  # Another server, or another user's threads.
    thread_id = int(number)
    if thread_id == session.thread_id:
        return _is_idle(connection)
    with closing(_driver(connection).cursor()) as cursor:
        cursor.execute("SELECT 1 FROM information_schema.processlist WHERE id = %s", (thread_id,))
        if cursor.fetchone() is None:
            return True
    if kind == "mysql-session":
        return False
    rows = _transactions(connection, session)
    return rows is not None and all(row[1] != thread_id for row in rows)


def writers_in_progress(connection: BaseDatabaseWrapper) -> frozenset[str] | None:
    """See fences.writers_in_progress()."""
    session = _session(connection)
    rows = _transactions(connection, session) if session.is_alone else None
    if rows is None:
        return None
    return frozenset(str(trx_id) for trx_id, _, state, changed, _ in rows if changed or state != "RUNNING")


def _transactions(connection: BaseDatabaseWrapper, session: _Session) -> list[tuple[int, int, str, int, str]] | None:
    """
    Return the transactions of InnoDB as they are now, without this connection's own, or None if that is unknown.

    Each with its id, thread, state, number of changed rows, and query.
    """
    if not session.has_privilege or not _is_idle(connection):
        return None
    mark = secrets.token_hex(8)
    query = (
        "SELECT trx_id, trx_mysql_thread_id, trx_state, trx_rows_modified, COALESCE(trx_query, '')"
        " FROM information_schema.innodb_trx WHERE %s <> ''"
    )
    driver = _driver(connection)
    database: Any = getattr(connection, "Database")  # noqa: B009 - each backend has one, and django-stubs not
    cursor = driver.cursor()
    try:
        # Else this query is in no transaction to be shown.
        cursor.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        cursor.execute(query, (mark,))
        found = cursor.fetchall()
        driver.rollback()
    except BaseException as error:  # no "finally", at the beginning of which an interrupt may come
        driver.rollback()
        if not isinstance(error, database.Error) or error.args[:1] != (ACCESS_DENIED,):
            raise
        session.has_privilege = False
        return None
    finally:
        cursor.close()
    rows = [(int(row[0]), int(row[1]), str(row[2]), int(row[3]), str(row[4])) for row in found]
    if not any(row[1] == session.thread_id and mark in row[4] for row in rows):
        return None
    return [row for row in rows if row[1] != session.thread_id]


def _session(connection: BaseDatabaseWrapper) -> _Session:
    connection.ensure_connection()
    session = _sessions.get(connection.connection)
    if session is None or session.is_pooled:
        session = _sessions[connection.connection] = _ask_session(connection)
    return session


def _driver(connection: BaseDatabaseWrapper) -> Any:
    # Its cursors are used here, so that nobody who watches Django's takes these statements for the user's.
    connection.ensure_connection()
    return connection.connection


def _ask_session(connection: BaseDatabaseWrapper) -> _Session:
    with closing(_driver(connection).cursor()) as cursor:
        cursor.execute("SELECT CONNECTION_ID(), SUBSTRING_INDEX(USER(), '@', 1)")
        thread_id, user = cursor.fetchone()
        # SHOW leaves out what this server does not have.
        cursor.execute(
            "SHOW GLOBAL VARIABLES WHERE Variable_name IN ('server_uuid', 'server_uid', 'server_id', 'hostname',"
            " 'port', 'read_only', 'wsrep_on', 'group_replication_group_name',"
            " 'group_replication_single_primary_mode')"
        )
        variables = {str(name).lower(): str(value) for name, value in cursor.fetchall()}
    identity = [variables.get(name, "") for name in ("server_uuid", "server_uid", "server_id", "hostname", "port")]
    driver: Any = connection.connection
    is_multi_primary = (
        bool(variables.get("group_replication_group_name"))
        and variables.get("group_replication_single_primary_mode", "ON") != "ON"
    )
    return _Session(
        server=hashlib.blake2b("\0".join([*identity, str(user)]).encode(), digest_size=8).hexdigest(),
        thread_id=int(thread_id),
        is_alone=variables.get("read_only") == "OFF"
        and variables.get("wsrep_on", "OFF") == "OFF"
        and not is_multi_primary,
        is_pooled=driver.thread_id() != int(thread_id),
    )


def _is_idle(connection: BaseDatabaseWrapper) -> bool:
    """Return whether this connection is in no transaction, as far as Django and the driver know."""
    if connection.in_atomic_block or not connection.get_autocommit():
        return False
    status: int = getattr(connection.connection, "server_status", 0)  # PyMySQL keeps what the server said last.
    return not status & SERVER_STATUS_IN_TRANS
