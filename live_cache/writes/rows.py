"""
Finds out which rows an UPDATE or DELETE changes: reads them under a lock, runs the statement, reads them again.

The rows that the statement changes are those that were locked, and no others, if its row count says so: the lock keeps
them as they are, and a row that came to match meanwhile would be one more (rule 13). Whatever cannot be told so is told
as a change of the table. All reading is done by cursors of the driver, so that nobody who watches Django's counts it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from django.db import Error

from live_cache.changes import MAX_ROWS, RowCells
from live_cache.exceptions import UncachableValueError
from live_cache.ledger import fences_postgresql
from live_cache.sql import Statement, normalize_table
from live_cache.sql.row_writes import RowWrite, read_row_write
from live_cache.tables import models_of_tables
from live_cache.writes.answers import Answer, answer_of, loads_of
from live_cache.writes.images import Columns, columns_of, key_columns
from live_cache.writes.plain_tables import is_plain
from live_cache.writes.sending import Companion, CompanionError

if TYPE_CHECKING:
    from django.db import models
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.writes.sending import Sending
    from live_cache.writes.transactions import ConnectionState

__all__ = ["Target", "Untold", "attempt", "prove_plain", "run_telling_rows", "target_of"]

logger = logging.getLogger("live_cache.writes")

T = TypeVar("T")

_FOUND_ROWS: Final = 2
_DEADLOCKS: Final = frozenset({1020, 1205, 1213})
"""Errors of MySQL and MariaDB for a row that another transaction holds, or has changed."""
_CANCELLED: Final = frozenset({1053, 1317, 1927, 1969})
"""Errors of MySQL and MariaDB for a statement that somebody, or a limit of time for any statement, has ended."""
_BUSY: Final = frozenset({5, 6})
"""Errors of SQLite for a database, or a table, that another connection holds."""
_INTERRUPTED: Final = 9
"""Error of SQLite after Connection.interrupt()."""
_IN_TRANSACTION: Final = 2
_OTHER_ROWS: Final = "rows that others have changed or added meanwhile"
_FORMAT: Final = re.compile(r"(?<!%)%s")
"""What Django's cursor replaces (FORMAT_QMARK_REGEX of its SQLite backend)."""


class Untold(Exception):
    """The rows cannot be told, and the change is one of the table. The text says why."""


class _Form:
    """What is known of all statements of one text: made once for each."""

    __slots__ = ("is_found_by_key", "model", "question", "sets_key", "table", "write")

    def __init__(self, write: RowWrite, model: type[models.Model], table: str) -> None:
        self.write = write
        self.model = model
        self.table = table
        """Normalised."""
        key = key_columns(model)
        self.sets_key = not {column.lower() for column in write.columns}.isdisjoint(map(str.lower, key))
        self.is_found_by_key = key == (write.condition_column,)
        """Whether the condition names the rows by their whole key, which the statement leaves alone."""
        condition = f" WHERE {write.condition}" if write.condition else ""
        self.question = f"SELECT * FROM {write.table}{condition} LIMIT {MAX_ROWS + 1}"
        """What asks for the rows, without a clause that locks them."""


class Target(NamedTuple):
    """A statement whose rows can be told."""

    form: _Form
    condition_parameters: Sequence[Any] | None
    """Those of the condition. None if the statement came without any, not even an empty list."""

    @property
    def table(self) -> str:
        """The table that it writes, normalised."""
        return self.form.table


class _Before(NamedTuple):
    answer: Answer
    columns: Columns
    rows: dict[tuple[Any, ...], Sequence[Any]]
    """By the key, as the driver gives it."""


class _Told(NamedTuple):
    changes: list[RowCells]
    fence: str = ""
    """Of the transaction, where it was learned on the way; see ledger.fences."""


def target_of(statement: Statement, sql: object, parameters: Any, *, connection: BaseDatabaseWrapper) -> Target:
    """
    Return what is to be told of a writing statement.

    Raises:
        Untold: It is not of a form whose rows can be told.
    """
    if type(sql) is not str or len(statement.written) != 1:
        raise Untold("a statement that writes more than one table, or that is no plain text")
    write = read_row_write(sql, vendor=connection.vendor)
    (table,) = statement.written
    if write is None or normalize_table(write.table_name) != table:
        raise Untold("a statement that is more than UPDATE or DELETE of one table by its own columns")
    if parameters is None:
        if "%" in sql:
            raise Untold("a statement with percent signs and no parameters")
    elif not isinstance(parameters, tuple | list) or len(parameters) != write.n_parameters:
        raise Untold("a statement with parameters by name")
    models = models_of_tables().get(table, ())
    if len(models) != 1:
        raise Untold("a table of several models")
    form = _form_of(write, models[0], table)
    if form.sets_key:
        raise Untold("a changed primary key")
    if parameters is not None:
        parameters = parameters[write.n_before : write.n_before + write.n_condition]
    return Target(form, parameters)


