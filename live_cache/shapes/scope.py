"""
Scopes: which changes of rows could change one result.

A *scope* adds to the shape of a query its parameters, its limits and what is asked (rows, a count, whether there are
any). A change is judged for each use of its table alone, and the verdict holds in whatever state the database is and
whatever else was changed, as long as nothing else changed the result: ticks do not come in the order of commits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from uuid import UUID

from live_cache.changes import Image, Record, RowChange
from live_cache.shapes.conditions import ANYTHING, column_of, may_hold, own_part, values_of
from live_cache.shapes.links import LinkSets
from live_cache.shapes.policies import Policies
from live_cache.shapes.shape import Shape
from live_cache.shapes.truth import FALSE, NULL, TRUE, position
from live_cache.shapes.uses import Use, uses_of
from live_cache.tables import models_of_tables

if TYPE_CHECKING:
    from django.db.models.sql.query import Query

__all__ = ["Purpose", "Scope", "View", "scope_of"]

Purpose: TypeAlias = Literal["rows", "count", "exists", "aggregate"]


class View:
    """A result as it is cached, of which only what is asked is decoded."""

    __slots__ = ("_read", "_rows", "_values")

    def __init__(self, read: Callable[[], Sequence[tuple[Any, ...]]]) -> None:
        self._read = read
        self._rows: Sequence[tuple[Any, ...]] | None = None
        self._values: dict[tuple[int, ...], Collection[Any]] = {}

    @property
    def rows(self) -> Sequence[tuple[Any, ...]]:
        """The rows of the result."""
        if self._rows is None:
            self._rows = self._read()
        return self._rows

    def values(self, positions: tuple[int, ...]) -> Collection[Any]:
        """Return the tuples of values that the rows have at *positions*."""
        found = self._values.get(positions)
        if found is None:
            found = self._values[positions] = {tuple([row[p] for p in positions]) for row in self.rows}
        return found


@dataclass(frozen=True, slots=True)
class _Window:
    """The part of an ordered result that an entry holds."""

    low: int
    size: int | None
    columns: tuple[str, ...]
    positions: tuple[int, ...]
    are_descending: tuple[bool, ...]


@dataclass(frozen=True, slots=True)
class Scope:
    """Which changes could change one result."""

    uses: Mapping[str, tuple[Use, ...]]
    """By table, normalised. A table that is not there is used in a way that is not known."""
    shape: Shape
    purpose: Purpose
    is_limited: bool
    window: _Window | None

    def cause(
        self, table: str, change: RowChange, view: View, *, is_of_one_kind: bool, links: LinkSets | None = None
    ) -> str:
        """
        Return why *change*, of a row of *table*, could change the result that *view* shows; empty if it could not.

        Args:
            is_of_one_kind: Whether its transaction has changed rows of this table in no other way, and so has put no
                row in the place of another one.
            links: What is known of the link sets. A verdict that needs one which is not known yet is given as if it
                were empty, and the link is wanted of *links*. None: links say nothing.

        Returns:
            "row": the row was shown. "bucket": it fulfils the conditions, before or after. "table": there are none.
        """
        uses = self.uses.get(table)
        if uses is None:
            return "table"
        for use in uses:
            cause = self._cause(use, change, view, is_of_one_kind=is_of_one_kind, links=links)
            if cause:
                return cause
        return ""

    def misses(self, table: str, record: Record) -> bool:
        """
        Return whether no row of *record* is in a bucket that the result depends on.

        For records of many rows: it looks up the values that the conditions name, and judges no row.
        """
        uses = self.uses.get(table)
        return uses is not None and all(self._misses(use, record) for use in uses)

    def _misses(self, use: Use, record: Record) -> bool:
        for column, values in values_of(use.condition).items():
            kinds = set(map(type, values))
            if kinds in ({int}, {str}) and (int in kinds or self.shape.text.is_equality_exact):
                held = record.values_of(column)
                # A number may be equal to a text that a join compares it with.
                if held is not None and held.isdisjoint(values) and kinds.issuperset(map(type, held - {None})):
                    return True
        return False

    def _cause(self, use: Use, change: RowChange, view: View, *, is_of_one_kind: bool, links: LinkSets | None) -> str:
        columns = change.columns if change.kind == "update" else None
        is_counted = self._is_counted(use)
        looked_at = use.membership if is_counted else use.columns
        is_unmoved = False
        if columns is not None:
            if columns.isdisjoint(looked_at):
                return ""
            is_unmoved = self._is_unmoved(use, change, columns & use.membership)
            if is_unmoved and (is_counted or columns.isdisjoint(use.shown | use.order)):
                return ""
        condition, text = use.condition, self.shape.text
        was_in = change.kind != "insert" and may_hold(condition, change.before, text)
        is_in = change.kind != "delete" and may_hold(condition, change.after, text)
        cause = self._cause_of_part(
            use, change, view, was_in=was_in, is_in=is_in, is_unmoved=is_unmoved, is_of_one_kind=is_of_one_kind
        )
        if not cause or links is None or not use.has_links:
            return cause
        condition, unknown = links.narrow(condition)
        may_have_been = was_in and may_hold(condition, change.before, text)
        may_be = is_in and may_hold(condition, change.after, text)
        if (may_have_been, may_be) == (was_in, is_in):
            return cause
        cause = self._cause_of_part(
            use, change, view, was_in=may_have_been, is_in=may_be, is_unmoved=is_unmoved, is_of_one_kind=is_of_one_kind
        )
        if not cause:
            links.want(unknown)
        return cause

    def _cause_of_part(
        self,
        use: Use,
        change: RowChange,
        view: View,
        *,
        was_in: bool,
        is_in: bool,
        is_unmoved: bool,
        is_of_one_kind: bool,
    ) -> str:
        """Return the cause, given whether the row may have, or have had, a part by the conditions."""
        is_counted = self._is_counted(use)
        if not (was_in or is_in):
            return ""
        if use.is_anchored and change.kind != "update" and is_of_one_kind and not self._may_be_linked(use, change):
            return ""  # the row that refers to it changes too, and is judged itself
        if self.purpose == "exists" and is_counted and self._excludes_existence(view, was_in=was_in, is_in=is_in):
            return ""
        if (
            self.purpose == "rows"
            and use.is_base
            and not self.is_limited
            and (self._is_no_news(change, view) or self._has_no_group(use, change, view))
        ):
            return ""
        if self.purpose == "rows" and self.shape.is_row_by_row and use.is_outermost:
            cause = self._cause_in_rows(use, change, view, was_in=was_in, is_in=is_in, is_unmoved=is_unmoved)
            if cause is not None:
                return cause
        return "table" if use.condition is ANYTHING else "bucket"

    def _may_be_linked(self, use: Use, change: RowChange) -> bool:
        """
        Return whether the row that comes or goes may belong to a link set, by which others are judged.

        Else a row and one that it refers to, deleted together, would each be excluded by what the other is now.
        """
        image = change.before if change.kind == "delete" else change.after
        return any(may_hold(part, image, self.shape.text) for part in use.linked_parts)

    def _is_counted(self, use: Use) -> bool:
        """Return whether it matters only how many rows there are."""
        return self.purpose in ("count", "exists") and self.shape.is_row_by_row and use.is_outermost

    def _is_unmoved(self, use: Use, change: RowChange, columns: frozenset[str]) -> bool:
        """Return whether all that decides whether the row is in the result is as it was, though *columns* changed."""
        if not columns:
            return True
        before, after = change.before, change.after
        if before is None or after is None or not columns <= use.atom_columns:
            return False
        for atom in use.atoms:
            if column_of(atom) in columns:
                truth = atom.truth(before, self.shape.text)
                if truth not in (FALSE, NULL, TRUE) or truth != atom.truth(after, self.shape.text):
                    return False
        return True

    def _excludes_existence(self, view: View, *, was_in: bool, is_in: bool) -> bool:
        """Return whether a yes stays a yes, or a no a no: only for a query of one table."""
        if self.is_limited or sum(map(len, self.uses.values())) != 1:
            return False
        exists = bool(view.rows[0][0])
        return not was_in if exists else not is_in

    def _is_no_news(self, change: RowChange, view: View) -> bool:
        """Return whether a row is added to a DISTINCT that shows already what it would show of it."""
        columns = self.shape.distinct
        if not columns or change.kind != "insert" or change.after is None:
            return False
        try:
            row = tuple([column.value(change.after) for column in columns])
            text = self.shape.text
            for column, value in zip(columns, row, strict=True):
                if not (text.is_stored_as_shown or column.is_computed or type(value) in (int, str)):
                    return False
                if type(value) is timedelta and not text.is_duration_exact:
                    return False
            return row in view.values(tuple(range(len(columns))))
        except (LookupError, TypeError, ValueError, OverflowError):  # a value that is not known, or not as expected
            return False

    def _has_no_group(self, use: Use, change: RowChange, view: View) -> bool:
        """
        Return whether the row had no part in a grouped result, and so, as what has changed cannot matter, has none.

        It fulfilled all that is asked of its own columns, and still its group is not shown: so it is the rows that it
        refers to that do not fulfil what is asked of them.
        """
        groups, columns, before = self.shape.groups, change.columns, change.before
        own = own_part(use.condition)
        if not groups or before is None or own is None or change.kind == "insert":
            return False
        names, positions = zip(*groups, strict=True)
        key = tuple([before.get(name) for name in names])
        if not all(map(self._is_identity, key)) or own.truth(before, self.shape.text) != TRUE:
            return False
        if change.kind == "update" and (
            columns is None or not columns.isdisjoint(names) or not columns & use.body <= use.atom_columns
        ):
            return False
        return key not in view.values(positions)

    def _is_identity(self, value: Any) -> bool:
        """Return whether *value* is equal, to the database, to no value that Python takes for another one."""
        kind = type(value)
        return kind in (int, bool, date, UUID) or (kind is str and self.shape.text.is_equality_exact)

    def _cause_in_rows(
        self, use: Use, change: RowChange, view: View, *, was_in: bool, is_in: bool, is_unmoved: bool
    ) -> str | None:
        """Return what is known of *change* because the rows of the result are; None if that is nothing."""
        columns = change.columns
        is_sorted_anew = columns is None or not columns.isdisjoint(use.order)
        if is_unmoved and not (is_sorted_anew and self.is_limited):
            # It is in the result if it was in it: what the result shows of it is all that could change.
            is_shown = self._is_shown(use, change, view)
            if is_shown is not None:
                return "row" if is_shown else ""
        if use.partner is not None and self._misses_partner(use, use.partner, change, view):
            return ""
        if not use.is_base:
            return None
        if was_in and self._was_absent(use, change, view):
            was_in = False
            is_in = is_in and not is_unmoved
            if not is_in:
                return ""
        if self._is_beyond(change, view, was_in=was_in, is_in=is_in, is_same_set=is_unmoved):
            return ""
        return "row" if self._is_shown(use, change, view) else None

    def _was_absent(self, use: Use, change: RowChange, view: View) -> bool:
        """Return whether the row was surely not in the result: it would be shown if it was, and it is not."""
        if self._is_shown(use, change, view) is not False:
            return False
        if not self.is_limited:
            return True
        window, rows = self.window, view.rows
        if window is None or not rows or change.before is None:
            return False
        is_open = window.size is None or len(rows) < window.size
        is_before_end = is_open or self._order(window, change.before, rows[-1]) == -1
        is_after_begin = window.low == 0 or self._order(window, change.before, rows[0]) == 1
        return is_before_end and is_after_begin

    def _is_shown(self, use: Use, change: RowChange, view: View) -> bool | None:
        if change.key is None:
            return None
        names = _key_columns(use.table)
        positions = tuple([self.shape.positions.get((use.alias, name), -1) for name in names])
        if not names or len(names) != len(change.key) or -1 in positions:
            return None
        return change.key in view.values(positions)

    def _misses_partner(self, use: Use, partner: tuple[str, str, str], change: RowChange, view: View) -> bool:
        """Return whether the row belongs, before and after, to none of the rows that are shown."""
        column, alias, partner_column = partner
        at = self.shape.positions.get((alias, partner_column))
        if at is None or use.order or not use.membership <= {column}:
            return False
        images = [image for image in (change.before, change.after) if image is not None]
        if len(images) != (2 if change.kind == "update" else 1):
            return False
        shown = view.values((at,))
        values = [image.get(column) for image in images]
        return all(self._is_identity(value) and (value,) not in shown for value in values)

    def _is_beyond(self, change: RowChange, view: View, *, was_in: bool, is_in: bool, is_same_set: bool) -> bool:
        """Return whether the row stays on one side of the window, so that the window shows what it has shown."""
        window = self.window
        rows = view.rows
        if window is None or not rows or not self.shape.is_one_to_one:
            return False
        sides = [
            self._side(window, image, rows)
            for image, is_part in ((change.before, was_in), (change.after, is_in))
            if is_part
        ]
        if all(side == 1 for side in sides):
            return window.size is not None and len(rows) == window.size
        # Before the window, a row may change its place but not come or go.
        return is_same_set and window.low > 0 and len(sides) == 2 and all(side == -1 for side in sides)

    def _side(self, window: _Window, image: Image | None, rows: Sequence[tuple[Any, ...]]) -> int:
        """Return -1 or 1 if a row surely stands before or after all of *rows*, else 0."""
        if image is None:
            return 0
        if self._order(window, image, rows[0]) == -1:
            return -1
        return 1 if self._order(window, image, rows[-1]) == 1 else 0

    def _order(self, window: _Window, image: Image, row: tuple[Any, ...]) -> int | None:
        """Return -1 or 1 if a row of the table surely stands before or after *row* of the result; else None."""
        if any(column not in image for column in window.columns):
            return None
        key = [image[column] for column in window.columns]
        return position(key, [row[at] for at in window.positions], window.are_descending, self.shape.text)


def scope_of(query: Query, shape: Shape, purpose: Purpose) -> Scope:
    """Return the scope of a result of *query*, whose structure has *shape*."""
    uses: Mapping[str, tuple[Use, ...]] = uses_of(
        query,
        shape.outline,
        shape.joins,
        is_whole=shape.is_whole,
        enforces_foreign_keys=shape.enforces_foreign_keys,
    )
    if not shape.policies.keys().isdisjoint(uses):
        uses = _under_policies(uses, shape.policies)
    is_limited = query.low_mark > 0 or query.high_mark is not None
    return Scope(uses, shape, purpose, is_limited, _window(query, shape) if is_limited else None)


def _under_policies(
    uses: Mapping[str, tuple[Use, ...]], policies: Mapping[str, Policies]
) -> dict[str, tuple[Use, ...]]:
    """Return *uses* with what row policies look at: an update of it may show a row, or hide it, as no WHERE says."""
    found = dict(uses)
    for table in policies.keys() & uses.keys():
        if policies[table].is_whole_row:
            del found[table]  # used in a way that is not known
        else:
            found[table] = tuple([use.deciding(frozenset(policies[table].columns)) for use in uses[table]])
    return found


def _window(query: Query, shape: Shape) -> _Window | None:
    if not shape.is_row_by_row:
        return None
    known = []
    for column in shape.sort:  # rows that are alike in the first columns stand in an order that is not known
        at = shape.positions.get((column.alias, column.column))
        if at is None or column.alias != shape.outline.base_alias:
            break
        known.append((column.column, at, column.is_descending))
    if not known:
        return None
    columns, positions, are_descending = zip(*known, strict=True)
    size = None if query.high_mark is None else query.high_mark - query.low_mark
    return _Window(query.low_mark, size, columns, positions, are_descending)


def _key_columns(table: str) -> tuple[str, ...]:
    """Return the columns of the primary key of *table*, in the order of RowChange.key."""
    for model in models_of_tables().get(table, ()):
        fields = getattr(model._meta, "pk_fields", None) or [model._meta.pk]
        return tuple([str(field.column) for field in fields if field is not None])
    return ()
