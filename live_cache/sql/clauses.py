"""
Which tables and functions stand in the clauses of a query or of a writing statement.

One pass over the tokens, with a stack of open parentheses; no grammar of expressions. It knows where the name of a
table may stand: after FROM, JOIN, USING, INTO, UPDATE, TABLE, and after a comma of such a list. Whatever stands there
and is not understood sets `is_unclear`.
"""

from __future__ import annotations

from collections.abc import Callable

from live_cache.sql.session_settings import ANY_EFFECT, effect_of_setting
from live_cache.sql.tokens import is_name, normalize_table

__all__ = ["WRITE_VERBS", "Clauses"]

WRITE_VERBS = frozenset({"insert", "replace", "update", "delete", "merge"})
_NO_SCOPE: frozenset[str] = frozenset()
# Words that stand before a parenthesis and call nothing, in every one of the databases.
_NO_CALL = frozenset(
    {"all", "and", "any", "array", "as", "between", "case", "check", "distinct", "else", "except", "exists", "from"}
    | {"group", "having", "ilike", "in", "intersect", "into", "is", "join", "lateral", "like", "limit", "not", "offset"}
    | {"on", "only", "or", "order", "primary", "references", "returning", "row", "select", "set", "similar", "some"}
    | {"table", "then", "union", "unique", "using", "values", "when", "where", "with"}
)
# Words of a clause, which are no names of tables.
_RESERVED = frozenset(
    {"and", "as", "from", "group", "having", "into", "join", "on", "or", "order", "select", "set", "then", "union"}
    | {"using", "where"}
)
_WRITE_MODIFIERS = frozenset({"delayed", "high_priority", "ignore", "low_priority", "quick"})


class _Frame:
    """What is known between an opening parenthesis and its end."""

    __slots__ = ("is_from", "is_query", "is_target", "is_using_from", "n_targets", "scope")

    def __init__(self, scope: frozenset[str]) -> None:
        self.scope = scope
        self.is_query = False  # a SELECT or a writing verb was seen, so FROM begins a list of tables
        self.is_from = False  # inside such a list: a comma announces a table
        self.is_target = False  # the tables of the list are written
        self.is_using_from = False  # the next USING begins a list of tables
        self.n_targets = 0


