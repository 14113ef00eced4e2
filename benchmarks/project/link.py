"""
The network between the processes of a run and one of its servers, which may pause: nothing is lost, all comes late.

A program of its own, since the process of a run forks its workers and can have no threads:

    python -m benchmarks.project.link HOST PORT

It prints the port of 127.0.0.1 that leads there, and takes one line per command from its standard input, which it
answers with an empty one when it has obeyed. It ends with its input.
"""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from typing import Final

__all__ = ["DIRECTIONS", "LATEST_S", "Link"]

_TO_SERVER, _TO_CLIENT = DIRECTIONS = ("to_server", "to_client")
LATEST_S: Final = 0.3
"""After a pause each connection goes on at a moment of its own, as TCP sends again what was lost at its own times."""
_GO_ON: Final = "go_on"


class Link:
    """
    A way to a server that can be paused.

    Attributes:
        port: Of 127.0.0.1, which leads to the server.
    """

    def __init__(self, host: str, port: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.project.link", host, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def hold(self, *directions: str, share: float = 1.0) -> None:
        """
        Let nothing through any more until go_on().

        Args:
            directions: Some of DIRECTIONS.
            share: Of the connections, now and new ones, drawn by lot.
        """
        self._command(f"{share} {' '.join(directions)}")

    def go_on(self) -> None:
        """Deliver what was held, each connection within LATEST_S, and let everything through."""
        self._command(_GO_ON)

    def close(self) -> None:
        """End it, and with it all connections."""
        self._process.kill()
        self._process.communicate()

    def _command(self, line: str) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        self._process.stdout.readline()  # it has obeyed


class _End(asyncio.Protocol):
    """One end of a connection. What arrives here goes to the other end, if need be later; its close, too."""

    def __init__(self, relay: _Relay, direction: str, other: _End | None = None) -> None:
        self.relay = relay
        self.direction = direction
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.lot = random.random() if other is None else other.lot
        """The same at both ends, below 1. A pause that holds a share of the connections holds those with low ones."""
        self.is_held = relay.holds(self)
        self._arrived: list[bytes] = []
        self._is_over = False
        relay.ends.add(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        if self.other is None:
            self.relay.go_there(self)
        else:
            self.other.other = self
            self.other.pass_on()

    def data_received(self, data: bytes) -> None:
        self._arrived.append(data)
        self.pass_on()

    def connection_lost(self, error: Exception | None) -> None:
        self._is_over = True
        self.pass_on()

    def go_on(self) -> None:
        """Be held no longer."""
        self.is_held = False
        self.pass_on()

    def pass_on(self) -> None:
        """Send to the other end what has arrived, unless it is held or nobody is there yet."""
        if self.is_held or self.other is None or self.other.transport is None:
            return
        if not self.other._is_over:
            self.other.transport.writelines(self._arrived)
        self._arrived.clear()
        if self._is_over:
            self.other.transport.close()  # when all is written
            self.relay.ends.discard(self)


class _Relay:
    """All connections of a link."""

    def __init__(self, host: str, port: int) -> None:
        self.ends: set[_End] = set()
        self._held: frozenset[str] = frozenset()
        self._share = 0.0
        self._server = host, port
        self._calls: set[asyncio.Task[None]] = set()

    def holds(self, end: _End) -> bool:
        """Return whether what arrives at *end* must wait."""
        return end.direction in self._held and end.lot < self._share

    def client(self) -> _End:
        """Return the end of a client that comes in."""
        return _End(self, _TO_SERVER)

    def go_there(self, client: _End) -> None:
        """Connect *client* with the server."""
        call = asyncio.ensure_future(self._go_there(client))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _go_there(self, client: _End) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _End(self, _TO_CLIENT, client), *self._server)
        except OSError:
            assert client.transport is not None
            client.transport.abort()

    def obey(self, command: str) -> None:
        """Hold, or go on."""
        share, *directions = ["0"] if command == _GO_ON else command.split()
        self._share, self._held = float(share), frozenset(directions)
        for end in self.ends:
            if self.holds(end):
                end.is_held = True
            elif end.is_held:
                asyncio.get_running_loop().call_later(random.uniform(0, LATEST_S), end.go_on)


async def _serve(host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    relay = _Relay(host, port)
    server = await loop.create_server(relay.client, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    while line := await commands.readline():
        relay.obey(line.decode().strip())
        print(flush=True)


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
