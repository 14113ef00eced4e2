"""A database named by one URL, as ``--database`` and LIVE_CACHE_DEMO_DATABASE take it."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["EXAMPLES", "DatabaseUrlError", "parse_database_url"]

EXAMPLES = "sqlite:///path/to/file, postgres://user:password@host:5432/name, mysql://user:password@host:3306/name"

_ENGINES = {
    "sqlite": "django.db.backends.sqlite3",
    "postgres": "django.db.backends.postgresql",
    "postgresql": "django.db.backends.postgresql",
    "mysql": "django.db.backends.mysql",
    "mariadb": "django.db.backends.mysql",
}

# WAL lets the threads of the server read while one writes. A transaction that takes its lock at the start waits for
# the other writer; one that takes it at its first write can only fail with "database is locked".
_SQLITE_OPTIONS = {"init_command": "PRAGMA journal_mode=WAL", "transaction_mode": "IMMEDIATE", "timeout": 20}


class DatabaseUrlError(ValueError):
    """The URL names no database that the example project can use. The message says what it can use."""


def parse_database_url(url: str) -> dict[str, Any]:
    """
    Return *url* as an entry of DATABASES.

    ``sqlite:///relative/path`` is relative to the working directory, ``sqlite:////absolute/path`` is not.

    Raises:
        DatabaseUrlError: The scheme is unknown, the name of the database is missing, the port is wrong, or no
            driver is installed.
    """
    parts = urlsplit(url)
    shown = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()  # a password goes into no message
    engine = _ENGINES.get(parts.scheme)
    if engine is None:
        raise DatabaseUrlError(f"The database URL {shown!r} has the unknown scheme {parts.scheme!r}. Use {EXAMPLES}.")
    name = unquote(parts.path.removeprefix("/"))
    if not name:
        raise DatabaseUrlError(f"The database URL {shown!r} names no database. Use {EXAMPLES}.")
    if parts.scheme == "sqlite":
        if parts.netloc:
            raise DatabaseUrlError(
                f"The database URL {shown!r} has a host; SQLite needs three slashes: sqlite:///path."
            )
        return {"ENGINE": engine, "NAME": name, "OPTIONS": dict(_SQLITE_OPTIONS)}
    try:
        port = parts.port
    except ValueError as error:
        raise DatabaseUrlError(f"The database URL {shown!r} has a port that is no number up to 65535.") from error
    _require_driver(url, engine)
    database: dict[str, Any] = {
        "ENGINE": engine,
        "NAME": name,
        "HOST": parts.hostname or "",
        "PORT": str(port) if port else "",
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        # A request takes its connection from the last one of its thread, as a site in earnest would.
        "CONN_MAX_AGE": 60,
    }
    if engine.endswith("mysql"):
        database["OPTIONS"] = {"charset": "utf8mb4"}
    return database


def _require_driver(url: str, engine: str) -> None:
    """Raise if no driver of *engine* is installed, and let PyMySQL take the place of mysqlclient."""
    names = ("psycopg", "psycopg2") if engine.endswith("postgresql") else ("MySQLdb", "pymysql")
    found = next((name for name in names if importlib.util.find_spec(name)), None)
    if found is None:
        wheel = "psycopg[binary]" if names[0] == "psycopg" else "pymysql"
        raise DatabaseUrlError(
            f"No driver for {url.partition(':')[0]} is installed. Run: python -m pip install {wheel}"
        )
    if found == "pymysql":
        importlib.import_module("pymysql").install_as_MySQLdb()
