"""SQL as it is written here, ``:name`` parameters included, and as PostgreSQL takes it: ``$1``, ``$2``, ...

A small tokenizer knows what is no place for a parameter: strings, quoted names, comments, dollar quotes, ``::casts``,
``:=``. It also knows where a statement ends. In a slice of an array (``a[x:y]``) a space keeps ``:y`` from being read
as a parameter.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_TOKEN = re.compile(
    r"""
      (?P<comment> --[^\n]* | /\* )
    | (?P<string> (?<![A-Za-z0-9_$"])[eE]'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?:[^"]|"")*" )
    | (?P<dollar> (?<![A-Za-z0-9_$\x80-\uffff])\$(?:[A-Za-z_\x80-\uffff][A-Za-z0-9_\x80-\uffff]*)?\$ )
    | (?P<colons> ::|:= )
    | :(?P<name> [A-Za-z_][A-Za-z0-9_]* )
    | (?P<word> [A-Za-z_\x80-\uffff][A-Za-z0-9_$\x80-\uffff]* )
    | (?P<end> ; )
    | (?P<space> [\s\ufeff]+ )
    | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)
_COMMENT_EDGE = re.compile(r"/\*|\*/")

_REFUSED = frozenset(
    {
        "ABORT",
        "BEGIN",
        "CHECKPOINT",
        "CLUSTER",
        "COMMIT",
        "COPY",
        "DEALLOCATE",
        "DISCARD",
        "END",
        "LISTEN",
        "LOAD",
        "PREPARE",
        "RELEASE",
        "RESET",
        "ROLLBACK",
        "SAVEPOINT",
        "SET",
        "START",
        "UNLISTEN",
        "VACUUM",
    }
)

_WRITES = frozenset({"INSERT", "UPDATE", "DELETE"})


class Statement(NamedTuple):
    """One statement in PostgreSQL's own form.

    Attributes:
        text: with ``$1``, ``$2``, ... in the place of the names.
        names: the parameters in that order, each once.
        refused: its first word in upper case if only the store itself may run it.
        silent: whether it writes and returns no rows, so that nobody has to wait for it.
    """

    text: str
    names: tuple[str, ...]
    refused: str | None
    silent: bool = False


@lru_cache(maxsize=1024)
def translate(sql: str) -> Statement:
    """Return a statement in PostgreSQL's form.

    Raises:
        ValueError: there are several statements in it.
    """
    parts: list[str] = []
    names: dict[str, int] = {}
    first = ""
    ended = returning = False
    for kind, text in _tokens(sql):
        if kind == "end":
            ended = True
            continue
        if kind not in ("space", "comment"):
            if ended:
                raise ValueError("one statement at a time: there is another one behind the semicolon")
            first = first or (text.upper() if kind == "word" else text)
        returning |= kind == "word" and text.upper() == "RETURNING"
        if kind == "name":
            parts.append(f"${names.setdefault(text, len(names) + 1)}")
        else:
            parts.append(text)
    silent = first in _WRITES and not returning
    return Statement("".join(parts), tuple(names), first if first in _REFUSED else None, silent)


def refused_word(sql: str) -> str | None:
    """Return the first word of a statement in upper case if only the store itself may run it, else None."""
    for kind, text in _tokens(sql):
        if kind not in ("space", "comment", "end"):
            return text.upper() if kind == "word" and text.upper() in _REFUSED else None
    return None


def is_complete(sql: str) -> bool:
    """Whether a text that ends with a semicolon is a whole statement: the semicolon stands in no string or comment."""
    last = ""
    for kind, _ in _tokens(sql):
        last = kind
    return last == "end"


def _tokens(sql: str) -> list[tuple[str, str]]:
    """Return the tokens of a text; what is never closed reaches to its end."""
    found: list[tuple[str, str]] = []
    at = 0
    while at < len(sql):
        match = _TOKEN.match(sql, at)
        assert match is not None  # noqa: S101 - the last alternative matches anything
        kind = match.lastgroup or "other"
        text, end = match[kind], match.end()
        if kind == "comment" and text == "/*":
            end = _end_of_comment(sql, end)
            text = sql[at:end]
        elif kind == "dollar":
            closing = sql.find(text, end)
            end = len(sql) if closing < 0 else closing + len(text)
            kind, text = "string", sql[at:end]
        elif kind == "other" and text in "'\"":
            kind, text, end = "string", sql[at:], len(sql)
        found.append((kind, text))
        at = end
    return found


def _end_of_comment(sql: str, at: int) -> int:
    """Return where a comment that was opened before ``at`` ends; PostgreSQL's nest."""
    depth = 1
    while depth:
        edge = _COMMENT_EDGE.search(sql, at)
        if edge is None:
            return len(sql)
        depth += 1 if edge[0] == "/*" else -1
        at = edge.end()
    return at
