"""What a workload is: reads and writes drawn at random, by weight, from a seed and nothing else."""

from __future__ import annotations

import datetime
import itertools
import random
from abc import ABC, abstractmethod
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, TypeAlias, TypeVar

from django.db.models import Model, QuerySet

from benchmarks.project.systems import System

__all__ = ["Cached", "Popularity", "Read", "Weighted", "Workload", "as_rows"]

T = TypeVar("T")
Cached: TypeAlias = Callable[[QuerySet[Any]], Any]
_START: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


@dataclass(frozen=True, slots=True)
class Read:
    """One read of one query."""

    kind: str
    parameters: tuple[object, ...]
    """With the kind, what tells this query from every other one."""
    ask: Callable[[Cached], Any]
    """Takes what makes a queryset cached, and returns plain data, in an order that the query determines."""


class Weighted:
    """Calls one of several functions, each as often as its weight says."""

    def __init__(self, chance: random.Random, parts: Sequence[tuple[int, Callable[[], Any]]]) -> None:
        self._chance = chance
        self._functions = [function for _, function in parts]
        self._sums = list(itertools.accumulate(weight for weight, _ in parts))

    def call(self) -> Any:
        """Call one, and return what it returns."""
        return self._chance.choices(self._functions, cum_weights=self._sums)[0]()


class Popularity:
    """
    Draws ranks by Zipf's law: the n-th most popular thing is asked for ``n ** -exponent`` as often as the first.

    Requests for web pages follow it with exponents from 0.6 to 1 (Breslau and others, "Web Caching and Zipf-like
    Distributions", 1999).
    """

    def __init__(self, chance: random.Random, exponent: float) -> None:
        self._chance = chance
        self._exponent = exponent
        self._sums: list[float] = []

    def rank(self, n: int) -> int:
        """Return a rank from 0 to n - 1."""
        while len(self._sums) < n:
            weight = (len(self._sums) + 1) ** -self._exponent
            self._sums.append((self._sums[-1] if self._sums else 0.0) + weight)
        return min(bisect(self._sums, self._chance.random() * self._sums[n - 1]), n - 1)

    def of(self, things: Sequence[T]) -> T:
        """Return one of *things*, of which the first is the most popular."""
        return things[self.rank(len(things))]


class Workload(ABC):
    """
    A site: its rows, its reads and its writes.

    What is drawn depends on the seed alone, never on an answer, so that every system is asked the same. Rows that a
    write needs are read plainly, under System.truth(); the writes are those that the documentation of the system wants.
    """

    name: ClassVar[str]

    def __init__(self, system: System, seed: int) -> None:
        self.system = system
        self.chance = random.Random(f"{seed} {self.name}")
        self.now = _START
        self._reads = Weighted(self.chance, self.reads())
        self._writes = Weighted(self.chance, self.writes())

    @abstractmethod
    def fill(self) -> None:
        """Make the rows."""

    @abstractmethod
    def reads(self) -> Sequence[tuple[int, Callable[[], Read]]]:
        """Return what draws a read of each kind, with its weight."""

    @abstractmethod
    def writes(self) -> Sequence[tuple[int, Callable[[], None]]]:
        """Return every kind of write, with its weight."""

    def read(self) -> Read:
        """Draw a read."""
        self.now += datetime.timedelta(seconds=1)
        read: Read = self._reads.call()
        return read

    def write(self) -> None:
        """Write something."""
        self.now += datetime.timedelta(seconds=1)
        self._writes.call()

    def popularity(self, exponent: float = 1.0) -> Popularity:
        """Return a law of popularity that draws from the seed."""
        return Popularity(self.chance, exponent)

    def one(self, model: type[Model], pk: object) -> Any:
        """Return one instance from the database."""
        with self.system.truth():
            return model._default_manager.get(pk=pk)

    def pks(self, model: type[Model]) -> list[Any]:
        """Return the primary keys of *model*, in an order drawn from the seed: the most popular first."""
        with self.system.truth():
            found = list(model._default_manager.order_by("pk").values_list("pk", flat=True))
        self.chance.shuffle(found)
        return found


def as_rows(instances: Iterable[Model], *related: str) -> list[tuple[Any, ...]]:
    """Return what *instances* and the named objects of each show, without what was deferred."""
    return [
        tuple(
            value
            for one in (instance, *(_follow(instance, path) for path in related))
            if one is not None
            for value in _loaded(one)
        )
        for instance in instances
    ]


def _follow(instance: Model, path: str) -> Model | None:
    found: Any = instance
    for name in path.split("__"):
        found = found and getattr(found, name)
    return found if isinstance(found, Model) else None


def _loaded(instance: Model) -> list[Any]:
    names = [field.attname for field in instance._meta.concrete_fields]
    return [instance.__dict__[name] for name in names if name in instance.__dict__]
