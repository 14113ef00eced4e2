"""
A statement in autocommit mode that writes only tables of which no ledger has a clock.

Nothing is cached of such a table, so there is nothing to tell: no transaction is opened for the statement and no intent
declared. What keeps a reader from caching its rows in just this moment is a lock that the writer holds meanwhile: the
hold of a clock that is born then is not lifted before the lock is free (docs/explanation/consistency.md).
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

from live_cache.assembly import assemblies_by_ledger
from live_cache.names import clock_of, shared_database_name
from live_cache.testcases import note_commit
from live_cache.writes.recent import recently_written

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.ledger.base import Ledger
    from live_cache.writes.transactions import ConnectionState

__all__ = ["NOT_RUN", "run_unannounced"]

NOT_RUN: Final = object()


def run_unannounced(
    state: ConnectionState, connection: BaseDatabaseWrapper, tables: frozenset[str], send: Callable[[], Any]
) -> Any:
    """
    Return what *send* returns, or NOT_RUN if there is something to tell: then it was not called.

    Args:
        state: Of *connection*, which is open and in autocommit mode.
        tables: What the statement writes, normalised.
        send: Returns when the database is through with the statement.
    """
    if not state.is_settled:
        return NOT_RUN
    clocks = _clocks_of(shared_database_name(connection), tables)
    ledgers = [assembly.ledger for assembly in assemblies_by_ledger()]
    holder = object()
    # One block, from before the first lock to after the last: an interrupt at any line of it leaves none behind.
    try:
        for number, ledger in enumerate(ledgers):
            if not ledger.begin_unannounced(clocks, holder):
                for other in ledgers[:number]:
                    other.end_unannounced(clocks, holder)
                return NOT_RUN
        result = send()
        _end(state, tables, ledgers, clocks, holder)
    except BaseException:
        _end(state, tables, ledgers, clocks, holder)
        raise
    return result


def _end(
    state: ConnectionState, tables: frozenset[str], ledgers: list[Ledger], clocks: Collection[str], holder: object
) -> None:
    is_born = [ledger.end_unannounced(clocks, holder) for ledger in ledgers]
    if any(is_born):
        state.tick_now(tables, note="a statement that began when nothing of its tables was cached")
    else:
        note_commit()
    recently_written(state.alias).update(tables)


@lru_cache(maxsize=1024)
def _clocks_of(database: str, tables: frozenset[str]) -> tuple[str, ...]:
    return tuple([clock_of(database, table) for table in tables])
