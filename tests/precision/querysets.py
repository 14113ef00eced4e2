"""Random querysets: of any model, by any lookup and relation, in any form. Drawn from a seeded generator."""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from django.core.exceptions import MultipleObjectsReturned, ObjectDoesNotExist
from django.db import connections, models
from django.db.models import (
    Avg,
    Case,
    Count,
    Exists,
    F,
    FilteredRelation,
    Max,
    Min,
    OuterRef,
    Q,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.functions import Coalesce, Lower, Rank, TruncYear

from live_cache import live
from tests.machine.queries import frozen
from tests.testapp.models import (
    Author,
    Book,
    BookPlace,
    Category,
    Country,
    Currency,
    Ebook,
    Library,
    Part,
    PartFit,
    Profile,
    Seat,
    Shelf,
    Tag,
)

__all__ = ["MODELS", "Asked", "Dice", "Draw", "draw_queryset", "kind_of", "value_for"]

MODELS: Final[tuple[type[models.Model], ...]] = (
    Book, Author, Part, Category, Tag, Country, Profile, Ebook, Library, BookPlace, Shelf, Currency, Seat, PartFit,
)  # fmt: skip
_WEIGHTS: Final = (8, 4, 6, 2, 2, 1, 1, 2, 1, 2, 2, 2, 1, 1)

# Few values, so that rows and conditions meet, and rows tie.
POOLS: Final[dict[str, tuple[Any, ...]]] = {
    "text": ("a", "A", "b", "ab", "", "b ", "é"),
    "integer": (0, 1, 2, 3),
    "decimal": (Decimal(0), Decimal(1), Decimal("1.50"), Decimal(2)),
    "float": (0.0, 0.5, 1.0, 2.0),
    "boolean": (True, False),
    "date": (datetime.date(2023, 12, 31), datetime.date(2024, 1, 1), datetime.date(2024, 6, 1)),
    "datetime": (
        datetime.datetime(2023, 12, 31, 23, 30, tzinfo=datetime.UTC),
        datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC),
        datetime.datetime(2024, 6, 1, 12, 0, 0, 500, tzinfo=datetime.UTC),
    ),
    "time": (datetime.time(0, 0), datetime.time(12, 30)),
    "duration": (datetime.timedelta(0), datetime.timedelta(hours=1), datetime.timedelta(days=1)),
    "uuid": (UUID(int=1), UUID(int=2)),
    "json": (1, "x", {"k": 1}),
}
_KINDS: Final[tuple[tuple[type, str], ...]] = (
    (models.BooleanField, "boolean"), (models.DateTimeField, "datetime"), (models.DateField, "date"),
    (models.DecimalField, "decimal"), (models.DurationField, "duration"), (models.FloatField, "float"),
    (models.IntegerField, "integer"), (models.JSONField, "json"), (models.TimeField, "time"),
    (models.UUIDField, "uuid"), (models.CharField, "text"), (models.TextField, "text"),
)  # fmt: skip
_ORDERED: Final = ("exact", "in", "gt", "gte", "lt", "lte", "range", "isnull")
_LOOKUPS: Final[dict[str, tuple[str, ...]]] = {
    "text": (
        *_ORDERED, "exact", "in", "iexact", "contains", "icontains", "startswith", "istartswith", "endswith",
        "iendswith",
    ),
    "boolean": ("exact", "exact", "isnull", "in"),
    "uuid": ("exact", "in", "isnull"),
    "json": ("exact", "isnull", "k"),
    "date": (*_ORDERED, "year", "year__gt"),
    "datetime": (*_ORDERED, "year", "date"),
}  # fmt: skip
_NUMBERS: Final = ("integer", "decimal", "float")


