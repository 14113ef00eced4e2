"""Parameters of queries as primitives that hold their type, so that 1, True, "1" and Decimal("1.0") stay apart."""

from __future__ import annotations

import datetime
import decimal
import enum
import ipaddress
import uuid
import zoneinfo
from typing import Any, Final

from live_cache.deterministic import RANGE_TYPE
from live_cache.exceptions import UncachableQueryError

__all__ = ["PRIMITIVES", "class_name", "sortable", "typed", "zone_name"]

Token = Any

PRIMITIVES: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Types that marshal tells apart by itself."""


def class_name(kind: type) -> str:
    """Return module and name of a class."""
    return f"{kind.__module__}.{kind.__qualname__}"


def typed(value: Any) -> Token:
    """Return a value of a known type as primitives that hold its type; refuse the rest."""
    kind = type(value)
    name = class_name(kind)
    if isinstance(value, enum.Enum):
        content = value.value if type(value.value) in PRIMITIVES else typed(value.value)
        return (name, value.name, content)
    if kind is decimal.Decimal:
        return (name, str(value))
    if kind is datetime.datetime or kind is datetime.time:
        return (name, value.isoformat(), value.fold, zone_name(value.tzinfo))
    if kind is datetime.date:
        return (name, value.isoformat())
    if kind is datetime.timedelta:
        return (name, value.days, value.seconds, value.microseconds)
    if kind is uuid.UUID:
        return (name, value.bytes)
    if kind in _ADDRESSES:
        return (name, str(value))
    if kind is memoryview or kind is bytearray:
        return (name, bytes(value))
    if name == RANGE_TYPE:
        ends = (None, None) if value.isempty else (_bound(value.lower), _bound(value.upper))
        return (name, value.isempty, *ends, value.bounds if not value.isempty else None)
    if isinstance(value, str):  # SafeString and other text that the database takes as text
        return (name, str.__str__(value))
    if isinstance(value, int):
        return (name, int(value))
    raise UncachableQueryError(f"A parameter of the type {name} is not known.")


def _bound(value: Any) -> Token:
    return value if type(value) in PRIMITIVES else typed(value)


_ADDRESSES: Final = frozenset(
    {
        ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
        ipaddress.IPv4Interface, ipaddress.IPv6Interface,
    }
)  # fmt: skip


def zone_name(zone: datetime.tzinfo | None) -> Token:
    """Return what names a time zone for good; refuse one that has no name."""
    if zone is None:
        return None
    if isinstance(zone, zoneinfo.ZoneInfo) and zone.key:
        return zone.key
    if type(zone) is datetime.timezone:
        return zone.utcoffset(None).total_seconds()
    raise UncachableQueryError(f"A parameter has the time zone {zone!r}, which has no name.")


def sortable(value: Any) -> Any:
    """Return *value* for sorting the parameters of a set: only texts or only integers have an order."""
    if type(value) is str or type(value) is int:
        return value
    raise UncachableQueryError(f"A set of {class_name(type(value))} has no order of its own; pass a list.")
