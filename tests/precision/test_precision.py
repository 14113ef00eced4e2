"""
Any querysets and any writes: a live read is what the database says, and most results that are as they were are hits.

``dev.py test --deep`` runs 5,000 examples on each database; a normal run few, always the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator

import pytest

from tests.deep import deep
from tests.machine.faults import Holds
from tests.precision import broken
from tests.precision.machine import Machine, StaleError

N_EXAMPLES = deep(15, 5000)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, logger="live_cache")


@pytest.fixture
def holds(monkeypatch: pytest.MonkeyPatch) -> Holds:
    """The points at which readers and writers are held."""
    return Holds(monkeypatch)


@pytest.fixture
def machine(alias: str, cache: str, holds: Holds) -> Iterator[Machine]:
    """A machine on one database, in the memory of this process."""
    made = Machine(alias, holds)
    yield made
    made.close()


def run(machine: Machine, n_examples: int) -> None:
    """Run the examples, and look at how often the cache answered."""
    run_all(machine, range(n_examples))
    counts = machine.counts
    # A read that no write has changed is worth being a hit. What is lost here is lost to writes told by table.
    assert counts["hits of unchanged"] > 2 * counts["needless misses"], dict(counts)
    assert counts["refused querysets"] < counts["examples"], dict(counts)


def test_live_reads_equal_the_database(machine: Machine) -> None:
    """No example finds a live read that differs."""
    run(machine, N_EXAMPLES)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("cache_kind", ["host", "memory+redis"], indirect=True)
def test_live_reads_equal_the_database_by_a_shared_ledger(cache_kind: str, holds: Holds) -> None:
    """Nor where records travel through the files of the host, or Redis."""
    machine = Machine("default", holds, is_shared=True)
    try:
        run(machine, deep(4, 200))
    finally:
        machine.close()


# -- the machine's own proof ------------------------------------------------------------------------------------------

# Seeds that have found it lately, and then as many others as it takes.
FINDERS: dict[Callable[[pytest.MonkeyPatch], None], tuple[int, ...]] = {
    broken.ignore_or: (40, 123),
    broken.take_outer_joins_for_inner: (147,),
    broken.forget_null_below_not: (16, 55),
    broken.ignore_ties: (8, 45),
    broken.forget_the_order: (3, 4),
    broken.anchor_reverse_joins: (4, 28),
    broken.anchor_what_is_linked: (10, 58),
    broken.keep_the_memo: (2, 3),
    broken.look_for_keys_elsewhere: (6, 9),
    broken.see_no_null: (2, 16),
    broken.take_what_is_cut_off_for_absent: (266, 307),
}


def run_all(machine: Machine, seeds: Iterable[int]) -> None:
    """Run these examples."""
    for seed in seeds:
        machine.run(seed)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("break_it", FINDERS, ids=lambda function: function.__name__)
def test_the_machine_finds_what_is_broken(
    break_it: Callable[[pytest.MonkeyPatch], None], cache: str, holds: Holds, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of these bugs is found."""
    machine = Machine("default", holds)
    try:
        break_it(monkeypatch)
        with pytest.raises(StaleError):
            run_all(machine, (*FINDERS[break_it], *range(600)))
    finally:
        machine.close()
