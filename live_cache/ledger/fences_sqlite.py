"""
Fences of SQLite: a writing transaction holds the write lock of the file; whoever gets the lock knows that it is over.

The lock is taken by a connection of its own, never by the caller's: BEGIN IMMEDIATE, ROLLBACK, without waiting.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from contextlib import closing
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["is_over", "session_token", "writer_token", "writers_in_progress"]

_TOKEN: Final = "_live_cache_sqlite_token"
"""Attribute of a connection: the driver's connection, and the fence of its transactions."""
_PATH: Final = "_live_cache_sqlite_path"
"""Attribute of a connection: the driver's connection, and the file that it has open."""


def writer_token(connection: BaseDatabaseWrapper) -> str:
    """
    Return ``sqlite:`` with this machine's run and the file's number, or ``sqlite-memory:`` with the process.

    Each is part of the proof: the lock of another host's file says nothing. Empty where /proc does not tell.
    """
    known: tuple[object, str] | None = connection.__dict__.get(_TOKEN)
    if known is not None and known[0] is connection.connection is not None:
        return known[1]  # the file that is open stays the same, whatever its path may lead to by now
    path = _path(connection)
    if path is None:
        process = _process()
        return process and f"sqlite-memory:{process}"
    file = _file(path)
    token = file and f"sqlite:{file}"
    connection.__dict__[_TOKEN] = connection.connection, token
    return token


def session_token(connection: BaseDatabaseWrapper) -> str:
    """Return ``sqlite-process:`` with the process, or nothing where /proc does not tell."""
    process = _process()
    return process and f"sqlite-process:{process}"


def is_over(connection: BaseDatabaseWrapper, token: str) -> bool:
    """See fences.is_over()."""
    kind, _, rest = token.partition(":")
    if kind == "sqlite":
        path = _path(connection)
        return path is not None and _file(path) == rest and _is_lock_free(path)
    if kind == "sqlite-memory" and rest == _process():
        return _path(connection) is None and _is_memory_free(connection)
    # With its process a database in memory is gone, and so is a statement that ran in it.
    return kind in {"sqlite-memory", "sqlite-process"} and _is_process_gone(rest)


def writers_in_progress(connection: BaseDatabaseWrapper) -> frozenset[str] | None:
    """See fences.writers_in_progress(). There is one at most, and it has no name: nobody, or unknown."""
    path = _path(connection)
    is_free = _is_memory_free(connection) if path is None else _is_lock_free(path)
    return frozenset() if is_free else None


def _path(connection: BaseDatabaseWrapper) -> Path | None:
    """Return the file of the database, or None of one in memory."""
    connection.ensure_connection()
    driver: Any = connection.connection
    known: tuple[object, Path | None] | None = connection.__dict__.get(_PATH)
    if known is not None and known[0] is driver:
        return known[1]
    # By the driver's cursor, so that nobody who watches Django's takes this for a query of the user.
    with closing(driver.execute("PRAGMA database_list")) as cursor:
        files = {row[1]: row[2] for row in cursor.fetchall()}
    path = Path(files["main"]) if files.get("main") else None
    connection.__dict__[_PATH] = (driver, path)
    return path


def _is_lock_free(path: Path) -> bool:
    # mode=rw: a file that is gone must not be made.
    return _can_lock(f"{path.absolute().as_uri()}?mode=rw")


def _is_memory_free(connection: BaseDatabaseWrapper) -> bool:
    driver: Any = connection.connection
    if driver.in_transaction:
        return False
    name = str(connection.settings_dict["NAME"])
    # A private database in memory has this one connection.
    return not name.startswith("file:") or _can_lock(name)


def _can_lock(uri: str) -> bool:
    try:
        own = sqlite3.connect(uri, uri=True, timeout=0, isolation_level=None)
    except sqlite3.Error:
        return False
    try:
        own.execute("BEGIN IMMEDIATE")
        own.execute("ROLLBACK")
    except sqlite3.Error:
        return False
    finally:
        own.close()
    return True


def _file(path: Path) -> str:
    run = _machine_run()
    if not run:
        return ""
    info = os.stat(path)
    return f"{run}.{info.st_dev}.{info.st_ino}"


def _machine_run() -> str:
    """Return a short name of this boot of this machine, or nothing."""
    try:
        return _hash_of_boot()
    except OSError:
        return ""


@cache
def _hash_of_boot() -> str:
    text = Path("/proc/sys/kernel/random/boot_id").read_bytes()
    return hashlib.blake2b(text, digest_size=6).hexdigest()


def _process() -> str:
    """Return a name of this process that no other has, now or later, or nothing where /proc does not tell."""
    run = _machine_run()
    if not run:
        return ""
    try:
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return ""
    return f"{run}.{namespace}.{os.getpid()}.{_started(os.getpid())}"


def _is_process_gone(name: str) -> bool:
    own = _process()
    parts = name.split(".")
    # In another PID namespace the same number is another process.
    if len(parts) != 4 or not own or parts[:2] != own.split(".")[:2]:
        return False
    return _started(int(parts[2])) != int(parts[3])


def _started(pid: int) -> int:
    """Return when a process started, in clock ticks since the boot, or 0 if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return 0
    state, *rest = fields.rpartition(")")[2].split()  # The name, in brackets, may hold spaces and brackets.
    return 0 if state in "ZX" else int(rest[18])
