"""A replica that lags behind (T4): what was read from it is stored under no key, so nothing of it outlives the lag."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

from live_cache import live
from tests.test_queryset import queries_of
from tests.testapp.models import Author

pytestmark = pytest.mark.django_db(transaction=True)

REPLICA = "replica"


class Router:
    """Reads from the replica, writes to the primary."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Return the replica."""
        return REPLICA

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Return the primary."""
        return "default"

    def allow_relation(self, *args: Any, **hints: Any) -> bool:
        """Both hold the same rows."""
        return True


@pytest.fixture
def replicate(cache: str, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A copy of the primary under the alias "replica"; it catches up when this is called."""
    path = tmp_path / "replica.sqlite3"
    database = copy.deepcopy(connections["default"].settings_dict) | {"NAME": str(path)}
    connections.settings[REPLICA] = database

    def catch_up() -> None:
        connections["default"].ensure_connection()
        with sqlite3.connect(path) as target:
            connections["default"].connection.backup(target)
        target.close()

    catch_up()
    replica: Any = connections[REPLICA]
    replica.connect()
    replica.ensure_connection = lambda: None  # the test case would ask whether it knows the alias
    yield catch_up
    replica.close()
    del connections[REPLICA], connections.settings[REPLICA]


def names() -> list[str]:
    return list(live(Author.objects.order_by("pk")).values_list("name", flat=True))


@pytest.mark.parametrize("how", ["router", "mirror"])
def test_t4_replica_lag(replicate: Callable[[], None], settings: Any, how: str) -> None:
    """Read from a replica before and after it has caught up, and from the primary in between."""
    Author.objects.create(name="old")
    replicate()
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    if how == "mirror":
        settings.DATABASE_ROUTERS = [f"{__name__}.MirrorRouter"]
        connections[REPLICA].settings_dict["TEST"]["MIRROR"] = "default"
    reason = {"router": "write testapp.Author elsewhere", "mirror": "mirrors another"}[how]
    assert names() == ["old"]
    Author.objects.using("default").update(name="new")
    assert names() == ["old"]  # the replica's answer, as Django would give it
    primary = live(Author.objects.using("default").order_by("pk")).values_list("name", flat=True)
    assert list(primary.all()) == list(primary.all()) == ["new"]
    assert reason in live(Author.objects.order_by("pk")).live_explain().reason
    assert queries_of(REPLICA, names) == (["old"], 1)
    replicate()
    assert names() == ["new"]
    if how == "router":
        assert queries_of("default", lambda: list(primary.all())) == (["new"], 0)


class MirrorRouter(Router):
    """Says nothing of writes to whoever reads."""

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Return the replica, as a project without a router for writes would by ``using()``."""
        return REPLICA
