"""The harness itself: databases, second connections, processes, gates, Redis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import redis
from django.db import connections
from django.test import override_settings

from tests import servers
from tests.conftest import PrivateRedis, SecondConnection
from tests.gate import FileGate, Gate
from tests.processes import Processes, ProcessFailedError
from tests.testapp.models import AllFields, Author, Book, Seat

Connect = Callable[[str], SecondConnection]


def _count_books(alias: str) -> int:
    return Book.objects.using(alias).count()


def _read_caches() -> Any:
    from django.conf import settings

    return settings.CACHES


def _hold(path: str) -> str:
    FileGate(path).arrive_and_wait()
    return "passed"


def _add_book(alias: str) -> Book:
    author = Author.objects.using(alias).create(name="Ursula K. Le Guin")
    return Book.objects.using(alias).create(title="The Dispossessed", author=author)


def test_a_second_connection_sees_what_the_first_committed(alias: str, second_connection: Connect) -> None:
    """Rows of the test are visible to another thread, over a connection that is not the test's."""
    _add_book(alias)
    other = second_connection(alias)
    assert other.run(_count_books, alias) == 1
    assert other.run(lambda: connections[alias]) is not connections[alias]


def test_a_second_connection_raises_what_its_function_raises(second_connection: Connect) -> None:
    """An exception in the other thread is the test's exception."""
    with pytest.raises(ZeroDivisionError):
        second_connection("default").run(lambda: 1 // 0)


def test_a_process_sees_the_rows_of_the_test(alias: str, run_process: Processes) -> None:
    """A fresh process reads the same test database."""
    _add_book(alias)
    assert run_process(_count_books, alias).value == 1
    script = "from tests.testapp.models import Book\nresult = [Book.objects.using(args[0]).get().title]"
    assert run_process(script, alias).value == ["The Dispossessed"]


def test_a_process_has_the_settings_of_the_moment(run_process: Processes) -> None:
    """Overridden CACHES reach the process."""
    caches = {"default": {"BACKEND": "django.core.cache.backends.dummy.DummyCache"}}
    with override_settings(CACHES=caches):
        assert run_process(_read_caches).value == caches


def test_a_process_that_fails_fails_the_test(run_process: Processes) -> None:
    """An exit status other than 0 is an error that shows what the process wrote."""
    with pytest.raises(ProcessFailedError, match="boom"):
        run_process("raise SystemExit('boom')")


def test_a_held_process_can_be_killed(run_process: Processes, file_gate: FileGate) -> None:
    """A process stands at a file gate until the gate opens, or is killed there."""
    held, killed = run_process.start(_hold, file_gate.path), run_process.start(_hold, file_gate.path + "2")
    file_gate.wait_arrived()
    FileGate(file_gate.path + "2").wait_arrived()
    killed.kill()
    assert killed.wait(check=False).returncode == -9
    file_gate.open()
    assert held.wait().value == "passed"


def test_a_gate_that_nobody_opens_is_an_error(tmp_path: Path) -> None:
    """Waits end."""
    for gate in (Gate(timeout_s=0.01), FileGate(tmp_path / "gate", timeout_s=0.01)):
        with pytest.raises(TimeoutError):
            gate.wait_arrived()
        with pytest.raises(TimeoutError):
            gate.arrive_and_wait()
        assert gate.has_arrived


def test_a_gate_holds_a_thread(gate: Gate, second_connection: Connect) -> None:
    """The thread goes on only after open()."""
    waiting = second_connection("default").start(gate.arrive_and_wait)
    gate.wait_arrived()
    assert not waiting.done()
    gate.open()
    assert waiting.result(10) is None


@pytest.mark.parametrize("run", [1, 2])
def test_the_redis_database_is_empty_at_the_start(redis_url: str, run: int) -> None:
    """Keys of one test are gone in the next."""
    with redis.Redis.from_url(redis_url) as client:
        assert client.get("left over") is None
        client.set("left over", run)


def test_a_private_redis_can_be_killed_and_comes_back_empty(private_redis: PrivateRedis) -> None:
    """Its port stays, its data does not."""
    with redis.Redis.from_url(private_redis.url) as client:
        client.set("key", "value")
        private_redis.kill()
        with pytest.raises(redis.ConnectionError):
            client.get("key")
        private_redis.start()
        assert client.get("key") is None


def test_all_models_can_be_saved(alias: str) -> None:
    """Each field type accepts its default, on each database."""
    made = AllFields.objects.using(alias).create(small_integer=21)
    assert AllFields.objects.using(alias).get(pk=made.pk).generated == 42
    Seat.objects.using(alias).create(hall="A", number=1)
    assert Seat.objects.using(alias).get(pk=("A", 1)).taken is False


@pytest.mark.django_db(transaction=False)
def test_the_own_mark_of_a_test_wins(alias: str) -> None:
    """With transaction=False the test runs inside a transaction that is rolled back."""
    assert connections[alias].in_atomic_block


def test_servers_are_described() -> None:
    """Each kind has its line, found or missing."""
    assert len(servers.describe()) == 1 + len(servers.KINDS)
