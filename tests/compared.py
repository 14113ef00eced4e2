"""Rows and results as values that can be compared, with their Python types."""

from __future__ import annotations

from typing import Any

from django.db import models

__all__ = ["comparable", "state_of_row"]


def state_of_row(row: Any) -> Any:
    """A row with its types, to compare: model instances by their attributes."""
    if isinstance(row, models.Model):
        attributes = {name: value for name, value in row.__dict__.items() if name != "_state"}
        related = {name: state_of_row(item) for name, item in row._state.fields_cache.items() if item is not None}
        return type(row), {k: (type(v), v) for k, v in attributes.items()}, related, row._state.db, row._state.adding
    if isinstance(row, dict):
        return {key: (type(value), value) for key, value in row.items()}
    if isinstance(row, tuple):
        return type(row).__name__, tuple((type(value), value) for value in row)
    return type(row), row


def comparable(value: Any) -> Any:
    """A result of any kind, with the types of all that is in it, to compare. What was prefetched is left out."""
    if isinstance(value, list | tuple):
        return type(value), [comparable(item) for item in value]
    if isinstance(value, models.Model):
        kind, attributes, _, alias, adding = state_of_row(value)
        return kind, {k: v for k, v in attributes.items() if k != "_prefetched_objects_cache"}, alias, adding
    return state_of_row(value)
