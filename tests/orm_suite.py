"""
Runs Django's own ORM tests with every plain queryset read made live; started by ``python3 dev.py test --orm-suite``.

    python -m tests.orm_suite [--database sqlite|postgresql|mariadb] [app or test ...]

The tests come from the source of the installed Django, which pip fetches into a cache folder. They run twice: as they
are, and with every read live (orm_suite_live.py). A test that fails only in the second run is run once more with
assertNumQueries() accepting any number; if that helps, it merely counts queries. Everything else that fails, or that
was read wrong, is a bug of live_cache, and the exit status is 1.

Standard library, Django and the drivers only.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from tests import servers
from tests.django_source import django_tests

__all__ = ["APPS", "EXPECTED", "main"]

CHILD = Path(__file__).with_name("orm_suite_child.py")

_APPS = """
    aggregation aggregation_regress annotations async basic bulk_create composite_pk constraints contenttypes_tests
    custom_columns custom_lookups custom_managers custom_methods custom_pk datatypes dates datetimes db_functions
    db_typecasts db_utils defer defer_regress delete delete_regress distinct_on_fields empty expressions
    expressions_case expressions_window extra_regress field_defaults field_subclassing filtered_relation fixtures
    fixtures_regress force_insert_update foreign_object from_db_value generic_inline_admin generic_relations
    generic_relations_regress get_earliest_or_latest get_object_or_404 get_or_create inline_formsets introspection
    known_related_objects lookup m2m_and_m2o m2m_intermediary m2m_multiple m2m_recursive m2m_regress m2m_signals
    m2m_through m2m_through_regress m2o_recursive managers_regress many_to_many many_to_one many_to_one_null max_lengths
    model_enums model_fields model_forms model_formsets model_formsets_regress model_inheritance
    model_inheritance_regress model_meta model_package model_regress model_utils multiple_database
    mutually_referential nested_foreign_keys null_fk null_fk_ordering null_queries one_to_one or_lookups
    order_with_respect_to ordering pagination postgres_tests prefetch_related properties proxy_model_inheritance
    proxy_models queries queryset_pickle raw_query reserved_names reverse_lookup save_delete_hooks select_for_update
    select_related select_related_onetoone select_related_regress serializers signals str string_lookup
    swappable_models timezones transaction_hooks transactions unmanaged_models update update_only_fields validation
    xor_lookups
"""
APPS = tuple(_APPS.split())
"""The apps of Django's tests that use the ORM."""

EXPECTED = {
    "signals.tests.SignalTests.test_disconnect_in_dispatch": "asserts that nobody receives post_save; live_cache does",
    **dict.fromkeys(
        (
            "postgres_tests.test_operations.CreateExtensionTests.test_allow_migrate",
            "postgres_tests.test_operations.CreateExtensionTests.test_allow_migrate_based_on_hints",
        ),
        "counts queries; after a statement that may write every table, live_cache lists the tables",
    ),
}
"""Tests that live_cache changes by being installed, with the reason. Not for anything that is read wrong."""

_ENGINES = {"sqlite": "sqlite3", "postgresql": "postgresql", "mariadb": "mysql"}

# Django makes all tables in one transaction, and PostgreSQL has locks for a few thousand of them, in all databases.
_BATCH_SIZE = 30


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _settings(database: str, mode: str) -> str:
    """Return the source of a settings module for Django's tests. Each mode has test databases of its own."""
    databases: dict[str, dict[str, Any]] = {}
    for alias in ("default", "other"):
        databases[alias] = {"ENGINE": f"django.db.backends.{_ENGINES[database]}"}
        if database != "sqlite":
            server = servers.discover().get(database)
            if server is None:
                raise SystemExit(f"{database} is missing: {servers.MISSING[database].reason}")
            host = "".join(c for c in socket.gethostname().lower() if c.isalnum())[:12]
            # tests/leftovers.py knows this form, and removes what a killed run leaves.
            name = f"live_cache_{host}_{os.getpid()}_{mode}_{alias}"
            databases[alias] |= {"NAME": name, "HOST": server.host, "PORT": server.port, "USER": server.user}
            databases[alias] |= {"PASSWORD": server.password, "TEST": {"NAME": f"test_{name}"}}
    caches = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "live": {"BACKEND": "live_cache.backend.LiveCache", "LOCATION": ["memory://?ledger=process"]},
    }
    install = "from tests.servers import install_pymysql\ninstall_pymysql()\n" if database == "mariadb" else ""
    return install + textwrap.dedent(f"""\
        DATABASES = {databases!r}
        CACHES = {caches!r}
        SECRET_KEY = "only for tests"
        PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
        USE_TZ = False
    """)


