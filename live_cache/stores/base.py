"""
The contract of every store: bytes under text keys, with a time to live.

A store keeps entries; it never decides whether one is fresh, the ledger does. So a store may lose
anything at any time, but it must never return an older value than the last one it accepted.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, ParamSpec, TypeAlias, TypeVar

from asgiref.sync import sync_to_async

from live_cache.exceptions import InvalidKeyError, StoreUnsupportedError

__all__ = [
    "MAX_KEY_BYTES",
    "MISS",
    "AsyncKind",
    "FlushReport",
    "Missing",
    "Store",
    "StoreMetrics",
    "StoredValue",
    "has_prefix",
    "lease_key",
    "validate_key",
]

P = ParamSpec("P")
T = TypeVar("T")


class Miss(enum.Enum):
    """The type of MISS."""

    MISS = "miss"

    def __repr__(self) -> str:
        return "MISS"

    def __bool__(self) -> bool:
        return False


MISS: Final = Miss.MISS
Missing: TypeAlias = Literal[Miss.MISS]
AsyncKind: TypeAlias = Literal["inline", "thread", "native", "tiers"]

# The longest key that every store holds as it is: 1,024 bytes is what zlayer's KvStore accepts, and
# far below the 512 MB of Redis and the page size of SQLite.
MAX_KEY_BYTES: Final = 1024


@dataclass(frozen=True, slots=True)
class StoredValue:
    """A value and how long it still lives, as a promotion to a nearer tier needs it."""

    value: bytes
    expires_in_s: float | None
    """Seconds that remain; None means that it does not expire."""


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What flush() made durable."""

    is_durable: bool
    """False for stores that keep nothing across a restart."""
    pending_entries: int = 0
    """Entries accepted but not yet durable after the flush."""


@dataclass(slots=True)
class StoreMetrics:
    """Counters of one store in this process. hits + misses == lookups, always."""

    lookups: int = 0
    hits: int = 0
    misses: int = 0
    puts: int = 0
    rejected_puts: int = 0
    deletes: int = 0
    errors: int = 0
    evictions: dict[str, int] = field(default_factory=dict)
    """Evicted entries by reason: expired, entries, bytes, rejected."""
    entries: int | None = None
    """Entries held now, or None where the store cannot tell."""
    size_bytes: int | None = None
    """Bytes held now, or None where the store cannot tell."""
    breaker_opened: int = 0
    """How often the store stopped answering, for stores with a circuit breaker."""
    breaker_skipped: int = 0
    """Calls that failed at once, because it had not answered just before."""
    breaker_probed: int = 0
    """Calls that tried whether it answers again."""


def validate_key(key: str) -> str:
    """
    Return *key*, or raise if a store cannot hold it.

    Raises:
        InvalidKeyError: The key is empty, longer than 1,024 bytes in UTF-8, or not text that UTF-8 encodes.
    """
    if not key:
        raise InvalidKeyError("A cache key must not be empty.")
    try:
        size_bytes = len(key) if key.isascii() else len(key.encode())
    except UnicodeEncodeError as error:
        raise InvalidKeyError(f"The cache key {key!r} is not valid Unicode text.") from error
    if size_bytes > MAX_KEY_BYTES:
        raise InvalidKeyError(f"The cache key {key[:40]!r}... has {size_bytes} bytes, the limit is {MAX_KEY_BYTES}.")
    return key


def has_prefix(key: str, prefix: str) -> bool:
    """
    Return whether *key* lies under *prefix*, segment by segment.

    ``client`` covers ``client`` and ``client/...`` but not ``clients``. The empty prefix covers every key, and a
    prefix that ends in ``/`` covers only what is below it.
    """
    if not prefix:
        return True
    if prefix.endswith("/"):
        return key.startswith(prefix)
    return key == prefix or key.startswith(prefix + "/")


def lease_key(key: str) -> str:
    """Return the key under which a store keeps the lease of *key*."""
    return f"lease/{key}"


