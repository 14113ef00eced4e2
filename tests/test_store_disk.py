"""The disk store: hostile files, many processes, kills, forks, full and damaged disks."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sqlite3
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from live_cache.exceptions import ConfigurationError, MissingExtraError, QuotaExceededError, StoreUnavailableError
from live_cache.stores import disk
from live_cache.stores.base import MISS
from live_cache.stores.breaker import CircuitBreaker
from live_cache.stores.disk import DiskStore
from tests.deep import deep
from tests.forks import forking, last_report_of_killed, run_in_fork
from tests.test_stores import Clock, peek_disk, poke_disk


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "cache"


@pytest.fixture
def store(directory: Path) -> Iterator[DiskStore]:
    store = DiskStore(directory)
    yield store
    store.close()


class _Exploit:
    """Leaves a mark where it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[str], object], tuple[str]]:
        return os.mkdir, (self.mark,)


class TestHostileFiles:
    """Whoever can write a row cannot run code, read a file or remove one."""

    def test_a_planted_pickle_is_not_loaded(self, store: DiskStore, tmp_path: Path) -> None:
        """A row of diskcache's pickle mode is a miss for every method, and can be replaced."""
        mark = tmp_path / "executed"
        poke_disk(store, "key", pickle.dumps(_Exploit(str(mark))), mode=4)
        assert store.get("key") is MISS
        assert store.get_with_expiry("key") is MISS
        assert store.get_many(["key"]) == {}
        assert store.exists("key") is False
        assert store.increment("key") is MISS
        assert store.compare_and_swap("key", None, b"mine") is True
        assert store.get("key") == b"mine"
        assert not mark.exists()

    @pytest.mark.parametrize("mode", [1, 2, 3, 4])
    def test_a_planted_filename_is_neither_read_nor_removed(self, store: DiskStore, tmp_path: Path, mode: int) -> None:
        """A path in the filename column means nothing, for reads, replacements, deletes and clear()."""
        secret = tmp_path / "secret"
        secret.write_bytes(pickle.dumps("secret"))
        for key in ("read", "put", "delete", "drop/1", "clear"):
            poke_disk(store, key, None, mode=mode, filename="../../secret")
        assert store.get("read") is MISS
        store.put("put", b"1")
        store.delete("delete")
        store.invalidate_prefix("drop")
        store.clear()
        assert secret.exists()

    @pytest.mark.parametrize("value", ["text", 7, 1.5, None])
    def test_a_planted_value_that_is_no_bytes_is_a_miss(self, store: DiskStore, value: object) -> None:
        """The contract says bytes."""
        poke_disk(store, "key", value)
        assert store.get("key") is MISS

    def test_planted_settings_are_an_error_that_says_what_to_do(self, store: DiskStore, directory: Path) -> None:
        """diskcache makes attributes and arguments of its settings table."""
        store.put("key", b"1")
        store.close()
        with sqlite3.connect(directory / "cache.db") as connection:
            connection.execute("INSERT INTO Settings VALUES ('disk_nonsense', 1)")
        connection.close()
        with pytest.raises(StoreUnavailableError, match="remove the directory"):
            DiskStore(directory).get("key")

    def test_nobody_else_can_read_it(self, store: DiskStore, directory: Path) -> None:
        """The directory is 0700, and every file in it 0600."""
        old = os.umask(0)
        try:
            store.put("key", b"1")
        finally:
            os.umask(old)
        assert stat.S_IMODE(directory.stat().st_mode) == 0o700
        assert {path.name for path in directory.iterdir()} == {"cache.db", "cache.db-shm", "cache.db-wal"}
        assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}

    def test_an_open_file_of_old_is_closed_to_others(self, store: DiskStore, directory: Path) -> None:
        """A cache.db that others may read is made private."""
        store.put("key", b"1")
        store.close()
        (directory / "cache.db").chmod(0o644)
        other = DiskStore(directory)
        assert other.get("key") == b"1"
        other.close()
        assert stat.S_IMODE((directory / "cache.db").stat().st_mode) == 0o600

    def test_a_symbolic_link_is_refused(self, tmp_path: Path) -> None:
        """A link can point anywhere by the time it is used."""
        (tmp_path / "real").mkdir(mode=0o700)
        (tmp_path / "link").symlink_to(tmp_path / "real")
        with pytest.raises(StoreUnavailableError, match=r"link.* is a symbolic link"):
            DiskStore(tmp_path / "link").get("key")
        (tmp_path / "real" / "cache.db").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(StoreUnavailableError, match="no regular file"):
            DiskStore(tmp_path / "real").get("key")
        assert not (tmp_path / "elsewhere").exists()

    @pytest.mark.parametrize("mode", [0o770, 0o707, 0o1777])
    def test_a_directory_that_others_can_write_is_refused(self, tmp_path: Path, mode: int) -> None:
        """Group and others, sticky or not."""
        (tmp_path / "shared").mkdir()
        (tmp_path / "shared").chmod(mode)
        with pytest.raises(StoreUnavailableError, match="chmod go-w"):
            DiskStore(tmp_path / "shared").put("key", b"1")

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a directory away")
    def test_a_directory_of_another_user_is_refused(self, tmp_path: Path) -> None:
        """Its owner could change what is in it."""
        (tmp_path / "theirs").mkdir(mode=0o700)
        os.chown(tmp_path / "theirs", 12345, 12345)
        with pytest.raises(StoreUnavailableError, match="belongs to user 12345"):
            DiskStore(tmp_path / "theirs").get("key")

    def test_a_name_that_diskcache_would_expand_is_refused(self, tmp_path: Path, monkeypatch: Any) -> None:
        """The directory that was checked must be the one that is used."""
        monkeypatch.setenv("ONCE", "$HOME")
        with pytest.raises(ConfigurationError, match=r"\$NAME"):
            DiskStore(str(tmp_path / "$ONCE"))


