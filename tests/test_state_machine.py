"""
Any sequence of writes, transactions and faults over two connections leaves no live read that differs from the database.

The parts are in tests/machine/. ``dev.py test --deep`` runs 5,000 examples for each database; a normal run few, always
the same ones.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from django.db import connections
from hypothesis import HealthCheck, Phase, settings
from hypothesis.errors import FlakyFailure
from hypothesis.stateful import run_state_machine_as_test

from live_cache import plan as plans
from live_cache import queryset as querysets
from live_cache import reader
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.process import ProcessLedger
from live_cache.plan import Plan
from live_cache.sql import Statement, StatementKind, classify
from live_cache.writes import guard
from tests.left_open import AUTOCOMMIT, left_open
from tests.machine.actors import Actor
from tests.machine.faults import Holds
from tests.machine.machine import running_machine

IS_DEEP = os.environ.get("LIVE_CACHE_DEEP") == "1"
PROFILES = {
    "default": settings(max_examples=3, stateful_step_count=12, derandomize=True, database=None),
    "deep": settings(max_examples=2500, stateful_step_count=15),
}
for _name, _profile in PROFILES.items():
    settings.register_profile(
        f"live_cache_{_name}",
        settings(
            _profile,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
PROFILE = settings.get_profile(f"live_cache_{'deep' if IS_DEEP else 'default'}")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Leave out what is logged of each fault."""
    caplog.set_level(logging.CRITICAL, logger="live_cache")


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Holds:
    """The points at which readers and writers are held."""
    return Holds(monkeypatch)


@pytest.mark.parametrize("cache_kind", ["process", "memory+redis"], indirect=True)
def test_live_reads_equal_the_database(alias: str, cache_kind: str, holds: Holds, settings: Any) -> None:
    """The machine finds nothing, and a good part of what it read came from the cache."""
    settings.LIVE_CACHE_LEASE_S = 0.02
    with running_machine(alias, holds, is_shared=cache_kind != "process") as machine:
        run_state_machine_as_test(machine, settings=PROFILE)
    assert machine.counts["hit"] > machine.counts["miss"] / 4, dict(machine.counts)


LEVELS = ([], ["atomic", "atomic"], ["raw"], ["manual"], ["manual", "atomic", "atomic"], ["manual", "savepoint"])


def test_a_lost_connection_leaves_nothing_open(alias: str, cache: str) -> None:
    """Whatever an actor was in the middle of, the next thing that it does is done on a new connection."""
    actor = Actor(alias)
    try:
        for levels in LEVELS:
            for kind in levels:
                assert actor.attempt(actor.do_begin, kind)
            actor.call(actor.do_lose_connection)
            assert actor.mode == "auto"
            assert actor.call(lambda: left_open(connections[alias])) == AUTOCOMMIT
    finally:
        actor.close()


# -- the machine's own proof ------------------------------------------------------------------------------------------


def forget_joined_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """A planner that knows the table of the model only."""
    make_plan = plans.make_plan

    def make(query: Any, **options: Any) -> Plan:
        plan = make_plan(query, **options)
        own = tuple(d for d in plan.dependencies if d.clock.endswith("/" + query.model._meta.db_table))
        return replace(plan, dependencies=own)

    monkeypatch.setattr(querysets, "make_plan", make)


def miss_bulk_updates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A guard that takes the UPDATE of bulk_update() for a read."""

    def look(sql: Any, *, vendor: str) -> Statement:
        if str(sql).startswith("UPDATE") and "CASE WHEN" in str(sql):
            return Statement(StatementKind.READ)
        return classify(sql, vendor=vendor)

    monkeypatch.setattr(guard, "classify", look)


def stamp_after_the_select(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader whose stamp is younger than its rows."""
    store = reader._store

    def stamp(assembly: Any, plan: Plan, readings: Any, *rest: Any) -> None:
        with suppress(LedgerUnavailableError):
            readings = assembly.ledger.read(plan.dependencies)
        store(assembly, plan, readings, *rest)

    monkeypatch.setattr(reader, "_store", stamp)


def lose_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that removes intents and ticks nothing."""
    tick = ProcessLedger._tick
    monkeypatch.setattr(
        ProcessLedger,
        "_tick",
        lambda self, changes, intent_id, records: tick(self, dict.fromkeys(changes, frozenset()), intent_id, {}),
    )


def declare_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that leaves the window between COMMIT and tick open."""
    monkeypatch.setattr(ProcessLedger, "_declare", lambda self, changes, intent_id, fence, records: None)


BROKEN = [forget_joined_tables, miss_bulk_updates, stamp_after_the_select, lose_ticks, declare_nothing]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("break_it", BROKEN, ids=lambda function: function.__name__)
def test_the_machine_finds_what_is_broken(
    break_it: Callable[[pytest.MonkeyPatch], None], cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these bugs is found."""
    break_it(monkeypatch)
    bounded = settings(PROFILES["default"], max_examples=300, stateful_step_count=15, phases=[Phase.generate])
    bounded = settings(bounded, deadline=None, suppress_health_check=list(HealthCheck), report_multiple_bugs=False)
    with (
        running_machine("default", Holds(monkeypatch)) as machine,
        pytest.raises((AssertionError, FlakyFailure)) as found,
    ):
        run_state_machine_as_test(machine, settings=bounded)
    # Of several threads not every find is one that Hypothesis can repeat.
    error = found.value
    errors = error.exceptions if isinstance(error, FlakyFailure) else (error,)
    assert all("where the database says" in str(each) for each in errors), errors
