"""Single flight: of many readers that miss one entry one fetches, and nobody reads older rows for having waited."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.db import DatabaseError, OperationalError, ProgrammingError, connections, transaction
from django.db.backends.signals import connection_created

from live_cache import live, reader, recording
from live_cache.assembly import get_assembly
from live_cache.flights import Flights
from live_cache.metrics import Metrics
from live_cache.stores.base import MISS, lease_key
from live_cache.stores.memory import MemoryStore
from tests.cache_kinds import caches_of, wait_for_hits
from tests.gate import FileGate, Gate
from tests.redis_groups import start_cluster
from tests.testapp.models import Author, Book

pytestmark = pytest.mark.usefixtures("default_fill_lease")

SHARED_KINDS = ("disk", "memory+disk", "redis", "memory+redis")
Before = Callable[[], object]


def titles(alias: str) -> list[str]:
    return [book.title for book in live(Book.objects.using(alias).order_by("pk"))]


@contextmanager
def counted_selects(before: Before = lambda: None) -> Iterator[list[str]]:
    """Count the SELECTs of books of every connection that is opened inside, and call *before* ahead of each."""
    seen: list[str] = []

    def run(execute: Callable[..., Any], sql: Any, *arguments: Any) -> Any:
        if isinstance(sql, str) and sql.startswith("SELECT") and "testapp_book" in sql:
            seen.append(sql)
            before()
        return execute(sql, *arguments)

    def prepare(connection: Any, **kwargs: Any) -> None:
        connection.execute_wrappers.append(run)

    connection_created.connect(prepare)
    try:
        yield seen
    finally:
        connection_created.disconnect(prepare)


def read_at_once(alias: str, readers: int, before: Before = lambda: None) -> tuple[list[Any], int]:
    """Read in *readers* threads at the same time. Return what each got, titles or an error, and how many fetched."""
    opened = Gate()

    def read(number: int) -> Any:
        opened.arrive_and_wait()
        try:
            return titles(alias)
        except DatabaseError as error:
            return error
        finally:
            connections[alias].close()

    with counted_selects(before) as selects, ThreadPoolExecutor(readers) as pool:
        results = [pool.submit(read, number) for number in range(readers)]
        opened.open()
        return [result.result(30) for result in results], len(selects)


def read_in_process(alias: str, readers: int, gate_path: str, pause_s: float) -> dict[str, Any]:
    """Be one process of readers that all begin when the gate opens."""
    titles(alias)  # so that what is measured is neither imports nor the first compilation
    get_assembly().metrics._start_again()
    connections[alias].close()
    FileGate(gate_path, timeout_s=30).arrive_and_wait()
    results, fetches = read_at_once(alias, readers, lambda: time.sleep(pause_s))
    return {"results": results, "fetches": fetches, "counters": get_assembly().metrics.snapshot()}


def fetch_for_ever(alias: str, gate_path: str) -> None:
    """Be a filler that holds the lease and never comes back from its SELECT."""
    with counted_selects(FileGate(gate_path, timeout_s=60).arrive_and_wait):
        connections[alias].close()
        titles(alias)


@pytest.fixture
def book(alias: str) -> Book:
    """One book."""
    author = Author.objects.using(alias).create(name="Ann")
    return Book.objects.using(alias).create(title="old", author=author)


@pytest.fixture(params=SHARED_KINDS)
def shared_kind(request: pytest.FixtureRequest, settings: Any, tmp_path: Path) -> str:
    """Run the test on each kind of cache whose farthest tier other processes see."""
    kind: str = request.param
    redis_url = request.getfixturevalue("redis_url") if "redis" in kind else None
    settings.CACHES = caches_of(kind, tmp_path, redis_url)
    return kind


@pytest.fixture
def process_kind(settings: Any, tmp_path: Path, alias: str, request: pytest.FixtureRequest) -> str:
    """SQLite with a tier on disk, the servers with Redis: for tests that start processes."""
    kind = "memory+disk" if alias == "default" else "memory+redis"
    redis_url = request.getfixturevalue("redis_url") if "redis" in kind else None
    settings.CACHES = caches_of(kind, tmp_path, redis_url)
    return kind


# -- one process ------------------------------------------------------------------------------------------------------


def test_readers_at_once_make_one_query(alias: str, book: Book, cache_kind: str) -> None:
    """Thirty threads miss a stale entry: one fetches it, the others wait for it and are counted."""
    wait_for_hits(lambda: titles(alias))
    Book.objects.using(alias).update(title="new")
    before = get_assembly().metrics.snapshot()
    results, fetches = read_at_once(alias, 30, lambda: time.sleep(0.05))
    assert results == [["new"]] * 30
    assert fetches == 1
    after = get_assembly().metrics.snapshot()
    grown = {name: number - before.get(name, 0) for name, number in after.items() if number != before.get(name, 0)}
    assert (grown["lookups"], grown["misses"], grown["flights"]) == (30, 1, 1)
    assert grown["waits"] == grown["waits.served"] > 0


def test_cold_entry_is_fetched_once(alias: str, book: Book, cache_kind: str) -> None:
    """The same for an entry that is not there at all."""
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    assert read_at_once(alias, 20, lambda: time.sleep(0.05)) == ([["old"]] * 20, 1)


def test_without_a_lease_everybody_fetches(alias: str, book: Book, cache: str, settings: Any) -> None:
    """LIVE_CACHE_FILL_LEASE_S = 0: the control, without which the tests above would pass on a slow machine."""
    settings.LIVE_CACHE_FILL_LEASE_S = 0
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    assert read_at_once(alias, 10, lambda: time.sleep(0.3))[1] > 1


def test_error_reaches_those_who_waited_and_is_not_cached(alias: str, book: Book, cache_kind: str) -> None:
    """One query fails; each waiter gets an error of its class, an object of its own; the next read asks again."""
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    failed = OperationalError("the server is tired")

    def fail() -> None:
        time.sleep(0.2)
        raise failed

    results, fetches = read_at_once(alias, 8, fail)
    assert fetches == 1
    assert [type(result) for result in results] == [OperationalError] * 8
    assert len({id(result) for result in results}) == 8
    assert sum(result.__cause__ is failed for result in results) == 7
    assert titles(alias) == ["old"]


def test_error_that_is_no_database_error_is_the_fillers_own(alias: str, book: Book, cache: str) -> None:
    """A bug in the filler's thread does not reach the others: the next of them fetches."""
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    first = [True]

    def fail_once() -> None:
        time.sleep(0.1)
        if first:
            first.clear()
            raise OSError("not for you")

    opened = Gate()

    def read() -> Any:
        opened.arrive_and_wait()
        try:
            return titles(alias)
        except OSError as error:
            return str(error)
        finally:
            connections[alias].close()

    with counted_selects(fail_once) as selects, ThreadPoolExecutor(6) as pool:
        results = [pool.submit(read) for _ in range(6)]
        opened.open()
        found = [result.result(10) for result in results]
    assert sorted(map(str, found)) == ["['old']"] * 5 + ["not for you"]
    assert len(selects) == 2


