"""What live_explain() answers: how a queryset would be read, and why not from the cache."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from live_cache.exceptions import FrameError, LedgerUnavailableError
from live_cache.ledger.clocks import is_fresh
from live_cache.reader import reason_to_bypass
from live_cache.rows import decode_entry
from live_cache.stores.base import MISS
from live_cache.writes.transactions import state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.plan import Plan

__all__ = ["Explanation", "TierExplanation"]


@dataclass(frozen=True, slots=True)
class TierExplanation:
    """What one tier holds for the query."""

    name: str
    state: str
    """fresh, stale, held (a change is being committed), corrupt, absent, or unknown (the ledger did not answer)."""


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
    ledger: str = ""
    tiers: tuple[TierExplanation, ...] = ()

    @classmethod
    def uncached(cls, reason: str) -> Explanation:
        """Return the explanation of a query that has no plan."""
        return cls(is_cachable=False, reason=reason)

    @classmethod
    def of(cls, plan: Plan, assembly: Assembly, connection: BaseDatabaseWrapper) -> Explanation:
        """Return the explanation of a query with a plan, looking into every tier without changing any."""
        reason = reason_to_bypass(connection, state_of(connection), plan.tables)
        return cls(
            is_cachable=not reason,
            reason=reason,
            cache_key=plan.cache_key,
            page_suffix=plan.page_suffix,
            tables=tuple(sorted(plan.tables)),
            ledger=assembly.ledger.name,
            tiers=_look_into_tiers(plan, assembly),
        )

    def as_dict(self) -> dict[str, Any]:
        """Return the explanation as plain data for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        if not self.cache_key:
            return f"not cached: {self.reason}"
        lines = [
            f"cache key  {self.cache_key}",
            f"page       {self.page_suffix}",
            f"depends on {', '.join(self.tables)} (every change of these tables)",
            f"ledger     {self.ledger}",
        ]
        lines += [f"tier       {tier.name}: {tier.state}" for tier in self.tiers]
        if self.reason:
            lines.append(f"bypassed   {self.reason}")
        return "\n".join(lines)


def _look_into_tiers(plan: Plan, assembly: Assembly) -> tuple[TierExplanation, ...]:
    try:
        readings = assembly.ledger.read(plan.dependencies)
    except LedgerUnavailableError:
        readings = None
    tiers = []
    for index, tier in enumerate(assembly.store.stores):
        stored = assembly.store.read_tier(index, plan.entry_key)
        if stored is MISS:
            state = "absent"
        elif readings is None:
            state = "unknown"
        else:
            try:
                header = decode_entry(stored.value, key=plan.entry_key, mac_keys=assembly.mac_keys).header
            except FrameError:
                state = "corrupt"
            else:
                if is_fresh(header.stamps, readings, plan.dependencies):
                    state = "fresh"
                else:
                    state = "held" if any(reading.intents for reading in readings) else "stale"
        tiers.append(TierExplanation(tier.name, state))
    return tuple(tiers)
