"""Withholding: an event that the broker refuses for itself stands beside the outbox until the broker's limits change.

Its place is told to the consumers with its key, so that only its key waits (O4). The body keeps its place and its id,
and leaves the disk once it is confirmed, or dropped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from forebay.freeing import Freed
from forebay.identity import Place
from forebay.past import CONFIRMED, record_withheld
from forebay.protocol.confirmation import WithheldPlace
from forebay.transaction import Transaction

COLUMNS = "epoch, sequence, kind, type, key, time, hlc, cause, extra, body, bytes, written_at"
"""The columns that a row keeps beside the outbox."""

_MOVE = f"""
    insert into forebay_withheld ({COLUMNS}, reason, withheld_at)
    select {COLUMNS}, :reason, :at from forebay_outbox
    where epoch = (select id from forebay_epoch where epoch = :epoch) and sequence = :sequence
    on conflict do nothing"""

_TAKE_OUT = """
    delete from forebay_outbox
    where epoch = (select id from forebay_epoch where epoch = :epoch) and sequence = :sequence"""

_LISTED = """
    select e.epoch, w.sequence, w.key, w.passed from forebay_withheld w join forebay_epoch e on e.id = w.epoch
    join forebay_origin o on o.id = e.origin where o.lane = :lane and o.destination = :destination
    order by e.id, w.sequence"""


class Listed(NamedTuple):
    """A withheld event: its place with its key, and whether the floor has passed it."""

    place: WithheldPlace
    passed: bool


def withhold(tx: Transaction, refused: Mapping[Place, str], at: int) -> int:
    """Move events beside the outbox, each with the broker's reason; return how many of them were still there.

    Args:
        tx: the move is one transaction: an event is never in both, nor in neither.
        refused: the places and the reasons.
        at: milliseconds of wall time.
    """
    moved = 0
    for place, reason in refused.items():
        where = {"epoch": place.epoch, "sequence": place.sequence}
        tx.execute(_MOVE, reason=reason, at=at, **where)
        moved += len(tx.execute(_TAKE_OUT + " returning sequence", **where))
    return moved


def listed(tx: Transaction, lane: str, destination: str = "") -> list[Listed]:
    """Return what is withheld of a lane, the oldest first."""
    return [
        Listed(WithheldPlace(row["epoch"], row["sequence"], row["key"]), bool(row["passed"]))
        for row in tx.execute(_LISTED, lane=lane, destination=destination)
    ]


def release(tx: Transaction, lane: str, places: Sequence[Place], destination: str = "") -> Freed:
    """Delete bodies that all needed consumers have confirmed and the floor has passed; return what went."""
    gone = [
        row
        for place in places
        for row in tx.execute(
            "delete from forebay_withheld where passed = 1 and sequence = :sequence"
            " and epoch = (select id from forebay_epoch where epoch = :epoch)"
            " returning (select e.epoch from forebay_epoch e where e.id = forebay_withheld.epoch) as epoch,"
            " sequence, bytes, reason, withheld_at",
            epoch=place.epoch,
            sequence=place.sequence,
        )
    ]
    record_withheld(tx, gone, CONFIRMED)
    freed = Freed(len(gone), sum(row["bytes"] for row in gone))
    tx.execute(
        "update forebay_origin set bytes = bytes - :size, confirmed = confirmed + :count"
        " where lane = :lane and destination = :destination",
        size=freed.size,
        count=freed.events,
        lane=lane,
        destination=destination,
    )
    return freed