class Clauses:
    """
    The findings. read() does the work; the small methods serve whoever reads the words before the clauses.

    Args:
        tokens: As tokens.tokenize() gives them.
        vendor: "postgresql", "mysql", "sqlite"; others are taken for any of them.
    """

    def __init__(self, tokens: list[str], vendor: str) -> None:
        self.tokens = tokens
        self.vendor = vendor
        self.written: set[str] = set()
        self.read_tables: set[str] = set()
        self.functions: set[str] = set()
        self.has_written = False
        self.has_temporary = False
        self.is_unclear = False
        self.locks_rows = False
        self.may_delete = False
        self.changes_search_path = False
        self.changes_values = False
        self.has_local_setting = False  # and no other
        self.changes_isolation = False
        self._is_table_next = False
        self._pairs: dict[int, int] | None = None
        self._body_scopes: dict[int, frozenset[str]] = {}
        self._after_body: dict[int, tuple[int, frozenset[str] | None]] = {}
        self._stack: list[_Frame] = []
        self._frame = _Frame(_NO_SCOPE)
        self._no_call_at = -1
        self._end = len(tokens)

    def read(self, start: int) -> None:
        """Take in the tokens from *start* to the end. Call it once."""
        tokens = self.tokens
        actions = _ACTIONS
        end = self._end
        self._no_call_at = i = start
        if i < end and tokens[i] in WRITE_VERBS:
            i = self._write_verb(i)
        while i < end and not self.is_unclear:
            if self._is_table_next:
                i = self._table(i)
                continue
            action = actions.get(tokens[i])
            if action is None or (i > start and tokens[i - 1] == "." and tokens[i] not in "(),"):
                i += 1
            else:
                i = action(self, i)
        if self._stack or self._is_table_next:
            self.is_unclear = True

    def at(self, i: int) -> str:
        """Return token *i*, or a blank where the statement is over."""
        return self.tokens[i] if i < self._end else " "

    def name(self, i: int) -> tuple[str, int]:
        """Return the table named at *i*, and the position behind it."""
        last = self.at(i)
        i += 1
        while self.at(i) == "." and self._is_table_token(self.at(i + 1)):
            last = self.at(i + 1)
            i += 2
        return normalize_table(_bare(last)), i

    def write(self, table: str) -> None:
        """Note that *table* may change."""
        self.written.add(table)
        self.has_written = True

    def write_name(self, i: int) -> int:
        """Note that the table named at *i* may change, and return the position behind it."""
        if not self._is_table_token(self.at(i)):
            self.is_unclear = True
            return i + 1
        table, i = self.name(i)
        self.write(table)
        return i

    def _is_table_token(self, token: str) -> bool:
        # SQLite takes a string for a name where a name is needed.
        return is_name(token) or (self.vendor != "postgresql" and token[0] == "'" and len(token) > 1)

    # -- places where a table may stand ---------------------------------------------------------------------------

    def _table(self, i: int) -> int:
        token = self.at(i)
        if token == "(":
            return self._open_list(i)
        if token == "{" and self.at(i + 1) == "oj":
            return i + 2
        following = self.at(i + 1)
        if self.vendor != "sqlite" and token == "lateral" and (self.vendor != "mysql" or following == "("):
            return i + 1
        if self.vendor not in ("sqlite", "mysql") and token == "only":
            return i + 1
        if token == "rows" and following == "from" and self.at(i + 2) == "(":
            self._is_table_next = False
            return i + 2
        if token == "table" and following == "(":
            self._is_table_next = False
            return i + 1
        if token in _RESERVED or not self._is_table_token(token):
            self.is_unclear = True
            return i
        self._is_table_next = False
        table, behind = self.name(i)
        if self.at(behind) == "(" and not self._frame.is_target:
            return behind  # a function: the parenthesis notes it
        is_qualified = behind > i + 1
        if self.at(behind) == "." and self.at(behind + 1) == "*":
            behind += 2
        self._refer(table, token, is_qualified=is_qualified)
        return behind

    def _refer(self, table: str, token: str, *, is_qualified: bool) -> None:
        frame = self._frame
        is_with_query = not is_qualified and self._with_key(token) in frame.scope
        if frame.is_target:
            frame.n_targets += 1
            if is_with_query and frame.n_targets > 1:
                return
            self.write(table)
            if frame.n_targets > 1:
                self.read_tables.add(table)
        elif not is_with_query and not (table == "dual" and token == "dual" and self.vendor == "mysql"):
            self.read_tables.add(table)

    def _open_list(self, i: int) -> int:
        outer = self._frame
        following = self.at(i + 1)
        self._push()
        if following in ("select", "with", "values", "table") or following in WRITE_VERBS:
            self._is_table_next = False
            return self._write_verb(i + 1) if self._is_write_verb(i + 1) else i + 1
        self._frame.is_from = True
        self._frame.is_target = outer.is_target
        self._frame.n_targets = outer.n_targets
        return i + 1

    # -- parentheses and commas -----------------------------------------------------------------------------------

    def _push(self) -> None:
        self._stack.append(self._frame)
        self._frame = _Frame(self._frame.scope)

    def _open(self, i: int) -> int:
        if i != self._no_call_at and i > 0:
            self._note_call(i)
        self._push()
        scope = self._body_scopes.get(i)
        if scope is not None:
            self._frame.scope = scope
        return self._write_verb(i + 1) if self._is_write_verb(i + 1) else i + 1

    def _note_call(self, i: int) -> None:
        tokens = self.tokens
        token = tokens[i - 1]
        if not is_name(token) or token in _NO_CALL:
            return
        before = tokens[i - 2] if i > 1 else " "
        if before in ("as", "::", "char", "character", "bit") or (before == ")" and self._frame.is_from):
            return  # a type, or an alias with columns
        if (token == "over" and before in (")", "nulls")) or (token == "filter" and before == ")"):
            return
        if token == "insert" and before == "then":  # of MERGE
            return
        if token == "by" and before in ("group", "order", "partition"):
            return
        if token == "materialized" or (token == "partition" and self._frame.is_from):
            return
        function = _bare(token).lower()
        self.functions.add(function)
        if function == "set_config":
            self._note_setting(i)

    def _note_setting(self, i: int) -> None:
        """Take in set_config(), whose parenthesis is at *i*."""
        is_literal = self.at(i + 1)[0] == "'" and self.at(i + 2) == ","
        effect = effect_of_setting(self.at(i + 1)[1:].lower(), "postgresql") if is_literal else ANY_EFFECT
        if not (effect.search_path or effect.values):
            self.changes_isolation = self.changes_isolation or effect.isolation
            return
        is_first = not (self.changes_search_path or self.changes_values)
        end = self._closing(i)
        is_local = self.tokens[end - 2 : end] == [",", "true"]
        self.has_local_setting = is_local and (is_first or self.has_local_setting)
        self.changes_search_path = self.changes_search_path or effect.search_path
        self.changes_values = self.changes_values or effect.values
        self.changes_isolation = self.changes_isolation or effect.isolation

    def _close(self, i: int) -> int:
        if not self._stack:
            self.is_unclear = True
            return i + 1
        closed = self._frame
        self._frame = self._stack.pop()
        if closed.is_target:
            self._frame.n_targets = max(self._frame.n_targets, closed.n_targets)
        following = self._after_body.get(i)
        if following is None:
            return i + 1
        behind, scope = following
        if scope is not None:
            self._frame.scope = scope
            if self.at(behind) in WRITE_VERBS:
                return self._write_verb(behind)
            self.is_unclear = self.is_unclear or self.at(behind) not in ("select", "values", "table", "with", "(")
        return behind

    def _comma(self, i: int) -> int:
        self._is_table_next = self._frame.is_from
        return i + 1

    # -- words ----------------------------------------------------------------------------------------------------

    def _is_label(self, i: int) -> bool:
        # PostgreSQL takes any word for a name after AS; CREATE ... AS SELECT comes before any query.
        return i > 0 and self.tokens[i - 1] == "as" and self._frame.is_query

    def _select(self, i: int) -> int:
        if not self._is_label(i):
            self._frame.is_query = True
            self._frame.is_from = self._frame.is_target = False
        return i + 1

    def _from(self, i: int) -> int:
        tokens = self.tokens
        before = tokens[i - 1] if i else " "
        is_comparison = before == "distinct" and i > 1 and tokens[i - 2] in ("is", "not")
        is_period = before == "system_time" or (i > 3 and tokens[i - 2] == "of" and tokens[i - 3] == "portion")
        if self._frame.is_query and not is_comparison and not is_period and not self._is_label(i):
            self._frame.is_from = self._is_table_next = True
            self._frame.is_target = False
        return i + 1

    def _apply(self, i: int) -> int:
        return i + 1 if self.vendor in ("postgresql", "mysql", "sqlite") else self._join(i)

    def _join(self, i: int) -> int:
        # USE INDEX FOR JOIN (...) is a hint.
        if not self._is_label(i) and self._frame.is_from and self.tokens[i - 1] != "for":
            self._is_table_next = True
        return i + 1

    def _using(self, i: int) -> int:
        if self._frame.is_using_from:
            self._frame.is_using_from = self._frame.is_target = False
            self._frame.is_from = self._is_table_next = True
        return i + 1

    def _table_word(self, i: int) -> int:
        if not self._is_label(i) and is_name(self.at(i + 1)):
            self._is_table_next = True
        return i + 1

    def _end_from(self, i: int) -> int:
        if self.at(i + 1) != "," and not self._is_label(i):
            self._frame.is_from = False
        return i + 1

    def _set(self, i: int) -> int:
        self._frame.is_from = self._frame.is_target = False
        return i + 1

    def _window(self, i: int) -> int:
        if is_name(self.at(i + 1)) and self.at(i + 2) == "as" and self.at(i + 3) == "(":
            self._frame.is_from = False
        return i + 1

    def _on(self, i: int) -> int:
        if self.at(i + 1) in ("duplicate", "conflict"):
            self._frame.is_from = False
        return i + 1

    def _for(self, i: int) -> int:
        following = self.at(i + 1)
        if following in ("update", "share") or (following in ("no", "key") and self.vendor not in ("sqlite", "mysql")):
            self.locks_rows = True
            self._frame.is_from = False
        return i + 1

    def _lock(self, i: int) -> int:
        if self.at(i + 1) == "in" and self.at(i + 2) == "share":
            self.locks_rows = True
            self._frame.is_from = False
        return i + 1

    def _into(self, i: int) -> int:
        if self._is_label(i):
            return i + 1
        self._frame.is_from = False
        i += 1
        if self.vendor == "mysql" and (self.at(i) in ("outfile", "dumpfile") or self.at(i)[0] == "@"):
            return i + 1
        while self.at(i) in ("global", "local", "table", "temp", "temporary", "unlogged"):
            if not is_name(self.at(i + 1)) or self.at(i + 1) in _RESERVED:
                break
            self.has_temporary = self.has_temporary or self.at(i) in ("temp", "temporary")
            i += 1
        return self.write_name(i)

    # -- WITH -----------------------------------------------------------------------------------------------------

    def _with_key(self, token: str) -> str:
        # PostgreSQL tells "T" from t; elsewhere the case of a name of a query is of no account.
        return _bare(token).lower() if self.vendor in ("sqlite", "mysql") else _bare(token)

    def _with(self, i: int) -> int:
        behind = i + 1
        is_recursive = self.at(behind) == "recursive" and self.at(behind + 1) not in ("as", "(")
        j = behind + 1 if is_recursive else behind
        is_recursive = is_recursive or self.vendor == "sqlite"  # which does not need the word
        names: list[str] = []
        bodies: list[tuple[int, int]] = []
        while True:
            body = self._with_body(j)
            if body is None:
                if names:
                    self.is_unclear = True
                return behind  # WITH ORDINALITY, WITH TIES, WITH (options)
            names.append(self._with_key(self.at(j)))
            end = self._closing(body)
            j = self._behind_search(end + 1)
            bodies.append((body, end))
            if self.at(j) != ",":
                break
            j += 1
        scope = self._frame.scope
        everything = scope.union(names)
        for number, (body, end) in enumerate(bodies):
            self._body_scopes[body] = everything if is_recursive else scope.union(names[:number])
            is_last = number == len(bodies) - 1
            self._after_body[end] = (j, everything) if is_last else (bodies[number + 1][0], None)
        return bodies[0][0]

    def _with_body(self, i: int) -> int | None:
        if not is_name(self.at(i)):
            return None
        i += 1
        if self.at(i) == "(":
            i = self._closing(i) + 1
        if self.at(i) != "as":
            return None
        i += 1
        if self.at(i) == "not":
            i += 1
        if self.at(i) == "materialized":
            i += 1
        return i if self.at(i) == "(" else None

    def _behind_search(self, i: int) -> int:
        # PostgreSQL: SEARCH ... SET name, CYCLE ... SET name [TO ... DEFAULT ...] USING name
        for word, last in (("search", "set"), ("cycle", "using")):
            if self.at(i) == word:
                while i < self._end and self.at(i) != last:
                    i += 1
                i += 2
        return i

    def _closing(self, i: int) -> int:
        if self._pairs is None:
            self._pairs = {}
            opened: list[int] = []
            for number, token in enumerate(self.tokens):
                if token == "(":
                    opened.append(number)
                elif token == ")" and opened:
                    self._pairs[opened.pop()] = number
        closing = self._pairs.get(i)
        if closing is None or closing >= self._end:
            self.is_unclear = True
            return self._end
        return closing

    # -- INSERT, UPDATE, DELETE, MERGE ------------------------------------------------------------------------------

    def _is_write_verb(self, i: int) -> bool:
        # Not the functions REPLACE(...) and INSERT(...), nor a column that is named like a verb.
        if self.at(i) not in WRITE_VERBS:
            return False
        following = self.at(i + 1)
        return is_name(following) and following not in ("and", "as", "in", "is", "not", "or", "over")

    def _write_verb(self, i: int) -> int:
        verb = self.at(i)
        frame = self._frame
        frame.is_query = True
        self.has_written = True
        i += 1
        self.may_delete = self.may_delete or verb in ("delete", "merge", "replace") or self.at(i + 1) == "replace"
        if self.at(i) == "or":
            i += 2  # SQLite: OR REPLACE and the like
        if self.vendor != "postgresql":
            while self.at(i) in _WRITE_MODIFIERS and is_name(self.at(i + 1)):
                i += 1
        if verb == "update":
            frame.is_from = frame.is_target = self._is_table_next = True
            return i
        if verb == "delete":
            return self._delete(i)
        if self.at(i) == "into":
            i += 1
        if self.at(i) == "only" and verb == "merge" and is_name(self.at(i + 1)):
            i += 1
        i = self.write_name(i)
        frame.is_using_from = verb == "merge"
        self._no_call_at = i
        return i

    def _delete(self, i: int) -> int:
        frame = self._frame
        start = i
        has_from = self.at(i) == "from"
        if has_from:
            i += 1
        if self.vendor != "postgresql" and self.vendor != "sqlite":
            # DELETE a, b FROM list; DELETE FROM a, b USING list: the list names every table, a and b may be aliases.
            j = i
            while self.at(j) in (",", ".", "*") or (self._is_table_token(self.at(j)) and self.at(j) not in _RESERVED):
                j += 1
            if j > i and self.at(j) == ("using" if has_from else "from"):
                i = j + 1
            elif not has_from:
                self.is_unclear = True
        elif not has_from:
            self.is_unclear = True
        frame.is_from = frame.is_target = self._is_table_next = True
        frame.is_using_from = i == start + 1
        return i


def _bare(token: str) -> str:
    return token[1:] if token[0] in "\"'" else token


_ACTIONS: dict[str, Callable[[Clauses, int], int]] = {
    "(": Clauses._open,
    ")": Clauses._close,
    ",": Clauses._comma,
    "select": Clauses._select,
    "from": Clauses._from,
    "join": Clauses._join,
    "straight_join": Clauses._join,
    "apply": Clauses._apply,
    "using": Clauses._using,
    "table": Clauses._table_word,
    "set": Clauses._set,
    "window": Clauses._window,
    "on": Clauses._on,
    "for": Clauses._for,
    "lock": Clauses._lock,
    "into": Clauses._into,
    "with": Clauses._with,
    **dict.fromkeys(
        ("where", "group", "having", "order", "limit", "union", "intersect", "except", "returning"), Clauses._end_from
    ),
}
