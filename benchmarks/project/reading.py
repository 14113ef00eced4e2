"""A reader of benchmarks.history: asks random questions through the cache, and checks each answer against the book."""

from __future__ import annotations

import random
import time
from pathlib import Path
from typing import Any

from django.db import InterfaceError, OperationalError, connection, transaction

from benchmarks.project.asking import Statements
from benchmarks.project.book import ASKED, ERRORS, HITS, READS, RUN, STALE, STOPPED_READERS, WRONG, Book
from benchmarks.project.lags import Lags, now_us
from benchmarks.project.models import Item
from benchmarks.project.questions import Question, questions
from benchmarks.project.systems import current
from benchmarks.project.workers import is_orphan

__all__ = ["Reader"]

_MAX_SAMPLES = 5
_HOT_READS, _HOT_STRIDE = 0.6, 6
"""Share of the reads that ask few questions, and every how many-th question is one of those."""
_SNAPSHOT_SQL = {
    "postgresql": "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
    "mysql": "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ",
}


class Reader:
    """
    One reader process.

    Args:
        in_snapshots: Whether half of the reads are in transactions that see an old snapshot.
        is_database_failing: Whether a read may fail because the database is away.
        lags: Where reads that show less than was committed when they began are counted. None: such a read is stale.
        max_lag_ms: How much less a read may show: what was committed longer ago than that must be there.
    """

    def __init__(
        self,
        slot: int,
        book: Book,
        chance: random.Random,
        directory: Path,
        *,
        in_snapshots: bool,
        is_database_failing: bool,
        lags: Lags | None = None,
        max_lag_ms: float = 0.0,
    ) -> None:
        self.slot = slot
        self.book = book
        self.chance = chance
        self.samples = directory / f"samples-{slot}.txt"
        self.system = current()
        self.questions = questions()
        self.in_snapshots = in_snapshots
        self.is_database_failing = is_database_failing
        self.lags, self.max_lag_us = lags, max_lag_ms * 1000
        if in_snapshots and connection.vendor == "sqlite":
            connection.settings_dict["OPTIONS"]["transaction_mode"] = "DEFERRED"
        self.statements = Statements()
        if in_snapshots and connection.vendor in _SNAPSHOT_SQL:
            with connection.cursor() as cursor:
                cursor.execute(_SNAPSHOT_SQL[connection.vendor])

    def run(self) -> None:
        """Read until the writers have stopped, and then everything once more."""
        while self.book.phase == RUN and not is_orphan():
            try:
                self._read_in_some_way()
            except (OperationalError, InterfaceError):
                if not self.is_database_failing:
                    raise
                connection.close_if_unusable_or_obsolete()
            except Exception as error:  # cachalot asks its Redis at the end of each atomic(); ours raises nothing there
                if self.system.name == "live_cache":
                    raise
                self.book.readers.add(self.slot, ERRORS, 1)
                self._sample(f"outside of a question: {error!r}")
                connection.close()
        while self.book.phase != STOPPED_READERS and not is_orphan():
            time.sleep(0.001)
        self._read_everything()

    def _read_in_some_way(self) -> None:
        if self.in_snapshots and self.chance.random() < 0.2:
            self._read_in_snapshot()
        elif not self.in_snapshots and connection.vendor != "sqlite" and self.chance.random() < 0.1:
            with transaction.atomic():  # READ COMMITTED, so each read shows what is committed before it
                for _ in range(3):
                    self._read(self.book.floors())
        else:
            self._read(self.book.floors())

    def _forgive(self, question: Question, answer: Any, began_us: int, ceilings: list[int]) -> bool:
        """Return whether the answer is no older than it may be in bounded mode; count how old it is."""
        if self.lags is None:
            return False
        lag_us = self.lags.lag_us(began_us, lambda floors: not question.find_fault(answer, floors, ceilings))
        self.lags.count(self.slot, lag_us)
        return lag_us <= self.max_lag_us

    def _read_in_snapshot(self) -> None:
        floors = self.book.floors()
        with transaction.atomic():
            with self.system.truth():
                Item.objects.count()  # from here on the transaction sees what there is now
            time.sleep(0.02 * self.chance.random())
            for _ in range(3):
                self._read(floors)

    def _read(self, floors: list[int]) -> None:
        is_hot = self.chance.random() < _HOT_READS
        question = self.chance.choice(self.questions[::_HOT_STRIDE] if is_hot else self.questions)
        before, began_us = self.statements.count, now_us()
        try:
            answer = question.ask(self.system.cached)
        except Exception as error:  # a Redis that is down; ours must not let it through
            if self.is_database_failing and isinstance(error, OperationalError | InterfaceError):
                raise
            self.book.readers.add(self.slot, ERRORS, 1)
            self._sample(f"{question.name}: {error!r}")
            connection.close_if_unusable_or_obsolete()
            return
        is_hit = self.statements.count == before
        ceilings = self.book.ceilings()
        fault = question.find_fault(answer, floors, ceilings)
        if fault and self._forgive(question, answer, began_us, ceilings):
            fault = ""
        self.book.readers.add(self.slot, READS, 1)
        self.book.readers.add(self.slot, HITS, is_hit)
        if fault:
            self.book.readers.add(self.slot, STALE, 1)
            self._sample(f"{question.name}{' (hit)' if is_hit else ''}: {fault}")

    def _read_everything(self) -> None:
        """Ask every question through the cache, with nobody writing, and compare with the database."""
        connection.close()  # its server may be another one by now
        time.sleep(self.max_lag_us / 1e6)
        for question in self.questions:
            is_wrong = [self._is_wrong(question) for _ in range(2)]
            self.book.readers.add(self.slot, WRONG, any(is_wrong))
            self.book.readers.add(self.slot, ASKED, 1)

    def _is_wrong(self, question: Question) -> bool:
        answer = question.ask(self.system.cached)
        with self.system.truth():
            truth = question.ask(_plain)
        if answer != truth:
            self._sample(f"at the end, {question.name}: {answer}, not {truth}")
        return bool(answer != truth)

    def _sample(self, text: str) -> None:
        if self.samples.exists() and len(self.samples.read_text().splitlines()) >= _MAX_SAMPLES:
            return
        with self.samples.open("a") as file:
            file.write(text + "\n")


def _plain(queryset: Any) -> Any:
    return queryset
