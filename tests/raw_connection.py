"""A connection to a test database of which live_cache knows nothing."""

from __future__ import annotations

from typing import Any

from django.db import connections

__all__ = ["RawConnection"]


class RawConnection:
    """The driver's own connection to the database of *alias*, in autocommit mode."""

    def __init__(self, alias: str) -> None:
        connection: Any = connections[alias]
        self._vendor = connection.vendor
        parameters = connection.get_connection_params()
        if self._vendor == "mysql":
            from pymysql.constants import CLIENT

            parameters |= {"client_flag": CLIENT.MULTI_STATEMENTS, "autocommit": True}
        self.driver = connection.Database.connect(**parameters)
        if self._vendor == "sqlite":
            self.driver.isolation_level = None
        if self._vendor == "postgresql":
            self.driver.autocommit = True

    def run(self, *statements: str) -> None:
        """Send all of *statements* in one round trip."""
        sql = ";\n".join(statements)
        if self._vendor == "sqlite":
            self.driver.executescript(sql)
            return
        with self.driver.cursor() as cursor:
            cursor.execute(sql)
            while cursor.nextset():
                pass

    def close(self) -> None:
        """Close it."""
        self.driver.close()
