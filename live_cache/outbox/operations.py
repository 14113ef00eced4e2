"""The outbox in migrations: an operation that gives tables their triggers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.db.migrations.operations.base import Operation

from live_cache.outbox.installing import drop_triggers, install_triggers, tables_of_models

if TYPE_CHECKING:
    from django.db.backends.base.schema import BaseDatabaseSchemaEditor
    from django.db.migrations.state import ProjectState

__all__ = ["InstallTriggers"]


class InstallTriggers(Operation):
    """
    Let writers outside of Django be seen: triggers for the tables of models, those of their parents and many-to-many
    fields included, and the outbox that they write to.

        operations = [InstallTriggers(["Product", "Category", "auth.User"])]

    Backwards it takes the triggers away, and the outbox with the last one. Put it into a migration of its own, after
    those that make the tables.

    Args:
        models: Names of models, of this app unless they have another one's label before them.
        notifies: On PostgreSQL, wake the listener by NOTIFY.
    """

    reduces_to_sql = True
    reversible = True

    def __init__(self, models: Sequence[str], notifies: bool = False) -> None:
        # Not by keyword alone: what writes migrations down passes such arguments by.
        self.models = list(models)
        self.notifies = notifies

    def state_forwards(self, app_label: str, state: ProjectState) -> None:
        """Do nothing: models stay as they are."""

    def database_forwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        """Make the triggers."""
        tables = self._tables(app_label, schema_editor, to_state)
        install_triggers(schema_editor.connection, tables, notifies=self.notifies, run=_runner(schema_editor))

    def database_backwards(
        self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, from_state: ProjectState, to_state: ProjectState
    ) -> None:
        """Drop the triggers."""
        tables = self._tables(app_label, schema_editor, from_state)
        drop_triggers(schema_editor.connection, tables, run=_runner(schema_editor))

    def describe(self) -> str:
        """Return what ``migrate --plan`` shows."""
        return f"Install triggers for {', '.join(self.models)}"

    @property
    def migration_name_fragment(self) -> str:
        """Return what a migration may be called by."""
        return "install_triggers"

    def deconstruct(self) -> tuple[str, list[Any], dict[str, Any]]:
        """Return how to write the operation down again."""
        return type(self).__name__, [], {"models": self.models} | ({"notifies": True} if self.notifies else {})

    def _tables(self, app_label: str, schema_editor: BaseDatabaseSchemaEditor, state: ProjectState) -> list[str]:
        names = [name if "." in name else f"{app_label}.{name}" for name in self.models]
        models = [state.apps.get_model(name) for name in names]
        return list(tables_of_models(schema_editor.connection, models))


def _runner(schema_editor: BaseDatabaseSchemaEditor) -> Any:
    return lambda statement: schema_editor.execute(statement, params=None)
