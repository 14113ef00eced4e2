"""What the system checks and ``live_cache doctor`` find out about servers and folders. Nothing here is cached."""

from __future__ import annotations

import os
import secrets
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from live_cache.exceptions import LiveCacheError

if TYPE_CHECKING:
    from live_cache.assembly import Assembly
    from live_cache.ledger.base import Ledger
    from live_cache.stores.base import Store

__all__ = ["NETWORK_FILE_SYSTEMS", "file_system_of", "latencies_of"]

NETWORK_FILE_SYSTEMS: Final = frozenset(
    (
        *("9p", "afs", "ceph", "cifs", "davfs", "fuse.glusterfs", "fuse.s3fs", "fuse.sshfs", "gfs2", "glusterfs"),
        *("lustre", "ncpfs", "nfs", "nfs4", "ocfs2", "smb3", "smbfs", "virtiofs"),
    )
)
"""Where SQLite's locks, and memory maps between hosts, do not hold what they promise."""

_ROUNDS: Final = 20


def file_system_of(path: str | Path, *, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the type of the file system that *path* is or would be on; empty where the system does not tell."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return ""
    real = os.path.realpath(path)
    found, longest = "", -1
    for line in lines:
        _, place, kind, *_ = line.split(" ")
        # Spaces in a path are written in octal.
        place = place.replace("\\040", " ").rstrip("/")
        if (real == place or real.startswith(place + "/")) and len(place) >= longest:
            found, longest = kind, len(place)
    return found


def latencies_of(assembly: Assembly) -> list[dict[str, Any]]:
    """
    Write, read and drop a value of our own in each tier, and read the ledger; return medians in microseconds.

    What fails has its error in place of its numbers.
    """
    return [*map(_store_latencies, assembly.tiers), _ledger_latency(assembly.ledger)]


def _store_latencies(store: Store) -> dict[str, Any]:
    key = f"doctor/{secrets.token_hex(8)}"
    value = b"x" * 1000
    report: dict[str, Any] = {"part": store.name, "put_us": None, "get_us": None, "delete_us": None, "error": None}
    try:
        report["put_us"] = _median_us(lambda: store.put(key, value, timeout_s=60))
        report["get_us"] = _median_us(lambda: store.get(key))
        report["delete_us"] = _median_us(lambda: store.delete(key))
    except (LiveCacheError, OSError) as error:
        report["error"] = str(error)
    return report


def _ledger_latency(ledger: Ledger) -> dict[str, Any]:
    report: dict[str, Any] = {
        "part": f"ledger: {ledger.name}",
        "put_us": None,
        "get_us": None,
        "delete_us": None,
        "error": None,
    }
    try:
        report["get_us"] = _median_us(lambda: ledger.expired("~doctor"))
    except (LiveCacheError, OSError) as error:
        report["error"] = str(error)
    return report


def _median_us(call: Callable[[], object]) -> float:
    times_us = []
    for _ in range(_ROUNDS):
        start = time.perf_counter_ns()
        call()
        times_us.append((time.perf_counter_ns() - start) / 1000)
    return round(statistics.median(times_us), 1)
