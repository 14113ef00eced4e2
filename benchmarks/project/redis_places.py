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

from benchmarks.project.link import Link
from tests import server_programs
from tests.redis_groups import N_PRIMARIES, start_cluster, start_sentinels
from tests.server_programs import Started

__all__ = ["RedisPlace", "start_redis_place"]

_SHORTEST_S: Final = 0.02
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
        link: The way to a single server, if it can be paused.
        longest_s: How long a primary may not answer. A replica that is promoted meanwhile leaves a primary behind that
            does not know it, for a moment: docs/explanation/limits.md.
    """

    url: str
    link: Link | None = None
    longest_s = 1.5

    def __init__(self) -> None:
        self.faults: Mapping[str, Callable[[random.Random], None]] = {
            "restart": self._restart,
            "freeze": self._freeze,
            "full": self._fill,
            "cut": self._cut,
        }

    @abstractmethod
    def close(self) -> None:
        """Stop the servers."""

    def flush(self, chance: random.Random) -> None:
        """Empty a primary."""
        with self._client(self._primary(chance)) as client:
            client.flushall()

    @abstractmethod
    def _primary(self, chance: random.Random) -> Started:
        """Return one of the primaries."""

    def _client(self, server: Started) -> redis.Redis:
        """Return a client of one server."""
        return redis.Redis(port=server.port)

    def _sleep(self, chance: random.Random) -> None:
        time.sleep(chance.uniform(_SHORTEST_S, self.longest_s))

    def _restart(self, chance: random.Random) -> None:
        """Kill a primary and start it again, empty, at its port."""
        server = self._primary(chance)
        server.crash()
        server.start_again()

    def _freeze(self, chance: random.Random) -> None:
        """Stop a primary for a moment, as a machine without time does: it answers late what it was asked."""
        server = self._primary(chance)
        os.kill(server.process.pid, signal.SIGSTOP)
        self._sleep(chance)
        os.kill(server.process.pid, signal.SIGCONT)

    def _fill(self, chance: random.Random) -> None:
        """Leave a primary less memory than it uses for a moment, under one of the policies of eviction."""
        with self._client(self._primary(chance)) as client:
            client.config_set("maxmemory-policy", chance.choice(_POLICIES))
            client.config_set("maxmemory", int(client.info("memory")["used_memory"] * chance.uniform(0.6, 1.0)))
            time.sleep(chance.uniform(*_FULL_S))
            client.config_set("maxmemory", 0)

    def _cut(self, chance: random.Random) -> None:
        """Cut the connections on which processes hear of ticks, or all, and let no new one in for a moment."""
        with self._client(self._primary(chance)) as client:
            if chance.random() < 0.5:
                _kill_clients(client, lambda flags: "P" in flags)
                return
            limit = client.config_get("maxclients")["maxclients"]
            client.config_set("maxclients", 1)
            _kill_clients(client, lambda flags: True)
            self._sleep(chance)
            client.config_set("maxclients", limit)


def _kill_clients(client: redis.Redis, is_meant: Callable[[str], bool]) -> None:
    """Kill the connections of clients with such flags. A primary without its Sentinel would soon be one of two."""
    own = str(client.client_id())
    for each in client.client_list():
        is_of_group = each["name"].startswith("sentinel-") or "S" in each["flags"]
        if each["id"] != own and not is_of_group and is_meant(each["flags"]):
            client.client_kill_filter(_id=each["id"])


class SingleRedis(RedisPlace):
    """
    One server.

    Args:
        is_linked: Whether there is a network before it that can pause.
    """

    def __init__(self, *, is_linked: bool) -> None:
        super().__init__()
        self._server = server_programs.start_redis()
        self.link = Link("127.0.0.1", self._server.port) if is_linked else None
        self.url = f"redis://127.0.0.1:{(self.link or self._server).port}/0"

    def close(self) -> None:
        """See RedisPlace.close()."""
        if self.link is not None:
            self.link.close()
        self._server.stop(kill=True)

    def _primary(self, chance: random.Random) -> Started:
        return self._server


class SentinelRedis(RedisPlace):
    """A primary and a replica behind a Sentinel, which waits half a second before it promotes the replica."""

    longest_s = 0.2

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._group = self._stack.enter_context(start_sentinels())
        self.url = self._group.url
        self.faults = {
            **self.faults,
            "failover": lambda chance: self._group.lose_primary(lost_s=chance.uniform(*_LOST_S)),
        }

    def close(self) -> None:
        """See RedisPlace.close()."""
        self._stack.close()

    def _primary(self, chance: random.Random) -> Started:
        return self._group.primary

    def _client(self, server: Started) -> redis.Redis:
        return self._group.client(server.port)


class ClusterRedis(RedisPlace):
    """Three primaries with a replica each, which take a second to miss one."""

    longest_s = 0.5

    def __init__(self) -> None:
        super().__init__()
        self._stack = ExitStack()
        self._group = self._stack.enter_context(start_cluster(n_replicas=1))
        self.url = self._group.url
        self.faults = {
            **self.faults,
            "failover": lambda chance: self._group.lose_primary(
                chance.randrange(N_PRIMARIES), lost_s=chance.uniform(*_LOST_S)
            ),
            "reshard": lambda chance: self._group.move_slots(chance.randrange(N_PRIMARIES), _MOVED_SLOTS),
        }

    def close(self) -> None:
        """See RedisPlace.close()."""
        self._stack.close()

    def _primary(self, chance: random.Random) -> Started:
        return self._group.primary(chance.randrange(N_PRIMARIES))


def start_redis_place(location: str, *, is_linked: bool = False) -> RedisPlace:
    """
    Start what *location*, one of systems.LOCATIONS, needs; where it needs no Redis, a single server.

    Args:
        is_linked: Whether the way to a single server can be paused.
    """
    if "sentinel" in location:
        return SentinelRedis()
    return ClusterRedis() if "cluster" in location else SingleRedis(is_linked=is_linked)
