"""
Ticks that were sent to Redis and not waited for.

A tick need not be answered before COMMIT returns to its caller, as long as its intent stands: until the tick has been
executed, nobody is served what it drops, and if it is lost, whoever reaps the intent ticks in its place. Only the loss
of the ledger takes the intent away too early. Then a new clock is born with a hold, and what was filled under the hold
is ticked at its end; so it must not end before the COMMIT is over. It stands for one lease from its birth, and that is
after the declaration if the intent was lost. Hence two conditions: less than half of a lease from before the
declaration was sent until after COMMIT, the other half being for clocks that run unequally; and a transaction that had
written before, since a hold ends earlier if the database says that nobody is writing.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from live_cache.exceptions import LedgerUnavailableError
from live_cache.ledger.lease_time import now_s

if TYPE_CHECKING:
    from live_cache.redis_connection import Command, RedisConnection
    from live_cache.redis_exchange import Exchange

__all__ = ["OwedTicks"]

MAX_DECLARED: Final = 1024
"""Intents that are remembered. A tick whose intent is forgotten is waited for."""


@dataclass(frozen=True, slots=True, eq=False)
class _Owed:
    """A tick that was sent and is not known to have arrived."""

    exchange: Exchange
    sent_s: float
    keep: Callable[[], None]


class OwedTicks:
    """
    The ticks of one ledger whose answers this process has not read yet. Safe to share between threads.

    A child of fork() begins with none: the answers are the parent's.

    Args:
        lease_s: Of an intent, and of the hold of a newborn clock.
        clock: Seconds by which leases run.
    """

    def __init__(self, connection: RedisConnection, *, lease_s: float, clock: Callable[[], float] = now_s) -> None:
        self._connection = connection
        self._lease_s = lease_s
        self._clock = clock
        self._declared: dict[str, tuple[float, frozenset[str]]] = {}
        # Read without the lock by everybody, and added to.
        self._owed: list[_Owed] = []
        self._lock = threading.Lock()

    def forgotten(self) -> OwedTicks:
        """Return one that owes nothing, for a child of fork()."""
        return OwedTicks(self._connection, lease_s=self._lease_s, clock=self._clock)

    def declare(self, intent_id: str, clocks: Collection[str], run: Callable[[], object]) -> None:
        """Call *run*, which declares an intent on *clocks*, and remember that it was answered."""
        began_s = self._clock()
        run()
        if len(self._declared) > MAX_DECLARED:  # of writers that never ticked
            self._declared.clear()
        self._declared[intent_id] = began_s + self._lease_s / 2, frozenset(clocks)

    def send(
        self, commands: Sequence[Command], *, intent_id: str, clocks: Collection[str], keep: Callable[[], None]
    ) -> bool:
        """
        Send *commands*, the tick of an intent after its COMMIT, and wait for nothing, if that may be.

        Args:
            keep: Called if it turns out that they may not have arrived.

        Returns:
            Whether they were sent. If not, they are to be run as any other.

        Raises:
            LedgerUnavailableError: They could not be sent.
        """
        until_s, declared = self._declared.pop(intent_id, (0.0, frozenset()))
        if self._clock() >= until_s or not declared.issuperset(clocks) or not self._connection.may_post(commands):
            return False
        sent_s = time.monotonic()
        with self._connection.translating(LedgerUnavailableError):
            exchange = self._connection.post(commands)
        if exchange is None:
            return False
        self._owed.append(_Owed(exchange, sent_s, keep))
        return True

    def settle(self) -> list[BaseException]:
        """
        Read the answers that are owed, as far as they come in the time of a quick call.

        Returns:
            What has become of those ticks that may not have arrived, and are kept now.
        """
        failures: list[BaseException] = []
        if self._owed:
            began_s = time.monotonic()
            with self._lock:
                for owed in tuple(self._owed):
                    self._settle(owed, began_s, failures)
        return failures

    def _settle(self, owed: _Owed, began_s: float, failures: list[BaseException]) -> None:
        connection = self._connection
        try:
            # Others may have been waited for meanwhile, but not for longer than one quick call would take.
            if not connection.settle(owed.exchange, sent_s=owed.sent_s, until_s=began_s + connection.read_timeout_s):
                return
        except BaseException as error:  # an interrupt too: one tick too many is a miss
            owed.keep()
            failures.append(error)
            if not isinstance(error, Exception):
                self._owed.remove(owed)
                raise
        self._owed.remove(owed)
