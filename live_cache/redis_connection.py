"""
Connections to Redis or Valkey, by django-redis. The only importer of ``redis`` and ``django_redis``.

The store and the ledger of one LOCATION share one RedisConnection, so that an entry and its clocks are read in one
pipelined round trip.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from live_cache.exceptions import LiveCacheError, MissingExtraError
from live_cache.redis_cluster import join_answers, scan_step, scan_turn, split_commands
from live_cache.redis_exchange import Connections, Exchange
from live_cache.redis_late import LateAnswerError, LateAnswers, pass_on
from live_cache.redis_sending import (
    Command,
    LoopClient,
    NoTurnError,
    Script,
    apipeline,
    directly,
    pipeline,
    pools,
    post,
    raise_first,
    replace,
    words,
)
from live_cache.redis_url import parse_redis_url, without_password
from live_cache.stores.breaker import CircuitBreaker

if TYPE_CHECKING:
    import redis
    import redis.asyncio

__all__ = ["Command", "RedisConnection", "Script"]


class RedisConnection:
    """
    Connections to one Redis server, to the primary that Sentinels name, or to a cluster.

    There are two kinds of calls. A quick one is what the store does with a few keys, or a reading: whoever waits for it
    is better served by the database. A patient one changes the ledger, or handles much at once. Each kind has a circuit
    breaker: after one call without an answer the next fail at once, until a probe is answered. A patient call that
    fails opens both; a quick one does not keep a writer from trying, since a tick that is not delivered costs more than
    time.

    An answer that a quick call did not get in time is waited for behind its back, as long as a patient call would wait
    (redis_late.py); when it comes, the breaker is closed at once.

    Async calls have one client per event loop, closed with its loop.

    Args:
        url: As redis-py takes it: ``redis://``, ``rediss://`` or ``unix://``; or as parse_redis_url() does.
        connect_timeout_s: Seconds to wait for a connection.
        timeout_s: Seconds to wait for an answer.
        read_timeout_s: Seconds that a quick call waits, for a connection and an answer. None: as the others.
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
                f"LOCATION {without_password(url)!r} needs django-redis: pip install 'django-live-cache[redis]'."
            ) from error
        self.url = url
        self.shown = without_password(url)
        """The URL without its secrets, for messages."""
        self._place = parse_redis_url(url)
        self.driver_errors: tuple[type[BaseException], ...] = (
            redis.exceptions.RedisError,
            redis.exceptions.RedisClusterException,
            OSError,
        )
        """What the driver raises when the server does not answer, or says no."""
        self._lost_error = redis.exceptions.ConnectionError
        self._no_script_error = redis.exceptions.NoScriptError
        # The server is there and has said no. Loading and lost connections are not among them.
        self._answer_error: type[Exception] = redis.exceptions.ResponseError
        quick_s = timeout_s if read_timeout_s is None else min(read_timeout_s, timeout_s)
        self._connect_timeout_s, self._timeout_s, self._quick_timeout_s = connect_timeout_s, timeout_s, quick_s
        self._known_scripts: set[Script] = set()  # what the server has answered to, and has not forgotten since
        self._factory = ConnectionFactory({"SOCKET_CONNECT_TIMEOUT": connect_timeout_s, "SOCKET_TIMEOUT": timeout_s})
        self._quick_factory = ConnectionFactory(
            {"SOCKET_CONNECT_TIMEOUT": min(connect_timeout_s, quick_s), "SOCKET_TIMEOUT": quick_s}
        )
        self._client: redis.Redis | None = None
        self._quick_client: redis.Redis | None = None
        self._at_hand: dict[redis.Redis, Connections] = {}
        self._late = LateAnswers(redis.exceptions.ResponseError, wait_s=quick_s, patience_s=timeout_s)
        self._late_tasks: dict[asyncio.Task[list[Any]], Future[list[Any]]] = {}
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, LoopClient] = WeakKeyDictionary()
        self.quick_breaker = CircuitBreaker(pause_s=retry_pause_s)
        self.patient_breaker = CircuitBreaker(pause_s=retry_pause_s)

    @property
    def read_timeout_s(self) -> float:
        """Seconds that a quick call waits."""
        return self._quick_timeout_s

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

    def facts(self) -> dict[str, str]:
        """Return what INFO says of server, memory and replication, as text; of a cluster, one primary."""
        client: Any = self.client
        if self._place.kind == "cluster":
            client = client.get_redis_connection(client.get_primaries()[0])
        found: dict[str, str] = {}
        for part in ("server", "memory", "replication"):
            found.update((name, str(value)) for name, value in client.info(part).items())
        return found

    def run(self, commands: Sequence[Command], *, is_quick: bool = False) -> list[Any]:
        """
        Run *commands* in one round trip, in order and without MULTI, and return the answers as the server sent them.

        A script that the server has forgotten (SCRIPT FLUSH, a restart) is sent again in a second round trip, after
        the others. Raises the first error of the driver, or LateAnswerError; translating() is the caller's.
        """
        if self._place.kind == "cluster":
            # The client asks the nodes who they are when it is made.
            run = partial(self._run_on_cluster, commands)
            return self._late.call(run) if is_quick else run()
        client = self.quick_client if is_quick else self.client
        connections = self._connections(client)
        if is_quick:
            answers = self._late.ask(connections, [words(command, is_full=False) for command in commands])
            if forgotten := self._forgotten(answers):
                again = [words(commands[i], is_full=True) for i in forgotten]
                replace(answers, forgotten, self._late.ask(connections, again))
            raise_first(answers)
            return answers
        if len(commands) == 1 and not isinstance(commands[0][0], Script):
            command: Any = client.execute_command  # redis-py does not annotate it
            return [command(*commands[0])]  # A pipeline of one costs 30 us more.
        try:
            answers = directly(connections, commands, self._answer_error)
        except self._lost_error:
            answers = pipeline(client, commands, is_full=False)  # which tries again, over other connections
        forgotten = self._forgotten(answers)
        if forgotten:
            again = pipeline(client, [commands[i] for i in forgotten], is_full=True)
            replace(answers, forgotten, again)
        self._known_scripts.update([command[0] for command in commands if isinstance(command[0], Script)])
        raise_first(answers)
        return answers

    def may_post(self, commands: Sequence[Command]) -> bool:
        """Return whether post() may be used now, for *commands* that are scripts. If not, there is run()."""
        if self._place.kind == "cluster" or self.patient_breaker.is_open:
            return False
        return all(command[0] in self._known_scripts for command in commands)

    def post(self, commands: Sequence[Command]) -> Exchange | None:
        """
        Send *commands*, as a patient call, and leave the answers to be taken by settle().

        None over a connection that was lost: they are for run() then. Raises other errors of the driver; translating()
        is the caller's.
        """
        try:
            return post(self._connections(self.client), commands, self._answer_error)
        except self._lost_error:
            return None

    def settle(self, exchange: Exchange, *, sent_s: float, until_s: float) -> bool:
        """
        Take the answers to what was posted at *sent_s*, if they come before *until_s*; both of time.monotonic().

        No answer is waited for any longer than by a quick call, or expected any longer than by a patient one.

        Returns:
            Whether they have come.

        Raises:
            Exception: One of driver_errors: the connection was lost, or the first error that was answered.
        """
        try:
            if not exchange.read_until(min(sent_s + self._quick_timeout_s, until_s)):
                if time.monotonic() < sent_s + self._timeout_s:
                    return False
                raise TimeoutError(f"No answer came within {self._timeout_s:g} s.")
        except BaseException:
            exchange.give_up()
            raise
        exchange.release()
        if self._forgotten(exchange.answers):
            self._known_scripts.clear()
        raise_first(exchange.answers)
        return True

    @asynccontextmanager
    async def atranslating(
        self, error_class: type[LiveCacheError], *, is_quick: bool = False
    ) -> AsyncGenerator[None, None]:
        """
        See translating(). Waits for a turn first, and asks the breaker then.

        A call that gets no turn in the time that it would wait for an answer raises *error_class* with a NoTurnError as
        __cause__. That tells nothing of the server, so the breaker hears nothing of it.
        """
        client = self._loop_client()
        try:
            await client.take_turn(is_quick=is_quick, patience_s=self._quick_timeout_s if is_quick else self._timeout_s)
        except NoTurnError as error:
            raise error_class(f"Redis at {self.shown} was not asked: {error}") from error
        try:
            with self.translating(error_class, is_quick=is_quick):
                yield
        finally:
            client.turns[is_quick].release()

    async def arun(self, commands: Sequence[Command], *, is_quick: bool = False) -> list[Any]:
        """See run()."""
        if not is_quick:
            return await self._arun(commands)
        task = asyncio.ensure_future(self._arun(commands))
        try:
            await asyncio.wait((task,), timeout=self._quick_timeout_s)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if task.done():
            return task.result()
        late = LateAnswerError(self._quick_timeout_s)
        self._late_tasks[task] = late.answers  # The loop itself would let it be collected.
        task.add_done_callback(self._pass_on)
        raise late

    def forget_closed_loops(self) -> None:
        """Give up the late answers of event loops that were closed without asyncio.run(): their tasks never end."""
        for task, answers in list(self._late_tasks.items()):
            if task.get_loop().is_closed() and self._late_tasks.pop(task, None) is not None:
                answers.set_exception(TimeoutError("The event loop was closed before an answer came."))

    async def _arun(self, commands: Sequence[Command]) -> list[Any]:
        client = await self._async_client()
        if self._place.kind == "cluster":
            answers = await self._arun_on_cluster(client, commands)
            raise_first(answers)
            return answers
        answers = await apipeline(client, commands, is_full=False)
        forgotten = self._forgotten(answers)
        if forgotten:
            again = await apipeline(client, [commands[i] for i in forgotten], is_full=True)
            replace(answers, forgotten, again)
        raise_first(answers)
        return answers

    def _pass_on(self, task: asyncio.Task[list[Any]]) -> None:
        answers = self._late_tasks.pop(task, None)
        if answers is not None:
            pass_on(answers, task)

    def _run_on_cluster(self, commands: Sequence[Command]) -> list[Any]:
        client: Any = self.client
        if commands and commands[0][0] == "SCAN":
            node, cursor = scan_turn(int(str(commands[0][1])))
            primaries = sorted(client.get_primaries(), key=lambda primary: primary.name)
            if node >= len(primaries):
                return [(0, [])]  # A primary has left meanwhile.
            answer = client.get_redis_connection(primaries[node]).execute_command("SCAN", cursor, *commands[0][2:])
            return [(scan_step(node, int(answer[0]), len(primaries)), answer[1])]
        parts = split_commands(commands)
        flat = [part for each in parts for part in each]
        answers = pipeline(client, flat, is_full=False)
        if forgotten := self._forgotten(answers):
            replace(answers, forgotten, pipeline(client, [flat[i] for i in forgotten], is_full=True))
        found = iter(answers)
        joined = join_answers(commands, [[next(found) for _ in each] for each in parts])
        raise_first(joined)
        return joined

    async def _arun_on_cluster(self, client: Any, commands: Sequence[Command]) -> list[Any]:
        await client.initialize()
        if commands and commands[0][0] == "SCAN":
            node, cursor = scan_turn(int(str(commands[0][1])))
            primaries = sorted(client.get_primaries(), key=lambda primary: primary.name)
            if node >= len(primaries):
                return [(0, [])]
            answer = await primaries[node].execute_command("SCAN", cursor, *commands[0][2:])
            return [(scan_step(node, int(answer[0]), len(primaries)), answer[1])]
        parts = split_commands(commands)
        flat = [part for each in parts for part in each]
        answers = await apipeline(client, flat, is_full=False)
        if forgotten := self._forgotten(answers):
            replace(answers, forgotten, await apipeline(client, [flat[i] for i in forgotten], is_full=True))
        found = iter(answers)
        return join_answers(commands, [[next(found) for _ in each] for each in parts])

    def _forgotten(self, answers: Sequence[Any]) -> list[int]:
        return [i for i, answer in enumerate(answers) if isinstance(answer, self._no_script_error)]

    @contextmanager
    def translating(self, error_class: type[LiveCacheError], *, is_quick: bool = False) -> Iterator[None]:
        """
        Turn an error of the driver into *error_class*, with the driver's error as __cause__.

        Raises it at once, without a cause, while the breaker is open.
        """
        breaker = self.quick_breaker if is_quick else self.patient_breaker
        turn = breaker.admit()
        if turn is None:
            raise error_class(f"Redis at {self.shown} did not answer lately. It is tried again after a pause.")
        try:
            yield
        except self.driver_errors as error:
            if isinstance(error, self._answer_error):
                breaker.succeed(turn)
            else:
                breaker.fail(turn)
                if not is_quick:
                    self.quick_breaker.trip()
            if isinstance(error, LateAnswerError):
                error.answers.add_done_callback(self._hear)
            raise error_class(f"Redis at {self.shown} did not do what it was asked: {error}") from error
        breaker.succeed(turn)

    def _hear(self, answers: Future[list[Any]]) -> None:
        error = answers.exception()
        if error is None or isinstance(error, self._answer_error):
            self.quick_breaker.revive()

    def close(self) -> None:
        """Close the idle connections of this process, but those of event loops. The next use opens new ones."""
        for client in (self._client, self._quick_client):
            if client is not None:
                if client in self._at_hand:
                    self._at_hand[client].close()
                # Those in use belong to other threads: a backend is closed at the end of every request.
                for pool in pools(client):
                    pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """See close(). Also closes the connections of the running loop."""
        self.close()
        found = self._async_clients.pop(asyncio.get_running_loop(), None)
        if found is not None:
            await found.closing.aclose()

    def _connections(self, client: redis.Redis) -> Connections:
        found = self._at_hand.get(client)
        if found is None:
            found = self._at_hand.setdefault(client, Connections(client.connection_pool))
        return found

    def _make_client(self, factory: Any) -> redis.Redis:
        import redis

        times_s = {
            "socket_connect_timeout": self._connect_timeout_s,
            "socket_timeout": self._quick_timeout_s if factory is self._quick_factory else self._timeout_s,
        }
        if self._place.kind == "sentinel":
            from redis.sentinel import Sentinel

            hosts = list(self._place.hosts)
            sentinel: Any = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types here
                hosts, sentinel_kwargs=self._sentinel_arguments(times_s)
            )
            found = sentinel.master_for(self._place.service, **self._arguments(times_s), db=self._place.db)
            return cast("redis.Redis", found)
        if self._place.kind == "cluster":
            from redis.cluster import ClusterNode, RedisCluster

            node: Any = ClusterNode
            nodes = [node(host, port) for host, port in self._place.hosts]
            return cast("redis.Redis", RedisCluster(startup_nodes=nodes, **self._arguments(times_s)))
        # Not by connect(): it shares one pool among all who name the same URL, with the timeouts of the first.
        pool = factory.get_connection_pool(factory.make_connection_params(self.url))
        return redis.Redis(connection_pool=pool)

    def _make_async_client(self) -> redis.asyncio.Redis:
        import redis.asyncio

        times_s = {"socket_connect_timeout": self._connect_timeout_s, "socket_timeout": self._timeout_s}
        if self._place.kind == "sentinel":
            from redis.asyncio.sentinel import Sentinel

            hosts = list(self._place.hosts)
            sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py has no types here
                hosts, sentinel_kwargs=self._sentinel_arguments(times_s)
            )
            return cast(
                "redis.asyncio.Redis",
                sentinel.master_for(self._place.service, **self._arguments(times_s), db=self._place.db),
            )
        if self._place.kind == "cluster":
            from redis.asyncio.cluster import ClusterNode, RedisCluster

            nodes = [ClusterNode(host, port) for host, port in self._place.hosts]
            return cast("redis.asyncio.Redis", RedisCluster(startup_nodes=nodes, **self._arguments(times_s)))
        pool = redis.asyncio.ConnectionPool.from_url(
            self.url, socket_connect_timeout=self._connect_timeout_s, socket_timeout=self._timeout_s
        )
        return redis.asyncio.Redis(connection_pool=pool)

    def _arguments(self, times_s: dict[str, float]) -> dict[str, Any]:
        """Return the arguments of connections to the servers that hold the data."""
        from redis.connection import URL_QUERY_ARGUMENT_PARSERS

        parsers: Any = URL_QUERY_ARGUMENT_PARSERS
        options = {
            name: parsers[name](text) if name in parsers else text
            for name, text in self._place.options.items()
            if not name.startswith("sentinel_") and name != "ssl"
        }
        secure = {"ssl": True} if self._place.options.get("ssl") in ("1", "true") else {}
        return {**times_s, "username": self._place.username, "password": self._place.password, **secure, **options}

    def _sentinel_arguments(self, times_s: dict[str, float]) -> dict[str, Any]:
        options = self._place.options
        names = ("username", "password")
        return {**times_s, **{name: options["sentinel_" + name] for name in names if "sentinel_" + name in options}}

    def _loop_client(self) -> LoopClient:
        loop = asyncio.get_running_loop()
        found = self._async_clients.get(loop)
        if found is None:
            # A client refers to its loop, so that no entry goes by itself.
            for other in [other for other in self._async_clients if other.is_closed()]:
                self._async_clients.pop(other, None)
            found = self._async_clients[loop] = LoopClient(self._make_async_client())
        return found

    async def _async_client(self) -> redis.asyncio.Redis:
        found = self._loop_client()
        await found.open()
        return cast("redis.asyncio.Redis", found.client)
