"""
Settings of the test project.

Databases: ``default`` is SQLite in a file (memory databases cannot be shared with other processes); ``postgresql`` and
``mariadb`` exist when such a server is there (tests/servers.py looks for it). Names are unique for each run, so that
several runs may share a server.

A process started by the ``run_process`` fixture gets the databases, servers and settings of its parent in
``LIVE_CACHE_TEST_CHILD``.
"""

from __future__ import annotations

import atexit
import json
import os
import secrets
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from tests import servers

__all__: list[str] = []


HOST = "".join(c for c in socket.gethostname().lower() if c.isalnum())[:12]


def _run_directory() -> Path:
    """Make the directory of this run; the process that made it removes it when it ends."""
    owner = os.getpid()
    directory = tempfile.mkdtemp(prefix=f"live-cache-tests-{owner}-")

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(directory, ignore_errors=True)

    atexit.register(remove)
    return Path(directory)


_child: dict[str, Any] = json.loads(os.environ.get("LIVE_CACHE_TEST_CHILD", "{}"))
RUN_ID: str = _child.get("run_id") or f"{HOST}_{os.getpid()}_{secrets.token_hex(2)}"
SERVERS: dict[str, servers.Server] = {}
if _child:
    RUN_DIRECTORY = Path(_child["run_directory"])
    SERVERS = servers.discover()
elif "PYTEST_VERSION" in os.environ:
    RUN_DIRECTORY = _run_directory()
    SERVERS = servers.discover()
else:  # A tool that only imports the settings, such as mypy: it needs no servers and leaves nothing behind.
    RUN_DIRECTORY = Path(tempfile.gettempdir(), "live-cache-tests")

SECRET_KEY = "only for tests"
USE_TZ = True
TIME_ZONE = "Europe/Berlin"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
ROOT_URLCONF = "tests.urls"
ALLOWED_HOSTS = ["testserver", "localhost", "127.0.0.1"]
MEDIA_ROOT = str(RUN_DIRECTORY / "media")
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "django.contrib.sessions",
    "live_cache",
    "tests.testapp",
]

# Models without migrations cannot refer to models with migrations; and creating tables directly is quicker.
MIGRATION_MODULES: dict[str, str | None] = dict.fromkeys(("contenttypes", "auth", "sessions", "testapp"))

TEMPLATES = [{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}]

# Many tests hold a reader at a gate, and nobody has to wait for it longer. See the fixture default_fill_lease.
LIVE_CACHE_FILL_LEASE_S = 0.05

# The ledger of the process: the files of the host's ledger are tested where a test asks for them.
CACHES: dict[str, dict[str, Any]] = {
    "default": {"BACKEND": "live_cache.backend.LiveCache", "LOCATION": ["memory://?ledger=process"]},
}

DATABASES: dict[str, dict[str, Any]] = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": str(RUN_DIRECTORY / "db.sqlite3"),
        # The files live as long as the run: nothing has to reach the disk. Under WAL readers do not block writers,
        # so that races can be staged.
        "OPTIONS": {"timeout": 20, "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"},
        "TEST": {"NAME": str(RUN_DIRECTORY / "test_db.sqlite3")},
    },
}


def _server_database(server: servers.Server, engine: str, options: dict[str, Any]) -> dict[str, Any]:
    return {
        "ENGINE": engine,
        "NAME": "live_cache",
        "HOST": server.host,
        "PORT": server.port,
        "USER": server.user,
        "PASSWORD": server.password,
        "OPTIONS": options,
        # None on the others, so that a run may choose one database.
        "TEST": {"NAME": f"test_live_cache_{RUN_ID}", "DEPENDENCIES": []},
    }


if "postgresql" in SERVERS:
    DATABASES["postgresql"] = _server_database(
        SERVERS["postgresql"], "django.db.backends.postgresql", {"connect_timeout": 10}
    )

if "mariadb" in SERVERS:
    servers.install_pymysql()
    DATABASES["mariadb"] = _server_database(
        SERVERS["mariadb"],
        "django.db.backends.mysql",
        # PyMySQL would read all the certificates of the system for each connection, which takes 27 ms.
        {"charset": "utf8mb4", "connect_timeout": 10, "ssl_disabled": True},
    )

# The databases of the parent, under the names that they have now, and its overridden settings.
for _alias, _name in _child.get("databases", {}).items():
    DATABASES[_alias]["NAME"] = _name
for _setting, _value in _child.get("settings", {}).items():
    globals()[_setting] = _value
