"""Random querysets: a Spec describes one, and read() evaluates it plainly or live."""

from __future__ import annotations

import datetime
from collections.abc import Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from functools import cache, lru_cache
from typing import Any, Final

from django.core.exceptions import MultipleObjectsReturned, ObjectDoesNotExist
from django.db import DEFAULT_DB_ALIAS, models
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
    Prefetch,
    Q,
    Subquery,
    Sum,
    Value,
    When,
    Window,
)
from django.db.models.functions import Coalesce, Length, Lower, Rank, TruncYear, Upper
from django.db.transaction import TransactionManagementError
from hypothesis import strategies as st

from live_cache import live
from tests.testapp import models as shop

__all__ = ["POOLS", "Built", "Outcome", "Spec", "read", "resolve", "specs"]

Outcome = tuple[str, Any]

# Few values, so that rows and conditions meet.
POOLS: Final[dict[str, list[Any]]] = {
    "char": ["A", "B", "a", "Zoe", ""],
    "decimal": [Decimal(1), Decimal("1.00"), Decimal("2.50"), Decimal(10)],
    "integer": [0, 1, 2, 100],
    "float": [0.5, 1.0, 2.25],
    "boolean": [True, False],
    "date": [datetime.date(2020, 1, 2), datetime.date(2021, 5, 6)],
    "json": [1, "x", None],
    "code": ["GB", "DE"],
}
LOOKUPS: Final = {
    "char": ["exact", "in", "contains", "startswith", "gt", "iexact", "isnull"],
    "decimal": ["exact", "in", "gt", "lte", "range", "isnull"],
    "integer": ["exact", "in", "gt", "lte", "range", "isnull"],
    "float": ["exact", "gt", "lte", "isnull"],
    "boolean": ["exact"],
    "date": ["exact", "gt", "year", "isnull"],
    "json": ["exact", "isnull"],
    "code": ["exact", "in", "isnull"],
}


@dataclass(frozen=True)
class Shape:
    """What can be asked of one model. A path behind a relation to many ends with ``*``."""

    paths: dict[str, str]
    select_related: tuple[str, ...] = ()
    prefetch: tuple[str, ...] = ()
    annotations: tuple[str, ...] = ()


SHAPES: Final[dict[str, Shape]] = {
    "Book": Shape(
        {
            "title": "char", "price": "decimal", "pages": "integer", "rating": "float", "published": "date",
            "in_print": "boolean", "data__k": "json", "author__name": "char", "author__country": "code",
            "author__country__name": "char", "category__slug": "char", "category__parent__name": "char",
            "tags__name*": "char", "shelves__label*": "char", "libraries__name*": "char",
            "bookplace__copies*": "integer", "ebook__format": "char",
        },
        ("author", "author__country", "category__parent", "ebook"),
        ("tags", "shelves", "author__books", "libraries"),
        ("tag count", "length", "case", "has tag", "dearest of author", "rank", "double", "upper", "filtered", "year"),
    ),
    "CheapBook": Shape({"title": "char", "pages": "integer", "author__name": "char"}, ("author",), ("tags",)),
    "Ebook": Shape(
        {"title": "char", "price": "decimal", "format": "char", "author__name": "char", "tags__name*": "char"},
        ("author",), ("tags",), ("upper", "tag count"),
    ),
    "Author": Shape(
        {
            "name": "char", "country": "code", "country__name": "char", "books__title*": "char",
            "books__price*": "decimal", "profile__bio": "char", "books__tags__name*": "char",
        },
        ("country", "profile"), ("books", "books__tags"), ("book count", "book sum", "last title"),
    ),
    "Category": Shape(
        {"name": "char", "slug": "char", "parent__name": "char", "children__name*": "char", "books__pages*": "integer"},
        ("parent",), ("children", "books"),
    ),
    "Tag": Shape({"name": "char", "books__title*": "char", "books__author__name*": "char"}, (), ("books",)),
    "LegacyTag": Shape({"name": "char"}),
    "Country": Shape({"code": "code", "name": "char", "authors__name*": "char", "authors__books__pages*": "integer"}),
    "Profile": Shape({"bio": "char", "author__name": "char", "author__country__name": "char"}, ("author__country",)),
    "Library": Shape({"name": "char", "books__title*": "char", "bookplace__copies*": "integer"}, (), ("books",)),
    "BookPlace": Shape(
        {"copies": "integer", "book__title": "char", "library__name": "char", "book__author__name": "char"},
        ("book__author", "library"),
    ),
    "Shelf": Shape({"label": "char", "book__title": "char", "book__author__name": "char"}, ("book__author",)),
    "Seat": Shape({"hall": "char", "number": "integer", "taken": "boolean"}),
    "LoadedBook": Shape({"title": "char"}),
    "MadeBook": Shape({"title": "char"}),
    "AllFields": Shape({"decimal": "decimal", "char": "char", "null_date": "date", "generated": "integer"}),
    "Review": Shape({"stars": "integer", "content_type__model": "char"}, ("content_type",), ("target",)),
}  # fmt: skip

