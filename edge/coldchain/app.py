"""The cold chain's routes. What is done in the store stands in ``readings`` and ``alarms``.

A reading is known by its fridge and time: a client that got no answer sends the same readings again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated

import msgspec
from litestar import Response
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from edge.coldchain.alarms import Alarm, Limit, list_alarms, set_limit
from edge.coldchain.readings import FridgeState, Reading, find_fridge, list_fridges, record_readings
from forebay import Lane, Service, UnitStore
from forebay.problems import ProblemError

MOST_READINGS = 1000
"""Readings of one request."""

MAX_ROWS = 1000
"""Rows of one answer, at most."""

# Alarms go first and are never dropped; of the readings the oldest go where a link is away for too long. Readings go in
# frames: packed, one takes about a thirtieth of its bytes alone.
coldchain = Service(
    "coldchain",
    lanes=[
        Lane("ledger", budget="8MiB"),
        Lane("telemetry", budget="64MiB", when_full="drop-oldest", flush_after="1s", frames=True),
    ],
)


class NewReadings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Readings, one or many, in any order."""

    readings: Annotated[list[Reading], msgspec.Meta(min_length=1, max_length=MOST_READINGS)]


class RecordedReadings(msgspec.Struct, frozen=True):
    """How many readings are new, how many were recorded before, and the message ids of all, in the request's order."""

    recorded: int
    repeated: int
    events: list[str]


@coldchain.post(
    "/readings",
    problems=[409, 413, 415, 422, 503, 507],
    responses={
        200: ResponseSpec(RecordedReadings, generate_examples=False, description="All of them were recorded before")
    },
)
async def post_readings(data: NewReadings, store: UnitStore) -> Response[RecordedReadings]:
    """Record readings, all or none; it answers when they are on disk, with their events and alarms."""
    events, new = await store.write(record_readings, data.readings, datetime.now(UTC))
    body = RecordedReadings(new, len(events) - new, events)
    return Response(body, status_code=201 if new else 200)


@coldchain.post("/limits", status_code=200, problems=[413, 415, 422, 503, 507])
async def post_limit(data: Limit, store: UnitStore) -> FridgeState:
    """Set how warm a fridge may become, or take its limit away; the latest reading is judged by it at once."""
    return await store.write(set_limit, data)


@coldchain.get("/fridges", problems=[503])
async def get_fridges(store: UnitStore) -> list[FridgeState]:
    """List the fridges with their latest readings, limits and alarms."""
    return await store.read(list_fridges)


@coldchain.get("/fridges/{fridge:str}", problems=[404, 503])
async def get_fridge(fridge: FromPath[str], store: UnitStore) -> FridgeState:
    """Give one fridge's latest reading, limit and alarm."""
    found = await store.read(find_fridge, fridge)
    if found is None:
        raise ProblemError(404, "Not Found", f"no fridge {fridge!r} was read here", "fridge")
    return found


@coldchain.get("/alarms", problems=[422, 503])
async def get_alarms(
    store: UnitStore,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_ROWS, description="Alarms, at most.")] = 100,
) -> list[Alarm]:
    """List the alarms, the latest first; one that has no ``cleared_at`` is still raised."""
    return await store.read(list_alarms, limit)
