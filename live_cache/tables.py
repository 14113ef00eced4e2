"""Which tables belong to which models: what is known of a name that stands in SQL."""

from __future__ import annotations

from collections.abc import Mapping

from django.apps import apps
from django.db import models

from live_cache.sql import normalize_table

__all__ = ["models_of_tables"]

_models_by_table: dict[str, tuple[type[models.Model], ...]] = {}
_models_count = -1


def models_of_tables() -> Mapping[str, tuple[type[models.Model], ...]]:
    """Return the managed models by the name of their table, normalised; those made for many-to-many fields too."""
    global _models_by_table, _models_count
    all_models = apps.get_models(include_auto_created=True)
    if len(all_models) != _models_count:  # models are only ever added, by tests and by code that makes them on the fly
        tables: dict[str, tuple[type[models.Model], ...]] = {}
        for model in all_models:
            if model._meta.managed and not model._meta.proxy:
                name = normalize_table(model._meta.db_table)
                tables[name] = (*tables.get(name, ()), model)
        _models_by_table, _models_count = tables, len(all_models)
    return _models_by_table
