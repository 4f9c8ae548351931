"""Parameters of a statement: named where it is written, numbered where it is bound.

SQLite looks up each name of a statement each time that it runs; by its number a value is simply there, which saves a
fifth of a small insert.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from operator import itemgetter
from typing import Any

Values = Callable[[Mapping[str, Any]], Any]
"""Puts the values of named parameters in the order of their numbers; ``KeyError`` where one is missing."""

_TOKEN = re.compile(
    r"""
      '(?:[^']|'')*' | "(?:[^"]|"")*" | `(?:[^`]|``)*` | \[[^\]]*\]
    | --[^\n]* | /\*.*?(?:\*/|\Z)
    | :(?P<name>[A-Za-z_][A-Za-z0-9_]*+)(?![$\x80-\U0010ffff])
    | (?P<other>[:?@$])
    """,
    re.VERBOSE | re.DOTALL,
)
"""What SQLite takes for a string, a quoted name, a comment or a parameter (sqlite.org/lang_expr.html#varparam)."""


def numbered(sql: str) -> tuple[str, Values]:
    """Return a statement with ``?1``, ``?2``, ... in the place of its names, and what puts values in that order.

    One that has parameters of other forms stays as it is, and its values are taken by name.
    """
    names: dict[str, int] = {}
    odd = False

    def number(found: re.Match[str]) -> str:
        nonlocal odd
        odd |= found["other"] is not None
        name = found["name"]
        return found[0] if name is None else f"?{names.setdefault(name, len(names) + 1)}"

    text = _TOKEN.sub(number, sql)
    if odd or not names:
        return sql, _by_name
    if len(names) == 1:
        (only,) = names
        return text, lambda values: (values[only],)
    return text, itemgetter(*names)


def _by_name(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return values
