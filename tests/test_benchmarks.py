"""The benchmarks: they run, count exactly, and tell a cache that is stale or dear from one that is not."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import select
import socket
import subprocess
import sys
import time
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.project.answers import (
    ITEMS,
    ROWS,
    fault_in_count,
    fault_in_makers,
    fault_in_one,
    fault_in_rows,
    fault_in_shelf,
    fault_in_total,
)
from benchmarks.project.book import Book
from benchmarks.project.lags import Lags, now_us
from benchmarks.project.link import Link
from benchmarks.project.oracle import Truth
from benchmarks.project.systems import System
from benchmarks.workloads.base import Popularity, Read
from tests import server_programs

ROOT = Path(__file__).resolve().parent.parent
TABLES = ("watched", "unwatched")
_SECONDS = ("3", "20")
"""How long a history runs that must show something: the second time where the machine was too busy."""


def _run(program: str, *arguments: str, status: int = 0, **environment: str) -> list[dict[str, Any]]:
    results, ended = _end(program, *arguments, **environment)
    assert ended == status
    found: list[dict[str, Any]] = results
    return found


def _end(program: str, *arguments: str, **environment: str) -> tuple[Any, int]:
    """Run *program*, and return what it printed and its status."""
    command = [sys.executable, "-m", f"benchmarks.{program}", "--json", "--no-peers", *arguments]
    ended = subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode in (0, 1), ended.stderr
    return json.loads(ended.stdout), ended.returncode


def _break_freshness(directory: Path) -> str:
    """Return a PYTHONPATH with which every entry is taken for fresh."""
    (directory / "sitecustomize.py").write_text(
        "import live_cache.ledger.clocks as clocks\nclocks.is_fresh = lambda *arguments: True\n"
    )
    return os.pathsep.join([str(directory), str(ROOT)])


@pytest.mark.parametrize("mode", [[], ["--atomic"]], ids=["autocommit", "atomic"])
def test_bursts(mode: list[str]) -> None:
    """A few bursts on SQLite: every one is counted, readers have hits, and nothing is stale."""
    (ours,) = _run("bursts", "--bursts", "5", "--location", "memory+disk", *mode)
    assert ours["bursts"] == 5
    assert ours["hits"] > 0
    assert ours["stale_bursts"] == ours["stale_reads"] == 0


@pytest.mark.parametrize("fault", ["slowfill", "crash", "flush", "snapshot"])
def test_history(fault: str) -> None:
    """Two seconds on SQLite: reads, hits and commits are counted, and nothing is stale."""
    (ours,) = _run("history", "--seconds", "2", "--fault", fault, "--location", "memory+disk")
    assert ours["reads"] > ours["hits"] > 0
    assert ours["commits"] > 0
    assert ours["stale_reads"] == ours["wrong_keys"] == ours["errors"] == 0
    assert (ours["faults"] > 0) == (fault in {"crash", "flush"})


@pytest.mark.parametrize(
    ("fault", "location"),
    [
        ("freeze", "memory+redis"),
        ("full", "redis"),
        ("pause", "memory+redis"),
        ("cut", "memory+sentinel"),
        ("restart", "memory+cluster"),
        ("failover", "memory+sentinel"),
        ("failover", "memory+cluster"),
        ("reshard", "memory+cluster"),
    ],
)
def test_history_of_a_failing_redis(fault: str, location: str, redis_url: str) -> None:
    """A few seconds with a Redis that is frozen, full, cut off, emptied, lost to a replica or resharded: none stale."""
    for seconds in _SECONDS:
        (ours,) = _run("history", "--seconds", seconds, "--fault", fault, "--location", location)
        assert ours["stale_reads"] == ours["wrong_keys"] == ours["errors"] == 0
        if ours["reads"] > ours["hits"] > 0 and ours["commits"] > 0 and ours["faults"] > 0:
            return
    pytest.fail(f"Nothing happened: {ours}")


@pytest.mark.parametrize(("program", "arguments"), [("bursts", ["--bursts", "3"]), ("history", ["--seconds", "4"])])
def test_a_cache_that_takes_every_entry_for_fresh_is_found_out(
    program: str, arguments: list[str], tmp_path: Path
) -> None:
    """With a broken rule of freshness both programs count stale reads and end with status 1: they can fail."""
    path = _break_freshness(tmp_path)
    (ours,) = _run(program, *arguments, "--location", "memory+disk", status=1, PYTHONPATH=path)
    assert ours["stale_reads"] > 0
    assert (ours["stale_bursts"] if program == "bursts" else ours["wrong_keys"]) > 0


def test_history_in_bounded_mode(redis_url: str, tmp_path: Path) -> None:
    """Reads lag, and none for longer than the bound; where the bound is not held, they are counted as stale."""
    (ours,) = _run("history", "--seconds", "4", "--mode", "bounded", "--fault", "stop")
    assert ours["lagging"] > 0
    assert ours["stale_reads"] == ours["wrong_keys"] == ours["errors"] == 0
    (tmp_path / "sitecustomize.py").write_text(
        "import time\n"
        "from live_cache import conf\n"
        "from live_cache.ledger import redis_wake_ups\n"
        "conf.Settings.max_lag_s = property(lambda self: 1000.0)\n"
        "redis_wake_ups.RedisWakeUps.wait = lambda self, clocks, timeout_s: time.sleep(1.5) or frozenset()\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    (ours,) = _run("history", "--seconds", "4", "--mode", "bounded", status=1, PYTHONPATH=path)
    assert ours["stale_reads"] > 0


def test_lags() -> None:
    """The lag of an answer is the age of the oldest moment that it does not show, of those without a break."""
    lags = Lags(rows=1, readers=2)
    times = []
    for version in range(5):
        lags.note([version])
        times.append(now_us())
        time.sleep(0.002)
    began_us = now_us()
    lags.note([9])  # after the read began
    found = [lags.lag_us(began_us, lambda floors, version=version: version >= floors[0]) for version in range(5)]  # type: ignore[misc]  # bound now
    assert found[4] == 0
    for version in range(4):
        assert 0 <= found[version] - (began_us - times[version + 1]) < 1000
    for lag_us in (100, 1200, 1200, 10**9):
        lags.count(1, lag_us)
    assert lags.total == 4
    assert lags.quantiles_ms((0.25, 0.5, 1.0)) == [0.5, 1.5, 2000.0]
    assert Lags(rows=1, readers=1).quantiles_ms((0.5, 1.0)) == [0.0, 0.0]


def test_history_of_a_failing_database(redis_url: str) -> None:
    """Four seconds with a PostgreSQL that crashes and recovers: nothing is stale."""
    if next(server_programs.installed("postgresql"), None) is None:
        pytest.skip("POSTGRESQL IS MISSING: there are no programs to start one")
    (ours,) = _run("history", "--seconds", "4", "--fault", "database", "--database", "postgresql")
    assert ours["reads"] > ours["hits"] > 0
    assert ours["commits"] > 0
    assert ours["faults"] > 0
    assert ours["stale_reads"] == ours["wrong_keys"] == ours["errors"] == 0


def test_lost_ticks_that_a_failover_hides_are_found_out(tmp_path: Path, redis_url: str) -> None:
    """Without the identity of the server in its clocks, a replica that was promoted serves what it had missed."""
    (tmp_path / "sitecustomize.py").write_text(
        "import live_cache.ledger.redis_scripts as scripts\n"
        "known, trusting = 'if held[3] == identity then', 'if held[3] then'\n"
        "assert known in scripts.READ.source\n"
        "scripts.READ = scripts.Script(scripts.READ.source.replace(known, trusting))\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    found, _ = _end("history", "--seconds", "12", "--fault", "failover", PYTHONPATH=path)
    assert found[0]["stale_reads"] > 0


_BREAKS = {
    "slowfill": (
        "from live_cache import reader\n"
        "store = reader._store\n"
        "def store_late(assembly, plan, readings, *rest):\n"
        "    return store(assembly, plan, assembly.ledger.read(plan.dependencies), *rest)\n"
        "reader._store = store_late\n"
    ),
    "flush": (
        "from dataclasses import replace\n"
        "from live_cache.ledger import clocks\n"
        "right = clocks.is_fresh\n"
        "def is_fresh(stamps, readings, *rest):\n"
        "    parts = ([replace(each, epoch=b'') for each in part] for part in (stamps, readings))\n"
        "    return right(*parts, *rest)\n"
        "clocks.is_fresh = is_fresh\n"
    ),
    "snapshot": "from live_cache import bypasses\nbypasses.reason_to_bypass = lambda *arguments: ''\n",
}
"""Code that leaves out the rule that a fault is about. For crash see test_crashes.py."""


@pytest.mark.parametrize("fault", ["slowfill", "flush", "snapshot"])
def test_a_broken_rule_is_found_out_by_its_fault(fault: str, tmp_path: Path) -> None:
    """Stamps after the SELECT, epochs that nobody looks at, and snapshots that fill: reads are stale or keys wrong."""
    (tmp_path / "sitecustomize.py").write_text(_BREAKS[fault])
    for seconds in _SECONDS:
        arguments = ["--seconds", seconds, "--fault", fault, "--location", "memory+disk"]
        (ours,), status = _end("history", *arguments, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
        assert status == bool(ours["stale_reads"] + ours["wrong_keys"])
        if status:
            return
    pytest.fail(f"Nothing was found: {ours}")


def test_a_commit_that_raises_is_an_error(tmp_path: Path) -> None:
    """A write that was committed and raises all the same is counted."""
    (tmp_path / "sitecustomize.py").write_text(
        "import random, sys\n"
        "from django.db import OperationalError\n"
        "from django.db.backends.base.base import BaseDatabaseWrapper\n"
        "commit = BaseDatabaseWrapper._commit\n"
        "def commit_and_raise(self):\n"
        "    commit(self)\n"
        "    if 'benchmarks.project.writing' in sys.modules and random.random() < 0.5:\n"
        "        raise OperationalError('Too late.')\n"
        "BaseDatabaseWrapper._commit = commit_and_raise\n"
    )
    for seconds in _SECONDS:
        arguments = ["--seconds", seconds, "--location", "memory+disk"]
        (ours,), status = _end("history", *arguments, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
        assert status == bool(ours["errors"])
        if status:
            break
    assert any("was committed and raised" in sample for sample in ours["samples"])


def test_a_link_holds_what_is_sent_and_delivers_it_after_the_sender_has_gone() -> None:
    """While a link is held nothing arrives and nobody sees an end; then all comes in order, and the end with it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        link = Link("127.0.0.1", server.getsockname()[1])
        try:
            client = socket.create_connection(("127.0.0.1", link.port), timeout=10)
            there, _ = server.accept()
            there.settimeout(10)
            client.sendall(b"one ")
            assert there.recv(100) == b"one "
            link.hold("to_server")
            there.sendall(b"answer")
            assert client.recv(100) == b"answer"
            client.sendall(b"two ")
            client.sendall(b"three")
            client.close()
            there.settimeout(0.2)
            with pytest.raises(TimeoutError):
                there.recv(100)
            there.settimeout(10)
            link.go_on()
            assert b"".join(iter(partial(there.recv, 100), b"")) == b"two three"
            there.close()
        finally:
            link.close()


