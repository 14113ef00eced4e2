"""The log of the ledger of one host: killed writers, full disks, many processes."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from live_cache.ledger import host_clock
from live_cache.ledger.clocks import NEWBORN, ROWS_SLOT, Dependency, Intent, Reading, is_fresh, take_stamps
from live_cache.ledger.host import HostLedger
from live_cache.testing.ledger_logs import Answers, is_whole, whole_record
from live_cache.testing.ledgers import CLOCK

DEPENDENCY = Dependency(CLOCK, (0, ROWS_SLOT, 5))
ROWS = frozenset((ROWS_SLOT,))
ROOT = Path(__file__).parent.parent


@pytest.fixture
def ledger(host_ledger: HostLedger) -> HostLedger:
    return host_ledger


def read(ledger: HostLedger) -> Reading:
    return ledger.read([DEPENDENCY])[0]


def settle(ledger: HostLedger) -> Reading:
    ledger.reap(CLOCK, {NEWBORN}, epoch=read(ledger).epoch)
    return read(ledger)


def log(ledger: HostLedger, since: Reading) -> list[bytes] | None:
    now = read(ledger)
    return ledger.log(CLOCK, now.epoch, since.seq, now.seq)


def clock_file(ledger: HostLedger) -> Path:
    (path,) = ledger.directory.glob("*.clock")
    return path


PROGRAM = """
import os, signal, sys, threading
sys.path.insert(0, {root!r})
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.host import HostLedger
from live_cache.testing.ledger_logs import ROWS, is_whole, whole_record
ledger = HostLedger({directory!r}, lease_s=1000)
CLOCK = {clock!r}
"""

KILLED_AT = """
class Killing:
    left = {stores}
    def __init__(self, kept):
        self.kept = kept
    def __getitem__(self, index):
        return self.kept[index]
    def __setitem__(self, index, value):
        if Killing.left == 0:
            if isinstance(value, bytes):  # half of it
                half = len(value) // 2
                self.kept[index.start:index.start + half] = value[:half]
            os.kill(os.getpid(), signal.SIGKILL)
        Killing.left -= 1
        self.kept[index] = value
