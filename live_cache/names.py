"""
Names of databases and clocks: what a writer ticks must be called exactly what a reader depends on.

A clock is called ``<database>/<table>``. The database part holds the alias and a digest of the database's NAME, so that
a test database never shares a clock, or an entry, with the real one; two aliases of one database are two databases here
(docs/explanation/limits.md).
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Final

from live_cache import testcases
from live_cache.ledger.clocks import TABLE_SLOT, Dependency, slot_of
from live_cache.replicas import primary_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = [
    "KEYS_CLOCK",
    "clock_of",
    "database_name",
    "is_private_database",
    "key_dependency",
    "key_prefixes",
    "shared_database_name",
]

KEYS_CLOCK: Final = "~keys"
"""The clock of the keys that callers give; no database is called ``~keys``, since an alias is followed by ``@``."""

_process_id = os.getpid()


def is_private_database(connection: BaseDatabaseWrapper) -> bool:
    """Return whether the database is visible to this one connection only (SQLite in memory without a shared cache)."""
    if connection.vendor != "sqlite":
        return False
    name = str(connection.settings_dict["NAME"])
    return name == ":memory:" or ("mode=memory" in name and "cache=shared" not in name)


def database_name(connection: BaseDatabaseWrapper) -> str:
    """
    Return the name of the database behind *connection*, the same in every process that uses it under this alias.

    An in-memory SQLite database belongs to one process, so its name holds the process. What a TestCase has written is
    visible to one connection, so inside one the name is that connection's own. A replica has the name of its primary.
    """
    connection = primary_of(connection) or connection
    name = shared_database_name(connection)
    return f"{name}~{testcases.token_of(connection)}" if testcases.is_in_testcase(connection) else name


def shared_database_name(connection: BaseDatabaseWrapper) -> str:
    """Return the name of the database behind *connection* as it is outside of a TestCase."""
    connection = primary_of(connection) or connection
    name = str(connection.settings_dict["NAME"])
    cached: tuple[str, int, str] | None = connection.__dict__.get("_live_cache_database_name")
    if cached is not None and cached[0] == name and cached[1] == _process_id:
        return cached[2]
    identity = name
    if connection.vendor == "sqlite":
        in_memory = name == ":memory:" or "mode=memory" in name
        identity = f"{name}#{_process_id}" if in_memory else os.path.realpath(name)
    digest = hashlib.blake2b(f"{connection.vendor}:{identity}".encode(), digest_size=6).hexdigest()
    result = f"{connection.alias}@{digest}"
    connection.__dict__["_live_cache_database_name"] = (name, _process_id, result)
    return result


def clock_of(database: str, table: str) -> str:
    """Return the name of the clock of *table* (as sql.normalize_table() gives it) in *database*."""
    return f"{database}/{table}"


def key_prefixes(cache_key: str) -> Iterator[str]:
    """Yield *cache_key* and every key above it: ``a/b/c``, ``a/b``, ``a``."""
    while cache_key:
        yield cache_key
        cache_key = cache_key.rpartition("/")[0]


def key_dependency(cache_key: str) -> Dependency:
    """Return what an entry depends on beside tables, so that invalidating any prefix of its *cache_key* drops it."""
    slots = sorted({slot_of(prefix) for prefix in key_prefixes(cache_key)})
    return Dependency(KEYS_CLOCK, (TABLE_SLOT, *slots))


def _after_fork_in_child() -> None:
    global _process_id
    _process_id = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
