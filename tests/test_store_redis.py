"""The Redis store: what belongs to others, servers that are gone or full."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import redis

from live_cache import live
from live_cache.assembly import close_all, get_assembly
from live_cache.exceptions import (
    ConfigurationError,
    LedgerUnavailableError,
    QuotaExceededError,
    StoreUnavailableError,
    StoreUnsupportedError,
)
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.redis import RedisLedger
from live_cache.redis_connection import RedisConnection
from live_cache.stores.base import MISS
from live_cache.stores.redis import RedisStore
from tests.cache_kinds import caches_of, wait_for_hits
from tests.testapp.models import Author


def test_clear_leaves_what_belongs_to_others(redis_url: str) -> None:
    """Keys beside the prefix, near it, and matching it as a pattern survive clear() and invalidate_prefix()."""
    store = RedisStore(RedisConnection(redis_url), prefix="my[ab]*:", clear_batch=10)
    foreign = ["other", "my", "mya:1", "my[ab]*", "my[ab]x:1", "xmy[ab]*:1", "mya1:client"]
    with redis.Redis.from_url(redis_url) as client:
        for name in foreign:
            client.set(name, b"1")
        store.put_many({f"client/{number}": b"1" for number in range(100)})
        assert store.invalidate_prefix("client") == 100
        store.put_many({f"client/{number}": b"1" for number in range(100)})
        assert len(list(store.keys())) == 100
        store.clear()
        assert list(store.keys()) == []
        assert client.exists(*foreign) == len(foreign)
    store.close()


def test_two_prefixes_are_two_stores(redis_url: str) -> None:
    """Stores on one database do not see each other's entries."""
    connection = RedisConnection(redis_url)
    one, two = RedisStore(connection, prefix="one:"), RedisStore(connection, prefix="two:")
    one.put("key", b"1")
    two.put("key", b"2")
    one.clear()
    assert one.get("key") is MISS
    assert two.get("key") == b"2"
    two.close()


def test_an_empty_prefix_is_refused(redis_url: str) -> None:
    """It would make every key of the database the store's own."""
    with pytest.raises(ConfigurationError, match="prefix"):
        RedisStore(RedisConnection(redis_url), prefix="")


def test_the_ledger_can_read_an_entry_beside_its_clocks(redis_url: str) -> None:
    """connection and full_key() are enough for a pipeline of one's own."""
    store = RedisStore(RedisConnection(redis_url), prefix="mine:")
    store.put("key", b"1")
    with store.connection.client.pipeline(transaction=False) as pipeline:
        pipeline.get(store.full_key("key"))
        pipeline.hget("mine:clock", "seq")
        assert pipeline.execute() == [b"1", None]
    store.close()


def test_a_lookup_beside_the_clocks_is_counted(private_redis: Any) -> None:
    """What the ledger reads of this store adds up with what the store reads: a hit, a miss, or an error."""
    connection = RedisConnection(private_redis.url, retry_pause_s=0)
    store = RedisStore(connection, prefix="mine:")
    ledger = RedisLedger(connection, lease_s=10)
    dependencies = [Dependency("default/shop_product", (0, 5))]
    store.put("key", b"1")
    assert ledger.read_with_entry(dependencies, store, "key")[1] == b"1"
    assert ledger.read_with_entry(dependencies, store, "other")[1] is MISS
    assert ledger.read_with_entry(dependencies, store, "other")[1] is MISS
    assert store.get("key") == b"1"
    metrics = store.metrics()
    assert (metrics.lookups, metrics.hits, metrics.misses, metrics.errors) == (4, 2, 2, 0)
    private_redis.kill()
    with pytest.raises(LedgerUnavailableError):
        ledger.read_with_entry(dependencies, store, "key")
    metrics = store.metrics()
    assert (metrics.lookups, metrics.hits, metrics.misses, metrics.errors) == (4, 2, 2, 1)
    ledger.close()


