"""Every kind of transaction, and every way in which one can fail: reads are right afterwards and nothing is left."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial
from typing import Any

import pytest
from django.db import DatabaseError, InterfaceError, OperationalError, connections, transaction
from django.test import TestCase

from live_cache import live, recording
from live_cache.assembly import get_assembly
from live_cache.ledger.clocks import Dependency, Reading
from live_cache.names import clock_of, database_name
from live_cache.writes.own_transaction import OwnTransaction
from live_cache.writes.transactions import state_of
from tests.cache_kinds import wait_for_hits
from tests.machine.faults import FickleLedger
from tests.testapp.models import Author, Country, Tag


@pytest.fixture
def authors(alias: str, cache: str) -> str:
    """Two authors, and the database alias."""
    Author.objects.using(alias).bulk_create([Author(name="A0"), Author(name="A1")])
    return alias


def live_names(alias: str) -> list[str]:
    return list(live(Author.objects.using(alias).order_by("pk")).values_list("name", flat=True))


def names(alias: str) -> list[str]:
    return list(Author.objects.using(alias).order_by("pk").values_list("name", flat=True))


def rename(alias: str, name: str = "New") -> None:
    Author.objects.using(alias).update(name=name)


def reading(alias: str) -> Reading:
    clock = clock_of(database_name(connections[alias]), "testapp_author")
    (found,) = get_assembly("default").ledger.read([Dependency(clock)])
    return found


def check_clean(alias: str) -> None:
    """Reads are right and cached again, no intent stands, and the connection has forgotten everything."""
    assert live_names(alias) == names(alias)
    with recording() as reads:
        assert live_names(alias) == names(alias)
    assert reads[0].is_hit, reads[0].reason
    assert reading(alias).intents == ()
    state = state_of(connections[alias])
    assert not state.has_writes
    assert not state.is_in_transaction
    assert not state._intents
    assert not state._declared
    assert not state._is_outcome_unknown


class _FailingDriver:
    """Stands before the driver's connection and lets chosen methods do something else."""

    def __init__(self, driver: Any, **methods: Callable[[], object]) -> None:
        self.__dict__.update(methods, _driver=driver)
        if "commit" in methods and hasattr(driver, "begin"):  # MySQL, where a COMMIT may be sent as SQL
            self.__dict__["query"] = lambda sql: methods["commit"]() if sql.startswith("COMMIT") else driver.query(sql)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._driver, name, value)


