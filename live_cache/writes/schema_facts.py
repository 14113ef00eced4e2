"""What this process remembers of the schema of its databases, and when it asks again."""

from __future__ import annotations

from live_cache.shapes.policies import forget_policies
from live_cache.shapes.text_rules import forget_text_rules
from live_cache.writes.engines import forget_engines
from live_cache.writes.plain_tables import forget_plain_tables

__all__ = ["forget_schema_facts"]


def forget_schema_facts() -> None:
    """Ask the catalogs again for engines, row policies, rules of texts, triggers and the like."""
    forget_engines()
    forget_policies()
    forget_text_rules()
    forget_plain_tables()
