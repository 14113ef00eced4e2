"""What live_explain() answers: how a queryset would be read, and why not from the cache."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from live_cache.bypasses import reason_to_bypass
from live_cache.exceptions import FrameError, LedgerUnavailableError
from live_cache.ledger.clocks import Reading
from live_cache.names import KEYS_CLOCK
from live_cache.rows import decode_entry
from live_cache.search import judge_entry
from live_cache.shapes.scope import View, scope_of
from live_cache.shapes.witness import EntryWitness
from live_cache.stores.base import MISS
from live_cache.tables import models_of_tables
from live_cache.writes.transactions import state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.plan import Plan
    from live_cache.shapes.causes import DroppedBy
    from live_cache.shapes.scope import Scope
    from live_cache.shapes.uses import Use

__all__ = ["Explanation", "TableExplanation", "TierExplanation", "UseExplanation"]


@dataclass(frozen=True, slots=True)
class TierExplanation:
    """What one tier holds for the query."""

    name: str
    state: str
    """
    fresh, stale, held (a change is being committed), expired, corrupt, absent, or unknown (the ledger did not answer).
    """
    dropped_by: DroppedBy | None = None
    """Of a stale or held entry: the write that dropped it."""
    row_count: int | None = None
    """Rows of the entry, if there is one."""
    fetched_at_ns: int | None = None
    """When they were read from the database, in nanoseconds since 1970."""

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            "name": self.name,
            "state": self.state,
            "dropped_by": None if self.dropped_by is None else self.dropped_by.as_dict(),
            "row_count": self.row_count,
            "fetched_at_ns": self.fetched_at_ns,
        }

    def __str__(self) -> str:
        if self.dropped_by is not None:
            return f"{self.name}: {self.state} ({self.dropped_by.reason}), {self.dropped_by}"
        if self.row_count is None or self.fetched_at_ns is None:
            return f"{self.name}: {self.state}"
        age_s = max(time.time_ns() - self.fetched_at_ns, 0) / 1e9
        rows = "1 row" if self.row_count == 1 else f"{self.row_count} rows"
        return f"{self.name}: {self.state}, {rows}, fetched {age_s:.1f} s ago"


@dataclass(frozen=True, slots=True)
class UseExplanation:
    """One use of a table in the query: which changes of its rows count."""

    condition: str
    """What a row must fulfil, before the change or after it."""
    columns: tuple[str, ...]
    """Columns of which an update must change one, sorted. An insert or a delete changes all."""
    is_every_column: bool
    """Whether these are all columns of the table."""
    is_for_updates: bool
    """Whether inserts and deletes do not count, because a row that refers to the row changes with it."""

    def __str__(self) -> str:
        columns = "all columns" if self.is_every_column else ", ".join(self.columns) or "no column"
        return f"{self.condition}{', updates only' if self.is_for_updates else ''}; {columns}"


@dataclass(frozen=True, slots=True)
class TableExplanation:
    """What the result depends on in one table."""

    table: str
    clock: str
    slots: tuple[int, ...]
    """Slots of that clock which the ledger is asked for: 0 is the table, 1 its rows, another one a cache key."""
    uses: tuple[UseExplanation, ...]
    """One per use of the table in the query. Empty: every change counts."""

    def __str__(self) -> str:
        return f"{self.table}: {' | '.join(map(str, self.uses)) or 'every change of the table'}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """How a live queryset would be read at this moment."""

    is_cachable: bool
    reason: str
    """Why the cache is not used, or empty."""
    cache_key: str = ""
    page_suffix: str = ""
    tables: tuple[str, ...] = ()
    """Tables that the result depends on."""
    depends_on: tuple[TableExplanation, ...] = ()
    """What it depends on in each of them."""
    window: str = ""
    """Which rows of an ordered result are asked for, and what that excludes; empty for all of them."""
    ledger: str = ""
    tiers: tuple[TierExplanation, ...] = ()

    @classmethod
    def uncached(cls, reason: str) -> Explanation:
        """Return the explanation of a query that has no plan."""
        return cls(is_cachable=False, reason=reason)

    @classmethod
    def of(cls, plan: Plan, assembly: Assembly, connection: BaseDatabaseWrapper) -> Explanation:
        """Return the explanation of a query with a plan, looking into every tier. It may read link sets."""
        reason = reason_to_bypass(connection, state_of(connection), plan.tables)
        shape = plan.layout.shape
        scope = None if shape is None else scope_of(plan.query, shape, plan.purpose)
        return cls(
            is_cachable=not reason,
            reason=reason,
            cache_key=plan.cache_key,
            page_suffix=plan.page_suffix,
            tables=tuple(sorted(plan.tables)),
            depends_on=tuple(_tables_of(plan, scope)),
            window=_window_of(plan, scope),
            ledger=assembly.ledger.name,
            tiers=_look_into_tiers(plan, assembly, connection),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain data for JSON."""
        return {
            "is_cachable": self.is_cachable,
            "reason": self.reason,
            "cache_key": self.cache_key,
            "page_suffix": self.page_suffix,
            "tables": list(self.tables),
            "depends_on": [
                {
                    "table": each.table,
                    "clock": each.clock,
                    "slots": list(each.slots),
                    "uses": [asdict(use) | {"columns": list(use.columns)} for use in each.uses],
                }
                for each in self.depends_on
            ],
            "window": self.window,
            "ledger": self.ledger,
            "tiers": [tier.as_dict() for tier in self.tiers],
        }

    def __str__(self) -> str:
        if not self.cache_key:
            return f"not cached: {self.reason}"
        lines = [f"cache key  {self.cache_key}", f"page       {self.page_suffix}"]
        lines += [f"{label:<10} {each}" for label, each in zip(_labels(), self.depends_on, strict=False)]
        if self.window:
            lines.append(f"window     {self.window}")
        lines.append(f"ledger     {self.ledger}")
        lines += [f"tier       {tier}" for tier in self.tiers]
        if self.reason:
            lines.append(f"bypassed   {self.reason}")
        return "\n".join(lines)


