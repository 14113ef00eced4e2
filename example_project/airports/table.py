"""What the address of the table page asks for: country, search, order and page. Decisions without I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import urlencode

__all__ = ["MAX_SEARCH_CHARS", "PAGE_SIZE", "SORTS", "Column", "TableRequest", "TableRequestError"]

PAGE_SIZE: Final = 50
MAX_SEARCH_CHARS: Final = 80

# Every order ends in the primary key, so that rows with equal names never change places between two pages. A field with
# a minus keeps its direction when the order is reversed: rows without an IATA code come last either way.
SORTS: Final[Mapping[str, tuple[str, ...]]] = {
    "name": ("name", "pk"),
    "icao": ("icao",),
    "iata": ("-has_iata", "iata", "pk"),
    "city": ("city", "name", "pk"),
    "country": ("country__name", "name", "pk"),
    "elevation": ("elevation_ft", "pk"),
    "updated": ("updated_at", "pk"),
}
_LABELS: Final[Mapping[str, str]] = {
    "name": "Name",
    "icao": "ICAO",
    "iata": "IATA",
    "city": "City",
    "country": "Country",
    "elevation": "Elevation",
    "updated": "Updated",
}


class TableRequestError(ValueError):
    """The address asks for something that does not exist. The message says what exists."""

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True, slots=True)
class Column:
    """A heading that sorts."""

    label: str
    query: str
    """Query string that sorts by it, or the other way round if it does already."""
    aria_sort: str
    """ascending, descending or none."""
    css: str


@dataclass(frozen=True, slots=True)
class TableRequest:
    """A table page as its query string names it."""

    country: str = ""
    search: str = ""
    sort: str = "name"
    page: int = 1

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> TableRequest:
        """
        Return what *query* asks for.

        Raises:
            TableRequestError: The order is not one of SORTS, the search is too long (400), or the page is no number
                from 1 (404). Whether the country exists, and how many pages there are, only the data can tell.
        """
        sort = query.get("sort", "") or "name"
        if sort.removeprefix("-") not in SORTS:
            choice = ", ".join(sorted(SORTS))
            raise TableRequestError(
                f"There is no order “{sort}”. Use one of {choice}, or -name to reverse.", status=400
            )
        search = query.get("q", "").strip().replace("\x00", "")
        if len(search) > MAX_SEARCH_CHARS:
            raise TableRequestError(f"Search for at most {MAX_SEARCH_CHARS} characters.", status=400)
        page = query.get("page", "") or "1"
        if not (page.isascii() and page.isdigit() and len(page) < 10 and int(page) > 0):
            raise TableRequestError(f"There is no page “{page}”. Pages are counted from 1.", status=404)
        return cls(country=query.get("country", "").strip().upper(), search=search, sort=sort, page=int(page))

    @property
    def ordering(self) -> tuple[str, ...]:
        """The arguments of order_by()."""
        fields = SORTS[self.sort.removeprefix("-")]
        if not self.sort.startswith("-"):
            return fields
        return tuple(field if field.startswith("-") else f"-{field}" for field in fields)

    @property
    def query(self) -> str:
        """The query string that parse() turns into this; without what is usual."""
        usual = TableRequest()
        pairs = {"country": self.country, "q": self.search, "sort": self.sort, "page": self.page}
        defaults = {"country": usual.country, "q": usual.search, "sort": usual.sort, "page": usual.page}
        return urlencode({name: value for name, value in pairs.items() if value != defaults[name]})

    def at_page(self, page: int) -> str:
        """Return the query string of another page of the same table."""
        return replace(self, page=page).query

    def columns(self) -> list[Column]:
        """Return the headings, in the order of the table."""
        found = []
        for name, label in _LABELS.items():
            is_ascending = self.sort == name
            aria_sort = "ascending" if is_ascending else "descending" if self.sort == f"-{name}" else "none"
            changed = replace(self, sort=f"-{name}" if is_ascending else name, page=1)
            found.append(Column(label=label, query=changed.query, aria_sort=aria_sort, css=name))
        return found
