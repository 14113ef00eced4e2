"""
The writes that benchmarks.saves times, in the process of one system.

The other end sends one request per line, in JSON, and gets one answer per line: which write, on which table, how often,
and whether to time, to count statements, or to profile.
"""

from __future__ import annotations

import cProfile
import datetime
import gc
import itertools
import json
import pstats
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import IO, Any, Final

from django.db import transaction
from django.db.models import F

from benchmarks.project.asking import Statements
from benchmarks.project.models import Article, Draft
from benchmarks.project.settling import settle
from benchmarks.project.systems import System, current

__all__ = ["OPERATIONS", "Saving"]

ROWS: Final = 1000
AUTHORS: Final = 20
MANY: Final = 100
_START: Final = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
CLOCKS: Final = {"wall": time.perf_counter, "cpu": time.process_time}
"""What a profile counts by. That of the processor leaves out what is waited for, and who else is running."""
_PACKAGES: Final = ("site-packages", "live_cache", "benchmarks")


@dataclass(frozen=True, slots=True)
class _Write:
    prepare: Callable[[Any], Any]
    """Takes one row of the table; returns what the write works on. Not timed."""
    run: Callable[[Any], object]


class Saving:
    """Makes the rows, and writes when it is asked to."""

    def __init__(self) -> None:
        self.system: System = current()
        self._numbers = itertools.count()
        self._pks: dict[Any, Iterator[int]] = {}
        for model in (Article, Draft):
            made = [self._new(model, number) for number in range(ROWS)]
            model.objects.bulk_create(made, batch_size=200)
            with self.system.truth():
                self._pks[model] = itertools.cycle(list(model.objects.order_by("pk").values_list("pk", flat=True)))
        if self.system.name == "live_cache":
            settle([Article])  # and nothing of the table that nobody watches

    def serve(self, requests: IO[str], answers: IO[str]) -> None:
        """Answer requests until there are no more."""
        for line in requests:
            print(json.dumps(self._answer(**json.loads(line))), file=answers, flush=True)

    def _answer(self, *, operation: str, table: str, count: int, what: str) -> Any:
        model: Any = Article if table == "watched" else Draft
        write = OPERATIONS[operation](self.system)
        if what in CLOCKS:
            return self._profile(write, model, count, CLOCKS[what])
        if what == "statements":
            return self._count_statements(write, model)
        times_us = []
        gc.disable()
        try:
            for _ in range(count):
                subject = self._prepare(write, model)
                cpu_ns, wall_ns = time.process_time_ns(), time.perf_counter_ns()
                write.run(subject)
                wall_ns = time.perf_counter_ns() - wall_ns
                times_us.append((wall_ns / 1000, (time.process_time_ns() - cpu_ns) / 1000))
        finally:
            gc.enable()
        return times_us

    def _prepare(self, write: _Write, model: Any) -> Any:
        """Return what is written, with the queries of a watched table in the cache again."""
        number = next(self._numbers)
        with self.system.truth():
            row = model.objects.get(pk=next(self._pks[model]))
        row.views += 1
        row.words = number
        row.title = f"Title {number}"
        pk, author = row.pk, row.author_number
        subject = write.prepare(row)
        if model is Article:
            self._read(pk, author)
        return subject

    def _read(self, pk: int, author: int) -> None:
        """Read what a site would show of one row and of its neighbours."""
        cached, articles = self.system.cached, Article.objects.filter(author_number=author)
        cached(Article.objects.all()).get(pk=pk)
        list(cached(articles.order_by("-created", "-pk"))[:20])
        list(cached(articles.filter(is_public=True).order_by("price", "pk"))[:20])
        list(cached(Article.objects.filter(price__gte=10, price__lt=20).order_by("price", "pk"))[:20])
        cached(articles).count()

    def _count_statements(self, write: _Write, model: Any) -> int:
        subject = self._prepare(write, model)
        statements = Statements()
        write.run(subject)
        statements.close()
        return statements.count

    def _profile(self, write: _Write, model: Any, count: int, clock: Callable[[], float]) -> list[dict[str, Any]]:
        """Return what most of the time goes to, in microseconds per write, with the cost of the profiler in it."""
        profile = cProfile.Profile(clock)
        for _ in range(count):
            subject = self._prepare(write, model)
            profile.enable()
            write.run(subject)
            profile.disable()
        rows = []
        for (file, line, function), (_, calls, own_s, total_s, _) in pstats.Stats(profile).stats.items():  # type: ignore[attr-defined]
            name = f"{_short(file)}:{line} {function}" if line else function
            rows.append(
                {
                    "function": name,
                    "calls": calls / count,
                    "own_us": own_s * 1e6 / count,
                    "total_us": total_s * 1e6 / count,
                }
            )
        return sorted(rows, key=lambda row: -float(row["own_us"]))

    @staticmethod
    def _new(model: Any, number: int) -> Any:
        return model(
            author_number=number % AUTHORS,
            title=f"Title {number}",
            summary="What it is about. " * 3,
            body="Gallia est omnis divisa in partes tres. " * 10,
            price=Decimal(number % 5000) / 100,
            created=_START + datetime.timedelta(minutes=number),
        )


def _short(file: str) -> str:
    parts = Path(file).parts
    for package in _PACKAGES:
        if package in parts:
            return "/".join(parts[len(parts) - parts[::-1].index(package) - (package != "site-packages") :])
    return "/".join(parts[-2:])


def _save(_: System) -> _Write:
    return _Write(lambda row: row, lambda row: row.save())


def _save_in_atomic(_: System) -> _Write:
    def run(row: Any) -> None:
        with transaction.atomic():
            row.save()

    return _Write(lambda row: row, run)


def _save_fields(_: System) -> _Write:
    return _Write(lambda row: row, lambda row: row.save(update_fields=["title"]))


def _create(_: System) -> _Write:
    def prepare(row: Any) -> Any:
        row.pk, row._state.adding = None, True
        row.author_number = 10**6 + row.words  # so that the lists that are read stay as long as they are
        return row

    return _Write(prepare, lambda row: row.save(force_insert=True))


def _delete(_: System) -> _Write:
    def prepare(row: Any) -> Any:
        copy = type(row)(**{field.attname: getattr(row, field.attname) for field in row._meta.concrete_fields[1:]})
        copy.save()
        return copy

    return _Write(prepare, lambda row: row.delete())


def _update(system: System) -> _Write:
    return _Write(
        lambda row: row,
        lambda row: system.update(type(row).objects.filter(pk=row.pk), views=F("views") + 1),
    )


def _bulk_update(system: System) -> _Write:
    def prepare(row: Any) -> Any:
        model = type(row)
        with system.truth():
            rows = list(model.objects.order_by("pk")[:MANY])
        for one in rows:
            one.words = row.words
        return model, rows

    def run(subject: Any) -> None:
        model, rows = subject
        model.objects.bulk_update(rows, ["words"])
        system.written(model)

    return _Write(prepare, run)


OPERATIONS: Final[dict[str, Callable[[System], _Write]]] = {
    "save()": _save,
    "save() in atomic()": _save_in_atomic,
    "save(update_fields)": _save_fields,
    "create": _create,
    "update()": _update,
    f"bulk_update() of {MANY}": _bulk_update,
    "delete()": _delete,
}