ANNOTATIONS: Final[dict[str, Callable[[str], dict[str, Any]]]] = {
    "tag count": lambda alias: {"x": Count("tags")},
    "length": lambda alias: {"x": Length("title")},
    "case": lambda alias: {"x": Case(When(price__lt=2, then=Value("low")), default=Lower("title"))},
    "has tag": lambda alias: {"x": Exists(shop.Tag.objects.filter(books=OuterRef("pk"), name="A"))},
    "dearest of author": lambda alias: {
        "x": Subquery(shop.Book.objects.filter(author=OuterRef("author")).order_by("-price", "pk").values("title")[:1])
    },
    "rank": lambda alias: {"x": Window(Rank(), partition_by=[F("author")], order_by=F("price").desc())},
    "double": lambda alias: {"x": F("price") * 2 + F("pages")},
    "upper": lambda alias: {"x": Upper("title"), "y": Coalesce("rating", 0.25)},
    "filtered": lambda alias: {
        "dear": FilteredRelation("author__books", condition=Q(author__books__price__gt=2)),
        "x": Count("dear"),
    },
    "year": lambda alias: {"x": TruncYear("created", tzinfo=datetime.UTC)},
    "book count": lambda alias: {"x": Count("books", distinct=True)},
    "book sum": lambda alias: {"x": Sum("books__price", filter=Q(books__pages__lt=100))},
    "last title": lambda alias: {
        "x": Subquery(shop.Book.objects.filter(author=OuterRef("pk")).order_by("-pk").values("title")[:1])
    },
}
AGGREGATES: Final[dict[str, Callable[..., Any]]] = {"Sum": Sum, "Avg": Avg, "Max": Max, "Min": Min, "Count": Count}
NESTED: Final[dict[str, Callable[[str], Q | Exists]]] = {
    "author in": lambda alias: Q(author__in=shop.Author.objects.using(alias).filter(country__name="A")),
    "author in nested": lambda alias: Q(
        author__in=shop.Author.objects.using(alias).filter(
            pk__in=shop.Profile.objects.using(alias).filter(bio="A").values("author")
        )
    ),
    "tag exists": lambda alias: Exists(shop.Tag.objects.filter(books=OuterRef("pk"), name__in=["A", "B"])),
    "pages above": lambda alias: Q(pages__gte=F("price")),
    "title of author": lambda alias: Q(title=F("author__name")),
}


@dataclass(frozen=True)
class Spec:
    """One queryset: a model, what is done to it, and how it is evaluated."""

    model: str
    steps: tuple[tuple[Any, ...], ...]
    end: tuple[Any, ...] = ("rows",)
    cache_key: str | None = None
    is_live_first: bool = True
    """Whether live() is called before the steps, or after them."""


Built = dict[tuple[Spec, bool], Any]
"""Querysets by what they are, and whether they are live."""


# -- strategies -------------------------------------------------------------------------------------------------------


# Each strategy is made once: Hypothesis spends more on making one than on drawing from it.


