"""
A SQLite file of our own: in a directory that nobody else can write, opened by many threads, and left alone by forks.
"""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from live_cache.exceptions import StoreUnavailableError
from live_cache.stores.breaker import CircuitBreaker
from live_cache.stores.forks import ForkAware

__all__ = ["SqliteFile"]

T = TypeVar("T")

_MAX_IDLE: Final = 8
# How long a fork waits for statements of other threads. After it the child does without the file.
_FORK_PATIENCE_S: Final = 10.0
_RETRY_INTERVAL_S: Final = 0.005
_BUSY_CODES: Final = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
# The file is what it was, and to make it anew would write to a disk that is full.
_HARMLESS_CODES: Final = _BUSY_CODES | {sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY}
# Two stores of one process must not create the same file at once: see _make_private_file().
_creation_lock = threading.Lock()


class SqliteFile(ForkAware):
    """
    Connections to one SQLite file in WAL mode, each used by one thread at a time.

    A connection must not cross a fork, and neither may SQLite's knowledge of the locks that this process holds:
    https://www.sqlite.org/howtocorrupt.html section 2.6. So a fork waits for running statements, and closes every
    connection before it happens.

    Args:
        path: The file. Its directory is created for this user alone.
        prepare: Called when the directory is there, before the first connection: makes the tables.
        timeout_s: Seconds to wait for the lock of another writer.

    A writer that waited in vain opens a circuit breaker for writers: whoever holds the lock may be stopped, or gone for
    good. Readers wait for no writer.
    """

    def __init__(self, path: Path, *, prepare: Callable[[], None], timeout_s: float = 60.0) -> None:
        self.path = path
        self._prepare = prepare
        self._timeout_s = timeout_s
        self.breaker = CircuitBreaker()
        self._preparing = threading.Lock()
        self._changed = threading.Condition()
        self._idle: list[sqlite3.Connection] = []
        # Which file was prepared: device and number.
        self._prepared: tuple[int, int] | None = None
        self._is_forking = False
        self._is_lost = False
        self._active = 0
        # Raised by close() and by errors: connections of an older generation are not used again.
        self._generation = 0
        self.watch_forks()

    def __del__(self) -> None:
        for connection in self._idle:
            connection.close()

    def read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        """
        Return what *operation* returns, called with a connection outside of a transaction.

        Raises:
            StoreUnavailableError: SQLite or the operating system failed, or the directory is not safe.
        """
        connection, generation = None, -1
        try:
            connection, generation = self._check_out()
            return self._patiently(lambda: operation(connection))
        except (sqlite3.Error, OSError) as error:
            self.close()
            if _error_code(error) not in _HARMLESS_CODES:
                self._prepared = None
            raise self._unavailable(error) from error
        finally:
            if generation >= 0:
                self._check_in(connection, generation)

    def write(self, operation: Callable[[sqlite3.Connection], T], *, is_durable: bool = False) -> T:
        """
        Return what *operation* returns, called within a transaction that alone may write. An exception rolls back.

        Args:
            is_durable: Wait until the disk has this transaction and every earlier one.

        Raises:
            StoreUnavailableError: As read() does, also if another writer holds its lock for longer than timeout_s.
        """

        def run(connection: sqlite3.Connection) -> T:
            if is_durable:
                connection.execute("PRAGMA synchronous = FULL")
            # Not retried without end: a read-only disk would keep the thread here for ever.
            self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
            try:
                result = operation(connection)
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                if is_durable:
                    connection.execute("PRAGMA synchronous = NORMAL")
            return result

        turn = self.breaker.admit()
        if turn is None:
            raise StoreUnavailableError(
                f"Writers to {self.path} waited in vain lately. It is tried again after a pause."
            )
        try:
            result = self.read(run)
        except StoreUnavailableError as error:
            if _error_code(error.__cause__) in _BUSY_CODES:
                self.breaker.fail(turn)
            raise
        self.breaker.succeed(turn)
        return result

    def close(self) -> None:
        """Close every connection; those in use, when they are given back. The next use opens new ones."""
        with self._changed:
            idle, self._idle = self._idle, []
            self._generation += 1
        for connection in idle:
            connection.close()

    def before_fork(self) -> None:
        """Wait for the statements of other threads, let no new one start, and close every connection."""
        deadline_s = time.monotonic() + _FORK_PATIENCE_S
        with self._changed:
            self._is_forking = True
            while self._active and (remaining_s := deadline_s - time.monotonic()) > 0:
                self._changed.wait(remaining_s)
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def after_fork_in_parent(self) -> None:
        """Let the threads go on."""
        with self._changed:
            self._is_forking = False
            self._changed.notify_all()

    def after_fork_in_child(self) -> None:
        """Start without connections; without the file, if a thread of the parent was still using it."""
        self._changed = threading.Condition()
        self._preparing = threading.Lock()
        self._is_forking = False
        self._is_lost = self._is_lost or self._active > 0
        self._active = 0
        self._idle = []

    def _check_out(self) -> tuple[sqlite3.Connection, int]:
        # Somebody may have removed the directory, and another process made it anew. SQLite does not notice.
        if self._prepared is not None and _identity(self.path) != self._prepared:
            self.close()
            self._prepared = None
        with self._changed:
            while self._is_forking:
                self._changed.wait()
            if self._is_lost:
                raise StoreUnavailableError(
                    f"This process was forked while another thread was writing to {self.path}, which SQLite does not "
                    "survive. It works without this file; fork before threads are started."
                )
            self._active += 1
            generation = self._generation
            if self._idle:
                return self._idle.pop(), generation
        try:
            return self._open(), generation
        except BaseException:
            self._check_in(None, generation)
            raise

    def _check_in(self, connection: sqlite3.Connection | None, generation: int) -> None:
        with self._changed:
            if connection is not None and generation == self._generation and len(self._idle) < _MAX_IDLE:
                self._idle.append(connection)
                connection = None
            # Closed before the count goes down, since a fork waits for the count.
            if connection is not None:
                connection.close()
            self._active -= 1
            if not self._active:
                self._changed.notify_all()

    def _open(self) -> sqlite3.Connection:
        with self._preparing:
            if self._prepared is None:
                with _creation_lock:
                    _make_private_directory(self.path.parent)
                    _make_private_file(self.path)
                self._prepare()
                self._prepared = _identity(self.path)
        connection = sqlite3.connect(
            f"{self.path.as_uri()}?mode=rw",  # Never creates a file: that is for _make_private_file().
            uri=True,
            timeout=self._timeout_s,
            isolation_level=None,
            check_same_thread=False,
        )
        # NORMAL survives a killed process; flush() is for power cuts. Without a memory map, a file that somebody
        # truncates is an error and not the end of the process. Triggers of a foreign hand may not call functions.
        try:
            for pragma in ("synchronous = NORMAL", "mmap_size = 0", "trusted_schema = OFF"):
                connection.execute(f"PRAGMA {pragma}")
        except BaseException:
            connection.close()
            raise
        return connection

    def _patiently(self, attempt: Callable[[], T]) -> T:
        """Call *attempt* again for as long as it fails for a lock of another process, up to the timeout."""
        deadline_s = time.monotonic() + self._timeout_s
        while True:
            try:
                return attempt()
            except sqlite3.OperationalError as error:
                # SQLite itself waits in most cases, but answers at once where it sees a deadlock or a recovery.
                if _error_code(error) not in _BUSY_CODES or time.monotonic() > deadline_s:
                    raise
                time.sleep(_RETRY_INTERVAL_S)

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        message = f"The file {self.path} did not do what it was asked: {error}."
        if _error_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            message += (
                " It is damaged: stop the processes that use it and remove its directory, which holds only copies."
            )
        return StoreUnavailableError(message)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what tells the file from another one of the same name, or None if there is none."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _error_code(error: BaseException | None) -> int:
    """Return SQLite's primary result code, or 0 for an error that SQLite did not report."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _make_private_directory(directory: Path) -> None:
    """
    Create *directory* for this user alone, or make sure that nobody else can write to it.

    Raises:
        StoreUnavailableError: It is a symbolic link, no directory, another user's, or others can write to it.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o700)
    status = directory.lstat()
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "no directory"
        raise StoreUnavailableError(f"The cache directory {directory} is {kind}. Name a real directory.")
    _check_owner(directory, status, "directory")


def _make_private_file(path: Path) -> None:
    """
    Create *path* for this user alone, or make sure that nobody else can read it or write to it.

    Raises:
        StoreUnavailableError: It is no regular file, another user's, or others can write to it.
    """
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    # By name and not by descriptor: to close one drops every lock that SQLite holds on the file in this process.
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode):
        raise StoreUnavailableError(f"The cache file {path} is no regular file. Remove it.")
    _check_owner(path, status, "file")
    if status.st_mode & 0o077 and status.st_uid == os.geteuid():
        path.chmod(0o600)


def _check_owner(path: Path, status: os.stat_result, kind: str) -> None:
    user = os.geteuid()
    if status.st_uid not in (0, user):
        raise StoreUnavailableError(
            f"The cache {kind} {path} belongs to user {status.st_uid}, and this process runs as user {user}. "
            "Name a directory of its own, or change the owner."
        )
    if status.st_mode & 0o022:
        raise StoreUnavailableError(
            f"Others than the owner can write to the cache {kind} {path}, and so could plant entries: chmod go-w it."
        )
