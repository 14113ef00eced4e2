"""
What a queryset may ask for besides "never stale": to be fetched again early, and to serve older rows within a bound.

The bound counts from the last moment at which this process knew the rows to be right: when it looked at the ledger and
found the entry fresh, or when it began to fetch it. Rows that are served are right up to the commits that had returned
at that moment, so they are older than "never stale" allows by no more than the bound. The clock is the process's own
and only grows; no time that another host has written takes part, and a process that has never seen an entry fresh does
not serve it stale.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from live_cache.exceptions import FrameError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from live_cache.plan import Plan
    from live_cache.read_records import Rows
    from live_cache.rows import Entry, EntryHeader

__all__ = ["Leniency", "Sightings"]

_MAX_YOUNG: Final = 4096


@dataclass(frozen=True, slots=True)
class Leniency:
    """The options of live() that allow more than a plain miss or hit. All in seconds; None: not asked for."""

    refresh_after_s: float | None = None
    """Age at which one reader fetches an entry again, although it is fresh."""
    stale_while_revalidate_s: float | None = None
    """How old rows may be that are served while another reader fetches."""
    stale_if_error_s: float | None = None
    """How old rows may be that are served when the database answers with an error."""

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name.removesuffix('_s')} must be more than 0 seconds, not {value!r}.")

    @property
    def kept_s(self) -> float:
        """How much longer than its timeout an entry is kept, so that it can be served stale."""
        return max(self.stale_while_revalidate_s or 0.0, self.stale_if_error_s or 0.0)

    def wants_refresh(self, header: EntryHeader) -> bool:
        """Return whether an entry is so old that one reader fetches it again."""
        return self.refresh_after_s is not None and time.time_ns() - header.fetched_at_ns > self.refresh_after_s * 1e9


class Sightings:
    """
    When this process last knew an entry to be right, of the last 4,096 to 8,192 that were read with a leniency.

    Threads share it: a step is one operation of a dict. What is lost is an entry that is not served stale.
    """

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        # As in known_entries: the older generation is dropped as a whole.
        self._young: dict[tuple[str, int], float] = {}
        self._old: dict[tuple[str, int], float] = {}

    def note(self, entry_key: str, fetched_at_ns: int, at_s: float) -> None:
        """Remember that the entry that was fetched at *fetched_at_ns* was right *at_s*, by time.monotonic()."""
        seen = entry_key, fetched_at_ns
        self._young[seen] = max(at_s, self._young.get(seen, at_s))
        if len(self._young) >= _MAX_YOUNG:
            self._old, self._young = self._young, {}

    def forget(self, entry_key: str, fetched_at_ns: int) -> None:
        """Forget an entry whose rows turned out to be wrong."""
        self._young.pop((entry_key, fetched_at_ns), None)
        self._old.pop((entry_key, fetched_at_ns), None)

    def serve(self, plan: Plan, entries: Iterable[Entry], bound_s: float | None) -> tuple[Rows, EntryHeader] | None:
        """Return the youngest of *entries* that was right no longer than *bound_s* ago, or None."""
        if bound_s is None:
            return None
        earliest_s = time.monotonic() - bound_s
        for entry in sorted(entries, key=lambda each: each.header.fetched_at_ns, reverse=True):
            seen = plan.entry_key, entry.header.fetched_at_ns
            right_s = self._young.get(seen, self._old.get(seen))
            if right_s is None or right_s < earliest_s or entry.header.dependencies != plan.dependencies:
                continue
            try:
                return entry.rows(), entry.header
            except FrameError:
                continue
        return None
