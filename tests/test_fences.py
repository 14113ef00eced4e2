"""Whether a writer's transaction is over, as the three databases tell it, with real transactions held open."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import IntegrityError, connections, transaction

from live_cache.ledger import fences, fences_mysql, fences_sqlite
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading
from live_cache.ledger.process import ProcessLedger

CLOCK = "shop_product"
Second = Callable[[str], Any]


@pytest.fixture
def table(alias: str, transactional_db: None) -> Iterator[str]:
    """A table of this test alone."""
    name = "fences_test"
    with connections[alias].cursor() as cursor:
        cursor.execute(f"DROP TABLE IF EXISTS {name}")
        cursor.execute(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY, n INTEGER)")
    yield name
    with connections[alias].cursor() as cursor:
        cursor.execute(f"DROP TABLE {name}")


class Writer:
    """A transaction in a thread of its own, held open after its write."""

    def __init__(self, second: Any, alias: str, table: str) -> None:
        self.second, self.alias, self.table = second, alias, table

    def begin(self, pk: int = 1) -> str:
        """Write, and return the fence that stands just before COMMIT."""

        def write() -> str:
            connection = connections[self.alias]
            connection.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
            with connection.cursor() as cursor:
                cursor.execute(f"INSERT INTO {self.table} (id, n) VALUES ({pk}, 0)")
            return fences.writer_token(connection)

        token: str = self.second.run(write)
        return token

    def end(self, how: str) -> None:
        def end() -> None:
            connection = connections[self.alias]
            getattr(connection, how)()
            if connection.connection is not None:
                connection.set_autocommit(True)

        self.second.run(end)


@pytest.fixture
def writer(alias: str, table: str, second_connection: Second) -> Writer:
    return Writer(second_connection(alias), alias, table)


@pytest.fixture(autouse=True)
def _no_recent_question() -> None:
    """Let each test ask MariaDB for its writers at once, whatever the test before has asked."""
    fences._ask_writers_at_s.clear()
    fences._writers.clear()


def eventually(ask: Callable[[], bool]) -> bool:
    """Ask for up to two seconds: MariaDB's list of transactions is renewed only after it was left alone for 0.1 s."""
    deadline_s = time.monotonic() + 2
    while time.monotonic() < deadline_s:
        if ask():
            return True
        time.sleep(0.15)
    return False


@pytest.mark.parametrize("how", ["commit", "rollback", "close"])
def test_transaction_is_over_when_it_ends(alias: str, writer: Writer, how: str) -> None:
    """A transaction held open is not over; it is once it was committed, rolled back, or its connection is gone."""
    token = writer.begin()
    assert token
    assert len(token) <= 64
    for _ in range(3):
        assert not fences.is_over(connections[alias], token)
        time.sleep(0.11)
    writer.end(how)
    assert eventually(lambda: fences.is_over(connections[alias], token))


def test_over_means_visible(alias: str, writer: Writer, table: str) -> None:
    """A SELECT after the proof sees what the transaction committed."""
    for pk in range(1, 11):
        token = writer.begin(pk)
        writer.end("commit")
        if fences.is_over(connections[alias], token):
            with connections[alias].cursor() as cursor:
                cursor.execute(f"SELECT COUNT(*) FROM {table}")
                assert cursor.fetchone()[0] >= pk


@pytest.mark.parametrize(
    "token", ["", "pg", "pg:", "pg:x", "mysql:x", "mysql::1", "sqlite:", "sqlite:a.b", "nonsense:1"]
)
def test_what_cannot_be_asked_is_never_over(alias: str, transactional_db: None, token: str) -> None:
    """An empty or foreign fence proves nothing."""
    assert not fences.is_over(connections[alias], token)


