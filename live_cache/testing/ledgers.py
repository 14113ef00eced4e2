"""The conformance suite of every ledger. Subclass it in a test module, with make_ledger(), lose() and let_pass()."""

from __future__ import annotations

import threading

from live_cache.ledger.base import Ledger
from live_cache.ledger.clocks import NEWBORN, SLOT_COUNT, TABLE_SLOT, Dependency, Intent, is_fresh, take_stamps
from live_cache.testing.ledger_case import CLOCK, OTHER
from live_cache.testing.ledger_logs import LogTests

__all__ = ["CLOCK", "LedgerSuite"]


class LedgerSuite(LogTests):
    """What every ledger does. Each test gets a ledger without clocks."""

    def test_name(self, ledger: Ledger) -> None:
        """The name is the documented one."""
        assert self.name == ledger.name

    def test_newborn_hold(self, ledger: Ledger) -> None:
        """A clock that readers of several processes share is born with a table-wide hold; no second one follows."""
        expected = (Intent(NEWBORN, frozenset((TABLE_SLOT,)), ""),) if self.has_newborn_hold else ()
        first = self._read(ledger)
        assert expected == first.intents
        assert first == self._read(ledger)

    def test_entry_is_fresh_until_the_tick_of_its_slot(self, ledger: Ledger) -> None:
        """An entry is fresh until one of its slots ticks, and an entry filled after the tick is fresh again."""
        self._settle(ledger)
        dependency = Dependency(CLOCK, (TABLE_SLOT, 5, 9))
        stamps = take_stamps([self._read(ledger, dependency)])
        assert is_fresh(stamps, [self._read(ledger, dependency)], [dependency])
        ledger.tick({CLOCK: {6, 4095}})
        assert is_fresh(stamps, [self._read(ledger, dependency)], [dependency])
        ledger.tick({CLOCK: {9}})
        assert not is_fresh(stamps, [self._read(ledger, dependency)], [dependency])
        stamps = take_stamps([self._read(ledger, dependency)])
        assert is_fresh(stamps, [self._read(ledger, dependency)], [dependency])

    def test_fill_that_raced_with_a_tick_is_not_fresh(self, ledger: Ledger) -> None:
        """A stamp read before a tick never becomes fresh, whatever ticks later."""
        self._settle(ledger)
        dependency = Dependency(CLOCK, (TABLE_SLOT, 5))
        stamps = take_stamps([self._read(ledger, dependency)])
        ledger.tick({CLOCK: {5}})
        for slots in ({7}, {5}, {TABLE_SLOT}):
            ledger.tick({CLOCK: slots})
            assert not is_fresh(stamps, [self._read(ledger, dependency)], [dependency])

    def test_tick_counts_once_for_all_its_slots(self, ledger: Ledger) -> None:
        """A tick adds one to seq and sets each of its slots to it, and no other."""
        seq = self._settle(ledger).seq
        assert ledger.tick({CLOCK: {2, 4095}})
        reading = self._read(ledger, Dependency(CLOCK, (2, 3, 4095)))
        assert (seq + 1, (seq + 1, 0, seq + 1)) == (reading.seq, reading.slots)

    def test_tick_of_every_slot(self, ledger: Ledger) -> None:
        """All 4,096 slots fit into one tick and into one reading."""
        seq = self._settle(ledger).seq
        assert ledger.tick({CLOCK: set(range(SLOT_COUNT))})
        reading = self._read(ledger, Dependency(CLOCK, tuple(range(SLOT_COUNT))))
        assert (seq + 1,) * SLOT_COUNT == reading.slots

    def test_clocks_are_independent(self, ledger: Ledger) -> None:
        """A tick of one clock leaves the others alone, and readings come in the order of the question."""
        self._settle(ledger)
        dependencies = [Dependency(OTHER, (TABLE_SLOT,)), Dependency(CLOCK, (TABLE_SLOT, 3)), Dependency(OTHER, (0, 3))]
        before = ledger.read(dependencies)
        assert ledger.tick({CLOCK: {3}})
        after = ledger.read(dependencies)
        assert [reading.clock for reading in after] == [OTHER, CLOCK, OTHER]
        assert (before[0], before[2]) == (after[0], after[2])
        assert after[1].slots[1] == after[1].seq == before[1].seq + 1

    def test_odd_names(self, ledger: Ledger) -> None:
        """Names with spaces, braces, globs, slashes, any script, and of great length are different clocks."""
        names = ["a", "a ", "{a}", "a}", "{", "}", "{}", "*", "a/../b", "é", "e\u0301", "表", "x" * 3000, "x" * 3001]
        readings = ledger.read([Dependency(name) for name in names])
        assert len(names) == len({reading.epoch for reading in readings})
        assert readings == ledger.read([Dependency(name) for name in names])

    def test_lost_clock_has_a_new_epoch(self, ledger: Ledger) -> None:
        """A clock that was lost comes back with another epoch, so that no stamp from before is fresh."""
        stamps = take_stamps([self._settle(ledger)])
        self.lose(CLOCK)
        reading = self._read(ledger)
        assert stamps[0].epoch != reading.epoch
        assert not is_fresh(stamps, [reading], [Dependency(CLOCK)])
        assert self.has_newborn_hold == bool(reading.intents)

    def test_reset(self, ledger: Ledger) -> None:
        """reset() gives new epochs to what exists, by name or to all, and creates nothing."""
        before = ledger.read([Dependency(CLOCK), Dependency(OTHER)])
        assert ledger.reset([OTHER, "default/never_read"]) == 1
        after = ledger.read([Dependency(CLOCK), Dependency(OTHER)])
        assert before[0].epoch == after[0].epoch
        assert before[1].epoch != after[1].epoch
        assert ledger.reset() == 2
        again = ledger.read([Dependency(CLOCK), Dependency(OTHER)])
        assert not {reading.epoch for reading in after} & {reading.epoch for reading in again}
        assert sorted([CLOCK, OTHER]) == [info.clock for info in ledger.clocks()]

    def test_reset_with_an_open_intent_leaves_a_hold(self, ledger: Ledger) -> None:
        """What a reset drops, a hold stands for: the writer may be between its COMMIT and its tick."""
        self._settle(ledger)
        ledger.declare({CLOCK: {5}}, fence="x")
        ledger.reset([CLOCK])
        assert [intent.id for intent in self._read(ledger).intents] == [NEWBORN]

    def test_other_view_sees_everything_at_once(self, ledger: Ledger) -> None:
        """Two views of the same clocks agree after each step."""
        other = self.make_ledger()
        self._settle(ledger)
        intent_id = other.declare({CLOCK: {5}}, fence="x")
        assert [intent_id] == [intent.id for intent in self._read(ledger).intents]
        other.tick({CLOCK: {5}}, intent_id=intent_id)
        assert self._read(other) == self._read(ledger)
        assert self._read(ledger).intents == ()
        other.close()

    def test_intent_is_shown_and_touches_its_slots(self, ledger: Ledger) -> None:
        """An open intent makes what it touches not fresh, and leaves the rest alone."""
        self._settle(ledger)
        touched, apart = Dependency(CLOCK, (TABLE_SLOT, 5)), Dependency(CLOCK, (TABLE_SLOT, 6))
        stamps = take_stamps([self._read(ledger)])
        intent_id = ledger.declare({CLOCK: {5, 77}}, fence="pg:42")
        assert (Intent(intent_id, frozenset((5, 77)), "pg:42"),) == self._read(ledger).intents
        assert not is_fresh(stamps, [self._read(ledger, touched)], [touched])
        assert is_fresh(stamps, [self._read(ledger, apart)], [apart])

    def test_wide_intent_touches_everything(self, ledger: Ledger) -> None:
        """An intent for the table, or for very many slots, touches every result of the table."""
        self._settle(ledger)
        for slots in ({TABLE_SLOT}, {TABLE_SLOT, 5}, set(range(1, 1001))):
            intent_id = ledger.declare({CLOCK: slots}, fence="")
            (intent,) = self._read(ledger).intents
            assert all(intent.touches((slot,)) for slot in slots)
            ledger.retract([CLOCK], intent_id)

    def test_retract(self, ledger: Ledger) -> None:
        """A retracted intent is gone and has ticked nothing; one that is gone already does no harm."""
        before = self._settle(ledger)
        intent_id = ledger.declare({CLOCK: {5}}, fence="x")
        kept = ledger.declare({CLOCK: {6}}, fence="y")
        ledger.retract([CLOCK, "default/never_read"], intent_id)
        ledger.retract([CLOCK], intent_id)
        after = self._read(ledger)
        assert (before.seq, [kept]) == (after.seq, [intent.id for intent in after.intents])

    def test_tick_removes_its_intent_only(self, ledger: Ledger) -> None:
        """The tick that ends an intent leaves the others, and the hold, standing."""
        self._settle(ledger)
        first = ledger.declare({CLOCK: {5}}, fence="x")
        second = ledger.declare({CLOCK: {5}}, fence="y")
        ledger.tick({CLOCK: {5}}, intent_id=first)
        assert [second] == [intent.id for intent in self._read(ledger).intents]

    def test_tick_without_its_intent_still_ticks(self, ledger: Ledger) -> None:
        """The tick happens even if the intent was reaped, or lost with the epoch."""
        self._settle(ledger)
        intent_id = ledger.declare({CLOCK: {5}}, fence="x")
        ledger.reap(CLOCK, {intent_id})
        self.lose(CLOCK)
        before = self._read(ledger)
        ledger.tick({CLOCK: {5}}, intent_id=intent_id)
        assert before.seq + 1 == self._read(ledger).seq

    def test_missing_clock_is_left_alone(self, ledger: Ledger) -> None:
        """Only a reader creates a clock: nobody else has anything to lose."""
        intent_id = ledger.declare({CLOCK: {5}}, fence="x")
        assert ledger.tick({CLOCK: {5}}, intent_id=intent_id)
        ledger.retract([CLOCK], intent_id)
        ledger.reap(CLOCK, {intent_id, NEWBORN})
        assert ledger.expired(CLOCK) == []
        assert ledger.clocks() == []

    def test_expired_after_the_lease(self, ledger: Ledger) -> None:
        """Intents and the newborn hold expire by the ledger's time, and stay shown until they are reaped."""
        self._settle(ledger)
        first = ledger.declare({CLOCK: {5}}, fence="x")
        assert ledger.expired(CLOCK) == []
        self.let_pass(self.lease_s * 1.25)
        second = ledger.declare({CLOCK: {6}}, fence="y")
        assert [Intent(first, frozenset((5,)), "x")] == ledger.expired(CLOCK)
        assert {first, second} == {intent.id for intent in self._read(ledger).intents}

    def test_newborn_hold_expires(self, ledger: Ledger) -> None:
        """After one lease the hold counts as expired."""
        self._read(ledger)
        assert ledger.expired(CLOCK) == []
        self.let_pass(self.lease_s * 1.25)
        expected = [NEWBORN] if self.has_newborn_hold else []
        assert expected == [intent.id for intent in ledger.expired(CLOCK)]

    def test_reap_ticks_the_slots_of_the_intent(self, ledger: Ledger) -> None:
        """Reaping is a tick: what was filled while the intent stood is not fresh afterwards."""
        before = self._settle(ledger)
        intent_id = ledger.declare({CLOCK: {5, 6}}, fence="x")
        ledger.reap(CLOCK, {intent_id, "0" * 32})
        after = self._read(ledger, Dependency(CLOCK, (4, 5, 6)))
        assert ((0, before.seq + 1, before.seq + 1), ()) == (after.slots, after.intents)

    def test_reap_of_the_hold_ticks_the_table(self, ledger: Ledger) -> None:
        """What was filled under the hold is not fresh after it."""
        born = self._read(ledger)
        ledger.reap(CLOCK, {NEWBORN}, epoch=born.epoch)
        after = self._read(ledger)
        assert after.intents == ()
        assert self.has_newborn_hold == (not is_fresh(take_stamps([born]), [after], [Dependency(CLOCK)]))

    def test_reap_with_proof_about_another_epoch_does_nothing(self, ledger: Ledger) -> None:
        """The hold of a clock born later is not lifted by a proof about an earlier birth."""
        born = self._read(ledger)
        ledger.declare({CLOCK: {5}}, fence="x")
        ledger.reset([CLOCK])
        before = self._read(ledger)
        ledger.reap(CLOCK, {NEWBORN}, epoch=born.epoch)
        assert before == self._read(ledger)
        assert [intent.id for intent in before.intents] == [NEWBORN]

    def test_unannounced_writes_are_known_to_who_lifts_the_hold(self, ledger: Ledger) -> None:
        """A ledger that lets writes go unannounced tells of each until it has ended, and sees births meanwhile."""
        other, first, second = self.make_ledger(), object(), object()
        if not ledger.begin_unannounced([CLOCK, OTHER], first):
            assert ledger.end_unannounced([CLOCK, OTHER], first)
            return
        assert other.begin_unannounced([CLOCK], second)
        born = self._read(other)
        assert ledger.has_unannounced(born)
        assert other.has_unannounced(born)
        assert ledger.end_unannounced([CLOCK, OTHER], first)
        assert ledger.has_unannounced(born)
        assert other.end_unannounced([CLOCK], second)
        assert not ledger.has_unannounced(born)
        assert not ledger.begin_unannounced([CLOCK, OTHER], first)
        assert not ledger.has_unannounced(born)
        assert ledger.begin_unannounced([OTHER], first)
        assert not ledger.end_unannounced([OTHER], first)
        other.close()

    def test_more_intents_than_there_is_room_for(self, ledger: Ledger) -> None:
        """However many writers commit at once, every result that one of them touches is not fresh."""
        self._settle(ledger)
        dependency = Dependency(CLOCK, (TABLE_SLOT, 1000))
        stamps = take_stamps([self._read(ledger, dependency)])
        for slot in range(1, 601):
            ledger.declare({CLOCK: {slot}}, fence="x")
        ledger.declare({CLOCK: {1000}}, fence="x")
        reading = self._read(ledger, dependency)
        assert not is_fresh(stamps, [reading], [dependency])
        assert not is_fresh(take_stamps([reading]), [reading], [dependency])

    def test_stats(self, ledger: Ledger) -> None:
        """clocks() lists what exists with seq and intents."""
        settled = self._settle(ledger)
        ledger.declare({CLOCK: {5}}, fence="x")
        (info,) = ledger.clocks()
        assert (CLOCK, settled.epoch, settled.seq, 1) == (info.clock, info.epoch, info.seq, info.intent_count)

    def test_use_after_close(self, ledger: Ledger) -> None:
        """A closed ledger opens again when it is used, on the same clocks."""
        before = self._settle(ledger)
        ledger.close()
        assert before == self._read(ledger)
        ledger.close()
        assert ledger.tick({CLOCK: {5}})
        assert before.seq + 1 == self._read(ledger).seq

    def test_threads_lose_no_tick(self, ledger: Ledger) -> None:
        """Ticks of several threads all count, while others read and declare."""
        before = self._settle(ledger)

        def work() -> None:
            for _ in range(50):
                intent_id = ledger.declare({CLOCK: {5}}, fence="x")
                self._read(ledger)
                ledger.tick({CLOCK: {5}}, intent_id=intent_id)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        after = self._read(ledger)
        assert (before.seq + 200, ()) == (after.seq, after.intents)
