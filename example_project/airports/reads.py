"""The live querysets of the pages: the one place where this project asks for a cache."""

from __future__ import annotations

from django.db.models import Count, Q

from example_project.airports.models import Airport, Country
from example_project.airports.table import TableRequest
from live_cache import LiveQuerySet

__all__ = ["airport_by_icao", "airports", "countries"]


def countries() -> LiveQuerySet[Country]:
    """Return every country with how many airports it has, by area and name."""
    queryset: LiveQuerySet[Country] = Country.objects.annotate(airport_count=Count("airports"))
    return queryset.order_by("area", "name", "code").live()


def airports(wanted: TableRequest) -> LiveQuerySet[Airport]:
    """Return the airports that the table page asks for, with their countries; all pages of them."""
    queryset: LiveQuerySet[Airport] = Airport.objects.select_related("country").order_by(*wanted.ordering)
    if wanted.country:
        queryset = queryset.filter(country=wanted.country)
    if wanted.search:
        text = wanted.search
        queryset = queryset.filter(
            Q(name__icontains=text) | Q(city__icontains=text) | Q(iata__icontains=text) | Q(icao__icontains=text)
        )
    return queryset.live()


def airport_by_icao(icao: str) -> Airport:
    """
    Return one airport with its country.

    Raises:
        Airport.DoesNotExist: No airport has this code.
    """
    queryset: LiveQuerySet[Airport] = Airport.objects.select_related("country").live()
    return queryset.get(icao=icao)
