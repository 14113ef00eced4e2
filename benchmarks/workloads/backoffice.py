"""A back office: lists of orders by many filters, with counts for the pages, searches, date ranges and dashboards."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from datetime import timedelta
from decimal import Decimal
from functools import partial
from typing import Any, ClassVar, Final, TypeAlias

from django.db import transaction
from django.db.models import Count, Exists, OuterRef, Q, QuerySet, Sum

from benchmarks.project.models import Agent, Customer, LogEntry, Order, OrderLine
from benchmarks.project.systems import System
from benchmarks.workloads.base import Cached, Read, Workload, as_rows

__all__ = ["BackOffice"]

Filters: TypeAlias = tuple[tuple[str, object], ...]

AGENTS: Final = 25
CUSTOMERS: Final = 1200
ORDERS: Final = 4000
LISTS: Final = 80
PAGE: Final = 25
STATUSES: Final = ("new", "open", "packed", "sent", "done", "cancelled")
SEGMENTS: Final = ("retail", "trade", "public")
CITIES: Final = tuple(f"City {number}" for number in range(30))
TEAMS: Final = ("north", "south", "web")
SORTINGS: Final = (
    ("-created", "-pk"),
    ("status", "-created", "-pk"),
    ("priority", "due", "pk"),
    ("customer__name", "-created", "pk"),
    ("-total", "pk"),
)
DAYS: Final = 120


class BackOffice(Workload):
    """Agents look at lists and open orders, and most of what they open they change."""

    name: ClassVar[str] = "backoffice"

    def __init__(self, system: System, seed: int) -> None:
        super().__init__(system, seed)
        self.popular = self.popularity(1.1)
        self.today = self.now.date()
        self.agents: list[int] = []
        self.customers: list[int] = []
        self.orders: list[int] = []
        self.lists: list[tuple[Filters, tuple[str, ...]]] = []
        self.terms: list[str] = []

    def fill(self) -> None:
        """See Workload.fill()."""
        chance = self.chance
        Agent.objects.bulk_create([Agent(name=f"Agent {n}", team=chance.choice(TEAMS)) for n in range(AGENTS)])
        Customer.objects.bulk_create([self._new_customer(number) for number in range(CUSTOMERS)], batch_size=500)
        self.agents, self.customers = self.pks(Agent), self.pks(Customer)
        Order.objects.bulk_create([self._new_order(minutes) for minutes in self._ages()], batch_size=200)
        with self.system.truth():  # the newest are the most popular
            self.orders = list(Order.objects.order_by("-created", "-pk").values_list("pk", flat=True))
        OrderLine.objects.bulk_create(
            [line for order in self.orders for line in self._new_lines(order)], batch_size=500
        )
        self.lists = [self._new_list() for _ in range(LISTS)]
        self.terms = [f"R-{chance.randrange(100, 1000)}" for _ in range(15)]
        self.terms += [f"Customer {chance.randrange(10, 100)}" for _ in range(15)]

    def _ages(self) -> list[int]:
        return [self.chance.randrange(1, DAYS * 24 * 60) for _ in range(ORDERS)]

    def _new_customer(self, number: int) -> Customer:
        chance = self.chance
        return Customer(
            name=f"Customer {chance.randrange(10**4)}",
            email=f"customer-{number}@example.com",
            city=self.popular.of(CITIES),
            segment=self.popular.of(SEGMENTS),
        )

    def _new_order(self, age_minutes: int) -> Order:
        """Return an order of that age: old ones are done, and new ones are worked on."""
        chance = self.chance
        created = self.now - timedelta(minutes=age_minutes)
        is_old = age_minutes > 7 * 24 * 60
        status = chance.choice(STATUSES[3:]) if is_old and chance.random() < 0.9 else chance.choice(STATUSES[:3])
        return Order(
            reference=f"R-{chance.randrange(10**5, 10**6)}",
            customer_id=self.popular.of(self.customers),
            agent_id=self.popular.of(self.agents) if is_old or chance.random() < 0.5 else None,
            status=status,
            priority=chance.choice((1, 2, 2, 2, 3)),
            total=Decimal(chance.randrange(1000, 200_000)) / 100,
            created=created,
            due=created.date() + timedelta(days=chance.choice((7, 14, 30))),
            paid_at=created + timedelta(days=5) if is_old and chance.random() < 0.9 else None,
        )

    def _new_lines(self, order: int) -> list[OrderLine]:
        chance = self.chance
        return [
            OrderLine(
                order_id=order,
                sku=f"SKU-{chance.randrange(500)}",
                quantity=chance.randrange(1, 6),
                price=Decimal(chance.randrange(100, 20_000)) / 100,
            )
            for _ in range(chance.randrange(1, 5))
        ]

    def _new_list(self) -> tuple[Filters, tuple[str, ...]]:
        """Return filters and an order, as somebody has clicked them together and kept them."""
        chance = self.chance
        day = self.now.replace(hour=0) - timedelta(days=chance.randrange(0, DAYS, 7))
        choices: list[tuple[str, object]] = [
            ("status", self.popular.of(STATUSES)),
            ("agent", self.popular.of(self.agents)),
            ("customer__segment", chance.choice(SEGMENTS)),
            ("created__range", (day - timedelta(days=7), day)),
            ("status__in", tuple(chance.sample(STATUSES, 2))),
            ("total__gte", Decimal(chance.choice((500, 1000, 1500)))),
            ("paid_at__isnull", chance.random() < 0.7),
            ("agent__isnull", True),
            ("priority", chance.choice((1, 3))),
            ("due__lt", self.today + timedelta(days=chance.choice((0, 7)))),
            ("agent__team", chance.choice(TEAMS)),
        ]
        return tuple(sorted(dict(chance.sample(choices, chance.choice((1, 1, 2, 2, 3)))).items())), chance.choice(
            SORTINGS
        )

    # -- reads ------------------------------------------------------------------------------------------------------

    def reads(self) -> Sequence[tuple[int, Callable[[], Read]]]:
        """See Workload.reads()."""
        return (
            (22, self._list),
            (13, self._count),
            (3, self._total_count),
            (14, self._order),
            (10, self._lines),
            (6, self._log),
            (7, self._customer),
            (6, self._orders_of),
            (6, self._search),
            (4, self._customers),
            (3, self._by_status),
            (3, self._by_agent),
            (3, self._overdue),
            (4, self._choices),
            (2, self._waiting),
            (2, self._not_done),
            (2, self._cities),
            (2, self._months),
        )

    def _list(self) -> Read:
        filters, sorting = self.popular.of(self.lists)
        number = min(int(self.chance.expovariate(1.5)), 3)
        return Read("list", (filters, sorting, number), partial(_ask_list, filters, sorting, number))

    def _count(self) -> Read:
        filters, _ = self.popular.of(self.lists)
        return Read("count", filters, partial(_ask_count, filters))

    def _total_count(self) -> Read:
        return Read("total count", (), partial(_ask_count, ()))

    def _order(self) -> Read:
        order = self.popular.of(self.orders)
        return Read("order", (order,), partial(_ask_order, order))

    def _lines(self) -> Read:
        order = self.popular.of(self.orders)
        return Read("lines", (order,), partial(_ask_lines, order))

    def _log(self) -> Read:
        order = self.popular.of(self.orders)
        return Read("log", (order,), partial(_ask_log, order))

    def _customer(self) -> Read:
        customer = self.popular.of(self.customers)
        return Read("customer", (customer,), partial(_ask_customer, customer))

    def _orders_of(self) -> Read:
        customer = self.popular.of(self.customers)
        return Read("orders of", (customer,), partial(_ask_orders_of, customer))

    def _search(self) -> Read:
        term = self.popular.of(self.terms)
        return Read("search", (term,), partial(_ask_search, term))

    def _customers(self) -> Read:
        city, number = self.popular.of(CITIES), min(int(self.chance.expovariate(1.5)), 3)
        return Read("customers", (city, number), partial(_ask_customers, city, number))

    def _by_status(self) -> Read:
        return Read("by status", (), _ask_by_status)

    def _by_agent(self) -> Read:
        team = self.popular.of(TEAMS)
        return Read("by agent", (team,), partial(_ask_by_agent, team))

    def _overdue(self) -> Read:
        agent = self.popular.of(self.agents)
        return Read("overdue", (agent,), partial(_ask_overdue, agent, self.today))

    def _choices(self) -> Read:
        return Read("choices", (), _ask_choices)

    def _waiting(self) -> Read:
        city = self.popular.of(CITIES)
        return Read("waiting", (city,), partial(_ask_waiting, city))

    def _not_done(self) -> Read:
        agent = self.popular.of(self.agents)
        return Read("not done", (agent,), partial(_ask_not_done, agent))

    def _cities(self) -> Read:
        segment = self.popular.of(SEGMENTS)
        return Read("cities", (segment,), partial(_ask_cities, segment))

    def _months(self) -> Read:
        return Read("months", (), _ask_months)

    # -- writes -----------------------------------------------------------------------------------------------------

    def writes(self) -> Sequence[tuple[int, Callable[[], None]]]:
        """See Workload.writes()."""
        return (
            (24, self._advance),
            (14, self._assign),
            (14, self._pay),
            (12, self._add_order),
            (10, self._edit_line),
            (10, self._edit_note),
            (8, self._edit_customer),
            (3, self._add_customer),
            (3, self._advance_many),
            (2, self._delete_order),
            (1, self._edit_agent),
        )

    def _log_change(self, order: int, text: str) -> None:
        LogEntry.objects.create(order_id=order, agent_id=self.popular.of(self.agents), text=text, at=self.now)

    def _advance(self) -> None:
        """Save a form in which the status was changed."""
        order = self.one(Order, self.popular.of(self.orders))
        with transaction.atomic():
            order.status = STATUSES[min(STATUSES.index(order.status) + 1, 4)]
            order.save()
            self._log_change(order.pk, f"Status is {order.status}.")

    def _assign(self) -> None:
        order = self.one(Order, self.popular.of(self.orders))
        with transaction.atomic():
            order.agent_id = self.popular.of(self.agents)
            order.save(update_fields=["agent"])
            self._log_change(order.pk, "Assigned.")

    def _pay(self) -> None:
        with self.system.truth():
            unpaid = list(Order.objects.filter(paid_at=None).order_by("-created", "-pk")[:200])
        order = self.popular.of(unpaid)
        order.paid_at = self.now
        order.save(update_fields=["paid_at"])

    def _add_order(self) -> None:
        with transaction.atomic():
            order = self._new_order(0)
            order.save()
            OrderLine.objects.bulk_create(self._new_lines(order.pk))
            self._log_change(order.pk, "Added.")
        self.orders.insert(self.chance.randrange(10), order.pk)

    def _edit_line(self) -> None:
        """Change a quantity, and with it the total."""
        order = self.one(Order, self.popular.of(self.orders))
        with self.system.truth():
            line = OrderLine.objects.filter(order=order).order_by("pk")[0]
        with transaction.atomic():
            order.total += line.price * (6 - 2 * line.quantity)
            line.quantity = 6 - line.quantity
            line.save()
            order.save(update_fields=["total"])

    def _edit_note(self) -> None:
        order = self.one(Order, self.popular.of(self.orders))
        order.note = f"Called at {self.now}."
        order.save()

    def _edit_customer(self) -> None:
        customer, field = self.one(Customer, self.popular.of(self.customers)), self.chance.randrange(5)
        if field == 0:
            customer.city = self.popular.of(CITIES)
        elif field == 1:
            customer.name = f"Customer {self.chance.randrange(10**4)}"
        else:
            customer.note = f"Called at {self.now}."
        customer.save()

    def _add_customer(self) -> None:
        customer = self._new_customer(len(self.customers))
        customer.save()
        self.customers.insert(self.chance.randrange(len(self.customers)), customer.pk)

    def _advance_many(self) -> None:
        """Do what an action of a list does: one UPDATE of the selected rows."""
        chosen = self.chance.sample(self.orders[:400], 6)
        with transaction.atomic():
            self.system.update(Order.objects.filter(pk__in=chosen), status=self.chance.choice(STATUSES[1:5]))
            LogEntry.objects.bulk_create(
                [LogEntry(order_id=pk, agent_id=self.agents[0], text="Changed.", at=self.now) for pk in chosen]
            )

    def _delete_order(self) -> None:
        """Delete an order with its lines and its log."""
        self.one(Order, self.orders.pop(self.chance.randrange(len(self.orders)))).delete()

    def _edit_agent(self) -> None:
        agent = self.one(Agent, self.chance.choice(self.agents))
        agent.team = self.chance.choice(TEAMS)
        agent.save()


# -- the queries ------------------------------------------------------------------------------------------------------


def _orders(filters: Filters) -> QuerySet[Order]:
    return Order.objects.filter(Q(*filters))


def _ask_list(filters: Filters, sorting: tuple[str, ...], number: int, cached: Cached) -> Any:
    orders = _orders(filters).select_related("customer", "agent").order_by(*sorting)
    return as_rows(cached(orders)[number * PAGE : (number + 1) * PAGE], "customer", "agent")


def _ask_count(filters: Filters, cached: Cached) -> Any:
    return cached(_orders(filters)).count()


def _ask_order(order: int, cached: Cached) -> Any:
    return as_rows([cached(Order.objects.select_related("customer")).get(pk=order)], "customer")


def _ask_lines(order: int, cached: Cached) -> Any:
    return as_rows(cached(OrderLine.objects.filter(order=order).order_by("pk")))


def _ask_log(order: int, cached: Cached) -> Any:
    entries = LogEntry.objects.filter(order=order).order_by("-at", "-pk")
    return list(cached(entries.values_list("agent__name", "text", "at"))[:10])


def _ask_customer(customer: int, cached: Cached) -> Any:
    return as_rows([cached(Customer.objects.all()).get(pk=customer)])


def _ask_orders_of(customer: int, cached: Cached) -> Any:
    return as_rows(cached(Order.objects.filter(customer=customer).order_by("-created", "-pk"))[:10])


def _ask_search(term: str, cached: Cached) -> Any:
    found = Order.objects.filter(Q(reference__icontains=term) | Q(customer__name__icontains=term))
    return as_rows(cached(found.select_related("customer").order_by("-created", "-pk"))[:PAGE], "customer")


def _ask_customers(city: str, number: int, cached: Cached) -> Any:
    customers = Customer.objects.filter(city=city, is_active=True).order_by("name", "pk")
    return as_rows(cached(customers)[number * PAGE : (number + 1) * PAGE])


def _ask_by_status(cached: Cached) -> Any:
    return list(cached(Order.objects.order_by("status").values_list("status").annotate(Count("pk"))))


def _ask_by_agent(team: str, cached: Cached) -> Any:
    orders = Order.objects.filter(agent__team=team, paid_at=None).order_by("agent").values_list("agent")
    return list(cached(orders.annotate(Count("pk"), Sum("total"))))


def _ask_overdue(agent: int, today: datetime.date, cached: Cached) -> Any:
    return cached(Order.objects.filter(agent=agent, due__lt=today, paid_at__isnull=True)).count()


def _ask_choices(cached: Cached) -> Any:
    return list(cached(Agent.objects.filter(is_active=True).order_by("name", "pk").values_list("pk", "name")))


def _ask_waiting(city: str, cached: Cached) -> Any:
    waiting = Order.objects.filter(customer=OuterRef("pk"), status="new")
    return as_rows(cached(Customer.objects.filter(Exists(waiting), city=city).order_by("name", "pk"))[:PAGE])


def _ask_not_done(agent: int, cached: Cached) -> Any:
    orders = Order.objects.filter(agent=agent).exclude(status__in=("done", "cancelled")).order_by("due", "pk")
    return list(cached(orders.values_list("pk", "reference", "due", "priority"))[:PAGE])


def _ask_cities(segment: str, cached: Cached) -> Any:
    return list(
        cached(Customer.objects.filter(segment=segment).order_by("city").values_list("city", flat=True).distinct())
    )


def _ask_months(cached: Cached) -> Any:
    return list(cached(Order.objects.datetimes("created", "month")))
