"""
The SQL guard: every statement that Django sends passes here, so that no write goes unseen.

It reads the statement (sql.classify), notes what it writes on the connection, and, in autocommit mode, opens the
transaction that the ledger's protocol needs (rule 8). It can never break a statement: what it does not understand runs
as it is, and counts as a write of every table.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from django.db import connections

from live_cache.conf import settings
from live_cache.sql import Statement, StatementKind, classify, normalize_table
from live_cache.tables import models_of_tables
from live_cache.testcases import is_between_blocks
from live_cache.writes.cascades import tables_changed_by_delete
from live_cache.writes.own_transaction import OwnTransaction
from live_cache.writes.plain_tables import forget_plain_tables
from live_cache.writes.rows import Untold, run_telling_rows, target_of
from live_cache.writes.schema_facts import forget_schema_facts
from live_cache.writes.sending import Sending
from live_cache.writes.transactions import ConnectionState, state_of
from live_cache.writes.unannounced import NOT_RUN, run_unannounced

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["attach", "guard", "intercepting"]

Execute = Callable[[Any, Any, bool, dict[str, Any]], Any]

# Databases that tell of each statement that writes, from its beginning on, as long as it is not over.
_KEEP_WRITERS = frozenset({"sqlite", "postgresql"})
_HARMLESS = (StatementKind.SAVEPOINT, StatementKind.RELEASE_SAVEPOINT, StatementKind.ROLLBACK_TO_SAVEPOINT)


class StatementIntercepted(Exception):
    """Raised instead of sending a statement, inside intercepting()."""

    def __init__(self, sql: Any) -> None:
        super().__init__("A statement was intercepted.")
        self.sql = sql


def attach(connection: BaseDatabaseWrapper) -> ConnectionState:
    """Put the guard and the transaction hooks on *connection*, once."""
    state = state_of(connection)
    if guard not in connection.execute_wrappers:
        # First in the list is outermost, so wrappers of the user run inside and cannot hide a statement.
        connection.execute_wrappers.insert(0, guard)
    return state


def guard(execute: Execute, sql: Any, params: Any, many: bool, context: dict[str, Any]) -> Any:
    """Run one statement, with its writes noted. An execute wrapper of Django."""
    connection: BaseDatabaseWrapper = context["connection"]
    state = state_of(connection)
    statement = classify(sql, vendor=connection.vendor)
    # Noted before it runs: a statement whose answer is lost may have taken effect. Any kind may bring these changes
    # (SELECT set_config(), CALL).
    if statement.changes_search_path or statement.changes_values or statement.changes_isolation:
        state.session.note(statement, state.pooled_driver)
    is_everything = False
    understood = statement
    if statement.functions and settings.writing_functions:
        statement, is_everything = _with_functions(statement, settings.writing_functions)
    if state.captured_tables is not None:
        state.captured_tables |= statement.read
    if state.is_begin_due and statement.kind is not StatementKind.WRITE:
        state.begin_now()
    if statement.kind is StatementKind.READ:
        return execute(sql, params, many, context)

    def run() -> Any:
        return execute(sql, params, many, context)

    kind = statement.kind
    if kind is StatementKind.ROLLBACK_TO_SAVEPOINT:
        result = run()
        state.rolled_back_to_savepoint()
        return result
    if kind in _HARMLESS or statement.is_limited_to_session:
        return run()
    if kind is StatementKind.SESSION and not statement.commits_implicitly:
        return run()
    if kind is StatementKind.BEGIN:
        return _run_begin(state, statement, run)
    if kind is StatementKind.COMMIT:
        result = state.committing(run)
        state.is_raw_transaction = state.is_raw_transaction_uncertain = False
        return result
    if kind is StatementKind.ROLLBACK:
        return state.rolling_back(run)
    if kind is StatementKind.SCHEMA:
        forget_schema_facts()
        state.has_changed_schema = True
    elif kind is not StatementKind.WRITE:
        forget_plain_tables()
    # A function that writes may write the rows of this table too.
    note = "executemany()" if many else "" if statement is understood else "a function that writes"
    sending = Sending(state, statement, execute, sql, params, many, context, note=note)
    return _run_write(state, sending, is_everything=is_everything)


def _with_functions(
    statement: Statement, declared: Mapping[str, Iterable[str]] | Collection[str]
) -> tuple[Statement, bool]:
    """Return *statement* as a write of what its declared functions write, and whether that may be any table."""
    called = [name for name in statement.functions if name in declared]
    if not called:
        return statement, False
    kind = StatementKind.WRITE if statement.kind is StatementKind.READ else statement.kind
    if not isinstance(declared, Mapping):
        return replace(statement, kind=kind), True
    tables = {normalize_table(table) for name in called for table in declared[name]}
    return replace(statement, kind=kind, written=statement.written | tables), False


def _run_begin(state: ConnectionState, statement: Statement, run: Callable[[], Any]) -> Any:
    if state.is_own_begin:
        return run()
    result = state.committing(run) if statement.commits_implicitly else run()
    state.is_raw_transaction = True
    return result


def _run_write(state: ConnectionState, sending: Sending, *, is_everything: bool) -> Any:
    statement, run = sending.statement, sending.run
    # A name that is no model's table may be a view, a partition or a parent of tables that are.
    is_everything = (
        is_everything or statement.kind is StatementKind.UNKNOWN or not statement.written <= models_of_tables().keys()
    )
    cascaded = tables_changed_by_delete(statement.written) if statement.may_delete else frozenset()
    written = statement.written | cascaded
    connection = state.connection
    is_in_transaction, is_in_testcase = state.is_in_transaction, is_between_blocks(connection)
    if is_in_testcase and not (is_in_transaction or statement.commits_implicitly):
        return state.run_in_testcase(written, run, is_everything=is_everything)
    if is_in_transaction or is_in_testcase:
        if statement.commits_implicitly or state.is_raw_transaction_uncertain:
            state.record(written, is_everything=is_everything, note="a statement that may commit by itself")
            return _run_committing(state, statement, run)
        return _run_in_transaction(state, sending, cascaded, is_everything=is_everything)
    is_write = statement.kind is StatementKind.WRITE
    if is_write and not is_everything and connection.vendor in _KEEP_WRITERS:
        result = run_unannounced(state, connection, written, sending.run_to_end)
        if result is not NOT_RUN:
            return result
    if not is_write or connections[connection.alias] is not connection:
        return state.run_outside_transaction(written, run, is_everything=is_everything)

    def send() -> Any:
        result = _run_in_transaction(state, sending, cascaded, is_everything=is_everything)
        sending.end()
        return result

    return OwnTransaction(state, sending.cursor).run(send)


def _run_in_transaction(
    state: ConnectionState, sending: Sending, cascaded: frozenset[str], *, is_everything: bool
) -> Any:
    """
    Run a write, told by the rows that it changes where they can be known, else by table.

    Args:
        cascaded: Tables that the database may change by itself.
    """
    statement = sending.statement
    note = sending.note
    if not note and not is_everything and statement.kind is StatementKind.WRITE:
        insertion = state.insertion
        if insertion is not None and insertion.takes(sending.sql, statement.written):
            if not insertion.untold:
                return insertion.send(sending)
            note = insertion.untold
        elif any(map(state.wants_rows, statement.written)):
            try:
                target = target_of(statement, sending.sql, sending.parameters, connection=state.connection)
                if target.table in cascaded:
                    raise Untold("a table from which the database deletes by itself")
            except Untold as reason:
                note = str(reason)
            else:
                # What the database deletes in other tables is told by table, as nobody sees which rows.
                state.record(cascaded, note="rows that the database deletes with others")
                return run_telling_rows(target, sending)
    state.record(statement.written | cascaded, is_everything=is_everything, note=note)
    return sending.run()


def _run_committing(state: ConnectionState, statement: Statement, run: Callable[[], Any]) -> Any:
    """Run a statement that commits the transaction by itself, or may do so (CALL, and what is not understood)."""
    tables, is_everything = state.tables, state.writes_everything
    result = state.committing(run, is_commit_alone=False)
    if statement.kind is not StatementKind.UNKNOWN and not state.is_raw_transaction_uncertain:
        state.is_raw_transaction = False
        return result
    # Perhaps nothing was committed: the changes are ticked again at the COMMIT to come. And perhaps a transaction that
    # was begun by SQL is over, so that each statement commits itself from now on.
    state.record(tables, is_everything=is_everything, note="a statement that may commit by itself")
    state.is_raw_transaction_uncertain = state.is_raw_transaction
    return result


class intercepting:
    """
    Catch the SQL of the first statement inside the block instead of sending it.

    A way to learn which tables an operation of the ORM reads without copying how Django compiles it. No connection is
    opened, and neither Django's query log nor anybody's execute wrapper counts a query.
    """

    sql: Any = None

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = connection

    def __enter__(self) -> intercepting:
        self._connection.__dict__["cursor"] = _InterceptingCursor
        return self

    def __exit__(self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: object) -> bool:
        del self._connection.__dict__["cursor"]
        if isinstance(exc, StatementIntercepted):
            self.sql = exc.sql
            return True
        return False


class _InterceptingCursor:
    """Stands where the compiler expects a cursor."""

    def execute(self, sql: Any, params: Any = None) -> None:
        raise StatementIntercepted(sql)

    def close(self) -> None:
        """Do nothing: nothing was opened."""
