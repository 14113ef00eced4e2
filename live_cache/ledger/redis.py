"""The ledger in Redis or Valkey: one hash per clock, which all hosts share."""

from __future__ import annotations

import itertools
import os
from base64 import b64decode, b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final
from urllib.parse import quote, unquote

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger, Tick
from live_cache.ledger.clocks import TABLE_SLOT, ClockInfo, Dependency, Intent, Reading
from live_cache.ledger.redis_memory import KnownRecords, Watched
from live_cache.ledger.redis_owed import OwedTicks
from live_cache.ledger.redis_scripts import DECLARE, EXPIRED, LOG, READ, REAP, RESET, TICK
from live_cache.ledger.redis_wake_ups import RedisWakeUps
from live_cache.ledger.unwatched import UnwatchedClocks
from live_cache.redis_connection import Command, RedisConnection
from live_cache.stores.base import MISS, Missing, Store
from live_cache.stores.redis import RedisStore

__all__ = ["RedisLedger"]

MAX_INTENTS: Final = 512
"""Open intents of one clock. Each is read with every reading of the clock."""
MAX_INTENT_SLOTS: Final = 64
"""Slots that an intent names; one with more is for the table."""
MAX_INTENTS_BYTES: Final = 64 * 1024
"""Of all open intents of one clock with their records. Further intents of rows are for the table."""
SCAN_BATCH: Final = 1000


