"""
The witness of one entry: has any row that was changed since its stamp changed its result?

He reads the records of the ledger's log, each decoded once per process, and judges them by the scope of the query. What
he has excluded he remembers, so that the next read of the entry judges only what came later.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final

from live_cache.changes import Record, decode_record
from live_cache.exceptions import FrameError, LedgerUnavailableError
from live_cache.ledger.clocks import LOG_LENGTH, NEWBORN, ROWS_SLOT, TABLE_SLOT, Intent, Reading, Stamp
from live_cache.names import KEYS_CLOCK
from live_cache.shapes.causes import DroppedBy
from live_cache.shapes.links import LinkSets
from live_cache.shapes.scope import Scope, View, scope_of

if TYPE_CHECKING:
    from live_cache.ledger.base import Ledger
    from live_cache.plan import Plan
    from live_cache.rows import EntryHeader

__all__ = ["EntryWitness"]

_MAX_SCOPES: Final = 4096
_MAX_MEMOS: Final = 16_384
_KEPT_RECORDS: Final = LOG_LENGTH
_FEW_ROWS: Final = 8
_UNREADABLE: Final = Record(0, None, "a record that this version cannot read")


@dataclass(slots=True)
class _Memo:
    """What a process has found out of one entry."""

    identity: tuple[int, tuple[Stamp, ...]]
    verified: dict[int, int] = field(default_factory=dict)


class EntryWitness:
    """See ledger.clocks.Witness. For one look at one entry."""

    __slots__ = ("_header", "_ledger", "_memo", "_plan", "_refused", "_scope", "links", "view")

    def __init__(self, ledger: Ledger, plan: Plan, header: EntryHeader, view: View) -> None:
        self._ledger = ledger
        self._plan = plan
        self._header = header
        self._scope: Scope | None = None
        self.view = view
        self.links = LinkSets()
        """What is known of the link sets; see links.judge()."""
        self._refused: DroppedBy | None = None
        self._memo: _Memo | None = None

    def excludes_changes(self, position: int, after: int, reading: Reading) -> bool:
        """See Witness.excludes_changes()."""
        if self._memo is None:
            self._memo = self._recall()
        after = max(after, self._memo.verified.get(position, after))
        if after >= reading.seq:
            return True
        if self._plan.layout.shape is None:
            return False
        try:
            records = _records(self._ledger, reading, after)
        except LedgerUnavailableError:
            records = None
        table = _table_of(reading.clock)
        if records is None:
            self._refused = DroppedBy("unknown", table, note="the log of the table does not reach back to the entry")
            return False
        for record in records:
            if record is not None and (refused := self._refusal(table, record)) is not None:
                self._refused = refused
                return False
        return True

    def excludes_intent(self, position: int, intent: Intent) -> bool:
        """See Witness.excludes_intent()."""
        if self._plan.layout.shape is None:
            return False
        refused = self._refusal(_table_of(self._plan.dependencies[position].clock), _decoded(intent.record))
        if refused is None:
            return True
        self._refused = replace(refused, reason="held")
        return False

    def dropped_by(self, readings: Sequence[Reading], *, is_detailed: bool) -> DroppedBy:
        """
        Return why is_fresh() has just said no under *readings*.

        Args:
            is_detailed: Ask the ledger, too, for what it knows of a write that is told by table or by key: when it
                was, and how.
        """
        stamps, dependencies = self._header.stamps, self._plan.dependencies
        if dependencies != self._header.dependencies or len(stamps) != len(readings):
            return DroppedBy("unknown", note="the entry depends on something else than the query")
        for stamp, reading, dependency in zip(stamps, readings, dependencies, strict=True):
            if stamp.epoch != reading.epoch:
                note = "the clock that the entry was filled under is gone"
                return DroppedBy("unknown", _table_of(reading.clock), note=note)
            for slot, seq in zip(dependency.slots, reading.slots, strict=True):
                if seq > stamp.seq and (slot != ROWS_SLOT or self._plan.layout.shape is None):
                    return self._of_slot(reading, slot, seq, is_detailed=is_detailed)
        if self._refused is not None:
            return self._refused
        for reading, dependency in zip(readings, dependencies, strict=True):
            for intent in reading.intents:
                if intent.touches(dependency.slots):
                    return _of_intent(_table_of(reading.clock), intent)
        return DroppedBy("unknown")

    def _of_slot(self, reading: Reading, slot: int, seq: int, *, is_detailed: bool) -> DroppedBy:
        """Return the last write that has ticked *slot* of a clock."""
        is_key = reading.clock == KEYS_CLOCK or slot not in (TABLE_SLOT, ROWS_SLOT)
        record: Record | None = None
        if is_detailed:
            try:
                raw = self._ledger.log(reading.clock, reading.epoch, seq - 1, seq)
            except LedgerUnavailableError:
                raw = None
            if raw and raw[0]:
                record = _decoded(raw[0])
        return DroppedBy.of("key" if is_key else "table", "" if is_key else _table_of(reading.clock), record)

    def _recall(self) -> _Memo:
        """Return what this process has found out of the entry."""
        memo = _state_of(self._ledger).memos.get(self._plan.entry_key)
        identity = (self._header.fetched_at_ns, self._header.stamps)
        return memo if memo is not None and memo.identity == identity else _Memo(identity)

    def remember(self, readings: Sequence[Reading]) -> None:
        """Note that the entry is fresh under *readings*, if anything had to be excluded for that."""
        if self._memo is None:
            return
        self._memo.verified = {position: reading.seq for position, reading in enumerate(readings)}
        memos = _state_of(self._ledger).memos
        memos[self._plan.entry_key] = self._memo
        while len(memos) > _MAX_MEMOS:
            try:
                memos.popitem(last=False)
            except KeyError:  # another thread was faster
                break

    def is_lagging(self, readings: Sequence[Reading]) -> bool:
        """Return whether the stamps are so old that the log may soon no longer reach back to them."""
        return any(
            reading.seq - stamp.seq > LOG_LENGTH // 4
            for stamp, reading in zip(self._header.stamps, readings, strict=True)
        )

    def _refusal(self, table: str, record: Record) -> DroppedBy | None:
        """Return the change of *record* that could have changed the result, or None."""
        if record.rows is None:
            return DroppedBy.of("table", table, record)
        scope = self._scope
        if scope is None:
            scope = self._scope = _scope_of(self._ledger, self._plan)
        if len(record.rows) > _FEW_ROWS and scope.misses(table, record):
            return None
        is_of_one_kind = len({change.kind for change in record.rows}) == 1
        for change in record.rows:
            reason = scope.cause(table, change, self.view, is_of_one_kind=is_of_one_kind, links=self.links)
            if reason:
                return DroppedBy.of(reason, table, record, change)
        return None


def _table_of(clock: str) -> str:
    return clock.rpartition("/")[2]


def _of_intent(table: str, intent: Intent) -> DroppedBy:
    if intent.id == NEWBORN:
        return DroppedBy("held", table, note="its clock is new")
    return DroppedBy.of("held", table, _decoded(intent.record) if intent.record else None)


class _State:
    """What this process knows of one ledger. Threads share it: a step is one operation of a dict, or has the lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.logs: dict[str, _Log] = {}
        self.memos: OrderedDict[str, _Memo] = OrderedDict()
        self.scopes: OrderedDict[tuple[str, str], Scope] = OrderedDict()


