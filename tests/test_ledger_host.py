"""The ledger of one host: files, processes, forks, kills."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import secrets
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from live_cache.exceptions import ConfigurationError, LedgerUnavailableError
from live_cache.ledger import host, host_clock, host_files
from live_cache.ledger.clocks import NEWBORN, Dependency, Reading, is_fresh, take_stamps
from live_cache.ledger.host import HostLedger
from live_cache.testing.ledgers import CLOCK, LedgerSuite

DEPENDENCY = Dependency(CLOCK, (0, 5, 6))
ROOT = Path(__file__).parent.parent


class TestHostLedger(LedgerSuite):
    name = "host"

    @pytest.fixture(autouse=True)
    def _state(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.directory = tmp_path / "ledger"
        self.passed_ns = 0
        monkeypatch.setattr(host, "_now_ns", lambda: time.monotonic_ns() + self.passed_ns)

    # Long enough that no test outlives it; let_pass() moves the clock.
    lease_s = 1000.0

    def make_ledger(self) -> HostLedger:
        return HostLedger(self.directory, lease_s=self.lease_s)

    def lose(self, clock: str) -> None:
        for path in self.directory.glob("*.clock"):
            path.unlink()

    def let_pass(self, seconds: float) -> None:
        self.passed_ns += int(seconds * 1e9)


class TestHostLedgerUnderTheLock(TestHostLedger):
    """The same where stores are not ordered: readers take the lock."""

    @pytest.fixture(autouse=True)
    def _unordered(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(host, "HAS_ORDERED_STORES", False)


@pytest.fixture
def ledger(host_ledger: HostLedger) -> HostLedger:
    return host_ledger


def read(ledger: HostLedger) -> Reading:
    return ledger.read([DEPENDENCY])[0]


def settle(ledger: HostLedger) -> Reading:
    ledger.reap(CLOCK, {NEWBORN}, epoch=read(ledger).epoch)
    return read(ledger)


def clock_file(ledger: HostLedger) -> Path:
    (path,) = ledger.directory.glob("*.clock")
    return path


def remove_file(path: Path) -> None:
    path.unlink()


def remove_directory(path: Path) -> None:
    shutil.rmtree(path.parent)


def replace_by_copy(path: Path) -> None:
    copy = path.with_suffix(".copy")
    shutil.copy(path, copy)
    os.replace(copy, path)


def truncate(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(path.read_bytes()[:100])
    os.replace(copy, path)


def replace_by_noise(path: Path) -> None:
    copy = path.with_suffix(".copy")
    copy.write_bytes(secrets.token_bytes(host_clock.FILE_BYTES))
    os.replace(copy, path)


def replace_by_other_boot(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[host_clock.BOOT_ID] = secrets.token_bytes(16)
    copy = path.with_suffix(".copy")
    copy.write_bytes(content)
    os.replace(copy, path)


@pytest.mark.parametrize(
    "lose", [remove_file, remove_directory, truncate, replace_by_noise, replace_by_other_boot], ids=lambda f: f.__name__
)
def test_lost_file_is_noticed(ledger: HostLedger, lose: Callable[[Path], None]) -> None:
    """A file that is gone, or that is none of this boot, is a new clock with a hold, for readers and for writers."""
    stamps = take_stamps([settle(ledger)])
    intent_id = ledger.declare({CLOCK: {5}}, fence="x")
    lose(clock_file(ledger))
    assert ledger.tick({CLOCK: {5}}, intent_id=intent_id)  # meets no clock, and creates none
    reading = read(ledger)
    assert [NEWBORN] == [intent.id for intent in reading.intents]
    assert stamps[0].epoch != reading.epoch
    assert ledger.tick({CLOCK: {5}})
    assert reading.seq + 1 == read(ledger).seq


def test_file_replaced_by_its_copy_is_read_and_written(ledger: HostLedger) -> None:
    """Whoever has the old file mapped goes over to the one at the path: nobody ticks where nobody reads."""
    settle(ledger)
    other = HostLedger(ledger.directory, lease_s=1000)
    read(other)
    replace_by_copy(clock_file(ledger))
    before = read(ledger)
    other.tick({CLOCK: {5}})
    assert before.seq + 1 == read(ledger).seq
    other.close()


def test_boot_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a boot every clock is new: what the disk kept of the last one may be older than what was read from it."""
    before = settle(HostLedger(tmp_path / "ledger", lease_s=1000))
    monkeypatch.setattr(host, "boot_id", lambda: bytes(range(16)))
    after = HostLedger(tmp_path / "ledger", lease_s=1000)
    assert [] == after.clocks()
    assert before.epoch != read(after).epoch


