"""Why was this a miss? ReadRecord.dropped_by, live_explain() and the counters name the write, on every ledger."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connection, transaction

from live_cache import invalidate, live, recording
from live_cache.assembly import get_assembly
from live_cache.changes import MAX_ROWS, RowChange, encode_record
from live_cache.exceptions import StoreUnavailableError
from live_cache.ledger.clocks import LOG_BYTES, ROWS_SLOT
from live_cache.metrics import Metrics
from live_cache.names import clock_of, database_name
from live_cache.read_records import ReadRecord, count_hit, count_miss
from live_cache.shapes.causes import DroppedBy
from live_cache.stores.base import Store
from tests.cache_kinds import caches_of, wait_for_hits
from tests.testapp.models import Author, Book

pytestmark = pytest.mark.django_db(transaction=True)

TABLE = "testapp_book"


def cheap() -> Any:
    """Books below ten, of which titles and prices are shown."""
    return live(Book.objects.filter(price__lt=10).order_by("pk").values_list("pk", "title", "price"))


def read(queryset: Any = None) -> ReadRecord:
    """Read live and return the record."""
    with recording() as reads:
        list(cheap() if queryset is None else queryset.all())
    return reads[-1]


@pytest.fixture
def books(cache_kind: str, monkeypatch: pytest.MonkeyPatch) -> list[Book]:
    """Three cheap books and a dear one, and an entry of the cheap ones in every tier."""
    # Else writes are told by table until it is known that somebody reads the new tables.
    monkeypatch.setattr("live_cache.ledger.redis_memory.WATCHED_S", 0.0)
    author = Author.objects.create(name="Ann")
    made = [Book.objects.create(title=f"Book {n}", author=author, price=Decimal(n + 1), pages=n) for n in range(3)]
    made.append(Book.objects.create(title="Dear", author=author, price=Decimal(90)))
    wait_for_hits(lambda: list(cheap()))
    return made


def book_clock() -> str:
    """Return the clock of the books."""
    return clock_of(database_name(connection), TABLE)


def entry_key(queryset: Any) -> str:
    """Return the key of the entry of *queryset*."""
    explanation = queryset.live_explain()
    return f"live/{explanation.cache_key}/{explanation.page_suffix}"


def states(queryset: Any) -> list[tuple[str, DroppedBy | None]]:
    """Return what each tier holds, as live_explain() says."""
    return [(tier.state, tier.dropped_by) for tier in queryset.live_explain().tiers]


def is_consistent() -> bool:
    """Return whether the counters add up, with at least one hit and one miss."""
    counters = get_assembly().metrics.snapshot()
    hits, misses = (
        sum(n for name, n in counters.items() if name.startswith(f"{kind}.")) for kind in ("hits", "misses")
    )
    return (
        min(hits, misses) > 0
        and (hits, misses) == (counters["hits"], counters["misses"])
        and hits + misses == counters["lookups"]
    )


def update(books: list[Book]) -> None:
    Book.objects.filter(pk=books[0].pk).update(title="Other")


def save(books: list[Book]) -> None:
    books[1].price = Decimal(7)
    books[1].save()


def delete(books: list[Book]) -> None:
    Book.objects.filter(pk=books[2].pk).delete()


def insert(books: list[Book]) -> None:
    Book.objects.create(pk=4711, title="New", author=books[0].author, price=Decimal(2))


def move_in(books: list[Book]) -> None:
    Book.objects.filter(pk=books[3].pk).update(price=Decimal(5))


def move_out(books: list[Book]) -> None:
    Book.objects.filter(pk=books[2].pk).update(price=Decimal(95))


def bulk(books: list[Book]) -> None:
    author = books[0].author
    Book.objects.bulk_create([Book(title=f"Bulk {n}", author=author, price=Decimal(2)) for n in range(MAX_ROWS + 1)])


def upsert(books: list[Book]) -> None:
    again = Book(pk=books[0].pk, title="Again", author=books[0].author, price=Decimal(2))
    Book.objects.bulk_create([again], update_conflicts=True, unique_fields=["pk"], update_fields=["price"])


def several(books: list[Book]) -> None:
    with transaction.atomic():
        Book.objects.filter(pk=books[3].pk).update(title="Still dear")
        Book.objects.filter(pk=books[1].pk).update(title="Second")


def invalidate_later(books: list[Book]) -> None:
    with transaction.atomic():
        invalidate(books[0])


def raw(books: list[Book]) -> None:
    with connection.cursor() as cursor:
        cursor.execute("UPDATE testapp_book SET pages = (SELECT 3) WHERE price < 50 OR EXISTS (SELECT 1)")


Expectation = Callable[[list[Book]], DroppedBy]
WRITES: dict[str, tuple[Callable[[list[Book]], None], Expectation]] = {
    "update": (update, lambda books: DroppedBy("row", TABLE, "update", ("title",), (books[0].pk,))),
    "save": (save, lambda books: DroppedBy("row", TABLE, "update", ("price",), (books[1].pk,))),
    "delete": (delete, lambda books: DroppedBy("row", TABLE, "delete", None, (books[2].pk,))),
    "insert": (insert, lambda books: DroppedBy("bucket", TABLE, "insert", None, (4711,))),
    "move in": (move_in, lambda books: DroppedBy("bucket", TABLE, "update", ("price",), (books[3].pk,))),
    "move out": (move_out, lambda books: DroppedBy("row", TABLE, "update", ("price",), (books[2].pk,))),
    "several": (several, lambda books: DroppedBy("row", TABLE, "update", ("title",), (books[1].pk,))),
    "bulk": (bulk, lambda books: DroppedBy("table", TABLE, note=f"more than {MAX_ROWS} rows")),
    "upsert": (upsert, lambda books: DroppedBy("table", TABLE, note="an INSERT that may meet conflicts")),
    "raw": (raw, lambda books: DroppedBy("table", TABLE, note="a statement")),
    "invalidate": (lambda books: discard(invalidate(Book)), lambda books: DroppedBy("table", TABLE, note="invalidate")),
    "later": (invalidate_later, lambda books: DroppedBy("table", TABLE, note="invalidate(testapp.Book)")),
    "key": (lambda books: cheap().invalidate(), lambda books: DroppedBy("key", note="invalidate() of the queryset")),
}


def discard(value: object) -> None:
    """Return nothing."""


def is_as_expected(found: DroppedBy | None, expected: DroppedBy) -> bool:
    """Return whether all but the end of the note is equal, and it was a moment ago."""
    assert found is not None
    assert found.age_s is not None
    return (
        replace(found, at_ns=None, note="") == replace(expected, note="")
        and found.note.startswith(expected.note)
        and bool(found.note) == bool(expected.note)
        and 0 <= found.age_s < 60
    )


@pytest.mark.parametrize("name", WRITES)
def test_a_miss_names_the_write_that_dropped_its_entry(name: str, books: list[Book]) -> None:
    """With its table, columns, kind and time; live_explain() says the same of each tier, and changes nothing."""
    write, expect = WRITES[name]
    expected = expect(books)
    counters = get_assembly().metrics.snapshot()
    write(books)
    for _ in range(2):
        for state, dropped_by in states(cheap()):
            assert state == "stale"
            assert is_as_expected(dropped_by, expected), dropped_by
    text = str(cheap().live_explain())
    assert f"stale ({expected.reason}), " in text
    assert all(word in text for word in (expected.table, expected.kind, *(expected.columns or ())))
    found = read()
    assert found.reason == expected.reason
    assert is_as_expected(found.dropped_by, expected), found.dropped_by
    after = get_assembly().metrics.snapshot()
    assert after[f"misses.{expected.reason}"] == counters.get(f"misses.{expected.reason}", 0) + 1
    assert after["lookups"] == counters["lookups"] + 1
    assert read().is_hit
    assert is_consistent()
    assert [state for state, _ in states(cheap())] == ["fresh"] * len(get_assembly().tiers)


def test_a_write_that_could_not_change_the_result_leaves_the_entry_fresh(books: list[Book]) -> None:
    """For live_explain() as for the reader: both ask the same witness."""
    Book.objects.filter(pk=books[3].pk).update(price=Decimal(95))
    Book.objects.filter(pk=books[0].pk).update(pages=1000)
    assert [state for state, _ in states(cheap())] == ["fresh"] * len(get_assembly().tiers)
    assert read().is_hit


def test_a_log_that_does_not_reach_back_is_unknown(books: list[Book]) -> None:
    """The records of two megabytes and more have pushed each other out."""
    clock, record = book_clock(), encode_record((), note="x" * 30_000)
    for _ in range(LOG_BYTES // 30_000 + 5):
        get_assembly().ledger.tick({clock: {ROWS_SLOT}}, records={clock: record})
    expected = DroppedBy("unknown", TABLE, note="the log of the table does not reach back to the entry")
    assert states(cheap()) == [("stale", expected)] * len(get_assembly().tiers)
    found = read()
    assert (found.reason, found.dropped_by) == ("unknown", expected)
    assert is_consistent()


def test_a_lost_clock_is_unknown(books: list[Book]) -> None:
    """Its epoch is another one."""
    get_assembly().ledger.reset()
    expected = DroppedBy("unknown", TABLE, note="the clock that the entry was filled under is gone")
    assert states(cheap()) == [("stale", expected)] * len(get_assembly().tiers)
    found = read()
    assert (found.reason, found.dropped_by) == ("unknown", expected)
    assert is_consistent()


def test_a_write_that_is_being_committed_holds_the_entry(books: list[Book]) -> None:
    """The record of its intent says what it is; a write that could not change the result holds nothing."""
    clock, ledger = book_clock(), get_assembly().ledger

    def declare(column: str) -> str:
        change = RowChange("update", (books[0].pk,), frozenset({column}), None, None)
        return ledger.declare({clock: {ROWS_SLOT}}, fence="", records={clock: encode_record([change])})

    harmless = declare("pages")
    assert [state for state, _ in states(cheap())] == ["fresh"] * len(get_assembly().tiers)
    ledger.retract((clock,), harmless)
    declare("title")
    expected = DroppedBy("held", TABLE, "update", ("title",), (books[0].pk,))
    for state, dropped_by in states(cheap()):
        assert state == "held"
        assert is_as_expected(dropped_by, expected)
    found = read()
    assert found.reason == "held"
    assert is_as_expected(found.dropped_by, expected)
    assert is_consistent()


def test_clear_names_itself_where_an_entry_is_left(books: list[Book]) -> None:
    """clear() drops what it reaches; in the memory of another process the entry is stale, and the log says why."""
    wait_for_hits(lambda: list(cheap()))
    key, tiers = entry_key(cheap()), get_assembly().tiers
    kept = [tier.get(key) for tier in tiers]
    caches["default"].clear()
    assert [state for state, _ in states(cheap())] == ["absent"] * len(tiers)
    for tier, data in zip(tiers, kept, strict=True):
        assert isinstance(data, bytes)
        tier.put(key, data)
    expected = DroppedBy("table", TABLE, note="clear()")
    for state, dropped_by in states(cheap()):
        assert state == "stale"
        assert is_as_expected(dropped_by, expected)
    assert is_as_expected(read().dropped_by, expected)


def test_a_key_of_the_caller_names_its_invalidation(books: list[Book]) -> None:
    """Also where a key above it was invalidated."""
    named = live(Book.objects.order_by("pk"), "front/page")
    wait_for_hits(lambda: list(named.all()))
    invalidate("front")
    expected = DroppedBy("key", note="invalidate('front')")
    for state, dropped_by in states(named):
        assert state == "stale"
        assert is_as_expected(dropped_by, expected)
    found = read(named)
    assert found.reason == "key"
    assert is_as_expected(found.dropped_by, expected)
    assert get_assembly().metrics.snapshot()["misses.key"] == 1


def test_an_entry_that_is_gone_was_evicted_and_one_that_never_was_is_cold(books: list[Book]) -> None:
    """As far as this process remembers; whose time was over is no eviction."""
    store, known = get_assembly().store, get_assembly().known_entries
    key = entry_key(cheap())
    store.delete(key)
    assert (read().reason, read().is_hit) == ("evicted", True)
    known.note(key, 1)
    store.delete(key)
    assert (read().reason, read().is_hit) == ("expired", True)
    known.take(key)
    store.delete(key)
    assert (read().reason, read().is_hit) == ("cold", True)
    list(cheap().fresh())
    store.delete(key)
    read()
    store.delete(key)
    assert read().reason == "evicted"  # it was stored, and never read
    counters = get_assembly().metrics.snapshot()
    assert [counters[f"misses.{reason}"] for reason in ("evicted", "expired", "refreshed")] == [3, 1, 1]
    assert is_consistent()


def test_a_hit_makes_an_entry_known_that_another_process_has_stored(books: list[Book]) -> None:
    """To be seen is enough."""
    key = entry_key(cheap())
    get_assembly().known_entries.take(key)
    assert read().is_hit
    get_assembly().store.delete(key)
    assert read().reason == "evicted"


def test_a_tier_that_does_not_answer_is_no_eviction(books: list[Book], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in it nobody knows."""

    def fail(self: Store, key: str) -> Any:
        raise StoreUnavailableError("gone")

    for tier in get_assembly().tiers:
        for name in ("get", "get_with_expiry", "exists"):
            monkeypatch.setattr(type(tier), name, fail)
    key = entry_key(cheap())
    get_assembly().known_entries.note(key, None)
    reasons = {read().reason}
    monkeypatch.undo()
    # From Redis, entry and clocks come in one answer.
    assert reasons == ({""} if get_assembly().ledger.name == "redis" else {"unanswered"})
    assert is_consistent()


