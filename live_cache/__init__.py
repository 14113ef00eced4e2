"""
Querysets that are cached, never stale, and live.

Importing this package reads no settings and no models; the public names are loaded when they are first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from live_cache.invalidation import invalidate
    from live_cache.queryset import LiveManager, LiveQuerySet, live
    from live_cache.raw_sql import RawSQL
    from live_cache.reader import disabled, recording
    from live_cache.rows import register_codec

__all__ = ["LiveManager", "LiveQuerySet", "RawSQL", "disabled", "invalidate", "live", "recording", "register_codec"]

__version__ = "0.1.0"

_HOMES = {
    "LiveManager": "queryset",
    "LiveQuerySet": "queryset",
    "RawSQL": "raw_sql",
    "disabled": "reader",
    "invalidate": "invalidation",
    "live": "queryset",
    "recording": "reader",
    "register_codec": "rows",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
