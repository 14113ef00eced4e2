"""
The lock that writers hold who declare no intent, since the clock of their table does not exist.

One empty file per table. Writers hold it together (``flock``, shared), so they never wait for each other. Whoever would
lift the hold of a newborn clock looks whether anybody holds it. The kernel drops the lock when its holder dies.
"""

from __future__ import annotations

import os
from collections.abc import Callable

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # boot_id() refuses such a system before a lock is taken

__all__ = ["WritersLock"]

_FLAGS = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)


class WritersLock:
    """
    Safe to share between threads, and used again after a fork.

    Each write opens the file anew, so no lock is another write's too, and none of threads is needed, which an interrupt
    could leave behind.

    Args:
        path: Of the file.
        make_file: Makes and opens it.
    """

    def __init__(self, path: str, make_file: Callable[[str], int]) -> None:
        self._path = path
        self._make_file = make_file
        self._descriptors: dict[object, int] = {}

    def take(self, holder: object) -> bool:
        """
        Hold the lock together with others, until release(). Return False if somebody is just looking for holders.

        Raises:
            OSError: The system refuses.
            LedgerUnavailableError: The directory is not one to be used.
        """
        try:
            self._descriptors[holder] = descriptor = os.open(self._path, _FLAGS)
        except FileNotFoundError:
            self._descriptors[holder] = descriptor = self._make_file(self._path)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self, holder: object) -> None:
        """Let go, if *holder* has called take()."""
        if holder in self._descriptors:
            os.close(self._descriptors.pop(holder))  # in one line: an interrupt comes before it, or after

    def is_held(self) -> bool:
        """
        Return whether anybody holds it, in any process.

        Raises:
            OSError: The system refuses.
        """
        try:
            descriptor = os.open(self._path, _FLAGS)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def after_fork_in_child(self) -> None:
        """Close what writes of the parent have open, which does not unlock it for them."""
        while self._descriptors:
            _, descriptor = self._descriptors.popitem()
            os.close(descriptor)
