"""The plain cache API: Django's semantics over every tier, and what a broken store or value does to it."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.core.cache.backends.base import CacheKeyWarning
from django.test import override_settings

from live_cache.assembly import close_all
from live_cache.backend import LiveCache
from live_cache.backend_async import AsyncTwins
from live_cache.exceptions import (
    LedgerUnavailableError,
    StoreUnavailableError,
    StoreUnsupportedError,
    UncachableValueError,
)
from live_cache.frame import KIND_PICKLE, KIND_ROWS, seal
from live_cache.ledger.clocks import Dependency
from live_cache.rows import encode_value

BACKEND = "live_cache.backend.LiveCache"
NOWHERE = "redis://127.0.0.1:1/0"


class Point:
    """A class that only a pickle stores."""

    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and self.x == other.x

    __hash__ = None  # type: ignore[assignment]  # a mutable value, as cached ones often are


def reversed_key(key: str, key_prefix: str, version: int) -> str:
    """Hide the caller's key from whoever looks for a prefix."""
    return f"{key}:{version}:{key_prefix}"


@pytest.fixture
def make_cache(tmp_path: Path) -> Iterator[Callable[..., LiveCache]]:
    """Return a function that puts a configuration into CACHES and returns its backend."""
    overrides = []

    def make(location: Any = "memory://?ledger=process", **others: Any) -> LiveCache:
        override = override_settings(CACHES={"default": {"BACKEND": BACKEND, "LOCATION": location, **others}})
        override.enable()
        overrides.append(override)
        backend = caches["default"]
        assert isinstance(backend, LiveCache)
        return backend

    yield make
    for override in reversed(overrides):
        override.disable()
    close_all()


@pytest.fixture(params=["memory", "disk", "memory+disk", "memory+redis"])
def cache(request: Any, tmp_path: Path, make_cache: Callable[..., LiveCache]) -> LiveCache:
    """Run the test over each kind of LOCATION."""
    disk = f"disk://{tmp_path}/cache"
    if request.param == "memory+redis":
        # Patience: on a busy machine the defaults lose a value now and then.
        options = {"READ_TIMEOUT_S": 10, "SOCKET_TIMEOUT_S": 10}
        return make_cache(["memory://", {"URL": request.getfixturevalue("redis_url"), "OPTIONS": options}])
    if request.param == "memory":
        return make_cache()
    return make_cache(disk if request.param == "disk" else ["memory://", disk])


@pytest.mark.parametrize(
    "value",
    [
        None,
        0,
        -1,
        2**63 - 1,
        -(2**63),
        2**63,
        -(2**70),
        True,
        False,
        1.5,
        "",
        "1",
        "café \ud7ff",
        b"",
        b"12",
        [1, ["a", None]],
        (1, 2),
        {"a": 1},
        {1: "int key"},
        {1, 2},
        Decimal("1.00"),
        OrderedDict(b=1, a=2),
        Point(3),
        [Point(1), {"deep": Point(2)}],
    ],
    ids=repr,
)
def test_every_value_comes_back_as_it_went_in(cache: LiveCache, value: Any) -> None:
    """The same value, of the same type."""
    cache.set("key", value)
    found = cache.get("key", "absent")
    assert value == found
    assert type(value) is type(found)


def test_a_value_is_a_copy(cache: LiveCache) -> None:
    """Nothing mutable is shared between two reads, nor with the writer."""
    value = {"list": [1]}
    cache.set("key", value)
    value["list"].append(2)
    cache.get("key")["list"].append(3)
    assert cache.get("key") == {"list": [1]}


def test_none_is_a_value(cache: LiveCache) -> None:
    """A cached None is not a miss."""
    cache.set("key", None)
    assert cache.get("key", "default") is None
    assert cache.get("other", "default") == "default"
    assert cache.get_many(["key", "other"]) == {"key": None}
    assert cache.get_or_set("key", "default") is None


