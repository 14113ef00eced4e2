"""
How commands are sent by a client of redis-py, and how the client of an event loop is closed with its loop.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any, Final, TypeAlias

from live_cache.redis_exchange import Connections, Exchange

__all__ = [
    "Command",
    "LoopClient",
    "NoTurnError",
    "Script",
    "apipeline",
    "directly",
    "pipeline",
    "pools",
    "post",
    "raise_first",
    "replace",
    "words",
]


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


# More answers than this do not come sooner, since one thread reads them all; and each is a connection to be made.
_CALLS_AT_ONCE: Final = 8


class NoTurnError(TimeoutError):
    """Other tasks of the loop had all turns; nothing was sent. Never leaves RedisConnection but as a __cause__."""


class LoopClient:
    """
    The client of one event loop. asyncio.run(), and all servers, end a loop's generators before they close it.

    Each call is to hold one of *turns* while it waits for the server. Tasks that all begin at once would otherwise make
    a connection each, all in the one thread of the loop, and take the time that this needs for a server that is down.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.closing = self._until_closed()
        self.turns = {is_quick: asyncio.Semaphore(_CALLS_AT_ONCE) for is_quick in (False, True)}
        """By whether a call is a quick one: none waits for patient calls."""
        self._is_open = False

    async def take_turn(self, *, is_quick: bool, patience_s: float) -> None:
        """Wait for a turn, which the caller gives back to *turns*. Raises NoTurnError after *patience_s*."""
        try:
            async with asyncio.timeout(patience_s):
                await self.turns[is_quick].acquire()  # at once, but for the case that all are taken
        except TimeoutError as error:
            raise NoTurnError(f"{_CALLS_AT_ONCE} tasks of this event loop are still waiting for answers.") from error

    async def open(self) -> None:
        """Make the loop know of the generator."""
        if not self._is_open:
            self._is_open = True
            await anext(self.closing)

    async def _until_closed(self) -> AsyncGenerator[None, None]:
        try:
            yield
        finally:
            pool: Any = getattr(self.client, "connection_pool", None)
            # A cluster client has a pool per node, and closes them together.
            await (self.client.aclose() if pool is None else pool.disconnect())
            for sentinel in getattr(getattr(pool, "sentinel_manager", None), "sentinels", ()):
                await sentinel.connection_pool.disconnect()


def pools(client: Any) -> list[Any]:
    """Return the pools of connections of *client*: its own, those of its Sentinels, or one per node of a cluster."""
    pool = getattr(client, "connection_pool", None)
    if pool is not None:
        sentinels = getattr(getattr(pool, "sentinel_manager", None), "sentinels", ())
        return [pool, *(sentinel.connection_pool for sentinel in sentinels)]
    connections = (node.redis_connection for node in client.get_nodes())
    return [connection.connection_pool for connection in connections if connection is not None]


def pipeline(client: Any, commands: Sequence[Command], *, is_full: bool) -> list[Any]:
    """
    Send *commands* in one round trip and return the answers, errors of the server among them.

    Args:
        is_full: Whether scripts are sent by their text and not by their name.
    """
    with client.pipeline(transaction=False) as sent:
        _enter(sent, commands, is_full=is_full)
        answers: list[Any] = sent.execute(raise_on_error=False)
        return answers


def directly(connections: Connections, commands: Sequence[Command], answer_error: type[Exception]) -> list[Any]:
    """
    Do as pipeline() does, round redis-py's pipeline, which takes as long as the server does.

    Nothing is tried again, not even over another connection if the server has closed this one. Not for a cluster.

    Args:
        answer_error: What redis-py raises for an error that the server has answered.
    """
    exchange = post(connections, commands, answer_error)
    try:
        exchange.read()
    except BaseException:
        exchange.give_up()
        raise
    exchange.release()
    return exchange.answers


def post(connections: Connections, commands: Sequence[Command], answer_error: type[Exception]) -> Exchange:
    """Send *commands* in one go, and leave the answers to be read by the caller: they tell of a lost connection too."""
    exchange = Exchange(connections, len(commands), answer_error, is_checked=False)
    try:
        exchange.send([words(one, is_full=False) for one in commands])
    except BaseException:
        exchange.give_up()
        raise
    return exchange


async def apipeline(client: Any, commands: Sequence[Command], *, is_full: bool) -> list[Any]:
    """See pipeline()."""
    async with client.pipeline(transaction=False) as sent:
        _enter(sent, commands, is_full=is_full)
        answers: list[Any] = await sent.execute(raise_on_error=False)
        return answers


def _enter(pipeline: Any, commands: Sequence[Command], *, is_full: bool) -> None:
    for command in commands:
        pipeline.execute_command(*words(command, is_full=is_full))


def words(command: Command, *, is_full: bool) -> tuple[Any, ...]:
    """Return what is sent for *command*: of a script its name or, *is_full*, its text."""
    script = command[0]
    if not isinstance(script, Script):
        return command
    return ("EVAL", script.source, 1, *command[1:]) if is_full else ("EVALSHA", script.sha, 1, *command[1:])


def replace(answers: list[Any], places: Sequence[int], again: Sequence[Any]) -> None:
    """Put the answers *again* at *places* of *answers*."""
    for place, answer in zip(places, again, strict=True):
        answers[place] = answer


def raise_first(answers: Sequence[Any]) -> None:
    """Raise the first error among *answers*."""
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
