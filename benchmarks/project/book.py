"""What is known of every row, shared by all processes of benchmarks.history: begun and committed writes, by writer."""

from __future__ import annotations

from benchmarks.project.shared import Cells

__all__ = [
    "ASKED",
    "COMMITS",
    "ERRORS",
    "FAILURES",
    "FALSE_ALARMS",
    "HITS",
    "OPERATION",
    "READS",
    "ROLLBACKS",
    "RUN",
    "STALE",
    "STOPPED_READERS",
    "STOPPED_WRITERS",
    "WRONG",
    "Book",
]

READS, HITS, STALE, ERRORS, WRONG, ASKED = range(6)
"""Columns of Book.readers."""
COMMITS, ROLLBACKS, FAILURES, OPERATION, FALSE_ALARMS = range(5)
"""Columns of Book.writers."""
RUN, STOPPED_WRITERS, STOPPED_READERS = range(3)
"""What Book.phase says."""
_PHASE, _QUIET = range(2)


class Book:
    """
    Each committed write adds one to the version of its row, so sums over the writers are versions.

    A row has at least the version floors() if it is asked before a read, and at most ceilings() if it is asked after.
    """

    def __init__(self, *, rows: int, readers: int, writers: int) -> None:
        self.begun = Cells(writers, rows)
        self.done = Cells(writers, rows)
        self.readers = Cells(readers, 6)
        self.writers = Cells(writers, 5)
        self._control = Cells(1, 2)

    @property
    def phase(self) -> int:
        """RUN, STOPPED_WRITERS or STOPPED_READERS."""
        return self._control.get(0, _PHASE)

    @property
    def is_quiet(self) -> bool:
        """Whether no writer may begin a write."""
        return bool(self._control.get(0, _QUIET))

    def keep_quiet(self, *, is_quiet: bool) -> None:
        """Keep the writers from writing, or let them go on."""
        self._control.set(0, _QUIET, is_quiet)

    def enter(self, phase: int) -> None:
        """Go on to *phase*."""
        self._control.set(0, _PHASE, phase)

    def floors(self) -> list[int]:
        """Return the version of each row whose commit has returned."""
        return self.done.sums()

    def ceilings(self) -> list[int]:
        """Return the newest version of each row that anybody has begun to write."""
        return self.begun.sums()

    def begin(self, writer: int, rows: list[int]) -> None:
        """Note that *writer* is about to write *rows*."""
        for row in rows:
            self.begun.add(writer, row, 1)

    def committed(self, writer: int, rows: list[int]) -> None:
        """Note that the commit of what was begun has returned."""
        for row in rows:
            self.done.add(writer, row, 1)

    def rolled_back(self, writer: int, rows: list[int]) -> None:
        """Note that what was begun has not happened, and never will."""
        for row in rows:
            self.begun.add(writer, row, -1)

    def open_rows(self, writer: int) -> list[int]:
        """Return the rows of *writer* whose write was begun, with an outcome that is not known."""
        begun, done = self.begun.row(writer), self.done.row(writer)
        return [row for row, number in enumerate(begun) if number != done[row]]
