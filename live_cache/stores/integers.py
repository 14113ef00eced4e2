"""
The decimal integers that increment() works on, by the rules of Redis, so that every store agrees on them.
"""

from __future__ import annotations

import re
from typing import Final

from live_cache.exceptions import StoreError

__all__ = ["add_to_integer"]

_INTEGER: Final = re.compile(rb"0|-?[1-9][0-9]{0,18}")
_SMALLEST: Final = -(2**63)
_LARGEST: Final = 2**63 - 1


def add_to_integer(key: str, value: bytes | int, delta: int) -> int:
    """
    Return the integer that *value* spells, plus *delta*.

    Args:
        key: Named in the error.
        value: Decimal digits without sign +, leading zeros or spaces; or an int.

    Raises:
        StoreError: The value is not a decimal integer, or a number involved does not fit into 64 bits.
    """
    if isinstance(value, bytes):
        if not _INTEGER.fullmatch(value):
            raise StoreError(f"The value under {key!r} is not a decimal integer, so it cannot be incremented.")
        value = int(value)
    total = value + delta
    if not all(_SMALLEST <= number <= _LARGEST for number in (value, delta, total)):
        raise StoreError(f"Adding {delta} to the value under {key!r} does not fit into 64 bits. Nothing was changed.")
    return total