@pytest.fixture
def hold_next_store(monkeypatch: pytest.MonkeyPatch) -> Callable[[], Gate]:
    """Let the next reader that fetches stop at a gate between its SELECT and its store."""

    def hold_next() -> Gate:
        gate = Gate()
        store = reader._store

        def hold(*args: Any) -> bool:
            if not gate.has_arrived:
                gate.arrive_and_wait()
            return store(*args)

        monkeypatch.setattr(reader, "_store", hold)
        return gate

    return hold_next


def wait_until(is_true: Callable[[], object]) -> None:
    end = time.monotonic() + 10
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.002)


def is_somebody_waiting() -> bool:
    """Return whether a thread of this process waits for a flight."""
    return any(flight._ended._cond._waiters for flight in get_assembly().flights._flights.values())  # type: ignore[attr-defined]  # threading.Event keeps who waits there


def test_waiter_does_not_take_rows_from_before_a_commit_that_it_must_see(
    alias: str,
    book: Book,
    cache_kind: str,
    second_connection: Callable[[str], Any],
    hold_next_store: Callable[[], Gate],
) -> None:
    """
    Rule 16. Filler: SELECT (old); writer: COMMIT; a reader begins, and waits; filler: store.

    The rows of the flight are older than the commit, so the reader must not get them, from whatever tier.
    """
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    held_store = hold_next_store()
    filler, waiter = second_connection(alias), second_connection(alias)
    filling = filler.start(titles, alias)
    held_store.wait_arrived()
    book.title = "new"
    book.save()
    waiting = waiter.start(titles, alias)
    wait_until(is_somebody_waiting)
    assert not waiting.done()
    held_store.open()
    assert filling.result(10) == ["old"]
    assert waiting.result(10) == ["new"]
    assert get_assembly().metrics.snapshot()["waits.in_vain"] == 1


