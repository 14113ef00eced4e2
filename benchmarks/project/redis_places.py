"""The Redis of one run: a single server, one behind a Sentinel, or a cluster; and how it fails."""

from __future__ import annotations

import os
import random
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Final

import redis

from tests import server_programs
from tests.redis_groups import N_PRIMARIES, start_cluster, start_sentinels

__all__ = ["RedisPlace", "start_redis_place"]

_FREEZE_S: Final = (0.02, 1.5)
_LOST_S: Final = (0.0, 0.6)
_FULL_S: Final = (0.1, 0.5)
_POLICIES: Final = (
    "allkeys-lru",
    "allkeys-lfu",
    "allkeys-random",
    "volatile-lru",
    "volatile-lfu",
    "volatile-random",
    "volatile-ttl",
    "noeviction",
)
_MOVED_SLOTS: Final = 300


class RedisPlace(ABC):
    """
    Where entries and ledger of the run lie.

    Attributes:
        url: As LOCATION takes it.
        faults: What can go wrong here, by the name that benchmarks.history has for it.
    """

    url: str
    faults: Mapping[str, Callable[[random.Random], None]]

    @abstractmethod
    def close(self) -> None:
        """Stop the servers."""


class SingleRedis(RedisPlace):
    """One server."""

    def __init__(self) -> None:
        self._server = server_programs.start_redis()
        self.url = f"redis://127.0.0.1:{self._server.port}/0"
        self.faults = {"restart": self._restart, "freeze": self._freeze, "full": self._fill}

    def _restart(self, chance: random.Random) -> None:
        """Kill the server and start it again, empty, at its port."""
        self._server.crash()
        self._server.start_again()

    def _freeze(self, chance: random.Random) -> None:
        """Stop the server for a moment, as a machine without time does: it answers late what it was asked."""
        os.kill(self._server.process.pid, signal.SIGSTOP)
        time.sleep(chance.uniform(*_FREEZE_S))
        os.kill(self._server.process.pid, signal.SIGCONT)

    def _fill(self, chance: random.Random) -> None:
        """Leave the server less memory than it uses for a moment, under one of the policies of eviction."""
        with redis.Redis.from_url(self.url) as client:
            client.config_set("maxmemory-policy", chance.choice(_POLICIES))
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] * chance.uniform(0.6, 1.0)))
            time.sleep(chance.uniform(*_FULL_S))
            client.config_set("maxmemory", 0)

    def close(self) -> None:
        """See RedisPlace.close()."""
        self._server.stop(kill=True)


class SentinelRedis(RedisPlace):
    """A primary and a replica behind a Sentinel."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._group = self._stack.enter_context(start_sentinels())
        self.url = self._group.url
        self.faults = {"failover": lambda chance: self._group.lose_primary(lost_s=chance.uniform(*_LOST_S))}

    def close(self) -> None:
        """See RedisPlace.close()."""
        self._stack.close()


class ClusterRedis(RedisPlace):
    """Three primaries with a replica each."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._group = self._stack.enter_context(start_cluster(n_replicas=1))
        self.url = self._group.url
        self.faults = {
            "failover": lambda chance: self._group.lose_primary(
                chance.randrange(N_PRIMARIES), lost_s=chance.uniform(*_LOST_S)
            ),
            "reshard": lambda chance: self._group.move_slots(chance.randrange(N_PRIMARIES), _MOVED_SLOTS),
        }

    def close(self) -> None:
        """See RedisPlace.close()."""
        self._stack.close()


def start_redis_place(location: str) -> RedisPlace:
    """Start what *location*, one of systems.LOCATIONS, needs; where it needs no Redis, a single server."""
    if "sentinel" in location:
        return SentinelRedis()
    return ClusterRedis() if "cluster" in location else SingleRedis()
