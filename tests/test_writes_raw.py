"""Writes that pass no execute wrapper of Django, and writes whose tables their SQL does not name."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections, migrations, models, transaction
from django.db.migrations.state import ProjectState

from live_cache import live, recording
from live_cache.writes.cascades import tables_changed_by_delete
from tests.made_models import made_models
from tests.testapp.models import Author, Book, Country, Ebook, Profile, Review, Tag

UPDATE = "UPDATE testapp_author SET name = 'Raw'"


@pytest.fixture
def authors(alias: str, cache: str) -> str:
    """Three authors, and the database alias."""
    Author.objects.using(alias).bulk_create([Author(name=f"A{i}") for i in range(3)])
    return alias


def live_names(alias: str) -> list[str]:
    return list(live(Author.objects.using(alias).order_by("pk")).values_list("name", flat=True))


def names(alias: str) -> list[str]:
    return list(Author.objects.using(alias).order_by("pk").values_list("name", flat=True))


def check_seen(alias: str, write: Callable[[], object], *, is_understood: bool = True) -> None:
    """The write is seen in autocommit mode, inside a transaction and after it; rolled back, it leaves nothing."""
    before = live_names(alias)
    with transaction.atomic(using=alias):
        write()
        assert live_names(alias) == names(alias) != before
        transaction.set_rollback(True, using=alias)
    with recording() as reads:
        assert live_names(alias) == names(alias) == before
    assert reads[0].is_hit == is_understood
    write()
    after = names(alias)
    assert live_names(alias) == after != before
    with recording() as reads:
        assert live_names(alias) == after
    assert reads[0].is_hit == is_understood, reads[0].reason
    with transaction.atomic(using=alias):
        Author.objects.using(alias).filter(name__isnull=False).delete()
        write_again = Author.objects.using(alias).create(name="Last")
    assert live_names(alias) == [write_again.name]


def run_sql(alias: str, sql: Any, params: Any = None) -> None:
    with connections[alias].cursor() as cursor:
        cursor.execute(sql, params)


SPELLINGS: dict[str, tuple[set[str], Any]] = {
    "bytes": ({"postgresql", "mysql"}, UPDATE.encode()),
    "comment first": ({"postgresql", "mysql", "sqlite"}, f"/* SELECT */ -- x\n{UPDATE}"),
    "quoted": ({"postgresql", "sqlite"}, "UPDATE \"testapp_author\" SET name = 'Raw'"),
    "CTE": ({"postgresql"}, f"WITH changed AS ({UPDATE} RETURNING id) SELECT count(*) FROM changed"),
    "CTE before": (
        {"postgresql", "sqlite"},
        "WITH x AS (SELECT 'Raw' AS n) UPDATE testapp_author SET name = (SELECT n FROM x)",
    ),
    "MERGE": (
        {"postgresql"},
        "MERGE INTO testapp_author t USING (SELECT 1) s ON true WHEN MATCHED THEN UPDATE SET name = 'Raw'",
    ),
    "REPLACE": ({"sqlite", "mysql"}, "REPLACE INTO testapp_author (id, name) VALUES (900, 'Raw')"),
    "INSERT OR REPLACE": ({"sqlite"}, "INSERT OR REPLACE INTO testapp_author (id, name) VALUES (900, 'Raw')"),
    "ON CONFLICT": (
        {"postgresql", "sqlite"},
        "INSERT INTO testapp_author (id, name) VALUES (900, 'Raw') ON CONFLICT (id) DO UPDATE SET name = 'Raw'",
    ),
    "ON DUPLICATE KEY": (
        {"mysql"},
        "INSERT INTO testapp_author (id, name) VALUES (900, 'Raw') ON DUPLICATE KEY UPDATE name = 'Raw'",
    ),
    "several statements": ({"postgresql"}, f"SELECT 1; {UPDATE}; SELECT 2"),
    "EXPLAIN ANALYZE": ({"postgresql"}, f"EXPLAIN ANALYZE {UPDATE}"),
    "DO": ({"postgresql"}, f"DO $$ BEGIN {UPDATE}; END $$"),
    "through a view": ({"postgresql", "mysql"}, "UPDATE live_cache_view SET name = 'Raw'"),
}


@pytest.fixture
def view(authors: str) -> Iterator[None]:
    """A view over the authors, where a database lets one write through it."""
    if connections[authors].vendor != "sqlite":
        run_sql(authors, "CREATE OR REPLACE VIEW live_cache_view AS SELECT id, name FROM testapp_author")
        yield
        run_sql(authors, "DROP VIEW live_cache_view")
    else:
        yield


@pytest.mark.parametrize("name", SPELLINGS)
def test_spelling_of_a_write(authors: str, view: None, name: str) -> None:
    """Each way to write a write, where the database knows it."""
    vendors, sql = SPELLINGS[name]
    if connections[authors].vendor not in vendors:
        pytest.skip(f"{connections[authors].vendor} does not know it")
    if name == "MERGE" and getattr(connections[authors], "pg_version", 0) < 150000:
        pytest.skip("MERGE came with PostgreSQL 15")
    # After a program that is not understood the connection may be in another role or schema.
    check_seen(authors, lambda: run_sql(authors, sql), is_understood=name != "DO")


def test_composed_statement(authors: str) -> None:
    """psycopg's sql.Composed is read as the text that it becomes."""
    if connections[authors].vendor != "postgresql":
        pytest.skip("psycopg only")
    from psycopg import sql

    statement = sql.SQL("UPDATE {} SET name = {}").format(sql.Identifier("testapp_author"), sql.Literal("Raw"))
    check_seen(authors, lambda: run_sql(authors, statement))


