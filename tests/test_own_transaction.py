"""A statement in autocommit mode runs in a transaction of its own, and the connection shows nothing of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.db import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    OperationalError,
    connections,
    transaction,
)
from django.test.utils import CaptureQueriesContext
from pymysql.constants import CLIENT

from live_cache.assembly import get_assembly
from live_cache.ledger.base import Ledger
from live_cache.names import clock_of, database_name
from live_cache.writes import rows
from tests.raw_connection import RawConnection
from tests.test_transactions import (
    _FailingDriver,
    authors,
    check_clean,
    live_names,
    names,
    reading,
    rename,
)
from tests.testapp.models import Author

__all__ = ["authors"]


def rename_one(alias: str, name: str = "New") -> None:
    author = Author.objects.using(alias).order_by("pk")[0]
    author.name = name
    author.save()


def create(alias: str) -> None:
    Author.objects.using(alias).create(name="More")


WRITES = {"save": rename_one, "update": rename, "create": create}


def check_autocommit(alias: str) -> None:
    """The connection is as it was before, to Django and to the driver."""
    connection: Any = connections[alias]
    assert connection.get_autocommit()
    assert not connection.in_atomic_block
    assert not connection.needs_rollback
    assert connection.atomic_blocks == []
    assert connection.run_on_commit == []
    driver = connection.connection
    is_in_transaction = {
        "sqlite": lambda: driver.in_transaction,
        "postgresql": lambda: driver.info.transaction_status != 0,
        "mysql": lambda: not driver.get_autocommit() or driver.server_status & 1,
    }[connection.vendor]()
    assert not is_in_transaction


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "unwatched"])
def test_nobody_sees_more_than_the_statement(authors: str, write: Callable[[str], None], is_watched: bool) -> None:
    """The query log has what it would have without the cache: no BEGIN, no COMMIT, nothing that reads the rows."""
    if is_watched:
        live_names(authors)
    with CaptureQueriesContext(connections[authors]) as queries:
        write(authors)
    sent = [query["sql"].split()[0] for query in queries if not query["sql"].startswith("SELECT")]
    assert len(sent) == 1
    assert sent[0] in ("UPDATE", "INSERT")
    assert len(queries) == len(sent) + (write is rename_one)
    check_autocommit(authors)
    check_clean(authors)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_other_wrappers_see_the_statement_as_it_is(authors: str, write: Callable[[str], None]) -> None:
    """An execute wrapper of the user gets the text that Django sends, and runs inside of the transaction."""
    live_names(authors)
    seen: list[tuple[str, bool]] = []

    def note(execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        seen.append((sql.split()[0], context["connection"].in_atomic_block))
        return execute(sql, parameters, many, context)

    with connections[authors].execute_wrapper(note):
        write(authors)
    assert [one for one in seen if one[0] != "SELECT"] in ([("UPDATE", True)], [("INSERT", True)])
    check_autocommit(authors)
    check_clean(authors)


def test_a_wrapper_that_writes_and_waits_for_the_commit(authors: str) -> None:
    """Blocks and callbacks of code that runs inside of the statement do what they do inside of atomic()."""
    live_names(authors)
    seen: list[object] = []

    def write_more(execute: Any, sql: Any, parameters: Any, many: bool, context: Any) -> Any:
        result = execute(sql, parameters, many, context)
        if sql.startswith("UPDATE") and not seen:
            seen.append("statement")
            transaction.on_commit(lambda: seen.append(live_names(authors)), using=authors)
            with pytest.raises(ZeroDivisionError), transaction.atomic(using=authors):  # noqa: PT012 - the end of atomic() is what raises, or is inside
                create(authors)
                raise ZeroDivisionError
            with pytest.raises(RuntimeError), transaction.atomic(using=authors, durable=True):
                pytest.fail("entered")
        return result

    with connections[authors].execute_wrapper(write_more):
        rename(authors)
    assert seen == ["statement", ["New"] * 2]
    check_autocommit(authors)
    check_clean(authors)


def test_statement_fails(authors: str) -> None:
    """An error of the statement ends its transaction: nothing is changed, and nothing stays open."""
    before = live_names(authors)
    author = Author.objects.using(authors).order_by("pk")[0]
    for fail in (
        lambda: Author.objects.using(authors).create(pk=author.pk, name="Again"),
        lambda: Author.objects.using(authors).filter(pk=author.pk).update(name=None),
    ):
        with pytest.raises(DatabaseError):
            fail()
        check_autocommit(authors)
        assert names(authors) == before
        check_clean(authors)


@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "unwatched"])
@pytest.mark.parametrize("is_done", [True, False], ids=["committed", "not committed"])
@pytest.mark.parametrize("error", [OperationalError, InterfaceError, KeyboardInterrupt])
def test_commit_fails(authors: str, error: type[BaseException], is_done: bool, is_watched: bool) -> None:
    """Whatever COMMIT raises, what the database says afterwards is what is read, and the transaction is over."""
    if is_watched:
        live_names(authors)
    before = names(authors)
    connection: Any = connections[authors]
    driver = connection.connection

    def fail() -> None:
        if is_done:
            driver.commit()
        raise error("no")

    connection.connection = _FailingDriver(driver, commit=fail)
    try:
        with pytest.raises((error, DatabaseError)):
            rename(authors)
    finally:
        connection.connection = driver
    check_autocommit(authors)
    assert names(authors) == (["New"] * 2 if is_done else before)
    check_clean(authors)
    rename(authors, "After")
    assert live_names(authors) == ["After"] * 2


def test_a_clock_that_is_born_before_the_commit(authors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer who has found no clock ticks all the same: a reader may have made it, and filled an entry, meanwhile."""
    ledger = get_assembly("default").ledger
    assert not ledger.is_watched((clock_of(database_name(connections[authors]), "testapp_author"),))
    declare = Ledger.declare

    def declare_and_read(ledger: Ledger, *args: Any, **kwargs: Any) -> str:
        intent_id = declare(ledger, *args, **kwargs)
        assert reading(authors).seq == 0
        return intent_id

    monkeypatch.setattr(Ledger, "declare", declare_and_read)
    rename(authors)
    assert reading(authors).seq == 1


