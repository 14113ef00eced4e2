"""The listener of the outbox, on each database: nothing is lost, whatever fails and in whatever order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.db import connections

from live_cache import live, recording
from live_cache.events import live_stream
from live_cache.exceptions import ConfigurationError, LedgerUnavailableError
from live_cache.outbox import listener as listener_module
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import drop_triggers, install_triggers
from live_cache.outbox.listener import Listener
from tests.cache_kinds import caches_of, wait_for_hits
from tests.outside import outside, write_outside
from tests.testapp.models import Author, Country

INSERT = "INSERT INTO testapp_country (code, name, population) VALUES ('{}', 'x', 1)"


@pytest.fixture
def installed(alias: str, cache: str) -> Iterator[str]:
    """Two tables with triggers, and a country."""
    install_triggers(connections[alias], ["testapp_country", "testapp_author"])
    Country.objects.using(alias).create(code="FR", name="France", population=7)
    yield alias
    drop_triggers(connections[alias])


@pytest.fixture
def listener(installed: str) -> Iterator[Listener]:
    """A listener that is asked by hand, and has nothing to do yet."""
    made = Listener(installed)
    made.drain()
    yield made
    made.close()


def population(alias: str) -> int:
    """Read live."""
    return live(Country.objects.using(alias).filter(code="FR").order_by("pk"))[0].population


def codes(alias: str) -> set[str]:
    """Read live."""
    return set(live(Country.objects.using(alias).order_by("code")).values_list("code", flat=True))


def waiting(alias: str) -> int:
    """Return how many lines stand in the outbox."""
    return dialect_of(connections[alias]).waiting(connections[alias]).lines


def until(is_so: Callable[[], bool], *, timeout_s: float = 10.0) -> None:
    """Wait until something is so."""
    end = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end, "It never came to be so."
        time.sleep(0.01)


class TestEvents:
    """What subscribers hear of writes from outside."""

    def test_each_change_is_told_once(self, alias: str, listener: Listener) -> None:
        """With nothing beside it, also where readers are told more in order to judge."""
        with live_stream().subscribe(Country, using=alias) as subscription:
            write_outside(alias, INSERT.format("SE"))
            write_outside(alias, "UPDATE testapp_country SET population = 9 WHERE code = 'SE'")
            write_outside(alias, "UPDATE testapp_country SET population = 9 WHERE code = 'SE'")
            write_outside(alias, "DELETE FROM testapp_country WHERE code = 'SE'")
            listener.drain()
            events = []
            while (event := subscription.get(0.2)) is not None:
                events.append((type(event).__name__, event.key, getattr(event, "columns", None)))
        key = ("SE",)
        assert [("Inserted", key, None), ("Updated", key, {"population"}), ("Deleted", key, None)] == events


class TestReads:
    """What live reads see of writes from outside."""

    def test_a_write_is_seen_after_its_tick(self, alias: str, listener: Listener) -> None:
        """And not before: that is the bound."""
        wait_for_hits(lambda: population(alias))
        write_outside(alias, "UPDATE testapp_country SET population = 8")
        assert 7 == population(alias)
        listener.drain()
        assert 8 == population(alias)
        wait_for_hits(lambda: population(alias))

    def test_a_write_that_cannot_matter_drops_nothing(self, alias: str, listener: Listener) -> None:
        """Another row, or a column that the query does not look at."""
        names = live(Country.objects.using(alias).filter(population=7).values_list("name"))
        full = live(Country.objects.using(alias).filter(population__gt=5))
        wait_for_hits(lambda: (list(names.all()), list(full.all())))
        write_outside(alias, INSERT.format("SE"), "UPDATE testapp_country SET code = code")
        listener.drain()
        with recording() as reads:
            list(names.all())
            list(full.all())
        assert [True, True] == [read.is_hit for read in reads]
        write_outside(alias, "UPDATE testapp_country SET code = 'FX' WHERE code = 'SE'")
        write_outside(alias, "UPDATE testapp_country SET population = 9 WHERE code = 'FR'")
        listener.drain()
        with recording() as reads:
            assert [] == list(names.all())
            assert [9] == [country.population for country in full.all()]
        assert [False, False] == [read.is_hit for read in reads]

    def test_a_foreign_key_that_is_not_enforced(self, alias: str, listener: Listener) -> None:
        """Somebody deletes a row that others refer to: what shows them is dropped, though they were not changed."""
        france = Country.objects.using(alias).get(code="FR")
        author = Author.objects.using(alias).create(name="a", country=france)
        read = live(Author.objects.using(alias).filter(country__population__gt=0).order_by("pk"))
        listener.drain()
        wait_for_hits(lambda: list(read.all()))
        unchecked = {
            "default": "PRAGMA foreign_keys = OFF",
            "postgresql": "SET session_replication_role = replica",
            "mariadb": "SET foreign_key_checks = 0",
        }
        with outside(alias) as connection:
            cursor = connection.cursor()
            cursor.execute(unchecked[alias])
            cursor.execute("DELETE FROM testapp_country")
        listener.drain()
        assert [] == list(read.all())
        Author.objects.using(alias).filter(pk=author.pk).update(country=None)

    def test_a_rollback_tells_nothing(self, alias: str, listener: Listener) -> None:
        """The lines go with it."""
        with outside(alias) as connection:
            cursor = connection.cursor()
            for statement in ("BEGIN", INSERT.format("SE"), "ROLLBACK"):
                cursor.execute(statement)
        assert 0 == listener.drain()

    def test_an_entry_that_was_filled_between_commit_and_tick(self, alias: str, listener: Listener) -> None:
        """Is right, and is dropped by the tick all the same: its stamp is older."""
        wait_for_hits(lambda: population(alias))
        write_outside(alias, "UPDATE testapp_country SET population = 8")
        live(Country.objects.using(alias).filter(code="FR").order_by("pk")).fresh()[0]
        assert 8 == population(alias)
        listener.drain()
        with recording() as reads:
            assert 8 == population(alias)
        assert [False] == [read.is_hit for read in reads]


class TestOrder:
    """Lines come in another order than their ids."""

    def test_a_transaction_that_stays_open(self, alias: str, listener: Listener) -> None:
        """Neither holds up those that overtake it, nor is it passed by."""
        if alias == "default":
            pytest.skip("SQLite has one writer at a time")
        wait_for_hits(lambda: codes(alias))
        with outside(alias) as slow:
            cursor = slow.cursor()
            cursor.execute("BEGIN")
            cursor.execute(INSERT.format("AA"))
            write_outside(alias, INSERT.format("BB"))
            assert 1 == listener.drain()
            assert {"FR", "BB"} == codes(alias)
            wait_for_hits(lambda: codes(alias))
            write_outside(alias, INSERT.format("CC"))
            assert 1 == listener.drain()
            wait_for_hits(lambda: codes(alias))
            cursor.execute("COMMIT")
        assert 1 == listener.drain()
        assert {"FR", "AA", "BB", "CC"} == codes(alias)

    def test_two_transactions_have_two_records(self, alias: str, listener: Listener) -> None:
        """Where the database tells them apart; elsewhere they are judged together, which drops more."""
        pendings = []
        write_outside(alias, INSERT.format("AA"))
        write_outside(alias, INSERT.format("BB"))
        lines = listener.dialect.read(listener._connected(), 10)
        pendings = listener._gather(connections[alias], lines)
        assert (2 if alias == "postgresql" else 1) == len(pendings)

    def test_a_batch_that_is_cut(self, alias: str, listener: Listener, monkeypatch: Any) -> None:
        """Tells tables: it may end in the middle of a transaction."""
        monkeypatch.setattr(listener_module, "BATCH", 2)
        others = live(Country.objects.using(alias).filter(population=7))
        wait_for_hits(lambda: (codes(alias), list(others.all())))
        write_outside(alias, *(INSERT.format(f"A{number}") for number in range(5)))
        assert 2 == listener.step()
        with recording() as reads:
            list(others.all())
        assert ["table"] == [read.reason for read in reads]
        assert 3 == listener.drain()
        assert {"FR", *(f"A{number}" for number in range(5))} == codes(alias)

    def test_lines_of_a_transaction_that_ran_during_the_last_look(self, alias: str, listener: Listener) -> None:
        """The next looks are only for what the last one could not show; here it is the oldest of all."""
        if alias == "default":
            pytest.skip("SQLite has one writer at a time")
        with outside(alias) as slow:
            cursor = slow.cursor()
            cursor.execute("BEGIN")
            cursor.execute(INSERT.format("AA"))
            for code in ("BB", "CC", "DD"):
                assert 0 == listener.drain()
                write_outside(alias, INSERT.format(code))
                assert 1 == listener.drain()
            cursor.execute("COMMIT")
        assert 1 == listener.drain()
        assert 0 == waiting(alias)


class Killed(Exception):
    """Stands for the end of a process."""


class TestFailures:
    """Lines stay until their ticks have arrived."""

    def test_killed_between_tick_and_delete(self, alias: str, listener: Listener, monkeypatch: Any) -> None:
        """The next listener ticks the lines again."""
        write_outside(alias, INSERT.format("SE"))

        def die(*_: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(type(listener.dialect), "delete", die)
            with pytest.raises(Killed):
                listener.drain()
        listener.close()
        assert 1 == waiting(alias)
        wait_for_hits(lambda: codes(alias))
        other = Listener(alias)
        assert 1 == other.drain()
        other.close()
        assert 0 == waiting(alias)
        assert {"FR", "SE"} == codes(alias)

    def test_killed_between_read_and_tick(self, alias: str, listener: Listener, monkeypatch: Any) -> None:
        """Nothing is lost."""
        wait_for_hits(lambda: codes(alias))
        write_outside(alias, INSERT.format("SE"))

        def die(*_: object, **__: object) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(Listener, "_tick", die)
            with pytest.raises(Killed):
                listener.drain()
        listener.close()
        other = Listener(alias)
        assert 1 == other.drain()
        other.close()
        assert {"FR", "SE"} == codes(alias)

    def test_a_ledger_that_does_not_answer(self, alias: str, settings: Any, tmp_path: Any, private_redis: Any) -> None:
        """The lines wait, and are deleted when it has got their ticks."""
        settings.CACHES = caches_of("redis", tmp_path, private_redis.url)
        install_triggers(connections[alias], ["testapp_country"])
        Country.objects.using(alias).create(code="FR", name="France", population=7)
        listener = Listener(alias)
        listener.drain()
        wait_for_hits(lambda: population(alias))
        private_redis.freeze()
        write_outside(alias, "UPDATE testapp_country SET population = 8")
        for _ in range(2):
            with pytest.raises(LedgerUnavailableError):
                listener.drain()
            assert 1 == waiting(alias)
        private_redis.thaw()
        until(lambda: _drains(listener))
        assert 0 == waiting(alias)
        assert 8 == population(alias)
        listener.close()
        drop_triggers(connections[alias])

    def test_a_line_that_cannot_be_read(self, alias: str, listener: Listener) -> None:
        """Tells its table, and keeps nobody waiting."""
        wait_for_hits(lambda: codes(alias))
        write_outside(
            alias,
            INSERT.format("SE"),
            "INSERT INTO live_cache_outbox (table_name, kind, changes) VALUES ('testapp_country', 'insert', '[[1]]')",
            "INSERT INTO live_cache_outbox (table_name, kind, changes) VALUES ('no such table', 'strange', 'nonsense')",
        )
        assert 3 == listener.drain()
        assert {"FR", "SE"} == codes(alias)

    def test_no_live_cache(self, alias: str, listener: Listener, settings: Any) -> None:
        """Nothing is deleted that nobody was told."""
        write_outside(alias, INSERT.format("SE"))
        settings.CACHES = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
        with pytest.raises(ConfigurationError):
            listener.drain()
        assert 1 == waiting(alias)


def _drains(listener: Listener) -> bool:
    try:
        listener.drain()
    except LedgerUnavailableError:
        return False
    return True


class TestRun:
    """The loop: one listener at a time, in its own thread or process."""

    def test_it_sees_writes_and_stops(self, alias: str, listener: Listener) -> None:
        """Soon."""
        stop = threading.Event()
        thread = threading.Thread(target=Listener(alias, interval_s=0.02).run, args=(stop,))
        thread.start()
        try:
            wait_for_hits(lambda: population(alias))
            write_outside(alias, "UPDATE testapp_country SET population = 8")
            until(lambda: population(alias) == 8)
            assert dialect_of(connections[alias]).has_listener(connections[alias])
        finally:
            stop.set()
            thread.join(10)
        assert not thread.is_alive()
        until(lambda: not dialect_of(connections[alias]).has_listener(connections[alias]))

    def test_one_at_a_time(self, alias: str, listener: Listener, monkeypatch: Any) -> None:
        """The other one stands by, and takes over."""
        monkeypatch.setattr(listener_module, "_ASK_FOR_TURN_S", 0.02)
        first, second = Listener(alias), Listener(alias)
        assert first._take_turn()
        assert first._take_turn()
        stop = threading.Event()
        thread = threading.Thread(target=second.run, args=(stop,))
        thread.start()
        try:
            write_outside(alias, INSERT.format("SE"))
            time.sleep(0.2)
            assert 1 == waiting(alias)
            first.close()
            until(lambda: waiting(alias) == 0)
        finally:
            stop.set()
            thread.join(10)

    def test_a_lost_connection(self, alias: str, listener: Listener, monkeypatch: Any) -> None:
        """It connects again, and reads what came meanwhile."""
        if alias == "default":
            pytest.skip("a file has no connection to lose")
        monkeypatch.setattr(listener_module, "_FIRST_PAUSE_S", 0.02)
        stop = threading.Event()
        running = Listener(alias, interval_s=0.02)
        thread = threading.Thread(target=running.run, args=(stop,))
        thread.start()
        try:
            until(lambda: dialect_of(connections[alias]).has_listener(connections[alias]))
            _kill_connection(alias, running._connection)
            write_outside(alias, INSERT.format("SE"))
            until(lambda: waiting(alias) == 0)
            assert {"FR", "SE"} == codes(alias)
        finally:
            stop.set()
            thread.join(10)

    def test_a_killed_process(self, alias: str, installed: str, run_process: Any, settings: Any, tmp_path: Any) -> None:
        """Frees the turn, and the next process goes on where it was."""
        settings.CACHES = caches_of("host", tmp_path, None)
        wait_for_hits(lambda: codes(alias))
        script = (
            "from django.core.management import call_command as call; call('live_cache', 'listen', database=args[0])"
        )
        dialect, connection = dialect_of(connections[alias]), connections[alias]
        first = run_process.start(script, alias)
        until(lambda: dialect.has_listener(connection), timeout_s=20)
        os.kill(first.pid, signal.SIGSTOP)
        write_outside(alias, INSERT.format("SE"))
        first.kill()
        second = run_process.start(script, alias)
        until(lambda: waiting(alias) == 0, timeout_s=20)
        assert {"FR", "SE"} == codes(alias)
        os.kill(second.pid, signal.SIGTERM)
        assert 0 == second.wait(20).returncode
        write_outside(alias, INSERT.format("NO"))
        assert 1 == waiting(alias)


def _kill_connection(alias: str, connection: Any) -> None:
    with outside(alias) as other:
        cursor = other.cursor()
        if alias == "postgresql":
            cursor.execute(f"SELECT pg_terminate_backend({connection.connection.info.backend_pid})")
        else:
            cursor.execute(f"KILL {connection.connection.thread_id()}")
