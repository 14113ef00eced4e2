"""Processes that die anywhere in a write, and many that were forked from one that had used the cache."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.core.cache import caches
from django.db import connections, transaction
from django.db.models import F, Sum

import live_cache
from live_cache import live, recording
from live_cache.assembly import close_all
from tests.cache_kinds import wait_for_hits
from tests.testapp.models import Author, Book

pytestmark = pytest.mark.django_db(transaction=True)

PARTS = tuple(str(Path(live_cache.__file__).with_name(part)) for part in ("writes", "ledger", "redis_connection.py"))
"""Where a write of ours may die: each call and each return of a function there is a step."""
N_DEATHS = 20
N_PROCESSES = 32
N_WRITES = 4

PLACES = pytest.mark.parametrize(
    ("alias", "cache_kind"),
    [("default", "memory+disk"), ("postgresql", "memory+redis"), ("mariadb", "memory+redis")],
    indirect=True,
)


# -- what other processes do ------------------------------------------------------------------------------------------


def fork(function: Callable[[], Any]) -> tuple[int, Any]:
    """Run *function* in a forked process; return how that ended, and what it has returned."""
    reader, writer = os.pipe()
    pid = os.fork()
    if not pid:
        _run_and_exit(function, writer)
    os.close(writer)
    with os.fdopen(reader) as answer:
        text = answer.read()
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status), json.loads(text or "null")


def _run_and_exit(function: Callable[[], Any], writer: int) -> None:
    status = 1
    try:
        value = function()
        with os.fdopen(writer, "w") as answer:
            json.dump(value, answer)
        leave()
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    os._exit(status)


def leave() -> None:
    """Close what this process has open, before it forks or ends."""
    connections.close_all()
    caches.close_all()
    close_all()


def write(alias: str, how: str) -> None:
    """Write a book, or two tables in one transaction."""
    if how == "save":
        book = Book.objects.using(alias).get()
        book.title += "+"
        book.save()
        return
    with transaction.atomic(using=alias):
        Book.objects.using(alias).update(pages=F("pages") + 1)
        Author.objects.using(alias).create(name="new")


def write_in_steps(alias: str, how: str, *, dies_at: int) -> int:
    """Write, die at that step, and return how many there were if there are not so many."""
    connections[alias].ensure_connection()
    steps = 0

    def step(frame: Any, event: str, argument: Any) -> None:
        nonlocal steps
        if event in ("call", "return") and frame.f_code.co_filename.startswith(PARTS):
            steps += 1
            if steps == dies_at:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.setprofile(step)
    try:
        write(alias, how)
    finally:
        sys.setprofile(None)
    return steps


def shelf(alias: str, *, is_live: bool) -> list[Any]:
    """Return what the two tables hold, in two queries."""
    books, authors = Book.objects.using(alias).order_by("pk"), Author.objects.using(alias).order_by("pk")
    return [
        list(live(each) if is_live else each)
        for each in (books.values_list("title", "pages"), authors.values_list("name"))
    ]


def compare(alias: str) -> list[Any]:
    """Return what is wrong in the first live reads, and leave entries behind for the next one."""
    before = shelf(alias, is_live=False)
    found = shelf(alias, is_live=True)
    after = shelf(alias, is_live=False)  # the server may have noticed just now that the writer is dead
    wait_for_hits(lambda: shelf(alias, is_live=True))
    kept, truth = shelf(alias, is_live=True), shelf(alias, is_live=False)
    wrong = [] if before != after or found == after else [found, after]
    return wrong if kept == truth else [*wrong, kept, truth]


def die_everywhere(alias: str, how: str) -> dict[str, Any]:
    """Let writers die at steps of all kinds, and compare after each."""
    status, problems = fork(partial(compare, alias))
    assert status == 0
    assert not problems
    for _ in range(2):  # the first one makes files, which takes steps of its own
        status, n_steps = fork(partial(write_in_steps, alias, how, dies_at=0))
        assert status == 0
    chance = random.Random(how)
    wrong, deaths = [], 0
    for dies_at in sorted(chance.sample(range(1, n_steps + 1), min(N_DEATHS, n_steps))):
        status, _ = fork(partial(write_in_steps, alias, how, dies_at=dies_at))
        deaths += status == -signal.SIGKILL
        status, found = fork(partial(compare, alias))
        if status or found:
            wrong.append([dies_at, status, found])
    return {"steps": n_steps, "deaths": deaths, "wrong": wrong}


def serve_and_fork(alias: str) -> dict[str, Any]:
    """Use the cache, then fork workers that write and read at once; return what they saw wrong, and the end."""
    authors = list(Author.objects.using(alias).order_by("pk").values_list("pk", flat=True))
    wait_for_hits(lambda: sums(alias, is_live=True))
    memory_of_the_parent = sums(alias, is_live=True)
    connections.close_all()  # of sockets two processes cannot share one; of all else they get copies
    pids = {}
    for author in authors:
        reader, writer = os.pipe()
        pid = os.fork()
        if not pid:
            os.close(reader)
            _run_and_exit(partial(work, alias, author), writer)
        os.close(writer)
        pids[pid] = reader
    found = []
    for pid, reader in pids.items():
        with os.fdopen(reader) as answer:
            text = answer.read()
        _, status = os.waitpid(pid, 0)
        found.append([status, json.loads(text or "null")])
    return {
        "before": memory_of_the_parent,
        "found": found,
        "live": sums(alias, is_live=True),
        "truth": sums(alias, is_live=False),
    }


def sums(alias: str, *, is_live: bool) -> dict[str, int]:
    """Return the pages of each author."""
    found = Book.objects.using(alias).values("author").annotate(sum=Sum("pages")).order_by("author")
    return {str(row["author"]): row["sum"] for row in (live(found) if is_live else found)}


def work(alias: str, author: int) -> dict[str, Any]:
    """Write the own author's book some times; return whatever a live read after it did not show."""
    wrong = []
    known = sums(alias, is_live=True)
    hits = 0
    for _ in range(N_WRITES):
        Book.objects.using(alias).filter(author=author).update(pages=F("pages") + 1)
        with recording() as reads:
            seen = sums(alias, is_live=True)
        hits += reads[0].is_hit
        expected = {**known, str(author): known[str(author)] + 1}
        if any(seen[name] < pages for name, pages in expected.items()):
            wrong.append([expected, seen])
        known = seen
    return {"wrong": wrong, "hits": hits}