@lru_cache(maxsize=None, typed=True)
def _one_of(*values: Any) -> st.SearchStrategy[Any]:
    return st.sampled_from(values)


@lru_cache(maxsize=None, typed=True)
def _some_of(*values: Any, min_size: int = 0, max_size: int, unique: bool = False) -> st.SearchStrategy[Any]:
    return st.lists(st.sampled_from(values), min_size=min_size, max_size=max_size, unique=unique)


@cache
def _conditions(name: str, depth: int = 2) -> st.SearchStrategy[tuple[Any, ...]]:
    return _conditions_on(SHAPES[name], name, depth)


_BOOLEANS: Final = st.booleans()
_NUMBERS: Final = {(0, last): st.integers(0, last) for last in range(1, 5)}
# The first two have most relations.
_NAMES: Final = st.one_of(st.just("Book"), st.just("Author"), st.sampled_from(sorted(SHAPES)))


@st.composite
def _conditions_on(draw: st.DrawFn, shape: Shape, name: str, depth: int) -> tuple[Any, ...]:
    if depth and draw(_NUMBERS[0, 3]) == 0:
        kind = draw(_one_of("and", "or", "not"))
        return (kind, *(draw(_conditions(name, depth - 1)) for _ in range(1 if kind == "not" else 2)))
    if shape is SHAPES["Book"] and draw(_NUMBERS[0, 4]) == 0:
        return "nested", draw(_one_of(*sorted(NESTED)))
    path = draw(_one_of(*sorted(shape.paths)))
    kind = shape.paths[path]
    lookup = draw(_one_of(*LOOKUPS[kind]))
    pool = POOLS[kind]
    value: Any
    if lookup == "isnull":
        value = draw(_BOOLEANS)
    elif lookup == "year":
        value = draw(_one_of(2020, 2021))
    elif lookup in ("in", "range"):
        value = tuple(draw(_some_of(*pool, min_size=2, max_size=2)))
    else:
        value = draw(_one_of(*pool))
    return "where", path.rstrip("*"), lookup, value


@st.composite
def specs(draw: st.DrawFn) -> Spec:
    """Draw a Spec."""
    name = draw(_NAMES)
    shape = SHAPES[name]
    steps: list[tuple[Any, ...]] = []
    for _ in range(draw(_one_of(0, 0, 1, 2))):
        steps.append((draw(_one_of("filter", "exclude")), draw(_conditions(name))))
    paths = sorted(shape.paths)
    single = [path for path in paths if not path.endswith("*")]
    form = draw(_one_of("instances", "instances", "values", "tuples", "flat", "named", "group", "combined", "dates"))
    if form == "dates" and name != "Book":
        form = "instances"
    is_annotated = draw(_NUMBERS[0, 1]) == 1
    if shape.annotations and form != "dates" and is_annotated:
        steps.append(("annotate", draw(_one_of(*shape.annotations))))
    order = tuple(draw(_some_of(*paths, max_size=2, unique=True)))
    steps.append(("order", *(draw(_one_of("", "-")) + path.rstrip("*") for path in order)))
    if form == "instances":
        if shape.select_related and draw(_NUMBERS[0, 1]) == 1:
            steps.append(("select_related", draw(_one_of(*shape.select_related))))
        if shape.prefetch and draw(_NUMBERS[0, 2]) == 0:
            steps.append(("prefetch", draw(_one_of(*shape.prefetch))))
        kind = draw(_one_of("", "", "only", "defer", "reverse", "distinct"))
        if kind in ("only", "defer"):
            own = [path for path in single if "__" not in path]
            if not any(step[0] == "select_related" for step in steps):
                steps.append((kind, draw(_one_of(*own))))
        elif kind:
            steps.append((kind,))
    elif form in ("values", "tuples", "named"):
        chosen = draw(_some_of(*single, min_size=1, max_size=3, unique=True))
        steps.append((form, *(path for path in chosen if not path.startswith("data"))))
    elif form == "flat":
        steps.append((form, draw(_one_of(*[path for path in single if not path.startswith("data")]))))
    elif form == "group":
        steps.append((form, draw(_one_of(*[path for path in paths if not path.startswith("data")])).rstrip("*")))
    elif form == "combined":
        kind = draw(_one_of("union", "union all", "intersection", "difference"))
        steps = [step for step in steps if step[0] not in ("order", "annotate")]
        steps.append((kind, draw(_conditions(name, 0)), draw(_BOOLEANS)))
    elif form == "dates":
        steps.append(("dates", draw(_one_of("year", "month"))))
    can_slice = form in ("instances", "values", "tuples", "flat", "named")
    if can_slice and draw(_NUMBERS[0, 2]) == 0:
        start = draw(_NUMBERS[0, 2])
        steps.append(("slice", start, draw(_one_of(None, start + 1, start + 3))))
    ends: list[tuple[Any, ...]] = [("rows",)] * 4 + [("count",), ("exists",)]
    if form == "instances" and steps[-1][0] != "slice":
        ends += [("first",), ("last",), ("get", draw(_NUMBERS[0, 3])), ("bulk", draw(_NUMBERS[0, 3]))]
    if form in ("instances", "combined") and steps[-1][0] == "slice":
        ends += [("page", 1, 2)]
    # A join to many, cut off behind some rows, is cut somewhere among the rows of one object: any answer is right.
    is_cut = any(step[0] == "slice" for step in steps)
    numbers = [
        path.rstrip("*")
        for path in paths
        if shape.paths[path] in ("integer", "decimal", "float") and not (is_cut and path.endswith("*"))
    ]
    if form == "instances" and numbers:
        ends.append(("aggregate", draw(_one_of(*sorted(AGGREGATES))), draw(_one_of(*numbers))))
    key = draw(_one_of(None, None, None, "shop", "shop/x"))
    return Spec(name, tuple(steps), draw(_one_of(*ends)), key, draw(_BOOLEANS))


