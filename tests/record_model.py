"""
An explicit-state model of what protocol_model.py leaves out: changes that are told by row, and judged by the reader.

Two rows in two buckets, writers who move or change one row each, and readers of one query: the rows of bucket 0, or row
0. A reader reads the ledger in one step and judges the records of the log in a later one; what he has proven once he
remembers, or stores again with the newer stamp. Writers tick in any order after their commits, die, or do not know what
they changed; the ledger gets lost; the log is short.

The properties are those of protocol_model.py:

    A  rows that are served are the result in the newest state whose COMMIT had returned when the read began, or later;
    C  an entry that could be served at this moment is what the database holds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from tests.protocol_model import HOLD
from tests.state_search import Search, with_reader

__all__ = ["RECORD_RULES", "Plan", "RecordModel"]

RECORD_RULES: Final[dict[str, str]] = {
    "every record": "every record since the stamp is judged, not only the newest",
    "judged alone": "a record is judged by itself, not as a step from the one before it in the log",
    "before-image": "where a row was matters",
    "after-image": "where a row is now matters",
    "images under the lock": "the images of a change are read under the lock of its row",
    "gap": "a log that has lost a record proves nothing",
    "log of the epoch": "records are those of the epoch of the reading",
    "as far as the reading": "an entry is verified as far as the reading went, not as the log goes meanwhile",
    "memo of the entry": "what was verified is remembered of one stamp",
    "memo of the epoch": "what was verified is remembered of one epoch",
    "change of the table": "a change that is not told by row is never excluded",
    "intents are judged": "an entry that an open intent could change is not served",
    "intent without record": "an intent that does not tell its rows could change everything",
    "reaping tells": "who reaps an intent puts its record into the log",
}

Row: TypeAlias = tuple[int, int]
"""Bucket and version of a row."""
Database: TypeAlias = tuple[Row, ...]
Rows: TypeAlias = tuple[tuple[int, Row], ...]


class Plan(NamedTuple):
    """What a writer does: put a row into a bucket, with another version. Untold, he ticks the table."""

    row: int
    bucket: int
    is_told: bool = True


class Change(NamedTuple):
    """A record: a row, and its bucket before and after."""

    row: int
    before: int
    after: int


class Entry(NamedTuple):
    rows: Rows
    epoch: int
    seq: int


class Memo(NamedTuple):
    """An entry, by its stamp, was seen to be fresh up to a seq."""

    epoch: int
    stamp: int
    verified: int


@dataclass(frozen=True, slots=True)
class Clock:
    epoch: int = 0
    seq: int = 0
    table: int = 0
    rows: int = 0
    log: tuple[Change | None, ...] = ()
    """The last records, the newest last."""
    intents: frozenset[tuple[int, Change | None]] = frozenset()
    older: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Writer:
    step: Literal["idle", "imaged", "open", "declared", "sent", "over", "dead"] = "idle"
    in_database: Literal["none", "open", "in flight", "committed", "rolled back"] = "none"
    change: Change | None = None
    version: int = 0


@dataclass(frozen=True, slots=True)
class Reader:
    reads_left: int
    step: Literal["idle", "begun", "entry", "reading", "stale", "selected"] = "idle"
    floor: int = 0
    entry: Entry | None = None
    clock: Clock | None = None
    rows: Rows = ()
    memo: Memo | None = None


@dataclass(frozen=True, slots=True)
class State:
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    history: tuple[Database, ...]
    """The states that were committed, the newest last."""
    clock: Clock
    floor: int = 0
    """The newest state whose COMMIT has returned."""
    entry: Entry | None = None
    crashes_left: int = 0
    losses_left: int = 0


class RecordModel(Search[State]):
    """
    The protocol with records, with the rules in *dropped* left out.

    Args:
        query: The rows of bucket 0, or row 0.
        start: The buckets of the rows.
        reads: How many each reader makes.
        log_length: Records that the log keeps.
        seq: Of the clock in the beginning; a new epoch begins at 0.
    """

    rules = RECORD_RULES

    def __init__(
        self,
        *,
        plans: tuple[Plan, ...],
        query: Literal["bucket", "row"] = "bucket",
        start: tuple[int, ...] = (0, 1),
        reads: tuple[int, ...] = (2,),
        crashes: int = 0,
        losses: int = 0,
        log_length: int = 2,
        seq: int = 0,
        dropped: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(dropped)
        self.plans, self.query, self.log_length = plans, query, log_length
        self.start = State(
            writers=(Writer(),) * len(plans),
            readers=tuple(map(Reader, reads)),
            history=(tuple((bucket, 0) for bucket in start),),
            clock=Clock(seq=seq, log=(None,) * min(seq, log_length)),
            crashes_left=crashes,
            losses_left=losses,
        )

    def result_of(self, database: Database) -> Rows:
        """Return what the query shows: rows with their numbers."""
        rows = tuple(enumerate(database))
        return rows[:1] if self.query == "row" else tuple(row for row in rows if row[1][0] == 0)

    def violation_of(self, state: State) -> str:
        """Property C, for a reader who knows nothing and for each one with what he remembers."""
        if state.entry is None:
            return ""
        true = self.result_of(state.history[-1])
        if state.entry.rows == true:
            return ""
        for memo in {None, *(reader.memo for reader in state.readers)}:
            if self.verified_to(state.entry, state.clock, state.clock, memo) is not None:
                return f"C: an entry with {state.entry.rows} can be served, the database holds {true}"
        return ""

    # -- the judgement of a reader -------------------------------------------------------------------------------------

    def excludes(self, change: Change | None) -> bool:
        """Return whether a change, judged alone, cannot have changed the result, whatever else happened."""
        if change is None:
            return False
        if self.query == "row":
            return change.row != 0
        was_apart = change.before != 0 or not self.keeps("before-image")
        is_apart = change.after != 0 or not self.keeps("after-image")
        return was_apart and is_apart

    def verified_to(self, entry: Entry, reading: Clock, now: Clock, memo: Memo | None) -> int | None:
        """Return the seq up to which the entry is fresh, or None. *now* is the clock when the log is asked for."""
        if entry.epoch != reading.epoch:
            return None
        since = entry.seq
        if (
            memo is not None
            and (memo.stamp == entry.seq or not self.keeps("memo of the entry"))
            and (memo.epoch == entry.epoch or not self.keeps("memo of the epoch"))
        ):
            since = max(since, memo.verified)
        if reading.table > since and self.keeps("change of the table"):
            return None
        if self.keeps("intents are judged"):
            for writer, record in reading.intents:
                is_untold = record is None and (writer == HOLD or self.keeps("intent without record"))
                if is_untold or (record is not None and not self.excludes(record)):
                    return None
        if reading.rows <= since:
            return since
        if not self.is_quiet(self.log(now, reading.epoch, since, reading.seq)):
            return None
        return reading.seq if self.keeps("as far as the reading") else now.seq

    def is_quiet(self, records: list[Change | None] | None) -> bool:
        """Return whether no record could have changed the result. None are records that are not all there."""
        if records is None:
            return not self.keeps("gap")
        told = [record for record in records if record is not None]
        if not self.keeps("every record"):
            told = told[-1:]
        if not self.keeps("judged alone"):
            steps: dict[int, Change] = {}
            for record in told:
                before = steps[record.row].before if record.row in steps else record.before
                steps[record.row] = Change(record.row, before, record.after)
            told = list(steps.values())
        return all(map(self.excludes, told))

    def log(self, clock: Clock, epoch: int, after: int, until: int) -> list[Change | None] | None:
        """Ledger.log()."""
        if self.keeps("log of the epoch") and clock.epoch != epoch:
            return None
        if after < clock.seq - len(clock.log):
            return None
        first = clock.seq - len(clock.log) + 1
        return list(clock.log[after + 1 - first : until + 1 - first])

    # -- steps ---------------------------------------------------------------------------------------------------------

    def writer_steps(self, state: State, index: int) -> Iterator[tuple[str, State]]:
        writer, plan = state.writers[index], self.plans[index]
        if writer.step == "idle" and not self.keeps("images under the lock"):
            yield "reads the row", _with_writer(state, index, step="imaged", change=self.change_of(state, plan))
        is_locked = any(
            other.in_database in ("open", "in flight") and self.plans[number].row == plan.row
            for number, other in enumerate(state.writers)
        )
        if not is_locked and writer.step == ("idle" if self.keeps("images under the lock") else "imaged"):
            change = self.change_of(state, plan) if writer.step == "idle" else writer.change
            yield "UPDATE", _with_writer(state, index, step="open", in_database="open", change=change)
        record = writer.change if plan.is_told else None
        if writer.step == "open":
            intents = state.clock.intents | {(index, record)}
            declared = _with_writer(state, index, step="declared")
            yield "declares", replace(declared, clock=replace(state.clock, intents=intents))
        if writer.step == "declared":
            yield "sends COMMIT", _with_writer(state, index, step="sent", in_database="in flight")
        if writer.step == "sent" and writer.in_database == "committed":
            over = _with_writer(state, index, step="over")
            clock = _without_intent(self.ticked(state.clock, record, is_table=not plan.is_told), index)
            floor = max(state.floor, writer.version)
            yield "ticks, and COMMIT returns", replace(over, clock=clock, floor=floor)
        if writer.step in ("declared", "sent") and state.crashes_left:
            is_open = writer.in_database == "open"
            dead = _with_writer(state, index, step="dead", in_database="rolled back" if is_open else writer.in_database)
            yield "is killed", replace(dead, crashes_left=state.crashes_left - 1)
        if writer.in_database == "in flight":
            database = list(state.history[-1])
            database[plan.row] = (plan.bucket, database[plan.row][1] + 1)
            committed = _with_writer(state, index, in_database="committed", version=len(state.history))
            yield "the database commits", replace(committed, history=(*state.history, tuple(database)))
            if writer.step == "dead":
                yield "the database rolls back", _with_writer(state, index, in_database="rolled back")

    def change_of(self, state: State, plan: Plan) -> Change:
        return Change(plan.row, state.history[-1][plan.row][0], plan.bucket)

    def ticked(self, clock: Clock, record: Change | None, *, is_table: bool) -> Clock:
        seq = clock.seq + 1
        log = (*clock.log, record)[-self.log_length :]
        if is_table:
            return replace(clock, seq=seq, log=log, table=seq)
        return replace(clock, seq=seq, log=log, rows=seq)

    def ledger_steps(self, state: State) -> Iterator[tuple[str, State]]:
        clock = state.clock
        if state.losses_left:
            older = frozenset(i for i, w in enumerate(state.writers) if w.in_database in ("open", "in flight"))
            born = Clock(epoch=clock.epoch + 1, intents=frozenset({(HOLD, None)}), older=older)
            yield "is lost, and born again", replace(state, clock=born, losses_left=state.losses_left - 1)
        for index, record in clock.intents:
            if index == HOLD:
                if all(state.writers[i].in_database in ("committed", "rolled back") for i in clock.older):
                    lifted = self.ticked(_without_intent(clock, HOLD), None, is_table=True)
                    yield "the hold ends", replace(state, clock=lifted)
            elif state.writers[index].step == "dead" and state.writers[index].in_database != "in flight":
                told = record if self.keeps("reaping tells") else None
                reaped = self.ticked(_without_intent(clock, index), told, is_table=record is None)
                yield f"the intent of writer {index} is reaped", replace(state, clock=reaped)

    def reader_steps(self, state: State, index: int) -> Iterator[tuple[str, State, str]]:
        reader = state.readers[index]
        if reader.step == "idle" and reader.reads_left:
            yield "begins", with_reader(state, index, step="begun", floor=state.floor), ""
        if reader.step == "begun":
            yield "gets the entry", with_reader(state, index, step="entry", entry=state.entry), ""
        if reader.step == "entry":
            yield "reads the ledger", with_reader(state, index, step="reading", clock=state.clock), ""
        if reader.step == "reading":
            entry, clock = reader.entry, reader.clock
            assert clock is not None
            verified = None if entry is None else self.verified_to(entry, clock, state.clock, reader.memo)
            if entry is None or verified is None:
                rows = self.result_of(state.history[-1])
                yield "SELECT", with_reader(state, index, step="selected", rows=rows, entry=None), ""
                return
            violation = ""
            if entry.rows not in map(self.result_of, state.history[reader.floor :]):
                violation = f"A: {entry.rows} was served, which the query has not shown since the read began"
            if verified == entry.seq:
                yield "is served from the cache", _read_done(state, index, reader.memo), violation
                return
            memo = Memo(entry.epoch, entry.seq, verified)
            yield "is served, and remembers", _read_done(state, index, memo), violation
            again = replace(_read_done(state, index, reader.memo), entry=entry._replace(seq=verified))
            yield "is served, and stores again", again, violation
        if reader.step == "selected":
            assert reader.clock is not None
            entry = Entry(reader.rows, reader.clock.epoch, reader.clock.seq)
            yield "stores", replace(_read_done(state, index, reader.memo), entry=entry), ""


def _without_intent(clock: Clock, index: int) -> Clock:
    return replace(clock, intents=frozenset(intent for intent in clock.intents if intent[0] != index))


def _with_writer(state: State, index: int, **changes: object) -> State:
    writer = replace(state.writers[index], **changes)  # type: ignore[arg-type]  # names of Writer's own fields
    return replace(state, writers=(*state.writers[:index], writer, *state.writers[index + 1 :]))


def _read_done(state: State, index: int, memo: Memo | None) -> State:
    done = Reader(state.readers[index].reads_left - 1, memo=memo)
    return replace(state, readers=(*state.readers[:index], done, *state.readers[index + 1 :]))
