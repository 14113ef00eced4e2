"""
One clock of the host ledger: how its file is laid out, and how it is read and written where it is mapped.

A file has its full length from the start and is mostly a hole. The disk gives room to the parts that grow (the index
and the bytes of the log, and the records of intents) before they are touched: a store into a hole of a mapped file
kills the process when the disk is full.
"""

from __future__ import annotations

import mmap
import os
import struct
from array import array
from collections.abc import Collection
from functools import lru_cache
from typing import Final, NamedTuple

from live_cache.ledger.clocks import (
    LOG_BYTES,
    LOG_LENGTH,
    NEWBORN,
    SLOT_COUNT,
    TABLE_SLOT,
    Dependency,
    Intent,
    Reading,
)

__all__ = ["ClockMap", "PackedIntent"]

# In words of 8 bytes of this machine: magic with version, seqlock counter, epoch (2), seq, boot id (2), bitmap of open
# intents (2), length of the name, newest seq whose record is not to be trusted, bytes ever written to the log, and the
# room that each growing part has got; the name from byte 512; intents from 4,096; slots behind them; then the growing
# parts: the index of the log, with seq, place and length of one record per entry; the ring of its bytes; the records of
# intents.
MAGIC: Final = b"LIVECLK2"
COUNTER, SEQ, BITMAP, LOG_FLOOR, LOG_END, ROOM = 1, 4, 7, 10, 11, 12
EPOCH: Final = slice(16, 32)
BOOT_ID: Final = slice(40, 56)
NAME_LENGTH: Final = slice(72, 80)
NAME_START, NAME_MAX_BYTES = 512, 2048
INTENTS_START: Final = 4096
INTENT_COUNT: Final = 128
INTENT: Final = struct.Struct("=16sQHH32s64sI")
"""Id, deadline in ns, number of slots (0: the table), bytes of the fence, slots, fence, bytes of the record."""
INTENT_MAX_SLOTS: Final = 16
INTENT_RECORD_BYTES: Final = 2048
SLOTS_START: Final = INTENTS_START + INTENT_COUNT * INTENT.size
SLOTS_WORD: Final = SLOTS_START // 8
HEAD_BYTES: Final = SLOTS_START + SLOT_COUNT * 8
"""What every clock needs; the rest is a hole at first."""
INDEX, RING, RECORDS = range(3)
"""The growing parts."""
INDEX_START: Final = HEAD_BYTES
INDEX_WORD: Final = INDEX_START // 8
INDEX_WORDS: Final = 3
RING_START: Final = INDEX_START + LOG_LENGTH * INDEX_WORDS * 8
RECORDS_START: Final = RING_START + LOG_BYTES
FILE_BYTES: Final = RECORDS_START + INTENT_COUNT * INTENT_RECORD_BYTES
PART_STARTS: Final = (INDEX_START, RING_START, RECORDS_START, FILE_BYTES)
ROOM_STEP: Final = 64 * 1024
NEWBORN_ID: Final = bytes(16)
NEWBORN_RECORD: Final = 0
"""Number of the newborn hold among the intents, so that there is always room for it."""


@lru_cache(maxsize=64)
def _packed_slots(slots: frozenset[int]) -> tuple[int, bytes]:
    """Return number and bytes of the slots of an intent: most have that of the rows, and no other."""
    if TABLE_SLOT in slots or len(slots) > INTENT_MAX_SLOTS:
        return 0, b""
    return len(slots), array("H", slots).tobytes()


class PackedIntent(NamedTuple):
    """An intent as the file holds it."""

    head: bytes
    record: bytes

    @classmethod
    def pack(
        cls, raw_id: bytes, slots: frozenset[int], fence: bytes, deadline_ns: int, record: bytes = b""
    ) -> PackedIntent:
        """Return the bytes of an intent. What does not fit is made wider: many slots become the table."""
        if len(fence) > 64:
            fence = b""  # A cut name could be the name of another transaction; without one the database is not asked.
        count, raw_slots = _packed_slots(slots)
        return cls(INTENT.pack(raw_id, deadline_ns, count, len(fence), raw_slots, fence, len(record)), record)

    def unpack(self) -> Intent:
        """Return the intent."""
        raw_id, _, slot_count, fence_length, raw_slots, fence, _ = INTENT.unpack(self.head)
        slots = struct.unpack_from(f"={slot_count}H", raw_slots) if slot_count else (TABLE_SLOT,)
        name = NEWBORN if raw_id == NEWBORN_ID else raw_id.hex()
        return Intent(name, frozenset(slots), fence[:fence_length].decode(), self.record)

    def is_expired(self, now_ns: int) -> bool:
        """Return whether its lease is over."""
        return bool(INTENT.unpack(self.head)[1] <= now_ns)


