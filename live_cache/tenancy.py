"""
Whose rows a read sees, as bytes that are part of each key: the database user, and the tenant of this moment.

Clocks do not hold the tenant: a write must be heard by all who may see the row, and a table may be shared by tenants.
So a write of one tenant can cost another one a fetch, and never leave it an old row.
"""

from __future__ import annotations

import logging
import os
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from live_cache.conf import settings
from live_cache.exceptions import UncachableQueryError

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["isolation_parts", "switches_by_itself"]

logger = logging.getLogger("live_cache.read")


def isolation_parts(connection: BaseDatabaseWrapper) -> tuple[bytes, bytes]:
    """
    Return the database user and the tenant, as bytes that are equal only for the same ones.

    Raises:
        UncachableQueryError: There is no tenant now, or it cannot be known.
    """
    return _user_of(connection).encode("utf-8", "surrogatepass"), _tenant_of(connection)


@lru_cache(maxsize=64)
def switches_by_itself(backend: Any) -> bool:
    """
    Return whether connections of the class *backend* may choose a schema each time they make a cursor.

    django-tenants and its like send SET search_path by the driver, in a _cursor() of their own (private; Django's was
    read in 5.2.19 and 6.1.3), where no execute wrapper sees it.
    """
    return any("_cursor" in vars(base) and not base.__module__.startswith("django.") for base in backend.__mro__)


def _user_of(connection: BaseDatabaseWrapper) -> str:
    """Return the user as whom the database is asked: row policies, "$user" and privileges look at it."""
    if connection.vendor == "sqlite":
        return ""
    user = connection.settings_dict["USER"]
    if user:
        return f"name {user}"
    # The driver then takes these. Two processes that get one user in two ways share no entries, and lose nothing else.
    uid = os.geteuid() if hasattr(os, "geteuid") else ""
    return f"none {os.environ.get('PGUSER', '')} of {uid}"


def _tenant_of(connection: BaseDatabaseWrapper) -> bytes:
    tenant = settings.tenant
    if tenant is None:
        backend: Any = type(connection)
        if switches_by_itself(backend):
            raise UncachableQueryError(
                f"The database backend {backend.__module__} may choose another schema for each cursor; "
                "LIVE_CACHE_TENANT must say which."
            )
        return b""
    try:
        name = tenant(connection.alias)
    except Exception as error:  # a function of the project may raise anything
        logger.warning("LIVE_CACHE_TENANT has raised, so a read does without the cache.", exc_info=True)
        raise UncachableQueryError(f"LIVE_CACHE_TENANT has raised {error!r}.") from error
    if name is None:
        raise UncachableQueryError("LIVE_CACHE_TENANT says that there is no tenant now.")
    if not isinstance(name, str):
        raise UncachableQueryError(f"LIVE_CACHE_TENANT returned {name!r}, which is no text.")
    return b"=" + name.encode("utf-8", "surrogatepass")  # so that an empty name is not the same as no setting
