"""
The read path: plan -> tiers -> ledger -> rows; on a miss: ledger -> SELECT -> rows -> tiers.

This is where "never stale" is kept for readers: an entry is served only if search.py finds it fresh by a reading that
was requested after the read began (rules 2 and 5), and it is filled only with the stamp of a reading that was taken
before the SELECT (rule 4).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from django.db import Error

from live_cache.bypasses import reason_to_bypass, reason_to_fill_not
from live_cache.exceptions import LedgerUnavailableError, StoreError, UncachableValueError
from live_cache.ledger.clocks import Reading, take_stamps
from live_cache.loop import is_on_loop, leave_loop
from live_cache.read_records import ReadRecord, Result, Rows, count_hit, count_miss, recorded, recording
from live_cache.replicas import has_caught_up, primary_of
from live_cache.rows import EntryHeader, encode_entry
from live_cache.search import Found, Search, judge_entry
from live_cache.verification import choose_on_loop, is_chosen, verify_hit
from live_cache.writes.transactions import ConnectionState, is_any_in_transaction, state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.flights import Turn
    from live_cache.leniency import Leniency
    from live_cache.plan import Plan

__all__ = [
    "ReadRecord",
    "Result",
    "Rows",
    "disabled",
    "fetch_plainly",
    "is_disabled",
    "read",
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
    empty_timeout_s: float | None,
    is_refresh: bool = False,
    is_bounded: bool = False,
    leniency: Leniency | None = None,
) -> Result:
    """
    Return the rows of *plan*: from the nearest tier that has them fresh, else from the database.

    Never raises an error of a store or a ledger; what the database raises passes through.

    Args:
        fetch: Runs the SELECT and returns its rows.
        timeout_s: Time to live of a new entry, in seconds. None never expires.
        empty_timeout_s: The same of one that shows no row.
        is_refresh: Fetch anew, whatever the tiers hold, and store.
        is_bounded: Whether an entry of the nearest tier may be served that was fresh LIVE_CACHE_MAX_LAG_MS ago.
        leniency: What the queryset allows besides rows that are never stale. None: nothing.
    """
    started = time.perf_counter()
    if is_on_loop():
        return _read_memory(assembly, plan, connection, started, is_refresh=is_refresh, leniency=leniency)
    state = state_of(connection)
    reason = reason_to_bypass(connection, state, plan.tables)
    if reason:
        assembly.metrics.count("bypasses.transaction")
        return fetch_plainly(assembly, fetch, reason, plan=plan, started=started)
    timeouts_s = timeout_s, empty_timeout_s
    read = _Read(assembly, plan, connection, state, fetch, timeouts_s, is_refresh, is_bounded, leniency, started)
    with assembly.flights.turn(plan.entry_key) as turn:
        return read.run(turn)


@dataclass(frozen=True, slots=True)
class _Read:
    """One read that may use the cache."""

    assembly: Assembly
    plan: Plan
    connection: BaseDatabaseWrapper
    state: ConnectionState
    fetch: Callable[[], Rows]
    timeouts_s: tuple[float | None, float | None]
    """Of an entry with rows, and of one without."""
    is_refresh: bool
    is_bounded: bool
    leniency: Leniency | None
    started: float

    def run(self, turn: Turn) -> Result:
        search = Search(self.assembly, self.plan, self.connection)
        early: Found | None = None
        try:
            while True:
                turn.look()
                looked_s = time.monotonic()
                try:
                    found = None if self.is_refresh else self._find(search)
                    search.note_answer()
                    if found is not None and not self._is_refreshed_now(found, turn, search, looked_s):
                        return self._hit(found, has_waited=turn.waits > 0)
                    readings = search.settled_readings(self.connection)
                except LedgerUnavailableError:
                    return _fetch_without_ledger(self.assembly, self.plan, self.fetch, self.started)
                early = found
                if early is not None or self.is_refresh or not self._may_wait(search):
                    break
                if self.leniency is not None and self.leniency.stale_while_revalidate_s is not None:
                    served = self._serve_stale(search, self.leniency.stale_while_revalidate_s, "while_revalidate", turn)
                    if served is not None:
                        return served
                if turn.is_mine(search.farthest):
                    break
                search = Search(self.assembly, self.plan, self.connection, before=search)
            return self._fill(turn, search, readings, looked_s, is_early=early is not None)
        except Error as error:
            turn.fail(error)
            if early is not None:
                return self._hit(early, has_waited=False)
            if self.leniency is not None and not self.state.is_in_transaction:
                served = self._serve_stale(search, self.leniency.stale_if_error_s, "if_error")
                if served is not None:
                    logger.warning(
                        "The database failed; rows of %r are served stale.", self.plan.cache_key, exc_info=True
                    )
                    return served
            raise

    def _find(self, search: Search) -> Found | None:
        return search.find_bounded(self.connection) if self.is_bounded else search.find()

    def _fill(
        self, turn: Turn, search: Search, readings: Sequence[Reading], looked_s: float, *, is_early: bool
    ) -> Result:
        """Fetch, and store what was fetched."""
        assembly, plan, connection = self.assembly, self.plan, self.connection
        miss = "ahead" if is_early else "refreshed" if self.is_refresh else search.miss
        # After the readings, before the SELECT: see replicas.
        primary = primary_of(connection)
        is_behind = primary is not None and not has_caught_up(connection, primary)
        if is_behind:
            turn.leave()
        turn.fetching(shares_errors=primary is None and not self.state.is_in_transaction)
        if not is_early:
            self._count_miss(miss, turn)
        began_s = time.monotonic()
        rows, is_proven = _fetch(self.state, plan, self.fetch)
        took_s = time.monotonic() - began_s
        if is_early:
            self._count_miss(miss, turn)
        assembly.metrics.count("fetches")
        is_empty = shows_nothing(plan, rows)
        if is_empty:
            assembly.metrics.count("empty_fetches")
        fetched_at_ns = time.time_ns()
        reason_after = reason_to_fill_not(connection, self.state)
        if is_behind:
            assembly.metrics.count("behind")
            reason_after = f"the replica {connection.alias!r} may be behind its primary"
        if is_proven and not reason_after:
            kept_s = 0.0 if self.leniency is None else self.leniency.kept_s
            timeout_s = self.timeouts_s[is_empty]
            is_stored = _store(assembly, plan, readings, rows, fetched_at_ns, timeout_s, turn, kept_s)
            assembly.flights.note(plan.entry_key, took_s, is_stored=is_stored)
            if self.leniency is not None:
                assembly.sightings.note(plan.entry_key, fetched_at_ns, looked_s)
        reason = reason_after or miss
        return recorded(
            rows, self.started, plan, reason=reason, fetched_at_ns=fetched_at_ns, dropped_by=search.dropped_by
        )

    def _count_miss(self, miss: str, turn: Turn) -> None:
        count_miss(self.assembly.metrics, miss)
        if turn.waits:
            self.assembly.metrics.count("waits.in_vain")

    def _may_wait(self, search: Search) -> bool:
        """
        Return whether this read may wait for the fetch of another one, or let others wait for its own.

        Not where no fetch could serve anybody now: its rows cannot be stored, or a commit holds the entry. And not in a
        transaction that has written: it may hold locks that others wait for.
        """
        return (
            any(timeout_s is None or timeout_s > 0 for timeout_s in self.timeouts_s)
            and not search.is_held
            and not self.state.has_writes
            and (self.connection.connection is None or not reason_to_fill_not(self.connection, self.state))
        )

    def _is_refreshed_now(self, found: Found, turn: Turn, search: Search, looked_s: float) -> bool:
        """Return whether this read is the one that fetches a fresh entry early. Nobody waits for that."""
        if self.leniency is None:
            return False
        header = found[1]
        if search.readings is not None:  # else the copy of a bounded read has told, which may be older
            self.assembly.sightings.note(self.plan.entry_key, header.fetched_at_ns, looked_s)
        if (
            not self.leniency.wants_refresh(header)
            or self.state.is_in_transaction
            or not self._may_wait(search)
            or not self.assembly.flights.is_worth_waiting(self.plan.entry_key)
        ):
            return False
        if turn.leads_at_once(search.farthest):
            return True
        if turn.has_news:
            search.drop_near()  # so that the next read takes what another process has fetched
        return False

    def _serve_stale(self, search: Search, bound_s: float | None, why: str, turn: Turn | None = None) -> Result | None:
        """
        Return older rows within the bound, if there are any.

        Args:
            why: while_revalidate or if_error.
            turn: Not if this read can be the one that fetches.
        """
        stale = self.assembly.sightings.serve(self.plan, search.entries, bound_s)
        if stale is None or (turn is not None and (turn.leads_at_once(search.farthest) or turn.has_news)):
            return None
        rows, header = stale
        count_miss(self.assembly.metrics, search.miss)
        self.assembly.metrics.count(f"stale.{why}")
        reason = f"served stale {why.replace('_', ' ')}"
        return recorded(rows, self.started, self.plan, reason=reason, fetched_at_ns=header.fetched_at_ns)

    def _hit(self, found: Found, *, has_waited: bool) -> Result:
        """Return a hit, or what the database says in its place, if it is one that is verified and found to be wrong."""
        assembly, plan = self.assembly, self.plan
        rows, header, _ = found
        if is_chosen():
            truth = verify_hit(
                assembly,
                plan,
                self.connection,
                self.state,
                self.fetch,
                header,
                rows,
                judge=partial(judge_entry, assembly, plan, self.connection),
            )
            if truth is not None:
                assembly.sightings.forget(plan.entry_key, header.fetched_at_ns)
                count_miss(assembly.metrics, "different")
                assembly.metrics.count("fetches")
                return recorded(truth, self.started, plan, reason="different", fetched_at_ns=time.time_ns())
        return _hit(assembly, plan, found, self.started, has_waited=has_waited)


def _hit(assembly: Assembly, plan: Plan, found: Found, started: float, *, has_waited: bool = False) -> Result:
    rows, header, tier = found
    count_hit(assembly.metrics, tier)
    if has_waited:
        assembly.metrics.count("waits.served")
    return recorded(rows, started, plan, tier=tier, fetched_at_ns=header.fetched_at_ns)


def _fetch_without_ledger(assembly: Assembly, plan: Plan, fetch: Callable[[], Rows], started: float) -> Result:
    """Return what the database says. Called while the error of the ledger is handled."""
    assembly.metrics.count("ledger_errors")
    count_miss(assembly.metrics, "ledger")
    if not assembly.ledger.is_silent:
        assembly.ledger.is_silent = True
        logger.warning("The ledger of %r does not answer; the database does.", assembly.alias, exc_info=True)
    return fetch_plainly(assembly, fetch, "the ledger did not answer", plan=plan, started=started)


def _read_memory(
    assembly: Assembly,
    plan: Plan,
    connection: BaseDatabaseWrapper,
    started: float,
    *,
    is_refresh: bool,
    leniency: Leniency | None,
) -> Result:
    """
    Return a hit of the memory tier, or leave the loop.

    The connection is the loop's own, which nobody uses. What the caller may have written in a transaction is known to a
    connection of a thread, and which one is the caller's cannot be known.
    """
    found = None
    if not is_refresh and not is_any_in_transaction(connection.alias):
        try:
            found = Search(assembly, plan, connection).find(tier_limit=1)
        except LedgerUnavailableError:
            leave_loop()
    # With a leniency a hit is remembered, which is left to the thread, as is to fetch it early.
    if found is None or leniency is not None or choose_on_loop():
        leave_loop()
    assert found is not None
    return _hit(assembly, plan, found, started)


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


def shows_nothing(plan: Plan, rows: Rows) -> bool:
    """Return whether a result is a negative one: no rows, a count of 0, or exists() that is False."""
    return not rows or (plan.purpose in ("count", "exists") and not rows[0][0])


def _store(
    assembly: Assembly,
    plan: Plan,
    readings: Sequence[Reading],
    rows: Rows,
    fetched_at_ns: int,
    timeout_s: float | None,
    turn: Turn,
    kept_s: float = 0.0,
) -> bool:
    """
    Store what was fetched, and end the lease of *turn* with it. Return whether a tier has it.

    Args:
        kept_s: How much longer than *timeout_s* the tiers keep it.
    """
    if timeout_s is not None and timeout_s <= 0:
        return False
    header = EntryHeader(
        fetched_at_ns=fetched_at_ns,
        expires_at_ns=None if timeout_s is None else fetched_at_ns + int(timeout_s * 1e9),
        dependencies=plan.dependencies,
        stamps=take_stamps(readings),
    )
    try:
        data = encode_entry(header, rows, key=plan.entry_key, mac_keys=assembly.mac_keys)
        keep_s = None if timeout_s is None else timeout_s + kept_s
        if turn.token is None:
            assembly.store.put(plan.entry_key, data, timeout_s=keep_s)
        else:
            assembly.store.put_and_release(plan.entry_key, data, turn.token, timeout_s=keep_s)
            turn.token = None
    except UncachableValueError as error:
        assembly.metrics.count("bypasses.value")
        logger.warning("A result of %r is not cached: %s", plan.cache_key, error)
    except StoreError:
        assembly.metrics.count("store_errors")
        logger.warning("A result of %r could not be stored.", plan.cache_key, exc_info=True)
    else:
        assembly.metrics.count("stores")
        assembly.known_entries.note(plan.entry_key, header.expires_at_ns)
        return True
    return False
