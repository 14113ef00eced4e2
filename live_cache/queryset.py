"""
LiveQuerySet, LiveManager and live(): what people call. The only file that touches the privates of QuerySet.

A LiveQuerySet behaves as any QuerySet until live() gives it options; its clones keep them. From then on each evaluation
(iteration, slices, count(), exists(), aggregate(), get() and what is built on them) goes through the reader.
"""

from __future__ import annotations

import datetime
import enum
import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, Self, TypeVar, cast
from urllib.parse import quote

from django.apps import apps
from django.db import connections, models, router
from django.db.models.query import QuerySet

from live_cache import reader
from live_cache.assembly import Assembly, get_assembly
from live_cache.chance import chance
from live_cache.conf import settings
from live_cache.exceptions import ConfigurationError, UncachableQueryError
from live_cache.explanation import Explanation
from live_cache.instances import KNOWN_ITERABLES, build
from live_cache.invalidation import invalidate, invalidate_key_of
from live_cache.leniency import Leniency
from live_cache.loop import leave_loop
from live_cache.pages import page_bounds, page_suffix
from live_cache.plan import Plan, check_caller_key, make_plan
from live_cache.prefetch import prefetch_live
from live_cache.reader import ReadRecord, Result, Rows
from live_cache.replicas import primary_of
from live_cache.twins import AsyncTwins

if TYPE_CHECKING:
    from django.db.models.sql.query import Query

__all__ = ["LiveManager", "LiveOptions", "LiveQuerySet", "live"]

M = TypeVar("M", bound=models.Model)


class _Unset(enum.Enum):
    """What an option is that was not given: a member, which is the same object in a copy or pickle of a queryset."""

    UNSET = "unset"


_UNSET: Final[Any] = _Unset.UNSET
_MODES: Final = ("strict", "bounded")
_NO_LENIENCY: Final = Leniency()


@dataclass(frozen=True, slots=True)
class LiveOptions:
    """What live() was given."""

    cache_key: str | None
    timeout_s: float | Any | None
    using_cache: str
    mode: str
    page_size: int | None
    empty_timeout_s: float | Any | None = _UNSET
    timeout_jitter: float = 0.0
    leniency: Leniency | None = None
    is_refresh: bool = False
    """Whether to fetch anew whatever is cached."""


