"""What the host ledger needs of the system: a directory of its own, a lock that survives fork and kill, the boot id."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import secrets
import stat
import sys
import threading
import time
import uuid
from pathlib import Path
from types import TracebackType
from typing import Final

from live_cache.exceptions import ConfigurationError, LedgerUnavailableError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # boot_id() refuses such a system before a lock is taken

__all__ = ["DirectoryLock", "boot_id"]

LOCK_NAME: Final = "ledger.lock"
TEMPORARY_SUFFIX: Final = ".new"
LOCK_TIMEOUT_S: Final = 1.0
"""Longest wait for a lock that is held for microseconds. A holder that was stopped must not stop everybody."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.00005, 0.002


def boot_id() -> bytes:
    """
    Return 16 bytes that are new after each boot of this host.

    Raises:
        ConfigurationError: The system has none, or has no file locks.
    """
    text = ""
    if fcntl is not None:
        if sys.platform == "darwin":
            text = _sysctl_text(b"kern.bootsessionuuid")
        else:
            try:
                text = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
            except OSError:
                text = ""
    try:
        return uuid.UUID(text).bytes
    except ValueError:
        raise ConfigurationError(
            "The ledger of this host needs file locks (fcntl) and a boot id, and this system lacks one of them. Use "
            "'memory://?ledger=process' if the project runs as one process, or a Redis location for several."
        ) from None


def _sysctl_text(name: bytes) -> str:
    library = ctypes.CDLL(ctypes.util.find_library("c"), use_errno=True)
    buffer = ctypes.create_string_buffer(64)
    size = ctypes.c_size_t(len(buffer))
    if library.sysctlbyname(name, buffer, ctypes.byref(size), None, ctypes.c_size_t(0)):
        return ""
    return buffer.value.decode("ascii", "replace").strip()


class DirectoryLock:
    """
    The lock of all writers in one directory, between threads and processes; it does not nest.

    The kernel drops it when its holder dies. Opens the file again when somebody removed the directory, and after a
    fork, of which its owner must tell it: the lock of a file belongs to the open file, which parent and child share.

    Raises:
        LedgerUnavailableError: On entering, if the lock was not to be had within LOCK_TIMEOUT_S, or the directory
            belongs to another user or can be written by others.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._path = str(directory / LOCK_NAME)
        self._threads = threading.Lock()
        self._descriptor: int | None = None
        self._owner: tuple[int, int] = (-1, -1)
        self._file_id: tuple[int, int] = (-1, -1)

    def __enter__(self) -> None:
        deadline_s = time.monotonic() + LOCK_TIMEOUT_S
        if not self._threads.acquire(timeout=LOCK_TIMEOUT_S):
            raise LedgerUnavailableError(f"Another thread holds the lock of {str(self._directory)!r}.")
        try:
            self._lock_file(deadline_s)
        except BaseException:
            self._close_file()
            self._threads.release()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if self._descriptor is not None:
                fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        finally:
            self._threads.release()

    def close(self) -> None:
        """Close the lock file. The next use opens it again."""
        with self._threads:
            self._close_file()

    def after_fork_in_child(self) -> None:
        """Let go of the parent's lock, without unlocking it."""
        self._threads = threading.Lock()
        self._close_file()

    def check_directory(self) -> None:
        """Raise LedgerUnavailableError if the directory is not one that only this user (or root) can change."""
        info = os.lstat(self._directory)
        if not stat.S_ISDIR(info.st_mode):
            raise LedgerUnavailableError(f"{str(self._directory)!r} is a symbolic link or no directory. Remove it.")
        user_id = os.geteuid()
        if info.st_uid != user_id and user_id != 0:
            raise LedgerUnavailableError(
                f"The ledger directory {str(self._directory)!r} belongs to {_user_name(info.st_uid)}, and this process "
                f"runs as {_user_name(user_id)}. Run both as one user, or give each its own directory."
            )
        if info.st_mode & 0o022:
            raise LedgerUnavailableError(
                f"The ledger directory {str(self._directory)!r} can be written by other users. Run: chmod 700 "
                f"{self._directory}"
            )
        self._owner = (info.st_uid, info.st_gid)

    def check_owner(self, path: str, info: os.stat_result) -> None:
        """Raise LedgerUnavailableError if *path* belongs to neither this user nor the owner of the directory."""
        user_id = os.geteuid()
        if info.st_uid != user_id and user_id != 0 and info.st_uid != self._owner[0]:
            raise LedgerUnavailableError(
                f"{path!r} belongs to {_user_name(info.st_uid)}, and this process runs as {_user_name(user_id)}. "
                "Remove it, or give each user a ledger directory of its own."
            )

    def open_file(self, path: str) -> int:
        """
        Return the descriptor of a file for locks, in the directory; both are made if they are not there.

        Raises:
            OSError: The system refuses.
            LedgerUnavailableError: See check_directory().
        """
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.check_directory()
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            self._adopt(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def replace_file(self, path: str, content: bytes | bytearray, *, size_bytes: int) -> None:
        """
        Put a file that begins with *content* at *path*, at once. Needs the lock.

        What lies between the content and *size_bytes* is a hole. It must get room before a mapping of it is touched: a
        hole in a mapped file kills the process when the disk is full.
        """
        for orphan in self._directory.glob("*" + TEMPORARY_SUFFIX):
            orphan.unlink(missing_ok=True)
        temporary = f"{path}.{secrets.token_hex(8)}{TEMPORARY_SUFFIX}"
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            try:
                self._adopt(descriptor)
                rest = memoryview(content)
                while rest:
                    rest = rest[os.write(descriptor, rest) :]
                os.ftruncate(descriptor, size_bytes)
            finally:
                os.close(descriptor)
            os.rename(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _lock_file(self, deadline_s: float) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            if self._descriptor is None:
                self._descriptor = self.open_file(self._path)
                held = os.fstat(self._descriptor)
                self._file_id = (held.st_dev, held.st_ino)  # an open file keeps its number
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() > deadline_s:
                    raise LedgerUnavailableError(
                        f"Another process has held the lock {self._path!r} for more than {LOCK_TIMEOUT_S} s. "
                        "Look for a stopped process that has it open."
                    ) from None
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
                continue
            try:
                there = os.lstat(self._path)
            except FileNotFoundError:
                there = None
            if there is not None and (there.st_dev, there.st_ino) == self._file_id:
                return
            self._close_file()

    def _adopt(self, descriptor: int) -> None:
        """Give a file that root made to the owner of the directory, whose processes must be able to open it."""
        if os.geteuid() == 0 and self._owner[0] > 0:
            os.fchown(descriptor, *self._owner)

    def _close_file(self) -> None:
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _user_name(user_id: int) -> str:
    try:
        import pwd

        return repr(pwd.getpwuid(user_id).pw_name)
    except (ImportError, KeyError):
        return f"the user with id {user_id}"
