"""
A SQLite cursor that knows whether its statement is finished.

Two facts about SQLite make this necessary. In autocommit mode an unfinished SELECT pins its connection to the old
snapshot, so that a later SELECT on the same connection reads old rows (rule 15). And a write with RETURNING is not
committed before its statement is finished, so its rows are taken before the COMMIT.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final

from django.db.backends.sqlite3.base import SQLiteCursorWrapper

if TYPE_CHECKING:
    from live_cache.writes.transactions import ConnectionState

__all__ = ["TrackedCursor", "cursor_factory"]

_CONVERTED_CHARS: Final = 4 * 1024
_N_CONVERTED: Final = 1024

_converted: dict[str, str] = {}
"""What convert_query() has made of texts. Never more than _N_CONVERTED of up to _CONVERTED_CHARS."""


def cursor_factory(state: ConnectionState) -> Callable[..., TrackedCursor]:
    """Return what sqlite3's ``Connection.cursor(factory=...)`` takes, bound to the state of one connection."""
    # A class of its own, and no function that sets an attribute: it is called for every statement.
    members = {"__module__": __name__, "state_reference": staticmethod(weakref.ref(state))}
    return type("TrackedCursor", (TrackedCursor,), members)


class TrackedCursor(SQLiteCursorWrapper):
    """Django's SQLite cursor, which also reports when its statement is finished."""

    state_reference: Callable[[], ConnectionState | None] = staticmethod(lambda: None)
    _buffer: list[Any] | None = None
    _is_open = False

    def execute(self, query: str, params: Any = None) -> Any:
        self._buffer = None
        result = super().execute(query, params)
        self._set_open(self.description is not None)
        return result

    def executemany(self, query: str, param_list: Iterable[Any]) -> Any:
        self._buffer = None
        result = super().executemany(query, param_list)
        self._set_open(False)
        return result

    def convert_query(self, query: Any, *, param_names: Any = None) -> Any:
        """
        Return *query* with the placeholders of SQLite, as Django makes them.

        Its regular expression takes as long as the UPDATE of a row, for each statement, and most texts come again.
        """
        if param_names is not None or type(query) is not str or len(query) > _CONVERTED_CHARS:
            return super().convert_query(query, param_names=param_names)
        converted = _converted.get(query)
        if converted is None:
            converted = super().convert_query(query, param_names=None)
            if len(_converted) >= _N_CONVERTED:
                _converted.clear()
            _converted[query] = converted
        return converted

    def executescript(self, script: str) -> Any:
        state = self.state_reference()
        if state is None:
            return super().executescript(script)
        run = super().executescript
        return state.run_unknown(lambda: run(script))

    def buffer(self) -> None:
        """Take all rows of the statement now, so that it is finished; they are handed out as before."""
        if self.description is not None and self._buffer is None:
            self._buffer = super().fetchall()
            self._set_open(False)

    def fetchone(self) -> Any:
        if self._buffer is not None:
            return self._buffer.pop(0) if self._buffer else None
        row = super().fetchone()
        if row is None:
            self._set_open(False)
        return row

    def fetchmany(self, size: int | None = None) -> list[Any]:
        wanted = self.arraysize if size is None else size
        if self._buffer is not None:
            taken, self._buffer = self._buffer[:wanted], self._buffer[wanted:]
            return taken
        rows = super().fetchmany(wanted)
        if len(rows) < wanted:
            self._set_open(False)
        return rows

    def fetchall(self) -> list[Any]:
        if self._buffer is not None:
            taken, self._buffer = self._buffer, []
            return taken
        rows = super().fetchall()
        self._set_open(False)
        return rows

    def __next__(self) -> Any:
        if self._buffer is not None:
            if not self._buffer:
                raise StopIteration
            return self._buffer.pop(0)
        try:
            return super().__next__()
        except StopIteration:
            self._set_open(False)
            raise

    def close(self) -> None:
        self._set_open(False)
        super().close()

    def _set_open(self, is_open: bool) -> None:
        if is_open == self._is_open:
            return
        self._is_open = is_open
        state = self.state_reference()
        if state is None:
            return
        if is_open:
            state.open_cursors.add(self)
        else:
            state.open_cursors.discard(self)