def test_timeouts(cache: LiveCache) -> None:
    """Zero and less store nothing and drop what was there; None stays."""
    cache.set("none", 1, None)
    for timeout in (0, -1):
        cache.set("key", 1)
        cache.set("key", 2, timeout)
        assert cache.get("key") is None
    cache.set_many({"a": 1}, 0)
    assert cache.get("a") is None
    assert cache.get("none") == 1
    assert cache.touch("none", 0) is True
    assert cache.get("none") is None
    assert cache.touch("none", 5) is False


def test_the_default_timeout_is_the_one_of_the_alias(make_cache: Callable[..., LiveCache]) -> None:
    """TIMEOUT 0 caches nothing by default, as Django documents it."""
    cache = make_cache(TIMEOUT=0)
    cache.set("key", 1)
    assert cache.get("key") is None
    cache.set("key", 1, 10)
    assert cache.get("key") == 1
    stored = cache.assembly.plain_store.get_with_expiry("plain/:1:key")
    assert stored
    assert stored.expires_in_s is not None
    assert 5 < stored.expires_in_s <= 10


def test_add_stores_only_what_is_not_there(cache: LiveCache) -> None:
    """And says so."""
    assert cache.add("key", 1) is True
    assert cache.add("key", 2) is False
    assert cache.get("key") == 1


