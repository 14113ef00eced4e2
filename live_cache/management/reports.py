"""What ``manage.py live_cache stats`` and ``keys`` report, as plain data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, Final

from live_cache.assembly import Assembly
from live_cache.exceptions import LedgerUnavailableError, StoreUnavailableError
from live_cache.management.tables import as_table
from live_cache.stores.base import Store

__all__ = ["LIVE", "count_keys", "format_statistics", "live_keys", "statistics_of", "stored_keys"]

LIVE: Final = "live/"
"""What the store's keys of live entries start with."""


def statistics_of(assembly: Assembly) -> dict[str, Any]:
    """Return tiers, ledger and counters of one alias. What does not answer has its error in place of its numbers."""
    return {
        "alias": assembly.alias,
        "tiers": [_tier_statistics(store) for store in assembly.tiers],
        "ledger": _ledger_statistics(assembly),
        "counters": assembly.metrics.snapshot(),
        "counters_of": "this process",
    }


def format_statistics(report: dict[str, Any]) -> str:
    """Return what statistics_of() returns as text for people."""
    ledger = report["ledger"]
    tier_names = ("name", "entries", "size_bytes", "hits", "misses", "errors", "error")
    parts = [
        f"Cache {report['alias']!r}",
        as_table(tier_names, [[tier[name] for name in tier_names] for tier in report["tiers"]]),
        f"Ledger: {ledger['kind']}, {len(ledger['clocks'])} clocks, {ledger['undelivered']} undelivered ticks"
        + (f", {ledger['error']}" if ledger["error"] else ""),
    ]
    if ledger["clocks"]:
        clock_names = ("clock", "seq", "open_intents")
        parts.append(as_table(clock_names, [[clock[name] for name in clock_names] for clock in ledger["clocks"]]))
    if report["counters"]:
        parts.append(as_table(("counter of this process", "n"), report["counters"].items()))
    return "\n\n".join(parts)


def stored_keys(assembly: Assembly, prefix: str = "") -> Iterator[str]:
    """
    Yield the keys that lie under *prefix*, with their namespace: ``live/...`` and ``plain/...``. Each once.

    Raises:
        StoreUnavailableError: A tier does not answer. (The tiered store would leave it out, and a list that looks
            complete would not be.)
    """
    seen: set[str] = set()
    for tier in assembly.tiers:
        for key in tier.keys(prefix):
            if key not in seen:
                seen.add(key)
                yield key


def live_keys(assembly: Assembly, prefix: str = "") -> Iterator[str]:
    """Yield the keys of live entries under *prefix* without their namespace. See stored_keys()."""
    # A prefix that ends in "/" covers only what is below it, and so does the namespace, which ends so.
    return (key[len(LIVE) :] for key in stored_keys(assembly, LIVE + prefix))


def count_keys(assembly: Assembly, prefix: str, *, limit: int = 1_000_000) -> int:
    """Return how many live entries lie under *prefix*, counting *limit* at most."""
    return sum(1 for _ in islice(live_keys(assembly, prefix), limit))


def _tier_statistics(store: Store) -> dict[str, Any]:
    report: dict[str, Any] = {
        "name": store.name,
        "is_shared_by_processes": store.is_shared_by_processes,
        "is_shared_by_hosts": store.is_shared_by_hosts,
    }
    try:
        metrics, error = store.metrics(), None
    except StoreUnavailableError as unavailable:
        metrics, error = None, str(unavailable)
    for name in ("entries", "size_bytes", "lookups", "hits", "misses", "puts", "deletes", "errors", "evictions"):
        report[name] = None if metrics is None else getattr(metrics, name)
    return {**report, "error": error}


def _ledger_statistics(assembly: Assembly) -> dict[str, Any]:
    ledger = assembly.ledger
    try:
        clocks, error = ledger.clocks(), None
    except LedgerUnavailableError as unavailable:
        clocks, error = [], str(unavailable)
    return {
        "kind": ledger.name,
        "is_shared_by_processes": ledger.is_shared_by_processes,
        "is_shared_by_hosts": ledger.is_shared_by_hosts,
        "clocks": [
            {"clock": info.clock, "epoch": info.epoch.hex(), "seq": info.seq, "open_intents": info.intent_count}
            for info in sorted(clocks, key=lambda info: info.clock)
        ],
        "undelivered": ledger.undelivered_count,
        "error": error,
    }
