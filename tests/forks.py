"""Children of this process, by fork: one that does its work, and one that is killed in the middle of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

__all__ = ["forking", "last_report_of_killed", "run_in_fork"]

forking = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
"""Marks a test that forks while other threads run."""


def run_in_fork(work: Callable[[], None], *, patience_s: int = 30) -> int:
    """Return the exit code of a child that does *work*; it is killed by an alarm if it hangs."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(patience_s)
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def last_report_of_killed(child: int, reading: int, *, after_s: float) -> int:
    """
    Kill *child* some time after its first report, and return the number that it reported last.

    Args:
        reading: The end of its pipe, which it writes numbers of eight digits to. It is closed.
        after_s: Seconds that it goes on, so that the kill falls anywhere within what it does.
    """
    reported = os.read(reading, 8)
    time.sleep(after_s)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while rest := os.read(reading, 8):
        reported = rest
    os.close(reading)
    return int(reported)
