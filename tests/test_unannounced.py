"""A write of a table that nobody has cached declares nothing; who caches its rows just then is never stale."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import connections, transaction

from live_cache import live, recording
from live_cache.assembly import get_assembly
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.host import HostLedger
from live_cache.names import clock_of, database_name
from tests.cache_kinds import wait_for_hits
from tests.forks import run_in_fork
from tests.test_interrupts import Tracer, interrupting, live_names
from tests.test_own_transaction import WRITES, check_autocommit
from tests.test_transactions import names, rename
from tests.testapp.models import Author

pytestmark = pytest.mark.parametrize(
    ("alias", "cache_kind"), [("default", "memory+disk"), ("postgresql", "host")], indirect=True
)

FILES = ("writes/unannounced.py", "ledger/host_writers.py", "writes/guard.py")


@pytest.fixture
def unwatched(alias: str, cache_kind: str) -> str:
    """Two authors of whom nothing is cached, and the database alias."""
    Author.objects.using(alias).bulk_create([Author(name="A0"), Author(name="A1")])
    return alias


def clock(alias: str) -> str:
    return clock_of(database_name(connections[alias]), "testapp_author")


def is_locked(alias: str) -> bool:
    ledger = get_assembly().ledger
    (newborn,) = ledger.read([Dependency(clock(alias))])
    return ledger.has_unannounced(newborn)


def hits_of(alias: str) -> list[bool]:
    """Read, and return whether it was a hit."""
    with recording() as reads:
        live_names(alias)
    return [record.is_hit for record in reads]


class Meeting:
    """An execute wrapper that calls something before and after each statement that writes."""

    def __init__(self, before: Callable[[], object] = int, after: Callable[[], object] = int) -> None:
        self.before = before
        self.after = after
        self.in_blocks: list[bool] = []

    def __call__(self, execute: Any, sql: str, parameters: Any, many: bool, context: Any) -> Any:
        if sql.startswith("SELECT"):
            return execute(sql, parameters, many, context)
        self.in_blocks.append(context["connection"].in_atomic_block)
        self.before()
        result = execute(sql, parameters, many, context)
        self.after()
        return result


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_nothing_is_opened_and_nothing_declared(
    unwatched: str, write: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The statement goes as Django sends it; once something is cached, it goes in a transaction, with an intent."""
    told: list[str] = []

    def telling(name: str) -> Callable[..., Any]:
        original = getattr(HostLedger, name)

        def tell(self: HostLedger, *args: Any, **options: Any) -> Any:
            told.append(name)
            return original(self, *args, **options)

        return tell

    for name in ("declare", "tick"):
        monkeypatch.setattr(HostLedger, name, telling(name))
    meeting = Meeting()
    with connections[unwatched].execute_wrapper(meeting):
        write(unwatched)
    assert meeting.in_blocks == [False]
    assert told == []
    check_autocommit(unwatched)
    rename(unwatched, "Old")  # else the next one changes nothing
    live_names(unwatched)
    with connections[unwatched].execute_wrapper(meeting):
        write(unwatched)
    assert meeting.in_blocks == [False, True]
    assert told == ["declare", "tick"]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_clock_born_before_the_statement_or_after_it(
    unwatched: str, write: Callable[[str], None], second_connection: Callable[[str], Any]
) -> None:
    """A reader who comes while the write is on its way caches nothing that the write makes stale."""
    other = second_connection(unwatched)
    for place in ("before", "after"):
        get_assembly().ledger.close()
        shutil.rmtree(get_assembly().ledger.directory, ignore_errors=True)  # type: ignore[attr-defined]
        hits: list[bool] = []

        def read(hits: list[bool] = hits) -> None:
            for _ in range(5):
                hits.extend(other.run(hits_of, unwatched))

        with connections[unwatched].execute_wrapper(Meeting(**{place: read})):
            write(unwatched)
        assert other.run(live_names, unwatched) == names(unwatched)
        assert hits == [False] * 5, place
        wait_for_hits(partial(live_names, unwatched))
        assert live_names(unwatched) == names(unwatched)


def test_the_hold_outlasts_its_lease_while_the_write_lasts(
    unwatched: str, second_connection: Callable[[str], Any], settings: Any
) -> None:
    """A statement that waits for a lock holds the first readers of its table for as long as it takes."""
    settings.LIVE_CACHE_LEASE_S = 0.05
    other = second_connection(unwatched)
    hits: list[bool] = []

    def read() -> None:
        end_s = time.monotonic() + 0.5
        while time.monotonic() < end_s:
            hits.extend(other.run(hits_of, unwatched))

    with connections[unwatched].execute_wrapper(Meeting(before=read)):
        rename(unwatched)
    assert len(hits) > 5
    assert not any(hits)
    assert other.run(live_names, unwatched) == ["New", "New"]


def die_after_the_statement(alias: str, directory: str) -> None:
    """Write, and be killed when the database has the rows and nobody was told."""
    place = Path(directory)

    def wait() -> None:
        (place / "begun").touch()
        while not (place / "go").exists():
            time.sleep(0.001)

    with connections[alias].execute_wrapper(Meeting(wait, lambda: os.kill(os.getpid(), signal.SIGKILL))):
        rename(alias)


