"""
A statement on its way to the database, alone or with others of ours in one round trip.

psycopg sends what its cursors with client-side binding execute as a simple query, which may hold several statements.
Their answers are results of one cursor, and whoever made the cursor finds it at the one of his own statement. Read in
psycopg 3.3, the first version whose set_result() chooses among them, and in Django 5.2.19 and 6.1.3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:
    from live_cache.sql import Statement
    from live_cache.writes.transactions import ConnectionState

__all__ = ["Answer", "Companion", "Sending", "can_begin_late", "names_of"]


class Companion(NamedTuple):
    """A statement of ours that is sent with one of the user's."""

    sql: str
    parameters: Sequence[Any] = ()


class Answer(NamedTuple):
    """What the database has answered to a companion."""

    names: tuple[str, ...]
    rows: list[Sequence[Any]]


_BEGIN: Final = Companion("BEGIN")
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

    @property
    def takes_companions(self) -> bool:
        """Whether it can be sent with others, and nobody but the database would see them."""
        driver = self.cursor.cursor
        return (
            self.state.connection.vendor == "postgresql"
            and not self._many
            # Neither other execute wrappers nor the query log show what stands in no text of the user. A method of the
            # driver that only passes the guard takes no text from here.
            and getattr(self._execute, "__self__", None) is self.cursor
            and not self.state.connection.queries_logged
            and hasattr(driver, "set_result")
            and hasattr(driver, "mogrify")  # of cursors that bind on the client's side
            and driver.connection.pgconn.pipeline_status == _NO_PIPELINE
            and type(self.sql) is str
            and ";" not in self.sql
            and "--" not in self.sql
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
        """
        if self.state.is_begin_due:
            self.state.is_begin_due = False
            begin: tuple[Companion, ...] = (_BEGIN,)
        else:
            begin = ()
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
        driver.set_result(own)

        def take() -> list[Answer]:
            answers = []
            try:
                for number in (*range(len(begin), own), *range(own + 1, len(texts))):
                    driver.set_result(number)
                    answers.append(Answer(names_of(driver), driver.fetchall()))
            finally:
                driver.set_result(own)
            return answers

        return result, take


def can_begin_late(driver: Any) -> bool:
    """Return whether BEGIN may be sent to this connection of the driver by SQL, together with the first statement."""
    return (
        hasattr(driver, "pgconn")
        and driver.isolation_level is driver.read_only is driver.deferrable is None
        and driver.pgconn.pipeline_status == _NO_PIPELINE
    )


def names_of(cursor: Any) -> tuple[str, ...]:
    """Return the names of the columns of the result that *cursor*, one of the driver, is at."""
    result = getattr(cursor, "pgresult", None)
    if result is None:
        return tuple([column[0] for column in cursor.description])
    # Each entry of psycopg's description looks up a type, which takes longer than the query.
    encoding = cursor.connection.info.encoding
    return tuple([result.fname(number).decode(encoding) for number in range(result.nfields)])
