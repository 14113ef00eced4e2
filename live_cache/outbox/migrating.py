"""
Keeps triggers through migrations.

SQLite drops the triggers of a table that a migration rebuilds, and refuses to drop a column that one names; on MariaDB
such a trigger would break every write. So there they go before the migrations and come back after them. PostgreSQL
needs no more than a fresh look at the columns. Where every table of a model had triggers, new tables get them too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from django.db import connections
from django.db.models.signals import post_migrate, pre_migrate

from live_cache.exceptions import ConfigurationError
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import (
    drop_triggers,
    install_triggers,
    tables_of_models,
    tables_without_triggers,
)

__all__ = ["connect"]

_DISPATCH_UID = "live_cache.outbox.migrating"


class _Found(NamedTuple):
    tables: list[str]
    is_complete: bool
    notifies: bool


_found: dict[str, _Found] = {}
"""What was there before the migrations that are running, by database."""


def connect() -> None:
    """Receive the signals of ``migrate``."""
    pre_migrate.connect(_before, dispatch_uid=_DISPATCH_UID)
    post_migrate.connect(_after, dispatch_uid=_DISPATCH_UID)


def _before(using: str, plan: Any = None, **kwargs: Any) -> None:
    # Once per command: each app sends the signal.
    if not plan or using in _found:
        return
    connection = connections[using]
    try:
        dialect = dialect_of(connection)
    except ConfigurationError:
        return
    if not dialect.exists(connection):
        return
    tables = dialect.tables_with_triggers(connection)
    is_complete = bool(tables) and not tables_without_triggers(connection)
    _found[using] = _Found(tables, is_complete, dialect.notifies(connection))
    if dialect.rebuilds_tables:
        drop_triggers(connection, keeps_outbox=True)


def _after(using: str, **kwargs: Any) -> None:
    found = _found.pop(using, None)
    if found is None:
        return
    connection = connections[using]
    wanted = {*found.tables, *dialect_of(connection).tables_with_triggers(connection)}
    if found.is_complete:
        wanted |= tables_of_models(connection).keys()
    there = set(connection.introspection.table_names())
    install_triggers(connection, sorted(wanted & there), notifies=found.notifies)
