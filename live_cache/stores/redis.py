"""
The store in Redis or Valkey: entries that all hosts share.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, TypeAlias, TypeVar

from live_cache.exceptions import ConfigurationError, QuotaExceededError, StoreError, StoreUnavailableError
from live_cache.redis_connection import Command, RedisConnection, Script
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
from live_cache.stores.counters import StoreCounters
from live_cache.stores.forks import ForkAware
from live_cache.stores.tier_state import Debts

__all__ = ["RedisStore"]

T = TypeVar("T")
# The steps of a call: what it sends is yielded, what it gets is sent in. One text for the sync and the async twin.
Steps: TypeAlias = Generator["list[Command]", "list[Any]", T]

# proto-max-bulk-len: the server drops the connection of whoever sends more.
_MAX_VALUE_BYTES: Final = 512 * 1024 * 1024
# PX takes 63 bits, the present included. 2**52 milliseconds are 142,000 years.
_MAX_TIMEOUT_MS: Final = 2**52

# The sum is read back as text, since Lua numbers hold no more than 53 bits. INCRBY itself keeps the time to live,
# checks the 64 bits, and refuses what is no integer. A default that leads to an error is taken back.
_INCREMENT: Final = Script("""
local is_new = redis.call('EXISTS', KEYS[1]) == 0
if is_new then
  if ARGV[2] == '' then return {0} end
  redis.call('SET', KEYS[1], ARGV[2])
end
local answer = redis.pcall('INCRBY', KEYS[1], ARGV[1])
if type(answer) == 'table' and answer.err then
  if is_new then redis.pcall('DEL', KEYS[1]) end
  if string.sub(answer.err, 1, 4) ~= 'ERR ' then return answer end
  return {2, answer.err}
end
return {1, redis.call('GET', KEYS[1])}
""")

# ARGV: '1' or '0' for whether a value is expected, that value, the new one, milliseconds ('' never, '0' at once).
_COMPARE_AND_SWAP: Final = Script("""
local held = redis.call('GET', KEYS[1])
if ARGV[1] == '1' then
  if held ~= ARGV[2] then return 0 end
elseif held then
  return 0
end
if ARGV[4] == '' then
  redis.call('SET', KEYS[1], ARGV[3])
