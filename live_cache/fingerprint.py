"""
Querysets to fingerprints: everything that changes the rows or their Python types, injectively.

A walk over the Query object turns it into nested tuples of primitives: the *structure*, with a placeholder for each
parameter, and the list of *parameters*, each with its type. Both are serialised by marshal (version 2, which is
injective for primitives and tells True from 1 and 1 from 1.0) and hashed. Nothing is ever formatted into text.

The walk is an allow-list. An object of a class that is not known to be deterministic makes the query uncachable.
"""

from __future__ import annotations

import enum
import marshal
import re
from collections.abc import Callable, Hashable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, cast

from django.apps import apps
from django.core.exceptions import FieldError
from django.db import models
from django.db.models import expressions, lookups
from django.db.models.fields import related_lookups
from django.db.models.sql import datastructures, where
from django.db.models.sql.query import Query
from django.db.models.sql.subqueries import AggregateQuery
from django.utils import timezone
from django.utils.functional import cached_property

from live_cache.deterministic import (
    ARRAY_OPTIONS,
    EXPRESSION_NAMES,
    EXPRESSIONS,
    LOOKUP_MODULES,
    OWN_FUNCTIONS,
    TIME_ZONE_MODULES,
)
from live_cache.exceptions import UncachableQueryError
from live_cache.integer_ranges import range_class
from live_cache.parameters import PRIMITIVES, class_name, sortable, typed, zone_name
from live_cache.raw_sql import RawSQL

__all__ = ["Walk", "walk_expressions", "walk_query"]

Token = Any

# Attributes of a Query that do not change its rows: caches, bookkeeping of later filters, and what plans handle apart.
_QUERY_IGNORED: Final = frozenset(
    {
        "model", "table_map", "used_aliases", "base_table", "low_mark", "high_mark", "filter_is_sticky",
        "_annotation_select_cache", "_extra_select_cache", "annotation_select", "extra_select", "contains_subquery",
        "output_field", "alias_refcount", "alias_cols", "explain_info", "select_for_update", "extra", "extra_tables",
        "extra_order_by", "_lookup_joins", "extra_select_mask", "default_cols", "has_existing_aggregation",
    }
)  # fmt: skip
_QUERY_KNOWN: Final = frozenset(
    {
        "alias_map", "external_aliases", "where", "annotations", "_filtered_relations", "select", "group_by",
        "order_by",
        "distinct", "distinct_fields", "select_related", "max_depth", "values_select", "selected",
        "annotation_select_mask", "combinator", "combinator_all", "combined_queries", "deferred_loading",
        "default_ordering", "standard_ordering", "alias_prefix", "subq_aliases", "subquery", "is_empty",
        "inner_query", "empty_result_set_value", "_db",
    }
)  # fmt: skip

# A column of a table, quoted as any of our databases quotes it: prefetches of many-to-many relations select such texts.
_QUOTED_COLUMN: Final = re.compile(r'"[^"\\%;]+"\."[^"\\%;]+"|`[^`\\%;]+`\.`[^`\\%;]+`')


