"""What PostgreSQL has beyond the others: changes of the schema, rights, partitions, and statements of many kinds."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connections

from live_cache.outbox import postgresql
from live_cache.outbox.dialect import rows_of
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import drop_triggers, install_triggers
from live_cache.outbox.listener import Listener
from tests.outside import outside, write_outside
from tests.servers import MISSING

pytestmark = [
    pytest.mark.django_db(transaction=True, databases=["postgresql"]),
    pytest.mark.skipif("postgresql" in MISSING, reason="POSTGRESQL IS MISSING"),
]
PG = "postgresql"


@pytest.fixture
def place(cache: str) -> Iterator[str]:
    """A table, its triggers, and one row."""
    connection = connections[PG]
    with connection.cursor() as cursor:
        cursor.execute('CREATE SCHEMA "Other place"')
        cursor.execute(
            'CREATE TABLE "Other place"."pla""ce$live_cache$" (id integer PRIMARY KEY, "A""\'\\a" varchar(9), b float8)'
        )
    table = '"Other place"."pla""ce$live_cache$"'
    install_triggers(connection, [table])
    write_outside(PG, f"INSERT INTO {table} VALUES (1, 'x', 1.5)")
    assert [("insert", True)] == lines()
    yield table
    with connection.cursor() as cursor:
        cursor.execute('DROP SCHEMA "Other place" CASCADE')
    drop_triggers(connection)


def lines() -> list[tuple[str, bool]]:
    """Return what stands in the outbox: kind, and whether rows are told. It is empty then."""
    connection = connections[PG]
    dialect = dialect_of(connection)
    found = dialect.read(connection, 100)
    if found:
        dialect.delete(connection, found)
    return [(line.kind, line.changes is not None) for line in found]


class TestSchema:
    """A trigger never breaks a write, and never tells less than there was."""

    @pytest.mark.parametrize(
        "change",
        [
            "ADD COLUMN c integer",
            "DROP COLUMN b",
            "ALTER COLUMN b TYPE numeric",
            "ALTER COLUMN b TYPE real",
            "RENAME COLUMN b TO c",
            'DROP CONSTRAINT "pla""ce$live_cache$_pkey", ALTER COLUMN id TYPE text',
        ],
    )
    def test_a_changed_table_is_told_as_a_whole(self, place: str, change: str) -> None:
        """In sessions that have written before, and in new ones."""
        with outside(PG) as connection:
            connection.execute(f"UPDATE {place} SET b = 2")
            assert [("update", True)] == lines()
            write_outside(PG, f"ALTER TABLE {place} {change}")
            for writer in (connection.execute, lambda sql: write_outside(PG, sql)):
                writer(f"""UPDATE {place} SET "A""'\\a" = COALESCE("A""'\\a", '') || '.'""")
                assert [("update", False)] == lines()
                writer(f"INSERT INTO {place} SELECT (SELECT count(*) + 10 FROM {place})")
                assert [("insert", False)] == lines()
                writer(f"DELETE FROM {place} WHERE id::text > '1'")
                assert [("delete", False)] == lines()
            install_triggers(connections[PG], [place])
            connection.execute(f"""UPDATE {place} SET "A""'\\a" = 'y'""")
            assert [("update", "DROP CONSTRAINT" not in change)] == lines()

    def test_a_renamed_table(self, place: str) -> None:
        """Is told by its new name."""
        write_outside(PG, f"ALTER TABLE {place} RENAME TO renamed", 'UPDATE "Other place".renamed SET b = 7')
        (line,) = dialect_of(connections[PG]).read(connections[PG], 10)
        assert "renamed" == line.table

    @pytest.mark.parametrize("search_path", ["pg_catalog", '"Other place"', '"$user", public'])
    def test_any_search_path(self, place: str, search_path: str) -> None:
        """Of the writer."""
        write_outside(PG, f"SET LOCAL search_path = {search_path}", f"UPDATE {place} SET b = 7")
        assert [("update", True)] == lines()

    def test_a_writer_without_rights(self, place: str) -> None:
        """To anything but the table."""
        role = "live_cache_test_writer"
        with connections[PG].cursor() as cursor:
            cursor.execute("SELECT rolcreaterole OR rolsuper FROM pg_roles WHERE rolname = current_user")
            if not cursor.fetchone()[0]:
                pytest.skip("this user may make no roles")
        write_outside(PG, f"CREATE ROLE {role}", f'GRANT USAGE ON SCHEMA "Other place" TO {role}',
                      f"GRANT SELECT, UPDATE ON {place} TO {role}")  # fmt: skip
        try:
            write_outside(PG, f"SET LOCAL ROLE {role}", f"UPDATE {place} SET b = 7")
            assert [("update", True)] == lines()
        finally:
            write_outside(PG, f"DROP OWNED BY {role}", f"DROP ROLE {role}")

    def test_a_replica_role(self, place: str) -> None:
        """Does not keep triggers from running. It enforces no foreign keys, so the table is told."""
        write_outside(PG, "SET LOCAL session_replication_role = replica", f"UPDATE {place} SET b = 7")
        assert [("update", False)] == lines()


class TestStatements:
    """Each kind of statement that writes."""

    def test_statements_that_do_several_things(self, place: str) -> None:
        """Each is told."""
        write_outside(PG, f"INSERT INTO {place} VALUES (1, 'y'), (2, 'y') ON CONFLICT (id) DO UPDATE SET b = 9")
        assert [("insert", True), ("update", True)] == sorted(lines())
        write_outside(
            PG,
            f"MERGE INTO {place} t USING (VALUES (1), (2), (3)) v (id) ON t.id = v.id"
            " WHEN MATCHED AND t.id = 1 THEN DELETE WHEN MATCHED THEN UPDATE SET b = 10"
            " WHEN NOT MATCHED THEN INSERT VALUES (v.id)",
        )
        assert [("delete", True), ("insert", True), ("update", True)] == sorted(lines())
        write_outside(
            PG, f"WITH gone AS (DELETE FROM {place} RETURNING *) INSERT INTO {place} SELECT id + 10 FROM gone"
        )
        assert [("delete", True), ("insert", True)] == sorted(lines())

    def test_a_value_that_only_looks_equal(self, place: str) -> None:
        """Is a change: 0.0 and -0.0 are shown differently."""
        write_outside(PG, f"UPDATE {place} SET b = 0.0")
        lines()
        write_outside(PG, f"UPDATE {place} SET b = '-0'")
        (line,) = dialect_of(connections[PG]).read(connections[PG], 10)
        ((_, _, changed),) = json.loads(line.changes or "")
        assert ["b"] == [name for name in changed if name]

    def test_keys_that_change_places(self, place: str) -> None:
        """Are told as the change of the table's rows that it is, or as the table."""
        write_outside(PG, f"INSERT INTO {place} VALUES (2, 'y', 2)")
        lines()
        write_outside(PG, f"UPDATE {place} SET id = id + 10")
        assert [("update", False)] == lines()

    def test_a_savepoint(self, place: str) -> None:
        """What it takes back is not told."""
        write_outside(PG, "SAVEPOINT s", f"UPDATE {place} SET b = 7", "ROLLBACK TO s", f"UPDATE {place} SET b = 8")
        (line,) = dialect_of(connections[PG]).read(connections[PG], 10)
        assert line.changes is not None

    def test_more_rows_than_a_record_holds(self, place: str) -> None:
        """Are told as the table."""
        write_outside(PG, f"INSERT INTO {place} SELECT generate_series(10, 909)")
        assert [("insert", True)] == lines()
        write_outside(PG, f"UPDATE {place} SET b = 3")
        assert [("update", False)] == lines()


