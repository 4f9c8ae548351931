"""Gaps on record: what was passed without its event, when, and why (rules B4, O3)."""

from __future__ import annotations

import time

import msgspec

from forebay.identity import Origin
from forebay.sequences import Range, SequenceSet
from forebay.transaction import Transaction

_ranges = msgspec.json.Decoder(list[Range])

_DROPPING = """
    select o.lane, o.destination, e.epoch, d.first, d.last from forebay_dropped d
    join forebay_epoch e on e.id = d.epoch join forebay_origin o on o.id = e.origin
    where not exists (select 1 from forebay_lost l where l.epoch = e.epoch and l.first <= d.last and l.last >= d.first)
    order by e.id desc, d.first desc limit :limit"""

_WITHHELD = """
    select o.lane, o.destination, e.epoch, w.sequence as first, w.sequence as last, w.reason, w.withheld_at
    from forebay_withheld w join forebay_epoch e on e.id = w.epoch join forebay_origin o on o.id = e.origin
    order by e.id desc, w.sequence desc limit :limit"""

_PAST = """
    select lane, destination, epoch, first, last, kind, reason, coalesce(began_at, ended_at) as at
    from forebay_past order by id desc limit :limit"""

_LOST = "select lane, '' as destination, epoch, first, last, found_at from forebay_lost order by id desc limit :limit"


class Missing(msgspec.Struct, frozen=True, omit_defaults=True):
    """Places of an epoch that a consumer lacks, both ends included.

    Attributes:
        kind: ``hole`` where later events wait for it, ``gap`` where it was closed without its event, ``drop`` where the
            node's budget pushed it out, ``withheld`` where the broker refused it for itself, ``lost`` where a damaged
            disk took it from its own node.
        waiting: of a hole, how many later events of the epoch are held.
        recorded_at: of all but a hole and a drop under way, milliseconds since 1970.
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


def own(tx: Transaction, node: str, service: str, *, limit: int = 1000) -> list[tuple[str, Missing]]:
    """Return what a node's own outbox says: drops and withheld events, under way and over, and what a disk took.

    The latest of each first, each with the destination that lacks it (``<node>/<service>``), for events ``""``.
    """
    under_way = "the lane's budget pushed it out; not every consumer has heard of it"
    pushed_out = "the lane's budget pushed it out"
    found = [
        *((row, "drop", under_way, 0) for row in tx.execute(_DROPPING, limit=limit)),
        *((row, "withheld", row["reason"], row["withheld_at"]) for row in tx.execute(_WITHHELD, limit=limit)),
        *((row, row["kind"], row["reason"] or pushed_out, row["at"]) for row in tx.execute(_PAST, limit=limit)),
        *((row, "lost", "a damaged disk took it", row["found_at"]) for row in tx.execute(_LOST, limit=limit)),
    ]
    return [
        (
            row["destination"],
            Missing(
                kind,
                node,
                service,
                row["lane"],
                row["epoch"],
                row["first"],
                row["last"],
                reason=reason,
                recorded_at=at,
            ),
        )
        for row, kind, reason, at in found
    ]
