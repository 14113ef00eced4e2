"""
A statement on its way to the database, alone or with others of ours in one round trip.

psycopg sends what its cursors with client-side binding execute as a simple query, which may hold several statements; so
does a connection to MySQL with MULTI_STATEMENTS, as mysqlclient makes it. Their answers are results of one cursor, and
whoever made the cursor finds it at the one of his own statement. Read in psycopg 3.3, the first version whose
set_result() chooses among them, mysqlclient 2.3, PyMySQL 1.2, and in Django 5.2.19 and 6.1.3.

A server of MySQL runs no more of a text after the first statement that fails. What stood before it has happened, as if
it had been sent by itself.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from django.db import Error, IntegrityError

from live_cache.writes.answers import Answer, answer_of, answers_at

if TYPE_CHECKING:
    from live_cache.sql import Statement
    from live_cache.writes.transactions import ConnectionState

__all__ = [
    "LOCKING_MODES",
    "Companion",
    "CompanionError",
    "Sending",
    "can_begin_late",
    "is_sent_once",
]


class Companion(NamedTuple):
    """A statement of ours that is sent with one of the user's."""

    sql: str
    parameters: Sequence[Any] = ()


class CompanionError(Exception):
    """A companion has failed, and the statement of the user was not run. The error, as Django has it, is __cause__."""


_BEGIN: Final = Companion("BEGIN")
_NOTHING: Final = Companion("DO 0")
_MYSQL_BACKENDS: Final = frozenset({"django.db.backends.mysql.base", "django.contrib.gis.db.backends.mysql.base"})
_MULTI_STATEMENTS: Final = 1 << 16
LOCKING_MODES: Final = frozenset({"IMMEDIATE", "EXCLUSIVE"})
"""Modes of BEGIN in which SQLite takes the write lock at once."""
_NO_PIPELINE: Final = 0
"""In a pipeline each message holds one statement."""


class Sending:
    """
    A statement of the user that is to be sent.

    Args:
        execute: What an execute wrapper gets, with the arguments that follow.
        note: Why the rows that it changes cannot be told; empty if they perhaps can.
    """

    def __init__(
        self,
        state: ConnectionState,
        statement: Statement,
        execute: Callable[[Any, Any, bool, dict[str, Any]], Any],
        sql: Any,
        parameters: Any,
        many: bool,
        context: dict[str, Any],
        *,
        note: str = "",
    ) -> None:
        self.state = state
        self.statement = statement
        self.sql = sql
        self.parameters = parameters
        self.note = note
        self.cursor: Any = context["cursor"]
        """Django's, which sends it."""
        self._execute = execute
        self._many = many
        self._context = context

    def run(self) -> Any:
        """Send it, and return what Django's cursor returns."""
        if self.state.is_begin_due:
            if self.takes_companions:
                return self.run_with((), ())[0]
            self.state.begin_now(is_alone=True)
        return self._execute(self.sql, self.parameters, self._many, self._context)

    def run_to_end(self) -> Any:
        """Send it, and return what Django's cursor returns when the database is through with it."""
        result = self.run()
        self.end()
        return result

    def end(self) -> None:
        """Take the rows that it returns on SQLite: before they are taken the statement is not over."""
        if self.state.connection.vendor == "sqlite":
            self.cursor.cursor.buffer()

    @property
    def takes_companions(self) -> bool:
        """Whether it can be sent with others, and nobody but the database would see them."""
        connection = self.state.connection
        driver = self.cursor.cursor
        return (
            connection.vendor in _TAKE_SEVERAL
            and not self._many
            # Neither other execute wrappers nor the query log show what stands in no text of the user. A method of the
            # driver that only passes the guard takes no text from here.
            and getattr(self._execute, "__self__", None) is self.cursor
            and not connection.queries_logged
            and _TAKE_SEVERAL[connection.vendor](connection, driver)
            and type(self.sql) is str
            and ";" not in self.sql
            and "--" not in self.sql
            and (connection.vendor == "postgresql" or ("#" not in self.sql and "/*" not in self.sql))
            and (self.parameters is None or type(self.parameters) in (tuple, list))
            and (self.parameters is not None or "%" not in self.sql)
        )

    def run_with(
        self, before: Sequence[Companion], after: Sequence[Companion]
    ) -> tuple[Any, Callable[[], list[Answer]]]:
        """
        Send it between its companions, and first of all a BEGIN that is due. Needs takes_companions.

        Returns:
            What Django's cursor returns, and a function that takes the answer to each companion. It raises whatever the
            driver raises of a value that Python does not have; call it before anybody takes rows of the statement.

        Raises:
            CompanionError: On MySQL.
        """
        is_mysql = self.state.connection.vendor == "mysql"
        begin: tuple[Companion, ...] = ()
        if self.state.is_begin_due:
            self.state.is_begin_due = False
            self.state.is_begun_alone = is_mysql
            begin = (_BEGIN,)
        elif is_mysql and before:
            # What execute() itself raises must not be a matter of the rows that a companion reads.
            begin = (_NOTHING,)
        first = [*begin, *before]
        texts = [*(one.sql for one in first), self.sql, *(one.sql for one in after)]
        parameters = self.parameters
        if before or after:
            parameters = tuple(
                itertools.chain(
                    *(one.parameters for one in before), parameters or (), *(one.parameters for one in after)
                )
            )
        result = self._execute("; ".join(texts), parameters, False, self._context)
        driver = self.cursor.cursor
        own = len(first)
        if is_mysql:
            return self._take_in_turn(len(begin), own, len(texts))
        driver.set_result(own)

        def take() -> list[Answer]:
            return answers_at(driver, (*range(len(begin), own), *range(own + 1, len(texts))))

        return result, take

    def _take_in_turn(self, begun: int, own: int, end: int) -> tuple[Any, Callable[[], list[Answer]]]:
        """Do what run_with() does after it has sent everything, with a cursor of MySQL, which goes forward only."""
        django: Any = self.cursor.cursor
        driver: Any = django.cursor
        answers: list[Answer] = []
        unreadable: list[Exception] = []
        for number in range(1, own + 1):
            try:
                with self.state.connection.wrap_database_errors:
                    _next(django, driver)
                if begun <= number < own:
                    answers.append(answer_of(driver))
            except Error as error:
                if number < own:
                    raise CompanionError from error
                raise
            except Exception as error:  # whatever a converter of values raises: the statement has run nevertheless
                if number == own:
                    raise
                unreadable.append(error)
        result = driver.rowcount
        # Plain attributes, which the drivers set anew for each result.
        shown = dict(vars(driver))

        def take() -> list[Answer]:
            # To the end in any case: nothing else can be sent before.
            for _ in range(own + 1, end):
                try:
                    _next(django, driver)
                    answers.append(answer_of(driver))
                except Exception as error:
                    unreadable.append(error)
            vars(driver).update(shown)
            if unreadable:
                raise unreadable[0]
            return answers

        return result, take


