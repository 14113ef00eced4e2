"""RawSQL with declared tables: SQL text of the user that a live query may hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from django.db import models
from django.db.models import expressions

from live_cache.sql import normalize_table

__all__ = ["RawSQL"]

if TYPE_CHECKING:
    _Field = models.Field[Any, Any]


class RawSQL(expressions.RawSQL):
    """
    Django's RawSQL, with the tables that it reads: a query that holds it can be live.

    By *tables* the caller declares two things that no SQL text tells. These, and those that the text names, are all
    tables that it reads, also inside functions of the database. And the same rows and parameters give the same value
    each time: it looks at no clock, no random number, no user and no setting of the connection.

    Args:
        sql: See django.db.models.expressions.RawSQL.
        params: Its parameters.
        output_field: The field that the value becomes.
        tables: Models and names of tables. Empty if the text names every table that it reads. Views stand in
            LIVE_CACHE_UNMANAGED_TABLES.

    Raises:
        TypeError: *tables* holds something else.
    """

    def __init__(
        self,
        sql: str,
        params: Sequence[Any] = (),
        output_field: _Field | None = None,
        *,
        tables: Iterable[type[models.Model] | str],
    ) -> None:
        if isinstance(tables, str):
            raise TypeError(f"tables is a list of models and names, not the name {tables!r}.")
        self.tables = frozenset(map(_name_of, tables))
        super().__init__(sql, params, output_field)


def _name_of(table: Any) -> str:
    if isinstance(table, str):
        return normalize_table(table)
    if isinstance(table, type) and issubclass(table, models.Model):
        return normalize_table(table._meta.db_table)
    raise TypeError(f"tables holds models and names of tables, not {table!r}.")