def test_increments_are_atomic(cache: LiveCache) -> None:
    """No increment of another thread is lost, and the time to live stays."""
    cache.set("n", 0, None)

    def increment() -> None:
        for _ in range(25):
            cache.incr("n")

    threads = [threading.Thread(target=increment) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert cache.get("n") == 100
    assert cache.decr("n", 30) == 70
    stored = cache.assembly.plain_store.get_with_expiry("plain/:1:n")
    assert stored
    assert stored.expires_in_s is None


@pytest.mark.parametrize(
    ("start", "delta", "total"),
    [
        (2**63 - 1, 1, 2**63),
        (2**63, -1, 2**63 - 1),
        (1.5, 1, 2.5),
        (1, 0.5, 1.5),
        (True, 1, 2),
        (Decimal("0.5"), 1, 1.5),
    ],
)
def test_increments_go_beyond_what_a_store_counts(cache: LiveCache, start: Any, delta: Any, total: Any) -> None:
    """Numbers of more than 64 bits, floats and whatever adds. The time to live stays."""
    cache.set("n", start, 1000)
    assert cache.incr("n", delta) == total
    assert cache.get("n") == total
    stored = cache.assembly.plain_store.get_with_expiry("plain/:1:n")
    assert stored
    assert stored.expires_in_s is not None
    assert 900 < stored.expires_in_s <= 1000


def test_increments_of_what_cannot_be_incremented(cache: LiveCache) -> None:
    """A missing key is a ValueError, as in every Django backend; None takes no addition."""
    for delta in (1, -1, 0.5):
        with pytest.raises(ValueError, match="not found"):
            cache.incr("missing", delta)
    cache.set("none", None)
    with pytest.raises(TypeError):
        cache.incr("none")
    with pytest.raises(ValueError, match="not found"):
        cache.incr_version("missing")


def test_versions_are_apart(cache: LiveCache) -> None:
    """incr_version() moves a value, whose frame is bound to its key, to the next one."""
    cache.set("key", "one")
    assert cache.get("key", version=2) is None
    assert cache.incr_version("key") == 2
    assert cache.get("key") is None
    assert cache.get("key", version=2) == "one"
    assert cache.decr_version("key", version=2) == 1
    assert cache.get("key") == "one"


def test_many_keys_at_once(cache: LiveCache) -> None:
    """Keys come back as they were given; iterators do."""
    assert cache.set_many({"a": 1, "b": "two", 3: None}) == []
    assert cache.get_many(iter(["a", "b", 3, "missing"])) == {"a": 1, "b": "two", 3: None}
    cache.delete_many(iter(["a", 3]))
    assert cache.get_many(["a", "b", 3]) == {"b": "two"}


def test_membership(cache: LiveCache) -> None:
    """has_key() and ``in`` read no value."""
    cache.set("key", None)
    assert cache.has_key("key") is True
    assert "key" in cache
    assert "other" not in cache
    assert cache.delete("key") is True
    assert cache.delete("key") is False


def test_long_keys_and_warnings(cache: LiveCache) -> None:
    """A key that memcached refuses is warned of; two long keys that differ at their end are two."""
    with pytest.warns(CacheKeyWarning, match="longer than 250"):
        cache.set("k" * 3000 + "a", 1)
    with pytest.warns(CacheKeyWarning):
        cache.set("k" * 3000 + "b", 2)
    with pytest.warns(CacheKeyWarning):
        assert cache.get_many(["k" * 3000 + "a", "k" * 3000 + "b"]) == {"k" * 3000 + "a": 1, "k" * 3000 + "b": 2}
    with pytest.warns(CacheKeyWarning, match="contains characters"):
        cache.set("with space", 1)
    text = "é" * 200
    cache.set(text, 1)
    assert cache.get(text) == 1


def test_prefixes(cache: LiveCache) -> None:
    """keys() and delete_prefix() take the text that keys start with, of one version."""
    cache.set_many({"user/1": 1, "user/2": 2, "users": 3})
    cache.set("user/1", 1, version=2)
    cache.assembly.store.put("live/user/3", b"x")
    assert sorted(cache.keys()) == ["user/1", "user/2", "users"]
    assert sorted(cache.keys("user/")) == ["user/1", "user/2"]
    assert cache.delete_prefix("user/") == 2
    assert list(cache.keys()) == ["users"]
    assert cache.get("user/1", version=2) == 1
    assert cache.assembly.store.exists("live/user/3")


def test_prefixes_need_a_key_function_that_keeps_the_key(make_cache: Callable[..., LiveCache]) -> None:
    """Otherwise the error says which KEY_FUNCTION would do."""
    cache = make_cache(KEY_FUNCTION=reversed_key)
    cache.set("key", 1)
    assert cache.get("key") == 1
    with pytest.raises(StoreUnsupportedError, match="KEY_FUNCTION"):
        cache.delete_prefix("k")


def test_clear_drops_everything_of_ours(cache: LiveCache) -> None:
    """Plain values and live entries of all tiers; a reading taken before is stale in every process."""
    ledger = cache.assembly.ledger
    (before,) = ledger.read([Dependency("default@x/t")])
    cache.set("key", 1)
    cache.assembly.store.put("live/x", b"1")
    cache.clear()
    assert cache.get("key") is None
    assert list(cache.assembly.store.keys()) == []
    (after,) = ledger.read([Dependency("default@x/t")])
    assert after.slots[0] > before.seq


def test_clear_says_that_the_ledger_did_not_answer(cache: LiveCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """What this process reaches is dropped; the tick for the memory of others is kept until the ledger is back."""
    ledger = cache.assembly.ledger
    (before,) = ledger.read([Dependency("default@x/t")])
    cache.set("key", 1)

    def refuse(*args: object) -> None:
        raise LedgerUnavailableError("away")

    with monkeypatch.context() as patch:
        patch.setattr(ledger, "_tick", refuse)
        with pytest.raises(LedgerUnavailableError, match="did not answer"):
            cache.clear()
    assert cache.get("key") is None
    (after,) = ledger.read([Dependency("default@x/t")])
    assert after.slots[0] > before.seq


def test_clear_leaves_what_is_not_ours(make_cache: Callable[..., LiveCache], redis_url: str) -> None:
    """A Redis database is often shared."""
    import redis

    with redis.Redis.from_url(redis_url) as client:
        client.set("foreign", b"1")
        other = make_cache(redis_url, KEY_PREFIX="shopping")
        other.set("key", "other")
        cache = make_cache(redis_url, KEY_PREFIX="shop")
        cache.set("key", "ours")
        cache.clear()
        assert cache.get("key") is None
        assert client.get("foreign") == b"1"
        assert make_cache(redis_url, KEY_PREFIX="shopping").get("key") == "other"


def test_two_processes_see_the_same_plain_values(make_cache: Callable[..., LiveCache], redis_url: str) -> None:
    """No memory of one process stands before what another one has set; sessions rely on it."""
    cache = make_cache(["memory://", redis_url])
    cache.set("key", "old")
    assert cache.get("key") == "old"
    far = cache.assembly.tiers[1]
    far.put("plain/:1:key", encode_value("new", key="plain/:1:key"))
    assert cache.get("key") == "new"
    far.delete("plain/:1:key")
    assert cache.get("key") is None


class Bomb:
    """Notes that it was unpickled."""

    exploded: list[int] = []  # noqa: RUF012 - shared on purpose: unpickling happens without an instance

    def __reduce__(self) -> Any:
        return Bomb.exploded.append, (1,)


def test_a_damaged_value_is_a_miss_and_is_never_unpickled(cache: LiveCache) -> None:
    """It is counted and deleted; so is a frame that was made for another key, or for rows."""
    Bomb.exploded.clear()
    store = cache.assembly.plain_store
    good = seal(pickle.dumps(Bomb()), kind=KIND_PICKLE, key="plain/:1:key")
    damaged = [
        good[:-1] + bytes([good[-1] ^ 1]),
        good[:-1],
        b"",
        b"12x",
        pickle.dumps(Bomb()),
        seal(pickle.dumps(Bomb()), kind=KIND_PICKLE, key="plain/:1:other"),
        seal(pickle.dumps(Bomb()), kind=KIND_ROWS, key="plain/:1:key"),
    ]
    for data in damaged:
        store.put("plain/:1:key", data)
        assert cache.get("key", "miss") == "miss"
        assert not store.exists("plain/:1:key")
    assert Bomb.exploded == []
    assert len(damaged) == cache.assembly.metrics.snapshot()["corrupt"]


def test_a_pickle_that_does_not_load_is_a_miss(make_cache: Callable[..., LiveCache]) -> None:
    """A deploy may have moved its class."""
    cache = make_cache()
    payload = pickle.dumps(Point(1)).replace(b"Point", b"Paint")
    cache.assembly.plain_store.put("plain/:1:key", seal(payload, kind=KIND_PICKLE, key="plain/:1:key"))
    assert cache.get("key", "miss") == "miss"
    assert cache.get_many(["key"]) == {}


def test_without_pickle_only_plain_values_are_stored(make_cache: Callable[..., LiveCache]) -> None:
    """The error names the type; a pickle that is there already is not read."""
    cache = make_cache(OPTIONS={"PICKLE": False})
    cache.set("key", {"plain": [1, None]})
    with pytest.raises(UncachableValueError, match=r"Point.*PICKLE"):
        cache.set("key", Point(1))
    assert cache.get("key") == {"plain": [1, None]}
    Bomb.exploded.clear()
    cache.assembly.plain_store.put("plain/:1:key", seal(pickle.dumps(Bomb()), kind=KIND_PICKLE, key="plain/:1:key"))
    assert cache.get("key", "miss") == "miss"
    assert Bomb.exploded == []


def test_with_mac_keys_a_forged_frame_is_a_miss(make_cache: Callable[..., LiveCache], tmp_path: Path) -> None:
    """Also one without a MAC; a value of the key before the last rotation is read."""
    location = f"disk://{tmp_path}/cache"
    cache = make_cache(location, OPTIONS={"MAC_KEYS": ["old"]})
    cache.set("key", Point(1))
    cache = make_cache(location, OPTIONS={"MAC_KEYS": ["new", "old"]})
    assert cache.get("key") == Point(1)
    Bomb.exploded.clear()
    for mac_keys in ((), (b"guess",)):
        data = seal(pickle.dumps(Bomb()), kind=KIND_PICKLE, key="plain/:1:key", mac_keys=mac_keys)
        cache.assembly.plain_store.put("plain/:1:key", data)
        assert cache.get("key", "miss") == "miss"
    assert Bomb.exploded == []


def test_reads_and_sets_survive_a_dead_store(make_cache: Callable[..., LiveCache]) -> None:
    """They are counted; what must not be lost silently raises."""
    cache = make_cache(NOWHERE, OPTIONS={"CONNECT_TIMEOUT_S": 0.1})
    assert cache.get("key", "default") == "default"
    assert cache.get_many(["key"]) == {}
    assert cache.has_key("key") is False
    cache.set("key", 1)
    assert cache.set_many({"a": 1, "b": 2}) == ["a", "b"]
    assert cache.add("key", 1) is False
    assert cache.touch("key") is False
    assert cache.get_or_set("key", lambda: "made") == "made"
    assert cache.assembly.metrics.snapshot()["store_errors"] >= 7
    for operation in (
        lambda: cache.delete("key"),
        lambda: cache.delete_many(["key"]),
        lambda: cache.incr("key"),
        lambda: cache.touch("key", 0),
        lambda: cache.delete_prefix("k"),
    ):
        with pytest.raises(StoreUnavailableError):
            operation()
    with pytest.raises((StoreUnavailableError, LedgerUnavailableError), match=r"127\.0\.0\.1:1"):
        cache.clear()


def test_a_value_that_is_too_large_is_dropped(make_cache: Callable[..., LiveCache]) -> None:
    """The old value is gone, and set_many() names the key."""
    cache = make_cache(OPTIONS={"MAX_BYTES": 2000})
    cache.set("key", "small")
    cache.set("key", "x" * 5000)
    assert cache.get("key") is None
    assert cache.set_many({"large": "x" * 5000, "small": 1}) == ["large"]
    assert cache.get("small") == 1
    assert cache.add("large", "x" * 5000) is False


def test_hits_and_misses_add_up(make_cache: Callable[..., LiveCache]) -> None:
    """Apart from the counters of live reads."""
    cache = make_cache()
    cache.set("key", 1)
    cache.get("key")
    cache.get("other")
    cache.get_many(["key", "other", "third"])
    counters = cache.assembly.metrics.snapshot()
    assert counters == {"plain_lookups": 5, "plain_hits": 2, "plain_misses": 3}


def test_asynchronous_twins_do_the_same(cache: LiveCache) -> None:
    """Every method of Django's cache API, awaited."""

    async def use() -> None:
        assert await cache.aset("key", 1) is None
        assert await cache.aget("key") == 1
        assert await cache.aadd("key", 2) is False
        assert await cache.aget_or_set("made", lambda: "x") == "x"
        assert await cache.aget_or_set("made", "y") == "x"
        assert await cache.atouch("key", 100) is True
        assert await cache.ahas_key("key") is True
        assert await cache.aincr("key", 5) == 6
        assert await cache.adecr("key") == 5
        assert await cache.aset_many({"a": "1", "b": "2"}) == []
        assert await cache.aget_many(iter(["a", "b", "c"])) == {"a": "1", "b": "2"}
        assert await cache.aincr_version("a") == 2
        assert await cache.adecr_version("a", version=2) == 1
        assert sorted(await cache.akeys()) == ["a", "b", "key", "made"]
        assert await cache.adelete("a") is True
        assert await cache.adelete_many(["b"]) is None
        assert await cache.adelete_prefix("ma") == 1
        assert await cache.akeys() == ["key"]
        await cache.aclose()
        await cache.aclear()
        assert await cache.aget("key", "gone") == "gone"

    asyncio.run(use())


def test_every_method_of_the_base_class_has_an_own_twin() -> None:
    """Django's default twins make one thread hop per key, or are not atomic; a few only call others."""
    twins = {name for name in dir(LiveCache) if name.startswith("a") and hasattr(LiveCache, name[1:])}
    assert {"aget", "aset", "aincr", "aget_many", "aclose"} <= twins
    own = vars(LiveCache).keys() | vars(AsyncTwins).keys()
    assert twins - own == {"adecr", "adecr_version", "aget_or_set", "aincr_version"}
    public = {name for name in vars(LiveCache) if not name.startswith("_")}
    assert {name for name in public if "a" + name not in twins} == set()


def test_sessions_live_in_it(make_cache: Callable[..., LiveCache]) -> None:
    """The cache session engine works over it."""
    from django.contrib.sessions.backends.cache import SessionStore

    make_cache()
    session = SessionStore()
    session["user"] = 7
    session.save()
    assert SessionStore(session.session_key)["user"] == 7
