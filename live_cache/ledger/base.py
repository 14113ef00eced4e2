"""
The contract of every ledger: the shared record of what changed, and the rule by which an entry is fresh.

One clock per table and database (docs/explanation/consistency.md gives the protocol and its argument):

- ``epoch``: random bytes, new whenever the clock is created or lost;
- ``seq``: grows by one with each tick;
- ``slots``: the seq of the last change of whatever hashes there; slot 0 is the table itself;
- ``intents``: changes that are being committed, each with a lease by the ledger's own time.

An entry carries, per clock that it depends on, a stamp (epoch and seq, read *before* its SELECT). It is fresh as long
as the epoch is the same, none of its slots was ticked after the stamp, and no open intent touches one of its slots.
"""

from __future__ import annotations

import hashlib
import logging
import os
import threading
import uuid
import weakref
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

from live_cache.exceptions import ConfigurationError, LedgerUnavailableError, StoreUnavailableError
from live_cache.stores.base import MISS, Missing, Store

__all__ = [
    "MAX_UNDELIVERED",
    "NEWBORN",
    "SLOT_COUNT",
    "TABLE_SLOT",
    "ClockInfo",
    "Dependency",
    "Intent",
    "Ledger",
    "Reading",
    "Stamp",
    "is_fresh",
    "slot_of",
    "take_stamps",
]

logger = logging.getLogger("live_cache.ledger")

SLOT_COUNT: Final = 4096
TABLE_SLOT: Final = 0
NEWBORN: Final = "newborn"
"""Id of the hold that a new clock is born with (rule 17)."""
MAX_UNDELIVERED: Final = 1000
"""Kept ticks above which they are merged into one, so that a ledger that is away for hours costs no memory."""


@dataclass(frozen=True, slots=True)
class Dependency:
    """One clock that a result depends on, and which of its slots. Always with the table's: see is_fresh()."""

    clock: str
    slots: tuple[int, ...] = (TABLE_SLOT,)


@dataclass(frozen=True, slots=True)
class Stamp:
    """A reading kept: the state of one clock before the SELECT that filled an entry."""

    clock: str
    epoch: bytes
    seq: int


@dataclass(frozen=True, slots=True)
class Intent:
    """A change that is being committed, or the hold of a newborn clock."""

    id: str
    slots: frozenset[int]
    """Slots that the change will tick. Slot 0 stands for the whole table, and so touches every slot."""
    fence: str
    """Names the writer's transaction, for ledger.fences; empty if the database cannot be asked."""

    def touches(self, slots: Iterable[int]) -> bool:
        """Return whether a result with these *slots* could be changed by it."""
        return TABLE_SLOT in self.slots or not self.slots.isdisjoint(slots)


@dataclass(frozen=True, slots=True)
class Reading:
    """One atomic look at a clock."""

    clock: str
    epoch: bytes
    seq: int
    slots: tuple[int, ...]
    """The seq in each slot that was asked for, in the order of Dependency.slots."""
    intents: tuple[Intent, ...] = ()
    """Every open intent of the clock, expired ones too."""


@dataclass(frozen=True, slots=True)
class ClockInfo:
    """What ``manage.py live_cache stats`` shows of a clock."""

    clock: str
    epoch: bytes
    seq: int
    intent_count: int


