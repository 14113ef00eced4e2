"""
Judging an entry with link sets: what a verdict wants to know of other tables, it reads as any live result is read.

docs/explanation/consistency.md, "Link sets", has the argument. What matters here is the order of three steps: the entry
was found, the sets are read, the clocks are read anew; and the verdict is given on these last readings.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from django.db import Error

from live_cache.exceptions import UncachableQueryError
from live_cache.ledger.clocks import Dependency, Reading, Stamp, is_fresh
from live_cache.loop import leave_loop
from live_cache.plan import Plan, make_plan
from live_cache.read_records import MISS_REASONS, Result, Rows, unrecorded
from live_cache.shapes.links import MAX_VALUES, Link
from live_cache.verification import uncollected
from live_cache.writes.engines import tables_without_rollback
from live_cache.writes.transactions import state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.shapes.witness import EntryWitness

__all__ = ["LinkReader", "judge"]

logger = logging.getLogger("live_cache.read")

_SUFFIX: Final = f"links_{MAX_VALUES}"


def judge(
    stamps: Sequence[Stamp],
    readings: list[Reading],
    dependencies: Sequence[Dependency],
    witness: EntryWitness,
    *,
    read_set: Callable[[Link], Iterable[Any] | None],
    read_clocks: Callable[[], list[Reading]],
) -> tuple[bool, list[Reading]]:
    """
    Return whether an entry may be served, and the readings that this was found under. See clocks.is_fresh().

    A verdict that wants link sets is no verdict: it is given again once they are known, under readings that were
    requested after them. A change of the linked table that the sets do not show yet, or show already, is in these.

    Args:
        readings: The clocks, requested after the read began.
        read_set: Returns the values of a link set, as they are in some state of the database after the call; None if
            they are not to be known.
        read_clocks: Requests the readings anew.
    """
    while True:
        witness.links.take_wanted()
        if not is_fresh(stamps, readings, dependencies, witness):
            return False, readings
        wanted = witness.links.take_wanted()
        if not wanted:
            return True, readings
        for link in wanted:  # each is wanted once, so this ends
            witness.links.learn(link, read_set(link))
        readings = read_clocks()


@dataclass(frozen=True, slots=True)
class LinkReader:
    """Reads link sets on one connection, each as any live result is read."""

    assembly: Assembly
    connection: BaseDatabaseWrapper
    read: Callable[[Plan, Callable[[], Rows]], Result]
    """Reads the rows of a plan through the cache; takes what runs its SELECT."""

    def values(self, link: Link) -> list[Any] | None:
        """
        Return the values of the link set, or None if they are not to be known.

        Raises:
            Error: The SELECT has failed in a transaction, which is broken by that.
        """
        try:
            return self._values(link)
        except Error:
            if state_of(self.connection).is_in_transaction:
                raise
            logger.warning("The link set of %s could not be read.", link.table, exc_info=True)
            return None

    def _values(self, link: Link) -> list[Any] | None:
        connection, query = self.connection, link.query()
        try:
            plan = make_plan(query, using=connection.alias, page_suffix=_SUFFIX, result_kind="link set")
        except UncachableQueryError:
            return None
        if _shows_what_is_not_committed(connection, plan):
            return None

        def fetch() -> Rows:
            return list(query.get_compiler(connection=connection).results_iter(tuple_expected=True))

        self.assembly.metrics.count("link_reads")
        with unrecorded(), uncollected():
            result = self.read(plan, fetch)
        # What bypassed the cache, or may not be stored, may be older than the call or not committed.
        is_latest = result.record.is_hit or result.record.reason in MISS_REASONS
        return [row[0] for row in result.rows] if is_latest else None


def _shows_what_is_not_committed(connection: BaseDatabaseWrapper, plan: Plan) -> bool:
    """Return whether the tables of *plan* may show changes before their intents are declared, as those of MyISAM do."""
    if connection.vendor != "mysql":
        return False
    leave_loop()
    connection.ensure_connection()
    with connection.wrap_database_errors:
        return bool(tables_without_rollback(connection, plan.tables))
