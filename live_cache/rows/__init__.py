"""
Rows to CBOR and back, exact in value and in type or refused.

docs/reference/entry-format.md describes the bytes. primitives.py is the only importer of cbor2; cells.py and columns.py
turn values into primitives; entries.py puts them together and into a frame.
"""

from __future__ import annotations

from live_cache.rows.entries import (
    Entry,
    EntryHeader,
    decode_entry,
    decode_value,
    encode_entry,
    encode_value,
    restamp_entry,
)
from live_cache.rows.registry import register_codec

__all__ = [
    "Entry",
    "EntryHeader",
    "decode_entry",
    "decode_value",
    "encode_entry",
    "encode_value",
    "register_codec",
    "restamp_entry",
]
