"""What ``manage.py live_cache clear`` does, and what it would do."""

from __future__ import annotations

from difflib import get_close_matches
from itertools import islice
from typing import Any

from django.apps import apps
from django.core.management.base import CommandError
from django.db import connections
from django.db.models import Model

from live_cache.assembly import Assembly
from live_cache.changes import encode_record
from live_cache.invalidation import invalidate
from live_cache.ledger.clocks import slot_of
from live_cache.management.reports import LIVE, count_keys, live_keys

__all__ = ["clear_all", "clear_key", "clear_model", "clear_prefix", "find_model"]

_SHOWN_KEYS = 20


def find_model(label: str) -> type[Model]:
    """
    Return the model called *label*, ``app.Model``.

    Raises:
        CommandError: There is none. The message names the nearest ones, or all.
    """
    try:
        return apps.get_model(label)
    except (LookupError, ValueError) as error:
        labels = sorted(model._meta.label for model in apps.get_models())
        near = get_close_matches(label, labels, n=5, cutoff=0.5)
        choice = f"Did you mean {', '.join(near)}? All models: " if near else "Models: "
        raise CommandError(f"There is no model {label!r}. {choice}{', '.join(labels)}.") from error


def clear_model(assembly: Assembly, model: type[Model], *, is_dry_run: bool) -> dict[str, Any]:
    """Invalidate every result that depends on the table of *model*, in every database: one tick, in all processes."""
    report = {"what": "model", "name": model._meta.label, "table": model._meta.db_table}
    if not is_dry_run:
        for database in connections:
            invalidate(model, using=database, using_cache=assembly.alias)
    return report


def clear_key(assembly: Assembly, key: str, *, is_dry_run: bool) -> dict[str, Any]:
    """
    Invalidate every result under the cache key *key*: one tick, in all processes.

    Raises:
        CommandError: A tier that all processes share holds nothing under *key*. It is invalidated all the same, since
            a process may hold an entry in its memory that the shared tier has evicted.
    """
    entry_count = count_keys(assembly, key)
    if not is_dry_run:
        _invalidate_key(assembly, key)
    if not entry_count:
        _refuse_unknown_key(assembly, key, is_dry_run=is_dry_run)
    return {"what": "key", "name": key, "entries": entry_count}


def clear_prefix(assembly: Assembly, prefix: str, *, is_dry_run: bool) -> dict[str, Any]:
    """
    Drop the live entries whose key lies under *prefix*, by a scan of the tiers that this process sees.

    In the memory of other processes, what lies under a whole cache key is invalidated; more cannot be done there.
    """
    if is_dry_run:
        return {"what": "prefix", "name": prefix, "entries": count_keys(assembly, prefix)}
    if prefix.strip("/"):
        _invalidate_key(assembly, prefix.rstrip("/"))
    return {"what": "prefix", "name": prefix, "entries": assembly.store.invalidate_prefix(LIVE + prefix)}


def clear_all(assembly: Assembly, *, is_dry_run: bool) -> dict[str, Any]:
    """Drop every entry and value, and give every clock a new epoch, so that nothing filled before is fresh anywhere."""
    clock_count = len(assembly.ledger.clocks())
    entry_counts = {store.name: store.metrics().entries for store in assembly.tiers}
    if not is_dry_run:
        # The epoch first: an entry that a reader stores between the two is then a miss.
        assembly.ledger.reset()
        assembly.store.clear()
    return {"what": "all", "name": assembly.alias, "entries": entry_counts, "clocks": clock_count}


def _invalidate_key(assembly: Assembly, key: str) -> None:
    invalidate(key, using_cache=assembly.alias)
    # A key as ``keys`` lists it, with its fingerprint, has a slot in the clock of its table;
    # which table that is, the key does not say.
    clocks = [info.clock for info in assembly.ledger.clocks()]
    record = encode_record((), note="manage.py live_cache clear")
    assembly.ledger.tick(dict.fromkeys(clocks, (slot_of(key),)), records=dict.fromkeys(clocks, record))


def _refuse_unknown_key(assembly: Assembly, key: str, *, is_dry_run: bool) -> None:
    if not assembly.tiers[-1].is_shared_by_processes:
        # The entries are in the memory of other processes, where nobody can look.
        return
    known = list(islice(live_keys(assembly), _SHOWN_KEYS))
    shown = ", ".join(sorted(known)) or "none"
    more = ", ..." if len(known) == _SHOWN_KEYS else ""
    done = "" if is_dry_run else " It is invalidated in the memory of other processes all the same."
    raise CommandError(f"No entry lies under the key {key!r}.{done} Keys that exist: {shown}{more}.")
