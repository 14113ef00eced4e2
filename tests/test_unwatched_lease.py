"""LIVE_CACHE_UNWATCHED_LEASE_S: writers believe for a while that nobody has cached a table; readers wait for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from django.db import connections, transaction

from live_cache.assembly import get_assembly
from live_cache.events.ledger import LedgerSubscription
from live_cache.ledger.clocks import Reading
from live_cache.ledger.redis import RedisLedger
from live_cache.ledger.unwatched import UnwatchedClocks
from live_cache.names import clock_of, database_name
from tests.cache_kinds import wait_for_hits
from tests.forks import run_in_fork
from tests.test_own_transaction import WRITES, check_autocommit
from tests.test_transactions import live_names, names, rename
from tests.test_unannounced import Meeting, hits_of
from tests.testapp.models import Author

LEASE_S = 1.0

on_redis = pytest.mark.parametrize(
    ("alias", "cache_kind"),
    [("postgresql", "memory+redis"), ("mariadb", "memory+redis"), ("default", "redis")],
    indirect=True,
)


@pytest.fixture
def unwatched(alias: str, cache_kind: str, settings: Any) -> str:
    """Two authors of whom nothing is cached, and the database alias."""
    settings.LIVE_CACHE_UNWATCHED_LEASE_S = LEASE_S
    settings.LIVE_CACHE_LEASE_S = 0.05
    Author.objects.using(alias).bulk_create([Author(name="A0"), Author(name="A1")])
    return alias


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the ledger of this process asks of Redis."""
    found: list[Any] = []
    run = RedisLedger._run

    def noting(self: RedisLedger, commands: Any, **options: Any) -> Any:
        found.extend(commands)
        return run(self, commands, **options)

    monkeypatch.setattr(RedisLedger, "_run", noting)
    return found


def reads(alias: str, count: int) -> dict[str, Any]:
    """Read some times, and return which were hits, and what the last one showed."""
    return {"hits": [hit for _ in range(count) for hit in hits_of(alias)], "names": live_names(alias)}


def reads_until_hits(alias: str) -> list[str]:
    wait_for_hits(partial(live_names, alias))
    return live_names(alias)


@on_redis
@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_redis_is_asked_once_in_a_while(unwatched: str, write: Callable[[str], None], asked: list[Any]) -> None:
    """Of many writes in a row one asks; on PostgreSQL and SQLite the others go as Django sends them."""
    write(unwatched)
    write(unwatched)  # the first one learns that nothing is cached, and this one how long that is to be believed
    asked.clear()
    meeting = Meeting()
    with connections[unwatched].execute_wrapper(meeting):
        for _ in range(4):
            write(unwatched)
    assert asked == []
    assert meeting.in_blocks == [connections[unwatched].vendor == "mysql"] * 4
    check_autocommit(unwatched)
    with transaction.atomic(using=unwatched):
        rename(unwatched, "Block")
    assert asked == []
    time.sleep(LEASE_S / 2)
    write(unwatched)
    assert asked
    assert live_names(unwatched) == names(unwatched)
    asked.clear()
    rename(unwatched, "Told")
    assert len(asked) > 1
    assert live_names(unwatched) == ["Told"] * len(names(unwatched))


@on_redis
def test_another_process_caches_what_is_believed_to_be_unwatched(unwatched: str, run_process: Any) -> None:
    """It has no hit before the writer must have asked again, and then none that is older than his writes."""
    rename(unwatched, "One")
    rename(unwatched, "Two")
    found = run_process(reads, unwatched, 5).value
    rename(unwatched, "Three")
    assert not any(found["hits"])
    assert live_names(unwatched) == ["Three", "Three"]
    assert run_process(reads_until_hits, unwatched).value == ["Three", "Three"]


@on_redis
def test_without_waiting_it_would_be_stale(unwatched: str, run_process: Any, settings: Any, asked: list[Any]) -> None:
    """If readers did not wait, an entry from before a write that asked nothing would be served after it."""
    rename(unwatched, "One")
    rename(unwatched, "Two")
    settings.LIVE_CACHE_UNWATCHED_LEASE_S = 0.0
    assert run_process(reads_until_hits, unwatched).value == ["Two", "Two"]
    settings.LIVE_CACHE_UNWATCHED_LEASE_S = LEASE_S
    ledger: Any = get_assembly().ledger
    ledger._unwatched.ask([clock_of(database_name(connections[unwatched]), "testapp_author")], lambda clocks: ())
    asked.clear()
    rename(unwatched, "Three")
    assert asked == []
    settings.LIVE_CACHE_UNWATCHED_LEASE_S = 0.0
    assert run_process(reads, unwatched, 1).value["names"] == ["Two", "Two"]


