"""
Tables that the database itself changes when rows of another one are deleted.

Since Django 6.1 a relation may leave its ``on_delete`` to the database (DB_CASCADE, DB_SET_NULL, DB_SET_DEFAULT): no
statement names the tables that change. They are derived from the models. What a table that Django does not know, or
DDL that is not the models', does by itself is out of reach (docs/explanation/limits.md).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from django.apps import apps
from django.db.models import deletion

from live_cache.sql import normalize_table

if TYPE_CHECKING:
    from django.db.models import Model

__all__ = ["tables_changed_by_delete"]

_DatabaseOnDelete: type[Any] | None = getattr(deletion, "DatabaseOnDelete", None)  # Django 6.1 and later
_Edges = dict[str, list[tuple[str, bool]]]

_memo: list[tuple[list[type[Model]], _Edges]] = []


def tables_changed_by_delete(tables: Iterable[str]) -> frozenset[str]:
    """Return what the database changes by itself when rows of *tables* are deleted, at any depth. Names normalised."""
    edges = _edges()
    if not edges:
        return frozenset()
    found: set[str] = set()
    to_visit = list(tables)
    visited: set[str] = set()
    while to_visit:
        table = to_visit.pop()
        if table in visited:
            continue
        visited.add(table)
        for child, is_deleted in edges.get(table, ()):
            found.add(child)
            if is_deleted:
                to_visit.append(child)
    return frozenset(found)


def _edges() -> _Edges:
    """Return, for each table, the tables whose rows refer to it, and whether these rows are deleted too."""
    if _DatabaseOnDelete is None or not apps.models_ready:
        return {}
    models = apps.get_models(include_auto_created=True)  # Django keeps this list, and makes a new one for new models
    memo = _memo[0] if _memo else None
    if memo is not None and memo[0] is models:
        return memo[1]
    edges: _Edges = {}
    for model in models:
        for field in model._meta.local_fields:
            relation = field.remote_field
            action = getattr(relation, "on_delete", None)
            if relation is None or not isinstance(action, _DatabaseOnDelete):
                continue
            parent = normalize_table(relation.model._meta.db_table)
            is_deleted = action is getattr(deletion, "DB_CASCADE", None)
            edges.setdefault(parent, []).append((normalize_table(model._meta.db_table), is_deleted))
    _memo[:] = [(models, edges)]
    return edges
