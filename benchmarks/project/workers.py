"""Processes of one run: forked from the process that has set Django up, so that a killed one is replaced at once."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["Workers", "close_everything", "is_orphan"]

_parent: list[int] = []


def is_orphan() -> bool:
    """Return whether the process that started this worker is gone, so that nobody will ever tell it to stop."""
    return bool(_parent) and os.getppid() != _parent[0]


class Workers:
    """The processes that were started, and their ends."""

    def __init__(self) -> None:
        self._pids: set[int] = set()
        self.failed = 0
        """How many ended with an exception, which was printed. Killed ones do not count."""

    def start(self, function: Callable[..., object], *arguments: Any) -> int:
        """
        Run *function* in a forked process, and return its id.

        The caller must have no open connections: see close_everything().
        """
        sys.stdout.flush()
        sys.stderr.flush()
        starter = os.getpid()
        pid = os.fork()
        if pid:
            self._pids.add(pid)
            return pid
        _parent[:] = [starter]
        status = 1
        try:
            function(*arguments)
            close_everything()
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(status)  # what the parent registered with atexit is for the parent

    def kill(self, pid: int) -> None:
        """Kill one with SIGKILL."""
        if pid in self._pids:
            os.kill(pid, signal.SIGKILL)

    def ended(self) -> list[int]:
        """Return those that have ended since the last call."""
        found = []
        for pid in tuple(self._pids):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                self._pids.discard(pid)
                found.append(pid)
                if os.WIFEXITED(status) and os.WEXITSTATUS(status):
                    self.failed += 1
        return found

    def wait(self, pids: set[int], *, timeout_s: float) -> None:
        """Wait until *pids* have ended; kill those that have not after *timeout_s*, and count them as failed."""
        end_s = time.monotonic() + timeout_s
        while self._pids & pids:
            self.ended()
            if time.monotonic() > end_s:
                for pid in self._pids & pids:
                    print(f"Process {pid} did not end; it is killed.", file=sys.stderr)
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                    self._pids.discard(pid)
                    self.failed += 1
            time.sleep(0.002)

    def close(self) -> None:
        """Kill all that are left."""
        for pid in self._pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        self._pids.clear()


def close_everything() -> None:
    """Close the connections of this process, to the database and to whatever the cache uses."""
    from django.core.cache import caches
    from django.db import connections

    connections.close_all()
    caches.close_all()
    from benchmarks.project.systems import current

    if current().name == "live_cache":
        from live_cache.assembly import close_all

        close_all()
