"""
Rows as the driver gives them -> what a change tells of them: key, changed columns, before- and after-image.

An image holds values as the ORM would give them, and only of fields whose values mean the same in Python as in the
database. Whether a column has changed is seen in the driver's values, of every column.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import lru_cache
from operator import ne
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from django.db import connections, models

from live_cache.changes import DELETE, UPDATE_OF_COLUMNS, RowCells, key_of, layout_of, numbers_of
from live_cache.rows.cells import INT_MAX, INT_MIN
from live_cache.rows.packed import HOLE, pack

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.writes.answers import Load

__all__ = ["LONGEST_STR", "Columns", "columns_of", "image_of", "is_in_images", "key_columns"]

LONGEST_STR: Final = 200
"""Longer strings stay out of images: a record has to be short."""

Row = Sequence[Any]
_Converters = tuple["Load | None", Any, tuple[Callable[..., Any], ...]]
"""What loads a value of a column; what Django's converters of it take; and these, in their order."""

_FIELDS: Final = frozenset(
    {
        models.AutoField,
        models.BigAutoField,
        models.BigIntegerField,
        models.BooleanField,
        models.CharField,
        models.DateField,
        models.DateTimeField,
        models.DecimalField,
        models.DurationField,
        models.EmailField,
        models.FloatField,
        models.IntegerField,
        models.PositiveBigIntegerField,
        models.PositiveIntegerField,
        models.PositiveSmallIntegerField,
        models.SlugField,
        models.SmallAutoField,
        models.SmallIntegerField,
        models.TextField,
        models.TimeField,
        models.URLField,
        models.UUIDField,
    }
)
_DECISIVE: Final = (
    "db_type",
    "from_db_value",
    "get_db_converters",
    "get_db_prep_save",
    "get_db_prep_value",
    "get_internal_type",
    "get_prep_value",
    "select_format",
    "to_python",
)
"""Methods by which a subclass could change what its values are, or mean."""
_VALUE_TYPES: Final = frozenset({bool, int, float, str, Decimal, date, datetime, time, timedelta, UUID})
_KEY_TYPES: Final = frozenset({int, str, UUID})
"""Types that a driver gives, and takes back as the same value."""
_YEAR: Final = timedelta(days=365)
_EXACT: Final = frozenset({bool, int, str, bytes, type(None), date, UUID})
"""Types whose values are the same if they are equal. Others may be equal and different to look at: 1.0 and 1.00."""


def is_in_images(field: Any) -> bool:
    """Return whether values of *field* stand in images: those of other fields are not known to compare exactly."""
    if isinstance(field, models.GeneratedField):
        return type(field) is models.GeneratedField and is_in_images(field.output_field)
    if isinstance(field, models.ForeignKey):
        if type(field) not in (models.ForeignKey, models.OneToOneField):
            return False
        target = field.target_field
        return target is not field and is_in_images(target)
    kind = type(field)
    base = next((cls for cls in kind.__mro__ if cls in _FIELDS), None)
    return base is not None and (
        kind is base or all(getattr(kind, name, None) is getattr(base, name, None) for name in _DECISIVE)
    )


def key_columns(model: type[models.Model]) -> tuple[str, ...]:
    """Return the columns of the primary key of *model*, in order."""
    opts: Any = model._meta  # pk_fields is not in django-stubs
    return tuple(str(field.column) for field in opts.pk_fields)


def image_of(names: Iterable[str], values: Iterable[Any]) -> dict[str, Any]:
    """Return an image of these values, without those that are too long, or of an unexpected type."""
    return {name: value for name, value in zip(names, values, strict=True) if _is_told(value)}


def _is_told(value: Any) -> bool:
    kind = type(value)
    if kind is str:
        return len(value) <= LONGEST_STR
    return value is None or (kind in _VALUE_TYPES and bool(value == value))


