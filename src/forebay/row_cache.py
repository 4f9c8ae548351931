"""What is known of the inbox's rows from one transaction to the next, so that they are not read each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Rows = dict[Any, Any]
"""What is known, in the form of whoever reads and writes the table."""

_TABLE = "forebay_inbox"


def names_cached(sql: str) -> bool:
    """Whether a statement names the table whose rows are cached."""
    return _TABLE in sql.lower()


class RowCache:
    """Keeps what one connection that writes knows of the inbox's rows; empty wherever that is not certain.

    What a transaction leaves here counts once it is committed: after one that ended in any other way nothing is known.
    Nor is it after a statement of anybody else about the table, or a commit of another connection. All of it is called
    on the connection's thread.

    Args:
        foreign_commits: returns a number that changes with each commit of another connection (``data_version``).

    Attributes:
        changes: counts what may have changed rows or has made them unknown.
    """

    __slots__ = ("_committed", "_foreign", "_foreign_commits", "_rows", "changes")

    def __init__(self, foreign_commits: Callable[[], int]) -> None:
        self._foreign_commits = foreign_commits
        self._foreign = -1
        self._committed = True
        self._rows: Rows = {}
        self.changes = 0

    def begin(self) -> None:
        """Begin a transaction."""
        if not self._committed:
            self.clear()
        self._committed = False

    def commit(self) -> None:
        """Let stand what is known: the transaction is committed."""
        self._committed = True

    def clear(self) -> None:
        """Know nothing: rows were changed, or what changed them was undone."""
        self._rows = {}
        self.changes += 1

    def borrow(self) -> Rows:
        """Return what is known, to be changed at will; until it is given back nothing is, whatever happens."""
        foreign = self._foreign_commits()  # asked within a transaction that writes: nobody else commits before its end
        if foreign != self._foreign:
            self._foreign = foreign
            self.clear()
        rows, self._rows = self._rows, {}
        return rows

    def give_back(self, rows: Rows) -> None:
        """Take what is known now, as this transaction has written it."""
        self._rows = rows
