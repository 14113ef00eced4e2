"""The numbers of the statistics page, as plain data for its template."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from live_cache.assembly import get_assembly

__all__ = ["Statistics", "collect_statistics"]


@dataclass(frozen=True, slots=True)
class Statistics:
    """A look at the cache ``default`` of this process."""

    counters: dict[str, int]
    tiers: dict[str, Any]
    clocks: list[Any]
    ledger_name: str
    undelivered_count: int

    @property
    def hit_percent(self) -> float | None:
        """Live reads of this process that were hits, in percent; None before the first one."""
        hits, misses = self.counters.get("hits", 0), self.counters.get("misses", 0)
        return 100 * hits / (hits + misses) if hits + misses else None


def collect_statistics() -> Statistics:
    """Return the counters of this process, and the clocks of the ledger that it shares with others."""
    assembly = get_assembly("default")
    return Statistics(
        counters=assembly.metrics.snapshot(),
        tiers=dict(assembly.store.tier_metrics()),
        clocks=sorted(assembly.ledger.clocks(), key=lambda clock: clock.clock),
        ledger_name=assembly.ledger.name,
        undelivered_count=assembly.ledger.undelivered_count,
    )
