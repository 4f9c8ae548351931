"""Gaps on record: what was passed without its event, when, and why (rules B4, O3)."""

from __future__ import annotations

import time

import msgspec

from forebay.identity import Origin
from forebay.sequences import Range, SequenceSet
from forebay.transaction import Transaction

_ranges = msgspec.json.Decoder(list[Range])


class Missing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Places of an epoch that a consumer lacks, both ends included.

    Attributes:
        kind: ``hole`` where later events wait for it, ``gap`` where it was closed without its event, ``drop`` where the
            node's budget pushed it out, ``lost`` where a damaged disk took it from its own node.
        waiting: of a hole, how many later events of the epoch are held.
        recorded_at: of all but a hole, milliseconds since 1970.
    """

    kind: str
    node: str
    service: str
    lane: str
    epoch: str
    first: int
    last: int
    waiting: int = 0
    reason: str = ""
    recorded_at: int = 0


def record_gap(tx: Transaction, origin: Origin, epoch: str, places: Range, kind: str, reason: str) -> None:
    """Put a gap or a drop on record."""
    tx.execute(
        "insert into forebay_gap (node, service, lane, epoch, first, last, kind, reason, recorded_at)"
        " values (:node, :service, :lane, :epoch, :first, :last, :kind, :reason, :recorded_at)",
        node=origin.node,
        service=origin.service,
        lane=origin.lane,
        epoch=epoch,
        first=places[0],
        last=places[1],
        kind=kind,
        reason=reason,
        recorded_at=time.time_ns() // 1_000_000,
    )


def holes(tx: Transaction, node: str | None = None) -> list[Missing]:
    """Return the open holes: places below what is held, and epochs that wait for the one before them."""
    rows = tx.execute(
        "select i.node, i.service, i.lane, i.epoch, i.prev, i.watermark, i.held, p.watermark as before"
        " from forebay_inbox i left join forebay_inbox p"
        " on p.node = i.node and p.service = i.service and p.epoch = substr(i.prev, 1, 32)"
        " where i.held <> '[]' and (cast(:node as text) is null or i.node = :node) order by i.node, i.service, i.epoch",
        node=node,
    )
    found = []
    for row in rows:
        passed = SequenceSet(row["watermark"], _ranges.decode(row["held"]))
        waiting = len(passed) - passed.watermark
        where = {"node": row["node"], "service": row["service"], "lane": row["lane"], "waiting": waiting}
        if row["prev"] != "none":
            epoch, _, last = row["prev"].rpartition("-")
            if (row["before"] or 0) < int(last):
                found.append(Missing("hole", epoch=epoch, first=(row["before"] or 0) + 1, last=int(last), **where))
        following = row["watermark"] + 1
        for first, last_held in passed.ranges:
            if first > following:
                found.append(Missing("hole", epoch=row["epoch"], first=following, last=first - 1, **where))
            following = last_held + 1
    return found


def recorded(tx: Transaction, node: str | None = None, *, limit: int = 1000) -> list[Missing]:
    """Return the gaps and drops on record, the latest first."""
    rows = tx.execute(
        "select * from forebay_gap where (cast(:node as text) is null or node = :node) order by id desc limit :limit",
        node=node,
        limit=limit,
    )
    return [
        Missing(
            row["kind"],
            row["node"],
            row["service"],
            row["lane"],
            row["epoch"],
            row["first"],
            row["last"],
            reason=row["reason"],
            recorded_at=row["recorded_at"],
        )
        for row in rows
    ]
