"""
What is fuzzed: bytes that somebody else may have written, read as a frame, an entry, or a value.

A target returns for bytes that are refused by FrameError, and raises for anything else that is wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final
from uuid import UUID

from live_cache.exceptions import FrameError, UncachableValueError
from live_cache.frame import KIND_CBOR, KIND_ROWS, seal
from live_cache.ledger.clocks import Dependency, Stamp
from live_cache.rows import EntryHeader, decode_entry, decode_value, encode_entry, encode_value

__all__ = ["SEEDS", "TARGETS"]

KEY: Final = "shop.product/5f3a/page_1x50"
MAC_KEY: Final = b"sixteen random b"
_HEAD_BYTES: Final = 19  # of a frame with a checksum
_HEADER: Final = EntryHeader(
    17, 18, (Dependency("default/shop_product", (0, 300)),), (Stamp("default/shop_product", b"e", 5),)
)
_ROW: Final = (
    1,
    "text",
    None,
    2.5,
    float("nan"),
    Decimal("1.50"),
    datetime(2026, 1, 31, 12, tzinfo=UTC),
    UUID(int=5),
    {"nested": [1, {"a": b"b"}]},
    2**70,
    (1, "\ud800"),
)


def raw(data: bytes) -> None:
    """Read *data* as it is, without and with a key. With a key only bytes that it signed may be decoded."""
    for decode in (decode_entry, decode_value):
        with suppress(FrameError):
            decode(data, key=KEY)
        try:
            decode(data, key=KEY, mac_keys=[MAC_KEY])
        except FrameError:
            continue
        if data not in _SIGNED:
            raise AssertionError("Bytes that nobody signed were decoded.")


def entry(payload: bytes) -> None:
    """Read *payload* as an entry whose frame is intact; what is decoded must be stored and read again the same."""
    try:
        found = decode_entry(seal(payload, kind=KIND_ROWS, key=KEY), key=KEY)
        rows = found.rows()
    except FrameError:
        return
    with suppress(UncachableValueError):
        once = encode_entry(found.header, rows, key=KEY)
        again = decode_entry(once, key=KEY)
        assert encode_entry(again.header, again.rows(), key=KEY) == once


def value(payload: bytes) -> None:
    """Read *payload* as a value whose frame is intact; what is decoded must be stored and read again the same."""
    try:
        found = decode_value(seal(payload, kind=KIND_CBOR, key=KEY), key=KEY)
    except FrameError:
        return
    with suppress(UncachableValueError):
        once = encode_value(found, key=KEY)
        assert encode_value(decode_value(once, key=KEY), key=KEY) == once


TARGETS: Final[tuple[Callable[[bytes], None], ...]] = (raw, entry, value)

_ENTRIES: Final = [encode_entry(_HEADER, rows, key=KEY) for rows in ([], [_ROW], [_ROW] * 3, [(1,), (2,)])]
_VALUES: Final = [encode_value(one, key=KEY) for one in (*_ROW, list(_ROW), "", b"", {})]
_SIGNED: Final = frozenset(
    [encode_entry(_HEADER, [_ROW], key=KEY, mac_keys=[MAC_KEY]), encode_value("text", key=KEY, mac_keys=[MAC_KEY])]
)
SEEDS: Final = {
    raw: [*_ENTRIES, *_VALUES, *_SIGNED],
    entry: [frame[_HEAD_BYTES:] for frame in _ENTRIES],
    value: [frame[_HEAD_BYTES:] for frame in _VALUES],
}
"""Intact inputs of each target, to begin with."""
