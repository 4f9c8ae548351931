"""What happened to a node's own events, kept once it is over: drops that everybody knows of, events that were withheld.

While a drop or a withheld event is under way its row says so. When it is over that row goes, and for people what it
was stays here: the latest ``KEPT`` of each store, so that a lane that drops for years fills no disk.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from forebay.sequences import Range, without
from forebay.transaction import Row, Transaction

KEPT = 1000
"""Rows of a store; ranges of drops that follow on each other are one row."""

CONFIRMED = "confirmed since"
DROPPED = "then pushed out by its lane's budget"

_LENGTHEN = """
    update forebay_past set last = :last, ended_at = :now
    where id = (select max(id) from forebay_past) and kind = 'drop' and epoch = :epoch and last = :before
    returning id"""

_RECORD = """
    insert into forebay_past (lane, destination, epoch, first, last, kind, reason, began_at, ended_at)
    select o.lane, o.destination, e.epoch, :first, :last, :kind, :reason, :began_at, :now
    from forebay_epoch e join forebay_origin o on o.id = e.origin where e.epoch = :epoch"""

_FORGET = "delete from forebay_past where id <= (select max(id) from forebay_past) - :kept"


def record_drop(tx: Transaction, epoch: str, places: Range) -> None:
    """Keep that a drop is finished; what a damaged disk took is on record by itself (``forebay_lost``)."""
    lost = [
        (row["first"], row["last"])
        for row in tx.execute("select first, last from forebay_lost where epoch = :epoch", epoch=epoch)
    ]
    for first, last in without([places], lost):
        if not tx.execute(_LENGTHEN, epoch=epoch, before=first - 1, last=last, now=_now()):
            _record(tx, epoch, (first, last), "drop", "", None)
    tx.execute(_FORGET, kept=KEPT)


def record_withheld(tx: Transaction, rows: Sequence[Row], outcome: str) -> None:
    """Keep that events are withheld no longer, with the broker's reason and what became of them.

    Args:
        tx: the transaction that deletes them.
        rows: ``epoch`` (its name), ``sequence``, ``reason`` and ``withheld_at`` of each.
        outcome: ``CONFIRMED`` or ``DROPPED``.
    """
    if not rows:
        return
    for row in rows:
        reason = f"{row['reason']}; {outcome}"
        _record(tx, row["epoch"], (row["sequence"], row["sequence"]), "withheld", reason, row["withheld_at"])
    tx.execute(_FORGET, kept=KEPT)


def _record(tx: Transaction, epoch: str, places: Range, kind: str, reason: str, began_at: int | None) -> None:
    tx.execute(
        _RECORD,
        epoch=epoch,
        first=places[0],
        last=places[1],
        kind=kind,
        reason=reason,
        began_at=began_at,
        now=_now(),
    )


def _now() -> int:
    return time.time_ns() // 1_000_000
