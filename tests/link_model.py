"""
An explicit-state model of link sets: verdicts on one table that rest on what another table holds when it is asked.

The query shows the rows of a table whose partner, a row of another table, fulfils a condition: ``Order.filter(
customer__is_trade=True)``. Here they are *orders*, each with the number of its customer and a version, and *customers*,
each of whom is told by whether the condition is true of him. The database enforces the foreign key. Writers change rows
of both tables in one transaction or in several, and tick the two clocks one after the other, in any order; readers read
the clocks one after the other, too.

What record_model.py shows of one clock (epochs, logs that are too short, crashes) is left out here. The properties are
the same, A and C.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, TypeAlias

from tests.state_search import Search, with_reader

__all__ = ["LINK_RULES", "LinkModel", "Write"]

LINK_RULES: Final[dict[str, str]] = {
    "clocks after the set": "the verdict is given under readings that were requested after the set was read",
    "set after the entry": "the set is not older than the entry",
    "committed set": "the set holds nothing that is not committed",
    "linked table is judged": "the changes of the linked table are judged, too",
    "intents are judged": "a change in commit is judged like one that was ticked",
    "no circle": "no verdict on the linked table rests on what the other table holds now",
    "who fulfils the condition may matter": "a customer for whom it is true may matter though he is new or gone",
}

Table: TypeAlias = Literal["orders", "customers"]
TABLES: Final[tuple[Table, Table]] = ("orders", "customers")
Order: TypeAlias = "tuple[int | None, int]"
"""The customer's number, and a version."""
Image: TypeAlias = "Order | bool | None"
"""Of an order; of a customer, whether the condition is true of him; None of a row that is not there."""
Rows: TypeAlias = "tuple[tuple[int, Order], ...]"


class Write(NamedTuple):
    """What a transaction does to one row."""

    table: Table
    row: int
    after: Image


class Change(NamedTuple):
    """What a record tells of a row."""

    table: Table
    row: int
    before: Image
    after: Image


class Database(NamedTuple):
    orders: tuple[Order | None, ...]
    customers: tuple[bool | None, ...]

    def result(self) -> Rows:
        """Return what the query shows."""
        return tuple(
            (number, order)
            for number, order in enumerate(self.orders)
            if order is not None and order[0] is not None and self.customers[order[0]] is True
        )

    def is_allowed(self) -> bool:
        """Return whether each order's customer is there."""
        known = {number for number, customer in enumerate(self.customers) if customer is not None}
        return all(order is None or order[0] is None or order[0] in known for order in self.orders)

    def after(self, changes: tuple[Change, ...]) -> Database:
        tables: dict[Table, list[Image]] = {"orders": list(self.orders), "customers": list(self.customers)}
        for change in changes:
            tables[change.table][change.row] = change.after
        return Database(tuple(tables["orders"]), tuple(tables["customers"]))  # type: ignore[arg-type]  # by table


class Entry(NamedTuple):
    rows: Rows
    stamps: tuple[int, int]
    """Ticks of the two clocks when the read began."""
    filled: int
    """The state of the database that the rows are of, for those who know the future."""


class Reading(NamedTuple):
    """A clock as it was when it was asked: its records, and those of its intents."""

    log: tuple[tuple[Change, ...], ...] = ()
    intents: frozenset[tuple[int, tuple[Change, ...]]] = frozenset()


class Sets(NamedTuple):
    """What was read for a verdict."""

    fulfilling: frozenset[int]
    """Customers for whom the condition is true: the link set."""
    ordering: frozenset[int]
    """Customers who have an order: for a link in the other direction, which there must not be."""


@dataclass(frozen=True, slots=True)
class Writer:
    step: Literal["idle", "open", "declared", "ticking", "over"] = "idle"
    changes: tuple[Change, ...] = ()
    version: int = 0
    unticked: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class Reader:
    reads_left: int
    step: Literal["idle", "begun", "entry", "wants", "again", "verdict", "missed", "selected"] = "idle"
    floor: int = 0
    entry: Entry | None = None
    readings: tuple[Reading, ...] = ()
    sets: Sets | None = None
    rows: Rows = ()
    filled: int = 0
    verified: tuple[Entry, tuple[int, int]] | None = None
    """An entry, and how far it was seen to be fresh."""


@dataclass(frozen=True, slots=True)
class State:
    writers: tuple[Writer, ...]
    readers: tuple[Reader, ...]
    history: tuple[Database, ...]
    """The states that were committed, the newest last."""
    clocks: tuple[Reading, ...] = field(default=(Reading(), Reading()))
    floor: int = 0
    """The newest state whose COMMIT has returned."""
    entry: Entry | None = None


