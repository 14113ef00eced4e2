"""The rule of freshness, what every ledger inherits, and the ledger of one process."""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pytest

from live_cache.exceptions import ConfigurationError, LedgerUnavailableError
from live_cache.ledger import base
from live_cache.ledger.clocks import Dependency, Intent, Reading, Stamp, is_fresh, slot_of, take_stamps
from live_cache.ledger.process import ProcessLedger
from live_cache.testing.ledgers import CLOCK, LedgerSuite

E1, E2 = b"1" * 16, b"2" * 16
DEPENDENCY = Dependency("c", (0, 5))
SLOT_OF_AB = 1830


class TestProcessLedger(LedgerSuite):
    name = "process"
    has_newborn_hold = False

    @pytest.fixture(autouse=True)
    def _state(self) -> None:
        self.now_s = 100.0
        self.made = ProcessLedger(lease_s=self.lease_s, clock=lambda: self.now_s)

    def make_ledger(self) -> ProcessLedger:
        return self.made

    def lose(self, clock: str) -> None:
        self.made.reset([clock])

    def let_pass(self, seconds: float) -> None:
        self.now_s += seconds

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
    @pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
    def test_child_shares_nothing(self) -> None:
        """After a fork the child starts new epochs, even if a thread of the parent held the lock at that moment."""
        stamps = take_stamps(self.made.read([Dependency(CLOCK)]))
        has_lock, may_end = threading.Event(), threading.Event()

        def hold() -> None:
            with self.made._lock, self.made._undelivered_lock:
                has_lock.set()
                may_end.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        has_lock.wait(10)
        child = os.fork()
        if child == 0:
            self.made.tick({CLOCK: {0}})
            readings = self.made.read([Dependency(CLOCK)])
            os._exit(0 if readings[0].epoch != stamps[0].epoch else 1)
        may_end.set()
        thread.join()
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert is_fresh(stamps, self.made.read([Dependency(CLOCK)]), [Dependency(CLOCK)])


@pytest.mark.parametrize(
    ("reading", "expected"),
    [
        (Reading("c", E1, 3, (1, 3)), True),
        (Reading("c", E1, 9, (1, 3)), True),
        (Reading("c", E1, 4, (1, 4)), False),
        (Reading("c", E1, 4, (4, 1)), False),
        (Reading("c", E2, 3, (1, 3)), False),
        (Reading("d", E1, 3, (1, 3)), False),
        (Reading("c", E1, 3, (1,)), False),
        (Reading("c", E1, 3, (1, 3), (Intent("i", frozenset((5,)), ""),)), False),
        (Reading("c", E1, 3, (1, 3), (Intent("i", frozenset((0,)), ""),)), False),
        (Reading("c", E1, 3, (1, 3), (Intent("i", frozenset((6,)), ""),)), True),
    ],
)
def test_is_fresh(reading: Reading, expected: bool) -> None:
    """Fresh: same clock and epoch, no slot above the stamp, no open intent on one of the slots."""
    assert expected == is_fresh([Stamp("c", E1, 3)], [reading], [DEPENDENCY])


def test_is_fresh_needs_every_part() -> None:
    """One stale dependency, a missing part, or a dependency without the table's slot is enough to refuse."""
    stamp, reading = Stamp("c", E1, 3), Reading("c", E1, 3, (1, 3))
    stale = Reading("c", E1, 4, (1, 4))
    assert is_fresh([stamp, stamp], [reading, reading], [DEPENDENCY, DEPENDENCY])
    assert not is_fresh([stamp, stamp], [reading, stale], [DEPENDENCY, DEPENDENCY])
    assert not is_fresh([stamp], [reading, reading], [DEPENDENCY, DEPENDENCY])
    assert not is_fresh([stamp], [Reading("c", E1, 3, (1,))], [Dependency("c", (5,))])
    assert not is_fresh([stamp], [Reading("c", E1, 3, ())], [Dependency("c", ())])


def test_slot_of_is_stable_and_never_the_table() -> None:
    """Slots are the same in every process, and the slots of the table and of its rows are nobody's."""
    slots = {slot_of(f"row/{number}") for number in range(50_000)}
    assert set(range(2, 4096)) == slots
    assert SLOT_OF_AB == slot_of("a/b")


def test_lease_must_be_positive() -> None:
    """A lease of zero would expire intents at once."""
    with pytest.raises(ConfigurationError, match="lease"):
        ProcessLedger(lease_s=0)


class FailingLedger(ProcessLedger):
    """Fails as long as it is told to, and can be held in the middle of a delivery."""

    error: BaseException | None = None
    ticks = 0

    def _tick(self, changes: Mapping[str, frozenset[int]], intent_id: str | None, records: Mapping[str, bytes]) -> None:
        if self.error is not None:
            raise self.error
        self.ticks += 1
        super()._tick(changes, intent_id, records)


