"""
What is known of django.test.TestCase, whose transactions a test should not notice.

TestCase, and pytest-django's ``db``, open an atomic block around each class and each test and roll it back. Taken as it
is, nothing would be cached inside and nothing would be committed. So on a connection whose outermost block is of a
TestCase, that block counts as if it were not there. Its rows are visible to this connection alone; therefore such a
connection has a database name of its own (names.database_name()), and nobody else ever meets its entries and clocks.

Django marks these blocks with ``Atomic._from_testcase`` (private; read in Django 5.2.19 and 6.1.3).
"""

from __future__ import annotations

import itertools
import os
import secrets
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["is_between_blocks", "is_in_testcase", "note_commit", "note_rollback", "token_of"]

_TOKEN = "_live_cache_test_token"
_run = secrets.token_hex(4)
_numbers = itertools.count(1)
_commits = 0
_commits_before_rollback = 0


def is_in_testcase(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the outermost atomic block of *connection* is of a TestCase."""
    blocks: list[Any] = connection.atomic_blocks
    return bool(blocks) and bool(getattr(blocks[0], "_from_testcase", False))


def is_between_blocks(connection: BaseDatabaseWrapper) -> bool:
    """Return whether every atomic block of *connection* is of a TestCase, and there is one."""
    blocks: list[Any] = connection.atomic_blocks
    return bool(blocks) and bool(getattr(blocks[-1], "_from_testcase", False))


def token_of(connection: BaseDatabaseWrapper) -> str:
    """
    Return what tells the rows of *connection* from those of all others, while it is in a TestCase.

    It changes when another connection of this process commits, since such a change ticks no clock of this name.
    """
    token = connection.__dict__.get(_TOKEN)
    if token is None or token[0] != os.getpid():
        token = connection.__dict__[_TOKEN] = os.getpid(), next(_numbers)
    return f"{_run}.{token[0]}.{token[1]}.{_commits}"


def note_commit() -> None:
    """Give every connection in a TestCase another token: rows were committed that its clocks know nothing of."""
    global _commits
    _commits += 1  # a lost count of two at once is still a new number


def note_rollback() -> None:
    """Give them another token too if there was a commit since the last call: entries may be from an older snapshot."""
    global _commits_before_rollback
    if _commits != _commits_before_rollback:
        note_commit()
        _commits_before_rollback = _commits
