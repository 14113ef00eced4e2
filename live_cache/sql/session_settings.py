"""
What the settings of a session mean for rows, by their names: nothing, other tables, other values, another snapshot.

Only what surely leaves the rows of every query alone is listed as harmless; whatever has no list of its own counts as a
setting on which the answer of a query may depend.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["ANY_EFFECT", "SCOPE_WORDS", "VALUE_PRAGMAS", "SettingEffect", "effect_of_setting"]


class SettingEffect(NamedTuple):
    """What may be different after a setting was changed; all false for a harmless one."""

    search_path: bool = False
    """Which rows a name stands for: the schema, the role, what a row policy looks at."""
    values: bool = False
    """What the same query answers over the same rows: a time zone, a collation, a mode of SQL."""
    isolation: bool = False
    """Which snapshot a transaction reads."""


ANY_EFFECT = SettingEffect(search_path=True, values=True, isolation=True)
SCOPE_WORDS = frozenset({"session", "local", "global", "persist", "persist_only"})
VALUE_PRAGMAS = frozenset({"case_sensitive_like", "encoding", "reverse_unordered_selects"})
"""Of SQLite: those after which a query may answer otherwise."""

_ISOLATION = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "default_")
    for name in ("transaction_isolation", "transaction_read_only", "transaction_deferrable", "tx_isolation")
) | {"transaction", "transaction_snapshot", "characteristics", "tx_read_only"}
_POSTGRESQL_SEARCH_PATH = frozenset({"search_path", "schema", "role", "authorization", "session_authorization"}) | {
    "row_security"
}
_MYSQL_SEARCH_PATH = frozenset({"role", "default"})  # SET DEFAULT ROLE
# Settings of extensions whose operators and indexes answer by them; any other name with a dot is the project's own, for
# its row policies.
_EXTENSIONS = frozenset({"hnsw", "ivfflat", "pg_trgm", "pgroonga", "plpgsql", "postgis"})

_POSTGRESQL_HARMLESS = frozenset(
    {"application_name", "client_min_messages", "commit_delay", "constraints", "deadlock_timeout", "debug_print_plan"}
    | {"effective_cache_size", "effective_io_concurrency", "from_collapse_limit", "hash_mem_multiplier"}
    | {"idle_in_transaction_session_timeout", "idle_session_timeout", "jit", "join_collapse_limit", "lock_timeout"}
    | {"maintenance_work_mem", "max_parallel_workers_per_gather", "plan_cache_mode", "random_page_cost"}
    | {"seq_page_cost", "statement_timeout", "synchronous_commit", "temp_buffers", "transaction_timeout", "work_mem"}
)
_POSTGRESQL_HARMLESS_PREFIXES = ("enable_", "log_", "track_")
_MYSQL_HARMLESS = frozenset(
    {"bulk_insert_buffer_size", "foreign_key_checks", "innodb_lock_wait_timeout", "interactive_timeout"}
    | {"join_buffer_size", "lock_wait_timeout", "long_query_time", "max_execution_time", "max_heap_table_size"}
    | {"max_statement_time", "net_read_timeout", "net_write_timeout", "optimizer_switch", "profiling"}
    | {"read_buffer_size", "read_rnd_buffer_size", "slow_query_log", "sort_buffer_size", "sql_log_bin", "sql_notes"}
    | {"sql_safe_updates", "sql_warnings", "tmp_table_size", "unique_checks", "wait_timeout"}
)


def effect_of_setting(name: str, vendor: str) -> SettingEffect:
    """
    Return what a change of the setting *name* may change.

    Args:
        name: In lower case, without quotes. On PostgreSQL with its first part and a dot, if it has one; ``all`` stands
            for all of them. On MySQL ``@`` stands for the variables of the user.
    """
    if vendor == "postgresql":
        if name == "all":
            return ANY_EFFECT
        first, dot, _rest = name.partition(".")
        if dot:
            return SettingEffect(search_path=True, values=first in _EXTENSIONS)
        if name in _POSTGRESQL_SEARCH_PATH:
            return SettingEffect(search_path=True)
        is_harmless = name in _POSTGRESQL_HARMLESS or name.startswith(_POSTGRESQL_HARMLESS_PREFIXES)
    else:
        if name in _MYSQL_SEARCH_PATH:
            return SettingEffect(search_path=True)
        is_harmless = name in _MYSQL_HARMLESS
    if name in _ISOLATION:
        return SettingEffect(isolation=True)
    return SettingEffect(values=not is_harmless)
