"""Faults that a test injects into ledgers and stores, and points at which it holds readers and writers."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from live_cache import reader
from live_cache.assembly import close_all, get_assembly
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.clocks import TABLE_SLOT, Dependency
from live_cache.links import LinkReader
from live_cache.stores.base import MISS
from live_cache.writes.transactions import ConnectionState

__all__ = ["FickleLedger", "Holds", "corrupt_entries", "reap_everything", "restart_process", "swap_entries"]

_METHODS = ("_read", "_declare", "_tick", "_tick_announced", "_retract", "_reap", "_run", "expired")


class FickleLedger:
    """Puts a ledger out of reach, or loses its answers, until restore()."""

    def __init__(self) -> None:
        self._ledger: Any = None
        self.loses_intents = False
        """Whether a COMMIT goes on without an intent, so that nothing covers the moment between it and its tick."""

    @property
    def is_broken(self) -> bool:
        """Whether the ledger is out of reach."""
        return self._ledger is not None

    def breaks(self, how: str) -> None:
        """
        Break the ledger of the default cache.

        Args:
            how: "down": nothing arrives. "answers": everything arrives and no answer comes. "ticks" and "declares":
                only these do not arrive.
        """
        ledger: Any = get_assembly().ledger
        self._ledger = ledger
        self.loses_intents = how == "declares"
        names = {"ticks": ("_tick", "_tick_announced"), "declares": ("_declare",)}.get(how, _METHODS)
        for name in names:
            if hasattr(ledger, name):
                setattr(ledger, name, self._broken(getattr(ledger, name), arrives=how == "answers"))

    @staticmethod
    def _broken(original: Callable[..., Any], *, arrives: bool) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if arrives:
                original(*args, **kwargs)
            raise LedgerUnavailableError("A test has put the ledger out of reach.")

        return call

    def restore(self) -> None:
        """Let the ledger answer again."""
        for name in _METHODS:
            if self._ledger is not None:
                self._ledger.__dict__.pop(name, None)
        self._ledger = None
        self.loses_intents = False


class Holds:
    """
    Points at which the reads and writes of one thread stop, while the test lets another connection do something.

    Reader: "before select" (it has its reading), "after select" (it has its rows, nothing is stored). Reader of a link
    set: "before link" (it has its reading), "after link" (it has the set, and will read the clocks anew). Writer:
    "before declare", "after declare" (COMMIT comes next), "before tick" (the database has committed), "after tick".
    """

    READER = ("before select", "after select")
    LINK = ("before link", "after link")
    WRITER = ("before declare", "after declare", "before tick", "after tick")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._actions: dict[tuple[int, str], Callable[[], object]] = {}
        for owner, name, before, after in (
            (reader, "_fetch", "before select", "after select"),
            (LinkReader, "values", "before link", "after link"),
            (ConnectionState, "_declare", "before declare", "after declare"),
            (ConnectionState, "_tick", "before tick", "after tick"),
        ):
            monkeypatch.setattr(owner, name, self._held(getattr(owner, name), before, after))

    def at(self, thread_id: int, point: str, action: Callable[[], object]) -> None:
        """Call *action* when the thread comes to *point*, once."""
        self._actions[thread_id, point] = action

    def clear(self) -> None:
        """Forget the actions to which nobody came."""
        self._actions.clear()

    def _held(self, original: Callable[..., Any], before: str, after: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._arrive(before)
            result = original(*args, **kwargs)
            self._arrive(after)
            return result

        return call

    def _arrive(self, point: str) -> None:
        action = self._actions.pop((threading.get_ident(), point), None)
        if action is not None:
            action()


def corrupt_entries(number: int) -> None:
    """Damage the entries of every tier: one byte, the end, or everything."""
    for store in get_assembly().tiers:
        for key in sorted(store.keys("live")):
            data = store.get(key)
            if data is MISS:
                continue
            position = number * 7 % len(data)
            damaged = (
                data[:position] + bytes([data[position] ^ (1 + number % 255)]) + data[position + 1 :],
                data[:position],
                b"x" * (number + 1),
            )[number % 3]
            store.put(key, damaged or b"x")


def swap_entries() -> None:
    """Put the entries of every tier under each other's keys."""
    for store in get_assembly().tiers:
        found = {key: store.get(key) for key in sorted(store.keys("live"))}
        values = [value for value in found.values() if value is not MISS]
        for key, value in zip(found, values[1:] + values[:1], strict=False):
            store.put(key, value)


def reap_everything() -> None:
    """Reap every intent, as time would: between two examples nobody writes."""
    ledger = get_assembly().ledger
    for clock in ledger.clocks():
        if clock.intent_count:
            (reading,) = ledger.read([Dependency(clock.clock, (TABLE_SLOT,))])
            ledger.reap(clock.clock, {intent.id for intent in reading.intents})


def restart_process() -> None:
    """Forget tiers in memory and the ledger's connection, as a new process has neither."""
    if get_assembly().ledger.undelivered_count == 0:  # a process that ends before it delivers may leave stale entries
        close_all()
