"""
Any querysets and any writes, of which the ledgers learn by the outbox alone: a live read is what the database says.

The writes are those of tests/precision. Django sends them, and tells nobody.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from live_cache.outbox import decoding
from live_cache.outbox import listener as listener_module
from live_cache.outbox.installing import drop_triggers, install_triggers, tables_of_models
from live_cache.outbox.listener import Listener
from live_cache.writes.transactions import ConnectionState
from tests.deep import deep
from tests.machine.faults import Holds
from tests.precision.ground import TABLES
from tests.precision.machine import Machine, StaleError
from tests.precision.querysets import Dice

N_EXAMPLES = deep(10, 2000)


class OutsideMachine(Machine):
    """Runs examples whose writes nobody but the triggers tells."""

    def __init__(self, alias: str, holds: Holds, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(alias, holds)
        self._monkeypatch = monkeypatch
        connection = connections[alias]
        install_triggers(connection, tables_of_models(connection, TABLES))
        self.listener = Listener(alias)

    def close(self) -> None:
        """Take away the triggers too."""
        self.listener.close()
        drop_triggers(connections[self.alias])
        super().close()

    def _draw(self, rng: Dice) -> None:
        self.listener.drain()  # the rows that were put back
        super()._draw(rng)

    def _write(self, rng: Dice) -> None:
        with self._monkeypatch.context() as silent:
            for name in ("_declare", "_tick_only"):
                silent.setattr(ConnectionState, name, lambda *_, **__: None)
            super()._write(rng)
        self.listener.drain()

    _hold_a_reader = _hold_a_writer = _hold_a_link = _write


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="live_cache")


@pytest.fixture
def machine(alias: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[OutsideMachine]:
    """A machine on one database."""
    made = OutsideMachine(alias, Holds(monkeypatch), monkeypatch)
    yield made
    made.close()


def test_live_reads_equal_the_database(machine: OutsideMachine) -> None:
    """And most of those that no write has changed are hits."""
    for seed in range(N_EXAMPLES):
        machine.run(seed)
    assert machine.counts["hits of unchanged"] > machine.counts["needless misses"], dict(machine.counts)


def _lose_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    gather = Listener._gather
    monkeypatch.setattr(Listener, "_gather", lambda self, connection, lines: gather(self, connection, lines[1:]))


def _forget_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    decode = decoding.decode_changes

    def forget(*arguments: Any) -> Any:
        return [
            change if not change.columns else type(change)(
                change.kind, change.key, frozenset(sorted(change.columns)[1:]), change.before, change.after
            )
            for change in decode(*arguments)
        ]  # fmt: skip

    monkeypatch.setattr(listener_module, "decode_changes", forget)


@pytest.mark.parametrize("alias", ["default"], indirect=True)
@pytest.mark.parametrize("break_it", [_lose_lines, _forget_columns])
def test_the_machine_finds_what_is_broken(
    machine: OutsideMachine, monkeypatch: pytest.MonkeyPatch, break_it: Callable[[pytest.MonkeyPatch], None]
) -> None:
    """So that it proves something."""
    break_it(monkeypatch)

    def run_all() -> None:
        for seed in range(100):
            machine.run(seed)

    with pytest.raises(StaleError):
        run_all()
