"""
What is compared: this package, django-cacheops and django-cachalot, each as its own documentation says.

cacheops caches what asks for it by ``.cache()`` and does not see ``update()``, ``bulk_update()`` and raw SQL; its
documentation names the calls that follow those, and the writers make them. cachalot caches every queryset and claims
to see every write. All have Redis behind them, entries without expiry where that is possible, and a process each.

Imported by the settings, so nothing of Django's models is imported at the top.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from django.db.models import Model, QuerySet

__all__ = ["LOCATIONS", "PEERS", "SYSTEMS", "System", "current"]

LOCATIONS: Final[Mapping[str, tuple[str, ...]]] = {
    "host": ("memory://?ledger={directory}/ledger",),
    "disk": ("disk://{directory}/cache",),
    "memory+disk": ("memory://", "disk://{directory}/cache"),
    "redis": ("{redis}",),
    "memory+redis": ("memory://", "{redis}"),
    "memory+sentinel": ("memory://", "{redis}"),
    "memory+cluster": ("memory://", "{redis}"),
}
"""What --location names: a LOCATION of CACHES."""
PEERS: Final = ("cacheops", "cachalot")
_PATIENT: Final = {"CONNECT_TIMEOUT_S": 10, "SOCKET_TIMEOUT_S": 10, "READ_TIMEOUT_S": 10}
"""Timeouts of our Redis: a machine that is too busy to answer would send reads to the database, and hide the races."""
_A_YEAR_S: Final = 365 * 24 * 3600


class System:
    """One way to cache. The base caches nothing: the database alone."""

    name = "database"
    package = ""
    """What pip installs; empty for what is there already."""
    caches = False
    """Whether an answer may come from anywhere but the database."""

    def settings(self, bench: Mapping[str, Any]) -> dict[str, Any]:
        """Return what this system adds to the settings of the project."""
        return {}

    @property
    def is_installed(self) -> bool:
        """Whether it can be imported here."""
        return not self.package or importlib.util.find_spec(self.name) is not None

    def cached(self, queryset: QuerySet[Any]) -> Any:
        """Return *queryset* as this system reads it through its cache."""
        return queryset

    def truth(self) -> AbstractContextManager[object]:
        """Return a context in which plain querysets are answered by the database."""
        return nullcontext()

    def update(self, queryset: QuerySet[Any], **values: Any) -> int:
        """Run ``update()`` as the documentation of this system wants it."""
        return queryset.update(**values)

    def written(self, model: type[Model]) -> None:
        """Do what the documentation asks for after a write that the system does not see by itself."""

    def slow_down(self, pause: Callable[[], None]) -> None:
        """Call *pause* between each SELECT of a read and what is stored of it."""


class Ours(System):
    """This package."""

    name = "live_cache"
    caches = True
    _mode = "strict"

    def settings(self, bench: Mapping[str, Any]) -> dict[str, Any]:
        """See System.settings()."""
        type(self)._mode = bench.get("mode", "strict")
        names = {"directory": bench["directory"], "redis": bench["redis_url"]}
        return {
            "INSTALLED_APPS": ["live_cache", "benchmarks.project"],
            "CACHES": {
                "default": {
                    "BACKEND": "live_cache.backend.LiveCache",
                    "LOCATION": [url.format(**names) for url in LOCATIONS[bench["location"]]],
                    "TIMEOUT": None,
                    "OPTIONS": {} if bench.get("is_redis_failing") else _PATIENT,
                }
            },
            "LIVE_CACHE_LEASE_S": bench["lease_s"],
            "LIVE_CACHE_UNWATCHED_LEASE_S": bench.get("unwatched_lease_s", 0.0),
            "LIVE_CACHE_MAX_LAG_MS": bench.get("max_lag_ms", 100),
            "LIVE_CACHE_ON_LEDGER_LOSS": bench["on_ledger_loss"],
        }

    def cached(self, queryset: QuerySet[Any]) -> Any:
        """See System.cached()."""
        from live_cache import live

        return live(queryset, mode=self._mode)

    def slow_down(self, pause: Callable[[], None]) -> None:
        """See System.slow_down(). Replaces a private function of the reader, in this process."""
        from live_cache import reader

        reader._store = _paused(reader._store, pause)


class Cacheops(System):
    """django-cacheops."""

    name = "cacheops"
    caches = True
    package = "django-cacheops"

    def settings(self, bench: Mapping[str, Any]) -> dict[str, Any]:
        """See System.settings()."""
        return {
            "INSTALLED_APPS": ["cacheops", "benchmarks.project"],
            "CACHEOPS_REDIS": bench["redis_url"],
            "CACHEOPS": {"project.*": {"ops": (), "timeout": _A_YEAR_S}},
            "CACHEOPS_DEGRADE_ON_FAILURE": True,
        }

    def cached(self, queryset: QuerySet[Any]) -> Any:
        """See System.cached()."""
        return queryset.cache()  # type: ignore[attr-defined]  # cacheops adds it to every QuerySet

    def update(self, queryset: QuerySet[Any], **values: Any) -> int:
        """See System.update()."""
        return int(queryset.invalidated_update(**values))  # type: ignore[attr-defined]  # added by cacheops

    def written(self, model: type[Model]) -> None:
        """See System.written()."""
        importlib.import_module("cacheops").invalidate_model(model)

    def slow_down(self, pause: Callable[[], None]) -> None:
        """See System.slow_down()."""
        getset: Any = importlib.import_module("cacheops.getset")
        query: Any = importlib.import_module("cacheops.query")
        paused = _paused(getset.cache_thing, pause)
        getset.cache_thing = query.cache_thing = paused


class Cachalot(System):
    """django-cachalot."""

    name = "cachalot"
    caches = True
    package = "django-cachalot"

    def settings(self, bench: Mapping[str, Any]) -> dict[str, Any]:
        """See System.settings()."""
        return {
            "INSTALLED_APPS": ["cachalot", "benchmarks.project"],
            "CACHES": {
                "default": {
                    "BACKEND": "django.core.cache.backends.redis.RedisCache",
                    "LOCATION": bench["redis_url"],
                    "TIMEOUT": None,
                }
            },
        }

    def truth(self) -> AbstractContextManager[object]:
        """See System.truth()."""
        disabled: AbstractContextManager[object] = importlib.import_module("cachalot.api").cachalot_disabled()
        return disabled

    def slow_down(self, pause: Callable[[], None]) -> None:
        """See System.slow_down()."""
        monkey_patch: Any = importlib.import_module("cachalot.monkey_patch")
        answer = monkey_patch._get_result_or_execute_query

        def slow(execute: Callable[[], Any], *arguments: Any) -> Any:
            def execute_and_pause() -> Any:
                rows = execute()
                pause()
                return rows

            return answer(execute_and_pause, *arguments)

        monkey_patch._get_result_or_execute_query = slow


def _paused(function: Callable[..., Any], pause: Callable[[], None]) -> Callable[..., Any]:
    def run(*arguments: Any, **options: Any) -> Any:
        pause()
        return function(*arguments, **options)

    return run


SYSTEMS: Final[Mapping[str, System]] = {system.name: system for system in (Ours(), Cacheops(), Cachalot(), System())}


def current() -> System:
    """Return the system of this process."""
    from django.conf import settings

    bench: Mapping[str, Any] = settings.BENCH  # type: ignore[misc]  # mypy looks at the settings of the tests
    return SYSTEMS[bench["system"]]
