"""
The store in Redis or Valkey: entries that all hosts share.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from operator import methodcaller
from typing import Any, Final, TypeVar

from live_cache.exceptions import ConfigurationError, QuotaExceededError, StoreError, StoreUnavailableError
from live_cache.redis_connection import RedisConnection
from live_cache.stores.base import MISS, Missing, Store, StoredValue, StoreMetrics, has_prefix, validate_key
from live_cache.stores.counters import StoreCounters

__all__ = ["RedisStore"]

T = TypeVar("T")

# proto-max-bulk-len: the server drops the connection of whoever sends more.
_MAX_VALUE_BYTES: Final = 512 * 1024 * 1024
# PX takes 63 bits, the present included. 2**52 milliseconds are 142,000 years.
_MAX_TIMEOUT_MS: Final = 2**52

# The sum is read back as text, since Lua numbers hold no more than 53 bits. INCRBY itself keeps the time to live,
# checks the 64 bits, and refuses what is no integer. A default that leads to an error is taken back.
_INCREMENT: Final = """
local is_new = redis.call('EXISTS', KEYS[1]) == 0
if is_new then
  if ARGV[2] == '' then return {0} end
  redis.call('SET', KEYS[1], ARGV[2])
end
local answer = redis.pcall('INCRBY', KEYS[1], ARGV[1])
if type(answer) == 'table' and answer.err then
  if is_new then redis.call('DEL', KEYS[1]) end
  return {2, answer.err}
