"""
The store in a file of this host: entries that all processes share and that survive them. The only importer of
``diskcache``.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar, cast

from live_cache.exceptions import (
    ConfigurationError,
    MissingExtraError,
    QuotaExceededError,
    StoreError,
    StoreUnavailableError,
)
from live_cache.stores.base import MISS, FlushReport, Missing, Store, StoredValue, StoreMetrics, lease_key, validate_key
from live_cache.stores.counters import StoreCounters
from live_cache.stores.disk_rows import (
    COUNT,
    DELETE,
    READ_BATCH,
    WRITE_BATCH,
    DiskRows,
    NoRoomError,
    fetch_all,
    key_ranges,
    marks,
    volume,
)
from live_cache.stores.integers import add_to_integer
from live_cache.stores.sqlite_file import SqliteFile

__all__ = ["DiskStore"]

T = TypeVar("T")
logger = logging.getLogger("live_cache.stores")


@cache
def _driver() -> tuple[Any, type[Any]]:
    """Return the module diskcache, and a Disk of it that stores only bytes, in the row, and reads nothing else."""
    try:
        import diskcache
    except ImportError as error:
        raise MissingExtraError("A disk store needs diskcache: pip install 'django-live-cache[disk]'.") from error

    class BytesDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache has no type hints.
        """
        Refuses what a planted row could abuse: a pickle runs code (CVE-2025-69872), a filename reads or removes files.
        """

        def put(self, key: str) -> tuple[str, bool]:
            if type(key) is not str:
                raise TypeError(f"A key is text, not {type(key).__name__}.")
            return key, True

        def get(self, key: Any, raw: Any) -> str:
            if type(key) is not str or raw != 1:
                raise StoreError("The row's key is no text: it was not written by this store.")
            return key

        def store(self, value: bytes, read: bool, key: Any = None) -> tuple[int, int, None, bytes]:
            if type(value) is not bytes or read:
                raise TypeError(f"A store holds bytes; the value for {key!r} is {type(value).__name__}.")
            # Size 0: it is for values in files of their own, and is added to the pages of the database.
            return 0, diskcache.core.MODE_RAW, None, value

        def fetch(self, mode: int, filename: str | None, value: Any, read: bool) -> bytes:
            if mode != diskcache.core.MODE_RAW or filename is not None or type(value) is not bytes or read:
                raise StoreError("The row holds no plain bytes: it was not written by this store.")
            return value

        def remove(self, file_path: str) -> None:
            """Remove nothing: no value has a file, so a name can only be planted."""

    return diskcache, BytesDisk


class DiskStore(Store):
    """
    Values in a SQLite file as diskcache lays it out, the least recently stored dropped first.

    diskcache makes the file and its tables and says how a value stands in a row. The statements are our own, since
    its own retry a read-only disk for ever, take the time from nowhere but time.time(), and know no prefixes.

    An accepted value survives a killed process; after flush() it survives a power cut. A writer waits up to *timeout_s*
    for the others; when that was in vain, the next give up at once, until a probe gets through. A damaged file raises
    StoreUnavailableError at each use until somebody removes the directory, which holds nothing but copies; the message
    says so. Not for network file systems: WAL needs shared memory.

    Args:
        directory: Where the file is, of this store alone. Created with mode 0700.
        max_bytes: Most bytes the file's used pages may take, about 50 kB of its own included.
        timeout_s: Seconds that a writer waits for other writers.
        clock: Seconds since the epoch, as all processes that share the directory have it.

    Raises:
        MissingExtraError: diskcache is not installed.
        ConfigurationError: The directory's name changes when ``~`` and ``$NAME`` in it are expanded a second time.
    """

    is_shared_by_processes = True
    is_shared_by_hosts = False
    evicts_by = "time of the put"

    def __init__(
        self,
        directory: str | Path,
        *,
        max_bytes: int = 1024 * 1024 * 1024,
        timeout_s: float = 10.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        expanded = os.path.abspath(os.path.expandvars(os.path.expanduser(directory)))
        if os.path.expandvars(expanded) != expanded:  # diskcache expands again, and would use another directory.
            raise ConfigurationError(f"The cache directory {expanded!r} must not have $NAME in its name.")
        self.name = "disk"
        self.directory = Path(expanded)
        self.max_bytes = max_bytes
        self._clock = clock
        # Without a reference to this store, so that no cycle keeps connections open until the collector comes.
        self._file = SqliteFile(
            self.directory / "cache.db", prepare=partial(_lay_out, self.directory, max_bytes), timeout_s=timeout_s
        )
        self._counters = StoreCounters()
        self._rows = DiskRows(
            _driver()[1](expanded), self.directory, max_bytes=max_bytes, clock=clock, counters=self._counters
        )

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key*, or MISS."""
        found = self._look_up((key,)).get(key)
        return MISS if found is None else found[0]

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live, or MISS."""
        found = self._look_up((key,)).get(key)
        if found is None:
            return MISS
        value, deadline = found
        return StoredValue(value, None if deadline is None else max(0.0, deadline - self._clock()))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there."""
        return {key: value for key, (value, _) in self._look_up(dict.fromkeys(keys)).items()}

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """
        Store *value* under *key*, replacing what was there. Others see it when this returns.

        Raises:
            QuotaExceededError: The value alone takes more than max_bytes. The old value is gone.
        """
        self.put_many({key: value}, timeout_s=timeout_s)

    def put_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """Store every value of *items*, up to 200 in one transaction. Not atomic over the keys."""
        for key in items:
            validate_key(key)
        if timeout_s is not None and timeout_s <= 0:
            self._delete_keys(items)
            self._counters.puts.add(len(items))
            return
        pairs = iter(items.items())
        while batch := list(itertools.islice(pairs, WRITE_BATCH)):
            deadline = None if timeout_s is None else self._clock() + timeout_s
            try:
                self._write(partial(self._rows.store, items=batch, deadline=deadline))
            except NoRoomError:
                self._put_one_by_one(batch, deadline)
            else:
                self._counters.puts.add(len(batch))

    def delete(self, key: str) -> bool:
        """Drop *key*. Return whether an unexpired value was there."""
        return self.delete_many((key,)) == 1

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drop *keys*. Return how many were there."""
        dropped = self._delete_keys([validate_key(key) for key in keys])
        self._counters.deletes.add(dropped)
        return dropped

    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key*. Counts as a lookup nowhere."""
        validate_key(key)
        return bool(self._read(lambda connection: self._rows.find(connection, (key,))))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix*, in their order, 500 per query."""
        ranges = key_ranges(prefix)
        return itertools.chain.from_iterable(self._iterate_keys(low, high) for low, high in ranges)

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix*, 200 per transaction. Return how many were dropped."""
        dropped = 0
        for low, high in key_ranges(prefix):
            while True:
                seen, unexpired = self._write(partial(self._rows.drop, "key >= ? AND key < ?", [low, high]))
                dropped += unexpired
                if seen < WRITE_BATCH:
                    break
        self._counters.deletes.add(dropped)
        return dropped

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays."""
        validate_key(key)

        def add(connection: sqlite3.Connection) -> int | Missing:
            held = self._rows.find(connection, (key,)).get(key)
            if held is None and default is None:
                return MISS
            value, deadline = (cast("int", default), None) if held is None else held
            total = add_to_integer(key, value, delta)
            self._rows.store(connection, [(key, b"%d" % total)], deadline)
            return total

        return self._write(add)

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic."""
        validate_key(key)

        def swap(connection: sqlite3.Connection) -> bool:
            held = self._rows.find(connection, (key,)).get(key)
            if (None if held is None else held[0]) != expected:
                return False
            if timeout_s is not None and timeout_s <= 0:
                connection.execute(DELETE, (key,))
            else:
                self._rows.store(connection, [(key, value)], None if timeout_s is None else self._clock() + timeout_s)
            return True

        try:
            is_stored = self._write(swap)
        except NoRoomError as error:
            raise self._reject(key, value) from error
        if is_stored:
            self._counters.puts.add_one()
        return is_stored

    def put_and_release(self, key: str, value: bytes, token: bytes, *, timeout_s: float | None = None) -> None:
        """Do what put() does, and end the lease of *key* if *token* holds it, in one transaction."""
        if timeout_s is not None and timeout_s <= 0:
            super().put_and_release(key, value, token, timeout_s=timeout_s)
            return
        validate_key(key)

        def put(connection: sqlite3.Connection) -> None:
            self._rows.store(connection, [(key, value)], None if timeout_s is None else self._clock() + timeout_s)
            connection.execute(f"{DELETE} AND value = ?", (lease_key(key), token))

        try:
            self._write(put)
        except NoRoomError as error:
            raise self._reject(key, value) from error
        self._counters.puts.add_one()

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""
        if timeout_s is not None and timeout_s <= 0:
            return bool(self._delete_keys((validate_key(key),)))
        validate_key(key)

        def move(connection: sqlite3.Connection) -> bool:
            now = self._clock()
            deadline = None if timeout_s is None else now + timeout_s
            update = "UPDATE Cache SET expire_time = ? WHERE raw = 1 AND key = ? AND"
            alive = " (expire_time IS NULL OR expire_time > ?)"
            return connection.execute(update + alive, (deadline, key, now)).rowcount == 1

        return self._write(move)

    def clear(self) -> None:
        """Drop every entry of this store, 200 per transaction."""
        ((last,),) = self._read(partial(fetch_all, "SELECT MAX(rowid) FROM Cache", ()))
        delete = "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE rowid <= ? LIMIT ?)"
        # Up to the last row of this moment, so that busy writers cannot keep it going.
        while last is not None and self._write(
            lambda connection: connection.execute(delete, (last, WRITE_BATCH)).rowcount
        ):
            pass

    def len(self) -> int:
        """Return how many entries are held, expired ones among them."""
        ((count,),) = self._read(partial(fetch_all, COUNT, ()))
        return int(count)

    def flush(self) -> FlushReport:
        """Wait until the disk has every entry that any process put before. Then a power cut loses none of them."""
        # A synced commit syncs the whole log up to it, whoever wrote it; what had left the log was synced then.
        mark = "UPDATE Settings SET value = value WHERE key = 'count'"
        self._write(lambda connection: connection.execute(mark), is_durable=True)
        return FlushReport(is_durable=True)

    def metrics(self) -> StoreMetrics:
        """Return a copy of the counters of this process. Entries and bytes are None while the file is out of reach."""
        try:
            ((entries,),) = self._file.read(partial(fetch_all, COUNT, ()))
            size_bytes = self._file.read(volume)
        except StoreUnavailableError:
            entries = size_bytes = None
        metrics = self._counters.snapshot(entries=entries, size_bytes=size_bytes)
        breaker = self._file.breaker
        metrics.breaker_opened = breaker.opened.value
        metrics.breaker_skipped = breaker.skipped.value
        metrics.breaker_probed = breaker.probed.value
        return metrics

    def close(self) -> None:
        """Close the connections of this process."""
        self._file.close()

    def _read(self, operation: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return self._file.read(operation)
        except StoreUnavailableError:
            self._counters.errors.add_one()
            raise

    def _write(self, operation: Callable[[sqlite3.Connection], T], *, is_durable: bool = False) -> T:
        try:
            return self._file.write(operation, is_durable=is_durable)
        except StoreUnavailableError:
            self._counters.errors.add_one()
            raise

    def _look_up(self, keys: Iterable[str]) -> dict[str, tuple[bytes, float | None]]:
        names = [validate_key(key) for key in keys]
        found = self._read(lambda connection: self._rows.find(connection, names))
        self._counters.count_lookups(hits=len(found), misses=len(names) - len(found))
        return found

    def _put_one_by_one(self, items: list[tuple[str, bytes]], deadline: float | None) -> None:
        """Store those of *items* that fit; then raise for the first that does not."""
        rejection: QuotaExceededError | None = None
        for item in items:
            try:
                self._write(partial(self._rows.store, items=[item], deadline=deadline))
                self._counters.puts.add_one()
            except NoRoomError:
                rejection = rejection or self._reject(*item)
        if rejection is not None:
            raise rejection

    def _reject(self, key: str, value: bytes) -> QuotaExceededError:
        self._counters.rejected_puts.add_one()
        self._counters.count_evictions("rejected", self._delete_keys((key,)))
        return QuotaExceededError(
            f"The value for {key!r} has {len(value)} bytes; the store in {self.directory} holds at most "
            f"{self.max_bytes}, its own tables included."
        )

    def _delete_keys(self, keys: Iterable[str]) -> int:
        """Drop *keys*, 200 per transaction. Return how many were there and had not expired."""
        names = iter(keys)
        dropped = 0
        while batch := list(itertools.islice(names, WRITE_BATCH)):
            dropped += self._write(partial(self._rows.drop, f"key IN ({marks(batch)})", batch))[1]
        return dropped

    def _iterate_keys(self, low: str, high: str | bytes) -> Iterator[str]:
        alive = "(expire_time IS NULL OR expire_time > ?)"
        select = f"SELECT key FROM Cache WHERE raw = 1 AND key >= ? AND key < ? AND {alive} ORDER BY key LIMIT ?"
        while True:
            arguments = (low, high, self._clock(), READ_BATCH)
            rows = self._read(partial(fetch_all, select, arguments))
            for (key,) in rows:
                yield key
            if len(rows) < READ_BATCH:
                return
            low = rows[-1][0] + "\x00"  # The very next text.


def _lay_out(directory: Path, max_bytes: int) -> None:
    """Make the file what diskcache makes of it, and close it again."""
    diskcache, bytes_disk = _driver()
    made = diskcache.Cache.__new__(diskcache.Cache)
    try:
        # Called apart from __new__, since an error would else leave the connection open, out of reach.
        made.__init__(
            str(directory),
            timeout=60,
            disk=bytes_disk,
            eviction_policy="least-recently-stored",
            size_limit=max_bytes,
            statistics=0,
            tag_index=0,
            sqlite_mmap_size=0,
        )
    except (AttributeError, TypeError, ValueError, diskcache.Timeout) as error:
        # The driver makes attributes and arguments of whatever it finds in the settings table.
        raise StoreUnavailableError(
            f"The file in {directory} has settings that are not diskcache's: remove the directory."
        ) from error
    finally:
        diskcache.Cache.close(made)
