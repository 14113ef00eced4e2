"""
Settings of the example project.

Four environment variables change them; ``manage.py demo`` sets them from its options:

- LIVE_CACHE_DEMO_DATABASE: URL of the database; default: a SQLite file in the directory;
- LIVE_CACHE_DEMO_REDIS: URL of a Redis that takes the place of the disk tier;
- LIVE_CACHE_DEMO_DIRECTORY: where files are kept; default ``var/`` beside manage.py;
- LIVE_CACHE_DEMO_HOST: name under which the server is reached, if it is not this machine's own.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from urllib.parse import quote

from django.core.exceptions import ImproperlyConfigured

from example_project.database_url import DatabaseUrlError, parse_database_url

BASE_DIR = Path(__file__).resolve().parent.parent
DIRECTORY = Path(os.environ.get("LIVE_CACHE_DEMO_DIRECTORY") or BASE_DIR / "var").resolve()

DATABASE_URL = os.environ.get("LIVE_CACHE_DEMO_DATABASE", "")
if not DATABASE_URL:
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    DATABASE_URL = f"sqlite:///{quote(str(DIRECTORY / 'airports.sqlite3'))}"
REDIS_URL = os.environ.get("LIVE_CACHE_DEMO_REDIS", "")

# A key, since signed cookies want one. It protects nothing: the example has no users and no secrets.
SECRET_KEY = "example-project-without-secrets"

# Off also on a developer's machine: with it on, Django keeps every statement, and the times shown would be wrong.
DEBUG = False
_HOST = os.environ.get("LIVE_CACHE_DEMO_HOST", "")
ALLOWED_HOSTS = (
    ["*"] if _HOST in {"0.0.0.0", "::", "*"} else ["127.0.0.1", "localhost", "[::1]", *filter(None, [_HOST])]
)

INSTALLED_APPS = [
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "live_cache",
    "example_project.airports",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
MESSAGE_STORAGE = "django.contrib.messages.storage.cookie.CookieStorage"
ROOT_URLCONF = "example_project.urls"
WSGI_APPLICATION = "example_project.wsgi.application"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

try:
    DATABASES = {"default": parse_database_url(DATABASE_URL)}
except DatabaseUrlError as error:
    raise ImproperlyConfigured(str(error)) from error
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Entries and clocks of one database mean nothing for another, and all of them are called "default" here.
_DATABASE_ID = hashlib.blake2b(DATABASE_URL.encode(), digest_size=6).hexdigest()
CACHES = {
    "default": {
        "BACKEND": "live_cache.backend.LiveCache",
        "LOCATION": ["memory://", REDIS_URL or f"disk://{quote(str(DIRECTORY))}/cache-{_DATABASE_ID}"],
        "TIMEOUT": None,
        "KEY_PREFIX": f"airports-{_DATABASE_ID}",
    },
}
# A clock that has just been made holds its table back for one lease, so a short one makes the first start short.
LIVE_CACHE_LEASE_S = 2.0

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
USE_I18N = False
STATIC_URL = "/static/"

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"stderr": {"class": "logging.StreamHandler"}},
    "loggers": {
        "django.request": {"handlers": ["stderr"], "level": "ERROR", "propagate": False},
        "live_cache": {"handlers": ["stderr"], "level": "WARNING", "propagate": False},
    },
}
