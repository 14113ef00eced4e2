"""What the classifier says, against what real databases do."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import pytest
from django.db import connection
from django.db.models import Count, Exists, F, Max, OuterRef, Prefetch, Q, QuerySet, Subquery, Value, Window
from django.db.models.functions import Coalesce, RowNumber, TruncYear

from live_cache.sql import Statement, StatementKind, classify
from tests import servers
from tests.testapp.models import Author, Book, Category, CheapBook, Country, Ebook, Library, Shelf

TABLES = ("a", "b", "c")
DATABASE = f"live_cache_sql_{os.getpid()}"


class Cursor(Protocol):
    def execute(self, sql: str) -> Any: ...
    def fetchall(self) -> Any: ...


@contextmanager
def sqlite_cursor() -> Iterator[Cursor]:
    database = sqlite3.connect(":memory:", isolation_level=None)
    yield database.cursor()
    database.close()


@contextmanager
def server_cursor(kind: str) -> Iterator[Cursor]:
    found = servers.discover()
    if kind not in found:
        pytest.skip(f"{kind.upper()} IS MISSING: {servers.MISSING[kind].reason}")
    with servers.connect(found[kind]) as raw:
        yield raw.cursor()


@pytest.fixture(scope="module", params=["sqlite", "postgresql", "mysql"])
def database(request: pytest.FixtureRequest) -> Iterator[tuple[str, Cursor]]:
    """Give a vendor and a cursor on tables of our own."""
    vendor: str = request.param
    if vendor == "sqlite":
        with sqlite_cursor() as cursor:
            yield vendor, cursor
    elif vendor == "postgresql":
        with server_cursor("postgresql") as cursor:
            cursor.execute(f"DROP SCHEMA IF EXISTS {DATABASE} CASCADE")
            cursor.execute(f"CREATE SCHEMA {DATABASE}")
            cursor.execute(f"SET search_path = {DATABASE}")
            cursor.execute("SET client_min_messages = error")
            yield vendor, cursor
            cursor.execute(f"DROP SCHEMA {DATABASE} CASCADE")
    else:
        with server_cursor("mariadb") as cursor:
            cursor.execute(f"DROP DATABASE IF EXISTS {DATABASE}")
            cursor.execute(f"CREATE DATABASE {DATABASE}")
            cursor.execute(f"USE {DATABASE}")
            yield vendor, cursor
            cursor.execute(f"DROP DATABASE {DATABASE}")


def reset(cursor: Cursor) -> None:
    """Give every table two rows of its own."""
    for number, table in enumerate(TABLES):
        cursor.execute(f"DROP TABLE IF EXISTS {table}")
        cursor.execute(f"CREATE TABLE {table} (id int PRIMARY KEY, x int, y varchar(50))")
        cursor.execute(f"INSERT INTO {table} VALUES (1, {number}, 'p'), (2, 5, 'q')")


def contents(cursor: Cursor) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for table in TABLES:
        cursor.execute(f"SELECT * FROM {table} ORDER BY id, x")
        found[table] = list(cursor.fetchall())
    return found


# Statements that change exactly the tables that they are said to write. All of them run on the vendors before the bar.
CHANGES = r"""
sqlite postgresql mysql | INSERT INTO a VALUES (3, 3, 'x')
sqlite postgresql mysql | insert/**/into/* b */a(id)select id+10 from b -- c
sqlite postgresql mysql | UPDATE a SET x = 9, y = '; DELETE FROM b; --' WHERE id = 1
sqlite postgresql | UPDATE a SET y = 'it''s' || 'x', x = (SELECT MAX(x) + 100 FROM b)
sqlite postgresql mysql | DELETE FROM a WHERE id IN (SELECT id FROM b)
sqlite postgresql mysql | DELETE FROM a WHERE EXISTS(SELECT 1 FROM b, c WHERE b.id = a.id)
sqlite postgresql | WITH z AS (SELECT * FROM b) UPDATE a SET x = 50 WHERE id IN (SELECT id FROM z)
sqlite postgresql | WITH z AS (SELECT * FROM b) INSERT INTO a SELECT id + 5, x, y FROM z
sqlite postgresql | INSERT INTO a VALUES (1, 1, 'x') ON CONFLICT (id) DO UPDATE SET x = 77, y = 'z' RETURNING x, y
sqlite postgresql | UPDATE a SET x = b.x + 90 FROM b, c WHERE a.id = b.id AND b.id = c.id
sqlite postgresql | DELETE FROM "a"
sqlite | WITH a AS (SELECT 1) DELETE FROM a
sqlite | DELETE FROM 'a'
sqlite | DELETE FROM [a]
sqlite | DELETE FROM main.`a`
sqlite | REPLACE INTO a VALUES (1, 99, 'r')
sqlite | INSERT OR REPLACE INTO a VALUES (1, 99, 'r')
sqlite | UPDATE OR IGNORE a SET id = 70 WHERE id = 1
sqlite | DELETE FROM a -- x\rDELETE FROM b
sqlite | DELETE FROM a /* open
sqlite | {BOM}DELETE FROM {BOM}a
postgresql | DELETE FROM a * AS z USING b JOIN c USING (id) WHERE z.id = b.id
postgresql | WITH z AS (DELETE FROM a RETURNING id), w AS (UPDATE b SET x = 40 RETURNING id) SELECT * FROM z, w, c
postgresql | WITH z AS (DELETE FROM a RETURNING id) INSERT INTO b SELECT id + 10 FROM z
postgresql | MERGE INTO a USING b ON a.id = b.id WHEN MATCHED THEN UPDATE SET x = 70 WHEN NOT MATCHED THEN DO NOTHING
postgresql | TRUNCATE a, ONLY b
postgresql | EXPLAIN (ANALYZE) DELETE FROM a
postgresql | EXPLAIN ANALYZE VERBOSE WITH z AS (DELETE FROM a RETURNING 1) SELECT * FROM z
postgresql | SELECT 1; DELETE FROM a; SELECT 2
postgresql | SELECT /* /* */ ' */ 1; DELETE FROM a -- '
postgresql | SELECT E'\'', $a$'$a$, U&'\0041', 'x\'; DELETE FROM a -- '
postgresql | SELECT 1 -- x\r; DELETE FROM a
postgresql | SELECT E'1'\n'2\'; SELECT 1; --'; DELETE FROM a
mysql | REPLACE a VALUES (1, 99, 'r')
mysql | INSERT IGNORE a SET id = 8
mysql | INSERT INTO a SELECT * FROM b ON DUPLICATE KEY UPDATE x = a.x + 60, y = 'z'
mysql | UPDATE a JOIN b USING (id) SET a.x = 60, b.x = 61
mysql | UPDATE a z, b w SET z.x = 60, w.x = 61 WHERE z.id = w.id
mysql | DELETE z, w FROM a z JOIN b AS w ON z.id = w.id
mysql | DELETE FROM z, w USING a AS z INNER JOIN b w ON z.id = w.id
mysql | DELETE a.* FROM a
mysql | TRUNCATE a
mysql | /*!50003 DELETE FROM a */
mysql | /*M!100000 DELETE FROM a */
mysql | DELETE /*!999999 LOW_PRIORITY */ FROM a
mysql | DELETE FROM a # ; DELETE FROM b
mysql | DELETE FROM a WHERE 5--1 > 0
mysql | ANALYZE FORMAT=JSON DELETE FROM a
mysql | SET STATEMENT max_statement_time=10 FOR DELETE FROM a
mysql | INSERT INTO a WITH z AS (SELECT * FROM b) SELECT id + 9, x, y FROM z
mysql | UPDATE a SET y = "it\"s -- '" WHERE x = 5 OR "id" <> '\''
"""

# Statements that change nothing, although they look as if they would.
KEEPS = r"""
sqlite postgresql mysql | SELECT 'DELETE FROM a', '; DELETE FROM a; --' FROM b
sqlite postgresql mysql | SELECT 1 /* ; DELETE FROM a */ FROM b
sqlite postgresql mysql | SELECT 1 FROM a -- ; DELETE FROM b
sqlite postgresql | SELECT REPLACE('x', 'x', 'y') AS "delete" FROM a
postgresql | SELECT 1 /* /* */ ; DELETE FROM a */ FROM b
postgresql | SELECT $$; DELETE FROM a$$, $q$ $$; DELETE FROM a; $q$ FROM b
postgresql | SELECT 1 AS from, 2 AS select, 3 AS into FROM a
postgresql | EXPLAIN DELETE FROM a
postgresql | EXPLAIN (COSTS off) WITH z AS (DELETE FROM a RETURNING 1) SELECT * FROM z
postgresql | TABLE a
postgresql | SELECT E'a' \n 'b\' ; DELETE FROM a -- '
mysql | SELECT INSERT('abc', 1, 1, 'x'), (REPLACE('a', 'b', 'c')) FROM a
mysql | SELECT 1 FROM a # ; DELETE FROM b
mysql | SELECT "DELETE FROM a\"", 'x\' FROM b' FROM a
mysql | EXPLAIN DELETE FROM a
mysql | /*m!100000 DELETE FROM a */
sqlite | EXPLAIN QUERY PLAN DELETE FROM a
sqlite | SELECT 1 FROM a /* ; DELETE FROM b
"""


def lines(text: str, vendor: str) -> list[str]:
    found = []
    for line in text.strip().splitlines():
        vendors, sql = line.split(" | ", 1)
        if vendor in vendors.split():
            found.append(sql.replace("\\n", "\n").replace("\\r", "\r").replace("{BOM}", "\ufeff"))
    return found


def test_written_is_what_changes(database: tuple[str, Cursor]) -> None:
    """The tables whose rows differ after a statement are those that it was said to write."""
    vendor, cursor = database
    statements = lines(CHANGES, vendor)
    assert len(statements) > 15
    for sql in statements:
        reset(cursor)
        before = contents(cursor)
        cursor.execute(sql)
        after = contents(cursor)
        changed = {table for table in TABLES if before[table] != after[table]}
        statement = classify(sql, vendor=vendor)
        assert (sql, statement.kind, statement.written) == (sql, StatementKind.WRITE, changed)


def test_a_read_changes_nothing(database: tuple[str, Cursor]) -> None:
    """The same for statements that only look like writes."""
    vendor, cursor = database
    reset(cursor)
    before = contents(cursor)
    for sql in lines(KEEPS, vendor):
        cursor.execute(sql)
        cursor.fetchall()
        assert contents(cursor) == before
        assert (sql, classify(sql, vendor=vendor).kind) == (sql, StatementKind.READ)


@pytest.mark.parametrize(
    "sql",
    [
        "BEGIN",
        "START TRANSACTION READ ONLY",
        "COMMIT",
        "ROLLBACK TO s",
        "SAVEPOINT t",
        "RELEASE SAVEPOINT s",
        "SELECT 1",
        "INSERT INTO a (id) VALUES (50)",
        "TRUNCATE a",
        "CREATE TABLE d (id int)",
        "CREATE TEMPORARY TABLE e (id int)",
        "DROP TEMPORARY TABLE IF EXISTS e",
        "CREATE INDEX i ON a (x)",
        "DROP INDEX i ON a",
        "ALTER TABLE a ADD COLUMN z int",
        "RENAME TABLE d TO f",
        "DROP TABLE f",
        "CREATE OR REPLACE VIEW v AS SELECT 1",
        "DROP VIEW v",
        "ANALYZE TABLE a",
        "OPTIMIZE TABLE a",
        "CHECK TABLE a",
        "LOCK TABLES a READ",
        "UNLOCK TABLES",
        "FLUSH TABLES",
        "SET @x = 5",
        "SET NAMES utf8mb4",
        "SHOW TABLES",
        "DO 1",
        "COMMIT AND CHAIN",
    ],
)
def test_commits_implicitly_as_mariadb_does(sql: str) -> None:
    """A row written before the statement survives a rollback after it just where it commits."""
    with server_cursor("mariadb") as cursor:
        cursor.execute(f"CREATE DATABASE IF NOT EXISTS {DATABASE}_commits")
        cursor.execute(f"USE {DATABASE}_commits")
        for setup in ("CREATE TABLE IF NOT EXISTS d (id int)", "CREATE TABLE IF NOT EXISTS f (id int)"):
            cursor.execute(setup)
        reset(cursor)
        cursor.execute("DROP TABLE IF EXISTS " + ("f" if sql.startswith("RENAME") else "d"))
        if sql.startswith(("DROP INDEX", "DROP VIEW")):
            cursor.execute("CREATE INDEX i ON a (x)" if "INDEX" in sql else "CREATE OR REPLACE VIEW v AS SELECT 1")
        if sql.startswith("RENAME"):
            cursor.execute("CREATE TABLE IF NOT EXISTS d (id int)")
        if sql == "UNLOCK TABLES":
            cursor.execute("SET autocommit = 0")
            cursor.execute("LOCK TABLES b WRITE, a WRITE")
        else:
            cursor.execute("BEGIN")
        cursor.execute("INSERT INTO b (id) VALUES (99)")
        cursor.execute("SAVEPOINT s")
        cursor.execute(sql)
        cursor.fetchall()
        cursor.execute("ROLLBACK")
        cursor.execute("UNLOCK TABLES")
        cursor.execute("SELECT COUNT(*) FROM b WHERE id = 99")
        is_committed = bool(cursor.fetchall()[0][0])
        cursor.execute(f"DROP DATABASE {DATABASE}_commits")
    assert (sql, classify(sql, vendor="mysql").commits_implicitly) == (sql, is_committed)


# -- the SQL of Django ------------------------------------------------------------------------------------------------

_cheap = Book.objects.filter(price__lt=10)
_shelves = Shelf.objects.filter(book=OuterRef("pk"))
QUERYSETS: dict[str, QuerySet[Any]] = {
    "all": Book.objects.all(),
    "one table": Book.objects.filter(title__icontains="from x").exclude(pages=3).order_by("-created")[5:10],
    "join": Book.objects.filter(author__name="x"),
    "two joins": Book.objects.filter(author__country__name="x").order_by("category__slug"),
    "outer join": Book.objects.filter(Q(category__name="x") | Q(category=None)),
    "many to many": Book.objects.filter(tags__name="x").distinct(),
    "two of many": Book.objects.filter(tags__name="x").filter(tags__name="y"),
    "exclude many": Book.objects.exclude(tags__name="x"),
    "reverse": Author.objects.filter(books__title__startswith="x"),
    "reverse null": Author.objects.filter(books=None),
    "select related": Book.objects.select_related("author__country", "category"),
    "self join": Category.objects.filter(parent__parent__name="x"),
    "ordering of the model": Shelf.objects.all(),
    "values": Book.objects.values("author__name", "title"),
    "values list": Book.objects.values_list("category__parent__name", flat=True),
    "only": Book.objects.only("title"),
    "proxy": CheapBook.objects.all(),
    "multi-table": Ebook.objects.filter(author__name="x"),
    "parent of multi-table": Book.objects.filter(ebook__format="pdf"),
    "through": Library.objects.filter(bookplace__copies__gt=1),
    "through twice": Library.objects.filter(books__author__country__code="DE"),
    "in subquery": Author.objects.filter(books__in=_cheap),
    "in subquery of values": Author.objects.filter(pk__in=Book.objects.filter(category__name="x").values("author")),
    "exists": Book.objects.filter(Exists(_shelves)),
    "not exists": Book.objects.filter(~Exists(_shelves.filter(book__author=OuterRef("author")))),
    "subquery": Book.objects.annotate(n=Subquery(_shelves.values("pk")[:1])),
    "nested subqueries": Country.objects.filter(
        authors__in=Author.objects.filter(books__in=_cheap.filter(tags__name="x"))
    ),
    "count of related": Author.objects.annotate(n=Count("books")).filter(n__gt=2),
    "two aggregates": Author.objects.annotate(n=Count("books", distinct=True), m=Max("books__tags__name")),
    "group": Book.objects.values("category__name").annotate(n=Count("pk")).order_by("n"),
    "filtered aggregate": Author.objects.annotate(n=Count("books", filter=Q(books__category__slug="x"))),
    "f of another table": Book.objects.filter(title=F("author__name")),
    "function": Book.objects.annotate(t=Coalesce("category__name", Value("from y"))).filter(t="x"),
    "trunc": Book.objects.annotate(y=TruncYear("created")).values("y").annotate(n=Count("pk")),
    "window": Book.objects.annotate(n=Window(RowNumber(), partition_by=F("author__country"), order_by="pk")),
    "window filter": Book.objects.annotate(n=Window(RowNumber(), partition_by=[F("author")])).filter(n=1),
    "union": Author.objects.values("name").union(Category.objects.values("name"), Country.objects.values("name")),
    "union all of joins": Book.objects.filter(tags__name="x").union(Book.objects.filter(author__name="y"), all=True),
    "intersection": Author.objects.values("name").intersection(Category.objects.values("name")),
    "difference": Author.objects.values("name").difference(Category.objects.filter(books__pages=1).values("name")),
    "prefetch": Author.objects.prefetch_related(Prefetch("books", _cheap)),
    "json": Book.objects.filter(data__a__b="from x"),
    "order by subquery": Book.objects.order_by(Subquery(_shelves.values("pk")[:1])),
    "extra": Book.objects.extra(where=["EXISTS (SELECT 1 FROM testapp_tag)"]),
}


class _Answers:
    """Asks SQLite itself: its authorizer is told of every table that a statement reads or changes."""

    READ, CHANGES = 20, (9, 18, 23)

    def __init__(self) -> None:
        self.read: set[str] = set()
        self.written: set[str] = set()

    def note(self, action: int, table: str | None, column: str | None, database: str | None, view: str | None) -> int:
        if table and not table.startswith("sqlite_"):
            if action == self.READ:
                self.read.add(table)
            elif action in self.CHANGES:
                self.written.add(table)
        return 0


@contextmanager
def watching() -> Iterator[tuple[_Answers, list[Statement]]]:
    """Note what SQLite says of the statements in the block, and what the classifier says."""
    answers = _Answers()
    statements: list[Statement] = []

    def note(execute: Any, sql: Any, params: Any, many: bool, context: Any) -> Any:
        statements.append(classify(sql, vendor="sqlite"))
        return execute(sql, params, many, context)

    connection.ensure_connection()
    raw: Any = connection.connection
    raw.set_authorizer(answers.note)
    try:
        with connection.execute_wrapper(note):
            yield answers, statements
    finally:
        raw.set_authorizer(None)


@pytest.mark.django_db
@pytest.mark.parametrize("name", QUERYSETS)
def test_read_is_what_sqlite_reads(name: str) -> None:
    """The tables of a queryset's SQL are the tables that SQLite reads to answer it."""
    with watching() as (answers, statements):
        list(QUERYSETS[name].all())
        if not QUERYSETS[name].query.combinator:
            QUERYSETS[name].exists()
        QUERYSETS[name].count()
    assert statements
    assert {statement.kind for statement in statements} == {StatementKind.READ}
    assert frozenset().union(*(statement.read for statement in statements)) == answers.read


@pytest.mark.django_db
def test_written_is_what_sqlite_writes() -> None:
    """Each write of the ORM names just the tables that SQLite changes for it."""
    country = Country(code="DE", name="x")
    author = Author(name="x", country=country)
    book = Book(title="x", author=author)

    def update_by_subquery() -> None:
        Book.objects.filter(author__country__name="x").update(pages=F("pages") + 1)

    actions: list[Any] = [
        country.save,
        author.save,
        book.save,
        lambda: Book.objects.bulk_create([Book(title=str(i), author=author) for i in range(3)]),
        lambda: Country.objects.bulk_create(
            [Country(code="DE", name="y")], update_conflicts=True, update_fields=["name"], unique_fields=["code"]
        ),
        lambda: Book.objects.bulk_update([book], ["title", "pages"]),
        update_by_subquery,
        lambda: Ebook(title="x", author=author).save(),
        lambda: book.tags.create(name="x"),
        lambda: book.tags.clear(),
        lambda: Shelf.objects.all().delete(),
        lambda: Author.objects.filter(pk=author.pk).delete(),
    ]
    for action in actions:
        with watching() as (answers, statements):
            action()
        written = frozenset().union(*(statement.written for statement in statements))
        assert StatementKind.UNKNOWN not in {statement.kind for statement in statements}
        assert written == answers.written


@pytest.mark.parametrize("name", QUERYSETS)
@pytest.mark.parametrize("alias", ["postgresql", "mariadb"])
def test_same_tables_in_every_dialect(alias: str, name: str) -> None:
    """What Django compiles for another database reads the same tables."""
    from django.db import connections

    if alias not in connections:
        pytest.skip(f"{alias.upper()} IS MISSING")
    query = QUERYSETS[name].query
    vendor = connections[alias].vendor
    expected = classify(query.get_compiler("default").as_sql()[0], vendor="sqlite")
    found = classify(query.get_compiler(alias).as_sql()[0], vendor=vendor)
    assert (found.kind, found.read) == (StatementKind.READ, expected.read)
