"""
Replicas: aliases by which a database is read that is written by another alias, the primary.

A result that is read by the alias of a replica has the names of the primary's, so that entries of the primary serve it,
under the primary's ledger. What a replica answers itself may be old: it is stored only with proof that the replica has
replayed every commit that the stamp of the new entry could know of. The commits that were ticked before the stamp was
read had returned by then, so the position of the primary's log that is read after it is behind all of them.
"""

from __future__ import annotations

import logging
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from django.db import connections

from live_cache.conf import settings

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["has_caught_up", "primary_of"]

logger = logging.getLogger("live_cache.read")

# The position of what was inserted into the log, not of what was flushed: with synchronous_commit off a COMMIT returns
# before it is flushed. Positions of two systems cannot be compared.
_POSITION_SQL: Final = """
SELECT system_identifier, CASE WHEN pg_is_in_recovery() THEN NULL ELSE pg_current_wal_insert_lsn() END
FROM pg_control_system()
"""
_REPLAYED_SQL: Final = """
SELECT system_identifier, pg_is_in_recovery() AND pg_last_wal_replay_lsn() >= CAST(%s AS pg_lsn)
FROM pg_control_system()
"""


def primary_of(connection: BaseDatabaseWrapper) -> BaseDatabaseWrapper | None:
    """
    Return this thread's connection to the primary, if *connection* is to one of its replicas; else None.

    Replicas are named by LIVE_CACHE_REPLICAS, and by MIRROR of the TEST settings of a database.
    """
    replicas = settings.replicas
    alias = replicas.get(connection.alias) if replicas else None
    if not alias:
        alias = connection.settings_dict.get("TEST", {}).get("MIRROR")
    return None if alias is None else connections[alias]


def has_caught_up(replica: BaseDatabaseWrapper, primary: BaseDatabaseWrapper) -> bool:
    """
    Return True only if *replica* shows everything that was committed on *primary* when this was called.

    Known of PostgreSQL's physical replication alone. Asks each of the two once. Never raises: what cannot be asked has
    not caught up.
    """
    if primary.vendor != "postgresql" or replica.vendor != "postgresql":
        return False
    try:
        system, position = _ask(primary, _POSITION_SQL, None)
        if position is None:
            return False
        replica_system, is_replayed = _ask(replica, _REPLAYED_SQL, (str(position),))
    except Exception:  # whatever a driver raises
        logger.warning("How far %r is behind %r could not be asked.", replica.alias, primary.alias, exc_info=True)
        return False
    return system == replica_system and bool(is_replayed)


def _ask(connection: BaseDatabaseWrapper, sql: str, parameters: tuple[str, ...] | None) -> Any:
    """Return one row. By the driver's cursor, so that nobody who counts Django's queries counts this one."""
    connection.ensure_connection()
    with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
        cursor.execute(sql, parameters)
        return cursor.fetchone()
