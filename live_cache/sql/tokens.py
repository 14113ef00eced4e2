"""
SQL text -> tokens, by the lexical rules of each database.

Only as much as is needed to tell code from text: comments, strings, dollar quotes, quoted names, placeholders. Where
the same text means different things in different modes of a server (backslashes in strings, MySQL's executable
comments), readings() gives every one of them, and the caller must allow for all.

A token is a plain string, so that the parser compares strings only:

- a bare word is its text with ASCII letters lowered (``select``);
- a quoted name is ``"`` followed by the name without its quotes; on MySQL so is a text in double quotes;
- a string is ``'`` followed by what stood between the quotes;
- a number or a placeholder is ``?``, a user variable of MySQL begins with ``@``;
- anything else is the sign itself, one character, or ``::``.

The rules were read in PostgreSQL's scan.l, MySQL's sql_lex.cc and SQLite's tokenize.c.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from typing import NamedTuple

__all__ = ["Reading", "is_name", "normalize_table", "readings", "tokenize"]

_NAME_LIMIT_BYTES = 63
_IDENT_START = r"A-Za-z_\x80-\U0010FFFF"
_IDENT = _IDENT_START + "0-9$"
_ASCII_LOWER = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}
# Long lists of placeholders, and rows of them after a comma (so that they call nothing), make one token: a bulk insert
# has tens of thousands.
_PLACEHOLDER = r"%(?:\([\w.\-]+\))?[sbt]"
_PLACEHOLDERS = rf"{_PLACEHOLDER}(?:, ?{_PLACEHOLDER})*+"
_VALUES = rf"(?:, ?\({_PLACEHOLDERS}\))++|{_PLACEHOLDERS}"
# In the order of the pattern. The group of a dollar quote holds one more group, hence it comes late.
_WORD, _QUOTED, _BACKTICK, _BRACKET, _STRING, _VALUE, _SIGN, _VARIABLE, _DOLLAR, _BROKEN = range(1, 11)
_UNESCAPED = r"'(?:[^']++|'')*+'"
_ESCAPED = r"'(?:[^'\\]++|\\.|'')*+'"


class Reading(NamedTuple):
    """One way in which a server may understand the text."""

    pattern: re.Pattern[str]
    is_parsed_whole: bool
    """Whether the server looks at the whole text before it runs the first statement of it."""


@lru_cache(maxsize=4096)
def normalize_table(name: str) -> str:
    """
    Return *name* as tables are named everywhere in the ledger: last part, without quotes, lower case.

    Two tables may get one name (``"A"`` and ``a``, ``x.t`` and ``y.t``): that invalidates too much, never too little.
    One table never gets two: names are cut at 63 bytes, as PostgreSQL cuts them.
    """
    last = name.strip().rpartition(".")[2] or name
    last = last.strip().strip('"`[]').replace('""', '"').replace("``", "`")
    return _clip(_clip(last).lower())


def _clip(name: str) -> str:
    if len(name) * 4 <= _NAME_LIMIT_BYTES:
        return name
    return name.encode("utf-8", "surrogatepass")[:_NAME_LIMIT_BYTES].decode("utf-8", "ignore")


def is_name(token: str) -> bool:
    """Return whether *token* is a word or a quoted name."""
    first = token[0]
    return first == '"' or first == "_" or first.isalnum() or first >= "\x80" or (first == "$" and len(token) > 1)


def tokenize(text: str, pattern: re.Pattern[str]) -> tuple[list[str], bool]:
    """
    Split *text* by *pattern*, the pattern of a Reading.

    Returns:
        The tokens, and whether the text ended well. Where it did not (a quote without an end), the tokens are those
        before the place.
    """
    tokens: list[str] = []
    append = tokens.append
    for match in pattern.finditer(text):
        kind = match.lastindex
        if kind is None:
            continue
        if kind == _SIGN:
            append(match[_SIGN])
        elif kind == _QUOTED:
            append('"' + match[_QUOTED][1:-1].replace('""', '"'))
        elif kind == _WORD:
            word = match[_WORD]
            append(word.lower() if word.isascii() else word.translate(_ASCII_LOWER))
        elif kind in (_VALUE, _DOLLAR):
            append("?")
        elif kind == _BACKTICK:
            append('"' + match[_BACKTICK][1:-1].replace("``", "`"))
        elif kind == _STRING:
            string = match[_STRING]
            append(string[string.index("'") : -1])
        elif kind == _BRACKET:
            append('"' + match[_BRACKET][1:-1])
        elif kind == _VARIABLE:
            append(match[_VARIABLE].lower())
        else:
            return tokens, False
    return tokens, True


def readings(text: str, vendor: str) -> tuple[Reading, ...]:
    """
    Return every way in which a database of *vendor* may read *text*, the usual one first.

    An unknown vendor gets the rules of all three. There is none where the text has too many meanings to try them all.
    """
    has_backslash = "\\" in text
    if vendor == "sqlite":
        return (_sqlite(),)
    if vendor == "mysql":
        return _mysql_readings(text, has_backslash=has_backslash)
    postgresql = (_postgresql(False), _postgresql(True)) if has_backslash else (_postgresql(False),)
    return postgresql if vendor == "postgresql" else (*postgresql, _sqlite(), *readings(text, "mysql"))


def _mysql_readings(text: str, *, has_backslash: bool) -> tuple[Reading, ...]:
    # NO_BACKSLASH_ESCAPES, and ANSI_QUOTES, under which a double quote knows no backslash.
    escapes = ((True, True), (False, False), (True, False)) if has_backslash else ((True, True),)
    n_code = text.count("/*!") + text.count("/*M!")
    if not n_code:
        return tuple(_mysql(*pair, False) for pair in escapes)
    if "*/*" in text or (n_code > 1 and any(sign in text for sign in "'\"`#")):
        return ()
    return tuple(_mysql(*pair, is_code) for is_code in (True, False) for pair in escapes)


def _compile(*, spaces: str, groups: dict[int, str]) -> re.Pattern[str]:
    parts = "|".join(f"({groups.get(number, '(?!)')})" for number in range(_WORD, _BROKEN + 1))
    return re.compile(rf"(?:{spaces})++|{parts}", re.DOTALL)


@cache
def _postgresql(are_backslashes_escapes: bool) -> Reading:
    comment = r"/\*(?:[^/*]++|\*(?!/)|/(?!\*))*+\*/"
    for _ in range(4):  # deeper ones are too deep to be true, and count as broken
        comment = rf"/\*(?:[^/*]++|\*(?!/)|{comment}|/(?!\*))*+\*/"
    # A string goes on after a line break, in the same mode as its first part (on one line that is a syntax error).
    following = r"(?:(?:[ \t\f\v\r\n]++|--[^\r\n]*+)*+{0})*+"
    # U&"..." names a table by code points: broken, so that nobody takes the escapes for the name.
    escaped = r"[eE]" + _ESCAPED + following.format(_ESCAPED)
    plain = _ESCAPED + following.format(_ESCAPED) if are_backslashes_escapes else _UNESCAPED
    dollar = rf"\$(?P<tag>(?:[{_IDENT_START}][{_IDENT_START}0-9]*+)?)\$.*?\$(?P=tag)\$"
    groups = {
        _WORD: rf"(?![eE]'|[uU]&['\"])[{_IDENT_START}][{_IDENT}]*+",
        _QUOTED: r'"(?:[^"]++|"")*+"',
        _STRING: rf"{escaped}|[uU]&{_UNESCAPED}|{plain}",
        _VALUE: rf"\$\d++|{_VALUES}|\d[\d_]*+(?:\.[\d_]*+)?(?:[eE][+-]?\d++)?",
        _SIGN: rf"%%|::|(?!/\*|\$[{_IDENT_START}$]|[eE]'|[uU]&['\"])[^'\"]",
        _DOLLAR: dollar,
        _BROKEN: r".",
    }
    return Reading(_compile(spaces=rf"[ \t\n\r\f\v]++|--[^\r\n]*+|{comment}", groups=groups), True)


@cache
def _sqlite() -> Reading:
    groups = {
        _WORD: rf"[{_IDENT_START}][{_IDENT}]*+",
        _QUOTED: r'"(?:[^"]++|"")*+"',
        _BACKTICK: r"`(?:[^`]++|``)*+`",
        _BRACKET: r"\[[^\]]*+\]",
        _STRING: _UNESCAPED,
        _VALUE: (
            rf"{_VALUES}|[:@#$](?:::)?[{_IDENT}]++|\?\d*+|0[xX][0-9a-fA-F]++"
            r"|\d[\d_]*+(?:\.[\d_]*+)?(?:[eE][+-]?\d++)?"
        ),
        _SIGN: r"%%|::|[^'\"`\[]",
        _BROKEN: r".",
    }
    # A comment without an end goes on to the end of the text, and a byte order mark is a space.
    return Reading(_compile(spaces=r"[ \t\n\r\f\v\ufeff]++|--[^\n]*+|/\*.*?(?:\*/|\Z)", groups=groups), True)


@cache
def _mysql(is_escaped: bool, is_double_escaped: bool, is_code: bool) -> Reading:
    double = r'"(?:[^"\\]++|\\.|"")*+"' if is_double_escaped else r'"(?:[^"]++|"")*+"'
    plain_comment = r"/\*(?!M?!).*?\*/"
    code = r"/\*M?!(?:\d{5,6})?|\*/" if is_code else r"/\*M?!(?:(?!\*/|/\*).|/\*.*?\*/)*+\*/"
    groups = {
        # A name may begin with a digit here, but not be a number.
        _WORD: rf"(?!\d++(?:[eE][+-]?\d|(?![{_IDENT}])))[{_IDENT}]++",
        _QUOTED: double,
        _BACKTICK: r"`(?:[^`]++|``)*+`",
        _STRING: _ESCAPED if is_escaped else _UNESCAPED,
        _VALUE: rf"{_VALUES}|\?|\d++(?:\.\d*+)?(?:[eE][+-]?\d++)?",
        _SIGN: r"%%|::|(?!/\*)[^'\"`@]",
        _VARIABLE: rf"@@?[{_IDENT}]*+",
        _BROKEN: r".",
    }
    spaces = rf"[ \t\n\r\f\v]++|--(?=[\x00-\x20\x7f]|\Z)[^\n]*+|\#[^\n]*+|{plain_comment}|{code}"
    return Reading(_compile(spaces=spaces, groups=groups), False)
