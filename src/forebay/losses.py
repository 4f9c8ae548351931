"""After a salvage: which events the disk took, and books that balance again.

An epoch tells how many places it gave out, the floor what was freed. What lies between and is not there any more is
lost, and these ranges are exact. They are kept for people (``forebay_lost``), and as dropped ranges for the consumers,
which pass them as they pass what a budget pushed out (O3): an event that had reached the core before stays applied.

What cannot be known: the places of an epoch that is unreadable itself, those of a log that is gone together with all
that knew of them, and a bit that was flipped inside a body. The last shows where the row has another size than it was
written with, and to the consumer where the body cannot be decoded.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from forebay.drafts import ROW_BYTES
from forebay.identity import MessageId
from forebay.sequences import Range, joined, without
from forebay.transaction import Row, Transaction

_SIZE = " + ".join(
    [
        "length(body)",
        *(f"coalesce(length(cast({name} as blob)), 0)" for name in ("kind", "type", "key", "cause", "extra")),
    ]
)

_UNSOUND = f"delete from {{table}} where bytes <> {ROW_BYTES} + {_SIZE} or epoch not in (select id from forebay_epoch)"
"""Rows that are not as they were written, and those whose place nobody can name; the set-aside file has them."""

_EPOCHS = """
    select e.id, e.epoch, e.last, o.id as origin, o.lane,
      coalesce(f.id, 0) as floor_id, coalesce(o.floor_sequence, 0) as floor_sequence
    from forebay_epoch e join forebay_origin o on o.id = e.origin
    left join forebay_epoch f on f.epoch = o.floor_epoch
    order by e.id"""

_HELD = """
    select min(sequence) as first, max(sequence) as last from
      (select sequence, sequence - row_number() over (order by sequence) as run from
        (select sequence from forebay_outbox where epoch = :epoch
         union select sequence from forebay_withheld where epoch = :epoch))
    group by run order by first"""

_BOOKS = """
    update forebay_origin set
      bytes = (select coalesce(sum(bytes), 0) from (select epoch, bytes from forebay_outbox
               union all select epoch, bytes from forebay_withheld)
               where epoch in (select id from forebay_epoch where origin = forebay_origin.id)),
      written = max(written, confirmed + dropped + (select count(*) from (select epoch from forebay_outbox
               union all select epoch from forebay_withheld)
               where epoch in (select id from forebay_epoch where origin = forebay_origin.id)))"""


class Lost(NamedTuple):
    """A range of places that the disk took."""

    lane: str
    places: MessageId


def mend(tx: Transaction) -> list[str]:
    """Make the outbox of a salvaged database consistent; return what is known to be lost, for people.

    The new database has this release's schema. Runs in one transaction.
    """
    for table in ("forebay_outbox", "forebay_withheld"):
        tx.execute(_UNSOUND.format(table=table))
    lost: list[Lost] = []
    for epoch in tx.execute(_EPOCHS):
        held = [(row["first"], row["last"]) for row in tx.execute(_HELD, epoch=epoch["id"])]
        last = max([epoch["last"], *(end for _, end in held)])
        tx.execute("update forebay_epoch set last = :last where id = :id", last=last, id=epoch["id"])
        if epoch["id"] < epoch["floor_id"]:
            continue
        dropped = tx.execute("select first, last from forebay_dropped where epoch = :id", id=epoch["id"])
        floor = epoch["floor_sequence"] if epoch["id"] == epoch["floor_id"] else 0
        known = joined([*held, *((row["first"], row["last"]) for row in dropped)])
        missing = without([(floor + 1, last)], known) if floor < last else []
        for first, end in missing:
            lost.append(Lost(epoch["lane"], MessageId(epoch["epoch"], first, end)))
        _record(tx, epoch, missing)
    tx.execute(_BOOKS)
    return [f"{each.lane} {each.places}" for each in lost]


def _record(tx: Transaction, epoch: Row, missing: list[Range]) -> None:
    for first, last in missing:
        tx.execute(
            "insert into forebay_dropped (epoch, first, last) values (:epoch, :first, :last)",
            epoch=epoch["id"],
            first=first,
            last=last,
        )
        tx.execute(
            "insert into forebay_lost (lane, epoch, first, last, found_at)"
            " values (:lane, :epoch, :first, :last, :found_at)",
            lane=epoch["lane"],
            epoch=epoch["epoch"],
            first=first,
            last=last,
            found_at=time.time_ns() // 1_000_000,
        )
        tx.execute(
            "update forebay_origin set dropped = dropped + :count where id = :origin",
            count=last - first + 1,
            origin=epoch["origin"],
        )