def test_token_in_a_broken_transaction(alias: str, table: str) -> None:
    """A transaction that cannot be asked gets an empty fence, and no error."""
    connection = connections[alias]
    with transaction.atomic(using=alias):
        with connection.cursor() as cursor:
            cursor.execute(f"INSERT INTO {table} (id, n) VALUES (1, 0)")
        with (
            pytest.raises(IntegrityError),
            transaction.atomic(using=alias, savepoint=False),
            connection.cursor() as cursor,
        ):
            cursor.execute(f"INSERT INTO {table} (id, n) VALUES (1, 0)")
        assert connection.needs_rollback
        # By the driver's cursor SQLite can be asked even now: only Django calls the transaction broken.
        token = fences.writer_token(connection)
        assert token in {"", _mysql_token(connection)} or (alias == "default" and token.startswith("sqlite:"))
        transaction.set_rollback(True, using=alias)


def _mysql_token(connection: Any) -> str:
    session = fences_mysql._sessions.get(connection.connection) if connection.vendor == "mysql" else None
    return f"mysql:{session.server}:{session.thread_id}" if session else ""


def test_token_leaves_the_transaction_usable(alias: str, table: str) -> None:
    """Naming the transaction changes nothing in it."""
    with transaction.atomic(using=alias), connections[alias].cursor() as cursor:
        cursor.execute(f"INSERT INTO {table} (id, n) VALUES (1, 0)")
        assert fences.writer_token(connections[alias])
        cursor.execute(f"UPDATE {table} SET n = 7")
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT n FROM {table}")
        assert cursor.fetchall() in ([(7,)], ((7,),))


def test_writers_in_progress(alias: str, writer: Writer) -> None:
    """A transaction held open stands in the way of lifting a hold, and its end clears the way."""
    connection = connections[alias]
    writer.begin()
    marker: frozenset[str] | None = None
    for _ in range(3):
        now = fences.writers_in_progress(connection)
        marker = now if marker is None else marker
        assert not fences.are_past(marker, now)
        time.sleep(0.11)
    writer.end("commit")
    assert eventually(lambda: fences.are_past(marker or frozenset(), fences.writers_in_progress(connection)))


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
def test_a_statement_that_waits_for_its_table(alias: str, table: str, second_connection: Second) -> None:
    """It has no transaction id before it has the table, and counts nevertheless, until it is over."""
    holder, waiting = second_connection(alias), second_connection(alias)

    def write() -> None:
        with connections[alias].cursor() as cursor:
            cursor.execute(f"UPDATE {table} SET n = 1")

    def hold() -> None:
        connections[alias].set_autocommit(False)
        with connections[alias].cursor() as cursor:
            cursor.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")

    holder.run(hold)
    done = waiting.start(write)
    assert eventually(lambda: any("/" in name for name in fences.writers_in_progress(connections[alias]) or ()))
    marker = fences.writers_in_progress(connections[alias])
    assert not fences.are_past(marker, fences.writers_in_progress(connections[alias]))
    holder.run(lambda: connections[alias].close())
    done.result(10)
    assert eventually(lambda: fences.are_past(marker, fences.writers_in_progress(connections[alias])))


def test_are_past() -> None:
    """Past: nobody of the marker is left; later writers do not count; what is unknown proves nothing."""
    one, two, nobody = frozenset({"1"}), frozenset({"1", "2"}), frozenset[str]()
    assert [fences.are_past(*pair) for pair in [(one, two), (two, one), (None, nobody), (nobody, None)]] == [False] * 4
    assert [fences.are_past(*pair) for pair in [(one, frozenset({"2"})), (nobody, two), (two, nobody)]] == [True] * 3


def test_session_is_over_when_it_is_gone(alias: str, transactional_db: None, second_connection: Second) -> None:
    """The fence of a statement in autocommit mode stands as long as its session, or its process on SQLite."""
    second = second_connection(alias)

    def name() -> str:
        connections[alias].ensure_connection()
        return fences.session_token(connections[alias])

    token = second.run(name)
    assert token
    assert len(token) <= 64
    assert not fences.is_over(connections[alias], token)
    second.run(lambda: connections[alias].close())
    if connections[alias].vendor == "sqlite":
        assert not fences.is_over(connections[alias], token)
    else:
        assert eventually(lambda: fences.is_over(connections[alias], token))