class TestLooks:
    """Each look is only for what the last one could not show; now and then for everything."""

    def test_a_line_of_an_old_transaction(self, place: str, monkeypatch: Any) -> None:
        """As a restored backup brings it."""
        listener = Listener(PG)
        assert 0 == listener.step()
        columns = "(txid, table_name, kind) VALUES ('3', 'testapp_country', 'truncate')"
        write_outside(PG, f"INSERT INTO live_cache_outbox {columns}")
        assert 0 == listener.step()
        monkeypatch.setattr(postgresql, "_LOOK_AT_ALL_S", 0.0)
        listener._connected().__dict__.pop(postgresql._LOOK_AT_ALL_AT_S)
        assert 1 == listener.step()
        listener.close()


class TestFamilies:
    """Partitions and children: their rows are those of other tables too."""

    @pytest.fixture
    def events(self, cache: str) -> Iterator[None]:
        """A partitioned table."""
        connection = connections[PG]
        with connection.cursor() as cursor:
            cursor.execute("CREATE TABLE events (id int, day int, PRIMARY KEY (id, day)) PARTITION BY RANGE (day)")
            cursor.execute("CREATE TABLE events_1 PARTITION OF events FOR VALUES FROM (0) TO (10)")
            cursor.execute("CREATE TABLE events_2 PARTITION OF events FOR VALUES FROM (10) TO (20)")
        install_triggers(connection, ["events"])
        yield
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE events")
        drop_triggers(connection)

    @pytest.mark.parametrize("table", ["events", "events_1"])
    @pytest.mark.usefixtures("events")
    def test_each_tells_all(self, table: str) -> None:
        """Whether it is written by its own name or by that of the parent."""
        write_outside(PG, f"INSERT INTO {table} VALUES (1, 1)")
        found = dialect_of(connections[PG]).read(connections[PG], 10)
        assert {"events", "events_1", "events_2"} == {line.table for line in found}


class TestNotify:
    """NOTIFY wakes the listener."""

    def test_long_before_its_next_look(self, place: str) -> None:
        """And the lines are those of a poll."""
        install_triggers(connections[PG], [place], notifies=True)
        listener, stop = Listener(PG, interval_s=60), threading.Event()
        thread = threading.Thread(target=listener.run, args=(stop,))
        thread.start()
        dialect, connection = dialect_of(connections[PG]), connections[PG]
        try:
            _until(lambda: dialect.has_listener(connection))
            for number in range(3):
                time.sleep(0.05)  # so that it waits again
                write_outside(PG, f"UPDATE {place} SET b = {number + 10}")
                _until(lambda: dialect.waiting(connection).lines == 0)
        finally:
            stop.set()
            write_outside(PG, "NOTIFY live_cache_outbox")
            thread.join(10)
        assert not thread.is_alive()

    def test_one_that_came_with_an_answer(self, place: str) -> None:
        """Is not forgotten when the listener waits next."""
        listener = Listener(PG)
        connection = listener._connected()
        write_outside(PG, "NOTIFY live_cache_outbox")
        rows_of(connection, "SELECT 1")
        began_s = time.monotonic()
        listener.dialect.wait(connection, 8)
        assert time.monotonic() - began_s < 4
        listener.close()


def _until(is_so: Any) -> None:
    end = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < end, "It never came to be so."
        time.sleep(0.01)