class Walk:
    """One walk over one query."""

    __slots__ = ("declared_tables", "holds_raw_sql", "is_time_zone_dependent", "parameters", "structure")

    def __init__(self) -> None:
        self.parameters: list[Token] = []
        self.structure: Token = None
        self.is_time_zone_dependent = False
        self.declared_tables: frozenset[str] = frozenset()
        """What each RawSQL was declared to read."""
        self.holds_raw_sql = False
        """Whether there is a RawSQL, whose text may name columns without their tables."""

    def structure_bytes(self) -> bytes:
        """Return the structure, serialised. Equal for queries that differ only in the values of parameters."""
        return marshal.dumps(self.structure, 2)

    def parameter_bytes(self) -> bytes:
        """Return the parameters with their types, serialised."""
        if self.is_time_zone_dependent:
            return marshal.dumps((self.parameters, timezone.get_current_timezone_name()), 2)
        return marshal.dumps(self.parameters, 2)

    # -- parameters ---------------------------------------------------------------------------------------------------

    def value(self, value: Any) -> Token:
        """Put *value* among the parameters; return what stands for it in the structure."""
        kind = type(value)
        if kind in PRIMITIVES:
            self.parameters.append(value)
            # None and booleans change the SQL (IS NULL, NOT col), so they are structure too.
            return (kind.__name__, value) if value is None or kind is bool else kind.__name__
        if kind is list or kind is tuple or kind is set or kind is frozenset:
            items = sorted(map(sortable, value)) if kind in (set, frozenset) else value
            return (kind.__name__, tuple(self.value(item) for item in items))
        if kind is dict:
            return ("dict", tuple((self.value(key), self.value(item)) for key, item in value.items()))
        if hasattr(value, "resolve_expression"):  # such as the delimiter of StringAgg
            return ("expression", self.token(value))
        self.parameters.append(typed(value))
        return f"{kind.__module__}.{kind.__qualname__}"

    # -- structure ----------------------------------------------------------------------------------------------------

    def token(self, item: Any) -> Token:
        """Return the structure of *item*, with its parameters put aside."""
        kind = type(item)
        if kind in PRIMITIVES:
            return item
        handler = _HANDLERS.get(kind)
        if handler is None:
            handler = _handler_for(kind)
            _HANDLERS[kind] = handler
        return handler(self, item)

    def query(self, query: Any, *, is_nested: bool = True) -> Token:
        """Return the structure of a Query. The limits of the outermost one are left to the page suffix."""
        refuse_query(query)
        names = query.__dict__
        parts: list[Token] = [type(query).__name__, _label(query.model) if query.model else None, query.default_cols]
        if is_nested:
            parts.append((query.low_mark, query.high_mark))
        if query.extra:
            columns = tuple((name, sql) for name, (sql, _) in query.extra.items())
            parts.append(("extra", columns, self.token(query.extra_select_mask)))
        # Joins that nothing refers to are not in the SQL.
        parts.append(tuple(alias for alias, count in query.alias_refcount.items() if count))
        for name, item in names.items():
            if name in _QUERY_IGNORED or name in _cached_names(cast("Hashable", type(query))):
                continue
            if name not in _QUERY_KNOWN:
                raise UncachableQueryError(f"The query has an attribute {name!r} that no plan knows.")
            if item is None or item == () or item == {}:
                continue
            parts.append((name, self.token(item)))
        if query.default_ordering and not query.order_by and query.model is not None:
            parts.append(("Meta.ordering", self.ordering(query.model._meta.ordering or ())))
        elif query.order_by:
            self.ordering(query.order_by)
        return tuple(parts)

    def ordering(self, ordering: Iterable[Any]) -> Token:
        """Return the structure of an ORDER BY, refusing the random one."""
        parts = []
        for item in ordering:
            if item == "?":
                raise UncachableQueryError("Random order gives other rows each time.")
            parts.append(self.token(item))
        return tuple(parts)

    def lookup(self, lookup: Any) -> Token:
        parts: list[Token] = [class_name(type(lookup)), self.token(lookup.lhs)]
        rhs = _right_side(lookup)
        if hasattr(rhs, "resolve_expression") or hasattr(rhs, "as_sql"):
            parts.append(self.token(rhs))
        else:
            parts.append(self.value(rhs))
            if isinstance(rhs, int) and issubclass(type(lookup), lookups.IntegerFieldOverflow):
                parts.append(range_class(rhs, lookup.lhs.output_field.get_internal_type()))
        if lookup.bilateral_transforms:
            parts.append(tuple(map(class_name, lookup.bilateral_transforms)))
        if type(lookup).__name__.startswith("Year") or type(lookup).__module__ in TIME_ZONE_MODULES:
            self.is_time_zone_dependent = True
        return tuple(parts)

    def expression(self, expression: Any) -> Token:
        kind = type(expression)
        if kind.__module__ in TIME_ZONE_MODULES:
            self.is_time_zone_dependent = True
        parts: list[Token] = [class_name(kind)]
        for name, item in expression.__dict__.items():
            if name in _cached_names(cast("Hashable", kind)) or name in _EXPRESSION_IGNORED:
                continue
            if name in _VALUE_ATTRIBUTES:
                parts.append((name, self.value(item)))
            elif name == "tzinfo":
                parts.append((name, zone_name(item)))
            elif name in _SQL_TEXT_OPTIONS and item not in (getattr(kind, name, None), *OWN_FUNCTIONS):
                raise UncachableQueryError(f"{kind.__qualname__} is given SQL text of its own ({name}).")
            else:
                parts.append((name, self.token(item)))
        if overridden := _SQL_TEXT_OPTIONS.intersection(getattr(expression, "extra", ())):
            raise UncachableQueryError(f"{kind.__qualname__} is given SQL text of its own ({', '.join(overridden)}).")
        parts.append(("output_field", self.token(_output_field(expression))))
        return tuple(parts)


