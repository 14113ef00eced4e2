"""The reads of benchmarks.history, of mixed shapes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

from django.db.models import Exists, Max, OuterRef, QuerySet, Sum

from benchmarks.project.answers import (
    GROUPS,
    ITEMS,
    SHELVES,
    Versions,
    fault_in_count,
    fault_in_makers,
    fault_in_one,
    fault_in_rows,
    fault_in_shelf,
    fault_in_total,
    group_of,
    maker_of,
)
from benchmarks.project.models import Item, Maker

__all__ = ["Question", "questions"]

Cached: TypeAlias = Callable[[QuerySet[Any]], Any]


@dataclass(frozen=True, slots=True)
class Question:
    """One read: how it is asked, and what is wrong with an answer."""

    name: str
    ask: Callable[[Cached], Any]
    """Takes what makes a queryset cached, and returns plain data that can be compared."""
    find_fault: Callable[[Any, Versions, Versions], str]
    """Takes an answer, floors and ceilings; returns what is wrong, or an empty text."""


def questions() -> list[Question]:
    """Return every question. Their answers are right or wrong for any row, so every one of them sees every write."""
    made = [Question(f"get {row}", partial(_ask_one, row), partial(fault_in_one, row)) for row in range(ITEMS)]
    for group in range(GROUPS):
        rows = [row for row in range(ITEMS) if group_of(row) == group]
        joined = sorted({*rows, *map(maker_of, rows)})
        made += [
            Question(f"page {group}", partial(_ask_page, group), partial(fault_in_rows, rows)),
            Question(f"joined {group}", partial(_ask_joined, group), partial(fault_in_rows, joined)),
            Question(f"total {group}", partial(_ask_total, group), partial(fault_in_total, rows)),
        ]
    for shelf in range(SHELVES):
        made += [
            Question(f"shelf {shelf}", partial(_ask_shelf, shelf), partial(fault_in_shelf, shelf)),
            Question(f"count {shelf}", partial(_ask_count, shelf), partial(fault_in_count, shelf)),
            Question(f"makers {shelf}", partial(_ask_makers, shelf), partial(fault_in_makers, shelf)),
        ]
    made.append(Question("values", _ask_values, partial(fault_in_rows, range(ITEMS))))
    return made


def _ask_one(row: int, cached: Cached) -> Any:
    return cached(Item.objects.all()).get(pk=row + 1).version


def _ask_page(group: int, cached: Cached) -> Any:
    return [(item.pk - 1, item.version) for item in cached(Item.objects.filter(group=group).order_by("pk")[:ITEMS])]


def _ask_joined(group: int, cached: Cached) -> Any:
    items = list(cached(Item.objects.filter(group=group).select_related("maker").order_by("pk")))
    makers = {item.maker.pk: item.maker.version for item in items}
    versions = [(item.pk - 1, item.version) for item in items]
    return sorted([*versions, *((ITEMS + pk - 1, version) for pk, version in makers.items())])


def _ask_total(group: int, cached: Cached) -> Any:
    found = cached(Item.objects.filter(group=group)).aggregate(newest=Max("version"), total=Sum("version"))
    return found["newest"], found["total"]


def _ask_shelf(shelf: int, cached: Cached) -> Any:
    found = cached(Item.objects.filter(shelf=shelf).order_by("-version", "pk"))
    return sorted((item.pk - 1, item.version) for item in found)


def _ask_count(shelf: int, cached: Cached) -> Any:
    return cached(Item.objects.filter(shelf=shelf)).count()


def _ask_makers(shelf: int, cached: Cached) -> Any:
    items = Item.objects.filter(maker=OuterRef("pk"), shelf=shelf)
    return sorted((ITEMS + maker.pk - 1, maker.version) for maker in cached(Maker.objects.filter(Exists(items))))


def _ask_values(cached: Cached) -> Any:
    return sorted((pk - 1, version) for pk, version in cached(Item.objects.values_list("pk", "version")))
