"""Why a read may not use the cache on its connection now, or may not fill it: what its transaction sees (rule 15)."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

from django.db import Error

from live_cache.conf import settings

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.writes.transactions import ConnectionState

__all__ = ["reason_to_bypass", "reason_to_fill_not"]


def reason_to_bypass(connection: BaseDatabaseWrapper, state: ConnectionState, tables: frozenset[str]) -> str:
    """Return why a read on this connection may not use the cache now (rule 15), or an empty text."""
    if state.session.is_search_path_changed and settings.tenant is None:
        return "the search path or role of the connection was changed, and LIVE_CACHE_TENANT is not set"
    if state.session.are_values_changed:
        return "a setting of the connection was changed by SQL, so it may answer otherwise than other connections"
    if not state.is_in_transaction:
        return ""
    if state.has_written(tables):
        return "the transaction has uncommitted writes of its own to these tables"
    if not connection.in_atomic_block:
        return "the transaction is managed by hand"
    if connection.vendor == "sqlite":
        return "a SQLite transaction reads a snapshot"
    if connection.needs_rollback or connection.closed_in_transaction:
        return "the transaction is broken"
    if _isolation(connection, state) != "read committed":
        return "the transaction does not read the latest committed rows"
    return ""


def reason_to_fill_not(connection: BaseDatabaseWrapper, state: ConnectionState) -> str:
    """Return why rows that were just fetched on this connection may be old or uncommitted, or an empty text."""
    if state.open_cursors:
        return "an unfinished cursor pins the SQLite connection to an older snapshot"
    # SQLite reads uncommitted rows only in a shared cache that asks for it; PostgreSQL never does.
    if state.is_in_transaction or connection.vendor != "mysql":
        return ""
    if _isolation(connection, state) == "read uncommitted":
        return "the connection reads uncommitted rows"
    return ""


_ISOLATION_SQL: Final = {"postgresql": "SHOW transaction_isolation", "mysql": "SELECT @@tx_isolation"}


def _isolation(connection: BaseDatabaseWrapper, state: ConnectionState) -> str:
    """Return the isolation level, asked of the database once per connection: its default may be set on the server."""
    if state.session.is_isolation_changed:
        return "changed by SQL"
    if state.isolation is not None and state.isolation[0] is connection.connection:
        return state.isolation[1]
    sql = _ISOLATION_SQL.get(connection.vendor)
    if sql is None:
        return "unknown"
    if connection.vendor == "mysql" and not getattr(connection, "mysql_is_mariadb", False):
        sql = "SELECT @@transaction_isolation"  # the name in MySQL 8, which dropped the older one
    try:
        # By the driver's cursor, so that nobody who counts Django's queries counts this one.
        with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
            cursor.execute(sql)
            (level,) = cursor.fetchone()
    except Error:
        return "unknown"
    level = str(level).lower().replace("-", " ")
    state.isolation = (connection.connection, level)
    return level
