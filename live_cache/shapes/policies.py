"""
Row policies of PostgreSQL: what decides which rows a connection sees, and stands in no SQL that Django sends.

The columns that the policies of a table look at decide membership in every result of it, and the tables that they look
at are read by every query of it. The database is asked for them once per process, and again after a change of the
schema that this process makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.db import Error

from live_cache.exceptions import UncachableQueryError
from live_cache.shapes.catalog import CatalogMemo
from live_cache.sql import normalize_table

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["Policies", "forget_policies", "policies_of", "policies_version"]

# What a policy looks at is recorded as its dependency, as of a view; its own table once more, with another deptype.
# What belongs to the server itself, such as current_setting(), is not recorded.
_SQL: Final = """
SELECT c.relname, r.relname, r.oid = c.oid, a.attname, f.proname,
    concat_ws(' ', c.oid, y.polname, y.polcmd, y.polpermissive, y.polroles, pg_get_expr(y.polqual, y.polrelid))
FROM pg_catalog.pg_policy y
JOIN pg_catalog.pg_class c ON c.oid = y.polrelid AND c.relrowsecurity
LEFT JOIN pg_catalog.pg_depend d
    ON d.classid = 'pg_catalog.pg_policy'::regclass AND d.objid = y.oid AND d.deptype = 'n'
LEFT JOIN pg_catalog.pg_class r ON d.refclassid = 'pg_catalog.pg_class'::regclass AND r.oid = d.refobjid
LEFT JOIN pg_catalog.pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.refobjsubid AND d.refobjsubid <> 0
LEFT JOIN pg_catalog.pg_proc f ON d.refclassid = 'pg_catalog.pg_proc'::regclass AND f.oid = d.refobjid
"""


@dataclass(slots=True)
class Policies:
    """What the policies of the tables of one name look at, whatever their schema."""

    columns: set[str]
    """Of the table itself."""
    tables: set[str]
    """Others, normalised."""
    functions: set[str]
    """Functions of the project, which may look at anything."""
    texts: set[str]
    """What they say: part of the keys, so that results under other policies have other keys."""
    is_whole_row: bool = False
    """Whether all columns of the table may matter."""


def policies_of(connection: BaseDatabaseWrapper) -> Mapping[str, Policies]:
    """
    Return the policies of the database behind *connection* by table, normalised. Only tables that enforce them.

    Raises:
        UncachableQueryError: The database does not tell.
    """
    if connection.vendor != "postgresql":
        return {}
    return _policies.of(connection)


def forget_policies() -> None:
    """Ask again: the schema was changed."""
    _policies.forget()


def policies_version() -> int:
    """Return a number that is another one when what was known of policies was forgotten."""
    return _policies.version


def _ask(connection: BaseDatabaseWrapper) -> dict[str, Policies]:
    if connection.needs_rollback:
        raise UncachableQueryError("The transaction is broken, so the row policies of the database are not known.")
    try:
        connection.ensure_connection()
        # By the driver's cursor, so that nobody who watches Django's takes this for a query of the user.
        driver: Any = connection.connection
        with connection.wrap_database_errors, closing(driver.cursor()) as cursor:
            cursor.execute(_SQL)
            rows = cursor.fetchall()
    except Error as error:
        raise UncachableQueryError(f"The database did not tell its row policies: {error!r}") from error
    found: dict[str, Policies] = {}
    for table, other, is_own, column, function, text in rows:
        policies = found.setdefault(normalize_table(table), Policies(set(), set(), set(), set()))
        policies.texts.add(text)
        if function is not None:
            policies.functions.add(function)
        elif other is None:
            continue
        elif not is_own:
            policies.tables.add(normalize_table(other))
        elif column is None:
            policies.is_whole_row = True
        else:
            policies.columns.add(column)
    return found


_policies: Final = CatalogMemo(_ask)