ledger.read([Dependency(CLOCK)])
found = ledger._maps[CLOCK]
found.words, found.memory = Killing(found.words), Killing(found.memory)
{step}
"""
TICK = "ledger.tick({CLOCK: ROWS | {5}}, records={CLOCK: whole_record('torn', 1000)}, intent_id=%r)"
DECLARE = "ledger.declare({CLOCK: ROWS}, fence='', records={CLOCK: whole_record('torn', 1000)})"


def start(ledger: HostLedger, program: str) -> subprocess.Popen[str]:
    head = PROGRAM.format(root=str(ROOT), directory=str(ledger.directory), clock=CLOCK)
    return subprocess.Popen([sys.executable, "-c", head + program], stdout=subprocess.PIPE, text=True)


@pytest.mark.parametrize(("step", "n_stores"), [("tick", 11), ("declare", 5)])
def test_writer_killed_between_two_stores(ledger: HostLedger, step: str, n_stores: int) -> None:
    """
    Whichever store is a writer's last, no entry that its change touches is fresh, and the log has no half a record.

    The ring is full, so that what is half written stands where older records were.
    """
    settle(ledger)
    for number in range(70):
        ledger.tick({CLOCK: ROWS}, records={CLOCK: whole_record(f"{number}", 32_000)})
    for stores in range(n_stores + 1):
        for intent in read(ledger).intents:
            ledger.reap(CLOCK, {intent.id})
        for _ in range(60):
            ledger.tick({CLOCK: ROWS}, records={CLOCK: whole_record("before", 32_000)})
        before = read(ledger)
        intent_id = ledger.declare({CLOCK: ROWS | {5}}, fence="", records={CLOCK: whole_record("torn", 1000)})
        code = TICK % intent_id if step == "tick" else DECLARE
        died = start(ledger, KILLED_AT.format(stores=stores, step=code))
        died.communicate()
        assert (died.returncode == -signal.SIGKILL) == (stores < n_stores), stores
        for view in (ledger, HostLedger(ledger.directory, lease_s=1000)):
            now = read(view)
            # The intent of the change stands, or its tick is there, or the table was ticked.
            witness = Answers(changes=False, intents=False)
            assert not is_fresh(take_stamps([before]), [now], [DEPENDENCY], witness)
            assert all(is_whole(intent.record) for intent in now.intents if intent.record), stores
            assert all(intent.record or 0 in intent.slots for intent in now.intents), stores
            for after in (before.seq - 50, before.seq, now.seq - 1):
                records = view.log(CLOCK, now.epoch, after, now.seq)
                assert records is None or all(is_whole(record) for record in records if record), stores
                if now.slots[0] > after:
                    assert records is None
        # And the log works on.
        last = read(ledger)
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"next"})
        assert log(ledger, last) == [b"next"]


def test_a_torn_record_is_never_taken_for_the_next_one(ledger: HostLedger) -> None:
    """A record whose tick never came leaves nothing at the seq that the next tick gets."""
    before = settle(ledger)
    victim = HostLedger(ledger.directory, lease_s=1000)
    read(victim)
    found = victim._maps[CLOCK]
    assert found.room_for_tick(b"never ticked")

    class Dying:
        def __init__(self, words: Any) -> None:
            self.words = words

        def __getitem__(self, index: Any) -> Any:
            return self.words[index]

        def __setitem__(self, index: Any, value: Any) -> None:
            if index == host_clock.SEQ:
                raise KeyboardInterrupt
            self.words[index] = value

    found.words = Dying(found.words)  # type: ignore[assignment]  # dies
    with pytest.raises(KeyboardInterrupt):
        victim.tick({CLOCK: ROWS}, records={CLOCK: b"never ticked"})
    repaired = read(ledger)
    assert repaired.slots[0] == repaired.seq > before.seq
    assert log(ledger, before) is None
    ledger.tick({CLOCK: {5}})
    assert log(ledger, repaired) == [b""]
    victim._undelivered.clear()


def test_disk_takes_room_as_it_is_needed(ledger: HostLedger) -> None:
    """A clock with a few changes is a small file; one that is full takes no more than the file's length."""
    settle(ledger)
    path = clock_file(ledger)
    ledger.tick({CLOCK: ROWS}, records={CLOCK: b"x" * 300})
    ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: b"x" * 300})
    step = host_clock.ROOM_STEP
    assert path.stat().st_blocks * 512 <= host_clock.HEAD_BYTES + 3 * step + 32_768
    for _ in range(4100):
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"x" * 1000})
    info = path.stat()
    assert info.st_size == host_clock.FILE_BYTES
    assert host_clock.RECORDS_START <= info.st_blocks * 512 <= host_clock.FILE_BYTES + 8192


def test_no_store_goes_into_a_hole(ledger: HostLedger) -> None:
    """Every byte that a writer changes lies where the disk has given room before: a full disk kills nobody."""
    settle(ledger)
    found = ledger._maps[CLOCK]
    touched: list[int] = []

    class Noting:
        def __init__(self, kept: Any, unit: int) -> None:
            self.kept, self.unit = kept, unit

        def __getitem__(self, index: Any) -> Any:
            return self.kept[index]

        def __setitem__(self, index: Any, value: Any) -> None:
            start, stop = (index.start, index.stop) if isinstance(index, slice) else (index, index + 1)
            room = [int.from_bytes(found.memory[8 * w : 8 * w + 8], "little") for w in range(12, 15)]
            has = [range(s, s + r) for s, r in zip(host_clock.PART_STARTS, room, strict=False)]
            has.append(range(host_clock.HEAD_BYTES))
            for byte in (start * self.unit, stop * self.unit - 1):
                assert any(byte in part for part in has), byte
                touched.append(byte)
            self.kept[index] = value

    found.memory, found.words = Noting(found.memory, 1), Noting(found.words, 8)  # type: ignore[assignment]  # as usual
    for number in range(150):
        records = {CLOCK: whole_record(f"{number}", 200 * number)}
        intent_id = ledger.declare({CLOCK: ROWS}, fence="", records=records)
        ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: b"x" * 2000})
        if number:
            ledger.tick({CLOCK: ROWS}, intent_id=intent_id, records=records)
    assert max(touched) > host_clock.RECORDS_START


