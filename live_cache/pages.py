"""
Windows of a result set and the page suffixes that name them.

A window ``[start:stop]`` that is a whole page of some size is called ``page_<number>x<size>``, however it was asked
for, so that a slice, page() and Django's Paginator share one entry.
"""

from __future__ import annotations

__all__ = ["page_bounds", "page_suffix"]


def page_suffix(start: int, stop: int | None) -> str:
    """
    Return the suffix of the window from row *start* (0-based) up to, not including, row *stop* (None: the end).

    ``rows`` is the whole result, ``page_3x20`` is rows 40 to 59, ``rows_5_12`` and ``rows_40_`` are other windows.
    """
    if start == 0 and stop is None:
        return "rows"
    if stop is None:
        return f"rows_{start}_"
    size = stop - start
    if size > 0 and start % size == 0:
        return f"page_{start // size + 1}x{size}"
    return f"rows_{start}_{stop}"


def page_bounds(number: int, size: int) -> tuple[int, int]:
    """
    Return the window of page *number* (1-based) of *size* rows, as (start, stop).

    Raises:
        ValueError: The number or the size is below 1.
    """
    if number < 1 or size < 1:
        raise ValueError(f"Pages and their sizes count from 1; page {number!r} of size {size!r} does not exist.")
    return (number - 1) * size, number * size
