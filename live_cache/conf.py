"""
The settings of the package, read at each access, so that ``override_settings`` just works.

The only importer of ``django.conf.settings``. docs/reference/settings.md describes each; checks.py validates them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal, cast

from django.conf import settings as django_settings
from django.utils.functional import empty

__all__ = ["DEFAULTS", "Settings", "settings"]

DEFAULTS: Final[Mapping[str, Any]] = {
    "LIVE_CACHE_ENABLED": True,
    "LIVE_CACHE_FILL_LEASE_S": 5.0,
    "LIVE_CACHE_LEASE_S": 10.0,
    "LIVE_CACHE_LISTEN": (),
    "LIVE_CACHE_MAX_LAG_MS": 100,
    "LIVE_CACHE_ON_LEDGER_LOSS": "serve",
    "LIVE_CACHE_PRECISE": True,
    "LIVE_CACHE_REPLICAS": {},
    "LIVE_CACHE_TENANT": None,
    "LIVE_CACHE_UNMANAGED_TABLES": {},
    "LIVE_CACHE_UNWATCHED_LEASE_S": 0.0,
    "LIVE_CACHE_VERIFY": (),
    "LIVE_CACHE_VERIFY_RATE": 0.0,
    "LIVE_CACHE_WRITING_FUNCTIONS": (),
}
"""Every setting of the package, with its default."""


_LAZY: Final[Mapping[str, Any]] = vars(django_settings)
"""Emptied and filled again when the settings change, but never another one."""


class Settings:
    """Typed view of the LIVE_CACHE_* settings."""

    @property
    def enabled(self) -> bool:
        """LIVE_CACHE_ENABLED: False sends every live read to the database; writes are still recorded."""
        return bool(self.raw("LIVE_CACHE_ENABLED"))

    @property
    def fill_lease_s(self) -> float:
        """LIVE_CACHE_FILL_LEASE_S: seconds that a reader waits at most for another one's fetch; 0: nobody waits."""
        return float(self.raw("LIVE_CACHE_FILL_LEASE_S"))

    @property
    def lease_s(self) -> float:
        """LIVE_CACHE_LEASE_S: seconds that a change may stand between its declaration and its tick."""
        return float(self.raw("LIVE_CACHE_LEASE_S"))

    @property
    def listen(self) -> Collection[str]:
        """LIVE_CACHE_LISTEN: databases whose outboxes are listened to by a thread of each process that serves."""
        return cast("Collection[str]", self.raw("LIVE_CACHE_LISTEN"))

    @property
    def max_lag_s(self) -> float:
        """LIVE_CACHE_MAX_LAG_MS, in seconds: how old the copy of the ledger may be that bounded reads rely on."""
        return float(self.raw("LIVE_CACHE_MAX_LAG_MS")) / 1000

    @property
    def on_ledger_loss(self) -> Literal["serve", "refuse"]:
        """LIVE_CACHE_ON_LEDGER_LOSS: whether a commit goes on while the ledger is out of reach."""
        return cast("Literal['serve', 'refuse']", self.raw("LIVE_CACHE_ON_LEDGER_LOSS"))

    @property
    def precise(self) -> bool:
        """LIVE_CACHE_PRECISE: False tells each write as one of its whole table, without looking at the rows."""
        return bool(self.raw("LIVE_CACHE_PRECISE"))

    @property
    def replicas(self) -> Mapping[str, str]:
        """LIVE_CACHE_REPLICAS: database aliases that are only read, each with the alias that writes its database."""
        return cast("Mapping[str, str]", self.raw("LIVE_CACHE_REPLICAS"))

    @property
    def tenant(self) -> Callable[[str], str] | None:
        """LIVE_CACHE_TENANT: callable from a database alias to the tenant of this moment; part of every name."""
        return cast("Callable[[str], str] | None", self.raw("LIVE_CACHE_TENANT"))

    @property
    def unmanaged_tables(self) -> Mapping[str, Iterable[str]]:
        """LIVE_CACHE_UNMANAGED_TABLES: views and tables of no managed model, each with the tables that it reads."""
        return cast("Mapping[str, Iterable[str]]", self.raw("LIVE_CACHE_UNMANAGED_TABLES"))

    @property
    def unwatched_lease_s(self) -> float:
        """LIVE_CACHE_UNWATCHED_LEASE_S: seconds that a newborn clock is held, so that writers need not always ask."""
        return float(self.raw("LIVE_CACHE_UNWATCHED_LEASE_S"))

    @property
    def verify(self) -> Sequence[str | Callable[[], Any]]:
        """LIVE_CACHE_VERIFY: what ``manage.py live_cache verify`` reads, as functions or dotted paths of them."""
        return cast("Sequence[str | Callable[[], Any]]", self.raw("LIVE_CACHE_VERIFY"))

    @property
    def verify_rate(self) -> float:
        """LIVE_CACHE_VERIFY_RATE: the share of hits, from 0 to 1, that are compared with the database."""
        return float(self.raw("LIVE_CACHE_VERIFY_RATE"))

    @property
    def writing_functions(self) -> Mapping[str, Iterable[str]] | Collection[str]:
        """LIVE_CACHE_WRITING_FUNCTIONS: database functions that write; a mapping tells which tables."""
        return cast("Mapping[str, Iterable[str]] | Collection[str]", self.raw("LIVE_CACHE_WRITING_FUNCTIONS"))

    @property
    def caches(self) -> Mapping[str, Mapping[str, Any]]:
        """CACHES, as Django knows it."""
        return cast("Mapping[str, Mapping[str, Any]]", django_settings.CACHES)

    def raw(self, name: str) -> Any:
        """Return the value of a LIVE_CACHE_* setting as it was given, or its default."""
        # Around LazySettings (private; read in Django 5.2.19 and 6.1.3), which takes ten times as long to say that it
        # has no such setting.
        holder = _LAZY["_wrapped"]
        return getattr(django_settings if holder is empty else holder, name, DEFAULTS[name])

    def unknown(self) -> list[str]:
        """Return the names of LIVE_CACHE_* settings that were given and that nothing reads."""
        return sorted(name for name in dir(django_settings) if name.startswith("LIVE_CACHE_") and name not in DEFAULTS)


settings = Settings()
