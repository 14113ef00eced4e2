"""
What a live read costs beside the same read of the database, on the airports of the example project.

    python -m benchmarks.reads [--rounds N] [--database URL] [--redis URL] [--json]

Each read builds its queryset anew and ends with the instances in hand, as a request would. Times are medians and 95th
percentiles in microseconds; compare them within one run only. Everything happens in a temporary directory, or in the
database and the Redis that are named.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

__all__ = ["main"]

SETTLE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Times of one read in one temperature."""

    median_us: float
    p95_us: float
    query_count: int
    """Queries of all rounds together."""
    tiers: list[str]
    """The tiers that answered, or database."""


def main(argv: list[str] | None = None) -> int:
    """Load the airports if they are not there, measure, and print."""
    options = _parse(argv)
    with tempfile.TemporaryDirectory(prefix="live-cache-bench-") as directory:
        os.environ["LIVE_CACHE_DEMO_DIRECTORY"] = directory
        os.environ["LIVE_CACHE_DEMO_DATABASE"] = options.database
        os.environ["LIVE_CACHE_DEMO_REDIS"] = options.redis
        os.environ["DJANGO_SETTINGS_MODULE"] = "example_project.settings"
        import django

        django.setup()
        results = _measure(options.rounds)
        if options.json:
            print(json.dumps(results, indent=2))
        else:
            _print_table(results)
        from django.db import connections

        from live_cache.assembly import close_all

        connections.close_all()
        close_all()
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.reads", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--rounds", type=int, default=100, help="reads per number (default: %(default)s)")
    parser.add_argument("--database", default="", metavar="URL", help="instead of a temporary SQLite file")
    parser.add_argument("--redis", default="", metavar="URL", help="instead of a temporary disk tier")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(argv)
    if options.rounds < 2:
        parser.error("--rounds must be 2 or more.")
    return options


def _measure(rounds: int) -> list[dict[str, Any]]:
    from django.core.management import call_command

    from example_project.airports.models import Airport
    from example_project.airports.proof.measure import observe, wait_until_settled
    from example_project.airports.proof.reads import choose_subject, named_reads
    from live_cache import invalidate
    from live_cache.assembly import get_assembly

    call_command("migrate", verbosity=0)
    call_command("load_airports", stdout=sys.stderr)
    reads = named_reads(choose_subject())
    if not wait_until_settled(reads, at_most_s=SETTLE_S):
        raise SystemExit("Not every read became a hit; there is nothing to measure.")
    near = get_assembly("default").store.stores[0]

    def nothing() -> None:
        """Leave everything as it is."""

    def spread(question: Callable[[], Any], before: Callable[[], object]) -> Spread:
        seen = []
        for _ in range(rounds):
            before()
            seen.append(observe(question))
        times = [one.duration_us for one in seen]
        return Spread(
            median_us=round(statistics.median(times), 1),
            p95_us=round(statistics.quantiles(times, n=20)[-1], 1),
            query_count=sum(one.query_count for one in seen),
            tiers=sorted({one.tier or "database" for one in seen}),
        )

    results = []
    for read in reads:
        temperatures = {
            "database": spread(read.plain, nothing),
            "miss": spread(read.live, lambda: invalidate(Airport)),
            "near": spread(read.live, nothing),
            "far": spread(read.live, near.clear),
        }
        results.append({"read": read.name, **{name: _as_dict(one) for name, one in temperatures.items()}})
    return results


def _as_dict(spread: Spread) -> dict[str, Any]:
    """Return *spread* as plain data for JSON."""
    return {name: getattr(spread, name) for name in Spread.__slots__}


def _print_table(results: list[dict[str, Any]]) -> None:
    names = ["database", "miss", "near", "far"]
    width = max(len(result["read"]) for result in results)
    print(" " * width, *(f"{name:>22}" for name in names))
    print(" " * width, *(f"{'median / p95 µs':>22}" for _ in names))
    for result in results:
        cells = [f"{result[name]['median_us']:,.0f} / {result[name]['p95_us']:,.0f}" for name in names]
        print(result["read"].ljust(width), *(f"{cell:>22}" for cell in cells))
    tiers = {name: "/".join(sorted({tier for result in results for tier in result[name]["tiers"]})) for name in names}
    print("answered by:", ", ".join(f"{name}: {tier}" for name, tier in tiers.items()))


if __name__ == "__main__":
    sys.exit(main())
