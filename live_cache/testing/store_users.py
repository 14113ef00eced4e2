"""Checks of a store with many users at once: event loops and their tasks, threads, processes."""

from __future__ import annotations

import asyncio
import multiprocessing
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from live_cache.stores.base import MISS, Missing, Store
from live_cache.testing.store_case import StoreCase, unwrapped
from live_cache.testing.twins import OverTwins

__all__ = ["StoreUsers"]


class StoreUsers(StoreCase):
    """Nobody reads backwards, and nothing is lost, whoever uses the store."""

    def test_twins_leave_the_loop_as_they_say(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        """A twin that is inline runs in the loop's thread, one by threads in another; a hit takes one hop at most."""
        bare = unwrapped(store)
        if not isinstance(store, OverTwins) or bare.async_kind not in ("inline", "thread"):
            return
        threads: list[int] = []
        read = bare.get_many

        def get_many(keys: Iterable[str]) -> dict[str, bytes]:
            threads.append(threading.get_ident())
            return read(keys)

        monkeypatch.setattr(bare, "get_many", get_many)
        store.put("key", b"1")
        assert store.get_many(["key"]) == {"key": b"1"}
        assert len(threads) == 1
        assert (threads[0] == store.loop_thread) is (bare.async_kind == "inline")

    def test_twins_work_in_one_loop_after_another(self, tmp_path: Path) -> None:
        """What a loop holds open ends with it: each asyncio.run() has its own."""
        store = self.make_store(tmp_path)

        async def count() -> int | Missing:
            return await store.aincrement("key", default=0)

        assert [asyncio.run(count()) for _ in range(3)] == [1, 2, 3]
        store.clear()
        store.close()

    def test_many_tasks_of_one_loop(self, store: Store) -> None:
        """Fifty tasks at once lose nothing."""
        if not isinstance(store, OverTwins):
            return
        bare = store.store

        async def work(number: int) -> None:
            await bare.aput(f"own/{number}", b"%d" % number)
            assert await bare.aget(f"own/{number}") in (MISS, b"%d" % number)
            await bare.aincrement("sum", default=0)

        async def all_at_once() -> None:
            await asyncio.gather(*map(work, range(50)))

        store.wait(all_at_once())
        assert store.get("sum") == b"50"
        assert len(store.get_many([f"own/{number}" for number in range(50)])) == 50

    def test_eight_threads_never_read_backwards(self, store: Store) -> None:
        """After put() returned, no thread reads an older value; sums and swaps lose nothing; counters are exact."""
        accepted = [0] * 4
        failures: list[BaseException] = []
        store.put("sum", b"0")
        before = store.metrics()
        asked = [0] * 8

        def work(number: int) -> None:
            try:
                for turn in range(1, 41):
                    if number < 4:
                        store.put(f"own/{number}", b"%d" % turn)
                        accepted[number] = turn
                        store.increment("sum")
                        continue
                    least = accepted[number - 4]
                    value = store.get(f"own/{number - 4}")
                    asked[number] += 1
                    assert (0 if value is MISS else int(value)) >= (0 if value is MISS else least)
            except BaseException as error:
                failures.append(error)

        _run_threads(8, work)
        assert failures == []
        assert store.get_many([f"own/{number}" for number in range(4)]) == {
            f"own/{number}": b"40" for number in range(4)
        }
        assert store.get("sum") == b"160"
        after = store.metrics()
        assert after.lookups - before.lookups == sum(asked) + 5
        assert after.lookups == after.hits + after.misses
        assert after.puts - before.puts == 160

    def test_a_swap_has_one_winner(self, store: Store) -> None:
        """Of eight threads that expect nothing, one stores."""
        won: list[int] = []

        def work(number: int) -> None:
            if store.compare_and_swap("key", None, b"%d" % number):
                won.append(number)

        _run_threads(8, work)
        assert len(won) == 1
        assert store.get("key") == b"%d" % won[0]

    @pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
    def test_eight_processes_share_the_entries(self, store: Store, tmp_path: Path) -> None:
        """Each process sees the others' values, never an older one; no increment and no delete is lost."""
        if not store.is_shared_by_processes:
            return
        context = multiprocessing.get_context("fork")
        store.put("before", b"1")

        def work(number: int) -> None:
            made = self.make_store(tmp_path)
            own = OverTwins(made) if isinstance(store, OverTwins) else made
            assert own.get("before") == b"1"
            seen = [-1] * 8
            for turn in range(25):
                for neighbour in range(8):
                    value = own.get(f"own/{neighbour}")
                    if value is not MISS:
                        assert int(value) >= seen[neighbour]
                        seen[neighbour] = int(value)
                own.put(f"own/{number}", b"%d" % turn)
                assert own.get(f"own/{number}") in (MISS, b"%d" % turn)
                own.increment("sum", default=0)
                own.put(f"gone/{number}/{turn}", b"1")
                assert own.delete(f"gone/{number}/{turn}") is True
            own.close()

        processes = [context.Process(target=work, args=(number,)) for number in range(8)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
        assert [process.exitcode for process in processes] == [0] * 8
        assert store.get("sum") == b"200"
        assert list(store.keys("gone")) == []
        assert store.get_many([f"own/{number}" for number in range(8)]) == {
            f"own/{number}": b"24" for number in range(8)
        }


def _run_threads(number: int, work: Callable[[int], None]) -> None:
    threads = [threading.Thread(target=work, args=(index,)) for index in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
