"""The rows that each example begins with: made once, and put back by a connection of which live_cache knows nothing."""

from __future__ import annotations

import random
from typing import Any, Final

from django.core.management.color import no_style
from django.db import connections, models

from tests.precision.querysets import MODELS, value_for
from tests.raw_connection import RawConnection
from tests.testapp import models as shop

__all__ = ["TABLES", "Ground"]

# Children before their parents.
TABLES: Final[tuple[type[models.Model], ...]] = (
    shop.PartFit, shop.Part, shop.Seat, shop.Currency, shop.Shelf, shop.BookPlace, shop.Library,
    shop.Book.tags.through, shop.Ebook, shop.Book, shop.Profile, shop.Tag, shop.Author, shop.Country, shop.Category,
)  # fmt: skip
_SELF: Final = (("testapp_category", "parent_id"), ("testapp_part", "whole_id"), ("testapp_part", "spare_id"),
                ("testapp_currency", "pegged_to_id"))  # fmt: skip


def fill(model: Any, rng: random.Random, **given: Any) -> Any:
    """Return an instance of *model* with random values, and *given* ones."""
    values = {
        column.name: value_for(rng, column)
        for column in model._meta.concrete_fields
        if not column.is_relation and not column.primary_key and column.name not in given
    }
    return model(**values, **given)


class Ground:
    """The rows of one database."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self._raw = RawConnection(alias)
        self._empty()
        self._seed()
        self._raw.run(*[f"DROP TABLE IF EXISTS precise_{_name(model)}" for model in TABLES])
        self._raw.run(*[f"CREATE TABLE precise_{_name(model)} AS SELECT * FROM {_name(model)}" for model in TABLES])

    def _seed(self) -> None:
        rng = random.Random(5)
        alias = self.alias

        def make(model: Any, **given: Any) -> Any:
            row = fill(model, rng, **given)
            row.save(using=alias, force_insert=True)
            return row

        countries = [make(shop.Country, code=code) for code in ("GB", "DE")]
        authors = [make(shop.Author, pk=n, country=[*countries, None][n % 3]) for n in range(1, 5)]
        categories: list[Any] = []
        for n in range(1, 4):
            categories.append(make(shop.Category, pk=n, slug="abc"[n - 1], parent=categories[0] if n > 1 else None))
        tags = [make(shop.Tag, pk=n) for n in range(1, 4)]
        books = [make(shop.Book, pk=n, author=authors[n % 3], category=[*categories, None][n % 4]) for n in range(1, 8)]
        books += [make(shop.Ebook, pk=n, author=authors[n % 2], category=None) for n in (8, 9)]
        for n, book in enumerate(books):
            book.tags.set(tags[: n % 3])
        make(shop.Profile, pk=1, author=authors[0])
        make(shop.Profile, pk=2, author=authors[1])
        libraries = [make(shop.Library, pk=n) for n in (1, 2)]
        for n in range(1, 5):
            make(shop.BookPlace, pk=n, library=libraries[n % 2], book=books[n % 3])
            make(shop.Shelf, pk=n, book=books[n])
        for n, symbol in enumerate("abc", 1):
            make(shop.Currency, pk=n, symbol=symbol, country=countries[n % 2], pegged_to_id="a" if n > 1 else None)
        for n in range(1, 4):
            make(shop.Seat, hall="aab"[n - 1], number=n)
        parts: list[Any] = []
        for n in range(1, 9):
            parts.append(
                make(
                    shop.Part,
                    pk=n,
                    whole=parts[0] if n > 4 else None,
                    spare=parts[n - 2] if n in (3, 5) else None,
                    book=books[n % 4] if n % 3 else None,
                )
            )
        for n in range(1, 5):
            make(shop.PartFit, pk=n, part=parts[n], book=books[n % 2])
        for sql in connections[alias].ops.sequence_reset_sql(no_style(), list(TABLES)):
            with connections[alias].cursor() as cursor:
                cursor.execute(sql)

    def restore(self) -> None:
        """Put every row back, and remove all others. Nothing may be cached."""
        quote = connections[self.alias].ops.quote_name
        statements = ["BEGIN", *self._emptying()]
        for model in reversed(TABLES):
            fields = model._meta.local_concrete_fields
            columns = ", ".join(quote(str(column.column)) for column in fields)
            statements.append(
                f"INSERT INTO {_name(model)} ({columns}) SELECT {columns} FROM precise_{_name(model)}"
                f" ORDER BY {quote(str(fields[0].column))}"
            )
        self._raw.run(*statements, "COMMIT")

    def _emptying(self) -> list[str]:
        return [f"UPDATE {table} SET {column} = NULL" for table, column in _SELF] + [
            f"DELETE FROM {_name(model)}" for model in TABLES
        ]

    def _empty(self) -> None:
        self._raw.run(*self._emptying())

    def close(self) -> None:
        """Drop the copies."""
        self._raw.run(*[f"DROP TABLE precise_{_name(model)}" for model in TABLES])
        self._raw.close()


def _name(model: Any) -> str:
    return str(model._meta.db_table)


assert set(MODELS) <= set(TABLES), "every model that is asked for is put back"
