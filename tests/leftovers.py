"""Removes what killed runs of this host left behind: directories, and databases on servers that are not ours."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from tests import servers

__all__ = ["is_alive", "remove_leftovers"]


def is_alive(pid: int) -> bool:
    """Return whether a process of this host has that number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_leftover(name: str, prefix: str, separator: str) -> bool:
    pid = name.removeprefix(prefix).partition(separator)[0]
    return name.startswith(prefix) and pid.isdigit() and not is_alive(int(pid))


def _remove_databases(server: servers.Server, prefix: str) -> None:
    with servers.connect(server) as connection, connection.cursor() as cursor:
        catalog = "SELECT datname FROM pg_database" if server.kind == "postgresql" else "SHOW DATABASES"
        cursor.execute(catalog)
        for (name,) in cursor.fetchall():
            if _is_leftover(str(name), prefix, "_"):
                cursor.execute(f"DROP DATABASE IF EXISTS {name}")


def remove_leftovers(host: str) -> None:
    """
    Remove what belongs to runs whose process is gone.

    Args:
        host: Name of this host as it stands in the names of test databases.
    """
    prefix = "live-cache-tests-"
    for directory in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        if _is_leftover(directory.name, prefix, "-"):
            shutil.rmtree(directory, ignore_errors=True)
    for kind, server in servers.discover().items():
        if kind != "redis":
            _remove_databases(server, f"test_live_cache_{host}_")
