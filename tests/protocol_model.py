"""
An explicit-state model of the protocol in docs/explanation/consistency.md, small enough to be searched completely.

One table with one row, writers in transactions, readers that fill and read one entry, crashes, and lost ledgers. Every
interleaving of the steps is visited, breadth first, so that a counterexample is a shortest one. The steps are those of
the code: live_cache.writes.transactions for writers, live_cache.reader for readers, live_cache.ledger for the clock.

Two properties:

    A  a read that is served from the cache never returns less than a commit that had returned when the read began;
    C  an entry that could be served at this moment is what the database holds (this covers crashes, where no commit
       ever returns).

Each rule of the protocol can be dropped; test_protocol_model.py shows that the search then finds a counterexample.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final, Literal

from tests.state_search import Search, with_reader

__all__ = ["HOLD", "RULES", "Model"]

HOLD: Final = -1
"""The intent that a new clock is born with."""

RULES: Final[dict[str, str]] = {
    "stamp before select": "the stamp is read before the SELECT, not after it",
    "intent": "a transaction declares its intent before COMMIT",
    "intent blocks hits": "an entry that an open intent touches is not served",
    "tick": "the tick follows COMMIT",
    "tick without intent": "the tick happens even if the intent or the epoch is gone",
    "tick before return": "COMMIT returns to the caller only after the tick, or with the tick under way",
    "under way with intent": "a tick is left under way only if the intent was declared",
    "under way of a transaction": "a tick is left under way only if its transaction had written when it was declared",
    "under way in time": "a tick is left under way only before a hold that began since the intent can end by its lease",
    "reaping ticks": "who reaps an intent ticks its slots",
    "fence": "an intent is reaped only when the database says that its transaction is over",
    "unknown outcome": "an intent stays when the answer to COMMIT was lost",
    "epoch": "an entry of another epoch is not fresh",
    "hold": "a new clock is born with a hold",
    "hold fence": "the hold ends only when every transaction from before the birth is over",
    "hold ends with a tick": "what was filled under the hold is not fresh after it",
    "no snapshot fills": "a reader with an older snapshot does not fill",
    "slot check": "an entry is not fresh if its slot was ticked after its stamp",
    "writers' lock": "the hold ends only when no unannounced writer from before the birth is left",
    "lock before look": "an unannounced writer takes the lock before he looks for the clock",
    "look after": "an unannounced writer ticks a clock that was born meanwhile",
}

WriterStep = Literal["idle", "open", "declared", "sent", "ticking", "locked", "looked", "unannounced", "over", "dead"]
InDatabase = Literal["none", "open", "in flight", "committed", "rolled back"]
ReaderStep = Literal["idle", "begun", "entry", "reading", "selected"]


@dataclass(frozen=True, slots=True)
class Writer:
    step: WriterStep = "idle"
    in_database: InDatabase = "none"
    version: int = 0
    declared_in: int | None = None
    """The epoch of the clock, or of the last one there was, when the ledger answered the declaration."""
    is_statement: bool = False
    """Whether it declares a statement in autocommit mode, before it is sent."""
    is_late: bool = False
    """Whether the lease of a hold that began after the declaration is over."""


@dataclass(frozen=True, slots=True)
class Entry:
    version: int
    epoch: int
    seq: int


@dataclass(frozen=True, slots=True)
class Clock:
    epoch: int = 0
    seq: int = 0
    slot: int = 0
    intents: frozenset[int] = frozenset()
    older: frozenset[int] | None = frozenset()
    """Writers that were in progress when the database was asked, after the birth; None before that."""
    is_there: bool = True
    """Whether it exists."""


@dataclass(frozen=True, slots=True)
class Reader:
    reads_left: int
    step: ReaderStep = "idle"
    floor: int = 0
    entry: Entry | None = None
    clock: Clock | None = None
    version: int = 0
    snapshot: int | None = None


@dataclass(frozen=True, slots=True)
class State:
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    clock: Clock = Clock()
    committed: int = 0
    floor: int = 0
    """The newest version whose COMMIT has returned to its caller."""
    locked_by: int | None = None
    entry: Entry | None = None
    crashes_left: int = 0
    losses_left: int = 0


class Model(Search[State]):
    """The protocol, with the rules in *dropped* left out."""

    rules = RULES

    def __init__(
        self,
        *,
        writers: int = 1,
        readers: int = 2,
        reads: int = 2,
        crashes: int = 0,
        losses: int = 0,
        snapshot_reader: bool = False,
        unwatched: bool = False,
        serves: bool = False,
        statements: bool = False,
        properties: str = "AC",
        dropped: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(dropped)
        self.properties = properties
        self.serves = serves
        self.statements = statements
        first = Reader(reads, snapshot=0) if snapshot_reader else Reader(reads)
        self.start = State(
            writers=(Writer(),) * writers,
            readers=(first, *(Reader(reads) for _ in range(readers - 1))),
            crashes_left=crashes,
            losses_left=losses,
            # A clock with a past: a new epoch begins below it.
            clock=Clock(seq=3, slot=3, is_there=not unwatched),
        )

    def violation_of(self, state: State) -> str:
        """Property C."""
        entry = state.entry
        if "C" not in self.properties or entry is None:
            return ""
        if self.is_fresh(entry, state.clock) and entry.version != state.committed:
            return f"C: an entry with version {entry.version} can be served, the database holds {state.committed}"
        return ""

    def is_fresh(self, entry: Entry, clock: Clock) -> bool:
        """ledger.clocks.is_fresh()."""
        return (
            clock.is_there
            and (entry.epoch == clock.epoch or not self.keeps("epoch"))
            and (clock.slot <= entry.seq or not self.keeps("slot check"))
            and (not clock.intents or not self.keeps("intent blocks hits"))
        )

    # -- writers ------------------------------------------------------------------------------------------------------

    def writer_steps(self, state: State, index: int) -> Iterator[tuple[str, State]]:
        writer = state.writers[index]
        if writer.step == "idle" and state.locked_by is None:
            yield "UPDATE", _with_writer(state, index, step="open", in_database="open", locked_by=index)
        if writer.step == "idle" and self.statements:
            statement = _with_writer(state, index, step="open")
            yield "has a statement to send", _with_statement(statement, index)
        yield from self.unannounced_steps(state, index)
        if writer.step == "open":
            declared = _with_writer(state, index, step="declared", declared_in=state.clock.epoch)
            if self.keeps("intent") and state.clock.is_there:
                declared = replace(declared, clock=_with_intent(state.clock, index))
            yield "declares", declared
            if self.serves:
                yield "does not reach the ledger, and goes on", _with_writer(state, index, step="declared")
        if writer.step == "declared" and not writer.is_statement:
            yield "sends COMMIT", _with_writer(state, index, step="sent", in_database="in flight")
        if writer.step == "declared" and writer.is_statement and state.locked_by is None:
            yield (
                "sends the statement",
                _with_writer(state, index, step="sent", in_database="in flight", locked_by=index),
            )
        if writer.step in ("open", "declared") and not writer.is_statement:
            rolled_back = _with_writer(state, index, step="over", in_database="rolled back", locked_by=None)
            yield "ROLLBACK", replace(rolled_back, clock=_without_intent(state.clock, index))
        if writer.step == "sent" and writer.in_database == "committed":
            yield "ticks, and COMMIT returns", self.tick_of(state, index)
            if not self.keeps("tick before return"):
                yield "COMMIT returns before the tick", replace(state, floor=max(state.floor, writer.version))
            if self.may_leave_tick(writer):
                under_way = _with_writer(state, index, step="ticking")
                yield (
                    "COMMIT returns, the tick is under way",
                    replace(under_way, floor=max(state.floor, writer.version)),
                )
        if writer.step == "ticking":
            yield "the tick arrives", self.tick_of(state, index)
        if writer.step == "sent" and state.crashes_left:
            lost = _with_writer(state, index, step="dead", crashes_left=state.crashes_left - 1)
            if not self.keeps("unknown outcome"):
                lost = replace(lost, clock=_without_intent(state.clock, index))
            yield "loses the answer to COMMIT", lost
        killable = ("open", "declared", "sent", "ticking", "locked", "looked", "unannounced")
        if writer.step in killable and state.crashes_left:
            is_open = writer.in_database == "open"
            yield (
                "is killed",
                _with_writer(
                    state,
                    index,
                    step="dead",
                    in_database="rolled back" if is_open else writer.in_database,
                    locked_by=None if is_open else state.locked_by,
                    crashes_left=state.crashes_left - 1,
                ),
            )
        if writer.in_database == "in flight":
            version = state.committed + 1
            committed = _with_writer(state, index, in_database="committed", version=version, locked_by=None)
            yield "the database commits", replace(committed, committed=version)
            if writer.step == "dead":
                yield "the database rolls back", _with_writer(state, index, in_database="rolled back", locked_by=None)

    def unannounced_steps(self, state: State, index: int) -> Iterator[tuple[str, State]]:
        """A statement in autocommit mode on a table without a clock. The lock goes with its end, or the writer's."""
        writer = state.writers[index]
        first, second = ("locked", "looked") if self.keeps("lock before look") else ("looked", "locked")
        if writer.step == "idle" and not state.clock.is_there:
            yield f"has {first}, unannounced", _with_writer(state, index, step=first)
        if writer.step == first and (second == "locked" or not state.clock.is_there):
            yield f"has {second}", _with_writer(state, index, step=second)
        if writer.step == "locked" and state.clock.is_there and second == "looked":
            yield "finds a clock", _with_writer(state, index, step="idle")
        if writer.step == second and state.locked_by is None:
            yield (
                "sends the statement",
                _with_writer(state, index, step="unannounced", in_database="in flight", locked_by=index),
            )
        if writer.step == "unannounced" and writer.in_database == "committed":
            clock = _ticked(state.clock) if self.keeps("look after") and state.clock.is_there else state.clock
            over = _with_writer(state, index, step="over")
            yield "the statement returns", replace(over, clock=clock, floor=max(state.floor, writer.version))

    def may_leave_tick(self, writer: Writer) -> bool:
        """Return whether this writer's COMMIT may return while its tick is under way."""
        is_declared = writer.declared_in is not None or not self.keeps("under way with intent")
        is_known = not (writer.is_statement and self.keeps("under way of a transaction"))
        return is_declared and is_known and not (writer.is_late and self.keeps("under way in time"))

    def tick_of(self, state: State, index: int) -> State:
        writer = state.writers[index]
        clock = state.clock
        if self.keeps("tick") and clock.is_there and (index in clock.intents or self.keeps("tick without intent")):
            clock = _ticked(clock)
        over = _with_writer(state, index, step="over")
        return replace(over, clock=_without_intent(clock, index), floor=max(state.floor, writer.version))

    # -- the ledger ---------------------------------------------------------------------------------------------------

    def ledger_steps(self, state: State) -> Iterator[tuple[str, State]]:
        clock = state.clock
        if state.losses_left:
            lost = Clock(epoch=clock.epoch, is_there=False)
            yield "is lost", replace(state, clock=lost, losses_left=state.losses_left - 1)
        if not clock.is_there:
            yield "is born of somebody else's reading", replace(state, clock=self.newborn(clock))
        locked = {"locked", "unannounced"} | ({"looked"} if self.keeps("lock before look") else set())
        is_locked = any(w.step in locked for w in state.writers)
        if clock.is_there and clock.older is None and not (is_locked and self.keeps("writers' lock")):
            older = frozenset(i for i, w in enumerate(state.writers) if w.in_database in ("open", "in flight"))
            yield "the database is asked for writers", replace(state, clock=replace(clock, older=older))
        for index in clock.intents:
            if index == HOLD:
                past = clock.older is not None and all(
                    state.writers[i].in_database in ("committed", "rolled back") for i in clock.older
                )
                if past or not self.keeps("hold fence"):
                    lifted = _without_intent(clock, HOLD)
                    ended = replace(state, clock=_ticked(lifted) if self.keeps("hold ends with a tick") else lifted)
                    yield "the hold ends", ended if past else _later(ended)
            elif state.writers[index].in_database in ("committed", "rolled back") or not self.keeps("fence"):
                reaped = _ticked(clock) if self.keeps("reaping ticks") else clock
                yield f"the intent of writer {index} is reaped", replace(state, clock=_without_intent(reaped, index))

    def newborn(self, lost: Clock) -> Clock:
        return Clock(lost.epoch + 1, intents=frozenset({HOLD}) if self.keeps("hold") else frozenset(), older=None)

    # -- readers ------------------------------------------------------------------------------------------------------

    def reader_steps(self, state: State, index: int) -> Iterator[tuple[str, State, str]]:
        reader = state.readers[index]
        if reader.step == "idle" and reader.reads_left:
            yield "begins", with_reader(state, index, step="begun", floor=state.floor), ""
        if reader.step == "begun":
            yield "gets the entry", with_reader(state, index, step="entry", entry=state.entry), ""
        if reader.step == "entry":
            entry = reader.entry
            if entry is not None and self.is_fresh(entry, state.clock) and reader.snapshot is None:
                violation = ""
                if "A" in self.properties and entry.version < reader.floor:
                    violation = f"A: version {entry.version} was served, {reader.floor} had been committed before"
                yield "is served from the cache", _read_done(state, index), violation
            else:
                read = state if state.clock.is_there else replace(state, clock=self.newborn(state.clock))
                yield "reads the ledger", with_reader(read, index, step="reading", clock=read.clock), ""
        if reader.step == "reading":
            version = state.committed if reader.snapshot is None else reader.snapshot
            yield "SELECT", with_reader(state, index, step="selected", version=version), ""
        if reader.step == "selected":
            stored = _read_done(state, index)
            if reader.snapshot is None or not self.keeps("no snapshot fills"):
                clock = reader.clock if self.keeps("stamp before select") else state.clock
                assert clock is not None
                stored = replace(stored, entry=Entry(reader.version, clock.epoch, clock.seq))
            yield "stores", stored, ""


