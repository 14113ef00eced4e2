"""
Which tables the SQL guard has seen written in this thread, for the signals that come before and after.

Not on the connection: a save() sends its signals and its SQL in one thread, and to find the connection of an alias
takes a handler longer than all else that it does.
"""

from __future__ import annotations

import threading

__all__ = ["has_written", "recently_written"]


class _OfThread(threading.local):
    def __init__(self) -> None:
        self.by_alias: dict[str, set[str]] = {}


_of_thread = _OfThread()


def has_written(alias: str) -> bool:
    """Return whether this thread has asked for recently_written() of the database *alias* before."""
    return alias in _of_thread.by_alias


def recently_written(alias: str) -> set[str]:
    """Return the tables of the database *alias*, normalised, since they were last removed from this set."""
    try:
        return _of_thread.by_alias[alias]
    except KeyError:
        return _of_thread.by_alias.setdefault(alias, set())
