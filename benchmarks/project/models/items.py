"""
The rows that are read and written: each carries a version that grows by one with each committed write.

``shelf`` is always ``version % answers.SHELVES``, so that a write moves its row from one filtered result to another.
"""

from __future__ import annotations

from typing import ClassVar

from django.db import models

__all__ = ["Item", "Maker", "Mark"]


class Maker(models.Model):
    """Joined to its items."""

    objects: ClassVar[models.Manager[Maker]] = models.Manager()

    version = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"maker {self.pk} of version {self.version}"


class Item(models.Model):
    """A row. Its group and its maker never change."""

    objects: ClassVar[models.Manager[Item]] = models.Manager()

    maker = models.ForeignKey(Maker, on_delete=models.CASCADE)
    group = models.PositiveSmallIntegerField()
    shelf = models.PositiveSmallIntegerField(default=0, db_index=True)
    version = models.PositiveIntegerField(default=0)

    def __str__(self) -> str:
        return f"item {self.pk} of version {self.version}"


class Mark(models.Model):
    """The last operation that a writer has committed, one row per writer: tells after a kill what became of it."""

    objects: ClassVar[models.Manager[Mark]] = models.Manager()

    operation = models.BigIntegerField(default=0)

    def __str__(self) -> str:
        return f"operation {self.operation} of writer {self.pk}"
