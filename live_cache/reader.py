"""
The read path: plan -> tiers -> ledger -> rows; on a miss: ledger -> SELECT -> rows -> tiers.

This is where "never stale" is kept for readers: an entry is served only if ledger.clocks.is_fresh() says so of a
reading that was requested after the read began (rules 2 and 5), and it is filled only with the stamp of a reading that
was taken before the SELECT (rule 4).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import Error

from live_cache.exceptions import FrameError, LedgerUnavailableError, StoreError, UncachableValueError
from live_cache.ledger import fences
from live_cache.ledger.clocks import Reading, is_fresh, take_stamps
from live_cache.loop import is_on_loop, leave_loop
from live_cache.read_records import ReadRecord, Result, Rows, count_hit, count_miss, is_recording, recorded, recording
from live_cache.rows import Entry, EntryHeader, decode_entry, encode_entry, restamp_entry
from live_cache.shapes.causes import DroppedBy
from live_cache.shapes.shape import View
from live_cache.shapes.witness import EntryWitness
from live_cache.stores.base import MISS
from live_cache.writes.transactions import ConnectionState, is_any_in_transaction, state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.plan import Plan

__all__ = [
    "ReadRecord",
    "Result",
    "Rows",
    "disabled",
    "fetch_plainly",
    "is_disabled",
    "read",
    "reason_to_bypass",
    "recording",
]

logger = logging.getLogger("live_cache.read")

_is_disabled: ContextVar[bool] = ContextVar("live_cache_is_disabled", default=False)


@contextmanager
def disabled() -> Iterator[None]:
    """Send every live read inside the block to the database. Writes are recorded as always."""
    token = _is_disabled.set(True)
    try:
        yield
    finally:
        _is_disabled.reset(token)


def is_disabled() -> bool:
    """Return whether this thread or task is inside disabled()."""
    return _is_disabled.get()


def read(
    assembly: Assembly,
    plan: Plan,
    connection: BaseDatabaseWrapper,
    fetch: Callable[[], Rows],
    *,
    timeout_s: float | None,
    is_refresh: bool = False,
) -> Result:
    """
    Return the rows of *plan*: from the nearest tier that has them fresh, else from the database.

    Never raises an error of a store or a ledger; what the database raises passes through.

    Args:
        fetch: Runs the SELECT and returns its rows.
        timeout_s: Time to live of a new entry, in seconds. None never expires.
        is_refresh: Fetch anew, whatever the tiers hold, and store.
    """
    started = time.perf_counter()
    if is_on_loop():
        return _read_memory(assembly, plan, connection, started, is_refresh=is_refresh)
    state = state_of(connection)
    reason = reason_to_bypass(connection, state, plan.tables)
    if reason:
        assembly.metrics.count("bypasses.transaction")
        return fetch_plainly(assembly, fetch, reason, plan=plan, started=started)
    search = _Search(assembly, plan)
    try:
        found = None if is_refresh else search.find()
        if assembly.ledger.is_silent and search.readings is not None:
            assembly.ledger.is_silent = False
            logger.warning("The ledger of %r answers again.", assembly.alias)
        if found is not None:
            rows, header, tier = found
            count_hit(assembly.metrics, tier)
            return recorded(rows, started, plan, tier=tier, fetched_at_ns=header.fetched_at_ns)
        readings = search.settled_readings(connection)
    except LedgerUnavailableError:
        assembly.metrics.count("ledger_errors")
        count_miss(assembly.metrics, "ledger")
        if not assembly.ledger.is_silent:
            assembly.ledger.is_silent = True
            logger.warning("The ledger of %r does not answer; the database does.", assembly.alias, exc_info=True)
        return fetch_plainly(assembly, fetch, "the ledger did not answer", plan=plan, started=started)
    miss = "refreshed" if is_refresh else search.miss
    count_miss(assembly.metrics, miss)
    rows, is_proven = _fetch(state, plan, fetch)
    assembly.metrics.count("fetches")
    fetched_at_ns = time.time_ns()
    reason_after = reason_to_fill_not(connection, state)
    if is_proven and not reason_after:
        _store(assembly, plan, readings, rows, fetched_at_ns, timeout_s)
    reason = reason_after or miss
    return recorded(rows, started, plan, reason=reason, fetched_at_ns=fetched_at_ns, dropped_by=search.dropped_by)


def _read_memory(
    assembly: Assembly, plan: Plan, connection: BaseDatabaseWrapper, started: float, *, is_refresh: bool
) -> Result:
    """
    Return a hit of the memory tier, or leave the loop.

    The connection is the loop's own, which nobody uses. What the caller may have written in a transaction is known to a
    connection of a thread, and which one is the caller's cannot be known.
    """
    found = None
    if not is_refresh and not is_any_in_transaction(connection.alias):
        try:
            found = _Search(assembly, plan).find(tier_limit=1)
        except LedgerUnavailableError:
            leave_loop()
    if found is None:
        leave_loop()
    assert found is not None
    rows, header, tier = found
    count_hit(assembly.metrics, tier)
    return recorded(rows, started, plan, tier=tier, fetched_at_ns=header.fetched_at_ns)


def fetch_plainly(
    assembly: Assembly | None,
    fetch: Callable[[], Rows],
    reason: str,
    *,
    plan: Plan | None = None,
    started: float | None = None,
) -> Result:
    """Return what the database says and store nothing, for *reason*."""
    leave_loop()
    started = time.perf_counter() if started is None else started
    rows = fetch()
    if assembly is not None:
        assembly.metrics.count("fetches")
    return recorded(rows, started, plan, reason=reason, fetched_at_ns=time.time_ns())


def reason_to_bypass(connection: BaseDatabaseWrapper, state: ConnectionState, tables: frozenset[str]) -> str:
    """Return why a read on this connection may not use the cache now (rule 15), or an empty text."""
    if state.is_search_path_changed and not _has_tenant():
        return "the search path or role of the connection was changed, and LIVE_CACHE_TENANT is not set"
    if not state.is_in_transaction:
        return ""
    if state.has_written(tables):
        return "the transaction has uncommitted writes of its own to these tables"
    if not connection.in_atomic_block:
        return "the transaction is managed by hand"
    if connection.vendor == "sqlite":
        return "a SQLite transaction reads a snapshot"
    if connection.needs_rollback or connection.closed_in_transaction:
        return "the transaction is broken"
    if _isolation(connection, state) != "read committed":
        return "the transaction does not read the latest committed rows"
    return ""


def reason_to_fill_not(connection: BaseDatabaseWrapper, state: ConnectionState) -> str:
    """Return why rows that were just fetched on this connection may be old or uncommitted, or an empty text."""
    if state.open_cursors:
        return "an unfinished cursor pins the SQLite connection to an older snapshot"
    # SQLite reads uncommitted rows only in a shared cache that asks for it; PostgreSQL never does.
    if state.is_in_transaction or connection.vendor != "mysql":
        return ""
    if _isolation(connection, state) == "read uncommitted":
        return "the connection reads uncommitted rows"
    return ""


def _has_tenant() -> bool:
    from live_cache.conf import settings

    return settings.tenant is not None


_ISOLATION_SQL = {"postgresql": "SHOW transaction_isolation", "mysql": "SELECT @@tx_isolation"}


def _isolation(connection: BaseDatabaseWrapper, state: ConnectionState) -> str:
    """Return the isolation level, asked of the database once per connection: its default may be set on the server."""
    if state.is_isolation_changed:
        return "changed by SQL"
    if state.isolation is not None and state.isolation[0] is connection.connection:
        return state.isolation[1]
    sql = _ISOLATION_SQL.get(connection.vendor)
    if sql is None:
        return "unknown"
    if connection.vendor == "mysql" and not getattr(connection, "mysql_is_mariadb", False):
        sql = "SELECT @@transaction_isolation"  # the name in MySQL 8, which dropped the older one
    try:
        # By the driver's cursor, so that nobody who counts Django's queries counts this one.
        with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
            cursor.execute(sql)
            (level,) = cursor.fetchone()
    except Error:
        return "unknown"
    level = str(level).lower().replace("-", " ")
    state.isolation = (connection.connection, level)
    return level


class _Search:
    """One look through the tiers, under one reading of the ledger."""

    __slots__ = ("assembly", "dropped_by", "miss", "plan", "readings")

    def __init__(self, assembly: Assembly, plan: Plan) -> None:
        self.assembly = assembly
        self.plan = plan
        self.readings: list[Reading] | None = None
        self.miss = "cold"
        self.dropped_by: DroppedBy | None = None

    def find(self, *, tier_limit: int | None = None) -> tuple[Rows, EntryHeader, str] | None:
        """Return rows, header and tier of the nearest fresh entry, promoted to the tiers before it."""
        store = self.assembly.store
        farthest = len(store.stores) - 1
        for index, tier in enumerate(store.stores[:tier_limit]):
            data: bytes | Any
            if index == farthest and self.readings is None:
                # Entry and clocks in one round trip, where both live on one server.
                self.readings, data = self.assembly.ledger.read_with_entry(
                    self.plan.dependencies, tier, self.plan.entry_key
                )
            else:
                stored = store.read_tier(index, self.plan.entry_key)
                data = MISS if stored is MISS else stored.value
            if data is MISS:
                continue
            if self.readings is None:
                self.readings = self.assembly.ledger.read(self.plan.dependencies)
            try:
                found = self._servable(data)
                if found is None:
                    continue
                rows = found.witness.view.rows
            except FrameError:
                self._drop(index)
                continue
            if found.witness.is_lagging(self.readings):
                self._restamp(found, self.readings)
            elif index:
                self._promote(data, found.entry.header, index)
            self.assembly.known_entries.note(self.plan.entry_key, found.entry.header.expires_at_ns)
            return rows, found.entry.header, tier.name
        if self.miss == "cold" and tier_limit is None:
            self.miss = self._why_nothing_was_there()
        return None

    def settled_readings(self, connection: BaseDatabaseWrapper) -> list[Reading]:
        """Return the readings to stamp a new entry with, after the intents that stand in the way were looked after."""
        ledger = self.assembly.ledger
        if self.readings is None:
            self.readings = ledger.read(self.plan.dependencies)
        if any(reading.intents for reading in self.readings) and fences.settle(ledger, connection, self.readings):
            self.readings = ledger.read(self.plan.dependencies)
        return self.readings

    def _servable(self, data: bytes) -> _Found | None:
        """Return the entry in *data* if it may be served. Raises FrameError if it is none."""
        entry = decode_entry(data, key=self.plan.entry_key, mac_keys=self.assembly.mac_keys)
        header = entry.header
        if header.expires_at_ns is not None and header.expires_at_ns <= time.time_ns():
            self.miss, self.dropped_by = "expired", None
            return None
        assert self.readings is not None
        found = _Found(entry, EntryWitness(self.assembly.ledger, self.plan, header, View(entry.rows)))
        if header.dependencies != self.plan.dependencies or not is_fresh(
            header.stamps, self.readings, self.plan.dependencies, found.witness
        ):
            self.dropped_by = found.witness.dropped_by(self.readings, is_detailed=is_recording())
            self.miss = self.dropped_by.reason
            return None
        found.witness.remember(self.readings)
        return found

    def _why_nothing_was_there(self) -> str:
        reason = self.assembly.known_entries.take(self.plan.entry_key)
        if reason == "evicted":
            try:
                for tier in self.assembly.store.stores:
                    tier.exists(self.plan.entry_key)
            except StoreError:
                return "unanswered"
        return reason

    def _drop(self, index: int) -> None:
        """Delete an entry that is no frame of ours, so that it is not read again and again."""
        self.miss, self.dropped_by = "corrupt", None
        self.assembly.metrics.count("corrupt")
        tier = self.assembly.store.stores[index]
        logger.warning("The tier %r held a corrupt entry under %r; it is dropped.", tier.name, self.plan.entry_key)
        try:
            tier.delete(self.plan.entry_key)
        except StoreError:
            self.assembly.metrics.count("store_errors")

    def _restamp(self, found: _Found, readings: Sequence[Reading]) -> None:
        """Store an entry again that is fresh under *readings*, before the log forgets what proves it."""
        leave_loop()  # it goes to every tier
        self.assembly.metrics.count("restamps")
        header = found.entry.header
        data = restamp_entry(
            found.entry, take_stamps(readings), key=self.plan.entry_key, mac_keys=self.assembly.mac_keys
        )
        try:
            self.assembly.store.put(self.plan.entry_key, data, timeout_s=_remaining_s(header))
        except StoreError:
            self.assembly.metrics.count("store_errors")

    def _promote(self, data: bytes, header: EntryHeader, index: int) -> None:
        self.assembly.metrics.count("promotions")
        self.assembly.store.put_near(self.plan.entry_key, data, timeout_s=_remaining_s(header), below=index)


@dataclass(frozen=True, slots=True)
class _Found:
    """An entry that may be fresh."""

    entry: Entry
    witness: EntryWitness


def _remaining_s(header: EntryHeader) -> float | None:
    return None if header.expires_at_ns is None else (header.expires_at_ns - time.time_ns()) / 1e9


def _fetch(state: ConnectionState, plan: Plan, fetch: Callable[[], Rows]) -> tuple[Rows, bool]:
    """
    Run the SELECT. Also return whether the SQL that was really sent reads no table that the plan does not know.

    The plan's tables were learned from another query of the same structure; this is the proof, for each single fill.
    """
    outer = state.captured_tables
    captured: set[str] = set()
    state.captured_tables = captured
    try:
        rows = fetch()
    finally:
        state.captured_tables = None if outer is None else outer | captured
    unknown = captured - plan.tables
    if unknown:
        logger.error("%r reads %s, which its plan does not know; not stored.", plan.cache_key, sorted(unknown))
    return rows, not unknown


def _store(
    assembly: Assembly,
    plan: Plan,
    readings: Sequence[Reading],
    rows: Rows,
    fetched_at_ns: int,
    timeout_s: float | None,
) -> None:
    if timeout_s is not None and timeout_s <= 0:
        return
    header = EntryHeader(
        fetched_at_ns=fetched_at_ns,
        expires_at_ns=None if timeout_s is None else fetched_at_ns + int(timeout_s * 1e9),
        dependencies=plan.dependencies,
        stamps=take_stamps(readings),
    )
    try:
        data = encode_entry(header, rows, key=plan.entry_key, mac_keys=assembly.mac_keys)
        assembly.store.put(plan.entry_key, data, timeout_s=timeout_s)
    except UncachableValueError as error:
        assembly.metrics.count("bypasses.value")
        logger.warning("A result of %r is not cached: %s", plan.cache_key, error)
    except StoreError:
        assembly.metrics.count("store_errors")
        logger.warning("A result of %r could not be stored.", plan.cache_key, exc_info=True)
    else:
        assembly.metrics.count("stores")
        assembly.known_entries.note(plan.entry_key, header.expires_at_ns)
