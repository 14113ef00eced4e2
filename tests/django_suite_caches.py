"""The caches that Django's own tests run on. For tests/django_suite.py only."""

from __future__ import annotations

import os
from typing import Any

__all__ = ["COMPOSITIONS", "PATIENCE", "caches_of", "location_of"]

COMPOSITIONS = ("memory", "disk", "redis", "memory+redis", "memory+disk+redis")

# Five runs side by side, on a machine that may do other things as well; what a late answer means is tested elsewhere.
PATIENCE = {"CONNECT_TIMEOUT_S": 10, "SOCKET_TIMEOUT_S": 10, "READ_TIMEOUT_S": 10}

_BACKENDS_OF_DJANGO = {
    "django.core.cache.backends.locmem.LocMemCache": "live",
    "django.core.cache.backends.dummy.DummyCache": "null",
}


def location_of(composition: str, name: str) -> list[str]:
    """Return the LOCATION of a cache of this composition that shares nothing with those of another *name*."""
    directory = os.environ["LIVE_CACHE_SUITE_DIRECTORY"]
    # A Redis server has 16 databases.
    own = ["", "base", "default", "other", "twins", "lru"]
    database = own.index(name) if name in own else len(own) + sum(name.encode()) % (16 - len(own))
    urls = {
        "memory": f"memory://?ledger={directory}/ledger-{name}" if composition == "memory" else "memory://",
        "disk": f"disk://{directory}/disk-{name}",
        "redis": f"{os.environ['LIVE_CACHE_SUITE_REDIS']}/{database}",
    }
    return [urls[kind] for kind in composition.split("+")]


def caches_of(composition: str, caches: dict[str, Any]) -> dict[str, Any]:
    """Return *caches* with our backend where they have Django's backend in memory, or the one that keeps nothing."""
    result = {}
    for alias, config in caches.items():
        kind = _BACKENDS_OF_DJANGO.get(config.get("BACKEND", ""))
        if kind is None:
            result[alias] = config
            continue
        location = ["null://"] if kind == "null" else location_of(composition, config.get("LOCATION", ""))
        result[alias] = {**config, "BACKEND": "live_cache.backend.LiveCache", "LOCATION": location}
        result[alias]["OPTIONS"] = {**config.get("OPTIONS", {}), **PATIENCE}
    return result
