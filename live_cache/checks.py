"""
System checks: each wrong setting named, with what exists and what to do. docs/reference/checks.md describes each id.

Checks that open files or connections run with ``manage.py check --deploy`` only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

import django
from django.apps import apps
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from django.db import connections

from live_cache.assembly import DEFAULT_TIMEOUT_S, get_assembly, is_live
from live_cache.conf import DEFAULTS, settings
from live_cache.exceptions import ConfigurationError, LedgerUnavailableError, StoreUnavailableError
from live_cache.location import (
    Location,
    Tier,
    choose_ledger,
    parse_location,
    parse_options,
    parse_timeout,
    tier_options,
)
from live_cache.probes import NETWORK_FILE_SYSTEMS, file_system_of
from live_cache.redis_connection import RedisConnection
from live_cache.writes.hooks import broken_hooks

__all__ = [
    "ALL_CHECKS",
    "check_caches",
    "check_deployment",
    "check_hooks",
    "check_ledgers",
    "check_querysets",
    "check_servers",
    "check_settings",
]

Messages: TypeAlias = Iterator[CheckMessage]

_SETTINGS_PAGE: Final = "See docs/reference/settings.md."
_EXTRAS: Final[Mapping[str, tuple[tuple[str, ...], str]]] = {
    "disk": (("diskcache",), "disk"),
    "redis": (("redis", "django_redis"), "redis"),
}
_OLDEST_REDIS: Final = (6, 2)
_DATABASES_OF_ONE_HOST: Final = frozenset({"sqlite", "unknown"})


@register(Tags.caches)
def check_caches(**kwargs: Any) -> list[CheckMessage]:
    """Check every alias of CACHES that has our backend."""
    messages: list[CheckMessage] = []
    live = _live_configurations()
    if not live:
        messages.append(
            Warning(
                "No alias in CACHES has the BACKEND live_cache.backend.LiveCache, so nothing can be cached.",
                hint='CACHES = {"default": {"BACKEND": "live_cache.backend.LiveCache", "LOCATION": "memory://"}}',
                id="live_cache.W005",
            )
        )
    for alias, config in live.items():
        messages += _check_part(alias, "E001", parse_location, config.get("LOCATION", ""))
        messages += _check_part(alias, "E002", parse_options, config.get("OPTIONS") or {})
        messages += _check_part(alias, "E003", parse_timeout, config.get("TIMEOUT", DEFAULT_TIMEOUT_S))
        messages += _check_extras(alias, config)
        messages += _check_culling(alias, config)
    return messages


@register(Tags.caches)
def check_settings(**kwargs: Any) -> list[CheckMessage]:
    """Check the LIVE_CACHE_* settings."""
    return [
        *_check_enabled(),
        *_check_lease(),
        *_check_ledger_loss(),
        *_check_tenant(),
        *_check_functions(),
        *_check_tables(),
        *_check_unknown(),
    ]


@register(Tags.caches)
def check_hooks(**kwargs: Any) -> list[CheckMessage]:
    """Try on a connection of our own whether this Django calls what is put on its connections."""
    broken = broken_hooks()
    if not broken:
        return []
    return [
        Error(
            f"Django {django.get_version()} does not call {', '.join(broken)} of a database connection where it is "
            "needed, so writes would go unseen.",
            hint="Set LIVE_CACHE_ENABLED to False, and look for a newer version of django-live-cache.",
            id="live_cache.E007",
        )
    ]


@register(Tags.caches)
def check_querysets(**kwargs: Any) -> list[CheckMessage]:
    """Warn of querysets and managers whose ``live`` is not ours; in Wagtail it means "published"."""
    owners: dict[str, str] = {}
    for model in apps.get_models():
        for manager in model._meta.managers:
            owner = _foreign_owner_of_live(manager)
            if owner:
                owners.setdefault(owner, f"{model._meta.label}.{manager.name}")
    return [
        Warning(
            f"{owner}.live() is not the one of live_cache, and {example}.live() calls it.",
            hint="Write live(queryset), with `from live_cache import live`, for these models.",
            obj=example,
            id="live_cache.W003",
        )
        for owner, example in sorted(owners.items())
    ]


@register(Tags.caches, deploy=True)
def check_deployment(**kwargs: Any) -> list[CheckMessage]:
    """Warn of configurations that are right for development and tests only."""
    messages: list[CheckMessage] = []
    for alias, config in _live_configurations().items():
        location = _location_of(config)
        if location is not None:
            messages += _check_pickle(alias, location, config)
            messages += _check_process_ledger(alias, location)
            messages += _check_one_host(alias, location)
            messages += _check_file_system(alias, location)
    return messages


@register(Tags.caches, deploy=True)
def check_servers(**kwargs: Any) -> list[CheckMessage]:
    """Ask each Redis server of each LOCATION for a sign of life."""
    messages: list[CheckMessage] = []
    for alias, config in _live_configurations().items():
        location = _location_of(config)
        for tier in location.tiers if location else ():
            if tier.kind == "redis" and not _missing_modules(tier):
                messages += _check_server(alias, tier, config)
    return messages


@register(Tags.caches, deploy=True)
def check_ledgers(**kwargs: Any) -> list[CheckMessage]:
    """Open the ledger of each alias whose ledger is in a file."""
    messages: list[CheckMessage] = []
    for alias, config in _live_configurations().items():
        location = _location_of(config)
        if location is None or choose_ledger(location).kind != "host" or _check_extras(alias, config):
            continue
        try:
            # Takes the ledger's lock, as every tick does, and changes nothing.
            get_assembly(alias).ledger.expired("~check")
        except (ConfigurationError, LedgerUnavailableError, OSError) as error:
            messages.append(
                Error(
                    f"CACHES[{alias!r}]: the ledger cannot be used: {error}",
                    hint=(
                        "Every process of the project must run as a user that may write the ledger's directory. "
                        "Give another one with 'memory://?ledger=/absolute/directory', or add a Redis tier."
                    ),
                    id="live_cache.E006",
                )
            )
    return messages


def _live_configurations() -> dict[str, Mapping[str, Any]]:
    return {alias: config for alias, config in settings.caches.items() if is_live(config)}


def _location_of(config: Mapping[str, Any]) -> Location | None:
    """Return the location, or None if it is wrong, which E001 reports."""
    try:
        return parse_location(config.get("LOCATION", ""))
    except ConfigurationError:
        return None


def _check_part(alias: str, check_id: str, parse: Callable[[Any], object], value: object) -> Messages:
    try:
        parse(value)
    except ConfigurationError as error:
        yield Error(f"CACHES[{alias!r}]: {error}", hint=_SETTINGS_PAGE, id=f"live_cache.{check_id}")


def _check_extras(alias: str, config: Mapping[str, Any]) -> list[CheckMessage]:
    location = _location_of(config)
    return [
        Error(
            f"CACHES[{alias!r}]: {tier.shown!r} needs {' and '.join(missing)}, which cannot be imported.",
            hint=f"pip install 'django-live-cache[{_EXTRAS[tier.kind][1]}]'",
            id="live_cache.E004",
        )
        for tier in (location.tiers if location else ())
        if (missing := _missing_modules(tier))
    ]


def _missing_modules(tier: Tier) -> list[str]:
    modules = _EXTRAS[tier.kind][0] if tier.kind in _EXTRAS else ()
    return [module for module in modules if find_spec(module) is None]


def _check_server(alias: str, tier: Tier, config: Mapping[str, Any]) -> Messages:
    try:
        options = tier_options(tier, parse_options(config.get("OPTIONS") or {}))
    except ConfigurationError:
        return
    connection = RedisConnection(
        tier.url, connect_timeout_s=options.connect_timeout_s, timeout_s=options.socket_timeout_s
    )
    try:
        with connection.translating(StoreUnavailableError):
            facts = connection.facts()
        yield from _check_redis(alias, tier, facts)
    except StoreUnavailableError as error:
        yield Error(
            f"CACHES[{alias!r}]: {tier.shown!r} does not answer: {error.__cause__}",
            hint=(
                "Start the server, or correct LOCATION. Until it answers, live reads go to the database, and "
                "LIVE_CACHE_ON_LEDGER_LOSS decides about writes."
            ),
            id="live_cache.E005",
        )
    finally:
        connection.close()


def _check_redis(alias: str, tier: Tier, facts: Mapping[str, str]) -> Messages:
    named = f"CACHES[{alias!r}]: {tier.shown!r}"
    version = facts.get("redis_version", "")
    if tuple(int(part) for part in version.split(".")[:2] if part.isdigit()) < _OLDEST_REDIS:
        yield Error(
            f"{named} is Redis {version or 'of an unknown version'}; 6.2 or later, or Valkey, is needed.",
            hint="Upgrade the server.",
            id="live_cache.E008",
        )
    if facts.get("role") not in ("master", None):
        yield Error(
            f"{named} is a replica. The ledger is read and written on the primary only.",
            hint="Name the primary, or let 'redis+sentinel://' find it.",
            id="live_cache.E009",
        )
    policy = facts.get("maxmemory_policy", "")
    if policy.startswith("allkeys"):
        yield Warning(
            f"{named} evicts by {policy}, which may drop clocks of the ledger. Nothing gets stale by that, but each "
            f"time every result of a table is fetched again.",
            hint="Set maxmemory-policy to volatile-lfu or volatile-lru. Clocks have no time to live, so they stay.",
            id="live_cache.W006",
        )
    elif policy == "noeviction" and facts.get("maxmemory", "0") != "0":
        yield Warning(
            f"{named} evicts nothing (noeviction) and has at most {facts['maxmemory']} bytes. When it is full, nothing "
            f"new is cached, and clocks are lost with each write.",
            hint="Set maxmemory-policy to volatile-lfu or volatile-lru, and give every alias a TIMEOUT.",
            id="live_cache.W009",
        )


def _check_culling(alias: str, config: Mapping[str, Any]) -> Messages:
    location = _location_of(config)
    options = config.get("OPTIONS") or {}
    if location is not None and location.farthest.kind == "redis" and "CULL_FREQUENCY" in options:
        yield Warning(
            f"CACHES[{alias!r}]: CULL_FREQUENCY does nothing over {location.farthest.shown!r}.",
            hint="Redis evicts by its maxmemory and maxmemory-policy. Remove the option.",
            id="live_cache.W008",
        )


def _check_file_system(alias: str, location: Location) -> Messages:
    paths = [tier.path for tier in location.tiers if tier.kind == "disk"]
    ledger = choose_ledger(location)
    if ledger.kind == "host" and ledger.directory:
        paths.append(ledger.directory)
    for path in paths:
        kind = file_system_of(path)
        if kind in NETWORK_FILE_SYSTEMS:
            yield Warning(
                f"CACHES[{alias!r}]: {path!r} is on a network file system ({kind}), where locks between hosts do not "
                f"hold: the file may be damaged, and one host may serve what another has changed.",
                hint="Choose a folder on a disk of this host; share between hosts by a Redis tier.",
                id="live_cache.W007",
            )
            return


def _check_pickle(alias: str, location: Location, config: Mapping[str, Any]) -> Messages:
    options = config.get("OPTIONS") or {}
    if options.get("PICKLE", True) and not options.get("MAC_KEYS") and location.kinds & {"disk", "redis"}:
        yield Warning(
            f"CACHES[{alias!r}]: {location.farthest.shown!r} is shared, and without MAC_KEYS whoever can write "
            f"there can make this process run code, since plain values may be pickles.",
            hint="Set OPTIONS['MAC_KEYS'] to a list of secrets, or OPTIONS['PICKLE'] to False.",
            id="live_cache.W001",
        )


def _check_process_ledger(alias: str, location: Location) -> Messages:
    if location.tiers[0].ledger == "process":
        yield Warning(
            f"CACHES[{alias!r}]: with ledger=process no other process learns of a write, so a server with more than "
            f"one worker serves stale rows.",
            hint="Write 'memory://': its ledger is a file that all processes of this host share.",
            id="live_cache.W002",
        )


def _check_one_host(alias: str, location: Location) -> Messages:
    if choose_ledger(location).kind != "host":
        return
    servers = sorted(name for name in connections if connections[name].vendor not in _DATABASES_OF_ONE_HOST)
    if servers:
        yield Info(
            f"CACHES[{alias!r}] has its ledger in a file of this host, and the database {servers[0]!r} can be written "
            f"from other hosts and containers, whose writes it does not see.",
            hint=(
                "Add a Redis tier that all of them share; if only this host writes, add live_cache.I001 to "
                "SILENCED_SYSTEM_CHECKS."
            ),
            id="live_cache.I001",
        )


def _check_enabled() -> Messages:
    value = settings.raw("LIVE_CACHE_ENABLED")
    if not isinstance(value, bool):
        yield Error(
            f"LIVE_CACHE_ENABLED is {value!r}, which is neither True nor False.",
            hint="Give True, or False to send every live read to the database.",
            id="live_cache.E010",
        )


def _check_lease() -> Messages:
    value = settings.raw("LIVE_CACHE_LEASE_S")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < math.inf:
        yield Error(
            f"LIVE_CACHE_LEASE_S is {value!r}, which is no positive number of seconds.",
            hint="Leave it out for 10 seconds, or give more than the longest COMMIT takes.",
            id="live_cache.E011",
        )


def _check_ledger_loss() -> Messages:
    value = settings.raw("LIVE_CACHE_ON_LEDGER_LOSS")
    if value not in ("serve", "refuse"):
        yield Error(
            f"LIVE_CACHE_ON_LEDGER_LOSS is {value!r}. Known are: 'serve', 'refuse'.",
            hint="'serve' lets a commit go on while the ledger is out of reach; 'refuse' makes it raise before COMMIT.",
            id="live_cache.E012",
        )


def _check_tenant() -> Messages:
    value = settings.raw("LIVE_CACHE_TENANT")
    if value is not None and not callable(value):
        yield Error(
            f"LIVE_CACHE_TENANT is {value!r}, which cannot be called.",
            hint="Give a function from a database alias to the name of the tenant, or None.",
            id="live_cache.E013",
        )


def _check_functions() -> Messages:
    value = settings.raw("LIVE_CACHE_WRITING_FUNCTIONS")
    is_listed = isinstance(value, list | tuple | set | frozenset | Mapping)
    names = list(value) if is_listed else []
    tables = list(value.values()) if isinstance(value, Mapping) else []
    if (
        is_listed
        and all(isinstance(name, str) and name == name.lower() and "." not in name for name in names)
        and all(isinstance(x, list | tuple | set | frozenset) and all(isinstance(t, str) for t in x) for x in tables)
    ):
        return
    yield Error(
        f"LIVE_CACHE_WRITING_FUNCTIONS is {value!r}, which names no functions.",
        hint='Give {"add_stock": ["shop_product"]}, or ["add_stock"] if any table may change; lower case, no schema.',
        id="live_cache.E014",
    )


def _check_tables() -> Messages:
    value = settings.raw("LIVE_CACHE_UNMANAGED_TABLES")
    if isinstance(value, Mapping) and all(
        isinstance(name, str)
        and isinstance(tables, list | tuple | set | frozenset)
        and all(isinstance(table, str) for table in tables)
        for name, tables in value.items()
    ):
        return
    yield Error(
        f"LIVE_CACHE_UNMANAGED_TABLES is {value!r}, which is no mapping from names to lists of tables.",
        hint='Give {"shop_summary": ["shop_product"]} for a view, and {"legacy": ["legacy"]} for a table.',
        id="live_cache.E015",
    )


def _check_unknown() -> Messages:
    for name in settings.unknown():
        yield Warning(
            f"The setting {name} is unknown. Known are: {', '.join(sorted(DEFAULTS))}.",
            hint="Correct the name, or remove the setting: nothing reads it.",
            id="live_cache.W004",
        )


def _foreign_owner_of_live(manager: Any) -> str:
    """Return the queryset or manager class outside of this package that gives *manager* its ``live``, or nothing."""
    # _queryset_class is private to BaseManager.from_queryset(); read in Django 5.2 and 6.1.
    for owner in (getattr(manager, "_queryset_class", None), type(manager)):
        method = getattr(owner, "live", None)
        if owner is not None and method is not None:
            definer = next(cls for cls in owner.__mro__ if "live" in vars(cls))
            module = getattr(method, "__module__", None) or definer.__module__
            if not module.startswith("live_cache.") and not definer.__module__.startswith("live_cache."):
                return f"{definer.__module__}.{definer.__qualname__}"
    return ""


ALL_CHECKS: Final[tuple[Callable[..., list[CheckMessage]], ...]] = (
    check_caches,
    check_settings,
    check_hooks,
    check_querysets,
    check_deployment,
    check_servers,
    check_ledgers,
)
"""Every check of the package, those of ``--deploy`` included."""
