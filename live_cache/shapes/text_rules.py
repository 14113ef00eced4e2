"""
How each database compares texts, asked of it once, and again after a change of the schema that this process makes.

A column may compare otherwise than its database: by a collation of its own, as citext, or as char(n), which knows no
blanks at the end. Where a field tells of that (``db_collation``, or a class of its own), nothing is compared. But it
may stand in the DDL alone, made by SQL of a migration or older than the model; so the catalog is asked. It tells, too,
of enums, which have an order of their own, and of floats of single precision: as doubles these are other numbers than
those that the database compares.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from django.db import Error, models

from live_cache.names import shared_database_name
from live_cache.shapes.catalog import CatalogMemo
from live_cache.shapes.truth import TextRules, is_comparable_field
from live_cache.sql import normalize_table
from live_cache.tables import models_of_tables

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["forget_text_rules", "text_rules_of", "text_rules_version"]

_SQLITE: Final = TextRules(
    is_equality_exact=True, is_order_by_code_point=True, is_stored_as_shown=False, is_local_time_exact=True
)
_MYSQL: Final = TextRules(is_equality_exact=False, is_order_by_code_point=False, is_local_time_exact=True)
_UNKNOWN: Final = TextRules(
    is_equality_exact=False, is_order_by_code_point=False, is_stored_as_shown=False, is_duration_exact=False
)
_BINARY: Final = TextRules(is_equality_exact=True, is_order_by_code_point=True, is_duration_exact=False)
_EXACT: Final = TextRules(is_equality_exact=True, is_order_by_code_point=False, is_duration_exact=False)
_BY_CODE_POINT: Final = frozenset({"c", "posix", "c.utf-8", "c.utf8"})
# Before PostgreSQL 15 there is no such column, and an error would break the transaction.
_SQL: Final = (
    "SELECT d.datcollate, coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') FROM pg_database d"
    " WHERE d.datname = current_database()"
)

# Columns of texts that are neither text nor varchar in the collation of the database; and floats of single precision.
_OWN_POSTGRESQL: Final = (
    "SELECT DISTINCT c.relname, a.attname, a.atttypid = 'pg_catalog.float4'::regtype FROM pg_catalog.pg_attribute a"
    " JOIN pg_catalog.pg_class c ON c.oid = a.attrelid AND c.relkind IN ('r', 'p', 'f')"
    " JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace"
    " AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')"
    " JOIN pg_catalog.pg_type t ON t.oid = a.atttypid"
    " WHERE a.attnum > 0 AND NOT a.attisdropped AND (a.atttypid = 'pg_catalog.float4'::regtype OR t.typcategory = 'E'"
    " OR (t.typcategory = 'S' AND (a.attcollation <> 'pg_catalog.\"default\"'::regcollation"
    " OR a.atttypid NOT IN ('pg_catalog.text'::regtype, 'pg_catalog.varchar'::regtype))))"
)
_COLLATE: Final = "collate"
_OWN_SQLITE: Final = f"SELECT name, lower(sql), 0 FROM sqlite_master WHERE type = 'table' AND sql LIKE '%{_COLLATE}%'"
_OWN_MYSQL: Final = (
    "SELECT table_name, column_name, 1 FROM information_schema.columns"
    " WHERE table_schema = DATABASE() AND data_type = 'float'"
)
_OWN: Final = {"postgresql": _OWN_POSTGRESQL, "sqlite": _OWN_SQLITE, "mysql": _OWN_MYSQL}

_known: dict[str, TextRules] = {}


def forget_text_rules() -> None:
    """Ask again which columns have rules of their own: the schema was changed."""
    _own_rules.forget()


def text_rules_version() -> int:
    """Return a number that is another one when what was known of the columns was forgotten."""
    return _own_rules.version


def text_rules_of(connection: BaseDatabaseWrapper, tables: Collection[str]) -> TextRules:
    """
    Return how the database behind *connection* compares texts of those columns of *tables* that are compared at all.

    SQLite compares bytes of UTF-8. PostgreSQL takes only equal texts for equal, and sorts by the locale that the
    database was made with. The collations of MySQL and MariaDB differ by column.

    Args:
        tables: Names, normalised.
    """
    rules = _rules_of(connection)
    have_texts, have_floats = _have_own_rules(connection, tables)
    if have_texts:
        rules = replace(rules, is_equality_exact=False, is_order_by_code_point=False)
    return replace(rules, are_floats_doubles=False, is_stored_as_shown=False) if have_floats else rules


def _rules_of(connection: BaseDatabaseWrapper) -> TextRules:
    if connection.vendor == "sqlite":
        return _SQLITE
    if connection.vendor != "postgresql":
        return _MYSQL if connection.vendor == "mysql" else _UNKNOWN
    name = shared_database_name(connection)
    rules = _known.get(name)
    if rules is None:
        rows = _ask(connection, _SQL)
        if not rows:
            return _EXACT
        ((locale, provider),) = rows
        is_plain = provider == "c" and str(locale).lower() in _BY_CODE_POINT
        rules = _known[name] = _BINARY if is_plain else _EXACT
    return rules


def _have_own_rules(connection: BaseDatabaseWrapper, tables: Collection[str]) -> tuple[bool, bool]:
    """Return whether *tables* have texts, or floats, with rules of their own that no field tells of, or may have."""
    if connection.vendor not in _OWN:
        return False, False
    fields = {
        table: [field for model in models_of_tables().get(table, ()) for field in model._meta.local_concrete_fields]
        for table in tables
    }
    if connection.vendor == "mysql" and not any(
        type(field) is models.FloatField for table in fields.values() for field in table
    ):
        return False, False  # its texts are never compared
    try:
        own = _own_rules.of(connection)
    except LookupError:
        return True, True
    if connection.vendor == "sqlite":
        return any(_tell_less(fields[table], own[table][0][0]) for table in own.keys() & fields.keys()), False
    found = {
        is_float
        for table in own.keys() & fields.keys()
        for column, is_float in own[table]
        if any(field.column == column and is_comparable_field(field) for field in fields[table])
    }
    return False in found, True in found


def _ask_own_rules(connection: BaseDatabaseWrapper) -> dict[str, list[tuple[str, bool]]]:
    """Return columns with rules of their own, by table, and whether each is a float. Raises LookupError."""
    rows = _ask(connection, _OWN[connection.vendor])
    if rows is None:
        raise LookupError("The catalog cannot be asked.")
    own: dict[str, list[tuple[str, bool]]] = {}
    for table, column, is_float in rows:
        own.setdefault(normalize_table(table), []).append((column, bool(is_float)))
    return own


def _tell_less(fields: Sequence[Any], text: str) -> bool:
    """Return whether *text*, which defines a table and is all that SQLite has, names more collations than *fields*."""
    return text.count(_COLLATE) > sum(getattr(field, "db_collation", None) is not None for field in fields)


def _ask(connection: BaseDatabaseWrapper, sql: str) -> list[tuple[Any, ...]] | None:
    """Return what the catalog says, or None where it cannot be asked."""
    if connection.needs_rollback:
        return None
    try:
        connection.ensure_connection()
        # By the driver's cursor, so that nobody who watches Django's takes this for a query of the user.
        driver: Any = connection.connection
        with connection.wrap_database_errors, closing(driver.cursor()) as cursor:
            cursor.execute(sql)
            return list(cursor.fetchall())
    except Error:
        return None


_own_rules: Final = CatalogMemo(_ask_own_rules)
