"""
Listeners in threads of the application, for the databases that LIVE_CACHE_LISTEN names.

They begin with the first request that a process serves, so that commands have none, and neither has the parent of a
server that forks. Of all processes one listens at a time; the others ask for the turn once a second.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from typing import Any

from django.core.signals import request_started

from live_cache.conf import settings
from live_cache.exceptions import ConfigurationError
from live_cache.outbox.listener import Listener

__all__ = ["connect", "start", "stop"]

logger = logging.getLogger("live_cache.outbox")

_DISPATCH_UID = "live_cache.outbox.threads"

_lock = threading.Lock()
_running: dict[str, tuple[threading.Thread, threading.Event]] = {}


def connect() -> None:
    """Begin with the first request, where the setting names a database."""
    request_started.connect(_on_request, dispatch_uid=_DISPATCH_UID)


def start() -> None:
    """Start a thread for each database of LIVE_CACHE_LISTEN that has none in this process."""
    with _lock:
        for alias in settings.listen:
            running = _running.get(alias)
            if running is not None and running[0].is_alive():
                continue
            event = threading.Event()
            thread = threading.Thread(target=_run, args=(alias, event), name=f"live-cache-listen-{alias}", daemon=True)
            _running[alias] = (thread, event)
            thread.start()


def stop() -> None:
    """End the threads of this process, and wait for that."""
    with _lock:
        running = list(_running.values())
        _running.clear()
    for _, event in running:
        event.set()
    for thread, _ in running:
        thread.join(5)


def _on_request(**kwargs: Any) -> None:
    if settings.listen and any(alias not in _running for alias in settings.listen):
        start()


def _run(alias: str, event: threading.Event) -> None:
    try:
        Listener(alias).run(event)
    except ConfigurationError:
        logger.exception("Nobody listens to the outbox of %r.", alias)
    except Exception:  # an alias that is not there; system checks report it
        logger.exception("The listener of %r has ended.", alias)


def _after_fork_in_child() -> None:
    # No thread survives a fork; the next request starts them again.
    global _lock
    _lock = threading.Lock()
    _running.clear()


atexit.register(stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