def test_files_are_private(ledger: HostLedger) -> None:
    """Nobody else may read or write the ledger, and what every clock needs has its room on the disk at once."""
    read(ledger)
    assert stat.S_IMODE(ledger.directory.stat().st_mode) == 0o700
    for path in ledger.directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    info = clock_file(ledger).stat()
    assert host_clock.HEAD_BYTES <= info.st_blocks * 512 < 2 * host_clock.HEAD_BYTES
    assert info.st_size == host_clock.FILE_BYTES


def test_no_boot_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a boot or a lock cannot be told, the message says what to use instead."""
    monkeypatch.setattr(host_files, "fcntl", None)
    with pytest.raises(ConfigurationError, match="ledger=process"):
        HostLedger(tmp_path, lease_s=1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory to another user")
def test_directory_of_another_user(tmp_path: Path) -> None:
    """Another user's directory is refused, by name; root may use it, and its files become that user's."""
    nobody = 65534
    directory = tmp_path / "ledger"
    directory.mkdir(mode=0o700)
    os.chown(directory, nobody, nobody)
    ledger = HostLedger(directory, lease_s=1)
    read(ledger)
    assert {(nobody, nobody)} == {(path.stat().st_uid, path.stat().st_gid) for path in directory.iterdir()}
    os.chown(directory, 12345, 12345)
    ledger.close()
    for parent in [tmp_path, *tmp_path.parents]:
        if parent != Path(parent.anchor) and not parent.stat().st_mode & 1:
            parent.chmod(parent.stat().st_mode | 0o711)
    os.seteuid(nobody)
    try:
        with pytest.raises(LedgerUnavailableError, match="12345"):
            read(ledger)
        with pytest.raises(LedgerUnavailableError, match="12345"):
            ledger.declare({CLOCK: {5}}, fence="x")
    finally:
        os.seteuid(0)


def test_directory_that_others_can_write_is_refused(ledger: HostLedger) -> None:
    """Whoever can write the directory could put an old file there."""
    ledger.directory.mkdir(mode=0o700)
    ledger.directory.chmod(0o777)
    with pytest.raises(LedgerUnavailableError, match="chmod 700"):
        read(ledger)


@pytest.mark.parametrize("what", ["file", "lock", "directory"])
def test_symbolic_link_is_refused(ledger: HostLedger, tmp_path: Path, what: str) -> None:
    """A link could lead a writer to a file that readers do not look at, or to somebody else's."""
    read(ledger)
    path = {"file": clock_file(ledger), "lock": ledger.directory / host_files.LOCK_NAME, "directory": ledger.directory}[
        what
    ]
    ledger.close()
    os.replace(path, tmp_path / "moved")
    path.symlink_to(tmp_path / "moved")
    with pytest.raises(LedgerUnavailableError):
        ledger.reset([CLOCK])
    if what != "lock":
        with pytest.raises(LedgerUnavailableError):
            read(ledger)


