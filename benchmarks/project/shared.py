"""Numbers that forked processes share: one writer per cell, so that no lock is needed and a kill breaks nothing."""

from __future__ import annotations

import mmap

__all__ = ["Cells"]


class Cells:
    """
    A table of integers in anonymous shared memory, zero at first. Made before the fork.

    A cell is an aligned word of 8 bytes, read and written as one. Each is written by one process at a time.
    """

    def __init__(self, rows: int, columns: int) -> None:
        self.rows = rows
        self.columns = columns
        self._memory = mmap.mmap(-1, max(rows * columns, 1) * 8)
        self._words = memoryview(self._memory).cast("q")

    def get(self, row: int, column: int = 0) -> int:
        """Return one cell."""
        return self._words[row * self.columns + column]

    def set(self, row: int, column: int, value: int) -> None:
        """Write one cell."""
        self._words[row * self.columns + column] = value

    def add(self, row: int, column: int, number: int) -> None:
        """Add to one cell. For the one process that writes it."""
        self._words[row * self.columns + column] += number

    def row(self, row: int) -> list[int]:
        """Return one row. Its cells are read one after another."""
        start = row * self.columns
        return self._words[start : start + self.columns].tolist()

    def sums(self) -> list[int]:
        """Return the sum of each column."""
        return [sum(column) for column in zip(*(self.row(row) for row in range(self.rows)), strict=True)]
