"""
What an answer of benchmarks.history must show. Pure: it needs no database.

Of each row two numbers are known: its *floor*, the version whose commit had returned before the read began, and its
*ceiling*, the newest version that a writer had begun to write when the read was over. An answer is right if every row
in it is between the two; and a row whose numbers are equal must be in the answers where that version puts it, and in
no other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, TypeAlias

__all__ = [
    "GROUPS",
    "ITEMS",
    "MAKERS",
    "ROWS",
    "SHELVES",
    "Versions",
    "fault_in_count",
    "fault_in_makers",
    "fault_in_one",
    "fault_in_rows",
    "fault_in_shelf",
    "fault_in_total",
    "group_of",
    "maker_of",
]

SHELVES: Final = 4
GROUPS: Final = 3
ITEMS: Final = 12
MAKERS: Final = 3
ROWS: Final = ITEMS + MAKERS
"""Rows are numbered from 0: the items by their primary keys less 1, then the makers."""

Versions: TypeAlias = Sequence[int]


def group_of(row: int) -> int:
    """Return the group of an item."""
    return row % GROUPS


def maker_of(row: int) -> int:
    """Return the row of an item's maker."""
    return ITEMS + (row // 2) % MAKERS


def fault_in_one(row: int, version: int, floors: Versions, ceilings: Versions) -> str:
    """Return what is wrong with the version of one row, or an empty text; so do the others."""
    if floors[row] <= version <= ceilings[row]:
        return ""
    return f"row {row} has version {version}, not {floors[row]} to {ceilings[row]}"


def fault_in_rows(rows: Sequence[int], answer: Any, floors: Versions, ceilings: Versions) -> str:
    """Check a page that must hold *rows*, in this order, whatever their versions."""
    if [row for row, _ in answer] != list(rows):
        return f"the rows are {answer}, not {list(rows)}"
    return _fault_in_versions(answer, floors, ceilings)


def _fault_in_versions(answer: Any, floors: Versions, ceilings: Versions) -> str:
    return next(filter(None, (fault_in_one(row, version, floors, ceilings) for row, version in answer)), "")


def fault_in_total(rows: Sequence[int], answer: Any, floors: Versions, ceilings: Versions) -> str:
    """Check the maximum and the sum of the versions of *rows*."""
    newest, total = answer
    low, high = [floors[row] for row in rows], [ceilings[row] for row in rows]
    if max(low) <= newest <= max(high) and sum(low) <= total <= sum(high):
        return ""
    return (
        f"maximum and sum are {newest} and {total}, not from {max(low)} and {sum(low)} to {max(high)} and {sum(high)}"
    )


def _may_be_on(shelf: int, floor: int, ceiling: int) -> bool:
    return any(version % SHELVES == shelf for version in range(floor, min(ceiling, floor + SHELVES) + 1))


def fault_in_shelf(shelf: int, answer: Any, floors: Versions, ceilings: Versions) -> str:
    """Check the rows of one shelf."""
    if any(version % SHELVES != shelf for _, version in answer):
        return f"a row of another shelf: {answer}"
    found = {row for row, _ in answer}
    for row in range(ITEMS):
        if floors[row] == ceilings[row] and floors[row] % SHELVES == shelf and row not in found:
            return f"row {row} of version {floors[row]} is missing: {answer}"
    return _fault_in_versions(answer, floors, ceilings)


def fault_in_count(shelf: int, count: int, floors: Versions, ceilings: Versions) -> str:
    """Check how many rows are on one shelf."""
    pairs = list(zip(floors, ceilings, strict=True))[:ITEMS]
    low = sum(floor == ceiling and floor % SHELVES == shelf for floor, ceiling in pairs)
    high = sum(_may_be_on(shelf, floor, ceiling) for floor, ceiling in pairs)
    return "" if low <= count <= high else f"the count is {count}, not {low} to {high}"


def fault_in_makers(shelf: int, answer: Any, floors: Versions, ceilings: Versions) -> str:
    """Check the makers that have an item on one shelf."""
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
