"""
Everything that is put on a connection object because Django offers no hook there.

Django can tell what runs through ``cursor.execute()``, by execute wrappers, and nothing else: not the moment just
before COMMIT, not the first one after it, not what goes past the wrappers. These methods of BaseDatabaseWrapper are
replaced on each connection *object*; they were read in Django 5.2.19 and 6.1.3:

- ``_commit``, ``_rollback``, ``_set_autocommit``: Atomic, commit(), rollback() and set_autocommit() all pass them;
- ``get_new_connection``: connect() calls it first, and only then sets autocommit and sends connection_created;
- ``make_cursor``, ``make_debug_cursor``: every cursor, a server-side one too, is made by one of them;
- ``ops.compiler``: every INSERT of the ORM gets its SQLInsertCompiler there and calls its execute_sql();
- on SQLite ``create_cursor``, and ``_start_transaction_under_autocommit``, which begins a transaction by SQL.

broken_hooks() tries them on a connection of its own; the system check live_cache.E007 reports what it finds.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from django.apps.registry import Apps
from django.core.exceptions import ImproperlyConfigured
from django.db import Error, connections, models, transaction
from django.db.transaction import TransactionManagementError
from django.db.utils import ConnectionHandler

from live_cache.writes.inserts import telling
from live_cache.writes.sqlite_cursor import cursor_factory

if TYPE_CHECKING:
    from live_cache.writes.transactions import ConnectionState

__all__ = ["PROBE", "Hook", "attach", "broken_hooks"]

PROBE: Final = "live_cache_probe"
"""Alias of the connection that broken_hooks() uses, which nobody else attaches anything to."""
_COMMON: Final = ("get_new_connection", "_commit", "_rollback", "_set_autocommit", "make_cursor", "make_debug_cursor")
_SQLITE: Final = ("create_cursor", "_start_transaction_under_autocommit")


class Hook:
    """A bound method of the connection, run inside a function that gets it as its first argument."""

    __slots__ = ("original", "run")

    def __init__(self, run: Callable[..., Any], original: Callable[..., Any]) -> None:
        self.run = run
        self.original = original

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.original, *args, **kwargs)


def attach(state: ConnectionState, prepare_cursor: Callable[[Any], None]) -> None:
    """
    Put the hooks on the connection of *state*. Once per object: they survive close() and reconnect.

    Args:
        prepare_cursor: Gets each cursor that Django has made, before anybody else does.
    """
    connection: Any = state.connection  # the hooked methods are private, and not in django-stubs

    def make(original: Callable[[Any], Any], cursor: Any) -> Any:
        made = original(cursor)
        prepare_cursor(made)
        return made

    _put(connection, "get_new_connection", state.connecting)
    _put(connection, "_commit", state.committing)
    _put(connection, "_rollback", state.rolling_back)
    _put(connection, "_set_autocommit", state.setting_autocommit)
    connection.ops.compiler = _CompilerHook(connection.ops.compiler)
    if connection.vendor != "sqlite":  # whose cursors have no methods that need preparing
        _put(connection, "make_cursor", make)
        _put(connection, "make_debug_cursor", make)
    else:
        factory = cursor_factory(state)
        reference = weakref.ref(connection)

        def create(original: Callable[..., Any], name: Any = None) -> Any:
            owner: Any = reference()
            return owner.connection.cursor(factory=factory)

        # SQLite begins its transactions by SQL, which the guard must tell from a BEGIN of the user.
        _put(connection, "_start_transaction_under_autocommit", state.beginning)
        _put(connection, "create_cursor", create)


class _CompilerHook(Hook):
    """``ops.compiler``, which every query of the ORM calls."""

    __slots__ = ()

    def __init__(self, original: Callable[[str], Any]) -> None:
        super().__init__(telling, original)

    def __call__(self, compiler_name: str) -> Any:
        compiler = self.original(compiler_name)
        return telling(compiler) if compiler_name == "SQLInsertCompiler" else compiler


def broken_hooks() -> list[str]:
    """
    Return the hooked methods that this version of Django does not call where it should; an empty list is good.

    Begins, commits and rolls back on a SQLite database in memory of its own.
    """
    called: set[str] = set()
    handler = ConnectionHandler({"default": {}, PROBE: {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}})
    try:
        connection: Any = handler[PROBE]
    except ImproperlyConfigured:  # This Python has no sqlite3: nothing can be tried.
        return []
    missing = [name for name in (*_COMMON, *_SQLITE) if not callable(getattr(connection, name, None))]
    if missing:
        return missing

    def note(name: str) -> Callable[..., Any]:
        def run(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
            called.add(name)
            return original(*args, **kwargs)

        return run

    def compile_noting(original: Callable[[str], Any], name: str) -> Any:
        class Noting(original(name)):  # type: ignore[misc]  # whatever class it is
            def execute_sql(self, *args: Any, **kwargs: Any) -> Any:
                if len(args) + len(kwargs) <= 1 and kwargs.keys() <= {"returning_fields"}:
                    called.add("ops.compiler")
                return super().execute_sql(*args, **kwargs)

        return Noting if name == "SQLInsertCompiler" else original(name)

    for name in (*_COMMON, *_SQLITE):
        _put(connection, name, note(name))
    _put(connection.ops, "compiler", compile_noting)
    # Test runners replace ensure_connection() on the class, to find tests that use databases without saying so.
    connection.ensure_connection = lambda: None
    connections[PROBE] = connection  # of this thread, until the end of the function
    try:
        broken = []
        for steps, expected in _steps(connection):
            called.clear()
            with suppress(Error, TransactionManagementError):  # A step that fails has not called what it should.
                steps()
            broken += [name for name in expected if name not in called and name not in broken]
        return broken
    finally:
        del connections[PROBE]
        if connection.connection is not None:
            connection.connection.close()  # close() of the wrapper leaves databases in memory open


def _steps(connection: Any) -> list[tuple[Callable[[], object], tuple[str, ...]]]:
    def commit() -> None:
        with transaction.atomic(using=PROBE):
            pass

    def roll_back() -> None:
        with transaction.atomic(using=PROBE):
            transaction.set_rollback(True, using=PROBE)

    def end_by_hand() -> None:
        connection.set_autocommit(False)
        connection.commit()
        connection.rollback()
        connection.set_autocommit(True)

    def ask() -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def ask_chunked() -> None:
        with connection.chunked_cursor() as cursor:
            cursor.execute("SELECT 1")

    def ask_debugging() -> None:
        connection.force_debug_cursor = True
        ask()

    def insert() -> None:
        model = _probe_model()
        with connection.schema_editor() as editor:
            editor.create_model(model)
        model._base_manager.using(PROBE).bulk_create([model()])  # sends no signals

    return [
        (connection.connect, ("get_new_connection", "_set_autocommit")),
        (ask, ("create_cursor", "make_cursor")),
        (ask_chunked, ("create_cursor", "make_cursor")),
        (commit, ("_start_transaction_under_autocommit", "_commit", "_set_autocommit")),
        (roll_back, ("_start_transaction_under_autocommit", "_rollback", "_set_autocommit")),
        (end_by_hand, ("_set_autocommit", "_commit", "_rollback")),
        (ask_debugging, ("create_cursor", "make_debug_cursor")),
        (insert, ("ops.compiler",)),
    ]


def _probe_model() -> Any:
    """Return a model of one table that no app has."""
    meta = type("Meta", (), {"app_label": PROBE, "apps": Apps()})
    return type(
        "Probe", (models.Model,), {"__module__": __name__, "Meta": meta, "id": models.AutoField(primary_key=True)}
    )


def _put(connection: Any, name: str, run: Callable[..., Any]) -> None:
    setattr(connection, name, Hook(run, getattr(connection, name)))
