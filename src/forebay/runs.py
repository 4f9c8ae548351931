"""Runs of an outbox's rows: read by position, and never more of them in memory than was asked for in bytes."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from operator import itemgetter
from typing import Any, NamedTuple, cast

from forebay.transaction import Row, Transaction

_ROWS = """
    select sequence, kind, type, key, time, hlc, cause, extra, case when bytes <= :small then body end, bytes from {}
    where epoch = :epoch_id and sequence > :after and sequence <= :upto order by sequence limit :limit"""

_BODIES = """
    select sequence, body from {}
    where epoch = :epoch_id and sequence > :after and sequence <= :upto and bytes > :small"""

WRITTEN, WITHHELD = "forebay_outbox", "forebay_withheld"
"""The tables that rows are read from."""

_BODY, _BYTES = 8, 9


class Run(NamedTuple):
    """Rows of one epoch, in order.

    Attributes:
        epoch: theirs.
        prev: what came before it, as ``forebay-prev`` says it.
        rows: for each its sequence, kind, type, key, time, tick, cause, extra, body and bytes, by position: to read
            nine columns of SQLite's rows by name takes eight times as long.
        bytes: that they take on disk.
        more: whether others of the epoch follow that were asked for.
    """

    epoch: str
    prev: str
    rows: list[Sequence[Any]]
    bytes: int
    more: bool


def read_run(
    tx: Transaction,
    epoch: Row,
    after: int,
    upto: int,
    tables: Sequence[str],
    limit: int,
    max_bytes: int,
    *,
    at_least: int,
) -> Run:
    """Return rows of an epoch with sequences above ``after`` and up to ``upto``, from all of the tables.

    Large bodies are read in a second turn, and only those that fit into ``max_bytes``: all of them might not fit into
    memory. What is read in the first turn is at most four times ``max_bytes``.
    """
    where = {"epoch_id": epoch["id"], "after": after, "small": max(1024, 4 * max_bytes // max(1, limit))}
    rows = [
        row for table in tables for row in _values(tx.execute(_ROWS.format(table), **where, upto=upto, limit=limit + 1))
    ]
    if len(tables) > 1:
        rows.sort(key=itemgetter(0))
    totals = list(accumulate([row[_BYTES] for row in rows[:limit]]))
    count = min(len(totals), max(at_least, bisect_right(totals, max_bytes)))
    taken = rows[:count]
    if [row for row in taken if row[_BODY] is None]:
        last = taken[-1][0]
        bodies = {
            sequence: body
            for table in tables
            for sequence, body in _values(tx.execute(_BODIES.format(table), **where, upto=last))
        }
        taken = [
            (*row[:_BODY], bodies[row[0]], row[_BYTES]) if row[_BODY] is None else row for row in map(tuple, taken)
        ]
    return Run(epoch["epoch"], epoch["prev"], taken, totals[count - 1] if count else 0, more=len(rows) > count)


def _values(rows: list[Row]) -> list[Sequence[Any]]:
    """Return rows by position: SQLite's are so, PostgreSQL's are mappings in the order of their columns."""
    if rows and isinstance(rows[0], dict):
        return [tuple(row.values()) for row in cast("list[dict[str, Any]]", rows)]
    return cast("list[Sequence[Any]]", rows)
