"""Replicas (T4): entries of the primary serve them, and what they answer themselves is kept only with proof."""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.db import connections, transaction
from django.db.models import Model

from live_cache import live, replicas
from live_cache.verification import verifying
from tests import server_programs
from tests.redis_groups import wait_for
from tests.test_queryset import queries_of
from tests.test_verification import plant
from tests.testapp.models import Author, Country

pytestmark = pytest.mark.django_db(transaction=True)

PRIMARY, REPLICA = "primary", "replica"


class Router:
    """Reads from the replica, writes to the primary."""

    primary = "default"

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Return the replica."""
        return REPLICA

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Return the primary."""
        return self.primary

    def allow_relation(self, *args: Any, **hints: Any) -> bool:
        """Both hold the same rows."""
        return True


def _alias(stack: ExitStack, alias: str, database: dict[str, Any]) -> None:
    """Add a database alias for one test."""
    connections.settings[alias] = database
    connection: Any = connections[alias]
    connection.connect()
    connection.ensure_connection = lambda: None  # the test case would ask whether it knows the alias

    def remove() -> None:
        connection.close()
        del connections[alias], connections.settings[alias]

    stack.callback(remove)


@pytest.fixture
def replicate(cache: str, tmp_path: Path) -> Iterator[Callable[[], None]]:
    """A copy of the SQLite primary under the alias "replica"; it catches up when this is called."""
    path = tmp_path / "replica.sqlite3"
    database = copy.deepcopy(connections["default"].settings_dict) | {"NAME": str(path)}

    def catch_up() -> None:
        connections["default"].ensure_connection()
        with sqlite3.connect(path) as target:
            connections["default"].connection.backup(target)
        target.close()

    catch_up()
    with ExitStack() as stack:
        _alias(stack, REPLICA, database)
        yield catch_up


def names(alias: str | None = None) -> list[str]:
    authors = Author.objects.order_by("pk")
    return list(live(authors if alias is None else authors.using(alias)).values_list("name", flat=True))


# -- what any replica does --------------------------------------------------------------------------------------------


def test_t4_a_replica_that_nobody_has_named(replicate: Callable[[], None], settings: Any) -> None:
    """An alias that the routers do not write to is not cached: its clocks would be ticked under another name."""
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    Author.objects.create(name="old")
    replicate()
    assert names() == ["old"]
    Author.objects.using("default").update(name="new")
    assert names() == ["old"]  # the replica's answer, as Django would give it
    assert queries_of(REPLICA, names) == (["old"], 1)
    assert "LIVE_CACHE_REPLICAS" in live(Author.objects.order_by("pk")).live_explain().reason


@pytest.mark.parametrize("how", ["setting", "mirror"])
def test_t4_entries_of_the_primary_serve_its_replica(replicate: Callable[[], None], settings: Any, how: str) -> None:
    """The replica lags behind: what the primary has cached is served for it, and what it answers is not kept."""
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    if how == "setting":
        settings.LIVE_CACHE_REPLICAS = {REPLICA: "default"}
    else:
        connections[REPLICA].settings_dict["TEST"]["MIRROR"] = "default"
    Author.objects.create(name="old")
    replicate()
    for _ in range(2):
        assert queries_of(REPLICA, names) == (["old"], 1)
    Author.objects.using("default").update(name="new")
    assert names() == ["old"]
    assert queries_of("default", lambda: names("default")) == (["new"], 1), "A row of the replica was stored."
    assert queries_of(REPLICA, names) == (["new"], 0)
    Author.objects.using("default").update(name="newest")
    assert names() == ["old"], "An entry was served that the primary had dropped."
    authors = live(Author.objects.order_by("pk"))
    assert [author.name for author in authors] == ["old"]
    assert authors.last_read.reason == "the replica 'replica' may be behind its primary"


