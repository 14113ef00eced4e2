"""
Answers of Redis that come too late for whoever asked.

A quick call waits a few milliseconds, and its caller goes on without an answer. What was sent may still be done: the
connection is left to a thread, which waits as long as a patient call would. So a write is not lost because a machine
was busy for a moment, and the first answer tells at once that the server is back.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Final

from live_cache.redis_exchange import Connections, Exchange
from live_cache.stores.forks import ForkAware

__all__ = ["LateAnswerError", "LateAnswers", "late_answers", "pass_on"]

# Calls of a cluster that one process makes at a time.
_MAX_THREADS: Final = 64


class LateAnswerError(TimeoutError):
    """
    No answer came in the time that the caller has. Never leaves RedisConnection but as a __cause__.

    Attributes:
        answers: Gets the answers when they come; or an exception, the driver's or the first among the answers. In a
            thread of its own, or in the event loop that sent the commands.
    """

    def __init__(self, waited_s: float) -> None:
        super().__init__(f"No answer within {waited_s:g} s. What was asked may still be done.")
        self.answers: Future[list[Any]] = Future()


def late_answers(error: BaseException) -> Future[list[Any]] | None:
    """Return what gets the answers if *error* says that none came in time; None if none are waited for."""
    cause = error.__cause__
    return cause.answers if isinstance(cause, LateAnswerError) else None


def pass_on(answers: Future[list[Any]], done: Any) -> None:
    """Give *answers* what came of *done*, a future or a task that is over."""
    if done.cancelled():
        answers.set_exception(TimeoutError("The event loop ended before an answer came."))
    elif (error := done.exception()) is not None:
        answers.set_exception(error)
    else:
        answers.set_result(done.result())


class LateAnswers(ForkAware):
    """
    Sends commands over connections of redis-py, and waits for late answers in a thread that ends when there are none.

    A client for a cluster goes from node to node, and cannot be left halfway: each of its calls has a thread.

    Args:
        answer_error: What redis-py raises for an error that the server has answered.
        wait_s: Seconds that a caller waits, for a connection and an answer together.
        patience_s: Seconds until an answer is given up, from when it was asked for.
    """

    def __init__(self, answer_error: type[Exception], *, wait_s: float, patience_s: float) -> None:
        self._answer_error = answer_error
        self._wait_s = wait_s
        self._patience_s = patience_s
        self._exchanges: deque[_LateExchange] = deque()
        self._is_waiting = False
        self._threads: ThreadPoolExecutor | None = None
        self._lock = threading.Lock()
        self.watch_forks()

    def after_fork_in_child(self) -> None:
        """Forget the threads, and what they wait for: both are the parent's."""
        self._threads = None
        self._lock = threading.Lock()
        self._exchanges = deque()
        self._is_waiting = False

    def ask(self, connections: Connections, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """
        Send *commands* in one round trip and return the answers, errors of the server among them.

        Raises:
            LateAnswerError: They were sent, and there is no answer yet.
        """
        began_s = time.monotonic()
        exchange = _LateExchange(connections, len(commands), self._answer_error)
        try:
            exchange.send(commands)
            is_over = exchange.read_until(began_s + self._wait_s)
        except BaseException:
            exchange.give_up()
            raise
        if is_over:
            exchange.release()
            return exchange.answers
        exchange.error = LateAnswerError(self._wait_s)
        exchange.until_s = began_s + self._patience_s
        self._leave(exchange)
        raise exchange.error

    def call(self, function: Callable[[], list[Any]]) -> list[Any]:
        """
        Call *function* in a thread and return what it does.

        Raises:
            LateAnswerError: It is not over yet.
        """
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(_MAX_THREADS, thread_name_prefix="live_cache-cluster")
            threads = self._threads
        try:
            future = threads.submit(function)
        except RuntimeError:  # The interpreter is shutting down.
            return function()
        try:
            return future.result(self._wait_s)
        except TimeoutError as error:
            if future.done():
                return future.result()  # The error may be its own.
            if future.cancel():
                raise TimeoutError("All threads wait for answers: nothing was sent.") from error
        late = LateAnswerError(self._wait_s)
        future.add_done_callback(partial(pass_on, late.answers))
        raise late

    def _leave(self, exchange: _LateExchange) -> None:
        with self._lock:
            self._exchanges.append(exchange)
            if self._is_waiting:
                return
            self._is_waiting = True
        try:
            threading.Thread(target=self._wait, name="live_cache-late-answers", daemon=True).start()
        except RuntimeError:  # The interpreter is shutting down, or there are too many threads.
            self._wait(is_patient=False)

    def _wait(self, *, is_patient: bool = True) -> None:
        # One after the other: they were all sent before, so that all are answered while the first is waited for.
        while True:
            with self._lock:
                if not self._exchanges:
                    self._is_waiting = False
                    return
                exchange = self._exchanges.popleft()
            exchange.finish(until_s=exchange.until_s if is_patient else 0.0)


class _LateExchange(Exchange):
    """An exchange whose answers somebody wants to hear of when they are there."""

    error: LateAnswerError
    until_s: float

    def finish(self, *, until_s: float) -> None:
        """Wait for the rest, and tell whoever wants to know."""
        try:
            if not self.read_until(until_s):
                raise TimeoutError("No answer came.")
        except Exception as error:
            self.give_up()
            self.error.answers.set_exception(error)
            return
        self.release()
        errors = [answer for answer in self.answers if isinstance(answer, Exception)]
        if errors:
            self.error.answers.set_exception(errors[0])
        else:
            self.error.answers.set_result(self.answers)