@pytest.fixture
def failing() -> FailingLedger:
    ledger = FailingLedger(lease_s=10)
    ledger.read([Dependency(CLOCK)])
    return ledger


def test_tick_that_fails_is_kept_and_delivered_before_the_next_read(failing: FailingLedger) -> None:
    """No reader of this process sees a clock without the ticks that this process owes it."""
    stamps = take_stamps(failing.read([Dependency(CLOCK)]))
    intent_id = failing.declare({CLOCK: {0}}, fence="x")
    failing.error = LedgerUnavailableError("away")
    assert not failing.tick({CLOCK: {0}}, intent_id=intent_id)
    assert failing.undelivered_count == 1
    with pytest.raises(LedgerUnavailableError):
        failing.read([Dependency(CLOCK)])
    failing.error = None
    (reading,) = failing.read([Dependency(CLOCK)])
    assert not is_fresh(stamps, [reading], [Dependency(CLOCK)])
    assert ((), 0) == (reading.intents, failing.undelivered_count)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("a bug")])
def test_interrupted_tick_is_kept(failing: FailingLedger, error: BaseException) -> None:
    """An interrupt in the middle of a tick passes through, and the tick is delivered later."""
    failing.error = error
    with pytest.raises(type(error)):
        failing.tick({CLOCK: {5}})
    failing.error = None
    assert failing.read([Dependency(CLOCK, (0, 5))])[0].slots[1] == 1


def test_kept_ticks_are_delivered_by_themselves(failing: FailingLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that does nothing more delivers what it has kept, once the ledger is back; and again after that."""
    monkeypatch.setattr(base, "DELIVERY_PAUSE_S", 0.01)
    for number in (1, 2):
        failing.error = LedgerUnavailableError("away")
        assert not failing.tick({CLOCK: {5}})
        assert not failing.tick({CLOCK: {6}})
        time.sleep(0.05)
        assert failing.undelivered_count == 2
        failing.error = None
        end_s = time.monotonic() + 10
        while failing.undelivered_count and time.monotonic() < end_s:
            time.sleep(0.01)
        assert failing.read([Dependency(CLOCK, (5, 6))])[0].slots == (2 * number - 1, 2 * number)


def test_the_thread_that_delivers_ends_with_its_ledger(monkeypatch: pytest.MonkeyPatch) -> None:
    """A ledger that is dropped while it is away leaves no thread behind."""
    monkeypatch.setattr(base, "DELIVERY_PAUSE_S", 0.01)
    monkeypatch.setattr(base.logger, "disabled", True)  # records of the log refer to the ledger by their tracebacks
    ledger = FailingLedger(lease_s=10)
    ledger.error = LedgerUnavailableError("away")
    others = set(threading.enumerate())
    ledger.tick({CLOCK: {5}})
    (thread,) = set(threading.enumerate()) - others
    del ledger
    end_s = time.monotonic() + 10
    while thread.is_alive() and time.monotonic() < end_s:
        gc.collect()  # and so does the error itself
        time.sleep(0.01)
    assert not thread.is_alive()


def test_many_kept_ticks_are_merged(failing: FailingLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the ledger is away, what is kept stays small and complete."""
    monkeypatch.setattr(base, "MAX_UNDELIVERED", 10)
    failing.error = LedgerUnavailableError("away")
    for slot in range(2, 102):
        failing.tick({CLOCK: {slot}})
    assert failing.undelivered_count <= 10
    failing.error = None
    slots = failing.read([Dependency(CLOCK, tuple(range(2, 102)))])[0].slots
    assert min(slots) >= 1


def test_waiting_threads_do_not_try_again_one_by_one(failing: FailingLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """When a delivery fails, the threads that waited for it fail at once, and do not each wait for a timeout."""
    monkeypatch.setattr(base, "DELIVERY_PAUSE_S", 1000)  # nobody else tries
    failing.error = LedgerUnavailableError("away")
    failing.tick({CLOCK: {5}})
    tries, in_delivery, may_fail = [0], threading.Event(), threading.Event()

    def slow(changes: object, intent_id: object, records: object) -> None:
        tries[0] += 1
        in_delivery.set()
        may_fail.wait(10)
        raise LedgerUnavailableError("away")

    failing._tick = slow  # type: ignore[method-assign]  # a ledger that answers late
    with ThreadPoolExecutor(5) as executor:
        first = executor.submit(failing.read, [Dependency(CLOCK)])
        in_delivery.wait(10)
        others = [executor.submit(failing.read, [Dependency(CLOCK)]) for _ in range(4)]
        while executor._work_queue.qsize() or not failing._undelivered_lock.locked():
            pass
        threading.Event().wait(0.05)  # the four are on their way to the lock; one that is late makes this test weaker
        may_fail.set()
        for future in [first, *others]:
            with pytest.raises(LedgerUnavailableError):
                future.result(10)
    assert tries[0] == 1
