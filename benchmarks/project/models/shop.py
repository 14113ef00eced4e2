"""The tables of the shop: products in categories, of brands."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

__all__ = ["Brand", "Category", "Product"]


class Category(models.Model):
    """What a page of products is about."""

    objects: ClassVar[models.Manager[Category]] = models.Manager()

    name = models.CharField(max_length=60)

    def __str__(self) -> str:
        return self.name


class Brand(models.Model):
    """Joined to its products, and filtered by its country."""

    objects: ClassVar[models.Manager[Brand]] = models.Manager()

    name = models.CharField(max_length=60)
    country = models.CharField(max_length=2, db_index=True)
    rating = models.PositiveSmallIntegerField(default=0)

    def __str__(self) -> str:
        return self.name


class Product(models.Model):
    """A product: its price and its stock change, its counters change most."""

    objects: ClassVar[models.Manager[Product]] = models.Manager()

    category = models.ForeignKey(Category, on_delete=models.CASCADE)
    brand = models.ForeignKey(Brand, on_delete=models.CASCADE)
    name = models.CharField(max_length=80)
    description = models.TextField(default="")
    price = models.DecimalField(max_digits=8, decimal_places=2, db_index=True)
    stock = models.IntegerField(default=0)
    sold = models.PositiveIntegerField(default=0)
    views = models.PositiveIntegerField(default=0)
    is_active = models.BooleanField(default=True)
    created = models.DateTimeField()

    def __str__(self) -> str:
        return self.name
