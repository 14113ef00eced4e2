"""
The outline of a SELECT that Django has compiled: which columns of which alias it names, and where.

Only for SQL of Django's compiler, which names every column together with its alias. What a text like that does not
tell is left open: a column whose alias is not known counts for every table.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final

from live_cache.sql.tokens import normalize_table

__all__ = ["Outline", "outline"]

_TOKEN: Final = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|`(?:[^`]|``)*`|\w+|[().,*]|[^\s\w]")
_COMBINING: Final = frozenset({"union", "intersect", "except", "minus", "with"})
_AFTER_TABLE: Final = frozenset(
    {"on", "where", "inner", "left", "right", "full", "cross", "join", "group", "order", "limit", "having", "union"}
    | {"intersect", "except", "offset", "for", "fetch", "window", "natural", "as", "using"}
)
_ORDER_WORDS: Final = frozenset(
    {"order", "by", "asc", "desc", "nulls", "first", "last", "is", "not", "null", "collate"}
)

Columns = dict[str, set[str]]


@dataclass(slots=True)
class Outline:
    """What a SELECT names. Aliases and columns as they stand in the SQL, without quotes."""

    shown: Columns = field(default_factory=dict)
    """Columns of the outermost SELECT list, by alias."""
    body: Columns = field(default_factory=dict)
    """Columns between FROM and ORDER BY, those of subqueries in the SELECT list, by alias."""
    order: Columns = field(default_factory=dict)
    """Columns of the outermost ORDER BY, by alias."""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """How often the SQL names each alias and column, anywhere but in its outermost SELECT list and ORDER BY."""
    tables: dict[str, set[str]] = field(default_factory=dict)
    """Tables, normalised, by alias. One alias may be used twice, in two subqueries."""
    uses: Counter[str] = field(default_factory=Counter)
    """How often each table stands behind a FROM or a JOIN."""
    base_alias: str = ""
    """Alias of the table behind the outermost FROM; empty if a query stands there."""
    is_plain: bool = True
    """Whether it is one SELECT, without UNION and the like, at its outermost level."""
    orders_by_name: bool = False
    """Whether the outermost ORDER BY names what is no column of a table: a position, or a named expression."""


def outline(sql: str) -> Outline:
    """Return the outline of *sql*."""
    found = Outline()
    tokens = _TOKEN.findall(sql)
    depth = 0
    section = found.shown
    words = [token.lower() for token in tokens]
    if not tokens or words[0] != "select":
        found.is_plain = False
        section = found.body
    count = len(tokens)
    i = 0
    while i < count:
        token, word = tokens[i], words[i]
        if token == "(":
            depth += 1
        elif token == ")":
            depth -= 1
        elif word in ("from", "join") and i + 1 < count and _is_name(tokens[i + 1]):
            if depth == 0 and section is found.shown:
                section = found.body
                found.base_alias = _alias_at(tokens, words, i + 1)
            i = _take_table(found, tokens, words, i + 1)
            continue
        elif depth == 0 and word == "from":
            section = found.body if section is found.shown else section
        elif depth == 0 and word == "order" and words[i + 1 : i + 2] == ["by"] and found.is_plain:
            section = found.order
        elif depth == 0 and word in _COMBINING:
            found.is_plain = False
            section = found.body
        elif depth == 0 and word in ("limit", "offset", "for", "fetch") and section is found.order:
            break
        elif _is_name(token):
            if i + 2 < count and tokens[i + 1] == "." and _is_name(tokens[i + 2]):
                target = found.body if depth and section is found.shown and _is_in_select(words, i) else section
                alias, column = _unquoted(token), _unquoted(tokens[i + 2])
                target.setdefault(alias, set()).add(column)
                if target is found.body:
                    found.counts[alias, column] += 1
                i += 3
                continue
            if section is found.order and depth == 0 and word not in _ORDER_WORDS:
                found.orders_by_name = True
        i += 1
    if not found.is_plain:
        for columns in (found.shown, found.order):
            for alias, names in columns.items():
                found.body.setdefault(alias, set()).update(names)
                found.counts.update((alias, name) for name in names)
            columns.clear()
    return found


def _take_table(found: Outline, tokens: list[str], words: list[str], i: int) -> int:
    """Note the table at *i* and its alias; return where the text goes on."""
    alias, name = _alias_at(tokens, words, i), tokens[i]
    i += 1
    while i + 1 < len(tokens) and tokens[i] == "." and _is_name(tokens[i + 1]):
        # A schema stood before it; or it is a column, as in EXTRACT(year FROM "t"."c").
        column = _unquoted(tokens[i + 1])
        found.body.setdefault(_unquoted(name), set()).add(column)
        found.counts[_unquoted(name), column] += 1
        name = tokens[i + 1]
        i += 2
    table = normalize_table(name)
    if i < len(tokens) and words[i] == "as":
        i += 1
    if i < len(tokens) and _is_name(tokens[i]) and words[i] not in _AFTER_TABLE:
        i += 1
    found.tables.setdefault(alias, set()).add(table)
    found.uses[table] += 1
    return i


def _alias_at(tokens: list[str], words: list[str], i: int) -> str:
    """Return the alias of the table at *i*."""
    name = tokens[i]
    i += 1
    while i + 1 < len(tokens) and tokens[i] == "." and _is_name(tokens[i + 1]):
        name = tokens[i + 1]
        i += 2
    if i < len(tokens) and words[i] == "as":
        i += 1
    if i < len(tokens) and _is_name(tokens[i]) and words[i] not in _AFTER_TABLE:
        name = tokens[i]
    return _unquoted(name)


def _is_in_select(words: list[str], i: int) -> bool:
    """Return whether the token at *i*, in parentheses, stands in a query of its own."""
    depth = 0
    for j in range(i - 1, -1, -1):
        if words[j] == ")":
            depth += 1
        elif words[j] == "(":
            depth -= 1
        elif words[j] == "select" and depth < 0:
            return True
    return False


def _is_name(token: str) -> bool:
    return token[0] in '"`_' or token[0].isalnum() or token[0] >= "\x80"


def _unquoted(token: str) -> str:
    if token[0] == '"':
        return token[1:-1].replace('""', '"')
    if token[0] == "`":
        return token[1:-1].replace("``", "`")
    return token