def test_filler_that_is_too_slow_is_given_up(
    alias: str,
    book: Book,
    cache_kind: str,
    settings: Any,
    second_connection: Callable[[str], Any],
    hold_next_store: Callable[[], Gate],
) -> None:
    """A reader waits for one lease, then fetches; the late filler does no harm."""
    settings.LIVE_CACHE_FILL_LEASE_S = 0.3
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    held_store = hold_next_store()
    filler, waiter = second_connection(alias), second_connection(alias)
    filling = filler.start(titles, alias)
    held_store.wait_arrived()
    started = time.monotonic()
    assert waiter.run(titles, alias) == ["old"]
    assert 0.25 < time.monotonic() - started < 2.5
    held_store.open()
    assert filling.result(10) == ["old"]
    with recording() as reads:
        assert titles(alias) == ["old"]
    assert reads[0].is_hit
    assert get_assembly().flights._flights == {}


def test_reader_with_uncommitted_writes_waits_for_nobody(
    alias: str, book: Book, cache: str, second_connection: Callable[[str], Any], hold_next_store: Callable[[], Gate]
) -> None:
    """It may hold what others wait for. It reads at once, while the filler stands."""
    if alias == "default":
        pytest.skip("A SQLite transaction reads no cache.")
    wait_for_hits(lambda: titles(alias))
    get_assembly().store.clear()
    held_store = hold_next_store()
    filling = second_connection(alias).start(titles, alias)
    held_store.wait_arrived()
    with transaction.atomic(using=alias):
        Author.objects.using(alias).filter(name="nobody").update(name="somebody")
        Author.objects.using(alias).create(name="Bob")
        started = time.monotonic()
        assert titles(alias) == ["old"]
        assert time.monotonic() - started < 1
    held_store.open()
    assert filling.result(10) == ["old"]


