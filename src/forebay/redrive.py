"""Redriving what is parked: when its next retry is due, and what a person may do about it (rules F1, S7).

The rows are the parking's. These functions work in the transaction of the partition's reader, or only look.
"""

from __future__ import annotations

import time
from typing import NamedTuple, Protocol

import msgspec

from forebay.delivery import Delivery
from forebay.identity import Origin
from forebay.parking import LONGEST_RETRY, Parked, Parking, after
from forebay.partitions import Partitions
from forebay.transaction import Row, Transaction

_headers = msgspec.json.Decoder(dict[str, str])


class Rows(Protocol):
    """A choice of parked events."""

    def condition(self) -> tuple[str, dict[str, str | int]]:
        """Return it in SQL, with its parameters."""
        ...


class PartitionRows(NamedTuple):
    """The parked events that a reader retries: those of the partitions that it holds, and of its kind."""

    partitions: Partitions
    whose: Rows | None

    def condition(self) -> tuple[str, dict[str, str | int]]:
        """Return it in SQL, with its parameters."""
        mine, params = self.partitions.condition()
        if self.whose is None:
            return mine, params
        kind, more = self.whose.condition()
        return f"({mine}) and ({kind})", {**params, **more}


def listed(tx: Transaction, limit: int) -> list[Row]:
    """Return what is parked and not discarded, the longest waiting first, without the bodies."""
    return tx.execute(
        "select id, reason, detail, message_id, node, service, lane, key, attempts, alone, wanted, parked_at, retry_at"
        " from forebay_parked where discarded_at is null order by id limit :limit",
        limit=limit,
    )


def due(tx: Transaction, limit: int, whose: Rows | None = None) -> list[Parked]:
    """Return the events whose retry is due, the longest waiting first; those of one reader, where one is named.

    A time further away than any retry can be was written by a clock that was set back since: it is due.
    """
    condition, params = whose.condition() if whose else ("1 = 1", {})
    rows = tx.execute(
        "select * from forebay_parked where retry_at is not null and discarded_at is null"
        f" and (retry_at <= :now or retry_at > :absurd) and {condition} order by retry_at limit :limit",
        now=_now(),
        absurd=_now() + int(2000 * LONGEST_RETRY),
        limit=limit,
        **params,
    )
    return [_parked(row) for row in rows]


def next_retry(tx: Transaction, whose: Rows | None = None) -> float | None:
    """Return the seconds until the next retry is due (0 or less: now), or None where none is."""
    condition, params = whose.condition() if whose else ("1 = 1", {})
    live = f"from forebay_parked where retry_at is not null and discarded_at is null and {condition}"
    (row,) = tx.execute(f"select min(retry_at) as at, max(retry_at) as latest {live}", **params)
    if row["at"] is None:
        return None
    if row["latest"] > _now() + int(2000 * LONGEST_RETRY):
        return 0.0
    return float(row["at"] - _now()) / 1000


def postpone(tx: Transaction, parked: Parked, reason: str, detail: str) -> None:
    """Note that a retry failed, and when the next one is."""
    tx.execute(
        "update forebay_parked set attempts = attempts + 1, reason = :reason, detail = :detail, retry_at = :retry_at"
        " where id = :id and discarded_at is null",
        id=parked.id,
        reason=reason,
        detail=detail,
        # What stands alone and was never to be retried by itself stays so.
        retry_at=None if parked.alone and parked.attempts == 0 else after(parked.attempts),
    )


def retry(tx: Transaction, id: int) -> str:  # noqa: A002 - the column's name
    """Let a parked event be retried at once; return what becomes of it, in a sentence."""
    rows = tx.execute("select * from forebay_parked where id = :id and discarded_at is null", id=id)
    if not rows:
        return f"there is no parked event {id}"
    row = rows[0]
    if row["wanted"]:
        return f"{id} has no body yet: it is still on its node"
    if not row["alone"]:
        origin = Origin(row["node"], row["service"], row["lane"])
        head = Parking(tx).head(origin, row["key"])
        if head != id:
            return f"{id} waits behind {head}, an earlier event of its key: retry or discard that one"
    tx.execute("update forebay_parked set retry_at = :now where id = :id", now=_now(), id=id)
    return f"{id} is retried now"


def discard(tx: Transaction, id: int, why: str) -> str:  # noqa: A002 - the column's name
    """Give a parked event up, on record; the next of its key is retried at once. Return what was done."""
    rows = tx.execute(
        "update forebay_parked set discarded_at = :now, discarded_why = :why, retry_at = null"
        " where id = :id and discarded_at is null returning node, service, lane, key, alone",
        id=id,
        why=why,
        now=_now(),
    )
    if not rows:
        return f"there is no parked event {id}"
    if not rows[0]["alone"]:
        Parking(tx).wake(Origin(rows[0]["node"], rows[0]["service"], rows[0]["lane"]), rows[0]["key"])
    return f"{id} is discarded"


def _parked(row: Row) -> Parked:
    delivery = Delivery(
        row["partition"],
        row["stream_sequence"],
        row["stored_at"],
        row["subject"],
        _headers.decode(row["headers"]),
        row["body"],
    )
    flags = row["epoch"] is not None, bool(row["wanted"]), bool(row["alone"])
    return Parked(row["id"], row["message_id"] or "", *flags, row["attempts"], delivery)


def _now() -> int:
    return time.time_ns() // 1_000_000
