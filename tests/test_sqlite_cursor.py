"""The cursor of SQLite sends what Django's would."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from django.db import connections
from django.db.backends.sqlite3.base import SQLiteCursorWrapper

from live_cache.writes import sqlite_cursor
from live_cache.writes.sqlite_cursor import TrackedCursor

QUERIES = [
    "SELECT %s",
    "SELECT %s, '%%s', '%%', 100 %% %s",
    "SELECT '%%%s'",
    "SELECT 1",
    "",
    "SELECT '" + "x" * 5000 + "', %s",
]


@pytest.fixture
def driver() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as opened:
        yield opened


@pytest.mark.parametrize("query", QUERIES, ids=range(len(QUERIES)))
def test_placeholders_are_those_of_django(query: str, driver: sqlite3.Connection) -> None:
    """The first time, and when the text is known."""
    cursor: Any = TrackedCursor(driver)
    django: Any = SQLiteCursorWrapper(driver)
    for _ in range(2):
        assert django.convert_query(query) == cursor.convert_query(query)
    named = "SELECT %(a)s, %(b)s"
    assert cursor.convert_query(named, param_names=["a", "b"]) == "SELECT :a, :b"


@pytest.mark.django_db(transaction=True)
def test_a_text_is_sent_with_each_kind_of_parameters() -> None:
    """One text means other things with a list, with a mapping, and without any."""
    with connections["default"].cursor() as cursor:
        assert isinstance(cursor.cursor, TrackedCursor)
        for _ in range(2):
            assert cursor.execute("SELECT %s, '%%'", [1]).fetchone() == (1, "%")
            assert cursor.execute("SELECT '%%'").fetchone() == ("%%",)
            assert cursor.execute("SELECT '%%', %(a)s", {"a": 1}).fetchone() == ("%", 1)
            with pytest.raises(Exception, match="binding"):
                cursor.execute("SELECT %s", [])


def test_as_many_texts_are_kept_as_there_is_room_for(driver: sqlite3.Connection) -> None:
    """A program that makes a new text for each statement costs no more memory."""
    cursor: Any = TrackedCursor(driver)
    for number in range(2 * sqlite_cursor._N_CONVERTED):
        assert cursor.convert_query(f"SELECT {number}, %s") == f"SELECT {number}, ?"
        assert len(sqlite_cursor._converted) <= sqlite_cursor._N_CONVERTED
