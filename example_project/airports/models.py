"""Two tables: countries, and airports with a column of nearly every kind."""

from __future__ import annotations

from typing import ClassVar

from django.core.validators import MaxValueValidator, MinValueValidator, RegexValidator
from django.db import models

from live_cache import LiveManager

__all__ = ["Airport", "Country"]


class Country(models.Model):
    """A country or territory that has at least one airport in the source."""

    code = models.CharField(max_length=2, primary_key=True, help_text="ISO 3166-1 alpha-2 code, or XK for Kosovo")
    name = models.CharField(max_length=100)
    area = models.CharField(max_length=20, help_text="First part of the time zone that most of its airports have")
    is_in_iso_3166 = models.BooleanField(default=True)

    objects: ClassVar[LiveManager[Country]] = LiveManager()

    class Meta:
        ordering = ("name", "code")
        verbose_name_plural = "countries"

    def __str__(self) -> str:
        return self.name


class Airport(models.Model):
    """An airport or landing strip, as the ``airportsdata`` package describes it."""

    icao = models.CharField("ICAO", max_length=4, unique=True)
    iata = models.CharField(
        "IATA",
        max_length=3,
        unique=True,
        null=True,
        blank=True,
        validators=[RegexValidator(r"\A[A-Z]{3}\Z", "An IATA code is three capital letters.")],
    )
    name = models.CharField(max_length=100, db_index=True)
    city = models.CharField(max_length=100, blank=True)
    subdivision = models.CharField(max_length=100, blank=True, help_text="State, province or region")
    country = models.ForeignKey(Country, on_delete=models.PROTECT, related_name="airports")
    elevation_ft = models.DecimalField(
        "elevation (ft)",
        max_digits=7,
        decimal_places=1,
        validators=[MinValueValidator(-2000), MaxValueValidator(30000)],
        help_text="Feet above mean sea level",
    )
    latitude = models.DecimalField(max_digits=9, decimal_places=6)
    longitude = models.DecimalField(max_digits=9, decimal_places=6)
    solar_offset_h = models.FloatField(help_text="Hours that the sun is ahead of UTC: longitude / 15")
    timezone = models.CharField(max_length=40, blank=True)
    lid = models.CharField("FAA LID", max_length=7, unique=True, null=True, blank=True)
    has_iata = models.BooleanField()
    uuid = models.UUIDField(unique=True, editable=False, help_text="Version 5, from the ICAO code")
    source_row = models.PositiveIntegerField(null=True, editable=False, help_text="Row of the source file, from 1")
    loaded_on = models.DateField(null=True, editable=False)
    updated_at = models.DateTimeField(auto_now=True)
    details = models.JSONField(default=dict, blank=True)

    objects: ClassVar[LiveManager[Airport]] = LiveManager()

    class Meta:
        ordering = ("name", "pk")
        indexes = (
            models.Index(fields=["country", "name"], name="airport_country_name"),
            models.Index(fields=["elevation_ft"], name="airport_elevation"),
        )

    def __str__(self) -> str:
        return f"{self.name} ({self.icao})"