# -- evaluation -------------------------------------------------------------------------------------------------------


def resolve(spec: Spec, alias: str) -> Spec:
    """Return *spec* with the ordinal numbers of rows replaced by primary keys of this moment."""
    if spec.end[0] not in ("get", "bulk"):
        return spec
    keys = list(_model(spec)._base_manager.using(alias).order_by("pk").values_list("pk", flat=True))
    return replace(spec, end=(spec.end[0], keys[spec.end[1] % len(keys)] if keys else 0))


def read(spec: Spec, alias: str, *, is_live: bool, built: Built) -> Outcome:
    """
    Return what the queryset yields on this thread's connection, with Python types, or the error that it raises.

    Args:
        built: Where the queryset is taken from, and kept. Building it costs more than reading it.
    """
    queryset = built.get((spec, is_live))
    if queryset is None:
        queryset = built[spec, is_live] = _build(spec, alias, is_live=is_live)
    try:
        return _evaluate(spec, queryset.all())
    except (ObjectDoesNotExist, MultipleObjectsReturned, TransactionManagementError) as error:
        return "raises", type(error).__name__


def _model(spec: Spec) -> Any:
    return getattr(shop, spec.model)


def _build(spec: Spec, alias: str, *, is_live: bool) -> Any:
    queryset = _model(spec).objects.using(alias).all()
    if is_live and spec.is_live_first:
        queryset = live(queryset, spec.cache_key)
    for step in spec.steps:
        # What a generic foreign key refers to is read from the default database by Django, wherever the rows are.
        if step != ("prefetch", "target") or alias == DEFAULT_DB_ALIAS:
            queryset = _apply(queryset, step, _model(spec), alias)
    if is_live and not spec.is_live_first:
        queryset = live(queryset, spec.cache_key)
    return queryset


