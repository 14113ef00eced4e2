"""The time by which leases run in this process."""

from __future__ import annotations

import time
from typing import Final

__all__ = ["LEASE_CLOCK", "now_s"]

# Counts on while the machine sleeps, where the system has such a clock.
LEASE_CLOCK: Final[int] = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", 0))


def now_s() -> float:
    """Return seconds of a clock that never goes back and counts on while the machine sleeps, where there is one."""
    return time.clock_gettime(LEASE_CLOCK) if hasattr(time, "clock_gettime") else time.monotonic()
