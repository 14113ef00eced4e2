"""What one page load cost: the live reads made for it, and the queries that reached the database."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from django.db import connection
from django.http import HttpRequest

from live_cache import disabled, recording

__all__ = ["OFF_COOKIE", "Badge", "QueryCounter", "is_cache_off", "measured"]

OFF_COOKIE: Final = "live_cache"
"""Cookie without an end date, so for this visit only; its value is ``off``."""

# Nearest first: a page load is as near as the farthest tier that it needed.
_TIERS: Final = ("memory", "disk", "redis")


@dataclass(slots=True)
class QueryCounter:
    """A wrapper for connection.execute_wrapper() that counts statements."""

    count: int = 0

    def __call__(self, execute: Callable[..., Any], sql: str, params: Any, many: bool, context: Any) -> Any:
        self.count += 1
        return execute(sql, params, many, context)


@dataclass(slots=True)
class Badge:
    """The live reads and the queries of one page load."""

    is_off: bool = False
    reads: list[Any] = field(default_factory=list)
    queries: QueryCounter = field(default_factory=QueryCounter)
    elapsed_us: float = 0.0

    @property
    def query_count(self) -> int:
        """How many statements reached the database."""
        return self.queries.count

    @property
    def hit_count(self) -> int:
        """How many live reads were served by a tier."""
        return sum(1 for read in self.reads if read.is_hit)

    @property
    def state(self) -> str:
        """``off``, ``hit`` (every read), ``miss`` (none), or ``partial``."""
        if self.is_off:
            return "off"
        if not self.reads or self.hit_count == 0:
            return "miss"
        return "hit" if self.hit_count == len(self.reads) else "partial"

    @property
    def tier(self) -> str:
        """The farthest place that was asked: a tier, or the database."""
        if self.state != "hit":
            return "database"
        return max(
            (read.tier or "" for read in self.reads), key=lambda tier: _TIERS.index(tier) if tier in _TIERS else 9
        )

    @property
    def duration_us(self) -> float:
        """Microseconds that all live reads took together."""
        return sum((read.duration_us for read in self.reads), 0.0) or self.elapsed_us


def is_cache_off(request: HttpRequest) -> bool:
    """Return whether this visitor has turned the cache off."""
    return request.COOKIES.get(OFF_COOKIE) == "off"


@contextmanager
def measured(request: HttpRequest) -> Iterator[Badge]:
    """Record what is read inside, with the cache turned off if the visitor wants it so."""
    badge = Badge(is_off=is_cache_off(request))
    with ExitStack() as stack:
        if badge.is_off:
            stack.enter_context(disabled())
        badge.reads = stack.enter_context(recording())
        stack.enter_context(connection.execute_wrapper(badge.queries))
        started_ns = time.perf_counter_ns()
        try:
            yield badge
        finally:
            badge.elapsed_us = (time.perf_counter_ns() - started_ns) / 1000
