"""
UPDATE and DELETE of one plain table, taken apart, so that the rows that they are about to change can be read first.

Much stricter than classify(): what is not surely of the one simple form is None, and counts as a change of the whole
table. A condition is taken only if it gives the same rows again a moment later: no subquery, no function but those that
are known to be deterministic, nothing of the time of day. The text of the condition is kept as it stands, with its
placeholders, to be used again in a SELECT.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

__all__ = ["RowWrite", "read_row_write"]

_LONGEST_CHARS: Final = 64 * 1024
_SHORT_CHARS: Final = 4 * 1024

# What is not listed (backslashes, comments, other kinds of placeholders, brackets) is not understood.
_COMMON: Final = (
    r"(?P<space>[ \t\r\n]+)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)|(?P<number>\d+(?:\.\d+)?)"
    r"|(?P<string>'(?:[^'%\\\0]|''|%%)*')|(?P<parameter>%s)|(?P<sign>::|<=|>=|<>|!=|\|\||%%|[-+*/=<>(),.&|~])"
)
_PATTERNS: Final = {
    "postgresql": re.compile(_COMMON + r'|(?P<name>"(?:[^"%]|"")+")|(?P<bracket>[\[\]])'),
    # A word in double quotes is a string to MySQL, and to SQLite where no column is called so.
    "mysql": re.compile(_COMMON + r"|(?P<name>`(?:[^`%]|``)+`)"),
    "sqlite": re.compile(_COMMON + r'|(?P<name>"(?:[^"%]|"")+"|`(?:[^`%]|``)+`)'),
}

_FORBIDDEN: Final = frozenset(
    {
        "from",
        "group",
        "having",
        "join",
        "limit",
        "order",
        "union",
        "using",
        "window",
        "with",
        "for",
        "current",
        "offset",
    }
)
"""Words that a plain statement has nowhere outside of parentheses, and its condition not even inside."""
_UNSTEADY: Final = frozenset({"select", "values", "table", "rownum", "set", "default"})
"""Words that make a condition depend on more than the row."""
_BEFORE_PARENTHESIS: Final = frozenset(
    {"all", "and", "any", "as", "between", "case", "else", "escape", "glob", "ilike", "in", "is", "like", "not", "or"}
    | {"regexp", "similar", "some", "then", "to", "when", "where", "xor", "binary", "div", "isnull", "notnull"}
)
_STEADY_FUNCTIONS: Final = frozenset(
    {"abs", "cast", "ceil", "ceiling", "char_length", "coalesce", "concat", "floor", "greatest", "ifnull", "instr"}
    | {"least", "left", "length", "lower", "ltrim", "max", "md5", "min", "mod", "nullif", "power", "replace", "right"}
    | {"round", "rtrim", "sign", "sqrt", "strpos", "substr", "substring", "trim", "upper"}
    | {"char", "character", "decimal", "numeric", "varchar"}
)
"""Functions whose result depends on their arguments alone, and names of types that take arguments."""
_VALUE_FUNCTIONS: Final = _STEADY_FUNCTIONS | frozenset(
    {"clock_timestamp", "curdate", "current_date", "current_timestamp", "curtime", "date", "datetime", "extract"}
    | {"gen_random_uuid", "json", "json_array", "json_object", "json_set", "jsonb_set", "julianday", "localtime", "now"}
    | {"localtimestamp", "nextval", "rand", "random", "statement_timestamp", "strftime", "sysdate", "time", "to_jsonb"}
    | {"unix_timestamp", "unixepoch", "utc_timestamp", "uuid", "avg", "count", "sum", "exists", "select", "from"}
    | {"join", "on", "by", "over", "filter", "interval", "max", "min", "json_extract", "json_remove", "json_replace"}
)
"""Functions, and words before a parenthesis, that write nothing: a new value may depend on anything."""


@dataclass(frozen=True, slots=True, eq=False)
class RowWrite:
    """
    One UPDATE or DELETE. Texts are as they stand in the statement, with its quotes, ``%s`` and ``%%``.

    Each is itself, as read_row_write() returns the same one again for the same text: cheap to look up by.
    """

    verb: Literal["update", "delete"]
    table: str
    table_name: str
    """Without quotes."""
    columns: tuple[str, ...]
    """What an UPDATE sets, without quotes."""
    condition: str
    """What stands behind WHERE; empty if there is none."""
    condition_column: str | None
    """The column, without quotes, if the condition is only that it equals a placeholder or is IN a list of them."""
    n_before: int
    """Placeholders before the condition."""
    n_condition: int
    n_after: int
    """Placeholders behind it, in RETURNING."""
    has_returning: bool

    @property
    def n_parameters(self) -> int:
        """How many placeholders the statement has."""
        return self.n_before + self.n_condition + self.n_after


def read_row_write(sql: str, *, vendor: str) -> RowWrite | None:
    """Return the parts of *sql* if it is a plain UPDATE or DELETE of one table, else None. Never raises."""
    if len(sql) <= _SHORT_CHARS:
        return _short(sql, vendor)
    return _long(sql, vendor) if len(sql) <= _LONGEST_CHARS else None


def _read(sql: str, vendor: str) -> RowWrite | None:
    pattern = _PATTERNS.get(vendor)
    if pattern is None or "--" in sql or "/*" in sql:
        return None
    tokens: list[_Token] = []
    position = 0
    for match in pattern.finditer(sql):
        if match.start() != position:
            return None
        position = match.end()
        kind = match.lastgroup
        assert kind is not None
        if kind != "space":
            text = match.group()
            tokens.append(_Token(kind, text.lower() if kind == "word" else text, match.start(), position))
    if position != len(sql) or len(tokens) < 2:
        return None
    return _Reader(sql, tokens).read()


_short = lru_cache(maxsize=1024)(_read)
_long = lru_cache(maxsize=32)(_read)


class _Token:
    __slots__ = ("end", "kind", "start", "text")

    def __init__(self, kind: str, text: str, start: int, end: int) -> None:
        self.kind = kind
        self.text = text
        self.start = start
        self.end = end


_END: Final = _Token("end", "", 0, 0)


class _Reader:
    """One pass over the tokens of a statement."""

    def __init__(self, sql: str, tokens: list[_Token]) -> None:
        self._sql = sql
        self._tokens = tokens
        self._i = 0

    def read(self) -> RowWrite | None:
        verb = self._take().text
        if verb == "delete":
            if self._take().text != "from":
                return None
        elif verb != "update":
            return None
        table = self._take()
        if table.kind not in ("name", "word"):
            return None
        columns: tuple[str, ...] = ()
        n_before = 0
        if verb == "update":
            if self._take().text != "set":
                return None
            assignments = self._assignments()
            if assignments is None:
                return None
            columns, n_before = assignments
        condition, condition_column, n_condition = "", None, 0
        if self._at("where"):
            self._i += 1
            found = self._condition()
            if found is None:
                return None
            condition, condition_column, n_condition = found
        n_after = 0
        has_returning = self._at("returning")
        if has_returning:
            n_after = sum(token.kind == "parameter" for token in self._tokens[self._i :])
        elif self._i < len(self._tokens):
            return None
        return RowWrite(
            "delete" if verb == "delete" else "update",
            self._sql[table.start : table.end],
            self._name_of(table),
            columns,
            condition,
            condition_column,
            n_before,
            n_condition,
            n_after,
            has_returning,
        )

    def _take(self) -> _Token:
        token = self._peek()
        self._i += 1
        return token

    def _peek(self, ahead: int = 0) -> _Token:
        i = self._i + ahead
        return self._tokens[i] if i < len(self._tokens) else _END

    def _at(self, word: str) -> bool:
        token = self._peek()
        return token.kind == "word" and token.text == word

    def _name_of(self, token: _Token) -> str:
        text = self._sql[token.start : token.end]
        return text if token.kind == "word" else text[1:-1].replace(text[0] * 2, text[0])

    def _assignments(self) -> tuple[tuple[str, ...], int] | None:
        """Return the columns of ``a = ..., b = ...``, and how many placeholders were passed."""
        columns: list[str] = []
        n_parameters = 0
        while True:
            column, sign = self._take(), self._take()
            if column.kind not in ("name", "word") or sign.text != "=":
                return None
            columns.append(self._name_of(column))
            depth = 0
            while True:
                token = self._peek()
                if token.kind == "end":
                    break
                if depth == 0 and (
                    token.text == "," or (token.kind == "word" and token.text in ("where", "returning"))
                ):
                    break
                if token.text == "(":
                    depth += 1
                    if not self._is_known_call(_VALUE_FUNCTIONS):
                        return None
                elif token.text == ")":
                    depth -= 1
                    if depth < 0:
                        return None
                elif depth == 0 and token.kind == "word" and token.text in _FORBIDDEN and not self._is_type():
                    return None
                n_parameters += token.kind == "parameter"
                self._i += 1
            if depth:
                return None
            if self._peek().text != ",":
                return tuple(columns), n_parameters
            self._i += 1

    def _condition(self) -> tuple[str, str | None, int] | None:
        start = self._i
        depth = n_parameters = 0
        while True:
            token = self._peek()
            if token.kind == "end" or (depth == 0 and token.kind == "word" and token.text == "returning"):
                break
            if token.text == "(":
                depth += 1
                if not self._is_known_call(_STEADY_FUNCTIONS):
                    return None
            elif token.text == ")":
                depth -= 1
                if depth < 0:
                    return None
            elif token.text == "," and depth == 0:
                return None
            elif token.kind == "word" and not self._is_column(self._i):
                word = token.text
                if word in _FORBIDDEN and not self._is_type():
                    return None
                if word in _UNSTEADY or word.startswith(("current_", "local")):
                    return None
            n_parameters += token.kind == "parameter"
            self._i += 1
        tokens = self._tokens[start : self._i]
        if depth or not tokens:
            return None
        return self._sql[tokens[0].start : tokens[-1].end], self._single_column(tokens), n_parameters

    def _is_type(self) -> bool:
        """Return whether the word here is part of a type, TIMESTAMP WITH TIME ZONE."""
        return self._at("with") and self._peek(1).text == "time" and self._peek(2).text == "zone"

    def _is_column(self, i: int) -> bool:
        """Return whether the word is behind a dot, and so a column whatever it is called."""
        return i > 0 and self._tokens[i - 1].text == "."

    def _is_known_call(self, functions: frozenset[str]) -> bool:
        """Return whether the opening parenthesis here calls nothing, or one of *functions*."""
        if self._i == 0:
            return True
        before = self._tokens[self._i - 1]
        if before.kind == "word":
            if self._is_column(self._i - 1):
                return False
            return before.text in _BEFORE_PARENTHESIS or before.text in functions or before.text.startswith("django_")
        return before.kind in ("sign", "parameter") and before.text not in (".", ")", "%s")

    def _single_column(self, tokens: list[_Token]) -> str | None:
        texts = [token.text for token in tokens]
        i = 0
        while len(texts) > i + 1 and texts[i + 1] == ".":
            i += 2
        column = tokens[i] if i < len(tokens) else _END
        if column.kind not in ("name", "word"):
            return None
        rest = texts[i + 1 :]
        is_equal = rest == ["=", "%s"]
        is_in = rest[:2] == ["in", "("] and rest[-1] == ")" and set(rest[2:-1]) <= {"%s", ","}
        return self._name_of(column) if is_equal or is_in else None
