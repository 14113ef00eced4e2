"""Random writes, by every way that Django has: each changes few rows, by few values, or nothing at all."""

from __future__ import annotations

from typing import Any, Final

from django.db import connections, transaction
from django.db.models import F
from django.db.models.functions import Lower

from tests.precision.ground import fill
from tests.precision.querysets import Dice, Draw, kind_of, value_for
from tests.testapp.models import Book, Country, Currency, Ebook, Part, Seat

__all__ = ["draw_write"]

_NUMBERS: Final = ("integer", "decimal", "float")


class _RollBack(Exception):
    """Leaves an atomic block."""


class Write:
    """One write: drawn when it is run, since it depends on the rows that are there."""

    def __init__(self, rng: Dice, alias: str) -> None:
        self.rng = rng
        self.alias = alias
        self.draw = Draw(rng, alias)
        self.notes: list[str] = []

    def run(self, *, depth: int = 2) -> None:
        """Write something, perhaps in a transaction with more."""
        rng = self.rng
        if depth and rng.random() < (0.35 if rng.is_linked else 0.2):  # a row and those that it is linked to
            self._in_block(depth)
            return
        model = rng.model()
        name = rng.choice(_KINDS)
        self.notes.append(f"{name} {model.__name__}")
        getattr(self, f"_{name}")(model)

    def _in_block(self, depth: int) -> None:
        rng = self.rng
        self.notes.append("atomic")
        try:
            with transaction.atomic(using=self.alias):
                for _ in range(rng.choice((1, 2, 2, 3))):
                    self.run(depth=depth - 1)
                if rng.random() < 0.25:
                    self.notes.append("rollback")
                    raise _RollBack
        except _RollBack:
            pass
        self.notes.append("end")

    # -- choices ------------------------------------------------------------------------------------------------------

    def _all(self, model: Any) -> Any:
        return model._base_manager.using(self.alias)

    def _row(self, model: Any) -> Any:
        rows = list(self._all(model).order_by("pk")[:12])
        return self.rng.choice(rows) if rows else None

    def _value(self, column: Any) -> Any:
        if column.is_relation:
            if column.null and self.rng.random() < 0.25:
                return None
            row = self._row(column.related_model)
            return None if row is None else getattr(row, column.target_field.attname)
        return value_for(self.rng, column)

    def _free(self, model: Any) -> list[Any]:
        """Return the columns of the table that may be set."""
        keys = model._meta.pk_fields
        return [
            column
            for column in model._meta.concrete_fields
            if column not in keys and not column.primary_key and column.name != "isbn"
        ]

    def _some(self, model: Any) -> list[Any]:
        free = self._free(model)
        return self.rng.sample(free, min(len(free), self.rng.choice((1, 1, 1, 2, 3))))

    def _new(self, model: Any) -> Any:
        given: dict[str, Any] = {}
        for column in model._meta.concrete_fields:
            if column.is_relation and not column.primary_key:
                given[column.attname] = self._value(column)
        if model is Country:
            given["code"] = self.rng.choice(("GB", "DE", "FR"))
        if model is Seat:
            given["hall"] = self.rng.choice("abc")
        if model is Ebook:
            given.pop("book_ptr_id", None)
        given = {name: value for name, value in given.items() if value is not None}
        if model not in (Country, Seat, Ebook) and self.rng.random() < 0.15:
            given[model._meta.pk.name] = self.rng.randint(1, 12)
        return fill(model, self.rng, **given)

    def _found(self, model: Any) -> Any:
        """Return some rows as a queryset."""
        rng = self.rng
        chance = rng.random()
        if chance < 0.4:
            row = self._row(model)
            return self._all(model).filter(pk=row.pk if row is not None else 1)
        if chance < 0.9:
            return self._all(model).filter(self.draw.lookup(model))
        return self._all(model).all()

    # -- writes -------------------------------------------------------------------------------------------------------

    def _save(self, model: Any) -> None:
        row = self._row(model)
        if row is None:
            return
        columns = self._some(model)
        for column in columns:
            setattr(row, column.attname, self._value(column))
        if self.rng.random() < 0.5:
            row.save(using=self.alias, update_fields=[column.name for column in columns])
        else:
            row.save(using=self.alias)

    def _save_nothing(self, model: Any) -> None:
        row = self._row(model)
        if row is not None:
            row.save(using=self.alias)

    def _save_expression(self, model: Any) -> None:
        row = self._row(model)
        numbers = [column for column in self._free(model) if kind_of(column) in _NUMBERS]
        if row is not None and numbers:
            column = self.rng.choice(numbers)
            setattr(row, column.attname, F(column.name) + 1)
            row.save(using=self.alias)

    def _save_by_key(self, model: Any) -> None:
        row = self._row(model)
        if row is None or model in (Ebook, Seat):
            return
        new = self._new(model)
        new.pk = row.pk
        new.save(using=self.alias)

    def _save_deferred(self, model: Any) -> None:
        row = self._row(model)
        if row is None:
            return
        column = self.rng.choice(self._free(model))
        row = self._all(model).only(column.name).get(pk=row.pk)
        setattr(row, column.attname, self._value(column))
        row.save(using=self.alias)

    def _update(self, model: Any) -> None:
        values = {column.name if not column.is_relation else column.attname: self._value(column)
                  for column in self._some(model)}  # fmt: skip
        self._found(model).update(**values)

    def _update_expression(self, model: Any) -> None:
        free = self._free(model)
        numbers = [column.name for column in free if kind_of(column) in _NUMBERS]
        texts = [column.name for column in free if kind_of(column) == "text"]
        if numbers and (not texts or self.rng.random() < 0.7):
            name = self.rng.choice(numbers)
            change: Any = self.rng.choice((F(name) + 1, F(name) - 1, F(name) * 1, F(self.rng.choice(numbers)) + 0))
            self._found(model).update(**{name: change})
        elif texts:
            name = self.rng.choice(texts)
            self._found(model).update(**{name: Lower(name)})

    def _create(self, model: Any) -> None:
        self._new(model).save(using=self.alias, force_insert=True)

    def _bulk_create(self, model: Any) -> None:
        if model is Ebook:
            model = Book
        rows = [self._new(model) for _ in range(self.rng.choice((1, 2, 3)))]
        options: dict[str, Any] = {}
        if self.rng.random() < 0.2 and model not in (Seat,):
            options["ignore_conflicts"] = True
        elif self.rng.random() < 0.2 and model not in (Seat, Country):
            options = {"update_conflicts": True, "update_fields": [self._free(model)[0].name]}
            if connections[self.alias].features.supports_update_conflicts_with_target:
                options["unique_fields"] = [model._meta.pk.name]
        self._all(model).bulk_create(rows, **options)

    def _bulk_update(self, model: Any) -> None:
        rows = list(self._found(model)[:4])
        columns = self._some(model)
        for row in rows:
            for column in columns:
                setattr(row, column.attname, self._value(column))
        if rows:
            self._all(model).bulk_update(rows, [column.name for column in columns])

    def _delete(self, model: Any) -> None:
        row = self._row(model)
        if row is not None:
            row.delete(using=self.alias)

    def _delete_many(self, model: Any) -> None:
        if self.rng.random() < 0.5:
            self._found(model).delete()

    def _renew(self, model: Any) -> None:
        """Delete a row and make one with its key, in one transaction; nobody else is asked."""
        row = self._row(model)
        if row is None or model in (Ebook, Seat):
            return
        with transaction.atomic(using=self.alias):
            self._all(model).filter(pk=row.pk)._raw_delete(self.alias)
            new = self._new(model)
            new.pk = row.pk
            if model is Currency:
                new.symbol = row.symbol
            new.save(using=self.alias, force_insert=True)

    def _many_to_many(self, model: Any) -> None:
        rng = self.rng
        owner, name = rng.choice(((Book, "tags"), (Part, "fits")))
        row = self._row(owner)
        if row is None:
            return
        manager = getattr(row, name)
        others = [other for other in (self._row(manager.model), self._row(manager.model)) if other is not None]
        form = rng.choice(("add", "remove", "set", "clear", "reverse"))
        if form == "clear":
            manager.clear()
        elif form == "set":
            manager.set(others)
        elif form == "reverse" and others:
            getattr(others[0], "books" if owner is Book else "fitting").add(row)
        elif others:
            getattr(manager, "add" if form == "reverse" else form)(*others)

    def _move(self, model: Any) -> None:
        row = self._row(model)
        relations = [column for column in self._free(model) if column.is_relation]
        if row is not None and relations:
            column = self.rng.choice(relations)
            setattr(row, column.attname, self._value(column))
            row.save(using=self.alias, update_fields=[column.name])

    def _related(self, model: Any) -> None:
        """Write by the managers of a row."""
        row = self._row(self.rng.choice((Book, Part)))
        if row is not None:
            manager = row.parts
            manager.set([part for part in (self._row(Part),) if part is not None and part.pk != row.pk])

    def _get_or_create(self, model: Any) -> None:
        column = self.rng.choice([c for c in self._free(Part) if kind_of(c) in ("text", "integer")])
        value = value_for(self.rng, column)
        if self.rng.random() < 0.5:
            self._all(Part).get_or_create(**{column.name: value})
        else:
            self._all(Part).update_or_create(defaults={"amount": self.rng.randrange(4)}, **{column.name: value})

    def _raw(self, model: Any) -> None:
        rng = self.rng
        quote = connections[self.alias].ops.quote_name
        table = quote(model._meta.db_table)
        own = [c for c in model._meta.local_concrete_fields if kind_of(c) in ("text", "integer") and not c.primary_key]
        if not own:
            return
        column, other = rng.choice(own), rng.choice(own)
        condition = f"{quote(other.column)} = %s" if rng.random() < 0.7 else f"{quote(other.column)} IS NULL OR 1 = %s"
        value = 1 if "OR" in condition else value_for(rng, other)
        with connections[self.alias].cursor() as cursor:
            if rng.random() < 0.8:
                cursor.execute(
                    f"UPDATE {table} SET {quote(column.column)} = %s WHERE {condition}", [value_for(rng, column), value]
                )
            else:
                cursor.execute(f"DELETE FROM {table} WHERE {condition}", [value])


_KINDS: Final = (
    "save", "save", "save", "save", "save_nothing", "save_expression", "save_by_key", "save_deferred", "update",
    "update", "update", "update_expression", "update_expression", "create", "create", "bulk_create", "bulk_update",
    "delete", "delete_many", "renew", "many_to_many", "many_to_many", "move", "move", "related", "get_or_create", "raw",
)  # fmt: skip


def draw_write(rng: Dice, alias: str) -> Write:
    """Draw a write; its run() raises what Django or the database refuses."""
    return Write(rng, alias)
