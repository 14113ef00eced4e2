"""Points at which a test holds another thread or process."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

__all__ = ["FileGate", "Gate"]

_TIMEOUT_S = 10.0


class Gate:
    """
    A point at which one thread stops until the test lets it go on.

        gate = Gate()
        writer = other.start(lambda: (write(), gate.arrive_and_wait(), commit()))
        gate.wait_arrived()      # the writer stands between its write and its commit
        ...
        gate.open()
        writer.result(10)

    Every wait ends with TimeoutError after *timeout_s* seconds, so that a broken test fails and does not hang.
    """

    def __init__(self, *, timeout_s: float = _TIMEOUT_S) -> None:
        self.timeout_s = timeout_s
        self._arrived = threading.Event()
        self._opened = threading.Event()

    @property
    def has_arrived(self) -> bool:
        """Whether somebody has come to the gate, now or earlier."""
        return self._arrived.is_set()

    def arrive_and_wait(self) -> None:
        """Tell that this thread is here, and wait for open(). After open() it passes at once."""
        self._arrived.set()
        if not self._opened.wait(self.timeout_s):
            raise TimeoutError(f"Nobody opened the gate within {self.timeout_s} s.")

    def wait_arrived(self) -> None:
        """Wait until another thread has come to the gate."""
        if not self._arrived.wait(self.timeout_s):
            raise TimeoutError(f"Nobody came to the gate within {self.timeout_s} s.")

    def open(self) -> None:
        """Let those who wait, and all who come later, pass."""
        self._opened.set()


class FileGate:
    """
    A Gate between processes: two files beside *path*.

    The other process makes its own with the same path, which is a plain string to pass as an argument.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout_s: float = _TIMEOUT_S) -> None:
        self.path = os.fspath(path)
        self.timeout_s = timeout_s
        self._arrived = Path(f"{self.path}.arrived")
        self._opened = Path(f"{self.path}.opened")

    @property
    def has_arrived(self) -> bool:
        """Whether somebody has come to the gate, now or earlier."""
        return self._arrived.exists()

    def arrive_and_wait(self) -> None:
        """Tell that this process is here, and wait for open(). After open() it passes at once."""
        self._arrived.touch()
        self._wait_for(self._opened, "Nobody opened the gate")

    def wait_arrived(self) -> None:
        """Wait until another process has come to the gate."""
        self._wait_for(self._arrived, "Nobody came to the gate")

    def open(self) -> None:
        """Let those who wait, and all who come later, pass."""
        self._opened.touch()

    def _wait_for(self, path: Path, complaint: str) -> None:
        end = time.monotonic() + self.timeout_s
        while not path.exists():
            if time.monotonic() > end:
                raise TimeoutError(f"{complaint} within {self.timeout_s} s.")
            time.sleep(0.005)
