"""
Finds out which rows an INSERT of the ORM adds: asks the database to return them whole.

``ops.compiler()`` of each connection object gives a subclass of its SQLInsertCompiler (hooks.py puts it there). Its
execute_sql() asks for more columns than its caller did, notes the rows, and returns what was asked for. The SQL guard
meets the statement on its way and leaves the rows to it. INSERT sent as SQL is told as a change of the table.

SQLInsertCompiler was read in Django 5.2.19 and 6.1.3: execute_sql() takes the fields to return, and returns one row of
their values, converted, for each object.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeVar, cast

from django.db import connections
from django.db.models.constants import OnConflict

from live_cache.changes import MAX_ROWS, RowChange
from live_cache.ledger import fences_postgresql
from live_cache.sql import normalize_table
from live_cache.tables import models_of_tables
from live_cache.writes.images import image_of, is_in_images, key_columns
from live_cache.writes.own_transaction import OwnTransaction
from live_cache.writes.pending import NOTE_MANY
from live_cache.writes.rows import Untold, attempt, prove_plain
from live_cache.writes.sending import Companion, Sending

if TYPE_CHECKING:
    from django.db import models

    from live_cache.writes.transactions import ConnectionState

__all__ = ["Insertion", "telling"]

T = TypeVar("T")


class Insertion:
    """
    One INSERT that a compiler is sending.

    Args:
        untold: Why the compiler cannot tell its rows; empty if it will.
    """

    def __init__(self, table: str, untold: str = "") -> None:
        self.table = table
        self.untold = untold
        self.is_sent = False
        """Whether the guard has met the statement."""
        self.fence = ""
        """Of the transaction, if it came with the rows; see ledger.fences."""

    def takes(self, sql: object, tables: frozenset[str]) -> bool:
        """Return whether *sql*, which writes *tables*, is this INSERT. It is once."""
        # What pre_save() of a field sends comes first: should that be an INSERT too, the second is told by table.
        if self.is_sent or tables != {self.table} or type(sql) is not str or not sql.startswith("INSERT"):
            return False
        self.is_sent = True
        return True

    def send(self, sending: Sending) -> Any:
        """Send the statement, and return what Django's cursor returns."""
        if sending.state.connection.vendor != "postgresql" or not sending.takes_companions:
            return sending.run()
        result, take = sending.run_with((), (Companion(f"SELECT {fences_postgresql.XID}"),))
        (answer,) = take()
        self.fence = fences_postgresql.token_of(answer.rows[0][0])  # the COMMIT asks for it anyway
        return result


@lru_cache(maxsize=16)
def telling(compiler: Any) -> Any:
    """Return the class *compiler*, a SQLInsertCompiler, made to tell the rows that it inserts."""
    return type(compiler.__name__, (_Telling, compiler), {"__module__": compiler.__module__})


class _Telling:
    query: Any
    connection: Any

    def execute_sql(self, returning_fields: Any = None) -> Any:
        insert: Any = super().execute_sql  # type: ignore[misc]  # of the class that this one is mixed into
        from live_cache.writes.transactions import state_of

        query, connection = self.query, self.connection
        state = state_of(connection)
        model = query.get_meta().concrete_model
        table = normalize_table(model._meta.db_table)
        # Where what conflicts is left out, fewer rows come back than were given.
        is_partial = (
            query.on_conflict is OnConflict.IGNORE and not returning_fields and self._tells_what_it_ignores(model)
        )
        if not query.objs or models_of_tables().get(table) != (model,) or not state.may_want_rows(table):
            return insert(returning_fields)
        untold = ""
        if query.on_conflict is not None and not is_partial:
            untold = "an INSERT that may meet conflicts"
        elif len(query.objs) > MAX_ROWS:
            untold = NOTE_MANY
        elif not connection.features.can_return_rows_from_bulk_insert:
            untold = "an INSERT on a database that returns no rows"
        if untold:
            return _run(state, Insertion(table, untold), lambda: insert(returning_fields))
        # In autocommit mode the rows have to be noted before the COMMIT.
        own = not connection.in_atomic_block
        if own:
            connection.close_if_health_check_failed()
            connection.ensure_connection()
        if own and connections[connection.alias] is not connection:
            return insert(returning_fields)

        def send() -> Any:
            quoted = connection.ops.quote_name(model._meta.db_table)
            # Before it is sent: a row policy, or rights to no more than INSERT, would refuse to return the rows.
            if isinstance(attempt(connection, lambda: prove_plain(state, quoted)), Untold):
                return insert(returning_fields)
            asked = list(returning_fields or ())
            return _insert(state, insert, model, table, asked, None if is_partial else query.objs)

        return OwnTransaction(state).run(send) if own else send()

    def _tells_what_it_ignores(self, model: type[models.Model]) -> bool:
        """
        Return whether the database returns the rows that an INSERT which ignores conflicts has added, and no others.

        Of a single row that was ignored Django returns None, which it could not convert.
        """
        if self.connection.vendor not in ("sqlite", "postgresql"):
            return False
        fields = _fields_of(model)
        columns = [field.get_col(model._meta.db_table) for field in fields]
        return bool(fields) and not cast("Any", self).get_converters(columns)


def _run(state: ConnectionState, insertion: Insertion, insert: Callable[[], T]) -> T:
    """Return what *insert* returns; the guard knows the statement that it sends for *insertion*."""
    outer = state.insertion
    try:
        state.insertion = insertion
        result = insert()
        state.insertion = outer
    except BaseException:  # no "finally", at the beginning of which an interrupt may come
        state.insertion = outer
        raise
    return result


def _insert(
    state: ConnectionState,
    insert: Callable[[Any], list[Any]],
    model: type[models.Model],
    table: str,
    asked: list[Any],
    objects: Sequence[models.Model] | None,
) -> list[Any]:
    """
    Run *insert* and tell its rows.

    Args:
        objects: What was given; None if not all of it need be inserted.
    """
    fields = [*asked, *(field for field in _fields_of(model) if field not in asked)]
    insertion = Insertion(table)
    try:
        rows = _run(state, insertion, lambda: insert(fields))
        if insertion.is_sent:
            if objects is None:
                state.record_rows(table, [_change(model, fields, None, row) for row in rows if row is not None])
            elif len(rows) != len(objects):
                state.record({table}, note="an INSERT that has returned other rows than it was given")
            else:
                state.record_rows(
                    table,
                    [_change(model, fields, obj, row) for obj, row in zip(objects, rows, strict=True)],
                    fence=insertion.fence,
                )
    except BaseException:
        if insertion.is_sent:
            state.record({table}, note="a statement that failed")
        raise
    return [row[: len(asked)] for row in rows] if asked else []


def _change(model: type[models.Model], fields: list[Any], obj: models.Model | None, row: Any) -> RowChange:
    """Return the insert of *row*. Without *obj* its values are as they are stored, and None is NULL."""
    known = [
        (str(field.column), value)
        for field, value in zip(fields, row, strict=True)
        # What an expression gives on SQLite may be no value of the field, which is shown as None and is not NULL.
        if is_in_images(field) and (value is not None or obj is None or obj.__dict__.get(field.attname, model) is None)
    ]
    image = image_of(*zip(*known, strict=True))
    key = key_columns(model)
    is_known = image.keys() >= set(key)
    return RowChange("insert", tuple([image[name] for name in key]) if is_known else None, None, None, image)


@lru_cache(maxsize=512)
def _fields_of(model: type[models.Model]) -> tuple[Any, ...]:
    return tuple(field for field in model._meta.local_concrete_fields if is_in_images(field))
