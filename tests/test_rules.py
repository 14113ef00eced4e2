"""
Each rule of the protocol (docs/explanation/consistency.md) is needed: staged once without it, and once with it.

Without the rule the stage must serve rows that differ from the database, which proves that the stage can fail; with it
it must not. Rules about shapes and images hold by themselves as long as every result depends on its tables.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import pytest
from django.db import Error, OperationalError, connections, transaction

from live_cache import links, live, reader
from live_cache.assembly import get_assembly
from live_cache.ledger import fences
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading, Stamp, Witness, is_fresh
from live_cache.sql import Statement, StatementKind, classify
from live_cache.writes import guard
from live_cache.writes.transactions import ConnectionState, state_of
from tests.cache_kinds import caches_of
from tests.machine.faults import Holds
from tests.testapp.models import Author, Book

LEASE_S = 0.1
ALL = ("default", "postgresql", "mariadb")
SERVERS = ("postgresql", "mariadb")


class Stage:
    """What the stages play with: two connections, holds, and the titles of all books."""

    def __init__(self, alias: str, other: Any, holds: Holds) -> None:
        self.alias = alias
        self.other = other
        self.holds = holds
        self.seen: list[tuple[list[str], list[str]]] = []

    def live(self) -> list[str]:
        return list(live(Book.objects.using(self.alias).order_by("pk")).values_list("title", flat=True))

    def plain(self) -> list[str]:
        return list(Book.objects.using(self.alias).order_by("pk").values_list("title", flat=True))

    def write(self, title: str = "new") -> None:
        Book.objects.using(self.alias).update(title=title)

    def look(self) -> None:
        """Note what a live read and a plain one say on this thread's connection."""
        found = self.live()
        self.seen.append((found, self.plain()))

    def look_elsewhere(self) -> None:
        """Note the same of the other connection."""
        self.other.run(self.look)

    def at(self, point: str, action: Callable[[], object]) -> None:
        """Call *action* when this thread comes to *point*."""
        self.holds.at(threading.get_ident(), point, action)

    def execute(self, sql: str) -> None:
        with connections[self.alias].cursor() as cursor:
            cursor.execute(sql)


@dataclass(frozen=True)
class Rule:
    """A rule, how to drop it, and a race in which it is needed."""

    drop: Callable[[pytest.MonkeyPatch], None]
    stage: Callable[[Stage], None]
    aliases: Sequence[str] = ALL
    cache: str = "process"


# -- stages -----------------------------------------------------------------------------------------------------------


def lose_the_ledger(stage: Stage) -> None:
    """The clocks are lost, and the new ones have not counted as far as the old ones had."""
    for index in range(3):
        stage.live()
        stage.write(f"title {index}")
    stage.live()
    get_assembly().ledger.reset()
    stage.write()
    stage.look()


def write_and_look(stage: Stage) -> None:
    """A read, a write, a read."""
    stage.look_elsewhere()
    stage.write()
    stage.look_elsewhere()


def fill_during_a_write(stage: Stage) -> None:
    """A writer commits while a reader stands between its SELECT and its store."""
    stage.at("after select", lambda: stage.other.run(stage.write))
    stage.live()
    stage.look()


def look_between_commit_and_tick(stage: Stage) -> None:
    """The database shows new rows, and nothing was ticked yet."""
    stage.look_elsewhere()
    stage.at("before tick", stage.look_elsewhere)
    stage.write()


def look_after_an_autocommit_write(stage: Stage) -> None:
    """A write outside atomic() takes effect, and nothing was ticked yet."""
    stage.look_elsewhere()
    stage.at("before tick", stage.look_elsewhere)
    stage.execute("UPDATE testapp_book SET title = 'new'")


def commit_by_sql(stage: Stage) -> None:
    """BEGIN and COMMIT are sent as SQL."""
    stage.look_elsewhere()
    stage.execute("BEGIN")
    stage.execute("UPDATE testapp_book SET title = 'new'")
    stage.execute("COMMIT")
    stage.look_elsewhere()


def commit_by_schema_change(stage: Stage) -> None:
    """A statement commits the open transaction, which goes on for Django."""
    stage.look_elsewhere()
    stage.execute("BEGIN")
    stage.execute("UPDATE testapp_book SET title = 'new'")
    try:
        stage.execute("CREATE TABLE testapp_rules_made (id int)")
        stage.look_elsewhere()
    finally:
        stage.execute("DROP TABLE IF EXISTS testapp_rules_made")


def look_in_a_callback(stage: Stage) -> None:
    """An on_commit() callback that was registered before the write reads."""
    stage.look()
    with transaction.atomic(using=stage.alias):
        transaction.on_commit(stage.look, using=stage.alias)
        stage.write()


def lose_the_answer_of_a_commit(stage: Stage) -> None:
    """COMMIT takes effect, and its answer is lost."""
    stage.look_elsewhere()
    connection: Any = connections[stage.alias]
    commit = connection._commit.original

    def commit_and_die() -> None:
        commit()
        connection.connection.close()
        raise OperationalError("The answer is lost.")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection._commit, "original", commit_and_die)
        with pytest.raises(Error), transaction.atomic(using=stage.alias):
            stage.write()
    connection.close()
    stage.look_elsewhere()


