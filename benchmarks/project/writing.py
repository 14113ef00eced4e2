"""
A writer of benchmarks.history: every kind of write, each adding exactly one to the version of its rows.

The first rows belong to one writer each, which saves them in autocommit mode: read, add, save. All other rows are
everybody's, and only written where the database does the sum, or under a lock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from django.db import DatabaseError, connection, transaction
from django.db.models import F

from benchmarks.project.answers import ITEMS, ROWS, SHELVES, group_of
from benchmarks.project.book import COMMITS, FAILURES, FALSE_ALARMS, OPERATION, ROLLBACKS, RUN, Book
from benchmarks.project.models import Item, Maker, Mark
from benchmarks.project.systems import current
from benchmarks.project.workers import is_orphan

__all__ = ["Writer"]

_BY_ONE: dict[str, Any] = {"shelf": (F("version") + 1) % SHELVES, "version": F("version") + 1}
# MariaDB takes the assignments one after another, so the shelf comes first.


class _RollBack(Exception):
    """Leaves an atomic block on purpose."""


class Writer:
    """
    One writer process.

    Args:
        slot: Its number. One that takes the place of a killed one has the same.
        has_unknown_outcomes: Whether a write may be killed or fail without an answer. Then each is marked in its own
            transaction, and those that cannot be are left out.
        is_database_failing: Whether the answer to a COMMIT may be lost. Where it is not, a write that raises must not
            have been committed.
    """

    def __init__(
        self,
        slot: int,
        book: Book,
        chance: random.Random,
        directory: Path,
        *,
        has_unknown_outcomes: bool,
        is_database_failing: bool = False,
    ) -> None:
        self.slot = slot
        self.samples = directory / f"samples-writer-{slot}.txt"
        self.is_database_failing = is_database_failing
        self.book = book
        self.chance = chance
        self.system = current()
        self.shared = list(range(book.writers.rows, ITEMS))
        self.writes: list[Callable[[], None]] = [
            self.save,
            self.save_locked,
            self.update_group,
            self.bulk_update,
            self.upsert,
            self.raw_in_transaction,
            self.update_maker,
            self.roll_back,
            self.savepoint,
        ]
        if not has_unknown_outcomes:
            self.writes += [self.update, self.raw]

    def run(self, *, pause_s: float) -> None:
        """Write until the book says stop: a few times without a pause, then one of up to *pause_s*, and again."""
        self.find_outcome()
        while self.book.phase == RUN and not is_orphan():
            if self.chance.random() < 0.3:
                time.sleep(pause_s * self.chance.random())
            while self.book.is_quiet and self.book.phase == RUN and not is_orphan():
                time.sleep(0.001)
            try:
                self.chance.choice(self.writes)()
            except DatabaseError as error:  # a deadlock, a lock that took too long, a refused commit
                self.book.writers.add(self.slot, FAILURES, 1)
                is_committed = self._find_outcome_when_there_is_a_database()
                if is_committed and not self.is_database_failing:
                    self.book.writers.add(self.slot, FALSE_ALARMS, 1)
                    with self.samples.open("a") as file:
                        file.write(f"A write was committed and raised {error!r}\n")
            except Exception:  # a peer's cache does not answer; ours raises none of these
                if self.system.name == "live_cache":
                    raise
                self.book.writers.add(self.slot, FAILURES, 1)
                self.find_outcome()

    def find_outcome(self) -> bool:
        """
        Ask the database what became of the last write, of this process or of the killed one before it.

        Returns:
            Whether there was one that was begun, and it was committed.
        """
        rows = self.book.open_rows(self.slot)
        if not rows:
            return False
        with self.system.truth(), transaction.atomic():
            mark = Mark.objects.select_for_update().get(pk=self.slot + 1)  # waits for the end of that transaction
            if rows == [self.slot]:  # our own row: its version is the number of our commits
                own = Item.objects.select_for_update().get(pk=self.slot + 1)
                is_committed = own.version == self.book.begun.get(self.slot, self.slot)
            else:
                is_committed = mark.operation == self.book.writers.get(self.slot, OPERATION)
        if is_committed:
            self.book.committed(self.slot, rows)
        else:
            self.book.rolled_back(self.slot, rows)
        return is_committed

    def _find_outcome_when_there_is_a_database(self) -> bool:
        while not is_orphan():
            try:
                connection.close_if_unusable_or_obsolete()
                return self.find_outcome()
            except DatabaseError:
                time.sleep(0.02)
        return False

    # -- in autocommit mode ---------------------------------------------------------------------------------------

    def save(self) -> None:
        """Save our own row, without a transaction around it."""
        item = self._one(self.slot)
        self._count_up(item)
        self.book.begin(self.slot, [self.slot])
        item.save()
        self._committed([self.slot])

    def update(self) -> None:
        """Let the database add, in one UPDATE."""
        row = self.chance.choice(self.shared)
        self._next_operation()
        self.book.begin(self.slot, [row])
        self.system.update(Item.objects.filter(pk=row + 1), **_BY_ONE)
        self._committed([row])

    def raw(self) -> None:
        """Do the same in SQL."""
        row = self.chance.choice(self.shared)
        self._next_operation()
        self.book.begin(self.slot, [row])
        self._execute(row)
        self._committed([row])

    # -- in transactions ------------------------------------------------------------------------------------------

    def save_locked(self) -> None:
        """Lock a row, read it, add and save."""
        row = self.chance.choice(self.shared)

        def write() -> None:
            item = self._locked([row])[0]
            self._count_up(item)
            item.save(update_fields=["shelf", "version"] if self.chance.random() < 0.5 else None)

        self._in_transaction([row], write)

    def update_group(self) -> None:
        """Update the rows of a group at once."""
        group = self.chance.choice([group_of(row) for row in self.shared])
        rows = [row for row in self.shared if group_of(row) == group]
        items = Item.objects.filter(group=group, pk__gt=self.book.writers.rows)
        self._in_transaction(rows, lambda: self.system.update(items, **_BY_ONE))

    def bulk_update(self) -> None:
        """Lock some rows, and write them with bulk_update()."""
        rows = self._some()

        def write() -> None:
            items = self._locked(rows)
            for item in items:
                self._count_up(item)
            Item.objects.bulk_update(items, ["shelf", "version"])
            self.system.written(Item)

        self._in_transaction(rows, write)

    def upsert(self) -> None:
        """Insert rows that are there, with update_conflicts."""
        rows = self._some()
        unique = None if connection.vendor == "mysql" else ["id"]

        def write() -> None:
            items = self._locked(rows)
            for item in items:
                self._count_up(item)
            Item.objects.bulk_create(
                items, update_conflicts=True, update_fields=["shelf", "version"], unique_fields=unique
            )

        self._in_transaction(rows, write)

    def raw_in_transaction(self) -> None:
        """Run SQL in a transaction."""
        row = self.chance.choice(self.shared)
        self._in_transaction([row], lambda: self._execute(row))

    def update_maker(self) -> None:
        """Write the other table of the joins."""
        row = self.chance.randrange(ITEMS, ROWS)
        makers = Maker.objects.filter(pk=row - ITEMS + 1)
        self._in_transaction([row], lambda: self.system.update(makers, version=F("version") + 1))

    def roll_back(self) -> None:
        """Write, read what was written, and roll back: nobody may ever see it."""
        row = self.chance.choice(self.shared)
        try:
            with transaction.atomic():
                self.system.update(Item.objects.filter(pk=row + 1), **_BY_ONE)
                self.system.cached(Item.objects.all()).get(pk=row + 1)
                list(self.system.cached(Item.objects.filter(group=group_of(row)).order_by("pk")[:ITEMS]))
                raise _RollBack
        except _RollBack:
            self.book.writers.add(self.slot, ROLLBACKS, 1)

    def savepoint(self) -> None:
        """Write two rows, one of them in an inner block that rolls back."""
        kept, undone = sorted(self.chance.sample(self.shared, 2))

        def write() -> None:
            self.system.update(Item.objects.filter(pk=kept + 1), **_BY_ONE)
            try:
                with transaction.atomic():
                    self.system.update(Item.objects.filter(pk=undone + 1), **_BY_ONE)
                    raise _RollBack
            except _RollBack:
                self.book.writers.add(self.slot, ROLLBACKS, 1)

        self._in_transaction([kept], write)

    # -- parts ----------------------------------------------------------------------------------------------------

    def _in_transaction(self, rows: list[int], write: Callable[[], object]) -> None:
        number = self._next_operation()
        self.book.begin(self.slot, rows)
        with transaction.atomic():
            Mark.objects.filter(pk=self.slot + 1).update(operation=number)
            write()
        self._committed(rows)

    def _next_operation(self) -> int:
        """Number a write. One in autocommit mode cannot leave its number behind: if it raises, it is rolled back."""
        number = self.book.writers.get(self.slot, OPERATION) + 1
        self.book.writers.set(self.slot, OPERATION, number)
        return number

    def _committed(self, rows: list[int]) -> None:
        self.book.committed(self.slot, rows)
        self.book.writers.add(self.slot, COMMITS, 1)

    def _some(self) -> list[int]:
        return sorted(self.chance.sample(self.shared, 3))

    def _one(self, row: int) -> Item:
        with self.system.truth():
            return Item.objects.get(pk=row + 1)

    def _locked(self, rows: Sequence[int]) -> list[Item]:
        with self.system.truth():
            return list(Item.objects.select_for_update().filter(pk__in=[row + 1 for row in rows]).order_by("pk"))

    def _count_up(self, item: Item) -> None:
        item.version += 1
        item.shelf = item.version % SHELVES

    def _execute(self, row: int) -> None:
        table = connection.ops.quote_name(Item._meta.db_table)
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {table} SET shelf = (version + 1) %% {SHELVES}, version = version + 1 WHERE id = %s", [row + 1]
            )
        if self.system.name == "cacheops":
            self.system.written(Item)
