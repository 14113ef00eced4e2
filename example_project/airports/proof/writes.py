"""Every kind of write, each on rows that the reads show; and how to put everything back."""

from __future__ import annotations

import datetime as dt
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from django.db import connection, transaction
from django.db.models import F

from example_project.airports.models import Airport, Country
from example_project.airports.proof.reads import Subject
from example_project.airports.source import NAMESPACE

__all__ = ["WRITES", "Write", "everything_put_back"]

# Codes that the source cannot have: its codes hold no spaces.
OWN_CODES = ("  01", "  02", "  03")
OWN_NAME = "  A row of the demonstration"


@dataclass(frozen=True, slots=True)
class Write:
    """One write, and whether anything is different after it."""

    name: str
    run: Callable[[Subject], None]
    is_visible: bool = True
    """False for the write that is rolled back: every read must say what it said before."""


def _save(subject: Subject) -> None:
    airport = Airport.objects.get(pk=subject.airport_pk)
    airport.name = f" {airport.name[:90]}"
    airport.elevation_ft += Decimal("1.5")
    airport.save()


def _update(subject: Subject) -> None:
    Airport.objects.filter(pk=subject.airport_pk).update(city="Changed by update()", elevation_ft=F("elevation_ft") + 1)


def _bulk_update(subject: Subject) -> None:
    airports = list(Airport.objects.filter(country=subject.country).order_by("name", "pk")[:3])
    for airport in airports:
        airport.subdivision = "Changed by bulk_update()"
        airport.details = {**airport.details, "changed": [1, 2.5, None, True]}
    Airport.objects.bulk_update(airports, ["subdivision", "details"])


def _bulk_create(subject: Subject) -> None:
    Airport.objects.bulk_create(
        Airport(
            icao=code,
            name=f"{OWN_NAME} {code.strip()}",
            country_id=subject.country,
            elevation_ft=Decimal("12.5"),
            latitude=Decimal("1.250000"),
            longitude=Decimal("-2.500000"),
            solar_offset_h=-2.5 / 15,
            has_iata=False,
            uuid=uuid.uuid5(NAMESPACE, code),
            loaded_on=dt.date(2000, 2, 29),
        )
        for code in OWN_CODES
    )


def _change_foreign_key(subject: Subject) -> None:
    other = Country.objects.exclude(code=subject.country).order_by("code")[0]
    airport = Airport.objects.get(icao=OWN_CODES[0])
    airport.country = other
    airport.save(update_fields=["country"])


def _delete_one(subject: Subject) -> None:
    Airport.objects.get(icao=OWN_CODES[1]).delete()


def _delete_many(subject: Subject) -> None:
    Airport.objects.filter(icao__in=OWN_CODES).delete()


def _save_related(subject: Subject) -> None:
    country = Country.objects.get(pk=subject.country)
    country.name = f" {country.name[:90]}"
    country.save()


def _raw_sql(subject: Subject) -> None:
    table = connection.ops.quote_name(Airport._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET elevation_ft = elevation_ft + 2 WHERE id = %s", [subject.airport_pk])


class _RollbackError(Exception):
    """Ends the transaction that must leave nothing behind."""


def _roll_back(subject: Subject) -> None:
    try:
        with transaction.atomic():
            Airport.objects.filter(country=subject.country).update(name="Rolled back", elevation_ft=0)
            Airport.objects.filter(pk=subject.airport_pk).delete()
            raise _RollbackError
    except _RollbackError:
        pass


WRITES = [
    Write("save()", _save),
    Write("update()", _update),
    Write("bulk_update()", _bulk_update),
    Write("bulk_create()", _bulk_create),
    Write("foreign key changed", _change_foreign_key),
    Write("instance.delete()", _delete_one),
    Write("queryset.delete()", _delete_many),
    Write("save() of the joined country", _save_related),
    Write("raw cursor.execute()", _raw_sql),
    Write("rolled-back transaction", _roll_back, is_visible=False),
]


@contextmanager
def everything_put_back(subject: Subject) -> Iterator[None]:
    """Give every row that the writes change its old values again, and delete those that they made."""
    Airport.objects.filter(icao__in=OWN_CODES).delete()  # of a run that was killed
    first = list(Airport.objects.filter(country=subject.country).order_by("name", "pk").values()[:3])
    country: dict[str, Any] = Country.objects.values().get(pk=subject.country)
    try:
        yield
    finally:
        with transaction.atomic():
            Airport.objects.filter(icao__in=OWN_CODES).delete()
            for row in first:
                Airport.objects.filter(pk=row["id"]).update(
                    **{name: value for name, value in row.items() if name != "id"}
                )
            Country.objects.filter(pk=subject.country).update(name=country["name"])
