"""The state machine: two connections, random querysets, writes, transactions and faults; every read is compared."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, ClassVar

from django.db import Error, connections
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from live_cache import invalidate, recording
from live_cache.assembly import close_all, get_assembly
from live_cache.reader import ReadRecord
from tests.machine.actors import Actor
from tests.machine.faults import FickleLedger, Holds, corrupt_entries, reap_everything, restart_process, swap_entries
from tests.machine.queries import Outcome, Spec, read, resolve, specs
from tests.machine.shop import Shop
from tests.machine.writes import COMMON_WRITES, RAW_WRITES, WRITES
from tests.testapp.models import Author, Book

__all__ = ["running_machine"]

_MAX_WATCHED = 3

Write = tuple[str, int, int]
Writes = list[Write]

either = st.integers(0, 1)
numbers = st.integers(0, 3)
writes = st.tuples(st.one_of(st.sampled_from(COMMON_WRITES), st.sampled_from(sorted(WRITES))), numbers, numbers)
some_writes = st.lists(writes, min_size=1, max_size=3)
common_writes = st.lists(st.tuples(st.sampled_from(COMMON_WRITES), numbers, numbers), min_size=2, max_size=4)


@contextmanager
def running_machine(alias: str, holds: Holds, *, is_shared: bool = False) -> Iterator[type[LiveReads]]:
    """
    Make the machine for one database. *is_shared*: the ledger outlives the process.

    Its rows, threads and connections are made once, and renewed for each example.
    """
    shop = Shop(alias)
    actors = [Actor(alias), Actor(alias)]
    parts = {"alias": alias, "holds": holds, "is_shared": is_shared, "shop": shop, "actors": actors}
    try:
        yield type("LiveReads", (LiveReads,), parts | {"counts": Counter()})
    finally:
        for actor in actors:
            actor.close()
        shop.close()


class LiveReads(RuleBasedStateMachine):
    """After every step, on both connections, each watched live read equals the plain one, and so does the next."""

    alias: str
    holds: Holds
    is_shared: bool
    shop: Shop
    actors: list[Actor]
    counts: ClassVar[Counter[str]]
    """How many reads were hits or misses, over all examples: a machine that never hits proves nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.watched: list[Spec] = []
        self.fickle = FickleLedger()
        self.found: list[str] = []
        self.known: dict[Spec, Outcome] = {}
        """What plain reads outside of transactions have yielded since the last step that may have written."""
        self.holds.clear()
        self.shop.restore()
        if self.is_shared:
            get_assembly().store.clear()
            reap_everything()
        else:
            close_all()

    def teardown(self) -> None:
        self.fickle.restore()
        self.holds.clear()
        for actor in self.actors:
            actor.renew()

    # -- reads --------------------------------------------------------------------------------------------------------

    @initialize(drawn=st.lists(specs(), min_size=3, max_size=3))
    def watch_first(self, drawn: list[Spec]) -> None:
        for spec in drawn:
            self._watch(spec)

    @rule(spec=specs())
    def watch(self, spec: Spec) -> None:
        self._watch(spec)

    def _watch(self, spec: Spec) -> None:
        free = [actor for actor in self.actors if actor.mode == "auto" and not actor.reads_a_snapshot]
        if not free:
            return
        resolved = free[0].call(resolve, spec, self.alias)
        # What this database cannot do at all would break every transaction that it is tried in.
        if free[0].attempt(lambda: read(resolved, self.alias, is_live=False, built=free[0].built)):
            self.watched = [*self.watched[-(_MAX_WATCHED - 1) :], resolved]

    @invariant()
    def every_live_read_equals_the_plain_one(self) -> None:
        assert not self.found, self.found[0]
        # Outside of transactions both see the same, so that one plain read is enough for both.
        are_equal = all(actor.mode == "auto" and not actor.reads_a_snapshot for actor in self.actors)
        if not are_equal:
            self.known.clear()
        for actor in self.actors:
            actor.call(self._compare, actor, self.watched, self.known if are_equal else {})
        assert not self.found, self.found[0]

    def _compare(self, actor: Actor, watched: list[Spec], known: dict[Spec, Outcome]) -> None:
        """
        Compare each of *watched*, in the thread of *actor*: the plain read, a live one, and the next live one.

        Args:
            known: What plain reads on this connection yield; added to.
        """
        actor.do_check()
        for spec in watched:
            try:
                if spec not in known:
                    known[spec] = read(spec, self.alias, is_live=False, built=actor.built)
            except Error as error:  # the transaction is broken, or the other actor has locked a table
                actor.do_unwind(error)
                return
            plain = known[spec]
            for turn in ("first", "second"):
                with recording() as reads:
                    found = read(spec, self.alias, is_live=True, built=actor.built)
                for record in reads:
                    self.counts["hit" if record.is_hit else "miss"] += 1
                if found != plain and not actor.reads_a_snapshot:
                    how = [f"{record.tier or 'database'} {record.reason}" for record in reads]
                    self.found.append(
                        f"{turn} live read of {spec}, by {how}:\n{found}\nwhere the database says\n{plain}"
                    )
                if reads and all(map(_leaves_things_alone, reads)):
                    break

    # -- writes -------------------------------------------------------------------------------------------------------

    @rule(who=either, write=writes)
    def write(self, who: int, write: Write) -> None:
        self._write(self.actors[who], write)

    @rule(who=either, write=writes)
    def write_again(self, who: int, write: Write) -> None:
        self._write(self.actors[who], write)

    def _write(self, actor: Actor, write: Write) -> bool:
        name, n, v = write
        self.known.clear()
        if actor.mode == "raw" and name not in RAW_WRITES:
            return False
        return actor.attempt(WRITES[name], self.alias, n, v)

    @rule(who=either, what=st.sampled_from(["model", "key", "prefix"]))
    def invalidate(self, who: int, what: str) -> None:
        targets: dict[str, Any] = {"model": Book, "key": "shop/x", "prefix": "shop"}
        if not self.fickle.is_broken:
            self.actors[who].attempt(lambda: invalidate(targets[what], using=self.alias))

    # -- interleavings ------------------------------------------------------------------------------------------------

    def _hold(self, actor: Actor, points: tuple[str, ...], point: str, written: Writes, watched: list[Spec]) -> None:
        """Let the other actor read *watched* at each of *points* to which *actor* comes, and write at *point*."""
        other = self.actors[1 - self.actors.index(actor)]

        def look(name: str) -> None:
            if name != "before tick" or not self.fickle.loses_intents:
                other.call(self._compare, other, watched, {})

        def write_and_look(name: str) -> None:
            look(name)
            for write in written:
                self._write(other, write)
            look(name)

        self.holds.clear()
        for name in points:
            self.holds.at(actor.thread_id, name, partial(write_and_look if name == point else look, name))

    def _idle(self, who: int) -> Actor:
        """Return an actor without a transaction, if there is one."""
        return next((x for x in (self.actors[who], self.actors[1 - who]) if x.mode == "auto"), self.actors[who])

    @rule(who=either, spec=specs(), point=st.sampled_from(Holds.READER), written=common_writes)
    def hold_a_reader(self, who: int, spec: Spec, point: str, written: Writes) -> None:
        """While one actor stands around its SELECT, the other writes, and reads the same."""
        actor = self._idle(who)
        self._watch(spec)
        if not self.watched:
            return
        held = self.watched[-1]
        get_assembly().store.clear()
        self._hold(actor, (point,), point, written, [held])
        actor.attempt(lambda: read(held, self.alias, is_live=True, built=actor.built))
        self.holds.clear()

    @rule(who=either, write=writes, point=st.sampled_from(Holds.WRITER), written=some_writes)
    def hold_a_writer(self, who: int, write: Write, point: str, written: Writes) -> None:
        """While one actor stands around its COMMIT, the other reads, writes, and reads."""
        actor = self._idle(who)
        self._hold(actor, Holds.WRITER, point, written, self.watched)
        self._write(actor, write)
        self.holds.clear()

    # -- transactions -------------------------------------------------------------------------------------------------

    @rule(who=either, kind=st.sampled_from(["atomic", "atomic", "atomic", "savepoint", "snapshot", "raw", "manual"]))
    def begin(self, who: int, kind: str) -> None:
        actor = self.actors[who]
        is_open = actor.mode in ("atomic", "manual")
        if actor.mode == "raw" or actor.depth > 3 or actor.reads_a_snapshot:
            return
        if is_open and kind in ("raw", "manual", "snapshot"):
            kind = "atomic"
        if not is_open and kind == "savepoint":
            kind = "atomic"
        actor.attempt(actor.do_begin, kind)

    @precondition(lambda self: any(actor.mode != "auto" for actor in self.actors))
    @rule(who=either, how=st.sampled_from(["commit", "commit", "rollback", "mark"]))
    def end(self, who: int, how: str) -> None:
        actor = self.actors[who]
        if actor.mode == "auto":
            actor = self.actors[1 - who]
        self.known.clear()
        actor.attempt(actor.do_end, how)

    @precondition(lambda self: any(actor.mode != "auto" for actor in self.actors))
    @rule(point=st.sampled_from(Holds.WRITER), written=some_writes)
    def hold_a_commit(self, point: str, written: Writes) -> None:
        """End a transaction, and let the other actor read and write around its COMMIT."""
        actor = next(actor for actor in self.actors if actor.mode != "auto")
        self._hold(actor, Holds.WRITER, point, written, self.watched)
        self.known.clear()
        actor.attempt(actor.do_end, "commit")
        self.holds.clear()

    # -- faults -------------------------------------------------------------------------------------------------------

    @rule(
        what=st.sampled_from(
            [
                "clear the store",
                "corrupt",
                "swap",
                "reset the ledger",
                "new process",
                "lose a connection",
                "ledger: down",
                "ledger: answers",
                "ledger: ticks",
                "ledger: declares",
            ]
        ),
        number=st.integers(0, 50),
    )
    def fault(self, what: str, number: int) -> None:
        if what == "lose a connection":
            actor = self.actors[number % 2]
            self.known.clear()
            actor.call(actor.do_lose_connection)
            return
        if self.fickle.is_broken:
            self.fickle.restore()
            return
        match what:
            case "clear the store":
                get_assembly().store.clear()
            case "corrupt":
                corrupt_entries(number)
            case "swap":
                swap_entries()
            case "reset the ledger":
                get_assembly().ledger.reset()
            case "new process":
                restart_process()
            case _:
                self.fickle.breaks(what.partition(": ")[2])

    @precondition(lambda self: self.fickle.is_broken)
    @rule()
    def ledger_answers_again(self) -> None:
        self.fickle.restore()

    @precondition(lambda self: connections[self.alias].vendor == "sqlite")
    @rule(who=either)
    def unfinished_cursor(self, who: int) -> None:
        """Pin a SQLite connection to its snapshot, or let it go."""
        actor = self.actors[who]
        if actor.reads_a_snapshot:
            actor.call(actor.do_close_cursor)
        elif actor.mode == "auto":
            actor.attempt(actor.do_open_cursor, Author)


def _leaves_things_alone(read: ReadRecord) -> bool:
    """Return whether the same read would do the same again: it stored, promoted, dropped and reaped nothing."""
    if read.is_hit:
        return read.tier == get_assembly().tiers[0].name
    return not read.cache_key or read.reason.startswith(("the transaction", "a SQLite transaction"))
