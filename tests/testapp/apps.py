"""Configuration of the test app."""

from __future__ import annotations

from django.apps import AppConfig
from django.contrib.contenttypes.management import create_contenttypes
from django.db.models.signals import post_migrate

__all__ = ["TestAppConfig"]


class TestAppConfig(AppConfig):
    """Turns off the rows that migrate writes after each flush: they are most of the time of a transactional test."""

    name = "tests.testapp"
    label = "testapp"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Disconnect the writers of content types and permissions."""
        post_migrate.disconnect(create_contenttypes)
        post_migrate.disconnect(dispatch_uid="django.contrib.auth.management.create_permissions")
