"""The books of a lane, for each consumer that needs it: written = confirmed + pending + dropped + withheld (O3).

They balance at every moment. They are counted, not subtracted: what is pending are the rows that are there, so that an
event that is nowhere shows as books that do not balance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from forebay.freeing import standing
from forebay.identity import Place
from forebay.protocol.confirmation import Confirmations
from forebay.sequences import Range, without
from forebay.transaction import Transaction
from forebay.withholding import listed

_ORIGIN = """
    select o.id, o.written, o.confirmed, o.dropped,
      (select count(*) from forebay_epoch e join forebay_outbox r on r.epoch = e.id where e.origin = o.id) as events
    from forebay_origin o where o.lane = :lane and o.destination = :destination"""

_BETWEEN = """
    select count(*) as events from forebay_outbox where epoch = (select id from forebay_epoch where epoch = :epoch)
      and sequence between :first and :last"""

_APPLIED = "select consumer, events from forebay_applied where origin = :origin"


Missed = Mapping[str, Mapping[str, Sequence[Range]]]
"""Per consumer and epoch, the places that it has read past without meeting them, as of its latest answer."""


class Books(msgspec.Struct, frozen=True):
    """What became of a lane's events, as one consumer has it.

    Attributes:
        written: since the store began.
        confirmed: the consumer has the event, whether or not it is still here.
        pending: on the disk, and not confirmed.
        destination: ``<node>/<service>`` of commands, whose ``consumer`` is their receiver; empty for events.
        missed: those of them that the consumer has read past without meeting them; they are sent again.
        dropped: pushed out by the budget before the consumer had it.
        withheld: beside the outbox, because the broker refuses it, and not confirmed.
    """

    lane: str
    consumer: str
    written: int
    confirmed: int
    pending: int
    dropped: int
    withheld: int
    missed: int = 0
    destination: str = ""

    @property
    def balanced(self) -> bool:
        """Whether every written event is in one of the four."""
        return self.written == self.confirmed + self.pending + self.dropped + self.withheld


def read_books(
    tx: Transaction,
    lanes: Sequence[str],
    consumers: Mapping[str, Confirmations],
    missed: Missed,
    destination: str = "",
) -> list[Books]:
    """Return the books of lanes for each consumer, from one snapshot of the disk and the latest answers."""
    return [
        _book(tx, lane, destination, consumer, known, missed.get(consumer, {}))
        for lane in lanes
        for consumer, known in consumers.items()
    ]


def keep_books(tx: Transaction, books: Sequence[Books], as_of: int) -> None:
    """Keep the books for whoever looks into the database; ``as_of`` is milliseconds of wall time."""
    for book in books:
        tx.execute(
            "insert into forebay_book (origin, consumer, confirmed, pending, missed, dropped, withheld, as_of)"
            " select id, :consumer, :confirmed, :pending, :missed, :dropped, :withheld, :as_of from forebay_origin"
            " where lane = :lane and destination = :destination"
            " on conflict (origin, consumer) do update set confirmed = excluded.confirmed, pending = excluded.pending,"
            " missed = excluded.missed, dropped = excluded.dropped, withheld = excluded.withheld,"
            " as_of = excluded.as_of",
            **{name: value for name, value in msgspec.structs.asdict(book).items() if name != "written"},
            as_of=as_of,
        )


def _book(
    tx: Transaction,
    lane: str,
    destination: str,
    consumer: str,
    known: Confirmations,
    missed: Mapping[str, Sequence[Range]],
) -> Books:
    origin = tx.execute(_ORIGIN, lane=lane, destination=destination)[0]
    rows = applied = again = 0
    for epoch in standing(tx, lane, destination):
        # Counted by few statements: all rows that were passed, without those that were passed without their event.
        rows += _rows(tx, epoch.epoch, 1, known.passed_upto(epoch.epoch))
        for first, last in without(known.lacking(epoch.epoch), epoch.aside):
            rows -= _rows(tx, epoch.epoch, first, last) if last >= epoch.first else 0
        again += sum(_rows(tx, epoch.epoch, first, last) for first, last in missed.get(epoch.epoch, ()))
        applied += sum(known.applied(epoch.epoch, first, last) for first, last in epoch.dropped)
    for row in tx.execute(_APPLIED, origin=origin["id"]):
        applied += row["events"] if row["consumer"] == consumer else 0
    aside = [known.confirmed(Place(place.epoch, place.sequence)) for place, _ in listed(tx, lane, destination)]
    return Books(
        lane=lane,
        consumer=consumer,
        written=origin["written"],
        confirmed=origin["confirmed"] + rows + applied + sum(aside),
        pending=origin["events"] - rows,
        dropped=origin["dropped"] - applied,
        withheld=len(aside) - sum(aside),
        missed=min(again, origin["events"] - rows),
        destination=destination,
    )


def _rows(tx: Transaction, epoch: str, first: int, last: int) -> int:
    return int(tx.execute(_BETWEEN, epoch=epoch, first=first, last=last)[0]["events"]) if last >= first else 0