class RedisLedger(Ledger):
    """
    The ledger in Redis (6.2 or later) or Valkey.

    Each clock is one hash with a hash tag of its own, and each step one script on that key, so it works on a cluster.
    Only a primary answers. A clock that was evicted, flushed, or born on another primary (failover, restart) starts a
    new epoch. Leases run by the time of the server.

    Args:
        connection: Shared with the store of the same LOCATION.
        prefix: What the keys of this ledger begin with.
        lease_s: Seconds that an intent may stand before it counts as expired.
        unwatched_lease_s: Seconds that a newborn clock is held at least. Writers believe for half of it that a clock is
            not there which was not there when they asked. The same in every process; 0 for none.
    """

    name = "redis"
    is_shared_by_processes = True
    is_shared_by_hosts = True
    intent_record_bytes = 2048

    def __init__(
        self,
        connection: RedisConnection,
        *,
        prefix: str = "live_cache:",
        lease_s: float,
        unwatched_lease_s: float = 0.0,
    ) -> None:
        self.connection = connection
        self.prefix = prefix
        self._key_start = _encode(prefix + "clock:{")
        self._lease_us = int(lease_s * 1e6)
        self._known = KnownRecords()
        self._watched = Watched()
        self._unwatched = UnwatchedClocks(unwatched_lease_s)
        self._owed = OwedTicks(connection, lease_s=lease_s)
        self.has_deaf_writers = self._unwatched.is_on
        super().__init__(lease_s=lease_s)

    def read_with_entry(
        self, dependencies: Sequence[Dependency], store: Store, key: str
    ) -> tuple[list[Reading], bytes | Missing]:
        """
        See Ledger.read_with_entry(). One round trip if *store* is a RedisStore on the same connection.

        Raises:
            LedgerUnavailableError: The server did not answer; then the store did not either.
        """
        if not isinstance(store, RedisStore) or store.connection is not self.connection:
            return super().read_with_entry(dependencies, store, key)
        self.deliver()
        commands = [("GET", store.full_key(key)), *map(self._reading_of, dependencies)]
        try:
            value, *answers = self._run(commands, is_quick=True)
        except LedgerUnavailableError:
            store.count_error()
            raise
        store.count_lookup(is_hit=value is not None)
        readings = self._readings(dependencies, answers)
        return readings, MISS if value is None else value

    def is_watched(self, clocks: Iterable[str]) -> bool:
        """See Ledger.is_watched(). True when the server does not answer."""
        asked = list(clocks)
        if self._unwatched.are_all(asked):
            return False
        known = self._watched.ask(asked)
        if known is not None:
            return known
        try:
            answers = self._run([("EXISTS", self._key(clock)) for clock in asked], is_quick=True)
        except LedgerUnavailableError:
            return True
        self._watched.learn(asked, answers)
        return any(answers)

    def log(self, clock: str, epoch: bytes, after: int, until: int) -> list[bytes] | None:
        """See Ledger.log(). The server is asked only for what this process has not seen yet."""
        known = self._known.records(clock, epoch, after, until)
        if len(known) == until - after:
            return known
        (answer,) = self._run([(LOG, self._key(clock), epoch, after + len(known), until)], is_quick=True)
        if answer is None:
            return None
        learned = [_logged(record) for record in answer]
        self._known.learn(clock, epoch, after + len(known) + 1, learned)
        return known + learned

    def begin_unannounced(self, clocks: Collection[str], holder: object) -> bool:
        """See Ledger.begin_unannounced(). The server is asked once in a while."""
        if not self._unwatched.is_on or self._undelivered:
            return False
        try:
            if self._unwatched.are_all(clocks):
                return True
            return self._watched.ask(clocks) is not True and not self._unwatched.ask(list(clocks), self._look_for)
        except LedgerUnavailableError:
            return False

    def end_unannounced(self, clocks: Collection[str], holder: object) -> bool:
        """See Ledger.end_unannounced()."""
        return not self._unwatched.are_all(clocks)

    def has_unannounced(self, newborn: Reading) -> bool:
        """See Ledger.has_unannounced()."""
        return self._unwatched.may_be_believed(newborn)

    def expired(self, clock: str) -> list[Intent]:
        """See Ledger.expired()."""
        self._settle()
        ((lines, now_us),) = self._run([(EXPIRED, self._key(clock))])
        return [intent for intent, deadline_us in _parse(lines) if deadline_us <= int(now_us)]

    def reset(self, clocks: Iterable[str] | None = None) -> int:
        """See Ledger.reset(). Open intents are dropped; the newborn hold stands for them."""
        self._settle()
        keys = iter(self._keys() if clocks is None else [self._key(clock) for clock in dict.fromkeys(clocks)])
        count = 0
        while batch := list(itertools.islice(keys, SCAN_BATCH)):
            count += sum(self._run([(RESET, key, os.urandom(16), self._lease_us) for key in batch]))
        return count

    def clocks(self) -> list[ClockInfo]:
        """See Ledger.clocks(). Scans the keys of the database, in batches."""
        self._settle()
        infos = []
        keys = iter(sorted(self._keys()))
        while batch := list(itertools.islice(keys, SCAN_BATCH)):
            answers = self._run([("HMGET", key, "e", "q", "n") for key in batch])
            for key, (epoch, seq, lines) in zip(batch, answers, strict=True):
                if epoch is not None:
                    name = key[len(self._key_start) : -1].decode("utf-8", "surrogatepass")
                    infos.append(ClockInfo(name, epoch, int(seq), len(_parse(lines))))
        return infos

    def wake_ups(self) -> RedisWakeUps:
        """See Ledger.wake_ups()."""
        return RedisWakeUps(self.connection, self._key)

    def close(self) -> None:
        """See Ledger.close()."""
        self._settle()
        self.connection.close()

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._known = KnownRecords()
        self._watched = Watched()
        self._unwatched = self._unwatched.forgotten()
        self._owed = self._owed.forgotten()

    def deliver(self) -> None:
        """See Ledger.deliver(). Ticks that were not waited for are settled first."""
        self._settle()
        super().deliver()

    def _settle(self) -> None:
        for error in self._owed.settle():
            self._note_late_failure(error)

    def _read(self, dependencies: Sequence[Dependency]) -> list[Reading]:
        answers = self._run([self._reading_of(dependency) for dependency in dependencies], is_quick=True)
        return self._readings(dependencies, answers)

    def _readings(self, dependencies: Sequence[Dependency], answers: Sequence[Any]) -> list[Reading]:
        readings = list(map(_reading, dependencies, answers))
        for reading in readings:
            self._watched.see(reading.clock)
            self._unwatched.see(reading)
        return readings

    def _existing(self, clocks: list[str]) -> Collection[str]:
        if self._unwatched.are_all(clocks):
            return ()
        if self._watched.ask(clocks) is not False:
            return clocks  # DECLARE looks for itself
        return self._unwatched.ask(clocks, self._look_for)

    def _look_for(self, clocks: Sequence[str]) -> list[str]:
        answers = self._run([(TICK, self._key(clock), "", "") for clock in clocks])
        return [clock for clock, answer in zip(clocks, answers, strict=True) if answer]

    def _declare(
        self,
        changes: Mapping[str, frozenset[int]],
        intent_id: str,
        fence: Callable[[], str],
        records: Mapping[str, bytes],
    ) -> None:
        name = quote(fence(), safe=":")
        commands: list[Command] = [
            (
                DECLARE,
                self._key(clock),
                intent_id,
                _slots_text(slots),
                name,
                self._lease_us,
                MAX_INTENTS,
                os.urandom(16),
                b64encode(records.get(clock, b"")),
                MAX_INTENTS_BYTES,
            )
            for clock, slots in changes.items()
        ]
        self._owed.declare(intent_id, changes, lambda: self._run(commands))

    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]) -> None:
        if not self._unwatched.are_all(changes.keys()):
            self._run(self._ticks(changes, intent_id, records))

    def _tick_announced(
        self, changes: Mapping[str, frozenset[int]], intent_id: str, records: Mapping[str, bytes]
    ) -> None:
        if self._unwatched.are_all(changes.keys()):
            return
        commands = self._ticks(changes, intent_id, records)
        keep = partial(self._keep, Tick(changes, intent_id, records))
        if not self._owed.send(commands, intent_id=intent_id, clocks=changes, keep=keep):
            self._run(commands)

    def _tick_again(
        self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]
    ) -> None:
        self._run(self._ticks(changes, intent_id, records), is_quick=True)

    def _retract(self, clocks: tuple[str, ...], intent_id: str) -> None:
        self._run([(TICK, self._key(clock), intent_id) for clock in clocks])

    def _reap(self, clock: str, intent_ids: frozenset[str], epoch: bytes | None) -> None:
        self._run([(REAP, self._key(clock), epoch or "", *intent_ids)])

    def _run(self, commands: Sequence[Command], *, is_quick: bool = False) -> list[Any]:
        if not commands:
            return []
        with self.connection.translating(LedgerUnavailableError, is_quick=is_quick):
            return self.connection.run(commands, is_quick=is_quick)

    def _ticks(
        self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]
    ) -> list[Command]:
        logged = {clock: b"r" + record for clock, record in records.items() if record}
        return [
            (TICK, self._key(clock), intent_id or "", logged.get(clock, b""), *slots)
            for clock, slots in changes.items()
        ]

    def _reading_of(self, dependency: Dependency) -> Command:
        birth = os.urandom(16), self._lease_us
        return (READ, self._key(dependency.clock), *birth, "e", "q", "i", "n", *dependency.slots)

    def _key(self, clock: str) -> bytes:
        return self._key_start + _encode(clock) + b"}"

    def _keys(self) -> Iterator[bytes]:
        pattern = b"".join(b"\\" + c if c in b"*?[]^-\\" else c for c in _bytes_of(self._key_start)) + b"*}"
        seen: set[bytes] = set()
        cursor = 0
        while True:
            ((cursor, found),) = self._run([("SCAN", cursor, "MATCH", pattern, "COUNT", SCAN_BATCH, "TYPE", "hash")])
            for key in found:
                if key not in seen:
                    seen.add(key)
                    yield key
            if int(cursor) == 0:
                return


