"""
The transaction of one statement that was sent in autocommit mode (rule 4).

It leaves the connection as ``transaction.atomic()`` would, at every moment at which code of the user could look at it,
and does less on the way: nothing is nested in anything here, and BEGIN is sent by the driver. COMMIT and ROLLBACK pass
the hooks like all others. Atomic was read in Django 5.2.19 and 6.1.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from django.db import Error
from django.db.transaction import Atomic

from live_cache.writes.sending import can_begin_late

if TYPE_CHECKING:
    from types import TracebackType

    from live_cache.writes.transactions import ConnectionState

__all__ = ["OwnTransaction"]


# Whoever asks which blocks are open (durable ones do) finds one.
_BLOCK: Final = Atomic(None, savepoint=False, durable=False)


class OwnTransaction:
    """
    A block around one statement, on an open connection in autocommit mode.

    Raises:
        Error: The database has refused to begin or to commit. After a COMMIT that failed a ROLLBACK was sent.
    """

    __slots__ = ("_connection", "_is_begun_by_sql", "_state")

    def __init__(self, state: ConnectionState) -> None:
        self._state = state
        self._connection: Any = state.connection  # attributes that django-stubs does not know are set here

    def __enter__(self) -> None:
        connection = self._connection
        connection.commit_on_exit = True
        connection.needs_rollback = False
        self._begin(connection)
        connection.autocommit = False
        connection.in_atomic_block = True
        connection.atomic_blocks.append(_BLOCK)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        connection = self._connection
        connection.atomic_blocks.pop()
        connection.in_atomic_block = False
        self._state.is_begin_due = False  # of a statement that was never sent
        is_committed = False
        try:
            if connection.closed_in_transaction:
                pass  # the database rolls it back by itself
            elif kind is None and not connection.needs_rollback:
                self._commit(connection)
                is_committed = True
            else:
                self._roll_back(connection)
        finally:
            if connection.closed_in_transaction:
                connection.connection = None
            else:
                self._end(connection, is_committed=is_committed)

    # Nobody who logs the queries of the user is to see these, so they go round the methods of Django that log them.

    def _begin(self, connection: Any) -> None:
        vendor = connection.vendor
        self._is_begun_by_sql = vendor == "sqlite" or (vendor == "postgresql" and can_begin_late(connection.connection))
        if not self._is_begun_by_sql:
            connection._set_autocommit(False)
            return
        if vendor == "postgresql":
            self._state.is_begin_due = True
            return
        mode = getattr(connection, "transaction_mode", None)
        self._state.has_sqlite_lock = False
        with connection.wrap_database_errors:
            connection.connection.execute(f"BEGIN {mode}" if mode else "BEGIN").close()

    def _commit(self, connection: Any) -> None:
        def commit() -> None:
            with connection.wrap_database_errors:
                connection.connection.commit()

        try:
            self._state.committing(commit)
            connection.errors_occurred = False
        except BaseException:  # also an interrupt: what was declared is ticked, now that the transaction is over
            self._roll_back(connection)
            raise

    def _roll_back(self, connection: Any) -> None:
        def roll_back() -> None:
            with connection.wrap_database_errors:
                connection.connection.rollback()

        try:
            self._state.rolling_back(roll_back)
        except Error:
            connection.close()  # something is wrong with it
        else:
            connection.errors_occurred = False
            connection.needs_rollback = False
            connection.run_on_commit = []

    def _end(self, connection: Any, *, is_committed: bool) -> None:
        if not (is_committed and self._is_begun_by_sql):
            connection.ensure_connection()
            connection._set_autocommit(True)
        connection.autocommit = True
        if is_committed and connection.run_on_commit:  # of code that runs in a statement, another execute wrapper
            connection.run_and_clear_commit_hooks()