class Store(ABC):
    """
    Bytes under text keys.

    Safe to share between threads. After put() returned, get() on the same store never returns an older value; it may
    return MISS, since any store may evict. A put that is rejected (too large) drops the old value of the key. Every
    method raises StoreUnavailableError when the store does not answer, and InvalidKeyError for a key that breaks the
    rules of validate_key(). Times to live are in seconds: None never expires, zero or less is expired at once (and
    drops what was there). An async twin ``aget`` does what ``get`` does.
    """

    name: str
    """Short name for metrics and messages: memory, disk, redis, null, tiered."""
    is_shared_by_processes: bool
    """Whether other processes of this host see the entries."""
    is_shared_by_hosts: bool
    """Whether processes of other hosts see the entries."""
    async_kind: AsyncKind = "thread"
    """
    How the async twins work: ``inline`` in the event loop without waiting, in a ``thread`` (one per call), ``native``
    by an asynchronous driver, or as the ``tiers`` do.
    """
    evicts_by: str = "nothing"
    """What goes first when the store is full, in words: least recent use, time of the put, the server."""

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key*, or MISS. An expired value is never returned."""
        stored = self.get_with_expiry(key)
        return MISS if stored is MISS else stored.value

    @abstractmethod
    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live, or MISS."""

    @abstractmethod
    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there."""

    @abstractmethod
    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """
        Store *value* under *key*, replacing what was there.

        Raises:
            QuotaExceededError: The value is larger than the store accepts. The old value is gone.
        """

    def put_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """Store every value of *items*. Not atomic over the keys."""
        for key, value in items.items():
            self.put(key, value, timeout_s=timeout_s)

    @abstractmethod
    def delete(self, key: str) -> bool:
        """Drop *key*. Return whether an unexpired value was there."""

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drop *keys*. Return how many were there."""
        return sum(self.delete(key) for key in keys)

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key*. Counts as a lookup nowhere."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix* (see has_prefix()), in no order, each once. May scan, in batches."""

    def invalidate_prefix(self, prefix: str) -> int:
        """
        Drop every key under *prefix* (see has_prefix()). Return how many were dropped.

        May scan, in batches that block nobody for long. Keys written meanwhile may stay.
        """
        return self.delete_many(list(self.keys(prefix)))

    @abstractmethod
    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """
        Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays.

        Args:
            default: Value to start from where the key is missing (no expiry). None returns MISS then, changing nothing.

        Raises:
            StoreError: The value is not a decimal integer, or the sum does not fit into 64 bits. Nothing changed.
        """

    @abstractmethod
    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """
        Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic.

        Returns:
            Whether *value* was stored.
        """

    @abstractmethod
    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""

    def take_lease(self, key: str, token: bytes, *, timeout_s: float) -> tuple[bool, bytes | Missing]:
        """
        Take the lease of *key*, unless it is held, and then read the value under *key*.

        A lease is a promise to put that value soon, so that others may wait for it. It binds nobody, and like any
        value it may be evicted.

        Args:
            token: Names the owner; no two are alike.
            timeout_s: Seconds, more than 0, after which it ends by itself.

        Returns:
            Whether it was taken, and then the value of a moment when it was held, or MISS.
        """
        if not self.compare_and_swap(lease_key(key), None, token, timeout_s=timeout_s):
            return False, MISS
        return True, self.get(key)

    def is_leased(self, key: str) -> bool:
        """Return whether somebody holds the lease of *key*."""
        return self.exists(lease_key(key))

    def release_lease(self, key: str, token: bytes) -> None:
        """End the lease of *key* if *token* holds it."""
        self.compare_and_swap(lease_key(key), token, b"", timeout_s=0)

    def put_and_release(self, key: str, value: bytes, token: bytes, *, timeout_s: float | None = None) -> None:
        """Do what put() does, then end the lease of *key* if *token* holds it. In one round trip, where it can be."""
        self.put(key, value, timeout_s=timeout_s)
        self.release_lease(key, token)

    @abstractmethod
    def clear(self) -> None:
        """Drop every entry of this store, and nothing that belongs to others."""

    def len(self) -> int:
        """
        Return about how many entries are held; expired ones may count. For capacity, never for correctness.

        Raises:
            StoreUnsupportedError: The store cannot tell.
        """
        raise StoreUnsupportedError(f"The store {self.name!r} cannot count its entries.")

    def flush(self) -> FlushReport:
        """Make every accepted entry durable, where the store has durability."""
        return FlushReport(is_durable=False)

    @abstractmethod
    def metrics(self) -> StoreMetrics:
        """Return a copy of the counters of this process."""

    @abstractmethod
    def close(self) -> None:
        """Release connections and files of this process. The store opens them again when it is used."""

    async def aget(self, key: str) -> bytes | Missing:
        """See get()."""
        return await self._twin(self.get, key)

    async def aget_with_expiry(self, key: str) -> StoredValue | Missing:
        """See get_with_expiry()."""
        return await self._twin(self.get_with_expiry, key)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """See get_many()."""
        return await self._twin(self.get_many, keys)

    async def aput(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """See put()."""
        await self._twin(self.put, key, value, timeout_s=timeout_s)

    async def aput_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """See put_many()."""
        await self._twin(self.put_many, items, timeout_s=timeout_s)

    async def adelete(self, key: str) -> bool:
        """See delete()."""
        return await self._twin(self.delete, key)

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """See delete_many()."""
        return await self._twin(self.delete_many, keys)

    async def aexists(self, key: str) -> bool:
        """See exists()."""
        return await self._twin(self.exists, key)

    async def akeys(self, prefix: str = "") -> list[str]:
        """See keys(). Returns a list."""
        return await self._twin(lambda: list(self.keys(prefix)))

    async def ainvalidate_prefix(self, prefix: str) -> int:
        """See invalidate_prefix()."""
        return await self._twin(self.invalidate_prefix, prefix)

    async def aincrement(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """See increment()."""
        return await self._twin(self.increment, key, delta, default=default)

    async def acompare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """See compare_and_swap()."""
        return await self._twin(self.compare_and_swap, key, expected, value, timeout_s=timeout_s)

    async def atouch(self, key: str, timeout_s: float | None) -> bool:
        """See touch()."""
        return await self._twin(self.touch, key, timeout_s)

    async def aclear(self) -> None:
        """See clear()."""
        await self._twin(self.clear)

    async def alen(self) -> int:
        """See len()."""
        return await self._twin(self.len)

    async def aflush(self) -> FlushReport:
        """See flush()."""
        return await self._twin(self.flush)

    async def aclose(self) -> None:
        """See close()."""
        await self._twin(self.close)

    async def _twin(self, method: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call *method*, in a thread unless it waits for nothing."""
        if self.async_kind == "inline":
            return method(*args, **kwargs)
        return await sync_to_async(method, thread_sensitive=False)(*args, **kwargs)
