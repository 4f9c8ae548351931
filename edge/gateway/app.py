"""The gateway's route, and what it does in the store.

A client's source and id are its idempotency key: a client that got no answer sends the same event, or the same batch,
again. They are remembered for seven days (``MEMORY``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Any

import msgspec
from litestar import Request

from edge.gateway.cloudevents import ClientEvent, read_events
from edge.gateway.operation import EventsOperation
from forebay import Lane, Service, UnitOfWork, UnitStore
from forebay.drafts import Draft, Extra
from forebay.problems import ProblemError, phrase

LANES = (Lane("ledger"), Lane("telemetry"))
DEFAULT_LANE = "ledger"
"""Where types go of which nothing is said: it blocks, so nothing is dropped unasked."""

MEMORY = timedelta(days=7)
"""How long the clients' ids are remembered, at least."""

_FORGET_STEP = 16
"""Old ids that one write forgets beside as many as it brings: no write pays for a long silence."""

_NOT_A_NAME = re.compile(r"[^a-z0-9]")


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[gateway]``: ``lanes`` says the lane of a type, as in ``"com.example.reading" = "telemetry"``."""

    lanes: dict[str, str] = {}

    def __post_init__(self) -> None:
        known = [lane.name for lane in LANES]
        for event_type, lane in self.lanes.items():
            if lane not in known:
                raise ValueError(f"lanes: {event_type!r} goes to {lane!r}, the lanes are {' and '.join(known)}")


class Accepted(msgspec.Struct, frozen=True):
    """What became of a request's events: ``ids`` are their message ids in order, a duplicate's is the first one's."""

    accepted: int
    duplicates: int
    ids: list[str]


gateway = Service("gateway", lanes=LANES, settings=GatewaySettings)


@gateway.post("/events", problems=[409, 413, 415, 422, 503, 507], operation_class=EventsOperation)
async def take_events(request: Request[Any, Any, Any], store: UnitStore, settings: GatewaySettings) -> Accepted:
    """Take one event or a batch; it answers when all are on disk. A batch is taken whole or refused whole."""
    events = read_events(request.scope["headers"], await request.body())
    return await store.write(accept, events, settings.lanes)


def accept(tx: UnitOfWork, events: Sequence[ClientEvent], lanes: Mapping[str, str]) -> Accepted:
    """Write the events into the outbox but for those that are there already.

    Raises:
        ProblemError: 409, an event of the same source and id has other contents.
        BudgetSpentError: a lane's budget is spent.
    """
    now = datetime.now(UTC)
    ids: list[str] = []
    duplicates = 0
    for event in events:
        name = blake2b(msgspec.json.encode((event.source, event.id)), digest_size=16).digest()
        known = tx.execute("select content, message_id from client_event where name = :name", name=name)
        if not known:
            message_id = tx.append(_draft(event, lanes.get(event.type, DEFAULT_LANE), now))
            tx.execute(
                "insert into client_event (name, content, message_id, accepted_at)"
                " values (:name, :content, :message_id, :accepted_at)",
                name=name,
                content=event.content,
                message_id=message_id,
                accepted_at=int(now.timestamp()),
            )
            ids.append(message_id)
        elif known[0]["content"] == event.content:
            duplicates += 1
            ids.append(known[0]["message_id"])
        else:
            detail = f"event {event.id!r} of {event.source!r} was accepted before with other contents"
            raise ProblemError(409, phrase(409), detail, event.where or "id", source=event.source, id=event.id)
    forget(tx, now - MEMORY, len(events) + _FORGET_STEP)
    return Accepted(len(events) - duplicates, duplicates, ids)


def forget(tx: UnitOfWork, before: datetime, limit: int) -> None:
    """Forget at most ``limit`` ids that were accepted before a time, the oldest first."""
    tx.execute(
        "delete from client_event where name in"
        " (select name from client_event where accepted_at < :before order by accepted_at limit :limit)",
        before=int(before.timestamp()),
        limit=limit,
    )


def kind_of(event_type: str) -> str:
    """Return the last token of the subject for a client's type."""
    return _NOT_A_NAME.sub("-", event_type.lower()).strip("-")[:63] or "event"


def _draft(event: ClientEvent, lane: str, now: datetime) -> Draft:
    return Draft(
        lane=lane,
        kind=kind_of(event.type),
        type=event.type,
        body=event.body,
        time=event.time or now,
        key=event.key,
        extra=Extra(id=event.id, source=event.source, content_type=event.content_type, attributes=event.attributes),
    )