def test_truncate(authors: str) -> None:
    """TRUNCATE is a write; on MariaDB it also commits what came before."""
    vendor = connections[authors].vendor
    if vendor == "sqlite":
        pytest.skip("SQLite has no TRUNCATE")
    assert live_names(authors)
    if vendor == "postgresql":
        run_sql(authors, "TRUNCATE testapp_author CASCADE")
    else:
        run_sql(authors, "SET SESSION foreign_key_checks = 0")
        run_sql(authors, "TRUNCATE TABLE testapp_author")
    assert live_names(authors) == names(authors) == []


def test_schema_change_that_commits(authors: str) -> None:
    """DDL on MariaDB commits the rows that were written before it, though a ROLLBACK follows."""
    connection = connections[authors]
    if connection.vendor != "mysql":
        pytest.skip("elsewhere DDL is part of the transaction")
    assert live_names(authors)
    with transaction.atomic(using=authors):
        run_sql(authors, UPDATE)
        run_sql(authors, "CREATE TABLE live_cache_ddl (id int)")
        transaction.set_rollback(True, using=authors)
    run_sql(authors, "DROP TABLE live_cache_ddl")
    assert live_names(authors) == names(authors) == ["Raw"] * 3


# -- methods of a cursor that pass no execute wrapper -------------------------------------------------------------


@pytest.mark.parametrize("is_debugging", [False, True])
def test_copy(authors: str, is_debugging: bool) -> None:
    """COPY FROM by psycopg's cursor.copy(), with and without Django's query log."""
    connection: Any = connections[authors]
    if connection.vendor != "postgresql":
        pytest.skip("psycopg only")
    ids = iter(range(1000, 1010))

    def write() -> None:
        with connection.cursor() as cursor, cursor.copy("COPY testapp_author (id, name) FROM STDIN") as copy:
            copy.write_row((next(ids), "Copied"))

    connection.force_debug_cursor = is_debugging
    try:
        check_seen(authors, write)
    finally:
        connection.force_debug_cursor = False


def test_copy_out_and_copy_on_another_connection(authors: str) -> None:
    """COPY TO writes nothing. A connection that is not Django's own for this thread is covered too."""
    if connections[authors].vendor != "postgresql":
        pytest.skip("psycopg only")
    before = live_names(authors)
    with connections[authors].cursor() as cursor, cursor.copy("COPY testapp_author (name) TO STDOUT") as copy:
        assert sorted(row[0] for row in copy.rows()) == before
    with recording() as reads:
        live_names(authors)
    assert reads[0].is_hit
    other: Any = connections[authors].copy()
    try:
        with other.cursor() as cursor, cursor.copy("COPY testapp_author (id, name) FROM STDIN") as copy:
            copy.write_row((10**9, "Copied"))  # after all others
            assert live_names(authors) == before
        assert live_names(authors) == [*before, "Copied"]
        with (
            pytest.raises(ZeroDivisionError),
            other.cursor() as cursor,
            cursor.copy("COPY testapp_author (id, name) FROM STDIN") as copy,
        ):
            raise ZeroDivisionError
        assert other.get_autocommit()
    finally:
        other.close()


