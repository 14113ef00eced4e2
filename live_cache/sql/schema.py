"""CREATE, ALTER, DROP and their kin: which tables they are about."""

from __future__ import annotations

from live_cache.sql.clauses import Clauses
from live_cache.sql.kinds import KNOWN_VENDORS, Statement, StatementKind, commits_on_schema_change, result, unknown
from live_cache.sql.tokens import is_name

__all__ = ["SCHEMA_HANDLERS", "write_list"]

_CREATE_MODIFIERS = frozenset(
    {"or", "replace", "global", "local", "temp", "temporary", "unlogged", "foreign", "unique", "fulltext", "spatial"}
    | {"virtual", "recursive", "materialized", "online", "offline", "ignore", "concurrently"}
)
_HARMLESS_OBJECTS = frozenset({"sequence", "type", "domain", "collation", "statistics"})


def write_list(c: Clauses, i: int) -> int:
    """Note a list of tables: ONLY a *, b."""
    while True:
        if c.at(i) == "only" and is_name(c.at(i + 1)):
            i += 1
        i = c.write_name(i)
        if c.at(i) == "*":
            i += 1
        if c.at(i) != ",":
            return i
        i += 1


def _schema(c: Clauses, *, is_temporary: bool = False) -> Statement:
    """Return a SCHEMA result; a temporary object may hide a table of its name, and is no reason to commit."""
    is_temporary = is_temporary and c.vendor in KNOWN_VENDORS
    commits = not is_temporary and commits_on_schema_change(c.vendor)
    return result(c, StatementKind.SCHEMA, commits=commits, switches=is_temporary, is_limited=is_temporary)


def _schema_unknown(c: Clauses) -> Statement:
    return unknown(c.vendor, is_switching=False)


def _object(c: Clauses, i: int) -> tuple[str, int, bool]:
    """Return the type of the object that a DDL statement is about, the position of its name, and whether temporary."""
    is_temporary = False
    i += 1
    while c.at(i) in _CREATE_MODIFIERS:
        is_temporary = is_temporary or c.at(i) in ("temp", "temporary")
        i += 1
    kind = c.at(i)
    i += 1
    if c.at(i) == "concurrently" and c.at(i + 1) != "on":
        i += 1
    if c.at(i) == "if":
        while c.at(i) not in ("exists", " "):
            i += 1
        i += 1
    return kind, i, is_temporary


def _create(c: Clauses, i: int) -> Statement:
    is_replacing = c.at(i + 1) == "or"
    kind, i, is_temporary = _object(c, i)
    if kind in ("index", "policy"):
        return _schema_on(c, i)
    if kind in _HARMLESS_OBJECTS and not is_replacing:
        return _schema(c, is_temporary=is_temporary)
    if kind not in ("table", "view"):
        return _schema_unknown(c)
    behind = c.write_name(i)
    for j in range(behind, len(c.tokens)):
        # A new child shows its rows through its parent.
        if c.at(j) == "partition" and c.at(j + 1) == "of":
            c.write_name(j + 2)
        elif c.at(j) == "inherits" and c.at(j + 1) == "(":
            write_list(c, j + 2)
    c.read(behind)
    if "select" not in c.tokens:
        c.functions.clear()  # types and referenced tables have parentheses too
    if "execute" in c.tokens:
        return _schema_unknown(c)
    return _schema(c, is_temporary=is_temporary)


def _schema_on(c: Clauses, i: int) -> Statement:
    """Return the result of a statement with the table behind ON."""
    for j in range(i, len(c.tokens)):
        if c.at(j) == "on" and c.at(j - 1) != ".":
            j += 1
            if c.at(j) == "only" and is_name(c.at(j + 1)):
                j += 1
            c.write_name(j)
            return _schema(c)
    return _schema_unknown(c)


def _drop(c: Clauses, i: int) -> Statement:
    kind, i, is_temporary = _object(c, i)
    if "cascade" in c.tokens:
        return _schema_unknown(c)
    if kind in ("table", "tables", "view"):
        write_list(c, i)
        c.may_delete = True  # SQLite deletes the rows first, with what foreign keys tell it
        return _schema(c, is_temporary=is_temporary)
    if kind in ("index", "policy"):
        return _schema_on(c, i)
    if kind == "prepare":
        return result(c, StatementKind.SESSION, is_limited=True)
    return _schema(c) if kind in _HARMLESS_OBJECTS else _schema_unknown(c)


def _alter(c: Clauses, i: int) -> Statement:
    kind, i, _ = _object(c, i)
    if kind == "sequence":
        return _schema(c)
    if kind == "policy":
        return _schema_on(c, i)
    if kind not in ("table", "view") or c.at(i) == "all":
        return _schema_unknown(c)
    if c.at(i) == "only" and is_name(c.at(i + 1)):
        i += 1
    i = c.write_name(i)
    for j in range(i, len(c.tokens)):
        word, following = c.at(j), c.at(j + 1)
        if word == "cascade" and c.at(j - 1) not in ("delete", "update"):
            return _schema_unknown(c)
        if word == "rename":
            if following in ("to", "as", "="):
                c.write_name(j + 2)
            elif following not in ("column", "constraint", "index", "key") and c.at(j + 2) != "to":
                c.write_name(j + 1)
        elif (word == "partition" and c.at(j - 1) in ("attach", "detach")) or word == "inherit":
            c.write_name(j + 1)
        elif word == "with" and following == "table":
            c.write_name(j + 2)
        elif word == "as" and following == "select":
            c.read(j + 1)
            break
    return _schema(c)


def _rename(c: Clauses, i: int) -> Statement:
    if c.at(i + 1) not in ("table", "tables"):
        return unknown(c.vendor, is_switching=False)
    i += 2
    while True:
        i = c.write_name(i)
        if c.at(i) in ("wait", "nowait"):
            i += 2
        c.is_unclear = c.is_unclear or c.at(i) != "to"
        i = c.write_name(i + 1)
        if c.at(i) != "," or c.is_unclear:
            return _schema(c)
        i += 1


def _comment(c: Clauses, i: int) -> Statement:
    return _schema(c) if c.at(i + 1) == "on" else unknown(c.vendor)


def maintain(c: Clauses, i: int) -> Statement:
    # VACUUM, ANALYZE, REINDEX, OPTIMIZE ... change no row.
    commits = commits_on_schema_change(c.vendor)
    return result(c, StatementKind.SCHEMA, commits=commits)


def _grant(c: Clauses, i: int) -> Statement:
    # Row policies may look at memberships, so even this can change what a role sees.
    return _schema_unknown(c)


SCHEMA_HANDLERS = {
    "grant": _grant,
    "revoke": _grant,
    "create": _create,
    "drop": _drop,
    "alter": _alter,
    "rename": _rename,
    "comment": _comment,
    **dict.fromkeys(
        ("analyse", "check", "checkpoint", "checksum", "cluster", "optimize", "reindex", "vacuum"), maintain
    ),
}
