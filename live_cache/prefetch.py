"""
prefetch_related() of a live queryset: each query that it makes is a live read of its own, with the same options.

Django has no hook for the querysets of a prefetch. prefetch_related_objects() calls prefetch_one_level(), and that asks
a *prefetcher*, a related manager or a descriptor, for a queryset. Here Django's own function runs with a
prefetch_one_level() that gives the prefetcher live querysets instead of letting it make its own. Nothing of Django is
replaced for anybody else. The privates were read in Django 5.2.19 and 6.1.3; a prefetcher that is not known prefetches
from the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from types import FunctionType
from typing import Any, Final, TypeAlias

from django.db.models import Manager, QuerySet, query
from django.db.models.fields.related_descriptors import ForwardManyToOneDescriptor, ReverseOneToOneDescriptor
from django.db.models.manager import BaseManager

from live_cache.loop import leave_loop

__all__ = ["prefetch_live"]

MakeLive: TypeAlias = Callable[[QuerySet[Any]], QuerySet[Any]]

_prefetch_related_objects: Final[Any] = query.prefetch_related_objects
_prefetch_one_level: Final[Any] = getattr(query, "prefetch_one_level")  # noqa: B009 - not in django-stubs
_CAN_SUBSTITUTE: Final = "prefetch_one_level" in _prefetch_related_objects.__code__.co_names
_GENERIC_FOREIGN_KEYS: Final = "django.contrib.contenttypes.fields"


def prefetch_live(instances: Sequence[Any], lookups: Iterable[Any], make_live: MakeLive) -> None:
    """Do what prefetch_related_objects() does, with every queryset that it uses passed through *make_live*."""
    if not _CAN_SUBSTITUTE:
        leave_loop()
        _prefetch_related_objects(instances, *lookups)
        return

    def one_level(instances: Any, prefetcher: Any, lookup: Any, level: int) -> Any:
        return _prefetch_one_level(instances, _LivePrefetcher(prefetcher, make_live), lookup, level)

    run = FunctionType(_prefetch_related_objects.__code__, {**vars(query), "prefetch_one_level": one_level})
    run(instances, *lookups)


class _LivePrefetcher:
    """Stands before a prefetcher and hands it live querysets."""

    def __init__(self, prefetcher: Any, make_live: MakeLive) -> None:
        self._prefetcher = prefetcher
        self._make_live = make_live

    def get_prefetch_querysets(self, instances: Any, querysets: Any = None) -> Any:
        """See the method of the same name of Django's related managers."""
        querysets = [*querysets] if querysets else _default_querysets(self._prefetcher, instances)
        if _is_generic_foreign_key(self._prefetcher):
            querysets = _with_other_types(self._prefetcher, instances, querysets)
        if querysets is None:
            leave_loop()
        else:
            querysets = [self._make_live(queryset) for queryset in querysets]
        return self._prefetcher.get_prefetch_querysets(instances, querysets)


def _default_querysets(prefetcher: Any, instances: Any) -> list[Any] | None:
    """Return what the prefetcher would start from by itself, or None where that is not known."""
    if isinstance(prefetcher, BaseManager):
        # A related manager's own get_queryset() filters by its one instance; its base class's does not.
        manager: Manager[Any] = super(type(prefetcher), prefetcher)  # type: ignore[assignment]  # mypy sees a super
        return [manager.get_queryset()]
    if isinstance(prefetcher, ForwardManyToOneDescriptor | ReverseOneToOneDescriptor):
        return [prefetcher.get_queryset(instance=instances[0])]
    return [] if _is_generic_foreign_key(prefetcher) else None


def _is_generic_foreign_key(prefetcher: Any) -> bool:
    return type(prefetcher).__module__ == _GENERIC_FOREIGN_KEYS and not isinstance(prefetcher, BaseManager)


def _with_other_types(prefetcher: Any, instances: Any, querysets: list[Any]) -> list[Any]:
    """Add a queryset for each content type that *instances* refer to and that has none among *querysets*."""
    field = getattr(prefetcher, "field", prefetcher)  # a descriptor of its own since Django 6.1
    type_attribute = field.model._meta.get_field(field.ct_field).attname
    known = {field.get_content_type(model=each.query.model, using=each.db).pk for each in querysets}
    added = []
    for instance in instances:
        type_id = getattr(instance, type_attribute)
        if type_id is None or type_id in known or getattr(instance, field.fk_field) is None:
            continue
        known.add(type_id)
        model = field.get_content_type(id=type_id, using=instance._state.db).model_class()
        queryset = None if model is None else model._base_manager.all()  # of the routers' database, as Django does
        # A content type that its own model does not lead back to, such as a proxy's, is left to Django.
        if queryset is not None and field.get_content_type(model=model, using=queryset.db).pk == type_id:
            added.append(queryset)
        else:
            leave_loop()
    return querysets + added
