"""
Conditions on the columns of one alias: what a row of that alias must fulfil to have any part in the result.

A condition is read off the WHERE of a query. Whatever it says of other aliases, of expressions, or in a way that is not
known here is UNKNOWN, so a condition is never stronger than the WHERE. A row for which it is FALSE or NULL contributes
nothing, in any state of the database.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Protocol

from django.db.models import expressions, lookups
from django.db.models.fields import DecimalField, related_lookups
from django.db.models.sql.where import AND, OR, WhereNode

from live_cache.changes import Image
from live_cache.integer_ranges import range_class
from live_cache.shapes.truth import (
    FALSE,
    NULL,
    TRUE,
    UNKNOWN,
    TextRules,
    Truth,
    all_of,
    any_of,
    compare,
    is_comparable_field,
    is_equal,
    negation,
)

__all__ = [
    "ANYTHING",
    "All",
    "Condition",
    "Linked",
    "OneOf",
    "atoms_of",
    "column_of",
    "is_open",
    "may_hold",
    "own_part",
    "read_part",
    "read_where",
    "replace_links",
    "values_of",
]

_ABSENT: Final = object()
_ORDERS: Final[dict[type, tuple[str, frozenset[int]]]] = {
    lookups.GreaterThan: (">", frozenset({1})),
    lookups.GreaterThanOrEqual: (">=", frozenset({0, 1})),
    lookups.LessThan: ("<", frozenset({-1})),
    lookups.LessThanOrEqual: ("<=", frozenset({-1, 0})),
}


class Condition(Protocol):
    """A condition on one row."""

    def truth(self, image: Image, text: TextRules) -> Truth:
        """Return what the database says of it for the row *image*."""
        ...

    def __str__(self) -> str: ...


def may_hold(condition: Condition, image: Image | None, text: TextRules) -> bool:
    """Return whether the row may fulfil *condition*; True if the row is not known."""
    return image is None or bool(condition.truth(image, text) & TRUE)


@dataclass(frozen=True, slots=True)
class _Anything:
    """Nothing is known."""

    def truth(self, image: Image, text: TextRules) -> Truth:
        return UNKNOWN

    def __str__(self) -> str:
        return "any row"


ANYTHING: Final = _Anything()


@dataclass(frozen=True, slots=True)
class Linked:
    """
    What the WHERE asks of the rows of another table that the row is linked to by *column*.

    Nothing is known of it until the link set is (links.LinkSets).
    """

    column: str
    link: Any
    """A links.Link."""

    def truth(self, image: Image, text: TextRules) -> Truth:
        return UNKNOWN

    def __str__(self) -> str:
        return f"{self.column} among those of {self.link}"


@dataclass(frozen=True, slots=True)
class OneOf:
    """``column = value`` or ``column IN (values)``."""

    column: str
    values: tuple[Any, ...]

    def truth(self, image: Image, text: TextRules) -> Truth:
        value = image.get(self.column, _ABSENT)
        if value is _ABSENT:
            return UNKNOWN
        found = FALSE
        for candidate in self.values:
            truth = is_equal(value, candidate, text)
            if truth == TRUE:
                return truth
            found = any_of(found, truth)
        return found

    def __str__(self) -> str:
        if len(self.values) == 1:
            return f"{self.column} = {_shown(self.values[0])}"
        return f"{self.column} in ({', '.join(map(_shown, self.values[:5]))}{', ...' if len(self.values) > 5 else ''})"


@dataclass(frozen=True, slots=True)
class _Order:
    """``column < value`` and its kin."""

    column: str
    symbol: str
    value: Any
    allowed: frozenset[int]

    def truth(self, image: Image, text: TextRules) -> Truth:
        value = image.get(self.column, _ABSENT)
        if value is _ABSENT:
            return UNKNOWN
        if value is None or self.value is None:
            return NULL
        order = compare(value, self.value, text)
        if order is None:
            return UNKNOWN
        return TRUE if order in self.allowed else FALSE

    def __str__(self) -> str:
        return f"{self.column} {self.symbol} {_shown(self.value)}"


@dataclass(frozen=True, slots=True)
class _IsNull:
    column: str
    is_null: bool

    def truth(self, image: Image, text: TextRules) -> Truth:
        value = image.get(self.column, _ABSENT)
        if value is _ABSENT:
            return UNKNOWN
        return TRUE if (value is None) is self.is_null else FALSE

    def __str__(self) -> str:
        return f"{self.column} is {'' if self.is_null else 'not '}null"


@dataclass(frozen=True, slots=True)
class _Text:
    """LIKE with one fixed text, where letters of ASCII may or may not be folded."""

    column: str
    name: str
    needle: str

    def truth(self, image: Image, text: TextRules) -> Truth:
        value = image.get(self.column, _ABSENT)
        if value is None:
            return NULL
        if type(value) is not str or not text.is_equality_exact or not (value.isascii() and self.needle.isascii()):
            return UNKNOWN
        if "\0" in value or "\0" in self.needle:  # where SQLite sees the end
            return UNKNOWN
        held, needle = value.lower(), self.needle.lower()
        if self.name.endswith("startswith"):
            found = held.startswith(needle)
        elif self.name.endswith("endswith"):
            found = held.endswith(needle)
        elif self.name == "iexact":
            found = held == needle
        else:
            found = needle in held
        # Not even with its letters folded: surely not. Else the case decides, by rules that differ.
        return UNKNOWN if found else FALSE

    def __str__(self) -> str:
        return f"{self.column} {self.name} {_shown(self.needle)}"


@dataclass(frozen=True, slots=True)
class All:
    """AND."""

    parts: tuple[Condition, ...]

    def truth(self, image: Image, text: TextRules) -> Truth:
        found = TRUE
        for part in self.parts:
            found = all_of(found, part.truth(image, text))
            if found == FALSE:
                return found
        return found

    def __str__(self) -> str:
        return " and ".join(str(part) for part in self.parts if part is not ANYTHING) or str(ANYTHING)


@dataclass(frozen=True, slots=True)
class _Any:
    """OR."""

    parts: tuple[Condition, ...]

    def truth(self, image: Image, text: TextRules) -> Truth:
        found = FALSE
        for part in self.parts:
            found = any_of(found, part.truth(image, text))
            if found == TRUE:
                return found
        return found

    def __str__(self) -> str:
        return "(" + " or ".join(map(str, self.parts)) + ")"


@dataclass(frozen=True, slots=True)
class _Not:
    part: Condition

    def truth(self, image: Image, text: TextRules) -> Truth:
        return negation(self.part.truth(image, text))

    def __str__(self) -> str:
        return f"not ({self.part})"


class Finder(Protocol):
    """Finds what a WHERE says of the tables that an alias is linked to."""

    def find(self, node: Any) -> Linked | None:
        """Return the link that *node* is, if it speaks of the rows of one linked table alone."""
        ...

    def group(self, node: WhereNode) -> list[Any]:
        """Return the children of *node*, those that speak of one linked table together."""
        ...


def read_where(where: WhereNode, alias: str, finder: Finder | None = None) -> Condition:
    """Return what *where* says of the rows of *alias*, and by *finder* of the rows that these are linked to."""
    if where.contains_over_clause:  # what stands beside a window in an OR leaves no row out of that window
        return ANYTHING
    condition = _read(where, alias, None if where.contains_aggregate else finder)
    return condition if _says_something(condition) else ANYTHING


def read_part(node: Any, alias: str) -> Condition | None:
    """Return what *node*, a part of a WHERE, says, if it speaks of *alias* alone and all of it is understood."""
    condition = _read(node, alias)
    return None if _is_mixed(condition) else condition


def replace_links(condition: Condition, replace: Callable[[Linked], Condition]) -> Condition:
    """Return *condition* with *replace* of each of its links."""
    if isinstance(condition, Linked):
        return replace(condition)
    if isinstance(condition, All | _Any):
        return type(condition)(tuple([replace_links(part, replace) for part in condition.parts]))
    return _Not(replace_links(condition.part, replace)) if isinstance(condition, _Not) else condition


def atoms_of(where: WhereNode, alias: str) -> tuple[Counter[str], tuple[Condition, ...]]:
    """
    Return what of *where* is understood of the rows of *alias*: how often it names each column, and the conditions.

    What stands beside them in ORs and below NOTs does not matter here: whether they hold is all that *where* takes from
    these columns, as often as it names them in this way.
    """
    counts: Counter[str] = Counter()
    atoms: list[Condition] = []
    to_visit: list[Any] = [where]
    while to_visit:
        node = to_visit.pop()
        if type(node) is WhereNode:
            to_visit += node.children
            continue
        condition = _read(node, alias)
        if condition is not ANYTHING:
            counts[str(node.lhs.target.column)] += 1
            atoms += condition.parts if isinstance(condition, All) else [condition]
    return counts, tuple(atoms)


def own_part(condition: Condition) -> Condition | None:
    """
    Return what *condition* says of the row alone, if it is joined to all else by AND; None if it is mixed with it.

    A row that fulfils this and still has no part in the result fails by what stands beside it.
    """
    parts = condition.parts if isinstance(condition, All) else (condition,)
    own = tuple([part for part in parts if not is_open(part)])
    return All(own) if own and not any(map(_is_mixed, own)) else None


def is_open(condition: Condition) -> bool:
    """Return whether *condition* says nothing of the row alone."""
    return condition is ANYTHING or isinstance(condition, Linked)


def _is_mixed(condition: Condition) -> bool:
    if isinstance(condition, All | _Any):
        return any(map(_is_mixed, condition.parts))
    return _is_mixed(condition.part) if isinstance(condition, _Not) else is_open(condition)


def column_of(condition: Condition) -> str:
    """Return the column of one of atoms_of()."""
    return str(getattr(condition, "column", ""))


def values_of(condition: Condition) -> Mapping[str, tuple[Any, ...]]:
    """Return the columns that *condition* holds to known values, with these; of ANDs only."""
    if isinstance(condition, OneOf):
        return {condition.column: condition.values}
    if isinstance(condition, All):
        found: dict[str, tuple[Any, ...]] = {}
        for part in condition.parts:
            for column, values in values_of(part).items():
                found.setdefault(column, values)
        return found
    return {}


def _read(node: Any, alias: str, finder: Finder | None = None) -> Condition:
    kind = type(node)
    if finder is not None and (linked := finder.find(node)) is not None:
        return linked
    if kind is WhereNode:
        if not node.children:
            return ANYTHING
        if node.negated:  # that a row has no partner excludes it only where partners are asked for
            finder = None
        children = node.children if finder is None else finder.group(node)
        parts = tuple([_read(child, alias, finder) for child in children])
        if node.connector == AND:
            whole: Condition = parts[0] if len(parts) == 1 else All(parts)
        elif node.connector == OR:
            whole = parts[0] if len(parts) == 1 else _Any(parts)
        else:  # XOR
            return ANYTHING
        return _Not(whole) if node.negated else whole
    if not isinstance(node, lookups.Lookup) or node.bilateral_transforms:
        return ANYTHING
    lhs = node.lhs
    if type(lhs) is not expressions.Col or lhs.alias != alias or type(lhs.output_field) is not type(lhs.target):
        return ANYTHING
    field: Any = lhs.target
    if isinstance(node, lookups.IsNull):
        return _IsNull(str(field.column), node.rhs) if type(node.rhs) is bool else ANYTHING
    if not is_comparable_field(field):
        return ANYTHING
    return _comparison(node, str(field.column), field)


def _comparison(node: Any, column: str, field: Any) -> Condition:
    rhs = node.rhs
    kind = type(node)
    if kind in (lookups.In, related_lookups.RelatedIn):
        if isinstance(rhs, list | tuple | set | frozenset) and all(_is_parameter(value, field) for value in rhs):
            return OneOf(column, tuple(map(_plain, rhs)))
        return ANYTHING
    if kind is lookups.Range:
        if isinstance(rhs, list | tuple) and len(rhs) == 2 and all(_is_parameter(value, field) for value in rhs):
            low, high = rhs
            at_least = _Order(column, *_with(low, lookups.GreaterThanOrEqual))
            return All((at_least, _Order(column, *_with(high, lookups.LessThanOrEqual))))
        return ANYTHING
    if isinstance(node, lookups.PatternLookup | lookups.IExact):
        if type(rhs) is str and kind.__module__ == lookups.__name__ and node.lookup_name in _TEXT_LOOKUPS:
            return _Text(column, str(node.lookup_name), rhs)
        return ANYTHING
    if not _is_parameter(rhs, field):
        return ANYTHING
    if kind in (lookups.Exact, related_lookups.RelatedExact, lookups.IntegerFieldExact):
        return OneOf(column, (_plain(rhs),))
    for order, (symbol, allowed) in _ORDERS.items():
        if isinstance(node, order) and kind.__module__ in (lookups.__name__, related_lookups.__name__):
            return _Order(column, symbol, _plain(rhs), allowed)
    return ANYTHING


_TEXT_LOOKUPS: Final = frozenset(
    {"contains", "icontains", "startswith", "istartswith", "endswith", "iendswith", "iexact"}
)


def _with(value: Any, order: type) -> tuple[str, Any, frozenset[int]]:
    symbol, allowed = _ORDERS[order]
    return symbol, _plain(value), allowed


def _plain(value: Any) -> Any:
    """Return what drivers send for *value*: of a member of TextChoices, of SafeString and the like, the text itself."""
    kind = type(value)
    if kind is not str and isinstance(value, str):
        return str.__str__(value.value if isinstance(value, enum.Enum) else value)
    if kind not in (int, bool) and isinstance(value, int):
        return int(value)
    return value


def _is_parameter(value: Any, field: Any) -> bool:
    """Return whether *value* goes to the database as it is, so that it may be compared here."""
    if value is None or hasattr(value, "resolve_expression") or hasattr(value, "as_sql"):
        return False
    if isinstance(value, int) and range_class(value, field.get_internal_type()):
        return False
    if type(value) is Decimal:
        places = value.as_tuple().exponent
        # What has more places than the column may be rounded on the way.
        return isinstance(field, DecimalField) and isinstance(places, int) and -places <= field.decimal_places
    return True


def _says_something(condition: Condition) -> bool:
    if isinstance(condition, All | _Any):
        return any(_says_something(part) for part in condition.parts)
    if isinstance(condition, _Not):
        return _says_something(condition.part)
    return condition is not ANYTHING


def _shown(value: Any) -> str:
    text = repr(value) if isinstance(value, str | bytes | int | float | bool) else str(value)
    return text if len(text) <= 40 else text[:37] + "..."
