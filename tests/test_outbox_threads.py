"""LIVE_CACHE_LISTEN: listeners in threads of the processes that serve."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from django.core.signals import request_started
from django.db import connections

from live_cache import checks
from live_cache.outbox import threads
from live_cache.outbox.dialects import dialect_of
from live_cache.outbox.installing import drop_triggers, install_triggers
from tests.outside import write_outside
from tests.test_outbox_listener import INSERT, until, waiting


@pytest.fixture(autouse=True)
def no_threads() -> Iterator[None]:
    """None is left behind."""
    yield
    threads.stop()


def names() -> list[str]:
    """Return the names of the listening threads."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("live-cache-listen")]


def test_the_first_request_starts_one_thread(alias: str, cache: str, settings: Any) -> None:
    """And the next ones no more."""
    request_started.send(sender=None)
    assert [] == names()
    install_triggers(connections[alias], ["testapp_country"])
    settings.LIVE_CACHE_LISTEN = [alias]
    for _ in range(3):
        threads._on_request()
    assert [f"live-cache-listen-{alias}"] == names()
    until(lambda: dialect_of(connections[alias]).has_listener(connections[alias]))
    write_outside(alias, INSERT.format("FR"))
    until(lambda: waiting(alias) == 0)
    threads.stop()
    assert [] == names()
    drop_triggers(connections[alias])


@pytest.mark.parametrize("value", ["default", ["nonsense"], None, 7])
def test_a_wrong_setting_is_reported(settings: Any, value: Any) -> None:
    """By a check."""
    settings.LIVE_CACHE_LISTEN = value
    assert ["live_cache.E018"] == [message.id for message in checks.check_settings()]
