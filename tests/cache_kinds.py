"""The caches that tests of reads and writes run on: each ledger, with and without a tier in memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

__all__ = ["CACHE_KINDS", "caches_of", "wait_for_hits"]

CACHE_KINDS: Final = ("process", "host", "disk", "memory+disk", "redis", "memory+redis")


def caches_of(kind: str, directory: Path, redis_url: str | None) -> dict[str, Any]:
    """Return CACHES with a live cache of this *kind* as ``default``."""
    locations: dict[str, list[str]] = {
        "process": ["memory://?ledger=process"],
        "host": [f"memory://?ledger={directory / 'ledger'}"],
        "disk": [f"disk://{directory / 'cache'}"],
        "memory+disk": ["memory://", f"disk://{directory / 'cache'}"],
        "redis": [str(redis_url)],
        "memory+redis": ["memory://", str(redis_url)],
    }
    # On a busy machine a healthy server may take its time, and a test that restarts one does not wait for a probe.
    options = {"READ_TIMEOUT_S": 1.0, "RETRY_PAUSE_S": 0.001}
    backend = "live_cache.backend.LiveCache"
    return {"default": {"BACKEND": backend, "LOCATION": locations[kind], "TIMEOUT": None, "OPTIONS": options}}


def wait_for_hits(read: Callable[[], object], *, timeout_s: float = 10.0) -> None:
    """Call *read* until all its live reads are hits: the clocks of a new ledger are held for a moment."""
    from live_cache import recording

    end = time.monotonic() + timeout_s
    while True:
        with recording() as reads:
            read()
        if all(record.is_hit for record in reads):
            return
        if time.monotonic() > end:
            raise TimeoutError(f"Still no hits: {[record.reason for record in reads if not record.is_hit]}")
        time.sleep(0.15)  # MariaDB renews its list of transactions only after 0.1 s in which nobody has asked
