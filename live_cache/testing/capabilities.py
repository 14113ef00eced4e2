"""
What a store can do, found out by using it: the rows of docs/reference/stores.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from live_cache.exceptions import StoreUnsupportedError
from live_cache.stores.base import MISS, Store

__all__ = ["COLUMNS", "MEASURED", "capabilities", "table"]

COLUMNS: Final = (
    "store",
    "shared by processes",
    "shared by hosts",
    "durable",
    "counts entries",
    "expiry",
    "atomic increment",
    "compare and swap",
    "lists prefixes",
    "async",
    "when full, drops by",
)

MEASURED: Final[dict[str, tuple[str, ...]]] = {}
"""Rows of this run of the tests, by the name of the store."""


def capabilities(
    store: Store, label: str, *, advance: Callable[[float], None], opened_again: Callable[[], Store]
) -> tuple[str, ...]:
    """
    Return the row of *store*, which is empty and stays so, and note it in MEASURED.

    Args:
        advance: Let seconds pass for the store.
        opened_again: Makes another store on the same place.
    """
    other = opened_again()
    store.put("seen", b"1")
    is_shared = other.get("seen") == b"1"
    is_durable = store.flush().is_durable
    counts = "yes"
    try:
        store.len()
    except StoreUnsupportedError:
        counts = "no"
    store.put("short", b"1", timeout_s=1)
    advance(1)
    expires = store.get("short") is MISS
    store.put("sum", b"1")
    increments = other.increment("sum", 2) == 3 if is_shared else store.increment("sum", 2) == 3
    swaps = store.compare_and_swap("swap", None, b"1") and not store.compare_and_swap("swap", None, b"2")
    store.put_many({"client/1": b"1", "clients": b"1"})
    lists = list(store.keys("client")) == ["client/1"]
    store.clear()
    other.close()
    assert is_shared == store.is_shared_by_processes
    row = (
        label,
        *map(_yes, (is_shared, store.is_shared_by_hosts, is_durable)),
        counts,
        *map(_yes, (expires, increments, swaps, lists)),
        store.async_kind,
        store.evicts_by,
    )
    MEASURED[label] = row
    return row


def table(rows: dict[str, tuple[str, ...]]) -> list[str]:
    """Return *rows* as lines of text, in columns."""
    widths = [max(len(row[i]) for row in (COLUMNS, *rows.values())) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in (COLUMNS, *rows.values())
    ]
    return [line.rstrip() for line in lines]


def _yes(value: bool) -> str:
    return "yes" if value else "no"
