"""
While two versions of a project run side by side, their keys differ (T33); the clocks do not: they are named by table.
"""

from __future__ import annotations

from typing import Any

import pytest

from live_cache import live, plan
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