class Dice(random.Random):
    """A seeded generator that keeps to a few models, so that what is written is also read."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._weights: tuple[float, ...] = _WEIGHTS
        self._chosen: tuple[Any, ...] = MODELS
        if self.random() < 0.8:
            (first,) = self.choices(MODELS, _WEIGHTS)
            near = [model for _, model in _relations(first, to_one=False)] or [first]
            self._chosen = (first, self.choice(near), self.choice(near))
            self._weights = tuple(10 if model in self._chosen else 0.15 for model in MODELS)
        self.is_linked = self.random() < 0.4
        """Whether most conditions of this example are on joined tables."""

    def model(self) -> Any:
        """Return a model."""
        return self.choices(MODELS, self._weights)[0]

    def relation(self, relations: list[tuple[str, Any]]) -> tuple[str, Any]:
        """Return one of *relations*, each a name and a model."""
        near = [each for each in relations if each[1] in self._chosen]
        return self.choice(near if near and self.random() < 0.8 else relations)


def kind_of(column: Any) -> str:
    """Return which of POOLS has values for a field; empty for a relation."""
    if column.is_relation:
        return ""
    return next(kind for cls, kind in _KINDS if isinstance(column, cls))


def value_for(rng: random.Random, column: Any) -> Any:
    """Return a value for a field that is no relation; NULL is one of them where it may be."""
    if column.null and rng.random() < 0.2:
        return None
    value = rng.choice(POOLS[kind_of(column)])
    return value[: column.max_length] if isinstance(value, str) and column.max_length else value


@dataclass
class Asked:
    """One thing asked of the database, plainly and live."""

    plain: Any
    live: Any
    end: Callable[[Any], Any]
    text: str
    order: str = "list"
    """list: the rows have one order. bag: they have any. ties: rows that sort alike have any, and some are shown."""
    keys: tuple[str, ...] = ()
    """Of ties: what they are sorted by."""
    all_rows: Any = None
    folds_texts: bool = False
    """Whether the database may show any of several texts that it takes for equal."""
    seen: Any = field(default=None, repr=False)

    def expected(self) -> Any:
        """Return what the database says now."""
        found = self._evaluate(self.plain)
        if self.order == "ties":
            return found, self._evaluate(self.all_rows)
        return found

    def found(self) -> Any:
        """Return what the live queryset says now."""
        return self._evaluate(self.live)

    def agrees(self, found: Any, expected: Any) -> bool:
        """Return whether *found*, read live, is what the database might say, too."""
        if self.order != "ties":
            return bool(found == expected)
        shown, everything = expected
        if len(found) != len(shown) or any(row not in everything for row in found):
            return False
        return [self._key(row) for row in found] == [self._key(row) for row in shown]

    def _key(self, row: Any) -> Any:
        return [row[1][name] for name in self.keys]

    def _evaluate(self, queryset: Any) -> Any:
        try:
            found = self.end(queryset.all())
        except (ObjectDoesNotExist, MultipleObjectsReturned) as error:
            return type(error).__name__
        if not isinstance(found, list):
            return _folded(frozen(found)) if self.folds_texts else frozen(found)
        rows = [frozen(row) for row in found]
        if self.folds_texts:
            rows = [_folded(row) for row in rows]
        return sorted(rows, key=repr) if self.order == "bag" else rows


def _repeats_rows(queryset: Any) -> bool:
    """Return whether a row may come more than once, joined to many."""
    joined = [getattr(join, "join_field", None) for join in queryset.query.alias_map.values()]
    return any(field is not None and (field.one_to_many or field.many_to_many) for field in joined)


def _folded(item: Any) -> Any:
    if isinstance(item, str):
        return item.lower().rstrip()
    if isinstance(item, dict):
        return {key: _folded(value) for key, value in item.items()}
    if isinstance(item, list | tuple):
        return type(item)(_folded(value) for value in item)
    return item


# -- paths ------------------------------------------------------------------------------------------------------------


def _relations(model: Any, *, to_one: bool) -> list[tuple[str, Any]]:
    found = []
    for relation in model._meta.get_fields():
        if not relation.is_relation or relation.related_model not in MODELS:
            continue
        is_many = relation.one_to_many or relation.many_to_many
        if is_many and to_one:
            continue
        if relation.auto_created and not relation.concrete and relation.hidden:
            continue
        found.append((relation.name, relation.related_model))
    return found


def _columns(model: Any) -> list[Any]:
    return [column for column in model._meta.concrete_fields if column.name != "isbn"]


class Draw:
    """Draws the parts of one queryset."""

    def __init__(self, rng: Dice, alias: str) -> None:
        self.rng = rng
        self.alias = alias

    def path(self, model: Any, *, depth: int = 2, to_one: bool = False) -> tuple[str, Any]:
        """Return a path to a column, and its field."""
        rng, prefix = self.rng, ""
        while depth and rng.random() < 0.35:
            relations = _relations(model, to_one=to_one)
            if not relations:
                break
            name, model = rng.relation(relations)
            prefix += name + "__"
            depth -= 1
        column = rng.choice(_columns(model))
        return prefix + column.name, column

    def number(self, model: Any, *, depth: int = 1, to_one: bool = False) -> str:
        """Return a path to a number."""
        for _ in range(8):
            path, column = self.path(model, depth=depth, to_one=to_one)
            if kind_of(column) in _NUMBERS:
                return path
        return "pk" if model is not Seat else "number"

    def key(self, model: Any) -> Any:
        """Return a primary key that is likely to be there."""
        if model is Country:
            return self.rng.choice(("GB", "DE"))
        return self.rng.randint(1, 5)

    def lookup(self, model: Any, prefix: str = "") -> Q:
        """Return one condition."""
        rng = self.rng
        if rng.random() < 0.12 and (relations := _relations(model, to_one=False)):
            name, other = rng.relation(relations)
            name = prefix + name
            if rng.random() < 0.6 or other is Seat:
                return Q(**{f"{name}__isnull": rng.random() < 0.6})
            return Q(**{name: rng.choice("abc") if name.endswith("pegged_to") else self.key(other)})
        path, column = self.path(model, depth=0 if prefix else 2)
        path = prefix + path
        if column.is_relation:
            name = rng.choice(("exact", "in", "isnull"))
            if name == "isnull":
                return Q(**{f"{path}__isnull": rng.random() < 0.5})
            target = column.related_model
            if not column.target_field.primary_key:
                values: Any = [rng.choice("abc") for _ in range(2)]
            else:
                values = [self.key(target) for _ in range(2)]
            return Q(**{f"{path}__{name}": values if name == "in" else values[0]})
        kind = kind_of(column)
        if column.primary_key and column.model not in (Country,):
            values = [rng.randint(1, 6) for _ in range(3)]
        elif column.model is Country and column.primary_key:
            values = ["GB", "DE", "FR"]
        else:
            values = list(POOLS[kind])
        name = rng.choice(_LOOKUPS.get(kind, _ORDERED))
        if name == "isnull":
            return Q(**{f"{path}__isnull": rng.random() < 0.5})
        if name in ("in", "range"):
            chosen = rng.choices(values, k=2)
            if name == "range":
                chosen.sort()
            return Q(**{f"{path}__{name}": chosen})
        if name == "k":
            return Q(**{f"{path}__k": 1})
        if name.startswith("year"):
            return Q(**{f"{path}__{name}": 2023 if name == "year__gt" else rng.choice((2023, 2024))})
        if name == "date":
            return Q(**{f"{path}__date": datetime.date(2024, 1, 1)})
        value = rng.choice(values)
        if kind == "integer" and rng.random() < 0.05:
            value = rng.choice((-1, 10**6, -(10**6), 10**12, 10**20))
        if column.name == "kind" and name == "exact":
            value = rng.choice(list(Part.Kind))
        return Q(**{f"{path}__{name}": value})

    def subquery(self, model: Any) -> Any:
        """Return a condition that holds a query."""
        rng = self.rng
        relations = [(name, other) for name, other in _relations(model, to_one=False) if other not in (Country, Seat)]
        if not relations or model in (Country, Seat):
            return self.lookup(model)
        name, other = rng.relation(relations)
        inner = other._base_manager.using(self.alias).filter(self.condition(other, depth=1))
        form = rng.randrange(4)
        if form == 0 and name != "pegged_to":
            return Q(**{f"{name}__in": inner})
        if form == 1 and name != "pegged_to":
            return Q(**{f"{name}__in": inner.values("pk")})
        back = [n for n, m in _relations(other, to_one=False) if m is model]
        if form == 2 and back:
            return Exists(inner.filter(**{rng.choice(back): OuterRef("pk")}))
        same = model._base_manager.using(self.alias).filter(self.lookup(model), pk__lt=OuterRef("pk"))
        return Exists(same)

    def condition(self, model: Any, depth: int = 2) -> Any:
        """Return a condition, perhaps of several parts."""
        rng = self.rng
        chance = rng.random()
        if depth and chance < 0.4:
            left, right = self.condition(model, depth - 1), self.condition(model, depth - 1)
            form = rng.randrange(8)
            if form < 3:
                return Q(left) & Q(right)
            if form < 6:
                return Q(left) | Q(right)
            return ~Q(left) if form == 6 else Q(left) ^ Q(right)
        if depth and chance < 0.5:
            return self.subquery(model)
        if chance < 0.57:
            one, other = self.number(model, to_one=True), self.number(model)
            return Q(**{f"{one}__{rng.choice(('gt', 'lte', 'exact'))}": F(other)})
        return self.lookup(model)

    def linked(self, model: Any) -> Q:
        """Return a condition on the rows of one relation, perhaps beside one on the model's own."""
        rng = self.rng
        name, other = rng.relation(_relations(model, to_one=False))
        far = self.lookup(other, prefix=f"{name}__")
        form = rng.randrange(8)
        if form < 2:
            return far & self.lookup(other, prefix=f"{name}__")
        if form == 2:
            return far & self.lookup(model)
        if form == 3:
            return far | self.lookup(model)
        if form == 4:
            return ~(self.lookup(model) & ~far)
        return far

    # -- annotations --------------------------------------------------------------------------------------------------

    def annotated(self, queryset: Any, model: Any) -> tuple[Any, bool]:
        """Return *queryset* with an annotation ``x``, and whether the annotation groups it."""
        rng = self.rng
        many = [name for name, other in _relations(model, to_one=False)
                if (name, other) not in _relations(model, to_one=True) and other is not Seat]  # fmt: skip
        form = rng.randrange(12)
        if form < 3 and many:
            name = rng.choice(many)
            options: dict[str, Any] = {"distinct": rng.random() < 0.3}
            if rng.random() < 0.4:
                options["filter"] = self.lookup(model)
            return queryset.annotate(x=Count(name, **options)), True
        if form == 3 and many:
            name = rng.choice(many)
            other = dict(_relations(model, to_one=False))[name]
            path = f"{name}__{self.number(other, depth=0)}"
            return queryset.annotate(x=rng.choice((Sum, Max, Min))(path)), True
        if form == 4 and many:
            name = rng.choice(many)
            other = dict(_relations(model, to_one=False))[name]
            condition = self.lookup(other, prefix=f"{name}__")
            return queryset.annotate(near=FilteredRelation(name, condition=condition), x=Count("near")), True
        if form in (5, 6) and model is not Seat:
            order = [F(self.number(model, depth=0)).asc(), F("pk").asc()]
            function = rng.choice((Rank(), Count("pk"), Sum("pk") if model is not Country else Rank()))
            partition = [F(rng.choice(_columns(model)).attname)] if rng.random() < 0.5 else None
            return queryset.annotate(x=Window(function, partition_by=partition, order_by=order)), False
        if form == 7 and model is not Seat:
            inner = model._base_manager.using(self.alias).filter(self.lookup(model), pk__gte=OuterRef("pk"))
            column = rng.choice(_columns(model)).name
            return queryset.annotate(x=Subquery(inner.order_by(column, "pk").values("pk")[:1])), False
        if form == 8:
            when = When(self.lookup(model), then=Value(1))
            return queryset.annotate(x=Case(when, default=Value(0))), False
        if form == 9:
            return queryset.annotate(
                x=Coalesce(F(self.number(model, to_one=True)), 1, output_field=models.FloatField())
            ), False
        if form == 10:
            texts = [column.name for column in _columns(model) if kind_of(column) == "text"]
            if texts:
                return queryset.annotate(x=Lower(rng.choice(texts))), False
        return queryset.annotate(x=F(self.path(model, to_one=True)[0])), False

    # -- the whole ----------------------------------------------------------------------------------------------------

    def order(self, queryset: Any, model: Any, *, has_x: bool, extra: tuple[str, ...] = ()) -> Any:
        """Return *queryset* in an order that has no ties."""
        rng = self.rng
        parts: list[Any] = []
        for _ in range(rng.choice((0, 1, 1, 2))):
            name = "x" if has_x and rng.random() < 0.3 else self.path(model, depth=1, to_one=True)[0]
            form = rng.randrange(6)
            if form == 0:
                parts.append(F(name).desc(nulls_last=True))
            elif form == 1:
                parts.append(F(name).asc(nulls_first=True))
            else:
                parts.append(rng.choice(("", "-")) + name)
        parts += [*extra, rng.choice(("pk", "-pk"))]
        if has_x and _repeats_rows(queryset):
            parts.append("x")  # in which the rows of one object may differ
        queryset = queryset.order_by(*parts)
        return queryset.reverse() if rng.random() < 0.15 else queryset

    def sliced(self, queryset: Any) -> Any:
        start = self.rng.choice((0, 0, 0, 1, 2))
        stop = self.rng.choice((start + 1, start + 2, start + 3, start + 5, None))
        return queryset[start:stop]

    def asked(self) -> Asked:
        """Draw one queryset and how it is evaluated."""
        rng = self.rng
        model = rng.model()
        queryset: Any = model._base_manager.using(self.alias).all()
        is_mysql = connections[self.alias].vendor == "mysql"
        has_x = is_grouped = False
        is_annotated_first = rng.random() < 0.5
        if is_annotated_first and rng.random() < 0.35:
            queryset, is_grouped = self.annotated(queryset, model)
            has_x = True
        for _ in range(rng.choice((1, 1, 1, 2) if rng.is_linked else (0, 1, 1, 1, 2))):
            if rng.is_linked and model is not Seat and rng.random() < 0.8:
                queryset = queryset.filter(self.linked(model))
                continue
            queryset = getattr(queryset, rng.choice(("filter", "filter", "filter", "exclude")))(
                self.condition(model, depth=rng.choice((0, 0, 0, 1, 2)))
            )
        if not is_annotated_first and rng.random() < 0.35:
            queryset, is_grouped = self.annotated(queryset, model)
            has_x = True
        if has_x and rng.random() < 0.3:
            queryset = queryset.filter(Q(x__gt=1) if rng.random() < 0.6 else Q(x__gt=1) | self.lookup(model))
        form = rng.choices(
            (
                "rows",
                "values",
                "flat",
                "group",
                "distinct",
                "combined",
                "ties",
                "count",
                "exists",
                "aggregate",
                "dates",
            ),
            (9, 5, 2, 2, 2, 1.5, 2, 3, 3, 2, 0.7),
        )[0]
        end: Callable[[Any], Any] = list
        order, folds = "list", False
        keys: tuple[str, ...] = ()
        all_rows = None
        if form == "rows":
            queryset = self.order(queryset, model, has_x=has_x)
            queryset = self.loaded(queryset, model)
            chance = rng.random()
            if chance < 0.45:
                queryset = self.sliced(queryset)
            elif chance < 0.55:
                end = lambda q: q.first()  # noqa: E731
            elif chance < 0.6:
                end = lambda q: q.last()  # noqa: E731
            elif chance < 0.7 and model is not Seat:
                key = self.key(model)
                end = lambda q: q.get(pk=key)  # noqa: E731
            elif chance < 0.75 and model is not Seat:
                key = self.key(model)
                end = lambda q: q.in_bulk([key])  # noqa: E731
        elif form in ("values", "flat"):
            names = [self.path(model, to_one=True)[0] for _ in range(1 if form == "flat" else rng.choice((1, 2, 3)))]
            if form == "values" and rng.random() < 0.5 and model is not Seat:
                names.append("pk")
            if has_x and rng.random() < 0.6:
                names[0] = "x"
            queryset = self.order(queryset, model, has_x=has_x)
            if form == "flat":
                queryset = queryset.values_list(names[0], flat=True)
            else:
                queryset = rng.choice((queryset.values, queryset.values_list))(*dict.fromkeys(names))
            if rng.random() < 0.4:
                queryset = self.sliced(queryset)
        elif form == "group":
            names = list(dict.fromkeys(self.path(model, depth=1)[0] for _ in range(rng.choice((1, 1, 2)))))
            queryset = queryset.order_by().values(*names).annotate(
                n=Count("pk"), m=rng.choice((Sum, Max, Avg))(self.number(model))
            )  # fmt: skip
            if rng.random() < 0.3:
                queryset = queryset.filter(n__gt=1) if rng.random() < 0.5 else queryset.filter(n__lt=3)
            order, folds = "bag", is_mysql
        elif form == "distinct":
            names = [self.path(model, depth=1)[0] for _ in range(rng.choice((1, 2)))]
            queryset = queryset.order_by(*names).values_list(*dict.fromkeys(names)).distinct()
            order, folds = "bag", is_mysql
        elif form == "combined":
            others = [model._base_manager.using(self.alias).filter(self.condition(model, depth=1)) for _ in range(2)]
            names = [rng.choice(_columns(model)).attname for _ in range(2)] + ["pk"]
            first, *rest = [each.order_by().values_list(*dict.fromkeys(names)) for each in others]
            method = rng.choice(("union", "union", "intersection", "difference"))
            options = {"all": True} if method == "union" and rng.random() < 0.4 else {}
            queryset = getattr(first, method)(*rest, **options)
            order, folds = "bag", is_mysql
        elif form == "ties":
            if has_x:
                queryset = model._base_manager.using(self.alias).filter(self.condition(model, depth=0))
            column = rng.choice([c for c in _columns(model) if kind_of(c) in (*_NUMBERS, "date", "boolean")] or [None])
            if column is None or model is Seat:
                return self.asked()
            keys = (column.attname,)
            queryset = queryset.order_by(rng.choice(("", "-")) + column.name)
            all_rows, order = queryset, "ties"
            queryset = self.sliced(queryset)
        elif form in ("count", "exists"):
            if rng.random() < 0.2:
                queryset = self.sliced(self.order(queryset, model, has_x=has_x))
            end = (lambda q: q.count()) if form == "count" else (lambda q: q.exists())
        elif form == "aggregate":
            path = self.number(model)
            if rng.random() < 0.2:
                queryset = self.sliced(self.order(queryset, model, has_x=has_x))
            filtered = Count("pk", filter=self.lookup(model))
            end = lambda q: q.aggregate(s=Sum(path), n=filtered, m=Max(path))  # noqa: E731
        else:
            dates = [c for c in _columns(model) if kind_of(c) in ("date", "datetime")]
            if not dates:
                return self.asked()
            column = rng.choice(dates)
            # Without definitions of time zones MySQL knows no local year of a moment.
            has_zones = kind_of(column) == "date" or connections[self.alias].features.has_zoneinfo_database
            year = TruncYear(column.name, tzinfo=None if has_zones else datetime.UTC)
            queryset = queryset.annotate(y=year).values_list("y", flat=True).distinct()
            order = "bag"
        if is_grouped and is_mysql:
            folds = True
        text = f"{model.__name__} {form} {order}"
        return Asked(queryset, live(queryset), end, text, order, keys, all_rows, folds)

    def loaded(self, queryset: Any, model: Any) -> Any:
        """Return *queryset* with related rows, or without some columns."""
        rng = self.rng
        form = rng.randrange(8)
        to_one = [name for name, _ in _relations(model, to_one=True)]
        if form < 3 and to_one:
            names = []
            for name in rng.sample(to_one, min(len(to_one), rng.choice((1, 2)))):
                further = [each for each, _ in _relations(dict(_relations(model, to_one=True))[name], to_one=True)]
                names.append(f"{name}__{rng.choice(further)}" if further and rng.random() < 0.4 else name)
            return queryset.select_related(*names)
        if form == 3:
            method = rng.choice((queryset.only, queryset.defer))
            return method(rng.choice(_columns(model)).name)
        if form == 4 and model is not Seat:
            names = [f.name for f in model._meta.many_to_many] + [
                r.get_accessor_name() for r in model._meta.related_objects if r.related_model in MODELS
            ]
            if names:
                return queryset.prefetch_related(rng.choice(names))
        return queryset


def draw_queryset(rng: Dice, alias: str) -> Asked:
    """Draw a queryset on the database *alias*; what Django or the database refuses is found when it is evaluated."""
    return Draw(rng, alias).asked()