def test_a_router_that_writes_elsewhere(replicate: Callable[[], None], settings: Any) -> None:
    """A replica of another database than the one that the model is written to is no replica for it."""
    settings.DATABASE_ROUTERS = [f"{__name__}.Router"]
    settings.LIVE_CACHE_REPLICAS = {REPLICA: "mariadb"}
    assert "write testapp.Author to 'default'" in live(Author.objects.order_by("pk")).live_explain().reason


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["replica"], "is no mapping"),
        ({"replica": 1}, "is no mapping"),
        ({"default": "default"}, "itself"),
        ({"postgresql": "nowhere"}, "'nowhere'"),
        ({"nowhere": "default"}, "'nowhere'"),
        ({"postgresql": "mariadb", "mariadb": "default"}, "replica itself"),
        ({"postgresql": "default"}, "sqlite"),
    ],
)
def test_wrong_replicas_are_named(settings: Any, value: object, message: str) -> None:
    """A wrong LIVE_CACHE_REPLICAS is an error of the system checks."""
    settings.LIVE_CACHE_REPLICAS = value
    (found,) = [error for error in run_checks() if error.id == "live_cache.E019"]
    assert message in found.msg


# -- PostgreSQL, with streaming replication ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[server_programs.Started, server_programs.Started]]:
    """A PostgreSQL and a replica of it."""
    programs = next(server_programs.installed("postgresql"), None)
    if programs is None:
        pytest.skip("POSTGRESQL IS MISSING: there are no programs to start one")
    primary = programs.start()
    try:
        replica = server_programs.start_postgresql_replica(primary)
        try:
            yield primary, replica
        finally:
            replica.stop(kill=True)
    finally:
        primary.stop(kill=True)


@pytest.fixture
def streaming(
    servers: tuple[server_programs.Started, server_programs.Started], cache: str, settings: Any
) -> Iterator[None]:
    """The aliases "primary" and "replica", with one author."""
    settings.LIVE_CACHE_REPLICAS = {REPLICA: PRIMARY}
    template = copy.deepcopy(connections["postgresql"].settings_dict)
    with ExitStack() as stack:
        for alias, server in zip((PRIMARY, REPLICA), servers, strict=True):
            place = {"NAME": "postgres", "HOST": "127.0.0.1", "PORT": str(server.port), "USER": server.user}
            _alias(stack, alias, template | place)
        for model in (Country, Author):
            with connections[PRIMARY].schema_editor() as editor:
                editor.create_model(model)
            stack.callback(_drop, model)
        Author.objects.using(PRIMARY).create(name="old")
        _wait_for_replica()
        yield
        _pause(is_paused=False)


def _drop(model: type[Model]) -> None:
    with connections[PRIMARY].schema_editor() as editor:
        editor.delete_model(model)


def _wait_for_replica() -> None:
    wait_for(lambda: replicas.has_caught_up(connections[REPLICA], connections[PRIMARY]))


def _pause(*, is_paused: bool) -> None:
    """Hold the replay of the replica, or let it go on."""
    with connections[REPLICA].cursor() as cursor:
        cursor.execute(f"SELECT pg_wal_replay_{'pause' if is_paused else 'resume'}()")
    if is_paused:
        wait_for(lambda: _pause_state() == "paused")


def _pause_state() -> str:
    with connections[REPLICA].cursor() as cursor:
        cursor.execute("SELECT pg_get_wal_replay_pause_state()")
        return str(cursor.fetchone()[0])


def test_a_replica_that_has_caught_up_fills(streaming: None) -> None:
    """What it answers is stored, and serves the primary too."""
    assert queries_of(REPLICA, lambda: names(REPLICA)) == (["old"], 1)
    assert queries_of(REPLICA, lambda: names(REPLICA)) == (["old"], 0)
    assert queries_of(PRIMARY, lambda: names(PRIMARY)) == (["old"], 0)


