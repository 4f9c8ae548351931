"""Freeing: what all needed consumers have passed leaves the outbox as a prefix of its origin, and the floor follows.

A prefix is made of rows, of drops (O3) and of withheld places (O4): a row goes when it is confirmed, a drop when all
have passed it, and a withheld place is stepped over, its body stays beside the outbox until that is confirmed too.
These functions work in the transaction that they are given; what is confirmed, the caller knows. They concern one
origin: a lane's events, or its commands for a ``destination``.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal, NamedTuple

from forebay.crash_points import reach
from forebay.identity import Place
from forebay.past import record_drop
from forebay.protocol.confirmation import ChainLink
from forebay.sequences import Range, joined
from forebay.transaction import Row, Transaction

_OF_LANE = "(select id from forebay_origin where lane = :lane and destination = :destination)"

_FLOOR_ID = """
    coalesce((select f.id from forebay_origin o join forebay_epoch f on f.epoch = o.floor_epoch
              where o.lane = :lane and o.destination = :destination), 0)"""

_FIRST_ROW = f"""
    select e.id, e.epoch, r.sequence as first, e.last from forebay_epoch e join forebay_outbox r on r.epoch = e.id
    where e.origin = {_OF_LANE} and e.id >= {_FLOOR_ID} order by e.id, r.sequence limit 1"""

_FIRST_DROP = f"""
    select e.id, e.epoch, d.first, d.last from forebay_epoch e join forebay_dropped d on d.epoch = e.id
    where e.origin = {_OF_LANE} order by e.id, d.first limit 1"""

_FIRST_WITHHELD = f"""
    select e.id, e.epoch, w.sequence as first, w.sequence as last
    from forebay_epoch e join forebay_withheld w on w.epoch = e.id
    where e.origin = {_OF_LANE} and w.passed = 0 order by e.id, w.sequence limit 1"""

_STANDING = """
    select e.id, e.epoch, e.last, o.floor_epoch, o.floor_sequence
    from forebay_epoch e join forebay_origin o on o.id = e.origin
    where o.lane = :lane and o.destination = :destination
      and (exists (select 1 from forebay_outbox r where r.epoch = e.id)
           or exists (select 1 from forebay_dropped d where d.epoch = e.id)
           or exists (select 1 from forebay_withheld w where w.epoch = e.id))
    order by e.id"""

_CHAIN = f"""
    select epoch, prev from (
      select e.id, e.epoch, e.prev from forebay_epoch e where e.origin = {_OF_LANE} and e.id >= :oldest
      order by e.id desc limit :limit) as newest
    order by id"""

CHAIN_LIMIT = 5000
"""Links of a chain, at most, the newest: about half a megabyte of a question."""

_FREE = """
    delete from forebay_outbox where epoch = (select id from forebay_epoch where epoch = :epoch) and sequence in
      (select r.sequence from forebay_outbox r join forebay_epoch e on e.id = r.epoch
       where e.epoch = :epoch and r.sequence <= :upto order by r.sequence limit :limit)
    returning bytes, sequence"""


class Head(NamedTuple):
    """The oldest part of a lane that the floor has not passed; of rows, ``last`` is before the next other part."""

    what: Literal["rows", "drop", "withheld"]
    epoch: str
    first: int
    last: int


class Freed(NamedTuple):
    """What left the disk."""

    events: int
    size: int


class Standing(NamedTuple):
    """An epoch of which something is still here.

    Attributes:
        first: the lowest place that the floor has not passed.
        last: the last place written.
        dropped, withheld: the places in it that are none of its rows; drops and bodies below ``first`` too.
    """

    epoch: str
    first: int
    last: int
    dropped: list[Range]
    withheld: list[Range]

    @property
    def aside(self) -> list[Range]:
        """The places that are here in another form than a row's."""
        return joined([*self.dropped, *self.withheld])


