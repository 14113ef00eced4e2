"""Every model of the benchmarks: those whose versions are checked, those of each workload, and two to save."""

from __future__ import annotations

from benchmarks.project.models.articles import Article, Draft
from benchmarks.project.models.backoffice import Agent, Customer, LogEntry, Order, OrderLine
from benchmarks.project.models.forum import Board, Member, Post, ReadMark, Tag, Thread
from benchmarks.project.models.items import Item, Maker, Mark
from benchmarks.project.models.shop import Brand, Category, Product

__all__ = [
    "Agent",
    "Article",
    "Board",
    "Brand",
    "Category",
    "Customer",
    "Draft",
    "Item",
    "LogEntry",
    "Maker",
    "Mark",
    "Member",
    "Order",
    "OrderLine",
    "Post",
    "Product",
    "ReadMark",
    "Tag",
    "Thread",
]
