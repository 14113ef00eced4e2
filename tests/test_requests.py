"""One request leaves nothing on its connection: the next one reads and writes right, however the first ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import pytest
from django.core.handlers.base import BaseHandler
from django.core.signals import request_finished, request_started
from django.db import DatabaseError, OperationalError, connections, transaction
from django.http import HttpResponse

from live_cache import recording
from live_cache.writes.pending import Ticks
from live_cache.writes.transactions import state_of
from tests.cache_kinds import wait_for_hits
from tests.test_transactions import _FailingDriver, authors, check_clean, kill, live_names, names, rename

__all__ = ["authors"]

View = Callable[[], object]


def refuse(*args: Any, **kwargs: Any) -> None:
    raise OperationalError("the database system is starting up")


def write_in_a_block(alias: str, name: str = "Lost") -> None:
    with transaction.atomic(using=alias):
        rename(alias, name)
        live_names(alias)


def fail(alias: str, name: str = "Lost") -> None:
    rename(alias, name)
    live_names(alias)
    raise ZeroDivisionError


@contextmanager
def begin_is_refused(alias: str) -> Iterator[View]:
    """The block of the view, or of the request, cannot begin."""
    connection: Any = connections[alias]
    connection.ensure_connection()
    hooked = "_start_transaction_under_autocommit" if connection.vendor == "sqlite" else "_set_autocommit"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, hooked, refuse)
        yield lambda: write_in_a_block(alias)


@contextmanager
def durable_is_refused(alias: str) -> Iterator[View]:
    """A durable block inside another one, which has written."""

    def view() -> None:
        with transaction.atomic(using=alias):
            rename(alias, "Lost")
            transaction.atomic(using=alias, durable=True).__enter__()

    yield view


@contextmanager
def database_is_away(alias: str) -> Iterator[View]:
    """The connection is gone, and there is no other."""
    connection: Any = connections[alias]
    connection.close()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection, "get_new_connection", refuse)
        yield lambda: write_in_a_block(alias)


@contextmanager
def commit_fails(alias: str, *, is_done: bool = False, error: type[BaseException] = OperationalError) -> Iterator[View]:
    """COMMIT raises, before or after it took effect."""
    connection: Any = connections[alias]
    commit = connection._commit.original

    def commit_and_raise() -> None:
        if is_done:
            commit()
        raise error("COMMIT failed")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection._commit, "original", commit_and_raise)
        yield lambda: write_in_a_block(alias, "Committed" if is_done else "Lost")


@contextmanager
def answer_is_lost(alias: str, *, is_done: bool = True) -> Iterator[View]:
    """COMMIT takes effect, or does not, and the connection breaks; so does ROLLBACK."""
    connection: Any = connections[alias]

    def view() -> None:
        def end() -> None:
            if is_done:
                driver.commit()
            driver.close()
            raise OperationalError("server closed the connection unexpectedly")

        with transaction.atomic(using=alias):
            rename(alias, "Committed" if is_done else "Lost")
            driver = connection.connection
            connection.connection = _FailingDriver(driver, commit=end, rollback=refuse, close=lambda: None)

    yield view


@contextmanager
def session_is_killed(alias: str, *, is_in_block: bool = True) -> Iterator[View]:
    """The server ends the session, inside a block or between two statements."""
    if connections[alias].vendor == "sqlite":
        pytest.skip("SQLite has no sessions")
    connections[alias].ensure_connection()

    def view() -> None:
        with transaction.atomic(using=alias) if is_in_block else nullcontext():
            if is_in_block:
                rename(alias, "Lost")
            connections[alias].ensure_connection()
            kill(alias)
            rename(alias, "Lost too")

    yield view


@contextmanager
def closed_in_the_middle(alias: str) -> Iterator[View]:
    """The view closes the connection inside a block."""

    def view() -> None:
        with transaction.atomic(using=alias):
            rename(alias, "Lost")
            connections[alias].close()
            rename(alias, "Lost too")

    yield view


@contextmanager
def autocommit_is_left_off(alias: str) -> Iterator[View]:
    """The view forgets to turn autocommit on again, with a write that nobody commits."""

    def view() -> None:
        transaction.set_autocommit(False, using=alias)  # refused inside ATOMIC_REQUESTS
        fail(alias)

    yield view


@contextmanager
def view_raises(alias: str) -> Iterator[View]:
    """The view raises in nested blocks."""

    def view() -> None:
        with transaction.atomic(using=alias), transaction.atomic(using=alias):
            fail(alias)

    yield view


@contextmanager
def statement_fails(alias: str) -> Iterator[View]:
    """A statement fails inside a block."""

    def view() -> None:
        with transaction.atomic(using=alias):
            rename(alias, "Lost")
            with connections[alias].cursor() as cursor:
                cursor.execute("SELECT nonsense")

    yield view


FAULTS: dict[str, Callable[[str], AbstractContextManager[View]]] = {
    "begin is refused": begin_is_refused,
    "durable is refused": durable_is_refused,
    "database is away": database_is_away,
    "commit fails": commit_fails,
    "commit fails, and is done": partial(commit_fails, is_done=True),
    "commit is interrupted": partial(commit_fails, error=KeyboardInterrupt),
    "commit is interrupted, and is done": partial(commit_fails, is_done=True, error=KeyboardInterrupt),
    "answer is lost": answer_is_lost,
    "answer is lost, and rolled back": partial(answer_is_lost, is_done=False),
    "session is killed": session_is_killed,
    "session is killed in autocommit": partial(session_is_killed, is_in_block=False),
    "closed in the middle": closed_in_the_middle,
    "autocommit is left off": autocommit_is_left_off,
    "view raises": view_raises,
    "statement fails": statement_fails,
}


@pytest.fixture(params=[0, None], ids=["closed after each request", "kept"])
def max_age(request: pytest.FixtureRequest, authors: str) -> Iterator[None]:
    """CONN_MAX_AGE of the database."""
    options = connections[authors].settings_dict
    before, options["CONN_MAX_AGE"] = options["CONN_MAX_AGE"], request.param
    yield
    options["CONN_MAX_AGE"] = before
    connections[authors].close()


@pytest.fixture(params=[False, True], ids=["", "ATOMIC_REQUESTS"])
def is_atomic(request: pytest.FixtureRequest, authors: str) -> Iterator[bool]:
    """ATOMIC_REQUESTS of the database."""
    options = connections[authors].settings_dict
    options["ATOMIC_REQUESTS"] = request.param
    yield request.param
    options["ATOMIC_REQUESTS"] = False


def serve(view: View, rf: Any) -> None:
    """One request, with what Django does around it on the connections."""

    def answer(request: Any) -> Any:
        view()
        return HttpResponse()

    request_started.send(sender=None, environ={})
    try:
        BaseHandler().make_view_atomic(answer)(rf.get("/"))
    finally:
        request_finished.send(sender=None)


@pytest.mark.parametrize("name", FAULTS)
def test_next_request(
    authors: str,
    name: str,
    max_age: None,
    is_atomic: bool,
    second_connection: Callable[[str], Any],
    rf: Any,
    settings: Any,
) -> None:
    """After each failure: the next request reads what the database holds, its write is seen by all, and reads hit."""
    settings.LIVE_CACHE_LEASE_S = 0.2
    other = second_connection(authors)
    before = other.run(live_names, authors)
    serve(partial(live_names, authors), rf)
    with (
        FAULTS[name](authors) as view,
        pytest.raises((DatabaseError, ZeroDivisionError, RuntimeError, KeyboardInterrupt)),
    ):
        serve(view, rf)
    assert other.run(live_names, authors) == other.run(names, authors)
    seen: list[Any] = []
    serve(lambda: seen.append((live_names(authors), names(authors))), rf)
    assert seen[0][0] == seen[0][1] == other.run(names, authors)
    state = state_of(connections[authors])
    left = (state.has_writes, state._declared, state._intents, state._is_outcome_unknown)
    assert left == (False, Ticks(), [], False)
    # After an interrupt Django turns autocommit on, which commits on some databases.
    assert seen[0][0] in (before, ["Committed"] * 2, *([["Lost"] * 2] if "interrupted" in name else []))

    def write() -> None:
        rename(authors, "Next")
        seen.append(live_names(authors))

    serve(write, rf)
    assert seen[1] == ["Next"] * 2
    assert other.run(live_names, authors) == ["Next"] * 2
    wait_for_hits(lambda: live_names(authors))  # the intent of a lost COMMIT stands for its lease
    check_clean(authors)
    with recording() as reads:
        serve(partial(live_names, authors), rf)
    # Inside a transaction of SQLite nothing is read from the cache.
    assert reads[0].is_hit == (not is_atomic or connections[authors].vendor != "sqlite"), reads[0].reason
