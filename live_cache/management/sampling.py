"""What ``manage.py live_cache verify`` does: it reads what the project names, and verifies every hit of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final

from django.core.management.base import CommandError
from django.db.models import Manager, QuerySet
from django.utils.module_loading import import_string

from live_cache.assembly import Assembly
from live_cache.management.tables import as_table
from live_cache.queryset import LiveQuerySet, live
from live_cache.read_records import ReadRecord, recording
from live_cache.verification import Verification, verifying

__all__ = ["format_samples", "sample"]

_MAX_TRIES: Final = 5
"""Times that a read is repeated while writes come between."""


def sample(assembly: Assembly, reads: Sequence[str | Callable[[], Any]]) -> list[dict[str, Any]]:
    """
    Make each of *reads* through the cache, and return a line for each live read in it.

    Args:
        reads: Querysets, functions that return one or several, or functions that read by themselves; or the dotted
            paths of these. A queryset that is not live is made live in the cache of *assembly*.

    Raises:
        CommandError: A path leads nowhere, or to something else.
    """
    lines: list[dict[str, Any]] = []
    for read in reads:
        name = read if isinstance(read, str) else f"{read.__module__}.{getattr(read, '__qualname__', read)}"
        target = _find(read) if isinstance(read, str) else read
        for _ in range(_MAX_TRIES):
            with recording() as records, verifying() as verifications:
                _make(target, name, assembly)
            if all(found.verdict != "undecided" for found in verifications):
                break
        lines += _lines(name, records, verifications)
    return lines


def format_samples(lines: Sequence[dict[str, Any]]) -> str:
    """Return what sample() returns as text for people."""
    names = ("read", "key", "page", "result", "note")
    return as_table(names, [[line[name] for name in names] for line in lines]) if lines else "No live reads."


def _find(path: str) -> Any:
    try:
        return import_string(path)
    except ImportError as error:
        raise CommandError(f"{path!r} cannot be imported: {error}") from error


def _make(target: Any, name: str, assembly: Assembly) -> None:
    """Evaluate the querysets that *target* is, or returns."""
    made = target() if callable(target) and not isinstance(target, Manager) else target
    if made is None:
        return
    if isinstance(made, QuerySet | Manager):
        made = [made]
    if not isinstance(made, Iterable) or isinstance(made, str | bytes):
        raise CommandError(
            f"{name} gives {type(made).__name__}; give querysets, or a function that returns or reads them."
        )
    for queryset in made:
        if not isinstance(queryset, QuerySet | Manager):
            raise CommandError(f"{name} gives a {type(queryset).__name__} among its querysets.")
        is_live = isinstance(queryset, LiveQuerySet) and queryset.is_live
        list(queryset.all() if is_live else live(queryset, using_cache=assembly.alias))


def _lines(name: str, records: Sequence[ReadRecord], verifications: Sequence[Verification]) -> list[dict[str, Any]]:
    lines = []
    verified = list(verifications)
    for record in records:
        line = {"read": name, "key": record.cache_key, "page": record.page_suffix, "result": "", "note": ""}
        if record.is_hit or record.reason == "different":
            found = verified.pop(0)
            line.update(result=found.verdict, note=found.note)
        else:
            line.update(result="no hit", note=record.reason)
        lines.append(line)
    return lines
