"""
What the Redis store sends for each call, and what it makes of the answers. No I/O: the store drives these steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Final, TypeAlias, TypeVar

from live_cache.exceptions import QuotaExceededError, StoreError, StoreUnavailableError
from live_cache.redis_connection import Command
from live_cache.redis_late import late_answers
from live_cache.stores.base import MISS, Missing, StoredValue, has_prefix, lease_key, validate_key
from live_cache.stores.counters import StoreCounters
from live_cache.stores.redis_scripts import COMPARE_AND_SWAP, GET_WITH_EXPIRY, INCREMENT, PERSIST
from live_cache.stores.tier_state import Claims, Debts

__all__ = ["RedisSteps", "Steps"]

T = TypeVar("T")
Steps: TypeAlias = Generator["list[Command]", "list[Any]", T]
"""The steps of a call: what it sends is yielded, what it gets is sent in. One text for the sync and the async twin."""

# proto-max-bulk-len: the server drops the connection of whoever sends more.
_MAX_VALUE_BYTES: Final = 512 * 1024 * 1024
# PX takes 63 bits, the present included. 2**52 milliseconds are 142,000 years.
_MAX_TIMEOUT_MS: Final = 2**52


class RedisSteps:
    """
    The steps of each call of one store, its counters, and what the server was to drop while it did not answer.

    Args:
        prefix: What the keys of the store begin with.
        batch: Keys that one SCAN, UNLINK or MGET handles.
        shown: The server, for messages.
        give_up: Called when a key is on its way; gives up what will never be answered.
    """

    def __init__(self, prefix: str, *, batch: int, shown: str, give_up: Callable[[], None]) -> None:
        self.prefix = prefix
        self.counters = StoreCounters()
        self.debts = Debts()  # By full names.
        # Names that are owed and on their way: to one server two connections may come in another order.
        self.claims = Claims()
        self._batch = batch
        self._shown = shown
        self._give_up = give_up

    def full_key(self, key: str) -> str:
        """Return the name under which Redis holds *key*."""
        return self.prefix + validate_key(key)

    def get(self, key: str) -> Steps[bytes | Missing]:
        name = self.full_key(key)
        if self.debts.covers(name):
            yield from self._settle([name])
        (value,) = yield [("GET", name)]
        self.counters.count_lookup(is_hit=value is not None)
        return MISS if value is None else value

    def get_with_expiry(self, key: str) -> Steps[StoredValue | Missing]:
        name = self.full_key(key)
        yield from self._settle([name])
        ((value, remaining_ms),) = yield [(GET_WITH_EXPIRY, name)]
        # Before Redis 7 a key may expire between two commands of one script: -2 then.
        is_hit = value is not None and remaining_ms != -2
        self.counters.count_lookup(is_hit=is_hit)
        if not is_hit:
            return MISS
        return StoredValue(value, None if remaining_ms < 0 else remaining_ms / 1000)

    def get_many(self, names: Mapping[str, str]) -> Steps[dict[str, bytes]]:
        found: dict[str, bytes] = {}
        yield from self._settle(names.values())
        for batch in _batches(names.items(), self._batch):
            (values,) = yield [("MGET", *[name for _, name in batch])]
            for (key, _), value in zip(batch, values, strict=True):
                if value is not None:
                    found[key] = value
        self.counters.count_lookups(hits=len(found), misses=len(names) - len(found))
        return found

    def put_many(
        self, pairs: Sequence[tuple[str, bytes]], timeout_s: float | None, *, then: Command | None = None
    ) -> Steps[None]:
        """Store *pairs*, and do *then* after the first batch, in the same round trip."""
        also = [] if then is None else [then]
        timeout_ms = _milliseconds(timeout_s)
        if timeout_ms is not None and timeout_ms <= 0:
            yield from self._check_values(pairs)
            yield from self._drop([name for name, _ in pairs])
            self.counters.puts.add(len(pairs))
            if also:
                yield also
            return
        rest = list(pairs)
        try:
            while rest:
                batch = rest[: self._batch]
                yield from self._check_values(batch)
                yield from self._put_batch(batch, timeout_ms, also)
                also = []
                self.counters.puts.add(len(batch))
                del rest[: self._batch]
        except StoreUnavailableError:
            # Of those that were not tried either, nobody is told which.
            self.debts.add_keys(name for name, _ in rest[self._batch :])
            raise

    def _put_batch(
        self, batch: Sequence[tuple[str, bytes]], timeout_ms: int | None, also: Sequence[Command]
    ) -> Steps[None]:
        expiry: tuple[str | int, ...] = () if timeout_ms is None else ("PX", timeout_ms)
        commands: list[Command] = [("SET", name, value, *expiry) for name, value in batch]
        yield from self._rejecting(batch, self._write([name for name, _ in batch], [*commands, *also]))

    def _rejecting(self, batch: Sequence[tuple[str, bytes]], steps: Steps[T]) -> Steps[T]:
        """Take the steps; if the server is full, drop the older values of *batch*."""
        try:
            return (yield from steps)
        except StoreUnavailableError as error:
            if "used memory > 'maxmemory'" not in str(error.__cause__):
                raise
            yield from self._reject(batch)
            raise QuotaExceededError(
                f"Redis at {self._shown} is full and may not evict (maxmemory-policy noeviction)."
            ) from error.__cause__

    def delete(self, names: Iterable[str]) -> Steps[int]:
        dropped = yield from self._drop(names)
        self.counters.deletes.add(dropped)
        return dropped

    def invalidate(self, prefix: str) -> Steps[int]:
        if prefix:
            validate_key(prefix)
        dropped = yield from self._drop_prefix(prefix)
        self.counters.deletes.add(dropped)
        return dropped

    def _drop_prefix(self, prefix: str) -> Steps[int]:
        full = self.prefix + prefix if prefix else ""
        owed = [debt for debt in self.debts.prefixes() if has_prefix(debt[0], full)]
        seen: set[str] = set()
        dropped = 0
        cursor: int | None = 0
        try:
            while cursor is not None:
                cursor, names = yield from self.scan(prefix, cursor)
                mine = names if not prefix else [self.prefix + key for key in self.own(names, prefix, seen)]
                dropped += yield from self._unlink(mine)
        except StoreUnavailableError:
            self.debts.add_prefix(full)
            raise
        self.debts.forget_prefixes(owed)
        return dropped

    def _write(self, names: Collection[str], commands: list[Command], *, is_settling: bool = False) -> Steps[list[Any]]:
        """
        Send what replaces or drops *names*, in one round trip. If it is not known to be done, they are owed.

        An answer that comes late settles what was owed until now, and nothing that is owed since then.
        """
        noted = self.debts.number
        claimed = [name for name in names if self.debts.covers(name)]
        if claimed and not self._claim(claimed):
            if not is_settling:
                self.debts.add_keys(names)
            self.counters.errors.add_one()
            raise StoreUnavailableError(f"Redis at {self._shown} is still being told to drop or to replace a key.")
        try:
            answers = yield commands
            # Before it is given back, so that whoever takes it next settles what is owed then.
            self.debts.forget_keys(names, until=noted)
            return answers
        except StoreUnavailableError as error:
            if not is_settling:
                noted = self.debts.add_keys(names)
            late = late_answers(error)
            if late is not None:
                others = set(names).difference(claimed)
                if self.claims.take(others):
                    late.add_done_callback(partial(self._arrive, names, noted))
                    claimed = []
            raise
        finally:
            if claimed:
                self.claims.give_back(claimed)

    def _claim(self, names: Collection[str]) -> bool:
        if self.claims.take(names):
            return True
        self._give_up()
        return self.claims.take(names)

    def _arrive(self, names: Collection[str], noted: int, answers: Future[list[Any]]) -> None:
        if answers.exception() is None:
            self.debts.forget_keys(names, until=noted)
        self.claims.give_back(names)

    def _settle(self, names: Iterable[str]) -> Steps[None]:
        """Drop those of *names* that were to be dropped before."""
        owed = [name for name in names if self.debts.covers(name)]
        if not owed:
            return
        for debt in self.debts.prefixes():
            if any(has_prefix(name, debt[0]) for name in owed):
                yield from self._drop_prefix(debt[0][len(self.prefix) :])
        for batch in _batches(owed, self._batch):
            yield from self._write(batch, [("UNLINK", *batch)], is_settling=True)

    def settle_some(self) -> Steps[None]:
        """Drop what single keys are owed, of one batch."""
        yield from self._settle(self.debts.some_keys(self._batch))

    def _drop(self, names: Iterable[str]) -> Steps[int]:
        """Drop *names*, and owe them if the server does not answer. Return how many were there."""
        rest = list(names)
        dropped = 0
        try:
            while rest:
                batch = rest[: self._batch]
                (number,) = yield from self._write(batch, [("UNLINK", *batch)])
                dropped += number
                del rest[: self._batch]
        except StoreUnavailableError:
            self.debts.add_keys(rest[self._batch :])
            raise
        return dropped

    def probe(self) -> Steps[None]:
        """Ask what is quickly answered."""
        yield [("EXISTS", self.prefix)]

    def ask(self, name: str, command: Command) -> Steps[Any]:
        yield from self._settle([name])
        (answer,) = yield [command]
        return answer

    def increment(self, key: str, delta: int, default: int | None) -> Steps[int | Missing]:
        start = "" if default is None else str(default)
        name = self.full_key(key)
        status, *answer = yield from self.ask(name, (INCREMENT, name, str(delta), start))
        if status == 0:
            return MISS
        if status == 2:
            raise StoreError(
                f"The value under {key!r} cannot be changed by {delta}: {_text(answer[0])}. Nothing changed."
            )
        return int(answer[0])

    def swap(self, key: str, expected: bytes | None, value: bytes, timeout_s: float | None) -> Steps[bool]:
        name = self.full_key(key)
        yield from self._check_values([(name, value)])
        yield from self._settle([name])
        timeout_ms = _milliseconds(timeout_s)
        expects = b"" if expected is None else expected
        is_expected = "0" if expected is None else "1"
        timeout = "" if timeout_ms is None else str(max(0, timeout_ms))
        swap: Command = (COMPARE_AND_SWAP, name, is_expected, expects, value, timeout)
        (is_stored,) = yield from self._rejecting([(name, value)], self._send([swap]))
        if is_stored:
            self.counters.puts.add_one()
        return bool(is_stored)

    def lease_name(self, key: str) -> str:
        """Return the name of the lease of *key*. Its hash tag puts it on the node of a cluster that has the value."""
        return f"{self.prefix}{lease_key('{' + self.full_key(key) + '}')}"

    def take_lease(self, key: str, token: bytes, timeout_s: float) -> Steps[tuple[bool, bytes | Missing]]:
        name = self.full_key(key)
        yield from self._settle([name])
        timeout_ms = max(1, _milliseconds(timeout_s) or 1)
        answer, value = yield [("SET", self.lease_name(key), token, "NX", "PX", timeout_ms), ("GET", name)]
        is_taken = answer is not None and answer is not False
        return is_taken, value if is_taken and value is not None else MISS

    def release(self, key: str, token: bytes) -> Command:
        """Return the command that ends the lease of *key* if *token* holds it."""
        return (COMPARE_AND_SWAP, self.lease_name(key), "1", token, b"", "0")

    def send(self, command: Command) -> Steps[Any]:
        """Send one command that needs no key of a value."""
        (answer,) = yield [command]
        return answer

    def touch(self, key: str, timeout_s: float | None) -> Steps[Any]:
        timeout_ms = _milliseconds(timeout_s)
        name = self.full_key(key)
        if timeout_ms is None:
            return (yield from self.ask(name, (PERSIST, name)))
        if timeout_ms <= 0:
            return (yield from self._drop([name]))
        return (yield from self.ask(name, ("PEXPIRE", name, timeout_ms)))

    def clear(self) -> Steps[None]:
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
        self.counters.rejected_puts.add(len(batch))
        dropped = yield from self._drop([name for name, _ in batch])
        self.counters.count_evictions("rejected", dropped)

    def _send(self, commands: list[Command]) -> Steps[list[Any]]:
        return (yield commands)

    def _unlink(self, names: Iterable[str | bytes]) -> Steps[int]:
        """Drop keys by their full names, in batches. UNLINK frees the memory beside the server's work."""
        dropped = 0
        for batch in _batches(names, self._batch):
            (number,) = yield [("UNLINK", *batch)]
            dropped += number
        return dropped

    def scan(self, prefix: str, cursor: int) -> Steps[tuple[int | None, list[bytes]]]:
        """Return the next cursor, None at the end, and full names that begin with *prefix*. SCAN may repeat one."""
        pattern = _escape_glob(self.prefix + prefix) + "*"
        ((following, names),) = yield [("SCAN", cursor, "MATCH", pattern, "COUNT", self._batch)]
        return int(following) or None, names

    def scan_all(self, prefix: str) -> Steps[list[bytes]]:
        found: list[bytes] = []
        cursor: int | None = 0
        while cursor is not None:
            cursor, names = yield from self.scan(prefix, cursor)
            found.extend(names)
        return found

    def own(self, names: Iterable[bytes], prefix: str, seen: set[str]) -> Iterator[str]:
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

    def readable(self, keys: Iterable[str]) -> Iterator[str]:
        return (key for key in keys if not self.debts.covers(self.prefix + key))


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
