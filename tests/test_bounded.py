"""Bounded mode: hits that are checked against the copy of the clocks, and never older than the bound."""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection, transaction

from live_cache import invalidate, live, recording
from live_cache.assembly import get_assembly
from live_cache.changes import RowChange, encode_record
from live_cache.events import copy as clock_copy
from live_cache.events.copy import _derived, _Kept, copy_of
from live_cache.events.following import Head, follower_of, now_s
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import LOG_LENGTH, ROWS_SLOT, TABLE_SLOT, Dependency, Intent, Reading
from live_cache.ledger.process import ProcessLedger
from tests.cache_kinds import caches_of, wait_for_hits
from tests.testapp.models import Author

LAG_S = 0.5
CLOCK = "default@0/author"
DEPENDENCY = Dependency(CLOCK, (TABLE_SLOT, ROWS_SLOT, 7))


# -- what may be derived ----------------------------------------------------------------------------------------------

KEPT = _Kept(Reading(CLOCK, b"e", 5, (1, 4, 3)), asked_at_s=90.0)
HEAD = Head(Reading(CLOCK, b"e", 5, (1,)), asked_at_s=100.0, wide_seq=2)
INTENT = Intent("1", frozenset((ROWS_SLOT,)), "", b"record")


def at(head: Head, **changes: Any) -> Head:
    """Return *head* with another reading."""
    return replace(head, reading=replace(head.reading, **changes))


@pytest.mark.parametrize(
    ("head", "kept", "since_s", "expected"),
    [
        (HEAD, KEPT, 99.0, KEPT.reading),
        (at(HEAD, intents=(INTENT,)), KEPT, 99.0, replace(KEPT.reading, intents=(INTENT,))),
        (HEAD, replace(KEPT, reading=replace(KEPT.reading, intents=(INTENT,))), 99.0, KEPT.reading),
        (at(HEAD, seq=8), KEPT, 99.0, Reading(CLOCK, b"e", 8, (1, 8, 3))),
        (at(replace(HEAD, wide_seq=5), seq=8), KEPT, 99.0, Reading(CLOCK, b"e", 8, (1, 8, 3))),
        (at(replace(HEAD, wide_seq=6), seq=8), KEPT, 99.0, None),
        (HEAD, KEPT, 100.0, None),
        (HEAD, KEPT, 101.0, None),
        (at(HEAD, epoch=b"f"), KEPT, 99.0, None),
        (at(HEAD, epoch=b"f"), replace(KEPT, asked_at_s=100.5), 99.0, KEPT.reading),
        (at(HEAD, seq=3), KEPT, 80.0, None),
        (at(HEAD, seq=3), replace(KEPT, asked_at_s=100.5), 99.0, KEPT.reading),
        (HEAD, replace(KEPT, asked_at_s=100.5), 100.2, KEPT.reading),
        (HEAD, replace(KEPT, asked_at_s=100.5), 100.5, None),
    ],
    ids=[
        "nothing was ticked",
        "the intents are those of the head",
        "an intent that is gone is gone",
        "rows were ticked",
        "rows were ticked since the check",
        "something else was ticked since the check",
        "the head is just too old",
        "the head is too old",
        "a new epoch",
        "an epoch that is newer than the head",
        "an earlier head",
        "a check that is newer than the head",
        "an old head and a young check",
        "both are too old",
    ],
)
def test_what_is_derived(head: Head, kept: _Kept, since_s: float, expected: Reading | None) -> None:
    """From a head and the last check of a dependency."""
    assert expected == _derived(DEPENDENCY, head, kept, since_s=since_s)


class Anyone:
    """A listener."""

    def __init__(self, *, wants_ticks: bool) -> None:
        self.wants_ticks = wants_ticks

    def heartbeat_s(self) -> float:
        return 1.0

    def wake(self) -> None:
        pass

    def after_fork_in_child(self) -> None:
        pass


