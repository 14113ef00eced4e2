"""
An exception out of nowhere, at any line of what stands around a write: nothing is left open, and nothing is stale.

Such exceptions are KeyboardInterrupt, time limits of task queues, and whatever else a signal handler raises in a
process that goes on afterwards.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any

import pytest
from django.db import Error, connections, transaction

from live_cache.assembly import get_assembly
from live_cache.ledger import fences
from live_cache.writes.transactions import state_of
from tests.deep import IS_DEEP
from tests.left_open import AUTOCOMMIT, left_open
from tests.test_own_transaction import WRITES
from tests.test_transactions import authors, live_names, names, rename
from tests.testapp.models import Author

__all__ = ["authors"]

FILES = ("writes/own_transaction.py", "writes/transactions.py", "writes/inserts.py")


class Interrupt(BaseException):
    """Raised by the tracer."""


class Tracer:
    """Raises Interrupt at the line with a number, counted over the lines of some files as they run."""

    def __init__(self, number: int, *files: str) -> None:
        self.left = number
        self.files = tuple(f"/live_cache/{file}" for file in files)
        self.where = ""

    def __call__(self, frame: FrameType, event: str, argument: object) -> Any:
        return self.line if frame.f_code.co_filename.endswith(self.files) else None

    def line(self, frame: FrameType, event: str, argument: object) -> Any:
        if event == "line" and not self.where:
            self.left -= 1
            if self.left < 0:
                self.where = f"{frame.f_code.co_filename.rpartition('/')[2]}, line {frame.f_lineno}"
                raise Interrupt
        return self.line


@contextmanager
def interrupting(tracer: Tracer) -> Iterator[None]:
    outer = sys.gettrace()  # of a coverage tool
    sys.settrace(tracer)
    try:
        yield
    except Interrupt:
        pass
    except Error:  # psycopg leaves no transaction by turning autocommit on, as Atomic tries then
        if not tracer.where:
            raise
    finally:
        sys.settrace(outer)


def write_in_block(alias: str) -> None:
    with transaction.atomic(using=alias):
        rename(alias, "Block")


def prepare(alias: str) -> None:
    """Make two authors under an old name, which is cached."""
    keys = list(Author.objects.using(alias).order_by("pk").values_list("pk", flat=True))
    for key in keys[2:]:
        Author.objects.using(alias).filter(pk=key)._raw_delete(alias)  # type: ignore[attr-defined]
    rename(alias, "Old")
    get_assembly().ledger.reset()  # with the intents of the last interrupt, which would keep everybody from the cache
    assert live_names(alias) == ["Old"] * 2


def mend(connection: Any) -> None:
    """Take a connection away that an interrupt inside of atomic() has left as Django leaves it."""
    with suppress(Error):
        connection.connection.close()
    connection.in_atomic_block = connection.closed_in_transaction = False
    connection.connection = None


@pytest.mark.parametrize("write", [*WRITES.values(), write_in_block], ids=[*WRITES, "block"])
def test_at_every_line(
    authors: str,
    write: Callable[[str], None],
    second_connection: Callable[[str], Any],
    request: pytest.FixtureRequest,
) -> None:
    """What was committed is read, what was not is not; in autocommit mode no transaction is left."""
    connection: Any = connections[authors]
    other = second_connection(authors)
    number = 0
    request.addfinalizer(lambda: mend(connection))  # a connection that fails the test would fail others
    step = 1 if IS_DEEP else 3 if connection.vendor == "sqlite" else 11
    while True:
        prepare(authors)
        other.run(live_names, authors)
        tracer = Tracer(number, *FILES)
        with interrupting(tracer):
            write(authors)
        if not tracer.where:
            break
        found = left_open(connection)
        if write is write_in_block:
            # Atomic of Django may leave its transaction open, and what comes next decides what becomes of it.
            if found != AUTOCOMMIT:
                mend(connection)
        else:
            assert found["driver"] is None or found == AUTOCOMMIT, tracer.where
        if number % 2:
            with suppress(ZeroDivisionError), transaction.atomic(using=authors):
                rename(authors, "Lost")
                raise ZeroDivisionError
        for run in (other.run, lambda function, alias: function(alias)):
            assert run(live_names, authors) == run(names, authors), tracer.where
        state = state_of(connection)
        left = (state.insertion, state.is_begin_due, state.is_own_begin, state.has_writes)
        assert left == (None, False, False, False), tracer.where
        number += step
    assert number > 30, "so few lines: are these the right files?"


def test_at_every_line_of_a_question_about_writers(authors: str, request: pytest.FixtureRequest) -> None:
    """MySQL answers it inside of a transaction of the reader's connection, which must not stay open."""
    connection: Any = connections[authors]
    if connection.vendor != "mysql":
        pytest.skip("others are asked in no transaction, or on another connection")
    assert fences.writers_in_progress(connection) is not None
    request.addfinalizer(lambda: mend(connection))
    number = 0
    while True:
        tracer = Tracer(number, "ledger/fences_mysql.py")
        with interrupting(tracer):
            fences.writers_in_progress(connection)
        assert left_open(connection) == AUTOCOMMIT, tracer.where
        if not tracer.where:
            break
        number += 1
    assert number > 10, "so few lines: is this the right file?"
