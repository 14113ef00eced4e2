"""
What a tiered store remembers besides its tiers: what a tier failed to drop, what is being written, what to promote.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final, Literal, TypeAlias

from live_cache.exceptions import ConfigurationError
from live_cache.stores.base import StoredValue, has_prefix

__all__ = ["Claims", "Debts", "KeyVersions", "Promotion", "promotion_policy"]

Promotion: TypeAlias = Literal["always", "never"] | int | Callable[[str, StoredValue], bool]

_MAX_OWED_KEYS: Final = 10_000
_MAX_OWED_PREFIXES: Final = 100
_STRIPES: Final = 256


def promotion_policy(promote: Promotion) -> Callable[[str, StoredValue], bool]:
    """
    Return the function that says whether a value found in a farther tier is copied to the nearer ones.

    Raises:
        ConfigurationError: *promote* is neither "always", "never", a number from 1 on, nor callable.
    """
    if promote == "always":
        return lambda key, stored: True
    if promote == "never":
        return lambda key, stored: False
    if isinstance(promote, int) and not isinstance(promote, bool) and promote >= 1:
        turns = itertools.count()
        return lambda key, stored: next(turns) % promote == 0
    if callable(promote):
        return promote
    raise ConfigurationError(
        f"Promotion is {promote!r}. It is 'always', 'never', a number N from 1 on (one hit in N), or a function of key "
        "and StoredValue."
    )


class Debts:
    """
    What one tier was told to drop, or to replace, while it did not answer. It must not serve that until it has.

    Known to this process alone. Safe between threads.
    """

    def __init__(self) -> None:
        self._keys: dict[str, int] = {}
        self._number = 0
        # A prefix and a token of the moment it was noted: a drop that began earlier does not settle it.
        self._prefixes: tuple[tuple[str, object], ...] = ()
        self._lock = threading.RLock()

    def replace_lock(self) -> None:
        """Start with a lock that nobody holds, after a fork."""
        self._lock = threading.RLock()

    @property
    def number(self) -> int:
        """The number of the latest debt."""
        return self._number

    def has_keys(self) -> bool:
        """Return whether single keys are owed."""
        return bool(self._keys)

    def some_keys(self, limit: int) -> list[str]:
        """Return up to *limit* of the single keys that are owed."""
        with self._lock:
            return list(itertools.islice(self._keys, limit))

    def covers(self, key: str) -> bool:
        """Return whether what the tier holds under *key* must not be served."""
        if not self._keys and not self._prefixes:
            return False
        return key in self._keys or any(has_prefix(key, prefix) for prefix, _ in self._prefixes)

    def add_keys(self, keys: Iterable[str]) -> int:
        """Note that what is under *keys* is not to be served. Return the number of this debt."""
        with self._lock:
            self._number += 1
            self._keys.update(dict.fromkeys(keys, self._number))
            if len(self._keys) > _MAX_OWED_KEYS:
                self.add_prefix("")
                self._keys.clear()
            return self._number

    def add_prefix(self, prefix: str) -> None:
        """Note that nothing under *prefix* is to be served."""
        with self._lock:
            others = tuple(owed for owed in self._prefixes if owed[0] != prefix)
            if len(others) >= _MAX_OWED_PREFIXES:
                others, prefix = (), ""
            self._prefixes = (*others, (prefix, object()))

    def prefixes(self) -> tuple[tuple[str, object], ...]:
        """Return the owed prefixes, as forget_prefixes() takes them."""
        return self._prefixes

    def forget_keys(self, keys: Iterable[str], *, until: int | None = None) -> None:
        """
        Note that the tier dropped or replaced what was under *keys*.

        Args:
            until: Number of the latest debt that this settles: what was noted later stays. None: every one.
        """
        if self._keys:
            with self._lock:
                for key in keys:
                    if until is None or self._keys.get(key, 0) <= until:
                        self._keys.pop(key, None)

    def forget_prefixes(self, settled: Collection[tuple[str, object]]) -> None:
        """Note that the tier dropped what was under the prefixes *settled*, of an earlier prefixes()."""
        if settled:
            with self._lock:
                self._prefixes = tuple(owed for owed in self._prefixes if owed not in settled)


class Claims:
    """Keys that are in the hands of one call, which nobody waits for. Safe between threads."""

    def __init__(self) -> None:
        self._keys: set[str] = set()
        self._lock = threading.Lock()

    def start_again(self) -> None:
        """Hold nothing, after a fork: the calls are the parent's."""
        self._keys, self._lock = set(), threading.Lock()

    def take(self, keys: Collection[str]) -> bool:
        """Take all of *keys*, or none if one is taken. Return whether they were taken."""
        with self._lock:
            if not self._keys.isdisjoint(keys):
                return False
            self._keys.update(keys)
            return True

    def give_back(self, keys: Collection[str]) -> None:
        """Let others have *keys*."""
        with self._lock:
            self._keys.difference_update(keys)


class KeyVersions:
    """
    Keeps a promotion from overwriting what was written after the promoted value had been read.

    A writer holds the locks of its keys until every tier has the new value, then raises their versions. A reader
    notes the version before it looks at any tier, and promotes under the lock only if the version is still the same.
    So a copy that is too late is given up, and one that is not is overwritten by the writer.
    """

    def __init__(self) -> None:
        self._locks = [threading.RLock() for _ in range(_STRIPES)]
        self._versions = [0] * _STRIPES

    def note(self, key: str) -> int:
        """Return the version of *key* now."""
        return self._versions[hash(key) % _STRIPES]

    @contextmanager
    def writing(self, keys: Iterable[str]) -> Iterator[None]:
        """Hold *keys* against other writers and promoters, and raise their versions at the end."""
        stripes = sorted({hash(key) % _STRIPES for key in keys})  # In order, so that two writers never wait crosswise.
        with ExitStack() as held:
            for stripe in stripes:
                held.enter_context(self._locks[stripe])
            try:
                yield
            finally:
                for stripe in stripes:
                    self._versions[stripe] += 1

    @contextmanager
    def promoting(self, key: str, noted: int | None) -> Iterator[bool]:
        """Yield whether *key* may be copied: nobody is writing it, nor did since *noted* (None: does not matter)."""
        stripe = hash(key) % _STRIPES
        # A reader never waits for a writer: it does without the copy.
        if not self._locks[stripe].acquire(blocking=False):
            yield False
            return
        try:
            yield noted is None or self._versions[stripe] == noted
        finally:
            self._locks[stripe].release()

    def raise_all(self) -> None:
        """Raise every version, after waiting for the writers and promoters of this moment."""
        for stripe in range(_STRIPES):
            with self._locks[stripe]:
                self._versions[stripe] += 1
