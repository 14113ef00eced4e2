"""
Django's BaseCacheTests over our backend, synchronous and through the async twins. For tests/django_suite.py only.

Imported in a process whose sys.path begins with the tests of Django.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import Any

from asgiref.sync import async_to_sync
from cache.tests import BaseCacheTests, caches_setting_for_tests  # type: ignore[import-not-found]  # Django's tests
from django.core.cache import cache, caches
from django.test import TestCase, override_settings

from live_cache.backend import LiveCache
from tests.django_suite_caches import PATIENCE, location_of

__all__ = ["AsyncTwins", "AsyncTwinsTests", "LiveCacheTests", "MemoryTests"]

COMPOSITION = os.environ["LIVE_CACHE_SUITE_COMPOSITION"]


_is_inside = ContextVar("_is_inside", default=False)


class AsyncTwins(LiveCache):
    """A backend whose methods call their async twins, each in an event loop."""


def _through_twin(name: str) -> Callable[..., Any]:
    twin = getattr(LiveCache, "a" + name)

    @wraps(getattr(LiveCache, name))
    def call(self: LiveCache, *args: Any, **kwargs: Any) -> Any:
        # What a twin calls itself, such as clear() in a thread, is the real thing.
        if _is_inside.get():
            return getattr(LiveCache, name)(self, *args, **kwargs)
        token = _is_inside.set(True)
        try:
            return async_to_sync(twin)(self, *args, **kwargs)
        finally:
            _is_inside.reset(token)

    return call


def _own(name: str) -> Callable[..., Any]:
    """Return the twin as one of the class itself, which some tests ask for where the other method is."""
    twin = getattr(LiveCache, name)

    @wraps(twin)
    async def call(self: LiveCache, *args: Any, **kwargs: Any) -> Any:
        return await twin(self, *args, **kwargs)

    return call


for _name in (
    *("get", "get_many", "has_key", "set", "set_many", "add", "get_or_set", "touch", "incr", "decr", "incr_version"),
    *("decr_version", "delete", "delete_many", "clear", "close"),
):
    setattr(AsyncTwins, _name, _through_twin(_name))
    setattr(AsyncTwins, "a" + _name, _own("a" + _name))


def _settings(backend: str, name: str) -> Any:
    """Return the aliases that BaseCacheTests use; Redis evicts by itself, so that it has none with culling."""
    place = location_of(COMPOSITION, name)
    exclude = {"cull", "zero_cull"} if "redis" in COMPOSITION else set()
    aliases = caches_setting_for_tests(exclude=exclude, BACKEND=backend, LOCATION=place)
    for alias in aliases.values():
        alias["OPTIONS"] = {**alias.get("OPTIONS", {}), **PATIENCE}
    if "cull" in aliases:
        # Django's default; ours drops one value at a time.
        aliases["cull"]["OPTIONS"] = {**aliases["cull"]["OPTIONS"], "CULL_FREQUENCY": 3}
    return override_settings(CACHES=aliases)


@_settings("live_cache.backend.LiveCache", "base")
class LiveCacheTests(BaseCacheTests, TestCase):  # type: ignore[misc]  # Django's tests have no types
    """Django's tests for every backend."""

    def test_multiple_caches(self) -> None:
        """Aliases with different locations are isolated."""
        aliases = {
            name: {"BACKEND": "live_cache.backend.LiveCache", "LOCATION": location_of(COMPOSITION, name)}
            for name in ("default", "other")
        }
        with override_settings(CACHES=aliases):
            cache.set("value", 42)
            assert caches["default"].get("value") == 42
            assert caches["other"].get("value") is None


@_settings("tests.django_suite_cases.AsyncTwins", "twins")
class AsyncTwinsTests(BaseCacheTests, TestCase):  # type: ignore[misc]  # Django's tests have no types
    """The same through the async twins."""


class MemoryTests(TestCase):
    """Django's tests of what its own backend in memory drops first."""

    def setUp(self) -> None:
        if COMPOSITION != "memory":
            self.skipTest("what goes first is defined for memory only")
        alias = {
            "BACKEND": "live_cache.backend.LiveCache",
            "LOCATION": location_of("memory", "lru"),
            "OPTIONS": {"MAX_ENTRIES": 9, "CULL_FREQUENCY": 3},
        }
        overridden = override_settings(CACHES={"default": alias})
        overridden.enable()
        self.addCleanup(overridden.disable)
        self.addCleanup(cache.clear)


def _adopt() -> None:
    from cache.tests import LocMemCacheTests

    for name in ("test_lru_get", "test_lru_set", "test_lru_incr"):
        # Inside of the decorators, which would bring Django's own backend back.
        setattr(MemoryTests, name, _innermost(getattr(LocMemCacheTests, name)))


def _innermost(function: Any) -> Any:
    while hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


_adopt()
