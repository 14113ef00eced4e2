"""
What one SQL statement does, from its first words; clauses.py finds the tables.

Whatever is not listed here is UNKNOWN. So are statements that could be sorted with more work but are rare, such as
GRANT or CREATE TRIGGER: the price is that every table of the database counts as written, once.
"""

from __future__ import annotations

from collections.abc import Callable

from live_cache.sql.clauses import WRITE_VERBS, Clauses
from live_cache.sql.kinds import KNOWN_VENDORS, Statement, StatementKind, commits_on_schema_change, result, unknown
from live_cache.sql.schema import SCHEMA_HANDLERS, maintain, write_list
from live_cache.sql.sessions import SESSION_HANDLERS
from live_cache.sql.tokens import is_name

__all__ = ["parse_statement"]

_QUERY_WORDS = frozenset({"select", "table", "values", "with", *WRITE_VERBS})
# Where statements need no semicolon between them (Transact-SQL), a SELECT may be followed by any of these.
_SUSPECT_WORDS = frozenset(
    {"alter", "begin", "call", "commit", "create", "drop", "exec", "execute", "grant", "insert", "merge", "rename"}
    | {"replace", "revoke", "rollback", "save", "truncate", "update", "delete", "use"}
)


def parse_statement(tokens: list[str], vendor: str) -> Statement:
    """
    Return what the single statement *tokens* (see tokens.py) does.

    Raises:
        RecursionError: SET STATEMENT of MariaDB is nested absurdly deep.
    """
    return _parse(Clauses(tokens, vendor), 0)


def _parse(c: Clauses, i: int) -> Statement:
    first = c.at(i)
    if first == " ":
        return result(c, StatementKind.READ)
    if first == "(":
        j = i
        while c.at(j) == "(":
            j += 1
        return _query(c, i) if c.at(j) in ("select", "table", "values", "with") else unknown(c.vendor)
    handler = _HANDLERS.get(first)
    return handler(c, i) if handler is not None else unknown(c.vendor)


def _query(c: Clauses, i: int) -> Statement:
    c.read(i)
    if c.vendor not in KNOWN_VENDORS:
        c.written |= c.read_tables if c.has_written else set()
        if not c.has_written and any(
            word in _SUSPECT_WORDS and c.tokens[number - 1] not in ("for", ".")
            for number, word in enumerate(c.tokens)
            if number > i
        ):
            c.is_unclear = True
    if not c.has_written:
        return result(c, StatementKind.READ)
    if not c.written:
        c.is_unclear = True
    return result(c, StatementKind.WRITE, switches=c.has_temporary, is_limited=c.has_temporary and not c.functions)


def _truncate(c: Clauses, i: int) -> Statement:
    i += 1
    if c.at(i) == "table" and is_name(c.at(i + 1)):
        i += 1
    i = write_list(c, i)
    if "cascade" in c.tokens[i:]:
        return unknown(c.vendor, is_switching=False)
    return result(c, StatementKind.WRITE, commits=commits_on_schema_change(c.vendor))


def _copy(c: Clauses, i: int) -> Statement:
    if c.vendor != "postgresql":
        return unknown(c.vendor)
    i += 1
    if c.at(i) == "(":
        return _query(c, i)
    if c.at(i) == "binary" and is_name(c.at(i + 1)):
        i += 1
    table, i = c.name(i)
    if c.at(i) == "(":
        while c.at(i) not in (")", " "):
            i += 1
        i += 1
    if c.at(i) == "to":
        c.read_tables.add(table)
        return result(c, StatementKind.READ)
    c.write(table)
    c.is_unclear = c.at(i) != "from"
    return result(c, StatementKind.WRITE)


def _load(c: Clauses, i: int) -> Statement:
    if c.vendor == "mysql" and c.at(i + 1) in ("data", "xml"):
        for j in range(i, len(c.tokens)):
            if c.at(j) == "into" and c.at(j + 1) == "table":
                c.write_name(j + 2)
                return result(c, StatementKind.WRITE)
    return unknown(c.vendor)