class ClockMap:
    """
    One clock file mapped into this process. A file never changes its epoch: a new epoch is a new file.

    Args:
        path: Where the file was found.
        file_id: Device, number and length of the file that is mapped.
    """

    __slots__ = ("epoch", "file_id", "memory", "path", "words")

    def __init__(self, memory: mmap.mmap, path: str, file_id: tuple[int, int, int]) -> None:
        self.memory = memory
        self.words = memoryview(memory).cast("Q")
        self.epoch = bytes(memory[EPOCH])
        self.path = path
        self.file_id = file_id

    # -- looks: without the lock they may see half of a change, unless the counter says otherwise ----------------------

    def look(self, dependency: Dependency) -> Reading | None:
        """Return one atomic look at the clock, or None if a writer was at work."""
        words = self.words
        counter = words[COUNTER]
        if counter & 1:
            return None
        seq = words[SEQ]
        slots = tuple([words[SLOTS_WORD + slot] for slot in dependency.slots])
        packed = [self.intent(number) for number in self.open_intents()]
        if words[COUNTER] != counter:
            return None
        return Reading(dependency.clock, self.epoch, seq, slots, tuple([intent.unpack() for intent in packed]))

    def look_at_log(self, after: int, until: int) -> tuple[list[bytes] | None] | None:
        """Return Ledger.log() of this epoch, atomic, in a tuple, or None if a writer was at work."""
        words = self.words
        counter = words[COUNTER]
        if counter & 1:
            return None
        records = self._copy_log(after, until)
        return None if words[COUNTER] != counter else (records,)

    def _copy_log(self, after: int, until: int) -> list[bytes] | None:
        words = self.words
        seq, end = words[SEQ], words[LOG_END]
        used = words[ROOM + INDEX] // 8
        if until > seq or after < max(words[LOG_FLOOR], seq - LOG_LENGTH):
            return None
        records = []
        for wanted in range(after + 1, until + 1):
            word = wanted % LOG_LENGTH * INDEX_WORDS
            if word >= used:  # On some file systems the hole must not even be read.
                records.append(b"")
                continue
            found, place, length = words[INDEX_WORD + word : INDEX_WORD + word + INDEX_WORDS].tolist()
            if found != wanted:
                records.append(b"")
            elif end - place > LOG_BYTES:
                return None
            else:
                start = RING_START + place % LOG_BYTES
                records.append(self.memory[start : start + length])
        return records

    def open_intents(self) -> list[int]:
        """Return the numbers of the intents that are open."""
        bits = self._open_bits()
        numbers = []
        while bits:
            lowest = bits & -bits
            numbers.append(lowest.bit_length() - 1)
            bits ^= lowest
        return numbers

    def free_number(self) -> int | None:
        """Return the number of an intent that is not open and not the newborn hold's, or None if all are."""
        taken = self._open_bits() | 1 << NEWBORN_RECORD
        number = (~taken & taken + 1).bit_length() - 1
        return number if number < INTENT_COUNT else None

    def intent(self, number: int) -> PackedIntent:
        """Return an intent, whether it is open or not."""
        start = INTENTS_START + number * INTENT.size
        head = self.memory[start : start + INTENT.size]
        length = min(int.from_bytes(head[-4:], "little"), INTENT_RECORD_BYTES)
        start = RECORDS_START + number * INTENT_RECORD_BYTES
        return PackedIntent(head, self.memory[start : start + length] if length else b"")

    def find(self, intent_id: bytes) -> int | None:
        """Return the number of the open intent with this id."""
        bits = self._open_bits()
        while bits:
            lowest = bits & -bits
            number = lowest.bit_length() - 1
            start = INTENTS_START + number * INTENT.size
            if self.memory[start : start + 16] == intent_id:
                return number
            bits ^= lowest
        return None

    # -- changes, which need the lock ----------------------------------------------------------------------------------
    #
    # An odd counter shows readers that the file changes. What raises in between leaves it odd, as a killed process
    # does: what was half done is for the repair. Each save() of a watched table passes open() and change(), so these
    # do all in one function.

    def repair(self) -> None:
        """Make good what a writer left half done when it died. Needs the lock."""
        counter = self.words[COUNTER]
        if counter & 1:
            # Some slots may carry a seq that the clock has not reached, and others may be missing: tick the table. In
            # the log a record may be there without its tick, and may have been written over one that seems to be kept:
            # nobody needs the older ones after a tick of the table, so nobody gets them.
            seq = max(self.words[SEQ], *self.words[SLOTS_WORD : SLOTS_WORD + SLOT_COUNT]) + 1
            self.words[LOG_FLOOR] = seq
            self.words[SLOTS_WORD + TABLE_SLOT] = seq
            self.words[SEQ] = seq
            self.words[COUNTER] = counter + 1

    def change(self, slots: Collection[int], record: bytes, number: int | None) -> None:
        """
        Tick *slots*, if there are any, with *record* in the log, and close an intent, if one is given, in one step.

        Needs room_for_tick(). The seq comes last: without its slots it could make an old entry fresh, without its
        record a change unknown.
        """
        words = self.words
        words[COUNTER] += 1
        if slots:
            seq = words[SEQ] + 1
            if record:
                place = self._next_place(len(record))
                start = RING_START + place % LOG_BYTES
                self.memory[start : start + len(record)] = record
                word = INDEX_WORD + seq % LOG_LENGTH * INDEX_WORDS
                words[word] = seq
                words[word + 1] = place
                words[word + 2] = len(record)
                words[LOG_END] = place + len(record)
            for slot in slots:
                words[SLOTS_WORD + slot] = seq
            words[SEQ] = seq
        if number is not None:
            words[BITMAP + number // 64] &= ~(1 << number % 64)
        words[COUNTER] += 1

    def open(self, number: int, intent: PackedIntent) -> None:
        """Open an intent, which counts by one store, the last. Needs room_for_intent()."""
        words, memory = self.words, self.memory
        head, record = intent
        words[COUNTER] += 1
        if record:
            start = RECORDS_START + number * INTENT_RECORD_BYTES
            memory[start : start + len(record)] = record
        start = INTENTS_START + number * INTENT.size
        memory[start : start + INTENT.size] = head
        words[BITMAP + number // 64] |= 1 << number % 64
        words[COUNTER] += 1

    def room_for_tick(self, record: bytes) -> bool:
        """Get the room that the next tick with *record* needs. Return False if the disk is full."""
        words = self.words
        in_index = ((words[SEQ] + 1) % LOG_LENGTH + 1) * INDEX_WORDS * 8
        in_ring = self._next_place(len(record)) % LOG_BYTES + len(record)
        if in_index <= words[ROOM + INDEX] and in_ring <= words[ROOM + RING]:
            return True
        return self._make_room(INDEX, in_index) and self._make_room(RING, in_ring)

    def room_for_intent(self, number: int) -> bool:
        """Get the room that the record of an intent needs. Return False if the disk is full."""
        return self._make_room(RECORDS, (number + 1) * INTENT_RECORD_BYTES)

    def _open_bits(self) -> int:
        words = self.words
        bits: int = words[BITMAP] | words[BITMAP + 1] << 64
        return bits

    def _next_place(self, length: int) -> int:
        """Return where in all that was ever written the next record begins. None goes over the end of the ring."""
        end: int = self.words[LOG_END]
        return end if end % LOG_BYTES + length <= LOG_BYTES else end + LOG_BYTES - end % LOG_BYTES

    def _make_room(self, part: int, needed: int) -> bool:
        has = self.words[ROOM + part]
        if needed <= has:
            return True
        wanted = min(max(needed, has + ROOM_STEP), PART_STARTS[part + 1] - PART_STARTS[part])
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                info = os.fstat(descriptor)
                if (info.st_dev, info.st_ino, info.st_size) != self.file_id:
                    return False
                # Written and not only reserved: there is a system without posix_fallocate().
                while has < wanted:
                    has += os.pwrite(descriptor, bytes(wanted - has), PART_STARTS[part] + has)
            finally:
                os.close(descriptor)
        except OSError:
            return False
        self.words[ROOM + part] = wanted
        return True


def name_bytes(clock: str) -> bytes:
    """Return as much of the name as the file keeps."""
    return clock.encode("utf-8", "surrogatepass")[:NAME_MAX_BYTES]


def name_in(memory: mmap.mmap) -> bytes:
    """Return name_bytes() of the clock whose file this is."""
    length = min(int.from_bytes(memory[NAME_LENGTH], "little"), NAME_MAX_BYTES)
    return memory[NAME_START : NAME_START + length]


def new_head(clock: str, *, boot_id: bytes, hold: PackedIntent, intents_of: ClockMap | None = None) -> bytearray:
    """
    Return the first HEAD_BYTES of a new clock: new epoch, newborn hold.

    Args:
        intents_of: Its open intents go on, as intents of the whole table.
    """
    content = bytearray(HEAD_BYTES)
    name = name_bytes(clock)
    content[:8] = MAGIC
    content[EPOCH] = os.urandom(16)
    content[BOOT_ID] = boot_id
    content[NAME_LENGTH] = len(name).to_bytes(8, "little")
    content[NAME_START : NAME_START + len(name)] = name
    intents = {}
    if intents_of is not None:
        for number in intents_of.open_intents():
            raw_id, deadline_ns, _, length, _, fence, _ = INTENT.unpack(intents_of.intent(number).head)
            intents[number] = PackedIntent.pack(raw_id, frozenset(), fence[:length], deadline_ns)
    intents[NEWBORN_RECORD] = hold
    words = memoryview(content).cast("Q")
    for number, intent in intents.items():
        start = INTENTS_START + number * INTENT.size
        content[start : start + INTENT.size] = intent.head
        words[BITMAP + number // 64] |= 1 << (number % 64)
    return content
