"""What every ledger does with records: the log of a clock, and the records of intents."""

from __future__ import annotations

import hashlib
import threading

import pytest

from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import (
    LOG_BYTES,
    LOG_LENGTH,
    MAX_RECORD_BYTES,
    ROWS_SLOT,
    TABLE_SLOT,
    Dependency,
    Intent,
    Reading,
    is_fresh,
    take_stamps,
)
from live_cache.testing.ledger_case import CLOCK, OTHER, LedgerCase

__all__ = ["LogTests", "is_whole", "whole_record"]

ROWS = frozenset((ROWS_SLOT,))
DEPENDENCY = Dependency(CLOCK, (TABLE_SLOT, ROWS_SLOT, 5))


def whole_record(text: str, length: int) -> bytes:
    """Return a record of *length* bytes that begins with *text*, and shows if another was mixed into it."""
    head = text.encode() + b"|"
    filler = hashlib.sha256(head).digest() * (length // 32 + 1)
    return (head + filler)[:length]


def is_whole(record: bytes) -> bool:
    """Return whether *record* was made by whole_record()."""
    return record == whole_record(record.partition(b"|")[0].decode(errors="replace"), len(record))


class Answers:
    """A witness with two answers, which notes what it was asked."""

    def __init__(self, *, changes: bool = True, intents: bool = True) -> None:
        self.changes, self.intents = changes, intents
        self.asked: list[object] = []

    def excludes_changes(self, position: int, after: int, reading: Reading) -> bool:
        self.asked.append((position, after, reading.seq))
        return self.changes

    def excludes_intent(self, position: int, intent: Intent) -> bool:
        self.asked.append((position, intent.record))
        return self.intents


class LogTests(LedgerCase):
    """Tests of the log, part of LedgerSuite."""

    def test_records_come_back(self, ledger: Ledger) -> None:
        """The log has the record of each tick, whatever its bytes, in the order of the ticks; b"" where none was."""
        before = self._settle(ledger)
        records = [b"a", b"\0\n |\xff" * 9, b"", bytes(range(256)), b"r", b"b", b"x" * MAX_RECORD_BYTES]
        for record in records:
            assert ledger.tick({CLOCK: {ROWS_SLOT if record else 5}}, records={CLOCK: record} if record else None)
        now = self._read(ledger, Dependency(CLOCK, (0, 1, 5)))
        assert (before.seq + 7, (before.slots[0], before.seq + 7, before.seq + 3)) == (now.seq, now.slots)
        for view in (ledger, self.make_ledger()):
            assert records == view.log(CLOCK, now.epoch, before.seq, now.seq)
            assert records == view.log(CLOCK, now.epoch, before.seq, now.seq)
            assert records[2:4] == view.log(CLOCK, now.epoch, before.seq + 2, before.seq + 4)
            assert view.log(CLOCK, now.epoch, now.seq, now.seq) == []

    def test_each_clock_has_a_log_of_its_own(self, ledger: Ledger) -> None:
        """One tick of two clocks puts each record into its own log."""
        self._settle(ledger)
        before = ledger.read([Dependency(CLOCK), Dependency(OTHER)])
        ledger.tick({CLOCK: ROWS, OTHER: ROWS}, records={CLOCK: b"one", OTHER: b"two"})
        found = [ledger.log(r.clock, r.epoch, r.seq, r.seq + 1) for r in before]
        assert found == [[b"one"], [b"two"]]

    def test_tick_of_the_table_may_have_a_record(self, ledger: Ledger) -> None:
        """A change of the whole table can say for people how it came."""
        before = self._settle(ledger)
        assert ledger.tick({CLOCK: {TABLE_SLOT}}, records={CLOCK: b"note"})
        assert ledger.log(CLOCK, before.epoch, before.seq, before.seq + 1) == [b"note"]

    def test_log_that_overflows(self, ledger: Ledger) -> None:
        """Of the last LOG_LENGTH ticks every record is there, and of those before none."""
        before = self._settle(ledger)
        texts = [f"{number}".encode() for number in range(1, LOG_LENGTH + 6)]
        for text in texts[:LOG_LENGTH]:
            ledger.tick({CLOCK: ROWS}, records={CLOCK: text})
        end = before.seq + LOG_LENGTH
        view = self.make_ledger()
        assert texts[:LOG_LENGTH] == view.log(CLOCK, before.epoch, before.seq, end)
        for text in texts[LOG_LENGTH:]:
            ledger.tick({CLOCK: ROWS}, records={CLOCK: text})
        view = self.make_ledger()
        for after in (before.seq, before.seq + 4):
            assert view.log(CLOCK, before.epoch, after, end + 5) is None
        assert texts[5:] == view.log(CLOCK, before.epoch, before.seq + 5, end + 5)
        ledger.tick({CLOCK: {5}})  # where the log of a fixed length has an old record
        assert [texts[-1], b""] == self.make_ledger().log(CLOCK, before.epoch, end + 4, end + 6)

    def test_log_of_long_records(self, ledger: Ledger) -> None:
        """The bytes of a log are bounded: what went for them is known to be gone, and what is there is whole."""
        before = self._settle(ledger)
        count = LOG_BYTES // MAX_RECORD_BYTES + 20
        records = [whole_record(f"{n}", MAX_RECORD_BYTES - 7 * n) for n in range(count)]
        for record in records:
            ledger.tick({CLOCK: ROWS}, records={CLOCK: record})
        view = self.make_ledger()
        assert view.log(CLOCK, before.epoch, before.seq, before.seq + count) is None
        kept = LOG_BYTES // MAX_RECORD_BYTES - 2
        found = view.log(CLOCK, before.epoch, before.seq + count - kept, before.seq + count)
        assert records[-kept:] == found
        ledger.tick({CLOCK: {5}})
        assert view.log(CLOCK, before.epoch, before.seq + count - 1, before.seq + count + 1) == [records[-1], b""]

    def test_log_of_another_epoch(self, ledger: Ledger) -> None:
        """The log is gone with the epoch, however that ended."""
        for end in (lambda: self.lose(CLOCK), lambda: ledger.reset([CLOCK])):
            before = self._settle(ledger)
            ledger.tick({CLOCK: ROWS}, records={CLOCK: b"old"})
            end()
            assert self.make_ledger().log(CLOCK, before.epoch, before.seq, before.seq + 1) is None
            after = self._settle(ledger)
            for _ in range(3):
                ledger.tick({CLOCK: {5}})
            view = self.make_ledger()
            assert view.log(CLOCK, before.epoch, before.seq, before.seq + 1) is None
            assert view.log(CLOCK, after.epoch, after.seq, after.seq + 3) == [b""] * 3

    def test_log_of_what_is_not_there(self, ledger: Ledger) -> None:
        """A clock that never was, or a seq that never came, has no log."""
        assert ledger.log(CLOCK, b"0" * 16, 0, 1) is None
        assert ledger.clocks() == []
        before = self._settle(ledger)
        assert ledger.log(CLOCK, before.epoch, before.seq, before.seq + 1) is None
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"x"})
        assert ledger.log(CLOCK, before.epoch, before.seq, before.seq + 1) == [b"x"]

    def test_tick_without_its_record_is_refused(self, ledger: Ledger) -> None:
        """A tick of rows needs a record that a log takes; nothing is ticked otherwise."""
        before = self._settle(ledger)
        for changes, record in ((ROWS, b""), (ROWS | {5}, b""), (ROWS, b"x" * (MAX_RECORD_BYTES + 1))):
            with pytest.raises(ValueError, match=CLOCK):
                ledger.tick({CLOCK: changes}, records={CLOCK: record})
        with pytest.raises(ValueError, match=CLOCK):
            ledger.tick({OTHER: {5}, CLOCK: ROWS}, records={OTHER: b"x"})
        assert before == self._read(ledger)
        assert ledger.tick({CLOCK: ROWS | {TABLE_SLOT}})
        assert before.seq + 1 == self._read(ledger).seq

    def test_intent_carries_its_record(self, ledger: Ledger) -> None:
        """Every reading shows the record of an open intent, as it was declared, until the tick."""
        self._settle(ledger)
        record = bytes(range(256)) * 8
        assert len(record) <= ledger.intent_record_bytes
        first = ledger.declare({CLOCK: ROWS | {5}}, fence="pg:1", records={CLOCK: record, OTHER: b"other"})
        second = ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: b"\n"})
        expected = {Intent(first, ROWS | {5}, "pg:1", record), Intent(second, ROWS, "", b"\n")}
        for view in (ledger, self.make_ledger()):
            assert expected == set(self._read(view).intents)
        ledger.tick({CLOCK: ROWS | {5}}, intent_id=first, records={CLOCK: record})
        assert (Intent(second, ROWS, "", b"\n"),) == self._read(ledger).intents
        self.let_pass(self.lease_s * 1.25)
        assert [Intent(second, ROWS, "", b"\n")] == ledger.expired(CLOCK)

    def test_intent_without_its_record_is_for_the_table(self, ledger: Ledger) -> None:
        """A record that is too long for an intent, or missing, makes the intent wide; the tick has it whole."""
        self._settle(ledger)
        for record in (b"x" * (ledger.intent_record_bytes + 1), b""):
            before = self._read(ledger)
            intent_id = ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: record})
            (intent,) = self._read(ledger).intents
            assert (intent.record, intent.touches((5,))) == (b"", True)
            assert not intent.touches_only_rows(DEPENDENCY.slots)
            if 0 < len(record) <= MAX_RECORD_BYTES:
                ledger.tick({CLOCK: ROWS}, intent_id=intent_id, records={CLOCK: record})
                assert [record] == ledger.log(CLOCK, before.epoch, before.seq, before.seq + 1)
            else:
                ledger.reap(CLOCK, {intent_id})
                assert before.seq + 1 == self._read(ledger).slots[0]

    def test_many_intents_with_long_records(self, ledger: Ledger) -> None:
        """However many writers commit at once, each is shown with its record, or as one of the table."""
        self._settle(ledger)
        told = {
            ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: whole_record(f"{n}", 2000)}): whole_record(
                f"{n}", 2000
            )
            for n in range(100)
        }
        intents = self._read(ledger).intents
        assert told.keys() == {intent.id for intent in intents}
        for intent in intents:
            assert intent.record == told[intent.id] or (intent.record == b"" and TABLE_SLOT in intent.slots)
        assert sum(1 for intent in intents if intent.record) > 10

    def test_reap_puts_the_record_into_the_log(self, ledger: Ledger) -> None:
        """Who reaps an intent tells what its writer would have told."""
        before = self._settle(ledger)
        record = bytes(range(256))
        intent_id = ledger.declare({CLOCK: ROWS | {5}}, fence="x", records={CLOCK: record})
        ledger.reap(CLOCK, {intent_id})
        now = self._read(ledger, DEPENDENCY)
        assert (before.seq + 1, before.seq + 1) == now.slots[1:]
        assert before.slots[0] == now.slots[0]
        assert [record] == ledger.log(CLOCK, before.epoch, before.seq, now.seq)
        assert [record] == self.make_ledger().log(CLOCK, before.epoch, before.seq, now.seq)

    def test_intents_that_outlive_their_room_are_for_the_table(self, ledger: Ledger) -> None:
        """When a clock has more intents than it takes, no reader excludes one whose record is not there."""
        self._settle(ledger)
        for number in range(600):
            ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: whole_record(f"{number}", 100)})
        for intent in self._read(ledger).intents:
            assert TABLE_SLOT in intent.slots or is_whole(intent.record)
            assert TABLE_SLOT in intent.slots or intent.record

    def test_is_watched(self, ledger: Ledger) -> None:
        """A clock is watched once a reader has asked for it. The answer may be a second old, and creates nothing."""
        assert not ledger.is_watched([CLOCK, OTHER])
        assert not ledger.is_watched([])
        assert ledger.clocks() == []
        self._settle(ledger)
        view = self.make_ledger()
        assert view.is_watched([CLOCK])
        assert view.is_watched([OTHER, CLOCK])
        assert not view.is_watched([OTHER])

    def test_entry_is_fresh_if_the_witness_excludes_every_change(self, ledger: Ledger) -> None:
        """Rows that changed leave an entry fresh exactly if its witness says so; no witness is no proof."""
        self._settle(ledger)
        stamps = take_stamps([self._read(ledger, DEPENDENCY)])
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"row"})
        now = self._read(ledger, DEPENDENCY)
        for answer in (True, False):
            witness = Answers(changes=answer)
            assert answer is is_fresh(stamps, [now], [DEPENDENCY], witness)
            assert [(0, stamps[0].seq, now.seq)] == witness.asked
        assert not is_fresh(stamps, [now], [DEPENDENCY])
        ledger.tick({CLOCK: {5}})
        assert not is_fresh(stamps, [self._read(ledger, DEPENDENCY)], [DEPENDENCY], Answers())

    def test_entry_is_fresh_if_the_witness_excludes_every_intent(self, ledger: Ledger) -> None:
        """A commit in progress holds an entry, unless its record is known and excluded."""
        self._settle(ledger)
        stamps = take_stamps([self._read(ledger, DEPENDENCY)])
        rows = ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: b"row"})
        now = self._read(ledger, DEPENDENCY)
        for answer in (True, False):
            witness = Answers(intents=answer)
            assert answer is is_fresh(stamps, [now], [DEPENDENCY], witness)
            assert witness.asked == [(0, b"row")]
        assert not is_fresh(stamps, [now], [DEPENDENCY])
        ledger.retract([CLOCK], rows)
        for slots in (ROWS | {5}, frozenset((TABLE_SLOT,))):
            other = ledger.declare({CLOCK: slots}, fence="", records={CLOCK: b"row"})
            assert not is_fresh(stamps, [self._read(ledger, DEPENDENCY)], [DEPENDENCY], Answers())
            ledger.retract([CLOCK], other)
        apart = Dependency(CLOCK, (TABLE_SLOT, 7))
        ledger.declare({CLOCK: ROWS | {5}}, fence="", records={CLOCK: b"row"})
        assert is_fresh(stamps, [self._read(ledger, apart)], [apart])

    def test_readers_never_see_a_torn_record(self, ledger: Ledger) -> None:
        """While writers tick, each record that a reader gets is one that was told, and in its place."""
        before = self._settle(ledger)
        is_over = threading.Event()
        wrong: list[object] = []

        def look() -> None:
            view = self.make_ledger()
            after = before.seq
            while not is_over.is_set():
                now = self._read(view)
                records = view.log(CLOCK, now.epoch, after, now.seq)
                if records is None or len(records) != now.seq - after or not all(map(is_whole, records)):
                    wrong.append(records)
                wrong.extend(intent for intent in now.intents if not is_whole(intent.record))
                after = max(before.seq, now.seq - 20)

        def work(name: int) -> None:
            for number in range(100):
                told = {CLOCK: whole_record(f"{name}.{number}", 300 + 17 * number)}
                intent_id = ledger.declare({CLOCK: ROWS}, fence="", records=told)
                ledger.tick({CLOCK: ROWS}, intent_id=intent_id, records=told)

        readers = [threading.Thread(target=look) for _ in range(2)]
        writers = [threading.Thread(target=work, args=(name,)) for name in range(3)]
        for thread in readers + writers:
            thread.start()
        for thread in writers:
            thread.join()
        is_over.set()
        for thread in readers:
            thread.join()
        now = self._read(ledger)
        told = self.make_ledger().log(CLOCK, now.epoch, before.seq, now.seq)
        assert told is not None
        names = [record.partition(b"|")[0].decode() for record in told]
        assert sorted(names) == sorted(f"{name}.{number}" for name in range(3) for number in range(100))
        assert all(map(is_whole, told))
        assert wrong == []
