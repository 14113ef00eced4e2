"""
What the database answers to a question of ours about rows: as the driver gives it, or, of psycopg, as it was sent.

psycopg finds and calls a loader for every value of a result, some of them in Python. Of two looks at a row most values
are only compared, which their text does better: what is equal there is equal in every way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

__all__ = ["Answer", "Load", "answer_of", "answers_at", "loads_of"]

Load = Callable[[bytes], Any]
"""Turns a value, as the server has sent it, into what the driver gives for it."""

_TEXT: Final = 0
"""The format of what ClientCursor gets, and of what other cursors do that are not told otherwise."""
_ANY_TYPE: Final = 0
"""psycopg has a loader for types that it does not know, under this oid."""


class Answer(NamedTuple):
    """Names and rows of a result."""

    names: tuple[str, ...]
    """Empty if they are not needed; see answers_at()."""
    rows: Sequence[Sequence[Any]]
    oids: tuple[int, ...] | None = None
    """The types of the columns if the values are as PostgreSQL has sent them: bytes, or None for NULL."""


def answer_of(cursor: Any) -> Answer:
    """Return the result that *cursor*, one of the driver, is at."""
    result = getattr(cursor, "pgresult", None)
    if result is None:
        return Answer(tuple([column[0] for column in cursor.description]), list(cursor.fetchall()))
    if any(map(result.fformat, range(result.nfields))):
        return Answer(_names_of(cursor, result), cursor.fetchall())
    return _sent(cursor, result)


def answers_at(cursor: Any, numbers: Iterable[int]) -> list[Answer]:
    """
    Return some results of *cursor*, one of psycopg that binds on the client's side, wherever it is at.

    Only the first has names and types: until its transaction ends, nobody alters a table of which it has locked rows.
    """
    # Private (read in psycopg 3.3.9). set_result() prepares to load each column, which takes longer than the query.
    results = cursor._results
    first, *others = numbers
    return [_sent(cursor, results[first]), *(Answer((), _rows_of(results[number]), ()) for number in others)]


def loads_of(cursor: Any, oids: Iterable[int]) -> list[Load]:
    """Return what loads values of these types as *cursor*, one of psycopg that Django has made, does."""
    adapters = cursor.adapters
    loads = []
    for oid in oids:
        loader = adapters.get_loader(oid, _TEXT) or adapters.get_loader(_ANY_TYPE, _TEXT)
        loads.append(loader(oid, cursor.connection).load)
    return loads


def _sent(cursor: Any, result: Any) -> Answer:
    return Answer(_names_of(cursor, result), _rows_of(result), tuple(map(result.ftype, range(result.nfields))))


def _rows_of(result: Any) -> list[list[bytes | None]]:
    columns, get = range(result.nfields), result.get_value
    return [[get(number, column) for column in columns] for number in range(result.ntuples)]


def _names_of(cursor: Any, result: Any) -> tuple[str, ...]:
    names = tuple(map(result.fname, range(result.nfields)))
    return _of_ascii(names) or tuple([name.decode(cursor.connection.info.encoding) for name in names])


@lru_cache(maxsize=1024)
def _of_ascii(names: tuple[bytes, ...]) -> tuple[str, ...] | None:
    """Return names that are the same in every encoding of a client; None if one is not."""
    return tuple([name.decode("ascii") for name in names]) if b"".join(names).isascii() else None
