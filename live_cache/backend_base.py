"""What the synchronous and the asynchronous half of the cache backend share: keys, timeouts, values, counting."""

from __future__ import annotations

import hashlib
import logging
from typing import Any, Final

from django.core.cache.backends.base import DEFAULT_TIMEOUT, BaseCache

from live_cache.assembly import Assembly, matching_assembly
from live_cache.exceptions import FrameError, StoreError, StoreUnsupportedError
from live_cache.plain_values import PlainValues
from live_cache.stores.base import MAX_KEY_BYTES, MISS

__all__ = ["MAX_SWAPS", "PLAIN", "BackendBase"]

logger = logging.getLogger("live_cache.backend")

PLAIN: Final = "plain/"
"""What the store's keys of plain values start with."""
MAX_SWAPS: Final = 1000
"""Attempts of a change that no store does by itself. Each lost one means that another writer got through."""
_KEY_DIGEST_BYTES: Final = 20


class BackendBase(BaseCache):
    """The parts of the backend that call no store."""

    def __init__(self, location: Any, params: dict[str, Any]) -> None:
        super().__init__(params)
        self.assembly: Assembly = matching_assembly(location, params)
        # Django cuts fractions off, and takes any TIMEOUT that it cannot read for 300 seconds.
        timeout_s = self.assembly.timeout_s
        self.default_timeout = int(timeout_s) if timeout_s is not None and timeout_s.is_integer() else timeout_s
        self._store = self.assembly.plain_store
        is_kept = self._store.name != "null"
        self.values = PlainValues(self.assembly.mac_keys, self.assembly.pickle, is_kept=is_kept)
        self._is_culling = self.assembly.cull_frequency is not None

    def _store_key(self, key: Any, version: int | None) -> str:
        made = self.make_and_validate_key(key, version=version)
        if len(made) * 4 + len(PLAIN) <= MAX_KEY_BYTES:
            return PLAIN + made
        return PLAIN + _shortened(made, MAX_KEY_BYTES - len(PLAIN))

    def _prefixes(self, prefix: str, version: int | None) -> tuple[str, str, str]:
        """Return what to scan for, what of it starts with the caller's *prefix*, and what stands before his key."""
        probe = "key"
        made = self.make_key(probe, version=version)
        if not made.endswith(probe):
            raise StoreUnsupportedError(
                f"KEY_FUNCTION makes {made!r} of {probe!r}, so keys cannot be told by their prefix. "
                f"Use a KEY_FUNCTION that puts the key last."
            )
        head = PLAIN + made[: -len(probe)]
        # A store takes whole segments only.
        wanted = head + prefix
        return wanted[: wanted.rfind("/") + 1], wanted, head

    def _timeout_s(self, timeout: Any, timeout_ns: int | None = None) -> float | None:
        if timeout_ns is not None:
            if timeout is not DEFAULT_TIMEOUT:
                raise TypeError("Give timeout or timeout_ns, not both.")
            return timeout_ns / 1e9
        return self.default_timeout if timeout is DEFAULT_TIMEOUT else timeout

    def _decode_or_note(self, store_key: str, data: bytes) -> Any:
        try:
            return self.values.decode(store_key, data)
        except FrameError as error:
            self.assembly.metrics.count("corrupt")
            logger.warning("The value under %r is dropped: %s", store_key, error)
            return MISS

    def _to_cull(self, keys: list[str]) -> list[str]:
        """Return those of *keys*, of a full store, that go: one in CULL_FREQUENCY, the first ones; with 0 all."""
        frequency = self.assembly.cull_frequency
        return keys[: len(keys) // frequency] if frequency else keys

    def _count_lookups(self, lookups: int, *, hits: int) -> None:
        metrics = self.assembly.metrics
        metrics.count("plain_lookups", lookups)
        if hits:
            metrics.count("plain_hits", int(hits))
        if lookups - hits:
            metrics.count("plain_misses", lookups - hits)

    def _note_failure(self, operation: str) -> None:
        self.assembly.metrics.count("store_errors")
        logger.warning("The store %r failed at %s().", self._store.name, operation, exc_info=True)

    def _too_many_swaps(self, key: Any) -> StoreError:
        return StoreError(f"The key {key!r} was changed by others each time while it was to be changed.")


def _shortened(key: str, limit: int) -> str:
    encoded = key.encode("utf-8", "surrogatepass")
    if len(encoded) <= limit:
        return key
    # Django's own backends take keys of any length. The digest keeps two long keys apart.
    digest = hashlib.blake2b(encoded, digest_size=_KEY_DIGEST_BYTES).hexdigest()
    return encoded[: limit - len(digest) - 1].decode("utf-8", "ignore") + "#" + digest