def test_full_disk(ledger: HostLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk without room for a clock is an error that says so, and leaves no scraps."""

    def full(descriptor: int, content: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(host_files.os, "write", full)
        with pytest.raises(LedgerUnavailableError, match="No space left"):
            read(ledger)
    assert [host_files.LOCK_NAME] == [path.name for path in ledger.directory.iterdir()]
    read(ledger)


def test_mmap_error(ledger: HostLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that maps no more files is an unavailable ledger."""

    def fail(*args: object) -> None:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    read(ledger)
    ledger.close()
    monkeypatch.setattr(mmap, "mmap", fail)
    with pytest.raises(LedgerUnavailableError, match="Cannot allocate"):
        read(ledger)


def test_stopped_lock_holder(ledger: HostLedger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody who holds the lock for ever makes writers fail, and reads go on."""
    before = settle(ledger)
    monkeypatch.setattr(host_files, "LOCK_TIMEOUT_S", 0.05)
    with (ledger.directory / host_files.LOCK_NAME).open() as holder:
        fcntl.flock(holder, fcntl.LOCK_EX)
        assert not ledger.tick({CLOCK: {5}})
        with pytest.raises(LedgerUnavailableError, match="stopped process"):
            ledger.deliver()
        other = HostLedger(ledger.directory, lease_s=1)
        assert before == read(other)
        other.close()
    assert before.seq + 1 == read(ledger).seq


def test_lock_file_that_was_replaced(ledger: HostLedger) -> None:
    """Two writers never hold two different locks: the one at the path counts."""
    settle(ledger)
    os.unlink(ledger.directory / host_files.LOCK_NAME)
    other = HostLedger(ledger.directory, lease_s=1)
    with other._lock:
        thread = threading.Thread(target=ledger.tick, args=({CLOCK: {5}},))
        thread.start()
        thread.join(0.05)
        assert thread.is_alive()
    thread.join(5)
    assert ledger.undelivered_count == 0
    other.close()


class Killed(BaseException):
    """Stands for SIGKILL."""


class KillingWords:
    """Words of a mapped file that die at the n-th store."""

    def __init__(self, words: memoryview[int], stores: int) -> None:
        self.words, self.left = words, stores

    def __getitem__(self, index: Any) -> Any:
        return self.words[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        if self.left == 0:
            raise Killed
        self.left -= 1
        self.words[index] = value


@pytest.mark.parametrize("stores", range(7))
@pytest.mark.parametrize("step", ["tick", "declare", "reap", "repair"])
def test_writer_that_dies_between_two_stores(ledger: HostLedger, stores: int, step: str) -> None:
    """Whichever store is the last one of a writer, an entry that its change touches is never fresh afterwards."""
    settle(ledger)
    intent_id = ledger.declare({CLOCK: {5, 6}}, fence="x")
    stamps = take_stamps([read(ledger)])
    victim = HostLedger(ledger.directory, lease_s=1000)
    read(victim)
    if step == "repair":
        victim._maps[CLOCK].words[host_clock.COUNTER] += 1
    victim._maps[CLOCK].words = KillingWords(victim._maps[CLOCK].words, stores)  # type: ignore[assignment]  # dies
    died = False
    try:
        if step == "declare":
            victim.declare({CLOCK: {7}}, fence="y")
        elif step == "reap":
            victim.reap(CLOCK, {intent_id})
        else:
            victim.tick({CLOCK: {5, 6}}, intent_id=intent_id)
    except Killed:
        died = True
    assert died == (stores < {"tick": 6, "declare": 3, "reap": 6, "repair": 10}[step])
    # The dead process tells nobody; the next reader is on its own.
    for look in (ledger, HostLedger(ledger.directory, lease_s=1000)):
        reading = read(look)
        for dependency in (Dependency(CLOCK, (0, 5)), Dependency(CLOCK, (0, 6))):
            slots = look.read([dependency])
            assert not is_fresh(stamps, slots, [dependency])
        if not reading.intents:
            now = take_stamps([reading])
            assert is_fresh(now, [read(look)], [DEPENDENCY])
    # And the ledger works on.
    for intent in read(ledger).intents:
        ledger.reap(CLOCK, {intent.id})
    before = read(ledger)
    ledger.tick({CLOCK: {5}})
    assert before.seq + 1 == read(ledger).seq
    assert is_fresh(take_stamps([read(ledger)]), [read(ledger)], [DEPENDENCY])


def test_torn_tick_without_an_intent_ticks_the_table(ledger: HostLedger) -> None:
    """A tick that died half way, with no intent to stand for the rest, costs every entry of the table."""
    stamps = take_stamps([settle(ledger)])
    victim = HostLedger(ledger.directory, lease_s=1000)
    read(victim)
    victim._maps[CLOCK].words = KillingWords(victim._maps[CLOCK].words, 2)  # type: ignore[assignment]  # dies
    with pytest.raises(Killed):
        victim.tick({CLOCK: {5, 6}})
    for slot in (4, 5, 6):
        dependency = Dependency(CLOCK, (0, slot))
        assert not is_fresh(stamps, ledger.read([dependency]), [dependency])


PROGRAM = """
import os, sys, threading
sys.path.insert(0, {root!r})
from live_cache.ledger.clocks import Dependency
from live_cache.ledger.host import HostLedger
ledger = HostLedger({directory!r}, lease_s=1000)
CLOCK = {clock!r}
"""


def start(ledger: HostLedger, program: str) -> subprocess.Popen[str]:
    head = PROGRAM.format(root=str(ROOT), directory=str(ledger.directory), clock=CLOCK)
    return subprocess.Popen(
        [sys.executable, "-c", head + program], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
    )


def test_other_process_sees_a_tick_at_once(ledger: HostLedger) -> None:
    """A tick that has returned in one process is seen by the next reading of every other."""
    settle(ledger)
    writer = start(ledger, "for line in sys.stdin:\n  ledger.tick({CLOCK: {5}}); print('ticked', flush=True)\n")
    assert writer.stdin is not None
    assert writer.stdout is not None
    for _ in range(20):
        stamps = take_stamps([read(ledger)])
        assert is_fresh(stamps, [read(ledger)], [DEPENDENCY])
        writer.stdin.write("tick\n")
        writer.stdin.flush()
        assert writer.stdout.readline() == "ticked\n"
        assert not is_fresh(stamps, [read(ledger)], [DEPENDENCY])
    writer.stdin.close()
    assert writer.wait(10) == 0
    writer.stdout.close()


def test_processes_and_threads_lose_no_tick(ledger: HostLedger) -> None:
    """Four processes with four threads each: seq counts every tick."""
    before = settle(ledger)
    program = """
def work():
    for _ in range(100):
        intent_id = ledger.declare({CLOCK: {5}}, fence="x")
        assert ledger.tick({CLOCK: {5}}, intent_id=intent_id)
        ledger.read([Dependency(CLOCK, (0, 5))])
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
"""
    processes = [start(ledger, program) for _ in range(4)]
    assert [0] * 4 == [process.wait(60) for process in processes]
    after = read(ledger)
    assert (before.seq + 1600, ()) == (after.seq, after.intents)
    for process in processes:
        process.communicate()


def test_killed_writers_leave_a_working_ledger(ledger: HostLedger) -> None:
    """Writers killed at any moment, again and again, never leave a lock, a torn reading, or an entry that is stale."""
    settle(ledger)
    program = """
print('ready', flush=True)
while True:
    intent_id = ledger.declare({CLOCK: {5, 6}}, fence="x")
    ledger.tick({CLOCK: {5, 6}}, intent_id=intent_id)
"""
    for pause_s in (0.0, 0.003, 0.001, 0.007, 0.002, 0.005):
        writer = start(ledger, program)
        assert writer.stdout is not None
        assert writer.stdout.readline() == "ready\n"
        seen = read(ledger).seq
        deadline_s = time.monotonic() + pause_s
        while time.monotonic() < deadline_s:
            reading = read(ledger)
            assert reading.seq >= seen
            assert max(reading.slots) <= reading.seq
            seen = reading.seq
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        stamps = take_stamps([read(ledger)])
        before = read(ledger).seq
        assert ledger.tick({CLOCK: {5}})
        assert before + 1 == read(ledger).seq
        assert not is_fresh(stamps, [read(ledger)], [DEPENDENCY])
        for intent in read(ledger).intents:
            ledger.reap(CLOCK, {intent.id})


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_child_uses_a_lock_of_its_own(ledger: HostLedger) -> None:
    """A fork while another thread holds the lock blocks the child only as long as the parent has it."""
    before = settle(ledger)
    has_lock, may_end = threading.Event(), threading.Event()

    def hold() -> None:
        with ledger._lock:
            has_lock.set()
            may_end.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    has_lock.wait(10)
    child = os.fork()
    if child == 0:
        os._exit(0 if ledger.tick({CLOCK: {5}}) else 1)
    time.sleep(0.05)  # The child is waiting now; if it is late, it finds the lock free, as it may.
    assert os.waitpid(child, os.WNOHANG) == (0, 0)
    may_end.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert before.seq + 1 == read(ledger).seq
