"""
Whether two values are equal, or in order, as the *database* sees it: yes, no, or not to be known here.

A database compares by rules that Python does not share: collations, padding, rounding, NULL. Each function says TRUE or
FALSE only where every supported database agrees, and UNKNOWN for the rest; so a wrong answer is impossible and a vague
one costs a fetch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Final, TypeAlias
from uuid import UUID

from django.db import models

__all__ = [
    "COMPARABLE_FIELDS",
    "FALSE",
    "NULL",
    "TRUE",
    "UNKNOWN",
    "TextRules",
    "Truth",
    "all_of",
    "any_of",
    "compare",
    "is_comparable_field",
    "is_equal",
    "negation",
    "position",
]


Truth: TypeAlias = int
"""Which of the three values of SQL a condition may have for a row: bits of FALSE, NULL and TRUE."""
FALSE: Final[Truth] = 1
NULL: Final[Truth] = 2
TRUE: Final[Truth] = 4
UNKNOWN: Final[Truth] = FALSE | NULL | TRUE


COMPARABLE_FIELDS: Final[frozenset[type]] = frozenset(
    {
        models.AutoField, models.BigAutoField, models.BigIntegerField, models.BooleanField, models.CharField,
        models.DateField, models.DateTimeField, models.DecimalField, models.DurationField, models.EmailField,
        models.FloatField, models.IntegerField, models.PositiveBigIntegerField, models.PositiveIntegerField,
        models.PositiveSmallIntegerField, models.SlugField, models.SmallAutoField, models.SmallIntegerField,
        models.TextField, models.TimeField, models.URLField, models.UUIDField, models.FilePathField,
        models.FileField, models.ImageField,
    }
)  # fmt: skip
"""Fields whose values Python compares as the database does, or knows that it does not. No subclass: it may differ."""


@dataclass(frozen=True, slots=True)
class TextRules:
    """How a database compares: texts, of columns that name no collation of their own, and what it has no type for."""

    is_equality_exact: bool
    """Whether two texts are equal only if they are the same."""
    is_order_by_code_point: bool
    is_stored_as_shown: bool = True
    """
    Whether values that the ORM shows as equal are equal to the database. SQLite keeps decimals as doubles and times as
    texts, with as many digits as it was given.
    """
    is_local_time_exact: bool = False
    """Whether datetimes without a zone are stored as they are. A local hour may come twice, to PostgreSQL."""
    is_duration_exact: bool = True
    """Whether durations are stored as shown. PostgreSQL keeps years: one is equal to 360 days, and is shown as 365."""
    are_floats_doubles: bool = True
    """Whether floats are shown as the numbers that are compared. Those of single precision are not."""


def negation(truth: Truth) -> Truth:
    """Return NOT of SQL."""
    return _NOT[truth]


def all_of(left: Truth, right: Truth) -> Truth:
    """Return AND of SQL."""
    return _AND[left << 3 | right]


def any_of(left: Truth, right: Truth) -> Truth:
    """Return OR of SQL."""
    return _NOT[_AND[_NOT[left] << 3 | _NOT[right]]]


_NOT: Final = [truth & NULL | (truth & FALSE and TRUE) | (truth & TRUE and FALSE) for truth in range(8)]
# FALSE < NULL < TRUE, and AND is the lesser of the two.
_AND: Final = [
    sum({min(a, b) for a in (FALSE, NULL, TRUE) if a & left for b in (FALSE, NULL, TRUE) if b & right})
    for left in range(8)
    for right in range(8)
]


def is_comparable_field(field: Any) -> bool:
    """Return whether values of the column of *field* may be compared by this module."""
    for _ in range(8):
        if type(field) not in (models.ForeignKey, models.OneToOneField):
            break
        field = field.target_field
    return type(field) in COMPARABLE_FIELDS and getattr(field, "db_collation", None) is None


def is_equal(left: Any, right: Any, text: TextRules) -> Truth:
    """Return whether the database takes two values of one column for equal. NULL if one of them is None."""
    if left is None or right is None:
        return NULL
    kind = type(left)
    if kind is type(right):
        if kind is int or kind is bool or kind is date:
            return TRUE if left == right else FALSE
        if kind is str:
            if left == right:
                return TRUE
            return FALSE if text.is_equality_exact else UNKNOWN
        if kind is UUID:
            return TRUE if left.int == right.int else FALSE
    order = compare(left, right, text)
    if order is None:
        return UNKNOWN
    return TRUE if order == 0 else FALSE


def compare(left: Any, right: Any, text: TextRules) -> int | None:
    """Return -1, 0 or 1 as *left* sorts before, with or after *right*, ascending; None if that is not known."""
    kind, other = type(left), type(right)
    if kind in _NUMBERS and other in _NUMBERS:
        if not text.are_floats_doubles and float in (kind, other):
            return None
        order = _compare_numbers(left, right)
        return _unless_equal(order, text) if Decimal in (kind, other) else order
    if kind is not other:
        return None
    if kind is str:
        return _sign(left, right) if text.is_order_by_code_point else None
    if kind is date:
        return _sign(left, right)
    if kind is time:
        return None if left.tzinfo or right.tzinfo else _unless_equal(_sign(left, right), text)
    if kind is timedelta:
        return _sign(left, right) if text.is_duration_exact or not _may_differ_by_years(left, right) else None
    if kind is datetime:
        return _unless_equal(_compare_datetimes(left, right, text), text)
    return None


def position(key: Sequence[Any], other: Sequence[Any], are_descending: Sequence[bool], text: TextRules) -> int | None:
    """
    Return -1 or 1 if a row with the sort key *key* surely stands before or after one with the key *other*; else None.

    Rows with equal keys stand in any order.
    """
    for left, right, is_descending in zip(key, other, are_descending, strict=True):
        order = compare(left, right, text)
        if order is None:
            return None
        if order:
            return -order if is_descending else order
    return None


def _unless_equal(order: int | None, text: TextRules) -> int | None:
    return order if order or text.is_stored_as_shown else None


def _compare_datetimes(left: datetime, right: datetime, text: TextRules) -> int | None:
    """Compare datetimes of which *left* is one of the database, in the zone in which it keeps or shows them."""
    if (left.tzinfo is None) is not (right.tzinfo is None):
        return None
    if left.tzinfo is None:
        is_exact = text.is_local_time_exact
    else:
        is_exact = left.tzinfo is UTC or getattr(left.tzinfo, "key", "") == "UTC"
    # Elsewhere an hour comes twice when summer time ends.
    return _sign(left, right) if is_exact or abs(left - right) > _TWO_DAYS else None


def _may_differ_by_years(left: timedelta, right: timedelta) -> bool:
    """Return whether durations, of years that are shown as 365 days and compared as 360, may be in another order."""
    left_s, right_s = left.total_seconds(), right.total_seconds()
    longest_s = max(abs(left_s), abs(right_s))
    return longest_s >= _YEAR_S and abs(left_s - right_s) <= longest_s / 50


_YEAR_S: Final = 365 * 86_400
_TWO_DAYS: Final = timedelta(days=2)
_NUMBERS: Final = frozenset({int, bool, float, Decimal})
_FLOAT_EXACT: Final = 2**53


def _compare_numbers(left: Any, right: Any) -> int | None:
    if type(left) in _INTEGERS and type(right) in _INTEGERS:
        return _sign(left, right)
    # SQLite keeps decimals as doubles, MySQL rounds parameters to the places of the column, doubles are printed and
    # parsed on the way: numbers that are close may be equal, or in another order, there.
    try:
        close, far = float(left), float(right)
    except (OverflowError, ValueError):
        return None
    if not (math.isfinite(close) and math.isfinite(far)):
        return None
    if left == right:
        return 0 if abs(close) < _FLOAT_EXACT else None
    if math.isclose(close, far, rel_tol=1e-9, abs_tol=1e-12):
        return None
    return -1 if close < far else 1


_INTEGERS: Final = frozenset({int, bool})


def _sign(left: Any, right: Any) -> int:
    return -1 if left < right else 1 if left > right else 0
