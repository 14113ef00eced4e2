"""
The online verifier: some hits are fetched too, and what the cache served is compared with what the database says.

A difference counts only if nothing can explain it. After the SELECT the ledger is read once more: a commit that the
SELECT saw and the entry does not hold had declared itself before, so it is by then an open intent or a tick, and the
entry is not fresh any more. If it is still fresh, the rows have to be equal; where the database may choose (the order
of rows without ORDER BY, the last digits of a sum of floats, which rows a page shows whose order leaves ties), they
have to be equal up to that.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from django.db import DatabaseError, transaction

from live_cache.bypasses import reason_to_fill_not
from live_cache.chance import chance
from live_cache.conf import settings
from live_cache.exceptions import LedgerUnavailableError, UncachableValueError
from live_cache.ledger.clocks import Reading
from live_cache.replicas import has_caught_up, primary_of
from live_cache.rows import EntryHeader, encode_entry
from live_cache.shapes.scope import View
from live_cache.shapes.witness import EntryWitness

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.plan import Plan
    from live_cache.read_records import Rows
    from live_cache.writes.transactions import ConnectionState

__all__ = ["Verdict", "Verification", "choose_on_loop", "is_chosen", "uncollected", "verify_hit", "verifying"]

logger = logging.getLogger("live_cache.verify")

Verdict: TypeAlias = Literal["equal", "undecided", "different"]

Judge: TypeAlias = Callable[[EntryHeader, list[Reading], EntryWitness], tuple[bool, list[Reading]]]

_NO_HEADER: Final = EntryHeader(0, None, (), ())

_verifications: ContextVar[list[Verification] | None] = ContextVar("live_cache_verifications", default=None)
_is_due: ContextVar[bool] = ContextVar("live_cache_verification_is_due", default=False)


@dataclass(frozen=True, slots=True)
class Verification:
    """What came of one hit that was verified."""

    cache_key: str
    page_suffix: str
    verdict: Verdict
    note: str = ""
    """Why it is undecided, or how many rows differ."""


@contextmanager
def verifying() -> Iterator[list[Verification]]:
    """Verify every hit inside the block, and collect what came of it, in order."""
    found: list[Verification] = []
    token = _verifications.set(found)
    try:
        yield found
    finally:
        _verifications.reset(token)


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave the hits inside the block to chance, and out of every verifying(): nobody has asked for them."""
    token = _verifications.set(None)
    try:
        yield
    finally:
        _verifications.reset(token)


def is_chosen() -> bool:
    """Return whether the hit of this moment is to be verified: one in 1 / LIVE_CACHE_VERIFY_RATE, by chance."""
    if _verifications.get() is not None:
        return True
    if _is_due.get():
        _is_due.set(False)
        return True
    rate = settings.verify_rate
    return rate > 0 and chance.random() < rate


def choose_on_loop() -> bool:
    """Return whether a hit on an event loop is to be verified: in a thread then, whose next hit is_chosen()."""
    if not is_chosen():
        return False
    _is_due.set(True)
    return True


def verify_hit(
    assembly: Assembly,
    plan: Plan,
    connection: BaseDatabaseWrapper,
    state: ConnectionState,
    fetch: Callable[[], Rows],
    header: EntryHeader,
    rows: Rows,
    *,
    judge: Judge,
) -> Rows | None:
    """
    Compare *rows*, which are about to be served, with the database.

    A difference is counted, logged, and marked stale for all processes. Errors of the database end the comparison, and
    the hit stands.

    Args:
        judge: Returns whether the entry is fresh under readings, and the readings that this was found under.

    Returns:
        What the database says, if it differs; else None.
    """
    try:
        verdict, note, truth = _compare(assembly, plan, connection, state, fetch, header, rows, judge)
    except LedgerUnavailableError:
        verdict, note, truth = "undecided", "the ledger did not answer", ()
    except DatabaseError as error:
        verdict, note, truth = "undecided", f"the database answered with {error!r}", ()
    assembly.metrics.count(f"verified.{verdict}")
    collected = _verifications.get()
    if collected is not None:
        collected.append(Verification(plan.cache_key, plan.page_suffix, verdict, note))
    if verdict != "different":
        return None
    logger.error(
        "The entry %r is fresh and differs from the database: %s. It was fetched at %d ns, under %s. It is dropped.",
        plan.entry_key,
        note,
        header.fetched_at_ns,
        ", ".join(f"{stamp.clock}:{stamp.epoch.hex()[:8]}:{stamp.seq}" for stamp in header.stamps),
    )
    _drop(assembly, plan, connection)
    return truth