def _apply(queryset: Any, step: tuple[Any, ...], model: Any, alias: str) -> Any:
    name, *arguments = step
    match name:
        case "filter" | "exclude":
            return getattr(queryset, name)(_condition(arguments[0], alias))
        case "annotate":
            return queryset.annotate(**ANNOTATIONS[arguments[0]](alias))
        case "order":
            return queryset.order_by(*arguments, "pk")
        case "prefetch":
            if arguments[0] == "tags":
                return queryset.prefetch_related(Prefetch("tags", shop.Tag.objects.using(alias).order_by("name", "pk")))
            return queryset.prefetch_related(arguments[0])
        case "select_related" | "only" | "defer" | "reverse" | "distinct" | "values":
            return getattr(queryset, name)(*arguments)
        case "tuples":
            return queryset.values_list(*arguments)
        case "named":
            return queryset.values_list(*arguments, named=True)
        case "flat":
            return queryset.values_list(arguments[0], flat=True)
        case "group":
            return queryset.order_by().values(arguments[0]).annotate(n=Count("pk"))
        case "union" | "union all" | "intersection" | "difference":
            other = model.objects.using(alias).filter(_condition(arguments[0], alias))
            queryset, other = queryset.order_by().values_list("pk"), other.values_list("pk")
            if arguments[1] and name == "union":
                other = other.union(model.objects.using(alias).values_list("pk").filter(pk__isnull=False))
            if name == "union all":
                return queryset.union(other, all=True)
            return getattr(queryset, name)(other)
        case "dates":
            return queryset.dates("published", arguments[0])
        case "slice":
            return queryset[arguments[0] : arguments[1]]
    raise ValueError(step)


def _condition(condition: tuple[Any, ...], alias: str) -> Any:
    name, *parts = condition
    if name == "where":
        path, lookup, value = parts
        return Q(**{f"{path}__{lookup}": list(value) if isinstance(value, tuple) else value})
    if name == "nested":
        return Q(NESTED[parts[0]](alias))
    sides = [_condition(part, alias) for part in parts]
    if name == "not":
        return ~sides[0]
    return sides[0] & sides[1] if name == "and" else sides[0] | sides[1]


_UNORDERED = frozenset({"group", "union", "union all", "intersection", "difference"})


def _evaluate(spec: Spec, queryset: Any) -> Outcome:
    name, *arguments = spec.end
    match name:
        case "count" | "exists":
            return name, getattr(queryset, name)()
        case "first" | "last":
            return name, frozen(getattr(queryset, name)())
        case "get":
            return name, frozen(queryset.get(pk=arguments[0]))
        case "bulk":
            found = queryset.in_bulk([arguments[0]]) if not _is_distinct(spec) else {}
            return name, {key: frozen(row) for key, row in found.items()}
        case "aggregate":
            return name, frozen(queryset.aggregate(x=AGGREGATES[arguments[0]](arguments[1]), n=Count("pk")))
        case "page":
            return name, [frozen(row) for row in queryset]
    rows = [frozen(row) for row in queryset]
    if any(step[0] in _UNORDERED for step in spec.steps):
        rows.sort(key=repr)
    return "rows", rows


def _is_distinct(spec: Spec) -> bool:
    return ("distinct",) in spec.steps


def frozen(row: Any) -> Any:
    """Return *row* with the type of each value, in a form that can be compared; instances by their attributes."""
    if isinstance(row, models.Model):
        attributes = {
            name: frozen(value)
            for name, value in sorted(row.__dict__.items())
            if name not in ("_state", "_prefetched_objects_cache")
        }
        related = {name: frozen(item) for name, item in row._state.fields_cache.items() if _is_ahead(row, name)}
        many = {
            name: sorted((type(item).__name__, repr(item.pk)) for item in items)
            for name, items in row.__dict__.get("_prefetched_objects_cache", {}).items()
        }
        return type(row).__name__, attributes, related, many, row._state.db, row._state.adding
    if isinstance(row, dict):
        return "dict", {key: frozen(value) for key, value in row.items()}
    if isinstance(row, list | tuple):
        return type(row).__name__, [frozen(value) for value in row]
    return type(row).__name__, row


def _is_ahead(row: models.Model, name: str) -> bool:
    """Return whether a cached relation leads on, not back to the object that it came from."""
    try:
        return not row._meta.get_field(name).auto_created
    except Exception:  # a generic foreign key's cache has a name of its own
        return True
