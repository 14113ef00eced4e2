"""
Tables of MySQL and MariaDB whose rows a ROLLBACK does not bring back: those of MyISAM and other engines.

information_schema tells the engine. Each process asks once per table, and again after a change of the schema.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final

from live_cache.names import shared_database_name

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["forget_engines", "tables_without_rollback"]

_TRANSACTIONAL: Final = frozenset({"innodb", "rocksdb", "tokudb", "ndbcluster"})

_is_transactional: dict[tuple[str, str], bool] = {}


def tables_without_rollback(connection: BaseDatabaseWrapper, tables: Collection[str]) -> frozenset[str]:
    """
    Return those of *tables* that may keep what was rolled back, also views and names that the database does not list.

    Args:
        connection: Open, and able to run a query.

    Raises:
        Exception: Whatever the driver raises.
    """
    if connection.vendor != "mysql" or not tables:
        return frozenset()
    database = shared_database_name(connection)
    unknown = [table for table in tables if (database, table) not in _is_transactional]
    if unknown:
        driver: Any = connection.connection
        # By the driver's cursor, so that nobody who watches Django's takes this for a query of the user.
        with closing(driver.cursor()) as cursor:
            for table in unknown:
                cursor.execute(
                    "SELECT engine FROM information_schema.tables WHERE table_schema = DATABASE() AND table_name = %s",
                    (table,),
                )
                row = cursor.fetchone()
                _is_transactional[database, table] = bool(row and str(row[0]).lower() in _TRANSACTIONAL)
    return frozenset(table for table in tables if not _is_transactional.get((database, table), False))


def forget_engines() -> None:
    """Ask again: the schema was changed."""
    _is_transactional.clear()
