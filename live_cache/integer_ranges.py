"""
Numbers that no column of a type can hold: Django leaves a comparison with them out of the SQL.

IntegerFieldOverflow, read in Django 5.2.19: a comparison that no row, or every row, passes is left out, and then a row
with NULL passes too. So the number decides what the SQL looks at, and it may not be compared here.
"""

from __future__ import annotations

from typing import Final

__all__ = ["range_class"]

_BITS: Final = {
    "SmallIntegerField": 16,
    "IntegerField": 32,
    "BigIntegerField": 64,
    "PositiveSmallIntegerField": 16,
    "PositiveIntegerField": 32,
    "PositiveBigIntegerField": 64,
    "SmallAutoField": 16,
    "AutoField": 32,
    "BigAutoField": 64,
}


def range_class(value: int, internal_type: str) -> int:
    """
    Return 0 if *value* is in the range of the type on every database; else a number that tells which ranges it is in.

    Databases differ: MySQL has unsigned columns, SQLite has one range for all.
    """
    bits = _BITS.get(internal_type)
    if bits is None:
        return 0
    half = 1 << (bits - 1)
    if value >= half:
        return 1 + sum(value >= limit for limit in (half * 2, 1 << 63, 1 << 64))
    if value < -half:
        return -2 - (value < -(1 << 63))
    return -1 if value < 0 and internal_type.startswith("Positive") else 0
