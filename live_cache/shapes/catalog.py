"""What the catalog of each database has answered to one question, until a change of the schema."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import TYPE_CHECKING, Generic, TypeVar

from live_cache.names import shared_database_name

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["CatalogMemo"]

T = TypeVar("T")


class CatalogMemo(Generic[T]):
    """
    The answers of each database. Safe to share between threads.

    Args:
        ask: Returns what the catalog says, or raises; then it is asked again the next time.
    """

    def __init__(self, ask: Callable[[BaseDatabaseWrapper], T]) -> None:
        self._ask = ask
        self._known: dict[str, tuple[int, T]] = {}
        self._versions = itertools.count(1)
        self.version = 0
        """Another number after each forget()."""

    def of(self, connection: BaseDatabaseWrapper) -> T:
        """Return the answer of the database behind *connection*."""
        name = shared_database_name(connection)
        known = self._known.get(name)
        if known is None or known[0] != self.version:
            # Read before the question: an answer that a change of the schema overtakes is of no use to the next one.
            version = self.version
            known = self._known[name] = version, self._ask(connection)
        return known[1]

    def forget(self) -> None:
        """Ask again: the schema was changed."""
        self.version = next(self._versions)
