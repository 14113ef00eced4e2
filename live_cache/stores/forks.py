"""
What must happen around os.fork(): a lock that another thread holds at that moment stays locked for ever in the child.
"""

from __future__ import annotations

import os
import threading
import weakref
from typing import ClassVar

__all__ = ["ForkAware"]


class ForkAware:
    """
    An object that is told before and after every os.fork() of this process.

    Subclasses call watch_forks() once they are complete, and override what they need. The hooks must not raise.
    """

    def watch_forks(self) -> None:
        """Ask for the calls below, for as long as this object lives."""
        with _Members.lock:
            _Members.all.add(self)

    def before_fork(self) -> None:
        """Run in the parent, just before the fork."""

    def after_fork_in_parent(self) -> None:
        """Run in the parent, just after the fork."""

    def after_fork_in_child(self) -> None:
        """Run in the child, before anything else. No other thread exists there."""


class _Members:
    lock: ClassVar = threading.RLock()
    all: ClassVar[weakref.WeakSet[ForkAware]] = weakref.WeakSet()
    forking: ClassVar[tuple[ForkAware, ...]] = ()


def _before() -> None:
    # Held until the fork is over, so that no member is created between the hooks.
    _Members.lock.acquire()
    _Members.forking = tuple(_Members.all)
    for member in _Members.forking:
        member.before_fork()


def _after_in_parent() -> None:
    members, _Members.forking = _Members.forking, ()
    for member in members:
        member.after_fork_in_parent()
    _Members.lock.release()


def _after_in_child() -> None:
    _Members.lock = threading.RLock()
    members, _Members.forking = _Members.forking, ()
    for member in members:
        member.after_fork_in_child()


if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(before=_before, after_in_parent=_after_in_parent, after_in_child=_after_in_child)
