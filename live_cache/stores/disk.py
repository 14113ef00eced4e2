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
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import cache, partial
from pathlib import Path
from typing import Any, Final, TypeVar, cast

from live_cache.exceptions import (
    ConfigurationError,
    MissingExtraError,
    QuotaExceededError,
    StoreError,
    StoreUnavailableError,
)
from live_cache.stores.base import MISS, FlushReport, Missing, Store, StoredValue, StoreMetrics, validate_key
from live_cache.stores.counters import StoreCounters
from live_cache.stores.integers import add_to_integer
from live_cache.stores.sqlite_file import SqliteFile

__all__ = ["DiskStore"]

T = TypeVar("T")
logger = logging.getLogger("live_cache.stores")

_READ_BATCH: Final = 500
# Rows that one transaction changes: others wait for it some 20 ms.
_WRITE_BATCH: Final = 200
_EVICT_BATCH: Final = 10

_SELECT: Final = "SELECT key, mode, filename, value, expire_time FROM Cache WHERE raw = 1 AND key "
_UPSERT: Final = """
    INSERT INTO Cache (key, raw, store_time, expire_time, access_time, size, mode, filename, value)
    VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (key, raw) DO UPDATE SET
        store_time = excluded.store_time, expire_time = excluded.expire_time, access_time = excluded.access_time,
        size = excluded.size, mode = excluded.mode, filename = excluded.filename, value = excluded.value
"""
_COUNT: Final = "SELECT value FROM Settings WHERE key = 'count'"  # Kept by triggers of diskcache.
_DELETE: Final = "DELETE FROM Cache WHERE raw = 1 AND key = ?"
_DELETE_EXPIRED: Final = """
    DELETE FROM Cache WHERE rowid IN (
        SELECT rowid FROM Cache WHERE expire_time IS NOT NULL AND expire_time <= ? ORDER BY expire_time LIMIT ?)
"""
_DELETE_OLDEST: Final = """
    DELETE FROM Cache WHERE rowid IN (
        SELECT rowid FROM Cache WHERE NOT (raw = 1 AND key = ?) ORDER BY store_time LIMIT ?)
"""


