"""The history of aggregates: one row for each event, kept for ever, in the order in which they were recorded.

A row has a body of its own beside the outbox's, which is gone once the event is confirmed. With one body for both, an
event of 70 bytes would take a fifth less disk until then, one of 400 bytes a third, and nothing less from then on; and
every part that drops, withholds, frees or salvages an event would have to know of it. On SQLite a row takes about 100
bytes beside its body; what is there twice is at most the lane's budget.
"""

from __future__ import annotations

import time as wall
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from forebay.transaction import Row, Transaction

PAGE = 1000
"""Rows that are read together."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)

_LAST = """
    select version, recorded_at from forebay_history
    where name = :name and instance = :instance order by version desc limit 1"""

_WRITE = """
    insert into forebay_history
      (name, instance, version, kind, revision, time, recorded_at, message_id, cause, body)
    values (:name, :instance, :version, :kind, :revision, :time, :recorded_at, :message_id, :cause, :body)"""

_READ = """
    select version, kind, revision, time, recorded_at, message_id, cause, body from forebay_history
    where name = :name and instance = :instance and version >= :first{condition}
    order by version limit :limit"""

_ALL = _READ.format(condition="")
_UP_TO = _READ.format(condition=" and version <= :upto")
_HAPPENED = _READ.format(condition=" and time <= :upto")

_KNOWN = """
    select coalesce(max(version), 0) as version from forebay_history
    where name = :name and instance = :instance and recorded_at <= :until"""


class Instance(NamedTuple):
    """One aggregate: the name of its type, and its id."""

    name: str
    id: str

    def __str__(self) -> str:
        return f"{self.name} {self.id!r}"


class Recorded(NamedTuple):
    """One event as it goes into a history; ``kind`` and ``revision`` are its type's, ``time`` is aware."""

    kind: str
    revision: int
    time: datetime
    message_id: str
    cause: str | None
    body: bytes


class Last(NamedTuple):
    """Where a history ends; ``recorded_at`` is in milliseconds since 1970."""

    version: int = 0
    recorded_at: int = 0


def last(tx: Transaction, of: Instance) -> Last:
    """Return where a history ends; version 0 where there is none."""
    rows = tx.execute(_LAST, name=of.name, instance=of.id)
    return Last(rows[0]["version"], rows[0]["recorded_at"]) if rows else Last()


def write(tx: Transaction, of: Instance, before: Last, event: Recorded) -> Last:
    """Write the event that follows on ``before``, in the transaction of its outbox row; return where it ends now.

    Raises:
        ConstraintError: that version was written meanwhile.
    """
    after = Last(before.version + 1, max(before.recorded_at, wall.time_ns() // 1_000_000))
    tx.execute(
        _WRITE,
        name=of.name,
        instance=of.id,
        version=after.version,
        kind=event.kind,
        revision=event.revision,
        time=microseconds(event.time),
        recorded_at=after.recorded_at,
        message_id=event.message_id,
        cause=event.cause,
        body=event.body,
    )
    return after


def read(
    tx: Transaction, of: Instance, first: int, *, last: int | None = None, happened_by: datetime | None = None
) -> Iterator[Row]:
    """Read a history from version ``first`` on, in the order of recording, a page at a time.

    Args:
        tx: the transaction.
        of: whose.
        first: the version to begin with.
        last: the version to end with.
        happened_by: leave out what happened later than this; ``last`` is then without effect.
    """
    sql, upto = _ALL, None
    if happened_by is not None:
        sql, upto = _HAPPENED, microseconds(happened_by)
    elif last is not None:
        sql, upto = _UP_TO, last
    bounds = {} if upto is None else {"upto": upto}
    while True:
        rows = tx.execute(sql, name=of.name, instance=of.id, first=first, limit=PAGE, **bounds)
        yield from rows
        if len(rows) < PAGE:
            return
        first = rows[-1]["version"] + 1


def version_known(tx: Transaction, of: Instance, until: datetime) -> int:
    """Return the version that a history had come to at a time of recording; 0 before its beginning."""
    row = tx.execute(_KNOWN, name=of.name, instance=of.id, until=microseconds(until) // 1000)[0]
    return int(row["version"])


def microseconds(moment: datetime) -> int:
    """Return an aware time as microseconds since 1970.

    Raises:
        ValueError: it has no offset.
    """
    if moment.tzinfo is None:
        raise ValueError(f"time {moment} has no offset from UTC")
    return (moment - _EPOCH) // _MICROSECOND


def moment(microseconds: int) -> datetime:
    """Return microseconds since 1970 as a time of UTC."""
    return _EPOCH + microseconds * _MICROSECOND