def outlive_the_lease(stage: Stage) -> None:
    """A writer stands before its COMMIT for longer than its lease, and then between COMMIT and tick."""
    stage.look_elsewhere()

    def wait() -> None:
        for _ in range(3):
            stage.look_elsewhere()
            time.sleep(LEASE_S * 2)

    stage.at("after declare", wait)
    stage.at("before tick", stage.look_elsewhere)
    with transaction.atomic(using=stage.alias):
        stage.write()


def lose_the_ledger_and_the_writer(stage: Stage) -> None:
    """The ledger is lost with an intent, a reader fills, and the writer dies between COMMIT and tick."""
    stage.look_elsewhere()

    def lose() -> None:
        get_assembly().ledger.reset()
        for _ in range(2):
            stage.look_elsewhere()

    stage.at("after declare", lose)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ConnectionState, "_tick", lambda self, *args, **kwargs: None)
        with transaction.atomic(using=stage.alias):
            stage.write()
    stage.look_elsewhere()


def fill_from_a_snapshot(stage: Stage) -> None:
    """A reader's snapshot is older than a commit, and it reads for the first time."""
    connection = connections[stage.alias]
    if connection.vendor == "mysql":
        stage.execute("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    try:
        with transaction.atomic(using=stage.alias):
            if connection.vendor == "postgresql":
                stage.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            Author.objects.using(stage.alias).count()
            stage.other.run(stage.write)
            stage.live()
    finally:
        connection.close()
    stage.look_elsewhere()


def fill_with_uncommitted_rows(stage: Stage) -> None:
    """A writer reads its own rows and rolls back."""
    with transaction.atomic(using=stage.alias):
        stage.write()
        stage.live()
        transaction.set_rollback(True, using=stage.alias)
    stage.look_elsewhere()


def read_own_write(stage: Stage) -> None:
    """A writer reads inside its transaction what was cached before."""
    stage.live()
    with transaction.atomic(using=stage.alias):
        stage.write()
        stage.look()


def fill_beside_an_unfinished_cursor(stage: Stage) -> None:
    """An unfinished SELECT pins a SQLite connection to an older snapshot."""
    Author.objects.using(stage.alias).bulk_create([Author(name=str(index)) for index in range(300)])
    rows = Author.objects.using(stage.alias).iterator(chunk_size=10)
    next(rows)
    stage.other.run(stage.write)
    stage.live()
    stage.look_elsewhere()
    list(rows)


def run_what_is_not_understood(stage: Stage) -> None:
    """A statement writes, and the guard cannot tell what."""
    stage.look()
    connection = connections[stage.alias]
    if connection.vendor == "mysql":
        stage.execute("BEGIN NOT ATOMIC UPDATE testapp_book SET title = 'new'; END")
    else:
        stage.execute("DO $$ BEGIN UPDATE testapp_book SET title = 'new'; END $$")
    stage.look()


# -- what is dropped --------------------------------------------------------------------------------------------------


def ignore_epochs(patch: pytest.MonkeyPatch) -> None:

    def judge(
        stamps: Sequence[Stamp],
        readings: Sequence[Reading],
        dependencies: Sequence[Dependency],
        witness: Witness | None = None,
    ) -> bool:
        renewed = [replace(s, epoch=r.epoch) for s, r in zip(stamps, readings, strict=True)]
        return is_fresh(renewed, readings, dependencies, witness)

    patch.setattr(links, "is_fresh", judge)


def ignore_slots(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        links,
        "is_fresh",
        lambda s, r, d, w=None: is_fresh(s, [replace(x, slots=(0,) * len(x.slots)) for x in r], d, w),
    )


def ignore_intents(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(links, "is_fresh", lambda s, r, d, w=None: is_fresh(s, [replace(x, intents=()) for x in r], d, w))


def share_readings(patch: pytest.MonkeyPatch) -> None:
    read = Ledger.read
    shared: dict[Any, Any] = {}
    patch.setattr(Ledger, "read", lambda self, d: shared.setdefault(tuple(d), read(self, d)))


def stamp_late(patch: pytest.MonkeyPatch) -> None:
    store = reader._store
    patch.setattr(
        reader, "_store", lambda a, plan, readings, *rest: store(a, plan, a.ledger.read(plan.dependencies), *rest)
    )


def declare_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ConnectionState, "_declare", lambda self, *args, **kwargs: None)


def _classify_as(patch: pytest.MonkeyPatch, change: Callable[[Statement], Statement]) -> None:
    patch.setattr(guard, "classify", lambda sql, *, vendor: change(classify(sql, vendor=vendor)))


def overlook_commits(patch: pytest.MonkeyPatch) -> None:
    ended = (StatementKind.COMMIT,)
    _classify_as(patch, lambda s: Statement(StatementKind.READ) if s.kind in ended else s)


def overlook_implicit_commits(patch: pytest.MonkeyPatch) -> None:
    _classify_as(patch, lambda s: replace(s, commits_implicitly=False))


def overlook_the_unknown(patch: pytest.MonkeyPatch) -> None:
    _classify_as(patch, lambda s: Statement(StatementKind.READ) if s.kind is StatementKind.UNKNOWN else s)


def write_without_a_transaction(patch: pytest.MonkeyPatch) -> None:
    def run_write(state: ConnectionState, sending: Any, **kwargs: Any) -> Any:
        result = sending.run()
        state.tick_now(sending.statement.written, note="")
        return result

    patch.setattr(guard, "_run_write", run_write)


def _retract_intents(state: ConnectionState) -> None:
    for ledger, intent_id in state._intents:
        ledger.retract([info.clock for info in ledger.clocks()], intent_id)


def tick_after_callbacks(patch: pytest.MonkeyPatch) -> None:
    tick = ConnectionState._tick

    def later(self: ConnectionState, changes: Any, *args: Any, **kwargs: Any) -> None:
        _retract_intents(self)
        on_commit: Any = self.connection.run_on_commit
        on_commit.append((set(), lambda: tick(self, changes, *args, **kwargs), False))

    patch.setattr(ConnectionState, "_tick", later)


def retract_on_doubt(patch: pytest.MonkeyPatch) -> None:
    committing = ConnectionState.committing

    def doubting(state: ConnectionState, commit: Callable[[], Any]) -> Any:
        try:
            return committing(state, commit)
        except Error:
            _retract_intents(state)
            state._is_outcome_unknown = False
            raise

    patch.setattr(ConnectionState, "committing", doubting)
    for connection in connections.all(initialized_only=True):
        state = state_of(connection)  # which attaches the hook, if nobody has
        hook = connection._commit  # type: ignore[attr-defined]  # private
        patch.setattr(hook, "run", partial(doubting, state))


def reap_without_proof(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(fences, "_has_no_writer", lambda *args: True)


def lift_the_newborn_hold(patch: pytest.MonkeyPatch) -> None:
    def settle(ledger: Ledger, connection: Any, readings: Sequence[Reading]) -> bool:
        for reading in readings:
            ledger.reap(reading.clock, {NEWBORN}, epoch=reading.epoch)
        return True

    patch.setattr(fences, "settle", settle)


def bypass_never(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader, "reason_to_bypass", lambda connection, state, tables: "")


def fill_always(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(reader, "reason_to_fill_not", lambda connection, state: "")


RULES = {
    "1 a lost clock has another epoch": Rule(ignore_epochs, lose_the_ledger),
    "2 a reading belongs to one read": Rule(share_readings, write_and_look),
    "4 the stamp precedes the SELECT": Rule(stamp_late, fill_during_a_write),
    "5 slots are compared": Rule(ignore_slots, write_and_look),
    "5 intents are looked at": Rule(ignore_intents, look_between_commit_and_tick),
    "7 intents stand before COMMIT": Rule(declare_nothing, look_between_commit_and_tick),
    "7 a COMMIT by SQL counts": Rule(overlook_commits, commit_by_sql),
    "7 an implicit COMMIT counts": Rule(overlook_implicit_commits, commit_by_schema_change, ["mariadb"]),
    "8 a write has a transaction": Rule(write_without_a_transaction, look_after_an_autocommit_write),
    "9 the tick precedes callbacks": Rule(tick_after_callbacks, look_in_a_callback),
    "10 an unknown outcome keeps the intent": Rule(retract_on_doubt, lose_the_answer_of_a_commit),
    "11 no reaping without proof": Rule(reap_without_proof, outlive_the_lease),
    "13 what is not understood is a write": Rule(overlook_the_unknown, run_what_is_not_understood, SERVERS),
    "15 no fill from a snapshot": Rule(bypass_never, fill_from_a_snapshot),
    "15 no fill of own writes": Rule(bypass_never, fill_with_uncommitted_rows),
    "15 no hit after own writes": Rule(bypass_never, read_own_write),
    "15 no fill beside a cursor": Rule(fill_always, fill_beside_an_unfinished_cursor, ["default"]),
    "17 a new clock is held": Rule(lift_the_newborn_hold, lose_the_ledger_and_the_writer, cache="host"),
}
CASES = [pytest.param(alias, rule, id=f"{alias}-{name}") for name, rule in RULES.items() for alias in rule.aliases]


@pytest.mark.parametrize("is_dropped", [True, False], ids=["dropped", "kept"])
@pytest.mark.parametrize(("alias", "rule"), CASES, indirect=["alias"])
def test_rule(
    alias: str,
    rule: Rule,
    is_dropped: bool,
    settings: Any,
    tmp_path: Any,
    second_connection: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Dropped: the stage shows rows that differ from the database. Kept: it shows none."""
    settings.LIVE_CACHE_LEASE_S = LEASE_S
    settings.CACHES = caches_of(rule.cache, tmp_path, None)
    Book.objects.using(alias).create(title="old", author=Author.objects.using(alias).create(name="A"))
    stage = Stage(alias, second_connection(alias), Holds(monkeypatch))
    if is_dropped:
        rule.drop(monkeypatch)
    rule.stage(stage)
    assert stage.seen
    wrong = [(found, true) for found, true in stage.seen if found != true]
    assert bool(wrong) is is_dropped, stage.seen
