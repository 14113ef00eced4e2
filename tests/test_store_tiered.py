"""The tiered store: promotion, tiers that fail, and races between the two."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import pytest

from live_cache.exceptions import ConfigurationError, QuotaExceededError, StoreUnavailableError
from live_cache.stores.base import MISS, FlushReport, Missing, Store, StoredValue
from live_cache.stores.memory import MemoryStore
from live_cache.stores.null import NullStore
from live_cache.stores.tiered import TieredStore
from tests.test_stores import Clock


class Fragile(MemoryStore):
    """A memory store that can be told not to answer, and to stop in the middle of a call."""

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self.is_down = False
        self.after_read: Callable[[], None] | None = None
        self.after_put: Callable[[], None] | None = None
        self.calls: list[str] = []

    def _answer(self, call: str) -> None:
        self.calls.append(call)
        if self.is_down:
            raise StoreUnavailableError(f"{self.name} is down")

    def get(self, key: str) -> bytes | Missing:
        self._answer("get")
        return super().get(key)

    def get_with_expiry(self, key: str) -> StoredValue | Missing:
        self._answer("get_with_expiry")
        stored = super().get_with_expiry(key)
        if self.after_read is not None:
            self.after_read()
        return stored

    def get_many(self, keys: Any) -> dict[str, bytes]:
        self._answer("get_many")
        return super().get_many(keys)

    def put(self, key: str, value: bytes, *, timeout_s: float | None = None) -> None:
        self._answer("put")
        super().put(key, value, timeout_s=timeout_s)
        if self.after_put is not None:
            self.after_put()

    def delete(self, key: str) -> bool:
        self._answer("delete")
        return super().delete(key)

    def exists(self, key: str) -> bool:
        self._answer("exists")
        return super().exists(key)

    def keys(self, prefix: str = "") -> Any:
        self._answer("keys")
        return super().keys(prefix)

    def invalidate_prefix(self, prefix: str) -> int:
        self._answer("invalidate_prefix")
        return super().invalidate_prefix(prefix)

    def increment(self, key: str, delta: int = 1, *, default: int | None = None) -> int | Missing:
        self._answer("increment")
        return super().increment(key, delta, default=default)

    def compare_and_swap(self, key: str, expected: Any, value: bytes, *, timeout_s: float | None = None) -> bool:
        self._answer("compare_and_swap")
        return super().compare_and_swap(key, expected, value, timeout_s=timeout_s)

    def touch(self, key: str, timeout_s: float | None) -> bool:
        self._answer("touch")
        return super().touch(key, timeout_s)

    def clear(self) -> None:
        self._answer("clear")
        super().clear()

    def flush(self) -> FlushReport:
        self._answer("flush")
        return FlushReport(is_durable=self.name == "far", pending_entries=3)

    def len(self) -> int:
        self._answer("len")
        return super().len()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def near(clock: Clock) -> Fragile:
    return Fragile("near", clock=clock)


@pytest.fixture
def middle(clock: Clock) -> Fragile:
    return Fragile("middle", clock=clock)


@pytest.fixture
def far(clock: Clock) -> Fragile:
    return Fragile("far", clock=clock)


@pytest.fixture
def tiers(near: Fragile, middle: Fragile, far: Fragile) -> TieredStore:
    return TieredStore([near, middle, far])


def held(store: MemoryStore, key: str = "key") -> bytes | None:
    """Look into a tier without its knowledge."""
    entry = store._entries.peek(key)
    return None if entry is None else entry[0]


class TestPromotion:
    """A hit of a far tier comes nearer."""

    @pytest.mark.parametrize("how", ["get", "get_with_expiry", "get_many"])
    def test_a_hit_fills_every_nearer_tier(self, how: str, tiers: TieredStore, clock: Clock) -> None:
        """The copies live as long as the original still does."""
        near, middle, far = tiers.stores
        far.put("key", b"1", timeout_s=10)
        clock.now_s += 4
        if how == "get_many":
            assert tiers.get_many(["key", "missing"]) == {"key": b"1"}
        elif how == "get":
            assert tiers.get("key") == b"1"
        else:
            assert tiers.get_with_expiry("key") == StoredValue(b"1", 6)
        assert near.get_with_expiry("key") == middle.get_with_expiry("key") == StoredValue(b"1", 6)
        clock.now_s += 6
        assert tiers.get("key") is MISS

    def test_a_hit_in_the_middle_does_not_ask_further(self, tiers: TieredStore, far: Fragile, middle: Fragile) -> None:
        """The nearest tier that has the key answers."""
        middle.put("key", b"1")
        assert tiers.get("key") == b"1"
        assert far.calls == []

    @pytest.mark.parametrize(
        ("promote", "copied"),
        [
            ("always", ["a", "b", "c", "d"]),
            ("never", []),
            (1, ["a", "b", "c", "d"]),
            (3, ["a", "d"]),
            (lambda key, stored: key == "b" and stored.value == b"1", ["b"]),
        ],
    )
    def test_the_policy_decides(self, promote: Any, copied: list[str], near: Fragile, far: Fragile) -> None:
        """Always, never, one in N, or a function of key and value."""
        tiers = TieredStore([near, far], promote=promote)
        far.put_many(dict.fromkeys("abcd", b"1"))
        for key in "abcd":
            assert tiers.get(key) == b"1"
        assert sorted(near._entries.keys()) == copied

    @pytest.mark.parametrize("promote", [0, -1, True, "sometimes", None, 1.5])
    def test_another_policy_is_refused(self, promote: Any, near: Fragile) -> None:
        """The error says what there is."""
        with pytest.raises(ConfigurationError, match="one hit in N"):
            TieredStore([near], promote=promote)

    def test_there_is_at_least_one_tier(self) -> None:
        """No tiers are no store."""
        with pytest.raises(ConfigurationError):
            TieredStore([])

    def test_readers_may_walk_the_tiers_themselves(self, tiers: TieredStore) -> None:
        """read_tier() promotes nothing; put_near() fills what is nearer than a tier."""
        near, middle, far = tiers.stores
        far.put("key", b"1", timeout_s=10)
        assert tiers.read_tier(0, "key") is MISS
        assert tiers.read_tier(2, "key") == StoredValue(b"1", 10)
        assert near.get("key") is MISS
        tiers.put_near("key", b"1", timeout_s=10, below=1)
        assert near.get_with_expiry("key") == StoredValue(b"1", 10)
        assert middle.get("key") is MISS
        tiers.put_near("key", b"2", timeout_s=None, below=2)
        assert (near.get("key"), middle.get("key"), far.get("key")) == (b"2", b"2", b"1")
        tiers.put_near("key", b"3", timeout_s=None, below=0)
        assert near.get("key") == b"2"

    def test_put_near_swallows_failures(self, tiers: TieredStore, near: Fragile, middle: Fragile) -> None:
        """A copy that fails costs nothing but the copy."""
        near.is_down = True
        tiers.put_near("key", b"1", timeout_s=None, below=2)
        assert held(middle) == b"1"
        assert tiers.metrics().errors == 1


class TestFailures:
    """A tier that does not answer is skipped, and never serves what it should have dropped."""

    def test_a_read_skips_it(self, tiers: TieredStore, near: Fragile, far: Fragile, caplog: Any) -> None:
        """The next tier answers; the failure is counted each time, and logged once until the tier is back."""
        tiers.put("key", b"1")
        near.is_down = True
        with caplog.at_level(logging.WARNING, logger="live_cache.stores"):
            for _ in range(3):
                assert tiers.get("key") == b"1"
            assert tiers.exists("key") is True
            assert tiers.get_many(["key"]) == {"key": b"1"}
            assert list(tiers.keys()) == ["key"]
        assert [record.getMessage() for record in caplog.records] == [
            "Tier 0 (near) is skipped while it fails: near is down"
        ]
        # Five reads, and the promotion after the hits of a farther tier.
        assert tiers.metrics().errors >= 6
        near.is_down = False
        assert tiers.get("key") == b"1"
        assert caplog.records[-1].getMessage() == "Tier 0 (near) answers again."

    def test_a_put_goes_to_the_others(self, tiers: TieredStore, near: Fragile, middle: Fragile, far: Fragile) -> None:
        """One tier that accepts is enough; the farthest is asked first."""
        tiers.put("key", b"1")
        assert (held(near), held(middle), held(far)) == (b"1", b"1", b"1")
        middle.is_down = True
        far.after_put = lambda: near.put("key", b"of before")
        tiers.put("key", b"2")
        assert (held(near), held(middle), held(far)) == (b"2", b"1", b"2")
        assert tiers.get("key") == b"2"

    @pytest.mark.parametrize("down", ["near", "middle", "far"])
    @pytest.mark.parametrize("change", ["put", "delete", "prefix", "clear", "increment"])
    def test_what_it_failed_to_drop_is_not_served(
        self, tiers: TieredStore, request: pytest.FixtureRequest, down: str, change: str
    ) -> None:
        """While it is down and when it is back, no read sees the old value; the tier drops it when it is asked."""
        tiers.put("a/key", b"1")
        failing: Fragile = request.getfixturevalue(down)
        failing.is_down = True
        changes: dict[str, Callable[[], object]] = {
            "put": lambda: tiers.put("a/key", b"2"),
            "delete": lambda: tiers.delete("a/key"),
            "prefix": lambda: tiers.invalidate_prefix("a"),
            "clear": tiers.clear,
            "increment": lambda: tiers.increment("a/key"),
        }
        must_raise = change in ("delete", "prefix", "clear") or (change == "increment" and down == "far")
        if must_raise:
            with pytest.raises(StoreUnavailableError):
                changes[change]()
        else:
            changes[change]()
        failing.is_down = False
        assert held(failing, "a/key") == b"1"
        if change == "increment" and down == "far":
            # Nothing was accepted, and the nearer tiers asked again.
            assert tiers.get("a/key") == b"1"
            return
        expected = b"2" if change in ("put", "increment") else MISS
        index = tiers.stores.index(failing)
        assert tiers.read_tier(index, "a/key") is MISS
        assert tiers.get("a/key") == expected
        assert tiers.get_many(["a/key"]) == ({} if expected is MISS else {"a/key": b"2"})
        assert list(tiers.keys()) == ([] if expected is MISS else ["a/key"])
        assert held(failing, "a/key") != b"1"
        tiers.put("a/key", b"3")
        assert tiers.read_tier(index, "a/key") == StoredValue(b"3", None)

    def test_a_decision_waits_for_what_the_farthest_owes(self, tiers: TieredStore, far: Fragile) -> None:
        """A swap is not decided on a value that should be gone."""
        tiers.put("key", b"1")
        far.is_down = True
        tiers.put("key", b"2")
        with pytest.raises(StoreUnavailableError):
            tiers.compare_and_swap("key", b"1", b"3")
        far.is_down = False
        assert tiers.compare_and_swap("key", b"1", b"3") is False
        assert tiers.compare_and_swap("key", None, b"3") is True
        assert tiers.get("key") == b"3"

    def test_a_delete_reaches_the_others(
        self, tiers: TieredStore, near: Fragile, middle: Fragile, far: Fragile
    ) -> None:
        """It raises, but only after every tier that answers has dropped the key."""
        tiers.put("key", b"1")
        far.is_down = True
        with pytest.raises(StoreUnavailableError, match="far is down"):
            tiers.delete("key")
        assert held(near) is None
        assert held(middle) is None
        assert tiers.get("key") is MISS

    def test_no_tier_at_all(self, tiers: TieredStore, near: Fragile, middle: Fragile, far: Fragile) -> None:
        """Reads miss, writes raise."""
        for store in (near, middle, far):
            store.is_down = True
        assert tiers.get("key") is MISS
        assert tiers.get_with_expiry("key") is MISS
        assert tiers.get_many(["key"]) == {}
        assert tiers.exists("key") is False
        assert list(tiers.keys()) == []
        for call in (
            lambda: tiers.put("key", b"1"),
            lambda: tiers.delete("key"),
            lambda: tiers.increment("key"),
            lambda: tiers.touch("key", 1),
            tiers.clear,
            tiers.flush,
        ):
            with pytest.raises(StoreUnavailableError):
                call()

    def test_a_tier_that_is_too_small_is_passed_over(self, clock: Clock, far: Fragile) -> None:
        """Its old value goes, also if one of many is too large; the others keep all."""
        small = MemoryStore("small", max_bytes=2000, clock=clock)
        tiers = TieredStore([small, far])
        tiers.put_many({"a": b"old", "b": b"old"})
        tiers.put("a", bytes(2000))
        assert held(small, "a") is None
        assert tiers.get("a") == bytes(2000)
        tiers.put_many({"a": bytes(3000), "b": b"new"})
        assert tiers.get_many(["a", "b"]) == {"a": bytes(3000), "b": b"new"}
        with pytest.raises(QuotaExceededError):
            TieredStore([small]).put("a", bytes(2000))

    def test_many_debts_become_one(self, near: Fragile, far: Fragile, monkeypatch: Any) -> None:
        """More than a limit of keys or prefixes are remembered as everything."""
        monkeypatch.setattr("live_cache.stores.tier_state._MAX_OWED_KEYS", 5)
        tiers = TieredStore([near, far])
        tiers.put_many({f"key/{number}": b"1" for number in range(10)})
        near.is_down = True
        with pytest.raises(StoreUnavailableError):
            tiers.delete_many([f"key/{number}" for number in range(6)])
        near.is_down = False
        assert tiers.read_tier(0, "key/9") is MISS
        assert held(near, "key/9") is None
        tiers.put("key/9", b"2")
        assert tiers.read_tier(0, "key/9") == StoredValue(b"2", None)


class TestDecisions:
    """The farthest tier decides; nearer ones keep no older value."""

    def test_nearer_tiers_drop_the_key(self, tiers: TieredStore, near: Fragile, middle: Fragile, far: Fragile) -> None:
        """After each change the next read comes from the farthest tier."""
        changes: list[tuple[Callable[[], object], bytes]] = [
            (lambda: tiers.increment("key", 4), b"5"),
            (lambda: tiers.compare_and_swap("key", b"1", b"new"), b"new"),
            (lambda: tiers.touch("key", 5), b"1"),
        ]
        for change, value in changes:
            tiers.put("key", b"1")
            change()
            assert (held(near), held(middle), held(far)) == (None, None, value)
            assert tiers.get("key") == value

    def test_a_swap_that_fails_shows_what_is_in_the_way(self, tiers: TieredStore, far: Fragile) -> None:
        """A loop of get and swap comes to an end although a near tier had an older value."""
        tiers.put("key", b"old")
        far.put("key", b"of another process")
        assert tiers.get("key") == b"old"
        assert tiers.compare_and_swap("key", b"old", b"new") is False
        assert tiers.get("key") == b"of another process"


class TestRaces:
    """A promotion that comes too late does not undo a write."""

    @pytest.mark.parametrize("change", ["put", "delete", "prefix", "clear", "increment", "touch"])
    def test_a_write_between_read_and_promotion(
        self, tiers: TieredStore, near: Fragile, middle: Fragile, far: Fragile, change: str
    ) -> None:
        """A reader is held after it read the far tier; the write returns; the copy is given up."""
        far.put("key", b"1")
        changes: dict[str, tuple[Callable[[], object], bytes | Missing]] = {
            "put": (lambda: tiers.put("key", b"2"), b"2"),
            "delete": (lambda: tiers.delete("key"), MISS),
            "prefix": (lambda: tiers.invalidate_prefix("key"), MISS),
            "clear": (tiers.clear, MISS),
            "increment": (lambda: tiers.increment("key"), b"2"),
            "touch": (lambda: tiers.touch("key", 0), MISS),
        }
        write, expected = changes[change]

        def in_between() -> None:
            far.after_read = None
            write()

        far.after_read = in_between
        assert tiers.get("key") == b"1"
        for store in (near, middle, far):
            assert held(store) in (None, expected)
        assert tiers.get("key") == expected

    def test_a_reader_does_not_wait_for_a_writer(self, near: Fragile, far: Fragile) -> None:
        """While a put is on its way, a read returns what is there, without a copy."""
        tiers = TieredStore([near, far])
        far.put("key", b"1")
        inside, leave = threading.Event(), threading.Event()

        def hold() -> None:
            inside.set()
            assert leave.wait(30)

        far.after_put = hold
        writer = threading.Thread(target=tiers.put, args=("key", b"2"))
        writer.start()
        assert inside.wait(30)
        assert tiers.get("key") == b"2"
        assert held(near) is None
        leave.set()
        writer.join()
        assert held(near) == b"2"


class TestWhole:
    """The store as one."""

    def test_metrics_are_of_the_whole_and_of_each(self, clock: Clock) -> None:
        """Lookups count once for the whole; evictions and bytes are added up."""
        tiers = TieredStore([MemoryStore(max_entries=1, clock=clock), MemoryStore(clock=clock), NullStore()])
        tiers.put_many({"a": b"1", "b": b"1"})
        tiers.get("a")
        tiers.get("b")
        tiers.get("c")
        whole, each = tiers.metrics(), tiers.tier_metrics()
        assert (whole.lookups, whole.hits, whole.misses, whole.puts, whole.errors) == (3, 2, 1, 2, 0)
        assert list(each) == ["memory", "memory#2", "null"]
        assert (each["memory#2"].hits, each["null"].lookups) == (2, 1)
        assert whole.evictions == {"entries": 3}
        assert whole.entries == 0
        assert whole.size_bytes == (each["memory"].size_bytes or 0) + (each["memory#2"].size_bytes or 0)

    def test_a_flush_is_durable_where_a_tier_is(self, tiers: TieredStore) -> None:
        """What is pending is added up."""
        assert tiers.flush() == FlushReport(is_durable=True, pending_entries=9)

    def test_the_length_is_the_farthest_tiers(self, tiers: TieredStore, near: Fragile, far: Fragile) -> None:
        """Nearer tiers are asked where it cannot tell."""
        near.put_many({"a": b"1", "b": b"1"})
        far.put("a", b"1")
        assert tiers.len() == 1
        far.is_down = True
        assert tiers.len() == 0

    def test_it_is_shared_as_far_as_a_tier_is(self, near: Fragile) -> None:
        """One shared tier makes entries visible to others."""

        class Shared(NullStore):
            is_shared_by_processes = True

        assert (TieredStore([near]).is_shared_by_processes, TieredStore([near, Shared()]).is_shared_by_processes) == (
            False,
            True,
        )
        stores: list[Store] = [near, Shared()]
        assert TieredStore(stores).is_shared_by_hosts is False
