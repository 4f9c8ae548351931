"""The gateway's route, and what it does in the store.

A client's source and id are its idempotency key: a client that got no answer sends the same event, or the same batch,
again. They are remembered for seven days (``MEMORY``).
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import repeat
from typing import Any

import msgspec
from litestar import Request

from edge.gateway.arrivals import Arrivals, read
from edge.gateway.operation import EventsOperation
from forebay import Lane, Service, UnitOfWork, UnitStore
from forebay.errors import ConstraintError
from forebay.problems import ProblemError, phrase

LANES = (Lane("ledger"), Lane("telemetry"))
DEFAULT_LANE = "ledger"
"""Where types go of which nothing is said: it blocks, so nothing is dropped unasked."""

MEMORY = timedelta(days=7)
"""How long the clients' ids are remembered, at least."""

_FORGET_STEP = 16
"""Old ids that one write forgets beside as many as it brings: no write pays for a long silence."""

ASIDE = 64 * 1024
"""Bytes of a body from which it is decoded on another thread: the event loop answers others meanwhile."""

_COLUMNS = ("name", "content", "message_id", "accepted_at")


class GatewaySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[gateway]``: ``lanes`` says the lane of a type, as in ``"com.example.reading" = "telemetry"``."""

    lanes: dict[str, str] = {}

    def __post_init__(self) -> None:
        known = [lane.name for lane in LANES]
        for event_type, lane in self.lanes.items():
            if lane not in known:
                raise ValueError(f"lanes: {event_type!r} goes to {lane!r}, the lanes are {' and '.join(known)}")

    def lane_of(self, event_type: str) -> str:
        """Return the lane of a type."""
        return self.lanes.get(event_type, DEFAULT_LANE)


class Accepted(msgspec.Struct, frozen=True):
    """What became of a request's events: ``ids`` are their message ids in order, a duplicate's is the first one's."""

    accepted: int
    duplicates: int
    ids: list[str]


gateway = Service("gateway", lanes=LANES, settings=GatewaySettings)


@gateway.post("/events", problems=[409, 413, 415, 422, 503, 507], operation_class=EventsOperation)
async def take_events(request: Request[Any, Any, Any], store: UnitStore, settings: GatewaySettings) -> Accepted:
    """Take one event or a batch; it answers when all are on disk. A batch is taken whole or refused whole."""
    body = await request.body()
    headers = request.scope["headers"]
    if len(body) < ASIDE:
        arrivals = read(headers, body, settings.lane_of)
    else:
        loop = asyncio.get_running_loop()
        arrivals = await loop.run_in_executor(_aside(), read, headers, body, settings.lane_of)
    return await take(store, arrivals)


@cache
def _aside() -> ThreadPoolExecutor:
    """Return the one thread on which large bodies are decoded, one after the other.

    Two that share the interpreter end at the same time, and are then written at the same time, while nothing is
    decoded. One after the other, the second is decoded while the first is written.
    """
    return ThreadPoolExecutor(1, thread_name_prefix="gateway-reader")


async def take(store: UnitStore, arrivals: Arrivals) -> Accepted:
    """Write a request's events in one unit of work.

    Raises:
        ProblemError: 409, an event of the same source and id has other contents.
        BudgetSpentError: a lane's budget is spent.
    """
    try:
        return await store.write(accept_new, arrivals)
    except ConstraintError:  # of the primary key: an event is there already, and nothing of the request was kept
        return await store.write(accept, arrivals)


def accept_new(tx: UnitOfWork, arrivals: Arrivals) -> Accepted:
    """Write events that are all new into the outbox.

    Raises:
        ConstraintError: one of them is there already, or is in the request twice.
        BudgetSpentError: a lane's budget is spent.
    """
    now = datetime.now(UTC)
    ids = [""] * len(arrivals.names)
    for lane in set(arrivals.lanes):
        of_lane = [at for at, its in enumerate(arrivals.lanes) if its == lane]
        place = tx.extend(lane, [arrivals.entries[at] for at in of_lane])
        for sequence, at in enumerate(of_lane, place.sequence):
            ids[at] = f"{place.epoch}-{sequence}"
    accepted_at = repeat(int(now.timestamp()), len(ids))
    tx.insert_many("client_id", _COLUMNS, list(zip(arrivals.names, arrivals.contents, ids, accepted_at, strict=True)))
    forget(tx, now - MEMORY, len(ids) + _FORGET_STEP)
    return Accepted(len(ids), 0, ids)


def accept(tx: UnitOfWork, arrivals: Arrivals) -> Accepted:
    """Write the events into the outbox but for those that are there already.

    Raises:
        ProblemError: 409, an event of the same source and id has other contents.
        BudgetSpentError: a lane's budget is spent.
    """
    now = datetime.now(UTC)
    ids: list[str] = []
    duplicates = 0
    for at, name in enumerate(arrivals.names):
        content = arrivals.contents[at]
        known = tx.execute("select content, message_id from client_id where name = :name", name=name)
        if not known:
            message_id = str(tx.extend(arrivals.lanes[at], [arrivals.entries[at]]))
            tx.insert_many("client_id", _COLUMNS, [(name, content, message_id, int(now.timestamp()))])
            ids.append(message_id)
        elif known[0]["content"] == content:
            duplicates += 1
            ids.append(known[0]["message_id"])
        else:
            raise _conflict(arrivals, at)
    forget(tx, now - MEMORY, len(ids) + _FORGET_STEP)
    return Accepted(len(ids) - duplicates, duplicates, ids)


def _conflict(arrivals: Arrivals, at: int) -> ProblemError:
    source, name = arrivals.source_and_id(at)
    detail = f"event {name!r} of {source!r} was accepted before with other contents"
    field = f"[{at}]" if arrivals.many else "id"
    return ProblemError(409, phrase(409), detail, field, source=source, id=name)


def forget(tx: UnitOfWork, before: datetime, limit: int) -> None:
    """Forget at most ``limit`` ids that were accepted before a time, the oldest first."""
    tx.execute(
        "delete from client_id where name in"
        " (select name from client_id where accepted_at < :before order by accepted_at limit :limit)",
        before=int(before.timestamp()),
        limit=limit,
    )
