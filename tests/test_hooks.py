"""What is put on connection objects is called where it must be, and the system check notices when it is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.sqlite3.base import DatabaseWrapper as SQLiteWrapper
from django.db.models.sql import Query, compiler

from live_cache.writes import hooks
from live_cache.writes.guard import guard


def _commit_past_the_hook(self: Any) -> None:
    self.connection.commit()


def _rollback_past_the_hook(self: Any) -> None:
    self.connection.rollback()
    self.needs_rollback = False


def _cursor_past_the_hook(self: Any, cursor: Any) -> Any:
    from django.db.backends.utils import CursorWrapper

    return CursorWrapper(cursor, self)


def _begin_past_the_hook(self: Any, autocommit: bool, *args: Any, **kwargs: Any) -> None:
    self.connection.isolation_level = None if autocommit else ""
    self.autocommit = autocommit


def _compile_past_the_hook(
    self: Any, using: str | None = None, connection: Any = None, elide_empty: bool = True
) -> Any:
    return getattr(compiler, self.compiler)(self, connection or connections[using or "default"], using, elide_empty)


CHANGES: dict[str, tuple[type, str, Callable[..., Any], set[str]]] = {
    "commit": (BaseDatabaseWrapper, "commit", _commit_past_the_hook, {"_commit"}),
    "rollback": (BaseDatabaseWrapper, "rollback", _rollback_past_the_hook, {"_rollback"}),
    "cursor": (BaseDatabaseWrapper, "_prepare_cursor", _cursor_past_the_hook, {"make_cursor", "make_debug_cursor"}),
    "autocommit": (
        BaseDatabaseWrapper,
        "set_autocommit",
        _begin_past_the_hook,
        {"_set_autocommit", "_start_transaction_under_autocommit"},
    ),
    "compiler": (Query, "get_compiler", _compile_past_the_hook, {"ops.compiler"}),
}


def test_this_django_calls_every_hook() -> None:
    """The probe finds nothing broken, and leaves no connection behind."""
    before = set(connections)
    assert hooks.broken_hooks() == []
    assert set(connections) == before
    assert not hasattr(connections._connections, "live_cache_probe")


@pytest.mark.parametrize("name", CHANGES)
def test_a_django_that_goes_another_way_is_noticed(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """If a method of Django passes a hook by, the check live_cache.E007 names the hook."""
    owner, method, replacement, expected = CHANGES[name]
    monkeypatch.setattr(owner, method, replacement)
    assert expected <= set(hooks.broken_hooks())
    messages = [message for message in run_checks(tags=["caches"]) if message.id == "live_cache.E007"]
    assert len(messages) == 1
    assert all(hook in messages[0].msg for hook in expected)


def test_a_django_without_the_method_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hooked method that is gone is named."""
    monkeypatch.delattr(SQLiteWrapper, "_start_transaction_under_autocommit")
    assert hooks.broken_hooks() == ["_start_transaction_under_autocommit"]


def test_hooks_are_put_once(alias: str) -> None:
    """They survive close() and reconnect, and do not pile up."""
    connection: Any = connections[alias]
    connection.ensure_connection()
    for _ in range(3):
        connection.close()
        connection.ensure_connection()
    cursors = ("create_cursor",) if connection.vendor == "sqlite" else ("make_cursor", "make_debug_cursor")
    for name in ("_commit", "_rollback", "_set_autocommit", *cursors):
        hook = getattr(connection, name)
        assert isinstance(hook, hooks.Hook)
        assert not isinstance(hook.original, hooks.Hook)
    assert isinstance(connection.ops.compiler, hooks.Hook)
    assert not isinstance(connection.ops.compiler.original, hooks.Hook)
    assert connection.execute_wrappers.count(guard) == 1


def test_a_copied_connection_has_hooks_of_its_own(alias: str) -> None:
    """connection.copy() makes an object whose hooks belong to it."""
    copy: Any = connections[alias].copy()
    try:
        copy.ensure_connection()
        assert copy._commit.run.__self__.connection is copy
        assert copy.execute_wrappers.count(guard) == 1
    finally:
        copy.close()
