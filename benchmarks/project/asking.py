"""Whether a read was a hit, told in the same way for every system: no statement reached the database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.db import connection

__all__ = ["Statements"]


class Statements:
    """Counts the statements of this process's connection, from now on."""

    def __init__(self) -> None:
        self.count = 0
        connection.execute_wrappers.append(self._run)

    def close(self) -> None:
        """Count no more."""
        connection.execute_wrappers.remove(self._run)

    def _run(self, execute: Callable[..., Any], sql: Any, params: Any, many: bool, context: Any) -> Any:
        self.count += 1
        return execute(sql, params, many, context)
