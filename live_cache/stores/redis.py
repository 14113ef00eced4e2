"""
The store in Redis or Valkey: entries that all hosts share.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from live_cache.exceptions import ConfigurationError, StoreUnavailableError
from live_cache.redis_connection import Command, RedisConnection
from live_cache.redis_sending import NoTurnError
from live_cache.stores.base import (
    FlushReport,
    Missing,
    Store,
    StoredValue,
    StoreMetrics,
    validate_key,
)
from live_cache.stores.forks import ForkAware
from live_cache.stores.redis_steps import RedisSteps, Steps

__all__ = ["RedisStore"]

T = TypeVar("T")

# What one quick call may carry: more is worth waiting for.
_QUICK_KEYS: Final = 16
_QUICK_BYTES: Final = 256 * 1024


class RedisStore(ForkAware, Store):
    """
    Values in Redis (6.2 or later) or Valkey, each under *prefix* plus its key.

    Only keys under *prefix* are ever listed or dropped. Times to live count in whole milliseconds, rounded down. A
    server that evicts by its own policy (maxmemory-policy) does so uncounted. Async twins use redis.asyncio.

    What the server was told to drop or to replace while it did not answer is not read by this process before it has
    been dropped: a set() that nobody heard of must not bring the older value back.

    Args:
        connection: Shared with the ledger, so that an entry and its clocks are read in one round trip.
        prefix: What the keys of this store begin with. No other store's prefix may begin with it.
        clear_batch: Keys that one SCAN, UNLINK or MGET handles.

    Raises:
        ConfigurationError: The prefix is empty: clear() would then drop what belongs to others.
    """

    is_shared_by_processes = True
    is_shared_by_hosts = True
    async_kind = "native"
    evicts_by = "the server"

    def __init__(self, connection: RedisConnection, *, prefix: str = "live_cache:", clear_batch: int = 1000) -> None:
        if not prefix:
            raise ConfigurationError("A Redis store needs a key prefix, to know its own keys from those of others.")
        self.name = "redis"
        self.connection = connection
        self.prefix = prefix
        self._steps = RedisSteps(
            prefix, batch=clear_batch, shown=connection.shown, give_up=connection.forget_closed_loops
        )
        self._seen_closed_count = connection.quick_breaker.closed_count
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Replace the locks."""
        self._steps.debts.replace_lock()
        self._steps.claims.start_again()

    def full_key(self, key: str) -> str:
        """Return the name under which Redis holds *key*."""
        return self._steps.full_key(key)

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key*, or MISS."""
        return self._run(self._steps.get(key))

    async def aget(self, key: str) -> bytes | Missing:
        """See get()."""
        return await self._arun(self._steps.get(key))

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live, or MISS. One round trip."""
        return self._run(self._steps.get_with_expiry(key))

    async def aget_with_expiry(self, key: str) -> StoredValue | Missing:
        """See get_with_expiry()."""
        return await self._arun(self._steps.get_with_expiry(key))

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there. One round trip per clear_batch keys."""
        names = self._names(keys)
        return self._run(self._steps.get_many(names), is_quick=len(names) <= _QUICK_KEYS)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """See get_many()."""
        names = self._names(keys)
        return await self._arun(self._steps.get_many(names), is_quick=len(names) <= _QUICK_KEYS)

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """
        Store *value* under *key*, replacing what was there.

        Raises:
            QuotaExceededError: The value is over 512 MiB, or the server is full and may not evict. The old value is
                gone.
        """
        self.put_many({key: value}, timeout_s=timeout_s)

    async def aput(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """See put()."""
        await self.aput_many({key: value}, timeout_s=timeout_s)

    def put_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """
        Store every value of *items*, a few hundred per round trip. Not atomic over the keys.

        Raises:
            QuotaExceededError: As put() does. The old values of one batch are gone, the batches before it are stored.
        """
        pairs = self._pairs(items)
        self._run(self._steps.put_many(pairs, timeout_s), is_quick=_is_small(pairs))

    async def aput_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """See put_many()."""
        pairs = self._pairs(items)
        await self._arun(self._steps.put_many(pairs, timeout_s), is_quick=_is_small(pairs))

    def delete(self, key: str) -> bool:
        """Drop *key*. Return whether an unexpired value was there."""
        return self.delete_many((key,)) == 1

    async def adelete(self, key: str) -> bool:
        """See delete()."""
        return await self.adelete_many((key,)) == 1

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drop *keys*. Return how many were there."""
        names = self._names(keys)
        return self._run(self._steps.delete(names.values()), is_quick=len(names) <= _QUICK_KEYS)

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """See delete_many()."""
        names = self._names(keys)
        return await self._arun(self._steps.delete(names.values()), is_quick=len(names) <= _QUICK_KEYS)

    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key*. Counts as a lookup nowhere."""
        name = self.full_key(key)
        return bool(self._run(self._steps.ask(name, ("EXISTS", name))))

    async def aexists(self, key: str) -> bool:
        """See exists()."""
        name = self.full_key(key)
        return bool(await self._arun(self._steps.ask(name, ("EXISTS", name))))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix*, each once. Scans the database, in batches; remembers what it yielded."""
        if prefix:
            validate_key(prefix)
        return self._iterate_keys(prefix)

    async def akeys(self, prefix: str = "") -> list[str]:
        """See keys(). Returns a list."""
        if prefix:
            validate_key(prefix)
        names = await self._arun(self._steps.scan_all(prefix), is_quick=False)
        return list(self._steps.readable(self._steps.own(names, prefix, set())))

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix*. Return how many were dropped. Scans the database, in batches."""
        return self._run(self._steps.invalidate(prefix), is_quick=False)

    async def ainvalidate_prefix(self, prefix: str) -> int:
        """See invalidate_prefix()."""
        return await self._arun(self._steps.invalidate(prefix), is_quick=False)

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays."""
        return self._run(self._steps.increment(key, delta, default))

    async def aincrement(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """See increment()."""
        return await self._arun(self._steps.increment(key, delta, default))

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic."""
        return self._run(self._steps.swap(key, expected, value, timeout_s))

    async def acompare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """See compare_and_swap()."""
        return await self._arun(self._steps.swap(key, expected, value, timeout_s))

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""
        return bool(self._run(self._steps.touch(key, timeout_s)))

    async def atouch(self, key: str, timeout_s: float | None) -> bool:
        """See touch()."""
        return bool(await self._arun(self._steps.touch(key, timeout_s)))

    def take_lease(self, key: str, token: bytes, *, timeout_s: float) -> tuple[bool, bytes | Missing]:
        """See Store.take_lease(). One round trip."""
        return self._run(self._steps.take_lease(key, token, timeout_s))

    def is_leased(self, key: str) -> bool:
        """Return whether somebody holds the lease of *key*."""
        return bool(self._run(self._steps.send(("EXISTS", self._steps.lease_name(key)))))

    def release_lease(self, key: str, token: bytes) -> None:
        """End the lease of *key* if *token* holds it."""
        self._run(self._steps.send(self._steps.release(key, token)))

    def put_and_release(self, key: str, value: bytes, token: bytes, *, timeout_s: float | None = None) -> None:
        """Do what put() does, and end the lease of *key* if *token* holds it, in the same round trip."""
        pairs = self._pairs({key: value})
        steps = self._steps.put_many(pairs, timeout_s, then=self._steps.release(key, token))
        self._run(steps, is_quick=_is_small(pairs))

    def clear(self) -> None:
        """Drop every key under the store's prefix, in batches, and no other."""
        self._run(self._steps.clear(), is_quick=False)

    async def aclear(self) -> None:
        """See clear()."""
        await self._arun(self._steps.clear(), is_quick=False)

    async def alen(self) -> int:
        """See len()."""
        return self.len()

    async def aflush(self) -> FlushReport:
        """See flush()."""
        return self.flush()

    def count_lookup(self, *, is_hit: bool) -> None:
        """Count a lookup that the ledger made, which reads an entry of this store beside its own clocks."""
        self._steps.counters.count_lookup(is_hit=is_hit)

    def count_error(self) -> None:
        """Count a lookup of the ledger that was not answered."""
        self._steps.counters.errors.add_one()

    def metrics(self) -> StoreMetrics:
        """
        Return a copy of the counters of this process. What the server holds is not asked: counting takes a scan.

        The counts of the breakers are those of the connection, which the ledger may share.
        """
        metrics = self._steps.counters.snapshot()
        for breaker in (self.connection.quick_breaker, self.connection.patient_breaker):
            metrics.breaker_opened += breaker.opened.value
            metrics.breaker_skipped += breaker.skipped.value
            metrics.breaker_probed += breaker.probed.value
        return metrics

    def close(self) -> None:
        """Close the idle connections of this process."""
        self.connection.close()

    async def aclose(self) -> None:
        """See close(). Also closes the connections of the running loop."""
        await self.connection.aclose()

    # How a call runs its steps

    def _run(self, steps: Steps[T], *, is_quick: bool = True) -> T:
        """
        Send what *steps* ask for.

        A call that is not quick may take long. It begins with a question that is: the server may be silent.
        """
        if self._steps.debts.has_keys() and self._is_back():
            with suppress(StoreUnavailableError):
                self._run(self._steps.settle_some())
        try:
            commands = next(steps)
            if not is_quick:
                try:
                    self._run(self._steps.probe())
                except StoreUnavailableError as error:
                    commands = steps.throw(error)
            while True:
                try:
                    with self.connection.translating(StoreUnavailableError, is_quick=is_quick):
                        answers = self.connection.run(commands, is_quick=is_quick)
                except StoreUnavailableError as error:
                    self._steps.counters.errors.add_one()
                    commands = steps.throw(error)
                else:
                    commands = steps.send(answers)
        except StopIteration as stop:
            result: T = stop.value
            return result
        finally:
            steps.close()  # An interrupt comes to the frame of this function, not to theirs.

    async def _arun(self, steps: Steps[T], *, is_quick: bool = True) -> T:
        """See _run()."""
        if self._steps.debts.has_keys() and self._is_back():
            with suppress(StoreUnavailableError):
                await self._arun(self._steps.settle_some())
        try:
            # A StopIteration cannot leave a coroutine's await, so that each step is taken by itself.
            commands, result = _step(steps, None)
            if commands is not None and not is_quick:
                try:
                    await self._arun(self._steps.probe())
                except StoreUnavailableError as error:
                    commands, result = _step(steps, error)
            while commands is not None:
                answers: list[Any] | StoreUnavailableError
                try:
                    async with self.connection.atranslating(StoreUnavailableError, is_quick=is_quick):
                        answers = await self.connection.arun(commands, is_quick=is_quick)
                except StoreUnavailableError as error:
                    if isinstance(error.__cause__, NoTurnError):
                        self._seen_closed_count = -1  # The breaker is closed already: what is owed waits for no news.
                    self._steps.counters.errors.add_one()
                    answers = error
                commands, result = _step(steps, answers)
            return cast("T", result)
        finally:
            steps.close()

    def _is_back(self) -> bool:
        """Return whether the server answers again since it was asked last."""
        count = self.connection.quick_breaker.closed_count
        if count == self._seen_closed_count:
            return False
        self._seen_closed_count = count
        return True

    def _iterate_keys(self, prefix: str) -> Iterator[str]:
        seen: set[str] = set()
        cursor: int | None = 0
        while cursor is not None:
            cursor, names = self._run(self._steps.scan(prefix, cursor), is_quick=False)
            yield from self._steps.readable(self._steps.own(names, prefix, seen))

    def _names(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: self.full_key(key) for key in keys}

    def _pairs(self, items: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        return [(self.full_key(key), value) for key, value in items.items()]


def _step(steps: Steps[T], answers: list[Any] | StoreUnavailableError | None) -> tuple[list[Command] | None, T | None]:
    """Take one step. Return what to send next; or None, and what came of all."""
    try:
        if isinstance(answers, StoreUnavailableError):
            return steps.throw(answers), None
        return next(steps) if answers is None else steps.send(answers), None
    except StopIteration as stop:
        return None, stop.value


def _is_small(pairs: Sequence[tuple[str, bytes]]) -> bool:
    return len(pairs) <= _QUICK_KEYS and sum(len(value) for _, value in pairs if type(value) is bytes) <= _QUICK_BYTES