def _labels() -> Iterator[str]:
    yield "depends on"
    while True:
        yield ""


def _tables_of(plan: Plan, scope: Scope | None) -> Iterator[TableExplanation]:
    for dependency in plan.dependencies:
        if dependency.clock == KEYS_CLOCK:
            continue
        table = dependency.clock.rpartition("/")[2]
        uses = () if scope is None else scope.uses.get(table, ())
        yield TableExplanation(table, dependency.clock, dependency.slots, tuple(map(_use_of, uses)))


def _use_of(use: Use) -> UseExplanation:
    models = models_of_tables().get(use.table, ())
    every = {str(field.column) for model in models for field in model._meta.local_concrete_fields}
    return UseExplanation(
        str(use.condition),
        tuple(sorted(use.columns)),
        is_every_column=bool(every) and every <= use.columns,
        is_for_updates=use.is_anchored and not use.linked_parts,
    )


def _window_of(plan: Plan, scope: Scope | None) -> str:
    query = plan.query
    if scope is None or not scope.is_limited:
        return ""
    rows = f"rows {query.low_mark} to {'the end' if query.high_mark is None else query.high_mark}"
    if scope.window is None or not scope.shape.is_one_to_one:
        return f"{rows}, in an order that does not tell which changes are beyond them"
    order = ", ".join(f"{'-' if each.is_descending else ''}{each.column}" for each in scope.shape.sort or ())
    return f"{rows} by {order}; what is and stays beyond them does not count"


def _look_into_tiers(plan: Plan, assembly: Assembly, connection: BaseDatabaseWrapper) -> tuple[TierExplanation, ...]:
    store = assembly.store
    found = [(tier.name, store.read_tier(index, plan.entry_key)) for index, tier in enumerate(store.stores)]
    readings: list[Reading] | None = None
    if any(stored is not MISS for _, stored in found):  # a reading would create the clocks that there are not
        with suppress(LedgerUnavailableError):
            readings = assembly.ledger.read(plan.dependencies)
    return tuple(
        [
            TierExplanation(name, "absent")
            if stored is MISS
            else _judge(name, stored.value, plan, assembly, connection, readings)
            for name, stored in found
        ]
    )


def _judge(
    name: str,
    data: bytes,
    plan: Plan,
    assembly: Assembly,
    connection: BaseDatabaseWrapper,
    readings: list[Reading] | None,
) -> TierExplanation:
    """Return what a reader would say of the entry in *data*."""
    dropped_by: DroppedBy | None = None
    try:
        entry = decode_entry(data, key=plan.entry_key, mac_keys=assembly.mac_keys)
        header, view = entry.header, View(entry.rows)
        if readings is None:
            state = "unknown"
        elif header.expires_at_ns is not None and header.expires_at_ns <= time.time_ns():
            state = "expired"
        else:
            witness = EntryWitness(assembly.ledger, plan, header, view)
            is_fresh = header.dependencies == plan.dependencies
            if is_fresh:
                is_fresh, readings = judge_entry(assembly, plan, connection, header, readings, witness)
            if is_fresh:
                state = "fresh"
            else:
                dropped_by = witness.dropped_by(readings, is_detailed=True)
                state = "held" if dropped_by.reason == "held" else "stale"
        row_count = len(view.rows)
    except FrameError:
        return TierExplanation(name, "corrupt")
    return TierExplanation(name, state, dropped_by, row_count, header.fetched_at_ns)