class LiveQuerySet(AsyncTwins, QuerySet[M], Generic[M]):
    """A QuerySet that can be live: cached in pages, never stale, and otherwise exactly a QuerySet."""

    if TYPE_CHECKING:
        # Privates of QuerySet that django-stubs do not have; read in Django 5.2.19 and 6.1.3.
        _fields: tuple[str, ...] | None
        _prefetch_related_lookups: tuple[Any, ...]
        _db: str | None
        _result_cache: list[Any] | None

        def _chain(self) -> Self: ...

    _live: LiveOptions | None = None
    _last_read: ReadRecord | None = None
    _row_suffix: str | None = None

    def live(
        self,
        cache_key: str | None = None,
        *,
        timeout: float | None = _UNSET,
        using_cache: str = "default",
        mode: str = "strict",
        page_size: int | None = None,
        refresh_after: float | None = None,
        stale_while_revalidate: float | None = None,
        stale_if_error: float | None = None,
        timeout_jitter: float = 0.0,
        empty_timeout: float | None = _UNSET,
    ) -> Self:
        """
        Return a live clone: its results are cached, and dropped by every write that could change them.

        Args:
            cache_key: Names the result sets, so that invalidate(cache_key) drops them. It is combined with a
                fingerprint of the query: two different querysets never share an entry. None derives a key.
            timeout: Seconds until an entry expires, None for never. The default is the TIMEOUT of the cache.
            using_cache: Alias in CACHES; its BACKEND is live_cache.backend.LiveCache.
            mode: "strict": every hit is checked against the ledger. "bounded": a hit in the nearest tier is checked
                against a copy of a ledger in Redis, without a round trip; it may lack what was committed by others in
                the last LIVE_CACHE_MAX_LAG_MS.
            page_size: What page() takes where it is given no size.
            refresh_after: Seconds after which one reader fetches an entry again, while the others still have it: for
                entries that would expire just when they are needed. Never stale. None: they expire.
            stale_while_revalidate: Seconds that rows may be out of date which are served while another reader fetches.
                None: never stale, they wait.
            stale_if_error: Seconds that rows may be out of date which are served when the database answers with an
                error. None: never stale, the error is raised.
            timeout_jitter: Share of the timeout, from 0 to 1, of which a part by chance is taken off, so that entries
                that were stored together do not expire together.
            empty_timeout: The timeout of a result that shows no row, such as that of a name which nobody has: no rows,
                a count() of 0, exists() that is False. 0: it is not stored. The default is the timeout of the others.

        Raises:
            InvalidKeyError: The cache key is empty, too long, or has empty segments.
            ConfigurationError: There is no such cache alias, it has another backend, or live_cache is not installed.
            ValueError: The mode or the page size does not exist, or a number of seconds or a share is out of range.
        """
        if "live_cache" not in apps.app_configs:
            raise ConfigurationError('Put "live_cache" in INSTALLED_APPS: without it, writes are not seen.')
        if cache_key is not None:
            check_caller_key(cache_key)
        if mode not in _MODES:
            raise ValueError(f"The mode {mode!r} does not exist; modes are: {', '.join(map(repr, _MODES))}.")
        if page_size is not None and page_size < 1:
            raise ValueError(f"page_size must be at least 1, not {page_size!r}.")
        if not 0 <= timeout_jitter <= 1:
            raise ValueError(f"timeout_jitter is a share from 0 to 1, not {timeout_jitter!r}.")
        leniency: Leniency | None = Leniency(refresh_after, stale_while_revalidate, stale_if_error)
        if leniency == _NO_LENIENCY:
            leniency = None
        get_assembly(using_cache)
        clone: Self = _duplicate(self)
        clone._live = LiveOptions(
            cache_key, timeout, using_cache, mode, page_size, empty_timeout, timeout_jitter, leniency
        )
        return clone

    @property
    def is_live(self) -> bool:
        """Whether live() was called on this queryset or on one that it was made from."""
        return self._live is not None

    @property
    def last_read(self) -> ReadRecord | None:
        """How the rows of this evaluated queryset were read, or None: not evaluated, or not live."""
        return self._last_read

    @property
    def fetched_at(self) -> datetime.datetime | None:
        """When the rows of this queryset were read from the database (UTC), evaluating it. None if not live."""
        self._fetch_all()
        if self._last_read is None:
            return None
        return datetime.datetime.fromtimestamp(self._last_read.fetched_at_ns / 1e9, datetime.UTC)

    def page(self, number: int, size: int | None = None) -> Self:
        """
        Return page *number*, counted from 1, of *size* rows (default: page_size of live()), unevaluated.

        Raises:
            ValueError: The number or the size is below 1, or no size is known.
        """
        if size is None:
            size = None if self._live is None else self._live.page_size
        if size is None:
            raise ValueError("page() needs a size: pass one, or give page_size to live().")
        start, stop = page_bounds(number, size)
        return self[start:stop]

    def fresh(self) -> Self:
        """Return a live clone that fetches from the database whatever is cached, and stores what it fetched."""
        options = self._require_options("fresh()")
        clone: Self = _duplicate(self)
        clone._live = replace(options, is_refresh=True)
        return clone

    def invalidate(self) -> None:
        """Mark every entry of this queryset stale, for all processes: each page, count and aggregate of it."""
        options = self._require_options("invalidate()")
        assembly = get_assembly(options.using_cache)
        if options.cache_key is not None:
            invalidate(options.cache_key, using_cache=options.using_cache)
            return
        try:
            plan = self._make_plan(self.query, self._suffix(), self._result_kind())
        except UncachableQueryError:  # then nothing of it was ever stored
            return
        invalidate_key_of(plan, assembly, connections[self.db])

    def live_explain(self) -> Explanation:
        """
        Say how this queryset would be read now: its key, its tables, whether it has an entry, or why not.

        Runs no SELECT of the queryset itself.
        """
        options = self._live
        if options is None:
            return Explanation.uncached("live() was not called on this queryset")
        assembly = get_assembly(options.using_cache)
        try:
            self._refuse_if_off()
            plan = self._make_plan(self.query, self._suffix(), self._result_kind())
        except UncachableQueryError as error:
            return Explanation.uncached(str(error))
        return Explanation.of(plan, assembly, connections[self.db])

    # -- evaluation ---------------------------------------------------------------------------------------------------

    def _fetch_all(self) -> None:
        if self._result_cache is None and self._live is not None:
            settled = self._settled()
            self._result_cache = settled._read_instances()
            self._last_read = settled._last_read
        super()._fetch_all()

    def _prefetch_related_objects(self) -> None:
        if self._live is None:
            super()._prefetch_related_objects()  # type: ignore[misc]  # private; django-stubs do not have it
            return
        options = replace(self._live, page_size=None)
        prefetch_live(self._result_cache or (), self._prefetch_related_lookups, lambda each: _as_live(each, options))
        self._prefetch_done = True

    def _read_instances(self) -> list[Any]:
        """Return what the queryset yields, through the cache where that is right."""
        plan: Plan | None = None

        def fetch() -> Rows:
            compiler = self.query.get_compiler(using=self.db)
            return list(compiler.results_iter(tuple_expected=True))

        try:
            plan = self._planned(lambda: self._make_plan(self.query, self._suffix(), self._result_kind()))
        except _Bypass as bypass:
            started = time.perf_counter()
            instances: list[Any] = list(cast("Iterable[Any]", self._iterable_class(self)))
            result = reader.fetch_plainly(bypass.assembly, tuple, bypass.reason, started=started)
            self._last_read = result.record
            return instances
        result = self._read(plan, fetch)
        return build(self, plan.layout, result.rows)

    def count(self) -> int:
        """See QuerySet.count(). Cached beside the pages."""
        if self._result_cache is not None or self._live is None or self._is_replaced("count"):
            return super().count()
        settled = self._settled()
        run = partial(settled.query.get_count, using=settled.db)
        count = settled._read_scalar("count", super(LiveQuerySet, settled).count, run)
        self._last_read = settled._last_read
        return cast("int", count)

    def exists(self) -> bool:
        """See QuerySet.exists(). Cached beside the pages."""
        if self._result_cache is not None or self._live is None or self._is_replaced("exists"):
            return super().exists()
        settled = self._settled()
        run = partial(settled.query.has_results, using=settled.db)
        is_there = settled._read_scalar("exists", super(LiveQuerySet, settled).exists, run)
        self._last_read = settled._last_read
        return cast("bool", is_there)

    def _read_scalar(
        self, name: Literal["count", "exists"], uncached: Callable[[], object], run: Callable[[], object]
    ) -> object:
        start, stop = self.query.low_mark, self.query.high_mark
        suffix = name if not start and stop is None else f"{name}_{page_suffix(start, stop)}"
        try:
            # The rows' own plan: count() and exists() read a part of the tables that the rows are read from.
            plan = self._planned(lambda: self._make_plan(self.query, suffix, self._result_kind(), purpose=name))
        except _Bypass as bypass:
            return self._bypassed(bypass, uncached)
        return self._read(plan, lambda: [(run(),)]).rows[0][0]

    def aggregate(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """See QuerySet.aggregate(). Cached under the expressions."""
        if self._live is None or self._is_replaced("aggregate"):
            return super().aggregate(*args, **kwargs)
        settled = self._settled()
        values = settled._read_aggregate(super(LiveQuerySet, settled).aggregate, *args, **kwargs)
        self._last_read = settled._last_read
        return values

    def _read_aggregate(self, uncached: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
        try:
            expressions = kwargs | {expression.default_alias: expression for expression in args}  # in Django's order
        except (AttributeError, TypeError):  # Django explains what is wrong with an expression
            return uncached(*args, **kwargs)

        def run() -> dict[str, Any]:
            return uncached(*args, **kwargs)

        try:
            plan = self._planned(
                lambda: self._make_plan(
                    self.query,
                    f"aggregate_{page_suffix(self.query.low_mark, self.query.high_mark)}",
                    self._result_kind(),
                    purpose="aggregate",
                    aggregates=expressions,
                    run=run,
                )
            )
        except _Bypass as bypass:
            return cast("dict[str, Any]", self._bypassed(bypass, run))
        names: list[str] = list(expressions)

        def fetch() -> Rows:
            values = run()
            return [tuple(values[name] for name in names)]

        return dict(zip(names, self._read(plan, fetch).rows[0], strict=True))

    def get(self, *args: Any, **kwargs: Any) -> M:
        """See QuerySet.get(). A get by primary key has the page suffix ``id/<key>``."""
        if self._live is None or args or len(kwargs) != 1:
            return super().get(*args, **kwargs)
        ((name, value),) = kwargs.items()
        primary_key = self.model._meta.pk
        if name not in ("pk", primary_key.name, primary_key.attname) or not isinstance(value, int | str):
            return super().get(*args, **kwargs)
        clone = self._chain()
        clone._row_suffix = f"id/{quote(str(value), safe='')[:200]}"
        return super(LiveQuerySet, clone).get(**kwargs)

    # -- what must not be read from the cache -------------------------------------------------------------------------

    def get_or_create(self, *args: Any, **kwargs: Any) -> tuple[M, bool]:
        """See QuerySet.get_or_create(). Reads from the database."""
        return super(LiveQuerySet, self._plain()).get_or_create(*args, **kwargs)

    def update_or_create(self, *args: Any, **kwargs: Any) -> tuple[M, bool]:
        """See QuerySet.update_or_create(). Reads from the database."""
        return super(LiveQuerySet, self._plain()).update_or_create(*args, **kwargs)

    def delete(self) -> tuple[int, dict[str, int]]:
        """See QuerySet.delete(). Finds what it deletes in the database."""
        if self._live is None:
            return super().delete()
        result = super(LiveQuerySet, self._plain()).delete()
        self._result_cache = None
        return result

    delete.alters_data = True  # type: ignore[attr-defined]  # as Django marks its own, for templates
    delete.queryset_only = True  # type: ignore[attr-defined]  # managers have no delete()

    # -- plumbing -----------------------------------------------------------------------------------------------------

    def _settled(self) -> Self:
        """
        Return a clone for one evaluation, for which the routers are asked once; this queryset if they need not be.

        They may answer otherwise each time, as for replicas. Not noted here even for the moment: a clone that is made
        meanwhile, by another thread or by a receiver of a signal, would keep the answer, and write to the replica.
        """
        if self._db is not None or not router.routers:
            return self
        clone = self._chain()
        clone._db = self.db
        return clone

    def _is_replaced(self, name: str) -> bool:
        """Return whether a base of this class has a method *name* of its own, whose answer is not the database's."""
        is_replaced = getattr(super(LiveQuerySet, type(self)), name) is not getattr(QuerySet, name)
        if is_replaced:
            leave_loop()
        return is_replaced

    def _plain(self) -> Self:
        """Return a clone that is not live."""
        clone = self._chain()
        clone._live = None
        return clone

    def _clone(self) -> Self:
        clone: Self = super()._clone()  # type: ignore[misc]  # private; django-stubs do not have it
        clone._live = self._live
        clone._row_suffix = self._row_suffix
        return clone

    def _require_options(self, name: str) -> LiveOptions:
        if self._live is None:
            raise TypeError(f"{name} is for live querysets: call live() first.")
        return self._live

    def _result_kind(self) -> str:
        if self._iterable_class not in KNOWN_ITERABLES:
            name = f"{self._iterable_class.__module__}.{self._iterable_class.__qualname__}"
            raise UncachableQueryError(f"The iterable class {name} is not one of Django's.")
        return f"{self._iterable_class.__name__}:{self._fields!r}" if self._fields else self._iterable_class.__name__

    def _suffix(self) -> str:
        if self._row_suffix is not None:
            return self._row_suffix
        return page_suffix(self.query.low_mark, self.query.high_mark)

    def _make_plan(self, query: Query, suffix: str, result_kind: str, **options: Any) -> Plan:
        assert self._live is not None
        _refuse_alias(self.model, self.db)
        return make_plan(
            query,
            using=self.db,
            page_suffix=suffix,
            result_kind=result_kind,
            caller_key=self._live.cache_key,
            **options,
        )

    def _refuse_if_off(self) -> None:
        if not settings.enabled:
            raise UncachableQueryError("LIVE_CACHE_ENABLED is False.")
        if reader.is_disabled():
            raise UncachableQueryError("The read is inside disabled().")

    def _planned(self, make: Callable[[], Plan]) -> Plan:
        """Return the plan, or raise _Bypass with the reason why there is none."""
        assert self._live is not None
        assembly = get_assembly(self._live.using_cache)
        try:
            self._refuse_if_off()
            return make()
        except UncachableQueryError as error:
            leave_loop()
            assembly.metrics.count("bypasses.query")
            raise _Bypass(assembly, str(error)) from None

    def _read(self, plan: Plan, fetch: Callable[[], Rows]) -> Result:
        options = self._live
        assert options is not None
        assembly = get_assembly(options.using_cache)
        timeout_s = assembly.timeout_s if options.timeout_s is _UNSET else options.timeout_s
        empty_timeout_s = timeout_s if options.empty_timeout_s is _UNSET else options.empty_timeout_s
        if options.timeout_jitter:
            kept = 1 - options.timeout_jitter * chance.random()
            timeout_s, empty_timeout_s = (None if s is None else s * kept for s in (timeout_s, empty_timeout_s))
        result = reader.read(
            assembly,
            plan,
            connections[self.db],
            fetch,
            timeout_s=timeout_s,
            empty_timeout_s=empty_timeout_s,
            is_refresh=options.is_refresh,
            is_bounded=options.mode == "bounded",
            leniency=options.leniency,
        )
        self._last_read = result.record
        return result

    def _bypassed(self, bypass: _Bypass, run: Callable[[], object]) -> object:
        result = reader.fetch_plainly(bypass.assembly, lambda: [(run(),)], bypass.reason)
        self._last_read = result.record
        return result.rows[0][0]


class _Bypass(Exception):
    def __init__(self, assembly: Assembly, reason: str) -> None:
        super().__init__(reason)
        self.assembly = assembly
        self.reason = reason


def _refuse_alias(model: type[models.Model], alias: str) -> None:
    """Refuse an alias by which the model is only read: its clocks are ticked under a name that is not known."""
    if not router.routers:
        return
    primary = primary_of(connections[alias])
    written = router.db_for_write(model)
    if written != alias and (primary is None or written != primary.alias):
        raise UncachableQueryError(
            f"The routers write {model._meta.label} to {written!r}, and LIVE_CACHE_REPLICAS does not say that "
            f"{alias!r} is a replica of it."
        )


class LiveManager(models.Manager.from_queryset(LiveQuerySet), Generic[M]):  # type: ignore[misc]  # a class made at run time
    """A manager whose querysets can be live: ``objects = LiveManager()``."""

    if TYPE_CHECKING:

        def get_queryset(self) -> LiveQuerySet[M]: ...

        def live(
            self,
            cache_key: str | None = None,
            *,
            timeout: float | None = ...,
            using_cache: str = ...,
            mode: str = ...,
            page_size: int | None = ...,
            refresh_after: float | None = ...,
            stale_while_revalidate: float | None = ...,
            stale_if_error: float | None = ...,
            timeout_jitter: float = ...,
            empty_timeout: float | None = ...,
        ) -> LiveQuerySet[M]: ...


def live(
    queryset: QuerySet[M] | models.Manager[M],
    cache_key: str | None = None,
    *,
    timeout: float | None = _UNSET,
    using_cache: str = "default",
    mode: str = "strict",
    page_size: int | None = None,
    refresh_after: float | None = None,
    stale_while_revalidate: float | None = None,
    stale_if_error: float | None = None,
    timeout_jitter: float = 0.0,
    empty_timeout: float | None = _UNSET,
) -> LiveQuerySet[M]:
    """
    Return *queryset* live, for models whose manager is not a LiveManager. Options: see LiveQuerySet.live().

    The class of the result is a subclass of the queryset's own class, so custom methods stay.
    """
    if not isinstance(queryset, QuerySet | models.Manager):
        raise TypeError(f"live() takes a QuerySet or a Manager, not {type(queryset).__qualname__}.")
    source = queryset.all() if isinstance(queryset, models.Manager) else queryset
    if not isinstance(source, LiveQuerySet):
        source = _duplicate(source)
        source.__class__ = _live_class(type(source))
    return LiveQuerySet.live(
        source,
        cache_key,
        timeout=timeout,
        using_cache=using_cache,
        mode=mode,
        page_size=page_size,
        refresh_after=refresh_after,
        stale_while_revalidate=stale_while_revalidate,
        stale_if_error=stale_if_error,
        timeout_jitter=timeout_jitter,
        empty_timeout=empty_timeout,
    )


def _duplicate(queryset: Any) -> Any:
    """
    Return a clone with which all goes on as it would with *queryset*.

    A related manager of a many-to-many field makes its filter and the next one speak of the same row. For Django's own
    clones, such as all(), that is over.
    """
    clone = queryset._chain()
    if queryset.query.filter_is_sticky:  # private; read in Django 5.2.19 and 6.1.3
        clone.query.filter_is_sticky = True
    return clone


def _as_live(queryset: QuerySet[Any], options: LiveOptions) -> QuerySet[Any]:
    """Return *queryset* live with these options, unless it is live with its own."""
    if isinstance(queryset, LiveQuerySet):
        if queryset._live is not None:
            return queryset
        clone = queryset._chain()
    else:
        clone = queryset._chain()  # type: ignore[attr-defined]  # private; a clone whose class may be changed
        clone.__class__ = _live_class(type(queryset))
    clone._live = options
    return cast("QuerySet[Any]", clone)


def _live_class(base: type[QuerySet[Any]]) -> type[LiveQuerySet[Any]]:
    return _make_live_class(cast("Hashable", base))


@cache
def _make_live_class(base: Any) -> type[LiveQuerySet[Any]]:
    if base is QuerySet:
        return LiveQuerySet
    namespace: dict[str, Any] = {
        "__module__": base.__module__,
        "__reduce__": _reduce,
        "_live_cache_base": base,
    }
    if hasattr(base, "live"):
        namespace["live"] = base.live  # Wagtail's live() means "published", and stays so
    return type(f"Live{base.__name__}", (LiveQuerySet, base), namespace)


def _reduce(queryset: Any) -> tuple[Any, ...]:
    return _rebuild, (queryset._live_cache_base,), queryset.__getstate__()


def _rebuild(base: type[QuerySet[Any]]) -> LiveQuerySet[Any]:
    cls = _live_class(base)
    return cls.__new__(cls)
