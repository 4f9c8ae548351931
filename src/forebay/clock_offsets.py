"""How far each node's clock is off, as the node itself has measured it against ours, and told in its questions (C1).

Kept in the consumer's database, because what a node wrote before a restart of ours is corrected all the same. A node
speaks for itself only (C4): the offset is that of the node which asked.
"""

from __future__ import annotations

import time

from forebay.transaction import Transaction
from forebay.unit_of_work import UnitOfWork, UnitStore

SKEWED = 5.0
"""Seconds that a clock may be off before event times are corrected: a measurement is off by up to 1 s, half the longest
round trip, and a clock that is set by the network by much less than that."""

WORTH_WRITING = 1.0
"""Seconds by which an offset must change to be written again: what is below is the measurement's own noise."""

MOST = 100 * 366 * 24 * 3600.0
"""Seconds; an offset above is no measurement. A clock at 1970 is half of it behind."""

_WRITE = """
    insert into forebay_clock_offset (node, ahead, told_at) values (:node, :ahead, :told_at)
    on conflict (node) do update set ahead = excluded.ahead, told_at = excluded.told_at"""


class ClockOffsets:
    """Keeps what nodes tell of their clocks; one for each service that needs it."""

    def __init__(self, store: UnitStore) -> None:
        self._store = store
        self._written: dict[str, float] = {}

    async def told(self, node: str, seconds: float | None) -> None:
        """Take note of what a node says: our clock is so many seconds ahead of its own. None says nothing.

        Raises:
            StoreError: the database failed.
        """
        if seconds is None or not abs(seconds) <= MOST:
            return
        known = self._written.get(node)
        if known is None or abs(known - seconds) >= WORTH_WRITING:
            await self._store.write(write_offset, node, seconds)
            self._written[node] = seconds


def write_offset(tx: UnitOfWork, node: str, seconds: float) -> None:
    """Write how far our clock is ahead of a node's."""
    tx.execute(_WRITE, node=node, ahead=round(seconds * 1000), told_at=time.time_ns() // 1_000_000)


def skewed_nodes(tx: Transaction) -> dict[str, int]:
    """Return the milliseconds to add to the times of each node whose clock is off by ``SKEWED`` or more."""
    least = round(SKEWED * 1000)
    rows = tx.execute(
        "select node, ahead from forebay_clock_offset where ahead >= :least or ahead <= :most", least=least, most=-least
    )
    return {row["node"]: row["ahead"] for row in rows}