def test_results_that_cannot_be_stored_are_waited_for_once_only(
    alias: str, book: Book, cache: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Readers of a result that no tier keeps do not queue: they did so once, and it is remembered."""
    wait_for_hits(lambda: titles(alias))
    memory = get_assembly().tiers[0]
    assert isinstance(memory, MemoryStore)
    get_assembly().store.clear()
    monkeypatch.setattr(memory, "max_bytes", 100)
    assert titles(alias) == ["old"]
    started = time.monotonic()
    results, fetches = read_at_once(alias, 6, lambda: time.sleep(0.2))
    assert (results, fetches) == ([["old"]] * 6, 6)
    assert time.monotonic() - started < 1.0


@pytest.mark.django_db(transaction=True)
def test_tasks_of_an_event_loop_share_a_flight_and_do_not_block_it(cache: str) -> None:
    """Fifty tasks of one loop: one query, and the loop goes on while it runs."""
    Book.objects.create(title="old", author=Author.objects.create(name="Ann"))
    wait_for_hits(lambda: titles("default"))
    get_assembly().store.clear()
    beats = [0]

    async def beat() -> None:
        while True:
            beats[0] += 1
            await asyncio.sleep(0.005)

    def wait_for_beats() -> None:
        """Let the query take until the loop has gone round 20 times, with everybody waiting."""
        time.sleep(0.3)
        enough = beats[0] + 20
        wait_until(lambda: beats[0] > enough)

    async def read() -> list[str]:
        async with ThreadSensitiveContext():  # as a server gives each request a thread of its own
            found = [book.title async for book in live(Book.objects.order_by("pk"))]
            await sync_to_async(lambda: connections["default"].close())()
            return found

    async def read_all() -> list[list[str]]:
        beating = asyncio.create_task(beat())
        results = await asyncio.gather(*[read() for _ in range(50)])
        beating.cancel()
        return results

    with counted_selects(wait_for_beats) as selects:
        assert asyncio.run(read_all()) == [["old"]] * 50
    assert len(selects) == 1


# -- several processes ------------------------------------------------------------------------------------------------


def test_processes_at_once_make_one_query(alias: str, book: Book, process_kind: str, run_process: Any) -> None:
    """Four processes with 50 readers each, one stale entry: one query in all, and everybody has the new rows."""
    wait_for_hits(lambda: titles(alias))
    found = _read_in_processes(alias, run_process, lambda: Book.objects.using(alias).update(title="new"))
    assert all(one["results"] == [["new"]] * 50 for one in found)
    assert sum(one["fetches"] for one in found) == 1
    assert sum(one["counters"]["flights"] for one in found if "flights" in one["counters"]) == 1


def test_killed_filler_costs_one_more_query(
    alias: str, book: Book, process_kind: str, run_process: Any, settings: Any, file_gate: FileGate
) -> None:
    """The filler is killed in its SELECT: the others wait for its lease, and one of them fetches."""
    settings.LIVE_CACHE_FILL_LEASE_S = 3.0
    file_gate.timeout_s = 30  # in which a process starts, beside four others
    wait_for_hits(lambda: titles(alias))

    def kill_a_filler() -> None:
        Book.objects.using(alias).update(title="new")
        filler = run_process.start(fetch_for_ever, alias, file_gate.path)
        file_gate.wait_arrived()
        filler.kill()

    started = time.monotonic()
    found = _read_in_processes(alias, run_process, kill_a_filler)
    assert time.monotonic() - started < 25
    assert all(one["results"] == [["new"]] * 50 for one in found)
    assert sum(one["fetches"] for one in found) == 1
    assert sum(one["counters"].get("waits.in_vain", 0) for one in found) == 1


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    """Start a cluster of six nodes, three of them replicas."""
    try:
        with start_cluster(n_replicas=1) as started:
            yield started.url
    except RuntimeError as error:
        if "no redis-server" not in str(error):
            raise
        pytest.skip(f"REDIS IS MISSING: {error}")


@pytest.fixture
def over_cluster(cluster_url: str, settings: Any, tmp_path: Path) -> str:
    """Memory in front of the cluster."""
    caches = caches_of("memory+redis", tmp_path, cluster_url)
    # The tests share the cluster, which hears of nothing that is written between them.
    caches["default"]["KEY_PREFIX"] = tmp_path.name
    settings.CACHES = caches
    return "memory+redis"


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_processes_at_once_over_a_cluster(alias: str, book: Book, over_cluster: str, run_process: Any) -> None:
    """The lease lies on the node of its entry."""
    test_processes_at_once_make_one_query(alias, book, over_cluster, run_process)


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_killed_filler_over_a_cluster(
    alias: str, book: Book, over_cluster: str, run_process: Any, settings: Any, file_gate: FileGate
) -> None:
    """It ends by the time of that node."""
    test_killed_filler_costs_one_more_query(alias, book, over_cluster, run_process, settings, file_gate)


def _read_in_processes(alias: str, run_process: Any, before: Callable[[], object]) -> list[dict[str, Any]]:
    """Start four processes of 50 readers; when all are ready call *before*, and let them go."""
    gates = [FileGate(f"{run_process._directory.name}/gate{number}", timeout_s=30) for number in range(4)]
    started = [run_process.start(read_in_process, alias, 50, gate.path, 0.05) for gate in gates]
    for gate in gates:
        gate.wait_arrived()
    before()
    for gate in gates:
        gate.open()
    return [process.wait(60).value for process in started]


def test_lease_is_given_back(alias: str, book: Book, shared_kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a fill, a failed fetch and a failed store nobody holds the lease, whoever comes next need not wait."""
    wait_for_hits(lambda: titles(alias))
    store, held = get_assembly().tiers[-1], []
    take = type(store).take_lease

    def note(self: Any, key: str, token: bytes, *, timeout_s: float) -> Any:
        held.append(key)
        return take(self, key, token, timeout_s=timeout_s)

    monkeypatch.setattr(type(store), "take_lease", note)
    Book.objects.using(alias).update(title="new")
    assert titles(alias) == ["new"]
    Book.objects.using(alias).update(title="newer")

    def fail(execute: Any, sql: str, *arguments: Any) -> Any:
        if "testapp_book" in sql:
            raise ProgrammingError("no")
        return execute(sql, *arguments)

    with connections[alias].execute_wrapper(fail), pytest.raises(ProgrammingError):
        titles(alias)
    assert len(held) == 2
    assert not store.is_leased(held[0])
    assert list(store.keys("lease")) == []


def test_hit_sends_nothing_about_leases(alias: str, book: Book, shared_kind: str, monkeypatch: Any) -> None:
    """Neither takes nor asks."""
    wait_for_hits(lambda: titles(alias))
    store = type(get_assembly().tiers[-1])
    for name in ("take_lease", "is_leased", "release_lease", "put_and_release"):
        monkeypatch.setattr(store, name, None)
    assert titles(alias) == ["old"]


def test_dead_redis_makes_nobody_wait(
    alias: str, book: Book, settings: Any, private_redis: Any, tmp_path: Path
) -> None:
    """With a ledger of the host and a dead far tier there is no lease, and no waiting for one."""
    settings.CACHES = caches_of("memory+redis", tmp_path, private_redis.url)
    wait_for_hits(lambda: titles(alias))
    private_redis.kill()
    started = time.monotonic()
    results, _ = read_at_once(alias, 5)
    assert results == [["old"]] * 5
    assert time.monotonic() - started < 3
    private_redis.start()


# -- the parts --------------------------------------------------------------------------------------------------------


def test_foreign_lease_is_waited_for_and_taken_when_it_ends() -> None:
    """Another process holds the lease: the turn waits, looks again, and takes it when it is given back."""
    store = MemoryStore()
    flights = Flights(Metrics(), lease_store=store)
    assert store.take_lease("key", b"other", timeout_s=60) == (True, MISS)
    filler = threading.Timer(0.1, lambda: store.put_and_release("key", b"rows", b"other"))
    with flights.turn("key") as turn:
        turn.look()
        filler.start()
        assert turn.is_mine(MISS) is False
        assert store.get("key") == b"rows"
        assert not store.is_leased("key")
        turn.look()
        assert turn.is_mine(b"rows") is True
        assert store.get(lease_key("key")) == turn.token
    assert not store.is_leased("key")


def test_entry_that_landed_between_look_and_lease_is_looked_at() -> None:
    """The tier holds something else than was seen when the lease is taken: look again, once."""
    store = MemoryStore()
    flights = Flights(Metrics(), lease_store=store)
    store.put("key", b"rows")
    with flights.turn("key") as turn:
        turn.look()
        assert turn.is_mine(MISS) is False
        turn.look()
        assert turn.is_mine(b"others") is True


def test_flight_that_landed_between_look_and_board_is_looked_at() -> None:
    """The same in one process, where no lease tells it."""
    flights = Flights(Metrics(), lease_store=None)
    with flights.turn("key") as turn:
        turn.look()
        with flights.turn("key") as faster:
            faster.look()
            assert faster.is_mine(MISS) is True
        assert turn.is_mine(MISS) is False
        turn.look()
        assert turn.is_mine(MISS) is True


def test_nobody_waits_for_more_than_two_fillers() -> None:
    """Whose third look fails fetches by himself, and nobody waits for him."""
    store = MemoryStore()
    flights = Flights(Metrics(), lease_store=store)
    assert store.take_lease("key", b"1", timeout_s=0.05)[0]
    with flights.turn("key") as turn:
        turn.look()
        assert turn.is_mine(MISS) is False
        assert store.take_lease("key", b"2", timeout_s=0.05)[0]
        turn.look()
        assert turn.is_mine(MISS) is False
        assert store.take_lease("key", b"3", timeout_s=60)[0]
        turn.look()
        assert turn.is_mine(MISS) is True
        assert turn.token is None


def test_lease_lasts_twice_the_usual_fetch_within_bounds(settings: Any) -> None:
    """Unknown: the longest. Quick: a second. Slow: twice, up to the longest."""
    settings.LIVE_CACHE_FILL_LEASE_S = 5.0
    flights = Flights(Metrics(), lease_store=None)
    assert flights.lease_s("key") == 5.0
    for took_s, lease_s in ((0.01, 1.0), (1.5, 3.0), (60.0, 5.0)):
        flights.note("key", took_s, is_stored=True)
        assert flights.lease_s("key") == lease_s
    settings.LIVE_CACHE_FILL_LEASE_S = 0.5
    assert flights.lease_s("other") == flights.lease_s("key") == 0.5


def test_who_fills_waits_for_nobody() -> None:
    """A read within a fetch could wait for that very fetch."""
    flights = Flights(Metrics(), lease_store=None)
    assert flights.is_worth_waiting("key")
    with flights.turn("key") as turn:
        turn.look()
        assert turn.is_mine(MISS)
        assert not flights.is_worth_waiting("key")
        assert not flights.is_worth_waiting("other")
    assert flights.is_worth_waiting("key")
