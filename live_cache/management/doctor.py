"""What ``manage.py live_cache doctor`` examines: every check of the package, and the latencies of the live parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.checks import ERROR, CheckMessage

from live_cache import checks
from live_cache.assembly import get_assembly
from live_cache.conf import settings
from live_cache.exceptions import LiveCacheError
from live_cache.management.tables import as_table
from live_cache.probes import latencies_of

__all__ = ["examine", "format_examination"]

_LEVELS = {10: "debug", 20: "info", 30: "warning", 40: "error", 50: "critical"}


def examine(aliases: Sequence[str]) -> dict[str, Any]:
    """Return what the checks say, deploy checks included, and the latencies of each of *aliases*."""
    messages: list[CheckMessage] = []
    for check in checks.ALL_CHECKS:
        messages += check()
    shown = [message for message in messages if not message.is_silenced()]
    return {
        "checks": [
            {"id": each.id, "level": _LEVELS.get(each.level, str(each.level)), "message": each.msg, "hint": each.hint}
            for each in shown
        ],
        "caches": [_examine_alias(alias) for alias in aliases],
        "is_enabled": settings.enabled,
        "errors": sum(message.level >= ERROR for message in shown),
    }


def format_examination(report: dict[str, Any]) -> str:
    """Return what examine() returns as text for people."""
    parts = [
        f"{check['level'].upper()} {check['id']}: {check['message']}\n    {check['hint']}" for check in report["checks"]
    ]
    for cache in report["caches"]:
        parts.append(f"Cache {cache['alias']!r}" + (f": {cache['error']}" if cache["error"] else ""))
        if cache["parts"]:
            names = ("part", "put_us", "get_us", "delete_us", "error")
            parts.append(as_table(names, [[part[name] for name in names] for part in cache["parts"]]))
    if not report["checks"]:
        parts.append("The checks found nothing.")
    return "\n\n".join(parts)


def _examine_alias(alias: str) -> dict[str, Any]:
    try:
        return {"alias": alias, "parts": latencies_of(get_assembly(alias)), "error": None}
    except (LiveCacheError, OSError) as error:
        return {"alias": alias, "parts": [], "error": str(error)}
