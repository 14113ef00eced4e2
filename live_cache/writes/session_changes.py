"""What SQL has changed about the session of a connection, so that it may see other rows or values than others do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

if TYPE_CHECKING:
    from live_cache.sql import Statement

__all__ = ["SessionChanges"]

_SEARCH_PATH: Final = 1
_VALUES: Final = 2
_ISOLATION: Final = 4

# By the driver's connection: a pool gives it to another connection of Django as it is.
_pooled: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


class SessionChanges:
    """
    What statements have changed since Django has connected. Not what Django itself sends then: each connection has it.

    Nothing is taken back by RESET or DISCARD: they bring back what the server says, and Django sets some of it
    when it connects.
    """

    __slots__ = ("_lasting", "_local")

    def __init__(self) -> None:
        self._lasting = 0
        self._local = 0

    @property
    def is_search_path_changed(self) -> bool:
        """Whether the same names may stand for other rows: see Statement.changes_search_path."""
        return bool((self._lasting | self._local) & _SEARCH_PATH)

    @property
    def are_values_changed(self) -> bool:
        """Whether the same query may answer otherwise over the same rows: see Statement.changes_values."""
        return bool((self._lasting | self._local) & _VALUES)

    @property
    def are_rows_in_doubt(self) -> bool:
        """Whether the connection may see other rows, or other values in them, than others see."""
        return bool((self._lasting | self._local) & (_SEARCH_PATH | _VALUES))

    @property
    def is_isolation_changed(self) -> bool:
        """Whether the isolation level is not known any more."""
        return bool(self._lasting & _ISOLATION)

    def note(self, statement: Statement, pooled: Any) -> None:
        """
        Take in *statement*, which is about to be sent.

        Args:
            pooled: The driver's connection, if it comes from a pool; else None.
        """
        changed = statement.changes_search_path * _SEARCH_PATH | statement.changes_values * _VALUES
        if statement.ends_with_transaction:
            self._local |= changed
        else:
            self._lasting |= changed
        self._lasting |= statement.changes_isolation * _ISOLATION
        if self._lasting and pooled is not None:
            _pooled[pooled] = self._lasting

    def end_transaction(self) -> None:
        """Forget what ended with the transaction."""
        self._local = 0

    def reset(self, pooled: Any) -> None:
        """Forget all, but what was changed before over a connection that comes from a pool: Django has connected."""
        self._local = 0
        self._lasting = 0 if pooled is None else _pooled.get(pooled, 0)
