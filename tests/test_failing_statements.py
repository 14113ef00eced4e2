"""
A statement that fails in autocommit mode leaves the connection as it would without live_cache.

Each failure is staged twice, on a connection of plain Django and on one with the guard: the same error, the same rows,
the same state to Django, to the driver and to the server, and the next statement ends in the same way.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from django.db import Error, connections, transaction
from django.db.backends.signals import connection_created
from django.db.models.signals import post_save, pre_save

from live_cache import apps
from live_cache.writes import signals
from tests.left_open import left_open
from tests.test_own_transaction import WRITES
from tests.test_transactions import authors, check_clean, kill, live_names, names, rename
from tests.testapp.models import Author

__all__ = ["authors"]

Write = Callable[[str], None]


@contextmanager
def plain_django(alias: str) -> Iterator[None]:
    """Give this thread a connection of which live_cache knows nothing."""
    own = connections[alias]
    connection_created.disconnect(dispatch_uid="live_cache.apps")
    for model_signal in (pre_save, post_save):
        model_signal.disconnect(dispatch_uid="live_cache.writes.signals")
    connections[alias] = plain = own.copy()
    try:
        yield
        assert plain.execute_wrappers == []
        assert not any(name.startswith("_live_cache") for name in plain.__dict__)
    finally:
        connections[alias] = own
        with suppress(Error):
            plain.close()
        signals.connect()
        connection_created.connect(apps._attach, dispatch_uid="live_cache.apps")


def execute(alias: str, *statements: str) -> None:
    with connections[alias].cursor() as cursor:
        for sql in statements:
            cursor.execute(sql)


class Interrupt(KeyboardInterrupt):
    """Raised by a signal handler. Any other would leave psycopg in the middle of a statement."""


def refused(alias: str, write: Write, other: Any) -> None:
    """The value of a column is refused."""
    Author.objects.using(alias).filter(name="A1").update(name=None)


def taken_key(alias: str, write: Write, other: Any) -> None:
    """The key is taken."""
    Author.objects.using(alias).create(pk=Author.objects.using(alias).order_by("pk")[0].pk, name="Again")


def bad_sql(alias: str, write: Write, other: Any) -> None:
    """The database does not understand the statement."""
    execute(alias, "UPDATE testapp_author SET nothing = 1")


def wrapper_refuses(alias: str, write: Write, other: Any) -> None:
    """Another execute wrapper sends no write, and raises what is no Exception."""

    def refuse(send: Any, sql: str, *arguments: Any) -> Any:
        if sql.startswith("SELECT"):
            return send(sql, *arguments)
        raise Interrupt

    with connections[alias].execute_wrapper(refuse):
        write(alias)


def lock_timeout(alias: str, write: Write, other: Any) -> None:
    """Another transaction holds the rows for longer than the statement may wait."""
    execute(
        alias,
        {
            "sqlite": "PRAGMA busy_timeout = 5",
            "postgresql": "SET lock_timeout = '5ms'",
            "mysql": "SET innodb_lock_wait_timeout = 0",
        }[connections[alias].vendor],
    )
    other.run(hold_rows, alias)
    try:
        write(alias)
    finally:
        other.run(let_go, alias)


def hold_rows(alias: str) -> None:
    connection = connections[alias]
    connection.set_autocommit(False, force_begin_transaction_with_broken_autocommit=True)
    execute(alias, "UPDATE testapp_author SET name = 'Held'")


def let_go(alias: str) -> None:
    transaction.rollback(using=alias)
    transaction.set_autocommit(True, using=alias)


def deadlock(alias: str, write: Write, other: Any) -> None:
    """Two transactions wait for each other, and this one is chosen."""
    first, second = Author.objects.using(alias).order_by("pk").values_list("pk", flat=True)
    vendor = connections[alias].vendor
    if vendor == "sqlite":
        pytest.skip("SQLite has one lock")
    if vendor == "postgresql":
        execute(alias, "SET deadlock_timeout = '300ms'")

    def hold() -> None:
        transaction.set_autocommit(False, using=alias)
        if vendor == "postgresql":
            execute(alias, "SET deadlock_timeout = '60s'")
        else:
            # InnoDB ends the transaction that has changed less.
            execute(alias, *[f"UPDATE testapp_author SET name = 'Held {n}' WHERE id = {second}" for n in range(20)])
        execute(alias, f"UPDATE testapp_author SET name = 'Held' WHERE id = {second}")

    other.run(hold)
    waiting = threading.Timer(0.1, lambda: held.append(other.start(execute, alias, take_first)))
    held: list[Any] = []
    take_first = f"UPDATE testapp_author SET name = 'Held' WHERE id = {first}"
    waiting.start()
    try:
        # In the order of the keys, so that the first row is locked before the second is waited for.
        execute(alias, f"UPDATE testapp_author SET name = 'Mine' WHERE id >= {first} AND id <= {second}")
    finally:
        waiting.join()
        held[0].result(10)
        other.run(let_go, alias)


def cancelled(alias: str, write: Write, other: Any) -> None:
    """Somebody asks to end the statement, while it waits or works."""
    connection: Any = connections[alias]
    if connection.vendor == "sqlite":
        driver = connection.connection

        def interrupt(sql: str) -> None:
            if sql.startswith(("SELECT", "UPDATE")):  # whichever comes first, and once
                driver.set_trace_callback(None)
                driver.interrupt()

        driver.set_trace_callback(interrupt)
        write(alias)
        return
    wait_and(alias, write, other, lambda connection: cancel(alias, connection))


def killed(alias: str, write: Write, other: Any) -> None:
    """The session was ended before the statement."""
    if connections[alias].vendor == "sqlite":
        pytest.skip("SQLite has no sessions")
    kill(alias)
    write(alias)


def killed_meanwhile(alias: str, write: Write, other: Any) -> None:
    """The session is ended while the statement waits."""
    wait_and(alias, write, other, lambda connection: end_session(alias, connection))


def interrupted(alias: str, write: Write, other: Any) -> None:
    """A signal handler raises while the statement waits."""
    if connections[alias].vendor == "sqlite":
        pytest.skip("Python runs no signal handlers inside of SQLite")

    def handle(number: int, frame: object) -> None:
        raise Interrupt

    before = signal.signal(signal.SIGUSR1, handle)
    main = threading.main_thread().ident
    assert main is not None
    try:
        wait_and(alias, write, other, lambda connection: signal.pthread_kill(main, signal.SIGUSR1))
    finally:
        signal.signal(signal.SIGUSR1, before)


def session_of(connection: Any) -> int:
    driver = connection.connection
    return int(driver.info.backend_pid if connection.vendor == "postgresql" else driver.thread_id())


def end_session(alias: str, session: int) -> None:
    is_postgresql = connections[alias].vendor == "postgresql"
    execute(alias, f"SELECT pg_terminate_backend({session})" if is_postgresql else f"KILL {session}")


def cancel(alias: str, session: int) -> None:
    is_postgresql = connections[alias].vendor == "postgresql"
    execute(alias, f"SELECT pg_cancel_backend({session})" if is_postgresql else f"KILL QUERY {session}")


def wait_and(alias: str, write: Write, other: Any, act: Callable[[int], object]) -> None:
    """Let the write wait for rows that another connection holds, and that one do something then."""
    if connections[alias].vendor == "sqlite":
        pytest.skip("nobody can reach a SQLite connection that waits")
    connections[alias].ensure_connection()
    session = session_of(connections[alias])
    other.run(hold_rows, alias)
    started: list[Any] = []
    timer = threading.Timer(0.1, lambda: started.append(other.start(act, session)))
    timer.start()
    try:
        write(alias)
    finally:
        timer.join()
        started[0].result(10)
        other.run(let_go, alias)


FAILURES = [
    refused, taken_key, bad_sql, wrapper_refuses, lock_timeout, deadlock, cancelled, killed, killed_meanwhile,
    interrupted,
]  # fmt: skip


def code_of(error: BaseException) -> object:
    """Return what the database calls an error."""
    cause: Any = error.__cause__
    if cause is None:
        return None
    return getattr(cause, "sqlite_errorcode", None) or getattr(cause, "sqlstate", None) or cause.args[:1]


def outcome(alias: str, fail: Callable[[str, Write, Any], None], write: Write, other: Any) -> dict[str, object]:
    """Return how the write fails, what it leaves, and how it goes on."""
    connection: Any = connections[alias]
    connection.close()
    connection.ensure_connection()
    found: dict[str, object] = {}

    def attempt(name: str, function: Callable[[], object]) -> None:
        try:
            function()
        except (Error, Interrupt) as error:
            found[name] = type(error).__name__, code_of(error)
        else:
            found[name] = "done", None
        found[f"left by: {name}"] = left_open(connection)

    attempt("write", lambda: fail(alias, write, other))
    found["rows"] = other.run(names, alias)
    attempt("read", lambda: names(alias))
    attempt("next write", lambda: rename(alias, "Next"))
    connection.close_if_unusable_or_obsolete()  # as at the end of a request
    attempt("write of the next request", lambda: rename(alias, "Later"))
    found["rows of the next request"] = other.run(names, alias)
    return found


@pytest.mark.parametrize("fail", FAILURES, ids=lambda function: function.__name__)
def test_as_without_the_cache(
    authors: str, fail: Callable[[str, Write, Any], None], second_connection: Callable[[str], Any]
) -> None:
    """Error, rows, state of the connection, and what comes next."""
    other = second_connection(authors)
    has_one_form = fail in (deadlock, refused, taken_key, bad_sql) or (fail is cancelled and authors == "default")
    for write in [WRITES["update"]] if has_one_form else [WRITES["update"], WRITES["save"]]:
        rename(authors, "A1")
        with plain_django(authors):
            expected = outcome(authors, fail, write, other)
        assert expected["write"] != ("done", None)
        rename(authors, "A1")
        live_names(authors)
        found = outcome(authors, fail, write, other)
        if fail is interrupted and connections[authors].vendor == "mysql":
            # PyMySQL closes the connection, and the server runs a single statement to its end before it notices.
            del found["rows"], expected["rows"]
        assert found == expected
        assert live_names(authors) == other.run(live_names, authors) == other.run(names, authors)
        check_clean(authors)
