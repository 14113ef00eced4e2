"""Whether this run takes its time: LIVE_CACHE_DEEP=1 runs the long forms of loops, crashes and fuzzing."""

from __future__ import annotations

import os
from typing import Final, TypeVar

__all__ = ["IS_DEEP", "deep"]

T = TypeVar("T")

IS_DEEP: Final = os.environ.get("LIVE_CACHE_DEEP", "") not in ("", "0")


def deep(short: T, long: T) -> T:
    """Return *long* in a deep run, else *short*."""
    return long if IS_DEEP else short