@pytest.mark.parametrize("wants_ticks", [True, False])
def test_what_a_look_knows_of_other_slots(wants_ticks: bool) -> None:
    """Nothing of ticks before the first look at an epoch; then each tick is looked at, if anybody wants that."""
    ledger = ProcessLedger(lease_s=10)
    follower, listener = follower_of(ledger), Anyone(wants_ticks=wants_ticks)
    rows = encode_record([RowChange("insert", (1,), None, None, None)])

    def look() -> tuple[int, int]:
        follower._look([CLOCK])
        head = follower.head(CLOCK)
        assert head is not None
        return head.reading.seq, head.wide_seq

    def tick(slot: int, *records: bytes) -> None:
        for record in records:
            ledger.tick({CLOCK: {slot}}, records={CLOCK: record} if record else None)

    with follower._lock:  # without the thread
        follower._listeners[CLOCK] = weakref.WeakSet([listener])
    ledger.read([DEPENDENCY])
    tick(ROWS_SLOT, rows)
    assert look() == (1, 1)
    tick(ROWS_SLOT, rows, rows)
    assert look() == (3, 1 if wants_ticks else 3)
    assert look() == (3, 1 if wants_ticks else 3)
    tick(7, b"")
    tick(ROWS_SLOT, rows)
    assert look() == (5, 4 if wants_ticks else 5)
    tick(7, encode_record((), note="a key"))
    assert look() == (6, 6)
    tick(TABLE_SLOT, encode_record(None))
    tick(ROWS_SLOT, rows)
    assert look() == (8, 7 if wants_ticks else 8)
    tick(ROWS_SLOT, *[rows] * (LOG_LENGTH + 1))
    assert look() == (LOG_LENGTH + 9, LOG_LENGTH + 9)
    ledger.reset()
    tick(7, b"")
    tick(ROWS_SLOT, rows)
    assert look() == (2, 2)


# -- reads ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def private(private_redis: Any, settings: Any, tmp_path: Any, transactional_db: None) -> Iterator[Any]:
    """A cache in memory over a Redis of its own, with one author."""
    settings.CACHES = caches_of("memory+redis", tmp_path, private_redis.url)
    settings.CACHES["default"]["OPTIONS"]["READ_TIMEOUT_S"] = 0.04
    settings.LIVE_CACHE_MAX_LAG_MS = LAG_S * 1000
    Author.objects.create(name="old")
    yield private_redis
    private_redis.thaw()


def names(mode: str = "bounded") -> list[str]:
    return [author.name for author in live(Author.objects.order_by("pk"), mode=mode)]


def bounded_hits() -> int:
    return get_assembly().metrics.snapshot().get("bounded_hits", 0)


def is_bounded_hit(read: Callable[[], object] = names) -> bool:
    before = bounded_hits()
    read()
    return bounded_hits() > before


def wait_for_bounded_hits(read: Callable[[], object] = names) -> None:
    """Read until the copy tells."""
    wait_for_hits(read)
    until_s = time.monotonic() + 10
    while not is_bounded_hit(read):
        assert time.monotonic() < until_s
        time.sleep(0.01)


def write_name(name: str) -> None:
    """Run in another process."""
    Author.objects.update(name=name)


