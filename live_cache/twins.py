"""
The async twins of a live queryset, which never block the event loop on a hit.

A twin first runs its sync method on the loop, where only memory may answer (loop.py): a hit in the memory tier, under a
ledger of this process or host, takes no thread. Anything else runs as Django runs it, in a thread by sync_to_async().

A thread has database connections of its own, and the loop's are never used. So an answer on the loop cannot know
whether the caller is inside a transaction that was begun in a thread: while any connection of this process to the
database is in one, twins go to the thread, whose connection knows.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, Final

from asgiref.sync import sync_to_async
from django.core.exceptions import SynchronousOnlyOperation

from live_cache.assembly import get_assembly
from live_cache.conf import settings
from live_cache.loop import LeaveLoop, only_memory
from live_cache.stores.memory import MemoryStore

if TYPE_CHECKING:
    from live_cache.queryset import LiveOptions

__all__ = ["AsyncTwins"]

_OWN_MODULES: Final = frozenset({"django.db.models.query", "live_cache.queryset"})


class AsyncTwins:
    """The async methods of LiveQuerySet."""

    if TYPE_CHECKING:
        _live: LiveOptions | None
        _result_cache: list[Any] | None
        _prefetch_done: bool

        def _fetch_all(self) -> None: ...

    def __aiter__(self) -> AsyncIterator[Any]:
        async def rows() -> AsyncIterator[Any]:
            await self._run_twin("_fetch_all")
            for row in self._result_cache or ():
                yield row

        return rows()

    async def acount(self) -> int:
        """See count()."""
        count: int = await self._run_twin("count")
        return count

    async def aexists(self) -> bool:
        """See exists()."""
        is_there: bool = await self._run_twin("exists")
        return is_there

    async def acontains(self, obj: Any) -> bool:
        """See contains()."""
        is_there: bool = await self._run_twin("contains", obj)
        return is_there

    async def aget(self, *args: Any, **kwargs: Any) -> Any:
        """See get()."""
        return await self._run_twin("get", *args, **kwargs)

    async def afirst(self) -> Any:
        """See first()."""
        return await self._run_twin("first")

    async def alast(self) -> Any:
        """See last()."""
        return await self._run_twin("last")

    async def aearliest(self, *fields: Any) -> Any:
        """See earliest()."""
        return await self._run_twin("earliest", *fields)

    async def alatest(self, *fields: Any) -> Any:
        """See latest()."""
        return await self._run_twin("latest", *fields)

    async def ain_bulk(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        """See in_bulk(). On SQLite a hit takes a thread, whose connection is asked for its limits."""
        rows: dict[Any, Any] = await self._run_twin("in_bulk", *args, **kwargs)
        return rows

    async def aaggregate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See aggregate()."""
        values: dict[str, Any] = await self._run_twin("aggregate", *args, **kwargs)
        return values

    async def _run_twin(self, name: str, *args: Any, **kwargs: Any) -> Any:
        """Call the sync method *name*, on the loop if memory can answer, else in a thread."""
        if self._live is not None and self._may_stay_on_loop(name):
            is_evaluated = self._result_cache is not None
            try:
                with only_memory():
                    return getattr(self, name)(*args, **kwargs)
            except (LeaveLoop, SynchronousOnlyOperation):
                if not is_evaluated:  # rows may be there whose prefetches are not
                    self._result_cache, self._prefetch_done = None, False
        return await sync_to_async(getattr(self, name))(*args, **kwargs)

    def _may_stay_on_loop(self, name: str) -> bool:
        # A method of the project may do anything; and the tenant may be a property of the thread's connection.
        if getattr(type(self), name).__module__ not in _OWN_MODULES or settings.tenant is not None:
            return False
        assert self._live is not None
        assembly = get_assembly(self._live.using_cache)
        return not assembly.ledger.is_shared_by_hosts and isinstance(assembly.tiers[0], MemoryStore)
