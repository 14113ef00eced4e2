"""Live events: what was committed, told to whoever subscribes. docs/explanation/events.md describes them."""

from __future__ import annotations

from live_cache.events.base import (
    Changed,
    Deleted,
    Inserted,
    LiveEvent,
    LiveStream,
    Position,
    Subscription,
    Updated,
)
from live_cache.events.ledger import live_stream
from live_cache.events.manual import ManualLiveStream

__all__ = [
    "Changed",
    "Deleted",
    "Inserted",
    "LiveEvent",
    "LiveStream",
    "ManualLiveStream",
    "Position",
    "Subscription",
    "Updated",
    "live_stream",
]