def slot_of(name: str) -> int:
    """Return the slot, 1 to 4095, of the dependency called *name* (a cache key, a row, a bucket)."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return 1 + int.from_bytes(digest, "big") % (SLOT_COUNT - 1)


def is_fresh(stamps: Sequence[Stamp], readings: Sequence[Reading], dependencies: Sequence[Dependency]) -> bool:
    """
    Return whether an entry may be served. Pure: the whole rule stands here (rule 5).

    Args:
        stamps: What the entry was filled under, one per dependency, in the same order.
        readings: The clocks as they are now, requested after the read began, in the same order.
        dependencies: What the entry depends on, and the order of the other two.
    """
    if not len(stamps) == len(readings) == len(dependencies):
        return False
    for stamp, reading, dependency in zip(stamps, readings, dependencies, strict=True):
        if stamp.clock != dependency.clock or reading.clock != dependency.clock or stamp.epoch != reading.epoch:
            return False
        if TABLE_SLOT not in dependency.slots:
            return False  # It would miss every change that is known only to be in the table.
        if len(reading.slots) != len(dependency.slots) or max(reading.slots) > stamp.seq:
            return False
        if reading.intents and any(intent.touches(dependency.slots) for intent in reading.intents):
            return False
    return True


def take_stamps(readings: Sequence[Reading]) -> tuple[Stamp, ...]:
    """Return the stamps that an entry filled after *readings* carries."""
    return tuple(Stamp(reading.clock, reading.epoch, reading.seq) for reading in readings)


class Ledger(ABC):
    """
    The shared record of what changed.

    Safe to share between threads, and used again after a fork. Every method but tick() raises
    LedgerUnavailableError when the ledger does not answer. A tick is never lost while the process lives: one that
    could not be delivered is kept, and delivered before any other use of the ledger.
    """

    name: str
    """Short name for metrics and messages: process, host, redis."""
    is_shared_by_processes: bool
    is_shared_by_hosts: bool
    is_silent = False
    """Whether the last live read got no answer: readers log the beginning and the end of an outage, not each read."""

    def __init__(self, *, lease_s: float) -> None:
        if not lease_s > 0:
            raise ConfigurationError(f"The lease of a ledger is {lease_s!r} seconds; it must be more than 0.")
        self.lease_s = lease_s
        self._undelivered: list[_Tick] = []
        self._undelivered_lock = threading.Lock()
        self._failed_deliveries = 0
        _ledgers.add(self)

    def read(self, dependencies: Sequence[Dependency]) -> list[Reading]:
        """
        Return one reading per dependency, in the same order. A clock that does not exist is created.

        A clock that is created here is born with a hold on the whole table, an intent with the id NEWBORN (rule 17).
        """
        self.deliver()
        return self._read(dependencies)

    def read_with_entry(
        self, dependencies: Sequence[Dependency], store: Store, key: str
    ) -> tuple[list[Reading], bytes | Missing]:
        """
        Return the readings and the value that *store* holds under *key*, in one round trip where both live together.

        A store that does not answer is a MISS here, logged and counted by the store.
        """
        readings = self.read(dependencies)
        try:
            return readings, store.get(key)
        except StoreUnavailableError:
            logger.warning("The store %r did not answer; the read goes on without it.", store.name, exc_info=True)
            return readings, MISS

    def declare(self, changes: Mapping[str, Collection[int]], *, fence: str) -> str:
        """
        Record an intent, just before COMMIT, on every clock of *changes* that exists (rule 7).

        Args:
            changes: Slots that will be ticked, per clock.
            fence: The writer's transaction, as ledger.fences names it.

        Returns:
            The id of the intent, the same on all clocks.
        """
        self.deliver()
        intent_id = uuid.uuid4().hex
        self._declare({clock: frozenset(slots) for clock, slots in changes.items()}, intent_id, fence)
        return intent_id

    def tick(self, changes: Mapping[str, Collection[int]], *, intent_id: str | None = None) -> bool:
        """
        Record that *changes* are committed: per clock, atomically, tick the slots and remove the intent (rule 9).

        Never raises LedgerUnavailableError: what cannot be delivered is kept. A clock that does not exist is left
        alone, since no entry can have a stamp of it.

        Returns:
            Whether everything was delivered.
        """
        frozen = {clock: frozenset(slots) for clock, slots in changes.items()}
        try:
            self.deliver()
            self._tick(frozen, intent_id)
        except LedgerUnavailableError:
            self._keep(frozen, intent_id)
            logger.exception("The ledger did not answer; %d ticks are kept.", len(self._undelivered))
            return False
        except BaseException:
            # An interrupt, or a driver's error that is no LedgerUnavailableError: the tick may not have arrived. One
            # tick too many is a miss; one too few is a stale read.
            self._keep(frozen, intent_id)
            raise
        return True

    def retract(self, clocks: Iterable[str], intent_id: str) -> None:
        """Remove an intent without a tick, after a ROLLBACK that the database has confirmed (rule 10)."""
        self.deliver()
        self._retract(tuple(clocks), intent_id)

    @abstractmethod
    def expired(self, clock: str) -> list[Intent]:
        """Return the open intents of *clock* whose lease is over, by the ledger's own time."""

    def reap(self, clock: str, intent_ids: Collection[str], *, epoch: bytes | None = None) -> None:
        """
        Tick the slots of these intents and remove them. Only for a caller who has proof that their writers are over.

        An intent that is gone meanwhile is left alone.

        Args:
            epoch: Epoch of the reading that showed the intents: nothing happens under another one. Needed for NEWBORN,
                the one id that every epoch has: proof about the writers before one birth says nothing about the next.
                None reaps under any epoch.
        """
        self.deliver()
        self._reap(clock, frozenset(intent_ids), epoch)

    @abstractmethod
    def reset(self, clocks: Iterable[str] | None = None) -> int:
        """
        Give *clocks* (None: all of this ledger) a new epoch, so that nothing filled before is fresh.

        Returns:
            How many clocks there were.
        """

    @abstractmethod
    def clocks(self) -> list[ClockInfo]:
        """Return what exists, for stats. Not atomic over the clocks."""

    @property
    def undelivered_count(self) -> int:
        """How many ticks wait for the ledger to answer again."""
        return len(self._undelivered)

    def deliver(self) -> None:
        """Deliver kept ticks, in order. Raises LedgerUnavailableError if the ledger still does not answer."""
        if not self._undelivered:
            return
        failed_before = self._failed_deliveries
        with self._undelivered_lock:
            if self._undelivered and self._failed_deliveries != failed_before:
                # Another thread tried while this one waited for the lock. Trying again at once would make the last of
                # n threads wait for n timeouts.
                raise LedgerUnavailableError("Ticks that are kept could not be delivered just now.")
            while self._undelivered:
                changes, intent_id = self._undelivered[0]
                try:
                    self._tick_again(changes, intent_id)
                except LedgerUnavailableError:
                    self._failed_deliveries += 1
                    raise
                del self._undelivered[0]

    def _keep(self, changes: Mapping[str, frozenset[int]], intent_id: str | None) -> None:
        """Keep a tick that may not have arrived. Many are merged into one; their intents are left to their lease."""
        with self._undelivered_lock:
            self._undelivered.append((changes, intent_id))
            if len(self._undelivered) > MAX_UNDELIVERED:
                merged: dict[str, frozenset[int]] = {}
                for kept, _ in self._undelivered:
                    for clock, slots in kept.items():
                        merged[clock] = merged.get(clock, frozenset()) | slots
                self._undelivered[:] = [(merged, None)]

    def _after_fork_in_child(self) -> None:
        """Replace what another thread of the parent may have held at the moment of the fork."""
        self._undelivered_lock = threading.Lock()

    @abstractmethod
    def close(self) -> None:
        """Release connections and files of this process. The ledger opens them again when it is used."""

    @abstractmethod
    def _read(self, dependencies: Sequence[Dependency]) -> list[Reading]: ...

    @abstractmethod
    def _declare(self, changes: Mapping[str, frozenset[int]], intent_id: str, fence: str) -> None: ...

    @abstractmethod
    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None) -> None: ...

    def _tick_again(self, changes: Mapping[str, frozenset[int]], intent_id: str | None) -> None:
        """Deliver a kept tick. It may give up early: the tick stays kept, and others wait meanwhile."""
        self._tick(changes, intent_id)

    @abstractmethod
    def _retract(self, clocks: tuple[str, ...], intent_id: str) -> None: ...

    @abstractmethod
    def _reap(self, clock: str, intent_ids: frozenset[str], epoch: bytes | None) -> None: ...


_Tick: TypeAlias = tuple[Mapping[str, frozenset[int]], str | None]

_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for ledger in list(_ledgers):
        ledger._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