def test_nested_blocks_and_savepoints(authors: str) -> None:
    """A rollback at each level takes back that level, and reads between see what the transaction sees."""
    live_names(authors)
    with transaction.atomic(using=authors):
        rename(authors, "One")
        with transaction.atomic(using=authors):
            rename(authors, "Two")
            with pytest.raises(ZeroDivisionError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
                rename(authors, "Three")
                assert live_names(authors) == ["Three"] * 2
                raise ZeroDivisionError
            assert live_names(authors) == ["Two"] * 2
        with transaction.atomic(using=authors, savepoint=False):
            assert live_names(authors) == ["Two"] * 2
        # Renamed in Django 6.1.
        savepoint: Any = getattr(transaction, "savepoint_create", None) or transaction.savepoint
        point = savepoint(using=authors)
        rename(authors, "Four")
        transaction.savepoint_rollback(point, using=authors)
        assert live_names(authors) == ["Two"] * 2
    assert live_names(authors) == ["Two"] * 2
    check_clean(authors)


def test_rollback_at_the_outer_level(authors: str) -> None:
    """What an inner block kept goes with the outer one, and the hits stay."""
    before = live_names(authors)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        with transaction.atomic(using=authors, durable=False):
            rename(authors)
        raise ZeroDivisionError
    with recording() as reads:
        assert live_names(authors) == before
    assert reads[0].is_hit
    check_clean(authors)


def test_broken_block(authors: str) -> None:
    """After an error that nobody caught inside, the block can only be rolled back, and reads do not hide it."""
    live_names(authors)
    with transaction.atomic(using=authors):
        rename(authors)
        transaction.set_rollback(True, using=authors)
        with pytest.raises(transaction.TransactionManagementError):
            live_names(authors)
    check_clean(authors)


def test_durable_block_that_is_refused(authors: str) -> None:
    """``durable=True`` inside a block raises in __enter__, and nothing is left behind (T19)."""
    live_names(authors)
    with (
        transaction.atomic(using=authors),
        pytest.raises(RuntimeError),
        transaction.atomic(using=authors, durable=True),
    ):
        pass
    rename(authors)
    check_clean(authors)
    with transaction.atomic(using=authors, durable=True):
        rename(authors, "Durable")
    check_clean(authors)
    assert names(authors) == ["Durable"] * 2


def test_entering_fails(authors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that refuses BEGIN leaves no level behind: the next write is seen at once (T19)."""
    live_names(authors)
    connection: Any = connections[authors]

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OperationalError("the database system is starting up")

    hooked = "_start_transaction_under_autocommit" if connection.vendor == "sqlite" else "_set_autocommit"
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr(connection, hooked, refuse)
            with pytest.raises(OperationalError), transaction.atomic(using=authors):
                pytest.fail("entered")
        with monkeypatch.context() as patch:
            patch.setattr(OwnTransaction, "_begin", refuse)
            with pytest.raises(OperationalError):
                rename(authors)
    assert not state_of(connection).is_in_transaction
    rename(authors)
    assert live_names(authors) == ["New"] * 2
    check_clean(authors)


def test_server_refuses_the_connection(authors: str) -> None:
    """The same with a server that is really not there."""
    connection = connections[authors]
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no server")
    live_names(authors)
    port = connection.settings_dict["PORT"]
    connection.close()
    connection.settings_dict["PORT"] = 1
    try:
        with pytest.raises(DatabaseError), transaction.atomic(using=authors):
            pytest.fail("entered")
    finally:
        connection.settings_dict["PORT"] = port
    rename(authors)
    assert live_names(authors) == ["New"] * 2
    check_clean(authors)


@pytest.mark.parametrize("error", [OperationalError, InterfaceError, KeyboardInterrupt])
def test_commit_fails_and_was_not_done(authors: str, error: type[BaseException]) -> None:
    """A COMMIT that fails at the driver and is answered by a ROLLBACK leaves no intent (T20)."""
    before = live_names(authors)
    connection: Any = connections[authors]

    def fail() -> None:
        raise error("no")

    driver = connection.connection
    # After another error than a DatabaseError Django does not roll back, and psycopg refuses to leave the transaction.
    with pytest.raises((error, DatabaseError)), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        rename(authors)
        connection.connection = _FailingDriver(driver, commit=fail)
    connection.connection = driver
    connection.rollback()
    connection.set_autocommit(True)
    assert names(authors) in (before, ["New"] * 2)
    check_clean(authors)
    rename(authors, "After")
    assert live_names(authors) == ["After"] * 2


def test_deferred_constraint_fails_at_commit(authors: str) -> None:
    """PostgreSQL and SQLite check a foreign key at COMMIT: refused, nothing changed, no intent is left."""
    connection = connections[authors]
    if connection.vendor == "mysql":
        pytest.skip("MariaDB checks at once")
    before = live_names(authors)
    with pytest.raises(DatabaseError), transaction.atomic(using=authors):
        Author.objects.using(authors).update(name="New", country_id="ZZ")
    assert live_names(authors) == before
    check_clean(authors)


def test_commit_is_done_and_its_answer_is_lost(authors: str, second_connection: Callable[[str], Any]) -> None:
    """The COMMIT took effect and the connection broke: no other reader sees the old rows, at any time (T20, T24)."""
    other = second_connection(authors)
    other.run(live_names, authors)
    with recording() as reads:
        live_names(authors)
    assert reads[0].is_hit
    connection: Any = connections[authors]
    driver = connection.connection

    def commit_and_break() -> None:
        driver.commit()
        driver.close()
        raise OperationalError("server closed the connection unexpectedly")

    with pytest.raises(OperationalError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        rename(authors)
        connection.connection = _FailingDriver(driver, commit=commit_and_break, close=lambda: None)
    assert other.run(live_names, authors) == ["New"] * 2
    connection.close()
    connection.connection = None
    assert live_names(authors) == ["New"] * 2
    assert not state_of(connection)._intents


def test_answer_is_lost_and_no_intent_stands(authors: str) -> None:
    """The ledger could not be told of a COMMIT before it, and nobody knows how it went: it is told at the reconnect."""
    live_names(authors)
    connection: Any = connections[authors]
    driver = connection.connection
    fickle = FickleLedger()

    def commit_and_break() -> None:
        driver.commit()
        driver.close()
        fickle.restore()
        raise OperationalError("server closed the connection unexpectedly")

    fickle.breaks("declares")
    with pytest.raises(OperationalError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        rename(authors)
        connection.connection = _FailingDriver(driver, commit=commit_and_break, close=lambda: None)
    connection.close()
    connection.connection = None
    connection.connect()
    assert live_names(authors) == ["New"] * 2


@pytest.mark.parametrize("is_kept", [True, False], ids=["committed late", "rolled back late"])
def test_intent_of_a_lost_commit_goes_once_the_writer_is_over(
    authors: str, second_connection: Callable[[str], Any], settings: Any, is_kept: bool
) -> None:
    """Its lease is over and the transaction is not: the intent stands. The database says that it is over: it goes."""
    settings.LIVE_CACHE_LEASE_S = 0.2
    other = second_connection(authors)
    before = other.run(live_names, authors)
    connection: Any = connections[authors]
    connection.ensure_connection()
    driver = connection.connection

    def lose() -> None:
        raise OperationalError("could not receive data from server: timed out")

    with pytest.raises(OperationalError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        rename(authors)
        connection.connection = _FailingDriver(driver, commit=lose, rollback=lose, close=lambda: None)
    connection.close()
    try:
        for _ in range(3):
            assert other.run(live_names, authors) == before
            assert len(reading(authors).intents) == 1
            time.sleep(0.3)
        driver.commit() if is_kept else driver.rollback()
        assert other.run(live_names, authors) == other.run(names, authors) == (["New"] * 2 if is_kept else before)
        wait_for_hits(lambda: other.run(partial(copy_context().run, live_names, authors)))
        assert reading(authors).intents == ()
        assert other.run(live_names, authors) == other.run(names, authors)
    finally:
        driver.close()


def kill(alias: str) -> None:
    """Kill the session of the calling thread's connection, by another one."""
    connection: Any = connections[alias]
    own = (
        connection.connection.info.backend_pid
        if connection.vendor == "postgresql"
        else connection.connection.thread_id()
    )
    command = "SELECT pg_terminate_backend(%s)" if connection.vendor == "postgresql" else "KILL %s"
    other = connection.copy()
    try:
        with other.cursor() as cursor:
            cursor.execute(command, [own])
    finally:
        other.close()


@pytest.mark.parametrize("when", ["in autocommit", "in a block", "by hand"])
def test_lost_connection(authors: str, when: str) -> None:
    """A session that is killed takes its transaction along; after the reconnect nothing is left of it."""
    connection = connections[authors]
    if connection.vendor == "sqlite":
        pytest.skip("SQLite has no sessions")
    before = live_names(authors)
    if when == "in autocommit":
        kill(authors)
        with pytest.raises(DatabaseError):
            rename(authors)
    elif when == "in a block":
        with pytest.raises(DatabaseError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
            rename(authors)
            kill(authors)
            rename(authors, "Again")
    else:
        transaction.set_autocommit(False, using=authors)
        rename(authors)
        kill(authors)
        with pytest.raises(DatabaseError):
            rename(authors, "Again")
    connection.close()
    assert live_names(authors) == before
    check_clean(authors)
    rename(authors)
    assert live_names(authors) == ["New"] * 2


@pytest.mark.parametrize("is_atomic", [False, True])
def test_connection_is_closed_in_the_middle(authors: str, is_atomic: bool) -> None:
    """close() inside a transaction rolls it back; the next connection knows nothing of it."""
    before = live_names(authors)
    connection = connections[authors]
    if is_atomic:
        with pytest.raises(DatabaseError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
            rename(authors)
            connection.close()
            live_names(authors)
    else:
        transaction.set_autocommit(False, using=authors)
        rename(authors)
        connection.close()
    assert live_names(authors) == before
    check_clean(authors)


def test_manual_commit_and_rollback(authors: str) -> None:
    """set_autocommit(False): each COMMIT and ROLLBACK counts, and turning autocommit on again is clean."""
    before = live_names(authors)
    transaction.set_autocommit(False, using=authors)
    try:
        rename(authors, "Lost")
        transaction.rollback(using=authors)
        rename(authors, "Kept")
        with transaction.atomic(using=authors):
            rename(authors, "Inner")
        assert live_names(authors) == ["Inner"] * 2
        transaction.commit(using=authors)
    finally:
        transaction.rollback(using=authors)
        transaction.set_autocommit(True, using=authors)
    assert live_names(authors) == ["Inner"] * 2 != before
    check_clean(authors)


def test_on_commit_order(authors: str) -> None:
    """Callbacks run in order, each after the tick; what a callback writes is seen by the next one."""
    live_names(authors)
    seen: list[list[str]] = []

    def write_more() -> None:
        seen.append(live_names(authors))
        rename(authors, "More")

    with transaction.atomic(using=authors):
        transaction.on_commit(write_more, using=authors)
        transaction.on_commit(lambda: seen.append(live_names(authors)), using=authors)
        rename(authors)
    assert seen == [["New"] * 2, ["More"] * 2]
    check_clean(authors)


def test_failing_callback_comes_after_the_tick(authors: str) -> None:
    """An exception of on_commit() leaves a ticked commit behind."""
    live_names(authors)
    with pytest.raises(ZeroDivisionError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        transaction.on_commit(lambda: 1 // 0, using=authors)
        rename(authors)
    assert live_names(authors) == ["New"] * 2
    check_clean(authors)


@pytest.mark.parametrize("level", ["repeatable read", "serializable", "read committed"])
def test_isolation_levels(authors: str, level: str, second_connection: Callable[[str], Any]) -> None:
    """A snapshot transaction neither serves newer rows than it sees, nor stores the older ones it sees (T3)."""
    connection = connections[authors]
    if connection.vendor == "sqlite":
        pytest.skip("any SQLite transaction is a snapshot; see test_races.py")
    other = second_connection(authors)
    before = live_names(authors)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL {level}"
            if connection.vendor == "postgresql"
            else f"SET SESSION TRANSACTION ISOLATION LEVEL {level}"
        )
    try:
        with transaction.atomic(using=authors):
            assert names(authors) == before
            if level != "serializable" or connection.vendor == "postgresql":
                other.run(rename, authors)
            assert live_names(authors) == names(authors)
        assert live_names(authors) == names(authors)
        assert other.run(live_names, authors) == names(authors)
    finally:
        connection.close()
    check_clean(authors)


@pytest.mark.django_db(transaction=True, databases=["default", "postgresql"])
def test_two_databases_in_one_block(cache: str) -> None:
    """Each database is committed and rolled back by itself."""
    if "postgresql" not in connections:
        pytest.skip("POSTGRESQL IS MISSING")
    for alias in ("default", "postgresql"):
        Author.objects.using(alias).create(name="A")
        live_names(alias)
    with pytest.raises(ZeroDivisionError), transaction.atomic("default"):  # noqa: PT012 - the end of atomic() is what raises, or is inside
        rename("default", "Lost")
        with transaction.atomic("postgresql"):
            rename("postgresql", "Kept")
        assert live_names("postgresql") == ["Kept"]
        raise ZeroDivisionError
    assert live_names("default") == ["A"]
    assert live_names("postgresql") == ["Kept"]
    for alias in ("default", "postgresql"):
        check_clean(alias)


def test_threads_have_transactions_of_their_own(authors: str, second_connection: Callable[[str], Any]) -> None:
    """A block in one thread changes nothing for the reads of another one."""
    other = second_connection(authors)
    before = other.run(live_names, authors)
    live_names(authors)
    with transaction.atomic(using=authors):
        rename(authors)
        with recording() as reads:
            assert other.run(live_names, authors) == before
        del reads
    assert other.run(live_names, authors) == ["New"] * 2
    check_clean(authors)


def test_thread_that_ends_inside_a_transaction(authors: str) -> None:
    """A thread that ends without COMMIT takes its connection along; nothing of it stays."""
    before = live_names(authors)

    def leave() -> None:
        transaction.set_autocommit(False, using=authors)
        rename(authors)
        connections[authors].close()

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    assert live_names(authors) == before
    check_clean(authors)


def test_async_tasks_share_one_transaction_at_a_time(authors: str) -> None:
    """sync_to_async() runs in one thread: each task's block is whole, and reads of others are right."""
    import asyncio

    from asgiref.sync import async_to_sync, sync_to_async

    def write(name: str) -> list[str]:
        with transaction.atomic(using=authors):
            rename(authors, name)
            return live_names(authors)

    async def run() -> list[list[str]]:
        return await asyncio.gather(*[sync_to_async(write)(f"T{i}") for i in range(5)])

    assert sorted(async_to_sync(run)()) == [[f"T{i}"] * 2 for i in range(5)]
    assert live_names(authors) == names(authors)
    check_clean(authors)


def test_pool(authors: str) -> None:
    """A connection that goes back to a pool inside a transaction brings nothing along when it comes again."""
    connection: Any = connections[authors]
    if connection.vendor != "postgresql":
        pytest.skip("Django pools connections of PostgreSQL only")
    pytest.importorskip("psycopg_pool")
    before = live_names(authors)
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    connection.settings_dict["OPTIONS"] = {**options, "pool": {"min_size": 1, "max_size": 2}}
    try:
        transaction.set_autocommit(False, using=authors)
        rename(authors)
        connection.close()
        assert live_names(authors) == before
        rename(authors)
        connection.close()
        assert live_names(authors) == ["New"] * 2
        check_clean(authors)
    finally:
        connection.close()
        connection.close_pool()
        connection.settings_dict["OPTIONS"] = options


def _view(request: Any) -> Any:
    from django.http import HttpResponse

    rename("default", "Requested")
    if "fail" in request.GET:
        raise ZeroDivisionError
    return HttpResponse(",".join(live_names("default")))


@pytest.fixture
def atomic_requests() -> Iterator[None]:
    """ATOMIC_REQUESTS on the default database."""
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = True
    yield
    connections["default"].settings_dict["ATOMIC_REQUESTS"] = False


@pytest.mark.django_db(transaction=True)
def test_atomic_requests(cache: str, atomic_requests: None, rf: Any) -> None:
    """A request is one transaction: kept when the view returns, taken back when it raises."""
    from django.core.handlers.base import BaseHandler

    Author.objects.create(name="A0")
    assert live_names("default") == ["A0"]
    view = BaseHandler().make_view_atomic(_view)
    with pytest.raises(ZeroDivisionError):
        view(rf.get("/?fail=1"))
    assert live_names("default") == ["A0"]
    check_clean("default")
    assert view(rf.get("/")).content == b"Requested"
    assert live_names("default") == ["Requested"]
    check_clean("default")


# -- tests of users -----------------------------------------------------------------------------------------------


class TestInsideTestCase(TestCase):
    """django.test.TestCase: its blocks are as if they were not there."""

    databases = frozenset({"default", *(["postgresql"] if "postgresql" in connections else [])})

    @classmethod
    def setUpTestData(cls) -> None:
        for alias in cls.databases:
            Author.objects.using(alias).create(name="A0")
            assert live_names(alias) == ["A0"]

    @classmethod
    def tearDownClass(cls) -> None:
        """Read once more what is about to be rolled back."""
        for alias in cls.databases:
            assert live_names(alias) == ["A0"]
        super().tearDownClass()

    def check_a_test(self) -> None:
        """Read, write in autocommit and in blocks, and read again. Runs twice: the first leaves nothing behind."""
        for alias in sorted(self.databases):
            assert live_names(alias) == ["A0"]
            with recording() as reads, self.assertNumQueries(0, using=alias):
                assert live_names(alias) == ["A0"]
            assert reads[0].is_hit
            with self.assertNumQueries(1, using=alias):
                rename(alias, "Auto")
            assert live_names(alias) == ["Auto"]
            with transaction.atomic(using=alias):
                rename(alias, "Block")
                assert live_names(alias) == ["Block"]
            assert live_names(alias) == ["Block"]
            with transaction.atomic(using=alias, savepoint=False):
                rename(alias, "Flat")
            assert live_names(alias) == ["Flat"]
            with pytest.raises(ZeroDivisionError), transaction.atomic(using=alias):  # noqa: PT012 - the end of atomic() is what raises, or is inside
                rename(alias, "Lost")
                raise ZeroDivisionError
            assert live_names(alias) == ["Flat"]
            with recording() as reads:
                assert live_names(alias) == ["Flat"]
            assert reads[0].is_hit
            Author.objects.using(alias).create(name="Second")
            assert live_names(alias) == ["Flat", "Second"]

    def test_first(self) -> None:
        """Whichever comes first."""
        self.check_a_test()

    def test_second(self) -> None:
        """Sees the rows of setUpTestData again."""
        self.check_a_test()

    def test_callbacks(self) -> None:
        """captureOnCommitCallbacks() runs callbacks that read the new rows."""
        seen: list[list[str]] = []
        with self.captureOnCommitCallbacks(execute=True), transaction.atomic():
            transaction.on_commit(lambda: seen.append(live_names("default")))
            rename("default", "Called")
        assert seen == [["Called"]]


class TestAfterTestCase(TestCase):
    """The next class, over the same cache."""

    databases = TestInsideTestCase.databases

    def test_nothing_is_left(self) -> None:
        """What was cached in the class before is not read here."""
        for alias in sorted(self.databases):
            assert live_names(alias) == names(alias) == []


@pytest.mark.django_db
@pytest.mark.parametrize("time", [1, 2])
def test_inside_the_db_fixture(cache: str, time: int) -> None:
    """pytest-django's ``db`` is the same; the second run finds nothing of the first."""
    assert live_names("default") == []
    Author.objects.create(name="A")
    assert live_names("default") == ["A"]
    with recording() as reads:
        live_names("default")
    assert reads[0].is_hit


@pytest.mark.django_db(databases=["postgresql"])
def test_rows_of_a_test_are_served_to_nobody_else(cache: str, second_connection: Callable[[str], Any]) -> None:
    """Another connection shares ledger and tiers; it does not see the test's rows, nor hide its own from the test."""
    if "postgresql" not in connections:
        pytest.skip("POSTGRESQL IS MISSING")
    other = second_connection("postgresql")
    Author.objects.using("postgresql").create(name="Mine")
    tags = live(Tag.objects.using("postgresql")).values_list("name", flat=True)
    assert live_names("postgresql") == ["Mine"]
    assert list(tags.all()) == []
    try:
        assert other.run(live_names, "postgresql") == []
        other.run(lambda: Tag.objects.using("postgresql").create(name="theirs") and None)
        assert list(tags.all()) == ["theirs"]
    finally:
        other.run(lambda: Tag.objects.using("postgresql").all().delete() and None)


def test_country_is_another_table(authors: str) -> None:
    """A transaction that writes one table leaves the hits of others alone."""
    live_names(authors)
    with transaction.atomic(using=authors):
        Country.objects.using(authors).create(code="FR", name="France")
        with recording() as reads:
            live_names(authors)
    assert reads[0].is_hit == (connections[authors].vendor != "sqlite")
