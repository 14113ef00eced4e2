"""Plain-text tables and JSON for the management command."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

__all__ = ["as_json", "as_table"]


def as_json(report: object) -> str:
    """Return *report* as JSON for programs. What JSON does not know is written as text."""
    return json.dumps(report, indent=2, default=str)


def as_table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return *rows* under *header*, columns aligned, numbers to the right, None as a dash."""
    cells = [list(header), *([_text(value) for value in row] for row in rows)]
    numeric = [all(_is_number(row[i]) for row in cells[1:]) and len(cells) > 1 for i in range(len(header))]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    lines = [
        "  ".join(
            text.rjust(width) if right else text.ljust(width)
            for text, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join((lines[0], "  ".join("-" * width for width in widths), *lines[1:]))


def _text(value: Any) -> str:
    return "-" if value is None else str(value)


def _is_number(text: str) -> bool:
    return text == "-" or text.replace(".", "", 1).isdigit()
