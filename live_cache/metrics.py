"""Counters of one cache alias in this process."""

from __future__ import annotations

import os
import threading
import weakref

__all__ = ["Metrics"]


class Metrics:
    """
    Counts events by name, exactly, under any number of threads.

    A dotted event, such as ``misses.row``, is one kind of the event before its dot: where only kinds were counted,
    the snapshot holds their sum too. Counters start from zero in a forked child, so that a sum over processes counts
    nothing twice.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        _instances.add(self)

    def count(self, event: str, n: int = 1) -> None:
        """Add *n* to *event*."""
        with self._lock:
            self._counts[event] = self._counts.get(event, 0) + n

    def count_together(self, *events: str) -> None:
        """Add one to each of *events*, so that no snapshot shows one of them without the others."""
        with self._lock:
            for event in events:
                self._counts[event] = self._counts.get(event, 0) + 1

    def snapshot(self) -> dict[str, int]:
        """Return a copy of all counters, sorted by name, taken at one moment."""
        with self._lock:
            counts = dict(self._counts)
        sums: dict[str, int] = {}
        for event, n in counts.items():
            head, dot, _ = event.partition(".")
            if dot and head not in counts:
                sums[head] = sums.get(head, 0) + n
        return dict(sorted((counts | sums).items()))

    def _start_again(self) -> None:
        # Another thread may have held the lock at the moment of the fork; its copy would stay locked for ever.
        self._lock = threading.Lock()
        self._counts = {}


_instances: weakref.WeakSet[Metrics] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for metrics in tuple(_instances):
        metrics._start_again()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