end
return {1, redis.call('GET', KEYS[1])}
"""

# ARGV: '1' or '0' for whether a value is expected, that value, the new one, milliseconds ('' never, '0' at once).
_COMPARE_AND_SWAP: Final = """
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
"""


class RedisStore(Store):
    """
    Values in Redis (6.2 or later) or Valkey, each under *prefix* plus its key.

    Only keys under *prefix* are ever listed or dropped. Times to live count in whole milliseconds, rounded down. A
    server that evicts by its own policy (maxmemory-policy) does so uncounted.

    Args:
        connection: Shared with the ledger, so that an entry and its clocks are read in one round trip.
        prefix: What the keys of this store begin with. No other store's prefix may begin with it.
        clear_batch: Keys that one SCAN, UNLINK or MGET handles.

    Raises:
        ConfigurationError: The prefix is empty: clear() would then drop what belongs to others.
    """

    is_shared_by_processes = True
    is_shared_by_hosts = True

    def __init__(self, connection: RedisConnection, *, prefix: str = "live_cache:", clear_batch: int = 1000) -> None:
        if not prefix:
            raise ConfigurationError("A Redis store needs a key prefix, to know its own keys from those of others.")
        self.name = "redis"
        self.connection = connection
        self.prefix = prefix
        self._batch = clear_batch
        self._counters = StoreCounters()
        self._scripts: dict[str, Any] = {}

    def full_key(self, key: str) -> str:
        """Return the name under which Redis holds *key*."""
        return self.prefix + validate_key(key)

    def get(self, key: str) -> bytes | Missing:
        """Return the value under *key*, or MISS."""
        name = self.full_key(key)
        value: bytes | None = self._ask(methodcaller("get", name))
        self._counters.count_lookup(is_hit=value is not None)
        return MISS if value is None else value

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        """Return the value under *key* with its remaining time to live, or MISS. One round trip."""
        name = self.full_key(key)

        def read(client: Any) -> list[Any]:
            # MULTI, so that no other value takes the key between the two and lends this one its time to live.
            with client.pipeline(transaction=True) as pipeline:
                answers: list[Any] = pipeline.get(name).pttl(name).execute()
                return answers

        value, remaining_ms = self._ask(read)
        # Before Redis 7 a key may expire between two commands of one transaction: -2 then.
        is_hit = value is not None and remaining_ms != -2
        self._counters.count_lookup(is_hit=is_hit)
        if not is_hit:
            return MISS
        return StoredValue(value, None if remaining_ms < 0 else remaining_ms / 1000)

    def get_many(self, keys: Iterable[str]) -> dict[str, bytes]:
        """Return the values of those *keys* that are there. One round trip per clear_batch keys."""
        found: dict[str, bytes] = {}
        asked = 0
        names = iter({key: self.full_key(key) for key in keys}.items())
        while batch := dict(itertools.islice(names, self._batch)):
            values = self._ask(methodcaller("mget", list(batch.values())))
            found.update((key, value) for key, value in zip(batch, values, strict=True) if value is not None)
            asked += len(batch)
        self._counters.count_lookups(hits=len(found), misses=asked - len(found))
        return found

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        """
        Store *value* under *key*, replacing what was there.

        Raises:
            QuotaExceededError: The value is over 512 MiB, or the server is full and may not evict. The old value is
                gone.
        """
        self.put_many({key: value}, timeout_s=timeout_s)

    def put_many(self, items: Mapping[str, bytes], *, timeout_s: float | None = None) -> None:
        """
        Store every value of *items*, a few hundred per round trip. Not atomic over the keys.

        Raises:
            QuotaExceededError: As put() does. The old values of one batch are gone, the batches before it are stored.
        """
        timeout_ms = _milliseconds(timeout_s)
        pairs = iter([(self.full_key(key), value) for key, value in items.items()])
        while batch := list(itertools.islice(pairs, self._batch)):
            self._check_values(batch)
            self._put_batch(batch, timeout_ms)
            self._counters.puts.add(len(batch))

    def delete(self, key: str) -> bool:
        """Drop *key*. Return whether an unexpired value was there."""
        return self.delete_many((key,)) == 1

    def delete_many(self, keys: Iterable[str]) -> int:
        """Drop *keys*. Return how many were there."""
        dropped = self._unlink(iter([self.full_key(key) for key in keys]))
        self._counters.deletes.add(dropped)
        return dropped

    def exists(self, key: str) -> bool:
        """Return whether an unexpired value is under *key*. Counts as a lookup nowhere."""
        name = self.full_key(key)
        return bool(self._ask(methodcaller("exists", name)))

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Yield the keys under *prefix*, each once. Scans the database, in batches; remembers what it yielded."""
        if prefix:
            validate_key(prefix)
        return self._iterate_keys(prefix)

    def invalidate_prefix(self, prefix: str) -> int:
        """Drop every key under *prefix*. Return how many were dropped. Scans the database, in batches."""
        dropped = self._unlink(self.prefix + key for key in self.keys(prefix))
        self._counters.deletes.add(dropped)
        return dropped

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        """Add *delta* to the decimal integer under *key*, atomically, and return the sum. The time to live stays."""
        name = self.full_key(key)
        status, *answer = self._run(_INCREMENT, name, str(delta), "" if default is None else str(default))
        if status == 0:
            return MISS
        if status == 2:
            raise StoreError(
                f"The value under {key!r} cannot be changed by {delta}: {_text(answer[0])}. Nothing changed."
            )
        return int(answer[0])

    def compare_and_swap(
        self, key: str, expected: bytes | None, value: bytes, *, timeout_s: float | None = None
    ) -> bool:
        """Store *value* only if *key* holds *expected* (None: only if there is nothing). Atomic."""
        name = self.full_key(key)
        self._check_values([(name, value)])
        timeout_ms = _milliseconds(timeout_s)
        expects = b"" if expected is None else expected
        is_expected = "0" if expected is None else "1"
        timeout = "" if timeout_ms is None else str(max(0, timeout_ms))
        is_stored = bool(self._run(_COMPARE_AND_SWAP, name, is_expected, expects, value, timeout))
        if is_stored:
            self._counters.puts.add_one()
        return is_stored

    def touch(self, key: str, timeout_s: float | None) -> bool:
        """Give *key* a new time to live. Return whether it was there."""
        timeout_ms = _milliseconds(timeout_s)
        name = self.full_key(key)
        if timeout_ms is None:

            def persist(client: Any) -> list[Any]:
                with client.pipeline(transaction=True) as pipeline:
                    answers: list[Any] = pipeline.persist(name).exists(name).execute()
                    return answers

            return bool(self._ask(persist)[1])
        if timeout_ms <= 0:
            return bool(self._ask(methodcaller("unlink", name)))
        return bool(self._ask(methodcaller("pexpire", name, timeout_ms)))

    def clear(self) -> None:
        """Drop every key under the store's prefix, in batches, and no other."""
        self._unlink(self._scan(""))

    def metrics(self) -> StoreMetrics:
        """Return a copy of the counters of this process. What the server holds is not asked: counting takes a scan."""
        return self._counters.snapshot()

    def close(self) -> None:
        """Close the idle connections of this process."""
        self.connection.close()

    def _ask(self, ask: Callable[[Any], T]) -> T:
        try:
            with self.connection.translating(StoreUnavailableError):
                return ask(self.connection.client)
        except StoreUnavailableError:
            self._counters.errors.add_one()
            raise

    def _run(self, source: str, name: str, *arguments: str | bytes) -> Any:
        def run(client: Any) -> Any:
            script = self._scripts.get(source)
            if script is None:
                script = self._scripts[source] = client.register_script(source)
            return script(keys=[name], args=arguments, client=client)

        return self._ask(run)

    def _put_batch(self, batch: list[tuple[str, bytes]], timeout_ms: int | None) -> None:
        if timeout_ms is not None and timeout_ms <= 0:
            self._unlink(name for name, _ in batch)
            return

        def write(client: Any) -> None:
            if len(batch) == 1:
                client.set(*batch[0], px=timeout_ms)
                return
            with client.pipeline(transaction=False) as pipeline:
                for name, value in batch:
                    pipeline.set(name, value, px=timeout_ms)
                pipeline.execute()

        try:
            self._ask(write)
        except StoreUnavailableError as error:
            if "used memory > 'maxmemory'" not in str(error.__cause__):
                raise
            self._reject(batch)
            raise QuotaExceededError(
                f"Redis at {self.connection.url} is full and may not evict (maxmemory-policy noeviction)."
            ) from error.__cause__

    def _check_values(self, batch: list[tuple[str, bytes]]) -> None:
        for name, value in batch:
            if type(value) is not bytes:
                raise TypeError(f"A store holds bytes; the value for {name!r} is {type(value).__name__}.")
            if len(value) > _MAX_VALUE_BYTES:
                self._reject(batch)
                raise QuotaExceededError(
                    f"The value for {name!r} has {len(value)} bytes; Redis takes at most {_MAX_VALUE_BYTES}."
                )

    def _reject(self, batch: list[tuple[str, bytes]]) -> None:
        self._counters.rejected_puts.add(len(batch))
        self._counters.count_evictions("rejected", self._unlink(name for name, _ in batch))

    def _unlink(self, names: Iterable[str | bytes]) -> int:
        """Drop keys by their full names, in batches. UNLINK frees the memory beside the server's work."""
        dropped = 0
        names = iter(names)
        while batch := list(itertools.islice(names, self._batch)):
            dropped += self._ask(methodcaller("unlink", *batch))
        return dropped

    def _scan(self, prefix: str) -> Iterator[bytes]:
        """Yield full names that begin with *prefix*. SCAN may yield one twice."""
        pattern = _escape_glob(self.prefix + prefix) + "*"
        cursor = 0
        while True:
            cursor, names = self._ask(methodcaller("scan", cursor, match=pattern, count=self._batch))
            yield from names
            if cursor == 0:
                return

    def _iterate_keys(self, prefix: str) -> Iterator[str]:
        own_bytes = len(self.prefix.encode())
        seen: set[str] = set()
        for name in self._scan(prefix):
            try:
                key = name[own_bytes:].decode()
            except UnicodeDecodeError:
                continue  # Put there by somebody else: no key of ours.
            if key and key not in seen and has_prefix(key, prefix):
                seen.add(key)
                yield key


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
