"""
Whether a read may leave the thread that it runs in: the async twins first try to answer on the event loop.

Inside only_memory() nothing may wait for a database, a disk or a network. Whoever would have to calls leave_loop(), and
the twin (twins.py) does the whole read again in a thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["LeaveLoop", "is_on_loop", "leave_loop", "only_memory"]


class LeaveLoop(Exception):
    """The read needs a thread. Never leaves an async twin."""


_is_on_loop: ContextVar[bool] = ContextVar("live_cache_is_on_loop", default=False)


@contextmanager
def only_memory() -> Iterator[None]:
    """Let reads inside the block be answered from memory, or not at all. The block must not await."""
    token = _is_on_loop.set(True)
    try:
        yield
    finally:
        _is_on_loop.reset(token)


def is_on_loop() -> bool:
    """Return whether the caller is inside only_memory()."""
    return _is_on_loop.get()


def leave_loop() -> None:
    """Raise LeaveLoop inside only_memory(); do nothing elsewhere."""
    if _is_on_loop.get():
        raise LeaveLoop("The read needs a thread.")