def _reading(dependency: Dependency, answer: list[bytes | None]) -> Reading:
    epoch, seq, _, lines, *slots = answer
    if epoch is None or seq is None:
        raise LedgerUnavailableError(f"The clock {dependency.clock!r} in Redis is no clock. Delete its key.")
    seen = tuple([0 if slot is None else int(slot) for slot in slots])
    intents = tuple([intent for intent, _ in _parse(lines)]) if lines else ()
    return Reading(dependency.clock, epoch, int(seq), seen, intents)


def _parse(lines: bytes) -> list[tuple[Intent, int]]:
    """Return the intents in the field ``n``, each with its deadline in microseconds of the server."""
    parsed = []
    for line in lines.decode().splitlines():
        name, deadline_us, slots, fence, record = line.split(" ")
        intent = Intent(name, frozenset(map(int, slots.split(","))), unquote(fence), b64decode(record))
        parsed.append((intent, int(deadline_us)))
    return parsed


def _logged(record: bytes | None) -> bytes:
    """Return the record that a field of the log holds."""
    if not record:
        return b""
    return b64decode(record[1:]) if record.startswith(b"b") else record[1:]


def _slots_text(slots: frozenset[int]) -> str:
    if TABLE_SLOT in slots or len(slots) > MAX_INTENT_SLOTS:
        return str(TABLE_SLOT)
    return ",".join(map(str, slots))


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _bytes_of(text: bytes) -> list[bytes]:
    return [text[i : i + 1] for i in range(len(text))]
