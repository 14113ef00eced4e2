"""
One exchange with a server: what was sent over one connection, and what has been answered so far.

And the connections that are used for one exchange after the other.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Final

from live_cache.stores.forks import ForkAware

__all__ = ["Connections", "Exchange"]

MAX_IDLE: Final = 8
"""Connections that are kept at hand. Each is used by one thread at a time."""


class Connections(ForkAware):
    """
    The connections of a pool of redis-py, the last used of them kept at hand: its own bookkeeping costs 20 us a call.

    Safe to share between threads: each step is one operation of a list. A child of fork() begins with none at hand.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._idle: list[Any] = []
        # Who asks for few connections can spare none.
        self._max_idle = MAX_IDLE if getattr(pool, "max_connections", 0) >= 4 * MAX_IDLE else 0
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Forget the connections, which are the parent's."""
        self._idle = []

    def take(self, *, is_checked: bool = True) -> Any:
        """
        Return a connection that nobody else uses, until release().

        Args:
            is_checked: Whether to look if the server has closed it meanwhile, as the pool does.
        """
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:
                return self._pool.get_connection()
            # A pool that was told of another primary by its Sentinels does not own those to the old one.
            if self._pool.owns_connection(connection) and not (is_checked and _is_spoilt(connection)):
                return connection
            connection.disconnect()
            self._pool.release(connection)

    def release(self, connection: Any) -> None:
        """Take *connection* back, with nothing left to be read."""
        if len(self._idle) < self._max_idle:
            self._idle.append(connection)
        else:
            self._pool.release(connection)

    def give_up(self, connection: Any) -> None:
        """Close *connection*, since what is answered later belongs to nobody."""
        connection.disconnect()
        self._pool.release(connection)

    def close(self) -> None:
        """Give all that are at hand to the pool, to be closed there."""
        while self._idle:
            try:
                self._pool.release(self._idle.pop())
            except IndexError:  # another thread was faster
                return


def _is_spoilt(connection: Any) -> bool:
    """Return whether *connection* is closed, or holds an answer to nobody."""
    try:
        return bool(connection.can_read())
    except Exception:  # of the driver: it is closed
        return True


class Exchange:
    """
    Commands that are sent in one go and answered in order, over a connection that is nobody else's meanwhile.

    It ends with release() or give_up(). Not for a cluster.

    Args:
        connections: Give the connection, and get it back.
        answer_error: What redis-py raises for an error that the server has answered.
        is_checked: See Connections.take().
    """

    def __init__(
        self, connections: Connections, n_commands: int, answer_error: type[Exception], *, is_checked: bool = True
    ) -> None:
        self._connections = connections
        self.connection: Any = connections.take(is_checked=is_checked)
        self.answers: list[Any] = []
        """What has been read so far, errors of the server among them."""
        self._n_commands = n_commands
        self._answer_error = answer_error

    def send(self, commands: Sequence[tuple[Any, ...]]) -> None:
        """Send the words of *commands*."""
        self.connection.send_packed_command(self.connection.pack_commands(commands))

    def read(self) -> None:
        """Read all answers, as long as the connection waits for each."""
        connection = self.connection
        while len(self.answers) < self._n_commands:
            self._read_one(connection)

    def read_until(self, until_s: float) -> bool:
        """Read what comes before *until_s*, of time.monotonic(). Return whether that is everything."""
        connection = self.connection
        if connection is None and len(self.answers) < self._n_commands:
            raise ConnectionError("The connection was closed before everything was read.")
        while len(self.answers) < self._n_commands:
            if not connection.can_read(max(0.0, until_s - time.monotonic())):
                return False
            self._read_one(connection)
        return True

    def release(self) -> None:
        """Give the connection back: everything was read. May be called again."""
        # Another thread may have it as soon as the pool has.
        connection, self.connection = self.connection, None
        if connection is not None:
            self._connections.release(connection)

    def give_up(self) -> None:
        """Close the connection, since what is answered later belongs to nobody. May be called again."""
        connection, self.connection = self.connection, None
        if connection is not None:
            self._connections.give_up(connection)

    def _read_one(self, connection: Any) -> None:
        try:
            self.answers.append(connection.read_response())
        except self._answer_error as error:
            self.answers.append(error)
