"""Settings of the process that runs one system: what varies comes in LIVE_CACHE_BENCH, as JSON (runs.py)."""

from __future__ import annotations

import importlib.util
import json
import os
from typing import Any

from benchmarks.project.systems import SYSTEMS
from tests import servers

__all__: list[str] = []

BENCH: dict[str, Any] = json.loads(os.environ["LIVE_CACHE_BENCH"])

SECRET_KEY = "only for benchmarks"
USE_TZ = True
TIME_ZONE = "UTC"  # any other one needs tables in MariaDB that are often not loaded
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
DATABASES: dict[str, Any] = {"default": BENCH["database"]}
INSTALLED_APPS = ["benchmarks.project"]
MIGRATION_MODULES: dict[str, None] = {"project": None}
if DATABASES["default"]["ENGINE"].endswith("mysql") and importlib.util.find_spec("MySQLdb") is None:
    servers.install_pymysql()
# Where the Redis fails on purpose, what the package says about it is no news.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {
        "live_cache": {
            "handlers": ["stderr"],
            "level": "CRITICAL" if BENCH.get("is_redis_failing") else "WARNING",
            "propagate": False,
        },
    },
}

globals().update(SYSTEMS[BENCH["system"]].settings(BENCH))