def _compare(
    assembly: Assembly,
    plan: Plan,
    connection: BaseDatabaseWrapper,
    state: ConnectionState,
    fetch: Callable[[], Rows],
    header: EntryHeader,
    rows: Rows,
    judge: Judge,
) -> tuple[Verdict, str, Rows]:
    primary = primary_of(connection)
    # Who has replayed all that was committed by now shows what the entry holds: its commits came before it was found.
    if primary is not None and not has_caught_up(connection, primary):
        return "undecided", "the replica may be behind its primary", ()
    if state.open_cursors:
        return "undecided", "an unfinished cursor pins the SQLite connection to an older snapshot", ()
    with _savepoint(connection, state):
        truth = fetch()
    if reason := reason_to_fill_not(connection, state):
        return "undecided", reason, ()
    readings = assembly.ledger.read(plan.dependencies)
    witness = EntryWitness(assembly.ledger, plan, header, View(lambda: rows))
    with _savepoint(connection, state):
        is_still_fresh, _ = judge(header, readings, witness)
    if not is_still_fresh:
        return "undecided", "it was changed meanwhile", ()
    if _are_equal(plan, rows, truth):
        return "equal", "", truth
    if plan.query.is_sliced and plan.purpose != "count" and not _is_order_total(plan):
        return "undecided", "rows differ, and the order of the page leaves ties, so that the database may choose", ()
    with _savepoint(connection, state):
        again = fetch()
    if not _are_equal(plan, truth, again):
        return "undecided", "the database itself gives different answers", ()
    missing, extra = Counter(map(_key, truth)), Counter(map(_key, rows))
    note = f"{(extra - missing).total()} of its {len(rows)} rows are not in the {len(truth)} of the database"
    return "different", note, truth


def _savepoint(connection: BaseDatabaseWrapper, state: ConnectionState) -> AbstractContextManager[object]:
    """Return what keeps an error of the SELECT from breaking the caller's transaction."""
    return transaction.atomic(using=connection.alias) if state.is_in_transaction else nullcontext()


def _are_equal(plan: Plan, rows: Rows, truth: Rows) -> bool:
    """Return whether two answers are equal, up to what the database may choose. False if values cannot be compared."""
    if len(rows) != len(truth):
        return False
    if all(tuple(one) == tuple(other) for one, other in zip(rows, truth, strict=True)):
        return True
    try:
        keys, true_keys = [_key(row) for row in rows], [_key(row) for row in truth]
    except UncachableValueError:
        return False
    return keys == true_keys if _is_order_total(plan) else Counter(keys) == Counter(true_keys)


def _key(row: Sequence[Any]) -> bytes:
    """Return bytes that are equal for equal rows; floats are compared by twelve digits."""
    cells = [float(f"{cell:.12g}") if isinstance(cell, float) else cell for cell in row]
    return encode_entry(_NO_HEADER, [cells], key="row")


def _is_order_total(plan: Plan) -> bool:
    """Return whether ORDER BY has the primary key of the base table, so that no two rows may change places."""
    shape = plan.layout.shape
    if shape is None or plan.purpose != "rows" or not shape.is_row_by_row or not shape.is_one_to_one:
        return False
    primary_key = plan.query.get_meta().pk
    return primary_key is not None and any(
        (each.alias, each.column) == (shape.outline.base_alias, primary_key.column) for each in shape.sort
    )


def _drop(assembly: Assembly, plan: Plan, connection: BaseDatabaseWrapper) -> None:
    from live_cache.invalidation import invalidate

    try:
        invalidate(plan.cache_key, using=connection.alias, using_cache=assembly.alias)
    except LedgerUnavailableError:
        logger.exception("The ledger did not answer; %r is dropped when it does.", plan.cache_key)
