"""What goes wrong on purpose in benchmarks.history. All of it from outside: the package has no hooks for it."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from benchmarks.project.link import DIRECTIONS, LATEST_S
from benchmarks.project.runs import Bench
from benchmarks.project.systems import current
from benchmarks.project.workers import Workers

__all__ = ["die_after_commits", "flush", "pause", "pause_fills", "stop"]

_DEATHS_PER_COMMIT: Final = 0.1
_LONGEST_FILL_PAUSE_S: Final = 0.02
_STOP_S: Final = (0.02, 1.0)
_SHORTEST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 3.0
_PAUSED: Final = (DIRECTIONS[:1], DIRECTIONS[1:], DIRECTIONS)
_DEATHS_PER_PAUSE: Final = 0.5


def pause_fills(chance: random.Random) -> None:
    """Make this process sleep now and then between a SELECT and the storing of its rows."""

    def pause() -> None:
        if chance.random() < 0.5:
            time.sleep(_LONGEST_FILL_PAUSE_S * chance.random())

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
    actions: list[Callable[[], None]] = [lambda: bench.redis.flush(chance)]
    if current().name == "live_cache":
        # In a process of their own: this one must keep nothing open.
        parts = (lambda: _delete_clocks(bench), _reset_epochs, _clear_entries)
        actions += [partial(_run_alone, workers, part) for part in parts]
    chance.choice(actions)()


def _run_alone(workers: Workers, function: Callable[[], None]) -> None:
    workers.wait({workers.start(function)}, timeout_s=20)


def stop(pid: int, chance: random.Random) -> None:
    """Stop a process for a moment, wherever it is, with all its threads."""
    os.kill(pid, signal.SIGSTOP)
    time.sleep(chance.uniform(*_STOP_S))
    os.kill(pid, signal.SIGCONT)


def pause(bench: Bench, chance: random.Random, kill: Callable[[], None]) -> None:
    """
    Let the network to a server hold what is sent, of all or of half of the connections, and deliver it later.

    Args:
        kill: Kills a writer. It is called in some of the pauses, so that what he has sent arrives after his death.
    """
    link = chance.choice(bench.links)
    link.hold(*chance.choice(_PAUSED), share=chance.choice((0.5, 1.0)))
    pause_s = _SHORTEST_PAUSE_S * (_LONGEST_PAUSE_S / _SHORTEST_PAUSE_S) ** chance.random()  # more of the short ones
    alive_s = pause_s * chance.random()
    time.sleep(alive_s)
    if chance.random() < _DEATHS_PER_PAUSE:
        kill()
    time.sleep(pause_s - alive_s)
    link.go_on()
    time.sleep(LATEST_S)  # the outcome of what a killed writer has sent is asked when all of it has arrived


def _delete_clocks(bench: Bench) -> None:
    for path in bench.directory.rglob("*.clock"):
        path.unlink(missing_ok=True)


def _reset_epochs() -> None:
    from live_cache.assembly import get_assembly

    get_assembly().ledger.reset()


def _clear_entries() -> None:
    from live_cache.assembly import get_assembly

    get_assembly().store.clear()
