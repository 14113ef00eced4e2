"""
The ledger of one host: a small memory-mapped file per clock, shared by all processes.

Readers take no lock: the counter of a seqlock (as ``seqlock_t`` of Linux) tells them whether a writer was at work
meanwhile. That needs stores to become visible in program order, which x86-64 guarantees; elsewhere readers take the
writers' lock. A writer killed between two of its stores leaves an odd counter; whoever takes the lock next finds it and
ticks the table, so that the damage is a miss.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import platform
import stat
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Final

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, ROWS_SLOT, TABLE_SLOT, ClockInfo, Dependency, Intent, Reading
from live_cache.ledger.host_clock import (
    BOOT_ID,
    COUNTER,
    FILE_BYTES,
    INTENT_RECORD_BYTES,
    MAGIC,
    NEWBORN_ID,
    SEQ,
    ClockMap,
    PackedIntent,
    name_bytes,
    name_in,
    new_head,
)
from live_cache.ledger.host_files import DirectoryLock, boot_id
from live_cache.ledger.host_writers import WritersLock
from live_cache.ledger.lease_time import LEASE_CLOCK
from live_cache.ledger.wake_ups import LocalWakeUps

__all__ = ["HostLedger"]

LOCK_FREE_TRIES: Final = 4
HAS_ORDERED_STORES: Final = platform.machine().lower() in {"x86_64", "amd64"}
SUFFIX: Final = ".clock"
WRITERS_SUFFIX: Final = ".writers"
LOOK_EVERY_S: Final = 0.005
"""How often a process that follows clocks looks for the ticks of others."""


class HostLedger(Ledger):
    """
    The ledger of one host: one file per clock in a directory, mapped by every process.

    A file that is missing, was replaced, or was written before the last boot means a new clock with a new epoch. The
    directory must belong to this user (root may use another user's, whose files its files then become) and lie on a
    disk of this host: two hosts that share it never agree on the boot, and so never have a hit.

    Args:
        directory: Where the files are; made if it is not there.
        lease_s: Seconds that an intent may stand before it counts as expired.

    Raises:
        ConfigurationError: This system has no boot id or no file locks.
    """

    name = "host"
    is_shared_by_processes = True
    is_shared_by_hosts = False
    intent_record_bytes = INTENT_RECORD_BYTES

    def __init__(self, directory: Path | str, *, lease_s: float) -> None:
        self.directory = Path(os.path.abspath(directory))
        self._boot_id = boot_id()
        self._lock = DirectoryLock(self.directory)
        self._maps: dict[str, ClockMap] = {}
        self._paths: dict[str, str] = {}
        self._writers: dict[str, WritersLock] = {}
        super().__init__(lease_s=lease_s)

    def is_watched(self, clocks: Iterable[str]) -> bool:
        """See Ledger.is_watched()."""
        return any(clock in self._maps or os.access(self._path(clock), os.F_OK) for clock in clocks)

    def log(self, clock: str, epoch: bytes, after: int, until: int) -> list[bytes] | None:
        """See Ledger.log()."""
        if HAS_ORDERED_STORES:
            with self._translating():
                found = self._map(clock)
            if found is None or found.epoch != epoch:
                return None
            for _ in range(LOCK_FREE_TRIES):
                copied = found.look_at_log(after, until)
                if copied is not None:
                    return copied[0]
        with self._written(clock) as found:
            if found is None or found.epoch != epoch:
                return None
            copied = found.look_at_log(after, until)
        return None if copied is None else copied[0]

    def begin_unannounced(self, clocks: Collection[str], holder: object) -> bool:
        """See Ledger.begin_unannounced()."""
        if self._undelivered or not self._maps.keys().isdisjoint(clocks):
            return False
        try:
            # The locks first: a clock that is born after the look has a hold, and who would lift it looks for them.
            if all(self._writers_of(clock).take(holder) for clock in clocks) and not self._is_any_there(clocks):
                return True
        except (OSError, LedgerUnavailableError):
            pass
        for clock in clocks:
            self._writers_of(clock).release(holder)
        return False

    def end_unannounced(self, clocks: Collection[str], holder: object) -> bool:
        """See Ledger.end_unannounced()."""
        try:
            is_born = self._is_any_there(clocks)
        except LedgerUnavailableError:
            is_born = True
        for clock in clocks:
            self._writers_of(clock).release(holder)
        return is_born

    def has_unannounced(self, newborn: Reading) -> bool:
        """See Ledger.has_unannounced()."""
        with self._translating():
            return self._writers_of(newborn.clock).is_held()

    def expired(self, clock: str) -> list[Intent]:
        """See Ledger.expired()."""
        with self._written(clock) as found:
            if found is None:
                return []
            now_ns = _now_ns()
            intents = [found.intent(number) for number in found.open_intents()]
        return [intent.unpack() for intent in intents if intent.is_expired(now_ns)]

    def reset(self, clocks: Iterable[str] | None = None) -> int:
        """See Ledger.reset(). Open intents are dropped; the newborn hold stands for them."""
        names = [info.clock for info in self.clocks()] if clocks is None else list(dict.fromkeys(clocks))
        count = 0
        for name in names:
            with self._written(name) as found:
                if found is not None:
                    self._create(name)
                    count += 1
        return count

    def clocks(self) -> list[ClockInfo]:
        """See Ledger.clocks()."""
        infos = []
        with self._translating():
            if not self.directory.is_dir():
                return []
            for path in sorted(self.directory.glob("*" + SUFFIX)):
                found = self._open(str(path), None)
                if found is not None:
                    name = name_in(found.memory).decode("utf-8", "surrogatepass")
                    infos.append(ClockInfo(name, found.epoch, found.words[SEQ], len(found.open_intents())))
        return sorted(infos, key=lambda info: info.clock)

    def wake_ups(self) -> LocalWakeUps:
        """See Ledger.wake_ups(). A look costs microseconds, and writing to a mapped file wakes nobody."""
        return LocalWakeUps(look_every_s=LOOK_EVERY_S)

    def close(self) -> None:
        """See Ledger.close()."""
        self._maps.clear()
        self._lock.close()

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._lock.after_fork_in_child()
        for writers in self._writers.values():
            writers.after_fork_in_child()

    def _read(self, dependencies: Sequence[Dependency]) -> list[Reading]:
        readings = []
        for dependency in dependencies:
            clock = dependency.clock
            reading = None
            if HAS_ORDERED_STORES:
                with self._translating():
                    found = self._map(clock)
                if found is not None:
                    for _ in range(LOCK_FREE_TRIES):
                        reading = found.look(dependency)
                        if reading is not None:
                            break
            readings.append(reading or self._read_locked(dependency))
        return readings

    def _read_locked(self, dependency: Dependency) -> Reading:
        with self._written(dependency.clock) as found:
            reading = (found or self._create(dependency.clock)).look(dependency)
        if reading is None:
            raise LedgerUnavailableError(f"The ledger file of {dependency.clock!r} changed under its lock.")
        return reading

    def _existing(self, clocks: list[str]) -> list[str]:
        return [clock for clock in clocks if self._may_exist(clock)]

    def _declare(
        self,
        changes: Mapping[str, frozenset[int]],
        intent_id: str,
        fence: Callable[[], str],
        records: Mapping[str, bytes],
    ) -> None:
        raw_fence = fence().encode()
        for clock, slots in changes.items():
            with _Written(self, clock) as found:
                if found is None:
                    continue
                number = found.free_number()
                if number is None:
                    # As if the clock had been lost just after this intent was recorded: new epoch, table-wide hold.
                    self._create(clock, intents_of=found)
                    continue
                record = records.get(clock, b"")
                if record and not found.room_for_intent(number):
                    slots, record = _widened(slots), b""
                raw_id = bytes.fromhex(intent_id)
                intent = PackedIntent.pack(raw_id, slots, raw_fence, self._deadline_ns(), record)
                found.open(number, intent)

    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]) -> None:
        raw_id = None if intent_id is None else bytes.fromhex(intent_id)
        for clock, slots in changes.items():
            if clock not in self._maps and not self._may_exist(clock):  # one that is born now has no older entry
                continue
            with _Written(self, clock) as found:
                if found is None:
                    continue
                number = None if raw_id is None else found.find(raw_id)
                if slots or number is not None:
                    self._change(found, slots, records.get(clock, b""), number)

    def _retract(self, clocks: tuple[str, ...], intent_id: str) -> None:
        self._tick({clock: frozenset() for clock in clocks}, intent_id, {})

    def _reap(self, clock: str, intent_ids: frozenset[str], epoch: bytes | None) -> None:
        raw_ids = [NEWBORN_ID if intent_id == NEWBORN else bytes.fromhex(intent_id) for intent_id in intent_ids]
        with self._written(clock) as found:
            if found is None or (epoch is not None and epoch != found.epoch):
                return
            for raw_id in raw_ids:
                number = found.find(raw_id)
                if number is not None:
                    intent = found.intent(number).unpack()
                    self._change(found, intent.slots, intent.record, number)

    def _change(self, found: ClockMap, slots: frozenset[int], record: bytes, number: int | None) -> None:
        """Tick, if there are slots, and close an intent, if one is given, in one step. Needs the lock."""
        if record and slots and not found.room_for_tick(record):
            slots, record = _widened(slots), b""
        found.change(slots, record, number)

    def _written(self, clock: str) -> _Written:
        """Hold the lock, and give the file of *clock* as it is now, repaired, or None if the clock does not exist."""
        return _Written(self, clock)

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: OSError) -> LedgerUnavailableError:
        if isinstance(error, PermissionError):
            self._lock.check_directory()  # It can name the owner.
        return LedgerUnavailableError(f"The ledger in {str(self.directory)!r} cannot be used: {error}")

    def _may_exist(self, clock: str) -> bool:
        """Return False if *clock* does not exist. One that was mapped is looked for under the lock, so not here too."""
        return clock in self._maps or self._is_any_there((clock,))

    def _is_any_there(self, clocks: Collection[str]) -> bool:
        for clock in clocks:
            try:
                os.lstat(self._path(clock))
            except FileNotFoundError:
                continue
            except OSError as error:
                raise self._unavailable(error) from error
            return True
        return False

    def _writers_of(self, clock: str) -> WritersLock:
        found = self._writers.get(clock)
        if found is None:
            path = self._path(clock).removesuffix(SUFFIX) + WRITERS_SUFFIX
            # Two threads at once get the same one.
            found = self._writers.setdefault(clock, WritersLock(path, self._lock.open_file))
        return found

    def _path(self, clock: str) -> str:
        path = self._paths.get(clock)
        if path is None:
            digest = hashlib.blake2b(clock.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
            path = self._paths[clock] = str(self.directory / (digest + SUFFIX))
        return path

    def _map(self, clock: str) -> ClockMap | None:
        """
        Return the file that is at the path of *clock* at this moment.

        The file that was mapped cannot be told from a new one by its number alone if it was deleted and the number used
        again; but as long as it is mapped, its number is in use.
        """
        path = self._path(clock)
        try:
            now = os.lstat(path)
        except FileNotFoundError:
            self._maps.pop(clock, None)
            return None
        found = self._maps.get(clock)
        if found is not None and found.file_id == (now.st_dev, now.st_ino, now.st_size):
            return found
        found = self._open(path, clock)
        if found is None:
            self._maps.pop(clock, None)
        else:
            self._maps[clock] = found
        return found

    def _open(self, path: str, clock: str | None) -> ClockMap | None:
        """Map the file at *path*; None if it is none of this version, this boot and this clock."""
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            info = os.fstat(descriptor)
            self._lock.check_directory()
            self._lock.check_owner(path, info)
            if not stat.S_ISREG(info.st_mode) or info.st_size != FILE_BYTES:
                return None
            memory = mmap.mmap(descriptor, FILE_BYTES)
        except ValueError:  # What mmap says of a file that shrank meanwhile.
            return None
        finally:
            os.close(descriptor)
        if memory[:8] != MAGIC or memory[BOOT_ID] != self._boot_id:
            return None
        if clock is not None and name_in(memory) != name_bytes(clock):
            return None
        return ClockMap(memory, path, (info.st_dev, info.st_ino, info.st_size))

    def _create(self, clock: str, *, intents_of: ClockMap | None = None) -> ClockMap:
        """Put a new clock in the place of whatever is there: new epoch, newborn hold. Needs the lock."""
        hold = PackedIntent.pack(NEWBORN_ID, frozenset((TABLE_SLOT,)), b"", self._deadline_ns())
        path = self._path(clock)
        head = new_head(clock, boot_id=self._boot_id, hold=hold, intents_of=intents_of)
        self._lock.replace_file(path, head, size_bytes=FILE_BYTES)
        self._maps.pop(clock, None)
        found = self._map(clock)
        if found is None:
            raise LedgerUnavailableError(f"The ledger file {path!r} was removed as soon as it was written.")
        return found

    def _deadline_ns(self) -> int:
        return _now_ns() + int(self.lease_s * 1e9)


class _Written:
    """HostLedger._written(). A class, as each save() of a watched table passes here twice."""

    __slots__ = ("_clock", "_ledger")

    def __init__(self, ledger: HostLedger, clock: str) -> None:
        self._ledger = ledger
        self._clock = clock

    def __enter__(self) -> ClockMap | None:
        ledger = self._ledger
        try:
            ledger._lock.__enter__()
            try:
                found = ledger._map(self._clock)
                if found is not None and found.words[COUNTER] & 1:
                    found.repair()
            except BaseException:
                ledger._lock.__exit__(None, None, None)
                raise
        except OSError as error:
            raise ledger._unavailable(error) from error
        return found

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self._ledger._lock.__exit__(kind, error, traceback)
        except OSError as failure:
            raise self._ledger._unavailable(failure) from failure
        if isinstance(error, OSError):
            raise self._ledger._unavailable(error) from error


def _widened(slots: frozenset[int]) -> frozenset[int]:
    """Return the slots of a change whose record the disk has no room for."""
    return slots - {ROWS_SLOT} | {TABLE_SLOT} if ROWS_SLOT in slots else slots


def _now_ns() -> int:
    return time.clock_gettime_ns(LEASE_CLOCK)