def test_stream(authors: str) -> None:
    """A write with RETURNING by psycopg's cursor.stream()."""
    connection: Any = connections[authors]
    if connection.vendor != "postgresql":
        pytest.skip("psycopg only")

    def write() -> None:
        with connection.cursor() as cursor:
            assert len(list(cursor.stream(f"{UPDATE} RETURNING id"))) == 3

    check_seen(authors, write)
    with connection.cursor() as cursor:
        assert list(cursor.stream("SELECT name FROM testapp_author")) == [("Last",)]
        # Whoever reads before the rows are taken sees no more and no less than the database.
        rows = cursor.stream("UPDATE testapp_author SET name = 'Streamed' RETURNING id")
        other: Any = connection.copy()
        try:
            with other.cursor() as asking:
                asking.execute("SELECT name FROM testapp_author")
                assert asking.fetchall() == [("Streamed",)]
        finally:
            other.close()
        assert len(list(rows)) == 1
    assert live_names(authors) == names(authors) == ["Streamed"]


def test_executescript(authors: str) -> None:
    """executescript() of SQLite, which also commits what came before."""
    if connections[authors].vendor != "sqlite":
        pytest.skip("SQLite only")
    assert live_names(authors)
    with connections[authors].cursor() as cursor:
        cursor.executescript(f"{UPDATE}; SELECT 1;")
    assert live_names(authors) == names(authors) == ["Raw"] * 3


PROCEDURES = {
    "postgresql": f"CREATE OR REPLACE FUNCTION live_cache_raw() RETURNS int AS $$ {UPDATE}; SELECT 1 $$ LANGUAGE sql",
    "mysql": f"CREATE PROCEDURE live_cache_raw() {UPDATE}",
}


@pytest.fixture
def procedure(authors: str) -> Iterator[str]:
    """A function or procedure that changes the authors."""
    vendor = connections[authors].vendor
    if vendor not in PROCEDURES:
        pytest.skip("SQLite has no procedures")
    kind = "FUNCTION" if vendor == "postgresql" else "PROCEDURE"
    run_sql(authors, f"DROP {kind} IF EXISTS live_cache_raw")
    run_sql(authors, PROCEDURES[vendor])
    connections[authors].close()  # DDL that is not understood leaves the search path in doubt
    yield "live_cache_raw"
    run_sql(authors, f"DROP {kind} live_cache_raw")
    connections[authors].close()


@pytest.mark.parametrize("is_in_transaction", [False, True])
def test_callproc(authors: str, procedure: str, is_in_transaction: bool) -> None:
    """cursor.callproc() counts as a write of every table, at once or at the COMMIT."""
    from contextlib import nullcontext

    assert live_names(authors)
    with transaction.atomic(using=authors) if is_in_transaction else nullcontext():
        with connections[authors].cursor() as cursor:
            cursor.callproc(procedure)
        assert live_names(authors) == names(authors) == ["Raw"] * 3
    assert live_names(authors) == ["Raw"] * 3
    connections[authors].close()
    assert live_names(authors) == ["Raw"] * 3


@pytest.mark.parametrize("declared", [{"live_cache_raw": ["testapp_author"]}, ["live_cache_raw"]], ids=["map", "list"])
def test_declared_function(authors: str, procedure: str, declared: Any, settings: Any) -> None:
    """``SELECT fn()`` of a function in LIVE_CACHE_WRITING_FUNCTIONS is a write of its tables, or of every table."""
    if connections[authors].vendor != "postgresql":
        pytest.skip("a function of MariaDB is declared in the same way")
    settings.LIVE_CACHE_WRITING_FUNCTIONS = declared
    Tag.objects.using(authors).create(name="red")
    tags = live(Tag.objects.using(authors).order_by("pk"))
    list(tags.all())
    check_seen(authors, lambda: run_sql(authors, "SELECT Live_Cache_Raw()"))
    with recording() as reads:
        list(tags.all())
    assert reads[0].is_hit == isinstance(declared, dict)


# -- what Django itself sends ----------------------------------------------------------------------------------------


def test_loaddata(authors: str, tmp_path: Any) -> None:
    """loaddata, and flush."""
    fixture = tmp_path / "authors.json"
    last = Author.objects.using(authors).latest("pk").pk
    fixture.write_text(json.dumps([{"model": "testapp.author", "pk": last + 1, "fields": {"name": "Loaded"}}]))
    before = live_names(authors)
    call_command("loaddata", str(fixture), database=authors, verbosity=0)
    assert live_names(authors) == [*before, "Loaded"] == names(authors)
    call_command("flush", database=authors, interactive=False, verbosity=0, stdout=io.StringIO())
    assert live_names(authors) == names(authors) == []


