"""A database for one run: created, and dropped at the end."""

from __future__ import annotations

import importlib
import importlib.util
import os
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from benchmarks.project.errors import BenchmarkError
from example_project.database_url import DatabaseUrlError, parse_database_url
from tests import server_programs, servers

__all__ = ["OwnPostgresql", "database"]

# A transaction that takes its lock at the start waits for the other writer; one that takes it at its first write can
# only fail.
_SQLITE_OPTIONS = {"transaction_mode": "IMMEDIATE", "timeout": 30}


@contextmanager
def database(choice: str, directory: Path, *, is_durable: bool = False) -> Iterator[dict[str, Any]]:
    """
    Create a database, yield its entry of DATABASES, and drop it.

    Args:
        choice: ``sqlite``, ``postgresql`` or ``mariadb`` (a server that tests/servers.py finds), or the URL of a
            server; the database that the URL names is not touched.
        is_durable: Whether SQLite writes as it does on a site that wants to keep its data. Servers do what they are
            set up to do.

    Raises:
        BenchmarkError: There is no such server, or it cannot be used.
    """
    if choice == "sqlite":
        name = str(directory / "bench.sqlite3")
        # Where nothing is timed, nothing has to reach the disk.
        pragmas = f"PRAGMA journal_mode=WAL; PRAGMA synchronous={'NORMAL' if is_durable else 'OFF'}"
        options = {**_SQLITE_OPTIONS, "init_command": pragmas}
        yield {"ENGINE": "django.db.backends.sqlite3", "NAME": name, "OPTIONS": options}
        return
    config = _config(choice)
    maintenance = config["NAME"]
    config["NAME"] = f"live_cache_bench_{os.getpid()}_{secrets.token_hex(3)}"
    try:
        _administer(config, maintenance, f"CREATE DATABASE {config['NAME']}")
    except Exception as error:  # each driver has errors of its own
        raise BenchmarkError(f"The database {choice!r} cannot be used: {error}") from error
    try:
        yield config
    finally:
        force = " WITH (FORCE)" if config["ENGINE"].endswith("postgresql") else ""
        _administer(config, maintenance, f"DROP DATABASE IF EXISTS {config['NAME']}{force}")


class OwnPostgresql:
    """
    A PostgreSQL of the run alone, which may crash.

    Raises:
        BenchmarkError: There are no programs to start one.
    """

    def __init__(self) -> None:
        programs = next(server_programs.installed("postgresql"), None)
        if programs is None:
            raise BenchmarkError("There is no PostgreSQL on this machine that could be started and killed.")
        self._server = programs.start()
        self.config = {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "HOST": "127.0.0.1",
            "PORT": str(self._server.port),
            "USER": self._server.user,
            # What was answered must survive the crash.
            "OPTIONS": {"options": "-c synchronous_commit=on"},
        }

    def restart(self) -> None:
        """End the server and all its connections at once, and start it again: it recovers what was committed."""
        self._server.crash()
        self._server.start_again()

    def close(self) -> None:
        """Stop the server."""
        self._server.stop(kill=True)


def _config(choice: str) -> dict[str, Any]:
    if choice not in {"postgresql", "mariadb"}:
        try:
            config = parse_database_url(choice)
        except DatabaseUrlError as error:
            raise BenchmarkError(str(error)) from error
        if config["ENGINE"].endswith("sqlite3"):
            raise BenchmarkError("The program makes its own SQLite file: --database sqlite")
        return config
    server = servers.discover().get(choice)
    if server is None:
        raise BenchmarkError(f"{choice} is missing: {servers.MISSING[choice].reason}")
    is_postgresql = choice == "postgresql"
    return {
        "ENGINE": "django.db.backends.postgresql" if is_postgresql else "django.db.backends.mysql",
        "NAME": "postgres" if is_postgresql else "",
        "HOST": server.host,
        "PORT": str(server.port),
        "USER": server.user,
        "PASSWORD": server.password,
        "OPTIONS": {} if is_postgresql else {"charset": "utf8mb4"},
    }


def _administer(config: dict[str, Any], maintenance: str, sql: str) -> None:
    """Run one statement outside the database of the run, in autocommit."""
    host, port = config["HOST"] or "127.0.0.1", config["PORT"]
    if config["ENGINE"].endswith("postgresql"):
        import psycopg

        with psycopg.connect(
            host=host,
            port=port or 5432,
            user=config["USER"] or None,
            password=config["PASSWORD"] or None,
            dbname=maintenance,
            autocommit=True,
        ) as postgresql:
            postgresql.execute(sql.encode())
        return
    if importlib.util.find_spec("MySQLdb") is None:
        servers.install_pymysql()
    driver = importlib.import_module("MySQLdb")  # mysqlclient, or PyMySQL in its place
    with closing(
        driver.connect(host=host, port=int(port or 3306), user=config["USER"], password=config["PASSWORD"])
    ) as mariadb:
        mariadb.cursor().execute(sql)
        mariadb.commit()