def test_a_link_holds_a_share_of_the_connections() -> None:
    """With half of the connections held the others go on, new ones too."""
    with socket.create_server(("127.0.0.1", 0), backlog=40) as server:
        link = Link("127.0.0.1", server.getsockname()[1])
        try:
            link.hold("to_server", "to_client", share=0.5)
            clients = []
            for _ in range(40):
                client = socket.create_connection(("127.0.0.1", link.port), timeout=10)
                client.sendall(b"hello")
                clients.append(client)
            there = [server.accept()[0] for _ in clients]
            arrived: list[socket.socket] = []
            end = time.monotonic() + 30
            while (more := select.select(there, [], [], 0.5)[0]) != arrived or (
                len(more) <= 5 and time.monotonic() < end
            ):
                arrived = more
            for each in (*clients, *there):
                each.close()
            assert 5 < len(arrived) < 35
        finally:
            link.close()


@pytest.mark.parametrize("workload", ["shop", "forum", "backoffice"])
def test_efficiency(workload: str) -> None:
    """A short run: nothing is stale, nobody fetches less than the oracle, and plain Django fetches every time."""
    arguments = ["--workload", workload, "--operations", "250", "--location", "memory+disk"]
    [found], status = _end("efficiency", *arguments)
    ours, plain = found["systems"]
    assert (ours["system"], plain["system"]) == ("live_cache", "database")
    assert ours["stale"] == plain["stale"] == 0
    assert ours["reads"] + ours["writes"] == 250
    assert plain["fetches"] == plain["reads"] == plain["queries"] == ours["reads"]
    assert ours["oracle"] <= ours["fetches"] < plain["fetches"]
    for kind in ours["kinds"].values():
        assert kind["distinct"] <= kind["oracle"] <= kind["fetches"] <= kind["reads"]
        assert sum(kind["reasons"].values()) == kind["fetches"]
    assert ours["ratio"] == ours["oracle"] / ours["fetches"]
    assert status == (ours["ratio"] < found["goal"])
    assert _end("efficiency", *arguments) == ([found], status), "The same seed gives other counts."