class Runs:
    """Runs of Django's tests, each in a process of its own."""

    def __init__(self, directory: Path, database: str) -> None:
        self.directory = directory
        self.database = database
        self.suite = django_tests()

    def run(self, labels: list[str], *modes: str) -> list[dict[str, Any]]:
        """Run *labels* in these modes of orm_suite_child.py, side by side, and return what each has found."""
        found: list[dict[str, Any]] = [{"outcomes": {}, "counts": Counter(), "reasons": Counter()} for _ in modes]
        for start in range(0, len(labels), _BATCH_SIZE):
            batch = labels[start : start + _BATCH_SIZE]
            _say(f"-> Django's tests: {' and '.join(modes)}, {batch[0]} to {batch[-1]} ...")
            processes = [self._start(mode, batch) for mode in modes]
            for process in processes:
                process.wait()
            for mode, result in zip(modes, found, strict=True):
                for kind, entries in self._result(mode).items():
                    result[kind].update(entries)
        return found

    def _start(self, mode: str, labels: list[str]) -> subprocess.Popen[bytes]:
        module = f"orm_suite_settings_{mode}"
        (self.directory / f"{module}.py").write_text(_settings(self.database, mode))
        temporary = self.directory / mode
        temporary.mkdir(exist_ok=True)
        environment = os.environ | {
            "PYTHONPATH": str(self.directory),
            "DJANGO_SETTINGS_MODULE": module,
            "TMPDIR": str(temporary),
        }
        command = [sys.executable, str(CHILD), mode, str(self.suite), str(self.directory / f"{mode}.json"), *labels]
        with (self.directory / f"{mode}.log").open("w") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def _result(self, mode: str) -> dict[str, Any]:
        output = self.directory / f"{mode}.json"
        result: dict[str, Any] = json.loads(output.read_text()) if output.exists() else {"outcomes": {}}
        output.unlink(missing_ok=True)
        if not result["outcomes"]:
            raise SystemExit(f"The run {mode!r} ran no test:\n{(self.directory / f'{mode}.log').read_text()[-3000:]}")
        return result


def _is_failed(outcomes: dict[str, list[str]], name: str) -> bool:
    return outcomes.get(name, ["missing"])[0] == "failed"


def _app_of(name: str) -> str:
    """Return the app of a test; the id of a class that could not be set up is ``setUpClass (app.tests.Class)``."""
    return name.partition("(")[2].split(".")[0] if "(" in name else name.split(".")[0]


def _sort(runs: Runs, plain: dict[str, Any], lived: dict[str, Any]) -> dict[str, str]:
    """Return the verdict on each test: passed, skipped, environment, expected, counted or failed."""
    before, after = plain["outcomes"], lived["outcomes"]
    verdicts = {name: outcome for name, (outcome, _) in after.items()}
    verdicts |= {name: "failed" for name in before if name not in after and not _is_failed(before, name)}
    for name, verdict in verdicts.items():
        if verdict == "failed" and _is_failed(before, name):
            verdicts[name] = "environment"
        elif verdict == "failed" and name in EXPECTED:
            verdicts[name] = "expected"
    # By class: some tests lean on what the ones before them have left.
    suspects = [name for name, verdict in verdicts.items() if verdict == "failed" and "(" not in name]
    if suspects:
        (again,) = runs.run(sorted({name.rpartition(".")[0] for name in suspects}), "uncounted")
        verdicts |= {name: "counted" for name in suspects if again["outcomes"].get(name, [""])[0] == "passed"}
    return verdicts


def _report(lived: dict[str, Any], verdicts: dict[str, str]) -> None:
    columns = ("passed", "skipped", "counted", "expected", "environment", "failed")
    _say(f"\n{'app':32}{'tests':>7}" + "".join(f"{column:>12}" for column in columns))
    rows: dict[str, list[str]] = {}
    for name, verdict in verdicts.items():
        rows.setdefault(_app_of(name), []).append(verdict)
    for app, found in [*sorted(rows.items()), ("all", list(verdicts.values()))]:
        _say(f"{app:32}{len(found):>7}" + "".join(f"{found.count(column):>12}" for column in columns))
    counts = lived["counts"]
    _say(f"\n{counts['reads']} reads, {counts['hits']} rows served from the cache and judged. Not served, by reason:")
    for reason, number in sorted(lived["reasons"].items(), key=lambda item: -item[1])[:15]:
        _say(f"  {number:>6}  {reason}")
    for verdict, title in (("counted", "Only count queries"), ("expected", "Expected")):
        names = sorted(name for name, each in verdicts.items() if each == verdict)
        if names:
            _say(f"\n{title}:")
        for name in names:
            _say(f"  {name}" + (f": {EXPECTED[name]}" if name in EXPECTED else ""))
    for name, verdict in verdicts.items():
        if verdict == "failed":
            detail = lived["outcomes"].get(name, ["", "did not run"])[1]
            _say(f"\nFAILED {name}\n{textwrap.indent(detail.strip()[-3000:], '    ')}")


def main() -> int:
    """Run what the command line says and return the exit status."""
    parser = argparse.ArgumentParser(prog="dev.py test --orm-suite", description="Django's ORM tests, every read live.")
    parser.add_argument("--database", choices=sorted(_ENGINES), default="sqlite")
    parser.add_argument("labels", nargs="*", metavar="app", help="apps or tests of Django's suite; default: all of ORM")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix=f"live-cache-tests-{os.getpid()}-") as directory:
        runs = Runs(Path(directory), options.database)
        labels = options.labels or [app for app in APPS if (runs.suite / app).is_dir()]
        plain, lived = runs.run(labels, "plain", "live")
        verdicts = _sort(runs, plain, lived)
    _report(lived, verdicts)
    failed = sum(verdict == "failed" for verdict in verdicts.values())
    _say(f"\n{failed} failed" if failed else "\nNothing failed because of live_cache.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
