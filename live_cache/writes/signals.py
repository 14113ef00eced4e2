"""
Signal handlers that invalidate by prefix on writes.

The prefix ``app_label.model`` covers every automatic cache key of a model, and invalidating it is one tick of the
table's clock. Nearly all writes are ticked by the SQL guard already, which sees what signals do not (update(), bulk
calls, raw SQL). The handlers are for models whose writes never pass a cursor of Django: a save() that is overridden to
write elsewhere, or a backend of another kind.

post_delete is received only where the guard sees no SQL, since a receiver makes Django load every row that a
QuerySet.delete() or a cascade could have deleted with one statement (Collector.can_fast_delete, Django 5.2 to 6.1).
"""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save

from live_cache.writes.sql import normalize_table
from live_cache.writes.transactions import ConnectionState, state_of

__all__ = ["connect", "connect_deletes", "tables_of"]

_DISPATCH_UID = "live_cache.writes.signals"


def tables_of(model: type[Model]) -> frozenset[str]:
    """Return the tables that hold the rows of *model*: its own and those of its parents, normalised."""
    models = {model, *model._meta.get_parent_list()}
    return frozenset(normalize_table(parent._meta.db_table) for parent in models)


def connect() -> None:
    """Receive the signals of every model."""
    pre_save.connect(_before_save, dispatch_uid=_DISPATCH_UID)
    post_save.connect(_after_write, dispatch_uid=_DISPATCH_UID)
    m2m_changed.connect(_after_m2m_change, dispatch_uid=_DISPATCH_UID)


def connect_deletes(model: type[Model]) -> None:
    """
    Receive post_delete of *model*, for a model whose deletes never pass a cursor of Django.

    Call it in AppConfig.ready(). Django then loads the rows before it deletes them.
    """
    post_delete.connect(_after_write, sender=model, dispatch_uid=_DISPATCH_UID)


def _before_save(sender: type[Model], using: str, **kwargs: Any) -> None:
    state_of(connections[using]).recently_written.difference_update(tables_of(sender))


def _after_write(sender: type[Model], using: str, **kwargs: Any) -> None:
    _tick_if_unseen(state_of(connections[using]), tables_of(sender))


def _after_m2m_change(sender: type[Model], using: str | None, action: str, **kwargs: Any) -> None:
    if using is None:
        return
    state = state_of(connections[using])
    tables = tables_of(sender)
    if action.startswith("pre_"):
        state.recently_written.difference_update(tables)
    else:
        _tick_if_unseen(state, tables)


def _tick_if_unseen(state: ConnectionState, tables: frozenset[str]) -> None:
    # With update_fields a save writes only some of the tables of a child model, so one that was seen is enough.
    if tables.isdisjoint(state.recently_written):
        state.tick_now(tables)
