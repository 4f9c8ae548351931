"""Dropping: what a lane's budget pushes out becomes ranges of dropped places, in the transaction that needs the room.

A drop is a durable request (O3): its range is kept, and sent with every question, until each needed consumer has passed
it. Rows and withheld bodies are dropped alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from forebay.past import DROPPED, record_withheld
from forebay.protocol.confirmation import DroppedRange
from forebay.sequences import joined
from forebay.transaction import Row, Transaction

PAGE = 256
"""Rows that are looked at together while room is made."""

ALL = 2**62
"""A limit that is none."""

_OLDEST_ROWS = """
    select r.epoch, r.sequence, r.bytes from forebay_epoch e join forebay_outbox r on r.epoch = e.id
    where e.origin = :origin
      and e.id >= coalesce((select f.id from forebay_origin o join forebay_epoch f on f.epoch = o.floor_epoch
                            where o.id = :origin), 0)
    order by e.id, r.sequence limit :limit"""

_OLDEST_WITHHELD = """
    select w.epoch, w.sequence, w.bytes from forebay_epoch e join forebay_withheld w on w.epoch = e.id
    where e.origin = :origin order by e.id, w.sequence limit :limit"""

_ALL = """
    select r.epoch, r.sequence, r.bytes, r.kind, r.key from forebay_outbox r
    where r.epoch in (select id from forebay_epoch where origin = :origin) and r.key is not null
    union all
    select w.epoch, w.sequence, w.bytes, w.kind, w.key from forebay_withheld w
    where w.epoch in (select id from forebay_epoch where origin = :origin) and w.key is not null"""

_REPLACED = f"""
    select epoch, sequence, bytes from
      (select *, row_number() over (partition by kind, key order by epoch desc, sequence desc) as age
       from ({_ALL}) as every) as aged
    where age > 1"""

_OF_KEY = f"select epoch, sequence, bytes from ({_ALL}) as every where kind = :kind and key = :key"

_TAKE_ASIDE = """
    delete from forebay_withheld where epoch = :epoch and sequence = :sequence
    returning (select e.epoch from forebay_epoch e where e.id = forebay_withheld.epoch) as epoch, sequence, reason,
      withheld_at"""

_DROPS = """
    select e.epoch, d.first, d.last from forebay_dropped d join forebay_epoch e on e.id = d.epoch
    join forebay_origin o on o.id = e.origin where o.lane = :lane and o.destination = :destination
    order by e.id, d.first limit :limit"""


def drop_oldest(tx: Transaction, origin: int, need: int) -> int:
    """Drop the oldest events of an origin until they come to ``need`` bytes; return the bytes that went."""
    size = 0
    while size < need:
        oldest: list[Row] = []
        for row in _oldest(tx, origin):
            oldest.append(row)
            size += row["bytes"]
            if size >= need:
                break
        if not oldest:
            break
        _drop(tx, origin, oldest)
    return size


def drop_all(tx: Transaction, origin: int) -> int:
    """Drop every event of an origin; return how many."""
    count = 0
    while oldest := _oldest(tx, origin):
        _drop(tx, origin, oldest)
        count += len(oldest)
    return count


def drop_replaced(tx: Transaction, origin: int) -> int:
    """Drop all events of an origin but the newest of each kind and key; return the bytes that went."""
    return _drop(tx, origin, tx.execute(_REPLACED, origin=origin))


def drop_of_key(tx: Transaction, origin: int, kind: str, key: str, need: int) -> int:
    """Drop all events of one kind and key, because a newer one follows at once; return the bytes that went.

    Where that makes less than ``need`` bytes of room nothing is dropped: the newer one is then not written.
    """
    rows = tx.execute(_OF_KEY, origin=origin, kind=kind, key=key)
    return _drop(tx, origin, rows) if sum(row["bytes"] for row in rows) >= need else 0


def dropped(tx: Transaction, lane: str, limit: int = ALL, destination: str = "") -> list[DroppedRange]:
    """Return the unfinished drops of a lane, the oldest first, at most ``limit`` of them where one is set."""
    return [DroppedRange(*row) for row in _ranges(tx.execute(_DROPS, lane=lane, destination=destination, limit=limit))]


def _ranges(rows: Iterable[Row]) -> Iterator[tuple[str, int, int]]:
    return ((row["epoch"], row["first"], row["last"]) for row in rows)


def _oldest(tx: Transaction, origin: int) -> list[Row]:
    """Return the oldest events, written or withheld, in order; what is behind the last of a full page is left out."""
    rows = tx.execute(_OLDEST_ROWS, origin=origin, limit=PAGE)
    aside = tx.execute(_OLDEST_WITHHELD, origin=origin, limit=PAGE)
    return sorted([*rows, *aside], key=lambda row: (row["epoch"], row["sequence"]))[:PAGE]


def _drop(tx: Transaction, origin: int, rows: list[Row]) -> int:
    places = [{"epoch": row["epoch"], "sequence": row["sequence"]} for row in rows]
    tx.executemany("delete from forebay_outbox where epoch = :epoch and sequence = :sequence", places)
    if tx.execute("select 1 as some from forebay_withheld limit 1"):  # as nearly never
        record_withheld(tx, [row for place in places for row in tx.execute(_TAKE_ASIDE, **place)], DROPPED)
    for epoch in dict.fromkeys(row["epoch"] for row in rows):
        sequences = [row["sequence"] for row in rows if row["epoch"] == epoch]
        for first, last in joined((sequence, sequence) for sequence in sequences):
            _record(tx, epoch, first, last)
    size = sum(int(row["bytes"]) for row in rows)
    tx.execute(
        "update forebay_origin set bytes = bytes - :size, dropped = dropped + :count where id = :origin",
        size=size,
        count=len(rows),
        origin=origin,
    )
    return size


def _record(tx: Transaction, epoch: int, first: int, last: int) -> None:
    """Keep a dropped range, in one with its neighbours."""
    before = tx.execute(
        "delete from forebay_dropped where epoch = :epoch and last = :end and first ="
        " (select max(first) from forebay_dropped where epoch = :epoch and first <= :end) returning first",
        epoch=epoch,
        end=first - 1,
    )
    behind = tx.execute(
        "delete from forebay_dropped where epoch = :epoch and first = :begin returning last",
        epoch=epoch,
        begin=last + 1,
    )
    tx.execute(
        "insert into forebay_dropped (epoch, first, last) values (:epoch, :first, :last)",
        epoch=epoch,
        first=before[0]["first"] if before else first,
        last=behind[0]["last"] if behind else last,
    )
