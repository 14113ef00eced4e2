"""Every model of the benchmarks: those whose versions are checked, and those of each workload."""

from __future__ import annotations

from benchmarks.project.models.items import Item, Maker, Mark
from benchmarks.project.models.shop import Brand, Category, Product

__all__ = ["Brand", "Category", "Item", "Maker", "Mark", "Product"]