elseif ARGV[4] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
end
return 1
""")

# In one step, so that no other value takes the key between the two and lends this one its time to live.
_GET_WITH_EXPIRY: Final = Script("return {redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])}")
_PERSIST: Final = Script("redis.call('PERSIST', KEYS[1]) return redis.call('EXISTS', KEYS[1])")

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
        self._batch = clear_batch
        self._counters = StoreCounters()
        self._debts = Debts()  # By full names.
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Replace the lock."""
        self._debts.replace_lock()

    def full_key(self, key: str) -> str:
        """Return the name under which Redis holds *key*."""
        return self.prefix + validate_key(key)

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key*, or MISS."""
        return self._run(self._get(key), is_quick=True)

    async def aget(self, key: str) -> bytes | Missing:
        """See get()."""
        return await self._arun(self._get(key), is_quick=True)

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live, or MISS. One round trip."""
        return self._run(self._get_with_expiry(key), is_quick=True)

    async def aget_with_expiry(self, key: str) -> StoredValue | Missing:
        """See get_with_expiry()."""
        return await self._arun(self._get_with_expiry(key), is_quick=True)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there. One round trip per clear_batch keys."""
        names = self._names(keys)
        return self._run(self._get_many(names), is_quick=len(names) <= _QUICK_KEYS)

    async def aget_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """See get_many()."""
        names = self._names(keys)
        return await self._arun(self._get_many(names), is_quick=len(names) <= _QUICK_KEYS)

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
        self._run(self._put_many(pairs, timeout_s), is_quick=_is_small(pairs), is_write=True)

    async def aput_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """See put_many()."""
        pairs = self._pairs(items)
        await self._arun(self._put_many(pairs, timeout_s), is_quick=_is_small(pairs), is_write=True)

    def delete(self, key: str) -> bool:
        """Drop *key*. Return whether an unexpired value was there."""
        return self.delete_many((key,)) == 1

    async def adelete(self, key: str) -> bool:
        """See delete()."""
        return await self.adelete_many((key,)) == 1

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drop *keys*. Return how many were there."""
        names = self._names(keys)
        return self._run(self._delete(names.values()), is_quick=len(names) <= _QUICK_KEYS, is_write=True)

    async def adelete_many(self, keys: Iterable[str]) -> int:
        """See delete_many()."""
        names = self._names(keys)
        return await self._arun(self._delete(names.values()), is_quick=len(names) <= _QUICK_KEYS, is_write=True)

    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key*. Counts as a lookup nowhere."""
        name = self.full_key(key)
        return bool(self._run(self._ask(name, ("EXISTS", name)), is_quick=True))

    async def aexists(self, key: str) -> bool:
        """See exists()."""
        name = self.full_key(key)
        return bool(await self._arun(self._ask(name, ("EXISTS", name)), is_quick=True))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix*, each once. Scans the database, in batches; remembers what it yielded."""
        if prefix:
            validate_key(prefix)
        return self._iterate_keys(prefix)

    async def akeys(self, prefix: str = "") -> list[str]:
        """See keys(). Returns a list."""
        if prefix:
            validate_key(prefix)
        return list(self._readable(self._own(await self._arun(self._scan_all(prefix)), prefix, set())))

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix*. Return how many were dropped. Scans the database, in batches."""
        return self._run(self._invalidate(prefix))

    async def ainvalidate_prefix(self, prefix: str) -> int:
        """See invalidate_prefix()."""
        return await self._arun(self._invalidate(prefix))

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays."""
        return self._run(self._increment(key, delta, default), is_quick=True, is_write=True)

    async def aincrement(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """See increment()."""
        return await self._arun(self._increment(key, delta, default), is_quick=True, is_write=True)

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic."""
        return self._run(self._swap(key, expected, value, timeout_s), is_quick=True, is_write=True)

    async def acompare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """See compare_and_swap()."""
        return await self._arun(self._swap(key, expected, value, timeout_s), is_quick=True, is_write=True)

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""
        return bool(self._run(self._touch(key, timeout_s), is_quick=True, is_write=True))

    async def atouch(self, key: str, timeout_s: float | None) -> bool:
        """See touch()."""
        return bool(await self._arun(self._touch(key, timeout_s), is_quick=True, is_write=True))

    def clear(self) -> None:
        """Drop every key under the store's prefix, in batches, and no other."""
        self._run(self._clear())

    async def aclear(self) -> None:
        """See clear()."""
        await self._arun(self._clear())

    async def alen(self) -> int:
        """See len()."""
        return self.len()

    async def aflush(self) -> FlushReport:
        """See flush()."""
        return self.flush()

    def metrics(self) -> StoreMetrics:
        """
        Return a copy of the counters of this process. What the server holds is not asked: counting takes a scan.

        The counts of the breakers are those of the connection, which the ledger may share.
        """
        metrics = self._counters.snapshot()
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

    def _run(self, steps: Steps[T], *, is_quick: bool = False, is_write: bool = False) -> T:
        """
        Send what *steps* ask for.

        A quick call is refused while the server is known to be silent. Of those, writes wait SOCKET_TIMEOUT_S for the
        answer and not READ_TIMEOUT_S: a read has the database to go to, a value that was not stored is lost.
        """
        connection = self.connection
        try:
            commands = next(steps)
            while True:
                try:
                    with connection.translating(StoreUnavailableError, is_quick=is_quick):
                        answers = connection.run(commands, is_quick=is_quick and not is_write)
                except StoreUnavailableError as error:
                    self._counters.errors.add_one()
                    commands = steps.throw(error)
                else:
                    commands = steps.send(answers)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def _arun(self, steps: Steps[T], *, is_quick: bool = False, is_write: bool = False) -> T:
        """See _run()."""
        connection = self.connection
        is_over = False
        result: T
        try:
            commands = next(steps)
        except StopIteration as stop:
            result = stop.value
            return result
        while True:
            failure: StoreUnavailableError | None = None
            answers: list[Any] = []
            try:
                with connection.translating(StoreUnavailableError, is_quick=is_quick):
                    answers = await connection.arun(commands, is_quick=is_quick and not is_write)
            except StoreUnavailableError as error:
                self._counters.errors.add_one()
                failure = error
            try:
                commands = steps.send(answers) if failure is None else steps.throw(failure)
            except StopIteration as stop:
                is_over, result = True, stop.value
            if is_over:
                return result

    # The steps of each call

    def _get(self, key: str) -> Steps[bytes | Missing]:
        name = self.full_key(key)
        if self._debts.covers(name):
            yield from self._settle([name])
        (value,) = yield [("GET", name)]
        self._counters.count_lookup(is_hit=value is not None)
        return MISS if value is None else value

    def _get_with_expiry(self, key: str) -> Steps[StoredValue | Missing]:
        name = self.full_key(key)
        yield from self._settle([name])
        ((value, remaining_ms),) = yield [(_GET_WITH_EXPIRY, name)]
        # Before Redis 7 a key may expire between two commands of one script: -2 then.
        is_hit = value is not None and remaining_ms != -2
        self._counters.count_lookup(is_hit=is_hit)
        if not is_hit:
            return MISS
        return StoredValue(value, None if remaining_ms < 0 else remaining_ms / 1000)

    def _get_many(self, names: Mapping[str, str]) -> Steps[dict[str, bytes]]:
        found: dict[str, bytes] = {}
        yield from self._settle(names.values())
        for batch in _batches(names.items(), self._batch):
            (values,) = yield [("MGET", *[name for _, name in batch])]
            for (key, _), value in zip(batch, values, strict=True):
                if value is not None:
                    found[key] = value
        self._counters.count_lookups(hits=len(found), misses=len(names) - len(found))
        return found

    def _put_many(self, pairs: Sequence[tuple[str, bytes]], timeout_s: float | None) -> Steps[None]:
        timeout_ms = _milliseconds(timeout_s)
        for batch in _batches(pairs, self._batch):
            yield from self._check_values(batch)
            names = [name for name, _ in batch]
            if timeout_ms is not None and timeout_ms <= 0:
                yield from self._owing(names, self._unlink(names))
            else:
                yield from self._owing(names, self._put_batch(batch, timeout_ms))
            self._counters.puts.add(len(batch))

    def _put_batch(self, batch: Sequence[tuple[str, bytes]], timeout_ms: int | None) -> Steps[None]:
        expiry: tuple[str | int, ...] = () if timeout_ms is None else ("PX", timeout_ms)
        yield from self._write([("SET", name, value, *expiry) for name, value in batch], batch)

    def _write(self, commands: list[Command], batch: Sequence[tuple[str, bytes]]) -> Steps[list[Any]]:
        try:
            answers = yield commands
            return answers
        except StoreUnavailableError as error:
            if "used memory > 'maxmemory'" not in str(error.__cause__):
                raise
            yield from self._reject(batch)
            raise QuotaExceededError(
                f"Redis at {self.connection.shown} is full and may not evict (maxmemory-policy noeviction)."
            ) from error.__cause__

    def _delete(self, names: Iterable[str]) -> Steps[int]:
        every = list(names)
        dropped = yield from self._owing(every, self._unlink(every))
        self._counters.deletes.add(dropped)
        return dropped

    def _invalidate(self, prefix: str) -> Steps[int]:
        if prefix:
            validate_key(prefix)
        dropped = yield from self._drop_prefix(prefix)
        self._counters.deletes.add(dropped)
        return dropped

    def _drop_prefix(self, prefix: str) -> Steps[int]:
        full = self.prefix + prefix if prefix else ""
        owed = [debt for debt in self._debts.prefixes() if has_prefix(debt[0], full)]
        seen: set[str] = set()
        dropped = 0
        cursor: int | None = 0
        try:
            while cursor is not None:
                cursor, names = yield from self._scan(prefix, cursor)
                mine = names if not prefix else [self.prefix + key for key in self._own(names, prefix, seen)]
                dropped += yield from self._unlink(mine)
        except StoreUnavailableError:
            self._debts.add_prefix(full)
            raise
        self._debts.forget_prefixes(owed)
        return dropped

    def _owing(self, names: Sequence[str], steps: Steps[T]) -> Steps[T]:
        """Take the steps, and remember *names* if the server does not answer."""
        try:
            result = yield from steps
        except StoreUnavailableError:
            self._debts.add_keys(names)
            raise
        self._debts.forget_keys(names)
        return result

    def _settle(self, names: Iterable[str]) -> Steps[None]:
        """Drop those of *names* that were to be dropped before."""
        owed = [name for name in names if self._debts.covers(name)]
        if not owed:
            return
        for debt in self._debts.prefixes():
            if any(has_prefix(name, debt[0]) for name in owed):
                yield from self._drop_prefix(debt[0][len(self.prefix) :])
        yield from self._unlink(owed)
        self._debts.forget_keys(owed)

    def _ask(self, name: str, command: Command) -> Steps[Any]:
        yield from self._settle([name])
        (answer,) = yield [command]
        return answer

    def _increment(self, key: str, delta: int, default: int | None) -> Steps[int | Missing]:
        start = "" if default is None else str(default)
        name = self.full_key(key)
        status, *answer = yield from self._ask(name, (_INCREMENT, name, str(delta), start))
        if status == 0:
            return MISS
        if status == 2:
            raise StoreError(
                f"The value under {key!r} cannot be changed by {delta}: {_text(answer[0])}. Nothing changed."
            )
        return int(answer[0])

    def _swap(self, key: str, expected: bytes | None, value: bytes, timeout_s: float | None) -> Steps[bool]:
        name = self.full_key(key)
        yield from self._check_values([(name, value)])
        yield from self._settle([name])
        timeout_ms = _milliseconds(timeout_s)
        expects = b"" if expected is None else expected
        is_expected = "0" if expected is None else "1"
        timeout = "" if timeout_ms is None else str(max(0, timeout_ms))
        swap: Command = (_COMPARE_AND_SWAP, name, is_expected, expects, value, timeout)
        (is_stored,) = yield from self._write([swap], [(name, value)])
        if is_stored:
            self._counters.puts.add_one()
        return bool(is_stored)

    def _touch(self, key: str, timeout_s: float | None) -> Steps[Any]:
        timeout_ms = _milliseconds(timeout_s)
        name = self.full_key(key)
        if timeout_ms is None:
            return (yield from self._ask(name, (_PERSIST, name)))
        if timeout_ms <= 0:
            return (yield from self._owing([name], self._ask(name, ("UNLINK", name))))
        return (yield from self._ask(name, ("PEXPIRE", name, timeout_ms)))

    def _clear(self) -> Steps[None]:
        yield from self._drop_prefix("")

    def _check_values(self, batch: Sequence[tuple[str, bytes]]) -> Steps[None]:
        for name, value in batch:
            if type(value) is not bytes:
                raise TypeError(f"A store holds bytes; the value for {name!r} is {type(value).__name__}.")
            if len(value) > _MAX_VALUE_BYTES:
                yield from self._reject(batch)
                raise QuotaExceededError(
                    f"The value for {name!r} has {len(value)} bytes; Redis takes at most {_MAX_VALUE_BYTES}."
                )

    def _reject(self, batch: Sequence[tuple[str, bytes]]) -> Steps[None]:
        self._counters.rejected_puts.add(len(batch))
        dropped = yield from self._unlink([name for name, _ in batch])
        self._counters.count_evictions("rejected", dropped)

    def _unlink(self, names: Iterable[str | bytes]) -> Steps[int]:
        """Drop keys by their full names, in batches. UNLINK frees the memory beside the server's work."""
        dropped = 0
        for batch in _batches(names, self._batch):
            (number,) = yield [("UNLINK", *batch)]
            dropped += number
        return dropped

    def _scan(self, prefix: str, cursor: int) -> Steps[tuple[int | None, list[bytes]]]:
        """Return the next cursor, None at the end, and full names that begin with *prefix*. SCAN may repeat one."""
        pattern = _escape_glob(self.prefix + prefix) + "*"
        ((following, names),) = yield [("SCAN", cursor, "MATCH", pattern, "COUNT", self._batch)]
        return int(following) or None, names

    def _scan_all(self, prefix: str) -> Steps[list[bytes]]:
        found: list[bytes] = []
        cursor: int | None = 0
        while cursor is not None:
            cursor, names = yield from self._scan(prefix, cursor)
            found.extend(names)
        return found

    def _iterate_keys(self, prefix: str) -> Iterator[str]:
        seen: set[str] = set()
        cursor: int | None = 0
        while cursor is not None:
            cursor, names = self._run(self._scan(prefix, cursor))
            yield from self._readable(self._own(names, prefix, seen))

    def _own(self, names: Iterable[bytes], prefix: str, seen: set[str]) -> Iterator[str]:
        """Yield the keys of ours among full names, but those *seen*; and note them there."""
        own_bytes = len(self.prefix.encode())
        for name in names:
            try:
                key = name[own_bytes:].decode()
            except UnicodeDecodeError:
                continue  # Put there by somebody else: no key of ours.
            if key and key not in seen and has_prefix(key, prefix):
                seen.add(key)
                yield key

    def _readable(self, keys: Iterable[str]) -> Iterator[str]:
        return (key for key in keys if not self._debts.covers(self.prefix + key))

    def _names(self, keys: Iterable[str]) -> dict[str, str]:
        return {key: self.full_key(key) for key in keys}

    def _pairs(self, items: Mapping[str, bytes]) -> list[tuple[str, bytes]]:
        return [(self.full_key(key), value) for key, value in items.items()]


def _is_small(pairs: Sequence[tuple[str, bytes]]) -> bool:
    return len(pairs) <= _QUICK_KEYS and sum(len(value) for _, value in pairs if type(value) is bytes) <= _QUICK_BYTES


def _batches(values: Iterable[T], size: int) -> Iterator[list[T]]:
    rest = iter(values)
    while batch := list(itertools.islice(rest, size)):
        yield batch


def _milliseconds(timeout_s: float | None) -> int | None:
    """Return *timeout_s* in milliseconds, rounded down: nothing may be seen at its deadline or after."""
    if timeout_s is None:
        return None
    # The millionth puts right what binary fractions lose: 1.001 s is 1000.9999999999999 ms.
    return int(max(0.0, min(timeout_s * 1000 + 1e-6, _MAX_TIMEOUT_MS)))


def _escape_glob(text: str) -> str:
    """Return *text* as a MATCH pattern that means it literally."""
    return "".join("\\" + character if character in "*?[]^-\\" else character for character in text)


def _text(answer: bytes | str) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else answer
