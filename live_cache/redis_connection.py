"""
Connections to Redis or Valkey, by django-redis. The only importer of ``redis`` and ``django_redis``.

The store and the ledger of one LOCATION share one RedisConnection, so that an entry and its clocks are read in one
pipelined round trip.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from live_cache.exceptions import LiveCacheError, MissingExtraError

if TYPE_CHECKING:
    import redis

__all__ = ["RedisConnection"]


class RedisConnection:
    """
    A pool of connections to one Redis server (or the primary that a Sentinel names).

    Args:
        url: As redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``.
        connect_timeout_s: Seconds to wait for a connection.
        timeout_s: Seconds to wait for an answer.

    Raises:
        MissingExtraError: django-redis is not installed.
    """

    def __init__(self, url: str, *, connect_timeout_s: float = 0.25, timeout_s: float = 1.0) -> None:
        try:
            import redis.exceptions
            from django_redis.pool import ConnectionFactory
        except ImportError as error:
            raise MissingExtraError(
                f"LOCATION {url!r} needs django-redis: pip install 'django-live-cache[redis]'."
            ) from error
        self.url = url
        self._driver_errors: tuple[type[BaseException], ...] = (redis.exceptions.RedisError, OSError)
        options: dict[str, Any] = {
            "SOCKET_CONNECT_TIMEOUT": connect_timeout_s,
            "SOCKET_TIMEOUT": timeout_s,
        }
        self._factory = ConnectionFactory(options)
        self._client: redis.Redis | None = None

    @property
    def client(self) -> redis.Redis:
        """The redis-py client, safe to share between threads; it opens connections when they are needed."""
        if self._client is None:
            self._client = self._factory.connect(self.url)
        return self._client

    @contextmanager
    def translating(self, error_class: type[LiveCacheError]) -> Iterator[None]:
        """Turn an error of the driver into *error_class*, with the driver's error as __cause__."""
        try:
            yield
        except self._driver_errors as error:
            raise error_class(f"Redis at {self.url} did not do what it was asked: {error}") from error

    def close(self) -> None:
        """Close the idle connections of this process. The next use opens new ones."""
        if self._client is not None:
            self._client.connection_pool.disconnect()
