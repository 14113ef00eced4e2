"""The circuit breaker: pauses, one probe at a time, and reports that come late."""

from __future__ import annotations

import os
import threading

import pytest

from live_cache.stores.breaker import CircuitBreaker
from tests.test_stores import Clock


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> CircuitBreaker:
    return CircuitBreaker(pause_s=1, longest_pause_s=4, clock=clock)


def fail(breaker: CircuitBreaker) -> None:
    """Try, and fail."""
    turn = breaker.admit()
    assert turn is not None
    breaker.fail(turn)


def counts(breaker: CircuitBreaker) -> tuple[int, int, int]:
    """Return how often it opened, skipped and probed."""
    return breaker.opened.value, breaker.skipped.value, breaker.probed.value


def test_a_failure_opens_it(breaker: CircuitBreaker) -> None:
    """Everybody is admitted until something fails, and nobody afterwards."""
    turn = breaker.admit()
    assert turn is not None
    breaker.succeed(turn)
    assert not breaker.is_open
    fail(breaker)
    assert breaker.is_open
    assert [breaker.admit() for _ in range(5)] == [None] * 5
    assert counts(breaker) == (1, 5, 0)


def test_one_caller_probes(breaker: CircuitBreaker, clock: Clock) -> None:
    """After the pause one is admitted; while it waits for its answer, others are not; its success admits everybody."""
    fail(breaker)
    clock.now_s += 0.99
    assert breaker.admit() is None
    clock.now_s += 0.51
    probe = breaker.admit()
    assert probe is not None
    assert breaker.admit() is None
    breaker.succeed(probe)
    assert not breaker.is_open
    assert breaker.admit() is not None
    assert counts(breaker) == (1, 2, 1)


def test_each_failed_probe_doubles_the_pause(breaker: CircuitBreaker, clock: Clock) -> None:
    """Up to the longest, and the jitter of half a pause; a success starts anew."""
    fail(breaker)
    for pause_s in (1, 2, 4, 4, 4):
        clock.now_s += pause_s * 0.999
        assert breaker.admit() is None
        clock.now_s += pause_s * 0.502
        fail(breaker)
    assert counts(breaker) == (1, 5, 5)
    clock.now_s += 6.1
    probe = breaker.admit()
    assert probe is not None
    breaker.succeed(probe)
    fail(breaker)
    clock.now_s += 1.6
    assert breaker.admit() is not None


def test_reports_that_come_late_change_nothing(breaker: CircuitBreaker, clock: Clock) -> None:
    """Who began before it opened neither lengthens the pause nor closes it."""
    turns = [breaker.admit() for _ in range(8)]
    for turn in turns[:-1]:
        assert turn is not None
        breaker.fail(turn)
    assert turns[-1] is not None
    breaker.succeed(turns[-1])
    assert breaker.is_open
    assert counts(breaker) == (1, 0, 0)
    clock.now_s += 1.6
    assert breaker.admit() is not None


def test_a_probe_that_never_reports(breaker: CircuitBreaker, clock: Clock) -> None:
    """Its thread may have been killed: the next probe comes a pause later, and what it said at last is void."""
    fail(breaker)
    clock.now_s += 1.6
    lost = breaker.admit()
    assert lost is not None
    clock.now_s += 1.6
    probe = breaker.admit()
    assert probe is not None
    breaker.succeed(lost)
    assert breaker.is_open
    breaker.succeed(probe)
    assert not breaker.is_open


def test_an_answer_that_comes_late_closes_it(breaker: CircuitBreaker, clock: Clock) -> None:
    """Before the pause is over; a probe that fails meanwhile does not open it again, and the pauses start anew."""
    fail(breaker)
    clock.now_s += 1.6
    probe = breaker.admit()
    assert probe is not None
    breaker.revive()
    assert not breaker.is_open
    breaker.fail(probe)
    assert not breaker.is_open
    breaker.revive()
    assert breaker.closed_count == 1
    fail(breaker)
    clock.now_s += 1.6
    assert breaker.admit() is not None
    assert counts(breaker) == (2, 0, 2)


def test_eight_threads_probe_once(breaker: CircuitBreaker, clock: Clock) -> None:
    """Of callers that come at once after the pause, one is admitted."""
    fail(breaker)
    clock.now_s += 1.6
    barrier = threading.Barrier(8)
    admitted: list[int | None] = []

    def ask() -> None:
        barrier.wait(10)
        admitted.append(breaker.admit())

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert len([turn for turn in admitted if turn is not None]) == 1
    assert counts(breaker) == (1, 7, 1)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_fork_while_the_lock_is_held(breaker: CircuitBreaker) -> None:
    """The child does not wait for a thread that it does not have."""
    fail(breaker)
    with breaker._lock:
        child = os.fork()
        if child == 0:
            os._exit(0 if breaker.admit() is None else 1)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
