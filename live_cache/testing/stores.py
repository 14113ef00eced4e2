"""
The conformance suite of every store. Subclass it in a test module, with make_store(), peek(), poke() and advance().
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from live_cache.exceptions import InvalidKeyError, QuotaExceededError, StoreError, StoreUnsupportedError
from live_cache.stores.base import MAX_KEY_BYTES, MISS, FlushReport, Store, StoredValue, has_prefix
from live_cache.testing.capabilities import capabilities
from live_cache.testing.store_users import StoreUsers

__all__ = ["StoreSuite"]

_ODD_KEYS = (
    "percent%",
    "under_score",
    "star*",
    "question?",
    "bracket[a-z]",
    "back\\slash",
    "quote'and\"quote",
    "space in key",
    "new\nline",
    "nul\x00inside",
    "caret^dash-",
    "snow\N{SNOWMAN}man",
    "astral\N{GRINNING FACE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{LATIN SMALL LETTER E WITH ACUTE}",
    "UPPER",
    "upper",
    " leading",
    "trailing ",
    "a/b//c/",
    "/",
    "0",
    "k" * MAX_KEY_BYTES,
)
_LARGEST = 2**63 - 1
_SMALLEST = -(2**63)


class StoreSuite(StoreUsers):
    """
    Checks of all that live_cache.stores.base.Store promises.

    Subclass it under a name that begins with Test, and implement the hooks; a missing one is a TypeError at each test.
    """

    label: ClassVar[str] = ""
    """Name in the table of capabilities that the run prints; empty for none."""

    # Values

    @pytest.mark.parametrize("value", [b"", b"\x00", bytes(range(256)), b"\xff" * 100_000, b"7", b"None"])
    def test_returns_the_bytes_that_were_put(self, store: Store, value: bytes) -> None:
        """Any bytes come back as they were, by each way to read."""
        store.put("key", value)
        assert store.get("key") == value
        assert type(store.get("key")) is bytes
        assert store.get_with_expiry("key") == StoredValue(value, None)
        assert store.get_many(["key"]) == {"key": value}
        assert self._peek(store, "key") == value

    def test_reads_what_is_there(self, store: Store) -> None:
        """A value that came round the store is found."""
        self._poke(store, "key", b"poked")
        assert store.get("key") == b"poked"
        assert store.exists("key") is True

    def test_a_missing_key_is_a_miss(self, store: Store) -> None:
        """MISS is not None and not an empty value."""
        assert store.get("key") is MISS
        assert store.get_with_expiry("key") is MISS
        assert store.get_many(["key", "other"]) == {}
        assert store.exists("key") is False
        assert store.delete("key") is False
        assert store.touch("key", 10) is False

    def test_a_put_replaces(self, store: Store) -> None:
        """The value of the last put is returned, with its time to live."""
        store.put("key", b"a long old value", timeout_s=10)
        store.put("key", b"new")
        assert store.get_with_expiry("key") == StoredValue(b"new", None)
        assert self._peek(store, "key") == b"new"

    def test_a_delete_drops(self, store: Store) -> None:
        """A delete says whether there was something, and leaves other keys."""
        store.put("key", b"")
        store.put("other", b"1")
        assert store.delete("key") is True
        assert store.delete("key") is False
        assert store.get("key") is MISS
        assert self._peek(store, "key") is None
        assert store.get("other") == b"1"

    def test_many_keys_at_once(self, store: Store) -> None:
        """get_many, put_many and delete_many do what their single twins do, key by key."""
        items = {f"key/{number}": b"%d" % number for number in range(1200)}
        store.put_many(items, timeout_s=10)
        assert store.get_many([*items, "missing", "key/0"]) == items
        assert store.delete_many(["key/0", "key/1", "missing", "key/0"]) == 2
        assert set(store.keys()) == set(items) - {"key/0", "key/1"}
        self.advance(10)
        assert store.get_many(items) == {}
        store.put_many({})
        assert store.get_many([]) == {}
        assert store.delete_many([]) == 0

    def test_an_oversized_put_drops_the_old_value(self, store: Store) -> None:
        """A value that is too large raises, and the older one is not served in its place."""
        if self.oversized_bytes is None:
            return
        store.put("key", b"old")
        store.put("other", b"1")
        with pytest.raises(QuotaExceededError):
            store.put("key", bytes(self.oversized_bytes))
        assert store.get("key") is MISS
        assert self._peek(store, "key") is None
        store.put("key", b"old")
        with pytest.raises(QuotaExceededError):
            store.compare_and_swap("key", b"old", bytes(self.oversized_bytes))
        assert store.get("key") is MISS
        assert store.metrics().rejected_puts == 2
        store.put("key", b"fits")
        assert store.get("key") == b"fits"

    # Keys

    @pytest.mark.parametrize("key", _ODD_KEYS, ids=range(len(_ODD_KEYS)))
    def test_any_text_is_a_key(self, store: Store, key: str) -> None:
        """No character of a key means anything but itself, and no two keys are taken for one."""
        for odd in _ODD_KEYS:
            store.put(odd, odd.encode())
        assert store.get(key) == key.encode()
        assert sorted(store.keys()) == sorted(_ODD_KEYS)
        assert set(store.keys(key)) == {odd for odd in _ODD_KEYS if has_prefix(odd, key)}
        assert store.invalidate_prefix(key) == len([odd for odd in _ODD_KEYS if has_prefix(odd, key)])
        assert sorted(store.keys()) == sorted(odd for odd in _ODD_KEYS if not has_prefix(odd, key))

    @pytest.mark.parametrize("key", ["", "k" * (MAX_KEY_BYTES + 1), "\N{SNOWMAN}" * 400, "\ud800"], ids=range(4))
    def test_what_is_no_key_is_refused(self, store: Store, key: str) -> None:
        """Every method refuses a key that is empty, too long, or not UTF-8."""
        calls: list[Callable[[], object]] = [
            lambda: store.get(key),
            lambda: store.get_with_expiry(key),
            lambda: store.get_many(["fine", key]),
            lambda: store.put(key, b"1"),
            lambda: store.put(key, b"1", timeout_s=0),
            lambda: store.put_many({"fine": b"1", key: b"1"}),
            lambda: store.delete(key),
            lambda: store.delete_many(["fine", key]),
            lambda: store.exists(key),
            lambda: store.increment(key, default=1),
            lambda: store.compare_and_swap(key, None, b"1"),
            lambda: store.touch(key, 1),
        ]
        for call in calls:
            with pytest.raises(InvalidKeyError):
                call()

    @pytest.mark.parametrize(
        ("prefix", "dropped"),
        [
            ("client", {"client", "client/", "client/1", "client/1/2"}),
            ("client/", {"client/", "client/1", "client/1/2"}),
            ("client/1", {"client/1", "client/1/2"}),
            ("clien", set()),
            ("", {"client", "client/", "client/1", "client/1/2", "clients", "client0", "client.", "Client", "x"}),
        ],
    )
    def test_a_prefix_is_whole_segments(self, store: Store, prefix: str, dropped: set[str]) -> None:
        """``client`` covers ``client/1`` and not ``clients``, in keys() and in invalidate_prefix()."""
        every = {"client", "client/", "client/1", "client/1/2", "clients", "client0", "client.", "Client", "x"}
        store.put_many(dict.fromkeys(every, b"1"))
        assert sorted(store.keys(prefix)) == sorted(dropped)
        assert store.invalidate_prefix(prefix) == len(dropped)
        assert set(store.keys()) == every - dropped
        assert store.get_many(every) == dict.fromkeys(every - dropped, b"1")
        assert store.invalidate_prefix(prefix) == 0

    def test_a_large_prefix_goes_whole(self, store: Store) -> None:
        """More keys than a batch are listed once each, and dropped."""
        store.put_many({f"many/{number}": b"1" for number in range(2500)})
        store.put("kept", b"1")
        listed = list(store.keys("many"))
        assert len(listed) == len(set(listed)) == 2500
        assert store.invalidate_prefix("many") == 2500
        assert list(store.keys()) == ["kept"]

    # Time

    def test_a_value_lives_until_its_deadline(self, store: Store) -> None:
        """It is there before, and at its deadline it is gone for every method."""
        store.put("key", b"7", timeout_s=10)
        self.advance(9)
        assert store.get("key") == b"7"
        stored = store.get_with_expiry("key")
        assert stored is not MISS
        assert stored.expires_in_s == pytest.approx(1, abs=0.5)
        self.advance(1)
        assert store.get("key") is MISS
        assert store.get_with_expiry("key") is MISS
        assert store.get_many(["key"]) == {}
        assert store.exists("key") is False
        assert list(store.keys()) == []
        assert store.increment("key") is MISS
        assert store.touch("key", 10) is False
        assert store.compare_and_swap("key", b"7", b"8") is False
        assert store.delete("key") is False

    def test_an_expired_value_is_as_good_as_none(self, store: Store) -> None:
        """What expired is replaced by whoever expects nothing, and is not dropped a second time."""
        store.put("a/1", b"1", timeout_s=5)
        store.put("a/2", b"1", timeout_s=5)
        self.advance(5)
        assert store.invalidate_prefix("a") == 0
        store.put("a/1", b"1", timeout_s=5)
        self.advance(5)
        assert store.compare_and_swap("a/1", None, b"2") is True
        assert store.get_with_expiry("a/1") == StoredValue(b"2", None)

    @pytest.mark.parametrize("timeout_s", [0, -1, -0.5])
    def test_no_time_to_live_is_expired_at_once(self, store: Store, timeout_s: float) -> None:
        """Zero or less drops what was there, whichever method says it."""
        for change in (
            lambda: store.put("key", b"new", timeout_s=timeout_s),
            lambda: store.put_many({"key": b"new"}, timeout_s=timeout_s),
            lambda: store.compare_and_swap("key", b"old", b"new", timeout_s=timeout_s),
            lambda: store.touch("key", timeout_s),
        ):
            store.put("key", b"old")
            change()
            assert store.get("key") is MISS
            assert self._peek(store, "key") is None

    def test_a_touch_moves_the_deadline(self, store: Store) -> None:
        """A touch shortens, lengthens and removes a time to live, and leaves the value."""
        store.put("key", b"value", timeout_s=5)
        assert store.touch("key", 20) is True
        self.advance(10)
        assert store.get("key") == b"value"
        assert store.touch("key", None) is True
        self.advance(1000)
        assert store.get_with_expiry("key") == StoredValue(b"value", None)
        assert store.touch("key", None) is True
        assert store.touch("key", 5) is True
        self.advance(5)
        assert store.get("key") is MISS

    @pytest.mark.parametrize("timeout_s", [1e12, float("inf")])
    def test_a_huge_time_to_live_is_one(self, store: Store, timeout_s: float) -> None:
        """A deadline that lies beyond all clocks is no error."""
        store.put("key", b"value", timeout_s=timeout_s)
        assert store.get("key") == b"value"
        assert store.touch("key", timeout_s) is True
        self.advance(1000)
        assert store.get("key") == b"value"

    # Numbers and swaps

    def test_an_increment_adds(self, store: Store) -> None:
        """It needs a value or a default, and its sum is bytes like any other."""
        assert store.increment("key") is MISS
        assert store.exists("key") is False
        assert store.increment("key", 5, default=10) == 15
        assert store.increment("key", 5, default=10) == 20
        assert store.increment("key", -21) == -1
        assert store.increment("key") == 0
        assert store.get("key") == b"0"
        store.put("key", b"41")
        assert store.increment("key") == 42
        assert store.get_with_expiry("key") == StoredValue(b"42", None)

    def test_an_increment_keeps_the_time_to_live(self, store: Store) -> None:
        """A counter expires when it would have without being counted; one from a default never does."""
        store.put("key", b"1", timeout_s=10)
        self.advance(5)
        assert store.increment("key") == 2
        store.increment("new", default=0)
        self.advance(5)
        assert store.get("key") is MISS
        assert store.increment("key", default=100) == 101
        self.advance(1000)
        assert store.get_many(["key", "new"]) == {"key": b"101", "new": b"1"}

    @pytest.mark.parametrize(
        "value", [b"", b"a", b"1.5", b" 1", b"1 ", b"+1", b"01", b"-0", b"1e3", b"9" * 19, b"\xff"]
    )
    def test_what_is_no_integer_is_not_incremented(self, store: Store, value: bytes) -> None:
        """An error leaves the value as it was."""
        store.put("key", value)
        with pytest.raises(StoreError):
            store.increment("key")
        assert store.get("key") == value

    @pytest.mark.parametrize(
        ("start", "delta"),
        [(_LARGEST, 1), (_SMALLEST, -1), (1, _LARGEST), (0, _LARGEST + 1), (0, _SMALLEST - 1), (_LARGEST, 2**64)],
    )
    def test_a_sum_over_64_bits_is_refused(self, store: Store, start: int, delta: int) -> None:
        """An overflow raises and changes nothing, from a value and from a default."""
        store.put("key", b"%d" % start)
        with pytest.raises(StoreError):
            store.increment("key", delta)
        assert store.get("key") == b"%d" % start
        with pytest.raises(StoreError):
            store.increment("new", delta, default=start)
        assert store.exists("new") is False
        assert store.increment("new", _SMALLEST, default=_LARGEST) == -1
        store.put("key", b"%d" % (_LARGEST - 1))
        assert store.increment("key") == _LARGEST
        assert store.get("key") == b"%d" % _LARGEST

    def test_a_swap_needs_what_it_expects(self, store: Store) -> None:
        """It stores where the expected bytes are, or where None is expected and nothing is; else it changes nothing."""
        assert store.compare_and_swap("key", b"", b"1") is False
        assert store.compare_and_swap("key", None, b"") is True
        assert store.compare_and_swap("key", None, b"2") is False
        assert store.compare_and_swap("key", b"other", b"2") is False
        assert store.get("key") == b""
        assert store.compare_and_swap("key", b"", b"3", timeout_s=10) is True
        assert store.get("key") == b"3"
        self.advance(10)
        assert store.get("key") is MISS

    def test_a_lease_has_one_owner(self, store: Store) -> None:
        """Who takes it first has it, until he ends it or its time is over; it is no value of its key."""
        assert store.take_lease("key", b"first", timeout_s=10) == (True, MISS)
        assert store.take_lease("key", b"second", timeout_s=10) == (False, MISS)
        assert store.is_leased("key") is True
        assert store.exists("key") is False
        assert list(store.keys("key")) == []
        store.release_lease("key", b"second")
        assert store.is_leased("key") is True
        store.release_lease("key", b"first")
        assert store.is_leased("key") is False
        store.put("key", b"value")
        assert store.take_lease("key", b"second", timeout_s=10) == (True, b"value")
        self.advance(10)
        assert store.is_leased("key") is False
        assert store.take_lease("key", b"third", timeout_s=10) == (True, b"value")
        store.release_lease("key", b"second")
        assert store.is_leased("key") is True

    def test_a_put_can_end_a_lease(self, store: Store) -> None:
        """That of its owner only; the value is stored in either case, with its time to live."""
        for token, is_leased in ((b"second", True), (b"first", False)):
            store.take_lease("key", b"first", timeout_s=60)
            store.put_and_release("key", token, token, timeout_s=5)
            assert store.get("key") == token
            assert store.is_leased("key") is is_leased
        store.take_lease("other", b"first", timeout_s=60)
        store.put_and_release("key", b"value", b"first")
        assert store.is_leased("other") is True
        assert store.get_with_expiry("key") == StoredValue(b"value", None)
        store.take_lease("key", b"first", timeout_s=60)
        store.put_and_release("key", b"value", b"first", timeout_s=0)
        assert store.get("key") is MISS
        assert store.is_leased("key") is False

    # The store as a whole

    def test_hits_and_misses_are_lookups(self, store: Store) -> None:
        """Each key asked for counts once; exists() and keys() count nowhere."""
        before = store.metrics()
        store.put("key", b"1")
        store.get("key")
        store.get("missing")
        store.get_with_expiry("key")
        store.get_with_expiry("missing")
        store.get_many(["key", "missing", "other"])
        store.exists("key")
        list(store.keys())
        store.put("expired", b"1", timeout_s=5)
        self.advance(5)
        store.get("expired")
        store.delete("key")
        store.delete("key")
        store.compare_and_swap("swapped", None, b"1")
        store.compare_and_swap("swapped", None, b"1")
        after = store.metrics()
        assert (after.hits - before.hits, after.misses - before.misses) == (3, 5)
        assert after.lookups == after.hits + after.misses
        assert after.puts - before.puts == 3
        assert after.deletes - before.deletes == 1
        assert (after.rejected_puts, after.errors) == (0, 0)

    def test_clear_leaves_nothing(self, store: Store) -> None:
        """After clear() the store is empty, and works."""
        store.put_many({f"key/{number}": b"1" for number in range(1500)})
        store.clear()
        assert list(store.keys()) == []
        assert store.get("key/1") is MISS
        store.put("key/1", b"1")
        assert store.get("key/1") == b"1"

    def test_len_counts_or_says_that_it_cannot(self, store: Store) -> None:
        """The length is exact while nothing expires, or unsupported."""
        store.put_many({"a": b"1", "b": b"1"})
        with contextlib.suppress(StoreUnsupportedError):
            assert store.len() == 2

    def test_flush_reports(self, store: Store) -> None:
        """A durable store has nothing pending after a flush."""
        store.put("key", b"1")
        report = store.flush()
        assert isinstance(report, FlushReport)
        assert report.pending_entries == 0
        assert store.get("key") == b"1"

    def test_a_closed_store_opens_itself(self, store: Store) -> None:
        """close() may be called at any time, and twice."""
        store.put("key", b"1")
        store.close()
        store.close()
        store.put("other", b"2")
        assert store.get("other") == b"2"

    def test_capabilities(self, store: Store, tmp_path: Path) -> None:
        """What the store says of itself holds, for itself and for its twins."""
        if self.label:
            capabilities(store, self.label, advance=self.advance, opened_again=lambda: self.make_store(tmp_path))
