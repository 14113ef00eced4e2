"""
The async twins of a tiered store that read. They ask the tiers' own twins.

Those that change something are Store's: one thread, which can hold the locks that order writers and promotions. An
event loop cannot hold a lock while it waits.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from asgiref.sync import sync_to_async

from live_cache.exceptions import StoreUnavailableError
from live_cache.stores.base import MISS, Missing, StoredValue, validate_key
from live_cache.stores.tiered_base import TieredBase

__all__ = ["TieredTwins"]

T = TypeVar("T")


class TieredTwins(TieredBase):
    """The async methods."""

    async def aget(self, key: str) -> bytes | Missing:
        """See get()."""
        noted = self._versions.note(validate_key(key))
        value = await self._aread(0, key, self.stores[0].aget)
        if value is not MISS:
            self._counters.hits.add_one()
            return value
        stored = await self._afind(key, 1, noted)
        return MISS if stored is MISS else stored.value

    async def aget_with_expiry(self, key: str) -> StoredValue | Missing:
        """See get_with_expiry()."""
        return await self._afind(key, 0, self._versions.note(validate_key(key)))

    async def aget_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """See get_many()."""
        missing = {validate_key(key): self._versions.note(key) for key in keys}
        asked = len(missing)
        found: dict[str, bytes] = {}
        for index, store in enumerate(self.stores):
            names = [key for key in missing if not await self._aowes(index, key)]
            hits: dict[str, bytes] = await self._aattempt(index, store.aget_many(names), {}) if names else {}
            for key, value in hits.items():
                found[key] = value
                noted = missing.pop(key)
                stored = await self._aread(index, key, store.aget_with_expiry) if index else MISS
                if stored is not MISS:
                    await self._apromote(key, stored, index, noted)
        self._counters.count_lookups(hits=len(found), misses=asked - len(found))
        return found

    async def aexists(self, key: str) -> bool:
        """See exists()."""
        validate_key(key)
        for index, store in enumerate(self.stores):
            if not await self._aowes(index, key) and await self._aattempt(index, store.aexists(key), False):
                return True
        return False

    async def _aread(self, index: int, key: str, read: Callable[[str], Awaitable[T | Missing]]) -> T | Missing:
        if await self._aowes(index, key):
            return MISS
        try:
            found = await read(key)
        except StoreUnavailableError as error:
            self._note_failure(index, error)
            return MISS
        self._note_answer(index)
        return found

    async def _afind(self, key: str, start: int, noted: int) -> StoredValue | Missing:
        for index in range(start, len(self.stores)):
            stored = await self._aread(index, key, self.stores[index].aget_with_expiry)
            if stored is not MISS:
                await self._apromote(key, stored, index, noted)
                self._counters.hits.add_one()
                return stored
        self._counters.misses.add_one()
        return MISS

    async def _apromote(self, key: str, stored: StoredValue, below: int, noted: int | None) -> None:
        if all(store.async_kind == "inline" for store in self.stores[:below]):
            self._promote(key, stored, below, noted)
        else:
            await sync_to_async(self._promote, thread_sensitive=False)(key, stored, below, noted)

    async def _aowes(self, index: int, key: str) -> bool:
        if not self._debts[index].covers(key):
            return False
        return await sync_to_async(self._owes, thread_sensitive=False)(index, key)

    async def _aattempt(self, index: int, asked: Awaitable[T], otherwise: T) -> T:
        try:
            answer = await asked
        except StoreUnavailableError as error:
            self._note_failure(index, error)
            return otherwise
        self._note_answer(index)
        return answer