# -- the tests --------------------------------------------------------------------------------------------------------


@PLACES
@pytest.mark.parametrize("how", ["save", "transaction"])
def test_a_writer_killed_at_any_step(alias: str, cache_kind: str, how: str, run_process: Any, settings: Any) -> None:
    """Between its first write and the end of its tick: no later read is stale, and there are hits again soon."""
    settings.LIVE_CACHE_LEASE_S = 0.05
    author = Author.objects.using(alias).create(name="Ann")
    Book.objects.using(alias).create(title="old", author=author, pages=1)
    found = run_process(die_everywhere, alias, how, timeout_s=110).value
    assert found["wrong"] == []
    assert found["deaths"] == min(N_DEATHS, found["steps"])


@pytest.mark.parametrize(("alias", "cache_kind"), [("default", "memory+disk")], indirect=True)
def test_without_intents_it_would_be_stale(
    alias: str, cache_kind: str, run_process: Any, settings: Any, tmp_path: Path
) -> None:
    """If nothing is declared before COMMIT, the deaths between COMMIT and tick are found out."""
    (tmp_path / "sitecustomize.py").write_text(
        "from live_cache.ledger.base import Ledger\nLedger.declare = lambda self, changes, **options: '0' * 32\n"
    )
    settings.LIVE_CACHE_LEASE_S = 0.05
    author = Author.objects.using(alias).create(name="Ann")
    Book.objects.using(alias).create(title="old", author=author, pages=1)
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    found = run_process(die_everywhere, alias, "save", timeout_s=110, env={"PYTHONPATH": path}).value
    assert found["wrong"]


@PLACES
def test_a_fork_server(alias: str, cache_kind: str, run_process: Any) -> None:
    """Many workers, forked from a process that had used every tier and the ledger, write and read at once."""
    for number in range(N_PROCESSES):
        author = Author.objects.using(alias).create(name=f"author {number}")
        Book.objects.using(alias).create(title="book", author=author, pages=0)
    found = run_process(serve_and_fork, alias, timeout_s=110).value
    assert set(found["before"].values()) == {0}
    assert [[status, answer and answer["wrong"]] for status, answer in found["found"]] == [[0, []]] * N_PROCESSES
    assert found["live"] == found["truth"]
    assert set(found["truth"].values()) == {N_WRITES}
