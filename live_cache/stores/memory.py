"""
The store in this process's memory: the nearest tier. The only importer of ``cachebox``.
"""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NoReturn, Protocol, TypeAlias, cast

from live_cache.exceptions import QuotaExceededError
from live_cache.stores.base import MISS, Missing, Store, StoredValue, StoreMetrics, has_prefix, validate_key
from live_cache.stores.counters import StoreCounters
from live_cache.stores.forks import ForkAware
from live_cache.stores.integers import add_to_integer

__all__ = ["MemoryStore"]

# Value, deadline by the store's clock (None: never), and the bytes that the entry is charged with. A tuple, so that
# no reader ever sees half of a replacement.
_Entry: TypeAlias = tuple[bytes, float | None, int]

# What the map, the list of uses, the tuple and its float take beside key and value: measured as 139 bytes with
# cachebox and values of 96 bytes, rounded up for the fallback.
_ENTRY_OVERHEAD_BYTES: Final = 160
_DELETE_BATCH: Final = 1000


class _Entries(Protocol):
    """What is needed of a map that knows which key was used least recently. cachebox.LRUCache has it."""

    def get(self, key: str, /) -> _Entry | None: ...
    def peek(self, key: str, /) -> _Entry | None: ...
    def insert(self, key: str, entry: _Entry, /) -> _Entry | None: ...
    def pop(self, key: str, default: None, /) -> _Entry | None: ...
    def popitem(self) -> tuple[str, _Entry]: ...
    def keys(self) -> Iterable[str]: ...
    def __len__(self) -> int: ...


