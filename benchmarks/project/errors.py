"""What a benchmark says when it cannot run."""

from __future__ import annotations

__all__ = ["BenchmarkError"]


class BenchmarkError(Exception):
    """The program cannot run. The message says why."""
