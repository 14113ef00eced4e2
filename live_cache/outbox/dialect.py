"""
What the outbox is made of, and the part of it that each database does in its own way.

A trigger writes one line into the outbox for what a statement (PostgreSQL) or a change of one row (elsewhere) has done
to a table, inside the writer's transaction: a rollback takes it back, and COMMIT shows all lines of a transaction at
once. ``changes`` of a line is JSON: a list of ``[before, after, columns]`` per row, or NULL for any row of the table.
Images hold values under names such as ``i:id``, whose first letter is the *kind* of the column; decoding.py reads them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final

from live_cache.exceptions import ConfigurationError
from live_cache.writes.images import LONGEST_STR

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["EVENTS", "MAX_TEXT", "OUTBOX", "Column", "Dialect", "Line", "Table", "Waiting", "rows_of", "trigger_name"]

OUTBOX: Final = "live_cache_outbox"
"""The table, what the names of all triggers and functions begin with, and the channel of NOTIFY."""
EVENTS: Final = ("insert", "update", "delete")
MAX_TEXT: Final = LONGEST_STR
"""Longer texts are not told."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table, as the catalog of the database has it."""

    name: str
    kind: str
    """i: whole number, b: boolean, s: text, u: UUID, d: date, t: moment, n: decimal. Empty: stays out of images."""
    type_name: str = ""
    """PostgreSQL: the type, quoted, with its schema."""
    is_computed: bool = False
    """Whether a trigger cannot see if it has changed, so that each update counts as a change of it."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table that gets triggers."""

    name: str
    quoted: str
    columns: tuple[Column, ...]
    key: tuple[str, ...]
    """Columns of the primary key. Without them no row is told, only the table."""
    untold: str = ""
    """Why the table is always told as a whole, for people. Empty where its rows are told."""
    also: tuple[str, ...] = ()
    """Tables that are told with it as a whole: they change, or show its rows, without a trigger of their own."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the outbox."""

    id: int
    transaction: str
    """Lines of one transaction have the same. Empty where the database does not name it."""
    table: str
    kind: str
    """insert, update, delete, or what else was done: truncate, conflict."""
    changes: str | bytes | None
    lag_s: float
    """Seconds since the trigger wrote it, by the clock of the database."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """What stands in the outbox at a moment."""

    lines: int
    oldest_s: float | None


class Dialect(ABC):
    """How one kind of database holds an outbox. Every query goes by the driver's cursor, past Django's."""

    vendor: ClassVar[str]
    is_schema_transactional: ClassVar[bool] = True
    """Whether statements that change the schema can be rolled back together."""
    rebuilds_tables: ClassVar[bool] = True
    """Whether a migration may drop triggers, or be refused because of them."""

    @abstractmethod
    def exists(self, connection: BaseDatabaseWrapper) -> bool:
        """Return whether the outbox is there."""

    @abstractmethod
    def describe(self, connection: BaseDatabaseWrapper, table: str) -> list[Table]:
        """
        Return the table called *table*, as Meta.db_table has it, and those that hold rows of it.

        Raises:
            ConfigurationError: It is not there, or is no table.
        """

    @abstractmethod
    def outbox_statements(self) -> list[str]:
        """Return what creates the outbox where it is not there."""

    @abstractmethod
    def install_statements(self, connection: BaseDatabaseWrapper, table: Table, *, notifies: bool) -> list[str]:
        """Return what gives *table* its triggers, in the place of those that it has."""

    @abstractmethod
    def drop_statements(self, connection: BaseDatabaseWrapper, table: Table) -> list[str]:
        """Return what drops the triggers of *table*."""

    @abstractmethod
    def drop_outbox_statements(self, connection: BaseDatabaseWrapper) -> list[str]:
        """Return what drops the outbox and all that is left of it. There are no triggers any more."""

    @abstractmethod
    def tables_with_triggers(self, connection: BaseDatabaseWrapper) -> list[str]:
        """Return the names of the tables that have our triggers, sorted."""

    def notifies(self, connection: BaseDatabaseWrapper) -> bool:
        """Return whether triggers wake the listener."""
        return False

    @abstractmethod
    def prepare(self, connection: BaseDatabaseWrapper) -> None:
        """Make the listener's own connection ready to read and delete."""

    @abstractmethod
    def read(self, connection: BaseDatabaseWrapper, limit: int) -> list[Line]:
        """Return the lines of committed transactions, the first *limit* by their id. They stay."""

    @abstractmethod
    def delete(self, connection: BaseDatabaseWrapper, lines: Collection[Line]) -> None:
        """Delete the lines that the last read() has returned, and commit that."""

    @abstractmethod
    def waiting(self, connection: BaseDatabaseWrapper) -> Waiting:
        """Return what stands in the outbox."""

    @abstractmethod
    def take_turn(self, connection: BaseDatabaseWrapper) -> bool:
        """Return whether this connection is the listener from now on until it is closed; one can be."""

    @abstractmethod
    def has_listener(self, connection: BaseDatabaseWrapper) -> bool:
        """Return whether somebody has taken the turn."""

    @abstractmethod
    def wait(self, connection: BaseDatabaseWrapper, timeout_s: float) -> None:
        """Return when there may be something to read, at the latest after *timeout_s*."""

    def close(self, connection: BaseDatabaseWrapper) -> None:
        """Give the turn back, and close the listener's connection."""
        connection.close()


def rows_of(
    connection: BaseDatabaseWrapper, query: str, parameters: Sequence[Any] | Mapping[str, Any] | None = None
) -> list[Any]:
    """Return the rows of *query*, by the driver's cursor, so that nobody who watches Django's sees it."""
    connection.ensure_connection()
    driver: Any = connection.connection
    with closing(driver.cursor()) as cursor:
        if parameters is None:
            cursor.execute(query)
        else:
            cursor.execute(query, parameters)
        return [] if cursor.description is None else list(cursor.fetchall())


def trigger_name(event: str, table: str) -> str:
    """Return the name of a trigger where names of triggers are those of the whole database."""
    return f"{OUTBOX}_{event}_{hashlib.blake2b(table.encode(), digest_size=6).hexdigest()}"


def missing_table(connection: BaseDatabaseWrapper, table: str) -> ConfigurationError:
    """Return the error for what has no rows of its own, or is not there."""
    return ConfigurationError(
        f"{table!r} is no table of the database {connection.alias!r}, so it takes no triggers. Run `manage.py migrate` "
        f"first, or leave its model out; a view has the triggers of the tables that it reads."
    )
