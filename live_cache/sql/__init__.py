"""
What one SQL statement does: which tables it reads and writes, and whether it begins or ends a transaction.

Reads text only; knows nothing of Django, of models or of connections. Used by the guard for what was written, and by
the plan for what is read.
"""

from __future__ import annotations

from live_cache.sql.classifier import classify
from live_cache.sql.kinds import Statement, StatementKind
from live_cache.sql.tokens import normalize_table

__all__ = ["Statement", "StatementKind", "classify", "normalize_table"]
