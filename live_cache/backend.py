"""
The Django cache backend: Django's whole cache API over one assembly. The only importer of ``pickle``.

Plain values live in the farthest tier under ``plain/<the key that Django made>``: integers as ASCII decimals, which a
store increments atomically, everything else in a frame that holds CBOR where CBOR is exact and a pickle elsewhere.
Live querysets keep their entries under ``live/`` and never come through here.
"""

from __future__ import annotations

import hashlib
import logging
import pickle  # noqa: TID251 - the plain cache API stores any object, as every Django backend does
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final, ParamSpec, TypeVar

from asgiref.sync import sync_to_async
from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from live_cache.assembly import Assembly, matching_assembly
from live_cache.exceptions import (
    FrameError,
    InvalidKeyError,
    QuotaExceededError,
    StoreError,
    StoreUnavailableError,
    StoreUnsupportedError,
    UncachableValueError,
)
from live_cache.frame import KIND_CBOR, KIND_PICKLE, seal, unseal
from live_cache.ledger.base import TABLE_SLOT
from live_cache.rows import decode_value, encode_value
from live_cache.stores.base import MAX_KEY_BYTES, MISS, StoredValue

__all__ = ["LiveCache"]

logger = logging.getLogger("live_cache.backend")

P = ParamSpec("P")
T = TypeVar("T")

PLAIN: Final = "plain/"
_KEY_DIGEST_BYTES: Final = 20
_MAX_SWAPS: Final = 1000
"""Attempts of an increment that no store does by itself. Each lost one means that another writer got through."""
_INT64 = range(-(2**63), 2**63)
_DECIMAL: Final = re.compile(rb"-?[0-9]{1,19}")


