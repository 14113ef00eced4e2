"""Writers that are not Django: what they send passes nothing of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

from tests.raw_connection import RawConnection

__all__ = ["outside", "write_outside"]


@contextmanager
def outside(alias: str) -> Iterator[Any]:
    """Open a connection of the driver to the database *alias*, in autocommit mode; on SQLite with foreign keys."""
    with closing(RawConnection(alias)) as raw:
        if hasattr(raw.driver, "executescript"):
            raw.driver.execute("PRAGMA foreign_keys = ON")
        yield raw.driver


def write_outside(alias: str, *statements: str) -> None:
    """Run *statements* in one transaction of such a connection, and commit it."""
    with outside(alias) as connection, closing(connection.cursor()) as cursor:
        for statement in ("BEGIN", *statements, "COMMIT"):
            cursor.execute(statement)