def test_outside_of_recording_only_what_costs_nothing_is_known(books: list[Book]) -> None:
    """The reason is the same."""
    invalidate(Book)
    queryset = cheap()
    list(queryset)
    assert queryset.last_read.reason == "table"
    assert queryset.last_read.dropped_by == DroppedBy("table", TABLE)
    Book.objects.filter(pk=books[0].pk).update(title="Other")
    queryset = cheap()
    list(queryset)
    assert queryset.last_read.dropped_by.columns == ("title",)


def test_a_ledger_that_is_gone_is_a_reason(private_redis: Any, settings: Any) -> None:
    """Lookups, hits and misses still add up; live_explain() does not raise."""
    settings.CACHES = caches_of("memory+redis", Path(), private_redis.url)
    Author.objects.create(name="Ann")
    authors = live(Author.objects.order_by("pk"))
    wait_for_hits(lambda: list(authors.all()))
    private_redis.stop()
    assert read(authors).reason == "the ledger did not answer"
    assert authors.live_explain().tiers[0].state == "unknown"
    assert get_assembly().metrics.snapshot()["misses.ledger"] == 1
    assert is_consistent()


def test_no_snapshot_shows_a_part_of_a_read() -> None:
    """While threads count, at every moment hits and misses are lookups."""
    metrics = Metrics()

    def work() -> None:
        for _ in range(20_000):
            count_hit(metrics, "memory")
            count_miss(metrics, "row")

    interval_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(3) as pool:
            running = [pool.submit(work) for _ in range(3)]
            while not all(future.done() for future in running):
                found = metrics.snapshot()
                kinds = found.get("hits.memory", 0), found.get("misses.row", 0)
                assert (found.get("hits", 0), found.get("misses", 0), found.get("lookups", 0)) == (*kinds, sum(kinds))
    finally:
        sys.setswitchinterval(interval_s)
    assert metrics.snapshot()["lookups"] == 120_000
