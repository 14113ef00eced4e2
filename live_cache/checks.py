"""
System checks: each wrong setting named, with what exists and what to do. docs/reference/checks.md describes each id.

Checks that open files or connections run with ``manage.py check --deploy`` only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib.util import find_spec
from typing import Any, Final, TypeAlias

import django
from django.apps import apps
from django.core.checks import CheckMessage, Error, Info, Tags, Warning, register
from django.db import connections

from live_cache.assembly import DEFAULT_TIMEOUT_S, get_assembly, is_live
from live_cache.cache_options import parse_options, parse_timeout
from live_cache.conf import settings
from live_cache.exceptions import ConfigurationError, LedgerUnavailableError, StoreUnavailableError
from live_cache.location import (
    Location,
    Tier,
    choose_ledger,
    parse_location,
    tier_options,
)
from live_cache.outbox.statistics import outbox_statistics
from live_cache.probes import NETWORK_FILE_SYSTEMS, file_system_of
from live_cache.redis_connection import RedisConnection
from live_cache.setting_checks import wrong_settings
from live_cache.writes.hooks import broken_hooks

__all__ = [
    "ALL_CHECKS",
    "check_caches",
    "check_deployment",
    "check_hooks",
    "check_ledgers",
    "check_outboxes",
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
    return list(wrong_settings())


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


@register(Tags.caches, deploy=True)
def check_outboxes(**kwargs: Any) -> list[CheckMessage]:
    """Look whether somebody listens to the outbox of each database that has one, and whether triggers are missing."""
    messages: list[CheckMessage] = []
    for report in outbox_statistics():
        if report["error"] is None:
            messages += _check_outbox(**report)
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


def _check_outbox(*, database: str, is_listened_to: bool, waiting: int, missing: list[str], **_: object) -> Messages:
    if not is_listened_to:
        yield Warning(
            f"Triggers write to the outbox of the database {database!r}, and nobody listens: what writers outside of "
            f"Django change is not seen. {waiting} lines wait.",
            hint=f"Run `manage.py live_cache listen --database {database}`, or set LIVE_CACHE_LISTEN.",
            id="live_cache.W010",
        )
    if missing:
        yield Warning(
            f"The database {database!r} has an outbox, and {len(missing)} tables of models have no triggers, such as "
            f"{', '.join(missing[:3])}: what writers outside of Django change there is not seen.",
            hint=(
                f"Run `manage.py live_cache install_triggers --database {database}`. If only Django writes to them, "
                "add live_cache.W011 to SILENCED_SYSTEM_CHECKS."
            ),
            id="live_cache.W011",
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
    check_outboxes,
)
"""Every check of the package, those of ``--deploy`` included."""
