"""The two tables of the example project."""

from __future__ import annotations

from typing import ClassVar

import django.core.validators
import django.db.models.deletion
from django.db import migrations, models
from django.db.migrations.operations.base import Operation


class Migration(migrations.Migration):
    initial = True

    dependencies: ClassVar[list[tuple[str, str]]] = []

    operations: ClassVar[list[Operation]] = [
        migrations.CreateModel(
            name="Country",
            fields=[
                (
                    "code",
                    models.CharField(
                        help_text="ISO 3166-1 alpha-2 code, or XK for Kosovo",
                        max_length=2,
                        primary_key=True,
                        serialize=False,
                    ),
                ),
                ("name", models.CharField(max_length=100)),
                (
                    "area",
                    models.CharField(
                        help_text="First part of the time zone that most of its airports have", max_length=20
                    ),
                ),
                ("is_in_iso_3166", models.BooleanField(default=True)),
            ],
            options={
                "verbose_name_plural": "countries",
                "ordering": ("name", "code"),
            },
        ),
        migrations.CreateModel(
            name="Airport",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
                ("icao", models.CharField(max_length=4, unique=True, verbose_name="ICAO")),
                (
                    "iata",
                    models.CharField(
                        blank=True,
                        max_length=3,
                        null=True,
                        unique=True,
                        validators=[
                            django.core.validators.RegexValidator(
                                "\\A[A-Z]{3}\\Z", "An IATA code is three capital letters."
                            )
                        ],
                        verbose_name="IATA",
                    ),
                ),
                ("name", models.CharField(db_index=True, max_length=100)),
                ("city", models.CharField(blank=True, max_length=100)),
                ("subdivision", models.CharField(blank=True, help_text="State, province or region", max_length=100)),
                (
                    "elevation_ft",
                    models.DecimalField(
                        decimal_places=1,
                        help_text="Feet above mean sea level",
                        max_digits=7,
                        validators=[
                            django.core.validators.MinValueValidator(-2000),
                            django.core.validators.MaxValueValidator(30000),
                        ],
                        verbose_name="elevation (ft)",
                    ),
                ),
                ("latitude", models.DecimalField(decimal_places=6, max_digits=9)),
                ("longitude", models.DecimalField(decimal_places=6, max_digits=9)),
                ("solar_offset_h", models.FloatField(help_text="Hours that the sun is ahead of UTC: longitude / 15")),
                ("timezone", models.CharField(blank=True, max_length=40)),
                ("lid", models.CharField(blank=True, max_length=7, null=True, unique=True, verbose_name="FAA LID")),
                ("has_iata", models.BooleanField()),
                ("uuid", models.UUIDField(editable=False, help_text="Version 5, from the ICAO code", unique=True)),
                (
                    "source_row",
                    models.PositiveIntegerField(editable=False, help_text="Row of the source file, from 1", null=True),
                ),
                ("loaded_on", models.DateField(editable=False, null=True)),
                ("updated_at", models.DateTimeField(auto_now=True)),
                ("details", models.JSONField(blank=True, default=dict)),
                (
                    "country",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, related_name="airports", to="airports.country"
                    ),
                ),
            ],
            options={
                "ordering": ("name", "pk"),
                "indexes": [
                    models.Index(fields=["country", "name"], name="airport_country_name"),
                    models.Index(fields=["elevation_ft"], name="airport_elevation"),
                ],
            },
        ),
    ]
