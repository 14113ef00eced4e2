"""Two tables of the same columns: one that cached queries look at, and one that none does."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

__all__ = ["Article", "Draft"]


class _Text(models.Model):
    author_number = models.PositiveIntegerField(db_index=True)
    title = models.CharField(max_length=100)
    summary = models.CharField(max_length=200, default="")
    body = models.TextField(default="")
    language = models.CharField(max_length=5, default="en")
    price = models.DecimalField(max_digits=8, decimal_places=2)
    words = models.PositiveIntegerField(default=0)
    views = models.PositiveIntegerField(default=0)
    is_public = models.BooleanField(default=True)
    created = models.DateTimeField(db_index=True)
    changed = models.DateTimeField(null=True)

    class Meta:
        abstract = True

    def __str__(self) -> str:
        return self.title


class Article(_Text):
    """Watched: cached queries show it."""

    objects: ClassVar[models.Manager[Article]] = models.Manager()


class Draft(_Text):
    """Unwatched: nothing of it is cached."""

    objects: ClassVar[models.Manager[Draft]] = models.Manager()
