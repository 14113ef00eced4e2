"""
How many reads of the database a cache saves, beside an oracle that fetches only what really changed.

    python -m benchmarks.efficiency [--workload shop|forum|backoffice|all] [--database NAME|URL] [--operations N]
                                    [--seed N] [--no-peers] [--json]

One process does reads and writes that a site would do, nine to one, and popular things more often than others. A read
that sends a statement to the database is a fetch. The oracle fetches a query only if its result differs from what the
oracle fetched last; ``ratio = fetches of the oracle / fetches``, so 1 is perfect. Each read is compared with the
database, value by value.

Exit status 1 if a read of this package was stale, or if its ratio is below the goal of the workload. Nothing is timed;
the same seed gives the same counts.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, Final

from benchmarks.project.errors import BenchmarkError
from benchmarks.project.runs import Bench, add_options, is_child, print_rows, run_child, run_systems

__all__ = ["main"]

GOALS: Final = {"shop": 0.95, "forum": 0.90, "backoffice": 0.90}
"""The workloads, and the ratio that this package has to reach in each."""
COLUMNS: Final = ("reads", "fetches", "oracle", "ratio", "stale", "queries", "writes", "write_queries")
TITLES: Final = ("reads", "fetches", "oracle", "ratio", "stale", "read queries", "writes", "write queries")


def main(argv: list[str] | None = None) -> int:
    """Run every system on every workload, and print what it fetched."""
    if is_child():
        return run_child(_run)
    options = _parse(argv)
    names = list(GOALS) if options.workload == "all" else [options.workload]
    found = []
    for options.workload in names:
        try:
            results = run_systems("benchmarks.efficiency", options, others=("database",))
            _check_oracles(results)
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 2
        found.append({"workload": options.workload, "goal": GOALS[options.workload], "systems": results})
        if not options.json:
            _print(options, results)
    if options.json:
        print(json.dumps(found, indent=2))
    failures = [_failure(one) for one in found]
    return 1 if any(failures) else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.efficiency", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--workload", choices=(*GOALS, "all"), default="all", help="default: %(default)s")
    parser.add_argument("--operations", type=int, default=15_000, help="reads and writes (default: %(default)s)")
    add_options(parser)
    options = parser.parse_args(argv)
    if options.operations < 1:
        parser.error("--operations must be 1 or more.")
    options.lease_s = 1.0
    options.on_ledger_loss = "refuse"
    return options


def _run(bench: Bench) -> dict[str, Any]:
    from django.apps import apps

    from benchmarks.project.oracle import run_workload
    from benchmarks.project.settling import settle
    from benchmarks.project.systems import current
    from benchmarks.workloads import workload

    system = current()
    chosen = workload(bench.options["workload"])(system, bench.options["seed"])
    chosen.fill()
    if system.name == "live_cache":
        settle(apps.get_app_config("project").get_models(include_auto_created=True))
    return run_workload(chosen, operations=bench.options["operations"])


def _check_oracles(results: Sequence[dict[str, Any]]) -> None:
    """Raise an error unless every system was asked the same and changed the same."""
    seen = {(one["reads"], one["oracle"], one["writes"], one["distinct"]) for one in results}
    if len(seen) > 1:
        raise BenchmarkError(f"The systems were not asked the same (reads, oracle, writes, queries): {sorted(seen)}.")


def _failure(found: dict[str, Any]) -> str:
    """Return what this package did not reach, and say so."""
    ours = found["systems"][0]
    text = ""
    if ours["stale"]:
        text = f"{found['workload']}: {ours['stale']} reads of this package were stale: " + "; ".join(ours["samples"])
    elif ours["ratio"] < found["goal"]:
        text = f"{found['workload']}: the ratio of this package is {ours['ratio']:.3f}, below {found['goal']}."
    if text:
        print(text, file=sys.stderr)
    return text


def _print(options: argparse.Namespace, results: Sequence[dict[str, Any]]) -> None:
    first = results[0]
    print(
        f"\n{options.workload} on {options.database}, seed {options.seed}: {first['reads']:,} reads of "
        f"{first['distinct']:,} queries, {first['writes']:,} writes; ours on {options.location}\n"
    )
    print_rows([["system", *TITLES], *([one["system"], *(_cell(one[key]) for key in COLUMNS)] for one in results)])
    print("\nratio by kind of query\n")
    systems = [one["system"] for one in results]
    table = [["kind", "reads", "queries", "oracle", *systems]]
    for name, kind in first["kinds"].items():
        ratios = [_cell(one["kinds"][name]["ratio"]) for one in results]
        table.append([name, *(_cell(kind[key]) for key in ("reads", "distinct", "oracle")), *ratios])
    print_rows(table)
    for one in results:
        if one["stale"]:
            stale = [f"{name} {kind['stale']}" for name, kind in one["kinds"].items() if kind["stale"]]
            print(f"\nstale reads of {one['system']}: {', '.join(stale)}; such as {one['samples'][0][:160]}")
    print(f"\n{first['system']}: why it fetched\n")
    reasons = sorted({reason for kind in first["kinds"].values() for reason in kind["reasons"]})
    table = [["kind", "fetches", "oracle", "stale", *(reason[:40] for reason in reasons)]]
    for name, kind in first["kinds"].items():
        counts = [_cell(kind["reasons"].get(reason, 0)) for reason in reasons]
        table.append([name, *(_cell(kind[key]) for key in ("fetches", "oracle", "stale")), *counts])
    print_rows(table)


def _cell(value: float) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}"


if __name__ == "__main__":
    sys.exit(main())
