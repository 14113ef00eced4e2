"""
One look through the tiers: the nearest entry of a plan that is fresh, or why there is none.

An entry is servable only if ledger.clocks.is_fresh() says so of a reading that was requested after the read began
(rules 2 and 5); bounded reads ask a copy of the clocks instead (docs/explanation/bounded.md).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from live_cache.bypasses import reason_to_bypass
from live_cache.events.copy import copy_of
from live_cache.exceptions import FrameError, StoreError
from live_cache.ledger import fences
from live_cache.ledger.clocks import Reading, take_stamps
from live_cache.ledger.lease_time import now_s
from live_cache.links import LinkReader, judge
from live_cache.loop import leave_loop
from live_cache.read_records import Rows, is_recording
from live_cache.replicas import primary_of
from live_cache.rows import Entry, EntryHeader, decode_entry, restamp_entry
from live_cache.shapes.causes import DroppedBy
from live_cache.shapes.scope import View
from live_cache.shapes.witness import EntryWitness
from live_cache.stores.base import MISS, Missing
from live_cache.writes.transactions import state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.assembly import Assembly
    from live_cache.plan import Plan

__all__ = ["Found", "Search", "judge_entry"]

logger = logging.getLogger("live_cache.read")

Found: TypeAlias = tuple[Rows, EntryHeader, str]
"""Rows of a fresh entry, its header, and the tier that had it."""


class Search:
    """
    One look through the tiers, under one reading of the ledger.

    Args:
        before: An earlier look of the same read: where nothing was there now and then, its reason is the one to tell.
    """

    __slots__ = ("_before", "assembly", "connection", "dropped_by", "entries", "farthest", "miss", "plan", "readings")

    def __init__(
        self, assembly: Assembly, plan: Plan, connection: BaseDatabaseWrapper, *, before: Search | None = None
    ) -> None:
        self.assembly = assembly
        self.plan = plan
        self.connection = connection
        self.readings: list[Reading] | None = None
        self.farthest: bytes | Missing = MISS
        """What the farthest tier held."""
        self.entries: list[Entry] = []
        """What the tiers held, fresh or not."""
        self.miss = "cold"
        self.dropped_by: DroppedBy | None = None
        self._before = before

    def find(self, *, tier_limit: int | None = None) -> Found | None:
        """Return rows, header and tier of the nearest fresh entry, promoted to the tiers before it."""
        found = self._look_together() if tier_limit is None else self._look(0, tier_limit)
        if found is None and self.miss == "cold" and tier_limit is None:
            if self._before is None:
                self.miss = self._why_nothing_was_there()
            else:
                self.miss, self.dropped_by = self._before.miss, self._before.dropped_by
        return found

    def _look_together(self) -> Found | None:
        """Look into all tiers. Of threads that miss the entry in memory one goes on, and the others wait for it."""
        promotions = self.assembly.promotions
        if promotions is None:
            return self._look(0, None)
        landed = promotions.landed
        found = self._look(0, 1)
        if found is not None:
            return found
        with promotions.turn(self.plan.entry_key) as has_waited:
            if has_waited:
                self.assembly.metrics.count("promotion_waits")
            if has_waited or promotions.landed != landed:
                found = self._look(0, 1)
            return found if found is not None else self._look(1, None)

    def _look(self, first: int, last: int | None) -> Found | None:
        """Look into the tiers from *first* on, up to, not including, *last*."""
        store = self.assembly.store
        farthest = len(store.stores) - 1
        for index, tier in enumerate(store.stores[first:last], first):
            data: bytes | Missing
            if index == farthest and self.readings is None:
                # Entry and clocks in one round trip, where both live on one server.
                self.readings, data = self.assembly.ledger.read_with_entry(
                    self.plan.dependencies, tier, self.plan.entry_key
                )
            else:
                stored = store.read_tier(index, self.plan.entry_key)
                data = MISS if stored is MISS else stored.value
            if index == farthest:
                self.farthest = data
            if data is MISS:
                continue
            if self.readings is None:
                self.readings = self.assembly.ledger.read(self.plan.dependencies)
            try:
                found = self._servable(data)
                if found is None:
                    continue
                rows = found.witness.view.rows
            except FrameError:
                self._drop(index)
                continue
            if found.witness.is_lagging(self.readings):
                self._restamp(found, self.readings)
            elif index:
                self._promote(data, found.entry.header, index)
            self.assembly.known_entries.note(self.plan.entry_key, found.entry.header.expires_at_ns)
            self.farthest = data  # what was put into one tier was put into all
            return rows, found.entry.header, tier.name
        return None

    def find_bounded(self, connection: BaseDatabaseWrapper) -> Found | None:
        """Do what find() does, but check an entry of the nearest tier against the copy of the clocks, if it tells."""
        copy, began_s = copy_of(self.assembly.ledger), now_s()
        store, dependencies, key = self.assembly.store, self.plan.dependencies, self.plan.entry_key
        if copy is None or len(store.stores) == 1:
            return self.find()
        copied = copy.readings(dependencies, began_s=began_s, alias=connection.alias)
        stored = MISS if copied is None else store.read_tier(0, key)
        if copied is not None and stored is not MISS:
            self.readings = copied
            try:
                found = self._servable(stored.value)
            except FrameError:
                found = None  # find() drops it
            # What follows must know nothing of the copy: an entry is stored under a reading of the ledger.
            self.readings, self.miss, self.dropped_by = None, "cold", None
            if found is not None and not found.witness.is_lagging(copied):
                self.farthest = stored.value  # as after a hit of find()
                self.assembly.metrics.count("bounded_hits")
                self.assembly.known_entries.note(key, found.entry.header.expires_at_ns)
                return found.witness.view.rows, found.entry.header, store.stores[0].name
        found_strictly = self.find()
        if self.readings is not None:
            copy.keep(dependencies, self.readings, began_s=began_s)
        return found_strictly

    def drop_near(self) -> None:
        """Drop the copies in the tiers of this process."""
        for tier in self.assembly.store.stores[:-1]:
            if not tier.is_shared_by_processes:
                tier.delete(self.plan.entry_key)

    def note_answer(self) -> None:
        """Note, after an outage, that the ledger has answered."""
        if self.assembly.ledger.is_silent and self.readings is not None:
            self.assembly.ledger.is_silent = False
            logger.warning("The ledger of %r answers again.", self.assembly.alias)

    @property
    def is_held(self) -> bool:
        """Whether a commit holds the entry, so that one that is stored now would not be fresh."""
        return self.miss == "held" or any(
            intent.touches(dependency.slots) and not intent.touches_only_rows(dependency.slots)
            for reading, dependency in zip(self.readings or (), self.plan.dependencies, strict=False)
            for intent in reading.intents
        )

    def settled_readings(self, connection: BaseDatabaseWrapper) -> list[Reading]:
        """Return the readings to stamp a new entry with, after the intents that stand in the way were looked after."""
        ledger = self.assembly.ledger
        if self.readings is None:
            self.readings = ledger.read(self.plan.dependencies)
        if any(reading.intents for reading in self.readings):
            primary = primary_of(connection)  # a replica knows nothing of writers
            if primary is not None and reason_to_bypass(primary, state_of(primary), frozenset()):
                return self.readings
            if fences.settle(ledger, primary or connection, self.readings):
                self.readings = ledger.read(self.plan.dependencies)
        return self.readings

    def _servable(self, data: bytes) -> _Candidate | None:
        """Return the entry in *data* if it may be served. Raises FrameError if it is none."""
        entry = decode_entry(data, key=self.plan.entry_key, mac_keys=self.assembly.mac_keys)
        header = entry.header
        self.entries.append(entry)
        if header.expires_at_ns is not None and header.expires_at_ns <= time.time_ns():
            self.miss, self.dropped_by = "expired", None
            return None
        assert self.readings is not None
        found = _Candidate(entry, EntryWitness(self.assembly.ledger, self.plan, header, View(entry.rows)))
        is_servable = header.dependencies == self.plan.dependencies
        if is_servable:
            is_servable, self.readings = judge_entry(
                self.assembly, self.plan, self.connection, header, self.readings, found.witness
            )
        if not is_servable:
            self.dropped_by = found.witness.dropped_by(self.readings, is_detailed=is_recording())
            self.miss = self.dropped_by.reason
            return None
        found.witness.remember(self.readings)
        return found

    def _why_nothing_was_there(self) -> str:
        reason = self.assembly.known_entries.take(self.plan.entry_key)
        if reason == "evicted":
            try:
                for tier in self.assembly.store.stores:
                    tier.exists(self.plan.entry_key)
            except StoreError:
                return "unanswered"
        return reason

    def _drop(self, index: int) -> None:
        """Delete an entry that is no frame of ours, so that it is not read again and again."""
        self.miss, self.dropped_by = "corrupt", None
        self.assembly.metrics.count("corrupt")
        tier = self.assembly.store.stores[index]
        logger.warning("The tier %r held a corrupt entry under %r; it is dropped.", tier.name, self.plan.entry_key)
        try:
            tier.delete(self.plan.entry_key)
        except StoreError:
            self.assembly.metrics.count("store_errors")

    def _restamp(self, found: _Candidate, readings: Sequence[Reading]) -> None:
        """Store an entry again that is fresh under *readings*, before the log forgets what proves it."""
        leave_loop()  # it goes to every tier
        self.assembly.metrics.count("restamps")
        header = found.entry.header
        data = restamp_entry(
            found.entry, take_stamps(readings), key=self.plan.entry_key, mac_keys=self.assembly.mac_keys
        )
        try:
            self.assembly.store.put(self.plan.entry_key, data, timeout_s=_remaining_s(header))
        except StoreError:
            self.assembly.metrics.count("store_errors")

    def _promote(self, data: bytes, header: EntryHeader, index: int) -> None:
        self.assembly.metrics.count("promotions")
        self.assembly.store.put_near(self.plan.entry_key, data, timeout_s=_remaining_s(header), below=index)


@dataclass(frozen=True, slots=True)
class _Candidate:
    """An entry that may be fresh."""

    entry: Entry
    witness: EntryWitness


def judge_entry(
    assembly: Assembly,
    plan: Plan,
    connection: BaseDatabaseWrapper,
    header: EntryHeader,
    readings: list[Reading],
    witness: EntryWitness,
) -> tuple[bool, list[Reading]]:
    """See links.judge(). A link set is read as any live result is."""
    from live_cache.reader import read  # which looks by this very module

    reader = LinkReader(
        assembly,
        connection,
        read=lambda of, fetch: read(
            assembly, of, connection, fetch, timeout_s=assembly.timeout_s, empty_timeout_s=assembly.timeout_s
        ),
    )
    return judge(
        header.stamps,
        readings,
        plan.dependencies,
        witness,
        read_set=reader.values,
        read_clocks=lambda: assembly.ledger.read(plan.dependencies),
    )


def _remaining_s(header: EntryHeader) -> float | None:
    return None if header.expires_at_ns is None else (header.expires_at_ns - time.time_ns()) / 1e9
