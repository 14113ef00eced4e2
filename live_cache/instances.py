"""
Rows to what the queryset yields: model instances, dicts, tuples or single values.

Django's own iterables do the work, over a compiler that hands out the rows that were read; so every iterable of Django
behaves as it does over the database. Plain models have a fast path, which sets the attributes as Model.from_db() and
Model.__init__() (read in Django 5.2.19 and 6.1.3) would set them, for models that replace neither.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final
from weakref import WeakKeyDictionary

from django.db import models
from django.db.models.base import ModelState
from django.db.models.fields.files import FileDescriptor
from django.db.models.fields.related_descriptors import ForeignKeyDeferredAttribute
from django.db.models.query import (
    FlatValuesListIterable,
    ModelIterable,
    NamedValuesListIterable,
    ValuesIterable,
    ValuesListIterable,
)
from django.db.models.query_utils import DeferredAttribute
from django.db.models.signals import post_init, pre_init

from live_cache.loop import is_on_loop, leave_loop

if TYPE_CHECKING:
    from live_cache.plan import Layout

__all__ = ["KNOWN_ITERABLES", "build"]

KNOWN_ITERABLES: Final = frozenset(
    {ModelIterable, ValuesIterable, ValuesListIterable, NamedValuesListIterable, FlatValuesListIterable}
)


class _RowsCompiler:
    """Stands where Django's iterables expect an SQLCompiler, and yields rows that are already there."""

    has_extra_select = False

    def __init__(self, layout: Layout, rows: Sequence[tuple[Any, ...]]) -> None:
        self.select = layout.select
        self.klass_info = layout.klass_info
        self.annotation_col_map = layout.annotation_col_map
        self._rows = rows

    def execute_sql(self, *args: Any, **kwargs: Any) -> Sequence[tuple[Any, ...]]:
        return self._rows

    def results_iter(self, *args: Any, **kwargs: Any) -> Iterator[tuple[Any, ...]]:
        return iter(self._rows)


def build(queryset: Any, layout: Layout, rows: Sequence[tuple[Any, ...]]) -> list[Any]:
    """
    Return what *queryset* yields for *rows*.

    Args:
        queryset: A LiveQuerySet whose plan has this layout.
        rows: Tuples of Python values in the order of the layout's SELECT.
    """
    if queryset._iterable_class is ModelIterable:
        model = layout.klass_info["model"]
        is_plain = _is_plain_model(model) and _are_free(model, layout.annotation_col_map or ())
        if is_plain and _is_plain_read(queryset, layout):
            return _build_plain(queryset, layout, rows)
        if is_on_loop() and not (is_plain and _are_plain(layout.klass_info)):
            leave_loop()  # what a project does in from_db(), __init__() or a receiver may wait for anything
    elif queryset._iterable_class is FlatValuesListIterable:
        return [row[0] for row in rows]
    source = object.__new__(type(queryset))
    source.__dict__.update(queryset.__dict__)
    query = queryset.query.clone()
    compiler = _RowsCompiler(layout, rows)
    query.get_compiler = lambda *args, **kwargs: compiler
    source._query = query
    return list(queryset._iterable_class(source))


def _is_plain_read(queryset: Any, layout: Layout) -> bool:
    """Return whether nothing but the row itself goes into an instance."""
    if layout.klass_info.get("related_klass_infos") or queryset._known_related_objects:
        return False
    fetch_mode = getattr(queryset, "_fetch_mode", None)  # since Django 6.1
    return fetch_mode is None or not fetch_mode.track_peers


def _are_free(model: type[models.Model], names: Iterable[str]) -> bool:
    """Return whether *model* has no attributes of these *names*: setting that of a property does what it likes."""
    return not any(name in vars(base) for name in names for base in model.__mro__)


def _build_plain(queryset: Any, layout: Layout, rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    model = layout.klass_info["model"]
    select_fields = layout.klass_info["select_fields"]
    start, stop = select_fields[0], select_fields[-1] + 1
    names = [item[0].target.attname for item in layout.select[start:stop]]
    if layout.annotation_col_map:
        positions = [*range(start, stop), *layout.annotation_col_map.values()]
        names += layout.annotation_col_map
        rows = [tuple([row[position] for position in positions]) for row in rows]
    database = queryset.db
    fetch_mode = getattr(queryset, "_fetch_mode", None)
    new = model.__new__
    instances = []
    for row in rows:
        instance = new(model)
        state = ModelState()
        state.db = database
        state.adding = False
        if fetch_mode is not None:
            state.fetch_mode = fetch_mode
        attributes = instance.__dict__
        attributes["_state"] = state
        # A row may be longer than the names, never shorter: extra columns serve ORDER BY.
        attributes.update(zip(names, row, strict=False))
        instances.append(instance)
    return instances


def _are_plain(klass_info: Any) -> bool:
    """Return whether the models of a row, and of the rows joined to it, are plain."""
    if not _is_plain_model(klass_info["model"]):
        return False
    return all(_are_plain(related) for related in klass_info.get("related_klass_infos", ()))


_PLAIN_DESCRIPTORS: Final = frozenset({DeferredAttribute, ForeignKeyDeferredAttribute, FileDescriptor})
_plain_models: WeakKeyDictionary[type[models.Model], bool] = WeakKeyDictionary()


def _is_plain_model(model: type[models.Model]) -> bool:
    """Return whether instances of *model* are made by nothing but setting the attributes of its fields."""
    is_plain = _plain_models.get(model)
    if is_plain is None:
        is_plain = _plain_models[model] = (
            model.__init__ is models.Model.__init__
            and inspect.getattr_static(model, "from_db") is inspect.getattr_static(models.Model, "from_db")
            and model.__new__ is object.__new__
            and model.__setattr__ is object.__setattr__
            and all(
                type(inspect.getattr_static(model, field.attname, None)) in _PLAIN_DESCRIPTORS
                for field in model._meta.concrete_fields
            )
        )
    # Receivers may be connected at any time.
    return is_plain and not pre_init.has_listeners(model) and not post_init.has_listeners(model)
