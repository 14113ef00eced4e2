"""
Runs Django's own tests of caches, sessions and the cache tag with our backend in place of Django's.

``python -m tests.django_suite [composition ...]``: one process per composition of tiers, side by side, since most of
their time they sleep. Prints a table; exits with 1 if a test failed, or if there were none.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import django

from tests.django_source import django_tests
from tests.django_suite_caches import COMPOSITIONS
from tests.server_programs import start_redis

__all__ = ["main"]

OUTCOMES = ("passed", "failed", "skipped", "not applicable")


def main(arguments: list[str] | None = None) -> int:
    """Run the suites and print what came of them. Return the exit status."""
    parser = argparse.ArgumentParser(prog="dev.py test --django-suite", description=__doc__)
    parser.add_argument("compositions", nargs="*", help=", ".join(COMPOSITIONS) + "; all")
    parser.add_argument("--reasons", action="store_true", help="Say what was skipped or does not apply, and why.")
    options = parser.parse_args(arguments)
    compositions = options.compositions or list(COMPOSITIONS)
    if unknown := set(compositions) - set(COMPOSITIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}. Known are: {', '.join(COMPOSITIONS)}")
    suite = django_tests()
    # One server per composition: clear() of one must not be seen by another.
    servers = {name: start_redis() for name in compositions if "redis" in name}
    try:
        with tempfile.TemporaryDirectory(prefix="live-cache-suite-") as directory:
            urls = {name: f"redis://127.0.0.1:{server.port}" for name, server in servers.items()}
            results = _run(compositions, suite, Path(directory), urls)
    finally:
        for server in servers.values():
            server.stop(kill=True)
    return _report(results, is_explaining=options.reasons)


def _run(
    compositions: list[str], suite: Path, directory: Path, redis_urls: dict[str, str]
) -> dict[str, dict[str, list[str]]]:
    children = {}
    for composition in compositions:
        own = directory / composition
        own.mkdir()
        environment = os.environ | {
            "LIVE_CACHE_SUITE_COMPOSITION": composition,
            "LIVE_CACHE_SUITE_DIRECTORY": str(own),
            "LIVE_CACHE_SUITE_REDIS": redis_urls.get(composition, ""),
        }
        child = Path(__file__).with_name("django_suite_child.py")
        command = [sys.executable, str(child), composition, str(suite), str(own / "outcomes.json")]
        with (own / "output").open("w") as output:
            children[composition] = subprocess.Popen(
                command, cwd=suite, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
    results = {}
    for composition, process in children.items():
        process.wait()
        own = directory / composition
        try:
            outcomes = json.loads((own / "outcomes.json").read_text())
            if not outcomes:
                raise ValueError
            results[composition] = outcomes
        except (OSError, ValueError):
            results[composition] = {"the process": ["failed", (own / "output").read_text()[-6000:]]}
    return results


def _report(results: dict[str, dict[str, list[str]]], *, is_explaining: bool) -> int:
    print(f"Tests of Django {django.get_version()} over live_cache, Python {sys.version.split()[0]}")  # noqa: T201 - a program
    print(f"{'composition':20}" + "".join(f"{outcome:>16}" for outcome in OUTCOMES))  # noqa: T201
    is_good = True
    reasons: Counter[tuple[str, str]] = Counter()
    for composition, outcomes in results.items():
        counts = Counter(outcome for outcome, _ in outcomes.values())
        print(f"{composition:20}" + "".join(f"{counts[outcome]:16}" for outcome in OUTCOMES))  # noqa: T201
        is_good = is_good and counts["passed"] > 0 and not counts["failed"]
        reasons.update(
            (outcome, detail) for outcome, detail in outcomes.values() if outcome not in ("passed", "failed")
        )
    if is_explaining:
        for (outcome, reason), n in sorted(reasons.items()):
            print(f"{n:5} {outcome}: {reason}")  # noqa: T201
    for composition, outcomes in results.items():
        for name, (outcome, detail) in outcomes.items():
            if outcome == "failed":
                print(f"\nFAILED over {composition}: {name}\n{detail}")  # noqa: T201
    return 0 if is_good else 1


if __name__ == "__main__":
    sys.exit(main())
