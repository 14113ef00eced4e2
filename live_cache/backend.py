"""
The Django cache backend: Django's whole cache API over one assembly, and a few calls more.

Plain values live in the farthest tier under ``plain/<the key that Django made>``, as plain_values.py encodes them. Live
querysets keep their entries under ``live/`` and never come through here. The async twins are in backend_async.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.core.cache.backends.base import DEFAULT_TIMEOUT

from live_cache.backend_async import AsyncTwins
from live_cache.backend_base import MAX_SWAPS
from live_cache.changes import encode_record
from live_cache.exceptions import (
    InvalidKeyError,
    LedgerUnavailableError,
    QuotaExceededError,
    StoreError,
    StoreUnavailableError,
)
from live_cache.ledger.clocks import TABLE_SLOT
from live_cache.plain_values import INT64
from live_cache.stores.base import MISS, Missing, StoredValue

__all__ = ["LiveCache"]


class LiveCache(AsyncTwins):
    """
    Django's cache API over the tiers of LOCATION.

    A read never raises for what is stored or where: a corrupt value and a store that does not answer are misses, logged
    and counted. set(), add() and touch() log and count a store that does not answer. delete(), clear(), the increments
    and compare_and_swap() raise StoreUnavailableError, since whoever calls them relies on what they do.

    *timeout* is in seconds: None never expires, 0 or less is expired at once. *timeout_ns* says it in nanoseconds
    instead; Redis rounds down to whole milliseconds.
    """

    # -- reading

    def get(self, key: Any, default: Any | None = None, version: int | None = None) -> Any:
        """Return the value under *key*, or *default*."""
        store_key = self._store_key(key, version)
        try:
            data = self._store.get(store_key)
        except StoreUnavailableError:
            self._note_failure("get")
            data = MISS
        value = MISS if data is MISS else self._decode(store_key, data)
        self._count_lookups(1, hits=value is not MISS)
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
        self._count_lookups(len(store_keys), hits=len(result))
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
        scanned, wanted, head = self._prefixes(prefix, version)
        for store_key in self._store.keys(scanned):
            if store_key.startswith(wanted):
                yield store_key[len(head) :]

    # -- writing

    def set(
        self,
        key: Any,
        value: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> None:
        """Store *value* under *key*. A value that is too large for the store is dropped, logged and counted."""
        store_key = self._store_key(key, version)
        data = self.values.encode(store_key, value)
        self._put(store_key, data, self._timeout_s(timeout, timeout_ns))

    def set_many(
        self,
        data: dict[Any, Any],
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> list[Any]:
        """Store every value of *data*. Return the keys whose value was not stored."""
        keys = {self._store_key(key, version): key for key in data}
        items = {store_key: self.values.encode(store_key, data[key]) for store_key, key in keys.items()}
        timeout_s = self._timeout_s(timeout, timeout_ns)
        if self._is_culling:
            return [keys[name] for name, value in items.items() if not self._put(name, value, timeout_s)]
        try:
            self._store.put_many(items, timeout_s=timeout_s)
        except StoreUnavailableError:
            self._note_failure("set_many")
            return list(keys.values())
        except QuotaExceededError:
            return [keys[name] for name, value in items.items() if not self._put(name, value, timeout_s)]
        return []

    def add(
        self,
        key: Any,
        value: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> bool:
        """Store *value* unless *key* is there, atomically. Return whether it was stored."""
        store_key = self._store_key(key, version)
        data = self.values.encode(store_key, value)
        try:
            self._cull_if_full()
            return self._store.compare_and_swap(store_key, None, data, timeout_s=self._timeout_s(timeout, timeout_ns))
        except (StoreUnavailableError, QuotaExceededError):
            self._note_failure("add")
            return False

    def touch(
        self,
        key: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> bool:
        """Give *key* a new time to live. Return whether it was there. With 0 or less it is delete()."""
        store_key = self._store_key(key, version)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        if timeout_s is not None and timeout_s <= 0:
            return self._store.delete(store_key)
        try:
            return self._store.touch(store_key, timeout_s)
        except StoreUnavailableError:
            self._note_failure("touch")
            return False

    def touch_many(
        self,
        keys: Iterable[Any],
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> list[Any]:
        """Give each of *keys* a new time to live. Return those that were not there. Not atomic over the keys."""
        return [key for key in keys if not self.touch(key, timeout, version, timeout_ns=timeout_ns)]

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """
        Add *delta* to the value under *key*, atomically, and return the sum. The time to live stays.

        Raises:
            ValueError: The key is not there.
            TypeError: The value takes no addition.
            StoreUnavailableError: The store does not answer.
        """
        total: int | Missing = self._add(self._store_key(key, version), delta)
        if total is MISS:
            raise ValueError(f"Key {key!r} not found")
        return total

    def increment(
        self,
        key: Any,
        delta: int = 1,
        *,
        default: int | None = None,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        timeout_ns: int | None = None,
    ) -> int:
        """
        Do what incr() does, atomically; where nothing is under *key*, start from *default*.

        Args:
            default: Value to start from. None raises, as incr() does.
            timeout: Of a value that is made here; the time to live of another stays.

        Raises:
            ValueError: The key is not there, and *default* is None.
            TypeError: The value takes no addition.
            StoreUnavailableError: The store does not answer.
        """
        if default is None:
            return self.incr(key, delta, version)
        store_key = self._store_key(key, version)
        first = default + delta
        data = self.values.encode(store_key, first)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        for _ in range(MAX_SWAPS):
            total: int | Missing = self._add(store_key, delta)
            if total is not MISS:
                return total
            if self._store.compare_and_swap(store_key, None, data, timeout_s=timeout_s):
                return first
        raise self._too_many_swaps(key)

    def compare_and_swap(
        self,
        key: Any,
        expected: Any,
        value: Any,
        timeout: float | None = DEFAULT_TIMEOUT,
        version: int | None = None,
        *,
        timeout_ns: int | None = None,
    ) -> bool:
        """
        Store *value* only if *key* holds what equals *expected*, in value and type. Atomic.

        Args:
            expected: None stands for nothing there, and for a stored None, as in what get() returns.

        Returns:
            Whether *value* was stored.

        Raises:
            StoreUnavailableError: The store does not answer.
        """
        store_key = self._store_key(key, version)
        data = self.values.encode(store_key, value)
        timeout_s = self._timeout_s(timeout, timeout_ns)
        for _ in range(MAX_SWAPS):
            held = self._store.get(store_key)
            found = None if held is MISS else self._decode(store_key, held)
            if found is not MISS:
                if type(found) is not type(expected) or found != expected:
                    return False
                if self._store.compare_and_swap(
                    store_key, held if isinstance(held, bytes) else None, data, timeout_s=timeout_s
                ):
                    return True
        raise self._too_many_swaps(key)

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
        scanned, wanted, _ = self._prefixes(prefix, version)
        return self._store.delete_many([key for key in self._store.keys(scanned) if key.startswith(wanted)])

    def clear(self) -> None:
        """
        Drop every value and every live entry of this cache, in all processes, and nothing of anybody else.

        Raises:
            StoreUnavailableError: A tier did not answer.
            LedgerUnavailableError: The ledger did not answer.
        """
        ledger = self.assembly.ledger
        # Other processes hold live entries in their memory. A tick of each table makes those stale as well.
        clocks = [info.clock for info in ledger.clocks()]
        record = encode_record(None, note="clear()")
        is_told = not clocks or ledger.tick(dict.fromkeys(clocks, (TABLE_SLOT,)), records=dict.fromkeys(clocks, record))
        self.assembly.store.clear()
        if not is_told:
            raise LedgerUnavailableError(
                f"The ledger of cache {self.assembly.alias!r} did not answer. Other processes may serve what they have "
                "in memory, until this one reaches the ledger again."
            )

    def close(self, **kwargs: Any) -> None:
        """Do nothing: Django calls it after each request, and memory and connections outlive requests."""

    # -- inside

    def _put(self, store_key: str, data: bytes, timeout_s: float | None) -> bool:
        try:
            self._cull_if_full()
            self._store.put(store_key, data, timeout_s=timeout_s)
        except (StoreUnavailableError, QuotaExceededError):
            self._note_failure("set")
            return False
        return True

    def _cull_if_full(self) -> None:
        if self._is_culling and self._store.len() >= self._max_entries:
            self._store.delete_many(self._to_cull(list(self._store.keys())))

    def _decode(self, store_key: str, data: bytes) -> Any:
        """Return the value, or MISS for bytes that are not ours; those are counted and deleted."""
        value = self._decode_or_note(store_key, data)
        if value is MISS:
            try:
                self._store.delete(store_key)
            except StoreUnavailableError:
                self._note_failure("delete")
        return value

    def _add(self, store_key: str, delta: Any) -> Any:
        if type(delta) is int and delta in INT64:
            try:
                return self._store.increment(store_key, delta)
            except (StoreUnavailableError, InvalidKeyError):
                raise
            except StoreError:
                pass  # A float, an integer of more than 64 bits, or a sum that becomes one: added below.
        for _ in range(MAX_SWAPS):
            stored = self._store.get_with_expiry(store_key)
            value = self._decode(store_key, stored.value) if isinstance(stored, StoredValue) else MISS
            if not isinstance(stored, StoredValue) or value is MISS:
                return MISS
            total = value + delta
            data = self.values.encode(store_key, total)
            if self._store.compare_and_swap(store_key, stored.value, data, timeout_s=stored.expires_in_s):
                return total
        raise self._too_many_swaps(store_key)
