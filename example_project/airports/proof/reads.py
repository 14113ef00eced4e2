"""The reads that the demonstration measures and compares, each as a live queryset and as a plain one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db.models import Avg, Count, Max, Min, QuerySet

from example_project.airports.models import Airport
from live_cache import live

__all__ = ["NamedRead", "Subject", "choose_subject", "named_reads"]

PAGE_ROWS = 50

Ask = Callable[[Callable[[QuerySet[Any]], Any]], Any]


@dataclass(frozen=True, slots=True)
class NamedRead:
    """One question, asked of the database through a wrapper around its queryset: live(), or nothing."""

    name: str
    ask: Ask

    def live(self) -> Any:
        """Return the answer through the cache. The queryset is built anew, as a request would."""
        return self.ask(live)

    def plain(self) -> Any:
        """Return the answer of the database."""
        return self.ask(lambda queryset: queryset)


@dataclass(frozen=True, slots=True)
class Subject:
    """What the reads are about: chosen from the data, so that a small load has something to show too."""

    country: str
    area: str
    airport_pk: int


def choose_subject() -> Subject:
    """
    Return the country with the most airports, its area, and the first airport of its first page.

    Raises:
        Airport.DoesNotExist: There are no airports.
    """
    largest = (
        Airport.objects.values("country", "country__area").annotate(n=Count("pk")).order_by("-n", "country").first()
    )
    if largest is None:
        raise Airport.DoesNotExist("There are no airports. Load them with: manage.py load_airports")
    first = Airport.objects.filter(country=largest["country"]).order_by("name", "pk").values_list("pk", flat=True)[0]
    return Subject(country=largest["country"], area=largest["country__area"], airport_pk=first)


def named_reads(subject: Subject) -> list[NamedRead]:
    """Return the reads, in the order of the report."""

    def of_country() -> QuerySet[Airport]:
        queryset: QuerySet[Airport] = Airport.objects.filter(country=subject.country)
        return queryset.order_by("name", "pk")

    def joined() -> QuerySet[Airport]:
        in_area: QuerySet[Airport] = Airport.objects.select_related("country").filter(country__area=subject.area)
        return in_area.order_by("country__name", "name", "pk")

    def page(number: int) -> NamedRead:
        rows = slice((number - 1) * PAGE_ROWS, number * PAGE_ROWS)
        return NamedRead(f"page {number} of {PAGE_ROWS} airports", lambda wrap: list(wrap(of_country())[rows]))

    numbers = {
        "n": Count("pk"),
        "mean_ft": Avg("elevation_ft"),
        "highest_ft": Max("elevation_ft"),
        "west": Min("longitude"),
    }
    return [
        page(1),
        page(2),
        page(3),
        NamedRead("count", lambda wrap: wrap(of_country()).count()),
        NamedRead("get by primary key", lambda wrap: wrap(Airport.objects.all()).get(pk=subject.airport_pk)),
        NamedRead("joined page with countries", lambda wrap: list(wrap(joined())[:PAGE_ROWS])),
        NamedRead("aggregate of a country", lambda wrap: wrap(of_country()).aggregate(**numbers)),
        NamedRead("airports by country", lambda wrap: list(wrap(_by_country()))),
    ]


def _by_country() -> QuerySet[Any]:
    grouped: QuerySet[Any] = Airport.objects.order_by("country").values("country")
    annotated: QuerySet[Any] = grouped.annotate(airports=Count("pk"), highest_ft=Max("elevation_ft"))
    return annotated
