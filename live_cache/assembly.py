"""
Everything that one cache alias is made of: tiers, ledger, keys, counters. One of each per process.

Django makes a backend instance per alias, thread and asyncio task, and calls its close() at the end of each request;
memory and connections must survive that, so they live here and not on the backend.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, TypeVar
from urllib.parse import quote

from django.core.signals import setting_changed
from django.utils.module_loading import import_string

from live_cache.cache_options import Options, parse_options, parse_timeout
from live_cache.conf import settings
from live_cache.exceptions import ConfigurationError
from live_cache.flights import Flights
from live_cache.known_entries import KnownEntries
from live_cache.leniency import Sightings
from live_cache.location import (
    LedgerChoice,
    Location,
    Tier,
    choose_ledger,
    parse_location,
    tier_options,
)
from live_cache.metrics import Metrics
from live_cache.promotions import Promotions
from live_cache.stores.null import NullStore

if TYPE_CHECKING:
    from live_cache.ledger.base import Ledger
    from live_cache.redis_connection import RedisConnection
    from live_cache.stores.base import Store
    from live_cache.stores.tiered import TieredStore

__all__ = [
    "Assembly",
    "assemblies_by_ledger",
    "close_all",
    "default_ledger_directory",
    "get_assembly",
    "is_live",
    "live_aliases",
    "live_assemblies",
    "matching_assembly",
]

T = TypeVar("T")

DEFAULT_TIMEOUT_S: Final = 300
"""What Django takes where CACHES has no TIMEOUT."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """
    The parts of one cache alias in this process.

    Aliases with the same LOCATION, OPTIONS and KEY_PREFIX share one store, and aliases whose ledgers live in the same
    place share one ledger.
    """

    alias: str
    store: TieredStore
    """Entries of live querysets: every tier; the ledger decides which may be served."""
    tiers: tuple[Store, ...]
    """The tiers of that store by themselves, nearest first."""
    plain_store: Store
    """
    Values of Django's plain cache API: the farthest tier only. No ledger watches them, so a copy in the memory of one
    process would outlive what another process has set or deleted.
    """
    ledger: Ledger
    mac_keys: tuple[bytes, ...]
    """The first one signs, every one verifies. Empty: frames have a checksum only."""
    key_prefix: str
    """KEY_PREFIX of the alias. Stores and ledgers of different prefixes are apart; keys need not hold it."""
    timeout_s: float | None
    """Time to live of live entries in seconds, unless the queryset says otherwise. None: no expiry."""
    pickle: bool
    """Whether the plain cache API may store what CBOR does not hold exactly."""
    metrics: Metrics
    cull_frequency: int | None = None
    """OPTIONS["CULL_FREQUENCY"], unless the farthest tier evicts by itself."""
    promotions: Promotions | None = None
    """The looks into farther tiers that others wait for; None where nothing is copied into memory."""
    known_entries: KnownEntries = field(default_factory=KnownEntries, repr=False)
    """What tells a miss by eviction from the first read."""
    sightings: Sightings = field(default_factory=Sightings, repr=False)
    """When entries that may be served stale were last known to be right."""
    flights: Flights = field(init=False, repr=False)
    """The fetches that others wait for."""

    def __post_init__(self) -> None:
        farthest = self.tiers[-1]
        flights = Flights(
            self.metrics,
            lease_store=farthest if farthest.is_shared_by_processes else None,
            is_keeping=not isinstance(farthest, NullStore),
        )
        object.__setattr__(self, "flights", flights)  # the class is frozen


@dataclass(frozen=True, slots=True)
class _Tiers:
    store: TieredStore
    stores: tuple[Store, ...]


# Reads of the dict take no lock. Writers hold _lock.
_assemblies: dict[str, Assembly] = {}
_live_assemblies: tuple[Assembly, ...] | None = None
_stores: dict[tuple[Location, Options, str], _Tiers] = {}
_ledgers: dict[tuple[str, ...], Ledger] = {}
_connections: dict[tuple[str, ...], RedisConnection] = {}
_lock = threading.RLock()


def get_assembly(alias: str = "default") -> Assembly:
    """
    Return the parts of the cache *alias*. The same object each time, until the settings change.

    Raises:
        ConfigurationError: There is no such alias, its BACKEND is not LiveCache, or its configuration is wrong.
    """
    try:
        return _assemblies[alias]
    except KeyError:
        return _assemble_alias(alias)


def live_assemblies() -> tuple[Assembly, ...]:
    """Return the parts of every alias in CACHES with our backend: a write must reach the ledger of each."""
    global _live_assemblies
    found = _live_assemblies
    if found is None:
        with _lock:
            found = _live_assemblies = tuple(get_assembly(alias) for alias in live_aliases())
    return found


def assemblies_by_ledger() -> Sequence[Assembly]:
    """Return one assembly of each ledger: aliases may share one, and a change is ticked once."""
    assemblies = live_assemblies()
    if len(assemblies) == 1:
        return assemblies
    return tuple({id(assembly.ledger): assembly for assembly in assemblies}.values())


def live_aliases() -> tuple[str, ...]:
    """Return the aliases in CACHES whose BACKEND is LiveCache or a subclass, sorted."""
    return tuple(sorted(alias for alias, config in settings.caches.items() if is_live(config)))


def is_live(config: Mapping[str, Any]) -> bool:
    """Return whether this entry of CACHES has our backend. A BACKEND that cannot be imported has not."""
    from live_cache.backend import LiveCache

    try:
        backend = import_string(config.get("BACKEND", ""))
    except (ImportError, AttributeError, TypeError):
        return False
    return isinstance(backend, type) and issubclass(backend, LiveCache)


def matching_assembly(location: object, params: Mapping[str, Any]) -> Assembly:
    """
    Return the assembly of the alias that is configured so; Django tells a backend its configuration, not its alias.

    A configuration that is in no alias, of a backend made by hand, gets an assembly without an alias.

    Raises:
        ConfigurationError: The configuration is wrong.
    """
    wanted = {**params, "LOCATION": location}
    for alias, config in settings.caches.items():
        if {name: value for name, value in config.items() if name != "BACKEND"} == wanted and is_live(config):
            return get_assembly(alias)
    with _lock:
        return _assemble("", wanted)


def close_all() -> None:
    """
    Close and forget every store and ledger of this process. The next use makes new ones.

    Entries in memory are gone. For the end of a process, a change of the settings, and tests.
    """
    global _live_assemblies
    with _lock:
        closing: list[Store | Ledger | RedisConnection] = [
            *(tiers.store for tiers in _stores.values()),
            *_ledgers.values(),
            *_connections.values(),
        ]
        _assemblies.clear()
        _live_assemblies = None
        _stores.clear()
        _ledgers.clear()
        _connections.clear()
    for part in closing:
        part.close()


def default_ledger_directory(key_prefix: str = "") -> Path:
    """
    Return the directory of the ledger of a cache in memory alone: one for all processes of a project on this host.

    /dev/shm goes before the temporary directory: systemd's PrivateTmp gives a service a /tmp of its own, a web server
    and a cron job of one project would have two ledgers there, and one would serve what the other has changed.
    """
    shared_memory = Path("/dev/shm")
    is_usable = shared_memory.is_dir() and os.access(shared_memory, os.W_OK | os.X_OK)
    parent = shared_memory if is_usable else Path(tempfile.gettempdir())
    return parent / f"live-cache-{_project_digest(key_prefix)}"


def _assemble_alias(alias: str) -> Assembly:
    with _lock:
        if alias in _assemblies:
            return _assemblies[alias]
        config = settings.caches.get(alias)
        if config is None or not is_live(config):
            live = ", ".join(repr(name) for name in live_aliases()) or "none"
            reason = "is not in CACHES" if config is None else f"has the BACKEND {config.get('BACKEND')!r}"
            raise ConfigurationError(
                f"The cache alias {alias!r} {reason}. Aliases with live_cache.backend.LiveCache: {live}."
            )
        try:
            assembly = _assemble(alias, config)
        except ConfigurationError as error:
            raise type(error)(f"CACHES[{alias!r}]: {error}") from error
        _assemblies[alias] = assembly
        return assembly


def _assemble(alias: str, config: Mapping[str, Any]) -> Assembly:
    location = parse_location(config.get("LOCATION", ""))
    options = parse_options(config.get("OPTIONS") or {})
    key_prefix = str(config.get("KEY_PREFIX") or "")
    tiers = _shared(_stores, (location, options, key_prefix), lambda: _make_stores(location, options, key_prefix))
    assembly = Assembly(
        alias=alias,
        store=tiers.store,
        tiers=tiers.stores,
        plain_store=tiers.stores[-1],
        # A ledger in Redis is in the farthest tier, whose connection it shares.
        ledger=_ledger(choose_ledger(location), tier_options(location.farthest, options), key_prefix),
        mac_keys=options.mac_keys,
        key_prefix=key_prefix,
        timeout_s=parse_timeout(config.get("TIMEOUT", DEFAULT_TIMEOUT_S)),
        pickle=options.pickle,
        metrics=Metrics(),
        promotions=Promotions() if location.tiers[0].kind == "memory" and _is_promoting(location, options) else None,
        cull_frequency=options.cull_frequency if location.farthest.kind in ("memory", "disk") else None,
    )
    assembly.ledger.failure_listener = partial(assembly.metrics.count, "ledger_errors")
    return assembly


def _is_promoting(location: Location, options: Options) -> bool:
    return len(location.tiers) > 1 and options.promote != "never"


def _make_stores(location: Location, options: Options, key_prefix: str) -> _Tiers:
    from live_cache.stores.tiered import TieredStore

    stores = tuple(_make_tier(tier, tier_options(tier, options), key_prefix) for tier in location.tiers)
    return _Tiers(TieredStore(stores, promote=options.promote), stores)


def _make_tier(tier: Tier, options: Options, key_prefix: str) -> Store:
    if tier.kind == "memory":
        from live_cache.stores.memory import MemoryStore

        return MemoryStore(max_entries=options.max_entries, max_bytes=options.max_bytes)
    if tier.kind == "disk":
        from live_cache.stores.disk import DiskStore

        return DiskStore(_disk_directory(tier.path, key_prefix), max_bytes=options.disk_max_bytes)
    if tier.kind == "redis":
        from live_cache.stores.redis import RedisStore

        return RedisStore(_connection(tier.url, options), prefix=_redis_prefix(key_prefix, "entry"))
    return NullStore()


def _ledger(choice: LedgerChoice, options: Options, key_prefix: str) -> Ledger:
    lease_s = settings.lease_s
    if choice.kind == "redis":
        from live_cache.ledger.redis import RedisLedger

        connection = _connection(choice.url, options)
        prefix = _redis_prefix(key_prefix, "ledger")
        return _shared(
            _ledgers,
            ("redis", prefix, *_connection_key(choice.url, options)),
            lambda: RedisLedger(
                connection, prefix=prefix, lease_s=lease_s, unwatched_lease_s=settings.unwatched_lease_s
            ),
        )
    if choice.kind == "host":
        from live_cache.ledger.host import HostLedger

        directory = _host_ledger_directory(choice, key_prefix)
        return _shared(_ledgers, ("host", str(directory)), lambda: HostLedger(directory, lease_s=lease_s))
    from live_cache.ledger.process import ProcessLedger

    return _shared(_ledgers, ("process", key_prefix), lambda: ProcessLedger(lease_s=lease_s))


def _shared(parts: dict[Any, T], key: object, make: Callable[[], T]) -> T:
    if key not in parts:
        parts[key] = make()
    return parts[key]


def _connection(url: str, options: Options) -> RedisConnection:
    from live_cache.redis_connection import RedisConnection

    return _shared(
        _connections,
        _connection_key(url, options),
        lambda: RedisConnection(
            url,
            connect_timeout_s=options.connect_timeout_s,
            timeout_s=options.socket_timeout_s,
            read_timeout_s=options.read_timeout_s,
            retry_pause_s=options.retry_pause_s,
        ),
    )


def _connection_key(url: str, options: Options) -> tuple[str, ...]:
    """Return what aliases must have in common to share a connection, and the ledger behind it."""
    times_s = options.connect_timeout_s, options.socket_timeout_s, options.read_timeout_s, options.retry_pause_s
    return (url, *map(str, times_s))


def _redis_prefix(key_prefix: str, part: Literal["entry", "ledger"]) -> str:
    # None begins with another, since a store drops and lists whatever begins with its own: quoted, a KEY_PREFIX holds
    # no colon (and no brace, which would be the hash tag of a cluster).
    return f"live_cache:{quote(key_prefix, safe='')}:{part}:"


def _disk_directory(path: str, key_prefix: str) -> Path:
    # Two projects that share a directory under different prefixes must not read each other's entries.
    return Path(path) / f"prefix-{_digest(key_prefix)}" if key_prefix else Path(path)


def _host_ledger_directory(choice: LedgerChoice, key_prefix: str) -> Path:
    if not choice.directory:
        return default_ledger_directory(key_prefix)
    # A ledger that several prefixes share only costs a needless fetch where both have a table of one name.
    return Path(choice.directory)


def _project_digest(key_prefix: str) -> str:
    """
    Return a name for the project that all its processes agree on, and that other projects do not have.

    It is the identity of the database, because sharing the database is what makes sharing the ledger necessary. Left
    out is what processes of one project may differ in: SECRET_KEY, the settings module, the OS user, HOST and USER (a
    name, an address and a socket can be one server), and the databases beside "default" (a worker may know no replica).
    Two projects that agree by chance only invalidate more than they need.
    """
    return _digest("\0".join((key_prefix, *_database_identity())))


def _database_identity() -> tuple[str, ...]:
    from django.db import connections

    aliases = sorted(alias for alias in connections if connections[alias].vendor != "unknown")
    chosen = ["default"] if "default" in aliases else aliases
    return tuple(part for alias in chosen for part in (alias, *_identity_of(connections[alias])))


def _identity_of(connection: Any) -> tuple[str, str, str]:
    name = str(connection.settings_dict.get("NAME") or "")
    if connection.vendor == "sqlite":
        if connection.is_in_memory_db():
            # Nobody else sees such a database, so other users' processes must not meet in its ledger.
            return connection.vendor, f"memory of user {os.getuid() if hasattr(os, 'getuid') else ''}", ""
        return connection.vendor, os.path.realpath(name), ""
    port = str(connection.settings_dict.get("PORT") or _DEFAULT_PORTS.get(connection.vendor, ""))
    return connection.vendor, name, port


_DEFAULT_PORTS: Final = {"postgresql": "5432", "mysql": "3306", "oracle": "1521"}


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _forget_on_change(*, setting: str, **kwargs: object) -> None:
    if setting in {"CACHES", "DATABASES", "LIVE_CACHE_LEASE_S"}:
        close_all()


def _after_fork_in_child() -> None:
    # Another thread of the parent may have held the lock; its copy would stay locked for ever. The parts themselves
    # survive a fork, each in its own way.
    global _lock
    _lock = threading.RLock()


setting_changed.connect(_forget_on_change, dispatch_uid="live_cache.assembly")
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
