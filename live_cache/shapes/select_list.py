"""
What the SELECT list of a grouped or distinct query shows of a row: its group, or its values.

Read off the compiler's own description of the list.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.db import models
from django.db.models import expressions, functions

from live_cache.shapes.truth import is_comparable_field

if TYPE_CHECKING:
    from live_cache.changes import Image
    from live_cache.sql.outline import Outline

__all__ = ["Shown", "distinct_values", "groups_of"]

Value = Callable[["Image"], Any]


@dataclass(frozen=True, slots=True)
class Shown:
    """One column of a SELECT list."""

    value: Value
    """What it shows of a row. Raises LookupError, TypeError, ValueError or OverflowError where that is not known."""
    is_computed: bool
    """Whether the database computes it, and so writes equal values in one way, however they are stored."""


_DAY_FIELDS: Final = {"year": {"month": 1, "day": 1}, "month": {"day": 1}, "day": {}}
_MIDNIGHT: Final = {"hour": 0, "minute": 0, "second": 0, "microsecond": 0}


def groups_of(compiler: Any, found: Outline) -> tuple[tuple[str, int], ...]:
    """Return the columns that rows are grouped by, each with its position, if these are all and stand in the list."""
    query = compiler.query
    if not found.is_plain or query.distinct or not isinstance(query.group_by, tuple) or compiler.having is not None:
        return ()
    if compiler.qualify is not None:
        return ()
    groups: list[tuple[str, int]] = []
    for index, (expression, _, _) in enumerate(compiler.select or ()):
        if type(expression) is expressions.Col:
            if expression.alias != found.base_alias or not is_comparable_field(expression.target):
                return ()
            groups.append((str(expression.target.column), index))
        elif not getattr(expression, "contains_aggregate", False):
            return ()
    named = {str(item.target.column) for item in query.group_by if type(item) is expressions.Col}
    # One row per combination of the columns shown: nothing else may part the groups.
    return tuple(groups) if len(named) == len(query.group_by) and named == {name for name, _ in groups} else ()


def distinct_values(compiler: Any, found: Outline) -> tuple[Shown, ...]:
    """Return the columns that a row of the base table, the only one, shows in a SELECT DISTINCT."""
    query = compiler.query
    if not found.is_plain or not query.distinct or query.distinct_fields or query.group_by is not None:
        return ()
    if sum(found.uses.values()) != 1 or compiler.having is not None or compiler.qualify is not None:
        return ()
    if compiler.get_extra_select(compiler.get_order_by(), compiler.select):  # sorted by what is not shown
        return ()
    shown: list[Shown] = []
    for expression, _, _ in compiler.select or ():
        value = _value(expression, found.base_alias)
        if value is None:
            return ()
        shown.append(Shown(value, is_computed=type(expression) in _TRUNCATIONS))
    return tuple(shown)


def _value(expression: Any, alias: str) -> Value | None:
    if type(expression) is expressions.Col and expression.alias == alias and is_comparable_field(expression.target):
        column = str(expression.target.column)
        return lambda image: image[column]
    if type(expression) in _TRUNCATIONS:
        (source,) = expression.get_source_expressions()
        inner = _value(source, alias)
        if inner is not None and type(source.target) in (models.DateField, models.DateTimeField):
            return _truncation(expression, inner)
    return None


def _truncation(expression: Any, inner: Value) -> Value | None:
    fields = _DAY_FIELDS.get(expression.kind)
    output = type(expression.output_field)
    if fields is None:
        return None
    if output is models.DateField:

        def day(image: Image) -> Any:
            value = inner(image)
            if value is None:
                raise ValueError("NULL, or what the field cannot read.")
            if type(value) is datetime.datetime:
                value = _local(value, expression).date()
            return value.replace(**fields)

        return day
    if output is models.DateTimeField:
        return lambda image: _local(inner(image), expression).replace(**_MIDNIGHT, **fields)
    return None


def _local(value: Any, expression: Any) -> Any:
    """Return *value* in the time zone of *expression*; raise ValueError where a day may not be what it seems."""
    if type(value) is not datetime.datetime or value.tzinfo is None:
        raise ValueError("Not an aware datetime.")
    if expression.get_tzname() != "UTC":  # that of the reader, where the expression names none: it is in his key
        raise ValueError("A day of a zone with summer time may begin twice, or not at all.")
    return value.astimezone(datetime.UTC)


_TRUNCATIONS: Final = frozenset(
    {functions.TruncYear, functions.TruncMonth, functions.TruncDay, functions.TruncDate, functions.Trunc}
)