def test_full_disk_makes_changes_wide(ledger: HostLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A record that the disk has no room for makes its tick and its intent ones of the table."""
    before = settle(ledger)

    def full(descriptor: int, content: bytes, offset: int) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        intent_id = ledger.declare({CLOCK: ROWS}, fence="", records={CLOCK: b"row"})
        assert read(ledger).intents == (Intent(intent_id, frozenset((0,)), ""),)
        assert ledger.tick({CLOCK: ROWS | {5}}, intent_id=intent_id, records={CLOCK: b"row"})
    now = read(ledger)
    assert (now.seq, before.slots[1], now.seq) == now.slots
    assert log(ledger, before) == [b""]
    ledger.tick({CLOCK: ROWS}, records={CLOCK: b"row"})
    assert log(ledger, now) == [b"row"]


def test_processes_lose_and_mix_no_record(ledger: HostLedger) -> None:
    """Eight processes tell 200 changes each, while this one reads: all are in the log, whole, and nothing else."""
    before = settle(ledger)
    program = """
for number in range(200):
    told = {CLOCK: whole_record(f"%d.{number}", 50 + 9 * number)}
    intent_id = ledger.declare({CLOCK: ROWS}, fence="x", records=told)
    assert ledger.tick({CLOCK: ROWS}, intent_id=intent_id, records=told)
"""
    processes = [start(ledger, program % name) for name in range(8)]
    seen: list[bytes] = []
    while any(process.poll() is None for process in processes):
        now = read(ledger)
        records = ledger.log(CLOCK, now.epoch, before.seq + len(seen), now.seq)
        assert records is not None
        assert all(map(is_whole, records))
        assert all(is_whole(intent.record) for intent in now.intents)
        seen += records
    assert [0] * 8 == [process.returncode for process in processes]
    for process in processes:
        process.communicate()
    assert (before.seq + 1600, ()) == (read(ledger).seq, read(ledger).intents)
    told = log(ledger, before)
    assert told is not None
    assert seen == told[: len(seen)]
    names = [record.partition(b"|")[0].decode() for record in told]
    assert sorted(names) == sorted(f"{name}.{number}" for name in range(8) for number in range(200))
    assert all(map(is_whole, told))


def test_log_that_is_overwritten_while_it_is_copied(ledger: HostLedger) -> None:
    """A reader whose records are overwritten under his hands gets none of the new bytes for an old seq."""
    before = settle(ledger)
    other = HostLedger(ledger.directory, lease_s=1000)
    n_records = 64
    for number in range(n_records):
        ledger.tick({CLOCK: ROWS}, records={CLOCK: whole_record(f"old {number}", 32_000)})
    found = ledger._maps[CLOCK]
    memory: Any = found.memory
    interrupted: list[int] = []

    class Interrupted:
        def __getitem__(self, index: Any) -> Any:
            if not interrupted and isinstance(index, slice) and index.start >= host_clock.RING_START:
                interrupted.append(index.start)
                for number in range(5):
                    other.tick({CLOCK: ROWS}, records={CLOCK: whole_record(f"new {number}", 31_000)})
            return memory[index]

    found.memory = Interrupted()  # type: ignore[assignment]  # as usual, but slow
    records = ledger.log(CLOCK, before.epoch, before.seq, before.seq + n_records)
    assert interrupted
    assert records is None
    kept = ledger.log(CLOCK, before.epoch, before.seq + 10, before.seq + n_records)
    assert kept == [whole_record(f"old {number}", 32_000) for number in range(10, n_records)]
    other.close()


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_reads_and_writes_the_same_log(ledger: HostLedger) -> None:
    """After a fork parent and child tell each other."""
    before = settle(ledger)
    ledger.tick({CLOCK: ROWS}, records={CLOCK: b"parent"})
    child = os.fork()
    if child == 0:
        is_there = log(ledger, before) == [b"parent"]
        ledger.tick({CLOCK: ROWS}, records={CLOCK: b"child"})
        os._exit(0 if is_there else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert log(ledger, before) == [b"parent", b"child"]
