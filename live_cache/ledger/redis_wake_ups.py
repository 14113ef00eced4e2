"""
Wake-ups over Redis: each script that changes a clock publishes an empty message on a channel named as the clock's key.

redis-py opens a lost connection again without a word, and what was published in between is gone. That is no harm: a
wake-up is a hint. But the server confirms every subscription, also those after such a loss, and a confirmation that was
not waited for tells that there was one.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from live_cache.ledger.wake_ups import WakeUps
from live_cache.redis_connection import RedisConnection

__all__ = ["RedisWakeUps"]

logger = logging.getLogger("live_cache.ledger")

LONGEST_WAIT_S: Final = 0.05
"""In which a clock that is followed from now on is not heard, and a wake() of this process waits."""
PAUSE_S: Final = 0.25
"""After the second failure on end."""


class RedisWakeUps(WakeUps):
    """
    The wake-ups of a RedisLedger. One connection, opened by the first wait() with clocks.

    Args:
        key_of: Returns the key of a clock.
    """

    def __init__(self, connection: RedisConnection, key_of: Callable[[str], bytes]) -> None:
        self._connection = connection
        self._key_of = key_of
        self._pubsub: Any = None
        self._clocks: dict[bytes, str] = {}
        self._is_silent = False

    def wait(self, clocks: Collection[str], timeout_s: float) -> frozenset[str] | None:
        """See WakeUps.wait()."""
        if not clocks:
            self.close()
            time.sleep(min(timeout_s, LONGEST_WAIT_S))
            return frozenset()
        try:
            self._subscribe(clocks)
            told = self._hear(min(timeout_s, LONGEST_WAIT_S))
        except self._connection.driver_errors:
            self.close()
            if self._is_silent:
                time.sleep(min(timeout_s, PAUSE_S))
            else:
                self._is_silent = True
                logger.warning("Redis at %s tells of no ticks; it is looked at instead.", self._connection.shown)
            return None
        if self._is_silent:
            logger.warning("Redis at %s tells of ticks again.", self._connection.shown)
            self._is_silent = False
        return told

    def wake(self, clocks: Iterable[str]) -> None:
        """See WakeUps.wake(). The server tells this process as it does others."""

    def close(self) -> None:
        """See WakeUps.close()."""
        pubsub, self._pubsub = self._pubsub, None
        self._clocks = {}
        if pubsub is not None:
            pubsub.close()

    def _subscribe(self, clocks: Collection[str]) -> None:
        if self._pubsub is None:
            client: Any = self._connection.client  # redis-py does not annotate it
            self._pubsub = client.pubsub()
        if len(clocks) == len(self._clocks) and set(clocks) == set(self._clocks.values()):
            return
        wanted = {self._key_of(clock): clock for clock in clocks}
        if new := wanted.keys() - self._clocks.keys():
            self._pubsub.subscribe(*new)
        if old := self._clocks.keys() - wanted.keys():
            self._pubsub.unsubscribe(*old)
        self._clocks = wanted

    def _hear(self, timeout_s: float) -> frozenset[str]:
        """Return the clocks that were told, and those whose subscription has just been confirmed."""
        told: set[str] = set()
        while (message := self._pubsub.get_message(timeout=0 if told else timeout_s)) is not None:
            clock = self._clocks.get(message["channel"])
            if clock is not None and message["type"] in ("message", "subscribe"):
                told.add(clock)
        return frozenset(told)