class Clock:
    now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(fences.time, "monotonic", made)
    return made


def reading_of(ledger: ProcessLedger) -> Reading:
    return ledger.read([Dependency(CLOCK)])[0]


def test_settle_reaps_after_lease_and_proof(alias: str, writer: Writer, clock: Clock) -> None:
    """An intent stands until its lease is over and its transaction is, whichever comes last."""
    connection = connections[alias]
    ledger = ProcessLedger(lease_s=10, clock=clock)
    reading_of(ledger)
    intent_id = ledger.declare({CLOCK: {5}}, fence=writer.begin())
    assert not fences.settle(ledger, connection, [reading_of(ledger)])
    clock.now_s += 11
    assert not fences.settle(ledger, connection, [reading_of(ledger)])
    assert [intent.id for intent in reading_of(ledger).intents] == [intent_id]
    writer.end("commit")
    seq = reading_of(ledger).seq

    def is_settled() -> bool:
        clock.now_s += 1
        return fences.settle(ledger, connection, [reading_of(ledger)])

    deadline = 20
    while not is_settled() and deadline:
        deadline -= 1
        time.sleep(0.15)
    assert (reading_of(ledger).intents, reading_of(ledger).seq) == ((), seq + 1)


def test_settle_leaves_young_intents_alone(alias: str, transactional_db: None, clock: Clock) -> None:
    """While an intent is young nobody is asked: neither the database nor the ledger."""
    ledger = ProcessLedger(lease_s=10, clock=clock)
    reading_of(ledger)
    ledger.declare({CLOCK: {5}}, fence="pg:none")
    ledger.expired = None  # type: ignore[assignment,method-assign]  # fails when it is called
    with connections[alias].execute_wrapper(lambda *arguments: pytest.fail("asked the database")):
        for _ in range(5):
            clock.now_s += 1
            assert not fences.settle(ledger, connections[alias], [reading_of(ledger)])


def test_settle_lifts_the_newborn_hold_early(alias: str, writer: Writer, clock: Clock) -> None:
    """The hold of a newborn clock goes when the writers of its birth are gone, long before its lease."""
    connection = connections[alias]
    ledger = ProcessLedger(lease_s=1000, clock=clock)
    reading_of(ledger)
    ledger.declare({CLOCK: {5}}, fence="x")
    ledger.reset([CLOCK])  # leaves a hold
    born = reading_of(ledger)
    assert [intent.id for intent in born.intents] == [NEWBORN]
    writer.begin()
    for _ in range(2):
        assert not fences.settle(ledger, connection, [reading_of(ledger)])
        time.sleep(0.11)
    writer.end("rollback")
    assert eventually(lambda: fences.settle(ledger, connection, [reading_of(ledger)]))
    assert (reading_of(ledger).intents, reading_of(ledger).seq) == ((), born.seq + 1)


def test_settle_lets_the_newborn_hold_end_with_its_lease(alias: str, writer: Writer, clock: Clock) -> None:
    """Where the database proves nothing, the hold goes with its lease."""
    ledger = ProcessLedger(lease_s=10, clock=clock)
    reading_of(ledger)
    ledger.declare({CLOCK: {5}}, fence="x")
    ledger.reset([CLOCK])
    writer.begin()
    assert not fences.settle(ledger, connections[alias], [reading_of(ledger)])
    clock.now_s += 11
    assert fences.settle(ledger, connections[alias], [reading_of(ledger)])
    writer.end("rollback")
    assert reading_of(ledger).intents == ()


