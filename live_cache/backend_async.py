"""
The async half of the cache backend. Each twin does what the method without its ``a`` does, over the store's own twins.

Values are encoded and decoded in the event loop, in a thread only where pickling one asks the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.exceptions import SynchronousOnlyOperation

from live_cache.backend_base import MAX_SWAPS, BackendBase
from live_cache.exceptions import InvalidKeyError, QuotaExceededError, StoreError, StoreUnavailableError
from live_cache.plain_values import INT64
from live_cache.stores.base import MISS, Missing, StoredValue

__all__ = ["AsyncTwins"]


class AsyncTwins(BackendBase):
    """The async methods. get_or_set(), decr() and the versions have Django's twins, which call these."""

    # -- reading

    async def aget(self, key: Any, default: Any | None = None, version: int | None = None) -> Any:
        """See get()."""
        store_key = self._store_key(key, version)
        try:
            data = await self._store.aget(store_key)
        except StoreUnavailableError:
            self._note_failure("aget")
            data = MISS
        value = MISS if data is MISS else await self._adecode(store_key, data)
        self._count_lookups(1, hits=value is not MISS)
        return default if value is MISS else value

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """See get_many()."""
        store_keys = {self._store_key(key, version): key for key in keys}
        try:
            found = await self._store.aget_many(store_keys)
        except StoreUnavailableError:
            self._note_failure("aget_many")
            found = {}
        values = {store_keys[name]: await self._adecode(name, data) for name, data in found.items()}
        result = {key: value for key, value in values.items() if value is not MISS}
        self._count_lookups(len(store_keys), hits=len(result))
        return result

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """See has_key()."""
        store_key = self._store_key(key, version)
        try:
            return await self._store.aexists(store_key)
        except StoreUnavailableError:
            self._note_failure("ahas_key")
            return False

    async def akeys(self, prefix: str = "", *, version: int | None = None) -> list[str]:
        """See keys(). Returns a list."""
        scanned, wanted, head = self._prefixes(prefix, version)
        return [key[len(head) :] for key in await self._store.akeys(scanned) if key.startswith(wanted)]

    # -- writing

    async def aset(
        self,
        key: Any,
        value: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> None:
        """See set()."""
        store_key = self._store_key(key, version)
        data = await self._aencode(store_key, value)
        await self._aput(store_key, data, self._timeout_s(timeout, timeout_ns))

    async def aset_many(
        self,
        data: dict[Any, Any],
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> list[Any]:
        """See set_many()."""
        keys = {self._store_key(key, version): key for key in data}
        items = {name: await self._aencode(name, data[key]) for name, key in keys.items()}
        timeout_s = self._timeout_s(timeout, timeout_ns)
        if self._is_culling:
            return [keys[name] for name, value in items.items() if not await self._aput(name, value, timeout_s)]
        try:
            await self._store.aput_many(items, timeout_s=timeout_s)
        except StoreUnavailableError:
            self._note_failure("aset_many")
            return list(keys.values())
        except QuotaExceededError:
            return [keys[name] for name, value in items.items() if not await self._aput(name, value, timeout_s)]
        return []

    async def aadd(
        self,
        key: Any,
        value: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> bool:
        """See add()."""
        store_key = self._store_key(key, version)
        data = await self._aencode(store_key, value)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        try:
            await self._acull_if_full()
            return await self._store.acompare_and_swap(store_key, None, data, timeout_s=timeout_s)
        except (StoreUnavailableError, QuotaExceededError):
            self._note_failure("aadd")
            return False

    async def atouch(
        self,
        key: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> bool:
        """See touch()."""
        store_key = self._store_key(key, version)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        if timeout_s is not None and timeout_s <= 0:
            return await self._store.adelete(store_key)
        try:
            return await self._store.atouch(store_key, timeout_s)
        except StoreUnavailableError:
            self._note_failure("atouch")
            return False

    async def atouch_many(
        self,
        keys: Iterable[Any],
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> list[Any]:
        """See touch_many()."""
        return [key for key in keys if not await self.atouch(key, timeout, version, timeout_ns=timeout_ns)]

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See incr()."""
        total: int | Missing = await self._aadd(self._store_key(key, version), delta)
        if total is MISS:
            raise ValueError(f"Key {key!r} not found")
        return total

    async def aincrement(
        self,
        key: Any,
        delta: int = 1,
        *,
        default: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        timeout_ns: int | None = None,
    ) -> int:
        """See increment()."""
        if default is None:
            return await self.aincr(key, delta, version)
        store_key = self._store_key(key, version)
        first = default + delta
        data = await self._aencode(store_key, first)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        for _ in range(MAX_SWAPS):
            total: int | Missing = await self._aadd(store_key, delta)
            if total is not MISS:
                return total
            if await self._store.acompare_and_swap(store_key, None, data, timeout_s=timeout_s):
                return first
        raise self._too_many_swaps(key)

    async def acompare_and_swap(
        self,
        key: Any,
        expected: Any,
        value: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> bool:
        """See compare_and_swap()."""
        store_key = self._store_key(key, version)
        data = await self._aencode(store_key, value)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        for _ in range(MAX_SWAPS):
            held = await self._store.aget(store_key)
            found = None if held is MISS else await self._adecode(store_key, held)
            if found is not MISS:
                if type(found) is not type(expected) or found != expected:
                    return False
                if await self._store.acompare_and_swap(
                    store_key, held if isinstance(held, bytes) else None, data, timeout_s=timeout_s
                ):
                    return True
        raise self._too_many_swaps(key)

    # -- dropping

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """See delete()."""
        return await self._store.adelete(self._store_key(key, version))

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """See delete_many()."""
        await self._store.adelete_many([self._store_key(key, version) for key in keys])

    async def adelete_prefix(self, prefix: str, *, version: int | None = None) -> int:
        """See delete_prefix()."""
        scanned, wanted, _ = self._prefixes(prefix, version)
        return await self._store.adelete_many(
            [key for key in await self._store.akeys(scanned) if key.startswith(wanted)]
        )

    async def aclear(self) -> None:
        """See clear(). In a thread, since it goes through every tier and the ledger."""
        await sync_to_async(self.clear, thread_sensitive=False)()

    async def aclose(self, **kwargs: Any) -> None:
        """See close()."""

    # -- inside

    async def _aput(self, store_key: str, data: bytes, timeout_s: float | None) -> bool:
        try:
            await self._acull_if_full()
            await self._store.aput(store_key, data, timeout_s=timeout_s)
        except (StoreUnavailableError, QuotaExceededError):
            self._note_failure("aset")
            return False
        return True

    async def _acull_if_full(self) -> None:
        if self._is_culling and await self._store.alen() >= self._max_entries:
            await self._store.adelete_many(self._to_cull(await self._store.akeys()))

    async def _aencode(self, store_key: str, value: Any) -> bytes:
        data: bytes = await _apart(self.values.encode, store_key, value)
        return data

    async def _adecode(self, store_key: str, data: bytes) -> Any:
        value = await _apart(self._decode_or_note, store_key, data)
        if value is MISS:
            try:
                await self._store.adelete(store_key)
            except StoreUnavailableError:
                self._note_failure("adelete")
        return value

    async def _aadd(self, store_key: str, delta: Any) -> Any:
        if type(delta) is int and delta in INT64:
            try:
                return await self._store.aincrement(store_key, delta)
            except (StoreUnavailableError, InvalidKeyError):
                raise
            except StoreError:
                pass  # See _add().
        for _ in range(MAX_SWAPS):
            stored = await self._store.aget_with_expiry(store_key)
            value = await self._adecode(store_key, stored.value) if isinstance(stored, StoredValue) else MISS
            if not isinstance(stored, StoredValue) or value is MISS:
                return MISS
            total = value + delta
            data = await self._aencode(store_key, total)
            if await self._store.acompare_and_swap(store_key, stored.value, data, timeout_s=stored.expires_in_s):
                return total
        raise self._too_many_swaps(store_key)


async def _apart(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call *function* here, or in the thread for synchronous code if it asks for that, as a lazy queryset does."""
    try:
        return function(*arguments)
    except SynchronousOnlyOperation:
        return await sync_to_async(function, thread_sensitive=True)(*arguments)
