"""Models that a test defines, with their tables, until it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.apps import apps
from django.db import connections, models

__all__ = ["made_models"]


@contextmanager
def made_models(alias: str) -> Iterator[Callable[..., None]]:
    """
    Yield a function that creates the tables of the models given to it.

    At the end the tables are dropped, the last first, and testapp forgets every model that the block has defined.
    """
    before = dict(apps.all_models["testapp"])
    made: list[type[models.Model]] = []

    def create_tables(*wanted: Any) -> None:
        with connections[alias].schema_editor() as editor:
            for model in wanted:
                editor.create_model(model)
                made.append(model)

    try:
        yield create_tables
    finally:
        with connections[alias].schema_editor() as editor:
            for model in reversed(made):
                editor.delete_model(model)
        apps.all_models["testapp"].clear()
        apps.all_models["testapp"].update(before)
        apps.clear_cache()
