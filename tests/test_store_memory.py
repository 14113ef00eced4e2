"""The memory store: bounds, reasons of eviction, order of use, forks."""

from __future__ import annotations

import threading

import pytest

from live_cache.exceptions import QuotaExceededError
from live_cache.stores.base import MISS
from live_cache.stores.memory import MemoryStore
from tests.forks import run_in_fork

pytestmark = pytest.mark.parametrize("use_cachebox", [True, False], ids=["cachebox", "plain"])


def test_entries_are_bounded_by_number(use_cachebox: bool) -> None:
    """The least recently used entry goes first; a read and a put count as use."""
    store = MemoryStore(max_entries=3, use_cachebox=use_cachebox)
    for key in "abc":
        store.put(key, b"1")
    store.get("a")
    store.put("b", b"2")
    store.put("d", b"1")
    assert sorted(store.keys()) == ["a", "b", "d"]
    assert store.metrics().evictions == {"entries": 1}
    assert store.len() == 3


def test_entries_are_bounded_by_bytes(use_cachebox: bool) -> None:
    """Values, keys and overhead never take more than max_bytes."""
    store = MemoryStore(max_bytes=10_000, use_cachebox=use_cachebox)
    for number in range(100):
        store.put(f"key/{number}", bytes(1000))
        size_bytes = store.metrics().size_bytes
        assert size_bytes is not None
        assert size_bytes <= 10_000
    metrics = store.metrics()
    assert metrics.entries == 8
    assert metrics.evictions == {"bytes": 92}
    assert store.get("key/99") == bytes(1000)


def test_the_size_returns_to_zero(use_cachebox: bool) -> None:
    """No way to lose an entry leaves its bytes behind."""
    now_s = [0.0]
    store = MemoryStore(max_entries=5, clock=lambda: now_s[0], use_cachebox=use_cachebox)
    for number in range(10):
        store.put(f"a/{number}", bytes(number), timeout_s=5)
        store.put(f"a/{number}", bytes(2 * number), timeout_s=5)
    store.increment("n", default=0)
    store.touch("a/9", 1)
    now_s[0] = 10.0
    assert store.get("a/9") is MISS
    store.compare_and_swap("n", b"1", b"22")
    store.invalidate_prefix("n")
    for key in [f"a/{number}" for number in range(10)]:
        store.delete(key)
    assert store.metrics().size_bytes == 0
    store.put("b", b"1")
    store.clear()
    assert (store.metrics().size_bytes, store.metrics().entries) == (0, 0)


def test_each_reason_of_eviction_is_counted(use_cachebox: bool) -> None:
    """Expired, rejected, entries and bytes are told apart, and an expired victim is no victim."""
    now_s = [0.0]
    store = MemoryStore(max_entries=2, max_bytes=5000, clock=lambda: now_s[0], use_cachebox=use_cachebox)
    store.put("read when expired", b"1", timeout_s=5)
    store.put("pushed out when expired", b"1", timeout_s=5)
    now_s[0] = 5.0
    assert store.get("read when expired") is MISS
    store.put("a", b"1")
    store.put("b", b"1")
    assert store.metrics().evictions == {"expired": 2}
    with pytest.raises(QuotaExceededError):
        store.put("b", bytes(5000))
    with pytest.raises(QuotaExceededError):
        store.put("never there", bytes(5000))
    assert store.metrics().evictions == {"expired": 2, "rejected": 1}
    store.put("c", b"1")
    store.put("d", b"1")
    assert store.metrics().evictions == {"expired": 2, "rejected": 1, "entries": 1}
    store.put("d", bytes(4700))
    assert store.metrics().evictions == {"expired": 2, "rejected": 1, "entries": 1, "bytes": 1}
    assert list(store.keys()) == ["d"]


def test_quotas_are_for_new_keys(use_cachebox: bool) -> None:
    """A store that evicts nothing refuses a new key when it is full; what is there is replaced, and makes room."""
    now_s = [0.0]
    store = MemoryStore(max_entries=2, evicts=False, clock=lambda: now_s[0], use_cachebox=use_cachebox)
    store.put("a", b"1", timeout_s=5)
    store.put("b", b"1")
    for call in (
        lambda: store.put("c", b"1"),
        lambda: store.increment("c", default=0),
        lambda: store.compare_and_swap("c", None, b"1"),
    ):
        with pytest.raises(QuotaExceededError, match="2 of 2 entries"):
            call()
    store.put("b", b"2")
    assert store.increment("b") == 3
    assert store.compare_and_swap("b", b"3", b"4") is True
    assert store.get_many("abc") == {"a": b"1", "b": b"4"}
    assert (store.metrics().rejected_puts, store.metrics().evictions) == (3, {})
    now_s[0] = 5.0
    store.put("c", b"1")
    assert store.metrics().evictions == {"expired": 1}
    assert store.delete("b") is True
    store.put("d", b"1")
    assert sorted(store.keys()) == ["c", "d"]


def test_a_quota_of_bytes_is_for_all(use_cachebox: bool) -> None:
    """A value that no longer fits beside the others is refused, and its older one is not served."""
    store = MemoryStore(max_bytes=5000, evicts=False, use_cachebox=use_cachebox)
    store.put("a", bytes(3000))
    with pytest.raises(QuotaExceededError, match="evicts nothing"):
        store.put("b", bytes(3000))
    store.put("b", b"1")
    store.put("b", bytes(1000))
    with pytest.raises(QuotaExceededError):
        store.put("b", bytes(3000))
    assert store.get("b") is MISS
    assert store.get("a") == bytes(3000)
    assert store.metrics().evictions == {"rejected": 1}


def test_only_bytes_are_stored(use_cachebox: bool) -> None:
    """A bytearray could change in the store."""
    store = MemoryStore(use_cachebox=use_cachebox)
    with pytest.raises(TypeError, match="bytearray"):
        store.put("key", bytearray(b"1"))  # type: ignore[arg-type]  # That is the point.


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_among_busy_threads_does_not_hang(use_cachebox: bool) -> None:
    """The child can use the store although threads of the parent held its locks, and its size is right."""
    store = MemoryStore(max_entries=200, use_cachebox=use_cachebox)
    stop = threading.Event()

    def work(number: int) -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            store.put(f"key/{number}/{turn % 100}", bytes(turn % 500))
            store.get(f"key/{number}/{turn % 50}")
            store.increment(f"count/{number}", default=0)

    def in_child() -> None:
        store.put("child", b"1")
        assert store.get("child") == b"1"
        assert store.increment("sum", default=0) is not MISS
        store.invalidate_prefix("key")
        for key in list(store.keys()):
            store.delete(key)
        assert store.metrics().size_bytes == 0

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(20):
            assert run_in_fork(in_child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