def test_migrations(authors: str) -> None:
    """RunPython, RunSQL, and a change of the schema, each in a schema editor as `migrate` uses it."""
    connection = connections[authors]
    if connection.vendor == "postgresql":
        run_sql(authors, "SET CONSTRAINTS ALL IMMEDIATE")

    def forwards(apps: Any, editor: Any) -> None:
        apps.get_model("testapp", "Author").objects.using(editor.connection.alias).update(name="Python")

    from django.apps import apps

    state = ProjectState.from_apps(apps)
    operations = [
        migrations.RunPython(forwards),
        migrations.RunSQL("UPDATE testapp_author SET name = 'SQL'"),
        migrations.AddField("author", "motto", models.CharField(max_length=9, default="")),
        migrations.RemoveField("author", "motto"),
    ]
    for operation in operations:
        live_names(authors)
        to_state = state.clone()
        operation.state_forwards("testapp", to_state)
        with connection.schema_editor() as editor:
            operation.database_forwards("testapp", editor, state, to_state)
        state = to_state
        with recording() as reads:
            assert live_names(authors) == names(authors)
        assert not any(read.is_hit for read in reads), operation
    assert names(authors) == ["SQL"] * 3


def test_generic_relation_and_cascades(authors: str) -> None:
    """Deleting the object deletes what refers to it, in every table, and all of it is seen."""
    from django.contrib.contenttypes.models import ContentType

    ContentType.objects.clear_cache()  # other tests have emptied the table
    author = Author.objects.using(authors).order_by("pk")[0]
    Profile.objects.using(authors).create(author=author, bio="x")
    kind = ContentType.objects.db_manager(authors).get_for_model(Author)
    Review.objects.using(authors).create(content_type=kind, object_id=str(author.pk), stars=3)

    def state(read: Callable[[Any], Any]) -> list[Any]:
        return [
            list(read(model.objects.using(authors).order_by("pk")).values_list("pk", flat=True))
            for model in (Author, Profile, Review)
        ]

    before = state(live)
    kind.delete()
    ContentType.objects.clear_cache()
    author.delete()
    after = state(lambda queryset: queryset)
    assert state(live) == after != before


def test_instances_in_unusual_states(authors: str) -> None:
    """Deferred instances, in_bulk edits, a proxy's and a child's parents."""
    from tests.testapp.models import CheapBook

    author = Author.objects.using(authors).order_by("pk")[0]
    book = Book.objects.using(authors).create(title="B", author=author, price=1)
    ebook = Ebook.objects.using(authors).create(title="E", author=author, price=1)

    def titles() -> list[str]:
        return list(live(Book.objects.using(authors).order_by("pk")).values_list("title", flat=True))

    assert titles() == ["B", "E"]
    deferred = Book.objects.using(authors).only("title").get(pk=book.pk)
    deferred.title = "Deferred"
    deferred.save()
    assert titles() == ["Deferred", "E"]
    for found in Book.objects.using(authors).in_bulk([book.pk]).values():
        found.title = "Bulk"
        found.save(update_fields=["title"])
    assert titles() == ["Bulk", "E"]
    CheapBook.objects.using(authors).filter(pk=book.pk).update(title="Proxy")
    assert titles() == ["Proxy", "E"]
    Ebook.objects.using(authors).filter(pk=ebook.pk).update(title="Child")
    assert titles() == ["Proxy", "Child"]
    ebook.delete(keep_parents=True)
    assert titles() == ["Proxy", "Child"]
    Book.objects.using(authors).only("pk").get(pk=book.pk).delete()
    assert titles() == ["Child"]


def test_generated_column(authors: str) -> None:
    """A column that the database computes changes with its row."""
    from tests.testapp.models import AllFields

    AllFields.objects.using(authors).create(small_integer=2)
    rows = live(AllFields.objects.using(authors)).values_list("generated", flat=True)
    assert list(rows.all()) == [4]
    AllFields.objects.using(authors).update(small_integer=5)
    assert list(rows.all()) == [10]


async def _write_async(alias: str) -> list[list[str]]:
    seen = []
    author = await Author.objects.using(alias).order_by("pk").afirst()
    assert author is not None
    author.name = "asave"
    await author.asave()
    seen.append(
        [name async for name in live(Author.objects.using(alias).order_by("pk")).values_list("name", flat=True)]
    )
    await Author.objects.using(alias).filter(pk=author.pk).aupdate(name="aupdate")
    seen.append(
        [name async for name in live(Author.objects.using(alias).order_by("pk")).values_list("name", flat=True)]
    )
    await author.adelete()
    seen.append(
        [name async for name in live(Author.objects.using(alias).order_by("pk")).values_list("name", flat=True)]
    )
    return seen


