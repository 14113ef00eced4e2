"""Every store passes the suite that ships with the package."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from live_cache.redis_connection import RedisConnection
from live_cache.stores.base import MISS, Store, StoredValue
from live_cache.stores.disk import DiskStore
from live_cache.stores.memory import MemoryStore
from live_cache.stores.null import NullStore
from live_cache.stores.redis import RedisStore
from live_cache.stores.tiered import TieredStore
from live_cache.testing import StoreSuite
from live_cache.testing.capabilities import MEASURED


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


class _ClockSuite(StoreSuite):
    """A suite whose stores take their time from self.clock."""

    def setup_method(self) -> None:
        self.clock = Clock()

    def advance(self, seconds: float) -> None:
        self.clock.now_s += seconds

    def test_capabilities(self, store: Store, tmp_path: Path) -> None:
        """The row of the store in docs/reference/stores.md is what was found out."""
        super().test_capabilities(store, tmp_path)
        if self.label:
            page = (Path(__file__).parent.parent / "docs/reference/stores.md").read_text()
            assert f"| {' | '.join(MEASURED[self.label])} |" in page.splitlines()


def peek_disk(store: DiskStore, key: str) -> bytes | None:
    """Read a row as any SQLite client would."""
    connection = sqlite3.connect(store.directory / "cache.db")
    try:
        rows = connection.execute("SELECT value FROM Cache WHERE key = ? AND raw = 1", (key,)).fetchall()
    finally:
        connection.close()
    return rows[0][0] if rows else None


def poke_disk(store: DiskStore, key: str, value: Any, *, mode: int = 1, filename: str | None = None) -> None:
    """Write a row as any SQLite client could."""
    store.exists("anything")  # Makes the file.
    connection = sqlite3.connect(store.directory / "cache.db")
    try:
        with connection:
            connection.execute(
                "INSERT OR REPLACE INTO Cache (key, raw, store_time, access_time, mode, filename, value)"
                " VALUES (?, 1, 0, 0, ?, ?, ?)",
                (key, mode, filename, value),
            )
    finally:
        connection.close()


class _Redis:
    """A client of the test's own, beside the store's."""

    def __init__(self, url: str, tmp_path: Path) -> None:
        self.url = url
        self.prefix = hashlib.sha1(str(tmp_path).encode()).hexdigest()[:8] + ":"
        self.client = redis.Redis.from_url(url)

    def make_store(self) -> RedisStore:
        # What a store keeps is tested here, on a machine that may be busy; how long it waits has tests of its own.
        connection = RedisConnection(self.url, connect_timeout_s=10, timeout_s=10)
        return RedisStore(connection, prefix=self.prefix, clear_batch=500)

    def peek(self, key: str) -> bytes | None:
        value = self.client.get(self.prefix + key)
        assert value is None or isinstance(value, bytes)
        return value

    def poke(self, key: str, value: bytes) -> None:
        self.client.set(self.prefix + key, value)

    def advance(self, seconds: float) -> None:
        """Shorten every time to live of the store by as much."""
        for name in self.client.scan_iter(match=self.prefix + "*", count=1000):
            remaining_ms = self.client.pttl(name)
            assert isinstance(remaining_ms, int)
            if remaining_ms >= 0:
                self.client.pexpire(name, max(0, remaining_ms - int(seconds * 1000)))


class _RedisSuite(_ClockSuite):
    """A suite whose stores end in Redis."""

    @pytest.fixture(autouse=True)
    def _redis(self, redis_url: str, tmp_path: Path) -> Iterator[None]:
        self.redis = _Redis(redis_url, tmp_path)
        yield
        self.redis.client.close()

    def peek(self, store: Store, key: str) -> bytes | None:
        return self.redis.peek(key)

    def poke(self, store: Store, key: str, value: bytes) -> None:
        self.redis.poke(key, value)

    def advance(self, seconds: float) -> None:
        super().advance(seconds)
        self.redis.advance(seconds)


class TestMemoryStore(_ClockSuite):
    """Memory over cachebox."""

    label = "memory"
    oversized_bytes = 2_000_000
    use_cachebox = True

    def make_store(self, tmp_path: Path) -> MemoryStore:
        return MemoryStore(clock=self.clock, max_bytes=2_000_000, use_cachebox=self.use_cachebox)

    def peek(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, MemoryStore)
        entry = store._entries.peek(key)
        return None if entry is None else entry[0]

    def poke(self, store: Store, key: str, value: bytes) -> None:
        assert isinstance(store, MemoryStore)
        store._entries.insert(key, (value, None, len(value)))


class TestMemoryStoreWithoutCachebox(TestMemoryStore):
    """Memory over the plain map."""

    label = "memory without cachebox"
    use_cachebox = False


class TestDiskStore(_ClockSuite):
    """Disk."""

    label = "disk"
    oversized_bytes = 2_000_000

    def make_store(self, tmp_path: Path) -> DiskStore:
        return DiskStore(tmp_path / "disk", max_bytes=2_000_000, clock=self.clock)

    def peek(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, DiskStore)
        return peek_disk(store, key)

    def poke(self, store: Store, key: str, value: bytes) -> None:
        assert isinstance(store, DiskStore)
        poke_disk(store, key, value)


class TestRedisStore(_RedisSuite):
    """Redis."""

    label = "redis"

    def make_store(self, tmp_path: Path) -> RedisStore:
        return self.redis.make_store()


class TestMemoryOverDisk(_ClockSuite):
    """Memory before disk."""

    label = "memory, disk"
    oversized_bytes = 2_000_000

    def make_store(self, tmp_path: Path) -> TieredStore:
        disk = DiskStore(tmp_path / "disk", max_bytes=2_000_000, clock=self.clock)
        return TieredStore([MemoryStore(clock=self.clock, max_bytes=1_000_000), disk])

    def peek(self, store: Store, key: str) -> bytes | None:
        assert isinstance(store, TieredStore)
        assert isinstance(store.stores[-1], DiskStore)
        return peek_disk(store.stores[-1], key)

    def poke(self, store: Store, key: str, value: bytes) -> None:
        assert isinstance(store, TieredStore)
        assert isinstance(store.stores[-1], DiskStore)
        poke_disk(store.stores[-1], key, value)


class TestMemoryOverRedis(_RedisSuite):
    """Memory before Redis."""

    label = "memory, redis"

    def make_store(self, tmp_path: Path) -> TieredStore:
        return TieredStore([MemoryStore(clock=self.clock, max_entries=50), self.redis.make_store()])


class TestMemoryOverDiskOverRedis(_RedisSuite):
    """Three tiers."""

    label = "memory, disk, redis"

    def make_store(self, tmp_path: Path) -> TieredStore:
        disk = DiskStore(tmp_path / "disk", clock=self.clock)
        return TieredStore([MemoryStore(clock=self.clock, max_entries=50), disk, self.redis.make_store()])


class TestNullStore:
    """Nowhere."""

    def test_it_keeps_nothing(self) -> None:
        """Every put is accepted and every read is a miss."""
        store = NullStore()
        store.put("key", b"1")
        store.put_many({"key": b"1"})
        assert store.get("key") is MISS
        assert store.get_with_expiry("key") is MISS
        assert store.get_many(["key", "key", "other"]) == {}
        assert store.exists("key") is False
        assert store.delete("key") is False
        assert store.touch("key", None) is False
        assert list(store.keys()) == []
        assert store.invalidate_prefix("key") == 0
        assert store.len() == 0
        metrics = store.metrics()
        assert (metrics.lookups, metrics.hits, metrics.misses, metrics.puts) == (4, 0, 4, 2)

    def test_it_goes_on_where_nothing_is_expected(self) -> None:
        """A swap from nothing succeeds each time, and a count starts from its default each time."""
        store = NullStore()
        assert store.compare_and_swap("key", None, b"1") is True
        assert store.compare_and_swap("key", None, b"1") is True
        assert store.compare_and_swap("key", b"1", b"2") is False
        assert store.increment("key") is MISS
        assert store.increment("key", 2, default=1) == 3
        assert store.increment("key", 2, default=1) == 3

    def test_it_checks_keys(self) -> None:
        """What no store holds, this one refuses too."""
        with pytest.raises(ValueError, match="must not be empty"):
            NullStore().get("")


def test_a_suite_without_its_hooks_is_a_type_error() -> None:
    """Forgetting a hook must not pass as a test without assertions."""

    class Forgetful(StoreSuite):
        def make_store(self, tmp_path: Path) -> Store:
            return NullStore()

    with pytest.raises(TypeError, match="peek"):
        Forgetful()  # type: ignore[abstract]  # That is the point.


def test_the_suite_fails_a_store_that_forgets(tmp_path: Path) -> None:
    """A store that keeps nothing does not pass."""

    class Broken(TestMemoryStore):
        def make_store(self, tmp_path: Path) -> Any:
            return NullStore()

        def peek(self, store: Store, key: str) -> bytes | None:
            return None

    suite = Broken()
    suite.setup_method()
    with pytest.raises(AssertionError):
        suite.test_a_put_replaces(NullStore())
    assert isinstance(StoredValue(b"", None), StoredValue)
