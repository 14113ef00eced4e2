"""BEGIN, COMMIT, SET, PRAGMA and their kin: what a statement does to the transaction or the session."""

from __future__ import annotations

from live_cache.sql.clauses import Clauses
from live_cache.sql.kinds import Statement, StatementKind, commits_on_schema_change, result, unknown
from live_cache.sql.tokens import is_name

__all__ = ["SESSION_HANDLERS"]


def _begin(c: Clauses, i: int) -> Statement:
    words = c.tokens[i + 1 :]
    if c.at(i) == "start" and c.at(i + 1) != "transaction":
        return unknown(c.vendor)
    if not _BEGIN_WORDS.issuperset(words):
        return unknown(c.vendor)
    isolation = "isolation" in words or "snapshot" in words
    return result(c, StatementKind.BEGIN, isolation=isolation, commits=commits_on_schema_change(c.vendor))


_BEGIN_WORDS = frozenset(
    {"transaction", "work", "deferred", "immediate", "exclusive", "isolation", "level", "read", "write", "only", ","}
    | {"serializable", "repeatable", "committed", "uncommitted", "deferrable", "not", "with", "consistent", "snapshot"}
)


def _commit(c: Clauses, i: int) -> Statement:
    if c.at(i) == "end" and c.vendor not in ("postgresql", "sqlite"):
        return unknown(c.vendor)
    if not _is_plain_end(c, i + 1):
        # AND CHAIN goes on with a new transaction, COMMIT PREPARED ends another one.
        return _chained(c)
    return result(c, StatementKind.COMMIT, commits=True)


def _chained(c: Clauses) -> Statement:
    return Statement(StatementKind.UNKNOWN, commits_implicitly=True)


def _is_plain_end(c: Clauses, i: int) -> bool:
    if c.at(i) in ("work", "transaction"):
        i += 1
    rest = c.tokens[i:]
    return rest in ([], ["and", "no", "chain"], ["no", "release"], ["and", "no", "chain", "no", "release"])


def _rollback(c: Clauses, i: int) -> Statement:
    if c.at(i) == "abort" and c.vendor != "postgresql":
        return unknown(c.vendor)
    if _is_plain_end(c, i + 1):
        return result(c, StatementKind.ROLLBACK)
    j = i + 1
    if c.at(j) in ("work", "transaction"):
        j += 1
    if c.at(j) == "to":
        j += 1
        if c.at(j) == "savepoint" and len(c.tokens) > j + 1:
            j += 1
        if len(c.tokens) == j + 1:
            return result(c, StatementKind.ROLLBACK_TO_SAVEPOINT)
    return unknown(c.vendor, is_switching=False)


def _savepoint(c: Clauses, i: int) -> Statement:
    is_release = c.at(i) == "release"
    if is_release and c.at(i + 1) == "savepoint" and len(c.tokens) > i + 2:
        i += 1
    if len(c.tokens) != i + 2:
        return unknown(c.vendor, is_switching=False)
    return result(c, StatementKind.RELEASE_SAVEPOINT if is_release else StatementKind.SAVEPOINT)


_ISOLATION_SETTINGS = frozenset(
    f"{prefix}{name}"
    for prefix in ("", "default_")
    for name in ("transaction_isolation", "transaction_read_only", "transaction_deferrable", "tx_isolation")
) | {"transaction", "transaction_snapshot", "characteristics", "tx_read_only"}
_TENANT_SETTINGS = frozenset({"search_path", "schema", "role", "authorization", "row_security", "all", "default"})
_SCOPE_WORDS = frozenset({"session", "local", "global", "persist", "persist_only"})


def _set(c: Clauses, i: int) -> Statement:
    if c.vendor == "mysql":
        return _set_mysql(c, i)
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    i += 1
    if c.at(i) in _SCOPE_WORDS and is_name(c.at(i + 1)) and c.at(i + 1) != "to":
        i += 1
    setting = c.at(i).removeprefix('"').lower()
    # A setting with a dot in its name is one that row policies look at.
    switches = setting in _TENANT_SETTINGS or c.at(i + 1) == "."
    return result(c, StatementKind.SESSION, switches=switches, isolation=setting in _ISOLATION_SETTINGS)


def _set_mysql(c: Clauses, i: int) -> Statement:
    switches = isolation = False
    depth = 0
    is_start = True
    for j in range(i + 1, len(c.tokens)):
        token = c.at(j)
        depth += (token == "(") - (token == ")")
        if (
            is_start
            and token not in _SCOPE_WORDS
            and not (token.startswith("@@") and c.at(j + 1) == ".")
            and token != "."
        ):
            is_start = False
            setting = token.lstrip('@"').lower() if not token.startswith("@") or token.startswith("@@") else "@"
            if setting in ("autocommit", "completion_type", "password", "resource") or not setting:
                return unknown(c.vendor)
            switches = switches or setting in ("role", "default")
            isolation = isolation or setting in _ISOLATION_SETTINGS
        if token == "," and depth == 0:
            is_start = True
    c.read(i + 1)
    if c.has_written:
        return unknown(c.vendor)
    return result(c, StatementKind.SESSION, switches=switches, isolation=isolation)


