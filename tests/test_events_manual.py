"""ManualLiveStream, and what any consumer of a live stream can rely on."""

from __future__ import annotations

import pytest

from live_cache.events import Changed, Deleted, Inserted, LiveEvent, LiveStream, ManualLiveStream, Subscription, Updated
from live_cache.ledger.clocks import LOG_LENGTH
from tests.testapp.models import Author, Book


def drained(subscription: Subscription) -> list[LiveEvent]:
    """Return all events that there are."""
    events = []
    while (event := subscription.get(0)) is not None:
        events.append(event)
    return events


@pytest.fixture
def stream() -> ManualLiveStream:
    return ManualLiveStream()


def test_it_tells_what_is_pushed(stream: ManualLiveStream) -> None:
    """One call is one commit; each subscription of the table gets all of it. No database is asked."""
    with stream.subscribe(Author) as one, stream.subscribe(Author, Book) as two:
        stream.push(Author, inserted=[1], updated={2: ["name"]}, deleted=[(3, "x")])
        stream.push("testapp_book", updated=[4])
        stream.push(Author)
        first, second, third, last = drained(one)
        assert isinstance(first, Inserted)
        assert isinstance(second, Updated)
        assert isinstance(third, Deleted)
        assert isinstance(last, Changed)
        assert (first.key, first.pk, first.model) == ((1,), 1, Author)
        assert (second.pk, second.columns) == (2, {"name"})
        assert (third.key, third.pk) == ((3, "x"), (3, "x"))
        assert (first.seq, third.seq, last.seq, last.is_gap) == (1, 1, 2, False)
        (book,) = [event for event in drained(two) if event.table == "testapp_book"]
        assert isinstance(book, Updated)
        assert book.columns is None


def test_streams_are_apart(stream: ManualLiveStream) -> None:
    """What one is pushed, another does not tell; what nobody is subscribed to is gone."""
    other: LiveStream = ManualLiveStream()
    stream.push(Author, inserted=[1])
    with stream.subscribe(Author) as here, other.subscribe(Author) as there:
        assert drained(here) == drained(there) == []
        stream.push(Author, inserted=[2])
        assert len(drained(here)) == 1
        assert drained(there) == []


def test_it_can_lose_events(stream: ManualLiveStream) -> None:
    """On request, and to a consumer who is too slow."""
    with stream.subscribe(Author) as subscription:
        stream.push(Author, inserted=[1])
        stream.lose(Author)
        (lost,) = drained(subscription)
        assert isinstance(lost, Changed)
        assert lost.is_gap
        for number in range(LOG_LENGTH + 1):
            stream.push(Author, inserted=[number])
        (lost,) = drained(subscription)
        assert isinstance(lost, Changed)
        assert lost.is_gap
        stream.push(Author, inserted=[1])
        assert [type(event) for event in drained(subscription)] == [Inserted]


def test_too_many_rows_are_refused(stream: ManualLiveStream) -> None:
    """Rather than told as something else."""
    with stream.subscribe(Author), pytest.raises(ValueError, match="several calls"):
        stream.push(Author, inserted=["x" * 100 + str(number) for number in range(1000)])
