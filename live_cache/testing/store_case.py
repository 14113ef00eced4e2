"""What the tests of every store have in common: the hooks of a test module, and a store by itself and by its twins."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest

from live_cache.stores.base import Store
from live_cache.testing.twins import OverTwins

__all__ = ["StoreCase", "unwrapped"]


class StoreCase(ABC):
    """
    Hooks, and the store under test, by itself and by its async twins.

    A fresh instance serves each test, so state for advance() may live on it. For a store that other processes see,
    make_store() is called again in each of eight forked processes and must lead to the same entries.
    """

    oversized_bytes: ClassVar[int | None] = None
    """Length of a value that the store rejects; None if there is none that a test could hold."""

    @abstractmethod
    def make_store(self, tmp_path: Path) -> Store:
        """Return the store to test: empty when it is first called with *tmp_path*, the same entries afterwards."""

    @abstractmethod
    def peek(self, store: Store, key: str) -> bytes | None:
        """Return the bytes under *key* without the help of *store*; None if there are none."""

    @abstractmethod
    def poke(self, store: Store, key: str, value: bytes) -> None:
        """Put *value* under *key*, to live for ever, without the help of *store*."""

    @abstractmethod
    def advance(self, seconds: float) -> None:
        """Let *seconds* pass for the store, without waiting."""

    @pytest.fixture(params=["sync", "async"])
    def store(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
        """Make the store under test, once by itself and once by its async twins."""
        store = self.make_store(tmp_path)
        if request.param == "sync":
            yield store
            store.clear()
            store.close()
            return
        twins = OverTwins(store)
        yield twins
        twins.clear()
        twins.close()
        twins.finish()

    def _peek(self, store: Store, key: str) -> bytes | None:
        return self.peek(unwrapped(store), key)

    def _poke(self, store: Store, key: str, value: bytes) -> None:
        self.poke(unwrapped(store), key, value)


def unwrapped(store: Store) -> Store:
    """Return the store itself, also where *store* calls its twins."""
    return store.store if isinstance(store, OverTwins) else store
