"""What ``stats`` and the system checks tell of outboxes."""

from __future__ import annotations

from typing import Any

from django.db import connections

from live_cache.exceptions import ConfigurationError
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import tables_without_triggers
from live_cache.replicas import primary_of

__all__ = ["outbox_statistics"]


def outbox_statistics() -> list[dict[str, Any]]:
    """Return what stands in the outbox of each database that has one."""
    found = []
    for alias in connections:
        connection = connections[alias]
        if primary_of(connection) is not None:  # what it shows of the outbox is the primary's
            continue
        try:
            dialect = dialect_of(connection)
            if not dialect.exists(connection):
                continue
            waiting = dialect.waiting(connection)
            report: dict[str, Any] = {
                "is_listened_to": dialect.has_listener(connection),
                "waiting": waiting.lines,
                "oldest_s": None if waiting.oldest_s is None else round(waiting.oldest_s, 3),
                "tables": len(dialect.tables_with_triggers(connection)),
                "missing": tables_without_triggers(connection),
                "error": None,
            }
        except ConfigurationError:  # of a kind that has none
            continue
        except Exception as error:  # whatever a driver raises
            report = dict.fromkeys(("is_listened_to", "waiting", "oldest_s", "tables", "missing"))
            report["error"] = str(error)
        found.append({"database": alias, **report})
    return found
