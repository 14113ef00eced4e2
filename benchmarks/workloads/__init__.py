"""What benchmarks.efficiency makes an application do: reads and writes of three kinds of sites."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from benchmarks.workloads.base import Workload

__all__ = ["workload"]

_CLASSES: Final = {"shop": "Shop", "forum": "Forum", "backoffice": "BackOffice"}


def workload(name: str) -> type[Workload]:
    """Return the workload of that name. It has models, so Django must be set up."""
    found: type[Workload] = getattr(import_module(f"benchmarks.workloads.{name}"), _CLASSES[name])
    return found