def _reset(c: Clauses, i: int) -> Statement:
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    words = {token.removeprefix('"').lower() for token in c.tokens[i + 1 :]}
    everything = "all" in words
    switches = everything or not _TENANT_SETTINGS.isdisjoint(words) or "." in words
    isolation = everything or not _ISOLATION_SETTINGS.isdisjoint(words)
    return result(c, StatementKind.SESSION, switches=switches, isolation=isolation)


def _discard(c: Clauses, i: int) -> Statement:
    # Temporary tables go, and what they hid comes back.
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    return result(c, StatementKind.SESSION, switches=c.at(i + 1) != "plans", isolation=c.at(i + 1) == "all")


def _use(c: Clauses, i: int) -> Statement:
    return result(c, StatementKind.SESSION, switches=True)


def _attach(c: Clauses, i: int) -> Statement:
    return result(c, StatementKind.SESSION, switches=True) if c.vendor == "sqlite" else unknown(c.vendor)


def _plain_session(c: Clauses, i: int) -> Statement:
    return result(c, StatementKind.SESSION)


def _prepare(c: Clauses, i: int) -> Statement:
    if c.at(i + 1) == "transaction":
        return _chained(c)
    return result(c, StatementKind.SESSION, is_limited=True)


def _lock_tables(c: Clauses, i: int) -> Statement:
    return result(c, StatementKind.SESSION, commits=commits_on_schema_change(c.vendor))


def _flush(c: Clauses, i: int) -> Statement:
    return result(c, StatementKind.SESSION, commits=True) if c.vendor == "mysql" else unknown(c.vendor)


_READING_PRAGMAS = frozenset(
    {"collation_list", "compile_options", "data_version", "database_list", "foreign_key_check", "foreign_key_list"}
    | {"freelist_count", "function_list", "index_info", "index_list", "index_xinfo", "integrity_check", "module_list"}
    | {"page_count", "pragma_list", "quick_check", "table_info", "table_list", "table_xinfo"}
)
_SETTING_PRAGMAS = frozenset(
    {"analysis_limit", "application_id", "auto_vacuum", "automatic_index", "busy_timeout", "cache_size", "cache_spill"}
    | {"case_sensitive_like", "cell_size_check", "checkpoint_fullfsync", "defer_foreign_keys", "encoding"}
    | {"foreign_keys", "fullfsync", "hard_heap_limit", "ignore_check_constraints", "incremental_vacuum"}
    | {"journal_mode", "journal_size_limit", "legacy_alter_table", "locking_mode", "max_page_count", "mmap_size"}
    | {"optimize", "page_size", "query_only", "read_uncommitted", "recursive_triggers", "reverse_unordered_selects"}
    | {"secure_delete", "shrink_memory", "soft_heap_limit", "synchronous", "temp_store", "threads", "trusted_schema"}
    | {"user_version", "wal_autocheckpoint", "wal_checkpoint"}
)


def _pragma(c: Clauses, i: int) -> Statement:
    if c.vendor != "sqlite":
        return unknown(c.vendor)
    i += 1
    if c.at(i + 1) == ".":
        i += 2
    pragma = c.at(i).removeprefix('"').lower()
    is_bare = c.at(i + 1) == " "
    if pragma in _READING_PRAGMAS:
        return result(c, StatementKind.READ)
    if pragma not in _SETTING_PRAGMAS:
        return unknown(c.vendor)
    if is_bare and pragma not in ("incremental_vacuum", "optimize", "shrink_memory", "wal_checkpoint"):
        return result(c, StatementKind.READ)
    # temp_store drops the temporary tables, and what they hid comes back.
    return result(c, StatementKind.SESSION, switches=pragma == "temp_store", isolation=pragma == "read_uncommitted")


SESSION_HANDLERS = {
    "begin": _begin,
    "start": _begin,
    "commit": _commit,
    "end": _commit,
    "rollback": _rollback,
    "abort": _rollback,
    "savepoint": _savepoint,
    "release": _savepoint,
    "set": _set,
    "reset": _reset,
    "discard": _discard,
    "use": _use,
    "attach": _attach,
    "detach": _attach,
    **dict.fromkeys(("close", "listen", "unlisten", "notify"), _plain_session),
    "prepare": _prepare,
    "deallocate": _prepare,
    "lock": _lock_tables,
    "unlock": _lock_tables,
    "flush": _flush,
    "pragma": _pragma,
}
