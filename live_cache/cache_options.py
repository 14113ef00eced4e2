"""What the OPTIONS and the TIMEOUT of one entry of CACHES say, as plain data. Pure functions, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Final, cast

from live_cache.exceptions import ConfigurationError

if TYPE_CHECKING:
    from live_cache.stores.tier_state import Promotion

__all__ = ["KNOWN_OPTIONS", "Options", "parse_options", "parse_timeout"]


@dataclass(frozen=True, slots=True)
class Options:
    """The OPTIONS of one cache alias, with their defaults. docs/reference/settings.md describes each."""

    max_entries: int = 100_000
    cull_frequency: int | None = None
    max_bytes: int = 64 * 1024 * 1024
    disk_max_bytes: int = 1024 * 1024 * 1024
    promote: Promotion = "always"
    mac_keys: tuple[bytes, ...] = ()
    pickle: bool = True
    connect_timeout_s: float = 0.25
    socket_timeout_s: float = 1.0
    read_timeout_s: float = 0.04
    retry_pause_s: float = 0.5


KNOWN_OPTIONS: Final = tuple(sorted(field.name.upper() for field in fields(Options)))


def parse_options(options: Mapping[str, Any]) -> Options:
    """
    Return the OPTIONS of one alias, checked.

    Raises:
        ConfigurationError: An option is unknown, or its value is of the wrong type or out of range.
    """
    unknown = sorted(str(name) for name in options if name not in KNOWN_OPTIONS)
    if unknown:
        raise ConfigurationError(
            f"OPTIONS has the unknown {', '.join(unknown)}. Known are: {', '.join(KNOWN_OPTIONS)}."
        )
    defaults = Options()
    return Options(
        max_entries=_positive_int(options, "MAX_ENTRIES", defaults.max_entries),
        cull_frequency=_cull_frequency(options.get("CULL_FREQUENCY")),
        max_bytes=_positive_int(options, "MAX_BYTES", defaults.max_bytes),
        disk_max_bytes=_positive_int(options, "DISK_MAX_BYTES", defaults.disk_max_bytes),
        promote=_promotion(options.get("PROMOTE", defaults.promote)),
        mac_keys=_mac_keys(options.get("MAC_KEYS", ())),
        pickle=_boolean(options, "PICKLE", defaults.pickle),
        connect_timeout_s=_positive_seconds(options, "CONNECT_TIMEOUT_S", defaults.connect_timeout_s),
        socket_timeout_s=_positive_seconds(options, "SOCKET_TIMEOUT_S", defaults.socket_timeout_s),
        read_timeout_s=_positive_seconds(options, "READ_TIMEOUT_S", defaults.read_timeout_s),
        retry_pause_s=_positive_seconds(options, "RETRY_PAUSE_S", defaults.retry_pause_s),
    )


def parse_timeout(timeout: object) -> float | None:
    """
    Return the TIMEOUT of one alias in seconds; None never expires.

    Raises:
        ConfigurationError: It is neither a number nor None. (Django itself would silently take 300 seconds.)
    """
    if timeout is None:
        return None
    if isinstance(timeout, str):
        # From an environment variable, most often. Django takes these as well.
        with suppress(ValueError):
            timeout = int(timeout)
    if isinstance(timeout, int | float) and not isinstance(timeout, bool):
        return float(timeout)
    raise ConfigurationError(f"TIMEOUT is {timeout!r}; give seconds as a number, or None for no expiry.")


def _positive_int(options: Mapping[str, Any], name: str, default: int) -> int:
    value = options.get(name, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigurationError(f"OPTIONS[{name!r}] is {value!r}; give a whole number of at least 1.")
    return value


def _cull_frequency(value: object) -> int | None:
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    raise ConfigurationError(
        f"OPTIONS['CULL_FREQUENCY'] is {value!r}; give a whole number N, and 1/N of the values go when MAX_ENTRIES is "
        f"reached (0: all of them). Leave it out, and the least recently used value goes."
    )


def _positive_seconds(options: Mapping[str, Any], name: str, default: float) -> float:
    value = options.get(name, default)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ConfigurationError(f"OPTIONS[{name!r}] is {value!r}; give seconds, more than 0.")
    return float(value)


def _boolean(options: Mapping[str, Any], name: str, default: bool) -> bool:
    value = options.get(name, default)
    if not isinstance(value, bool):
        raise ConfigurationError(f"OPTIONS[{name!r}] is {value!r}; give True or False.")
    return value


def _promotion(value: Any) -> Promotion:
    is_turn = isinstance(value, int) and not isinstance(value, bool) and value >= 1
    if value in ("always", "never") or is_turn or callable(value):
        return cast("Promotion", value)
    raise ConfigurationError(
        f"OPTIONS['PROMOTE'] is {value!r}; give 'always', 'never', a number N (one hit in N), or a function of key "
        f"and StoredValue."
    )


def _mac_keys(value: object) -> tuple[bytes, ...]:
    keys = [value] if isinstance(value, str | bytes) else value
    if not isinstance(keys, list | tuple):
        raise ConfigurationError("OPTIONS['MAC_KEYS'] is no list. Give a list of str or bytes; the first one signs.")
    result: list[bytes] = []
    for key in keys:
        # The value of a key never goes into a message.
        if not isinstance(key, str | bytes) or not key:
            raise ConfigurationError("OPTIONS['MAC_KEYS'] holds something that is no str or bytes, or is empty.")
        result.append(key.encode() if isinstance(key, str) else key)
    return tuple(result)
