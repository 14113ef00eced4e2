"""
What the code says of tables and databases, as bytes that are part of each key.

While an old and a new version of a project run side by side, they share entries only where both make the same values of
the same rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

from django.db import models

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

__all__ = ["connection_bytes", "model_bytes"]

# What each new connection begins with, as far as values may depend on it.
_SESSION_OPTIONS: Final = (
    "assume_role", "charset", "client_encoding", "collation", "init_command", "options", "service", "sql_mode",
)  # fmt: skip
# No value that is read depends on it, and it may be any object.
_IGNORED: Final = frozenset({"default"})
_PLAIN: Final = (type(None), bool, int, float, str, bytes)


def connection_bytes(connection: BaseDatabaseWrapper) -> bytes:
    """Return bytes that change when the settings change that each connection to the database begins with."""
    options = connection.settings_dict["OPTIONS"]
    given = {name: str(options[name]) for name in _SESSION_OPTIONS if name in options}
    # Whether datetimes are aware, and in which zone, is decided by settings.
    return repr((connection.timezone is None, connection.timezone_name, given)).encode("utf-8", "surrogatepass")


def model_bytes(model: type[models.Model]) -> bytes:
    """
    Return bytes that change when the columns of *model*, or the values that its fields make of them, change.

    Code that became another under the same name, such as a field's from_db_value(), is not seen.
    """
    opts = model._meta
    columns = [(field.attname, field.column, _field(field)) for field in opts.local_concrete_fields]
    return repr((opts.label, opts.db_table, opts.ordering, columns)).encode("utf-8", "surrogatepass")


def _field(field: Any) -> object:
    kind = (_name_of(type(field)), field.get_internal_type())
    ignored = _IGNORED.union(field.non_db_attrs)
    try:
        _name, _path, arguments, options = field.deconstruct()
        return (kind, _value(arguments), _value({name: options[name] for name in options.keys() - ignored}))
    except Exception:  # of a field of the project that no migration knows
        return kind


def _value(value: Any) -> object:
    """Return what is the same in each process, made of plain values and of the names of classes and functions."""
    if type(value) in _PLAIN:
        return value
    if isinstance(value, models.Field):
        return _field(value)
    if isinstance(value, Mapping):
        return sorted((repr(_value(key)), _value(item)) for key, item in value.items())
    if isinstance(value, list | tuple):
        return [_value(item) for item in value]
    if isinstance(value, set | frozenset):
        return sorted(repr(_value(item)) for item in value)
    if hasattr(value, "__qualname__"):
        return _name_of(value)
    if hasattr(value, "deconstruct"):
        path, arguments, options = value.deconstruct()
        return (path, _value(arguments), _value(options))
    text = str(value)
    return (_name_of(type(value)), "" if " at 0x" in text else text)


def _name_of(value: Any) -> str:
    return f"{value.__module__}.{value.__qualname__}"