def queries_on_the_wire(alias: str, write: Callable[[], object], tmp_path: Path) -> list[list[str]]:
    """Return what psycopg sends while *write* runs: the first words of the statements in each message."""
    driver: Any = connections[alias].connection
    path = tmp_path / "wire.txt"
    with path.open("w") as file:
        driver.pgconn.trace(file.fileno())
        try:
            write()
        finally:
            driver.pgconn.untrace()
    sent = re.findall(r"^[^\n]*\tF\t[^\n]*\tQuery\t \"(.*)\"$", path.read_text(), re.MULTILINE)
    return [[text.split()[0] for text in message.split("; ")] for message in sent]


@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "unwatched"])
def test_few_round_trips_to_postgresql(authors: str, is_watched: bool, tmp_path: Path) -> None:
    """What looks at the rows is sent with the statement, and BEGIN too."""
    if connections[authors].vendor != "postgresql":
        pytest.skip("only psycopg sends several statements at once")
    if is_watched:
        live_names(authors)
        rename(authors)  # asks the catalog about the table
    author = Author.objects.using(authors).order_by("pk")[0]
    author.name = "Saved"
    found = {
        "save": queries_on_the_wire(authors, author.save, tmp_path),
        "create": queries_on_the_wire(authors, lambda: create(authors), tmp_path),
        "update": queries_on_the_wire(authors, lambda: rename(authors, "Renamed"), tmp_path),
        "delete": queries_on_the_wire(
            authors, lambda: Author.objects.using(authors).filter(pk=author.pk)._raw_delete(authors), tmp_path
        ),
    }
    if is_watched:
        assert found == {
            "save": [["BEGIN", "SELECT", "UPDATE", "SELECT"], ["COMMIT"]],
            "create": [["BEGIN", "INSERT", "SELECT"], ["COMMIT"]],
            "update": [["BEGIN", "SELECT", "UPDATE"], ["SELECT"], ["COMMIT"]],
            "delete": [["BEGIN", "SELECT", "DELETE", "SELECT"], ["COMMIT"]],
        }
    else:
        assert found == {
            name: [["BEGIN", verb], ["COMMIT"]]
            for name, verb in {"save": "UPDATE", "create": "INSERT", "update": "UPDATE", "delete": "DELETE"}.items()
        }
    check_clean(authors)


