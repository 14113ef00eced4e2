"""
The contract of every live stream: events that tell what was committed, and where to go on after a pause.

What a stream promises: within one table the events come in the order of the ledger's sequence, none is left out without
a Changed that says so, and a consumer who goes on from a kept position gets what came after it. Between tables there is
no order, and the events of one transaction are not held together. A change may be told twice: by a writer who got no
answer to its tick and repeated it, and to a consumer who goes on from a position before it.
"""

from __future__ import annotations

import base64
import binascii
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from live_cache.exceptions import FrameError
from live_cache.rows.primitives import dump, load
from live_cache.tables import models_of_tables

if TYPE_CHECKING:
    from django.db import models

__all__ = ["Changed", "Deleted", "Inserted", "LiveEvent", "LiveStream", "Position", "Subscription", "Updated"]

_MAX_POSITION_CHARS = 64 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveEvent:
    """What one commit has changed in one table. See the subclasses."""

    table: str
    """As it is called in the database, normalised as in all names of this package."""
    database: str
    """Alias of the database."""
    epoch: bytes = field(repr=False)
    """Of the clock of the table: another one means that the sequence began anew."""
    seq: int
    """Number of the tick in its epoch. The rows of one commit in one table share it."""
    at_ns: int | None = None
    """When it was committed, in nanoseconds since 1970 by the writer's clock, where that is known. For people only."""

    @property
    def model(self) -> type[models.Model] | None:
        """The managed model whose table it is; of several the first."""
        return next(iter(models_of_tables().get(self.table, ())), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed(LiveEvent):
    """Any rows of the table may have been inserted, updated or deleted."""

    is_gap: bool = False
    """Whether events before this one were lost, so that what was derived from earlier ones may be wrong."""
    note: str = ""
    """How the table was written, or why events are missing; for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _RowEvent(LiveEvent):
    key: tuple[Any, ...]
    """Values of the primary key, in the order of its columns, as the database holds them."""

    @property
    def pk(self) -> Any:
        """The value of the primary key; a tuple of values if it is a composite one."""
        return self.key[0] if len(self.key) == 1 else self.key


@dataclass(frozen=True, slots=True, kw_only=True)
class Inserted(_RowEvent):
    """One row was inserted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated(_RowEvent):
    """One row was updated."""

    columns: frozenset[str] | None
    """Columns whose values have changed. None: any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deleted(_RowEvent):
    """One row was deleted."""


@dataclass(frozen=True, slots=True)
class Position:
    """
    How far a consumer has come: the sequence of each of its clocks. str() and parse() keep it as text.

    The text is made of letters, digits, ``-`` and ``_``. It names clocks and holds no rows. Whoever changes it can make
    events come again or be told as a gap, and nothing else.
    """

    seqs: Mapping[str, tuple[bytes, int]]
    """Epoch and seq by clock."""

    def covers(self, event: LiveEvent) -> bool:
        """Return whether *event* is before this position, so that who stands here has seen it."""
        return any(epoch == event.epoch and event.seq <= seq for epoch, seq in self.seqs.values())

    def __str__(self) -> str:
        packed = dump([[clock, epoch, seq] for clock, (epoch, seq) in sorted(self.seqs.items())])
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()

    @classmethod
    def parse(cls, text: str) -> Position:
        """
        Return what str() has made into *text*.

        Raises:
            ValueError: It is no such text.
        """
        try:
            if len(text) > _MAX_POSITION_CHARS:
                raise ValueError("too long")
            packed = base64.b64decode(text.encode("ascii") + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)
            seqs: dict[str, tuple[bytes, int]] = {}
            for clock, epoch, seq in load(packed):
                if type(clock) is not str or type(epoch) is not bytes or type(seq) is not int:
                    raise ValueError("of other types")
                seqs[clock] = epoch, seq
            return cls(seqs)
        except (FrameError, binascii.Error, ValueError, TypeError) as error:
            raise ValueError(f"{text[:60]!r} is no position of a live stream.") from error


class Subscription(ABC):
    """
    The events of some tables, from one moment on. An iterator and an async iterator that never end.

    One consumer at a time takes events, a thread or a task. Nothing is queued: who is slow finds his events in the log
    of the ledger, and a gap if he was too slow for it. In a child of fork() it goes on where the parent was.
    """

    @abstractmethod
    def get(self, timeout_s: float | None = None) -> LiveEvent | None:
        """
        Return the next event, or None if there was none within *timeout_s* seconds. None waits for ever.

        A ledger that does not answer has no events: what happened meanwhile is told when it is back.

        Raises:
            ValueError: The subscription is closed.
        """

    @abstractmethod
    async def aget(self, timeout_s: float | None = None) -> LiveEvent | None:
        """See get(). The event loop is never blocked."""

    @property
    @abstractmethod
    def position(self) -> Position:
        """
        Where to go on after the events that were taken. A commit counts when the last of its events was.

        Keep it after an event was dealt with: who crashes in between gets it again.
        """

    @property
    @abstractmethod
    def age_s(self) -> float | None:
        """
        Seconds since it was last known that there are no events but those that get() returns; None: not yet.

        About a second at most while the ledger answers.
        """

    @abstractmethod
    def close(self) -> None:
        """Stop. Whoever waits in get() is woken."""

    def __iter__(self) -> Iterator[LiveEvent]:
        return self

    def __next__(self) -> LiveEvent:
        try:
            event = self.get()
        except ValueError:
            raise StopIteration from None
        assert event is not None
        return event

    def __aiter__(self) -> AsyncIterator[LiveEvent]:
        return self

    async def __anext__(self) -> LiveEvent:
        try:
            event = await self.aget()
        except ValueError:
            raise StopAsyncIteration from None
        assert event is not None
        return event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


class LiveStream(ABC):
    """A source of live events."""

    @abstractmethod
    def subscribe(
        self, *tables: type[models.Model] | str, using: str = "default", position: Position | None = None
    ) -> Subscription:
        """
        Return the events of *tables* that come from now on, or that came after *position*.

        Every commit that returns after this call is told. Tables that *position* does not know begin with a gap.

        Args:
            tables: Models, with the tables of their parents, or names of tables; at least one.
            using: Alias of the database.

        Raises:
            LedgerUnavailableError: The ledger does not answer.
            ValueError: No table is named.
        """
