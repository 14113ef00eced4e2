"""
The source of the data: the ``airportsdata`` package, and the country names of the tz database.

Nothing here is invented: columns that the source lacks are derived from what it has, or empty.
"""

from __future__ import annotations

import datetime as dt
import uuid
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import airportsdata
from django.db import transaction
from django.utils import timezone

from example_project.airports.models import Airport, Country

__all__ = ["NAMESPACE", "load_airports", "read_country_names", "remove_airports"]

# Published by the tz database (https://www.iana.org/time-zones) in the public domain.
COUNTRY_FILE = Path(__file__).parent / "data" / "iso3166.tab"
# Not in ISO 3166: the code and the name that airportsdata gives for it.
EXTRA_COUNTRIES = {"XK": "Kosovo"}
NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://pypi.org/project/airportsdata/")
BATCH_ROWS = 2000

Progress = Callable[[int, int], None]


def read_country_names() -> dict[str, str]:
    """Return the English names of ISO 3166-1 by their alpha-2 codes."""
    lines = COUNTRY_FILE.read_text(encoding="utf-8").splitlines()
    return {line[:2]: line[3:] for line in lines if line and not line.startswith("#")}


def load_airports(*, limit: int | None = None, progress: Progress | None = None) -> int:
    """
    Insert the countries and airports that are not there yet; rows that exist stay as they are.

    Args:
        limit: Take about this many airports, evenly spread over the source, so that a few are from many countries.
        progress: Called after each batch with the airports done and the airports to do.

    Returns:
        How many airports were inserted.
    """
    source = list(airportsdata.load("ICAO").values())
    with transaction.atomic():
        Country.objects.bulk_create(_countries(source), ignore_conflicts=True)
    step = max(1, len(source) // limit) if limit else 1
    chosen = [(number, row) for number, row in enumerate(source, start=1) if (number - 1) % step == 0][:limit]
    existing = set(Airport.objects.values_list("icao", flat=True))
    missing = [(number, row) for number, row in chosen if row["icao"] not in existing]
    cities = _multi_airport_cities()
    now = timezone.now()
    for start in range(0, len(missing), BATCH_ROWS):
        batch = missing[start : start + BATCH_ROWS]
        with transaction.atomic():
            Airport.objects.bulk_create([_airport(number, row, cities, now) for number, row in batch])
        if progress:
            progress(start + len(batch), len(missing))
    return len(missing)


def remove_airports() -> int:
    """Delete every airport and country. Return how many airports there were."""
    with transaction.atomic():
        count: int = Airport.objects.all().delete()[0]
        Country.objects.all().delete()
    return count


def _countries(source: list[Any]) -> Iterator[Country]:
    names = read_country_names()
    areas: dict[str, Counter[str]] = defaultdict(Counter)
    for row in source:
        areas[row["country"]][row["tz"].partition("/")[0]] += 1
    for code, counted in sorted(areas.items()):
        name = names.get(code) or EXTRA_COUNTRIES.get(code) or code
        yield Country(code=code, name=name, area=counted.most_common(1)[0][0], is_in_iso_3166=code in names)


def _multi_airport_cities() -> dict[str, dict[str, str]]:
    """Return IATA's metropolitan areas by the ICAO codes of their airports."""
    return {
        airport["icao"]: {"code": code, "name": city["name"]}
        for code, city in airportsdata.load_iata_macs().items()
        for airport in city["airports"].values()
    }


def _airport(number: int, row: Any, cities: Mapping[str, dict[str, str]], now: dt.datetime) -> Airport:
    details: dict[str, Any] = {"source": "airportsdata", "version": airportsdata.__version__}
    if row["icao"] in cities:
        details["multi_airport_city"] = cities[row["icao"]]
    return Airport(
        icao=row["icao"],
        iata=row["iata"] or None,
        name=row["name"],
        city=row["city"],
        subdivision=row["subd"],
        country_id=row["country"],
        elevation_ft=Decimal(str(row["elevation"])).quantize(Decimal("0.1")),
        latitude=Decimal(str(row["lat"])).quantize(Decimal("0.000001")),
        longitude=Decimal(str(row["lon"])).quantize(Decimal("0.000001")),
        solar_offset_h=row["lon"] / 15,
        timezone=row["tz"],
        lid=row["lid"] or None,
        has_iata=bool(row["iata"]),
        uuid=uuid.uuid5(NAMESPACE, row["icao"]),
        source_row=number,
        loaded_on=now.date(),
        updated_at=now,
        details=details,
    )
