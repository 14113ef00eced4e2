"""
Makes every plain queryset read of one process live, and judges each of them. For tests/orm_suite.py only.

Each read goes the way of a LiveQuerySet, and its rows are handed out from the cache: a miss is stored and read again.
Each read also sends exactly one SELECT, as it would without a cache. After a hit that SELECT is the judge: its rows
must be those that the cache gave, in value and type. So tests that count queries still count what they expect.

Inside a TestCase the cache works as in autocommit (live_cache/testcases.py), so it is at work in nearly every test.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from functools import update_wrapper, wraps
from typing import Any

from django.db.models.query import QuerySet

from live_cache import reader
from live_cache.loop import is_on_loop
from live_cache.queryset import LiveOptions, LiveQuerySet, _live_class
from live_cache.twins import AsyncTwins

__all__ = ["ALIAS", "WrongReadError", "install", "wrong_reads"]

ALIAS = "live"

wrong_reads: list[str] = []
"""What the reads of the running test got wrong; also kept when the test swallows the error."""
counts: dict[str, int] = {"hits": 0, "reads": 0}
reasons: dict[str, int] = {}


class WrongReadError(AssertionError):
    """A read from the cache gave something else than the database."""


def install() -> None:
    """Patch QuerySet and the reader of this process. Call it once, after django.setup()."""
    _patch_querysets()
    plain_read = reader.read
    plain_fetch = reader.fetch_plainly

    def read(assembly: Any, plan: Any, connection: Any, fetch: Callable[[], Any], **options: Any) -> reader.Result:
        return _read_and_judge(plain_read, assembly, plan, connection, fetch, options)

    def fetch_plainly(assembly: Any, fetch: Callable[[], Any], reason: str, **options: Any) -> reader.Result:
        result = plain_fetch(assembly, fetch, reason, **options)
        counts["reads"] += 1
        reasons[reason] = reasons.get(reason, 0) + 1
        return result

    reader.read = read
    reader.fetch_plainly = fetch_plainly


# -- reads ------------------------------------------------------------------------------------------------------------


def _patch_querysets() -> None:
    fetch_all, count, exists = QuerySet._fetch_all, QuerySet.count, QuerySet.exists
    aggregate, get = QuerySet.aggregate, QuerySet.get

    def live_fetch_all(self: Any) -> None:
        if self._result_cache is not None or isinstance(self, LiveQuerySet):
            fetch_all(self)
            return
        twin = _twin(self)
        try:
            twin._fetch_all()
        finally:  # what was read stays when a prefetch fails, as in Django
            self._result_cache = twin._result_cache
            self._prefetch_done = twin._prefetch_done

    def live_count(self: Any) -> int:
        if self._result_cache is not None or isinstance(self, LiveQuerySet):
            return count(self)
        return _twin(self).count()

    def live_exists(self: Any) -> bool:
        if self._result_cache is not None or isinstance(self, LiveQuerySet):
            return exists(self)
        return _twin(self).exists()

    def live_aggregate(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, LiveQuerySet):
            return aggregate(self, *args, **kwargs)
        return _twin(self).aggregate(*args, **kwargs)

    def live_get(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, LiveQuerySet) or args or len(kwargs) != 1:
            return get(self, *args, **kwargs)
        return _twin(self).get(*args, **kwargs)

    patched = {
        "_fetch_all": live_fetch_all,
        "count": live_count,
        "exists": live_exists,
        "aggregate": live_aggregate,
        "get": live_get,
    }
    for name, function in patched.items():
        setattr(QuerySet, name, update_wrapper(function, getattr(QuerySet, name)))
    for name, function in vars(AsyncTwins).items():
        if inspect.iscoroutinefunction(function) and not name.startswith("_"):
            setattr(QuerySet, name, _live_twin(getattr(QuerySet, name)))


def _live_twin(original: Any) -> Any:
    @wraps(original)
    async def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self, LiveQuerySet):
            return await original(self, *args, **kwargs)
        return await getattr(_twin(self), original.__name__)(*args, **kwargs)

    return run


def _twin(queryset: Any) -> Any:
    """Return a live queryset that shares everything with *queryset*, as if live() had been called when it was made."""
    cls = _live_class(type(queryset))
    twin = cls.__new__(cls)
    twin.__dict__.update(queryset.__dict__)
    twin._live = _OPTIONS
    return twin


_OPTIONS = LiveOptions(None, None, ALIAS, "strict", None)


def _read_and_judge(
    plain_read: Callable[..., reader.Result],
    assembly: Any,
    plan: Any,
    connection: Any,
    fetch: Callable[[], Any],
    options: dict[str, Any],
) -> reader.Result:
    if is_on_loop():  # a hit there has no connection that could judge it
        return plain_read(assembly, plan, connection, fetch, **options)
    counts["reads"] += 1
    result = plain_read(assembly, plan, connection, fetch, **options)
    if result.record.is_hit:
        counts["hits"] += 1
        _judge(plan, result.rows, fetch(), "a hit")
        return result
    reasons[result.record.reason] = reasons.get(result.record.reason, 0) + 1
    rows = result.rows
    # A fetch without SQL: whatever is not served from the cache now is given out as it was read.
    again = plain_read(assembly, plan, connection, lambda: rows, **options)
    if again.record.is_hit:
        counts["hits"] += 1
        _judge(plan, again.rows, rows, "the entry of a miss")
    return again


def _judge(plan: Any, cached: Sequence[Any], rows: Sequence[Any], what: str) -> None:
    if [_typed(row) for row in cached] == [_typed(row) for row in rows]:
        return
    # Without ORDER BY the database may change the order of rows, though not the rows.
    if sorted(map(repr, map(_typed, cached))) == sorted(map(repr, map(_typed, rows))):
        return
    message = f"{plan.entry_key}: {what} gave {list(cached)[:5]!r}, the database {list(rows)[:5]!r}"
    wrong_reads.append(message)
    raise WrongReadError(message)


def _typed(value: Any) -> Any:
    kind = type(value)
    if kind in (tuple, list):
        return (kind, [_typed(item) for item in value])
    if kind is dict:
        return (kind, [(_typed(key), _typed(item)) for key, item in value.items()])
    if kind is float and value != value:
        return (kind, "nan")
    return (kind, getattr(value, "tzinfo", None), value)
