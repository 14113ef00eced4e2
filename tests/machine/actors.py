"""Actors: one connection each, in a thread of its own, with the transactions that are open on it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any, TypeVar

from django.core.exceptions import MultipleObjectsReturned
from django.db import DEFAULT_DB_ALIAS, DatabaseError, Error, IntegrityError, InterfaceError, connections, transaction
from django.db.backends.signals import connection_created
from django.db.models import ProtectedError, RestrictedError

from live_cache.writes.transactions import state_of
from tests.conftest import SecondConnection
from tests.left_open import AUTOCOMMIT, left_open
from tests.machine.queries import Built
from tests.machine.writes import SkippedError

__all__ = ["Actor"]

T = TypeVar("T")

# A wait for the other actor's lock would last for ever, since both are driven by one thread: give up at once. And
# nothing has to survive a power cut.
_SESSION = {
    "sqlite": ["PRAGMA busy_timeout = 1"],
    "postgresql": ["SET lock_timeout = '2ms'", "SET synchronous_commit = off"],
    "mysql": ["SET innodb_lock_wait_timeout = 0", "SET lock_wait_timeout = 1"],
}


class _RollBack(Exception):
    """Leaves an atomic block with a rollback."""


class Actor:
    """One connection and its transactions. Only the methods whose names begin with ``do_`` run in its own thread."""

    def __init__(self, alias: str = DEFAULT_DB_ALIAS) -> None:
        self.alias = alias
        self.mode = "auto"
        """auto, atomic, raw (begun by SQL) or manual (autocommit is off)."""
        self.cursor_rows: Any = None
        """An iterator that is not finished, so that a SQLite connection stays at its old snapshot."""
        self._stack: list[tuple[str, Any]] = []
        self._must_reconnect = False
        self.built: Built = {}
        """The querysets that it has built: it evaluates clones of them, as a project does that keeps a queryset."""
        self._thread = SecondConnection(alias)
        self.thread_id = self._thread.run(threading.get_ident)
        connection_created.connect(self._prepare)

    @property
    def depth(self) -> int:
        """How many blocks and savepoints are open."""
        return len(self._stack)

    @property
    def reads_a_snapshot(self) -> bool:
        """Whether plain reads may be older than the last commit, so that they say nothing about live ones."""
        return self.cursor_rows is not None

    def call(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """Call *function* in the thread of this actor, on a connection that waits for no lock."""

        def run() -> T:
            self.do_connect()
            return function(*args, **kwargs)

        return self._thread.run(run)

    def attempt(self, function: Callable[..., object], *args: Any) -> bool:
        """Call *function* there; roll back what the database refuses. Return whether it was done."""
        return self.call(self.do_attempt, function, *args)

    def renew(self) -> None:
        """Leave whatever is open and forget, for the next example. The connection stays, unless it is broken."""
        self.built.clear()
        self.call(self.do_renew)

    def close(self) -> None:
        """End the thread and its connection."""
        connection_created.disconnect(self._prepare)
        self._thread.close()

    # -- in the thread ------------------------------------------------------------------------------------------------

    def do_connect(self) -> None:
        connection = connections[self.alias]
        if connection.connection is None and not connection.in_atomic_block:
            connection.connect()

    def _prepare(self, connection: Any, **_: Any) -> None:
        """Prepare a connection that was just opened: Django also opens one by itself when the last was closed."""
        if connection.alias == self.alias and threading.get_ident() == self.thread_id:
            with closing(connection.connection.cursor()) as cursor:
                for sql in _SESSION[connection.vendor]:
                    cursor.execute(sql)

    def do_renew(self) -> None:
        self.do_close_cursor()
        self.do_unwind(_RollBack())
        state_of(connections[self.alias]).reset()

    def do_attempt(self, function: Callable[..., object], *args: Any) -> bool:
        try:
            function(*args)
        except (SkippedError, ProtectedError, RestrictedError, MultipleObjectsReturned):
            return False
        except IntegrityError as error:
            self.do_unwind(error, levels=1)
            return False
        except Error as error:
            self.do_unwind(error)
            return False
        return True

    def do_begin(self, kind: str) -> None:
        """Open a transaction, or a level in it: atomic, snapshot, savepoint, raw, manual."""
        connection = connections[self.alias]
        if kind == "savepoint":
            self._stack.append(("savepoint", connections[self.alias].savepoint()))
            return
        if kind == "raw":
            self._execute("BEGIN")
            self.mode = "raw"
            return
        if kind == "manual":
            transaction.set_autocommit(False, using=self.alias)
            self.mode = "manual"
            return
        if kind == "snapshot" and connection.vendor == "mysql":
            self._execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._must_reconnect = True
        atomic = transaction.atomic(using=self.alias)
        atomic.__enter__()
        self._stack.append(("atomic", atomic))
        if self.mode == "auto":
            self.mode = "atomic"
        if kind == "snapshot" and connection.vendor == "postgresql":
            self._execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            self._must_reconnect = True

    def do_end(self, how: str) -> None:
        """End the innermost level: commit, rollback, or mark (set_rollback(), then leave normally)."""
        if self.mode == "raw":
            self.mode = "auto"
            self._execute("ROLLBACK" if how != "commit" else "COMMIT")
            return
        if not self._stack:  # manual
            if how == "commit":
                transaction.commit(using=self.alias)
            else:
                transaction.rollback(using=self.alias)
            if how == "mark":
                transaction.set_autocommit(True, using=self.alias)
                self.mode = "auto"
            return
        kind, item = self._stack.pop()
        try:
            if kind == "savepoint":
                end = transaction.savepoint_commit if how == "commit" else transaction.savepoint_rollback
                end(item, using=self.alias)
            elif how == "rollback":
                item.__exit__(_RollBack, _RollBack(), None)
            else:
                if how == "mark":
                    transaction.set_rollback(True, using=self.alias)
                item.__exit__(None, None, None)
        finally:
            self._settle()

    def do_unwind(self, error: BaseException, levels: int | None = None) -> None:
        """Leave *levels* blocks (None: everything) as an exception would."""
        if levels is None or self.mode == "raw" or (self._stack and self._stack[-1][0] == "savepoint"):
            levels = len(self._stack)
        is_everything = levels == len(self._stack)
        for _ in range(min(levels, len(self._stack))):
            kind, item = self._stack.pop()
            if kind == "atomic":
                with suppress(Error):
                    item.__exit__(type(error), error, None)
        if self.mode == "raw":
            self.mode = "auto"
            with suppress(Error):
                self._execute("ROLLBACK")
        if self.mode == "manual" and is_everything:
            self.mode = "auto"
            with suppress(Error):
                transaction.rollback(using=self.alias)
                transaction.set_autocommit(True, using=self.alias)
        self._settle()
        self.do_connect()
        self.do_check()

    def do_check(self) -> None:
        """Outside of transactions the connection shows none: not to Django, not to the driver, not to the server."""
        found = left_open(connections[self.alias])
        if self.mode == "auto" and found["driver"] not in (None, "broken") and found != AUTOCOMMIT:
            raise AssertionError(f"No transaction is open, and the connection has {found}.")

    def do_lose_connection(self) -> None:
        """Close the driver's connection under Django, as a server does that restarts."""
        self.do_close_cursor()
        connection: Any = connections[self.alias]
        with suppress(Exception):
            connection.connection.close()
        self.do_unwind(InterfaceError("The connection is lost."))
        self._close_connection()

    def do_open_cursor(self, model: Any) -> None:
        rows = model._base_manager.using(self.alias).iterator(chunk_size=1)
        next(rows, None)
        self.cursor_rows = rows

    def do_close_cursor(self) -> None:
        if self.cursor_rows is not None:
            self.cursor_rows.close()
            self.cursor_rows = None

    def _execute(self, sql: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)

    def _settle(self) -> None:
        if self._stack:
            return
        if self.mode == "atomic":
            self.mode = "auto"
        connection = connections[self.alias]
        if self._must_reconnect and self.mode == "auto":
            self._must_reconnect = False
            self._close_connection()
            return
        if self.mode == "auto" and connection.connection is not None:
            try:
                is_usable = connection.is_usable()
            except DatabaseError:
                is_usable = False
            if not is_usable:
                self._close_connection()

    def _close_connection(self) -> None:
        self.do_close_cursor()
        with suppress(Error):  # PyMySQL complains about a connection that is closed already
            connections[self.alias].close()
