"""
Connections to Redis or Valkey, by django-redis. The only importer of ``redis`` and ``django_redis``.

The store and the ledger of one LOCATION share one RedisConnection, so that an entry and its clocks are read in one
pipelined round trip.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias
from weakref import WeakKeyDictionary

from live_cache.exceptions import LiveCacheError, MissingExtraError
from live_cache.stores.breaker import CircuitBreaker

if TYPE_CHECKING:
    import redis
    import redis.asyncio

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
    Connections to one Redis server (or the primary that a Sentinel names).

    There are two kinds of calls. A quick one is a read, or a write that may be given up: whoever waits for it is better
    served by the database. A patient one changes the ledger, or handles much at once. Each kind has a circuit breaker:
    after one call without an answer the next fail at once, until a probe is answered. A patient call that fails opens
    both; a quick one does not keep a writer from trying, since a tick that is not delivered costs more than time.

    Async calls have one client per event loop, closed with its loop.

    Args:
        url: As redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``.
        connect_timeout_s: Seconds to wait for a connection.
        timeout_s: Seconds to wait for an answer.
        read_timeout_s: Seconds that a quick call waits, for a connection and again for an answer. None: as the others.
        retry_pause_s: Seconds from a failure to the first probe. Zero probes with every call.

    Raises:
        MissingExtraError: django-redis is not installed.
    """

    def __init__(
        self,
        url: str,
        *,
        connect_timeout_s: float = 0.25,
        timeout_s: float = 1.0,
        read_timeout_s: float | None = None,
        retry_pause_s: float = 0.5,
    ) -> None:
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
        # The server is there and has said no. Loading and lost connections are not among them.
        self._answers: tuple[type[BaseException], ...] = (redis.exceptions.ResponseError,)
        quick_s = timeout_s if read_timeout_s is None else min(read_timeout_s, timeout_s)
        self._connect_timeout_s, self._timeout_s, self._quick_timeout_s = connect_timeout_s, timeout_s, quick_s
        self._factory = ConnectionFactory({"SOCKET_CONNECT_TIMEOUT": connect_timeout_s, "SOCKET_TIMEOUT": timeout_s})
        self._quick_factory = ConnectionFactory(
            {"SOCKET_CONNECT_TIMEOUT": min(connect_timeout_s, quick_s), "SOCKET_TIMEOUT": quick_s}
        )
        self._client: redis.Redis | None = None
        self._quick_client: redis.Redis | None = None
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, _LoopClient] = WeakKeyDictionary()
        self.quick_breaker = CircuitBreaker(pause_s=retry_pause_s)
        self.patient_breaker = CircuitBreaker(pause_s=retry_pause_s)

    @property
    def client(self) -> redis.Redis:
        """The redis-py client, safe to share between threads; it opens connections when they are needed."""
        if self._client is None:
            self._client = self._make_client(self._factory)
        return self._client

    @property
    def quick_client(self) -> redis.Redis:
        """The client of quick calls."""
        if self._quick_client is None:
            self._quick_client = self._make_client(self._quick_factory)
        return self._quick_client

    def run(self, commands: Sequence[Command], *, is_quick: bool = False) -> list[Any]:
        """
        Run *commands* in one round trip, in order and without MULTI, and return the answers as the server sent them.

        A script that the server has forgotten (SCRIPT FLUSH, a restart) is sent again in a second round trip, after
        the others. Raises the first error of the driver; translating() is the caller's.
        """
        client = self.quick_client if is_quick else self.client
        answers = _pipeline(client, commands, is_full=False)
        forgotten = self._forgotten(answers)
        if forgotten:
            again = _pipeline(client, [commands[i] for i in forgotten], is_full=True)
            _replace(answers, forgotten, again)
        _raise_first(answers)
        return answers

    async def arun(self, commands: Sequence[Command], *, is_quick: bool = False) -> list[Any]:
        """See run()."""
        client = await self._async_client()
        async with asyncio.timeout(self._quick_timeout_s if is_quick else None):
            answers = await _apipeline(client, commands, is_full=False)
            forgotten = self._forgotten(answers)
            if forgotten:
                again = await _apipeline(client, [commands[i] for i in forgotten], is_full=True)
                _replace(answers, forgotten, again)
        _raise_first(answers)
        return answers

    def _forgotten(self, answers: Sequence[Any]) -> list[int]:
        return [i for i, answer in enumerate(answers) if isinstance(answer, self._no_script_error)]

    @contextmanager
    def translating(self, error_class: type[LiveCacheError], *, is_quick: bool = False) -> Iterator[None]:
        """
        Turn an error of the driver into *error_class*, with the driver's error as __cause__.

        Raises it at once, without a cause, while the breaker is open. Around an await as well.
        """
        breaker = self.quick_breaker if is_quick else self.patient_breaker
        turn = breaker.admit()
        if turn is None:
            raise error_class(f"Redis at {self.url} did not answer lately. It is tried again after a pause.")
        try:
            yield
        except self._driver_errors as error:
            if isinstance(error, self._answers):
                breaker.succeed(turn)
            else:
                breaker.fail(turn)
                if not is_quick:
                    self.quick_breaker.trip()
            raise error_class(f"Redis at {self.url} did not do what it was asked: {error}") from error
        breaker.succeed(turn)

    def close(self) -> None:
        """Close the idle connections of this process, but those of event loops. The next use opens new ones."""
        for client in (self._client, self._quick_client):
            if client is not None:
                # Those in use belong to other threads: a backend is closed at the end of every request.
                client.connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """See close(). Also closes the connections of the running loop."""
        self.close()
        found = self._async_clients.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.closing.aclose()

    def _make_client(self, factory: Any) -> redis.Redis:
        import redis

        # Not by connect(): it shares one pool among all who name the same URL, with the timeouts of the first.
        pool = factory.get_connection_pool(factory.make_connection_params(self.url))
        return redis.Redis(connection_pool=pool)

    def _make_async_client(self) -> redis.asyncio.Redis:
        import redis.asyncio

        pool = redis.asyncio.ConnectionPool.from_url(
            self.url, socket_connect_timeout=self._connect_timeout_s, socket_timeout=self._timeout_s
        )
        return redis.asyncio.Redis(connection_pool=pool)

    async def _async_client(self) -> redis.asyncio.Redis:
        loop = asyncio.get_running_loop()
        found = self._async_clients.get(loop)
        if found is None:
            # A client refers to its loop, so that no entry goes by itself.
            for other in [other for other in self._async_clients if other.is_closed()]:
                self._async_clients.pop(other, None)
            found = self._async_clients[loop] = _LoopClient(self._make_async_client())
            await found.open()
        return found.client


