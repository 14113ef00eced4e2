"""The ledger of one process: plain memory."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import LOG_BYTES, LOG_LENGTH, NEWBORN, TABLE_SLOT, ClockInfo, Dependency, Intent, Reading

__all__ = ["ProcessLedger"]


@dataclass(slots=True)
class _OpenIntent:
    intent: Intent
    deadline_s: float


@dataclass(slots=True)
class _Clock:
    epoch: bytes = field(default_factory=lambda: os.urandom(16))
    seq: int = 0
    slots: dict[int, int] = field(default_factory=dict)
    """Only slots that were ever ticked: at most SLOT_COUNT."""
    log: dict[int, bytes] = field(default_factory=dict)
    """Records by seq, the oldest first."""
    log_bytes: int = 0
    forgotten: int = 0
    """The newest seq whose record was dropped."""
    intents: dict[str, _OpenIntent] = field(default_factory=dict)

    def tick(self, slots: Iterable[int], record: bytes) -> None:
        self.seq += 1
        if record:
            self.log[self.seq] = record
            self.log_bytes += len(record)
        while self.log and (self.log_bytes > LOG_BYTES or next(iter(self.log)) <= self.seq - LOG_LENGTH):
            self.forgotten = next(iter(self.log))
            self.log_bytes -= len(self.log.pop(self.forgotten))
        for slot in slots:
            self.slots[slot] = self.seq


class ProcessLedger(Ledger):
    """
    The ledger of one process, for tests and for programs that are one process.

    What other processes write is not seen. A clock needs no newborn hold: it is lost only with the process, and with
    the process go all its writers. In a child made by fork() every clock starts a new epoch without intents.

    Args:
        lease_s: Seconds that an intent may stand before it counts as expired.
        clock: Monotonic seconds.
    """

    name = "process"
    is_shared_by_processes = False
    is_shared_by_hosts = False

    def __init__(self, *, lease_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._clocks: dict[str, _Clock] = {}
        super().__init__(lease_s=lease_s)

    def expired(self, clock: str) -> list[Intent]:
        """See Ledger.expired()."""
        with self._lock:
            state = self._clocks.get(clock)
            now_s = self._clock()
            return [] if state is None else [x.intent for x in state.intents.values() if x.deadline_s <= now_s]

    def reset(self, clocks: Iterable[str] | None = None) -> int:
        """
        See Ledger.reset().

        Open intents are dropped. A clock that had one gets a hold of one lease in their place, as a newborn clock of
        the other ledgers does.
        """
        with self._lock:
            names = [name for name in (self._clocks if clocks is None else set(clocks)) if name in self._clocks]
            for name in names:
                new = _Clock()
                if self._clocks[name].intents:
                    hold = Intent(NEWBORN, frozenset((TABLE_SLOT,)), "")
                    new.intents[NEWBORN] = _OpenIntent(hold, self._clock() + self.lease_s)
                self._clocks[name] = new
        self._note_ticks(names)
        return len(names)

    def clocks(self) -> list[ClockInfo]:
        """See Ledger.clocks()."""
        with self._lock:
            return [ClockInfo(name, c.epoch, c.seq, len(c.intents)) for name, c in sorted(self._clocks.items())]

    def close(self) -> None:
        """See Ledger.close(). There is nothing to release; the clocks stay."""

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._lock = threading.Lock()
        for name in list(self._clocks):
            self._clocks[name] = _Clock()

    def _read(self, dependencies: Sequence[Dependency]) -> list[Reading]:
        readings = []
        with self._lock:
            for dependency in dependencies:
                state = self._clocks.get(dependency.clock)
                if state is None:
                    state = self._clocks[dependency.clock] = _Clock()
                ticked = state.slots
                slots = tuple([ticked.get(slot, 0) for slot in dependency.slots])
                intents = tuple([x.intent for x in state.intents.values()]) if state.intents else ()
                readings.append(Reading(dependency.clock, state.epoch, state.seq, slots, intents))
        return readings

    def is_watched(self, clocks: Iterable[str]) -> bool:
        """See Ledger.is_watched()."""
        return any(clock in self._clocks for clock in clocks)

    def log(self, clock: str, epoch: bytes, after: int, until: int) -> list[bytes] | None:
        """See Ledger.log()."""
        with self._lock:
            state = self._clocks.get(clock)
            if state is None or state.epoch != epoch or until > state.seq:
                return None
            if after < state.forgotten:
                return None
            return [state.log.get(seq, b"") for seq in range(after + 1, until + 1)]

    def _existing(self, clocks: list[str]) -> list[str]:
        return [clock for clock in clocks if clock in self._clocks]

    def _declare(
        self,
        changes: Mapping[str, frozenset[int]],
        intent_id: str,
        fence: Callable[[], str],
        records: Mapping[str, bytes],
    ) -> None:
        name = fence()
        with self._lock:
            deadline_s = self._clock() + self.lease_s
            for clock, slots in changes.items():
                state = self._clocks.get(clock)
                if state is not None:
                    intent = Intent(intent_id, slots, name, records.get(clock, b""))
                    state.intents[intent_id] = _OpenIntent(intent, deadline_s)

    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]) -> None:
        with self._lock:
            for clock, slots in changes.items():
                state = self._clocks.get(clock)
                if state is None:
                    continue
                if slots:
                    state.tick(slots, records.get(clock, b""))
                if intent_id is not None:
                    state.intents.pop(intent_id, None)

    def _retract(self, clocks: tuple[str, ...], intent_id: str) -> None:
        with self._lock:
            for clock in clocks:
                state = self._clocks.get(clock)
                if state is not None:
                    state.intents.pop(intent_id, None)

    def _reap(self, clock: str, intent_ids: frozenset[str], epoch: bytes | None) -> None:
        with self._lock:
            state = self._clocks.get(clock)
            if state is None or (epoch is not None and epoch != state.epoch):
                return
            for intent_id in intent_ids & state.intents.keys():
                intent = state.intents.pop(intent_id).intent
                state.tick(intent.slots, intent.record)