def read_around_a_death(alias: str, directory: Path, run_process: Any) -> list[bool]:
    """Fill the cache while a writer who will be killed is about to write; return which of these reads were hits."""
    writer = run_process.start(die_after_the_statement, alias, str(directory))
    end_s = time.monotonic() + 30
    while not (directory / "begun").exists():
        assert time.monotonic() < end_s
        time.sleep(0.001)
    hits = []
    for _ in range(10):
        hits += hits_of(alias)
    (directory / "go").touch()
    assert writer.wait(check=False).returncode == -signal.SIGKILL
    return hits


def test_a_writer_killed_before_it_could_tell(unwatched: str, tmp_path: Path, run_process: Any) -> None:
    """What was cached before his statement took effect is never served after it, and there are hits again."""
    assert not any(read_around_a_death(unwatched, tmp_path, run_process))
    assert live_names(unwatched) == ["New", "New"]
    wait_for_hits(partial(live_names, unwatched))
    assert live_names(unwatched) == ["New", "New"]


def test_without_the_lock_it_would_be_stale(
    unwatched: str, tmp_path: Path, run_process: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If whoever lifts the hold of a new clock does not look for the lock, the test above finds older rows."""
    monkeypatch.setattr(HostLedger, "has_unannounced", Ledger.has_unannounced)
    assert any(read_around_a_death(unwatched, tmp_path, run_process))
    assert live_names(unwatched) == ["A0", "A1"]


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_an_interrupt_at_any_line(
    unwatched: str, write: Callable[[str], None], second_connection: Callable[[str], Any]
) -> None:
    """The lock is let go, what was committed is read, and there are hits again."""
    other = second_connection(unwatched)
    number = 0
    while True:
        get_assembly().ledger.close()
        shutil.rmtree(get_assembly().ledger.directory, ignore_errors=True)  # type: ignore[attr-defined]
        tracer = Tracer(number, *FILES)
        meeting = Meeting(partial(other.run, live_names, unwatched))
        with connections[unwatched].execute_wrapper(meeting), interrupting(tracer):
            write(unwatched)
        if not tracer.where:
            break
        check_autocommit(unwatched)
        assert not is_locked(unwatched), tracer.where
        for run in (other.run, lambda function, alias: function(alias)):
            assert run(live_names, unwatched) == run(names, unwatched), tracer.where
        number += 2
    assert number > 50, "so few lines: are these the right files?"


def test_a_statement_that_fails(unwatched: str, second_connection: Callable[[str], Any]) -> None:
    """Its error is that of the database, nothing is left, and the next write goes unannounced again."""
    other = second_connection(unwatched)
    author = Author.objects.using(unwatched).first()
    assert author is not None
    with pytest.raises(Exception, match=r"UNIQUE|duplicate key"):
        Author(pk=author.pk, name="Twice").save(using=unwatched, force_insert=True)
    check_autocommit(unwatched)
    meeting = Meeting()
    with connections[unwatched].execute_wrapper(meeting):
        rename(unwatched)
    assert meeting.in_blocks == [False]
    assert other.run(live_names, unwatched) == ["New", "New"]


def test_transactions_announce_themselves(unwatched: str, second_connection: Callable[[str], Any]) -> None:
    """Where a transaction goes on after the statement, the intent stands before its COMMIT as ever."""
    other = second_connection(unwatched)
    with transaction.atomic(using=unwatched):
        rename(unwatched)
        assert not is_locked(unwatched)
        if connections[unwatched].vendor != "sqlite":
            other.run(live_names, unwatched)
    assert other.run(live_names, unwatched) == ["New", "New"]


def test_two_writers_hold_the_lock_together(unwatched: str, second_connection: Callable[[str], Any]) -> None:
    """The first one who is through does not let go of it for the other."""
    ledger = get_assembly().ledger
    first, second = object(), object()
    one = [clock(unwatched)]
    assert ledger.begin_unannounced(one, first)
    assert ledger.begin_unannounced(one, second)
    assert not ledger.end_unannounced(one, first)
    assert is_locked(unwatched)
    assert ledger.end_unannounced(one, second)  # the reading above has borne the clock
    assert not is_locked(unwatched)
    assert not ledger.begin_unannounced(one, first)
    ledger.end_unannounced(one, first)
    assert not is_locked(unwatched)


def test_a_forked_child_has_no_part_in_the_lock(unwatched: str) -> None:
    """It neither holds the lock that its parent holds, nor lets go of it."""
    ledger = get_assembly().ledger
    one, holder = [clock(unwatched)], object()
    assert ledger.begin_unannounced(one, holder)

    def end_and_look() -> None:
        ledger.end_unannounced(one, holder)
        assert is_locked(unwatched)

    assert run_in_fork(end_and_look) == 0
    assert is_locked(unwatched)
    ledger.end_unannounced(one, holder)
    assert run_in_fork(lambda: None) == 0
    assert not is_locked(unwatched)


def test_files_that_are_gone(unwatched: str) -> None:
    """Somebody has removed the directory of the ledger: the next write makes what it needs."""
    rename(unwatched, "First")
    shutil.rmtree(get_assembly().ledger.directory)  # type: ignore[attr-defined]
    meeting = Meeting(lambda: None, lambda: locked.append(is_locked(unwatched)))
    locked: list[bool] = []
    with connections[unwatched].execute_wrapper(meeting):
        rename(unwatched, "Second")
    assert meeting.in_blocks == [False]
    assert locked == [True]
    assert list(live(Author.objects.using(unwatched)).values_list("name", flat=True)) == ["Second"] * 2
