"""Walking a table in the order of its ids, and never past a row that commits later.

Where several processes write, ids come from a sequence in the order in which they are asked for, and become visible in
the order of the commits: a reader that has seen 6 and goes on behind it never meets 5, which was taken before and
committed after. So it goes no further than an id up to which everything is decided.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol, TypeVar, runtime_checkable

import anyio

from forebay.errors import StoreBusyError
from forebay.transaction import Transaction

T = TypeVar("T")

LOOK = 0.01
"""Seconds between looks at transactions that are under way."""

LIMIT = 15.0
"""Seconds that they are waited for: a process that is frozen loses its session, and its transaction, long before."""


@runtime_checkable
class SharedTransaction(Protocol):
    """A transaction on a database in which several processes may write."""

    def under_way(self) -> frozenset[str]:
        """Return the writing transactions that have not ended at this moment, whatever this one's snapshot shows."""
        ...


class Reading(Protocol):
    """What runs a query, each on a snapshot of its own; every store does."""

    async def read(self, query: Callable[[Transaction], T], /) -> T:
        """Return the result of a query."""
        ...


async def settled_end(store: Reading, end: Callable[[Transaction], int]) -> int:
    """Return the largest id, once nothing below it is under way any more.

    A snapshot that is taken afterwards shows every row up to it that there will ever be. On SQLite, where one process
    writes one transaction after the other, that is so at once.

    Args:
        store: has the table.
        end: returns the largest id of the table; writers take their ids from one sequence, in their transactions.

    Raises:
        StoreBusyError: a transaction does not end.
        StoreError: the database failed.
    """
    last, before = await store.read(lambda tx: (end(tx), _under_way(tx)))  # in this order: see below
    give_up = time.monotonic() + LIMIT
    # Whoever took an id below `last` had begun before that was read, and has ended or was seen under way after it.
    while before and (before := before & await store.read(_under_way)):
        if time.monotonic() > give_up:
            raise StoreBusyError(f"a transaction of another process has not ended for {LIMIT:g} s")
        await anyio.sleep(LOOK)
    return last


def _under_way(tx: Transaction) -> frozenset[str]:
    return tx.under_way() if isinstance(tx, SharedTransaction) else frozenset()