def test_async_writes(authors: str) -> None:
    """asave(), aupdate() and adelete() of another task's thread."""
    from asgiref.sync import async_to_sync

    live_names(authors)
    assert async_to_sync(_write_async)(authors) == [["asave", "A1", "A2"], ["aupdate", "A1", "A2"], ["A1", "A2"]]
    assert live_names(authors) == names(authors)


# -- foreign keys whose on_delete is the database's ----------------------------------------------------------------

needs_db_on_delete = pytest.mark.skipif(not hasattr(models, "DB_CASCADE"), reason="came with Django 6.1")


@pytest.fixture
def family(alias: str, cache: str) -> Iterator[tuple[str, list[type[models.Model]]]]:
    """A grandparent, a parent by DB_CASCADE, a child by DB_CASCADE, and a friend of the parent by DB_SET_NULL."""
    with made_models(alias) as create_tables:

        class Grandparent(models.Model):
            class Meta:
                app_label = "testapp"

        class Parent(models.Model):
            grandparent = models.ForeignKey(Grandparent, models.DB_CASCADE)  # type: ignore[attr-defined,arg-type,unused-ignore] # 6.1

            class Meta:
                app_label = "testapp"

        class Child(models.Model):
            parent = models.ForeignKey(Parent, models.DB_CASCADE)  # type: ignore[attr-defined,arg-type,unused-ignore] # 6.1

            class Meta:
                app_label = "testapp"

        class Friend(models.Model):
            parent = models.ForeignKey(Parent, models.DB_SET_NULL, null=True)  # type: ignore[attr-defined,arg-type,unused-ignore] # 6.1

            class Meta:
                app_label = "testapp"

        made = [Grandparent, Parent, Child, Friend]
        create_tables(*made)
        yield alias, made


@needs_db_on_delete
def test_cascade_of_the_database(family: tuple[str, list[Any]]) -> None:
    """Deleting the grandparent is seen by reads of every generation, at any depth."""
    alias, (grandparent, parent, child, friend) = family
    assert tables_changed_by_delete(["testapp_grandparent"]) == {"testapp_parent", "testapp_child", "testapp_friend"}
    assert tables_changed_by_delete(["testapp_child"]) == set()

    def fill() -> Any:
        old = grandparent.objects.using(alias).create()
        son = parent.objects.using(alias).create(grandparent=old)
        child.objects.using(alias).create(parent=son)
        friend.objects.using(alias).create(parent=son)
        return old

    def state(read: Callable[[Any], Any]) -> list[Any]:
        return [
            list(read(parent.objects.using(alias)).values_list("pk", flat=True)),
            list(read(child.objects.using(alias)).values_list("pk", flat=True)),
            list(read(friend.objects.using(alias)).values_list("parent_id", flat=True)),
        ]

    deletes: list[Callable[[Any], object]] = [
        lambda old: old.delete(),
        lambda old: grandparent.objects.using(alias).filter(pk=old.pk).delete(),
        lambda old: grandparent.objects.using(alias).filter(pk=old.pk)._raw_delete(alias),
    ]
    if connections[alias].vendor != "postgresql":
        deletes.append(lambda old: run_sql(alias, f"REPLACE INTO testapp_grandparent (id) VALUES ({old.pk})"))
    for delete in deletes:
        old = fill()
        before = state(live)
        delete(old)
        assert state(live) == state(lambda queryset: queryset) != before
        friend.objects.using(alias).all().delete()


def test_a_write_to_another_table_costs_no_hits(authors: str) -> None:
    """A write to another table leaves the hits of this one alone."""
    live_names(authors)
    Country.objects.using(authors).create(code="FR", name="France")
    with recording() as reads:
        live_names(authors)
    assert reads[0].is_hit


@pytest.mark.django_db(transaction=True)
def test_executescript_commits_the_open_transaction(cache: str, second_connection: Callable[[str], Any]) -> None:
    """Python's executescript() sends COMMIT first: from then on every connection sees what it and the block wrote."""
    other = second_connection("default")
    author = Author.objects.create(name="Ann")
    assert other.run(live_names, "default") == live_names("default") == ["Ann"]
    with transaction.atomic():
        Author.objects.filter(pk=author.pk).update(name="Bob")
        with connections["default"].cursor() as cursor:
            cursor.executescript("INSERT INTO testapp_author (name) VALUES ('Cid')")
        assert other.run(live_names, "default") == ["Bob", "Cid"]
        Author.objects.create(name="Dan")
    assert other.run(live_names, "default") == live_names("default") == ["Bob", "Cid", "Dan"]