class LinkModel(Search[State]):
    """
    Two tables and their clocks, with the rules in *dropped* left out.

    Args:
        plans: What each writer does in one transaction.
        orders: The customers' numbers of the orders that are there.
        customers: Whether the condition is true of each; None of one that is not there.
        reads: How many each reader makes.
    """

    rules = LINK_RULES

    def __init__(
        self,
        *,
        plans: tuple[tuple[Write, ...], ...],
        orders: tuple[int | None, ...] = (0,),
        customers: tuple[bool | None, ...] = (False, True),
        reads: tuple[int, ...] = (2,),
        dropped: frozenset[str] = frozenset(),
    ) -> None:
        super().__init__(dropped)
        self.plans = plans
        database = Database(tuple(None if number == _NO_ORDER else (number, 0) for number in orders), customers)
        self.start = State((Writer(),) * len(plans), tuple(map(Reader, reads)), (database,))

    def violation_of(self, state: State) -> str:
        """Property C, for a reader who knows nothing and for each one with what he remembers."""
        entry, now = state.entry, state.history[-1]
        if entry is None or entry.rows == now.result():
            return ""
        for verified in {None, *(reader.verified for reader in state.readers)}:
            if self.is_fresh(entry, state.clocks, _sets_of(now), verified):
                return f"C: an entry with {entry.rows} can be served, the database holds {now.result()}"
        return ""

    # -- the judgement of a reader -------------------------------------------------------------------------------------

    def is_fresh(
        self,
        entry: Entry,
        readings: tuple[Reading, ...],
        sets: Sets | None,
        verified: tuple[Entry, tuple[int, int]] | None,
    ) -> bool:
        """Return whether no change could have changed the result; without *sets*, as if they excluded the most."""
        since = verified[1] if verified is not None and verified[0] == entry else entry.stamps
        for index, reading in enumerate(readings):
            if TABLES[index] == "customers" and not self.keeps("linked table is judged"):
                continue
            records = list(reading.log[since[index] :])
            if self.keeps("intents are judged"):
                records += [changes for _, changes in reading.intents]
            if not all(self.excludes(change, sets) for record in records for change in record):
                return False
        return True

    def excludes(self, change: Change, sets: Sets | None) -> bool:
        """Return whether the change cannot have changed the result, judged alone."""
        if change.before == change.after:
            return True
        images = (change.before, change.after)
        if change.table == "orders":
            fulfilling = frozenset() if sets is None else sets.fulfilling
            return all(not isinstance(image, tuple) or image[0] not in fulfilling for image in images)
        if True not in images:
            return True
        if not self.keeps("who fulfils the condition may matter") and None in images:
            return True
        ordering = frozenset() if sets is None else sets.ordering
        return not self.keeps("no circle") and change.row not in ordering

    # -- steps ---------------------------------------------------------------------------------------------------------

    def writer_steps(self, state: State, index: int) -> Iterator[tuple[str, State]]:
        writer = state.writers[index]
        if writer.step == "idle":
            now = state.history[-1]
            changes = tuple(Change(w.table, w.row, getattr(now, w.table)[w.row], w.after) for w in self.plans[index])
            if not now.after(changes).is_allowed():
                yield "is refused by the foreign key", _with_writer(state, index, step="over")
                return
            others = (other for number, other in enumerate(state.writers) if number != index)
            taken = {lock for other in others if other.step in ("open", "declared") for lock in _locks(other.changes)}
            if not taken.intersection(_locks(changes)):
                yield "writes", _with_writer(state, index, step="open", changes=changes)
        tables = frozenset(TABLES.index(change.table) for change in writer.changes)
        if writer.step == "open":
            clocks = list(state.clocks)
            for each in tables:
                record = _of_table(writer.changes, each)
                clocks[each] = clocks[each]._replace(intents=clocks[each].intents | {(index, record)})
            yield "declares", replace(_with_writer(state, index, step="declared"), clocks=tuple(clocks))
        if writer.step == "declared":
            database = state.history[-1].after(writer.changes)
            sent = _with_writer(state, index, step="ticking", version=len(state.history), unticked=tables)
            yield "commits", replace(sent, history=(*state.history, database))
        if writer.step == "ticking":
            for each in writer.unticked:
                rest = writer.unticked - {each}
                record = _of_table(writer.changes, each)
                clocks = list(state.clocks)
                clocks[each] = Reading((*clocks[each].log, record), clocks[each].intents - {(index, record)})
                ticked = _with_writer(state, index, unticked=rest, step="ticking" if rest else "over")
                floor = state.floor if rest else max(state.floor, writer.version)
                yield f"ticks {TABLES[each]}", replace(ticked, clocks=tuple(clocks), floor=floor)

    def ledger_steps(self, state: State) -> Iterator[tuple[str, State]]:
        """Nothing happens to the ledger by itself."""
        return iter(())

    def reader_steps(self, state: State, index: int) -> Iterator[tuple[str, State, str]]:
        reader = state.readers[index]
        if reader.step == "idle" and reader.reads_left:
            yield "begins", with_reader(state, index, step="begun", floor=state.floor), ""
        if reader.step == "begun":
            yield "gets the entry", with_reader(state, index, step="entry", entry=state.entry, readings=()), ""
        if reader.step in ("entry", "again") and len(reader.readings) < len(TABLES):
            clock = len(reader.readings)
            readings = (*reader.readings, state.clocks[clock])
            yield f"reads the clock of {TABLES[clock]}", with_reader(state, index, readings=readings), ""
        elif reader.step == "entry":
            is_kept = reader.entry is not None and self.is_fresh(reader.entry, reader.readings, None, reader.verified)
            yield "judges without the set", with_reader(state, index, step="wants" if is_kept else "missed"), ""
        elif reader.step == "again":
            yield "has clocks read after the set", with_reader(state, index, step="verdict"), ""
        if reader.step == "wants":
            following = {"step": "again", "readings": ()} if self.keeps("clocks after the set") else {"step": "verdict"}
            for sets in self.sets(state, reader):
                yield f"reads {sorted(sets.fulfilling)}", with_reader(state, index, sets=sets, **following), ""
        if reader.step == "verdict":
            yield from self._verdict(state, index)
        if reader.step == "missed":
            now = len(state.history) - 1
            rows = state.history[now].result()
            yield "SELECT", with_reader(state, index, step="selected", rows=rows, filled=now), ""
        if reader.step == "selected":
            entry = Entry(reader.rows, _seqs(reader.readings), reader.filled)
            yield "stores", replace(_read_done(state, index, reader.verified), entry=entry), ""

    def sets(self, state: State, reader: Reader) -> Iterator[Sets]:
        """Yield what the sets may be."""
        assert reader.entry is not None
        yield _sets_of(state.history[-1])
        if not self.keeps("set after the entry"):
            yield from map(_sets_of, state.history[: reader.entry.filled])
        if not self.keeps("committed set"):
            for writer in state.writers:
                if writer.step in ("open", "declared"):
                    yield _sets_of(state.history[-1].after(writer.changes))

    def _verdict(self, state: State, index: int) -> Iterator[tuple[str, State, str]]:
        reader = state.readers[index]
        entry = reader.entry
        assert entry is not None
        if not self.is_fresh(entry, reader.readings, reader.sets, reader.verified):
            yield "drops the entry", with_reader(state, index, step="missed"), ""
            return
        violation = ""
        if entry.rows not in [database.result() for database in state.history[reader.floor :]]:
            violation = f"A: {entry.rows} was served, which the query has not shown since the read began"
        stamps = _seqs(reader.readings)
        yield "is served, and remembers", _read_done(state, index, (entry, stamps)), violation
        again = replace(_read_done(state, index, reader.verified), entry=entry._replace(stamps=stamps))
        yield "is served, and stores again", again, violation


