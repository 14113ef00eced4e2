"""
A store by its async twins: each sync method runs its twin in an event loop, so that one suite checks both.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from typing import Any, TypeVar

from live_cache.stores.base import FlushReport, Missing, Store, StoredValue, StoreMetrics

__all__ = ["OverTwins"]

T = TypeVar("T")


class OverTwins(Store):
    """Calls the twins of *store* in the event loop of a thread of its own, which finish() ends."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.name = store.name
        self.is_shared_by_processes = store.is_shared_by_processes
        self.is_shared_by_hosts = store.is_shared_by_hosts
        self.async_kind = store.async_kind
        self.evicts_by = store.evicts_by
        self._runner = asyncio.Runner()
        self._loop = self._runner.get_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """End the loop, and with it what it holds open."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._runner.close()

    @property
    def loop_thread(self) -> int | None:
        """Identifier of the loop's thread."""
        return self._thread.ident

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Run *coroutine* in the loop and return what it returns."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(60)

    def get(self, key: str) -> bytes | Missing:
        """Run aget()."""
        return self.wait(self.store.aget(key))

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Run aget_with_expiry()."""
        return self.wait(self.store.aget_with_expiry(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Run aget_many()."""
        return self.wait(self.store.aget_many(keys))

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """Run aput()."""
        self.wait(self.store.aput(key, value, timeout_s=timeout_s))

    def put_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """Run aput_many()."""
        self.wait(self.store.aput_many(items, timeout_s=timeout_s))

    def delete(self, key: str) -> bool:
        """Run adelete()."""
        return self.wait(self.store.adelete(key))

    def delete_many(self, keys: Iterable[str]) -> int:
        """Run adelete_many()."""
        return self.wait(self.store.adelete_many(keys))

    def exists(self, key: str) -> bool:
        """Run aexists()."""
        return self.wait(self.store.aexists(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Run akeys()."""
        return iter(self.wait(self.store.akeys(prefix)))

    def invalidate_prefix(self, prefix: str) -> int:
        """Run ainvalidate_prefix()."""
        return self.wait(self.store.ainvalidate_prefix(prefix))

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Run aincrement()."""
        return self.wait(self.store.aincrement(key, delta, default=default))

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Run acompare_and_swap()."""
        return self.wait(self.store.acompare_and_swap(key, expected, value, timeout_s=timeout_s))

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Run atouch()."""
        return self.wait(self.store.atouch(key, timeout_s))

    def clear(self) -> None:
        """Run aclear()."""
        self.wait(self.store.aclear())

    def len(self) -> int:
        """Run alen()."""
        return self.wait(self.store.alen())

    def flush(self) -> FlushReport:
        """Run aflush()."""
        return self.wait(self.store.aflush())

    def metrics(self) -> StoreMetrics:
        """Return the metrics of the store, which have no twin."""
        return self.store.metrics()

    def close(self) -> None:
        """Run aclose()."""
        self.wait(self.store.aclose())
