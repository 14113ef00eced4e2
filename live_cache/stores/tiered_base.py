"""
What the calls of a tiered store have in common: which tier is down, what each of them owes, and promotion.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence

from live_cache.exceptions import StoreError, StoreUnavailableError
from live_cache.stores.base import Store, StoredValue, has_prefix
from live_cache.stores.counters import StoreCounters, Tally
from live_cache.stores.forks import ForkAware
from live_cache.stores.tier_state import Debts, KeyVersions

__all__ = ["TieredBase"]

logger = logging.getLogger("live_cache.stores")


class TieredBase(ForkAware, Store):
    """
    The tiers and their state. TieredStore has the calls.

    Args:
        stores: The tiers, nearest first.
        wants_promotion: Whether a value found in a farther tier is copied to the nearer ones.
    """

    def __init__(self, stores: Sequence[Store], wants_promotion: Callable[[str, StoredValue], bool]) -> None:
        self.name = "tiered"
        self.stores: tuple[Store, ...] = tuple(stores)
        self.is_shared_by_processes = any(store.is_shared_by_processes for store in stores)
        self.is_shared_by_hosts = any(store.is_shared_by_hosts for store in stores)
        self.async_kind = "inline" if all(store.async_kind == "inline" for store in stores) else "tiers"
        self.evicts_by = "the tiers"
        self._wants_promotion = wants_promotion
        self._versions = KeyVersions()
        self._debts = tuple(Debts() for _ in stores)
        self._failures = tuple(Tally() for _ in stores)
        self._is_down = [False] * len(stores)
        self._counters = StoreCounters()
        self._far_to_near = range(len(self.stores) - 1, -1, -1)
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Replace the locks."""
        self._versions = KeyVersions()
        for debts in self._debts:
            debts.replace_lock()

    def _owes(self, index: int, key: str) -> bool:
        """Return whether the tier may hold what it should have dropped. Asks it to drop that now."""
        debts = self._debts[index]
        if not debts.covers(key):
            return False
        # Under the lock of the key, so that no debt of a writer is forgotten which this drop came too early for.
        with self._versions.promoting(key, None) as may_settle:
            if may_settle:
                try:
                    self._settle(self.stores[index], debts, key)
                except StoreUnavailableError as error:
                    self._note_failure(index, error)
        return True

    def _settle(self, store: Store, debts: Debts, key: str) -> None:
        for owed in debts.prefixes():
            if has_prefix(key, owed[0]):
                store.invalidate_prefix(owed[0])
                debts.forget_prefixes((owed,))
        store.delete(key)
        debts.forget_keys((key,))

    def _drop(self, index: int, keys: Collection[str]) -> int | StoreUnavailableError:
        """Drop *keys* from one tier and return how many were there; or the error, with the keys as debts."""
        try:
            dropped = self.stores[index].delete_many(keys)
        except StoreUnavailableError as error:
            self._debts[index].add_keys(keys)
            self._note_failure(index, error)
            return error
        self._debts[index].forget_keys(keys)
        self._note_answer(index)
        return dropped

    def _promote(self, key: str, stored: StoredValue, below: int, noted: int | None) -> None:
        is_expired = stored.expires_in_s is not None and stored.expires_in_s <= 0
        if below == 0 or is_expired or not self._wants_promotion(key, stored):
            return
        with self._versions.promoting(key, noted) as may_promote:
            if not may_promote:
                return
            for index in range(below - 1, -1, -1):
                try:
                    self.stores[index].put(key, stored.value, timeout_s=stored.expires_in_s)
                except StoreUnavailableError as error:
                    self._note_failure(index, error)
                except StoreError:
                    continue  # Too large for that tier, which counts it. Its old value is gone.
                else:
                    self._debts[index].forget_keys((key,))

    def _note_failure(self, index: int, error: StoreUnavailableError) -> None:
        self._failures[index].add_one()
        if not self._is_down[index]:
            self._is_down[index] = True
            logger.warning("Tier %d (%s) is skipped while it fails: %s", index, self.stores[index].name, error)

    def _note_answer(self, index: int) -> None:
        if self._is_down[index]:
            self._is_down[index] = False
            logger.warning("Tier %d (%s) answers again.", index, self.stores[index].name)

    def _tier_names(self) -> str:
        return ", ".join(store.name for store in self.stores)
