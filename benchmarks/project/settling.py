"""Waits until the clocks of this package hold nothing back."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from benchmarks.project.errors import BenchmarkError

if TYPE_CHECKING:
    from django.db.models import Model

__all__ = ["settle"]

_AT_MOST_S: Final = 20.0


def settle(models: Iterable[type[Model]]) -> None:
    """Wait until each of *models* has given a hit: a clock that was just made holds its table back for a lease."""
    from live_cache import live, recording

    end_s = time.monotonic() + _AT_MOST_S
    for model in models:
        while True:
            with recording() as records:
                list(live(model._default_manager.filter(pk=0)))
            if records[0].is_hit:
                break
            if time.monotonic() > end_s:
                raise BenchmarkError(f"No read of {model.__name__} becomes a hit: {records[0].reason}.")
            time.sleep(0.02)
