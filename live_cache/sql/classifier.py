"""
What an SQL text does: reads, writes (and which tables), changes the schema, the transaction or the session.

The SQL guard asks this of every statement that Django sends, and Plan of the SQL that Django compiles. A statement that
is not understood is UNKNOWN; none is ever taken for less than it does. The parts: tokens.py splits the text, clauses.py
finds tables and functions, statements.py knows the statements; here they come together, with a memory.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

from live_cache.sql.kinds import Statement, StatementKind, unknown
from live_cache.sql.statements import parse_statement
from live_cache.sql.tokens import Reading, readings, tokenize

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["classify"]

_SHORT_CHARS = 4 * 1024
_LONG_CHARS = 64 * 1024
_N_SHORT = 2048
_N_LONG = 64

_TRANSACTION_KINDS = frozenset(
    {
        StatementKind.BEGIN,
        StatementKind.COMMIT,
        StatementKind.ROLLBACK,
        StatementKind.SAVEPOINT,
        StatementKind.ROLLBACK_TO_SAVEPOINT,
        StatementKind.RELEASE_SAVEPOINT,
    }
)
# The kind of several statements in one text is the first of these that occurs.
_PRECEDENCE = (StatementKind.WRITE, StatementKind.SCHEMA, StatementKind.SESSION, StatementKind.READ)


def classify(sql: object, *, vendor: str) -> Statement:
    """
    Return what *sql* does on a database of *vendor* (``connection.vendor``).

    Never raises. What is known of a text is kept, up to 2048 texts of 4,000 characters and 64 of 64,000, so that asking
    again costs one look-up. Parameters are never looked at.

    Args:
        sql: A str, bytes in UTF-8, an object of ``psycopg.sql`` or ``psycopg2.sql``, a template string. Several
            statements may be separated by semicolons. Anything else is UNKNOWN.
    """
    try:
        if type(sql) is not str:
            sql = _as_text(sql)
            if sql is None:
                return unknown(vendor)
        if len(sql) <= _SHORT_CHARS:
            return _short(sql, vendor)
        return _long(sql, vendor) if len(sql) <= _LONG_CHARS else _classify(sql, vendor)
    except Exception:  # whatever it is, it must not break the statement of the user
        return unknown("")


def _classify(text: str, vendor: str) -> Statement:
    if "\0" in text:  # where some drivers end the text
        return unknown(vendor)
    found: list[Statement] = []
    for reading in readings(text, vendor):
        statement = _read(text, vendor, reading)
        if statement is not None and statement not in found:
            found.append(statement)
    return _merge(found, vendor) if found else unknown(vendor)


_short = lru_cache(maxsize=_N_SHORT)(_classify)
_long = lru_cache(maxsize=_N_LONG)(_classify)


def _read(text: str, vendor: str, reading: Reading) -> Statement | None:
    """Return what *text* does under *reading*, or None if the server would refuse the whole of it."""
    tokens, is_complete = tokenize(text, reading.pattern)
    if not is_complete:
        return unknown(vendor) if ";" in tokens and not reading.is_parsed_whole else None
    if ";" not in tokens:
        return parse_statement(tokens, vendor)
    return _merge([parse_statement(part, vendor) for part in _split(tokens)], vendor)


def _split(tokens: list[str]) -> Iterator[list[str]]:
    """Yield the statements between the semicolons. The body of a trigger or function is part of its CREATE."""
    start = depth = 0
    for i, token in enumerate(tokens):
        if tokens[start] == "create":
            if token == "begin" or (token == "case" and depth and tokens[i - 1] != "end"):
                depth += 1
            elif token == "end" and tokens[i + 1 : i + 2] not in (["if"], ["loop"], ["repeat"], ["while"]):
                depth = max(0, depth - 1)
        if token == ";" and not depth:
            if i > start:
                yield tokens[start:i]
            start = i + 1
    if start < len(tokens):
        yield tokens[start:]


def _merge(statements: list[Statement], vendor: str) -> Statement:
    """Return one Statement that allows for each of *statements*."""
    if not statements:
        return parse_statement([], vendor)
    if len(statements) == 1:
        return statements[0]
    kinds = {statement.kind for statement in statements}
    if StatementKind.UNKNOWN in kinds or not _TRANSACTION_KINDS.isdisjoint(kinds):
        kind = StatementKind.UNKNOWN
    else:
        kind = next((kind for kind in _PRECEDENCE if kind in kinds), StatementKind.READ)
    empty: frozenset[str] = frozenset()
    return Statement(
        kind,
        written=empty.union(*(statement.written for statement in statements)),
        read=empty.union(*(statement.read for statement in statements)),
        functions=empty.union(*(statement.functions for statement in statements)),
        commits_implicitly=any(statement.commits_implicitly for statement in statements),
        changes_search_path=any(statement.changes_search_path for statement in statements),
        changes_values=any(statement.changes_values for statement in statements),
        ends_with_transaction=_ends_with_transaction(statements),
        changes_isolation=any(statement.changes_isolation for statement in statements),
        locks_rows=any(statement.locks_rows for statement in statements),
        may_delete=any(statement.may_delete for statement in statements),
        is_limited_to_session=all(statement.is_limited_to_session for statement in statements),
    )


def _ends_with_transaction(statements: list[Statement]) -> bool:
    changing = [each for each in statements if each.changes_search_path or each.changes_values]
    return bool(changing) and all(each.ends_with_transaction for each in changing)


def _as_text(sql: object) -> str | None:
    """Return the SQL text of an object that a driver takes, or None. May raise anything."""
    if isinstance(sql, str):
        return str.__str__(sql)
    if isinstance(sql, bytes | bytearray | memoryview):
        return bytes(sql).decode()
    if _is_instance(sql, "string.templatelib", "Template"):
        return "".join(map(_template_part, cast("Iterable[object]", sql)))
    if _is_instance(sql, "psycopg.sql", "Composable"):
        text = cast("Any", sql).as_string(None)
        return text if type(text) is str else None
    if _is_instance(sql, "psycopg2.sql", "Composable"):
        return _psycopg2_text(sql)
    return None


def _is_instance(value: object, module: str, name: str) -> bool:
    # A value of a class that was never imported cannot be: nothing is imported for the question.
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _template_part(part: object) -> str:
    """Return the SQL of one part of a template string, by the rules of psycopg 3.3: {name:i}, {snippet:q}, {value}."""
    if isinstance(part, str):
        return part
    value, form = cast("Any", part).value, cast("Any", part).format_spec
    if form == "i" and isinstance(value, str):
        return _quoted(value)
    text = None if isinstance(value, str | bytes | bytearray | memoryview) else _as_text(value)
    if text is None and form in ("i", "q"):
        raise ValueError(f"{value!r} is no SQL.")
    return "?" if text is None else text


def _psycopg2_text(sql: Any) -> str:
    """Return the text without a connection, which psycopg2's own as_string() needs to quote names."""
    if _is_instance(sql, "psycopg2.sql", "Composed"):
        return "".join(map(_psycopg2_text, sql.seq))
    if _is_instance(sql, "psycopg2.sql", "SQL"):
        return str(sql.string)
    if _is_instance(sql, "psycopg2.sql", "Identifier"):
        return ".".join(map(_quoted, sql.strings))
    if _is_instance(sql, "psycopg2.sql", "Literal") or _is_instance(sql, "psycopg2.sql", "Placeholder"):
        return "?"
    raise TypeError(f"{type(sql)!r} is no part of a statement.")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
