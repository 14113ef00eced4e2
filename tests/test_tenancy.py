"""
Tenants behind one alias: no row of one reaches another, no write of one leaves old rows, and no key can be forged.

On PostgreSQL, since only there tenants can share a connection: by schemas (search_path) and by row policies (a role and
a setting). What keys are made of is tried without a server, too.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from io import StringIO
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.cache import caches
from django.core.management import call_command
from django.db import connections, transaction
from django.db.models import Count, Max, Q
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from live_cache import live, recording
from live_cache.assembly import get_assembly
from live_cache.events import live_stream
from live_cache.exceptions import InvalidKeyError
from live_cache.outbox.installing import drop_triggers, install_triggers
from live_cache.outbox.listener import Listener
from live_cache.setting_checks import wrong_settings
from tests.cache_kinds import caches_of, wait_for_hits
from tests.gate import Gate
from tests.settings import RUN_ID
from tests.test_flights import counted_selects
from tests.testapp.models import Author, Book, Country, Tag

PG = "postgresql"
ROLE = f"live_cache_tenant_{RUN_ID}".lower()
OWN_TABLES = ("testapp_author", "testapp_book", "testapp_tag", "testapp_book_tags")
TENANTS = ("acme", "acme2")
on_postgresql = pytest.mark.parametrize("alias", [PG], indirect=True)

tenant_now: contextvars.ContextVar[str | None] = contextvars.ContextVar("tenant_now", default=None)


def send(*statements: str) -> None:
    """Send SQL as whoever owns the tables, past the guard."""
    with closing(connections[PG].get_new_connection(connections[PG].get_connection_params())) as driver:
        driver.autocommit = True
        with closing(driver.cursor()) as cursor:
            for statement in statements:
                cursor.execute(statement)


@dataclass(frozen=True)
class Schemas:
    """A schema for each tenant, with tables of its own; countries are shared."""

    def begin(self) -> None:
        for tenant in TENANTS:
            send(f"CREATE SCHEMA {tenant}")
            send(*(f"CREATE TABLE {tenant}.{table} (LIKE public.{table} INCLUDING ALL)" for table in OWN_TABLES))

    def end(self) -> None:
        send(*(f"DROP SCHEMA IF EXISTS {tenant} CASCADE" for tenant in TENANTS))

    def enter(self, tenant: str) -> None:
        with connections[PG].cursor() as cursor:
            cursor.execute(f"SET search_path = {tenant}, public")


@dataclass(frozen=True)
class RowPolicies:
    """One table for all, of which a role sees the rows whose name begins with its tenant's."""

    def begin(self) -> None:
        send(f"CREATE ROLE {ROLE}", f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {ROLE}")
        send(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {ROLE}")
        for table, column in (("testapp_author", "name"), ("testapp_book", "title"), ("testapp_tag", "name")):
            is_own = f"split_part({column}, ':', 1) = current_setting('app.tenant')"
            send(f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY", f"CREATE POLICY own ON {table} USING ({is_own})")

    def end(self) -> None:
        for table in ("testapp_author", "testapp_book", "testapp_tag"):
            send(f"DROP POLICY IF EXISTS own ON {table}", f"ALTER TABLE {table} DISABLE ROW LEVEL SECURITY")
        send(f"DROP OWNED BY {ROLE}", f"DROP ROLE {ROLE}")

    def enter(self, tenant: str) -> None:
        with connections[PG].cursor() as cursor:
            cursor.execute(f"SET ROLE {ROLE}")
            cursor.execute(f"SET app.tenant = '{tenant}'")


def forget_policies() -> None:
    """Send a harmless change of the schema through Django, as a migration is sent."""
    with connections[PG].cursor() as cursor:
        cursor.execute("COMMENT ON TABLE testapp_author IS 'authors'")


@pytest.fixture(params=[Schemas(), RowPolicies()], ids=["schemas", "policies"])
def tenants(request: pytest.FixtureRequest, alias: str, cache: str, settings: Any) -> Iterator[Callable[[str], None]]:
    """Give two tenants of PostgreSQL, each with a book of its own: call it with a name to become that tenant."""
    kind = request.param
    kind.begin()
    forget_policies()
    settings.LIVE_CACHE_TENANT = lambda using: tenant_now.get()

    def enter(tenant: str) -> None:
        tenant_now.set(tenant)
        kind.enter(tenant)

    try:
        Country.objects.using(PG).create(code="GB", name="Britain")
        for tenant in TENANTS:
            enter(tenant)
            author = Author.objects.using(PG).create(name=f"{tenant}:Ann", country_id="GB")
            book = Book.objects.using(PG).create(title=f"{tenant}:book", author=author)
            book.tags.add(Tag.objects.using(PG).create(name=f"{tenant}:red"))
        yield enter
    finally:
        connections[PG].close()
        kind.end()
        forget_policies()


def every_surface() -> list[Any]:
    """Read all that a tenant can see, by each kind of read; texts show whose it is."""
    books = Book.objects.using(PG)
    pk = books.order_by("pk").values_list("pk", flat=True)[0]  # from the database
    return [
        [book.title for book in live(books.order_by("pk"))],
        [book.title for book in live(books.order_by("pk"), "front")[:1]],
        live(books).get(pk=pk).title,
        live(books.order_by("pk")).first().title,  # type: ignore[union-attr]  # there is one
        live(books).count(),
        live(books).exists(),
        live(books).aggregate(last=Max("title"), n=Count("pk")),
        list(live(books.values_list("title", "author__name", "author__country__name"))),
        [book.author.name for book in live(books.select_related("author"))],
        [tag.name for book in live(books.prefetch_related("tags")) for tag in book.tags.all()],
        [
            book.title
            for author in live(Author.objects.using(PG).prefetch_related("books"))
            for book in author.books.all()
        ],
        [book.title for book in live(books.filter(author__name__endswith=":Ann"))],
    ]


def plainly() -> list[Any]:
    """Read the same from the database."""
    from live_cache import disabled

    with disabled():
        return every_surface()


def read(tenant: str, enter: Callable[[str], None]) -> tuple[list[Any], set[bool]]:
    """Return what *tenant* reads, and whether these were hits."""
    enter(tenant)
    with recording() as reads:
        rows = every_surface()
    assert rows == plainly()
    others = [other for other in TENANTS if other != tenant]
    assert all(f"{other}:" not in repr(rows) for other in others)
    return rows, {record.is_hit for record in reads}


@on_postgresql
def test_tenants_read_their_own_rows(tenants: Callable[[str], None]) -> None:
    """Each fills entries of its own, is served these, and nobody else's."""
    for tenant in TENANTS:
        assert f"{tenant}:book" in repr(read(tenant, tenants)[0])
    assert [read(tenant, tenants)[1] for tenant in TENANTS] == [{True}, {True}]


@on_postgresql
@pytest.mark.parametrize(
    "write",
    [
        lambda books, tenant: books.update(title=f"{tenant}:new"),
        lambda books, tenant: books.create(title=f"{tenant}:second", author=Author.objects.using(PG).get()),
        lambda books, tenant: books.get().delete(),
        lambda books, tenant: Author.objects.using(PG).update(name=f"{tenant}:Bob"),
        lambda books, tenant: books.get().tags.clear(),
        lambda books, tenant: Country.objects.using(PG).update(name=f"{tenant} was here"),
    ],
    ids=["update", "insert", "delete", "another table", "many-to-many", "shared table"],
)
def test_writes_of_one_tenant(tenants: Callable[[str], None], write: Any) -> None:
    """Who writes reads what he wrote, and nobody reads old rows: a shared table is read anew by all."""
    for tenant in TENANTS:
        read(tenant, tenants)
    tenants("acme")
    write(Book.objects.using(PG), "acme")
    for tenant in TENANTS:
        tenants(tenant)
        try:
            expected = plainly()
        except IndexError:  # no book is left
            assert list(live(Book.objects.using(PG).order_by("pk"))) == []
            continue
        assert every_surface() == expected


@on_postgresql
def test_link_sets_are_the_tenants(tenants: Callable[[str], None]) -> None:
    """An entry is judged by the linked rows of its tenant: a book of an author that the other one does not see."""

    def titles() -> list[str]:
        return [
            book.title for book in live(Book.objects.using(PG).filter(author__name__endswith=":Ann").order_by("pk"))
        ]

    for number, tenant in enumerate(TENANTS):
        tenants(tenant)
        assert titles() == [f"{tenant}:book"]
        author = Author.objects.using(PG).get()
        for other in range(3):
            bob = Author.objects.using(PG).create(name=f"{tenant}:Bob")
            Book.objects.using(PG).create(title=f"{tenant}:of Bob", author=bob)
            assert titles() == [f"{tenant}:book"], (number, other)
        Book.objects.using(PG).create(title=f"{tenant}:second", author=author)
        assert titles() == [f"{tenant}:book", f"{tenant}:second"]


@on_postgresql
def test_no_tenant_and_no_answer(
    tenants: Callable[[str], None], settings: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Where the tenant is not known the database answers, and nothing is stored."""

    def fail(using: str) -> str:
        raise LookupError("no request")

    read("acme", tenants)
    for function, why in ((fail, "has raised LookupError"), (lambda using: None, "no tenant now"), (len, "no text")):
        settings.LIVE_CACHE_TENANT = function
        for tenant in TENANTS:
            tenants(tenant)
            with recording() as reads:
                assert [book.title for book in live(Book.objects.using(PG))] == [f"{tenant}:book"]
            assert not reads[0].is_hit
            assert why in reads[0].reason
    assert "no request" in caplog.text
    settings.LIVE_CACHE_TENANT = None
    for tenant in TENANTS:
        tenants(tenant)
        with recording() as reads:
            assert [book.title for book in live(Book.objects.using(PG))] == [f"{tenant}:book"]
        assert "LIVE_CACHE_TENANT is not set" in reads[0].reason


@on_postgresql
@pytest.mark.usefixtures("default_fill_lease")
def test_single_flight_is_of_one_tenant(tenants: Callable[[str], None], second_connection: Any, gate: Gate) -> None:
    """Who misses while another tenant fetches the same query waits for nobody, and gets his own rows."""
    held = [True]

    def hold() -> None:
        if held and tenant_now.get() == "acme":
            held.clear()
            gate.arrive_and_wait()

    def titles(tenant: str) -> list[str]:
        tenants(tenant)
        return [book.title for book in live(Book.objects.using(PG).order_by("pk"), "front")]

    with counted_selects(hold) as selects:
        one, other = second_connection(PG), second_connection(PG)
        first = one.start(contextvars.Context().run, titles, "acme")
        gate.wait_arrived()
        assert other.run(contextvars.Context().run, titles, "acme2") == ["acme2:book"]
        gate.open()
        assert first.result(10) == ["acme:book"]
    assert len(selects) == 2
    assert not any(name.startswith("waits") for name in get_assembly().metrics.snapshot())


@on_postgresql
def test_tasks_with_a_tenant_each(tenants: Callable[[str], None]) -> None:
    """Tasks of one event loop have their tenant in a ContextVar, and the thread of each has its connection."""

    async def titles(tenant: str) -> list[list[str]]:
        async with ThreadSensitiveContext():
            await sync_to_async(tenants)(tenant)  # by a thread, whose context comes back
            found = []
            for _ in range(4):
                found.append([book.title async for book in live(Book.objects.using(PG).order_by("pk"))])
                await asyncio.sleep(0)
            await sync_to_async(connections.close_all)()
            return found

    async def both() -> list[list[list[str]]]:
        return await asyncio.gather(*(titles(tenant) for tenant in TENANTS * 2))

    with recording() as reads:
        assert asyncio.run(both()) == [[[f"{tenant}:book"]] * 4 for tenant in TENANTS * 2]
    assert any(record.is_hit for record in reads)


@on_postgresql
def test_commands_under_a_tenant(tenants: Callable[[str], None], settings: Any) -> None:
    """verify and explain speak of the tenant of the command; clear drops the entries of all."""
    for tenant in TENANTS:
        read(tenant, tenants)
    settings.LIVE_CACHE_VERIFY = [lambda: live(Book.objects.using(PG).order_by("pk"))]
    for tenant in TENANTS:
        tenants(tenant)
        out = StringIO()
        call_command("live_cache", "verify", stdout=out)
        assert "equal" in out.getvalue()
        assert "acme:book" not in out.getvalue()
    call_command("live_cache", "clear", "--model", "testapp.book", stdout=StringIO())
    for tenant in TENANTS:
        tenants(tenant)
        with recording() as reads:
            list(live(Book.objects.using(PG).order_by("pk")))
        assert not reads[0].is_hit
    tenant_now.set(None)
    out = StringIO()
    call_command("live_cache", "verify", stdout=out)
    assert "no tenant now" in out.getvalue()


@on_postgresql
def test_events_are_of_all_tenants(tenants: Callable[[str], None]) -> None:
    """A subscriber hears of each row of the table, by its key and without its values: docs/explanation/limits.md."""
    with live_stream().subscribe(Book, using=PG) as subscription:
        for tenant in TENANTS:
            tenants(tenant)
            Book.objects.using(PG).update(pages=7)
        events = [subscription.get(10), subscription.get(10)]
    assert all(event is not None and event.table == "testapp_book" for event in events)
    assert "acme" not in repr(events)


@on_postgresql
def test_plain_values_are_not_a_tenants(tenants: Callable[[str], None], settings: Any) -> None:
    """Django's own cache API is shared, as in every Django cache, and a KEY_FUNCTION takes tenants apart."""
    tenants("acme")
    caches["default"].set("greeting", "hello of acme")
    tenants("acme2")
    assert caches["default"].get("greeting") == "hello of acme"
    settings.CACHES = {"default": {**settings.CACHES["default"], "KEY_FUNCTION": "tests.test_tenancy.key_of_tenant"}}
    caches["default"].set("greeting", "hello of acme2")
    tenants("acme")
    assert caches["default"].get("greeting") is None


def key_of_tenant(key: str, prefix: str, version: int) -> str:
    """Do what docs/howto/tenants.md shows."""
    return f"{prefix}:{version}:{quote(tenant_now.get() or '', safe='')}:{key}"


# -- row policies: what decides membership and stands in no SQL -------------------------------------------------------


@pytest.fixture
def policies(alias: str, cache: str, settings: Any) -> Iterator[Callable[[str], None]]:
    """Row policies, and a way to become a tenant; "" is whoever sees all."""
    kind = RowPolicies()
    kind.begin()
    forget_policies()
    settings.LIVE_CACHE_TENANT = lambda using: tenant_now.get()

    def enter(tenant: str) -> None:
        tenant_now.set(tenant)
        if tenant:
            kind.enter(tenant)
        else:
            with connections[PG].cursor() as cursor:
                cursor.execute("RESET ROLE")

    yield enter
    connections[PG].close()
    kind.end()
    forget_policies()


@pytest.fixture
def outbox(policies: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """Send SQL past Django, by one who sees all, and tell it by row: Django tells tables with policies as a whole."""
    install_triggers(connections[PG], ["testapp_author", "testapp_book"])
    listener = Listener(PG)

    def write(sql: str) -> None:
        if sql:
            send(sql)
        listener.drain()

    yield write
    listener.close()
    connections[PG].close()
    drop_triggers(connections[PG])


@on_postgresql
@pytest.mark.parametrize(
    "look",
    [
        lambda: list(live(Author.objects.using(PG).filter(country="GB").order_by("pk").values_list("pk", flat=True))),
        lambda: live(Author.objects.using(PG).filter(country="GB")).count(),
        lambda: live(Author.objects.using(PG).filter(country="GB")).exists(),
        lambda: live(Author.objects.using(PG)).aggregate(n=Count("pk"))["n"],
        lambda: live(Book.objects.using(PG).filter(author__country="GB")).count(),
        lambda: list(live(Country.objects.using(PG).annotate(n=Count("authors")).values_list("code", "n"))),
        lambda: live(Country.objects.using(PG).filter(Q(authors__isnull=False))).count(),
    ],
    ids=["rows", "count", "exists", "aggregate", "join", "group", "left join"],
)
def test_row_that_moves_to_another_tenant(
    policies: Callable[[str], None], outbox: Callable[[str], None], look: Callable[[], Any]
) -> None:
    """A row comes into a result, or leaves it, by a column that only the policy looks at."""
    from live_cache import disabled

    Country.objects.using(PG).create(code="GB", name="Britain")
    author = Author.objects.using(PG).create(name="acme2:Ann", country_id="GB")
    Book.objects.using(PG).create(title="acme:book", author=author)
    for name in ("acme:Ann", "acme2:Ann", "acme:Bob"):
        for tenant in TENANTS:
            policies(tenant)
            outbox("")  # what Django has written waits there too
            look()
        outbox(f"UPDATE testapp_author SET name = '{name}' WHERE id = {author.pk}")
        for tenant in TENANTS:
            policies(tenant)
            with disabled():
                expected = look()
            assert look() == expected, (name, tenant)


@on_postgresql
def test_policies_leave_precision(policies: Callable[[str], None], outbox: Callable[[str], None]) -> None:
    """What neither the query nor the policy looks at leaves a result as it is."""
    policies("acme")
    author = Author.objects.using(PG).create(name="acme:Ann")
    book = Book.objects.using(PG).create(title="acme:book", author=author)
    titles = live(Book.objects.using(PG).values_list("title"))
    list(titles.all())
    outbox("")
    wait_for_hits(lambda: list(titles.all()))
    outbox(f"UPDATE testapp_book SET pages = 9 WHERE id = {book.pk}")
    with recording() as reads:
        list(titles.all())
    assert reads[0].is_hit


@on_postgresql
def test_policies_that_read_other_tables(policies: Callable[[str], None]) -> None:
    """A table that a policy reads is a table of the query: its changes show and hide rows."""
    send(
        "CREATE POLICY member ON testapp_category USING (EXISTS"
        " (SELECT FROM testapp_country k WHERE k.code = slug AND k.population > 5))",
        "ALTER TABLE testapp_category ENABLE ROW LEVEL SECURITY",
        "INSERT INTO testapp_category (name, slug) VALUES ('British', 'GB')",
    )
    try:
        forget_policies()
        Country.objects.using(PG).create(code="GB", name="Britain", population=1)
        from tests.testapp.models import Category

        def seen() -> int:
            return live(Category.objects.using(PG)).count()

        policies("acme")
        found = []
        for population in (9, 2, 7):
            found.append((seen(), seen()))
            Country.objects.using(PG).update(population=population)
        assert found == [(0, 0), (1, 1), (0, 0)]
        assert seen() == 1
    finally:
        send("DROP POLICY member ON testapp_category", "ALTER TABLE testapp_category DISABLE ROW LEVEL SECURITY")


@on_postgresql
def test_policies_that_call_functions(policies: Callable[[str], None], settings: Any) -> None:
    """What a function of the project looks at is not known, until the project says it."""
    send(
        "CREATE FUNCTION own_tag(text) RETURNS boolean LANGUAGE sql STABLE AS 'SELECT $1 <> ''red'''",
        "CREATE POLICY called ON testapp_tag USING (own_tag(name))",
    )
    try:
        forget_policies()
        policies("acme")
        explained = live(Tag.objects.using(PG)).live_explain()
        assert "own_tag()" in explained.reason
        settings.LIVE_CACHE_UNMANAGED_TABLES = {"testapp_tag": ["testapp_tag"]}
        assert live(Tag.objects.using(PG)).live_explain().cache_key
    finally:
        send("DROP POLICY called ON testapp_tag", "DROP FUNCTION own_tag")


@on_postgresql
def test_new_policy_makes_new_keys(policies: Callable[[str], None]) -> None:
    """Results under other policies are other results, for old and new processes side by side."""
    tenant_now.set("acme")

    def key() -> str:
        return str(live(Tag.objects.using(PG)).live_explain().cache_key)

    before = key()
    assert key() == before
    send("ALTER POLICY own ON testapp_tag USING (name = 'red')")
    forget_policies()
    assert key() != before


# -- backends that switch by themselves -------------------------------------------------------------------------------


@on_postgresql
def test_backend_that_sets_the_schema_itself(
    tenants: Callable[[str], None], settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """django-tenants sends SET search_path past Django: without LIVE_CACHE_TENANT nothing is cached."""
    connection: Any = connections[PG]
    connection.close()

    class Switching(type(connection)):  # type: ignore[misc]  # a class made at run time
        schema = "public"

        def _cursor(self, name: str | None = None) -> Any:
            cursor = super()._cursor(name)
            with closing(self.connection.cursor()) as own:
                own.execute(f"SET search_path = '{self.schema}', public")
            return cursor

    assert not any(message.id == "live_cache.W012" for message in wrong_settings())
    monkeypatch.setattr(connection, "__class__", Switching)
    assert not any(message.id == "live_cache.W012" for message in wrong_settings())
    settings.LIVE_CACHE_TENANT = None
    assert any(message.id == "live_cache.W012" for message in wrong_settings())
    expected = {}
    for tenant in (None, lambda using: connection.schema):
        settings.LIVE_CACHE_TENANT = tenant
        for connection.schema in (*TENANTS, *TENANTS):
            with recording() as reads:
                rows = [book.title for book in live(Book.objects.using(PG).order_by("pk"))]
            assert rows == list(Book.objects.using(PG).order_by("pk").values_list("title", flat=True))
            expected[connection.schema, tenant is None] = reads[0].is_hit
    assert expected == {(name, is_unset): not is_unset for name in TENANTS for is_unset in (True, False)}
    connection.close()


# -- keys -------------------------------------------------------------------------------------------------------------


@on_postgresql
def test_users_of_the_database_are_apart(alias: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Policies, "$user" and privileges look at who asks, so two users share no entries."""

    def key() -> str:
        return str(live(Tag.objects.using(PG)).live_explain().cache_key)

    own = key()
    for user in ("somebody", ""):
        monkeypatch.setitem(connections[PG].settings_dict, "USER", user)
        assert key() != own
    unnamed = key()
    monkeypatch.setenv("PGUSER", "somebody")
    assert key() != unnamed


STRANGE_NAMES = [
    "", " ", "a", "A", "a ", "a/b", "a/", "/a", "a:b", "a|b", "a\0", "a\0b", "{a}", "a*", "ä", "a\u0308", "\ud800",
    "\u202e", "None", "b''", "' OR 1=1 --", "a" * 100_000, "a" * 99_999 + "b",
]  # fmt: skip


@pytest.mark.parametrize("kind", ["process", "disk", "redis"])
@pytest.mark.django_db(transaction=True)
def test_strange_names(kind: str, settings: Any, tmp_path: Any, request: pytest.FixtureRequest) -> None:
    """Any text is the name of a tenant of its own, in every store."""
    redis_url = request.getfixturevalue("redis_url") if kind == "redis" else None
    settings.CACHES = caches_of(kind, tmp_path, redis_url)
    names = [STRANGE_NAMES[0]]
    settings.LIVE_CACHE_TENANT = lambda using: names[0]

    def look() -> list[Any]:
        return list(live(Tag.objects.order_by("pk").values_list("name")))

    Tag.objects.create(name="red")
    keys = set()
    for names[0] in STRANGE_NAMES:
        with recording() as reads:
            look()
        assert not reads[0].is_hit, names[0][:20]
        keys.add(reads[0].cache_key)
        wait_for_hits(look)
    assert len(keys) == len(STRANGE_NAMES)
    settings.LIVE_CACHE_TENANT = None
    assert live(Tag.objects.order_by("pk").values_list("name")).live_explain().cache_key not in keys


texts = st.text(st.sampled_from("a1:/|,'\"{}%\0=~@ ä\ud800"), max_size=4)
segments = st.lists(st.text("a1:|{}'é", min_size=1, max_size=3), min_size=1, max_size=3)
values = st.one_of(texts.filter(lambda text: "\ud800" not in text), st.integers(-2, 2), st.booleans())
Parts = tuple[str, str, str | None, Any, tuple[int, int]]
parts = st.tuples(
    texts,
    texts.filter(lambda text: "\ud800" not in text),
    st.one_of(st.none(), segments.map("/".join)),
    st.tuples(st.sampled_from(["title", "isbn", "title__in", "pk"]), values),
    st.tuples(st.integers(0, 3), st.integers(1, 3)),
)


@pytest.fixture
def by_variable(settings: Any) -> None:
    """Take the tenant from the variable. Set once: each change of a setting in a test is a layer over the others."""
    settings.LIVE_CACHE_TENANT = lambda using: tenant_now.get()


@pytest.mark.django_db
@pytest.mark.usefixtures("by_variable")
@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(parts, parts)
@example(("a", "b", None, ("title", "c"), (0, 1)), ("", "ab", "a", ("title", "c"), (1, 1)))
@example(("a", "", "a", ("title", 1), (0, 1)), ("a:", ":", "b", ("title", True), (0, 2)))
@example(("a", "", "a/b", ("title", "c"), (0, 1)), ("a", "", "a", ("title", "b/c"), (0, 1)))
def test_no_two_reads_have_one_key(one: Any, other: Any) -> None:
    """
    Tenant, KEY_PREFIX, the caller's key, values that users send, and pages: what differs in one has another key.

    Tried are all mixtures of two reads, so that some differ in one part alone.
    """
    from live_cache.assembly import _redis_prefix

    seen: dict[str, Any] = {}
    for tenant, prefix, key, (name, value), (start, size) in itertools.product(*zip(one, other, strict=True)):
        tenant_now.set(tenant)
        if name == "isbn":
            queryset = Book.objects.filter(data={"isbn": value})
        elif name == "title__in":
            queryset = Book.objects.filter(title__in=[value, "x"])
        elif name == "pk":
            queryset = Book.objects.filter(data__isbn=value)
        else:
            queryset = Book.objects.filter(title=value)
        plan = live(queryset.order_by("pk"), key)[start : start + size].live_explain()
        assert plan.cache_key, plan.reason
        full = f"{_redis_prefix(prefix, 'entry')}live/{plan.cache_key}/{plan.page_suffix}"
        # title=1 and title="1" ask the same of the database, and may have two keys or one.
        asked = (tenant, prefix, key, (name, type(value), value), (start, size))
        assert seen.setdefault(full, asked) == asked


@pytest.mark.django_db
def test_caller_keys_of_users(cache: str) -> None:
    """What a user may bring into cache_key= leads to no other entry, whatever it imitates, and is bounded."""
    books = Book.objects.order_by("pk")
    automatic = live(books).live_explain().cache_key
    own = live(books, "front").live_explain().cache_key
    assert automatic is not None
    assert own is not None
    forged = {
        live(books, key).live_explain().cache_key
        for key in ("testapp.book", automatic, own, f"{own}/page_1x20", "front/id", "live/front", "~keys", "FRONT")
    }
    assert len(forged | {automatic, own}) == 10
    for key in ("", "/", "a//b", "a/", "x" * 513, "é" * 257, "\ud800"):
        with pytest.raises(InvalidKeyError):
            list(live(books, key))
    list(live(books, "é" * 256)[5:9])
    assert get_assembly().metrics.snapshot().get("store_errors", 0) == 0


@on_postgresql
def test_local_settings_of_a_transaction(policies: Callable[[str], None]) -> None:
    """SET LOCAL in atomic(), the usual way with a pooler: rows of the tenant, inside and after."""
    policies("")
    for tenant in TENANTS:
        Tag.objects.using(PG).create(name=f"{tenant}:red")

    def names(tenant: str) -> list[str]:
        tenant_now.set(tenant)
        with transaction.atomic(using=PG):
            with connections[PG].cursor() as cursor:
                cursor.execute(f"SET LOCAL ROLE {ROLE}")
                cursor.execute("SELECT set_config('app.tenant', %s, true)", [tenant])
            return [tag.name for tag in live(Tag.objects.using(PG).order_by("pk"))]

    for _ in range(2):
        for tenant in TENANTS:
            assert names(tenant) == [f"{tenant}:red"]