def test_live_reads_are_counted_by_the_tiers(
    settings: Any, tmp_path: Path, redis_url: str, transactional_db: None
) -> None:
    """Each live read is one lookup of each tier that it came to, and all of them are hits or misses."""
    settings.CACHES = caches_of("memory+redis", tmp_path, redis_url)
    Author.objects.create(name="Ann")

    def read() -> list[Author]:
        return list(live(Author.objects.order_by("pk")))

    wait_for_hits(read)
    near, far = get_assembly("default").tiers
    before = near.metrics(), far.metrics()
    read()
    near.clear()
    read()
    after = near.metrics(), far.metrics()
    assert [now.hits - then.hits for now, then in zip(after, before, strict=True)] == [1, 1]
    assert [now.misses - then.misses for now, then in zip(after, before, strict=True)] == [1, 0]
    far.clear()
    near.clear()
    read()
    assert far.metrics().misses - after[1].misses == 1
    assert all(metrics.lookups == metrics.hits + metrics.misses for metrics in (near.metrics(), far.metrics()))
    close_all()


def test_a_foreign_key_under_the_prefix_is_no_key(redis_url: str) -> None:
    """Bytes that are not UTF-8 are not listed, and go with clear()."""
    store = RedisStore(RedisConnection(redis_url), prefix="mine:")
    with redis.Redis.from_url(redis_url) as client:
        client.set(b"mine:\xff", b"1")
        assert list(store.keys()) == []
        store.clear()
        assert client.exists(b"mine:\xff") == 0
    store.close()


def test_the_length_is_unsupported(redis_url: str) -> None:
    """Counting would scan the whole database."""
    store = RedisStore(RedisConnection(redis_url))
    with pytest.raises(StoreUnsupportedError):
        store.len()
    assert store.metrics().entries is None


def test_a_server_that_is_gone_is_unavailable(private_redis: Any) -> None:
    """Every method raises the one error, with the driver's as its cause, counted; and works when the server is back."""
    store = RedisStore(RedisConnection(private_redis.url, retry_pause_s=0))
    store.put("key", b"1")
    private_redis.kill()
    calls = [
        lambda: store.get("key"),
        lambda: store.get_with_expiry("key"),
        lambda: store.get_many(["key"]),
        lambda: store.put("key", b"1"),
        lambda: store.put("key", b"1", timeout_s=0),
        lambda: store.put_many({"key": b"1", "other": b"2"}),
        lambda: store.delete("key"),
        lambda: store.exists("key"),
        lambda: list(store.keys()),
        lambda: store.invalidate_prefix("key"),
        lambda: store.increment("key"),
        lambda: store.compare_and_swap("key", None, b"1"),
        lambda: store.touch("key", 1),
        lambda: store.touch("key", None),
        store.clear,
    ]
    for number, call in enumerate(calls, 1):
        with pytest.raises(StoreUnavailableError) as raised:
            call()
        assert isinstance(raised.value.__cause__, (redis.RedisError, OSError))
        assert store.metrics().errors == number
    metrics = store.metrics()
    assert (metrics.lookups, metrics.puts, metrics.deletes) == (0, 1, 0)
    private_redis.start()
    assert store.get("key") is MISS
    assert store.increment("key", default=0) == 1
    store.close()


def test_a_full_server_drops_the_old_value(private_redis: Any) -> None:
    """Where the server may not evict, a put that it refuses raises, and the older value is not served."""
    private_redis.restart("--maxmemory-policy", "noeviction")
    store = RedisStore(RedisConnection(private_redis.url, retry_pause_s=0))
    store.put("key", b"old")
    with redis.Redis.from_url(private_redis.url) as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(QuotaExceededError, match="full"):
            store.put("key", b"new")
        assert client.exists(store.full_key("key")) == 0
        with pytest.raises(QuotaExceededError, match="full"):
            store.put_many({"key": b"new", "other": b"1"})
        client.config_set("maxmemory", 0)
    assert store.metrics().rejected_puts == 3
    assert store.metrics().evictions == {"rejected": 1}
    store.put("key", b"new")
    assert store.get("key") == b"new"
    store.close()


def test_scripts_survive_a_flush_of_the_script_cache(redis_url: str) -> None:
    """A server that forgot the scripts is sent them again."""
    store = RedisStore(RedisConnection(redis_url))
    assert store.increment("key", default=0) == 1
    with redis.Redis.from_url(redis_url) as client:
        client.script_flush()
    assert store.increment("key") == 2
    assert store.compare_and_swap("key", b"2", b"3") is True
    store.close()