class _PlainEntries:
    """The map without cachebox."""

    def __init__(self) -> None:
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.RLock()

    def after_fork_in_child(self) -> None:
        """Replace the lock."""
        self._lock = threading.RLock()

    def get(self, key: str, /) -> _Entry | None:
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
            return entry

    def peek(self, key: str, /) -> _Entry | None:
        return self._entries.get(key)

    def insert(self, key: str, entry: _Entry, /) -> _Entry | None:
        with self._lock:
            replaced = self._entries.get(key)
            self._entries[key] = entry
            self._entries.move_to_end(key)
            return replaced

    def pop(self, key: str, default: None, /) -> _Entry | None:
        with self._lock:
            return self._entries.pop(key, default)

    def popitem(self) -> tuple[str, _Entry]:
        with self._lock:
            return self._entries.popitem(last=False)

    def keys(self) -> list[str]:
        with self._lock:
            return list(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _make_entries(*, use_cachebox: bool | None) -> _Entries:
    if use_cachebox is not False:
        try:
            # Bounds are kept by the store, which must count evictions by reason: 0 is "no bound of its own".
            return cast("_Entries", importlib.import_module("cachebox").LRUCache(0))
        except ImportError:
            if use_cachebox:
                raise
    return _PlainEntries()


class MemoryStore(ForkAware, Store):
    """
    Values in the memory of this process, the least recently used dropped first.

    Safe between threads, and across a fork, which gives the child a copy of its own.

    Args:
        max_entries: Most entries to hold.
        max_bytes: Most bytes to hold, keys and about 160 bytes of overhead per entry included.
        evicts: False makes the bounds quotas: what does not fit raises QuotaExceededError, once expired entries have
            made room. The number of entries matters to new keys only.
        clock: Seconds that only grow.
        use_cachebox: True demands cachebox, False the plain map. None takes cachebox where it is installed.
    """

    is_shared_by_processes = False
    is_shared_by_hosts = False
    async_kind = "inline"
    evicts_by = "least recent use"

    def __init__(
        self,
        name: str = "memory",
        *,
        max_entries: int = 10_000,
        max_bytes: int = 64 * 1024 * 1024,
        evicts: bool = True,
        clock: Callable[[], float] = time.monotonic,
        use_cachebox: bool | None = None,
    ) -> None:
        self.name = name
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.evicts = evicts
        if not evicts:
            self.evicts_by = "nothing"
        self._clock = clock
        self._entries = _make_entries(use_cachebox=use_cachebox)
        self._size_bytes = 0
        # Held by whatever changes the entries. Readers do without. Reentrant, since a signal handler or a finalizer
        # may use the cache while its own thread is inside.
        self._lock = threading.RLock()
        self._counters = StoreCounters()
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Replace the lock, and count again what a thread may have left half counted."""
        self._lock = threading.RLock()
        if isinstance(self._entries, _PlainEntries):
            self._entries.after_fork_in_child()
        entries = [self._entries.peek(key) for key in list(self._entries.keys())]
        self._size_bytes = sum(entry[2] for entry in entries if entry is not None)

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key*, or MISS. An expired value is never returned."""
        entry = self._look_up(key)
        return MISS if entry is None else entry[0]

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live, or MISS."""
        entry = self._look_up(key)
        if entry is None:
            return MISS
        value, deadline, _ = entry
        return StoredValue(value, None if deadline is None else max(0.0, deadline - self._clock()))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there."""
        entries = {key: self._look_up(key) for key in dict.fromkeys(keys)}
        return {key: entry[0] for key, entry in entries.items() if entry is not None}

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """
        Store *value* under *key*, replacing what was there.

        Raises:
            QuotaExceededError: The entry alone is larger than max_bytes. The old value is gone.
        """
        validate_key(key)
        with self._lock:
            self._replace(key, value, timeout_s)

    def delete(self, key: str) -> bool:
        """Drop *key*. Return whether an unexpired value was there."""
        validate_key(key)
        with self._lock:
            was_there = self._live(key) is not None and self._drop(key)
        if was_there:
            self._counters.deletes.add_one()
        return was_there

    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key*. Counts as a lookup nowhere."""
        validate_key(key)
        return self._is_live(self._entries.peek(key))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix*, of a list taken at the first step."""
        if prefix:
            validate_key(prefix)
        return self._iterate(prefix)

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix*. Return how many were dropped."""
        found = self.keys(prefix)
        dropped = 0
        while batch := list(itertools.islice(found, _DELETE_BATCH)):
            with self._lock:
                dropped += sum(self._drop(key) for key in batch)
        self._counters.deletes.add(dropped)
        return dropped

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays."""
        validate_key(key)
        with self._lock:
            entry = self._live(key)
            if entry is None and default is None:
                return MISS
            total = add_to_integer(key, entry[0] if entry is not None else cast("int", default), delta)
            self._insert(key, b"%d" % total, None if entry is None else entry[1])
            return total

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic."""
        validate_key(key)
        with self._lock:
            entry = self._live(key)
            if (None if entry is None else entry[0]) != expected:
                return False
            self._replace(key, value, timeout_s)
            return True

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""
        validate_key(key)
        with self._lock:
            entry = self._live(key)
            if entry is None:
                return False
            if timeout_s is not None and timeout_s <= 0:
                self._drop(key)
            else:
                self._insert(key, entry[0], None if timeout_s is None else self._clock() + timeout_s)
            return True

    def clear(self) -> None:
        """Drop every entry of this store."""
        with self._lock:
            while len(self._entries):
                _, entry = self._entries.popitem()
                self._size_bytes -= entry[2]

    def len(self) -> int:
        """Return how many entries are held, expired ones among them."""
        return len(self._entries)

    def metrics(self) -> StoreMetrics:
        """Return a copy of the counters of this process."""
        return self._counters.snapshot(entries=len(self._entries), size_bytes=self._size_bytes)

    def close(self) -> None:
        """Do nothing: there is neither a connection nor a file."""

    def _look_up(self, key: str) -> _Entry | None:
        validate_key(key)
        entry = self._entries.get(key)
        if entry is not None and (entry[1] is None or self._clock() < entry[1]):
            self._counters.hits.add_one()
            return entry
        self._counters.misses.add_one()
        if entry is not None:
            with self._lock:
                self._live(key)
        return None

    def _is_live(self, entry: _Entry | None) -> bool:
        return entry is not None and (entry[1] is None or self._clock() < entry[1])

    def _iterate(self, prefix: str) -> Iterator[str]:
        with self._lock:
            names = list(self._entries.keys())
        for key in names:
            if has_prefix(key, prefix) and self._is_live(self._entries.peek(key)):
                yield key

    # The methods below need the lock.

    def _live(self, key: str) -> _Entry | None:
        """Return the entry under *key*; one that has expired is dropped and counted."""
        entry = self._entries.peek(key)
        if entry is None or self._is_live(entry):
            return entry
        self._drop(key)
        self._counters.count_evictions("expired")
        return None

    def _drop(self, key: str) -> bool:
        entry = self._entries.pop(key, None)
        if entry is None:
            return False
        self._size_bytes -= entry[2]
        return True

    def _replace(self, key: str, value: bytes, timeout_s: float | None) -> None:
        if timeout_s is not None and timeout_s <= 0:
            self._drop(key)
        else:
            self._insert(key, value, None if timeout_s is None else self._clock() + timeout_s)
        self._counters.puts.add_one()

    def _insert(self, key: str, value: bytes, deadline: float | None) -> None:
        if type(value) is not bytes:
            # A bytearray could change after it was stored, and a subclass may hold more than bytes.
            raise TypeError(f"A store holds bytes; the value for {key!r} is {type(value).__name__}.")
        size_bytes = sys.getsizeof(value) + sys.getsizeof(key) + _ENTRY_OVERHEAD_BYTES
        if size_bytes > self.max_bytes:
            self._reject(
                key,
                f"The value for {key!r} takes {size_bytes} bytes; "
                f"the store {self.name!r} holds at most {self.max_bytes} in all.",
            )
        if not self.evicts:
            self._refuse_if_full(key, size_bytes)
        self._size_bytes += size_bytes
        replaced = self._entries.insert(key, (value, deadline, size_bytes))
        if replaced is not None:
            self._size_bytes -= replaced[2]
        if not self.evicts:
            return
        while self._size_bytes > self.max_bytes:
            self._evict("bytes")
        while len(self._entries) > self.max_entries:
            self._evict("entries")

    def _refuse_if_full(self, key: str, size_bytes: int) -> None:
        held = self._entries.peek(key)
        more_entries, more_bytes = (1, size_bytes) if held is None else (0, size_bytes - held[2])

        def is_full() -> bool:
            entries, bytes_held = len(self._entries) + more_entries, self._size_bytes + more_bytes
            return (entries > self.max_entries and more_entries > 0) or bytes_held > self.max_bytes

        if is_full():
            for other in list(self._entries.keys()):
                if other != key:
                    self._live(other)
        if is_full():
            held_bytes, n_entries = self._size_bytes, len(self._entries)
            self._reject(
                key,
                f"There is no room for {key!r}: the store {self.name!r} holds {n_entries} of "
                f"{self.max_entries} entries, {held_bytes} of {self.max_bytes} bytes, and evicts nothing.",
            )

    def _reject(self, key: str, message: str) -> NoReturn:
        # The value from before must not be taken for the one that was refused.
        self._counters.rejected_puts.add_one()
        if self._drop(key):
            self._counters.count_evictions("rejected")
        raise QuotaExceededError(message)

    def _evict(self, reason: str) -> None:
        _, entry = self._entries.popitem()
        self._size_bytes -= entry[2]
        self._counters.count_evictions(reason if self._is_live(entry) else "expired")
