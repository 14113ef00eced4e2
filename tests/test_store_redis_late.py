"""
Writes that Redis does not answer at once: nobody waits long, what is done late is kept, what is not is never older.

A server that is frozen for a moment stands for a busy machine.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import redis

from live_cache.exceptions import StoreUnavailableError
from live_cache.redis_connection import RedisConnection
from live_cache.redis_late import LateAnswerError
from live_cache.redis_sending import NoTurnError
from live_cache.stores.base import MISS
from live_cache.stores.redis import RedisStore
from live_cache.stores.redis_steps import RedisSteps
from tests.server_programs import Started, free_port, start_redis

BIG = b"x" * 300_000

CALLS: dict[str, Callable[[RedisStore], Any]] = {
    "get": lambda store: store.get("key"),
    "get_many": lambda store: store.get_many([f"key/{number}" for number in range(100)]),
    "put": lambda store: store.put("key", b"2"),
    "a large put": lambda store: store.put("key", BIG),
    "put_many": lambda store: store.put_many({f"key/{number}": b"2" for number in range(100)}),
    "delete": lambda store: store.delete("key"),
    "delete_many": lambda store: store.delete_many([f"key/{number}" for number in range(100)]),
    "exists": lambda store: store.exists("key"),
    "increment": lambda store: store.increment("key"),
    "compare_and_swap": lambda store: store.compare_and_swap("key", b"1", b"2"),
    "touch": lambda store: store.touch("key", 5),
    "touch with 0": lambda store: store.touch("key", 0),
    "invalidate_prefix": lambda store: store.invalidate_prefix("key"),
    "clear": lambda store: store.clear(),
}


class Twins:
    """A store whose methods are the async twins."""

    def __init__(self, store: RedisStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        twin: Callable[..., Awaitable[Any]] = getattr(self._store, "a" + name)
        return twin


@pytest.fixture
def connection(private_redis: Any) -> Iterator[RedisConnection]:
    """A connection with little patience, as much as a busy machine needs, and with much for late answers."""
    made = RedisConnection(private_redis.url, timeout_s=30.0, read_timeout_s=0.4, retry_pause_s=1000)
    yield made
    made.close()


@pytest.fixture
def store(connection: RedisConnection) -> RedisStore:
    made = RedisStore(connection)
    made.put_many({"key": b"1", "other": b"1"})
    return made


def until(is_so: Callable[[], bool]) -> None:
    """Wait until another thread has made it so."""
    end_s = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < end_s
        time.sleep(0.005)


def is_closed(connection: RedisConnection) -> Callable[[], bool]:
    return lambda: not connection.quick_breaker.is_open


def let_go(store: RedisStore) -> None:
    """Wait until the key is not on its way any more."""
    name = store.full_key("key")
    until(lambda: store._steps.claims.take([name]))
    store._steps.claims.give_back([name])


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("name", CALLS)
def test_whatever_comes_first_waits_briefly(
    private_redis: Any, connection: RedisConnection, store: RedisStore, name: str, is_async: bool
) -> None:
    """The first call gives up after READ_TIMEOUT_S, be it a write or a read, and the next hundred do not wait."""

    def failing() -> None:
        with pytest.raises(StoreUnavailableError):
            CALLS[name](store)

    async def afailing() -> None:
        twins: Any = Twins(store)
        await store.aget("key")
        private_redis.freeze()
        for _ in range(101):
            with pytest.raises(StoreUnavailableError):
                await CALLS[name](twins)

    started_s = time.monotonic()
    if is_async:
        asyncio.run(afailing())
    else:
        private_redis.freeze()
        for _ in range(101):
            failing()
    # 0.4 on an idle machine; a call with patience would take 30, and a hundred without a breaker 40.
    assert time.monotonic() - started_s < 10
    assert connection.quick_breaker.opened.value == 1
    assert store.metrics().errors == 101


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
def test_a_write_in_a_busy_moment_is_kept(
    private_redis: Any, connection: RedisConnection, store: RedisStore, is_async: bool
) -> None:
    """The caller is told that nothing was heard; the value is there when the server is, without a probe."""

    async def put() -> None:
        await store.aget("key")
        private_redis.freeze()
        with pytest.raises(StoreUnavailableError, match="may still be done"):
            await store.aput("key", b"2")
        assert connection.quick_breaker.is_open
        private_redis.thaw()
        while connection.quick_breaker.is_open:
            await asyncio.sleep(0.005)
        # The debt is settled just after the breaker is closed.
        while store._steps.debts.has_keys():
            await asyncio.sleep(0.005)
        assert await store.aget("key") == b"2"

    if is_async:
        asyncio.run(put())
    else:
        private_redis.freeze()
        with pytest.raises(StoreUnavailableError, match="may still be done"):
            store.put("key", b"2")
        assert connection.quick_breaker.is_open
        private_redis.thaw()
        until(lambda: not store._steps.debts.has_keys())
    assert store.get("key") == b"2"
    assert connection.quick_breaker.probed.value == 0


def test_a_delete_in_a_busy_moment_is_done(private_redis: Any, connection: RedisConnection, store: RedisStore) -> None:
    """So is one of a few keys."""
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError):
        store.delete_many(["key", "other"])
    private_redis.thaw()
    until(lambda: not store._steps.debts.has_keys())
    with redis.Redis.from_url(private_redis.url) as client:
        assert client.keys() == []


def test_a_later_write_that_was_refused_counts(
    private_redis: Any, connection: RedisConnection, store: RedisStore
) -> None:
    """What arrives late does not bring an older value back than the one that was to be stored last."""
    private_redis.freeze()
    for value in (b"2", b"3"):
        with pytest.raises(StoreUnavailableError):
            store.put("key", value)
    private_redis.thaw()
    until(is_closed(connection))
    let_go(store)
    assert store.get("key") is MISS
    assert store.get("other") == b"1"


def test_the_first_call_drops_everything_owed(
    private_redis: Any, connection: RedisConnection, store: RedisStore
) -> None:
    """What other processes would still read as the older value is gone once this one talks to the server again."""
    store.put_many({f"key/{number}": b"1" for number in range(40)})
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError):
        store.get("other")
    for number in range(40):
        with pytest.raises(StoreUnavailableError):
            store.put(f"key/{number}", b"2")
    private_redis.thaw()
    until(is_closed(connection))
    assert store.get("other") == b"1"
    with redis.Redis.from_url(private_redis.url) as client:
        assert sorted(client.keys()) == [b"live_cache:key", b"live_cache:other"]
    assert not store._steps.debts.has_keys()


def test_what_is_owed_is_refused_once_where_the_server_says_no(
    private_redis: Any, connection: RedisConnection, store: RedisStore
) -> None:
    """A server that is back and read-only does not cost every read a second question, nor the read its answer."""
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError):
        store.get("other")
    with pytest.raises(StoreUnavailableError):
        store.put("key", b"2")
    private_redis.thaw()
    until(is_closed(connection))
    with redis.Redis.from_url(private_redis.url) as client:
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        client.config_set("replica-serve-stale-data", "yes")
    errors = store.metrics().errors
    for _ in range(5):
        assert store.get("other") == b"1"
    assert store.metrics().errors == errors + 1


def test_a_server_that_dies_while_it_is_waited_for(
    private_redis: Any, connection: RedisConnection, store: RedisStore
) -> None:
    """The answer is given up with its connection, the breaker stays open, and the key stays owed."""
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError) as raised:
        store.put("key", b"2")
    late = raised.value.__cause__
    assert isinstance(late, LateAnswerError)
    private_redis.kill()
    assert isinstance(late.answers.exception(20), (redis.ConnectionError, OSError))
    assert connection.quick_breaker.is_open
    assert store._steps.debts.covers("live_cache:key")
    until(lambda: not [thread for thread in threading.enumerate() if thread.name == "live_cache-late-answers"])
    pool: Any = connection.quick_client.connection_pool
    assert len(pool._in_use_connections) == 0


def test_an_answer_that_never_comes_is_given_up(private_redis: Any) -> None:
    """After SOCKET_TIMEOUT_S; the key is dropped before it is read again."""
    connection = RedisConnection(private_redis.url, timeout_s=0.8, read_timeout_s=0.4, retry_pause_s=0)
    store = RedisStore(connection)
    store.put("key", b"1")
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError) as raised:
        store.put("key", b"2")
    late = raised.value.__cause__
    assert isinstance(late, LateAnswerError)
    assert isinstance(late.answers.exception(20), TimeoutError)
    let_go(store)
    private_redis.thaw()
    assert store.get("key") is MISS
    store.put("key", b"3")
    assert store.get("key") == b"3"
    connection.close()


def test_a_late_error_is_no_value(private_redis: Any, connection: RedisConnection, store: RedisStore) -> None:
    """The server is there, so the breaker closes; the key stays owed."""
    with redis.Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError) as raised:
        store.put("key", b"2")
    late = raised.value.__cause__
    assert isinstance(late, LateAnswerError)
    private_redis.thaw()
    assert isinstance(late.answers.exception(20), redis.ResponseError)
    until(is_closed(connection))
    assert store._steps.debts.covers("live_cache:key")
    let_go(store)
    assert store.get("key") is MISS


def failed(late: LateAnswerError) -> StoreUnavailableError:
    error = StoreUnavailableError("no answer")
    error.__cause__ = late
    return error


def test_a_key_on_its_way_is_left_alone() -> None:
    """Another connection could overtake what was sent: until that is over, the key is neither read nor written."""
    steps = RedisSteps("mine:", batch=10, shown="nowhere", give_up=lambda: None)
    write = steps.put_many([("mine:key", b"1")], None)
    assert next(write) == [("SET", "mine:key", b"1")]
    late = LateAnswerError(0.04)
    with pytest.raises(StoreUnavailableError):
        write.throw(failed(late))
    other = steps.put_many([("mine:key", b"2")], None)
    with pytest.raises(StoreUnavailableError, match="still being told"):
        next(other)
    for call in (steps.get("key"), steps.increment("key", 1, None), steps.swap("key", None, b"1", None)):
        with pytest.raises(StoreUnavailableError, match="still being told"):
            next(call)
    assert steps.counters.errors.value == 4
    late.answers.set_result([True])
    # The second write was not sent, so that the value of the first is not the one to be read.
    again = steps.get("key")
    assert next(again) == [("UNLINK", "mine:key")]
    assert again.send([1]) == [("GET", "mine:key")]


def test_what_is_owed_after_a_write_began_stays_owed() -> None:
    """A write settles what was owed before it, not what another thread failed to do meanwhile."""
    steps = RedisSteps("mine:", batch=10, shown="nowhere", give_up=lambda: None)
    steps.debts.add_keys(["mine:key"])
    read = steps.get("key")
    assert next(read) == [("UNLINK", "mine:key")]
    steps.debts.add_keys(["mine:key"])
    assert read.send([1]) == [("GET", "mine:key")]
    assert steps.debts.covers("mine:key")


def test_keys_that_were_not_tried_are_owed() -> None:
    """A caller of put_many() or delete_many() is not told which batch failed."""
    steps = RedisSteps("mine:", batch=2, shown="nowhere", give_up=lambda: None)
    names = [f"mine:{number}" for number in range(6)]
    write = steps.put_many([(name, b"1") for name in names], None)
    next(write)
    assert write.send([True, True]) == [("SET", "mine:2", b"1"), ("SET", "mine:3", b"1")]
    with pytest.raises(StoreUnavailableError):
        write.throw(StoreUnavailableError("no answer"))
    assert [name for name in names if steps.debts.covers(name)] == names[2:]
    drop = steps.delete(names)
    next(drop)
    with pytest.raises(StoreUnavailableError):
        drop.throw(StoreUnavailableError("no answer"))
    assert [name for name in names if steps.debts.covers(name)] == names


def test_a_process_that_may_start_no_thread(
    private_redis: Any, connection: RedisConnection, store: RedisStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As at its end: nothing is waited for, the connection is closed, and the key is owed."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError):
        store.put("key", b"2")
    let_go(store)
    assert store._steps.debts.covers("live_cache:key")
    pool: Any = connection.quick_client.connection_pool
    assert len(pool._in_use_connections) == 0


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_while_an_answer_is_waited_for(
    private_redis: Any, connection: RedisConnection, store: RedisStore
) -> None:
    """The child takes nothing of it: it may write the key, and the parent still gets its answer."""
    private_redis.freeze()
    with pytest.raises(StoreUnavailableError):
        store.put("key", b"2")
    child = os.fork()
    if child == 0:
        status = 1
        try:
            private_redis.thaw()
            connection.quick_breaker.revive()
            store.put("key", b"3")
            assert store.get("key") == b"3"
            # It has a thread of its own for what comes late.
            private_redis.freeze()
            with pytest.raises(StoreUnavailableError):
                store.put("key", b"3")
            private_redis.thaw()
            until(lambda: not store._steps.debts.has_keys())
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    until(lambda: not store._steps.debts.has_keys())
    assert store.get("key") == b"3"


def test_a_loop_that_is_closed_while_it_waits(connection: RedisConnection) -> None:
    """Without asyncio.run() its tasks never end: what they were asked for is given up."""
    open_loop, closed_loop = asyncio.new_event_loop(), asyncio.new_event_loop()
    lates = []
    for loop in (open_loop, closed_loop):
        task: asyncio.Task[Any] = loop.create_task(asyncio.sleep(1000))
        loop.run_until_complete(asyncio.sleep(0))
        late = LateAnswerError(0.04)
        lates.append(late)
        connection._late_tasks[task] = late.answers
    closed_loop.close()
    connection.forget_closed_loops()
    assert [late.answers.done() for late in lates] == [False, True]
    assert isinstance(lates[1].answers.exception(), TimeoutError)
    (task,) = connection._late_tasks
    task.cancel()
    open_loop.run_until_complete(asyncio.wait([task]))
    open_loop.close()


def test_a_key_that_will_never_arrive_is_given_back() -> None:
    """Whoever wants it next asks whether it is still on its way."""
    late = LateAnswerError(0.04)
    steps = RedisSteps(
        "mine:", batch=10, shown="nowhere", give_up=lambda: late.answers.set_exception(TimeoutError("closed"))
    )
    write = steps.put_many([("mine:key", b"1")], None)
    next(write)
    with pytest.raises(StoreUnavailableError):
        write.throw(failed(late))
    assert next(steps.get("key")) == [("UNLINK", "mine:key")]


@pytest.fixture
def cluster_of_one() -> Iterator[Started]:
    """A cluster of a single node, whose bus takes the port 10,000 above."""
    while (port := free_port()) >= 55_000:
        pass
    try:
        node = start_redis(port=port, arguments=("--cluster-enabled", "yes"))
    except RuntimeError as error:
        pytest.skip(f"REDIS IS MISSING: {error}")
    with redis.Redis(port=port, decode_responses=True) as client:
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
        until(lambda: client.cluster("INFO")["cluster_state"] == "ok")
    yield node
    node.stop(kill=True)


def test_a_frozen_cluster_is_left_alone_as_well(cluster_of_one: Started) -> None:
    """Its client goes from node to node, for seconds; the caller does not wait for it, and a late answer counts."""
    node = cluster_of_one
    url = f"redis+cluster://127.0.0.1:{node.port}"
    connection = RedisConnection(url, timeout_s=10, read_timeout_s=0.4, retry_pause_s=1000)
    store = RedisStore(connection)
    store.put("key", b"1")
    os.kill(node.process.pid, signal.SIGSTOP)
    started_s = time.monotonic()
    with pytest.raises(StoreUnavailableError, match="may still be done"):
        store.put("key", b"2")
    for _ in range(100):
        with pytest.raises(StoreUnavailableError):
            store.get("other")
    assert time.monotonic() - started_s < 8  # 0.4 on an idle machine; the client's own patience is ten seconds.
    os.kill(node.process.pid, signal.SIGCONT)
    until(lambda: not store._steps.debts.has_keys())
    assert store.get("key") == b"2"
    connection.close()


def test_a_cancelled_write_leaves_nothing_behind(
    private_redis: Any, connection: RedisConnection, store: RedisStore
) -> None:
    """A task that is cancelled while it waits gives its claims back, and is not counted as a failure of the server."""

    async def use() -> None:
        await store.aget("key")
        store._steps.debts.add_keys(["live_cache:key"])
        private_redis.freeze()
        task = asyncio.create_task(store.aput("key", b"2"))
        await asyncio.sleep(0.005)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        private_redis.thaw()
        assert not connection._late_tasks
        await store.aput("key", b"3")
        assert await store.aget("key") == b"3"

    asyncio.run(use())


def test_many_tasks_share_a_few_connections(private_redis: Any) -> None:
    """A crowd of tasks in a busy process is not taken for a server that is down, and does not connect each."""
    connection = RedisConnection(private_redis.url, connect_timeout_s=30, timeout_s=30)
    store = RedisStore(connection)
    is_over = threading.Event()

    def be_busy() -> None:
        while not is_over.is_set():
            sum(range(1000))

    async def use() -> int:
        await asyncio.gather(*(store.aincrement("sum", default=0) for _ in range(200)))
        with redis.Redis.from_url(private_redis.url) as client:
            connections = len(client.client_list())
        await store.aclose()
        return connections

    busy = threading.Thread(target=be_busy)
    busy.start()
    try:
        connections = asyncio.run(use())
    finally:
        is_over.set()
        busy.join()
    assert connections <= 1 + 8
    assert store.get("sum") == b"200"
    assert connection.quick_breaker.opened.value == 0
    connection.close()


def test_a_write_without_a_turn_is_owed_until_the_next_call(connection: RedisConnection, store: RedisStore) -> None:
    """What other tasks leave no time for is refused, not lost; and the server is not blamed for it."""

    async def use() -> None:
        await store.aget("key")
        turns = connection._loop_client().turns[True]
        while not turns.locked():
            await turns.acquire()
        with pytest.raises(StoreUnavailableError, match="was not asked: 8 tasks") as caught:
            await store.aput("key", b"2")
        assert isinstance(caught.value.__cause__, NoTurnError)
        assert not connection.quick_breaker.is_open
        for _ in range(8):
            turns.release()
        assert await store.aget("other") == b"1"

    asyncio.run(use())
    assert not store._steps.debts.has_keys()
    assert connection.client.get("live_cache:key") is None
