"""The tables of the back office: orders of customers, worked on by agents, and a log of who changed what."""

from __future__ import annotations

from typing import ClassVar

from django.db import models

__all__ = ["Agent", "Customer", "LogEntry", "Order", "OrderLine"]


class Agent(models.Model):
    """Somebody of the staff."""

    objects: ClassVar[models.Manager[Agent]] = models.Manager()

    name = models.CharField(max_length=40)
    team = models.CharField(max_length=10)
    is_active = models.BooleanField(default=True)

    def __str__(self) -> str:
        return self.name


class Customer(models.Model):
    """Somebody who orders."""

    objects: ClassVar[models.Manager[Customer]] = models.Manager()

    name = models.CharField(max_length=60)
    email = models.EmailField()
    city = models.CharField(max_length=30)
    segment = models.CharField(max_length=10)
    is_active = models.BooleanField(default=True)
    note = models.TextField(default="")

    def __str__(self) -> str:
        return self.name


class Order(models.Model):
    """What the staff works on, and lists by many filters."""

    objects: ClassVar[models.Manager[Order]] = models.Manager()

    reference = models.CharField(max_length=20)
    customer = models.ForeignKey(Customer, on_delete=models.CASCADE)
    agent = models.ForeignKey(Agent, null=True, on_delete=models.SET_NULL)
    status = models.CharField(max_length=10, db_index=True)
    priority = models.PositiveSmallIntegerField(default=2)
    total = models.DecimalField(max_digits=10, decimal_places=2)
    created = models.DateTimeField(db_index=True)
    due = models.DateField()
    paid_at = models.DateTimeField(null=True)
    note = models.TextField(default="")

    def __str__(self) -> str:
        return self.reference


class OrderLine(models.Model):
    """One line of an order."""

    objects: ClassVar[models.Manager[OrderLine]] = models.Manager()

    order = models.ForeignKey(Order, on_delete=models.CASCADE, related_name="lines")
    sku = models.CharField(max_length=12)
    quantity = models.PositiveSmallIntegerField()
    price = models.DecimalField(max_digits=8, decimal_places=2)

    def __str__(self) -> str:
        return f"{self.quantity} {self.sku}"


class LogEntry(models.Model):
    """One change of an order by an agent."""

    objects: ClassVar[models.Manager[LogEntry]] = models.Manager()

    order = models.ForeignKey(Order, on_delete=models.CASCADE)
    agent = models.ForeignKey(Agent, on_delete=models.CASCADE)
    text = models.CharField(max_length=80)
    at = models.DateTimeField()

    def __str__(self) -> str:
        return self.text
