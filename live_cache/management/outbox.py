"""What ``manage.py live_cache install_triggers`` and ``listen`` do, and how ``stats`` shows outboxes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import connections

from live_cache.exceptions import ConfigurationError
from live_cache.management.clearing import find_model
from live_cache.management.tables import as_table
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import drop_triggers, install_triggers, tables_of_models
from live_cache.outbox.listener import Listener

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["change_triggers", "format_statistics", "listen"]


def change_triggers(
    database: str, labels: Sequence[str], *, is_drop: bool, is_dry_run: bool, notifies: bool
) -> dict[str, Any]:
    """
    Install triggers, or drop them.

    Args:
        labels: Models, ``app.Model``. None of them: all.

    Raises:
        CommandError: A model is unknown.
        ConfigurationError: See install_triggers().
    """
    connection = _connection(database)
    statements: list[str] = []
    run = statements.append if is_dry_run else None
    models = [find_model(label) for label in labels]
    if is_drop:
        chosen = list(tables_of_models(connection, models)) if labels else None
        tables = drop_triggers(connection, chosen, run=run)
    else:
        tables = install_triggers(
            connection, tables_of_models(connection, models if labels else None), notifies=notifies, run=run
        )
    return {"database": database, "dry_run": is_dry_run, "tables": tables, "statements": statements}


def listen(database: str, *, interval_s: float, is_once: bool, say: Callable[[str], object]) -> int:
    """
    Listen to the outbox of *database*, until a signal to stop comes; or tick what waits.

    Returns:
        How many lines were ticked, if that is known.

    Raises:
        ConfigurationError: See Listener.drain().
    """
    connection = _connection(database)
    if is_once:
        return _drain(database)
    if not dialect_of(connection).exists(connection):
        say("There is no outbox yet; `manage.py live_cache install_triggers` makes it.")
    listener = Listener(database, interval_s=interval_s)
    stop = threading.Event()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: stop.set())
    say(f"Listening to the outbox of the database {database!r}. Stop with SIGTERM or Ctrl-C.")
    listener.run(stop)
    return 0


def format_statistics(report: Sequence[dict[str, Any]]) -> str:
    """Return what outbox_statistics() returns as text for people."""
    names = ("database", "tables", "waiting", "oldest_s", "is_listened_to", "error")
    return "Outboxes of writers outside of Django\n\n" + as_table(
        names, [[each[name] for name in names] for each in report]
    )


def _connection(database: str) -> BaseDatabaseWrapper:
    if database not in connections:
        names = ", ".join(map(repr, connections))
        raise ConfigurationError(f"There is no database {database!r}. DATABASES has {names}.")
    return connections[database]


def _drain(database: str) -> int:
    listener = Listener(database)
    try:
        return listener.drain()
    finally:
        listener.close()