def head(tx: Transaction, lane: str, destination: str = "") -> Head | None:
    """Return the oldest part of a lane, or None where nothing is left to pass."""
    parts: dict[Literal["rows", "drop", "withheld"], Row] = {}
    if row := tx.execute(_FIRST_ROW, lane=lane, destination=destination):
        parts["rows"] = row[0]
    if row := tx.execute(_FIRST_DROP, lane=lane, destination=destination):
        parts["drop"] = row[0]
    if row := tx.execute(_FIRST_WITHHELD, lane=lane, destination=destination):
        parts["withheld"] = row[0]
    if not parts:
        return None
    what = min(parts, key=lambda each: (parts[each]["id"], parts[each]["first"]))
    oldest = parts[what]
    others = [row["first"] for part, row in parts.items() if part != what and row["id"] == oldest["id"]]
    last = min([oldest["last"], *(first - 1 for first in others)]) if what == "rows" else oldest["last"]
    return Head(what, oldest["epoch"], oldest["first"], last)


def free(tx: Transaction, lane: str, epoch: str, upto: int, *, limit: int, destination: str = "") -> Freed:
    """Free at most ``limit`` rows of an epoch up to a sequence, raise the floor and return what went.

    The caller frees only a prefix of the whole origin (O1): nothing older is left, row, drop or withheld.
    """
    reach("free.begun")
    gone = tx.execute(_FREE, epoch=epoch, upto=upto, limit=limit)
    if gone:
        reach("free.deleted")
        _count(tx, lane, destination, gone)
        _raise_floor(tx, lane, destination, epoch, max(row["sequence"] for row in gone))
        reach("free.counted")
    return Freed(len(gone), sum(row["bytes"] for row in gone))


def shed(tx: Transaction, lane: str, upto: Place, need: int, destination: str = "") -> int:
    """Free confirmed rows for want of room: of the oldest, up to a place, until ``need`` bytes; return the bytes."""
    size = 0
    while size < need and (oldest := head(tx, lane, destination)) is not None and oldest.what == "rows":
        last = min(oldest.last, upto.sequence) if oldest.epoch == upto.epoch else oldest.last
        if last < oldest.first or _id(tx, oldest.epoch) > _id(tx, upto.epoch):
            break
        before = size
        rows = tx.execute(
            "select r.sequence, r.bytes from forebay_outbox r join forebay_epoch e on e.id = r.epoch"
            " where e.epoch = :epoch and r.sequence <= :last order by r.sequence limit 256",
            epoch=oldest.epoch,
            last=last,
        )
        for row in rows:
            size += row["bytes"]
            last = row["sequence"]
            if size >= need:
                break
        free(tx, lane, oldest.epoch, last, limit=len(rows), destination=destination)
        if size == before:
            break
    return size


def rows_above(tx: Transaction, lane: str, share: float, destination: str = "") -> int:
    """Return how many rows a lane's events have above so many bytes, by their average size."""
    row = tx.execute(
        "select o.bytes, o.written - o.confirmed - o.dropped as events from forebay_origin o"
        " where o.lane = :lane and o.destination = :destination",
        lane=lane,
        destination=destination,
    )[0]
    return int((row["bytes"] - share) / (row["bytes"] / row["events"])) + 1 if row["bytes"] > share else 0


def pass_drop(
    tx: Transaction, lane: str, drop: Range, epoch: str, applied: Mapping[str, int], destination: str = ""
) -> None:
    """Finish a drop, or the beginning of one: all needed consumers have passed it; ``applied`` is what each had."""
    first, upto = drop
    gone = tx.execute(
        "delete from forebay_dropped where epoch = (select id from forebay_epoch where epoch = :epoch)"
        " and first = :first returning epoch, last",
        epoch=epoch,
        first=first,
    )
    if not gone:
        return
    if gone[0]["last"] > upto:
        tx.execute(
            "insert into forebay_dropped (epoch, first, last) values (:epoch, :first, :last)",
            epoch=gone[0]["epoch"],
            first=upto + 1,
            last=gone[0]["last"],
        )
    record_drop(tx, epoch, (first, min(upto, gone[0]["last"])))
    for consumer, events in applied.items():
        if events:
            tx.execute(
                f"insert into forebay_applied (origin, consumer, events) values ({_OF_LANE}, :consumer, :events)"
                " on conflict (origin, consumer) do update set events = forebay_applied.events + excluded.events",
                lane=lane,
                destination=destination,
                consumer=consumer,
                events=events,
            )
    _raise_floor(tx, lane, destination, epoch, upto)


