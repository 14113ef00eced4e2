"""Writers outside of Django, on each database: what the triggers tell, and how the listener ticks it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from django.db import connections

from live_cache.assembly import get_assembly
from live_cache.changes import Record, RowChange, decode_record
from live_cache.ledger.clocks import Dependency
from live_cache.names import clock_of, shared_database_name
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import drop_triggers, install_triggers, tables_of_models
from live_cache.outbox.listener import Listener
from tests.outside import outside, write_outside
from tests.testapp.models import Author, Book, Country, Ebook, Part, Profile, Seat, Tag

MODELS = (Author, Book, Country, Ebook, Part, Profile, Seat, Tag)
FRANCE = {"code": "FR", "name": "France", "population": 7}


@pytest.fixture
def installed(alias: str, cache: str) -> Iterator[str]:
    """Tables with triggers."""
    connection = connections[alias]
    install_triggers(connection, tables_of_models(connection, MODELS))
    yield alias
    drop_triggers(connection)


@pytest.fixture
def listener(installed: str) -> Iterator[Listener]:
    """A listener that is asked by hand."""
    made = Listener(installed)
    yield made
    made.close()


@pytest.fixture
def told(listener: Listener) -> Callable[[str], list[Record]]:
    """Return a function that lets the listener tick, and returns the records of a table since the last call."""
    ledger = get_assembly().ledger
    name = shared_database_name(connections[listener.alias])
    seen: dict[str, int] = {}

    def since(table: str) -> list[Record]:
        listener.drain()
        clock = clock_of(name, f"testapp_{table}")
        (reading,) = ledger.read([Dependency(clock)])
        after = seen.get(clock, reading.seq)
        seen[clock] = reading.seq
        found = ledger.log(clock, reading.epoch, after, reading.seq)
        assert found is not None
        return [decode_record(record) for record in found if record]

    for table in ("author", "book", "book_tags", "country", "ebook", "part", "profile", "seat", "tag"):
        since(table)
    return since


def rows_of(records: list[Record]) -> list[RowChange]:
    """Return the rows of the only record, which does not tell the table."""
    (record,) = records
    assert record.rows is not None, record.note
    # SQLite: a change that is none keeps readers from inferring anything from foreign keys.
    return [row for row in record.rows if row.columns is None or row.columns]


@pytest.fixture
def france(alias: str, told: Any) -> Country:
    """One country, which is told already."""
    made = Country.objects.using(alias).create(**FRANCE)
    told("country")
    return made


class TestRows:
    """What is told of the rows that somebody outside has changed."""

    def test_an_insert(self, alias: str, told: Any) -> None:
        """Its key and its image."""
        write_outside(alias, "INSERT INTO testapp_country (code, name, population) VALUES ('FI', 'Åland \"x\"', 7)")
        image = {"code": "FI", "name": 'Åland "x"', "population": 7}
        assert [RowChange("insert", ("FI",), None, None, image)] == rows_of(told("country"))

    @pytest.mark.usefixtures("france")
    def test_an_update(self, alias: str, told: Any) -> None:
        """Both images, and the columns that differ."""
        write_outside(alias, "UPDATE testapp_country SET population = population + 1, name = 'France'")
        after = FRANCE | {"population": 8}
        assert [RowChange("update", ("FR",), frozenset({"population"}), FRANCE, after)] == rows_of(told("country"))

    @pytest.mark.usefixtures("france")
    def test_a_delete(self, alias: str, told: Any) -> None:
        """The image that was."""
        write_outside(alias, "DELETE FROM testapp_country WHERE code = 'FR'")
        assert [RowChange("delete", ("FR",), None, FRANCE, None)] == rows_of(told("country"))

    @pytest.mark.usefixtures("france")
    def test_what_changes_nothing(self, alias: str, told: Any) -> None:
        """Tells nothing."""
        nobody = "DELETE FROM testapp_country WHERE code = 'X'"
        write_outside(alias, "UPDATE testapp_country SET population = 7", nobody)
        assert [] == told("country")

    @pytest.mark.usefixtures("france")
    def test_equal_to_a_collation_is_a_change(self, alias: str, told: Any) -> None:
        """MariaDB takes FRANCE for France."""
        write_outside(alias, "UPDATE testapp_country SET name = 'FRANCE'")
        (row,) = rows_of(told("country"))
        assert frozenset({"name"}) == row.columns

    @pytest.mark.usefixtures("france")
    def test_a_changed_key(self, alias: str, told: Any) -> None:
        """Is told as a change of the table."""
        write_outside(alias, "UPDATE testapp_country SET code = 'FX'")
        (record,) = told("country")
        assert record.rows is None
        assert "update outside of Django" == record.note

    @pytest.mark.usefixtures("france")
    def test_one_record_for_a_transaction(self, alias: str, told: Any) -> None:
        """A reader judges its rows together."""
        write_outside(
            alias,
            "INSERT INTO testapp_country (code, name, population) VALUES ('A', 'A', 1), ('B', 'B', 2)",
            "UPDATE testapp_country SET population = 9 WHERE code = 'A'",
            "DELETE FROM testapp_country WHERE code = 'FR'",
        )
        assert ["insert", "insert", "update", "delete"] == [row.kind for row in rows_of(told("country"))]

    def test_many_rows(self, alias: str, told: Any) -> None:
        """Are told as a change of the table."""
        values = ", ".join(["('x')"] * 901)
        write_outside(alias, f"INSERT INTO testapp_tag (name) VALUES {values}")
        (record,) = told("tag")
        assert record.rows is None

    def test_not_precise(self, alias: str, told: Any, settings: Any) -> None:
        """LIVE_CACHE_PRECISE holds here too."""
        settings.LIVE_CACHE_PRECISE = False
        write_outside(alias, "INSERT INTO testapp_tag (name) VALUES ('x')")
        (record,) = told("tag")
        assert record.rows is None

    def test_a_key_of_two_columns(self, alias: str, told: Any) -> None:
        """In the order of the key."""
        write_outside(alias, "INSERT INTO testapp_seat (taken, number, hall) VALUES (true, 3, 'x')")
        image = {"hall": "x", "number": 3, "taken": True}
        assert [RowChange("insert", ("x", 3), None, None, image)] == rows_of(told("seat"))

    def test_a_child_and_its_parent(self, alias: str, told: Any) -> None:
        """Each table of multi-table inheritance for itself."""
        author = Author.objects.using(alias).create(name="a")
        ebook = Ebook.objects.using(alias).create(title="e", author=author)
        told("book"), told("ebook")
        write_outside(alias, f"UPDATE testapp_ebook SET format = 'pdf' WHERE book_ptr_id = {ebook.pk}")
        (row,) = rows_of(told("ebook"))
        assert ((ebook.pk,), frozenset({"format"})) == (row.key, row.columns)
        assert [] == told("book")
        write_outside(alias, "UPDATE testapp_book SET pages = 7")
        (row,) = rows_of(told("book"))
        assert ((ebook.pk,), frozenset({"pages"})) == (row.key, row.columns)

    def test_a_many_to_many_table(self, alias: str, told: Any) -> None:
        """Which has no model of its own in the code."""
        book = Book.objects.using(alias).create(title="b", author=Author.objects.using(alias).create(name="a"))
        tag = Tag.objects.using(alias).create(name="t")
        told("book_tags")
        write_outside(alias, f"INSERT INTO testapp_book_tags (book_id, tag_id) VALUES ({book.pk}, {tag.pk})")
        (row,) = rows_of(told("book_tags"))
        assert row.after is not None
        assert (book.pk, tag.pk) == (row.after["book_id"], row.after["tag_id"])

    def test_names_that_need_quotes(self, alias: str, told: Any) -> None:
        """Columns are called as the field calls them."""
        part = Part.objects.using(alias).create(kind="a", size=1.5)
        told("part")
        quote = connections[alias].ops.quote_name
        write_outside(alias, f"UPDATE testapp_part SET {quote('Kind of part')} = 'b', {quote('SIZE')} = 2.5")
        (row,) = rows_of(told("part"))
        assert frozenset({"Kind of part", "SIZE"}) == row.columns
        assert row.before is not None
        assert row.after is not None
        assert ((part.pk,), "a", "b") == (row.key, row.before["Kind of part"], row.after["Kind of part"])

    def test_images_hold_what_the_orm_shows(self, alias: str, told: Any) -> None:
        """In value and type: but for columns whose values JSON does not surely give back."""
        values: dict[str, Any] = {
            "kind": "ä\\'\"\n€😀", "label": "=x", "weight": Decimal("12.340"), "size": 0.1, "amount": -3,
            "stock": 2**31 - 1, "made_on": date(2024, 2, 29), "made_at": datetime(1999, 12, 31, 23, 59, 59, 1234, UTC),
            "code": UUID(int=2**127 + 5), "is_new": True, "notes": {"a": [1]},
        }  # fmt: skip
        long = {"label": "x" * 201, "weight": Decimal("-0.001"), "is_new": False}
        fields = [field.name for field in Part._meta.concrete_fields]
        for given in (values, dict.fromkeys(values), long):
            part = Part.objects.using(alias).create(**given)
            (row,) = rows_of(told("part")[-1:])  # the first one is Django's own
            shown = Part.objects.using(alias).values(*fields).get(pk=part.pk)
            shown = {Part._meta.get_field(name).column: value for name, value in shown.items()}
            assert row.after is not None
            for name, value in row.after.items():
                assert (type(shown[name]), shown[name]) == (type(value), value), name
            left_out = {name for name in shown if name not in row.after}
            unsure = {"SIZE", "opens", "lasts", "notes"} | ({"weight"} if alias == "default" else set())
            assert left_out == unsure | ({"label"} if given is long else set())

    def test_a_write_of_django_is_told_too(self, alias: str, told: Any) -> None:
        """Twice: by itself, and by the triggers; and by rows, since these triggers do not count as such."""
        Country.objects.using(alias).create(**FRANCE)
        told("country")
        Country.objects.using(alias).update(population=8)
        first, second = told("country")
        assert rows_of([first]) == rows_of([second])
        assert rows_of([first])


class TestWholeTables:
    """What is told as a change of the table."""

    def test_truncate(self, alias: str, told: Any) -> None:
        """On PostgreSQL; MariaDB runs no trigger, and SQLite has no such statement."""
        if alias != "postgresql":
            pytest.skip("only PostgreSQL runs triggers for it")
        write_outside(alias, "TRUNCATE testapp_country CASCADE")
        (record,) = told("country")
        assert (None, "truncate outside of Django") == (record.rows, record.note)
        assert told("author")

    def test_copy(self, alias: str, told: Any) -> None:
        """Is an insert like any other."""
        if alias != "postgresql":
            pytest.skip("only PostgreSQL has COPY")
        copied = "COPY testapp_country (code, name, population) FROM STDIN"
        with outside(alias) as connection, connection.cursor() as cursor, cursor.copy(copied) as copy:
            copy.write_row(("FI", "Finland", 5))
            copy.write_row(("SE", "Sweden", 9))
        assert {("FI",), ("SE",)} == {row.key for row in rows_of(told("country"))}

    @pytest.mark.usefixtures("france")
    def test_replace(self, alias: str, told: Any) -> None:
        """Deletes the row that is in its way, which SQLite tells no trigger."""
        if alias == "postgresql":
            pytest.skip("PostgreSQL has no REPLACE")
        write_outside(alias, "REPLACE INTO testapp_country (code, name, population) VALUES ('FR', 'F', 1)")
        (record,) = told("country")
        assert (
            record.rows is None if alias == "default" else {"delete", "insert"} == {r.kind for r in record.rows or ()}
        )

    def test_replace_by_another_unique_column(self, alias: str, told: Any) -> None:
        """The row that goes has another key."""
        if alias != "default":
            pytest.skip("only SQLite deletes without a trigger")
        connection = connections[alias]
        with connection.cursor() as cursor:
            cursor.execute("CREATE UNIQUE INDEX one_name ON testapp_tag (name COLLATE NOCASE)")
        try:
            install_triggers(connection, ["testapp_tag"])
            told("tag")
            write_outside(alias, "INSERT INTO testapp_tag (id, name) VALUES (1, 'a'), (2, 'b')")
            assert {(1,), (2,)} == {row.key for row in rows_of(told("tag"))}
            write_outside(alias, "REPLACE INTO testapp_tag (id, name) VALUES (3, 'A')")
            (record,) = told("tag")
            assert record.rows is None
            write_outside(alias, "UPDATE OR REPLACE testapp_tag SET name = 'A' WHERE id = 2")
            (record,) = told("tag")
            assert record.rows is None
        finally:
            with connection.cursor() as cursor:
                cursor.execute("DROP INDEX one_name")

    def test_what_the_database_deletes_by_itself(self, alias: str, told: Any) -> None:
        """A cascade in the schema: MariaDB runs no trigger of the other table for it."""
        connection = connections[alias]
        column = "country varchar(2), FOREIGN KEY (country) REFERENCES testapp_country (code) ON DELETE CASCADE"
        with connection.schema_editor() as editor:
            editor.execute(f"CREATE TABLE outbox_child (id integer PRIMARY KEY, {column})", params=None)
        try:
            install_triggers(connection, ["testapp_country", "outbox_child"])
            Country.objects.using(alias).create(**FRANCE)
            write_outside(alias, "INSERT INTO outbox_child (id, country) VALUES (1, 'FR')")
            told("country")
            clock = clock_of(shared_database_name(connection), "outbox_child")
            ledger = get_assembly().ledger
            (before,) = ledger.read([Dependency(clock)])
            write_outside(alias, "DELETE FROM testapp_country")
            assert told("country")
            (after,) = ledger.read([Dependency(clock)])
            assert after.slots[0] > before.seq
        finally:
            with connection.schema_editor() as editor:
                editor.execute("DROP TABLE outbox_child", params=None)

    def test_character_sets_that_do_not_mix(self, alias: str, told: Any) -> None:
        """No write fails for them."""
        if alias != "mariadb":
            pytest.skip("only MariaDB has several")
        connection = connections[alias]
        texts = {"latin1": "ä", "ucs2": "ж", "utf8mb4": "😀", "utf8mb3": "€", "binary": "x"}
        columns = ", ".join(f"c_{name} varchar(9) CHARACTER SET {name}" for name in texts)
        others = "p point, b bit(3), e enum('x','y'), f float, y year, i inet6, j json"
        with connection.schema_editor() as editor:
            editor.execute(f"CREATE TABLE outbox_texts (id integer PRIMARY KEY, {columns}, {others})", params=None)
        try:
            install_triggers(connection, ["outbox_texts"])
            values = ", ".join(f"'{text}'" for text in texts.values())
            write_outside(
                alias,
                f"INSERT INTO outbox_texts VALUES (1, {values}, point(1, 2), 1, 'x', 0.1, 2024, '::1', '[1]')",
                "UPDATE outbox_texts SET p = point(2, 2), b = 2, e = 'y', f = 0.2, y = 2025, i = '::2', j = '[2]'",
                "DELETE FROM outbox_texts",
            )
            lines = dialect_of(connection).read(connection, 9)
            assert ["insert", "update", "delete"] == [line.kind for line in lines]
            ((_, image, _),) = json.loads(lines[0].changes or "")
            told_texts = {f"s:c_{name}": f"={text}" for name, text in texts.items() if name != "binary"}
            assert image == {"i:id": 1, **told_texts, "s:j": "=[1]"}
            ((_, _, changed),) = json.loads(lines[1].changes or "")
            assert [name for name in changed if name] == ["p", "b", "e", "f", "y", "i", "j"]
        finally:
            with connection.schema_editor() as editor:
                editor.execute("DROP TABLE outbox_texts", params=None)
