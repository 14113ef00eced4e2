"""Which dialect a database speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from live_cache.exceptions import ConfigurationError
from live_cache.outbox.mysql import MysqlDialect
from live_cache.outbox.postgresql import PostgresqlDialect
from live_cache.outbox.sqlite import SqliteDialect

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.outbox.dialect import Dialect

__all__ = ["dialect_of"]

_DIALECTS: Final[dict[str, Dialect]] = {
    dialect.vendor: dialect for dialect in (MysqlDialect(), PostgresqlDialect(), SqliteDialect())
}


def dialect_of(connection: BaseDatabaseWrapper) -> Dialect:
    """
    Return how *connection* holds an outbox.

    Raises:
        ConfigurationError: Databases of its kind have none here.
    """
    try:
        return _DIALECTS[connection.vendor]
    except KeyError:
        raise ConfigurationError(
            f"The database {connection.alias!r} is of the kind {connection.vendor!r}; triggers are made for "
            f"{', '.join(sorted(_DIALECTS))}."
        ) from None