class TestSize:
    """The file stays within its bound."""

    def test_the_least_recently_stored_goes_first(self, directory: Path) -> None:
        """A full store drops old entries by reason, and keeps what was just put."""
        clock = Clock()
        store = DiskStore(directory, max_bytes=500_000, clock=clock)
        for number in range(200):
            clock.now_s += 1
            store.put(f"key/{number}", bytes(10_000))
            size_bytes = store.metrics().size_bytes
            assert size_bytes is not None
            assert size_bytes <= 500_000
        held = sorted(int(key.rpartition("/")[2]) for key in store.keys("key"))
        assert held == list(range(200 - len(held), 200))
        assert len(held) > 20
        assert store.metrics().evictions == {"bytes": 200 - len(held)}
        assert store.len() == len(held)
        store.close()

    def test_expired_entries_are_cleaned_up_by_writers(self, directory: Path) -> None:
        """What expired goes a few rows per put, counted as expired."""
        clock = Clock()
        store = DiskStore(directory, clock=clock)
        store.put_many({f"key/{number}": b"1" for number in range(25)}, timeout_s=5)
        clock.now_s += 5
        for _ in range(3):
            store.put("new", b"1")
        assert store.len() == 1
        assert store.metrics().evictions == {"expired": 25}
        store.close()

    def test_of_many_the_ones_that_fit_are_stored(self, directory: Path) -> None:
        """One value that is too large does not take the others with it."""
        store = DiskStore(directory, max_bytes=300_000)
        with pytest.raises(QuotaExceededError, match="'large'"):
            store.put_many({"a": b"1", "large": bytes(300_000), "b": b"2"})
        assert store.get_many(["a", "large", "b"]) == {"a": b"1", "b": b"2"}
        assert (store.metrics().puts, store.metrics().rejected_puts) == (2, 1)
        store.close()


