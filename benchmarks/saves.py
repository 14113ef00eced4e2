"""
What writes cost: of a table that cached queries look at, and of one that none does, beside plain Django.

    python -m benchmarks.saves [--database sqlite|postgresql|mariadb|URL] [--location NAME] [--rounds N] [--no-peers]
                               [--unwatched-lease S] [--in-a-row N] [--check] [--profile [wall|cpu]] [--json]

Each system has a process and a database of its own; plain Django has no cache at all. They take turns: in each round
each of them does each write a few times, one after the other, so that what slows the machine down slows all of them.
Before a write to the watched table its queries are read again, so that they are in the cache; that is not timed.

A process that comes to its turn finds that others have used the caches of the processor, as on a busy host. With
--in-a-row 50 each does each write fifty times as often before it is the next one's turn, as in an import.

Medians are in microseconds; the ratio is the median over the rounds of ``median of the system / median of plain
Django`` in the same round. Compare ratios, within one run, on a machine that does little else. The processor time of
the process can be compared on a busy machine too, but has no waiting for servers in it.

Exit status 1 with --check if save() costs more than twice a plain one in a watched table, or more than 1.15 times in an
unwatched one. --profile prints where our time goes. Without --location ours is on memory+disk beside SQLite, and on
memory+redis beside a server.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from contextlib import ExitStack
from typing import Any, Final

from benchmarks.project.errors import BenchmarkError
from benchmarks.project.runs import (
    Bench,
    add_options,
    end_in_order,
    is_child,
    print_rows,
    run_child,
    started,
    systems_to_run,
)

__all__ = ["main"]

PLAIN: Final = "database"
OPERATIONS: Final = {
    "save()": 8,
    "save() in atomic()": 8,
    "save(update_fields)": 4,
    "create": 4,
    "update()": 4,
    "bulk_update() of 100": 1,
    "delete()": 4,
}
"""The writes, and how often each is done in a round."""
TABLES: Final = ("watched", "unwatched")
GOALS: Final = {"watched": 2.0, "unwatched": 1.15}
"""How many times the cost of a plain save() ours may have."""
WARM_UP: Final = 10
PROFILED: Final = 300


class _Worker:
    """The process of one system."""

    def __init__(self, name: str, child: subprocess.Popen[str]) -> None:
        self.name = name
        self._child = child

    def ask(self, operation: str, table: str, count: int, what: str = "times") -> Any:
        """Let it write, and return what it measured."""
        stdin, stdout = self._child.stdin, self._child.stdout
        assert stdin is not None
        assert stdout is not None
        request = {"operation": operation, "table": table, "count": count, "what": what}
        try:
            stdin.write(json.dumps(request) + "\n")
            stdin.flush()
            line = stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchmarkError(f"The process of {self.name} has ended.")
        return json.loads(line)

    def end(self) -> None:
        """Tell it that there is no more to do."""
        if self._child.stdin is not None:
            self._child.stdin.close()


def main(argv: list[str] | None = None) -> int:
    """Run every system in turns, and print medians and ratios."""
    if is_child():
        return run_child(_run)
    options = _parse(argv)
    end_in_order()
    try:
        results = _measure(options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return 2
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        _print(options, results)
    return _check(results["ratios"]) if options.check else 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="benchmarks.saves", description=(__doc__ or "").splitlines()[1])
    parser.add_argument("--rounds", type=int, default=40, help="default: %(default)s")
    parser.add_argument("--check", action="store_true", help="end with status 1 if save() is dearer than it should be")
    parser.add_argument(
        "--profile",
        nargs="?",
        const="wall",
        choices=("wall", "cpu"),
        help="print where the time of our save() goes; cpu: without what it waits for (default: wall)",
    )
    parser.add_argument(
        "--unwatched-lease",
        dest="unwatched_lease_s",
        type=float,
        default=0.0,
        metavar="S",
        help="LIVE_CACHE_UNWATCHED_LEASE_S of ours (default: %(default)s, which is that of the setting)",
    )
    parser.add_argument(
        "--in-a-row", type=int, default=1, metavar="N", help="do each write N times as often in each turn (default: 1)"
    )
    add_options(parser)
    parser.set_defaults(location=None)
    options = parser.parse_args(argv)
    if options.rounds < 1 or options.in_a_row < 1:
        parser.error("--rounds and --in-a-row must be 1 or more.")
    options.lease_s = 1.0
    options.on_ledger_loss = "serve"
    options.is_durable = True
    if options.location is None:
        options.location = "memory+disk" if options.database == "sqlite" else "memory+redis"
    return options


def _run(bench: Bench) -> dict[str, Any]:
    from benchmarks.project.saving import Saving

    Saving().serve(sys.stdin, sys.stdout)
    return {}


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as stack:
        workers = []
        for name in (*systems_to_run(options), PLAIN):
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            child, _ = stack.enter_context(started("benchmarks.saves", name, options, **pipes))
            worker = _Worker(name, child)
            stack.callback(worker.end)
            workers.append(worker)
        return _rounds(options, workers)


def _rounds(options: argparse.Namespace, workers: list[_Worker]) -> dict[str, Any]:
    cases = [(operation, table) for operation in OPERATIONS for table in TABLES]
    times: dict[tuple[str, str, str], list[list[float]]] = {}
    cpu_us: dict[tuple[str, str, str], list[float]] = {}
    statements = {
        (operation, table, worker.name): worker.ask(operation, table, 1, "statements")
        for operation, table in cases
        for worker in workers
    }
    for operation, table in cases:
        for worker in workers:
            worker.ask(operation, table, min(WARM_UP, options.rounds))
    for number in range(options.rounds):
        turn = number % len(workers)
        for operation, table in cases:
            for worker in (*workers[turn:], *workers[:turn]):
                measured = worker.ask(operation, table, OPERATIONS[operation] * options.in_a_row)
                key = (operation, table, worker.name)
                times.setdefault(key, []).append([wall_us for wall_us, _ in measured])
                cpu_us.setdefault(key, []).extend(used_us for _, used_us in measured)
    medians = {case: [statistics.median(one) for one in found] for case, found in times.items()}
    names = [worker.name for worker in workers]

    def table_of(value: Any) -> list[dict[str, Any]]:
        return [
            {"operation": operation, "table": table, **{name: value(operation, table, name) for name in names}}
            for operation, table in cases
        ]

    def ratio(operation: str, table: str, name: str) -> float:
        pairs = zip(medians[operation, table, name], medians[operation, table, PLAIN], strict=True)
        return statistics.median(one / plain for one, plain in pairs)

    return {
        "rounds": options.rounds,
        "medians_us": table_of(
            lambda *key: statistics.median(time_us for measured in times[key] for time_us in measured)
        ),
        "ratios": table_of(ratio),
        "cpu_us": table_of(lambda *key: statistics.median(cpu_us[key])),
        "statements": table_of(lambda *key: statements[key]),
        "profiles": {table: workers[0].ask("save()", table, PROFILED, options.profile) for table in TABLES}
        if options.profile
        else {},
    }


def _check(ratios: list[dict[str, Any]]) -> int:
    status = 0
    for one in ratios:
        limit = GOALS[one["table"]]
        if one["operation"] == "save()" and one["live_cache"] > limit:
            cost = f"costs {one['live_cache']:.2f} of a plain one, above {limit}"
            print(f"save() of the {one['table']} table {cost}.", file=sys.stderr)
            status = 1
    return status


def _print(options: argparse.Namespace, results: dict[str, Any]) -> None:
    print(f"{options.database}, {options.rounds} rounds; ours on {options.location}")
    for key, title in (
        ("medians_us", "median, in microseconds"),
        ("ratios", "times the cost of plain Django"),
        ("cpu_us", "median of the processor time of the process that writes, in microseconds"),
        ("statements", "statements that pass Django's cursor"),
    ):
        print(f"\n{title}\n")
        names = [name for name in results[key][0] if name not in ("operation", "table")]
        rows = [["write", "table", *names]]
        for one in results[key]:
            rows.append([one["operation"], one["table"], *(_cell(key, one[name]) for name in names)])
        print_rows(rows)
    for table, profile in results["profiles"].items():
        print(
            f"\nour save() of the {table} table, {options.profile} time in microseconds, the profiler's cost included\n"
        )
        _print_profile(profile[:20])
        print("\nfunctions of this package, with all that they call\n")
        ours = [one for one in profile if one["function"].startswith("live_cache/")]
        _print_profile(sorted(ours, key=lambda one: -float(one["total_us"]))[:25])


def _print_profile(profile: list[dict[str, Any]]) -> None:
    rows = [["function", "calls", "own", "total"]]
    for one in profile:
        rows.append([one["function"], *(f"{one[key]:.1f}" for key in ("calls", "own_us", "total_us"))])
    print_rows(rows)


def _cell(key: str, value: float) -> str:
    return f"{value:.2f}" if key == "ratios" else f"{value:,.0f}"


if __name__ == "__main__":
    sys.exit(main())