class _NoRoomError(Exception):
    """The value alone is larger than the store. Rolls the transaction back."""


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
        self._disk = _driver()[1](expanded)
        # Without a reference to this store, so that no cycle keeps connections open until the collector comes.
        self._file = SqliteFile(
            self.directory / "cache.db", prepare=partial(_lay_out, self.directory, max_bytes), timeout_s=timeout_s
        )
        self._counters = StoreCounters()

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
        while batch := list(itertools.islice(pairs, _WRITE_BATCH)):
            deadline = None if timeout_s is None else self._clock() + timeout_s
            try:
                self._write(partial(self._store, items=batch, deadline=deadline))
            except _NoRoomError:
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
        return bool(self._read(lambda connection: self._rows(connection, (key,))))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix*, in their order, 500 per query."""
        ranges = _key_ranges(prefix)
        return itertools.chain.from_iterable(self._iterate_keys(low, high) for low, high in ranges)

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix*, 200 per transaction. Return how many were dropped."""
        dropped = 0
        for low, high in _key_ranges(prefix):
            while True:
                seen, unexpired = self._write(partial(self._drop_rows, "key >= ? AND key < ?", [low, high]))
                dropped += unexpired
                if seen < _WRITE_BATCH:
                    break
        self._counters.deletes.add(dropped)
        return dropped

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays."""
        validate_key(key)

        def add(connection: sqlite3.Connection) -> int | Missing:
            held = self._rows(connection, (key,)).get(key)
            if held is None and default is None:
                return MISS
            value, deadline = (cast("int", default), None) if held is None else held
            total = add_to_integer(key, value, delta)
            self._store(connection, [(key, b"%d" % total)], deadline)
            return total

        return self._write(add)

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic."""
        validate_key(key)

        def swap(connection: sqlite3.Connection) -> bool:
            held = self._rows(connection, (key,)).get(key)
            if (None if held is None else held[0]) != expected:
                return False
            if timeout_s is not None and timeout_s <= 0:
                connection.execute(_DELETE, (key,))
            else:
                self._store(connection, [(key, value)], None if timeout_s is None else self._clock() + timeout_s)
            return True

        try:
            is_stored = self._write(swap)
        except _NoRoomError as error:
            raise self._reject(key, value) from error
        if is_stored:
            self._counters.puts.add_one()
        return is_stored

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
        ((last,),) = self._read(partial(_fetch_all, "SELECT MAX(rowid) FROM Cache", ()))
        delete = "DELETE FROM Cache WHERE rowid IN (SELECT rowid FROM Cache WHERE rowid <= ? LIMIT ?)"
        # Up to the last row of this moment, so that busy writers cannot keep it going.
        while last is not None and self._write(
            lambda connection: connection.execute(delete, (last, _WRITE_BATCH)).rowcount
        ):
            pass

    def len(self) -> int:
        """Return how many entries are held, expired ones among them."""
        ((count,),) = self._read(partial(_fetch_all, _COUNT, ()))
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
            ((entries,),) = self._file.read(partial(_fetch_all, _COUNT, ()))
            size_bytes = self._file.read(_volume)
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
        found = self._read(lambda connection: self._rows(connection, names))
        self._counters.count_lookups(hits=len(found), misses=len(names) - len(found))
        return found

    def _rows(self, connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, tuple[bytes, float | None]]:
        """Return value and deadline of the unexpired ones of *keys*. Rows of a foreign hand are as good as absent."""
        found: dict[str, tuple[bytes, float | None]] = {}
        now = self._clock()
        names = iter(keys)
        while batch := list(itertools.islice(names, _READ_BATCH)):
            condition = "= ?" if len(batch) == 1 else f"IN ({_marks(batch)})"
            for key, mode, filename, value, deadline in connection.execute(_SELECT + condition, batch).fetchall():
                if deadline is not None and deadline <= now:
                    continue
                try:
                    found[key] = self._disk.fetch(mode, filename, value, False), deadline
                except StoreError as error:
                    logger.warning("Ignored the row of %r in %s. %s", key, self.directory, error)
        return found

    def _store(
        self, connection: sqlite3.Connection, items: Iterable[tuple[str, bytes]], deadline: float | None
    ) -> None:
        """Store *items* and make room for them, within a transaction."""
        now = self._clock()
        expired = evicted = 0
        for key, value in items:
            row = self._disk.store(value, False, key=key)
            try:
                connection.execute(_UPSERT, (key, now, deadline, now, *row))
            except (sqlite3.DataError, OverflowError) as error:  # Over the 1 GB that SQLite puts into a row.
                raise _NoRoomError from error
            expired += connection.execute(_DELETE_EXPIRED, (now, _EVICT_BATCH)).rowcount
            while _volume(connection) > self.max_bytes:
                dropped = connection.execute(_DELETE_OLDEST, (key, _EVICT_BATCH)).rowcount
                if not dropped:
                    raise _NoRoomError
                evicted += dropped
        self._counters.count_evictions("expired", expired)
        self._counters.count_evictions("bytes", evicted)

    def _put_one_by_one(self, items: list[tuple[str, bytes]], deadline: float | None) -> None:
        """Store those of *items* that fit; then raise for the first that does not."""
        rejection: QuotaExceededError | None = None
        for item in items:
            try:
                self._write(partial(self._store, items=[item], deadline=deadline))
                self._counters.puts.add_one()
            except _NoRoomError:
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
        while batch := list(itertools.islice(names, _WRITE_BATCH)):
            dropped += self._write(partial(self._drop_rows, f"key IN ({_marks(batch)})", batch))[1]
        return dropped

    def _drop_rows(
        self, condition: str, arguments: Sequence[str | bytes], connection: sqlite3.Connection
    ) -> tuple[int, int]:
        """Drop up to 200 rows, within a transaction. Return how many, and how many of them had not expired."""
        select = f"SELECT rowid, expire_time FROM Cache WHERE raw = 1 AND {condition} LIMIT ?"
        rows = connection.execute(select, (*arguments, _WRITE_BATCH)).fetchall()
        connection.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid, _ in rows])
        now = self._clock()
        return len(rows), sum(deadline is None or deadline > now for _, deadline in rows)

    def _iterate_keys(self, low: str, high: str | bytes) -> Iterator[str]:
        alive = "(expire_time IS NULL OR expire_time > ?)"
        select = f"SELECT key FROM Cache WHERE raw = 1 AND key >= ? AND key < ? AND {alive} ORDER BY key LIMIT ?"
        while True:
            arguments = (low, high, self._clock(), _READ_BATCH)
            rows = self._read(partial(_fetch_all, select, arguments))
            for (key,) in rows:
                yield key
            if len(rows) < _READ_BATCH:
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


def _fetch_all(statement: str, arguments: Sequence[Any], connection: sqlite3.Connection) -> list[Any]:
    return connection.execute(statement, arguments).fetchall()


def _marks(values: Sized) -> str:
    return ",".join("?" * len(values))


def _volume(connection: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use. Rows that this transaction deleted count no more."""
    pages, free, page_bytes = (
        connection.execute(f"PRAGMA {name}").fetchall()[0][0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_bytes)


def _key_ranges(prefix: str) -> list[tuple[str, str | bytes]]:
    """Return the ranges [low, high) of texts, by UTF-8, that has_prefix() says are under *prefix*."""
    if not prefix:
        return [("", b"")]  # Every text sorts before every blob.
    validate_key(prefix)
    if prefix.endswith("/"):
        return [(prefix, prefix[:-1] + "0")]  # 0 follows / in ASCII.
    return [(prefix, prefix + "\x00"), (prefix + "/", prefix + "0")]
