"""
What one connection has written and not yet committed, and what happens around its COMMIT.

All state lives on the connection object: a failing ``__enter__``, COMMIT or reconnect cannot leave anything behind in
a thread or a module. hooks.py puts committing(), rolling_back() and the others around what Django does.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Any, TypeVar

from django.apps import apps
from django.db import Error

from live_cache.assembly import assemblies_by_ledger
from live_cache.conf import settings
from live_cache.exceptions import CommitRefusedError, LedgerUnavailableError
from live_cache.ledger import fences
from live_cache.names import clock_of, database_name, shared_database_name
from live_cache.sql import normalize_table
from live_cache.testcases import is_between_blocks, is_in_testcase, note_commit, note_rollback
from live_cache.writes import hooks, raw_cursor
from live_cache.writes.engines import tables_without_rollback
from live_cache.writes.pending import Pending, Ticks
from live_cache.writes.recent import recently_written
from live_cache.writes.schema_facts import forget_schema_facts
from live_cache.writes.sending import LOCKING_MODES, is_sent_once
from live_cache.writes.session_changes import SessionChanges

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.changes import RowCells, RowChange
    from live_cache.ledger.base import Ledger
    from live_cache.writes.images import Columns
    from live_cache.writes.inserts import Insertion
    from live_cache.writes.sqlite_cursor import TrackedCursor

__all__ = ["ConnectionState", "is_any_in_transaction", "state_of"]

logger = logging.getLogger("live_cache.writes")

T = TypeVar("T")

_STATE = "_live_cache_state"
_NOTHING = Ticks()

# Replaced as a whole under the lock, so that readers need none.
_states: tuple[weakref.ref[ConnectionState], ...] = ()
_states_lock = threading.Lock()


def state_of(connection: BaseDatabaseWrapper) -> ConnectionState:
    """Return the state of *connection*, attaching to it first if that has not happened yet."""
    state: ConnectionState | None = connection.__dict__.get(_STATE)
    if state is None:
        state = ConnectionState(connection)
        connection.__dict__[_STATE] = state
        hooks.attach(state, raw_cursor.prepare)
        _remember(state)
    elif connection.atomic_blocks and state.has_writes and is_between_blocks(connection):
        state.end_block_in_testcase()
    return state


def is_any_in_transaction(alias: str) -> bool:
    """
    Return whether a connection of any thread to the database *alias* is in a transaction, or sees other rows.

    For readers that cannot know which connection is their caller's. What unrelated threads do meanwhile may or may not
    be seen.
    """
    for reference in _states:
        state = reference()
        connection = None if state is None else state._connection()
        if state is None or connection is None or connection.alias != alias:
            continue
        if connection.in_atomic_block or state.is_in_transaction or state.has_writes or state.session.are_rows_in_doubt:
            return True
    return False


def _remember(state: ConnectionState) -> None:
    global _states
    with _states_lock:
        _states = (*[reference for reference in _states if reference() is not None], weakref.ref(state))


class ConnectionState:
    """
    The writes of the running transaction of one connection, and what is known of the connection itself.

    Used by one thread at a time, as Django's connections are.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self._connection = weakref.ref(connection)
        self.alias: str = connection.alias
        self._pending = Pending()
        self._fence = ""
        self.is_raw_transaction = False
        """Whether a BEGIN was sent as SQL, behind Django's back."""
        self.is_raw_transaction_uncertain = False
        """Whether that transaction may be over, ended by a statement that was not understood."""
        self.has_sqlite_lock = False
        """Whether the running transaction is known to hold the write lock of SQLite."""
        self.is_begin_due = False
        """Whether BEGIN is still to be sent, before the next statement or with it. Never on SQLite."""
        self.is_begun_alone = False
        """Whether BEGIN was sent to MySQL for one statement, and autocommit is still on in the session."""
        self.has_changed_schema = False
        """Whether a statement of the running transaction has changed the schema."""
        self.insertion: Insertion | None = None
        """The INSERT that a compiler is sending, whose rows it will tell itself."""
        self.session = SessionChanges()
        self.isolation: tuple[object, str] | None = None
        """The driver's connection and its isolation level, once the database was asked."""
        self.sent_columns: dict[Any, Columns] = {}
        """How rows that were taken as PostgreSQL sends them over the driver's connection become keys and images."""
        self.open_cursors: weakref.WeakSet[TrackedCursor] = weakref.WeakSet()
        """SQLite cursors whose statement is not finished."""
        self.captured_tables: set[str] | None = None
        """Where the guard collects the tables that statements read, while a live read is fetching."""
        self._intents: list[tuple[Ledger, str]] = []
        self._declared = _NOTHING
        self._is_outcome_unknown = False
        self._is_own_begin = False
        self._test_tables: set[str] = set()
        self._test_names: set[str] = set()

    @property
    def connection(self) -> BaseDatabaseWrapper:
        """The connection, which owns this state."""
        connection = self._connection()
        if connection is None:
            raise ReferenceError("The database connection of this state is gone.")
        return connection

    @property
    def driver(self) -> Any:
        """The driver's connection; it must be open."""
        return self.connection.connection

    @property
    def pooled_driver(self) -> Any:
        """The driver's connection if a pool of Django lends it, else None."""
        connection = self.connection
        return connection.connection if connection.settings_dict["OPTIONS"].get("pool") else None

    def reset(self) -> None:
        """Forget everything: the driver's connection is new, and the old transaction is over."""
        if self._is_outcome_unknown:
            # The intents stay until the database is asked. Perhaps there are none, as a ledger was out of reach.
            self._tick_only(self._declared)
        self.clear()
        self.is_raw_transaction = False
        self.is_raw_transaction_uncertain = False
        self.session.reset(self.pooled_driver)
        self.isolation = None
        self.sent_columns.clear()
        self._forget_intents()
        self._leave_testcase()

    def clear(self) -> None:
        """Forget the writes: they are committed and ticked, or rolled back."""
        if self.has_changed_schema:
            forget_schema_facts()  # others may have asked while they could see the old one only
            self.has_changed_schema = False
        self._pending.clear()
        self._fence = ""
        self.has_sqlite_lock = False

    @property
    def tables(self) -> set[str]:
        """Tables written since the last COMMIT or ROLLBACK, normalised."""
        return self._pending.tables

    @property
    def writes_everything(self) -> bool:
        """Whether a statement was not understood, so that any table may have been written."""
        return self._pending.is_everything

    @property
    def has_writes(self) -> bool:
        """Whether something was written and is not committed."""
        return bool(self._pending)

    @property
    def is_settled(self) -> bool:
        """Whether all that was written is told, and no intent may stand as the answer to a COMMIT was lost."""
        return not (self._pending or self._declared)

    def has_written(self, tables: Collection[str]) -> bool:
        """Return whether an uncommitted write could touch one of *tables*."""
        return self._pending.touches(tables)

    @property
    def is_in_transaction(self) -> bool:
        """Whether statements run inside a transaction, Django's or one begun by SQL. A TestCase's does not count."""
        connection = self.connection
        if connection.in_atomic_block or self.is_raw_transaction:
            is_test = is_between_blocks(connection) and not (self.is_raw_transaction or connection.needs_rollback)
            return not is_test or connection.closed_in_transaction
        # BaseDatabaseWrapper.autocommit is False before the first connect, when the setting decides.
        is_autocommit = connection.autocommit if connection.connection else connection.settings_dict["AUTOCOMMIT"]
        return not is_autocommit

    @property
    def is_own_begin(self) -> bool:
        """Whether Django itself is sending BEGIN as SQL at this moment."""
        return self._is_own_begin

    def record(self, tables: Collection[str], *, is_everything: bool = False, note: str = "") -> None:
        """
        Note a write of the running transaction, to any rows of *tables*.

        Args:
            note: Says to people why it is not told by row.
        """
        self._pending.add_tables(tables, is_everything=is_everything, note=note)
        recently_written(self.alias).update(tables)

    def record_rows(self, table: str, changes: Sequence[RowChange | RowCells], *, fence: str = "") -> None:
        """
        Note what has become of rows of *table* in the running transaction; perhaps nothing.

        Args:
            fence: Of the transaction, if it is known already.
        """
        self._pending.add_rows(table, changes)
        # Forgotten by clear(), so it may be kept only while there is something to clear.
        if fence and self._pending:
            self._fence = fence
        recently_written(self.alias).add(table)

    def wants_rows(self, table: str) -> bool:
        """
        Return whether it is of use to find out which rows of *table* the running transaction changes.

        It is where some ledger has a clock of the table, and where the transaction is one of Django's own whose COMMIT
        is seen. Blocks of a TestCase are told by table.
        """
        connection = self.connection
        return connection.in_atomic_block and self.may_want_rows(table)

    def may_want_rows(self, table: str) -> bool:
        """Return the answer of wants_rows() after an atomic block has begun, if none is open now."""
        connection = self.connection
        if connection.in_atomic_block:
            # Under set_autocommit(False) a block ends with no COMMIT of its own.
            is_own = connection.commit_on_exit and not connection.needs_rollback and not is_in_testcase(connection)
        else:
            is_own = not self.is_in_transaction
        if (
            not is_own
            or self.is_raw_transaction
            or self.session.are_rows_in_doubt
            or not self._pending.is_told_by_row(table)
        ):
            return False
        clock = clock_of(shared_database_name(connection), table)
        for assembly in assemblies_by_ledger():
            if _is_watched(assembly.ledger, clock):
                return settings.precise
        return False

    def connecting(self, connect: Callable[[Any], T], parameters: Any) -> T:
        """Run *connect*. What a lost connection has left is forgotten before Django sets autocommit on the new one."""
        driver = connect(parameters)
        self.reset()
        return driver

    def committing(self, commit: Callable[[], T], *, is_commit_alone: bool = True) -> T:
        """
        Run *commit* between the declaration of the intents and their ticks (rules 7, 9 and 10).

        Args:
            is_commit_alone: Whether it writes nothing itself, so that all changes were made before.

        Raises:
            CommitRefusedError: A ledger is out of reach and LIVE_CACHE_ON_LEDGER_LOSS is "refuse".
        """
        if not self._pending and not self._test_tables:
            result = commit()
            self.session.end_transaction()
            return result
        ticks = self._ticks(is_committing=True)
        self._declare(ticks, lambda: self._fence or fences.writer_token(self.connection))
        # Until the ticks are sent: the answer may be lost while the COMMIT takes effect, and an interrupt may come at
        # any moment after it. The intents stay until the database is asked.
        self._is_outcome_unknown = True
        result = commit()
        self.session.end_transaction()
        self.clear()
        # With what an earlier COMMIT had declared whose answer was lost: on this connection that is over too.
        declared = self._declared
        self._tick(ticks if declared is ticks else declared | ticks, is_announced=is_commit_alone)
        note_commit()
        return result

    def rolling_back(self, rollback: Callable[[], T]) -> T:
        """
        Run *rollback*, and remove what was declared (rule 10).

        If a COMMIT was attempted before, it may have taken effect: its changes are ticked, now that the database has
        answered and the transaction is over in any case.
        """
        is_sent = self.connection.connection is not None
        result = rollback()
        self.session.end_transaction()
        if is_sent:
            self._tick_what_was_kept()
        self.clear()
        self.is_raw_transaction = False
        self.is_raw_transaction_uncertain = False
        if self._is_outcome_unknown and is_sent:
            self._tick(self._declared)
        elif not self._is_outcome_unknown:
            self._retract_intents(self._declared.slots)
        self._forget_intents()
        self._leave_testcase()
        note_rollback()
        return result

    def _tick_what_was_kept(self) -> None:
        """Tick the tables that a ROLLBACK on MySQL did not bring back."""
        connection = self.connection
        if connection.vendor != "mysql" or not self.has_writes:
            return
        try:
            tables = tables_without_rollback(connection, self._all_tables() if self.writes_everything else self.tables)
        except Exception:  # the driver's own errors too: the rollback has succeeded
            logger.warning("The engines of the tables of %r are not known.", connection.alias, exc_info=True)
            tables = frozenset(self.tables)
        if tables:
            name = shared_database_name(connection)
            self._tick_only(Ticks.of_tables((clock_of(name, table) for table in tables), "a ROLLBACK that kept rows"))

    def setting_autocommit(self, set_autocommit: Callable[[bool], T], autocommit: bool) -> T:
        """Run *set_autocommit*; turning it on commits on some databases, so it counts as a COMMIT."""
        if autocommit and self.has_writes:
            return self.committing(lambda: set_autocommit(autocommit))
        result = set_autocommit(autocommit)
        if autocommit and self._is_outcome_unknown:  # an interrupt came between a COMMIT and its ticks
            self._tick(self._declared)
        return result

    def beginning(self, begin: Callable[[], T]) -> T:
        """Run *begin*, Django's own BEGIN on SQLite."""
        self.has_sqlite_lock = False
        try:
            self._is_own_begin = True
            result = begin()
            self._is_own_begin = False
        except BaseException:  # no "finally", at the beginning of which an interrupt may come
            self._is_own_begin = False
            raise
        self.has_sqlite_lock = getattr(self.connection, "transaction_mode", None) in LOCKING_MODES
        return result

    def begin_now(self, *, is_alone: bool = False) -> None:
        """
        Send the BEGIN that is due, if one is.

        Args:
            is_alone: Nothing is sent between it and COMMIT but one statement of the user and what looks at its rows.
        """
        if not self.is_begin_due:
            return
        self.is_begin_due = False
        connection: Any = self.connection
        with connection.wrap_database_errors:
            if connection.vendor == "postgresql":
                self.driver.execute("BEGIN")
            elif is_alone and is_sent_once(connection):
                self.driver.begin()
                self.is_begun_alone = True
            else:
                connection._set_autocommit(False)

    def run_outside_transaction(self, tables: Collection[str], run: Callable[[], T], *, is_everything: bool) -> T:
        """
        Run a statement in autocommit mode that cannot be wrapped in a transaction (rule 8, second half).

        The intent stands, table-wide, before the statement is sent.
        """
        self.record(tables, is_everything=is_everything, note="a statement that runs in no transaction")
        ticks = self._ticks()
        try:
            self._declare(ticks, lambda: fences.session_token(self.connection))
        except CommitRefusedError:
            self.clear()  # nothing was sent
            self._retract_intents(ticks.slots)
            raise
        try:
            result = run()
        except Error:
            self.clear()
            if self._is_connection_alive():  # the database has answered: the statement is over
                self._tick(ticks)
                note_commit()
            else:
                self._forget_intents()
            raise
        except BaseException:
            self.clear()
            self._forget_intents()  # they stand in the ledger until the database is asked
            raise
        self.clear()
        self._tick(ticks)
        note_commit()
        return result

    def run_in_testcase(self, tables: Collection[str], run: Callable[[], T], *, is_everything: bool) -> T:
        """Run a statement where only blocks of a TestCase are open: as if in autocommit mode, on private clocks."""
        self.record(tables, is_everything=is_everything)
        try:
            return run()
        finally:
            self.end_block_in_testcase()

    def end_block_in_testcase(self) -> None:
        """Tick what the user's last atomic block inside a TestCase has written, whether it was kept or not."""
        tables, is_everything = self.tables, self.writes_everything
        self.clear()  # First: listing the tables sends SQL, and that would come here again.
        if is_everything:
            tables |= self._all_tables()
        name = database_name(self.connection)
        self._test_names.add(name)
        self._test_tables |= tables
        self._tick(Ticks.of_tables(clock_of(name, table) for table in tables))

    def rolled_back_to_savepoint(self) -> None:
        """Note a ROLLBACK TO SAVEPOINT: perhaps a TestCase has taken back all that its last test has written."""
        if self._test_tables and is_between_blocks(self.connection):
            self._tick(self._test_ticks())

    def _test_ticks(self) -> Ticks:
        return Ticks.of_tables(clock_of(name, table) for name in self._test_names for table in self._test_tables)

    def _leave_testcase(self) -> None:
        """Tick all that was written since the outermost block of a TestCase began: none of it is there any more."""
        ticks = self._test_ticks()
        self._test_tables.clear()
        self._test_names.clear()
        if ticks:
            self._tick(ticks)

    def run_unknown(self, run: Callable[[], T]) -> T:
        """Run something that may write any table, and that commits an open transaction before it begins."""
        if self.is_in_transaction:
            self.record((), is_everything=True)
            result = self.committing(run, is_commit_alone=False)
            # Django's block goes on, over a connection that commits each statement now.
            self.record((), is_everything=True)
            return result
        return self.run_outside_transaction((), run, is_everything=True)

    def tick_now(self, tables: Collection[str], *, note: str) -> None:
        """
        Tick *tables* at once, for a write that this connection has already committed or never saw.

        Args:
            note: Says to people why it is not told by row.
        """
        if self.is_in_transaction:
            self.record(tables, note=note)
            return
        name = database_name(self.connection)
        self._tick(Ticks.of_tables((clock_of(name, table) for table in tables), note))
        note_commit()

    def _ticks(self, *, is_committing: bool = False) -> Ticks:
        tables = self.tables
        if self.writes_everything:
            tables |= self._all_tables()
        connection = self.connection
        if not connection.atomic_blocks and not self._test_tables:  # as at every COMMIT outside of tests
            name = shared_database_name(connection)
            return self._pending.ticks({table: (clock_of(name, table),) for table in tables})
        names = {database_name(connection)}
        if is_committing and (self._test_tables or is_in_testcase(connection)):
            # Inside a TestCase: MySQL commits before a change of the schema, and then everybody sees the rows.
            tables |= self._test_tables
            names |= {shared_database_name(connection), *self._test_names}
        clocks = {table: [clock_of(name, table) for name in names] for table in tables}
        return self._pending.ticks(clocks)

    def _all_tables(self) -> set[str]:
        """Every table of the database: those of the models, and those that only the database knows."""
        tables = {normalize_table(model._meta.db_table) for model in apps.get_models(include_auto_created=True)}
        connection = self.connection
        if not connection.needs_rollback:
            try:
                tables.update(normalize_table(name) for name in connection.introspection.table_names())
            except Error:
                logger.warning("The tables of %r could not be listed.", connection.alias, exc_info=True)
        return tables

    def _declare(self, ticks: Ticks, fence: Callable[[], str]) -> None:
        records = ticks.rows_only()
        self._declared = self._declared | ticks if self._declared else ticks
        assemblies = assemblies_by_ledger()
        if len(assemblies) > 1:
            fence = cache(fence)  # each ledger asks for it, and each answer is a query
        for assembly in assemblies:
            try:
                intent_id = assembly.ledger.declare(ticks.slots, fence=fence, records=records)
            except LedgerUnavailableError as error:
                assembly.metrics.count("ledger_errors")
                if settings.on_ledger_loss == "refuse":
                    raise CommitRefusedError(
                        f"The ledger of cache {assembly.alias!r} is out of reach and LIVE_CACHE_ON_LEDGER_LOSS is "
                        '"refuse", so nothing was committed.'
                    ) from error
                logger.error("Committing without an intent: the ledger of %r is out of reach.", assembly.alias)
            else:
                self._intents.append((assembly.ledger, intent_id))

    def _retract_intents(self, clocks: Collection[str]) -> None:
        for ledger, intent_id in self._intents:
            with suppress(LedgerUnavailableError):  # its lease will end it
                ledger.retract(tuple(clocks), intent_id)
        self._forget_intents()

    def _tick(self, ticks: Ticks, *, is_announced: bool = False) -> None:
        self._tick_only(ticks, tuple(self._intents), is_announced=is_announced)
        self._forget_intents()  # not before: what an interrupt has kept from the ledger is ticked at the next ROLLBACK

    def _tick_only(
        self, ticks: Ticks, intents: Collection[tuple[Ledger, str]] = (), *, is_announced: bool = False
    ) -> None:
        for assembly in assemblies_by_ledger():
            # Nothing may leave a committed atomic(); Ledger.tick() has kept the change before it can fail.
            try:
                own = [intent_id for ledger, intent_id in intents if ledger is assembly.ledger]
                for intent_id in own or (None,):
                    if not assembly.ledger.tick(
                        ticks.slots, intent_id=intent_id, records=ticks.records, is_announced=is_announced
                    ):
                        assembly.metrics.count("ledger_errors")
            except Exception:
                logger.exception("The ledger of %r failed to tick; the ticks are kept.", assembly.alias)

    def _forget_intents(self) -> None:
        self._intents.clear()
        self._declared = _NOTHING
        self._is_outcome_unknown = False

    def _is_connection_alive(self) -> bool:
        try:
            return self.connection.is_usable()
        except Exception:  # is_usable() of a lost connection may itself fail, in the driver's own ways
            return False


def _is_watched(ledger: Ledger, clock: str) -> bool:
    try:
        return ledger.is_watched((clock,))
    except LedgerUnavailableError:
        return False
