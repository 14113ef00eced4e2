"""The application: attaches the SQL guard to every database connection."""

from __future__ import annotations

from typing import Any

from django.apps import AppConfig

__all__ = ["LiveCacheConfig"]


class LiveCacheConfig(AppConfig):
    """Put ``"live_cache"`` in INSTALLED_APPS, so that every write is seen."""

    name = "live_cache"
    verbose_name = "Live cache"

    def ready(self) -> None:
        """Receive the signals of connections and models."""
        from django.db import connections
        from django.db.backends.signals import connection_created

        from live_cache import checks  # noqa: F401 - registers the system checks
        from live_cache.outbox import migrating, threads
        from live_cache.writes import guard, signals

        connection_created.connect(_attach, dispatch_uid="live_cache.apps")
        signals.connect()
        migrating.connect()
        threads.connect()
        for connection in connections.all(initialized_only=True):
            guard.attach(connection)


def _attach(connection: Any, **kwargs: Any) -> None:
    from live_cache.writes import guard, hooks

    if connection.alias != hooks.PROBE:
        guard.attach(connection).reset()
