"""What goes wrong on purpose in benchmarks.history. All of it from outside: the package has no hooks for it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from benchmarks.project.runs import Bench
from benchmarks.project.systems import current
from benchmarks.project.workers import Workers

__all__ = ["cut", "die_after_commits", "flush", "pause_fills", "stop"]

_DEATHS_PER_COMMIT: Final = 0.1
_LONGEST_PAUSE_S: Final = 0.02
_STOP_S: Final = (0.02, 1.0)


def pause_fills(chance: random.Random) -> None:
    """Make this process sleep now and then between a SELECT and the storing of its rows."""

    def pause() -> None:
        if chance.random() < 0.5:
            time.sleep(_LONGEST_PAUSE_S * chance.random())

    current().slow_down(pause)


def die_after_commits(chance: random.Random) -> None:
    """Make this process kill itself after some of its commits, before anything else can run."""
    commit: Callable[[Any], Any] = BaseDatabaseWrapper._commit  # type: ignore[attr-defined]  # private, Django 5.2-6.1

    def commit_and_perhaps_die(self: Any) -> None:
        had_transaction = self.connection is not None
        commit(self)
        if had_transaction and chance.random() < _DEATHS_PER_COMMIT:
            os.kill(os.getpid(), signal.SIGKILL)

    BaseDatabaseWrapper._commit = commit_and_perhaps_die  # type: ignore[attr-defined]  # as above
    del connections["default"]  # an object made before has bound the method that was


def flush(bench: Bench, workers: Workers, chance: random.Random) -> None:
    """Take the cache, the ledger or a part of them away while everybody works."""
    actions = [_flush_redis]
    if current().name == "live_cache":
        actions += [_delete_clocks, _reset_epochs, _clear_entries]
    pid = workers.start(chance.choice(actions), bench)  # a process of its own: this one must keep nothing open
    workers.wait({pid}, timeout_s=20)


def stop(pid: int, chance: random.Random) -> None:
    """Stop a process for a moment, wherever it is, with all its threads."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(chance.uniform(*_STOP_S))
    os.kill(pid, signal.SIGCONT)


def cut(bench: Bench, chance: random.Random) -> None:
    """Cut the connections on which processes hear of ticks, or all connections, and let no new one in for a moment."""
    import redis

    with redis.Redis.from_url(bench.options["redis_url"]) as client:
        if chance.random() < 0.5:
            client.client_kill_filter(_type="pubsub")
            return
        limit = client.config_get("maxclients")["maxclients"]
        client.config_set("maxclients", 1)
        client.client_kill_filter(_type="pubsub")
        client.client_kill_filter(_type="normal", skipme=True)
        time.sleep(chance.uniform(*_STOP_S))
        client.config_set("maxclients", limit)


def _flush_redis(bench: Bench) -> None:
    import redis

    with redis.Redis.from_url(bench.options["redis_url"]) as client:
        client.flushall()


def _delete_clocks(bench: Bench) -> None:
    for path in bench.directory.rglob("*.clock"):
        path.unlink(missing_ok=True)


def _reset_epochs(bench: Bench) -> None:
    from live_cache.assembly import get_assembly

    get_assembly().ledger.reset()


def _clear_entries(bench: Bench) -> None:
    from live_cache.assembly import get_assembly

    get_assembly().store.clear()