class TestFailures:
    """A disk that fails raises one error, and serves again when it can."""

    def test_a_damaged_file_says_what_to_do(self, store: DiskStore, directory: Path) -> None:
        """Garbage in the file is an error at each use, until the directory is removed."""
        store.put("key", b"1")
        store.close()
        (directory / "cache.db").write_bytes(b"garbage " * 1000)
        for call in (lambda: store.get("key"), lambda: store.put("key", b"1"), store.clear):
            with pytest.raises(StoreUnavailableError, match="remove its directory") as raised:
                call()
            assert isinstance(raised.value.__cause__, sqlite3.DatabaseError)
        assert store.metrics().errors == 3
        for path in directory.iterdir():
            path.unlink()
        assert store.get("key") is MISS
        store.put("key", b"2")
        assert store.get("key") == b"2"

    def test_a_directory_removed_under_way_is_made_again(self, store: DiskStore, directory: Path) -> None:
        """A store whose file is gone starts anew."""
        store.put("key", b"1")
        for path in directory.iterdir():
            path.unlink()
        directory.rmdir()
        assert store.get("key") is MISS
        store.put("key", b"2")
        assert store.get("key") == b"2"
        assert peek_disk(store, "key") == b"2"

    def test_a_file_that_was_replaced_is_noticed(self, store: DiskStore, directory: Path) -> None:
        """No value of a removed file is served beside those that another process puts into the new one."""
        store.put("key", b"old")
        for path in directory.iterdir():
            path.unlink()
        other = DiskStore(directory)
        other.put("key", b"new")
        assert store.get("key") == b"new"
        store.put("key", b"newer")
        assert other.get("key") == b"newer"
        other.close()

    def test_a_lock_that_is_never_released_is_an_error(self, store: DiskStore, directory: Path) -> None:
        """A writer gives up after its timeout, the next ones at once until a probe gets through; readers never wait."""
        now_s = [0.0]
        store.put("key", b"1")
        store.close()
        store._file._timeout_s = 0.2
        store._file.breaker = CircuitBreaker(clock=lambda: now_s[0])
        other = sqlite3.connect(directory / "cache.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        started_s = time.monotonic()
        with pytest.raises(StoreUnavailableError, match="locked"):
            store.delete("key")
        for _ in range(200):
            with pytest.raises(StoreUnavailableError, match="in vain"):
                store.put("key", b"2")
        assert time.monotonic() - started_s < 20  # Two hundred waits would take twice as long.
        assert store.get("key") == b"1"
        other.execute("ROLLBACK")
        other.close()
        now_s[0] += 1
        assert store.delete("key") is True
        metrics = store.metrics()
        assert (metrics.breaker_opened, metrics.breaker_skipped, metrics.breaker_probed) == (1, 200, 1)
        assert (metrics.errors, metrics.puts, metrics.deletes) == (201, 1, 1)

    def test_without_diskcache_it_names_the_extra(self, directory: Path, monkeypatch: Any) -> None:
        """The error says what to install."""
        monkeypatch.setitem(__import__("sys").modules, "diskcache", None)
        disk._driver.cache_clear()
        with pytest.raises(MissingExtraError, match=r"django-live-cache\[disk\]"):
            DiskStore(directory)


class TestProcesses:
    """Several processes on one file."""

    @forking
    def test_no_delete_is_lost(self, directory: Path) -> None:
        """Eight processes that put and delete at once: what a delete said is gone, is gone."""

        def work(number: int) -> None:
            store = DiskStore(directory)
            end_s = time.monotonic() + deep(2, 60)
            turn = 0
            while time.monotonic() < end_s:
                turn += 1
                keys = [f"{number}/{turn}/{part}" for part in range(3)]
                store.put_many(dict.fromkeys(keys, bytes(2000)))
                assert store.delete(keys[0]) is True
                assert store.delete_many(keys[1:]) == 2
                assert store.get_many(keys) == {}
            store.put(f"done/{number}", b"%d" % turn)
            store.close()

        processes = [multiprocessing.get_context("fork").Process(target=work, args=(n,)) for n in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(deep(60, 180))
        assert [process.exitcode for process in processes] == [0] * 8
        store = DiskStore(directory)
        assert sorted(store.keys()) == [f"done/{number}" for number in range(8)]
        store.close()

    @forking
    def test_a_killed_writer_leaves_nothing_torn(self, directory: Path) -> None:
        """After SIGKILL in the middle of writes, each value is whole, and none is older than what was reported."""
        store = DiskStore(directory)
        for _ in range(deep(6, 200)):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                signal.alarm(30)
                turn = 0
                while True:
                    turn += 1
                    store.put("key", (b"%08d" % turn) * 5000)
                    os.write(writing, b"%08d" % turn)
            os.close(writing)
            reported = last_report_of_killed(child, reading, after_s=0.05)
            value = store.get("key")
            assert value is not MISS
            assert value == value[:8] * 5000
            assert int(value[:8]) >= reported
            store.put("key", b"00000000" * 5000)
        store.close()

    @forking
    def test_a_fork_among_busy_threads_loses_nothing(self, store: DiskStore) -> None:
        """Parent and child go on; neither hangs, and no increment of either is lost."""
        stop = threading.Event()
        made = [0] * 4
        failures: list[BaseException] = []

        def work(number: int) -> None:
            try:
                while not stop.is_set():
                    store.increment("sum", default=0)
                    made[number] += 1
                    store.put(f"key/{number}", b"%d" % made[number])
                    assert store.get(f"key/{number}") == b"%d" % made[number]
            except BaseException as error:
                failures.append(error)

        def in_child() -> None:
            for _ in range(20):
                store.increment("sum", default=0)
            store.close()

        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        try:
            assert [run_in_fork(in_child) for _ in range(5)] == [0] * 5
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        assert failures == []
        assert store.get("sum") == b"%d" % (sum(made) + 100)

    @forking
    def test_a_child_holds_locks_of_its_own(self, store: DiskStore) -> None:
        """SQLite in the child does not take the parent's locks for its own: the parent's close() leaves it the log."""
        store.put("key", b"1")
        to_child, to_parent = os.pipe(), os.pipe()

        def in_child() -> None:
            assert store.get("key") == b"1"
            os.write(to_parent[1], b"open")
            os.read(to_child[0], 6)
            store.put("key", b"2")

        def close_while_the_child_is_open() -> None:
            os.read(to_parent[0], 4)
            store.close()
            os.write(to_child[1], b"closed")

        thread = threading.Thread(target=close_while_the_child_is_open)
        thread.start()
        assert run_in_fork(in_child) == 0
        thread.join()
        assert store.get("key") == b"2"
        for descriptor in (*to_child, *to_parent):
            os.close(descriptor)

    @forking
    def test_a_fork_during_a_long_statement_costs_the_child_the_store(self, store: DiskStore, monkeypatch: Any) -> None:
        """A thread that does not come to an end is not waited for; the child refuses to touch the file."""
        monkeypatch.setattr("live_cache.stores.sqlite_file._FORK_PATIENCE_S", 0.05)
        inside, leave = threading.Event(), threading.Event()

        def linger(connection: sqlite3.Connection) -> None:
            inside.set()
            leave.wait(30)

        thread = threading.Thread(target=lambda: store._file.write(linger))
        thread.start()
        inside.wait(30)

        def in_child() -> None:
            with pytest.raises(StoreUnavailableError, match="forked while another thread"):
                store.get("key")

        try:
            assert run_in_fork(in_child) == 0
        finally:
            leave.set()
            thread.join()
        store.put("key", b"1")
        assert store.get("key") == b"1"

    def test_a_flush_is_durable(self, store: DiskStore) -> None:
        """The report says so, and the log was synced."""
        store.put("key", b"1")
        report = store.flush()
        assert (report.is_durable, report.pending_entries) == (True, 0)
        synchronous = store._file.read(lambda connection: connection.execute("PRAGMA synchronous").fetchall())
        assert synchronous == [(1,)]
