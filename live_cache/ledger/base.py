"""The contract of every ledger: the shared record of what changed. What it consists of stands in clocks.py."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

from live_cache.exceptions import ConfigurationError, LedgerUnavailableError, StoreUnavailableError
from live_cache.ledger.clocks import (
    LOG_BYTES,
    MAX_RECORD_BYTES,
    ROWS_SLOT,
    TABLE_SLOT,
    ClockInfo,
    Dependency,
    Intent,
    Reading,
)
from live_cache.ledger.wake_ups import LocalWakeUps, WakeUps
from live_cache.stores.base import MISS, Missing, Store

__all__ = ["MAX_UNDELIVERED", "Ledger", "Tick"]

logger = logging.getLogger("live_cache.ledger")

MAX_UNDELIVERED: Final = 1000
"""Kept ticks above which they are merged into one, so that a ledger that is away for hours costs no memory."""
DELIVERY_PAUSE_S: Final = 0.25
"""How often kept ticks are tried in the background. While the connection's breaker is open a try costs nothing."""


class Ledger(ABC):
    """
    The shared record of what changed.

    Safe to share between threads, and used again after a fork. Every method but tick() raises
    LedgerUnavailableError when the ledger does not answer. A tick is never lost while the process lives: one that
    could not be delivered is kept, and delivered before any other use of the ledger; by a thread, if there is none.
    """

    name: str
    """Short name for metrics and messages: process, host, redis."""
    is_shared_by_processes: bool
    is_shared_by_hosts: bool
    intent_record_bytes: ClassVar[int] = MAX_RECORD_BYTES
    """The longest record that an intent carries."""
    has_deaf_writers = False
    """Whether writers may not know of a clock for a while after its birth, and not tick it; its hold stands longer."""
    is_silent = False
    """Whether the last live read got no answer: readers log the beginning and the end of an outage, not each read."""

    def __init__(self, *, lease_s: float) -> None:
        if not lease_s > 0:
            raise ConfigurationError(f"The lease of a ledger is {lease_s!r} seconds; it must be more than 0.")
        self.lease_s = lease_s
        self._undelivered: list[Tick] = []
        self._undelivered_lock = threading.Lock()
        self._failed_deliveries = 0
        self._has_messenger = False
        self.tick_listener: Callable[[Iterable[str]], None] | None = None
        """Called with the clocks of each tick of this process, also of one that is kept. Whoever follows the ledger."""
        self.failure_listener: Callable[[], None] | None = None
        """Called when a tick has failed after tick() has returned. Whoever counts errors."""
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

    @abstractmethod
    def is_watched(self, clocks: Iterable[str]) -> bool:
        """
        Return whether one of *clocks* exists, so that what is known of a change is worth telling.

        A hint, which may be a second old: nobody's correctness may depend on it.
        """

    @abstractmethod
    def log(self, clock: str, epoch: bytes, after: int, until: int) -> list[bytes] | None:
        """
        Return the records of the ticks *after* < seq <= *until*, in order; b"" for a tick that had none.

        A tick that had none has not touched ROWS_SLOT, or has touched the whole table.

        Args:
            epoch: Of a reading of the clock.
            until: The seq of that reading, or less.

        Returns:
            None if the clock keeps some of them no longer, or has another epoch by now. A record never changes within
            its epoch, so a ledger may answer from a copy.
        """

    def declare(
        self,
        changes: Mapping[str, Collection[int]],
        *,
        fence: str | Callable[[], str],
        records: Mapping[str, bytes] | None = None,
    ) -> str:
        """
        Record an intent, just before COMMIT, on every clock of *changes* that exists (rule 7).

        Args:
            changes: Slots that will be ticked, per clock.
            fence: The writer's transaction, as ledger.fences names it, or what names it: asked only if a clock exists.
            records: What tick() will put into the log, per clock. One that is too long for the ledger's intents makes
                the intent one of the whole table.

        Returns:
            The id of the intent, the same on all clocks.
        """
        self.deliver()
        intent_id = os.urandom(16).hex()
        existing = self._existing([clock for clock, slots in changes.items() if slots])
        if not existing:
            return intent_id
        declared: dict[str, frozenset[int]] = {}
        told: dict[str, bytes] = {}
        for clock in existing:
            slots = changes[clock]
            record = (records or {}).get(clock, b"")
            if len(record) > self.intent_record_bytes:
                record = b""
            if record:
                told[clock] = record
            # Whoever reaps it has nothing but the intent to tell the log from.
            is_untold = ROWS_SLOT in slots and not record
            declared[clock] = frozenset((TABLE_SLOT,)) if is_untold else frozenset(slots)
        self._declare(declared, intent_id, fence if callable(fence) else lambda: fence, told)
        return intent_id

    def tick(
        self,
        changes: Mapping[str, Collection[int]],
        *,
        intent_id: str | None = None,
        records: Mapping[str, bytes] | None = None,
        is_announced: bool = False,
    ) -> bool:
        """
        Record that *changes* are committed: per clock, atomically, tick the slots and remove the intent (rule 9).

        Never raises LedgerUnavailableError: what cannot be delivered is kept. A clock that does not exist is left
        alone, since no entry can have a stamp of it.

        Args:
            changes: The slots, per clock. ROWS_SLOT needs a record.
            intent_id: What declare() has returned.
            records: What goes into the log with the tick, per clock, at most MAX_RECORD_BYTES.
            is_announced: Whether the intent was declared by a transaction that had made all these changes before, and
                nothing but its COMMIT has come since. Then it may stand for the tick, and the ledger need not be sure
                that the tick has arrived.

        Returns:
            Whether everything was delivered, or is under way while its intent stands.

        Raises:
            ValueError: A record is too long, or one is missing.
        """
        frozen = {clock: frozenset(slots) for clock, slots in changes.items()}
        told = dict(records or {})
        for clock, slots in frozen.items():
            record = told.get(clock, b"")
            if len(record) > MAX_RECORD_BYTES or (ROWS_SLOT in slots and TABLE_SLOT not in slots and not record):
                raise ValueError(f"The record of {clock!r} has {len(record)} bytes, more than a log takes, or none.")
        try:
            self.deliver()
            if is_announced and intent_id is not None:
                self._tick_announced(frozen, intent_id, told)
            else:
                self._tick(frozen, intent_id, told)
        except LedgerUnavailableError:
            self._keep(Tick(frozen, intent_id, told))
            logger.exception("The ledger did not answer; %d ticks are kept.", len(self._undelivered))
            return False
        except BaseException:
            # An interrupt, or a driver's error that is no LedgerUnavailableError: the tick may not have arrived. One
            # tick too many is a miss; one too few is a stale read.
            self._keep(Tick(frozen, intent_id, told))
            raise
        finally:
            if self.tick_listener is not None:
                self._note_ticks(frozen)
        return True

    def retract(self, clocks: Iterable[str], intent_id: str) -> None:
        """Remove an intent without a tick, after a ROLLBACK that the database has confirmed (rule 10)."""
        self.deliver()
        self._retract(tuple(clocks), intent_id)

    def begin_unannounced(self, clocks: Collection[str], holder: object) -> bool:
        """
        Let a write of the tables of *clocks* go on that declares no intent, if none of them exists.

        Until end_unannounced() has_unannounced() says so to whoever would lift the hold of a clock that is born
        meanwhile, in any process; the death of this one ends it too. Never raises.

        Args:
            holder: This write; any object of its own.

        Returns:
            Whether it may. If not, it declares itself as any other write.
        """
        return False

    def end_unannounced(self, clocks: Collection[str], holder: object) -> bool:
        """
        End what begin_unannounced() has begun, or would have if it was interrupted. May be called again.

        Returns:
            Whether one of *clocks* may have been born meanwhile, so that the change is to be ticked.
        """
        return True

    def has_unannounced(self, newborn: Reading) -> bool:
        """Return whether a write may be under way that is not announced, as it began before the birth of this clock."""
        return False

    @abstractmethod
    def expired(self, clock: str) -> list[Intent]:
        """Return the open intents of *clock* whose lease is over, by the ledger's own time."""

    def reap(self, clock: str, intent_ids: Collection[str], *, epoch: bytes | None = None) -> None:
        """
        Tick the slots of these intents, with their records, and remove them.

        Only for a caller who has proof that their writers are over.

        An intent that is gone meanwhile is left alone.

        Args:
            epoch: Epoch of the reading that showed the intents: nothing happens under another one. Needed for NEWBORN,
                the one id that every epoch has: proof about the writers before one birth says nothing about the next.
                None reaps under any epoch.
        """
        self.deliver()
        self._reap(clock, frozenset(intent_ids), epoch)
        self._note_ticks((clock,))

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

    def wake_ups(self) -> WakeUps:
        """Return new wake-ups, for the one thread of this process that follows clocks."""
        return LocalWakeUps()

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
                tick = self._undelivered[0]
                try:
                    self._tick_again(tick.changes, tick.intent_id, tick.records)
                except LedgerUnavailableError:
                    self._failed_deliveries += 1
                    raise
                del self._undelivered[0]

    def _keep(self, tick: Tick) -> None:
        """Keep a tick that may not have arrived. Many are merged into one; their intents are left to their lease."""
        with self._undelivered_lock:
            self._undelivered.append(tick)
            kept_bytes = sum(len(record) for kept in self._undelivered for record in kept.records.values())
            if len(self._undelivered) > MAX_UNDELIVERED or kept_bytes > LOG_BYTES:
                merged: dict[str, frozenset[int]] = {}
                for kept in self._undelivered:
                    for clock, slots in kept.changes.items():
                        # One record cannot hold what a thousand ticks have changed.
                        wide = slots - {ROWS_SLOT} | {TABLE_SLOT} if ROWS_SLOT in slots else slots
                        merged[clock] = merged.get(clock, frozenset()) | wide
                self._undelivered[:] = [Tick(merged, None, {})]
            if self._has_messenger:
                return
            self._has_messenger = True
        # Other processes may serve what this tick would drop, and this one may have nothing more to do for hours.
        messenger = threading.Thread(
            target=_deliver_kept, args=(weakref.ref(self),), name="live_cache-kept-ticks", daemon=True
        )
        try:
            messenger.start()
        except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
            self._has_messenger = False

    def _note_late_failure(self, error: BaseException) -> None:
        """Report a tick that is kept and that tick() has returned for."""
        logger.error("The ledger did not answer; %d ticks are kept.", len(self._undelivered), exc_info=error)
        if self.failure_listener is not None:
            self.failure_listener()

    def _is_everything_delivered(self) -> bool:
        """Try to deliver what is kept. Return whether there is nothing left, in which case the messenger ends."""
        try:
            self.deliver()
        except LedgerUnavailableError:
            pass
        except Exception:
            logger.exception("Ticks that are kept could not be delivered.")
        with self._undelivered_lock:
            self._has_messenger = bool(self._undelivered)
            return not self._has_messenger

    def _note_ticks(self, clocks: Iterable[str]) -> None:
        listener = self.tick_listener
        if listener is not None:
            try:
                listener(clocks)
            except Exception:  # Nothing may leave a committed atomic(), and who listens is no writer's concern.
                logger.exception("Whoever follows the ledger could not be told of a tick.")

    def _after_fork_in_child(self) -> None:
        """Replace what another thread of the parent may have held at the moment of the fork."""
        self._undelivered_lock = threading.Lock()
        self._has_messenger = False

    @abstractmethod
    def close(self) -> None:
        """Release connections and files of this process. The ledger opens them again when it is used."""

    @abstractmethod
    def _read(self, dependencies: Sequence[Dependency]) -> list[Reading]: ...

    @abstractmethod
    def _existing(self, clocks: list[str]) -> Collection[str]:
        """
        Return those of *clocks* that may exist, in which case declare() goes on with them.

        Asked as late as declare() is called: a clock that is born later is born with a hold, which stands as long as
        the transaction of this writer, as his intent would.
        """

    @abstractmethod
    def _declare(
        self,
        changes: Mapping[str, frozenset[int]],
        intent_id: str,
        fence: Callable[[], str],
        records: Mapping[str, bytes],
    ) -> None: ...

    @abstractmethod
    def _tick(
        self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]
    ) -> None: ...

    def _tick_announced(
        self, changes: Mapping[str, frozenset[int]], intent_id: str, records: Mapping[str, bytes]
    ) -> None:
        """Tick for what tick() calls announced. It may return before the tick has arrived."""
        self._tick(changes, intent_id, records)

    def _tick_again(
        self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]
    ) -> None:
        """Deliver a kept tick. It may give up early: the tick stays kept, and others wait meanwhile."""
        self._tick(changes, intent_id, records)

    @abstractmethod
    def _retract(self, clocks: tuple[str, ...], intent_id: str) -> None: ...

    @abstractmethod
    def _reap(self, clock: str, intent_ids: frozenset[str], epoch: bytes | None) -> None: ...


@dataclass(frozen=True, slots=True)
class Tick:
    """The arguments of tick(), kept until they are delivered."""

    changes: Mapping[str, frozenset[int]]
    intent_id: str | None
    records: Mapping[str, bytes]


def _deliver_kept(reference: weakref.ref[Ledger]) -> None:
    """Be the thread that delivers what a ledger has kept, for as long as it is needed."""
    while True:
        time.sleep(DELIVERY_PAUSE_S)
        ledger = reference()
        if ledger is None or ledger._is_everything_delivered():
            return
        del ledger


_ledgers: weakref.WeakSet[Ledger] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for ledger in list(_ledgers):
        ledger._after_fork_in_child()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