def pass_withheld(tx: Transaction, lane: str, place: Place, destination: str = "") -> None:
    """Let the floor pass a withheld place: all needed consumers have; its body stays."""
    tx.execute(
        "update forebay_withheld set passed = 1 where sequence = :sequence"
        " and epoch = (select id from forebay_epoch where epoch = :epoch)",
        epoch=place.epoch,
        sequence=place.sequence,
    )
    _raise_floor(tx, lane, destination, place.epoch, place.sequence)


def floor(tx: Transaction, lane: str, destination: str = "") -> str | None:
    """Return the place up to which this node no longer has the lane's events (O1)."""
    rows = tx.execute(
        f"select floor_epoch, floor_sequence from forebay_origin where id = {_OF_LANE}",
        lane=lane,
        destination=destination,
    )
    row = rows[0] if rows else None
    return None if row is None or row["floor_epoch"] is None else f"{row['floor_epoch']}-{row['floor_sequence']}"


def standing(tx: Transaction, lane: str, destination: str = "") -> list[Standing]:
    """Return the epochs of a lane of which rows, drops or withheld events are still here, the oldest first."""
    return [
        Standing(
            row["epoch"],
            row["floor_sequence"] + 1 if row["floor_epoch"] == row["epoch"] else 1,
            row["last"],
            [
                (each["first"], each["last"])
                for each in tx.execute(
                    "select first, last from forebay_dropped where epoch = :id order by first", id=row["id"]
                )
            ],
            joined(
                (each["sequence"], each["sequence"])
                for each in tx.execute("select sequence from forebay_withheld where epoch = :id", id=row["id"])
            ),
        )
        for row in tx.execute(_STANDING, lane=lane, destination=destination)
    ]


def chain(
    tx: Transaction, lane: str, unpassed: Collection[str] | None = None, destination: str = ""
) -> list[ChainLink]:
    """Return the lane's epochs down to the oldest that a needed consumer has not passed, the newest last (O2).

    Args:
        tx: the transaction.
        lane: whose epochs.
        unpassed: per consumer the oldest epoch that it has not passed; None where one has not said so yet: then all.
        destination: of commands.
    """
    if unpassed is None:
        oldest = 0
    else:
        standing_here = [row["id"] for row in tx.execute(_STANDING + " limit 1", lane=lane, destination=destination)]
        oldest = min([*standing_here, *(_id(tx, epoch) for epoch in unpassed)], default=0)
    rows = tx.execute(_CHAIN, lane=lane, destination=destination, oldest=oldest, limit=CHAIN_LIMIT)
    return [ChainLink(row["epoch"], row["prev"]) for row in rows]


def _id(tx: Transaction, epoch: str) -> int:
    rows = tx.execute("select id from forebay_epoch where epoch = :epoch", epoch=epoch)
    return int(rows[0]["id"]) if rows else 0


def _count(tx: Transaction, lane: str, destination: str, gone: list[Row]) -> None:
    tx.execute(
        "update forebay_origin set bytes = bytes - :size, confirmed = confirmed + :count"
        " where lane = :lane and destination = :destination",
        size=sum(row["bytes"] for row in gone),
        count=len(gone),
        lane=lane,
        destination=destination,
    )


def _raise_floor(tx: Transaction, lane: str, destination: str, epoch: str, sequence: int) -> None:
    """Raise the floor to a place; one that it has passed already (a body that was dropped late) changes nothing."""
    tx.execute(
        "update forebay_origin set floor_epoch = :epoch, floor_sequence = :sequence"
        f" where lane = :lane and destination = :destination and ({_FLOOR_ID} < :id"
        " or (floor_epoch = :epoch and floor_sequence < :sequence))",
        lane=lane,
        destination=destination,
        epoch=epoch,
        sequence=sequence,
        id=_id(tx, epoch),
    )
