"""Triggers are made, kept and dropped: by the command, by a migration, and through changes of the schema."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import Any

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command
from django.db import connections, migrations, models
from django.db.migrations.state import ProjectState
from django.db.models.signals import post_migrate, pre_migrate

from live_cache import checks
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import drop_triggers, install_triggers, tables_without_triggers
from live_cache.outbox.listener import Listener
from live_cache.outbox.operations import InstallTriggers
from tests.outside import outside, write_outside

TABLES = {"testapp_book", "testapp_book_tags", "testapp_ebook"}
INSERT = "INSERT INTO testapp_country (code, name, population) VALUES ('{}', 'x', 1)"


def run(*arguments: str) -> str:
    """Return what the command prints."""
    out = io.StringIO()
    call_command("live_cache", *arguments, stdout=out)
    return out.getvalue()


@pytest.fixture
def clean(alias: str, cache: str) -> Iterator[str]:
    """Take away what the test has made."""
    yield alias
    drop_triggers(connections[alias])


def catalog(alias: str) -> list[str]:
    """Return the names of everything of ours that stands in the database."""
    queries = {
        "postgresql": "SELECT relname::text FROM pg_class WHERE relname LIKE 'live_cache%' UNION ALL"
        " SELECT tgname::text FROM pg_trigger WHERE tgname LIKE 'live_cache%' UNION ALL"
        " SELECT proname::text FROM pg_proc WHERE proname LIKE 'live_cache%'",
        "mariadb": "SELECT table_name FROM information_schema.tables WHERE table_schema = DATABASE()"
        " AND table_name LIKE 'live_cache%' UNION ALL SELECT trigger_name FROM information_schema.triggers"
        " WHERE trigger_schema = DATABASE() AND trigger_name LIKE 'live_cache%'",
        "default": "SELECT name FROM sqlite_master WHERE name LIKE 'live_cache%'",
    }
    with outside(alias) as connection:
        cursor = connection.cursor()
        cursor.execute(queries[alias])
        return [str(name) for (name,) in cursor.fetchall()]


def lines(alias: str) -> list[tuple[str, str, bool]]:
    """Return what stands in the outbox: table, kind, and whether rows are told. It is empty then."""
    connection = connections[alias]
    dialect = dialect_of(connection)
    found = dialect.read(connection, 100)
    if found:
        dialect.delete(connection, found)
    return [(line.table, line.kind, line.changes is not None) for line in found]


class TestCommand:
    """install_triggers: what it prints and does."""

    def test_models_and_what_belongs_to_them(self, clean: str) -> None:
        """The tables of parents and of many-to-many fields too; and dropping leaves nothing."""
        options = ["--database", clean, "--model", "testapp.Ebook"]
        report = json.loads(run("install_triggers", *options, "--format", "json"))
        assert sorted(TABLES) == report["tables"]
        assert sorted(TABLES) == dialect_of(connections[clean]).tables_with_triggers(connections[clean])
        assert "testapp_ebook" in run("install_triggers", *options, "--drop")
        assert catalog(clean) == []

    def test_twice_is_once(self, clean: str) -> None:
        """Triggers are replaced."""
        install_triggers(connections[clean], ["testapp_country"])
        made = catalog(clean)
        install_triggers(connections[clean], ["testapp_country"])
        assert sorted(made) == sorted(catalog(clean))
        write_outside(clean, INSERT.format("FR"))
        assert [("testapp_country", "insert", True)] == lines(clean)

    def test_dropping_some(self, clean: str) -> None:
        """Leaves the others, and the outbox."""
        install_triggers(connections[clean], ["testapp_country", "testapp_tag"])
        drop_triggers(connections[clean], ["testapp_tag"])
        assert ["testapp_country"] == dialect_of(connections[clean]).tables_with_triggers(connections[clean])
        write_outside(clean, INSERT.format("FR"))
        assert [("testapp_country", "insert", True)] == lines(clean)

    def test_dry_run(self, clean: str) -> None:
        """Prints SQL that does it, and does nothing."""
        options = ["--database", clean, "--model", "testapp.Country"]
        shown = run("install_triggers", *options, "--dry-run")
        assert "CREATE TABLE IF NOT EXISTS live_cache_outbox" in shown
        assert catalog(clean) == []
        if clean == "postgresql":
            with outside(clean) as connection:
                connection.execute(shown)
            write_outside(clean, INSERT.format("FR"))
            assert [("testapp_country", "insert", True)] == lines(clean)
        else:
            run("install_triggers", *options)
        made = catalog(clean)
        assert "DROP TRIGGER" in run("install_triggers", *options, "--dry-run", "--drop")
        assert made == catalog(clean)

    def test_every_model(self, clean: str) -> None:
        """Without --model."""
        run("install_triggers", "--database", clean)
        assert [] == tables_without_triggers(connections[clean])

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--model", "testapp.Nonsense"], "no model 'testapp.Nonsense'"),
            (["--database", "nonsense"], "no database 'nonsense'"),
        ],
    )
    def test_what_does_not_exist(self, arguments: list[str], message: str) -> None:
        """Is an error that names it."""
        with pytest.raises(CommandError, match=message):
            run("install_triggers", *arguments)

    def test_listening_once(self, clean: str) -> None:
        """Ticks what waits, and ends; without an outbox it says so."""
        with pytest.raises(CommandError, match="no outbox"):
            run("listen", "--database", clean, "--once")
        install_triggers(connections[clean], ["testapp_country"])
        write_outside(clean, INSERT.format("FR"))
        assert "Ticked 1 lines" in run("listen", "--database", clean, "--once")
        assert [] == lines(clean)

    def test_stats_and_check(self, clean: str) -> None:
        """Tell that nobody listens, what waits, and which tables have no triggers."""
        assert [] == _outboxes(clean)
        assert [] == checks.check_outboxes()
        install_triggers(connections[clean], ["testapp_country"])
        write_outside(clean, INSERT.format("FR"))
        (report,) = _outboxes(clean)
        assert (clean, False, 1, 1, None) == tuple(
            report[name] for name in ("database", "is_listened_to", "waiting", "tables", "error")
        )
        assert 0 <= report["oldest_s"] < 10
        assert "testapp_book" in report["missing"]
        assert "is_listened_to" in run("stats")
        assert ["live_cache.W010", "live_cache.W011"] == [message.id for message in checks.check_outboxes()]
        listener = Listener(clean)
        assert listener._take_turn()
        assert ["live_cache.W011"] == [message.id for message in checks.check_outboxes()]
        listener.close()


def _outboxes(alias: str) -> list[dict[str, Any]]:
    """Return what stats says; tests may not open the other databases."""
    found: list[dict[str, Any]] = json.loads(run("stats", "--format", "json"))["outboxes"]
    return [report for report in found if report["database"] == alias]


class TestMigrations:
    """The operation, and what is left after migrations of Django."""

    def test_the_operation(self, clean: str) -> None:
        """Forwards it installs, backwards it drops."""
        operation = InstallTriggers(["Ebook", "testapp.Country"], notifies=clean == "postgresql")
        state = ProjectState.from_apps(apps)
        connection = connections[clean]
        with connection.schema_editor() as editor:
            operation.database_forwards("testapp", editor, state, state)
        assert sorted({*TABLES, "testapp_country"}) == dialect_of(connection).tables_with_triggers(connection)
        assert dialect_of(connection).notifies(connection) == (clean == "postgresql")
        with connection.schema_editor() as editor:
            operation.database_backwards("testapp", editor, state, state)
        assert catalog(clean) == []

    def test_sqlmigrate(self, clean: str) -> None:
        """Shows the SQL."""
        state = ProjectState.from_apps(apps)
        with connections[clean].schema_editor(collect_sql=True) as editor:
            InstallTriggers(["Country"]).database_forwards("testapp", editor, state, state)
        assert any("CREATE TRIGGER" in sql for sql in editor.collected_sql)
        assert catalog(clean) == []

    def test_how_it_is_written_down(self) -> None:
        """As makemigrations and squashmigrations do."""
        from django.db.migrations.writer import OperationWriter

        text, imports = OperationWriter(InstallTriggers(["A", "b.C"], notifies=True)).serialize()
        assert {"import live_cache.outbox.operations"} == imports
        made = eval(text.rstrip().rstrip(","), {"live_cache": __import__("live_cache.outbox.operations")})
        assert (["A", "b.C"], True) == (made.models, made.notifies)

    def test_a_migration_that_changes_the_table(self, clean: str) -> None:
        """Finds no trigger in its way, and triggers are there afterwards, of the new columns."""
        connection = connections[clean]
        with connection.schema_editor() as editor:
            editor.execute("CREATE TABLE outbox_place (id integer PRIMARY KEY, a integer, b integer)", params=None)
        state = ProjectState()
        place = migrations.CreateModel(
            "Place",
            [("id", models.IntegerField(primary_key=True)), ("a", models.IntegerField()), ("b", models.IntegerField())],
            {"db_table": "outbox_place"},
        )
        place.state_forwards("outbox", state)
        after = state.clone()
        remove = migrations.RemoveField("Place", "b")
        remove.state_forwards("outbox", after)
        last = after.clone()
        add = migrations.AddField("Place", "c", models.IntegerField(null=True, unique=True))
        add.state_forwards("outbox", last)
        try:
            install_triggers(connection, ["outbox_place"])
            # Of an app without models, so that other receivers have nothing to do.
            app = apps.get_app_config("live_cache")
            told: dict[str, Any] = {"sender": app, "app_config": app, "using": clean}
            told["plan"] = [(migrations.Migration("0002_c", "outbox"), False)]
            pre_migrate.send(**told)
            with connection.schema_editor() as editor:
                remove.database_forwards("outbox", editor, state, after)
            with connection.schema_editor() as editor:
                add.database_forwards("outbox", editor, after, last)
            write_outside(clean, "INSERT INTO outbox_place (id, a, c) VALUES (1, 1, 1)")
            lines(clean)
            post_migrate.send(**told, verbosity=0, interactive=False)
            write_outside(clean, "UPDATE outbox_place SET c = 2")
            assert [("outbox_place", "update", True)] == lines(clean)
        finally:
            with connection.schema_editor() as editor:
                editor.execute("DROP TABLE outbox_place", params=None)
