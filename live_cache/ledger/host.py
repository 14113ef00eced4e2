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
import struct
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, SLOT_COUNT, TABLE_SLOT, ClockInfo, Dependency, Intent, Reading
from live_cache.ledger.host_files import DirectoryLock, boot_id

__all__ = ["HostLedger"]

# The file, in words of 8 bytes of this machine: magic with version, seqlock counter, epoch (2), seq, boot id (2),
# bitmap of open intents (2), length of the name; the name from byte 512; intents from 4,096; slots behind them.
MAGIC: Final = b"LIVECLK1"
COUNTER, SEQ, BITMAP = 1, 4, 7
EPOCH: Final = slice(16, 32)
BOOT_ID: Final = slice(40, 56)
NAME_LENGTH: Final = slice(72, 80)
NAME_START, NAME_MAX_BYTES = 512, 2048
INTENTS_START: Final = 4096
INTENT_COUNT: Final = 128
INTENT: Final = struct.Struct("=16sQHH32s64s4x")
"""Id, deadline in ns, number of slots (0: the table), bytes of the fence, slots, fence."""
INTENT_MAX_SLOTS: Final = 16
SLOTS_START: Final = INTENTS_START + INTENT_COUNT * INTENT.size
SLOTS_WORD: Final = SLOTS_START // 8
FILE_BYTES: Final = SLOTS_START + SLOT_COUNT * 8
NEWBORN_ID: Final = bytes(16)
NEWBORN_RECORD: Final = 0
"""Record of the newborn hold, so that there is always room for it."""
LOCK_FREE_TRIES: Final = 4
HAS_ORDERED_STORES: Final = platform.machine().lower() in {"x86_64", "amd64"}
SUFFIX: Final = ".clock"

# Counts on while the machine sleeps, where the system has such a clock.
LEASE_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 0))


