"""
A queryset's plan: its key, what it depends on, and how its rows become objects; or the reason why it has none.

A plan is made on each read, so it must be cheap: one walk over the query (fingerprint.py), then a look-up of what was
learned when a query of the same structure was first compiled, its Layout. SQL is compiled once per structure, never on
the way to a hit.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Final

import django
from django.core.exceptions import EmptyResultSet
from django.core.signals import setting_changed
from django.db import connections, models

from live_cache.conf import settings
from live_cache.exceptions import InvalidKeyError, UncachableQueryError
from live_cache.fingerprint import Walk, walk_expressions, walk_query
from live_cache.ledger.clocks import ROWS_SLOT, TABLE_SLOT, Dependency, slot_of
from live_cache.loop import leave_loop
from live_cache.names import clock_of, database_name, is_private_database, key_dependency
from live_cache.schema_digest import connection_bytes, model_bytes
from live_cache.shapes.policies import Policies, policies_of, policies_version
from live_cache.shapes.scope import Purpose
from live_cache.shapes.shape import Shape, learn_shape, shape_of_aggregate
from live_cache.shapes.text_rules import text_rules_version
from live_cache.sql import StatementKind, classify, normalize_table
from live_cache.stores.base import validate_key
from live_cache.tables import models_of_tables
from live_cache.tenancy import isolation_parts
from live_cache.writes.guard import intercepting

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper
    from django.db.models.sql.query import Query

__all__ = ["Layout", "Plan", "make_plan"]

# Part of every fingerprint: raised when plans, or what they store, mean something else than before.
_PLAN_VERSION: Final = 4
_MAX_LAYOUTS: Final = 2048
_MAX_CALLER_KEY_BYTES: Final = 512
"""So that the key of an entry, with fingerprint and page suffix, is one that every store holds."""


@dataclass(frozen=True, slots=True)
class Layout:
    """What is learned once per structure of a query, by compiling it."""

    tables: frozenset[str]
    """Every table that the SQL reads, and those below its views; normalised."""
    schema_digest: bytes
    """Changes when a model of these tables, or what a connection begins with, changes."""
    select: Any
    klass_info: Any
    annotation_col_map: Any
    """The compiler's own description of a row, which Django's iterables take (see instances.py)."""
    shape: Shape | None
    """What the SQL looks at; None where that is not known, so that every change of its tables counts."""


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that a read needs to know of a query."""

    cache_key: str
    page_suffix: str
    database: str
    tables: frozenset[str]
    dependencies: tuple[Dependency, ...]
    layout: Layout
    query: Query
    purpose: Purpose

    @property
    def entry_key(self) -> str:
        """The key of the entry in the stores."""
        return f"live/{self.cache_key}/{self.page_suffix}"