# _constructor_args repeats what the other attributes hold; output_field is added apart, resolved.
_EXPRESSION_IGNORED: Final = frozenset({"_constructor_args", "output_field", "identity"})
_VALUE_ATTRIBUTES: Final = frozenset({"value"})
_SQL_TEXT_OPTIONS: Final = frozenset({"function", "template"})


def _output_field(expression: Any) -> Any:
    if not isinstance(expression, expressions.BaseExpression):
        return None
    try:
        # Private; read in Django 5.2.19 and 6.1.3.
        return getattr(expression, "_output_field_or_none")  # noqa: B009 - django-stubs do not have it
    except (AttributeError, FieldError):  # of mixed or unresolved parts, which are in the structure themselves
        return None


def refuse_query(query: Any) -> None:
    """Raise UncachableQueryError for what makes any query uncachable."""
    if type(query) not in (Query, AggregateQuery):
        raise UncachableQueryError(f"Queries of the class {type(query).__qualname__} are not known.")
    if query.select_for_update:
        raise UncachableQueryError("select_for_update() locks rows, which only the database can do.")
    if query.extra_tables or query.extra_order_by or (query.extra and not _are_columns(query.extra)):
        raise UncachableQueryError("extra() holds SQL text whose tables are not known.")
    if query.explain_info:
        raise UncachableQueryError("explain() asks for a query plan, not for rows.")


def _are_columns(extra: Mapping[str, Any]) -> bool:
    return all(not parameters and _QUOTED_COLUMN.fullmatch(sql) for sql, parameters in extra.values())


def walk_query(query: Query, *, extra: Iterable[Token] = ()) -> Walk:
    """
    Walk *query*, all but its limits.

    Args:
        extra: Primitives that belong to the structure, for example the iterable class.

    Raises:
        UncachableQueryError: The query holds something that is not known to be deterministic. The message says what.
    """
    walk = Walk()
    walk.structure = (*extra, walk.query(query, is_nested=False))
    return walk


def walk_expressions(structure: Token, named: Mapping[str, Any]) -> Walk:
    """
    Walk *named* expressions, for example those of an aggregate() over a query of this *structure*.

    Raises:
        UncachableQueryError: An expression is not known to be deterministic.
    """
    walk = Walk()
    walk.structure = (structure, tuple((name, walk.token(item)) for name, item in named.items()))
    return walk


# -- handlers by class ------------------------------------------------------------------------------------------------

Handler = Callable[[Walk, Any], Token]


def _sequence(walk: Walk, items: Any) -> Token:
    return tuple(walk.token(item) for item in items)


def _mapping(walk: Walk, items: Any) -> Token:
    return tuple((walk.token(key), walk.token(item)) for key, item in items.items())


def _set(walk: Walk, items: Any) -> Token:
    return tuple(sorted((walk.token(item) for item in items), key=repr))


def _where(walk: Walk, node: Any) -> Token:
    return (node.connector, node.negated, tuple(walk.token(child) for child in node.children))


def _col(walk: Walk, col: Any) -> Token:
    return (col.alias, walk.token(col.target))


def _field(walk: Walk, field: Any) -> Token:
    if getattr(field, "model", None) is not None and getattr(field, "name", None):
        return (_label(field.model), field.name, class_name(type(field)))
    return _field_definition(field)


def _join(walk: Walk, join: Any) -> Token:
    relation = join.filtered_relation
    # A foreign object may add a condition of its own, which may depend on anything.
    restriction = join.join_field.get_extra_restriction(join.table_alias, join.parent_alias)
    return (
        join.table_name,
        join.parent_alias,
        join.table_alias,
        join.join_type,
        walk.token(join.join_field),
        join.nullable,
        None if relation is None else walk.expression(relation),
        None if restriction is None else walk.token(restriction),
    )