def _ticked(clock: Clock) -> Clock:
    return replace(clock, seq=clock.seq + 1, slot=clock.seq + 1)


def _with_intent(clock: Clock, index: int) -> Clock:
    return replace(clock, intents=clock.intents | {index})


def _without_intent(clock: Clock, index: int) -> Clock:
    return replace(clock, intents=clock.intents - {index})


def _with_statement(state: State, index: int) -> State:
    writer = replace(state.writers[index], is_statement=True)
    return replace(state, writers=(*state.writers[:index], writer, *state.writers[index + 1 :]))


def _later(state: State) -> State:
    """Return *state* after the lease of the clock's hold: who had declared before its birth is late."""
    epoch = state.clock.epoch
    is_late = [w.is_late or (w.declared_in is not None and w.declared_in < epoch) for w in state.writers]
    return replace(state, writers=tuple(map(_with_lateness, state.writers, is_late)))


def _with_lateness(writer: Writer, is_late: bool) -> Writer:
    return replace(writer, is_late=is_late and writer.step in ("declared", "sent"))


_UNCHANGED: Final = object()


def _with_writer(
    state: State,
    index: int,
    *,
    step: WriterStep | None = None,
    in_database: InDatabase | None = None,
    version: int | None = None,
    locked_by: object = _UNCHANGED,
    crashes_left: int | None = None,
    declared_in: int | None = None,
) -> State:
    old = state.writers[index]
    writer = replace(
        old,
        step=step or old.step,
        in_database=in_database or old.in_database,
        version=old.version if version is None else version,
        declared_in=old.declared_in if declared_in is None else declared_in,
    )
    writers = (*state.writers[:index], writer, *state.writers[index + 1 :])
    lock = state.locked_by if locked_by is _UNCHANGED else locked_by
    assert lock is None or isinstance(lock, int)
    crashes = state.crashes_left if crashes_left is None else crashes_left
    return replace(state, writers=writers, locked_by=lock, crashes_left=crashes)


def _read_done(state: State, index: int) -> State:
    reader = state.readers[index]
    fresh = Reader(reader.reads_left - 1, snapshot=reader.snapshot)
    return replace(state, readers=(*state.readers[:index], fresh, *state.readers[index + 1 :]))
