"""A shop: pages by category and order, product pages, cheapest by a range, baskets; views and stock change most."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Final

from django.db import transaction
from django.db.models import Count, F, Q, Sum

from benchmarks.project.models import Brand, Category, Product
from benchmarks.project.systems import System
from benchmarks.workloads.base import Cached, Read, Workload, as_rows

__all__ = ["Shop"]

PRODUCTS: Final = 3000
CATEGORIES: Final = 40
BRANDS: Final = 150
COUNTRIES: Final = ("DE", "FR", "IT", "US", "JP", "CN", "GB", "SE", "ES", "PL", "NL", "CH", "AT", "DK", "KR")
PAGE: Final = 20
ORDERS: Final = (("-created", "-pk"), ("price", "pk"), ("-sold", "pk"))
BANDS: Final = tuple((Decimal(low), Decimal(low + width)) for width in (10, 25) for low in range(5, 180, 15))
BASKETS: Final = 100


class Shop(Workload):
    """The workload that the first goal is stated for."""

    name: ClassVar[str] = "shop"

    def __init__(self, system: System, seed: int) -> None:
        super().__init__(system, seed)
        self.popular = self.popularity(1.1)
        self.products: list[int] = []
        self.categories: list[int] = []
        self.brands: list[int] = []
        self.baskets: list[tuple[int, ...]] = []
        self.pairs: list[tuple[int, int]] = []

    def fill(self) -> None:
        """See Workload.fill()."""
        chance = self.chance
        Category.objects.bulk_create([Category(name=f"Category {number}") for number in range(CATEGORIES)])
        Brand.objects.bulk_create(
            [
                Brand(name=f"Brand {number}", country=chance.choice(COUNTRIES), rating=chance.randrange(100))
                for number in range(BRANDS)
            ]
        )
        self.categories, self.brands = self.pks(Category), self.pks(Brand)
        Product.objects.bulk_create([self._new(number) for number in range(PRODUCTS)], batch_size=200)
        self.products = self.pks(Product)
        self.baskets = [tuple(sorted(chance.sample(self.products[:600], 6))) for _ in range(BASKETS)]
        self.pairs = [(chance.choice(self.categories), chance.choice(self.brands)) for _ in range(40)]

    def _new(self, number: int) -> Product:
        chance = self.chance
        return Product(
            category_id=self.popular.of(self.categories),
            brand_id=chance.choice(self.brands),
            name=f"Product {number} {chance.randrange(10**6)}",
            description="What it is good for. " * 5,
            price=self._price(),
            stock=chance.randrange(60),
            sold=chance.randrange(1000),
            views=chance.randrange(10000),
            is_active=chance.random() < 0.95,
            created=self.now - timedelta(minutes=chance.randrange(1, 500_000)),
        )

    def _price(self) -> Decimal:
        return Decimal(round(self.chance.triangular(100, 20_000, 2500))) / 100

    # -- reads ------------------------------------------------------------------------------------------------------

    def reads(self) -> Sequence[tuple[int, Callable[[], Read]]]:
        """See Workload.reads()."""
        return (
            (28, self._page),
            (26, self._get),
            (9, self._count),
            (8, self._cheapest),
            (8, self._joined),
            (6, self._names),
            (5, self._sums),
            (5, self._either),
            (5, self._basket),
        )

    def _page(self) -> Read:
        category, order = self.popular.of(self.categories), self.popular.of(ORDERS)
        number = min(int(self.chance.expovariate(1.3)), 4)
        return Read("page", (category, order, number), partial(_ask_page, category, order, number))

    def _get(self) -> Read:
        pk = self.popular.of(self.products)
        return Read("get", (pk,), partial(_ask_one, pk))

    def _count(self) -> Read:
        category = self.popular.of(self.categories)
        return Read("count", (category,), partial(_ask_count, category))

    def _cheapest(self) -> Read:
        band = self.popular.of(BANDS)
        return Read("cheapest", band, partial(_ask_cheapest, band))

    def _joined(self) -> Read:
        country, number = self.popular.of(COUNTRIES), min(int(self.chance.expovariate(1.5)), 3)
        return Read("joined", (country, number), partial(_ask_joined, country, number))

    def _names(self) -> Read:
        category = self.popular.of(self.categories)
        return Read("values_list", (category,), partial(_ask_names, category))

    def _sums(self) -> Read:
        category = self.popular.of(self.categories)
        return Read("grouped sums", (category,), partial(_ask_sums, category))

    def _either(self) -> Read:
        pair = self.popular.of(self.pairs)
        return Read("or", pair, partial(_ask_either, *pair))

    def _basket(self) -> Read:
        basket = self.popular.of(self.baskets)
        return Read("in", basket, partial(_ask_basket, basket))

    # -- writes -----------------------------------------------------------------------------------------------------

    def writes(self) -> Sequence[tuple[int, Callable[[], None]]]:
        """See Workload.writes()."""
        return (
            (46, self._count_view),
            (14, self._save_in_full),
            (14, self._save_stock),
            (5, self._move),
            (6, self._insert),
            (3, self._delete),
            (2, self._restock),
            (2, self._sale),
            (4, self._buy),
            (4, self._edit_brand),
        )

    def _count_view(self) -> None:
        self.system.update(Product.objects.filter(pk=self.popular.of(self.products)), views=F("views") + 1)

    def _save_in_full(self) -> None:
        """Change one field as a form does: every column is written."""
        product, field = self.one(Product, self.chance.choice(self.products)), self.chance.randrange(6)
        if field < 2:
            product.price = self._price()
        elif field < 4:
            product.description = f"What it is good for now. {self.chance.random()} " * 3
        elif field == 4:
            product.name = f"Product {self.chance.randrange(10**6)}"
        else:
            product.is_active = not product.is_active
        product.save()

    def _save_stock(self) -> None:
        product = self.one(Product, self.popular.of(self.products))
        product.stock += self.chance.randrange(-3, 4)
        product.save(update_fields=["stock"])

    def _move(self) -> None:
        product = self.one(Product, self.chance.choice(self.products))
        product.category_id = self.chance.choice(self.categories)
        product.save()

    def _insert(self) -> None:
        product = self._new(len(self.products))
        product.created = self.now
        product.save()
        self.products.insert(self.chance.randrange(len(self.products)), product.pk)

    def _delete(self) -> None:
        index = self.chance.randrange(len(self.products))
        self.one(Product, self.products.pop(index)).delete()

    def _restock(self) -> None:
        """Fill up what is short of one brand, in one UPDATE."""
        brand = self.chance.choice(self.brands)
        self.system.update(Product.objects.filter(brand=brand, stock__lt=5), stock=30)

    def _sale(self) -> None:
        """Change several prices with bulk_update()."""
        pks = self.chance.sample(self.products, 8)
        with self.system.truth():
            products = list(Product.objects.filter(pk__in=pks).order_by("pk"))
        for product in products:
            product.price = self._price()
        Product.objects.bulk_update(products, ["price"])
        self.system.written(Product)

    def _buy(self) -> None:
        """Sell the things of a basket, in one transaction."""
        with transaction.atomic():
            for pk in self.popular.of(self.baskets)[:2]:
                self.system.update(Product.objects.filter(pk=pk), stock=F("stock") - 1, sold=F("sold") + 1)

    def _edit_brand(self) -> None:
        brand = self.one(Brand, self.chance.choice(self.brands))
        if self.chance.random() < 0.2:
            brand.country = self.chance.choice(COUNTRIES)
        else:
            brand.rating = self.chance.randrange(100)
        brand.save()


# -- the queries ------------------------------------------------------------------------------------------------------


def _ask_page(category: int, order: tuple[str, ...], number: int, cached: Cached) -> Any:
    products = Product.objects.filter(category=category).order_by(*order)
    return as_rows(cached(products)[number * PAGE : (number + 1) * PAGE])


def _ask_one(pk: int, cached: Cached) -> Any:
    return as_rows([cached(Product.objects.all()).get(pk=pk)])


def _ask_count(category: int, cached: Cached) -> Any:
    return cached(Product.objects.filter(category=category, is_active=True)).count()


def _ask_cheapest(band: tuple[Decimal, Decimal], cached: Cached) -> Any:
    products = Product.objects.filter(price__gte=band[0], price__lt=band[1]).order_by("price", "pk")
    return as_rows(cached(products)[:PAGE])


def _ask_joined(country: str, number: int, cached: Cached) -> Any:
    products = Product.objects.filter(brand__country=country).select_related("brand").order_by("name", "pk")
    return as_rows(cached(products)[number * PAGE : (number + 1) * PAGE], "brand")


def _ask_names(category: int, cached: Cached) -> Any:
    return list(cached(Product.objects.filter(category=category).order_by("name", "pk").values_list("pk", "name")))


def _ask_sums(category: int, cached: Cached) -> Any:
    grouped = Product.objects.filter(category=category).values("brand").order_by("brand")
    return [tuple(row.items()) for row in cached(grouped.annotate(stock=Sum("stock"), number=Count("pk")))]


def _ask_either(category: int, brand: int, cached: Cached) -> Any:
    products = Product.objects.filter(Q(category=category, price__lt=20) | Q(brand=brand)).order_by("-created", "-pk")
    return as_rows(cached(products)[:PAGE])


def _ask_basket(pks: tuple[int, ...], cached: Cached) -> Any:
    return sorted(as_rows(cached(Product.objects.filter(pk__in=pks))))
