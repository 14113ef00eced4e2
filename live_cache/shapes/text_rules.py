"""How each database compares texts, asked of it once."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Final

from django.db import Error

from live_cache.names import shared_database_name
from live_cache.shapes.truth import TextRules

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["text_rules_of"]

_SQLITE: Final = TextRules(
    is_equality_exact=True, is_order_by_code_point=True, is_stored_as_shown=False, is_local_time_exact=True
)
_MYSQL: Final = TextRules(is_equality_exact=False, is_order_by_code_point=False, is_local_time_exact=True)
_UNKNOWN: Final = TextRules(is_equality_exact=False, is_order_by_code_point=False, is_stored_as_shown=False)
_BINARY: Final = TextRules(is_equality_exact=True, is_order_by_code_point=True)
_EXACT: Final = TextRules(is_equality_exact=True, is_order_by_code_point=False)
_BY_CODE_POINT: Final = frozenset({"c", "posix", "c.utf-8", "c.utf8"})
# Before PostgreSQL 15 there is no such column, and an error would break the transaction.
_SQL: Final = (
    "SELECT d.datcollate, coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') FROM pg_database d"
    " WHERE d.datname = current_database()"
)

_known: dict[str, TextRules] = {}


def text_rules_of(connection: BaseDatabaseWrapper) -> TextRules:
    """
    Return how the database behind *connection* compares texts of columns without a collation of their own.

    SQLite compares bytes of UTF-8. PostgreSQL takes only equal texts for equal, and sorts by the locale that the
    database was made with. The collations of MySQL and MariaDB differ by column.
    """
    if connection.vendor == "sqlite":
        return _SQLITE
    if connection.vendor != "postgresql":
        return _MYSQL if connection.vendor == "mysql" else _UNKNOWN
    name = shared_database_name(connection)
    rules = _known.get(name)
    if rules is None:
        rules = _known[name] = _ask(connection)
    return rules


def _ask(connection: BaseDatabaseWrapper) -> TextRules:
    if connection.needs_rollback:
        return _EXACT
    try:
        connection.ensure_connection()
        with connection.wrap_database_errors, closing(connection.connection.cursor()) as cursor:
            cursor.execute(_SQL)
            (locale, provider) = cursor.fetchone()
    except Error:
        return _EXACT
    is_plain = provider == "c" and str(locale).lower() in _BY_CODE_POINT
    return _BINARY if is_plain else _EXACT
