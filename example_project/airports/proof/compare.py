"""Whether two results are the same: row by row, column by column, in value and in Python type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from django.db.models import Model

__all__ = ["difference", "flatten"]


def flatten(value: Any) -> Any:
    """
    Return *value* as plain data that can be compared: each instance becomes its columns and its loaded relations.

    Attributes that a query adds, such as annotations, are columns too.
    """
    if isinstance(value, Model):
        columns = {name: column for name, column in vars(value).items() if name != "_state"}
        related = {name: flatten(one) for name, one in value._state.fields_cache.items()}
        return {
            "model": type(value),
            "using": value._state.db,
            **columns,
            **{f"{name}*": related[name] for name in related},
        }
    if isinstance(value, Mapping):
        return {key: flatten(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(flatten(one) for one in value)
    return value


def difference(live: Any, plain: Any) -> str:
    """
    Return where *live* differs from what the database says, or an empty string.

    1 is not 1.0, Decimal("1.0") is not Decimal("1.00"), and a list is not a tuple.
    """
    return _difference(flatten(live), flatten(plain), "")


def _difference(live: Any, plain: Any, place: str) -> str:
    if type(live) is not type(plain):
        return f"{place or 'result'} is {live!r} ({type(live).__name__}), not {plain!r} ({type(plain).__name__})"
    if isinstance(plain, Mapping):
        if list(live) != list(plain):
            return f"{place or 'result'} has the columns {list(live)}, not {list(plain)}"
        pairs: Sequence[tuple[str, Any, Any]] = [(f"{place}.{key}", live[key], plain[key]) for key in plain]
    elif isinstance(plain, list | tuple):
        if len(live) != len(plain):
            return f"{place or 'result'} has {len(live)} rows, not {len(plain)}"
        pairs = [(f"{place}[{number}]", *both) for number, both in enumerate(zip(live, plain, strict=True))]
    else:
        # repr tells apart what == does not: -0.0 and 0.0, equal Decimals with different exponents.
        return "" if live == plain and repr(live) == repr(plain) else f"{place or 'result'} is {live!r}, not {plain!r}"
    return next((found for where, one, other in pairs if (found := _difference(one, other, where))), "")
