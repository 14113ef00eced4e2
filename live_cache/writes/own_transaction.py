"""
The transaction of one statement that was sent in autocommit mode (rule 4).

While it is open the connection is as in ``transaction.atomic()``, at every moment at which code of the user could
look at it; but nothing is nested in anything here, and BEGIN is sent by the driver. COMMIT and ROLLBACK pass the hooks
like all others. Afterwards, whatever has failed, the connection is as Django would have left it in autocommit mode.
Atomic was read in Django 5.2.19 and 6.1.3.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar

from django.db import Error
from django.db.transaction import Atomic

from live_cache.writes.sending import LOCKING_MODES, can_begin_late

if TYPE_CHECKING:
    from live_cache.writes.transactions import ConnectionState

__all__ = ["OwnTransaction"]

T = TypeVar("T")

# Whoever asks which blocks are open (durable ones do) finds one.
_BLOCK: Final = Atomic(None, savepoint=False, durable=False)
# Whatever completion_type says: nothing is open after a statement in autocommit mode.
_COMMIT: Final = "COMMIT AND NO CHAIN NO RELEASE"


class OwnTransaction:
    """
    The transaction of one statement, on an open connection in autocommit mode. Used once.

    It is no context manager, as an interrupt between the end of a block and __exit__() would leave it open.

    Args:
        cursor: Django's, if it is inside of its execute().
    """

    __slots__ = ("_connection", "_cursor", "_is_begun_by_sql", "_is_over", "_state")

    def __init__(self, state: ConnectionState, cursor: Any = None) -> None:
        self._state = state
        self._cursor = cursor
        self._connection: Any = state.connection  # attributes that django-stubs does not know are set here
        self._is_begun_by_sql = False
        self._is_over = False

    def run(self, send: Callable[[], T]) -> T:
        """
        Return what *send* returns, after a COMMIT; or raise what it raises, after a ROLLBACK.

        Raises:
            Error: The database has refused to begin or to commit. After a COMMIT that failed a ROLLBACK was sent.
        """
        connection = self._connection
        is_committed = False
        # One block, from before BEGIN to after the end: an interrupt at any line of it leaves nothing open.
        try:
            connection.commit_on_exit = True
            connection.needs_rollback = False
            self._begin(connection)
            connection.autocommit = False
            connection.in_atomic_block = True
            connection.atomic_blocks.append(_BLOCK)
            result = send()
            self._leave_block(connection)
            if connection.needs_rollback or connection.closed_in_transaction:
                self._roll_back(connection)
            else:
                self._commit(connection)
                is_committed = True
            self._is_over = True
        except BaseException:
            if not self._is_over:
                self._leave_block(connection)
                self._roll_back(connection)
            raise
        if is_committed and connection.run_on_commit:  # of code that runs in a statement, another execute wrapper
            connection.run_and_clear_commit_hooks()
        return result

    def _leave_block(self, connection: Any) -> None:
        connection.atomic_blocks.clear()
        connection.savepoint_ids.clear()
        connection.in_atomic_block = False
        self._state.is_begin_due = False  # of a statement that was never sent

    # Nobody who logs the queries of the user is to see these, so they go round the methods of Django that log them.

    def _begin(self, connection: Any) -> None:
        vendor = connection.vendor
        self._state.is_begun_alone = False
        self._is_begun_by_sql = vendor == "sqlite" or (vendor == "postgresql" and can_begin_late(connection.connection))
        if vendor == "mysql" or (vendor == "postgresql" and self._is_begun_by_sql):
            self._state.is_begin_due = True
            return
        if not self._is_begun_by_sql:
            connection._set_autocommit(False)
            return
        mode = getattr(connection, "transaction_mode", None)
        self._state.has_sqlite_lock = False
        with connection.wrap_database_errors:
            connection.connection.execute(f"BEGIN {mode}" if mode else "BEGIN").close()
        self._state.has_sqlite_lock = mode in LOCKING_MODES

    def _commit(self, connection: Any) -> None:
        def commit() -> None:
            with connection.wrap_database_errors:
                if self._state.is_begun_alone:
                    connection.connection.query(_COMMIT)
                else:
                    connection.connection.commit()

        self._state.committing(commit)
        connection.errors_occurred = False
        if not (self._is_begun_by_sql or self._state.is_begun_alone):
            try:
                connection._set_autocommit(True)
            except Error:  # the statement has succeeded
                self._lose(connection)
        connection.autocommit = True

    def _roll_back(self, connection: Any) -> None:
        """Roll back whatever is open, and turn autocommit on. May be called again."""
        if connection.closed_in_transaction:
            connection.connection = None  # the database rolls it back by itself
            return

        def roll_back() -> None:
            with connection.wrap_database_errors:
                connection.connection.rollback()

        try:
            self._state.rolling_back(roll_back)
            connection.errors_occurred = False
            connection._set_autocommit(True)
        except BaseException as error:
            self._lose(connection)
            if not isinstance(error, Error):
                raise
        connection.autocommit = True
        connection.needs_rollback = False
        connection.run_on_commit = []

    def _lose(self, connection: Any) -> None:
        """
        Make sure that nothing is open on a connection that does not answer as it should.

        In autocommit mode Django leaves one that is lost as it is, so that the next statement fails as well: a program
        has to notice that what it had set in the session is gone.
        """
        if _is_closed(connection.connection):
            self._state.reset()
        else:
            # mysqlclient closes no cursor of a closed connection: whoever closes this one after the error of its
            # statement would meet another one.
            if self._cursor is not None:
                with suppress(Exception):
                    self._cursor.close()
            with suppress(Error):
                connection.close()
        connection.errors_occurred = True


def _is_closed(driver: Any) -> bool:
    """Return whether *driver*, a connection, knows that it is lost."""
    return bool(getattr(driver, "closed", False)) or not getattr(driver, "open", True)
