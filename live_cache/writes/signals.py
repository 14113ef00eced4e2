"""
Signal handlers that invalidate by prefix on writes.

The prefix ``app_label.model`` covers every automatic cache key of a model, and invalidating it is one tick of the
table's clock. Nearly all writes are ticked by the SQL guard already, which sees what signals do not (update(), bulk
calls, raw SQL). The handlers are for models whose writes never pass a cursor of Django: a save() that is overridden to
write elsewhere, or a backend of another kind.

Only pre_save and post_save are received of every model. A receiver of post_delete makes Django load every row that one
statement could have deleted (Collector.can_fast_delete), one of m2m_changed makes it look up what is there before each
add() (read in Django 5.2 to 6.1), and the guard sees the SQL of both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from django.db import connections
from django.db.models import Model
from django.db.models.signals import m2m_changed, post_delete, post_save, pre_save

from live_cache.sql import normalize_table
from live_cache.writes.recent import has_written, recently_written
from live_cache.writes.transactions import state_of

__all__ = ["connect", "connect_unseen", "tables_of"]

_DISPATCH_UID = "live_cache.writes.signals"


@lru_cache(maxsize=1024)
def tables_of(model: type[Model]) -> frozenset[str]:
    """Return the tables that hold the rows of *model*: its own and those of its parents, normalised."""
    models = {model, *model._meta.get_parent_list()}
    return frozenset(normalize_table(parent._meta.db_table) for parent in models)


def connect() -> None:
    """Receive the signals of every model."""
    pre_save.connect(_before_save, dispatch_uid=_DISPATCH_UID)
    post_save.connect(_after_write, dispatch_uid=_DISPATCH_UID)


def connect_unseen(model: type[Model]) -> None:
    """
    Receive post_delete of *model* and m2m_changed of its many-to-many fields too.

    For a model whose writes never pass a cursor of Django. Call it in AppConfig.ready(). Django then loads the rows
    that it deletes, and those that it adds to a relation, before it does so.
    """
    post_delete.connect(_after_write, sender=model, dispatch_uid=_DISPATCH_UID)
    for field in model._meta.local_many_to_many:
        m2m_changed.connect(_after_m2m_change, sender=field.remote_field.through, dispatch_uid=_DISPATCH_UID)


def _before_save(sender: type[Model], using: str, **kwargs: Any) -> None:
    if not has_written(using):
        state_of(connections[using])  # else the rows of an INSERT that comes before all else could not be told
    recently_written(using).difference_update(tables_of(sender))


def _after_write(sender: type[Model], using: str, **kwargs: Any) -> None:
    tables = tables_of(sender)
    # With update_fields a save writes only some of the tables of a child model, so one that was seen is enough.
    if tables.isdisjoint(recently_written(using)):
        state_of(connections[using]).tick_now(tables, note="told by a signal")


def _after_m2m_change(sender: type[Model], using: str | None, action: str, **kwargs: Any) -> None:
    if using is None:
        return
    tables = tables_of(sender)
    if action.startswith("pre_"):
        recently_written(using).difference_update(tables)
    elif tables.isdisjoint(recently_written(using)):
        state_of(connections[using]).tick_now(tables, note="told by a signal")