class _LoopClient:
    """The client of one event loop. asyncio.run(), and all servers, end a loop's generators before they close it."""

    def __init__(self, client: redis.asyncio.Redis) -> None:
        self.client = client
        self.closing = self._until_closed()

    async def open(self) -> None:
        """Make the loop know of the generator."""
        await anext(self.closing)

    async def _until_closed(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            await self.client.connection_pool.disconnect()


def _pipeline(client: redis.Redis, commands: Sequence[Command], *, is_full: bool) -> list[Any]:
    pipeline: Any  # redis-py does not annotate execute_command()
    with client.pipeline(transaction=False) as pipeline:
        _enter(pipeline, commands, is_full=is_full)
        answers: list[Any] = pipeline.execute(raise_on_error=False)
        return answers


async def _apipeline(client: redis.asyncio.Redis, commands: Sequence[Command], *, is_full: bool) -> list[Any]:
    pipeline: Any
    async with client.pipeline(transaction=False) as pipeline:
        _enter(pipeline, commands, is_full=is_full)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        return answers


def _enter(pipeline: Any, commands: Sequence[Command], *, is_full: bool) -> None:
    for command in commands:
        name = command[0]
        if not isinstance(name, Script):
            pipeline.execute_command(*command)
        elif is_full:
            pipeline.execute_command("EVAL", name.source, 1, *command[1:])
        else:
            pipeline.execute_command("EVALSHA", name.sha, 1, *command[1:])


def _replace(answers: list[Any], places: Sequence[int], again: Sequence[Any]) -> None:
    for place, answer in zip(places, again, strict=True):
        answers[place] = answer


def _raise_first(answers: Sequence[Any]) -> None:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
