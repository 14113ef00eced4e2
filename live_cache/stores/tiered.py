"""
Several stores as one, nearest first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

from live_cache.exceptions import (
    ConfigurationError,
    QuotaExceededError,
    StoreUnavailableError,
    StoreUnsupportedError,
)
from live_cache.stores.base import (
    MISS,
    FlushReport,
    Missing,
    Store,
    StoredValue,
    StoreMetrics,
    has_prefix,
    validate_key,
)
from live_cache.stores.tier_state import Promotion, promotion_policy
from live_cache.stores.tiered_async import TieredTwins

__all__ = ["TieredStore"]

T = TypeVar("T")


class TieredStore(TieredTwins):
    """
    Reads the nearest store that has the key, and writes to all of them.

    A tier that does not answer is skipped, counted, and logged when it fails first and when it answers again. What it
    failed to drop or to replace is not read from it by this process until it has dropped it. Of what other processes
    put into a shared far tier, a nearer tier learns nothing: whether a copy is still valid is the ledger's question.

    Async twins that read ask the tiers' own twins. Those that change something run in one thread, which can hold the
    locks that order writers and promotions; an event loop cannot hold a lock while it waits.

    Args:
        stores: The tiers, nearest first.
        promote: Which hits of a farther tier are copied to every nearer one, with the time to live that remains:
            "always", "never", N for one in N, or a function of key and StoredValue.

    Raises:
        ConfigurationError: There is no tier, or *promote* is none of these.
    """

    def __init__(self, stores: Sequence[Store], *, promote: Promotion = "always") -> None:
        if not stores:
            raise ConfigurationError("A tiered store needs at least one store.")
        super().__init__(stores, promotion_policy(promote))

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key* of the nearest tier that has it, or MISS; also if no tier answers."""
        noted = self._versions.note(validate_key(key))
        value = self._read(0, key, self.stores[0].get)
        if value is not MISS:
            self._counters.hits.add_one()
            return value
        stored = self._find(key, 1, noted)
        return MISS if stored is MISS else stored.value

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live in that tier, or MISS. See get()."""
        return self._find(key, 0, self._versions.note(validate_key(key)))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there. To be promoted, a key is read a second time."""
        missing = {validate_key(key): self._versions.note(key) for key in keys}
        asked = len(missing)
        found: dict[str, bytes] = {}
        for index, store in enumerate(self.stores):
            names = [key for key in missing if not self._owes(index, key)]
            hits: dict[str, bytes] = self._attempt(index, partial(store.get_many, names), {}) if names else {}
            for key, value in hits.items():
                found[key] = value
                noted = missing.pop(key)
                stored = self.read_tier(index, key) if index else MISS
                if stored is not MISS:
                    self._promote(key, stored, index, noted)
        self._counters.count_lookups(hits=len(found), misses=asked - len(found))
        return found

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """
        Store *value* in every tier, the farthest first.

        Returns if one tier accepted it. Where another failed, its old value is dropped or no longer read.

        Raises:
            QuotaExceededError: It is larger than any tier that answers accepts. The old value is gone.
            StoreUnavailableError: No tier answers.
        """
        self.put_many({key: value}, timeout_s=timeout_s)

    def put_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """Store every value of *items*. Not atomic over the keys. See put()."""
        self._put_many(items, lambda index, store: store.put_many(items, timeout_s=timeout_s))

    def put_and_release(self, key: str, value: bytes, token: bytes, *, timeout_s: float | None = None) -> None:
        """Store *value* in every tier; the farthest then ends the lease of *key* if *token* holds it. See put()."""
        farthest = len(self.stores) - 1

        def put(index: int, store: Store) -> None:
            if index == farthest:
                store.put_and_release(key, value, token, timeout_s=timeout_s)
            else:
                store.put(key, value, timeout_s=timeout_s)

        self._put_many({key: value}, put)

    def take_lease(self, key: str, token: bytes, *, timeout_s: float) -> tuple[bool, bytes | Missing]:
        """Let the farthest tier decide. See Store.take_lease()."""
        return self.stores[-1].take_lease(key, token, timeout_s=timeout_s)

    def is_leased(self, key: str) -> bool:
        """Ask the farthest tier."""
        return self.stores[-1].is_leased(key)

    def release_lease(self, key: str, token: bytes) -> None:
        """Tell the farthest tier."""
        self.stores[-1].release_lease(key, token)

    def _put_many(self, items: Mapping[str, bytes], put: Callable[[int, Store], None]) -> None:
        for key in items:
            validate_key(key)
        if not items:
            return
        rejection: QuotaExceededError | None = None
        accepted = 0
        with self._versions.writing(items):
            for index in self._far_to_near:
                store = self.stores[index]
                try:
                    put(index, store)
                except QuotaExceededError as error:
                    rejection = rejection or error
                    if len(items) > 1:  # The tier dropped the old value of one key; which, it does not say.
                        self._drop(index, items)
                except StoreUnavailableError as error:
                    self._note_failure(index, error)
                    self._drop(index, items)
                else:
                    accepted += 1
                    self._note_answer(index)
                    self._debts[index].forget_keys(items)
        if accepted:
            self._counters.puts.add(len(items))
            return
        if rejection is not None:
            self._counters.rejected_puts.add(len(items))
            raise rejection
        raise StoreUnavailableError(f"No tier of {self._tier_names()} took the value. See the log for the reasons.")

    def delete(self, key: str) -> bool:
        """
        Drop *key* from every tier. Return whether an unexpired value was in one.

        Raises:
            StoreUnavailableError: A tier failed. The others dropped it, and this process reads it from none.
        """
        return self.delete_many((key,)) > 0

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drop *keys* from every tier. Return how many were in the tier that held the most of them. See delete()."""
        names = list(dict.fromkeys(validate_key(key) for key in keys))
        dropped = 0
        failed: list[StoreUnavailableError] = []
        with self._versions.writing(names):
            for index in self._far_to_near:
                number = self._drop(index, names)
                if isinstance(number, StoreUnavailableError):
                    failed.append(number)
                else:
                    dropped = max(dropped, number)
        self._counters.deletes.add(dropped)
        self._raise_first(failed)
        return dropped

    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key* in a tier. Counts as a lookup nowhere."""
        validate_key(key)
        return any(
            self._attempt(index, partial(store.exists, key), False)
            for index, store in enumerate(self.stores)
            if not self._owes(index, key)
        )

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix* of every tier that answers, each once; remembers what it yielded."""
        if prefix:
            validate_key(prefix)
        return self._iterate_keys(prefix)

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix* from every tier. Return the largest number that one dropped. See delete()."""
        if prefix:
            validate_key(prefix)
        dropped = self._drop_prefix(prefix, lambda store: store.invalidate_prefix(prefix))
        self._counters.deletes.add(dropped)
        return dropped

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the integer under *key* in the farthest tier, and drop it from the nearer ones."""
        return self._decide(key, lambda store: store.increment(key, delta, default=default))

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """
        Store *value* in the farthest tier only if *key* holds *expected* there; drop it from the nearer ones.

        Also if it did not: so the next get() sees the value that was in the way.
        """
        try:
            is_stored = self._decide(
                key, lambda store: store.compare_and_swap(key, expected, value, timeout_s=timeout_s)
            )
        except QuotaExceededError:
            self._counters.rejected_puts.add_one()
            raise
        if is_stored:
            self._counters.puts.add_one()
        return is_stored

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live in the farthest tier, and drop it from the nearer ones."""
        return self._decide(key, lambda store: store.touch(key, timeout_s))

    def clear(self) -> None:
        """Drop every entry of every tier. See delete()."""

        def clear(store: Store) -> int:
            store.clear()
            return 0

        self._drop_prefix("", clear)

    def len(self) -> int:
        """Return how many entries the farthest tier holds that can tell."""
        for index in self._far_to_near:
            try:
                return self.stores[index].len()
            except StoreUnsupportedError:
                continue
            except StoreUnavailableError as error:
                self._note_failure(index, error)
        raise StoreUnsupportedError(f"No tier of {self._tier_names()} can count its entries.")

    def flush(self) -> FlushReport:
        """Flush every tier, the farthest first. Durable if one of them is."""
        reports: list[FlushReport] = []
        failed = self._each(lambda store: reports.append(store.flush()))
        self._raise_first(failed)
        return FlushReport(
            is_durable=any(report.is_durable for report in reports),
            pending_entries=sum(report.pending_entries for report in reports),
        )

    def metrics(self) -> StoreMetrics:
        """
        Return the lookups and changes made through this store, and the failures and evictions of its tiers.

        What read_tier() and put_near() do is counted by the tiers alone. Entries are those of the farthest tier that
        can tell, bytes those of all that can.
        """
        tiers = [store.metrics() for store in self.stores]
        entries = [tier.entries for tier in reversed(tiers) if tier.entries is not None]
        sizes = [tier.size_bytes for tier in tiers if tier.size_bytes is not None]
        metrics = self._counters.snapshot(
            entries=entries[0] if entries else None, size_bytes=sum(sizes) if sizes else None
        )
        metrics.errors = sum(tally.value for tally in self._failures)
        for tier in tiers:
            metrics.breaker_opened += tier.breaker_opened
            metrics.breaker_skipped += tier.breaker_skipped
            metrics.breaker_probed += tier.breaker_probed
            for reason, number in tier.evictions.items():
                metrics.evictions[reason] = metrics.evictions.get(reason, 0) + number
        return metrics

    def tier_metrics(self) -> dict[str, StoreMetrics]:
        """Return the counters of each tier by its name, nearest first; a second tier of one name is ``name#2``."""
        named: dict[str, StoreMetrics] = {}
        seen: dict[str, int] = {}
        for store in self.stores:
            seen[store.name] = number = seen.get(store.name, 0) + 1
            named[store.name if number == 1 else f"{store.name}#{number}"] = store.metrics()
        return named

    def close(self) -> None:
        """Close every tier."""
        self._raise_first(self._each(lambda store: store.close()))

    def read_tier(self, index: int, key: str) -> StoredValue | Missing:
        """Return what tier *index* holds under *key*. A failure is counted, logged, and a MISS; nothing is promoted."""
        return self._read(index, key, self.stores[index].get_with_expiry)

    def put_near(self, key: str, value: bytes, *, timeout_s: float | None, below: int) -> None:
        """
        Store *value* in every tier nearer than *below*, if the promotion policy wants it. Failures are only counted.

        For readers that walk the tiers themselves, of values that say by themselves whether they are valid: one that
        was read before a put() may come after it.
        """
        self._promote(validate_key(key), StoredValue(value, timeout_s), below, None)

    def _read(self, index: int, key: str, read: Callable[[str], T | Missing]) -> T | Missing:
        if self._owes(index, key):
            return MISS
        try:
            found = read(key)
        except StoreUnavailableError as error:
            self._note_failure(index, error)
            return MISS
        self._note_answer(index)
        return found

    def _find(self, key: str, start: int, noted: int) -> StoredValue | Missing:
        for index in range(start, len(self.stores)):
            stored = self.read_tier(index, key)
            if stored is not MISS:
                self._promote(key, stored, index, noted)
                self._counters.hits.add_one()
                return stored
        self._counters.misses.add_one()
        return MISS

    def _decide(self, key: str, decide: Callable[[Store], T]) -> T:
        """Let the farthest tier decide, alone, and drop *key* from the others, whatever came of it."""
        validate_key(key)
        farthest = len(self.stores) - 1
        with self._versions.writing((key,)):
            try:
                if self._owes(farthest, key) and self._debts[farthest].covers(key):
                    raise StoreUnavailableError(f"{self.stores[farthest].name} has not dropped {key!r} yet.")
                result = decide(self.stores[farthest])
            except StoreUnavailableError as error:
                self._note_failure(farthest, error)
                raise
            finally:
                for index in range(farthest - 1, -1, -1):
                    self._drop(index, (key,))
        self._note_answer(farthest)
        return result

    def _drop_prefix(self, prefix: str, drop: Callable[[Store], int]) -> int:
        dropped = 0
        failed: list[StoreUnavailableError] = []
        for index in self._far_to_near:
            owed = [debt for debt in self._debts[index].prefixes() if has_prefix(debt[0], prefix) or not prefix]
            try:
                dropped = max(dropped, drop(self.stores[index]))
            except StoreUnavailableError as error:
                self._debts[index].add_prefix(prefix)
                self._note_failure(index, error)
                failed.append(error)
            else:
                self._debts[index].forget_prefixes(owed)
            # Between the tiers, so that no value read from this one is still on its way to a nearer one.
            self._versions.raise_all()
        self._raise_first(failed)
        return dropped

    def _attempt(self, index: int, ask: Callable[[], T], otherwise: T) -> T:
        try:
            answer = ask()
        except StoreUnavailableError as error:
            self._note_failure(index, error)
            return otherwise
        self._note_answer(index)
        return answer

    def _each(self, ask: Callable[[Store], object]) -> list[StoreUnavailableError]:
        failed: list[StoreUnavailableError] = []
        for index in self._far_to_near:
            try:
                ask(self.stores[index])
            except StoreUnavailableError as error:
                self._note_failure(index, error)
                failed.append(error)
        return failed

    def _iterate_keys(self, prefix: str) -> Iterator[str]:
        seen: set[str] = set()
        for index, store in enumerate(self.stores):
            try:
                for key in store.keys(prefix):
                    if key not in seen and not self._debts[index].covers(key):
                        seen.add(key)
                        yield key
            except StoreUnavailableError as error:
                self._note_failure(index, error)

    def _raise_first(self, failed: list[StoreUnavailableError]) -> None:
        if failed:
            raise failed[0]
