"""
The store that keeps nothing: caching switched off without touching the code that caches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from live_cache.stores.base import MISS, Missing, Store, StoredValue, StoreMetrics, validate_key
from live_cache.stores.counters import StoreCounters
from live_cache.stores.integers import add_to_integer

__all__ = ["NullStore"]


class NullStore(Store):
    """
    Keeps nothing: as a store that evicts each value at once.

    A put is accepted and gone; compare_and_swap() succeeds where nothing is expected, so that code which waits for
    its turn goes on; increment() starts from *default* each time.
    """

    is_shared_by_processes = False
    is_shared_by_hosts = False
    async_kind = "inline"

    def __init__(self, name: str = "null") -> None:
        self.name = name
        self._counters = StoreCounters()

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return MISS."""
        validate_key(key)
        self._counters.misses.add_one()
        return MISS

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return an empty dictionary."""
        self._counters.misses.add(len({validate_key(key) for key in keys}))
        return {}

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """Accept *value* and forget it."""
        validate_key(key)
        self._counters.puts.add_one()

    def delete(self, key: str) -> bool:
        """Return False."""
        validate_key(key)
        return False

    def exists(self, key: str) -> bool:
        """Return False."""
        validate_key(key)
        return False

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield nothing."""
        if prefix:
            validate_key(prefix)
        return iter(())

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Return *default* plus *delta*, or MISS without a default."""
        validate_key(key)
        return MISS if default is None else add_to_integer(key, default, delta)

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Return whether nothing was expected."""
        validate_key(key)
        if expected is None:
            self._counters.puts.add_one()
        return expected is None

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Return False."""
        validate_key(key)
        return False

    def clear(self) -> None:
        """Do nothing."""

    def len(self) -> int:
        """Return 0."""
        return 0

    def metrics(self) -> StoreMetrics:
        """Return a copy of the counters of this process."""
        return self._counters.snapshot(entries=0, size_bytes=0)

    def close(self) -> None:
        """Do nothing."""
