"""
The settings of the package, read at each access, so that ``override_settings`` just works.

The only importer of ``django.conf.settings``. docs/reference/settings.md describes each; checks.py validates them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

from django.conf import settings as django_settings

__all__ = ["Settings", "settings"]


class Settings:
    """Typed view of the LIVE_CACHE_* settings."""

    @property
    def enabled(self) -> bool:
        """LIVE_CACHE_ENABLED: False sends every live read to the database; writes are still recorded."""
        return bool(getattr(django_settings, "LIVE_CACHE_ENABLED", True))

    @property
    def lease_s(self) -> float:
        """LIVE_CACHE_LEASE_S: seconds that a change may stand between its declaration and its tick."""
        return float(getattr(django_settings, "LIVE_CACHE_LEASE_S", 10.0))

    @property
    def on_ledger_loss(self) -> Literal["serve", "refuse"]:
        """LIVE_CACHE_ON_LEDGER_LOSS: whether a commit goes on while the ledger is out of reach."""
        value = getattr(django_settings, "LIVE_CACHE_ON_LEDGER_LOSS", "serve")
        return cast("Literal['serve', 'refuse']", value)

    @property
    def tenant(self) -> Callable[[str], str] | None:
        """LIVE_CACHE_TENANT: callable from a database alias to the tenant of this moment; part of every name."""
        return cast("Callable[[str], str] | None", getattr(django_settings, "LIVE_CACHE_TENANT", None))

    @property
    def caches(self) -> Mapping[str, Mapping[str, Any]]:
        """CACHES, as Django knows it."""
        return cast("Mapping[str, Mapping[str, Any]]", django_settings.CACHES)


settings = Settings()