_form_of: Final = lru_cache(maxsize=1024)(_Form)


def run_telling_rows(target: Target, sending: Sending) -> Any:
    """
    Run a statement, note what it has changed, and return what Django's cursor returns.

    Call it inside a transaction. What it raises is what the statement raises, or what it would have raised: the
    transaction is over, or another one holds the rows.
    """
    state, table = sending.state, target.table
    if sending.takes_companions:
        return _run_at_once(target, sending)
    connection = state.connection
    state.begin_now(is_alone=True)
    before = attempt(connection, lambda: _read_before(state, target))
    if isinstance(before, Untold):
        state.record({table}, note=str(before))
        return sending.run()
    try:
        result = sending.run()
    except BaseException:
        state.record({table}, note="a statement that failed")
        raise
    _record(target, state, lambda: _changes(target, before, connection, sending.cursor))
    return result


def _run_at_once(target: Target, sending: Sending) -> Any:
    """Run a statement between the looks at its rows: in one round trip, or two where the first has to tell the keys."""
    state = sending.state
    connection = state.connection
    form = target.form
    write = form.write
    try:
        before = attempt(connection, lambda: _look_before(state, target))
        if isinstance(before, Untold):
            state.record({target.table}, note=str(before))
            return sending.run()
        after = []
        if connection.vendor == "mysql":
            if write.verb == "update" and form.is_found_by_key:
                after = [before]
        elif write.verb == "delete":
            after = [Companion(f"SELECT {fences_postgresql.XID}")]  # the COMMIT asks for it anyway
        elif form.is_found_by_key:  # and so by the same condition again
            rows = f"*, {fences_postgresql.XID} FROM {write.table} WHERE {write.condition}"
            after = [Companion(f"SELECT {rows}", before.parameters)]
        try:
            result, take = sending.run_with((before,), after)
        except CompanionError as failure:
            error = failure.__cause__
            assert isinstance(error, Error)
            if _is_fatal(connection, error):
                raise error from error.__cause__
            state.record({target.table}, note="rows that could not be read")
            return sending.run()
    except BaseException:
        state.record({target.table}, note="a statement that failed")
        raise

    def changes() -> _Told:
        seen, *found = take()
        known = _before_of(target, state, seen)
        if sending.cursor.rowcount != len(known.rows):
            raise Untold(_OTHER_ROWS)
        if write.verb == "delete":
            fence = fences_postgresql.token_of(found[0].rows[0][0]) if found else ""
            return _deleted(known, connection, fence=fence)
        if not known.rows:
            return _Told([])
        now = _after_of(target, known, connection, *found) if found else _read_after(target, known, connection)
        return _updated(known, *now, connection)

    _record(target, state, changes)
    return result


def _look_before(state: ConnectionState, target: Target) -> Companion:
    form = target.form
    _prove_told(state, form.write.table)
    return Companion(_text_before(state.connection, form), target.condition_parameters or ())


def _record(target: Target, state: ConnectionState, changes: Callable[[], _Told]) -> None:
    told = attempt(state.connection, changes)
    if isinstance(told, Untold):
        state.record({target.table}, note=str(told))
    else:
        state.record_rows(target.table, told.changes, fence=told.fence)


def attempt(connection: BaseDatabaseWrapper, read: Callable[[], T]) -> T | Untold:
    """
    Return what *read* returns, or why that is not known.

    Raises:
        Error: The database has refused in a way that the statement of the user cannot survive either.
    """
    try:
        try:
            return read()
        except Untold:
            raise
        except Exception:
            with connection.wrap_database_errors:
                raise
    except Untold as reason:
        return reason
    except UncachableValueError:
        return Untold("a value of a kind that records do not hold")
    except Error as error:
        if _is_fatal(connection, error):
            raise
        logger.warning("The rows of a write to %r could not be read.", connection.alias, exc_info=True)
    except Exception:  # whatever a converter of values raises
        logger.warning("The rows of a write to %r could not be read.", connection.alias, exc_info=True)
    return Untold("rows that could not be read")


