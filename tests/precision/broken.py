"""Planners and witnesses that are broken on purpose: the machine has to find each of them."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from live_cache import search
from live_cache.links import LinkReader
from live_cache.shapes import conditions, links, scope, truth, uses, witness
from live_cache.writes import images

__all__ = [
    "anchor_reverse_joins",
    "anchor_what_is_linked",
    "forget_null_below_not",
    "forget_the_order",
    "ignore_or",
    "ignore_ties",
    "judge_link_sets_by_old_readings",
    "keep_link_sets",
    "keep_the_memo",
    "link_both_ways",
    "look_for_keys_elsewhere",
    "see_no_null",
    "take_outer_joins_for_inner",
    "take_outer_links_for_inner",
    "take_what_is_cut_off_for_absent",
]


def ignore_or(monkeypatch: pytest.MonkeyPatch) -> None:
    """OR is read as AND."""
    monkeypatch.setattr(conditions, "any_of", lambda left, right: truth.all_of(left, right) if left != 1 else right)
    monkeypatch.setattr(conditions._Any, "truth", conditions.All.truth)


def take_outer_joins_for_inner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that an outer join looks for must fulfil what the WHERE asks of it."""
    monkeypatch.setattr(
        uses,
        "_conditions",
        lambda query, joins, *_: {alias: conditions.read_where(query.where, alias) for alias in joins},
    )


def forget_null_below_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The IS NOT NULL that Django puts beside a comparison below NOT is taken for true."""
    monkeypatch.setattr(conditions._IsNull, "truth", lambda self, image, text: truth.TRUE)


def ignore_ties(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that sorts like the last one shown stands behind it."""

    def position(key: Any, other: Any, are_descending: Any, text: Any) -> int | None:
        found = truth.position(key, other, are_descending, text)
        return 1 if found is None and tuple(key) == tuple(other) else found

    monkeypatch.setattr(scope, "position", position)


def forget_the_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a query is sorted by is not looked at."""

    def uses_of(*args: Any, **kwargs: Any) -> Any:
        return {
            table: tuple([replace(use, columns=use.columns - use.order, order=frozenset()) for use in found])
            for table, found in uses.uses_of(*args, **kwargs).items()
        }

    monkeypatch.setattr(scope, "uses_of", uses_of)


def anchor_reverse_joins(monkeypatch: pytest.MonkeyPatch) -> None:
    """A join to the rows that refer to a row is taken for one to the row that is referred to."""
    monkeypatch.setattr(uses, "_is_anchored", lambda join: join.parent_alias is not None)


def keep_the_memo(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was found out of an entry is believed of the next one, and of one change more."""
    recall, remember = witness.EntryWitness._recall, witness.EntryWitness.remember

    def believe(self: Any) -> Any:
        return witness._state_of(self._ledger).memos.get(self._plan.entry_key) or recall(self)

    def keep(self: Any, readings: Any) -> None:
        remember(self, readings)
        if self._memo is not None:
            self._memo.verified = {position: seq + 1 for position, seq in self._memo.verified.items()}

    monkeypatch.setattr(witness.EntryWitness, "_recall", believe)
    monkeypatch.setattr(witness.EntryWitness, "remember", keep)


def look_for_keys_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that are shown are sought in the last column."""
    is_shown = scope.Scope._is_shown

    def look(self: Any, use: Any, change: Any, view: Any) -> bool | None:
        moved = {key: (at + 1) % len(self.shape.positions) for key, at in self.shape.positions.items()}
        rows = [[value for value in row if isinstance(value, int | str)] * 9 for row in view.rows]
        return is_shown(
            replace(self, shape=replace(self.shape, positions=moved)), use, change, scope.View(lambda: rows)
        )

    monkeypatch.setattr(scope.Scope, "_is_shown", look)


def see_no_null(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer overlooks a value that becomes NULL, or was it."""
    updated = images.Columns.updated

    def overlook(self: images.Columns, before: Any, after: Any, connection: Any) -> Any:
        seen = [old if old is None or new is None else new for old, new in zip(before, after, strict=True)]
        return updated(self, before, seen, connection)

    monkeypatch.setattr(images.Columns, "updated", overlook)


def take_what_is_cut_off_for_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is not shown is taken for one that has no part, also where limits cut it off."""
    monkeypatch.setattr(scope.Scope, "_was_absent", lambda self, use, change, view: (
        self._is_shown(use, change, view) is False
    ))  # fmt: skip


def link_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that others are linked to are judged by a link set, too."""

    def uses_of(query: Any, outline: Any, joins: Any, **kwargs: Any) -> Any:
        found = uses.uses_of(query, outline, joins, **kwargs)
        return {table: tuple([_linked_back(each, query, outline, joins) for each in of]) for table, of in found.items()}

    monkeypatch.setattr(scope, "uses_of", uses_of)


def _linked_back(use: Any, query: Any, outline: Any, joins: Any) -> Any:
    if not use.linked_parts:
        return use
    base, join = joins[outline.base_alias], joins[use.alias]
    back = SimpleNamespace(
        parent_alias=use.alias,
        join_fields=[(rhs, lhs) for lhs, rhs in join.join_fields],
        join_field=join.join_field,
        join_type=join.join_type,
        table_name=base.table_name,
    )
    condition = conditions.read_where(query.where, use.alias, links.LinkFinder({outline.base_alias: back}, use.alias))
    return replace(use, condition=condition, has_links=True)


def anchor_what_is_linked(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that others refer to goes unjudged when it comes or goes, also if link sets are read of it."""
    monkeypatch.setattr(scope.Scope, "_may_be_linked", lambda self, use, change: False)


def judge_link_sets_by_old_readings(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clocks are not read anew after a link set."""
    judge = search.judge
    monkeypatch.setattr(
        search,
        "judge",
        lambda stamps, readings, dependencies, witness, **kwargs: judge(
            stamps, readings, dependencies, witness, **(kwargs | {"read_clocks": lambda: readings})
        ),
    )


def keep_link_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """A link set is read once, and used ever after."""
    kept: dict[str, Any] = {}
    values = LinkReader.values

    def keep(self: Any, link: Any) -> Any:
        key = f"{link.query()}"
        if key not in kept:
            kept[key] = values(self, link)
        return kept[key]

    monkeypatch.setattr(LinkReader, "values", keep)


def take_outer_links_for_inner(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is linked to none does not fulfil what is asked of NULLs."""
    monkeypatch.setattr(links, "may_hold", lambda condition, image, text: False)
