"""
Links: what a WHERE asks of another table, told by the values that join the two.

``Order.filter(customer__segment="trade")`` asks something of the customer, and the record of an order does not tell it.
But the *link set* does, the ids of all customers that fulfil it: an order whose customer is not among them has no part
in the result. docs/explanation/consistency.md has the argument why a set that is read later may be used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.db import models
from django.db.models.sql.constants import INNER
from django.db.models.sql.query import Query
from django.db.models.sql.where import AND, OR, WhereNode

from live_cache.shapes.conditions import Condition, Linked, may_hold, read_part, replace_links
from live_cache.shapes.truth import FALSE, NULL, UNKNOWN, TextRules, Truth, is_comparable_field
from live_cache.sql import normalize_table

if TYPE_CHECKING:
    from live_cache.changes import Image

__all__ = ["MAX_VALUES", "Link", "LinkFinder", "LinkSets"]

MAX_VALUES: Final = 1000
"""Values in a link set. One that has more says nothing."""
_ABSENT: Final = object()
_NO_PARTNER: Final[Truth] = FALSE | NULL
"""What a condition on another table is for a row that it knows no row of, or one that does not fulfil it."""
_TEXT_RULES: Final = TextRules(is_equality_exact=False, is_order_by_code_point=False)


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A part of a WHERE that speaks of one joined table alone."""

    table: str
    """Normalised."""
    alias: str
    field: Any
    """The field of that table which the join compares."""
    condition: Condition
    """What the part says."""
    node: Any
    """The part."""

    def query(self) -> Query:
        """Return a query of the link set, which yields one value more than MAX_VALUES if there are too many."""
        query = Query(self.field.model)
        alias = query.get_initial_alias()
        query.where = WhereNode([self.node.relabeled_clone({self.alias: alias})])
        query.set_select([self.field.get_col(alias)])
        query.clear_ordering(force=True)
        query.distinct = True
        query.set_limits(0, MAX_VALUES + 1)
        return query

    def __str__(self) -> str:
        return f"{self.table}.{self.field.column} where {self.condition}"


class _Nulls(dict[str, Any]):
    """The image of the row that an outer join makes where there is none."""

    def __missing__(self, column: str) -> None:
        return None

    def get(self, column: str, default: Any = None) -> None:
        """Return NULL."""
        return None


class LinkFinder:
    """Finds the links of one alias in the WHERE of its query. See conditions.Finder."""

    def __init__(self, joins: Mapping[str, Any], alias: str) -> None:
        self._joins = {
            name: join for name, join in joins.items() if join.parent_alias == alias and _is_of_equal_values(join)
        }
        self.parts: dict[str, list[Condition]] = {}
        """What the links that were found ask, by the alias of the linked table."""

    def find(self, node: Any) -> Linked | None:
        """See Finder.find()."""
        for alias, join in self._joins.items():
            condition = read_part(node, alias)
            if condition is None:
                continue
            if join.join_type != INNER and may_hold(condition, _Nulls(), _TEXT_RULES):
                return None
            ((lhs, rhs),) = join.join_fields
            while type(node) is WhereNode and len(node.children) == 1 and not node.negated:
                (node,) = node.children  # what asks the same has one link set
            self.parts.setdefault(alias, []).append(condition)
            return Linked(str(lhs.column), Link(normalize_table(join.table_name), alias, rhs, condition, node))
        return None

    def group(self, node: WhereNode) -> list[Any]:
        """See Finder.group()."""
        children: list[Any] = list(node.children)
        if node.connector not in (AND, OR):
            return children
        for alias in self._joins:
            own = [child for child in children if read_part(child, alias) is not None]
            if 1 < len(own) < len(children):
                rest = [child for child in children if not any(child is each for each in own)]
                children = [*rest, WhereNode(own, node.connector)]
        return children


def _is_of_equal_values(join: Any) -> bool:
    """Return whether *join* compares two columns, whose values may be compared here, and nothing else."""
    if getattr(join, "filtered_relation", None) is not None or len(join.join_fields or ()) != 1:
        return False
    if type(join.join_field) not in _RELATIONS:
        return False
    ((lhs, rhs),) = join.join_fields
    is_own = normalize_table(rhs.model._meta.db_table) == normalize_table(join.table_name)
    return is_own and is_comparable_field(lhs) and is_comparable_field(rhs)


_RELATIONS: Final = frozenset({models.ForeignKey, models.OneToOneField, models.ManyToOneRel, models.OneToOneRel})


class LinkSets:
    """
    The link sets that are known while one entry is judged.

    A set that is not known yet is taken for empty, which excludes the most, and noted as wanted.
    """

    def __init__(self) -> None:
        self._known: dict[Link, frozenset[Any] | None] = {}
        self._wanted: set[Link] = set()

    def learn(self, link: Link, values: Iterable[Any] | None) -> None:
        """Keep the set of *link*; None: it says nothing."""
        kept = None if values is None else frozenset(values) - {None}
        if kept is not None and (len(kept) > MAX_VALUES or len(set(map(type, kept))) > 1):
            kept = None
        self._known[link] = kept

    def take_wanted(self) -> set[Link]:
        """Return the links whose sets a verdict was given without, and forget them."""
        wanted, self._wanted = self._wanted, set()
        return wanted

    def narrow(self, condition: Condition) -> tuple[Condition, frozenset[Link]]:
        """Return *condition* with what is known of its links, and those of which nothing is known yet."""
        unknown: set[Link] = set()

        def replace(linked: Linked) -> Condition:
            link: Link = linked.link
            if link not in self._known:
                unknown.add(link)
            values = self._known.get(link, frozenset())
            return linked if values is None else _Among(linked.column, values)

        return replace_links(condition, replace), frozenset(unknown)

    def want(self, links: Iterable[Link]) -> None:
        """Note that a verdict was given without the sets of *links*."""
        self._wanted.update(links)


@dataclass(frozen=True, slots=True)
class _Among:
    """A link whose set is known: without a partner the condition is not true, with one it may be anything."""

    column: str
    values: frozenset[Any]

    def truth(self, image: Image, text: TextRules) -> Truth:
        value = image.get(self.column, _ABSENT)
        if value is None:
            return _NO_PARTNER
        kind = type(value)
        if kind not in (int, UUID) and not (kind is str and text.is_equality_exact):
            return UNKNOWN
        if value in self.values or any(type(each) is not kind for each in list(self.values)[:1]):
            return UNKNOWN
        return _NO_PARTNER

    def __str__(self) -> str:
        return f"{self.column} in a set of {len(self.values)}"
