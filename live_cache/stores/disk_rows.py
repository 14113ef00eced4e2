"""
The rows of the disk store: its statements, each within a connection or a transaction that the store has opened.
"""

from __future__ import annotations

import itertools
import logging
import sqlite3
from collections.abc import Callable, Iterable, Sequence, Sized
from pathlib import Path
from typing import Any, Final

from live_cache.exceptions import StoreError
from live_cache.stores.base import validate_key
from live_cache.stores.counters import StoreCounters

__all__ = [
    "COUNT",
    "DELETE",
    "READ_BATCH",
    "WRITE_BATCH",
    "DiskRows",
    "NoRoomError",
    "fetch_all",
    "key_ranges",
    "marks",
    "volume",
]

logger = logging.getLogger("live_cache.stores")

READ_BATCH: Final = 500
# Rows that one transaction changes: others wait for it some 20 ms.
WRITE_BATCH: Final = 200
_EVICT_BATCH: Final = 10

_SELECT: Final = "SELECT key, mode, filename, value, expire_time FROM Cache WHERE raw = 1 AND key "
_UPSERT: Final = """
    INSERT INTO Cache (key, raw, store_time, expire_time, access_time, size, mode, filename, value)
    VALUES (?, 1, ?, ?, ?, ?, ?, ?, ?)
    ON CONFLICT (key, raw) DO UPDATE SET
        store_time = excluded.store_time, expire_time = excluded.expire_time, access_time = excluded.access_time,
        size = excluded.size, mode = excluded.mode, filename = excluded.filename, value = excluded.value
"""
COUNT: Final = "SELECT value FROM Settings WHERE key = 'count'"  # Kept by triggers of diskcache.
DELETE: Final = "DELETE FROM Cache WHERE raw = 1 AND key = ?"
_DELETE_EXPIRED: Final = """
    DELETE FROM Cache WHERE rowid IN (
        SELECT rowid FROM Cache WHERE expire_time IS NOT NULL AND expire_time <= ? ORDER BY expire_time LIMIT ?)
"""
_DELETE_OLDEST: Final = """
    DELETE FROM Cache WHERE rowid IN (
        SELECT rowid FROM Cache WHERE NOT (raw = 1 AND key = ?) ORDER BY store_time LIMIT ?)
"""


class NoRoomError(Exception):
    """The value alone is larger than the store. Rolls the transaction back."""


class DiskRows:
    """
    Reads and writes rows, and makes room for them.

    Args:
        disk: A Disk of diskcache that stores only bytes, in the row.
        directory: Where the file is, for messages.
        max_bytes: Most bytes that the used pages of the file may take.
        clock: Seconds since the epoch.
        counters: Of the store; evictions are counted there.
    """

    def __init__(
        self, disk: Any, directory: Path, *, max_bytes: int, clock: Callable[[], float], counters: StoreCounters
    ) -> None:
        self._disk = disk
        self._directory = directory
        self._max_bytes = max_bytes
        self._clock = clock
        self._counters = counters

    def find(self, connection: sqlite3.Connection, keys: Iterable[str]) -> dict[str, tuple[bytes, float | None]]:
        """Return value and deadline of the unexpired ones of *keys*. Rows of a foreign hand are as good as absent."""
        found: dict[str, tuple[bytes, float | None]] = {}
        now = self._clock()
        names = iter(keys)
        while batch := list(itertools.islice(names, READ_BATCH)):
            condition = "= ?" if len(batch) == 1 else f"IN ({marks(batch)})"
            for key, mode, filename, value, deadline in connection.execute(_SELECT + condition, batch).fetchall():
                if deadline is not None and deadline <= now:
                    continue
                try:
                    found[key] = self._disk.fetch(mode, filename, value, False), deadline
                except StoreError as error:
                    logger.warning("Ignored the row of %r in %s. %s", key, self._directory, error)
        return found

    def store(self, connection: sqlite3.Connection, items: Iterable[tuple[str, bytes]], deadline: float | None) -> None:
        """Store *items* and make room for them, within a transaction."""
        now = self._clock()
        expired = evicted = 0
        for key, value in items:
            row = self._disk.store(value, False, key=key)
            try:
                connection.execute(_UPSERT, (key, now, deadline, now, *row))
            except (sqlite3.DataError, OverflowError) as error:  # Over the 1 GB that SQLite puts into a row.
                raise NoRoomError from error
            expired += connection.execute(_DELETE_EXPIRED, (now, _EVICT_BATCH)).rowcount
            while volume(connection) > self._max_bytes:
                dropped = connection.execute(_DELETE_OLDEST, (key, _EVICT_BATCH)).rowcount
                if not dropped:
                    raise NoRoomError
                evicted += dropped
        self._counters.count_evictions("expired", expired)
        self._counters.count_evictions("bytes", evicted)

    def drop(self, condition: str, arguments: Sequence[str | bytes], connection: sqlite3.Connection) -> tuple[int, int]:
        """Drop up to 200 rows, within a transaction. Return how many, and how many of them had not expired."""
        select = f"SELECT rowid, expire_time FROM Cache WHERE raw = 1 AND {condition} LIMIT ?"
        rows = connection.execute(select, (*arguments, WRITE_BATCH)).fetchall()
        connection.executemany("DELETE FROM Cache WHERE rowid = ?", [(rowid,) for rowid, _ in rows])
        now = self._clock()
        return len(rows), sum(deadline is None or deadline > now for _, deadline in rows)


def fetch_all(statement: str, arguments: Sequence[Any], connection: sqlite3.Connection) -> list[Any]:
    return connection.execute(statement, arguments).fetchall()


def marks(values: Sized) -> str:
    return ",".join("?" * len(values))


def volume(connection: sqlite3.Connection) -> int:
    """Return the bytes of the pages in use. Rows that this transaction deleted count no more."""
    pages, free, page_bytes = (
        connection.execute(f"PRAGMA {name}").fetchall()[0][0] for name in ("page_count", "freelist_count", "page_size")
    )
    return int((pages - free) * page_bytes)


def key_ranges(prefix: str) -> list[tuple[str, str | bytes]]:
    """Return the ranges [low, high) of texts, by UTF-8, that has_prefix() says are under *prefix*."""
    if not prefix:
        return [("", b"")]  # Every text sorts before every blob.
    validate_key(prefix)
    if prefix.endswith("/"):
        return [(prefix, prefix[:-1] + "0")]  # 0 follows / in ASCII.
    return [(prefix, prefix + "\x00"), (prefix + "/", prefix + "0")]
