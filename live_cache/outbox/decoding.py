"""
The JSON of the triggers -> the changes of rows that a record tells.

A value goes the way of one that the driver gives, through the converters of its field, so that an image holds what the
ORM would show. The *kind* of a column is what the database said of its type when the triggers were made; where it is
not what the field of today expects, the value stays out of the image.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import date, datetime
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.utils.dateparse import parse_date, parse_datetime

from live_cache.changes import Image, RowChange
from live_cache.writes.images import Columns, columns_of, key_columns

if TYPE_CHECKING:
    from django.db import models
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["decode_changes"]

_KIND_OF: Final = {
    **dict.fromkeys(("SmallAutoField", "AutoField", "BigAutoField"), "i"),
    **dict.fromkeys(("SmallIntegerField", "IntegerField", "BigIntegerField"), "i"),
    **dict.fromkeys(("PositiveSmallIntegerField", "PositiveIntegerField", "PositiveBigIntegerField"), "i"),
    **dict.fromkeys(("CharField", "TextField", "SlugField", "URLField", "EmailField"), "s"),
    "BooleanField": "b",
    "UUIDField": "u",
    "DateField": "d",
    "DateTimeField": "t",
    "DecimalField": "n",
}
"""What a column has to hold, by the internal type of its field, where the database has a type for each."""
_STANDS_FOR: Final = {"sqlite": {"u": "s"}, "mysql": {"b": "i", "u": "s"}}
"""What a column may hold in the place of it."""
_UNTOLD: Final = object()


def decode_changes(
    changes: str | bytes, kind: str, model: type[models.Model], connection: BaseDatabaseWrapper
) -> list[RowChange]:
    """
    Return what ``changes`` of one line of the outbox tells.

    Args:
        kind: insert, update or delete.

    Raises:
        Exception: It is not what a trigger writes; of any class.
    """
    columns = _columns(model, connection)
    rows = json.loads(changes)
    result = []
    for before, after, changed in rows:
        old, new = (None if image is None else _image(image, columns, model, connection) for image in (before, after))
        key = _key(model, old if old is not None else new)
        if kind == "insert" and old is None and new is not None:
            result.append(RowChange("insert", key, None, None, new))
        elif kind == "delete" and new is None and old is not None:
            result.append(RowChange("delete", key, None, old, None))
        elif kind == "update" and old is not None and new is not None:
            names = frozenset([_exact(columns, name) for name in changed if name is not None])
            result.append(RowChange("update", key, names or None, old, new))
        else:
            raise ValueError(f"A row of an {kind} has other images than it should.")
    if connection.vendor == "sqlite" and kind != "update":
        # There a writer enforces foreign keys only if he has said so; else he may delete a row that others refer to.
        # From changes of more than one kind readers infer nothing by foreign keys, and this one is none.
        change = result[0]
        image = change.after if change.before is None else change.before
        result.append(RowChange("update", change.key, frozenset(), image, image))
    return result


def _columns(model: type[models.Model], connection: BaseDatabaseWrapper) -> Columns:
    return columns_of(model, connection, tuple(str(field.column) for field in model._meta.local_concrete_fields))


def _key(model: type[models.Model], image: Image | None) -> tuple[Any, ...] | None:
    names = key_columns(model)
    return tuple([image[name] for name in names]) if image is not None and image.keys() >= set(names) else None


def _exact(columns: Columns, name: str) -> str:
    """Return the name of a column as its field has it: but on PostgreSQL, case is of no account."""
    return name if name in columns.names else {known.lower(): known for known in columns.names}.get(name.lower(), name)


def _image(
    given: Any, columns: Columns, model: type[models.Model], connection: BaseDatabaseWrapper
) -> Mapping[str, Any]:
    if isinstance(given, list):  # of a table with many columns
        given = {name: value for part in given for name, value in part.items()}
    expected = _kinds(model, connection.vendor)
    stands_for = _STANDS_FOR.get(connection.vendor, {})
    parse = _PARSERS[connection.vendor]
    known: dict[str, Any] = {}
    for name, value in given.items():
        kind, column = name[0], _exact(columns, name[2:])
        wanted = expected.get(column)
        if wanted is None or (kind != wanted and kind != stands_for.get(wanted)):
            continue
        raw = None if value is None else _parsed(parse.get(kind), value, connection)
        if raw is not _UNTOLD:
            known[column] = raw
    row = [known.get(name) for name in columns.names]
    return columns.image(row, connection, known)


def _parsed(
    parse: Callable[[Any, BaseDatabaseWrapper], Any] | None, value: Any, connection: BaseDatabaseWrapper
) -> Any:
    if parse is None:
        return _UNTOLD
    try:
        raw = parse(value, connection)
    except (ValueError, TypeError, ArithmeticError):
        return _UNTOLD
    return _UNTOLD if raw is None else raw


@lru_cache(maxsize=512)
def _kinds(model: type[models.Model], vendor: str) -> dict[str, str]:
    """Return the kind that each column has to have for its values to be told."""
    found = {}
    for field in model._meta.local_concrete_fields:
        target: Any = field
        while getattr(target, "target_field", target) is not target:
            target = target.target_field
        kind = _KIND_OF.get(target.get_internal_type())
        if kind is not None:
            found[str(field.column)] = kind
    return found


def _whole(value: Any, _: BaseDatabaseWrapper) -> int | None:
    return value if type(value) is int else None


def _boolean(value: Any, _: BaseDatabaseWrapper) -> bool | None:
    return value if type(value) is bool else None


def _stored_boolean(value: Any, _: BaseDatabaseWrapper) -> bool | None:
    # So does the converter of the driver (read in Django 5.2 to 6.1).
    return value == 1 if type(value) is int else None


def _text(value: Any, _: BaseDatabaseWrapper) -> str | None:
    return value[1:] if type(value) is str and value[:1] == "=" else None


def _plain(value: Any, _: BaseDatabaseWrapper) -> str | None:
    return value if type(value) is str else None


def _uuid(value: Any, _: BaseDatabaseWrapper) -> UUID | None:
    return UUID(value) if type(value) is str else None


def _day(value: Any, _: BaseDatabaseWrapper) -> date | None:
    return date.fromisoformat(value) if type(value) is str and len(value) == 10 else None


def _moment(value: Any, connection: BaseDatabaseWrapper) -> datetime | None:
    if connection.timezone is None or type(value) is not str:  # without USE_TZ a local hour may come twice
        return None
    moment = datetime.fromisoformat(value)
    return None if moment.tzinfo is None else moment.astimezone(connection.timezone)


def _naive_moment(value: Any, _: BaseDatabaseWrapper) -> datetime | None:
    moment = datetime.fromisoformat(value) if type(value) is str else None
    return moment if moment is not None and moment.tzinfo is None else None


def _decimal(value: Any, _: BaseDatabaseWrapper) -> Decimal | None:
    number = Decimal(value) if type(value) is str else None
    return number if number is not None and number.is_finite() else None


_PARSERS: Final[dict[str, dict[str, Callable[[Any, BaseDatabaseWrapper], Any]]]] = {
    "postgresql": {
        "i": _whole, "b": _boolean, "s": _text, "u": _uuid, "d": _day, "t": _moment, "n": _decimal,
    },
    "mysql": {
        "i": _whole, "s": _text, "u": _plain, "d": _day, "t": _naive_moment, "n": _decimal,
    },
    "sqlite": {
        "i": _whole, "b": _stored_boolean, "s": _text,
        "d": lambda value, _: parse_date(value), "t": lambda value, _: parse_datetime(value),
    },
}  # fmt: skip
"""By database and kind: from JSON to what the driver would give, or None."""