def calls_of_this_thread(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note what this thread sends to Redis from now on."""
    connection_ = get_assembly().ledger.connection  # type: ignore[attr-defined]  # of Redis
    run, calls = connection_.run, []
    this = threading.get_ident()

    def noted(commands: Any, **how: Any) -> Any:
        if threading.get_ident() == this:
            calls.append(str(len(commands)))
        return run(commands, **how)

    monkeypatch.setattr(connection_, "run", noted)
    return calls


def test_a_bounded_hit_asks_nobody(private: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither Redis nor the database; a strict one makes its round trip."""
    wait_for_bounded_hits()
    calls = calls_of_this_thread(monkeypatch)
    with recording() as reads:
        for _ in range(20):
            assert names() == ["old"]
    assert calls == []
    assert {(record.is_hit, record.tier) for record in reads} == {(True, "memory")}
    names("strict")
    assert calls == ["1"] or len(calls) == 1


def test_writes_of_others_are_seen_within_the_bound(private: Any, run_process: Any) -> None:
    """Also if nothing wakes this process but its heartbeat, and whatever kind of write it is."""
    for number in range(3):
        wait_for_bounded_hits()
        run_process(write_name, f"{number}")
        time.sleep(LAG_S)
        assert names() == [f"{number}"]


def test_own_writes_are_seen_at_once(private: Any) -> None:
    """By every thread of this process, from the return of the commit on."""
    wait_for_bounded_hits()
    for number in range(50):
        write_name(f"{number}")
        assert names() == [f"{number}"]
    invalidate(Author)
    with recording() as reads:
        names()
    assert not reads[0].is_hit


def test_transaction_with_writes_of_its_own_bypasses(private: Any) -> None:
    """As in strict mode."""
    wait_for_bounded_hits()
    with transaction.atomic():
        write_name("new")
        assert names() == ["new"]
        transaction.set_rollback(True)
    assert names() == ["old"]


def create_elsewhere(name: str) -> None:
    """Run in another process: write rows that the query of one author does not look at."""
    Author.objects.create(name=name)


def test_rows_that_do_not_matter_cost_no_round_trip(
    private: Any, run_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The copy has the records, so the entry is judged here."""
    pk = Author.objects.get().pk

    def read_one() -> list[str]:
        return [author.name for author in live(Author.objects.filter(pk=pk), mode="bounded")]

    wait_for_bounded_hits(read_one)
    calls = calls_of_this_thread(monkeypatch)
    run_process(create_elsewhere, "another")
    time.sleep(LAG_S)
    assert is_bounded_hit(read_one)
    assert calls == []


def test_key_that_others_invalidate(private: Any, run_process: Any) -> None:
    """A tick of other slots is not in the records: the ledger is asked, and knows."""

    def read_named() -> list[str]:
        return [author.name for author in live(Author.objects.order_by("name"), "front", mode="bounded")]

    wait_for_bounded_hits(read_named)
    run_process("import live_cache; live_cache.invalidate('front')")
    time.sleep(LAG_S)
    with recording() as reads:
        read_named()
    assert not reads[0].is_hit
    assert reads[0].reason == "key"
    wait_for_bounded_hits(read_named)


def test_silent_server_ends_it(private: Any) -> None:
    """The copy grows old, and the read asks the ledger, which does not answer: the database does."""
    wait_for_bounded_hits()
    private.freeze()
    began_s = time.monotonic()
    while is_bounded_hit():
        assert time.monotonic() - began_s < LAG_S + 0.1
    # Past the bound no read relies on the copy any more.
    with recording() as reads:
        assert names() == ["old"]
    assert not reads[0].is_hit
    private.thaw()
    wait_for_bounded_hits()


def test_stopped_follower_ends_it(private: Any, run_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a SIGSTOP of the process: the time that has passed counts, and nobody need tell."""
    wait_for_bounded_hits()
    gate = threading.Event()
    follower = follower_of(get_assembly().ledger)
    look = follower._look
    monkeypatch.setattr(follower, "_look", lambda clocks: gate.wait(30) and look(clocks))
    run_process(write_name, "new")
    time.sleep(LAG_S)
    assert not is_bounded_hit()
    assert names() == ["new"]
    gate.set()
    wait_for_bounded_hits()


def test_look_is_as_old_as_its_request(private: Any, run_process: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose answer is on its way for longer than the bound is of no use when it comes."""
    wait_for_bounded_hits()
    ledger = get_assembly().ledger
    read, this = ledger.read, threading.get_ident()
    arrived, gate = threading.Event(), threading.Event()

    def read_and_hold(dependencies: Any) -> Any:
        readings = read(dependencies)
        if threading.get_ident() != this:
            arrived.set()
            gate.wait(30)
        return readings

    monkeypatch.setattr(ledger, "read", read_and_hold)
    assert arrived.wait(10)
    run_process(write_name, "new")
    time.sleep(LAG_S)
    follower = follower_of(ledger)
    clock = next(iter(follower._listeners))
    before = follower.head(clock)
    gate.set()
    while follower.head(clock) is before:
        pass
    assert names() == ["new"]


def write_second(name: str) -> None:
    """Run in another process."""
    Author.objects.filter(name="second").update(name=name)


def test_what_the_copy_has_said_is_not_kept_as_new(
    private: Any, run_process: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read that does not find its entry fresh asks the ledger: what it keeps for others is as young as it says."""
    lag_s = 3.0
    settings.LIVE_CACHE_MAX_LAG_MS = lag_s * 1000
    Author.objects.create(name="second")
    pages = live(Author.objects.order_by("pk"), mode="bounded")

    def read(number: int) -> list[str]:
        return [author.name for author in pages.all()[number : number + 1]]

    for number in (0, 1):
        wait_for_bounded_hits(lambda number=number: read(number))  # type: ignore[misc]  # bound now
    Author.objects.filter(name="old").update(name="first")
    follower, gate = follower_of(get_assembly().ledger), threading.Event()
    (authors,) = [clock for clock in follower._listeners if clock.endswith("/testapp_author")]
    while (head := follower.head(authors)) is None or head.asked_at_s <= follower.ticked_at_s(authors):
        pass
    look = follower._look
    monkeypatch.setattr(follower, "_look", lambda clocks: gate.wait(30) and look(clocks))
    run_process(write_second, "new")
    committed_s = time.monotonic()
    time.sleep(1.0)
    assert read(0) == ["first"]
    time.sleep(committed_s + lag_s + 0.05 - time.monotonic())
    assert read(1) == ["new"]
    gate.set()


@pytest.mark.parametrize("loss", ["flushall", "restart"])
def test_lost_clocks_end_it(private: Any, run_process: Any, loss: str) -> None:
    """What is committed while there is no clock is told by nobody; the new epoch tells that."""
    wait_for_bounded_hits()
    if loss == "restart":
        private.restart()
    else:
        client: Any = get_assembly().ledger.connection.client  # type: ignore[attr-defined]  # of Redis
        client.flushall()
    run_process(write_name, "new")
    time.sleep(LAG_S)
    assert names() == ["new"]


def test_open_intents_are_not_served(private: Any) -> None:
    """A writer that is between COMMIT and tick, or died there, is in the copy as he is in the ledger."""
    wait_for_bounded_hits()
    ledger: Ledger = get_assembly().ledger
    clocks = list(follower_of(ledger)._listeners)
    (authors,) = [clock for clock in clocks if clock.endswith("/testapp_author")]
    intent_id = ledger.declare({authors: {TABLE_SLOT}}, fence="nobody:1")
    time.sleep(LAG_S)
    with recording() as reads:
        assert names() == ["old"]
    assert (reads[0].is_hit, reads[0].reason) == (False, "held")
    ledger.retract([authors], intent_id)
    wait_for_bounded_hits()


def test_child_of_fork_has_a_copy_of_its_own(private: Any) -> None:
    """The parent's grows old in it, and its own is renewed by a thread of its own."""
    wait_for_bounded_hits()
    connection.close()
    child = os.fork()
    if not child:
        code = 1
        try:
            time.sleep(LAG_S)
            stale = is_bounded_hit()
            wait_for_bounded_hits()
            thread = follower_of(get_assembly().ledger)._thread
            code = 0 if not stale and thread is not None and thread.is_alive() else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_bounded_hit()


def test_clocks_that_nobody_uses_are_forgotten(private: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread ends with the last of them, and comes back with the next read."""
    wait_for_bounded_hits()
    follower = follower_of(get_assembly().ledger)
    thread = follower._thread
    assert thread is not None
    monkeypatch.setattr(clock_copy, "UNUSED_S", 0.0)
    thread.join(10)
    assert not thread.is_alive()
    monkeypatch.undo()
    wait_for_bounded_hits()


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("cache_kind", ["process", "host", "memory+disk", "redis"], indirect=True)
def test_where_the_ledger_is_near_it_is_strict(cache_kind: str) -> None:
    """And where there is no nearer tier than Redis: nothing is saved, and nothing is older than it must be."""
    assert (copy_of(get_assembly().ledger) is None) is (cache_kind != "redis")
    Author.objects.create(name="old")
    wait_for_hits(names)
    write_name("new")
    assert names() == ["new"]
    assert bounded_hits() == 0


def test_now_counts_on() -> None:
    """The clock of the bound is the same for all threads and never goes back."""
    first = now_s()
    assert first <= now_s()