@on_redis
def test_a_statement_that_takes_longer(unwatched: str, run_process: Any) -> None:
    """When it is over the time is looked at again, and a clock that was born meanwhile is ticked."""
    rename(unwatched, "One")
    rename(unwatched, "Two")

    def read_and_wait() -> None:
        run_process(reads, unwatched, 1)
        time.sleep(LEASE_S)

    with connections[unwatched].execute_wrapper(Meeting(read_and_wait)):
        rename(unwatched, "Three")
    assert run_process(reads_until_hits, unwatched).value == ["Three", "Three"]


@on_redis
def test_an_error_tells_what_may_have_happened(unwatched: str, asked: list[Any]) -> None:
    """A statement that fails leaves nothing behind, and what is believed stays."""
    rename(unwatched, "One")
    rename(unwatched, "Two")
    author = Author.objects.using(unwatched).first()
    assert author is not None
    with pytest.raises(Exception, match=r"UNIQUE|duplicate|Duplicate"):
        Author(pk=author.pk, name="Twice").save(using=unwatched, force_insert=True)
    check_autocommit(unwatched)
    assert live_names(unwatched) == ["Two", "Two"]


@on_redis
def test_followers_hear_of_it(unwatched: str, run_process: Any) -> None:
    """Who follows a table from its first moment on is told that it may have changed, if writers did not know of it."""
    rename(unwatched, "One")
    rename(unwatched, "Two")
    before = run_process(follow_while, unwatched, "Three").value
    assert before == ["Two", "changed", "Three"]


def follow_while(alias: str, name: str) -> list[str]:
    """Follow the table in a process of its own, while a child of it, who believes in no clock, writes."""
    ledger: Any = get_assembly().ledger
    clock = clock_of(database_name(connections[alias]), "testapp_author")
    told = [names(alias)[0]]
    connections.close_all()
    go, may_go = os.pipe()

    def write() -> None:
        child: Any = get_assembly().ledger
        assert not child._unwatched.ask([clock], child._look_for)
        os.write(may_go, b"x")
        time.sleep(0.2)
        rename(alias, name)

    child = os.fork()
    if not child:
        try:
            write()
        finally:
            os._exit(0)
    os.read(go, 1)
    with LedgerSubscription(ledger, {clock: "testapp_author"}, using=alias) as subscription:
        os.waitpid(child, 0)
        until_s = time.monotonic() + 10
        while time.monotonic() < until_s and len(told) == 1:
            if subscription.get(0.2) is not None:
                told.append("changed")
    return [*told, names(alias)[0]]


@on_redis
def test_a_child_believes_nothing(unwatched: str) -> None:
    """After a fork what is believed is asked for anew: the child may have stood still for long."""
    rename(unwatched, "One")
    rename(unwatched, "Two")
    ledger: Any = get_assembly().ledger
    clocks = [clock_of(database_name(connections[unwatched]), "testapp_author")]
    assert ledger._unwatched.are_all(clocks)

    def look() -> None:
        assert not ledger._unwatched.are_all(clocks)

    assert run_in_fork(look) == 0


def test_the_times() -> None:
    """Believed for half the lease, from before the question; waited for a whole one, from when a birth was seen."""
    now_s = 100.0
    clocks = UnwatchedClocks(2.0, lambda: now_s)

    def slowly(asked: Any) -> list[str]:
        nonlocal now_s
        now_s += 0.5
        return ["there"]

    assert not clocks.are_all(["a"])
    assert clocks.ask(["a", "b", "there"], slowly) == ["there"]
    assert clocks.are_all(["a", "b"])
    assert not clocks.are_all(["a", "there"])
    now_s = 100.99
    assert clocks.are_all(["a", "b"])
    clocks.see(Reading("b", b"", 1, ()))
    assert not clocks.are_all(["a", "b"])
    now_s = 101.0
    assert not clocks.are_all(["a"])
    born = Reading("a", b"1", 1, ())
    assert clocks.may_be_believed(born)
    now_s = 102.99
    assert clocks.may_be_believed(born)
    assert not UnwatchedClocks(0.0, lambda: now_s).may_be_believed(born)
    now_s = 103.0
    assert not clocks.may_be_believed(born)
    assert clocks.may_be_believed(Reading("a", b"2", 1, ()))


def test_without_the_setting_nothing_is_believed() -> None:
    clocks = UnwatchedClocks(0.0)
    assert clocks.ask(["a"], lambda clocks: ()) == ()
    assert not clocks.are_all(["a"])
    assert not clocks.is_on
