"""
One example: random querysets, cached; random writes; and after each write every live read beside the plain one.

Some writes are staged: another connection writes, and both read, while a reader stands around its SELECT, or a writer
around its COMMIT.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from django.core.exceptions import FieldError, MultipleObjectsReturned
from django.db import Error, connections
from django.db.models import ProtectedError, RestrictedError
from django.db.models.sql.query import Query

from live_cache import recording
from live_cache.assembly import close_all, get_assembly
from tests.conftest import SecondConnection
from tests.machine.faults import Holds
from tests.precision.ground import Ground
from tests.precision.querysets import Asked, Dice, draw_queryset
from tests.precision.writes import draw_write

__all__ = ["Machine", "StaleError"]

_REFUSED = (
    Error,
    FieldError,
    ProtectedError,
    RestrictedError,
    ValueError,
    TypeError,
    AttributeError,
    NotImplementedError,
)
_REFUSED_WRITE = (*_REFUSED, MultipleObjectsReturned)
_N_QUERYSETS = 6
_N_WRITES = 8

_PATIENCE = {
    "sqlite": "PRAGMA busy_timeout = 1",
    "postgresql": "SET lock_timeout = '5ms'",
    "mysql": "SET innodb_lock_wait_timeout = 1",
}


class StaleError(AssertionError):
    """A live read that is not what the database says."""


class Machine:
    """Runs examples on one database."""

    def __init__(self, alias: str, holds: Holds, *, is_shared: bool = False) -> None:
        self.alias = alias
        self.holds = holds
        self.is_shared = is_shared
        self.ground = Ground(alias)
        self.counts: Counter[str] = Counter()
        self.other = SecondConnection(alias)
        self._thread_id = threading.get_ident()
        for run in (lambda call, *args: call(*args), self.other.run):
            run(self._be_impatient)
        self._notes: list[str] = []
        self._asked: list[Asked] = []

    def _be_impatient(self) -> None:
        connection = connections[self.alias]
        with connection.cursor() as cursor:
            cursor.execute(_PATIENCE[connection.vendor])

    def close(self) -> None:
        """Drop what was made."""
        self.other.close()
        self.ground.close()

    def run(self, seed: int) -> None:
        """Run the example *seed*; raise StaleError if a live read differs."""
        rng = Dice(seed)
        self.holds.clear()
        self.ground.restore()
        if self.is_shared:
            get_assembly().store.clear()
            get_assembly().ledger.reset()
        else:
            close_all()
        self._notes = [f"seed {seed} on {self.alias}"]
        self._asked = []
        self._draw(rng)
        self._compare(self._asked)
        for _ in range(_N_WRITES):
            chance = rng.random()
            if chance < 0.1:
                self._hold_a_reader(rng)
            elif chance < 0.25:
                self._hold_a_writer(rng)
            elif chance < 0.4:
                self._hold_a_link(rng)
            else:
                self._write(rng)
            self._compare(self._asked)
        self.counts["examples"] += 1

    def _draw(self, rng: Dice) -> None:
        while len(self._asked) < _N_QUERYSETS:
            try:
                asked = draw_queryset(rng, self.alias)
                asked.expected()
            except _REFUSED:
                self.counts["refused querysets"] += 1
                continue
            self._asked.append(asked)

    def _write(self, rng: Dice) -> None:
        write = draw_write(rng, self.alias)
        try:
            write.run()
        except _REFUSED_WRITE as error:
            write.notes.append(f"refused: {type(error).__name__}")
            self.counts["refused writes"] += 1
        self.counts["writes"] += 1
        self._notes.append(" ".join(write.notes))

    def _compare(self, all_asked: list[Asked], who: str = "") -> None:
        for asked in all_asked:
            expected = asked.expected()
            is_changed = asked.seen != expected
            asked.seen = expected
            for turn in ("first", "second"):
                with recording() as reads:
                    found = asked.found()
                is_hit = bool(reads) and all(read.is_hit for read in reads)
                if not asked.agrees(found, expected):
                    raise StaleError(self._story(asked, f"{who}{turn} read {reads}", found, expected))
                if turn == "first":
                    self.counts["hits" if is_hit else "misses"] += 1
                    if is_hit:
                        self.counts["hits of changed" if is_changed else "hits of unchanged"] += 1
                    elif reads and reads[0].cache_key and not is_changed:
                        self.counts["needless misses"] += 1
                if is_hit or (reads and not reads[0].cache_key):
                    break

    def _story(self, asked: Asked, how: str, found: Any, expected: Any) -> str:
        query: Query = asked.plain.query
        with suppress(Exception):
            how += f"\n{query}"
        return f"{asked.text}, {how}\nfound {found}\nwhere the database says {expected}\nafter " + "\n  ".join(
            self._notes
        )

    # -- staged -------------------------------------------------------------------------------------------------------

    def _elsewhere(self, call: Callable[[], Any]) -> Any:
        return self.other.run(call)

    def _hold_a_reader(self, rng: Dice) -> None:
        """While the reader stands around its SELECT, the other connection writes, and reads."""
        asked = rng.choice(self._asked)
        point = rng.choice(Holds.READER)
        self._notes.append(f"at {point!r} of a reader")
        get_assembly().store.clear()

        def meanwhile() -> None:
            self._elsewhere(lambda: self._write(rng))

        self.holds.at(self._thread_id, point, meanwhile)
        asked.found()
        self.holds.clear()
        self._notes.append("(read)")

    def _hold_a_link(self, rng: Dice) -> None:
        """While a reader stands around the SELECT of a link set, the other connection writes."""
        self._write(rng)
        point = rng.choice(Holds.LINK)
        self._notes.append(f"at {point!r} of a reader")

        def meanwhile() -> None:
            self.counts["held links"] += 1
            self._elsewhere(lambda: self._write(rng))

        self.holds.at(self._thread_id, point, meanwhile)
        for asked in self._asked:
            before = asked.expected()
            with recording() as reads:
                found = asked.found()
            after = asked.expected()
            if not (asked.agrees(found, before) or asked.agrees(found, after)):
                raise StaleError(self._story(asked, f"{point} read {reads}", found, after))
        self.holds.clear()
        self._notes.append("(read)")

    def _hold_a_writer(self, rng: Dice) -> None:
        """While the writer stands around its COMMIT, the other connection reads, writes, and reads."""
        point = rng.choice(Holds.WRITER)
        self._notes.append(f"at {point!r} of the next but one write")

        def meanwhile() -> None:
            self._elsewhere(lambda: self._compare(self._asked, "other: "))
            self._elsewhere(lambda: self._write(rng))
            self._elsewhere(lambda: self._compare(self._asked, "other: "))

        self.holds.at(self._thread_id, point, meanwhile)
        self._write(rng)
        self.holds.clear()
