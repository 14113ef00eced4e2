"""
What a LOCATION says of Redis, as plain data. Pure functions, no I/O.

``redis+sentinel://user:password@host:port,host:port/service/db`` names the Sentinels and the service that they watch;
``redis+cluster://user:password@host:port,host:port`` some nodes of a cluster. Other URLs go to redis-py as they are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

from live_cache.exceptions import ConfigurationError

__all__ = ["RedisUrl", "parse_redis_url", "without_password"]

_DEFAULT_PORTS: Final = {"redis+sentinel": 26379, "redis+cluster": 6379}
_SECRET: Final = re.compile(r"(?<=[?&])((?:sentinel_)?password)=[^&]*")


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """One URL, taken apart."""

    kind: Literal["single", "sentinel", "cluster"]
    url: str
    hosts: tuple[tuple[str, int], ...] = ()
    """Of the Sentinels, or of some nodes of the cluster."""
    service: str = ""
    db: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    options: dict[str, str] = field(default_factory=dict, hash=False, repr=False)
    """Of the query."""


def parse_redis_url(url: str) -> RedisUrl:
    """
    Take *url* apart.

    Raises:
        ConfigurationError: A host, a port, the service or the database is missing or wrong.
    """
    scheme = url.partition("://")[0]
    if scheme not in _DEFAULT_PORTS:
        return RedisUrl("single", url)
    parts = urlsplit(url)
    credentials, _, hosts_text = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    hosts = tuple(_host(text, scheme, url) for text in hosts_text.split(","))
    segments = [unquote(segment) for segment in parts.path.split("/") if segment]
    is_sentinel = scheme == "redis+sentinel"
    service = segments.pop(0) if is_sentinel and segments else ""
    if is_sentinel and not service:
        raise ConfigurationError(
            f"LOCATION names {without_password(url)!r} without a service. Write "
            f"'redis+sentinel://host:26379,host:26379/mymaster/0'."
        )
    db = segments.pop(0) if segments else "0"
    if segments or not db.isdecimal() or (not is_sentinel and db != "0"):
        wanted = "one number after the service" if is_sentinel else "no path: a cluster has database 0 only"
        raise ConfigurationError(f"LOCATION names {without_password(url)!r}, which needs {wanted}.")
    return RedisUrl(
        "sentinel" if is_sentinel else "cluster",
        url,
        hosts,
        service,
        int(db),
        unquote(username) or None,
        unquote(password) or None,
        dict(parse_qsl(parts.query)),
    )


def without_password(url: str) -> str:
    """Return *url* as a message may show it: without user, password, and secrets among its options."""
    head, separator, rest = url.partition("://")
    place, question, query = rest.partition("?")
    # A password may hold what ends an authority elsewhere, so that the last @ counts.
    credentials, at, behind = place.rpartition("@")
    place = f"***@{behind}" if at and credentials else place
    return f"{head}{separator}{place}" + _SECRET.sub(r"\1=***", question + query)


def _host(text: str, scheme: str, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit("//" + text)
        if parts.hostname:
            return parts.hostname, parts.port or _DEFAULT_PORTS[scheme]
        reason = "a host is missing"
    except ValueError as error:
        reason = str(error)
    raise ConfigurationError(
        f"LOCATION names {without_password(url)!r}: {reason}. Write host:port, several with commas."
    )