def prove_plain(state: ConnectionState, table: str) -> None:
    """
    Make sure that rows of *table* change by no more than the statements that name it.

    Args:
        table: The name as it stands in the statement, with its quotes.

    Raises:
        Untold: They may change otherwise.
        Exception: Whatever the driver raises.
    """
    connection = state.connection
    if connection.vendor == "sqlite" and not state.has_sqlite_lock:
        # A transaction that has read before it writes fails at once where the write alone would have waited: SQLite
        # cannot give it the lock once somebody else has committed.
        driver: Any = connection.connection
        driver.execute(f"DELETE FROM {table} WHERE 0").close()
        state.has_sqlite_lock = True
    if not is_plain(connection, table):
        raise Untold("a table with triggers, rules, partitions, row policies or the like")


def _prove_told(state: ConnectionState, table: str) -> None:
    """See prove_plain(). Also makes sure that row counts are those of the rows that were found."""
    connection = state.connection
    if connection.vendor == "mysql":
        flags = connection.settings_dict["OPTIONS"].get("client_flag", _FOUND_ROWS)
        if not flags & _FOUND_ROWS:
            raise Untold("a connection without CLIENT.FOUND_ROWS, whose row counts tell less")
    prove_plain(state, table)


def _read_before(state: ConnectionState, target: Target) -> _Before:
    connection = state.connection
    _prove_told(state, target.form.write.table)
    answer = _select(connection, _text_before(connection, target.form), target.condition_parameters)
    return _before_of(target, state, answer)


def _before_of(target: Target, state: ConnectionState, answer: Answer) -> _Before:
    rows = answer.rows
    columns = _columns_of(target.form.model, state, answer)
    if len(rows) > MAX_ROWS:
        raise Untold(f"more than {MAX_ROWS} rows")
    if not columns.is_complete or not columns.has_key or not _has_columns(columns, target.form.write):
        raise Untold("a table that differs from its model, or whose key cannot be told")
    by_key: dict[tuple[Any, ...], Sequence[Any]] = {}
    for row in rows:
        key = columns.raw_key(row)
        if key is None or key in by_key:
            raise Untold("a key of a type that cannot be told")
        by_key[key] = row
    return _Before(answer, columns, by_key)


def _columns_of(model: type[models.Model], state: ConnectionState, answer: Answer) -> Columns:
    connection = state.connection
    names, _, oids = answer
    if oids is None:
        return columns_of(model, connection, names)
    # Loaders know the zone of the session; Django makes a cursor that turns times into the zone of its settings.
    key = model, names, oids, connection.timezone, state.driver.pgconn.parameter_status(b"TimeZone")
    found = state.sent_columns.get(key)
    if found is None:
        with closing(connection.create_cursor()) as cursor:
            found = state.sent_columns[key] = Columns(model, connection, names, loads_of(cursor, oids))
    return found


@lru_cache(maxsize=1024)
def _has_columns(columns: Columns, write: RowWrite) -> bool:
    return {name.lower() for name in columns.names}.issuperset(map(str.lower, write.columns))


def _text_before(connection: BaseDatabaseWrapper, form: _Form) -> str:
    """Return what asks for the rows of a statement, and locks them where that needs a clause."""
    if connection.vendor == "postgresql":
        return form.question + (" FOR UPDATE" if form.write.verb == "delete" else " FOR NO KEY UPDATE")
    if connection.vendor != "mysql":
        return form.question
    column = form.write.condition_column
    if column is not None and column.lower() in map(str.lower, key_columns(form.model)):
        return form.question + " FOR UPDATE"
    # By other columns the server may have to look at rows that do not match. UPDATE passes by those that others have
    # locked, and FOR UPDATE would wait for them. A row that matches and is skipped makes the row count differ.
    if not connection.features.has_select_for_update_skip_locked:
        raise Untold("a condition on other columns than the key, without SKIP LOCKED")
    return form.question + " FOR UPDATE SKIP LOCKED"


def _changes(target: Target, before: _Before, connection: BaseDatabaseWrapper, cursor: Any) -> _Told:
    """Return what the statement that *cursor*, Django's, has just run has changed."""
    write = target.form.write
    if write.has_returning and connection.vendor == "sqlite":
        cursor.cursor.buffer()  # before its rows are taken the statement is not over
    if cursor.rowcount != len(before.rows):
        raise Untold(_OTHER_ROWS)
    if write.verb == "delete":
        return _deleted(before, connection)
    if not before.rows:
        return _Told([])
    return _updated(before, *_read_after(target, before, connection), connection)


