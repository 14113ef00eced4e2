"""
One run of a program for each system, one after the other: the same options, a database and a Redis of its own for each.

The program that a person starts sets nothing of Django up. It starts itself once for each system, and that process
(run_child()) sets Django up with the settings of the system, makes the tables, forks the workers and writes its result.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks.project.databases import OwnPostgresql, database
from benchmarks.project.errors import BenchmarkError
from benchmarks.project.link import Link
from benchmarks.project.redis_places import start_redis_place
from benchmarks.project.systems import LOCATIONS, PEERS, SYSTEMS

__all__ = [
    "Bench",
    "Result",
    "add_options",
    "end_in_order",
    "is_child",
    "print_rows",
    "print_table",
    "run_and_show",
    "run_child",
    "run_systems",
    "started",
    "systems_to_run",
]

Result = dict[str, Any]
_ENVIRONMENT: Final = "LIVE_CACHE_BENCH"
_ROOT: Final = Path(__file__).resolve().parent.parent.parent


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that all programs have."""
    parser.add_argument(
        "--database",
        default="sqlite",
        metavar="NAME|URL",
        help="sqlite, postgresql, mariadb, or the URL of a server; a database is created and dropped (default: sqlite)",
    )
    parser.add_argument(
        "--location",
        "--ledger",
        default="memory+redis",
        choices=sorted(LOCATIONS),
        help="tiers and ledger of our cache; host: memory alone (default: %(default)s)",
    )
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="run django-cacheops and django-cachalot too, if they are installed (default: yes)",
    )
    parser.add_argument("--seed", type=int, default=1, help="of everything random (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run_systems(program: str, options: argparse.Namespace, *, others: Sequence[str] = ()) -> list[Result]:
    """
    Run *program* (a module) once for each system, and return the results, ours first.

    Args:
        others: Names of SYSTEMS that run too, after the peers and also without them.

    Raises:
        BenchmarkError: A run was not possible, or did not end well.
    """
    end_in_order()
    return [_run_system(program, name, options) for name in (*systems_to_run(options), *others)]


def run_and_show(
    program: str, options: argparse.Namespace, show: Callable[[argparse.Namespace, Sequence[Result]], None]
) -> list[Result] | None:
    """
    Run *program* once for each system, print the results, as JSON or by *show*, and return them, ours first.

    Returns:
        None if a run was not possible; the reason was printed.
    """
    try:
        results = run_systems(program, options)
    except BenchmarkError as error:
        print(error, file=sys.stderr)
        return None
    if options.json:
        print(json.dumps(results, indent=2))
    else:
        show(options, results)
    return results


def systems_to_run(options: argparse.Namespace) -> list[str]:
    """Return the names of ours and of the peers that are wanted and installed, and say which one is missing."""
    names = ["live_cache"]
    for name in PEERS if options.peers else ():
        if SYSTEMS[name].is_installed:
            names.append(name)
        else:
            print(
                f"Without {name}: {SYSTEMS[name].package} is not installed. To compare: "
                "python -m pip install -r requirements/peers.txt (or run with --no-peers)",
                file=sys.stderr,
            )
    return names


def _run_system(program: str, system: str, options: argparse.Namespace) -> Result:
    with started(program, system, options) as (child, directory):
        status = child.wait()
        result = directory / "result.json"
        if status or not result.exists():
            raise BenchmarkError(f"The run of {system} ended with status {status}.")
        return {"system": system, **json.loads(result.read_text())}


@contextmanager
def started(
    program: str, system: str, options: argparse.Namespace, **popen: Any
) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """
    Start *program* for *system* with a database of its own; yield the process and its directory.

    Args:
        popen: What subprocess.Popen is given, such as pipes. Pipes carry text.
    """
    with (
        tempfile.TemporaryDirectory(prefix="live-cache-bench-") as directory,
        database(options.database, Path(directory), is_durable=getattr(options, "is_durable", False)) as config,
    ):
        bench = {**vars(options), "system": system, "database": config, "directory": directory}
        environment = {
            **os.environ,
            _ENVIRONMENT: json.dumps(bench),
            "DJANGO_SETTINGS_MODULE": "benchmarks.project.settings",
            "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")])),
        }
        child = subprocess.Popen([sys.executable, "-m", program], env=environment, text=True, **popen)
        try:
            yield child, Path(directory)
        except BaseException:
            child.terminate()
            raise
        finally:
            child.wait()


def is_child() -> bool:
    """Return whether this process was started by run_systems()."""
    return _ENVIRONMENT in os.environ


class Bench:
    """The process of one system: its options, its Redis, and the database if that fails too."""

    def __init__(self) -> None:
        self.options: dict[str, Any] = json.loads(os.environ[_ENVIRONMENT])
        self.directory = Path(self.options["directory"])
        is_ours = self.options["system"] == "live_cache"
        is_linked = self.options.get("fault") == "pause"
        self.redis = start_redis_place(self.options["location"] if is_ours else "redis", is_linked=is_linked)
        self.options["redis_url"] = self.redis.url
        self.links = [] if self.redis.link is None else [self.redis.link]
        """Ways to servers that can be paused."""
        self.database: OwnPostgresql | None = None
        config = self.options["database"]
        if self.options.get("fault") == "database":
            self.database = OwnPostgresql()
            self.options["database"] = self.database.config
        elif is_linked and config.get("PORT"):
            link = Link(config["HOST"] or "127.0.0.1", int(config["PORT"]))
            self.links.append(link)
            self.options["database"] = {**config, "HOST": "127.0.0.1", "PORT": str(link.port)}
        os.environ[_ENVIRONMENT] = json.dumps(self.options)

    def close(self) -> None:
        """Stop the servers."""
        self.redis.close()
        if self.database is not None:
            self.database.close()
        for link in self.links:
            link.close()


def run_child(run: Callable[[Bench], Mapping[str, Any]]) -> int:
    """Set Django up for the system of this process, make the tables, and call *run*; keep what it returns."""
    end_in_order()
    bench = Bench()
    try:
        import django

        django.setup()
        from django.core.management import call_command

        from benchmarks.project.workers import close_everything

        call_command("migrate", run_syncdb=True, verbosity=0)
        close_everything()
        try:
            result = run(bench)
        except BenchmarkError as error:
            print(error, file=sys.stderr)
            return 1
        (bench.directory / "result.json").write_text(json.dumps(result))
        close_everything()
    finally:
        bench.close()
    return 0


def end_in_order() -> None:
    """Let SIGTERM raise SystemExit, so that databases are dropped and servers and workers stopped first."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))


def print_table(results: Sequence[Result], columns: Mapping[str, str]) -> None:
    """Print one line per result. *columns* maps keys of the results to titles."""
    print_rows([list(columns.values()), *([_cell(result[key]) for key in columns] for result in results)])


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """Print *rows* as a table: the first column to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        print("  ".join(cells))


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
