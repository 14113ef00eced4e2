"""What is wrong with the LIVE_CACHE_* settings; checks.py registers it, docs/reference/checks.md describes each id."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias, TypeGuard

from django.core.checks import CheckMessage, Error, Warning
from django.db import connections

from live_cache.conf import DEFAULTS, settings
from live_cache.tenancy import switches_by_itself

__all__ = ["wrong_settings"]

Messages: TypeAlias = Iterator[CheckMessage]


def wrong_settings() -> Messages:
    """Yield a message for each setting that is wrong or unknown."""
    yield from _check_enabled()
    yield from _check_seconds(
        "LIVE_CACHE_FILL_LEASE_S",
        hint="Leave it out for 5 seconds, or give 0 to let each reader that misses ask the database.",
        id="live_cache.E016",
    )
    yield from _check_lease()
    yield from _check_seconds(
        "LIVE_CACHE_UNWATCHED_LEASE_S",
        hint="Leave it out, or give some seconds if writes to tables that nobody caches should cost less.",
        id="live_cache.E022",
    )
    yield from _check_max_lag()
    yield from _check_ledger_loss()
    yield from _check_listen()
    yield from _check_tenant()
    yield from _check_replicas()
    yield from _check_functions()
    yield from _check_tables()
    yield from _check_verification()
    yield from _check_unknown()


def _check_enabled() -> Messages:
    value = settings.raw("LIVE_CACHE_ENABLED")
    if not isinstance(value, bool):
        yield Error(
            f"LIVE_CACHE_ENABLED is {value!r}, which is neither True nor False.",
            hint="Give True, or False to send every live read to the database.",
            id="live_cache.E010",
        )


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_seconds(name: str, *, hint: str, id: str) -> Messages:
    """Check a setting whose 0 turns something off."""
    value = settings.raw(name)
    if not _is_number(value) or not 0 <= value < math.inf:
        yield Error(f"{name} is {value!r}, which is no number of seconds.", hint=hint, id=id)


def _check_lease() -> Messages:
    value = settings.raw("LIVE_CACHE_LEASE_S")
    if not _is_number(value) or not 0 < value < math.inf:
        yield Error(
            f"LIVE_CACHE_LEASE_S is {value!r}, which is no positive number of seconds.",
            hint="Leave it out for 10 seconds, or give more than the longest COMMIT takes.",
            id="live_cache.E011",
        )


def _check_max_lag() -> Messages:
    value = settings.raw("LIVE_CACHE_MAX_LAG_MS")
    if not _is_number(value) or not 0 < value < math.inf:
        yield Error(
            f"LIVE_CACHE_MAX_LAG_MS is {value!r}, which is no positive number of milliseconds.",
            hint='Leave it out for 100 milliseconds. Without mode="bounded" it has no meaning.',
            id="live_cache.E020",
        )


def _check_ledger_loss() -> Messages:
    value = settings.raw("LIVE_CACHE_ON_LEDGER_LOSS")
    if value not in ("serve", "refuse"):
        yield Error(
            f"LIVE_CACHE_ON_LEDGER_LOSS is {value!r}. Known are: 'serve', 'refuse'.",
            hint="'serve' lets a commit go on while the ledger is out of reach; 'refuse' makes it raise before COMMIT.",
            id="live_cache.E012",
        )


def _check_listen() -> Messages:
    value = settings.raw("LIVE_CACHE_LISTEN")
    is_listed = isinstance(value, list | tuple | set | frozenset)
    unknown = [alias for alias in value if alias not in connections] if is_listed else []
    if not is_listed or unknown:
        yield Error(
            f"LIVE_CACHE_LISTEN is {value!r}, which is no list of aliases of DATABASES.",
            hint=f"Give a list of some of these: {', '.join(map(repr, connections))}.",
            id="live_cache.E018",
        )


def _check_tenant() -> Messages:
    value = settings.raw("LIVE_CACHE_TENANT")
    if value is not None and not callable(value):
        yield Error(
            f"LIVE_CACHE_TENANT is {value!r}, which cannot be called.",
            hint="Give a function from a database alias to the name of the tenant, or None.",
            id="live_cache.E013",
        )
    for alias in connections if value is None else ():
        backend: Any = type(connections[alias])
        if switches_by_itself(backend):
            yield Warning(
                f"DATABASES[{alias!r}] has the backend {backend.__module__}, which may choose another schema for each "
                "cursor, so no live query of it is cached.",
                hint="Set LIVE_CACHE_TENANT to a function that returns the schema.",
                id="live_cache.W012",
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


def _check_replicas() -> Messages:
    value = settings.raw("LIVE_CACHE_REPLICAS")
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for pair in value.items() for name in pair):
        problem = "is no mapping from aliases of DATABASES to aliases"
    else:
        problem = next(filter(None, (_problem_of_replica(*pair, value) for pair in value.items())), "")
    if problem:
        yield Error(
            f"LIVE_CACHE_REPLICAS is {value!r}, which {problem}.",
            hint='Give {"replica": "default"}: each alias that is only read, with the alias that writes its database.',
            id="live_cache.E019",
        )


def _problem_of_replica(replica: str, primary: str, value: Mapping[str, str]) -> str:
    """Return what is wrong with one item of LIVE_CACHE_REPLICAS, to stand after "which"."""
    for alias in (replica, primary):
        if alias not in connections:
            return f"names {alias!r}, and DATABASES has no such alias"
    if replica == primary:
        return f"makes {replica!r} a replica of itself"
    if primary in value:
        return f"makes {replica!r} a replica of {primary!r}, which is a replica itself"
    vendors = connections[replica].vendor, connections[primary].vendor
    if vendors[0] != vendors[1]:
        return f"makes {replica!r} ({vendors[0]}) a replica of {primary!r} ({vendors[1]})"
    return ""


def _check_verification() -> Messages:
    rate = settings.raw("LIVE_CACHE_VERIFY_RATE")
    if not _is_number(rate) or not 0 <= rate <= 1:
        yield Error(
            f"LIVE_CACHE_VERIFY_RATE is {rate!r}, which is no share of hits from 0 to 1.",
            hint="Give 0.001 to compare one hit in a thousand with the database, or 0 for none.",
            id="live_cache.E017",
        )
    reads = settings.raw("LIVE_CACHE_VERIFY")
    if not isinstance(reads, list | tuple) or not all(isinstance(read, str) or callable(read) for read in reads):
        yield Error(
            f"LIVE_CACHE_VERIFY is {reads!r}, which is no list of functions or their dotted paths.",
            hint='Give ["shop.queries.front_page"], where front_page() returns a live queryset.',
            id="live_cache.E021",
        )


def _check_unknown() -> Messages:
    for name in settings.unknown():
        yield Warning(
            f"The setting {name} is unknown. Known are: {', '.join(sorted(DEFAULTS))}.",
            hint="Correct the name, or remove the setting: nothing reads it.",
            id="live_cache.W004",
        )
