"""The rows that each example of the machine begins with: made once, and put back from copies of the tables."""

from __future__ import annotations

from django.db import connections, models

from tests.machine.writes import TABLES, empty, seed
from tests.raw_connection import RawConnection

__all__ = ["Shop"]


class Shop:
    """
    The shop of one database.

    It is put back by a connection that live_cache knows nothing of, in one round trip: rows made by the ORM would cost
    more than all that an example does. So nothing may be cached when restore() is called.
    """

    def __init__(self, alias: str) -> None:
        empty(alias)
        seed(alias)
        self.alias = alias
        self._raw = RawConnection(alias)
        self._raw.run(*[f"CREATE TABLE {_copy(model)} AS SELECT * FROM {_table(model)}" for model in TABLES])

    def restore(self) -> None:
        """Put every row back, and remove all others."""
        statements = ["BEGIN", "UPDATE testapp_category SET parent_id = NULL"]
        statements += [f"DELETE FROM {_table(model)}" for model in TABLES]
        quote = connections[self.alias].ops.quote_name
        for model in reversed(TABLES):
            fields = model._meta.local_concrete_fields
            names = [quote(str(field.column)) for field in fields]
            columns = ", ".join(
                name for name, field in zip(names, fields, strict=True) if not getattr(field, "generated", False)
            )
            statements.append(
                f"INSERT INTO {_table(model)} ({columns}) SELECT {columns} FROM {_copy(model)}"
                f" ORDER BY {names[0]}"  # a category comes after its parent
            )
        self._raw.run(*statements, "COMMIT")

    def close(self) -> None:
        """Drop the copies. The rows stay."""
        self._raw.run(*[f"DROP TABLE {_copy(model)}" for model in TABLES])
        self._raw.close()


def _table(model: type[models.Model]) -> str:
    return model._meta.db_table


def _copy(model: type[models.Model]) -> str:
    return f"machine_{model._meta.db_table}"
