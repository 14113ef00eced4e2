"""Which entries a process has stored or seen, so that a miss can be told from an eviction. For counters alone."""

from __future__ import annotations

import time
from typing import Final, Literal

__all__ = ["KnownEntries"]

_MAX_YOUNG: Final = 8192


class KnownEntries:
    """
    Remembers the last 8,192 to 16,384 entries that this process has stored or read, by a hash of their key.

    Threads share it: a step is one operation of a dict. What two threads do at once may be forgotten.
    """

    __slots__ = ("_old", "_young")

    def __init__(self) -> None:
        # Two generations: the older one is dropped as a whole, which costs nothing while they are used.
        self._young: dict[int, int | None] = {}
        self._old: dict[int, int | None] = {}

    def note(self, entry_key: str, expires_at_ns: int | None) -> None:
        """Remember that the entry is in a store, until when."""
        young = self._young
        young[hash(entry_key)] = expires_at_ns
        if len(young) >= _MAX_YOUNG:
            self._old, self._young = young, {}

    def take(self, entry_key: str) -> Literal["cold", "evicted", "expired"]:
        """Return why an entry that is in no store is not there, and forget it."""
        known = hash(entry_key)
        old = self._old.pop(known, 0)
        expires_at_ns = self._young.pop(known, old)
        if expires_at_ns == 0:
            return "cold"
        if expires_at_ns is not None and expires_at_ns <= time.time_ns():
            return "expired"
        return "evicted"