def make_plan(
    query: Query,
    *,
    using: str,
    page_suffix: str,
    result_kind: str,
    purpose: Purpose = "rows",
    caller_key: str | None = None,
    aggregates: Mapping[str, Any] | None = None,
    run: Callable[[], object] | None = None,
) -> Plan:
    """
    Return the plan of *query* on the database alias *using*.

    Args:
        page_suffix: Which part of the result set the entry holds.
        result_kind: What the rows become, for example the name of an iterable class; part of the key.
        purpose: What is asked of the query, which decides which changes matter.
        caller_key: The cache key that the caller chose; None derives one from the query.
        aggregates: Expressions of an aggregate(); a digest of them is added to the page suffix.
        run: Runs that aggregate(), so that its SQL can be caught unsent.

    Raises:
        UncachableQueryError: The result cannot be cached correctly. The message says why.
        InvalidKeyError: The caller's key is not a key.
    """
    connection = connections[using]
    if is_private_database(connection):
        raise UncachableQueryError("An in-memory SQLite database is visible to its own connection only.")
    walk = walk_query(query, extra=(_PLAN_VERSION, django.VERSION[:2], connection.vendor, result_kind))
    declared, is_raw = walk.declared_tables, walk.holds_raw_sql
    layout = _layout_of(query, walk, connection, lambda: _learn(query, connection, declared, is_raw=is_raw))
    database = database_name(connection)
    if caller_key is not None:
        check_caller_key(caller_key)
    digest = _digest(
        walk.structure_bytes(),
        walk.parameter_bytes(),
        layout.schema_digest,
        database.encode(),
        *isolation_parts(connection),
        b"" if caller_key is None else caller_key.encode(),  # which is never empty
    )
    if aggregates is not None and run is not None:
        walk = walk_expressions(walk.structure, aggregates)
        declared |= walk.declared_tables
        is_raw = is_raw or walk.holds_raw_sql
        layout = _layout_of(
            query, walk, connection, lambda: _learn_by_interception(query, connection, run, declared, is_raw=is_raw)
        )
        page_suffix += "_" + _digest(walk.structure_bytes(), walk.parameter_bytes(), layout.schema_digest)
    model = query.model
    assert model is not None
    cache_key = f"{model._meta.label_lower}/{digest}"
    if caller_key is not None:
        cache_key = f"{caller_key}/{digest}"
    base_table = normalize_table(model._meta.db_table)
    dependencies = [
        # The slot of the key lets LiveQuerySet.invalidate() drop one result set with one tick.
        Dependency(
            clock_of(database, table),
            (TABLE_SLOT, ROWS_SLOT, slot_of(cache_key)) if table == base_table else (TABLE_SLOT, ROWS_SLOT),
        )
        for table in sorted(layout.tables | {base_table})
    ]
    if caller_key is not None:
        dependencies.append(key_dependency(cache_key))
    return Plan(cache_key, page_suffix, database, layout.tables, tuple(dependencies), layout, query, purpose)


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def check_caller_key(cache_key: str) -> str:
    """
    Return *cache_key*, or raise if a caller may not use it.

    Raises:
        InvalidKeyError: It is empty, too long, has empty segments, or starts like an automatic key.
    """
    validate_key(cache_key)
    if "" in cache_key.split("/"):
        raise InvalidKeyError(f"The cache key {cache_key!r} has an empty segment; put a single '/' between two.")
    if len(cache_key.encode()) > _MAX_CALLER_KEY_BYTES:
        raise InvalidKeyError(f"The cache key {cache_key[:40]!r}... is longer than {_MAX_CALLER_KEY_BYTES} bytes.")
    return cache_key


# -- layouts ----------------------------------------------------------------------------------------------------------

_layouts: OrderedDict[tuple[str, object, bytes, int, int], Layout] = OrderedDict()
_layouts_lock = Lock()


def _layout_of(query: Query, walk: Walk, connection: BaseDatabaseWrapper, learn: Callable[[], Layout]) -> Layout:
    # The model itself, not its label: a model may be replaced by another of the same label.
    key = (connection.alias, query.model, walk.structure_bytes(), policies_version(), text_rules_version())
    layout = _layouts.get(key)
    if layout is not None:
        return layout
    leave_loop()  # compiling may ask the database for its version
    layout = learn()
    with _layouts_lock:
        _layouts[key] = layout
        while len(_layouts) > _MAX_LAYOUTS:
            _layouts.popitem(last=False)
    return layout


def _learn(query: Query, connection: BaseDatabaseWrapper, declared: frozenset[str], *, is_raw: bool) -> Layout:
    compiler = _copy(query).get_compiler(connection=connection)
    try:
        sql, _parameters = compiler.as_sql()
    except EmptyResultSet:
        raise UncachableQueryError("No row can match, so Django answers without the database.") from None
    except Exception as error:  # Django tells it to whoever evaluates this; count() may do without what is wrong here
        raise UncachableQueryError(f"The query does not compile: {error!r}") from error
    tables, schema_digest = _prove(sql, connection, query.model, declared)
    shape = None if is_raw else learn_shape(compiler, sql, connection)
    return Layout(tables, schema_digest, compiler.select, compiler.klass_info, compiler.annotation_col_map, shape)