def commands_to_mariadb(alias: str, write: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the first words of what PyMySQL sends while *write* runs, each in a round trip of its own."""
    driver: Any = connections[alias].connection
    send = driver._execute_command
    sent: list[str] = []

    def note(command: int, sql: Any) -> Any:
        text = sql if isinstance(sql, str) else bytes(sql).decode()
        sent.append(" ".join(text.split()[: 2 if text.startswith("SET") else 1]))
        return send(command, sql)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_execute_command", note)
        write()
    return sent


@pytest.mark.parametrize("is_watched", [True, False], ids=["watched", "unwatched"])
def test_few_round_trips_to_mariadb(authors: str, is_watched: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction of one statement is begun by BEGIN, so that autocommit need not be turned on again."""
    if connections[authors].vendor != "mysql":
        pytest.skip("of MariaDB")
    if is_watched:
        live_names(authors)
        rename(authors)  # asks the catalog about the table
    author = Author.objects.using(authors).order_by("pk")[0]
    author.name = "Saved"
    looks = ["SELECT"] if is_watched else []
    assert commands_to_mariadb(authors, author.save, monkeypatch) == ["BEGIN", *looks, "UPDATE", *looks, "COMMIT"]
    assert commands_to_mariadb(authors, lambda: create(authors), monkeypatch) == ["BEGIN", "INSERT", "COMMIT"]
    with connections[authors].execute_wrapper(lambda execute, *arguments: execute(*arguments)):
        # It may send a statement twice.
        sent = commands_to_mariadb(authors, author.save, monkeypatch)
    assert sent == ["SET AUTOCOMMIT", *looks, "UPDATE", *looks, "COMMIT", "SET AUTOCOMMIT"]
    check_autocommit(authors)
    check_clean(authors)


@pytest.fixture
def several(authors: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A connection to MariaDB that takes several statements in one message, as mysqlclient makes it."""
    connection: Any = connections[authors]
    if connection.vendor != "mysql":
        pytest.skip("of MariaDB")
    monkeypatch.setitem(connection.settings_dict["OPTIONS"], "client_flag", CLIENT.FOUND_ROWS | CLIENT.MULTI_STATEMENTS)
    connection.close()
    live_names(authors)
    rename(authors, "B")
    yield authors
    connection.close()


def messages_to_mariadb(alias: str, write: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Return the first words of the statements in each message that PyMySQL sends while *write* runs."""
    driver: Any = connections[alias].connection
    send = driver._execute_command
    sent: list[list[str]] = []

    def note(command: int, sql: Any) -> Any:
        text = sql if isinstance(sql, str) else bytes(sql).decode()
        sent.append([part.split()[0] for part in text.split("; ")])
        return send(command, sql)

    with monkeypatch.context() as patch:
        patch.setattr(driver, "_execute_command", note)
        write()
    return sent


def test_few_messages_to_mariadb(several: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What looks at the rows is sent with the statement, and BEGIN too."""
    author = Author.objects.using(several).order_by("pk")[0]
    author.name = "Saved"

    def save_in_block() -> None:
        with transaction.atomic(using=several):
            author.save()

    def delete() -> None:
        assert Author.objects.using(several).filter(pk=author.pk)._raw_delete(several) == 1

    def save() -> None:
        author.save()
        assert live_names(several)[0] == "Saved"

    assert messages_to_mariadb(several, save, monkeypatch)[:2] == [["BEGIN", "SELECT", "UPDATE", "SELECT"], ["COMMIT"]]
    in_block = messages_to_mariadb(several, save_in_block, monkeypatch)
    assert in_block[1:3] == [["DO", "SELECT", "UPDATE", "SELECT"], ["COMMIT"]]
    assert messages_to_mariadb(several, lambda: create(several), monkeypatch) == [["BEGIN", "INSERT"], ["COMMIT"]]
    renamed = messages_to_mariadb(several, lambda: rename(several, "Renamed"), monkeypatch)
    assert renamed == [["BEGIN", "SELECT", "UPDATE"], ["SELECT"], ["COMMIT"]]
    assert messages_to_mariadb(several, delete, monkeypatch) == [["BEGIN", "SELECT", "DELETE"], ["COMMIT"]]
    assert live_names(several) == ["Renamed"] * 2
    check_autocommit(several)
    check_clean(several)


def test_the_cursor_of_mariadb_shows_the_answer_to_its_own_statement(several: str) -> None:
    """Counts, returned rows and keys are those of the user's statement; nothing is left for the next one."""
    pk = Author.objects.using(several).order_by("pk")[0].pk
    with connections[several].cursor() as cursor:
        assert cursor.execute("UPDATE testapp_author SET name = %s WHERE id = %s", ["C", pk]) == 1
        assert (cursor.rowcount, cursor.description, cursor.fetchone()) == (1, None, None)
        assert cursor.nextset() is None
        assert cursor.execute("UPDATE testapp_author SET name = 'D' WHERE id = %s", [0]) == 0
        cursor.execute("INSERT INTO testapp_author (name) VALUES ('50%')")
        assert cursor.lastrowid > pk
        cursor.execute("DELETE FROM testapp_author WHERE id = %s RETURNING name", [pk])
        assert cursor.rowcount == 1
        assert [column[0] for column in cursor.description] == ["name"]
        assert cursor.fetchall() == (("C",),)
        cursor.execute("SELECT name FROM testapp_author ORDER BY id")
        assert cursor.fetchall() == (("B",), ("50%",))
    assert live_names(several) == ["B", "50%"]
    check_autocommit(several)
    check_clean(several)


@pytest.mark.parametrize("is_in_block", [True, False], ids=["atomic", "autocommit"])
def test_a_statement_of_several_fails(several: str, is_in_block: bool) -> None:
    """Its error is the one that Django gives it, and nothing stays open."""
    pk = Author.objects.using(several).order_by("pk")[0].pk
    for name, error in ((None, IntegrityError), ("x" * 1000, DataError)):
        with pytest.raises(error), transaction.atomic(using=several) if is_in_block else nullcontext():
            Author.objects.using(several).filter(pk=pk).update(name=name)
        check_autocommit(several)
        assert names(several) == ["B", "B"]
        check_clean(several)


@pytest.mark.parametrize("is_in_block", [True, False], ids=["atomic", "autocommit"])
def test_the_look_at_the_rows_fails(several: str, is_in_block: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement runs all the same, and its table is told."""
    monkeypatch.setattr(rows, "_text_before", lambda *_: "SELECT missing FROM testapp_author WHERE id = %s")
    author = Author.objects.using(several).order_by("pk")[0]
    author.name = "Saved"
    before = reading(several)
    with transaction.atomic(using=several) if is_in_block else nullcontext():
        author.save()
    assert reading(several).slots[0] > before.slots[0]
    assert live_names(several) == ["Saved", "B"]
    check_autocommit(several)
    check_clean(several)


def test_the_look_waits_for_another_writer_in_vain(several: str) -> None:
    """Whoever cannot get the lock of a row learns it as from the statement alone."""
    author = Author.objects.using(several).order_by("pk")[0]
    other = RawConnection(several)
    try:
        other.run("BEGIN", f"UPDATE testapp_author SET name = 'Other' WHERE id = {author.pk}")
        connections[several].connection.query("SET innodb_lock_wait_timeout = 1")
        author.name = "Saved"
        with pytest.raises(OperationalError, match="1205"):
            author.save()
        check_autocommit(several)
        assert names(several) == ["B", "B"]
        other.run("ROLLBACK")
    finally:
        other.close()
    check_clean(several)


def test_a_session_that_cannot_be_rolled_back(several: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cursor is closed before its connection: mysqlclient cannot do it afterwards, and Django tries to."""
    connection: Any = connections[several]
    driver = connection.connection
    closed: list[object] = []

    def refuse() -> None:
        raise OperationalError("no")

    with connection.cursor() as cursor, monkeypatch.context() as patch:
        patch.setattr(connection, "connection", _FailingDriver(driver, rollback=refuse))
        patch.setattr(connection, "close", lambda: closed.append(cursor.cursor.cursor.connection))
        with pytest.raises(IntegrityError):
            cursor.execute("UPDATE testapp_author SET name = NULL")
    assert closed == [None]
    connection.close()
    assert names(several) == ["B", "B"]
    check_clean(several)


def test_comments_are_sent_by_themselves(several: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A comment could hide what stands behind it."""
    for comment in ("# more", "-- more", "/* more */"):
        sent = messages_to_mariadb(
            several,
            lambda comment=comment: (
                connections[several].cursor().execute(f"UPDATE testapp_author SET name = 'C' WHERE id = 0 {comment}")
            ),
            monkeypatch,
        )
        assert all(len(one) == 1 for one in sent)
    check_autocommit(several)
    check_clean(several)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_session_whose_commit_begins_a_transaction(authors: str, write: Callable[[str], None]) -> None:
    """In autocommit mode no transaction is open after a statement, whatever COMMIT does in this session."""
    connection: Any = connections[authors]
    if connection.vendor != "mysql":
        pytest.skip("of MySQL")
    live_names(authors)
    connection.connection.query("SET completion_type = 'CHAIN'")
    write(authors)
    check_autocommit(authors)
    check_clean(authors)
    connection.connection.query("SET completion_type = 'NO_CHAIN'")


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_a_connection_with_transactions_of_its_own_kind(authors: str, write: Callable[[str], None]) -> None:
    """Where the driver begins transactions in a way of its own, BEGIN is left to it."""
    connection: Any = connections[authors]
    if connection.vendor != "postgresql":
        pytest.skip("of psycopg")
    live_names(authors)
    connection.connection.deferrable = False
    try:
        write(authors)
        check_autocommit(authors)
        check_clean(authors)
    finally:
        connection.connection.deferrable = None


def test_in_a_pipeline_of_psycopg(authors: str) -> None:
    """A pipeline takes one statement at a time, so nothing is sent with the user's."""
    connection: Any = connections[authors]
    if connection.vendor != "postgresql":
        pytest.skip("of psycopg")
    live_names(authors)
    with transaction.atomic(using=authors), connection.connection.pipeline(), connection.cursor() as cursor:
        cursor.execute("UPDATE testapp_author SET name = 'Piped' WHERE id > %s", [0])
    assert live_names(authors) == ["Piped"] * 2
    check_autocommit(authors)
    check_clean(authors)


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
def test_the_cursor_shows_the_answer_to_its_own_statement(authors: str, write: Callable[[str], None]) -> None:
    """Counts of rows and returned rows are those of the user's statement, whatever was sent with it."""
    live_names(authors)
    assert Author.objects.using(authors).filter(name="A0").update(name="B0") == 1
    assert Author.objects.using(authors).filter(name="none").update(name="B0") == 0
    made = Author.objects.using(authors).create(name="C0")
    assert Author.objects.using(authors).get(pk=made.pk).name == "C0"
    assert Author.objects.using(authors).filter(pk=made.pk)._raw_delete(authors) == 1
    with connections[authors].cursor() as cursor:
        cursor.execute("UPDATE testapp_author SET name = %s WHERE name = %s", ["D0", "B0"])
        assert cursor.rowcount == 1
        if connections[authors].vendor != "mysql":
            cursor.execute("UPDATE testapp_author SET name = 'E0' WHERE name = %s RETURNING name", ["D0"])
            assert cursor.fetchall() == [("E0",)]
    write(authors)
    check_clean(authors)
