"""
Gives tables their triggers, and takes them away.

The statements go by Django's own cursor, and the SQL guard takes a CREATE TRIGGER for a write of every table: whatever
was written unseen before the triggers were there is ticked when they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeAlias

from django.apps import apps
from django.db import router, transaction

from live_cache.outbox.dialects import dialect_of

if TYPE_CHECKING:
    from django.db import models
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.outbox.dialect import Table

__all__ = ["drop_triggers", "install_triggers", "tables_of_models", "tables_without_triggers"]

Run: TypeAlias = Callable[[str], object]


def tables_of_models(
    connection: BaseDatabaseWrapper, chosen: Iterable[type[models.Model]] | None = None
) -> dict[str, str]:
    """
    Return the tables that hold rows of models, as db_table has them, each with the label of its model.

    Args:
        chosen: With the tables of their parents and of their many-to-many fields. None: every managed model that is
            migrated to this database.
    """
    if chosen is None:
        chosen = [model for model in apps.get_models(include_auto_created=True) if model._meta.managed]
    found: dict[str, str] = {}
    for model in chosen:
        for part in _parts(model):
            if part._meta.can_migrate(connection) and router.allow_migrate_model(connection.alias, part):
                found[part._meta.db_table] = part._meta.label
    return found


def install_triggers(
    connection: BaseDatabaseWrapper, tables: Iterable[str], *, notifies: bool = False, run: Run | None = None
) -> list[str]:
    """
    Make the outbox, and give *tables* their triggers in the place of those that they have. Return their names.

    Args:
        tables: As Meta.db_table has them.
        notifies: On PostgreSQL, wake the listener by NOTIFY. All commits of the server then pass one lock.
        run: Gets each statement in its place. The default sends it.

    Raises:
        ConfigurationError: One is not there, or is no table, or the database has no triggers that we know.
    """
    dialect = dialect_of(connection)
    described = [each for table in tables for each in dialect.describe(connection, table)]
    _run_together(connection, dialect.outbox_statements(), run)
    # One transaction for each: to make a trigger is to wait for those who write to the table.
    for table in _distinct(described):
        _run_together(connection, dialect.install_statements(connection, table, notifies=notifies), run)
    return sorted({table.name for table in described})


def drop_triggers(
    connection: BaseDatabaseWrapper,
    tables: Iterable[str] | None = None,
    *,
    keeps_outbox: bool = False,
    run: Run | None = None,
) -> list[str]:
    """
    Take the triggers from *tables*, and with the last one the outbox. Return the names of the tables.

    Args:
        tables: As Meta.db_table has them. None: all that have triggers.
        keeps_outbox: Leave it, with what waits there.
        run: See install_triggers().
    """
    dialect = dialect_of(connection)
    installed = dialect.tables_with_triggers(connection)
    described = [each for table in installed for each in dialect.describe(connection, table)]
    if tables is not None:
        chosen = {each.quoted for table in tables for each in dialect.describe(connection, table)}
        described = [table for table in described if table.quoted in chosen]
    dropped = list(_distinct(described))
    for table in dropped:
        _run_together(connection, dialect.drop_statements(connection, table), run)
    if not keeps_outbox and dialect.exists(connection) and {table.name for table in dropped} >= set(installed):
        _run_together(connection, dialect.drop_outbox_statements(connection), run)
    return sorted({table.name for table in dropped} & set(installed))


def tables_without_triggers(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the tables of models that are in the database and have no triggers, where others have."""
    installed = set(dialect_of(connection).tables_with_triggers(connection))
    there = set(connection.introspection.table_names())
    return sorted(table for table in tables_of_models(connection) if table in there and table not in installed)


def _parts(model: type[models.Model]) -> Iterator[type[models.Model]]:
    """Yield what holds rows of *model*: itself, its parents, and the tables of many-to-many fields without a model."""
    for each in (model, *model._meta.get_parent_list()):
        if not each._meta.proxy:
            yield each
        for field in each._meta.local_many_to_many:
            through: Any = field.remote_field.through
            if through._meta.auto_created:
                yield through


def _distinct(tables: Iterable[Table]) -> Iterable[Table]:
    return {table.quoted: table for table in tables}.values()


def _run_together(connection: BaseDatabaseWrapper, statements: list[str], run: Run | None) -> None:
    """Run *statements* in one transaction, where the database can."""
    if run is not None:
        for statement in statements:
            run(statement)
        return
    is_own = dialect_of(connection).is_schema_transactional and not connection.in_atomic_block
    with transaction.atomic(using=connection.alias) if is_own else nullcontext(), connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