class _Map:
    """One clock file mapped into this process. A file never changes its epoch: a new epoch is a new file."""

    __slots__ = ("epoch", "file_id", "memory", "words")

    def __init__(self, memory: mmap.mmap, file_id: tuple[int, int, int]) -> None:
        self.memory = memory
        self.words = memoryview(memory).cast("Q")
        self.epoch = bytes(memory[EPOCH])
        self.file_id = file_id

    def open_records(self) -> list[int]:
        """Return the numbers of the records that hold an open intent."""
        low, high = self.words[BITMAP], self.words[BITMAP + 1]
        return [n for n in range(INTENT_COUNT) if (low >> n if n < 64 else high >> (n - 64)) & 1]

    def record(self, number: int) -> bytes:
        start = INTENTS_START + number * INTENT.size
        return self.memory[start : start + INTENT.size]

    def find(self, intent_id: bytes) -> int | None:
        return next((n for n in self.open_records() if self.record(n).startswith(intent_id)), None)

    def set_open(self, number: int, *, is_open: bool) -> None:
        """Make a record count, or not, by one store."""
        word, bit = BITMAP + number // 64, 1 << (number % 64)
        self.words[word] = self.words[word] | bit if is_open else self.words[word] & ~bit

    @contextmanager
    def writing(self) -> Iterator[None]:
        """
        Show readers that the file changes. Needs the lock.

        An exception leaves the counter odd, as a killed process does: what was half done is for the repair.
        """
        counter = self.words[COUNTER]
        self.words[COUNTER] = counter + 1
        yield
        self.words[COUNTER] = counter + 2

    def repair(self) -> None:
        """Make good what a writer left half done when it died. Needs the lock."""
        counter = self.words[COUNTER]
        if counter & 1:
            # Some slots may carry a seq that the clock has not reached, and others may be missing: tick the table.
            seq = max(self.words[SEQ], *self.words[SLOTS_WORD : SLOTS_WORD + SLOT_COUNT]) + 1
            self.words[SLOTS_WORD + TABLE_SLOT] = seq
            self.words[SEQ] = seq
            self.words[COUNTER] = counter + 1

    def tick(self, slots: Iterable[int]) -> None:
        """Tick inside writing(). Slots come first: a seq without its slots could make an old entry fresh."""
        seq = self.words[SEQ] + 1
        for slot in slots:
            self.words[SLOTS_WORD + slot] = seq
        self.words[SEQ] = seq


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

    def __init__(self, directory: Path | str, *, lease_s: float) -> None:
        self.directory = Path(os.path.abspath(directory))
        self._boot_id = boot_id()
        self._lock = DirectoryLock(self.directory)
        self._maps: dict[str, _Map] = {}
        self._paths: dict[str, str] = {}
        super().__init__(lease_s=lease_s)

    def expired(self, clock: str) -> list[Intent]:
        """See Ledger.expired()."""
        with self._written(clock) as found:
            if found is None:
                return []
            now_ns = _now_ns()
            records = [found.record(number) for number in found.open_records()]
        return [_intent(record) for record in records if INTENT.unpack(record)[1] <= now_ns]

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
                    name = _name_in(found.memory).decode("utf-8", "surrogatepass")
                    infos.append(ClockInfo(name, found.epoch, found.words[SEQ], len(found.open_records())))
        return sorted(infos, key=lambda info: info.clock)

    def close(self) -> None:
        """See Ledger.close()."""
        self._maps.clear()
        self._lock.close()

    def _after_fork_in_child(self) -> None:
        super()._after_fork_in_child()
        self._lock.after_fork_in_child()

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
                        reading = _look(found, dependency)
                        if reading is not None:
                            break
            readings.append(reading or self._read_locked(dependency))
        return readings

    def _read_locked(self, dependency: Dependency) -> Reading:
        with self._written(dependency.clock) as found:
            reading = _look(found or self._create(dependency.clock), dependency)
        if reading is None:
            raise LedgerUnavailableError(f"The ledger file of {dependency.clock!r} changed under its lock.")
        return reading

    def is_watched(self, clocks: Iterable[str]) -> bool:
        """See Ledger.is_watched()."""
        return True

    def log(self, clock: str, epoch: bytes, after: int, until: int) -> list[bytes] | None:
        """See Ledger.log()."""
        return None

    def _declare(
        self, changes: Mapping[str, frozenset[int]], intent_id: str, fence: str, records: Mapping[str, bytes]
    ) -> None:
        raw_fence = fence.encode()
        for clock, slots in changes.items():
            with self._written(clock) as found:
                if found is None or not slots:
                    continue
                taken = {NEWBORN_RECORD, *found.open_records()}
                number = next((n for n in range(INTENT_COUNT) if n not in taken), None)
                if number is None:
                    # As if the clock had been lost just after this intent was recorded: new epoch, table-wide hold.
                    self._create(clock, intents_of=found)
                    continue
                record = _record(bytes.fromhex(intent_id), slots, raw_fence, self._deadline_ns())
                start = INTENTS_START + number * INTENT.size
                with found.writing():
                    found.memory[start : start + INTENT.size] = record
                    found.set_open(number, is_open=True)

    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]) -> None:
        raw_id = None if intent_id is None else bytes.fromhex(intent_id)
        for clock, slots in changes.items():
            with self._written(clock) as found:
                if found is None:
                    continue
                number = None if raw_id is None else found.find(raw_id)
                if not slots and number is None:
                    continue
                with found.writing():
                    if slots:
                        found.tick(slots)
                    if number is not None:
                        found.set_open(number, is_open=False)

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
                    with found.writing():
                        found.tick(_intent(found.record(number)).slots)
                        found.set_open(number, is_open=False)

    @contextmanager
    def _written(self, clock: str) -> Iterator[_Map | None]:
        """Hold the lock, and give the file of *clock* as it is now, repaired, or None if the clock does not exist."""
        with self._translating(), self._lock:
            found = self._map(clock)
            if found is not None:
                found.repair()
            yield found

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if isinstance(error, PermissionError):
                self._lock.check_directory()  # It can name the owner.
            message = f"The ledger in {str(self.directory)!r} cannot be used: {error}"
            raise LedgerUnavailableError(message) from error

    def _path(self, clock: str) -> str:
        path = self._paths.get(clock)
        if path is None:
            digest = hashlib.blake2b(clock.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()
            path = self._paths[clock] = str(self.directory / (digest + SUFFIX))
        return path

    def _map(self, clock: str) -> _Map | None:
        """
        Return the file that is at the path of *clock* at this moment.

        The file that was mapped cannot be told from a new one by its number alone if it was deleted and the number used
        again; but as long as it is mapped, its number is in use.
        """
        path = self._path(clock)
        try:
            now = os.stat(path, follow_symlinks=False)
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

    def _open(self, path: str, clock: str | None) -> _Map | None:
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
        if clock is not None and _name_in(memory) != _name_bytes(clock):
            return None
        return _Map(memory, (info.st_dev, info.st_ino, info.st_size))

    def _create(self, clock: str, *, intents_of: _Map | None = None) -> _Map:
        """Put a new clock in the place of whatever is there: new epoch, newborn hold. Needs the lock."""
        content = bytearray(FILE_BYTES)
        name = _name_bytes(clock)
        content[:8] = MAGIC
        content[EPOCH] = os.urandom(16)
        content[BOOT_ID] = self._boot_id
        content[NAME_LENGTH] = len(name).to_bytes(8, "little")
        content[NAME_START : NAME_START + len(name)] = name
        if intents_of is not None:
            content[INTENTS_START:SLOTS_START] = intents_of.memory[INTENTS_START:SLOTS_START]
            content[BITMAP * 8 : BITMAP * 8 + 16] = intents_of.memory[BITMAP * 8 : BITMAP * 8 + 16]
        hold = _record(NEWBORN_ID, frozenset((TABLE_SLOT,)), b"", self._deadline_ns())
        start = INTENTS_START + NEWBORN_RECORD * INTENT.size
        content[start : start + INTENT.size] = hold
        words = memoryview(content).cast("Q")
        words[BITMAP] |= 1 << NEWBORN_RECORD
        path = self._path(clock)
        self._lock.replace_file(path, content)
        self._maps.pop(clock, None)
        found = self._map(clock)
        if found is None:
            raise LedgerUnavailableError(f"The ledger file {path!r} was removed as soon as it was written.")
        return found

    def _deadline_ns(self) -> int:
        return _now_ns() + int(self.lease_s * 1e9)


def _look(found: _Map, dependency: Dependency) -> Reading | None:
    """Return one atomic look at the clock, or None if a writer was at work."""
    words = found.words
    counter = words[COUNTER]
    if counter & 1:
        return None
    seq = words[SEQ]
    slots = tuple([words[SLOTS_WORD + slot] for slot in dependency.slots])
    has_intents = words[BITMAP] or words[BITMAP + 1]
    records = [found.record(number) for number in found.open_records()] if has_intents else ()
    if words[COUNTER] != counter:
        return None
    return Reading(dependency.clock, found.epoch, seq, slots, tuple([_intent(record) for record in records]))


def _record(raw_id: bytes, slots: frozenset[int], fence: bytes, deadline_ns: int) -> bytes:
    """Return the bytes of an intent. What does not fit is made wider: many slots become the table."""
    if TABLE_SLOT in slots or len(slots) > INTENT_MAX_SLOTS:
        slots = frozenset()
    if len(fence) > 64:
        fence = b""  # A cut name could be the name of another transaction; without one the database is not asked.
    raw_slots = struct.pack(f"={len(slots)}H", *slots)
    return INTENT.pack(raw_id, deadline_ns, len(slots), len(fence), raw_slots, fence)


def _intent(record: bytes) -> Intent:
    raw_id, _, slot_count, fence_length, raw_slots, fence = INTENT.unpack(record)
    slots = struct.unpack_from(f"={slot_count}H", raw_slots) if slot_count else (TABLE_SLOT,)
    name = NEWBORN if raw_id == NEWBORN_ID else raw_id.hex()
    return Intent(name, frozenset(slots), fence[:fence_length].decode())


def _name_bytes(clock: str) -> bytes:
    return clock.encode("utf-8", "surrogatepass")[:NAME_MAX_BYTES]


def _name_in(memory: mmap.mmap) -> bytes:
    length = min(int.from_bytes(memory[NAME_LENGTH], "little"), NAME_MAX_BYTES)
    return memory[NAME_START : NAME_START + length]


def _now_ns() -> int:
    return time.clock_gettime_ns(LEASE_CLOCK)