class LiveCache(BaseCache):
    """
    Django's cache API over the tiers of LOCATION.

    A read never raises for what is stored or where: a corrupt value and a store that does not answer are misses, logged
    and counted. set(), add() and touch() log and count a store that does not answer. delete(), clear() and the
    increments raise StoreUnavailableError, since whoever calls them relies on what they do.
    """

    def __init__(self, location: Any, params: dict[str, Any]) -> None:
        super().__init__(params)
        self.assembly: Assembly = matching_assembly(location, params)
        self._store = self.assembly.plain_store
        # A store in this process answers sooner than a thread would start.
        self._is_instant = self._store.name in {"memory", "null"}

    # -- reading

    def get(self, key: Any, default: Any | None = None, version: int | None = None) -> Any:
        """Return the value under *key*, or *default*."""
        store_key = self._store_key(key, version)
        data = self._read(store_key)
        self.assembly.metrics.count("plain_lookups")
        value = self._decode(store_key, data) if data is not MISS else MISS
        self.assembly.metrics.count("plain_misses" if value is MISS else "plain_hits")
        return default if value is MISS else value

    def get_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """Return the values of those *keys* that are there."""
        store_keys = {self._store_key(key, version): key for key in keys}
        try:
            found = self._store.get_many(store_keys)
        except StoreUnavailableError:
            self._note_failure("get_many")
            found = {}
        values = {store_keys[store_key]: self._decode(store_key, data) for store_key, data in found.items()}
        result = {key: value for key, value in values.items() if value is not MISS}
        metrics = self.assembly.metrics
        metrics.count("plain_lookups", len(store_keys))
        metrics.count("plain_hits", len(result))
        metrics.count("plain_misses", len(store_keys) - len(result))
        return result

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Return whether an unexpired value is under *key*."""
        store_key = self._store_key(key, version)
        try:
            return self._store.exists(store_key)
        except StoreUnavailableError:
            self._note_failure("has_key")
            return False

    def keys(self, prefix: str = "", *, version: int | None = None) -> Iterator[str]:
        """
        Yield the keys of this version that start with *prefix*, as callers gave them, in no order. May scan.

        Raises:
            StoreUnsupportedError: KEY_FUNCTION hides the caller's key.
            StoreUnavailableError: The store does not answer.
        """
        head = self._key_head(version)
        wanted = PLAIN + head + prefix
        for store_key in self._store.keys(PLAIN):
            if store_key.startswith(wanted):
                yield store_key[len(PLAIN) + len(head) :]

    # -- writing

    def set(self, key: Any, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> None:
        """Store *value* under *key*. A value that is too large for the store is dropped, logged and counted."""
        store_key = self._store_key(key, version)
        data = self._encode(store_key, value)
        self._put(store_key, data, self._timeout_s(timeout))

    def set_many(
        self, data: dict[Any, Any], timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store every value of *data*. Return the keys whose value was not stored."""
        keys = {self._store_key(key, version): key for key in data}
        items = {store_key: self._encode(store_key, data[key]) for store_key, key in keys.items()}
        timeout_s = self._timeout_s(timeout)
        try:
            self._store.put_many(items, timeout_s=timeout_s)
        except StoreUnavailableError:
            self._note_failure("set_many")
            return list(keys.values())
        except QuotaExceededError:
            return [keys[key] for key, value in items.items() if not self._put(key, value, timeout_s)]
        return []

    def add(self, key: Any, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Store *value* unless *key* is there, atomically. Return whether it was stored."""
        store_key = self._store_key(key, version)
        data = self._encode(store_key, value)
        try:
            return self._store.compare_and_swap(store_key, None, data, timeout_s=self._timeout_s(timeout))
        except (StoreUnavailableError, QuotaExceededError):
            self._note_failure("add")
            return False

    def touch(self, key: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""
        store_key = self._store_key(key, version)
        timeout_s = self._timeout_s(timeout)
        if timeout_s is not None and timeout_s <= 0:
            return self._store.delete(store_key)
        try:
            return self._store.touch(store_key, timeout_s)
        except StoreUnavailableError:
            self._note_failure("touch")
            return False

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """
        Add *delta* to the value under *key*, atomically, and return the sum. The time to live stays.

        Raises:
            ValueError: The key is not there.
            TypeError: The value takes no addition.
            StoreUnavailableError: The store does not answer.
        """
        store_key = self._store_key(key, version)
        if type(delta) is int and delta in _INT64:
            try:
                total = self._store.increment(store_key, delta)
            except (StoreUnavailableError, InvalidKeyError):
                raise
            except StoreError:
                # A float, an integer of more than 64 bits, or a sum that becomes one.
                return self._add_and_swap(key, store_key, delta)
            if total is MISS:
                raise ValueError(f"Key {key!r} not found")
            return total
        return self._add_and_swap(key, store_key, delta)

    # -- dropping

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Drop *key*. Return whether it was there."""
        return self._store.delete(self._store_key(key, version))

    def delete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """Drop *keys*."""
        self._store.delete_many([self._store_key(key, version) for key in keys])

    def delete_prefix(self, prefix: str, *, version: int | None = None) -> int:
        """
        Drop the keys of this version that start with *prefix*. Return how many there were. Scans, in batches.

        Keys that are set meanwhile may stay.

        Raises:
            StoreUnsupportedError: KEY_FUNCTION hides the caller's key.
            StoreUnavailableError: The store does not answer.
        """
        head = self._key_head(version)
        return self._store.delete_many([PLAIN + head + key for key in self.keys(prefix, version=version)])

    def clear(self) -> None:
        """
        Drop every value and every live entry of this cache, in all processes, and nothing of anybody else.

        Raises:
            StoreUnavailableError: A tier did not answer.
            LedgerUnavailableError: The ledger did not answer.
        """
        ledger = self.assembly.ledger
        # Other processes hold live entries in their memory. A tick of each table makes those stale as well.
        changes = {info.clock: (TABLE_SLOT,) for info in ledger.clocks()}
        if changes:
            ledger.tick(changes)
        self.assembly.store.clear()

    def close(self, **kwargs: Any) -> None:
        """Do nothing: Django calls it after each request, and memory and connections outlive requests."""

    # -- asynchronous twins

    async def aget(self, key: Any, default: Any | None = None, version: int | None = None) -> Any:
        """See get()."""
        return await self._hop(self.get, key, default, version)

    async def aget_many(self, keys: Iterable[Any], version: int | None = None) -> dict[Any, Any]:
        """See get_many()."""
        return await self._hop(self.get_many, keys, version)

    async def ahas_key(self, key: Any, version: int | None = None) -> bool:
        """See has_key()."""
        return await self._hop(self.has_key, key, version)

    async def akeys(self, prefix: str = "", *, version: int | None = None) -> list[str]:
        """See keys(). Returns a list."""
        return await self._hop(lambda: list(self.keys(prefix, version=version)))

    async def aset(
        self, key: Any, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """See set()."""
        await self._hop(self.set, key, value, timeout, version)

    async def aset_many(
        self, data: dict[Any, Any], timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """See set_many()."""
        return await self._hop(self.set_many, data, timeout, version)

    async def aadd(
        self, key: Any, value: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """See add()."""
        return await self._hop(self.add, key, value, timeout, version)

    async def aget_or_set(
        self, key: Any, default: Any | None, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None
    ) -> Any | None:
        """See get_or_set(). A callable *default* is called in the event loop, as Django does."""
        value = await self.aget(key, self._missing_key, version=version)
        if value is not self._missing_key:
            return value
        if callable(default):
            default = default()
        await self.aadd(key, default, timeout=timeout, version=version)
        # Another caller may have added a value meanwhile; all callers then return that one.
        return await self.aget(key, default, version=version)

    async def atouch(self, key: Any, timeout: float | None = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """See touch()."""
        return await self._hop(self.touch, key, timeout, version)

    async def aincr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See incr()."""
        return await self._hop(self.incr, key, delta, version)

    async def adecr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See decr()."""
        return await self._hop(self.decr, key, delta, version)

    async def aincr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See incr_version()."""
        return await self._hop(self.incr_version, key, delta, version)

    async def adecr_version(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """See decr_version()."""
        return await self._hop(self.decr_version, key, delta, version)

    async def adelete(self, key: Any, version: int | None = None) -> bool:
        """See delete()."""
        return await self._hop(self.delete, key, version)

    async def adelete_many(self, keys: Iterable[Any], version: int | None = None) -> None:
        """See delete_many()."""
        await self._hop(self.delete_many, keys, version)

    async def adelete_prefix(self, prefix: str, *, version: int | None = None) -> int:
        """See delete_prefix()."""
        return await self._hop(lambda: self.delete_prefix(prefix, version=version))

    async def aclear(self) -> None:
        """See clear()."""
        await sync_to_async(self.clear, thread_sensitive=False)()

    async def aclose(self, **kwargs: Any) -> None:
        """See close()."""

    # -- inside

    async def _hop(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        if self._is_instant:
            return function(*args, **kwargs)
        return await sync_to_async(function, thread_sensitive=False)(*args, **kwargs)

    def _store_key(self, key: Any, version: int | None) -> str:
        made = self.make_and_validate_key(key, version=version)
        if len(made) * 4 + len(PLAIN) <= MAX_KEY_BYTES:
            return PLAIN + made
        return PLAIN + _shortened(made, MAX_KEY_BYTES - len(PLAIN))

    def _key_head(self, version: int | None) -> str:
        """Return what KEY_FUNCTION puts in front of the caller's key."""
        probe = "key"
        made = self.make_key(probe, version=version)
        if not made.endswith(probe):
            raise StoreUnsupportedError(
                f"KEY_FUNCTION makes {made!r} of {probe!r}, so keys cannot be told by their prefix. "
                f"Use a KEY_FUNCTION that puts the key last."
            )
        return made[: -len(probe)]

    def _timeout_s(self, timeout: Any) -> float | None:
        return self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout

    def _read(self, store_key: str) -> Any:
        try:
            return self._store.get(store_key)
        except StoreUnavailableError:
            self._note_failure("get")
            return MISS

    def _put(self, store_key: str, data: bytes, timeout_s: float | None) -> bool:
        try:
            self._store.put(store_key, data, timeout_s=timeout_s)
        except (StoreUnavailableError, QuotaExceededError):
            self._note_failure("set")
            return False
        return True

    def _note_failure(self, operation: str) -> None:
        self.assembly.metrics.count("store_errors")
        logger.warning("The store %r failed at %s().", self._store.name, operation, exc_info=True)

    def _encode(self, store_key: str, value: Any) -> bytes:
        if type(value) is int and value in _INT64:
            return b"%d" % value
        mac_keys = self.assembly.mac_keys
        try:
            return encode_value(value, key=store_key, mac_keys=mac_keys)
        except UncachableValueError:
            if not self.assembly.pickle:
                raise UncachableValueError(
                    f"A value of type {type(value).__qualname__} is not exact in CBOR, and OPTIONS['PICKLE'] is False. "
                    f"Cache plain values (numbers, text, bytes, lists, dicts), or set PICKLE to True."
                ) from None
        payload = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        return seal(payload, kind=KIND_PICKLE, key=store_key, mac_keys=mac_keys)

    def _decode(self, store_key: str, data: bytes) -> Any:
        """Return the value, or MISS for bytes that are not ours; those are counted and deleted."""
        # A frame starts with its magic, which is no digit.
        if _DECIMAL.fullmatch(data):
            return int(data)
        try:
            return self._open(store_key, data)
        except FrameError as error:
            self.assembly.metrics.count("corrupt")
            logger.warning("The value under %r is dropped: %s", store_key, error)
        try:
            self._store.delete(store_key)
        except StoreUnavailableError:
            self._note_failure("delete")
        return MISS

    def _open(self, store_key: str, data: bytes) -> Any:
        kinds = (KIND_CBOR, KIND_PICKLE) if self.assembly.pickle else (KIND_CBOR,)
        # Before a byte of the payload is looked at, unseal() has compared its checksum, with MAC_KEYS its MAC.
        kind, payload = unseal(data, kinds=kinds, key=store_key, mac_keys=self.assembly.mac_keys)
        if kind == KIND_CBOR:
            return decode_value(data, key=store_key, mac_keys=self.assembly.mac_keys)
        try:
            return pickle.loads(payload)
        except Exception as error:
            # A class that a deploy has moved or changed can raise anything.
            raise FrameError(f"Its pickle does not load: {error!r}.") from error

    def _add_and_swap(self, key: Any, store_key: str, delta: Any) -> int:
        for _ in range(_MAX_SWAPS):
            stored = self._store.get_with_expiry(store_key)
            value = self._decode(store_key, stored.value) if isinstance(stored, StoredValue) else MISS
            if not isinstance(stored, StoredValue) or value is MISS:
                raise ValueError(f"Key {key!r} not found")
            total: int = value + delta
            data = self._encode(store_key, total)
            if self._store.compare_and_swap(store_key, stored.value, data, timeout_s=stored.expires_in_s):
                return total
        raise StoreError(f"The key {key!r} changed {_MAX_SWAPS} times while it was incremented.")


def _shortened(key: str, limit: int) -> str:
    encoded = key.encode("utf-8", "surrogatepass")
    if len(encoded) <= limit:
        return key
    # Django's own backends take keys of any length. The digest keeps two long keys apart.
    digest = hashlib.blake2b(encoded, digest_size=_KEY_DIGEST_BYTES).hexdigest()
    return encoded[: limit - len(digest) - 1].decode("utf-8", "ignore") + "#" + digest
