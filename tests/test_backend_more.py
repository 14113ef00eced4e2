"""What the backend has on top of Django's cache API, each call with its async twin."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.cache import caches
from django.test import override_settings

from live_cache.assembly import close_all, get_assembly
from live_cache.backend import LiveCache
from live_cache.exceptions import ConfigurationError, UncachableValueError

BACKEND = "live_cache.backend.LiveCache"


@pytest.fixture(params=["memory", "disk", "memory+redis"])
def cache(request: Any, tmp_path: Path) -> Iterator[LiveCache]:
    """Run the test over each kind of farthest tier."""
    locations: dict[str, Any] = {
        "memory": "memory://?ledger=process",
        "disk": f"disk://{tmp_path}/cache",
        "memory+redis": ["memory://"],
    }
    location = locations[request.param]
    if request.param == "memory+redis":
        url = request.getfixturevalue("redis_url")
        location = ["memory://", {"URL": url, "OPTIONS": {"READ_TIMEOUT_S": 5, "SOCKET_TIMEOUT_S": 5}}]
    with override_settings(CACHES={"default": {"BACKEND": BACKEND, "LOCATION": location}}):
        backend = caches["default"]
        assert isinstance(backend, LiveCache)
        yield backend
        backend.clear()
    close_all()


@pytest.fixture(params=["sync", "async"])
def call(request: Any, cache: LiveCache) -> Callable[..., Any]:
    """Call a method of the cache by its name, or its twin."""
    if request.param == "sync":
        return lambda name, *args, **kwargs: getattr(cache, name)(*args, **kwargs)

    def through_twin(name: str, *args: Any, **kwargs: Any) -> Any:
        async def use() -> Any:
            result = await getattr(cache, "a" + name)(*args, **kwargs)
            await cache.assembly.store.aclose()
            return result

        return async_to_sync(use)()

    return through_twin


def test_increment_starts_from_its_default(call: Callable[..., Any]) -> None:
    """And keeps the time to live of a value that is there; without a default it is incr()."""
    assert call("increment", "n", default=10) == 11
    assert call("increment", "n", 5, default=10) == 16
    assert call("get", "n") == 16
    call("set", "float", 0.5)
    assert call("increment", "float", default=0) == 1.5
    with pytest.raises(ValueError, match="none"):
        call("increment", "none")
    assert call("increment", "gone", default=1, timeout=0) == 2
    assert call("get", "gone") is None
    assert call("increment", "large", 1, default=2**63 - 1) == 2**63
    assert call("increment", "large", 1, default=0) == 2**63 + 1


def test_increment_loses_nothing(cache: LiveCache) -> None:
    """Also while it is made by several at once."""
    with ThreadPoolExecutor(8) as pool:
        sums = list(pool.map(lambda n: cache.increment(f"n{n % 3}", default=0), range(240)))
    assert sorted(sums) == sorted([*range(1, 81)] * 3)


def test_compare_and_swap_takes_values(call: Callable[..., Any]) -> None:
    """Equal in value and type; None is nothing there, or a stored None."""
    assert call("compare_and_swap", "key", None, {"a": [1]}) is True
    assert call("compare_and_swap", "key", None, "other") is False
    assert call("compare_and_swap", "key", {"a": [2]}, "other") is False
    assert call("compare_and_swap", "key", {"a": [1]}, 1) is True
    assert call("compare_and_swap", "key", True, 2) is False
    assert call("compare_and_swap", "key", 1, None) is True
    assert call("compare_and_swap", "key", None, 3, timeout=60) is True
    assert call("get", "key") == 3
    assert call("compare_and_swap", "key", 3, 4, version=2) is False
    assert call("compare_and_swap", "key", 3, frozenset("x")) is True
    assert call("compare_and_swap", "key", frozenset("x"), 5) is True


def test_compare_and_swap_has_one_winner(cache: LiveCache) -> None:
    """Of all who try the same step."""
    cache.set("key", "new")
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda n: cache.compare_and_swap("key", "new", f"by {n}"), range(8)))
    assert won.count(True) == 1
    assert cache.get("key") == f"by {won.index(True)}"


def test_touch_many_names_what_is_gone(call: Callable[..., Any]) -> None:
    """The others have the new time to live."""
    call("set_many", {"a": 1, "b": 2}, timeout=60)
    assert call("touch_many", ["a", "none", "b"], None) == ["none"]
    assert call("touch_many", ["a"], 0) == []
    assert call("get_many", ["a", "b"]) == {"b": 2}


def test_a_time_to_live_in_nanoseconds(cache: LiveCache, call: Callable[..., Any]) -> None:
    """In place of seconds, not beside them."""
    call("set", "key", 1, timeout_ns=60_000_000_000)
    stored = cache.assembly.plain_store.get_with_expiry("plain/:1:key")
    assert 50 < stored.expires_in_s <= 60  # type: ignore[union-attr,operator]  # it is there
    call("set_many", {"key": 1}, timeout_ns=0)
    assert call("get", "key") is None
    assert call("add", "key", 1, timeout_ns=1_500_000_000_000) is True
    assert call("touch", "key", timeout_ns=-1) is True
    assert call("get", "key") is None
    with pytest.raises(TypeError, match="not both"):
        call("set", "key", 1, timeout=1, timeout_ns=1)


def test_prefixes_with_slashes(call: Callable[..., Any]) -> None:
    """A prefix is text, not a path: it may end anywhere."""
    call("set_many", {"a/b/c": 1, "a/b/d": 2, "a/bc": 3, "ab": 4})
    assert sorted(call("keys", "a/b/")) == ["a/b/c", "a/b/d"]
    assert sorted(call("keys", "a/b")) == ["a/b/c", "a/b/d", "a/bc"]
    assert call("delete_prefix", "a/b/") == 2
    assert sorted(call("keys")) == ["a/bc", "ab"]


def test_a_value_changed_after_it_was_set_stays_as_it_was(call: Callable[..., Any]) -> None:
    """What is stored is a copy, and so is what is given out."""
    value = {"list": [1], "object": {frozenset("x")}}
    call("set", "key", value)
    value["list"] = [2]
    found = call("get", "key")
    assert found == {"list": [1], "object": {frozenset("x")}}
    found["list"].append(3)
    assert call("get", "key")["list"] == [1]


def test_a_hit_in_memory_uses_no_thread() -> None:
    """Nor does a set(): everything happens in the thread of the event loop."""
    with override_settings(CACHES={"default": {"BACKEND": BACKEND, "LOCATION": "memory://?ledger=process"}}):
        backend: Any = caches["default"]

        async def use() -> set[str]:
            before = set(threading.enumerate())
            await backend.aset("key", {"a": {1, 2}})
            assert await backend.aget("key") == {"a": {1, 2}}
            assert await backend.aincrement("n", default=1) == 2
            assert await backend.aget_or_set("m", lambda: 3) == 3
            assert await backend.aincr_version("m") == 2
            return {thread.name for thread in set(threading.enumerate()) - before}

        assert asyncio.run(use()) == set()
    close_all()


@pytest.mark.django_db
def test_a_lazy_queryset_is_pickled_in_a_thread() -> None:
    """It asks the database, which the event loop may not."""
    from tests.testapp.models import Country

    country = Country.objects.create(name="Peru")
    with override_settings(CACHES={"default": {"BACKEND": BACKEND, "LOCATION": "memory://?ledger=process"}}):
        backend: Any = caches["default"]

        async def use() -> Any:
            await backend.aset("key", Country.objects.all())
            return await backend.aget("key")

        assert list(async_to_sync(use)()) == [country]
    close_all()


def test_what_is_no_plain_value_is_named() -> None:
    """With PICKLE False: its type, wherever it stands."""
    config = {"BACKEND": BACKEND, "LOCATION": "memory://?ledger=process", "OPTIONS": {"PICKLE": False}}
    with override_settings(CACHES={"default": config}):
        with pytest.raises(UncachableValueError, match="frozenset"):
            caches["default"].set("key", [1, {"a": frozenset()}])
        assert caches["default"].get("key") is None
    close_all()


@pytest.mark.parametrize("frequency", [2, 0, None])
def test_culling(frequency: int | None) -> None:
    """A full tier loses one value in N; all with 0; one at a time without the option."""
    options: dict[str, Any] = {"MAX_ENTRIES": 10}
    if frequency is not None:
        options["CULL_FREQUENCY"] = frequency
    config = {"BACKEND": BACKEND, "LOCATION": "memory://?ledger=process", "OPTIONS": options}
    with override_settings(CACHES={"default": config}):
        backend: Any = caches["default"]
        for n in range(10):
            backend.set(n, n)
        assert len(list(backend.keys())) == 10
        backend.set(10, 10)
        expected = {2: 6, 0: 1, None: 10}[frequency]
        assert len(list(backend.keys())) == expected
        assert backend.get(10) == 10
    close_all()


def test_options_of_one_tier(tmp_path: Path) -> None:
    """They hold for that tier; what does not belong there is refused."""
    disk = {"URL": f"disk://{tmp_path}/cache", "OPTIONS": {"DISK_MAX_BYTES": 5_000_000}}
    memory = {"URL": "memory://", "OPTIONS": {"MAX_ENTRIES": 7}}
    config = {"BACKEND": BACKEND, "LOCATION": [memory, disk], "OPTIONS": {"MAX_ENTRIES": 100, "MAX_BYTES": 9999}}
    with override_settings(CACHES={"default": config}):
        store: Any = get_assembly().tiers[0]
        assert (store.max_entries, store.max_bytes) == (7, 9999)
    close_all()
    for location, named in (
        ({"URL": "memory://", "OPTIONS": {"DISK_MAX_BYTES": 5}}, "MAX_ENTRIES"),
        ({"url": "memory://"}, "URL"),
        ({"URL": "memory://", "OPTIONS": {"MAX_ENTRIES": 0}}, "MAX_ENTRIES"),
        ({"URL": "redis://:hunter2@h", "OPTIONS": {"A": 0}}, "SOCKET_TIMEOUT_S"),
    ):
        config = {"BACKEND": BACKEND, "LOCATION": location}
        with (
            override_settings(CACHES={"default": config}),
            pytest.raises(ConfigurationError, match=named) as caught,
        ):
            get_assembly()
        assert "hunter2" not in str(caught.value)
