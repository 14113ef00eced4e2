"""
The listener: takes lines from the outbox and ticks them, then deletes them.

The outbox is read whole, by what is committed, and a line goes only after its tick: so no line is passed by whatever
the order of ids and commits is, none waits for a transaction that is still open elsewhere, and a listener that dies
between the two leaves its lines to the next one, which ticks them once more. That does no harm.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from django.db import connections

from live_cache.assembly import Assembly, assemblies_by_ledger
from live_cache.conf import settings
from live_cache.exceptions import ConfigurationError, LedgerUnavailableError
from live_cache.names import clock_of, shared_database_name
from live_cache.outbox.decoding import decode_changes
from live_cache.outbox.dialect import Line
from live_cache.outbox.dialects import dialect_of
from live_cache.sql import normalize_table
from live_cache.tables import models_of_tables
from live_cache.writes.pending import Pending

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.ledger.base import Ledger

__all__ = ["BATCH", "INTERVAL_S", "Listener"]

logger = logging.getLogger("live_cache.outbox")

INTERVAL_S: Final = 0.05
"""Seconds between two looks at the outbox, where no notification comes first."""
BATCH: Final = 2000
"""Lines that are read at once. Where there are more, tables are told as a whole."""
_MAX_TRANSACTIONS: Final = 64
"""Transactions of one batch that are ticked one by one."""
_FIRST_PAUSE_S: Final = 0.5
_LONGEST_PAUSE_S: Final = 10.0
_ASK_FOR_TURN_S: Final = 1.0


class Listener:
    """
    Ticks what the triggers of one database have told. Has a connection of its own; for one thread.

    Args:
        alias: Of the database.
        interval_s: Seconds between two looks at the outbox.
    """

    def __init__(self, alias: str = "default", *, interval_s: float = INTERVAL_S) -> None:
        self.alias = alias
        self.interval_s = interval_s
        self.dialect = dialect_of(connections[alias])
        self._connection: BaseDatabaseWrapper | None = None
        self._ticked: list[Line] = []
        """Lines that are ticked, or whose ticks a ledger keeps until it answers, and that are not deleted yet."""
        self._ledgers: list[Ledger] = []
        """The ledgers that have got these ticks."""

    def run(self, stop: threading.Event) -> None:
        """
        Listen until *stop* is set, through failures of the database and of the ledgers. One listener works at a time.

        Raises:
            ConfigurationError: No cache is live.
        """
        pause_s = _FIRST_PAUSE_S
        while not stop.is_set():
            try:
                if not self._take_turn():
                    stop.wait(_ASK_FOR_TURN_S)
                    continue
                while not stop.is_set():
                    self.step()
                    pause_s = _FIRST_PAUSE_S
                    self.dialect.wait(self._connected(), self.interval_s)
            except ConfigurationError:
                raise
            except LedgerUnavailableError:
                logger.warning("A ledger does not answer; the outbox of %r waits.", self.alias)
                stop.wait(pause_s)
            except Exception:  # whatever a driver raises: the lines stay where they are
                logger.exception("The listener of %r failed, and begins again in %.1f s.", self.alias, pause_s)
                self._disconnect()
                stop.wait(pause_s)
            pause_s = min(pause_s * 2, _LONGEST_PAUSE_S)
        self.close()

    def drain(self) -> int:
        """
        Tick all that waits, and return how many lines that were.

        Raises:
            LedgerUnavailableError: A ledger does not answer. The lines that it did not get stay.
            ConfigurationError: There is no outbox, or no cache is live.
            Exception: Whatever the driver raises.
        """
        if not self.dialect.exists(self._connected()):
            raise ConfigurationError(
                f"The database {self.alias!r} has no outbox. Run `manage.py live_cache install_triggers`."
            )
        total = 0
        while count := self.step():
            total += count
        return total

    def step(self) -> int:
        """Tick one batch of lines, delete it, and return how many lines it had. Raises what drain() raises."""
        connection = self._connected()
        assemblies = assemblies_by_ledger()
        if not assemblies:
            raise ConfigurationError("No alias in CACHES has the BACKEND live_cache.backend.LiveCache.")
        self._finish(connection)
        lines = self.dialect.read(connection, BATCH)
        if not lines:
            return 0
        for pending in self._gather(connection, lines):
            self._tick(connection, pending, assemblies)
        for assembly in assemblies:
            assembly.metrics.count("outbox_lines", len(lines))
            assembly.metrics.count("outbox_lag_ms", round(sum(line.lag_s for line in lines) * 1000))
        self._ticked = lines
        self._ledgers = [assembly.ledger for assembly in assemblies]
        self._finish(connection)
        return len(lines)

    def close(self) -> None:
        """Close the connection. The next call opens another one."""
        self._disconnect()

    def _connected(self) -> BaseDatabaseWrapper:
        if self._connection is None:
            connection = connections[self.alias].copy()
            # A connection of a pool would take what was set on it to others.
            connection.settings_dict["OPTIONS"] = {
                name: value for name, value in connection.settings_dict["OPTIONS"].items() if name != "pool"
            }
            connection.settings_dict["AUTOCOMMIT"] = True
            connection.inc_thread_sharing()  # whoever ends a thread may close what it has left
            connection.ensure_connection()
            self._connection = connection
            self.dialect.prepare(connection)
        return self._connection

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                self.dialect.close(connection)
            except Exception:  # whatever a driver raises
                logger.debug("The connection of the listener did not close.", exc_info=True)

    def _take_turn(self) -> bool:
        connection = self._connected()
        if not self.dialect.exists(connection) or not self.dialect.take_turn(connection):
            return False
        logger.info("Listening to the outbox of %r.", self.alias)
        return True

    def _finish(self, connection: BaseDatabaseWrapper) -> None:
        """Delete the lines of the last batch, once every ledger has its ticks."""
        if not self._ticked:
            return
        for ledger in self._ledgers:
            ledger.deliver()
        self.dialect.delete(connection, self._ticked)
        self._ticked = []

    def _gather(self, connection: BaseDatabaseWrapper, lines: Sequence[Line]) -> list[Pending]:
        """
        Return what *lines* tell, by transaction.

        A reader judges rows of one transaction together, so those of one are never in two records. Where the batch may
        end in the middle of one, all tables are told as a whole: whatever was filled before is stale then.
        """
        is_cut = len(lines) >= BATCH
        are_many = len({line.transaction for line in lines}) > _MAX_TRANSACTIONS
        by_transaction: dict[str, Pending] = {}
        for line in lines:
            pending = by_transaction.setdefault("" if is_cut or are_many else line.transaction, Pending())
            table = normalize_table(f'"{line.table}"')
            note = f"{line.kind} outside of Django"
            models = models_of_tables().get(table, ())
            if is_cut or line.changes is None or len(models) != 1 or not settings.precise:
                pending.add_tables((table,), is_everything=False, note=note)
                continue
            try:
                changes = decode_changes(line.changes, line.kind, models[0], connection)
            except Exception:  # whatever stands there: nothing but the table is known of the change
                logger.warning("Line %d of the outbox of %r cannot be read.", line.id, self.alias, exc_info=True)
                pending.add_tables((table,), is_everything=False, note=note)
            else:
                pending.add_rows(table, changes)
        return list(by_transaction.values())

    def _tick(self, connection: BaseDatabaseWrapper, pending: Pending, assemblies: Iterable[Assembly]) -> None:
        name = shared_database_name(connection)
        ticks = pending.ticks({table: [clock_of(name, table)] for table in pending.tables})
        if not ticks:
            return
        for assembly in assemblies:
            # What it cannot deliver it keeps, and _finish() waits for that.
            if not assembly.ledger.tick(ticks.slots, records=ticks.records):
                assembly.metrics.count("ledger_errors")
