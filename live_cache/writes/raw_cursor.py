"""
The methods of a cursor that send SQL past Django's execute wrappers.

``callproc()`` of CursorWrapper calls the driver's, and whatever CursorWrapper does not define is the driver's own
method: ``copy()`` and ``stream()`` of psycopg, ``copy_expert()`` and ``copy_from()`` of psycopg2. Each cursor that
Django makes becomes one of a class in which these pass the guard too. ``executescript()`` of SQLite is in
sqlite_cursor.py. The driver's own objects (``cursor.cursor``, ``connection.connection``) stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from live_cache.sql import StatementKind, classify

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["prepare"]


def prepare(cursor: Any) -> None:
    """
    Let the guard see what the methods of *cursor*, as Django has made it, send past the execute wrappers.

    Not for SQLite, which has no such methods.
    """
    wrapper: Any = type(cursor)
    driver: Any = type(cursor.cursor)
    cursor.__class__ = _class_for(wrapper, driver)


@lru_cache(maxsize=64)
def _class_for(wrapper: Any, driver: Any) -> Any:
    # Beside callproc(), which Django defines for all, only what the driver has: programs ask by hasattr() which it is.
    methods = {name: method for name, method in _METHODS.items() if hasattr(wrapper, name) or hasattr(driver, name)}
    return type(wrapper.__name__, (wrapper,), {"__module__": wrapper.__module__, **methods}) if methods else wrapper


def _callproc(self: Any, procname: Any, *args: Any, **kwargs: Any) -> Any:
    call = _original(self, "callproc")
    parts = getattr(procname, "_obj", None) or (str(procname),)  # psycopg.sql.Identifier holds its parts
    name = ".".join('"{}"'.format(str(part).replace('"', '""')) for part in parts)
    return _guarded(self, f"CALL {name}()", lambda: call(procname, *args, **kwargs))


@contextmanager
def _copy(self: Any, statement: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    """Run ``with cursor.copy(sql) as copy``: the statement runs from the beginning of the block to its end."""
    copy = _original(self, "copy")
    # In autocommit mode the transaction is ours, as for any other write (rule 8), and lasts as long as the block.
    block = nullcontext() if _is_reading(self, statement) else _transaction_of(self.db)
    with block, _guarded(self, statement, lambda: copy(statement, *args, **kwargs)) as opened:
        yield opened


def _stream(self: Any, query: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
    stream = _original(self, "stream")
    if _is_reading(self, query):
        rows: Iterator[Any] = _guarded(self, query, lambda: stream(query, *args, **kwargs))
        return rows
    # A write is over, and may be committed, when its rows are taken.
    return iter(_guarded(self, query, lambda: list(stream(query, *args, **kwargs))))


def _copy_expert(self: Any, sql: Any, *args: Any, **kwargs: Any) -> Any:
    copy = _original(self, "copy_expert")
    return _guarded(self, sql, lambda: copy(sql, *args, **kwargs))


def _copy_from(self: Any, file: Any, table: str, *args: Any, **kwargs: Any) -> Any:
    copy = _original(self, "copy_from")
    statement = 'COPY "{}" FROM STDIN'.format(table.replace('"', '""'))
    return _guarded(self, statement, lambda: copy(file, table, *args, **kwargs))


_METHODS: dict[str, Callable[..., Any]] = {
    "callproc": _callproc,
    "copy": _copy,
    "stream": _stream,
    "copy_expert": _copy_expert,
    "copy_from": _copy_from,
}


def _original(cursor: Any, name: str) -> Any:
    """Return the method that our class hides: the one of Django's class, else the driver's."""
    method = getattr(super(type(cursor), cursor), name, None)
    return method if method is not None else getattr(cursor.cursor, name)


def _guarded(cursor: Any, sql: Any, send: Callable[[], Any]) -> Any:
    """Let the guard run *send* as if it were the statement *sql*."""
    from live_cache.writes.guard import guard

    cursor.db.validate_no_broken_transaction()
    return guard(lambda *_: send(), sql, None, False, {"connection": cursor.db, "cursor": cursor})


def _is_reading(cursor: Any, sql: Any) -> bool:
    return classify(sql, vendor=cursor.db.vendor).kind is StatementKind.READ


def _transaction_of(connection: BaseDatabaseWrapper) -> AbstractContextManager[Any]:
    if connection.in_atomic_block or not connection.get_autocommit():
        return nullcontext()
    if connections[connection.alias] is connection:
        return transaction.atomic(using=connection.alias)
    return _transaction_by_hand(connection)


@contextmanager
def _transaction_by_hand(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Run a block in a transaction of a connection that atomic() cannot name."""
    connection.set_autocommit(False)
    try:
        yield
        connection.commit()
    except BaseException:
        connection.rollback()
        raise
    finally:
        connection.set_autocommit(True)
