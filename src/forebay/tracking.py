"""Where an event is: stored, forwarded, confirmed by whom, each with the time that is known for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Literal

import msgspec

from forebay.confirming import Confirming, Fate
from forebay.identity import Place
from forebay.relay import Relay
from forebay.transaction import Row, Transaction
from forebay.unit_of_work import UnitStore

_ROW = """
    select o.lane, o.destination, e.last, coalesce(r.written_at, w.written_at) as written_at, w.reason,
      case when d.first is null then 0 else 1 end as dropped
    from forebay_epoch e join forebay_origin o on o.id = e.origin
    left join forebay_outbox r on r.epoch = e.id and r.sequence = :sequence
    left join forebay_withheld w on w.epoch = e.id and w.sequence = :sequence
    left join forebay_dropped d on d.epoch = e.id and :sequence between d.first and d.last
    where e.epoch = :epoch"""


class Forwarded(msgspec.Struct, frozen=True):
    """When the broker acknowledged it, at which sequence of the stream or before."""

    at: datetime
    stream_sequence: int


class Confirmed(msgspec.Struct, frozen=True):
    """Whether a consumer confirmed it, and when that was known here first; null where the time is not known.

    ``state`` says more: ``missed`` is read past without meeting it, and sent again; ``dropped`` and ``withheld`` are
    passed without it, or will be.
    """

    confirmed: bool
    at: datetime | None = None
    state: Fate = "pending"


class Whereabouts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Where an event is. One that was freed is ``confirmed`` and no times are known for it any more.

    One that the budget pushed out is ``dropped``, one that the broker refuses for itself ``withheld``, with the
    ``reason``; whether a consumer had it before, its own entry tells. A command has a ``destination``, whose service is
    its one consumer.
    """

    message_id: str
    service: str
    lane: str
    state: Literal["stored", "forwarded", "confirmed", "dropped", "withheld"]
    stored_at: datetime | None = None
    forwarded: Forwarded | None = None
    reason: str | None = None
    destination: str = ""
    consumers: dict[str, Confirmed] = {}


Part = Callable[[str], tuple[Relay, Confirming]]
"""Returns what sends and what asks for a destination; it is empty for events."""


async def find(store: UnitStore, part: Part, place: Place) -> Whereabouts | None:
    """Return where the event or command of this outbox is, or None if it was never written here."""
    row = await store.read(_find, place)
    if row is None or place.sequence > row["last"]:
        return None
    relay, confirming = part(row["destination"])
    # What was dropped, and passed by all, is no row and no range any more: that it was, those who lack it say.
    gone = row["written_at"] is None
    lacking = gone and any(confirming.consumers[name].missing(place) for name in _answered(confirming))
    dropped = bool(row["dropped"]) or lacking
    if gone and not dropped:
        return Whereabouts(
            message_id=str(place),
            service=relay.service,
            lane=row["lane"],
            state="confirmed",
            destination=row["destination"],
        )
    sent = relay.forwarded(row["lane"], place, row["destination"])
    consumers = {
        name: Confirmed(confirmed, None if at is None else _time(at), confirming.fate(place, name, dropped=dropped))
        for name, (confirmed, at) in confirming.whereabouts(place).items()
    }
    # A follower's word alone is not enough: which consumers of the core need it is not known then (S3).
    everywhere = bool(confirming.needed) and all(each.confirmed for each in consumers.values())
    return Whereabouts(
        message_id=str(place),
        service=relay.service,
        lane=row["lane"],
        state=(
            "confirmed"
            if everywhere
            else "dropped"
            if dropped
            else "withheld"
            if row["reason"] is not None
            else "forwarded"
            if sent
            else "stored"
        ),
        stored_at=None if gone else _time(row["written_at"] / 1000),
        forwarded=Forwarded(_time(sent.at), sent.stream_sequence) if sent else None,
        reason=row["reason"],
        destination=row["destination"],
        consumers=consumers,
    )


def _answered(confirming: Confirming) -> list[str]:
    return [name for name in confirming.listed if name in confirming.consumers]


def _find(tx: Transaction, place: Place) -> Row | None:
    rows = tx.execute(_ROW, epoch=place.epoch, sequence=place.sequence)
    return rows[0] if rows else None


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