class Columns:
    """
    How the columns of one SELECT * of a model's table become keys and images.

    Args:
        names: As the driver describes them.
        loads: What loads the values of rows that are as PostgreSQL has sent them, by column. None if the driver has.
    """

    def __init__(
        self,
        model: type[models.Model],
        connection: BaseDatabaseWrapper,
        names: tuple[str, ...],
        loads: Sequence[Load] | None = None,
    ) -> None:
        fields = {str(field.column): field for field in model._meta.local_concrete_fields}
        if connection.vendor != "postgresql":  # elsewhere the case of a column's name is of no account
            exact = {column.lower(): column for column in fields}
            names = tuple(exact.get(name.lower(), name) for name in names)
        self.names = names
        self.is_complete = fields.keys() <= set(names) and len(set(names)) == len(names)
        """Whether every field of the model is there, so that no change can go unseen."""
        self.key: tuple[int, ...] = ()
        self._layout = b""
        self._loads: Sequence[Load] | None = None
        self._converters: dict[int, _Converters] = {}
        """By position, without those of columns whose values are as the driver gives them."""
        if not self.is_complete:
            return
        self._layout = layout_of(names)
        positions = {name: position for position, name in enumerate(names)}
        self.key = tuple(positions[column] for column in key_columns(model))
        in_images = {name: field for name, field in fields.items() if is_in_images(field)}
        self.has_key = bool(self.key) and all(names[position] in in_images for position in self.key)
        """Whether rows can be told apart by their key."""
        self._loads = loads
        for position, name in enumerate(names):
            if name not in in_images:
                self._converters[position] = _NOT_IN_IMAGES
                continue
            load = None if loads is None else loads[position]
            expression, functions = _converters_of(in_images[name], connection)
            if load is not None or functions:
                self._converters[position] = load, expression, functions

    def raw_key(self, row: Row) -> tuple[Any, ...] | None:
        """Return the key of *row* as the driver gives it, or None if it cannot be used to find the row again."""
        loads = self._loads
        if loads is not None:
            key = tuple(
                [row[position] if row[position] is None else loads[position](row[position]) for position in self.key]
            )
        else:
            key = (row[self.key[0]],) if len(self.key) == 1 else tuple([row[position] for position in self.key])
        for value in key:
            if type(value) not in _KEY_TYPES:
                return None
        return key

    def image(self, row: Row, connection: BaseDatabaseWrapper, columns: Container[str] | None = None) -> dict[str, Any]:
        """Return the image of *row*, or of some columns of it."""
        wanted = [number for number, column in enumerate(self.names) if columns is None or column in columns]
        values = [row[position] for position in wanted]
        self._convert(values, self._converters_at(wanted), connection)
        return image_of([self.names[position] for position in wanted], values)

    def updated(self, before: Row, after: Row, connection: BaseDatabaseWrapper) -> RowCells | None:
        """
        Return the update of one row, or None if the row is as it was.

        Raises:
            UncachableValueError: A value is of a kind that records do not hold.
            Exception: Whatever a converter of values raises.
        """
        if self._loads is not None:
            changed = [position for position, differs in enumerate(map(ne, before, after)) if differs]
        else:
            changed = _changed_values(before, after)
        if not changed:
            return None
        cells = self._cells(before, self._converters.items(), connection)
        now = self._cells([after[position] for position in changed], self._converters_at(changed), connection)
        numbers = numbers_of(changed, self.names)
        return RowCells(self._layout, UPDATE_OF_COLUMNS, self._key_cells(cells), numbers, cells, now)

    def deleted(self, row: Row, connection: BaseDatabaseWrapper) -> RowCells:
        """Return the delete of *row*. Raises what updated() does."""
        cells = self._cells(row, self._converters.items(), connection)
        return RowCells(self._layout, DELETE, self._key_cells(cells), None, cells, None)

    def _cells(
        self, row: Row, converters: Iterable[tuple[int, _Converters]], connection: BaseDatabaseWrapper
    ) -> list[object]:
        """
        Return the cells of an image. Each save() of a watched table comes here: most values are left as they are.

        Args:
            converters: By position in *row*.
        """
        cells: list[Any] = list(row)
        self._convert(cells, converters, connection)
        for position, value in enumerate(cells):
            kind = type(value)
            if kind is int:
                if INT_MIN <= value <= INT_MAX:
                    continue
            elif kind is str:
                if len(value) <= LONGEST_STR and value.isascii():
                    continue
            elif value is None or kind is bool or value is HOLE:
                continue
            cells[position] = pack(value) if _is_told(value) else HOLE
        return cells

    @staticmethod
    def _convert(
        values: list[Any], converters: Iterable[tuple[int, _Converters]], connection: BaseDatabaseWrapper
    ) -> None:
        """Turn *values* of the driver into what the ORM gives, or HOLE."""
        for position, (load, expression, functions) in converters:
            raw = value = values[position]
            if load is not None and raw is not None:
                value = load(raw)
            for function in functions:
                value = function(value, expression, connection)
            # What SQLite has stored may be no value of the field: it is shown as None, and is not NULL to the database.
            values[position] = HOLE if value is None and raw is not None else value

    def _converters_at(self, positions: Sequence[int]) -> list[tuple[int, _Converters]]:
        """Return the converters of some columns, by their place among *positions*."""
        return [(n, self._converters[position]) for n, position in enumerate(positions) if position in self._converters]

    def _key_cells(self, cells: list[object]) -> Any:
        key = [cells[position] for position in self.key]
        return None if HOLE in key else key_of(key)


def _changed_values(before: Row, after: Row) -> list[int]:
    """Return the positions at which two rows are not the same, as the driver gives them."""
    changed = []
    for position, (old, new) in enumerate(zip(before, after, strict=True)):
        if old is not new:
            kind = type(old)
            if kind is not type(new) or old != new or not (kind in _EXACT or _looks_same(old, new)):
                changed.append(position)
    return changed


def _converters_of(field: Any, connection: BaseDatabaseWrapper) -> tuple[Any, tuple[Callable[..., Any], ...]]:
    expression = field.get_col(field.model._meta.db_table)
    # In the order in which SQLCompiler.apply_converters() takes them (read in Django 5.2 and 6.1).
    converters = connection.ops.get_db_converters(expression) + expression.get_db_converters(connection)
    return expression, tuple(converters)


_NOT_IN_IMAGES: Final[_Converters] = (None, None, (lambda value, expression, connection: HOLE,))


def columns_of(model: type[models.Model], connection: BaseDatabaseWrapper, names: tuple[str, ...]) -> Columns:
    """Return the Columns of a SELECT * from the table of *model* that has given these names."""
    return _columns(model, connection.alias, connection.vendor, connection.timezone is None, names)


@lru_cache(maxsize=512)
def _columns(model: type[models.Model], alias: str, vendor: str, is_naive: bool, names: tuple[str, ...]) -> Columns:
    # Converters get the connection when they are called; which there are depends on the database and on USE_TZ.
    return Columns(model, connections[alias], names)


def _looks_same(before: Any, after: Any) -> bool:
    """Return whether two values are the same, which are equal and of one type."""
    kind = type(before)
    if kind is timedelta and abs(before) >= _YEAR:
        return False  # PostgreSQL keeps years, which are shown as 365 days and are not equal to them
    # What is known without repr(), which takes far longer. Of floats only zeros are equal and look different.
    if kind is float and before:
        return True
    if kind is datetime and before.tzinfo is after.tzinfo:
        return bool(before.fold == after.fold)
    return repr(before) == repr(after)
