"""How the pages write numbers."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

from django import template

__all__ = ["as_json", "degrees", "feet", "hexadecimal", "microseconds", "thousands"]

register = template.Library()


@register.filter
def microseconds(value: float) -> str:
    """Return *value*, in microseconds, in the unit that reads best."""
    return f"{value / 1000:,.1f} ms" if value >= 10_000 else f"{value:,.0f} µs"


@register.filter
def thousands(value: int) -> str:
    """Return *value* with a comma before each three digits."""
    return f"{value:,}"


@register.filter
def feet(value: Decimal) -> str:
    """Return an elevation without a needless decimal."""
    return f"{value:,.0f} ft" if value == value.to_integral_value() else f"{value:,.1f} ft"


@register.filter
def degrees(value: Decimal, letters: str) -> str:
    """Return an angle with the letter of its side: *letters* are the positive and the negative one."""
    return f"{abs(value):.4f}° {letters[0] if value >= 0 else letters[1]}"


@register.filter
def as_json(value: Any) -> str:
    """Return *value* as readable JSON."""
    return json.dumps(value, ensure_ascii=False)


@register.filter("hex")
def hexadecimal(value: bytes) -> str:
    """Return the first bytes of *value*, enough to tell two apart."""
    return value[:4].hex()
