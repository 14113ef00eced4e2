"""
Marking stale by hand: a model, an object, or a cache key with everything below it. Each is one tick.

Writes that Django sends need none of this; it is for writers that Django does not see.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from django.apps import apps
from django.db import DEFAULT_DB_ALIAS, connections, models

from live_cache.assembly import Assembly, get_assembly, live_assemblies
from live_cache.changes import encode_record
from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.clocks import TABLE_SLOT, slot_of
from live_cache.names import KEYS_CLOCK, clock_of, database_name
from live_cache.sql import normalize_table
from live_cache.writes.signals import tables_of
from live_cache.writes.transactions import state_of

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

    from live_cache.plan import Plan

__all__ = ["invalidate", "invalidate_key_of"]


def invalidate(
    target: type[models.Model] | models.Model | str, *, using: str | None = None, using_cache: str | None = None
) -> int:
    """
    Mark stale every entry that depends on *target*, in all processes that share the ledger.

    Inside a transaction a model or an object is marked when the transaction commits, as a write would be.

    Args:
        target: A model (every result that reads its table), an object (the same), or a cache key: one that was given
            to live(), with every key below it (``client`` covers ``client/7``, not ``clients``), the label of a model,
            such as ``shop.product``, with which all automatic keys begin, or one automatic key.
        using: Database alias of the model; the default is the object's own, else "default".
        using_cache: Alias in CACHES; the default is every live cache.

    Returns:
        How many ledgers were told.

    Raises:
        LedgerUnavailableError: A ledger did not answer. The tick is kept and delivered when it does.
        ConfigurationError: There is no such cache alias.
    """
    assemblies = live_assemblies() if using_cache is None else (get_assembly(using_cache),)
    ledgers = {id(assembly.ledger): assembly for assembly in assemblies}
    note = f"invalidate({_shown(target)})"
    if isinstance(target, str):
        changes = {KEYS_CLOCK: {slot_of(target)}}
        label, _, fingerprint = target.partition("/")
        model = _model_labelled(label)
        if model is not None:
            connection = connections[using or DEFAULT_DB_ALIAS]
            changes |= _key_changes(model, target, connection) if fingerprint else _table_changes(model, connection)
    else:
        model = target if isinstance(target, type) else type(target)
        alias = using or (None if isinstance(target, type) else target._state.db) or DEFAULT_DB_ALIAS
        connection = connections[alias]
        state = state_of(connection)
        if state.is_in_transaction and using_cache is None:
            state.record(tables_of(model), note=note)
            return len(ledgers)
        changes = _table_changes(model, connection)
    for assembly in ledgers.values():
        _tick(assembly, changes, note=note)
    return len(ledgers)


def invalidate_key_of(plan: Plan, assembly: Assembly, connection: BaseDatabaseWrapper) -> None:
    """Mark stale every entry under the automatic key of *plan*."""
    model = apps.get_model(plan.cache_key.partition("/")[0])
    _tick(assembly, _key_changes(model, plan.cache_key, connection), note="invalidate() of the queryset")


def _tick(assembly: Assembly, changes: dict[str, set[int]], *, note: str) -> None:
    # Where only a key is ticked, the record says that no row was changed: it is there for people.
    records = {clock: encode_record(None if TABLE_SLOT in slots else (), note=note) for clock, slots in changes.items()}
    if not assembly.ledger.tick(changes, records=records):
        raise LedgerUnavailableError(
            f"The ledger of cache {assembly.alias!r} did not answer. The invalidation is kept by this process and "
            "delivered when the ledger answers again."
        )


def _table_changes(model: type[models.Model], connection: BaseDatabaseWrapper) -> dict[str, set[int]]:
    name = database_name(connection)
    return {clock_of(name, table): {TABLE_SLOT} for table in tables_of(model)}


def _key_changes(model: type[models.Model], cache_key: str, connection: BaseDatabaseWrapper) -> dict[str, set[int]]:
    # The entries of a key depend on its slot in the clock of the base table: see plan.make_plan().
    return {clock_of(database_name(connection), normalize_table(model._meta.db_table)): {slot_of(cache_key)}}


def _shown(target: type[models.Model] | models.Model | str) -> str:
    if not isinstance(target, str):
        return target._meta.label
    return repr(target if len(target) <= 60 else target[:57] + "...")


def _model_labelled(label: str) -> type[models.Model] | None:
    try:
        return apps.get_model(label)
    except (LookupError, ValueError):
        return None
