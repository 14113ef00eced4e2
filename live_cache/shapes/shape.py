"""
Shapes: what every query of one structure looks at. A shape is learned once, when the SQL is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import expressions

from live_cache.shapes.policies import Policies, policies_of
from live_cache.shapes.select_list import Shown, distinct_values, groups_of
from live_cache.shapes.text_rules import text_rules_of
from live_cache.shapes.truth import TextRules, is_comparable_field
from live_cache.shapes.uses import is_compiled_whole
from live_cache.sql import normalize_table
from live_cache.sql.outline import Outline, outline

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models.sql.query import Query

__all__ = ["Shape", "learn_shape", "shape_of_aggregate"]


@dataclass(frozen=True, slots=True)
class SortColumn:
    """One column of the outermost ORDER BY."""

    alias: str
    column: str
    is_descending: bool


@dataclass(frozen=True, slots=True)
class Shape:
    """What is known of every query of one structure."""

    outline: Outline
    joins: Mapping[str, Any]
    """The tables behind the outermost FROM, by alias, as Django's BaseTable and Join."""
    positions: Mapping[tuple[str, str], int]
    """Where a row of the result has the value of a column, by alias and column."""
    is_row_by_row: bool
    """Whether each row of the result shows one row of each table, and nothing of any other."""
    sort: tuple[SortColumn, ...]
    """The plain columns that the outermost ORDER BY begins with."""
    groups: tuple[tuple[str, int], ...]
    """Columns of the base table that rows are grouped by, each with its position; empty if that is not all."""
    distinct: tuple[Shown, ...]
    """For a DISTINCT over the base table alone: what a row shows. Empty if that is not known."""
    is_one_to_one: bool
    """Whether no join gives a row of the base table more than one row of the result."""
    text: TextRules
    is_whole: bool
    """See uses.is_compiled_whole()."""
    enforces_foreign_keys: bool
    policies: Mapping[str, Policies]
    """Row policies of the tables that have some: they decide membership too."""


def learn_shape(compiler: Any, sql: str, connection: BaseDatabaseWrapper) -> Shape:
    """Return the shape of the query that *compiler* has just compiled to *sql*."""
    query = compiler.query
    found = outline(sql)
    positions: dict[tuple[str, str], int] = {}
    is_row_by_row = found.is_plain and bool(found.base_alias) and not query.distinct and query.group_by is None
    for index, (expression, _, _) in enumerate(compiler.select or ()):
        if type(expression) is expressions.Col:
            positions.setdefault((expression.alias, str(expression.target.column)), index)
        elif getattr(expression, "contains_aggregate", True) or getattr(expression, "contains_over_clause", True):
            is_row_by_row = False
    sort, is_all = _sort(compiler) if found.is_plain else ((), False)
    if is_all:  # then it is known what the SQL names by its position
        found.orders_by_name = False
        for each in sort:
            found.order.setdefault(each.alias, set()).add(each.column)
    # Not by the reference counts, which the compiler has set back: what compiling added would be missing.
    joins = {
        alias: join
        for alias, join in query.alias_map.items()
        if normalize_table(join.table_name) in found.tables.get(alias, ())
    }
    return Shape(
        found,
        joins,
        positions if is_row_by_row else {},
        is_row_by_row,
        sort,
        groups_of(compiler, found),
        distinct_values(compiler, found),
        all(_is_to_one(join) for join in joins.values()),
        text_rules_of(connection, found.uses),
        is_compiled_whole(query, compiler),
        bool(connection.features.supports_foreign_keys),
        policies_of(connection),
    )


def shape_of_aggregate(query: Query, sql: str, connection: BaseDatabaseWrapper) -> Shape:
    """Return the shape of an aggregate() over *query*, whose SQL is *sql*."""
    joins = {alias: join for alias, join in query.alias_map.items() if query.alias_refcount.get(alias)}
    found = outline(sql)
    return Shape(
        found,
        joins,
        {},
        is_row_by_row=False,
        sort=(),
        groups=(),
        distinct=(),
        is_one_to_one=False,
        text=text_rules_of(connection, found.uses),
        is_whole=is_compiled_whole(query, query.get_compiler(connection=connection)),
        enforces_foreign_keys=bool(connection.features.supports_foreign_keys),
        policies=policies_of(connection),
    )


def _sort(compiler: Any) -> tuple[tuple[SortColumn, ...], bool]:
    """Return the plain columns that the ORDER BY begins with, and whether that is all of it."""
    columns: list[SortColumn] = []
    for expression, _ in compiler.get_order_by():
        column = expression.expression
        if isinstance(column, expressions.Ref):
            (column,) = column.get_source_expressions()
        if type(column) is not expressions.Col or not is_comparable_field(column.target):
            return tuple(columns), False
        columns.append(SortColumn(column.alias, str(column.target.column), expression.descending))
    return tuple(columns), True


def _is_to_one(join: Any) -> bool:
    if join.parent_alias is None:
        return True
    return isinstance(join.join_field, models.ForeignKey | models.OneToOneRel)