def _func(walk: Walk, func: Any) -> Token:
    # Func itself may call anything; the lookups of ArrayField make one of it, for what they compare with.
    if func.extra != ARRAY_OPTIONS:
        raise UncachableQueryError("A plain Func may call anything.")
    return ("ARRAY", _sequence(walk, func.source_expressions), walk.token(_output_field(func)))


def _raw_sql(walk: Walk, raw: RawSQL) -> Token:
    walk.declared_tables |= raw.tables
    walk.holds_raw_sql = True
    return ("RawSQL", raw.sql, walk.value(raw.params), sorted(raw.tables), walk.token(_output_field(raw)))


def _base_table(walk: Walk, table: Any) -> Token:
    return (table.table_name, table.table_alias)


def _model(walk: Walk, model: Any) -> Token:
    if isinstance(model, type) and issubclass(model, models.Model):
        return _label(model)
    raise UncachableQueryError(f"The class {model!r} is not known.")


def _handler_for(kind: type) -> Handler:
    if kind in EXPRESSIONS or class_name(kind) in EXPRESSION_NAMES:
        return Walk.expression
    if issubclass(kind, models.Field | models.ForeignObjectRel):
        return _field
    if issubclass(kind, models.Lookup) and kind.__module__ in LOOKUP_MODULES:
        return Walk.lookup
    if issubclass(kind, type):
        return _model
    if issubclass(kind, enum.Enum) and kind.__module__.startswith("django."):
        return lambda walk, item: (kind.__qualname__, item.name)
    if issubclass(kind, where.NothingNode):
        raise UncachableQueryError("No row can match, so Django answers without the database.")
    if issubclass(kind, expressions.RawSQL):
        raise UncachableQueryError("RawSQL holds SQL text whose tables are not declared: use live_cache.RawSQL.")
    if issubclass(kind, where.ExtraWhere):
        raise UncachableQueryError("extra() holds SQL text whose tables are not known.")
    raise UncachableQueryError(f"{class_name(kind)} is not known to give the same rows each time.")


_HANDLERS: Final[dict[type, Handler]] = {
    tuple: _sequence,
    list: _sequence,
    dict: _mapping,
    set: _set,
    frozenset: _set,
    where.WhereNode: _where,
    expressions.Col: _col,
    expressions.Func: _func,
    RawSQL: _raw_sql,
    datastructures.Join: _join,
    datastructures.BaseTable: _base_table,
    Query: lambda walk, query: walk.query(query),
    AggregateQuery: lambda walk, query: walk.query(query),
}


# -- names and values -------------------------------------------------------------------------------------------------


def _label(model: type[models.Model]) -> str:
    opts = model._meta
    if apps.all_models[opts.app_label].get(str(opts.model_name)) is not model:
        # Such as the models of a migration: same label, other columns.
        raise UncachableQueryError(f"{opts.label} is another model than the one that is installed under this name.")
    return opts.label


def _right_side(lookup: Any) -> Any:
    """Return the right side of *lookup*, with instances as the keys that Django takes of them when it compiles."""
    rhs, lhs = lookup.rhs, lookup.lhs
    if type(lookup).__module__ != related_lookups.__name__ or not isinstance(lhs, expressions.ColPairs):
        return rhs
    try:
        if isinstance(rhs, models.Model):
            return related_lookups.get_normalized_value(rhs, lhs)
        if isinstance(lookup, related_lookups.RelatedIn) and isinstance(rhs, list | tuple):
            return [related_lookups.get_normalized_value(value, lhs) for value in rhs]
    except ValueError as error:  # of an unsaved instance; Django tells it to whoever evaluates this
        raise UncachableQueryError(str(error)) from error
    return rhs


def _field_definition(field: Any) -> Token:
    _name, path, arguments, options = field.deconstruct()
    return (path, _options(arguments), _options([options[name] for name in sorted(options)]), sorted(options))


def _options(options: Iterable[Any]) -> Token:
    # The text of a field, such as the base field of an ArrayField, does not hold its options.
    return tuple(_field_definition(item) if isinstance(item, models.Field) else repr(item) for item in options)


@lru_cache(maxsize=1024)
def _cached_names(kind: Any) -> frozenset[str]:
    """Names of the cached properties of a class: they appear in __dict__ once somebody has asked."""
    names: set[str] = set()
    for parent in kind.__mro__:
        names.update(name for name, item in vars(parent).items() if isinstance(item, cached_property))
    return frozenset(names)