def _next(django: Any, driver: Any) -> None:
    """Go to the next result, with errors as Django's cursor for MySQL raises them."""
    try:
        if not driver.nextset():
            raise RuntimeError("The database has answered fewer statements than it was sent.")
    except Exception as error:  # OperationalError, of whichever driver it is
        if error.args and error.args[0] in django.codes_for_integrityerror:
            raise IntegrityError(*error.args) from error
        raise


def _takes_psycopg(connection: Any, driver: Any) -> bool:
    return (
        hasattr(driver, "set_result")
        and hasattr(driver, "mogrify")  # of cursors that bind on the client's side
        and driver.connection.pgconn.pipeline_status == _NO_PIPELINE
    )


def _takes_mysql(connection: Any, driver: Any) -> bool:
    if not is_sent_once(connection):
        return False
    flags = getattr(connection.connection, "client_flag", None)
    if isinstance(flags, int):  # PyMySQL
        return bool(flags & _MULTI_STATEMENTS)
    return type(connection.connection).__module__ == "MySQLdb.connections" and bool(
        connection.settings_dict["OPTIONS"].get("multi_statements", True)
    )


_TAKE_SEVERAL: Final[dict[str, Callable[[Any, Any], bool]]] = {"postgresql": _takes_psycopg, "mysql": _takes_mysql}


def is_sent_once(connection: Any) -> bool:
    """
    Return whether nobody but Django sends statements to MySQL, each once.

    A deadlock ends a transaction. Whoever sent the statement again would be in autocommit mode after a BEGIN, and so
    commit before the intent stands; with autocommit off, a transaction begins by itself.
    """
    return len(connection.execute_wrappers) == 1 and type(connection).__module__ in _MYSQL_BACKENDS


def can_begin_late(driver: Any) -> bool:
    """Return whether BEGIN may be sent to this connection of the driver by SQL, together with the first statement."""
    return (
        hasattr(driver, "pgconn")
        and driver.isolation_level is driver.read_only is driver.deferrable is None
        and driver.pgconn.pipeline_status == _NO_PIPELINE
    )
