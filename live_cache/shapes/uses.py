"""
The uses of tables in a query: what it looks at in each, and which of their rows have any part in the result.

Columns come from the compiled SQL (sql.outline), conditions from the Query. Where the two do not tell of the same uses
of a table, the table has no conditions: any of its rows may have a part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from django.db import models
from django.db.models.sql.constants import INNER
from django.db.models.sql.query import Query
from django.db.models.sql.where import WhereNode

from live_cache.shapes.conditions import ANYTHING, All, Condition, OneOf, atoms_of, read_where, values_of
from live_cache.shapes.links import LinkFinder
from live_cache.shapes.truth import is_comparable_field
from live_cache.sql import normalize_table

if TYPE_CHECKING:
    from live_cache.sql.outline import Columns, Outline

__all__ = ["Use", "is_compiled_whole", "uses_of"]


@dataclass(frozen=True, slots=True)
class Use:
    """One use of a table: a table behind FROM or JOIN."""

    table: str
    alias: str
    columns: frozenset[str]
    """All that is looked at."""
    body: frozenset[str]
    """What is named anywhere but in the outermost SELECT list and ORDER BY, and what may be a column of any table."""
    membership: frozenset[str]
    """What decides which rows are in the result: all but what is only shown, and what is only sorted by."""
    shown: frozenset[str]
    """What the outermost SELECT list names, and what may be a column of any table."""
    order: frozenset[str]
    """What the outermost ORDER BY names; all that is shown, where it names expressions of the SELECT list."""
    atoms: tuple[Condition, ...]
    """Simple conditions of the WHERE on single columns, wherever in it they stand."""
    atom_columns: frozenset[str]
    """Columns that the query names nowhere but in these, in its SELECT list and in its ORDER BY."""
    condition: Condition
    """What a row of the table must fulfil to have any part in the result."""
    is_outermost: bool
    """Whether it stands in the outermost SELECT, and not in a subquery or a part of a union."""
    is_base: bool
    """Whether it is the table that the outermost SELECT is of."""
    is_anchored: bool
    """Whether each of its rows has a part only by a foreign key that the database enforces, of a row of another use."""
    partner: tuple[str, str, str] | None
    """Of an optional row that no other can take the place of: its column, and the alias and column that it equals."""
    has_links: bool
    """Whether the condition has links: parts that speak of another table, and say something once the set is known."""
    linked_parts: tuple[Condition, ...]
    """What the links to it ask of its rows: a row that may fulfil one may belong to the link set."""

    def deciding(self, columns: frozenset[str]) -> Use:
        """Return this use with *columns* among what decides, nobody knows how, which rows are in the result."""
        return replace(
            self,
            columns=self.columns | columns,
            body=self.body | columns,
            membership=self.membership | columns,
            atom_columns=self.atom_columns - columns,
        )


_ANY_ALIAS: Final = "?"


def uses_of(
    query: Query, outline: Outline, joins: Mapping[str, Any], *, is_whole: bool, enforces_foreign_keys: bool
) -> dict[str, tuple[Use, ...]]:
    """
    Return the uses of each table in *query*.

    Args:
        outline: Of the SQL that *query* compiles to, or one with the same structure does.
        joins: What compiling has put behind the outermost FROM, by alias: also what select_related() and orderings add.
        is_whole: See is_compiled_whole().
        enforces_foreign_keys: Whether the database does.
    """
    found: dict[str, list[Use]] = {}
    for inner, is_outermost in _queries(query, is_outermost=True):
        own = joins if is_outermost else _joins_of(inner)
        for use in _uses_in(
            inner,
            own,
            outline,
            is_outermost=is_outermost,
            is_whole=is_whole,
            enforces_foreign_keys=enforces_foreign_keys,
        ):
            found.setdefault(use.table, []).append(use)
    for table in set(found) | set(outline.uses):
        uses = found.get(table, ())
        if len(uses) != outline.uses[table] or any(table not in outline.tables.get(use.alias, ()) for use in uses):
            found[table] = [_any_use(table, outline)]
    return {table: tuple(uses) for table, uses in found.items()}


def is_compiled_whole(query: Query, compiler: Any) -> bool:
    """
    Return whether the SQL of *query* has all that its WHEREs ask.

    Django leaves out what no row can fulfil, or every row does, such as ``IN ()``, and what stands beside it. Then the
    SQL names a column less often than they do, and that a WHERE asks of it does not tell what the SQL takes from it.
    """
    to_visit: list[Any] = [inner.where for inner, _ in _queries(query) if inner.where.children]
    while to_visit:
        node = to_visit.pop()
        if type(node) is WhereNode and node.children:
            to_visit += node.children
            continue
        try:
            compiler.compile(node)
        except Exception:  # EmptyResultSet, FullResultSet; or it cannot be compiled by itself, and nothing is known
            return False
    return True


def _any_use(table: str, outline: Outline) -> Use:
    """Return a use that stands for all uses of *table*, of whose rows nothing is known."""
    columns: set[str] = set()
    for section in (outline.shown, outline.body, outline.order):
        for alias, names in section.items():
            if table in outline.tables.get(alias, (table,)):
                columns |= names
    frozen = frozenset(columns)
    return Use(
        table,
        _ANY_ALIAS,
        frozen,
        body=frozen,
        membership=frozen,
        shown=frozen,
        order=frozen,
        atoms=(),
        atom_columns=frozenset(),
        condition=ANYTHING,
        is_outermost=False,
        is_base=False,
        is_anchored=False,
        partner=None,
        has_links=False,
        linked_parts=(),
    )


def _queries(item: Any, *, is_outermost: bool = False) -> Iterator[tuple[Query, bool]]:
    """Yield *item*, if it is a Query, and every Query in it, each as often as it stands there."""
    if isinstance(item, Query):
        combined = getattr(item, "combined_queries", ())
        if combined:
            for each in combined:
                yield from _queries(each)
            return
        inner = getattr(item, "inner_query", None)
        yield item, is_outermost and inner is None
        parts: list[Any] = [inner, item.where, *item.annotation_select.values(), *item.select, *item.order_by]
        for part in parts:
            yield from _queries(part)
        return
    if isinstance(item, tuple | list):
        for part in item:
            yield from _queries(part)
        return
    children = getattr(item, "children", None)
    if children is not None:
        for child in children:
            yield from _queries(child)
        return
    sources = getattr(item, "get_source_expressions", None)
    if sources is not None and not isinstance(item, type):
        parts = [source for source in sources() if source is not None]
        rhs = getattr(item, "rhs", None)
        if isinstance(rhs, Query) and not any(part is rhs for part in parts):
            parts.append(rhs)
        yield from _queries(parts)


def _joins_of(query: Query) -> dict[str, Any]:
    return {alias: join for alias, join in query.alias_map.items() if query.alias_refcount.get(alias)}


def _uses_in(
    query: Query,
    joins: Mapping[str, Any],
    outline: Outline,
    *,
    is_outermost: bool,
    is_whole: bool,
    enforces_foreign_keys: bool,
) -> Iterator[Use]:
    is_outermost = is_outermost and outline.is_plain and outline.base_alias in joins
    finder = LinkFinder(joins, outline.base_alias) if is_outermost else None
    conditions = _conditions(query, joins, outline.base_alias, finder)
    unknown = _unknown_columns(outline)
    idle: Counter[tuple[str, str]] = Counter()
    if is_outermost:
        idle = _idle_keys(joins, outline, enforces_foreign_keys=enforces_foreign_keys)
    for alias, join in joins.items():
        shown = set(_columns(outline.shown, alias))
        body = _columns(outline.body, alias)
        counts = {column: outline.counts[alias, column] - idle[alias, column] for column in body}
        # A foreign key that is followed to what is shown decides that, also if the WHERE compares it.
        shown |= {column for column in counts if idle[alias, column]}
        body = {column for column, count in counts.items() if count} | unknown
        order = set(_columns(outline.order, alias))
        if is_outermost and outline.orders_by_name:  # which may be of anything that is shown
            order |= shown | unknown
        membership = body
        if not is_outermost or outline.orders_by_name or query.distinct or query.group_by is not None:
            membership = shown | body | order
        understood, atoms = atoms_of(query.where, alias)
        linked_parts = tuple(finder.parts.get(alias, ())) if finder is not None else ()
        yield Use(
            normalize_table(join.table_name),
            alias,
            columns=frozenset(shown | body | order),
            body=frozenset(body),
            membership=frozenset(membership),
            shown=frozenset(shown | unknown),
            order=frozenset(order),
            atoms=atoms,
            atom_columns=frozenset(
                column for column, count in understood.items() if is_whole and counts.get(column) == count
            ),
            condition=conditions[alias],
            is_outermost=is_outermost,
            is_base=is_outermost and alias == outline.base_alias,
            is_anchored=is_outermost and enforces_foreign_keys and _is_anchored(join),
            partner=_partner(join, alias, outline) if is_outermost and not linked_parts else None,
            has_links=is_outermost and alias == outline.base_alias and bool(finder and finder.parts),
            linked_parts=linked_parts,
        )


def _idle_keys(joins: Mapping[str, Any], outline: Outline, *, enforces_foreign_keys: bool) -> Counter[tuple[str, str]]:
    """
    Return how often each foreign key is named only to fetch what is shown of the row that it refers to.

    Such a join neither adds nor removes a row of the result, so the foreign key decides no more than what is shown.
    """
    idle: Counter[tuple[str, str]] = Counter()
    for alias, join in reversed(list(joins.items())):  # what is joined to a table stands behind it
        if not _is_to_referred(join) or len(outline.tables.get(alias, ())) != 1:
            continue
        ((lhs, rhs),) = join.join_fields
        is_safe = join.join_type != INNER or (enforces_foreign_keys and _is_anchored(join) and not lhs.null)
        named = {column: outline.counts[alias, column] - idle[alias, column] for column in outline.body.get(alias, ())}
        named[rhs.column] = named.get(rhs.column, 1) - 1
        if is_safe and not any(named.values()) and not outline.order.get(alias):
            idle[join.parent_alias, lhs.column] += 1
    return idle


def _is_to_referred(join: Any) -> bool:
    """Return whether *join* goes from a foreign key to the one row that it refers to."""
    field = getattr(join, "join_field", None)
    return (
        isinstance(field, models.ForeignKey)
        and getattr(join, "filtered_relation", None) is None
        and [(lhs, rhs) for lhs, rhs in join.join_fields or ()] == [(field, field.target_field)]
    )


def _columns(section: Columns, alias: str) -> set[str]:
    return section.get(alias, set())


def _unknown_columns(outline: Outline) -> set[str]:
    """Columns of names that are no aliases of tables, such as that of a subquery: they may be columns of any."""
    unknown: set[str] = set()
    for section in (outline.shown, outline.body, outline.order):
        for alias, names in section.items():
            if alias not in outline.tables:
                unknown |= names
    return unknown


def _conditions(
    query: Query, joins: Mapping[str, Any], base_alias: str = "", finder: LinkFinder | None = None
) -> dict[str, Condition]:
    """
    Return what the rows of each alias must fulfil. Of a table that is joined by an outer join: nothing.

    Args:
        finder: Of the links of *base_alias*. No other alias may have any: what a link set says of a row is proven by
            the verdicts on the rows that it is linked to, which would rest on the first ones in turn.
    """
    required: set[str] = set()
    for alias, join in joins.items():  # a table stands behind the one that it is joined to
        if join.parent_alias is None or (join.join_type == INNER and join.parent_alias in required):
            required.add(alias)
    conditions = {
        alias: read_where(query.where, alias, finder if alias == base_alias else None)
        if alias in required
        else ANYTHING
        for alias in joins
    }
    _carry_over_joins(joins, required, conditions)
    return conditions


def _carry_over_joins(joins: Mapping[str, Any], required: set[str], conditions: dict[str, Condition]) -> None:
    """Let equalities hold for the columns, too, that a join makes equal."""
    links = [
        (joins[alias].parent_alias, lhs, alias, rhs)
        for alias in required
        for lhs, rhs in getattr(joins[alias], "join_fields", None) or ()
        if joins[alias].parent_alias in required and is_comparable_field(lhs) and is_comparable_field(rhs)
    ]
    is_growing = True
    while is_growing:
        is_growing = False
        for left, left_field, right, right_field in links:
            for a, a_field, b, b_field in (
                (left, left_field, right, right_field),
                (right, right_field, left, left_field),
            ):
                values = values_of(conditions[a]).get(a_field.column)
                if values is not None and b_field.column not in values_of(conditions[b]):
                    carried = OneOf(b_field.column, values)
                    known = conditions[b]
                    conditions[b] = carried if known is ANYTHING else All((known, carried))
                    is_growing = True


def _is_anchored(join: Any) -> bool:
    """Return whether *join* goes from a foreign key, which the database enforces, to the row that it refers to."""
    # The tables of unmanaged models need not have the constraints that the models tell of.
    return (
        _is_to_referred(join)
        and bool(getattr(join.join_field, "db_constraint", False))
        and join.join_field.model._meta.managed
    )


def _partner(join: Any, alias: str, outline: Outline) -> tuple[str, str, str] | None:
    """Return the column of a one-to-one relation that is followed backwards, and the alias and column it equals."""
    field = getattr(join, "join_field", None)
    if not isinstance(field, models.OneToOneRel) or join.filtered_relation is not None or join.join_type == INNER:
        return None
    ((lhs, rhs),) = join.join_fields
    if not rhs.unique or outline.counts[alias, rhs.column] != 1:  # the WHERE asks for it, too
        return None
    return rhs.column, join.parent_alias, lhs.column
