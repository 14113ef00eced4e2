"""Django's entry point of the app."""

from __future__ import annotations

from django.apps import AppConfig

__all__ = ["AirportsConfig"]


class AirportsConfig(AppConfig):
    """Countries and airports."""

    name = "example_project.airports"
    default_auto_field = "django.db.models.BigAutoField"
    verbose_name = "Airports of the world"