def test_marker_of_one_birth_is_not_used_for_the_next(alias: str, writer: Writer, clock: Clock) -> None:
    """A clock that is born again under a running writer keeps its hold, though the birth before was proven."""
    connection = connections[alias]
    ledger = ProcessLedger(lease_s=1000, clock=clock)
    reading_of(ledger)
    ledger.declare({CLOCK: {5}}, fence="x")
    ledger.reset([CLOCK])
    old = reading_of(ledger)
    assert eventually(lambda: fences.settle(ledger, connection, [old]))
    ledger.declare({CLOCK: {5}}, fence="x")
    writer.begin()
    ledger.reset([CLOCK])
    fences.settle(ledger, connection, [old])
    assert not fences.settle(ledger, connection, [reading_of(ledger)])
    assert [intent.id for intent in reading_of(ledger).intents] == [NEWBORN]
    writer.end("rollback")


@pytest.mark.parametrize("alias", ["postgresql"], indirect=True)
class TestPostgreSQL:
    def test_snapshot_would_be_no_proof(self, alias: str, writer: Writer) -> None:
        """The newest running transaction is at or above xmax: why the fence asks for locks."""
        token = writer.begin()
        with connections[alias].cursor() as cursor:
            cursor.execute("SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint")
            xmax = cursor.fetchone()[0]
        if int(token.partition(":")[2]) < xmax:
            pytest.skip("another transaction of this server ended after ours began")
        assert not fences.is_over(connections[alias], token)

    def test_nothing_written(self, alias: str, transactional_db: None) -> None:
        """A transaction without an id has nothing to commit."""
        with transaction.atomic(using=alias):
            token = fences.writer_token(connections[alias])
        assert token == "pg:none"
        assert fences.is_over(connections[alias], token)

    def test_id_of_the_future(self, alias: str, transactional_db: None) -> None:
        """After the database was restored to an earlier state, an id it has not reached is of a lost transaction."""
        with transaction.atomic(using=alias):
            assert fences.is_over(connections[alias], f"pg:{2**40}")
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT 1")  # The question did not break the transaction.

    def test_question_inside_a_transaction(self, alias: str, writer: Writer) -> None:
        """A READ COMMITTED transaction may ask, and gets the answer of the moment."""
        token = writer.begin()
        with transaction.atomic(using=alias):
            assert not fences.is_over(connections[alias], token)
            writer.end("commit")
            assert eventually(lambda: fences.is_over(connections[alias], token))

    def test_prepared_transaction_is_not_over(self, alias: str, table: str) -> None:
        """A transaction prepared for two-phase commit has lost its session, and may still be committed."""
        connection = connections[alias]
        with connection.cursor() as cursor:
            cursor.execute("SHOW max_prepared_transactions")
            if cursor.fetchone()[0] == "0":
                pytest.skip("this server takes no prepared transactions")
            cursor.execute("BEGIN")
            cursor.execute(f"INSERT INTO {table} (id, n) VALUES (1, 0)")
            token = fences.writer_token(connection)
            cursor.execute("PREPARE TRANSACTION 'fences_test'")
            assert not fences.is_over(connection, token)
            cursor.execute("ROLLBACK PREPARED 'fences_test'")
            assert fences.is_over(connection, token)