_NO_ORDER: Final = -1


def _sets_of(database: Database) -> Sets:
    fulfilling = frozenset(number for number, customer in enumerate(database.customers) if customer is True)
    return Sets(fulfilling, frozenset(o[0] for o in database.orders if o is not None and o[0] is not None))


def _locks(changes: tuple[Change, ...]) -> set[tuple[Table, int]]:
    """Return the rows that *changes* lock: their own, and the customers that they refer to."""
    own = {(change.table, change.row) for change in changes}
    referred: set[tuple[Table, int]] = {
        ("customers", image[0])
        for change in changes
        for image in (change.after,)
        if isinstance(image, tuple) and image[0] is not None
    }
    return own | referred


def _of_table(changes: tuple[Change, ...], index: int) -> tuple[Change, ...]:
    return tuple(change for change in changes if change.table == TABLES[index])


def _seqs(readings: tuple[Reading, ...]) -> tuple[int, int]:
    orders, customers = readings
    return len(orders.log), len(customers.log)


def _with_writer(state: State, index: int, **changes: object) -> State:
    writer = replace(state.writers[index], **changes)  # type: ignore[arg-type]  # names of Writer's own fields
    return replace(state, writers=(*state.writers[:index], writer, *state.writers[index + 1 :]))


def _read_done(state: State, index: int, verified: tuple[Entry, tuple[int, int]] | None) -> State:
    done = Reader(state.readers[index].reads_left - 1, verified=verified)
    return replace(state, readers=(*state.readers[:index], done, *state.readers[index + 1 :]))