def _deleted(before: _Before, connection: BaseDatabaseWrapper, *, fence: str = "") -> _Told:
    return _Told([before.columns.deleted(row, connection) for row in before.rows.values()], fence)


def _updated(
    before: _Before, after: Mapping[tuple[Any, ...], Sequence[Any]], fence: str, connection: BaseDatabaseWrapper
) -> _Told:
    if after.keys() != before.rows.keys():
        raise Untold("rows that are not found again by their key")
    updated = before.columns.updated
    changes = [
        change for key, row in before.rows.items() if (change := updated(row, after[key], connection)) is not None
    ]
    return _Told(changes, fence)


def _read_after(
    target: Target, before: _Before, connection: BaseDatabaseWrapper
) -> tuple[dict[tuple[Any, ...], Sequence[Any]], str]:
    """Return the rows as they are now, by their key, and the fence if it came with them."""
    form = target.form
    if form.is_found_by_key and connection.vendor != "postgresql":
        # The same question again, which SQLite has prepared already.
        answer = _select(connection, _text_before(connection, form), target.condition_parameters)
        return _after_of(target, before, connection, answer)
    keys = [connection.ops.quote_name(name) for name in key_columns(form.model)]
    if len(keys) == 1:
        condition = f"{keys[0]} IN ({', '.join(['%s'] * len(before.rows))})"
    else:
        one = f"({' AND '.join(f'{name} = %s' for name in keys)})"
        condition = " OR ".join([one] * len(before.rows))
    also, lock = "", ""
    if connection.vendor == "postgresql":
        also = f", {fences_postgresql.XID}"  # the COMMIT asks for it anyway
    elif connection.vendor == "mysql":
        # A plain SELECT in a snapshot would show a row that the statement has left alone as it was long ago.
        lock = " FOR UPDATE"
    sql = f"SELECT *{also} FROM {form.write.table} WHERE {condition}{lock}"
    return _after_of(
        target, before, connection, _select(connection, sql, [value for key in before.rows for value in key])
    )


def _after_of(
    target: Target, before: _Before, connection: BaseDatabaseWrapper, answer: Answer
) -> tuple[dict[tuple[Any, ...], Sequence[Any]], str]:
    names, rows, oids = answer
    n_columns = len(before.answer.names)
    has_fence = connection.vendor == "postgresql"
    if names and (
        names[:n_columns] != before.answer.names
        or (oids and oids[:n_columns]) != before.answer.oids
        or len(names) != n_columns + has_fence
    ):
        raise Untold("a table that was altered meanwhile")
    fence = ""
    if has_fence and rows:
        fence = fences_postgresql.token_of(rows[0][-1])
        rows = [row[:-1] for row in rows]
    return {key: row for row in rows if (key := before.columns.raw_key(row)) is not None}, fence


def _select(connection: BaseDatabaseWrapper, sql: str, parameters: Sequence[Any] | None) -> Answer:
    if connection.vendor == "sqlite":
        # Round Django's cursor, whose every call costs as much as the query.
        driver: Any = connection.connection
        cursor = driver.execute(sql) if parameters is None else driver.execute(_with_question_marks(sql), parameters)
        return Answer(tuple([column[0] for column in cursor.description]), cursor.fetchall())
    with closing(connection.create_cursor()) as cursor:
        if parameters is None:
            cursor.execute(sql)
        else:
            cursor.execute(sql, parameters)
        return answer_of(cursor)


@lru_cache(maxsize=1024)
def _with_question_marks(sql: str) -> str:
    """Return *sql* with the placeholders of SQLite, as Django's cursor would send it."""
    return _FORMAT.sub("?", sql).replace("%%", "%")


def _is_fatal(connection: BaseDatabaseWrapper, error: Error) -> bool:
    """Return whether the transaction cannot go on after *error*, or the statement would meet it again."""
    driver: Any = connection.connection
    cause: Any = error.__cause__ or error
    if connection.vendor == "sqlite":
        code = cause.sqlite_errorcode & 0xFF
        return code in _BUSY or code == _INTERRUPTED or not driver.in_transaction
    if connection.vendor == "mysql":
        code = cause.args[0] if cause.args else None
        return not isinstance(code, int) or code in _DEADLOCKS | _CANCELLED or 2000 <= code < 3000
    # Where only the driver has failed, on a value that Python does not have, the transaction is as it was.
    return bool(driver.closed) or driver.info.transaction_status != _IN_TRANSACTION
