"""The rows that each example of the machine begins with: made once, and put back from copies of the tables."""

from __future__ import annotations

from typing import Any

from django.db import connections, models

from tests.machine.writes import TABLES, empty, seed

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
        self._driver = _connect(alias)
        self._execute(*[f"CREATE TABLE {_copy(model)} AS SELECT * FROM {_table(model)}" for model in TABLES])

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
        self._execute(*statements, "COMMIT")

    def close(self) -> None:
        """Drop the copies. The rows stay."""
        self._execute(*[f"DROP TABLE {_copy(model)}" for model in TABLES])
        self._driver.close()

    def _execute(self, *statements: str) -> None:
        sql = ";\n".join(statements)
        if connections[self.alias].vendor == "sqlite":
            self._driver.executescript(sql)
            return
        with self._driver.cursor() as cursor:
            cursor.execute(sql)
            while cursor.nextset():
                pass


def _table(model: type[models.Model]) -> str:
    return model._meta.db_table


def _copy(model: type[models.Model]) -> str:
    return f"machine_{model._meta.db_table}"


def _connect(alias: str) -> Any:
    connection: Any = connections[alias]
    parameters = connection.get_connection_params()
    if connection.vendor == "mysql":
        from pymysql.constants import CLIENT

        parameters |= {"client_flag": CLIENT.MULTI_STATEMENTS, "autocommit": True}
    driver = connection.Database.connect(**parameters)
    if connection.vendor == "sqlite":
        driver.isolation_level = None
    if connection.vendor == "postgresql":
        driver.autocommit = True
    return driver