@pytest.mark.parametrize("alias", ["mariadb"], indirect=True)
class TestMySQL:
    def test_old_copy_is_no_proof(self, alias: str, writer: Writer, second_connection: Second) -> None:
        """However busily others read the list of transactions, so that it grows old, an open transaction is seen."""
        connection = connections[alias]
        poller = second_connection(alias)

        def poll() -> None:
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT COUNT(*) FROM information_schema.innodb_trx")
                cursor.fetchall()

        time.sleep(0.15)
        poller.run(poll)  # The copy of now, without the writer; kept from growing new by what follows.
        token = writer.begin()
        for _ in range(20):
            poller.run(poll)
            assert not fences.is_over(connection, token)
            now = fences.writers_in_progress(connection)
            assert now is None or now
            time.sleep(0.01)
        writer.end("rollback")

    def test_without_the_privilege(self, alias: str, writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without PROCESS only the end of the session is proof."""
        user = "fences_test"
        with connections[alias].cursor() as cursor:
            cursor.execute(f"CREATE OR REPLACE USER {user}@'127.0.0.1'")
            cursor.execute(f"GRANT ALL ON {connections[alias].settings_dict['NAME']}.* TO {user}@'127.0.0.1'")
        connections[alias].close()
        original = connections[alias].settings_dict["USER"]
        try:
            connections[alias].settings_dict["USER"] = user
            assert fences.writers_in_progress(connections[alias]) is None
            assert not fences_mysql._session(connections[alias]).has_privilege
            token = fences.session_token(connections[alias])
            assert fences.is_over(connections[alias], token)  # its own, and idle
        finally:
            connections[alias].close()
            connections[alias].settings_dict["USER"] = original
            with connections[alias].cursor() as cursor:
                cursor.execute(f"DROP USER {user}@'127.0.0.1'")
        # The threads of another user may be hidden, so that user's fences prove nothing to this one.
        assert not fences.is_over(connections[alias], token)

    def test_other_server(self, alias: str, transactional_db: None) -> None:
        """A thread of another server is not known here."""
        token = fences.session_token(connections[alias])
        kind, server, _ = token.split(":")
        assert not fences.is_over(connections[alias], f"{kind}:{server[::-1]}:999999999")
        assert fences.is_over(connections[alias], f"{kind}:{server}:999999999")

    def test_own_transaction(self, alias: str, table: str) -> None:
        """A connection's own transaction is over when it is in none."""
        connection = connections[alias]
        with transaction.atomic(using=alias):
            token = fences.writer_token(connection)
            assert not fences.is_over(connection, token)
        assert fences.is_over(connection, token)


@pytest.mark.parametrize("alias", ["default"], indirect=True)
class TestSQLite:
    def test_question_makes_no_file(self, alias: str, table: str, tmp_path: Any) -> None:
        """A database file that is gone is not made again by the question, and proves nothing."""
        assert not fences_sqlite._is_lock_free(tmp_path / "gone.sqlite3")
        assert list(tmp_path.iterdir()) == []

    def test_other_file(self, alias: str, table: str) -> None:
        """The lock of one file says nothing about a writer of another."""
        token = fences.writer_token(connections[alias])
        assert fences.is_over(connections[alias], token)
        assert not fences.is_over(connections[alias], token + "0")

    def test_memory(self, alias: str, table: str) -> None:
        """A database in memory answers for its own process only."""
        connection = connections.create_connection(alias)
        connection.settings_dict = {**connection.settings_dict, "NAME": "file:fences_test?mode=memory&cache=shared"}
        holder = sqlite3.connect("file:fences_test?mode=memory&cache=shared", uri=True, isolation_level=None)
        try:
            holder.execute("CREATE TABLE t (n)")
            token = fences.writer_token(connection)
            assert token.startswith("sqlite-memory:")
            assert fences.is_over(connection, token)
            holder.execute("BEGIN IMMEDIATE")
            holder.execute("INSERT INTO t VALUES (1)")
            assert not fences.is_over(connection, token)
            holder.execute("ROLLBACK")
            assert fences.is_over(connection, token)
            assert not fences.is_over(connections[alias], token)
        finally:
            holder.close()
            driver: Any = connection.connection
            driver.close()  # close() of Django's leaves a database in memory open

    def test_statement_of_a_dead_process(self, alias: str, table: str) -> None:
        """The fence of a process is over when the process is gone, even while nobody has reaped it."""
        program = "from live_cache.ledger.fences_sqlite import _process; print(_process(), flush=True); input()"
        process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=os.getcwd()
        )
        assert process.stdout is not None
        token = "sqlite-process:" + process.stdout.readline().strip()
        assert not fences.is_over(connections[alias], token)
        process.kill()
        assert eventually(lambda: fences.is_over(connections[alias], token))
        process.communicate()
        namespace = token.replace(".", ".9", 1)
        assert not fences.is_over(connections[alias], namespace)