def test_a_replica_that_is_held_does_not_fill(streaming: None) -> None:
    """Its rows are old, and are stored under no key; the primary's serve it meanwhile; then it goes on."""
    _pause(is_paused=True)
    Author.objects.using(PRIMARY).update(name="new")
    for _ in range(2):
        assert queries_of(REPLICA, lambda: names(REPLICA)) == (["old"], 1)
    assert queries_of(PRIMARY, lambda: names(PRIMARY)) == (["new"], 1)
    assert queries_of(REPLICA, lambda: names(REPLICA)) == (["new"], 0)
    Author.objects.using(PRIMARY).update(name="newest")
    assert names(REPLICA) == ["old"]
    _pause(is_paused=False)
    _wait_for_replica()
    assert queries_of(REPLICA, lambda: names(REPLICA)) == (["newest"], 1)
    assert queries_of(PRIMARY, lambda: names(PRIMARY)) == (["newest"], 0)


def test_hits_by_a_replica_are_verified(streaming: None) -> None:
    """Where it has caught up its answer counts; while it is held it says nothing of an entry that is newer."""
    assert names(PRIMARY) == ["old"]
    with verifying() as found:
        assert names(REPLICA) == ["old"]
    _pause(is_paused=True)
    Author.objects.using(PRIMARY).update(name="new")
    assert names(PRIMARY) == ["new"]
    with verifying() as found_while_held:
        assert names(REPLICA) == ["new"]
    _pause(is_paused=False)
    _wait_for_replica()
    planted = live(Author.objects.using(PRIMARY).order_by("pk")).values_list("name", flat=True)
    plant(planted, lambda rows: [("planted",)])
    with verifying() as found_planted:
        assert names(REPLICA) == ["new"]
    verdicts = [one.verdict for one in (*found, *found_while_held, *found_planted)]
    assert verdicts == ["equal", "undecided", "different"]


def test_without_the_proof_it_would_be_stale(streaming: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a replica is taken at its word, what it has missed is served to everybody."""
    monkeypatch.setattr("live_cache.reader.has_caught_up", lambda replica, primary: True)
    _pause(is_paused=True)
    Author.objects.using(PRIMARY).update(name="new")
    assert names(REPLICA) == ["old"]
    assert names(PRIMARY) == ["old"]


def test_a_commit_that_is_not_flushed_counts(streaming: None) -> None:
    """With synchronous_commit off COMMIT returns before the log is flushed; the replica is behind it all the same."""
    with connections[PRIMARY].cursor() as cursor:
        cursor.execute("SET synchronous_commit = off")
    for number in range(30):
        Author.objects.using(PRIMARY).update(name=f"new {number}")
        answer = names(REPLICA)
        assert names(PRIMARY) == [f"new {number}"], f"The replica has stored {answer}."


def test_a_commit_between_the_proof_and_the_rows(streaming: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is ticked after the stamp, whether the replica shows it or not."""
    proof = replicas.has_caught_up

    def prove_and_write(replica: Any, primary: Any) -> bool:
        is_proven = proof(replica, primary)
        monkeypatch.undo()
        _pause(is_paused=True)
        Author.objects.using(PRIMARY).update(name="new")
        return is_proven

    monkeypatch.setattr("live_cache.reader.has_caught_up", prove_and_write)
    assert names(REPLICA) == ["old"]
    assert names(PRIMARY) == ["new"]


def test_a_transaction_that_is_open_on_the_primary(streaming: None) -> None:
    """What it has written is on its way to the replica, and nobody sees it; nor does it hide what is committed."""
    with transaction.atomic(using=PRIMARY):
        Author.objects.using(PRIMARY).update(name="never")
        assert names(REPLICA) == ["old"]
        transaction.set_rollback(True, using=PRIMARY)
    assert names(PRIMARY) == names(REPLICA) == ["old"]


def test_who_is_no_replica_has_not_caught_up(streaming: None) -> None:
    """Two primaries, the two in the wrong order, two systems, and a server that is gone."""
    primary, replica = connections[PRIMARY], connections[REPLICA]
    assert replicas.has_caught_up(replica, primary)
    assert not replicas.has_caught_up(primary, primary)
    assert not replicas.has_caught_up(primary, replica)
    assert not replicas.has_caught_up(replica, connections["postgresql"])
    assert not replicas.has_caught_up(replica, connections["default"])
    replica.connection.close()
    assert not replicas.has_caught_up(replica, primary)
    replica.connect()
