"""
The reads of benchmarks.history, of mixed shapes, and what each answer must show.

Of each row two numbers are known: its *floor*, the version whose commit had returned before the read began, and its
*ceiling*, the newest version that a writer had begun to write when the read was over. An answer is right if every row
in it is between the two; and a row whose numbers are equal must be in the answers where that version puts it, and in
no other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from django.db.models import Exists, Max, OuterRef, QuerySet, Sum

from benchmarks.project.models import GROUPS, SHELVES, Item, Maker

__all__ = ["ITEMS", "MAKERS", "ROWS", "Question", "group_of", "maker_of", "questions"]

ITEMS: Final = 12
MAKERS: Final = 3
ROWS: Final = ITEMS + MAKERS
"""Rows are numbered from 0: the items by their primary keys less 1, then the makers."""

Cached: TypeAlias = Callable[[QuerySet[Any]], Any]
Versions: TypeAlias = Sequence[int]


@dataclass(frozen=True, slots=True)
class Question:
    """One read: how it is asked, and what is wrong with an answer."""

    name: str
    ask: Callable[[Cached], Any]
    """Takes what makes a queryset cached, and returns plain data that can be compared."""
    find_fault: Callable[[Any, Versions, Versions], str]
    """Takes an answer, floors and ceilings; returns what is wrong, or an empty text."""


def group_of(row: int) -> int:
    """Return the group of an item."""
    return row % GROUPS


def maker_of(row: int) -> int:
    """Return the row of an item's maker."""
    return ITEMS + (row // 2) % MAKERS


def questions() -> list[Question]:
    """Return every question. Their answers are right or wrong for any row, so every one of them sees every write."""
    made = [Question(f"get {row}", partial(_ask_one, row), partial(_fault_in_one, row)) for row in range(ITEMS)]
    for group in range(GROUPS):
        rows = [row for row in range(ITEMS) if group_of(row) == group]
        joined = sorted({*rows, *map(maker_of, rows)})
        made += [
            Question(f"page {group}", partial(_ask_page, group), partial(_fault_in_rows, rows)),
            Question(f"joined {group}", partial(_ask_joined, group), partial(_fault_in_rows, joined)),
            Question(f"total {group}", partial(_ask_total, group), partial(_fault_in_total, rows)),
        ]
    for shelf in range(SHELVES):
        made += [
            Question(f"shelf {shelf}", partial(_ask_shelf, shelf), partial(_fault_in_shelf, shelf)),
            Question(f"count {shelf}", partial(_ask_count, shelf), partial(_fault_in_count, shelf)),
            Question(f"makers {shelf}", partial(_ask_makers, shelf), partial(_fault_in_makers, shelf)),
        ]
    made.append(Question("values", _ask_values, partial(_fault_in_rows, range(ITEMS))))
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


def _fault_in_one(row: int, version: int, floors: Versions, ceilings: Versions) -> str:
    if floors[row] <= version <= ceilings[row]:
        return ""
    return f"row {row} has version {version}, not {floors[row]} to {ceilings[row]}"


def _fault_in_rows(rows: Sequence[int], answer: Any, floors: Versions, ceilings: Versions) -> str:
    if [row for row, _ in answer] != list(rows):
        return f"the rows are {answer}, not {list(rows)}"
    return _fault_in_versions(answer, floors, ceilings)


def _fault_in_versions(answer: Any, floors: Versions, ceilings: Versions) -> str:
    return next(filter(None, (_fault_in_one(row, version, floors, ceilings) for row, version in answer)), "")


def _fault_in_total(rows: Sequence[int], answer: Any, floors: Versions, ceilings: Versions) -> str:
    newest, total = answer
    low, high = [floors[row] for row in rows], [ceilings[row] for row in rows]
    if max(low) <= newest <= max(high) and sum(low) <= total <= sum(high):
        return ""
    return f"maximum and sum are {newest} and {total}, not from {max(low)} and {sum(low)} to {max(high)} and {sum(high)}"


def _may_be_on(shelf: int, floor: int, ceiling: int) -> bool:
    return any(version % SHELVES == shelf for version in range(floor, min(ceiling, floor + SHELVES) + 1))


def _fault_in_shelf(shelf: int, answer: Any, floors: Versions, ceilings: Versions) -> str:
    if any(version % SHELVES != shelf for _, version in answer):
        return f"a row of another shelf: {answer}"
    found = {row for row, _ in answer}
    for row in range(ITEMS):
        if floors[row] == ceilings[row] and floors[row] % SHELVES == shelf and row not in found:
            return f"row {row} of version {floors[row]} is missing: {answer}"
    return _fault_in_versions(answer, floors, ceilings)


def _fault_in_count(shelf: int, count: int, floors: Versions, ceilings: Versions) -> str:
    pairs = list(zip(floors, ceilings, strict=True))[:ITEMS]
    low = sum(floor == ceiling and floor % SHELVES == shelf for floor, ceiling in pairs)
    high = sum(_may_be_on(shelf, floor, ceiling) for floor, ceiling in pairs)
    return "" if low <= count <= high else f"the count is {count}, not {low} to {high}"


def _fault_in_makers(shelf: int, answer: Any, floors: Versions, ceilings: Versions) -> str:
    must, may = set(), set()
    for row in range(ITEMS):
        if _may_be_on(shelf, floors[row], ceilings[row]):
            may.add(maker_of(row))
            if floors[row] == ceilings[row]:
                must.add(maker_of(row))
    found = {row for row, _ in answer}
    if not must <= found <= may:
        return f"the makers are {sorted(found)}; {sorted(must)} must be there and {sorted(may)} may"
    return _fault_in_versions(answer, floors, ceilings)
