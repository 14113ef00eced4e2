"""BEGIN, COMMIT, SET, PRAGMA and their kin: what a statement does to the transaction or the session."""

from __future__ import annotations

from live_cache.sql.clauses import Clauses
from live_cache.sql.kinds import Statement, StatementKind, commits_on_schema_change, result, unknown
from live_cache.sql.session_settings import SCOPE_WORDS, VALUE_PRAGMAS, SettingEffect, effect_of_setting
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


def _set(c: Clauses, i: int) -> Statement:
    if c.vendor == "mysql":
        return _set_mysql(c, i)
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    i += 1
    is_local = False
    while c.at(i) in SCOPE_WORDS and is_name(c.at(i + 1)) and c.at(i + 1) != "to":
        is_local = is_local or c.at(i) == "local"
        i += 1
    return _setting(c, effect_of_setting(_setting_name(c, i), c.vendor), is_local=is_local)


def _setting_name(c: Clauses, i: int) -> str:
    name = c.at(i).removeprefix('"').lower()
    return f"{name}.{c.at(i + 2)}" if c.at(i + 1) == "." else name


def _setting(c: Clauses, effect: SettingEffect, *, is_local: bool = False) -> Statement:
    return result(
        c,
        StatementKind.SESSION,
        switches=effect.search_path,
        values=effect.values,
        isolation=effect.isolation,
        is_local=is_local and (effect.search_path or effect.values),
    )


def _set_mysql(c: Clauses, i: int) -> Statement:
    switches = values = isolation = False
    depth = 0
    is_start = True
    for j in range(i + 1, len(c.tokens)):
        token = c.at(j)
        depth += (token == "(") - (token == ")")
        if (
            is_start
            and token not in SCOPE_WORDS
            and not (token.startswith("@@") and c.at(j + 1) == ".")
            and token != "."
        ):
            is_start = False
            setting = token.lstrip('@"').lower() if not token.startswith("@") or token.startswith("@@") else "@"
            if setting in ("autocommit", "completion_type", "password", "resource") or not setting:
                return unknown(c.vendor)
            effect = effect_of_setting(setting, c.vendor)
            switches, values, isolation = (
                switches or effect.search_path,
                values or effect.values,
                isolation or effect.isolation,
            )
        if token == "," and depth == 0:
            is_start = True
    c.read(i + 1)
    if c.has_written:
        return unknown(c.vendor)
    return _setting(c, SettingEffect(switches, values, isolation))


def _reset(c: Clauses, i: int) -> Statement:
    # Back to what the server says, which Django may have set otherwise when it connected.
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    if c.at(i + 1) == "session":  # AUTHORIZATION
        i += 1
    return _setting(c, effect_of_setting(_setting_name(c, i + 1), c.vendor))


def _discard(c: Clauses, i: int) -> Statement:
    # Temporary tables go, and what they hid comes back.
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    is_all = c.at(i + 1) == "all"
    return _setting(c, SettingEffect(search_path=c.at(i + 1) != "plans", values=is_all, isolation=is_all))


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
    effect = SettingEffect(pragma == "temp_store", pragma in VALUE_PRAGMAS, pragma == "read_uncommitted")
    return _setting(c, effect)


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