@dataclass(slots=True)
class _Log:
    """The decoded records from the seq *first* on; None for a tick that said nothing of rows."""

    epoch: bytes
    first: int
    records: list[Record | None]

    @property
    def last(self) -> int:
        return self.first + len(self.records) - 1

    def between(self, after: int, until: int) -> Sequence[Record | None] | None:
        start = after + 1 - self.first
        return None if start < 0 or until > self.last else self.records[start : start + until - after]


# In a child of fork() a lock may be held for ever.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _states.clear())

_states: weakref.WeakKeyDictionary[Ledger, _State] = weakref.WeakKeyDictionary()


def _state_of(ledger: Ledger) -> _State:
    state = _states.get(ledger)
    if state is None:
        state = _states.setdefault(ledger, _State())
    return state


def _records(ledger: Ledger, reading: Reading, after: int) -> Sequence[Record | None] | None:
    """Return the records of the ticks after *after*, up to *reading*; None if the log does not have them all."""
    state = _state_of(ledger)
    with state.lock:
        log = state.logs.get(reading.clock)
        begin = after if log is None or log.epoch != reading.epoch or after < log.first - 1 else log.last
        if log is not None and begin >= reading.seq:
            return log.between(after, reading.seq)
    # Not under the lock: it may be a round trip. What two threads fetch at once is the same.
    raw = ledger.log(reading.clock, reading.epoch, begin, reading.seq)
    if raw is None and begin != after:  # nobody has looked for long
        begin = after
        raw = ledger.log(reading.clock, reading.epoch, begin, reading.seq)
    if raw is None:
        return None
    decoded = [_decoded(each) if each else None for each in raw]
    with state.lock:
        log = state.logs.get(reading.clock)
        if log is None or log.epoch != reading.epoch or log.last != begin or after < log.first - 1:
            if begin != after:  # another thread was faster
                return log.between(after, reading.seq) if log is not None and log.epoch == reading.epoch else None
            log = state.logs[reading.clock] = _Log(reading.epoch, after + 1, [])
        log.records += decoded
        found = log.between(after, reading.seq)
        if len(log.records) > _KEPT_RECORDS:
            surplus = len(log.records) - _KEPT_RECORDS * 3 // 4
            del log.records[:surplus]
            log.first += surplus
    return found


def _decoded(data: bytes) -> Record:
    try:
        return decode_record(data)
    except FrameError:
        return _UNREADABLE


def _scope_of(ledger: Ledger, plan: Plan) -> Scope:
    scopes = _state_of(ledger).scopes
    key = (plan.cache_key, plan.page_suffix)
    scope = scopes.get(key)
    shape = plan.layout.shape
    assert shape is not None
    if scope is None or scope.shape is not shape:  # learned again, as after a change of the schema
        scope = scopes[key] = scope_of(plan.query, shape, plan.purpose)
        while len(scopes) > _MAX_SCOPES:
            try:
                scopes.popitem(last=False)
            except KeyError:  # another thread was faster
                break
    return scope
