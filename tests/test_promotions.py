"""Promotion from a farther tier: of many threads one looks there, nobody waits for long, nor reads older rows."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import pytest
from django.db import connections

from live_cache import live, promotions, recording
from live_cache.assembly import get_assembly
from live_cache.exceptions import LedgerUnavailableError
from live_cache.promotions import Promotions
from tests.cache_kinds import caches_of, wait_for_hits
from tests.gate import Gate
from tests.testapp.models import Author, Book

READERS = 20
Look = Callable[..., Any]


@pytest.fixture(params=["memory+disk", "memory+redis"])
def tiers(request: pytest.FixtureRequest, settings: Any, tmp_path: Any) -> str:
    """Memory in front of a tier that other processes see."""
    kind: str = request.param
    redis_url = request.getfixturevalue("redis_url") if "redis" in kind else None
    settings.CACHES = caches_of(kind, tmp_path, redis_url)
    return kind


@pytest.fixture
def book(alias: str, tiers: str) -> Book:
    """One book, whose entry is in the farther tier alone."""
    made = Book.objects.using(alias).create(title="old", author=Author.objects.using(alias).create(name="Ann"))
    wait_for_hits(lambda: titles(alias))
    get_assembly().tiers[0].clear()
    return made


def titles(alias: str) -> list[str]:
    return [book.title for book in live(Book.objects.using(alias).order_by("pk"))]


def read(alias: str) -> tuple[list[str], bool]:
    """Return what a live read gives, and whether it is a hit."""
    try:
        with recording() as reads:
            return titles(alias), reads[-1].is_hit
    finally:
        connections[alias].close()


def far_lookups() -> int:
    metrics = get_assembly().tiers[-1].metrics()
    return metrics.hits + metrics.misses


def look_through(monkeypatch: pytest.MonkeyPatch, look: Callable[[Look], Look]) -> None:
    """Put *look* around how the farthest tier is read."""
    ledger = type(get_assembly().ledger)
    monkeypatch.setattr(ledger, "read_with_entry", look(ledger.read_with_entry))


def held_once(gate: Gate) -> Callable[[Look], Look]:
    """Hold the first who has read the farthest tier."""
    held = [True]

    def around(original: Look) -> Look:
        def run(*arguments: Any) -> Any:
            found = original(*arguments)
            if held:
                held.clear()
                gate.arrive_and_wait()
            return found

        return run

    return around


def test_one_thread_looks_for_all(alias: str, book: Book, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Twenty readers miss in memory what is in the farther tier: it is read there once, and all have a hit."""
    monkeypatch.setattr(promotions, "LONGEST_WAIT_S", 30.0)
    look_through(monkeypatch, held_once(gate))
    before = far_lookups()
    with ThreadPoolExecutor(READERS) as pool:
        first = pool.submit(read, alias)
        gate.wait_arrived()
        others = [pool.submit(read, alias) for _ in range(READERS - 1)]
        gate.open()
        assert [one.result(10) for one in [first, *others]] == [(["old"], True)] * READERS
    assert far_lookups() - before == 1
    counters = get_assembly().metrics.snapshot()
    assert counters["promotions"] == 1
    assert counters.get("promotion_waits", 0) < READERS


def test_without_it_everybody_looks(alias: str, book: Book, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: who finds nobody to wait for looks for himself."""
    barrier = threading.Barrier(3)

    def around(original: Look) -> Look:
        def run(*arguments: Any) -> Any:
            barrier.wait(10)
            return original(*arguments)

        return run

    monkeypatch.setattr(Promotions, "turn", lambda self, key: nullcontext(False))
    look_through(monkeypatch, around)
    before = far_lookups()
    with ThreadPoolExecutor(3) as pool:
        found = [pool.submit(read, alias) for _ in range(3)]
        assert [one.result(10) for one in found] == [(["old"], True)] * 3
    assert far_lookups() - before == 3


def test_nobody_waits_for_long(alias: str, book: Book, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is first does not come back: the next one waits for a moment, looks for himself, and has a hit."""
    look_through(monkeypatch, held_once(gate))
    with ThreadPoolExecutor(2) as pool:
        slow = pool.submit(read, alias)
        gate.wait_arrived()
        assert pool.submit(read, alias).result(5) == (["old"], True)
        assert not slow.done()
        assert get_assembly().metrics.snapshot()["promotion_waits"] == 1
        gate.open()
        assert slow.result(10) == (["old"], True)


def test_error_is_the_first_ones_own(alias: str, book: Book, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first gets no answer: he asks the database, and who has waited finds the entry himself."""
    monkeypatch.setattr(promotions, "LONGEST_WAIT_S", 30.0)
    failing = [True]

    def around(original: Look) -> Look:
        def run(*arguments: Any) -> Any:
            if failing:
                failing.clear()
                gate.arrive_and_wait()
                raise LedgerUnavailableError("no answer")
            return original(*arguments)

        return run

    look_through(monkeypatch, around)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, alias)
        gate.wait_arrived()
        second = pool.submit(read, alias)
        gate.open()
        assert first.result(10) == (["old"], False)
        assert second.result(10) == (["old"], True)


def test_who_waits_judges_for_himself(alias: str, book: Book, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first has read entry and clocks; a commit; who comes then waits for him, and does not get the older rows."""
    monkeypatch.setattr(promotions, "LONGEST_WAIT_S", 30.0)
    look_through(monkeypatch, held_once(gate))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(read, alias)
        gate.wait_arrived()
        Book.objects.using(alias).update(title="new")
        second = pool.submit(read, alias)
        gate.open()
        assert first.result(10) == (["old"], True)  # it began before the commit
        assert second.result(10) == (["new"], False)
    assert titles(alias) == ["new"]


def test_child_of_fork_waits_for_nobody() -> None:
    """The threads of the parent are not there."""
    made = Promotions()
    with made.turn("key"):
        made.after_fork_in_child()
        found: list[bool] = []

        def child() -> None:
            with made.turn("key") as has_waited:
                found.append(has_waited)

        thread = threading.Thread(target=child)
        thread.start()
        thread.join(10)
    assert found == [False]
    assert made._running == {}