def _copy(query: Query) -> Any:
    """Return a copy of *query* to compile: clone() shares a dict to which the ORDER BY of a union adds columns."""
    copy: Any = query.clone()  # `selected` and `combined_queries` are not in django-stubs
    _own_selected(copy)
    return copy


def _own_selected(query: Any) -> None:
    if query.selected is not None:
        query.selected = dict(query.selected)
    for each in query.combined_queries:
        _own_selected(each)


def _learn_by_interception(
    query: Query,
    connection: BaseDatabaseWrapper,
    run: Callable[[], object],
    declared: frozenset[str],
    *,
    is_raw: bool,
) -> Layout:
    with intercepting(connection) as interception:
        run()
    if interception.sql is None:
        raise UncachableQueryError("Django answers without the database.")
    tables, schema_digest = _prove(interception.sql, connection, None, declared)
    shape = None if is_raw else shape_of_aggregate(query, interception.sql, connection)
    return Layout(tables, schema_digest, None, None, None, shape)


def _prove(
    sql: Any, connection: BaseDatabaseWrapper, model: type[models.Model] | None, declared: frozenset[str]
) -> tuple[frozenset[str], bytes]:
    """
    Return the tables that *sql* reads and the digest of their models, or raise if they are not all known.

    Args:
        declared: What its RawSQL is declared to read beside the tables that it names.
    """
    statement = classify(sql, vendor=connection.vendor)
    if statement.kind is not StatementKind.READ or statement.locks_rows:
        raise UncachableQueryError("The SQL of the query is not understood as a plain read.")
    if writing := statement.functions.intersection(settings.writing_functions):
        raise UncachableQueryError(f"{', '.join(sorted(writing))}() is in LIVE_CACHE_WRITING_FUNCTIONS.")
    known = models_of_tables()
    views = {normalize_table(name): tables for name, tables in settings.unmanaged_tables.items()}
    digest = hashlib.blake2b(b"" if model is None else model_bytes(model), digest_size=16)
    digest.update(connection_bytes(connection))
    tables: set[str] = set()
    policies = policies_of(connection)
    to_prove = sorted(statement.read | declared, reverse=True)
    while to_prove:
        table = to_prove.pop()
        if table in tables:
            continue
        tables.add(table)
        owners = known.get(table, ())
        if not owners and table not in views:
            raise UncachableQueryError(
                f"The table {table!r} belongs to no managed model, so its writes may go unseen. Say in "
                "LIVE_CACHE_UNMANAGED_TABLES what it reads."
            )
        for owner in owners:
            digest.update(model_bytes(owner))
        to_prove += sorted(map(normalize_table, views.get(table, ())), reverse=True)
        if table in policies:
            digest.update(repr(sorted(policies[table].texts)).encode())
            to_prove += sorted(_tables_of_policies(table, policies[table], is_declared=table in views), reverse=True)
    return frozenset(tables), digest.digest()


def _tables_of_policies(table: str, policies: Policies, *, is_declared: bool) -> set[str]:
    """Return the tables that the row policies of *table* read; *is_declared* is whether a setting names them."""
    if policies.functions and not is_declared:
        raise UncachableQueryError(
            f"The row policies of {table!r} call {', '.join(sorted(policies.functions))}(), which may look at "
            "anything. Say in LIVE_CACHE_UNMANAGED_TABLES which tables they read, if any."
        )
    return policies.tables


def _forget_layouts(*, setting: str, **kwargs: Any) -> None:
    if setting in ("LIVE_CACHE_UNMANAGED_TABLES", "LIVE_CACHE_WRITING_FUNCTIONS", "USE_TZ", "TIME_ZONE", "DATABASES"):
        with _layouts_lock:
            _layouts.clear()


setting_changed.connect(_forget_layouts, dispatch_uid="live_cache.plan")