def test_a_stale_read_is_counted_by_efficiency(tmp_path: Path) -> None:
    """With a broken rule of freshness reads differ from the database, and the status is 1."""
    [found] = _run(
        *("efficiency", "--workload", "shop", "--operations", "400", "--location", "memory+disk"),
        status=1,
        PYTHONPATH=_break_freshness(tmp_path),
    )
    ours, plain = found["systems"]
    assert ours["stale"] > 0
    assert ours["samples"]
    assert plain["stale"] == 0


def test_flights(tmp_path: Path) -> None:
    """One query per round, two where the filler was killed; with readers who do not wait the status is 1."""
    arguments = ["--rounds", "1", "--readers", "20", "--processes", "2", "--location", "memory+disk"]
    (ours,) = _run("flights", *arguments)
    assert (ours["most_queries"], ours["killed_most_queries"], ours["stale"]) == (1, 2, 0)
    assert ours["waits"] > 0
    (tmp_path / "sitecustomize.py").write_text("import live_cache.flights as flights\nflights.MAX_WAITS = 0\n")
    (broken,) = _run("flights", *arguments, status=1, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert broken["most_queries"] > 1


def test_saves() -> None:
    """One round: every write is timed on both tables, plain Django runs alone, and --check looks at save()."""
    found, status = _end("saves", "--rounds", "1", "--location", "memory+disk", "--check", "--profile")
    for key in ("medians_us", "ratios", "cpu_us", "statements"):
        assert len(found[key]) == 14
        assert all(one["live_cache"] > 0 and one["database"] > 0 for one in found[key])
    statements = {(one["operation"], one["table"]): one["database"] for one in found["statements"]}
    assert {statements[f"save{end}", table] for end in ("()", "(update_fields)") for table in TABLES} == {1}
    assert {one["database"] for one in found["ratios"]} == {1.0}
    limits = {"watched": 2.0, "unwatched": 1.15}
    dear = [one for one in found["ratios"] if one["operation"] == "save()" and one["live_cache"] > limits[one["table"]]]
    assert status == bool(dear)
    for table in TABLES:
        assert any(one["function"].startswith("live_cache/") for one in found["profiles"][table])


def test_missing_peer_is_named_and_does_not_matter() -> None:
    """Without the packages to compare with, the program says how to get them and goes on; the status is ours."""
    command = [sys.executable, "-m", "benchmarks.bursts", "--bursts", "1", "--location", "memory+disk", "--json"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 0, ended.stderr
    systems = [result["system"] for result in json.loads(ended.stdout)]
    for name in ("cacheops", "cachalot"):
        is_installed = importlib.util.find_spec(name) is not None
        assert (name in systems) == is_installed
        assert (f"Without {name}" in ended.stderr) == (not is_installed)
    assert "requirements/peers.txt" in ended.stderr or len(systems) == 3


# -- what is wrong with an answer -------------------------------------------------------------------------------------


def _versions(**others: int) -> list[int]:
    """Return version 8 for every row but those named ``row_<number>``; 8 is on shelf 0."""
    return [others.get(f"row_{row}", 8) for row in range(ROWS)]


def test_answers_are_right_between_floor_and_ceiling() -> None:
    """A version below what was committed before the read is a fault, and so is one that nobody has begun to write."""
    find_fault = partial(fault_in_one, 1)
    assert not find_fault(8, _versions(), _versions())
    assert not find_fault(9, _versions(), _versions(row_1=9))
    assert find_fault(7, _versions(), _versions())
    assert find_fault(9, _versions(), _versions())


def test_a_row_must_be_where_its_version_puts_it() -> None:
    """A row that nobody is writing must be in the answers of its shelf, and in no other; one in flight may be."""
    everything = [(row, 8) for row in range(ITEMS)]
    shelf, count, makers = (partial(find, 0) for find in (fault_in_shelf, fault_in_count, fault_in_makers))
    assert not shelf(everything, _versions(), _versions())
    assert shelf(everything[1:], _versions(), _versions())
    assert not shelf(everything[1:], _versions(), _versions(row_0=9))
    assert shelf([(0, 9), *everything[1:]], _versions(), _versions(row_0=9))
    assert not count(ITEMS, _versions(), _versions())
    assert count(ITEMS - 1, _versions(), _versions())
    assert not count(ITEMS - 1, _versions(), _versions(row_0=9))
    all_makers = [(row, 8) for row in range(ITEMS, ROWS)]
    assert not makers(all_makers, _versions(), _versions())
    assert makers(all_makers[1:], _versions(), _versions())


def test_pages_totals_and_joins_are_checked_row_by_row() -> None:
    """A missing row, an old version of a joined row, and a sum or a maximum outside the bounds are faults."""
    numbers = (0, 3, 6, 9)
    page, joined, total = (
        partial(fault_in_rows, numbers),
        partial(fault_in_rows, (*numbers, 12, 13, 14)),
        partial(fault_in_total, numbers),
    )
    rows = [(row, 8) for row in numbers]
    assert not page(rows, _versions(), _versions())
    assert page(rows[1:], _versions(), _versions())
    assert not joined([*rows, (12, 8), (13, 8), (14, 8)], _versions(), _versions())
    assert joined([*rows, (12, 7), (13, 8), (14, 8)], _versions(), _versions())
    assert not total((8, 32), _versions(), _versions())
    assert total((8, 31), _versions(), _versions())
    assert total((7, 32), _versions(), _versions())


def test_book_knows_what_is_open() -> None:
    """Begun writes raise the ceiling; a commit raises the floor, and a rollback lowers the ceiling again."""
    book = Book(rows=2, readers=1, writers=2)
    book.begin(0, [0, 1])
    book.begin(1, [1])
    assert (book.floors(), book.ceilings()) == ([0, 0], [1, 2])
    assert book.open_rows(0) == [0, 1]
    book.committed(0, [0, 1])
    book.rolled_back(1, [1])
    assert book.floors() == book.ceilings() == [1, 1]
    assert book.open_rows(0) == book.open_rows(1) == []


# -- the oracle -------------------------------------------------------------------------------------------------------


class _Cache(System):
    caches = True


def test_the_oracle_fetches_what_is_new_and_what_differs_from_its_last_fetch() -> None:
    """A result that went and came back needs no fetch, and one that nobody has read since is fetched once."""
    rows = [[1, 2]]
    truth, read = Truth(_Cache()), Read("page", (1,), lambda cached: list(rows[-1]))
    assert truth.look(read, [1, 2], 0) == (False, True, True)
    assert truth.look(read, [1, 2], 0) == (False, False, False)
    rows.append([1, 3])
    rows.append([1, 2])
    assert truth.look(read, [1, 2], 2) == (False, False, False)
    rows.append([1, 3])
    assert truth.look(read, [1, 3], 3) == (False, False, True)


def test_an_answer_is_stale_if_a_value_or_its_type_differs() -> None:
    """Older rows are stale, and so are rows whose values are equal but of another type."""
    truth, read = Truth(_Cache()), Read("get", (1,), lambda cached: [(1, True)])
    assert truth.look(read, [(1, False)], 0)[0]
    assert truth.look(read, [(1, 1)], 0)[0]
    assert not truth.look(read, [(1, True)], 0)[0]


def test_popular_things_are_asked_for_by_the_law_of_zipf() -> None:
    """The first of them is asked for about ten times as often as the tenth, and every rank exists."""
    popular = Popularity(random.Random(1), 1.0)
    ranks = Counter(popular.rank(50) for _ in range(20_000))
    assert set(ranks) == set(range(50))
    assert ranks[0] / ranks[9] == pytest.approx(10, rel=0.2)
    assert {popular.rank(3) for _ in range(100)} == {0, 1, 2}


def test_outbox() -> None:
    """A few writes from outside are seen, other results stay, and a save of Django is fetched once without triggers."""
    (ours,) = _run("outbox", "--writes", "3", "--location", "memory+disk")
    assert 0 < ours["median_ms"] <= ours["max_ms"]
    assert (100, 1) == (ours["other_hit_percent"], ours["fetches"])
