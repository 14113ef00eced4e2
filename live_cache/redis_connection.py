"""
Connections to Redis or Valkey, by django-redis. The only importer of ``redis`` and ``django_redis``.

The store and the ledger of one LOCATION share one RedisConnection, so that an entry and its clocks are read in one
pipelined round trip.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from live_cache.exceptions import LiveCacheError, MissingExtraError

if TYPE_CHECKING:
    import redis

__all__ = ["Command", "RedisConnection", "Script"]


class Script:
    """
    A Lua script, for RedisConnection.run().

    redis-py's register_script() asks the server in each pipeline whether it knows the script: a round trip more.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()


Command: TypeAlias = "tuple[str | Script | bytes | int, ...]"
"""What run() takes: the words of a command; or a Script, its one key, and its arguments."""


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
        self._no_script_error = redis.exceptions.NoScriptError
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
            import redis

            # Not by connect(): it shares one pool among all who name the same URL, with the timeouts of the first.
            pool = self._factory.get_connection_pool(self._factory.make_connection_params(self.url))
            self._client = redis.Redis(connection_pool=pool)
        return self._client

    def run(self, commands: Sequence[Command]) -> list[Any]:
        """
        Run *commands* in one round trip, in order and without MULTI, and return the answers as the server sent them.

        A script that the server has forgotten (SCRIPT FLUSH, a restart) is sent again in a second round trip, after
        the others. Raises the first error of the driver; translating() is the caller's.
        """
        answers = self._pipeline(commands, is_full=False)
        forgotten = [i for i, answer in enumerate(answers) if isinstance(answer, self._no_script_error)]
        if forgotten:
            again = self._pipeline([commands[i] for i in forgotten], is_full=True)
            for i, answer in zip(forgotten, again, strict=True):
                answers[i] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    def _pipeline(self, commands: Sequence[Command], *, is_full: bool) -> list[Any]:
        pipeline: Any  # redis-py does not annotate execute_command()
        with self.client.pipeline(transaction=False) as pipeline:
            for command in commands:
                name = command[0]
                if not isinstance(name, Script):
                    pipeline.execute_command(*command)
                elif is_full:
                    pipeline.execute_command("EVAL", name.source, 1, *command[1:])
                else:
                    pipeline.execute_command("EVALSHA", name.sha, 1, *command[1:])
            answers: list[Any] = pipeline.execute(raise_on_error=False)
            return answers

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
            # Those in use belong to other threads: a backend is closed at the end of every request.
            self._client.connection_pool.disconnect(inuse_connections=False)
