"""
While two versions of a project run side by side, their keys differ (T33); the clocks do not: they are named by table.
"""

from __future__ import annotations

from decimal import Decimal
from functools import partial
from json import JSONDecoder
from typing import Any

import pytest
from django.apps.registry import Apps
from django.db import connections, models

from live_cache import live, plan
from live_cache.schema_digest import connection_bytes, model_bytes
from tests.cache_kinds import wait_for_hits
from tests.testapp.models import Author, Book

SHARED = pytest.mark.parametrize("cache_kind", ["host", "disk", "memory+disk", "redis", "memory+redis"], indirect=True)


def books(alias: str) -> Any:
    return live(Book.objects.using(alias).order_by("pk")).values_list("title", flat=True)


def read(alias: str) -> list[str]:
    """Read until it is a hit."""
    wait_for_hits(lambda: list(books(alias)))
    return list(books(alias))


def as_older_version(alias: str, title: str | None) -> list[Any]:
    """Run in another process, whose code makes other keys: read, or write before."""
    plan._PLAN_VERSION = 0  # type: ignore[misc]  # the older version
    first = list(books(alias))
    if title is not None:
        Book.objects.using(alias).update(title=title)
    return [books(alias).live_explain().cache_key, first, read(alias)]


@SHARED
def test_t33_versions_with_other_keys(alias: str, cache_kind: str, run_process: Any, settings: Any) -> None:
    """A write by one version is seen by the other at once, though the other's entry has another key."""
    settings.LIVE_CACHE_LEASE_S = 1.0  # of the hold of a new clock, on a server where others write all the time
    Book.objects.using(alias).create(title="one", author=Author.objects.using(alias).create(name="Ann"))
    assert read(alias) == ["one"]
    key, *found = run_process(as_older_version, alias, None).value
    assert key != books(alias).live_explain().cache_key
    assert found == [["one"], ["one"]]
    Book.objects.using(alias).update(title="two")
    assert read(alias) == ["two"]
    assert run_process(as_older_version, alias, None).value[1:] == [["two"], ["two"]]
    assert run_process(as_older_version, alias, "three").value[1:] == [["two"], ["three"]]
    assert read(alias) == ["three"]


def as_version_with_four_places(alias: str) -> list[str]:
    """Run in another process, whose code gives a price four decimal places."""
    Book._meta.get_field("price").decimal_places = 4  # type: ignore[attr-defined]  # a DecimalField
    return [str(price) for price in live(Book.objects.using(alias)).values_list("price", flat=True)]


@SHARED
@pytest.mark.parametrize("alias", ["default"], indirect=True)
def test_versions_that_read_other_values(alias: str, cache_kind: str, run_process: Any, settings: Any) -> None:
    """SQLite makes a Decimal of what a field says: an entry of other code is none of ours."""
    settings.LIVE_CACHE_LEASE_S = 1.0
    author = Author.objects.using(alias).create(name="Ann")
    Book.objects.using(alias).create(title="one", price=Decimal("1.5"), author=author)
    prices = Book.objects.using(alias).values_list("price", flat=True)
    wait_for_hits(lambda: list(live(prices.all())))
    assert run_process(as_version_with_four_places, alias).value == ["1.5000"]
    assert [str(price) for price in live(prices.all())] == ["1.50"]


class Celsius(models.FloatField):
    """A field of a project, with an option that its values depend on."""

    def __init__(self, *args: Any, scale: Any = 1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.scale = scale

    def deconstruct(self) -> Any:
        name, path, arguments, options = super().deconstruct()
        return name, path, arguments, {**options, "scale": self.scale}


class Undescribed(models.FloatField):
    """A field of a project that cannot be told to a migration."""

    def deconstruct(self) -> Any:
        raise NotImplementedError


def bytes_of(field: models.Field[Any, Any]) -> bytes:
    """Return what a model of one field more has in its keys."""
    meta = type("Meta", (), {"app_label": "testapp", "apps": Apps()})
    return model_bytes(type("Thing", (models.Model,), {"__module__": __name__, "Meta": meta, "x": field}))


def first(value: Any) -> Any:
    return value


def second(value: Any) -> Any:
    return value


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (
            lambda: models.DecimalField(max_digits=9, decimal_places=2),
            models.DecimalField(max_digits=9, decimal_places=3),
        ),
        (
            lambda: models.DecimalField(max_digits=9, decimal_places=2),
            models.DecimalField(max_digits=8, decimal_places=2),
        ),
        (lambda: models.JSONField(), models.JSONField(decoder=JSONDecoder)),
        (lambda: models.CharField(max_length=5), models.CharField(max_length=5, db_collation="C")),
        (lambda: Celsius(), Celsius(scale=2)),
        (lambda: Celsius(scale=2), Celsius(scale="2")),
        (lambda: Celsius(scale=[1, {"a": 1}]), Celsius(scale=[1, {"a": 2}])),
        (lambda: Celsius(scale=models.F("a")), Celsius(scale=models.F("b"))),
        (lambda: Celsius(scale=Decimal(1)), Celsius(scale=Decimal("1.0"))),
        (lambda: Celsius(scale=first), Celsius(scale=second)),
        (lambda: Undescribed(), models.FloatField()),
    ],
)
def test_options_of_fields_part_keys(ours: Any, theirs: Any) -> None:
    """Where a field makes other values, keys differ; made twice, the same field has the same key."""
    assert bytes_of(ours()) != bytes_of(theirs)
    assert bytes_of(ours()) == bytes_of(ours())


def test_fields_inside_fields_part_keys() -> None:
    """An array is one of its base field."""
    array = pytest.importorskip("django.contrib.postgres.fields", reason="PSYCOPG IS MISSING").ArrayField
    two = bytes_of(array(models.DecimalField(max_digits=9, decimal_places=2)))
    assert two != bytes_of(array(models.DecimalField(max_digits=9, decimal_places=3)))
    assert two == bytes_of(array(models.DecimalField(max_digits=9, decimal_places=2)))


@pytest.mark.parametrize(
    "field",
    [
        models.IntegerField(default=object),
        models.IntegerField(verbose_name="number", help_text="x"),
        models.IntegerField(choices=[(1, "one")], validators=[first]),
    ],
)
def test_what_forms_look_at_parts_no_keys(field: Any) -> None:
    """A default, a label or a validator changes no value that is read."""
    assert bytes_of(field) == bytes_of(models.IntegerField())


def test_objects_of_a_process_are_named_not_addressed(run_process: Any) -> None:
    """Two processes of one version have the same keys, whatever objects the options of a field are."""
    assert run_process(text_of_a_field_with_objects).value == text_of_a_field_with_objects()


def text_of_a_field_with_objects() -> str:
    return bytes_of(Celsius(scale=[object(), partial(first, 1), {"f": first}])).decode()


def test_what_a_connection_begins_with_parts_keys(monkeypatch: Any) -> None:
    """An init_command may change what every query answers; a timeout does not."""
    connection = connections["default"]
    options = connection.settings_dict["OPTIONS"]
    before = connection_bytes(connection)
    monkeypatch.setitem(options, "timeout", 5)
    assert connection_bytes(connection) == before
    monkeypatch.setitem(options, "init_command", "PRAGMA case_sensitive_like = ON")
    assert connection_bytes(connection) != before
