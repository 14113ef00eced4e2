"""
The parts of a clock, and the rule by which an entry is fresh. Pure: no I/O, no state.

One clock per table and database (docs/explanation/consistency.md gives the protocol and its argument):

- ``epoch``: random bytes, new whenever the clock is created or lost;
- ``seq``: grows by one with each tick;
- ``slots``: the seq of the last change of whatever hashes there; slot 0 is the table itself, slot 1 its rows;
- ``log``: what the last ticks have changed, one record per tick, which the ledger keeps without looking into it;
- ``intents``: changes that are being committed, each with a lease by the ledger's own time.

An entry carries, per clock that it depends on, a stamp (epoch and seq, read *before* its SELECT). It is fresh as long
as the epoch is the same, none of its slots was ticked after the stamp, and no open intent touches one of its slots.
Slot 1 is weaker than the others: a reader who can prove from the log that no row that was changed since the stamp could
have changed his result goes on as if it had not been ticked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

__all__ = [
    "LOG_BYTES",
    "LOG_LENGTH",
    "MAX_RECORD_BYTES",
    "NEWBORN",
    "ROWS_SLOT",
    "SLOT_COUNT",
    "TABLE_SLOT",
    "ClockInfo",
    "Dependency",
    "Intent",
    "Reading",
    "Stamp",
    "Witness",
    "is_fresh",
    "slot_of",
    "take_stamps",
]

SLOT_COUNT: Final = 4096
TABLE_SLOT: Final = 0
ROWS_SLOT: Final = 1
"""Ticked by a change of known rows. The record of that tick, in the log of the clock, says which."""
LOG_LENGTH: Final = 4096
"""Ticks whose records a clock keeps. An entry with an older stamp is stale as soon as any row was changed since."""
LOG_BYTES: Final = 2 * 1024 * 1024
"""Bytes of records that a clock keeps at most."""
MAX_RECORD_BYTES: Final = 64 * 1024
"""The longest record. What needs more is a change of the whole table."""
NEWBORN: Final = "newborn"
"""Id of the hold that a new clock is born with (rule 17)."""
_FIRST_SLOT: Final = 2


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
    record: bytes = b""
    """What will stand in the log. Never empty if the slots have ROWS_SLOT and not TABLE_SLOT."""

    def touches(self, slots: Iterable[int]) -> bool:
        """Return whether a result with these *slots* could be changed by it."""
        return TABLE_SLOT in self.slots or not self.slots.isdisjoint(slots)

    def touches_only_rows(self, slots: Iterable[int]) -> bool:
        """Return whether all that touches a result with these *slots* is a change of rows that the record tells."""
        return bool(self.record) and TABLE_SLOT not in self.slots and self.slots.intersection(slots) <= {ROWS_SLOT}


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
    """Return the slot, 2 to 4095, of the dependency called *name* (a cache key, or one above it)."""
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return _FIRST_SLOT + int.from_bytes(digest, "big") % (SLOT_COUNT - _FIRST_SLOT)


class Witness(Protocol):
    """Who can tell, of one entry, that a change of rows did not change its result. In doubt the answer is False."""

    def excludes_changes(self, position: int, after: int, reading: Reading) -> bool:
        """
        Return whether no record of the log after the seq *after*, up to that of *reading*, could change the result.

        Args:
            position: Of the clock among the dependencies of the entry.
        """
        ...

    def excludes_intent(self, position: int, intent: Intent) -> bool:
        """Return whether the record of *intent* could not change the result."""
        ...


def is_fresh(
    stamps: Sequence[Stamp],
    readings: Sequence[Reading],
    dependencies: Sequence[Dependency],
    witness: Witness | None = None,
) -> bool:
    """
    Return whether an entry may be served. Pure but for its witness: the whole rule stands here (rule 5).

    Args:
        stamps: What the entry was filled under, one per dependency, in the same order.
        readings: The clocks as they are now, requested after the read began, in the same order.
        dependencies: What the entry depends on, and the order of the other two.
        witness: Knows the query and the rows of the entry. Without one, each change of rows is one of the table.
    """
    if not len(stamps) == len(readings) == len(dependencies):
        return False
    in_doubt = False
    for stamp, reading, dependency in zip(stamps, readings, dependencies, strict=True):
        if stamp.clock != dependency.clock or reading.clock != dependency.clock or stamp.epoch != reading.epoch:
            return False
        if TABLE_SLOT not in dependency.slots:
            return False  # It would miss every change that is known only to be in the table.
        if len(reading.slots) != len(dependency.slots):
            return False
        if max(reading.slots) > stamp.seq:
            for slot, seq in zip(dependency.slots, reading.slots, strict=True):
                if seq > stamp.seq and (slot != ROWS_SLOT or witness is None):
                    return False
            in_doubt = True
        for intent in reading.intents:
            if intent.touches(dependency.slots):
                if witness is None or not intent.touches_only_rows(dependency.slots):
                    return False
                in_doubt = True
    if not in_doubt:
        return True
    assert witness is not None
    for position, (stamp, reading, dependency) in enumerate(zip(stamps, readings, dependencies, strict=True)):
        if max(reading.slots) > stamp.seq and not witness.excludes_changes(position, stamp.seq, reading):
            return False
        for intent in reading.intents:
            if intent.touches(dependency.slots) and not witness.excludes_intent(position, intent):
                return False
    return True


def take_stamps(readings: Sequence[Reading]) -> tuple[Stamp, ...]:
    """Return the stamps that an entry filled after *readings* carries."""
    return tuple(Stamp(reading.clock, reading.epoch, reading.seq) for reading in readings)