def _refresh(c: Clauses, i: int) -> Statement:
    if c.at(i + 1) != "materialized" or c.at(i + 2) != "view":
        return unknown(c.vendor)
    i += 3
    if c.at(i) == "concurrently" and is_name(c.at(i + 1)) and c.at(i + 1) != "with":
        i += 1
    c.write_name(i)
    return result(c, StatementKind.WRITE)


def _declare(c: Clauses, i: int) -> Statement:
    if c.vendor == "postgresql" and "cursor" in c.tokens:
        for j in range(c.tokens.index("cursor"), len(c.tokens)):
            if c.at(j) == "for":
                return (
                    _parse(c, j + 1) if c.at(j + 1) in ("select", "with", "values", "table", "(") else unknown(c.vendor)
                )
    return unknown(c.vendor)


def _fetch(c: Clauses, i: int) -> Statement:
    # What a cursor's query reads and calls was told by its DECLARE, in the same transaction.
    return result(c, StatementKind.READ) if c.vendor == "postgresql" else unknown(c.vendor)


def _handler(c: Clauses, i: int) -> Statement:
    if c.vendor != "mysql" or not is_name(c.at(i + 1)):
        return unknown(c.vendor)
    c.read_tables.add(c.name(i + 1)[0])
    return result(c, StatementKind.READ)


def _set(c: Clauses, i: int) -> Statement:
    if c.vendor == "mysql" and c.at(i + 1) == "statement" and "for" in c.tokens[i:]:
        # MariaDB: settings for one statement, which follows.
        return _parse(c, c.tokens.index("for", i) + 1)
    return SESSION_HANDLERS["set"](c, i)


def _do(c: Clauses, i: int) -> Statement:
    # MySQL: expressions whose values nobody wants. PostgreSQL: a program.
    return _query(c, i) if c.vendor == "mysql" else unknown(c.vendor)


def _explain(c: Clauses, i: int) -> Statement:
    is_run = False
    j = i + 1
    if c.at(j) == "(" and c.at(j + 1) not in ("select", "with", "values", "table", "("):
        while c.at(j) not in (")", " "):
            is_run = is_run or c.at(j) in ("analyze", "analyse")
            j += 1
        j += 1
    while c.at(j) not in _EXPLAINED and c.at(j) != " ":
        is_run = is_run or c.at(j) in ("analyze", "analyse")
        j += 1
    if c.at(j) == " ":  # EXPLAIN table, on MySQL
        return _show(c, i) if not is_run else unknown(c.vendor)
    explained = _parse(c, j)
    if is_run or explained.kind is StatementKind.READ:
        return explained
    if explained.kind is StatementKind.UNKNOWN and c.at(j) not in ("execute", "call"):
        return explained
    c.locks_rows = c.changes_search_path = c.changes_values = c.changes_isolation = c.has_local_setting = False
    c.read_tables |= c.written
    c.written.clear()
    return result(c, StatementKind.READ)


_EXPLAINED = frozenset({"(", "create", "declare", "execute", "refresh", *_QUERY_WORDS})


def _show(c: Clauses, i: int) -> Statement:
    return result(c, StatementKind.READ)


def _analyze(c: Clauses, i: int) -> Statement:
    # MariaDB: ANALYZE in front of a statement runs it.
    if c.vendor == "mysql" and any(token in _QUERY_WORDS - {"table"} for token in c.tokens):
        return _explain_run(c, i)
    return maintain(c, i)


def _explain_run(c: Clauses, i: int) -> Statement:
    j = i + 1
    while c.at(j) not in _EXPLAINED:
        j += 1
    return _parse(c, j)


_HANDLERS: dict[str, Callable[[Clauses, int], Statement]] = {
    **dict.fromkeys(("select", "table", "values", "with", *WRITE_VERBS), _query),
    "truncate": _truncate,
    "copy": _copy,
    "load": _load,
    "refresh": _refresh,
    "declare": _declare,
    "fetch": _fetch,
    "move": _fetch,
    "handler": _handler,
    "do": _do,
    **dict.fromkeys(("explain", "describe", "desc"), _explain),
    **dict.fromkeys(("show", "help"), _show),
    "analyze": _analyze,
    **SCHEMA_HANDLERS,
    **SESSION_HANDLERS,
    "set": _set,
}
