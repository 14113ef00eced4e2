"""
What the LOCATION of one entry of CACHES says, as plain data: its tiers. Pure functions, no I/O.

assembly.py builds stores and ledgers from it; checks.py reports what is wrong with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import PurePosixPath
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from live_cache.cache_options import Options, parse_options
from live_cache.exceptions import ConfigurationError
from live_cache.redis_url import parse_redis_url, without_password

__all__ = [
    "SCHEMES",
    "LedgerChoice",
    "Location",
    "Tier",
    "choose_ledger",
    "parse_location",
    "tier_options",
]

TierKind = Literal["memory", "disk", "redis", "null"]

SCHEMES: Final[Mapping[str, TierKind]] = {
    "memory": "memory",
    "disk": "disk",
    "redis": "redis",
    "rediss": "redis",
    "redis+cluster": "redis",
    "redis+sentinel": "redis",
    "unix": "redis",
    "null": "null",
}
_EXAMPLES: Final = (
    "memory://, disk:///var/cache/shop, redis://127.0.0.1:6379/1, rediss://, unix:///run/redis.sock, "
    "redis+sentinel://host:26379,host:26379/mymaster/0, redis+cluster://host:6379,host:6379, null://"
)

# How far away each kind is. A farther tier in front of a nearer one would be asked first and hide it.
_DISTANCE: Final[Mapping[TierKind, int]] = {"memory": 0, "disk": 1, "redis": 2, "null": 0}

# The query options of redis-py's URLs (redis.connection.URL_QUERY_ARGUMENT_PARSERS, 5.2 to 8.1) and the plain
# arguments of its Connection that make sense in a URL. Others would fail only at the first connection.
_REDIS_OPTIONS: Final = frozenset(
    {
        "client_name",
        "db",
        "health_check_interval",
        "max_connections",
        "password",
        "protocol",
        "retry_on_timeout",
        "socket_connect_timeout",
        "socket_keepalive",
        "sentinel_password",
        "sentinel_username",
        "socket_timeout",
        "ssl",
        "ssl_ca_certs",
        "ssl_ca_path",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_keyfile",
        "timeout",
        "username",
    }
)
_TIER_OPTIONS: Final[Mapping[TierKind, frozenset[str]]] = {
    "memory": frozenset({"ledger"}),
    "disk": frozenset(),
    "redis": _REDIS_OPTIONS,
    "null": frozenset(),
}


# What OPTIONS of a tier may hold, rather than OPTIONS of the alias.
_OWN_OPTIONS: Final[Mapping[TierKind, frozenset[str]]] = {
    "memory": frozenset({"MAX_BYTES", "MAX_ENTRIES"}),
    "disk": frozenset({"DISK_MAX_BYTES"}),
    "redis": frozenset({"CONNECT_TIMEOUT_S", "READ_TIMEOUT_S", "RETRY_PAUSE_S", "SOCKET_TIMEOUT_S"}),
    "null": frozenset(),
}


@dataclass(frozen=True, slots=True)
class Tier:
    """One URL of a LOCATION."""

    kind: TierKind
    url: str
    """As it was given."""
    path: str = ""
    """The absolute directory of a disk tier."""
    ledger: str = ""
    """What ``?ledger=`` of a memory tier says: empty, ``process``, or an absolute directory."""
    own_options: tuple[tuple[str, Any], ...] = ()
    """Fields of Options that hold for this tier only, with their values."""

    @property
    def shown(self) -> str:
        """The URL without its password, for messages."""
        return without_password(self.url)


@dataclass(frozen=True, slots=True)
class Location:
    """The tiers of one cache alias, nearest first; at least one."""

    tiers: tuple[Tier, ...]

    @property
    def kinds(self) -> frozenset[TierKind]:
        """The kinds of tier that occur."""
        return frozenset(tier.kind for tier in self.tiers)

    @property
    def farthest(self) -> Tier:
        """The tier that the others are in front of."""
        return self.tiers[-1]


@dataclass(frozen=True, slots=True)
class LedgerChoice:
    """Where the ledger of a location lives."""

    kind: Literal["process", "host", "redis"]
    url: str = ""
    """Of a redis ledger."""
    directory: str = ""
    """Of a host ledger; empty for the directory that all processes of the project find by themselves."""


def parse_location(location: object) -> Location:
    """
    Return the tiers that *location* names: one URL, or a list of URLs, nearest first.

    In place of a URL there may be ``{"URL": ..., "OPTIONS": {...}}``, with options of that tier only.

    Raises:
        ConfigurationError: A scheme or a query option is unknown, a path is relative, the order is wrong, a tier occurs
            twice, or there is none.
    """
    if isinstance(location, str | Mapping):
        urls: tuple[object, ...] = (location,) if location else ()
    elif isinstance(location, Sequence):
        urls = tuple(location)
    else:
        raise ConfigurationError(f"LOCATION is {location!r}; give one URL, or a list of URLs, nearest first.")
    if not urls:
        raise ConfigurationError(f"LOCATION is empty. Give one URL, or a list of URLs, nearest first: {_EXAMPLES}.")
    tiers = tuple(_parse_tier(url) for url in urls)
    _refuse_duplicates(tiers)
    _refuse_wrong_order(tiers)
    _refuse_ledger_beside_a_shared_tier(tiers)
    return Location(tiers)


def tier_options(tier: Tier, options: Options) -> Options:
    """Return *options* with those of *tier* in their place."""
    return replace(options, **dict(tier.own_options)) if tier.own_options else options


def choose_ledger(location: Location) -> LedgerChoice:
    """Return where the ledger lives: in the farthest tier that is shared, for memory alone in a file of this host."""
    for tier in reversed(location.tiers):
        if tier.kind == "redis":
            return LedgerChoice("redis", url=tier.url)
        if tier.kind == "disk":
            return LedgerChoice("host", directory=str(PurePosixPath(tier.path) / "ledger"))
    nearest = location.tiers[0]
    if nearest.kind == "null" or nearest.ledger == "process":
        return LedgerChoice("process")
    return LedgerChoice("host", directory=nearest.ledger)


def _parse_tier(given: object) -> Tier:
    if not isinstance(given, Mapping):
        return _parse_url(given)
    if "URL" not in given or given.keys() - {"URL", "OPTIONS"}:
        raise ConfigurationError(
            "LOCATION has a dict that is not of the form {'URL': 'redis://...', 'OPTIONS': {'SOCKET_TIMEOUT_S': 2}}."
        )
    tier = _parse_url(given["URL"])
    options = given.get("OPTIONS") or {}
    known = _OWN_OPTIONS[tier.kind]
    if unknown := sorted(str(name) for name in options if name not in known):
        choice = f"Known there are: {', '.join(sorted(known))}." if known else "It takes none."
        raise ConfigurationError(f"LOCATION gives {tier.shown!r} the unknown option {', '.join(unknown)}. {choice}")
    parsed = parse_options(options)
    return replace(tier, own_options=tuple((name.lower(), getattr(parsed, name.lower())) for name in sorted(options)))


def _parse_url(url: object) -> Tier:
    if not isinstance(url, str) or "://" not in url:
        raise ConfigurationError(f"LOCATION names {url!r}, which is no URL. Known are: {_EXAMPLES}.")
    scheme = url.partition("://")[0]
    kind = SCHEMES.get(scheme)
    if kind is None:
        raise ConfigurationError(
            f"LOCATION names {without_password(url)!r}: the scheme {scheme!r} is unknown. Known are: {_EXAMPLES}."
        )
    options = _query_options(url, kind)
    if kind == "disk":
        return Tier(kind, url, path=_disk_path(url))
    if kind == "redis":
        _refuse_redis_without_place(url, scheme)
        return Tier(kind, url)
    parts = urlsplit(url)
    if parts.netloc or parts.path.strip("/"):
        raise ConfigurationError(f"LOCATION names {url!r}: {scheme}:// takes no host and no path. Write '{scheme}://'.")
    return Tier(kind, url, ledger=_ledger_option(url, options))


def _query_options(url: str, kind: TierKind) -> dict[str, str]:
    options = dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))
    known = _TIER_OPTIONS[kind]
    unknown = sorted(options.keys() - known)
    if unknown:
        choice = f"Known are: {', '.join(sorted(known))}." if known else "It takes none."
        raise ConfigurationError(
            f"LOCATION names {without_password(url)!r}: the option {', '.join(unknown)} is unknown. {choice}"
        )
    return options


def _disk_path(url: str) -> str:
    parts = urlsplit(url)
    path = unquote(parts.path)
    if parts.netloc or not path.startswith("/") or path.strip("/") == "":
        raise ConfigurationError(
            f"LOCATION names {url!r}, whose path is not absolute. Write three slashes: 'disk:///var/cache/shop'."
        )
    return str(PurePosixPath(path))


def _refuse_redis_without_place(url: str, scheme: str) -> None:
    if parse_redis_url(url).kind != "single":
        return
    parts = urlsplit(url)
    if scheme == "unix" and not parts.path.strip("/"):
        raise ConfigurationError(f"LOCATION names {url!r} without a socket. Write 'unix:///run/redis/redis.sock'.")
    if scheme != "unix" and not parts.hostname:
        raise ConfigurationError(f"LOCATION names {url!r} without a host. Write '{scheme}://127.0.0.1:6379/1'.")
    try:
        _ = parts.port
    except ValueError as error:
        raise ConfigurationError(f"LOCATION names {without_password(url)!r}: {error}.") from error


def _ledger_option(url: str, options: Mapping[str, str]) -> str:
    if "ledger" not in options:
        return ""
    ledger = options["ledger"]
    if ledger == "process":
        return ledger
    if not ledger.startswith("/") or ledger.strip("/") == "":
        raise ConfigurationError(
            f"LOCATION names {url!r}: ledger={ledger!r} is neither 'process' nor an absolute directory. Leave it out, "
            f"and the processes of this host find a directory by themselves."
        )
    return str(PurePosixPath(ledger))


def _refuse_duplicates(tiers: tuple[Tier, ...]) -> None:
    seen: set[tuple[str, str]] = set()
    for tier in tiers:
        place = (tier.kind, {"disk": tier.path, "redis": tier.url}.get(tier.kind, ""))
        if place in seen:
            raise ConfigurationError(
                f"LOCATION names the tier {tier.shown!r} twice. Name each tier once, nearest first."
            )
        seen.add(place)
    if len(tiers) > 1 and any(tier.kind == "null" for tier in tiers):
        raise ConfigurationError("LOCATION has null:// beside other tiers. It keeps nothing, so it stands alone.")


def _refuse_wrong_order(tiers: tuple[Tier, ...]) -> None:
    for nearer, farther in pairwise(tiers):
        if _DISTANCE[nearer.kind] > _DISTANCE[farther.kind]:
            right = [tier.shown for tier in sorted(tiers, key=lambda tier: _DISTANCE[tier.kind])]
            raise ConfigurationError(
                f"LOCATION names {nearer.shown!r} before {farther.shown!r}, which is nearer. Nearest first: {right!r}."
            )


def _refuse_ledger_beside_a_shared_tier(tiers: tuple[Tier, ...]) -> None:
    # The processes that share the farther tier must share the ledger too, or one would serve what another has changed.
    if len(tiers) > 1 and tiers[0].ledger:
        raise ConfigurationError(
            f"LOCATION names {tiers[0].url!r} in front of {tiers[-1].shown!r}. The ledger lives in the farthest tier "
            f"then; write 'memory://'."
        )
