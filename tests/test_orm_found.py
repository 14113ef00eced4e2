"""What Django's own tests, run with every queryset live (tests/orm_suite.py), have found. One test for each bug."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest
from django.apps import apps
from django.db import connection, models, transaction
from django.db.migrations.state import ProjectState
from django.db.models import Count, OuterRef
from django.db.models.lookups import Exact
from django.db.models.sql.where import WhereNode
from django.test import override_settings

from live_cache import live, recording
from tests.testapp.models import Author, Book, Seat, Tag, Ticket


class CountingRouter:
    """Reads from the default database, and counts how often it is asked."""

    calls: ClassVar[list[type[models.Model]]] = []

    def db_for_read(self, model: type[models.Model], **hints: Any) -> str:
        """Return the alias to read from."""
        self.calls.append(model)
        return "default"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    "read",
    [list, lambda qs: qs.count(), lambda qs: qs.exists(), lambda qs: qs.aggregate(n=Count("pk"))],
    ids=["rows", "count", "exists", "aggregate"],
)
def test_routers_are_asked_once_for_an_evaluation(cache: str, read: Any) -> None:
    """A router that picks a replica at random gives the rows and their key the same one."""
    Tag.objects.create(name="red")
    with override_settings(DATABASE_ROUTERS=["tests.test_orm_found.CountingRouter"]):
        for _ in range(2):
            queryset = live(Tag.objects.all())
            CountingRouter.calls.clear()
            read(queryset)
            assert CountingRouter.calls == [Tag]
            assert queryset._db is None


@pytest.mark.django_db(transaction=True)
def test_the_models_of_a_migration_are_other_models(cache: str) -> None:
    """A historical model has the label of an installed one, maybe other columns, and instances of its own class."""
    Tag.objects.create(name="red")
    assert type(live(Tag.objects.all())[0]) is Tag
    historical = ProjectState.from_apps(apps).apps.get_model("testapp", "Tag")
    queryset = live(historical.objects.all())
    assert type(queryset[0]) is historical
    assert "another model" in queryset.live_explain().reason
    inner = live(Book.objects.filter(tags__in=historical.objects.values("pk")))
    assert "another model" in inner.live_explain().reason


def test_the_order_of_a_union_may_need_a_column_of_its_own(alias: str, cache: str) -> None:
    """Compiling such a query adds the column to the query, so the plan compiles a copy that shares nothing."""
    for name in ("b", "a", "c"):
        Tag.objects.using(alias).create(name=name)
    tags = Tag.objects.using(alias)
    for _ in range(2):
        union = tags.filter(name__lt="b").union(tags.filter(name__gte="b"))
        assert list(live(union.order_by("-pk").values_list("name", flat=True))) == ["c", "a", "b"]
        assert list(live(union.values_list("name", flat=True).order_by("pk"))) == ["b", "a", "c"]


@pytest.mark.django_db(transaction=True)
def test_a_model_may_have_no_ordering_at_all(cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Meta.ordering may be None."""
    monkeypatch.setattr(Tag._meta, "ordering", None)
    Tag.objects.create(name="red")
    assert [tag.name for tag in live(Tag.objects.all())] == ["red"]


def test_a_relation_may_add_a_condition_to_its_join(alias: str, cache: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """get_extra_restriction() of a foreign object may depend on anything, such as the current language."""
    wanted = "Ann"

    def restriction(alias: str, related_alias: str | None) -> WhereNode:
        return WhereNode([Exact(Author._meta.get_field("name").get_col(alias), wanted)])

    monkeypatch.setattr(Book._meta.get_field("author"), "get_extra_restriction", restriction)
    for name in ("Ann", "Ben"):
        author = Author.objects.using(alias).create(name=name)
        Book.objects.using(alias).create(title=f"by {name}", author=author)
    books = Book.objects.using(alias).filter(author__name__gt="").order_by("pk")
    assert [book.title for book in books.live()] == ["by Ann"]
    wanted = "Ben"
    assert [book.title for book in books.live()] == ["by Ben"]


def test_what_is_not_asked_for_need_not_compile(alias: str, cache: str) -> None:
    """count() drops an ORDER BY, so one that Django cannot compile is no error; for the rows it is Django's error."""
    Tag.objects.using(alias).create(name="red")
    tags = live(Tag.objects.using(alias).order_by(OuterRef("pk")))
    assert tags.count() == 1
    with pytest.raises(ValueError, match="outer query"):
        list(tags)


def test_instances_stand_for_their_keys_of_many_columns(alias: str, cache: str) -> None:
    """A lookup over several columns holds the instance itself until it is compiled."""
    seats = [Seat.objects.using(alias).create(hall="A", number=number) for number in (1, 2, 3)]
    for seat in seats:
        Ticket.objects.using(alias).create(seat=seat)
    tickets = Ticket.objects.using(alias).order_by("number").values_list("number", flat=True)
    for is_hit in (False, True):
        with recording() as records:
            assert [list(live(tickets.filter(seat=seat))) for seat in seats] == [[1], [2], [3]]
            assert list(live(tickets.filter(seat__in=seats[1:]))) == [2, 3]
            assert list(live(tickets.exclude(seat=seats[1]))) == [1, 3]
        assert [record.is_hit for record in records] == [is_hit] * 5
    with pytest.raises(ValueError, match="must be saved"):
        list(live(tickets.filter(seat=Seat(hall="B"))))


def test_what_a_query_remembers_of_itself_is_no_part_of_it(alias: str, cache: str) -> None:
    """A Query is an expression too, which keeps what it was asked, such as whether it contains an aggregate."""
    author = Author.objects.using(alias).create(name="Ann")
    Book.objects.using(alias).create(title="One", author=author)
    for is_hit in (False, True):
        inner = Author.objects.using(alias).filter(name="Ann").values("pk")
        assert not is_hit or inner.query.contains_aggregate is False
        with recording() as records:
            assert Book.objects.using(alias).filter(author__in=inner).live().count() == 1
        assert [record.is_hit for record in records] == [is_hit]


@pytest.mark.django_db
def test_a_statement_that_may_write_everything_inside_a_testcase(cache: str) -> None:
    """All tables are ticked when its block is over; listing them sends SQL, which must not begin that again."""
    Tag.objects.create(name="red")
    assert live(Tag.objects.all()).count() == 1
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("CREATE TRIGGER idle AFTER INSERT ON testapp_tag BEGIN SELECT 1; END")
    with recording() as records:
        assert [live(Tag.objects.all()).count() for _ in range(2)] == [1, 1]
    assert [record.is_hit for record in records] == [False, True]
