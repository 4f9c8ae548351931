"""``/ops``: what could not take effect or be sent and what is missing, over HTTP; and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from litestar import Router, get, post
from litestar.params import FromPath, JSONBody, QueryParameter

from forebay.gaps import Missing, holes, recorded
from forebay.identity import NAME
from forebay.intents import CloseHole, Discard, Intents, Retry, RetryWithheld
from forebay.json_body import JsonBody, json_only
from forebay.problems import ProblemError, invalid, phrase, problem_responses
from forebay.redrive import listed
from forebay.running import RunningService

MAX_ROWS = 1000
"""Rows of one answer, at most."""


class ParkedEvent(msgspec.Struct, frozen=True, kw_only=True):
    """An event that waits in the parking.

    Attributes:
        reason: a word; ``detail`` is a sentence.
        alone: it blocks no other event.
        wanted: its body is still on the node.
        retry_at: milliseconds since 1970; null where it waits behind another, or for somebody to ask.
    """

    id: int
    reason: str
    detail: str
    message_id: str | None
    node: str | None
    service: str | None
    lane: str
    key: str | None
    attempts: int
    alone: bool
    wanted: bool
    parked_at: int
    retry_at: int | None


class Outcome(msgspec.Struct, frozen=True):
    """What became of a request, in a sentence."""

    outcome: str


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Why something is given up; it stays on record."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


class Hole(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An open hole, as the list of gaps shows it, and why its events will never come."""

    node: Annotated[str, msgspec.Meta(pattern=f"^{NAME.pattern}$")]
    service: Annotated[str, msgspec.Meta(pattern=f"^{NAME.pattern}$")]
    epoch: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    first: Annotated[int, msgspec.Meta(ge=1, lt=10**18)]
    last: Annotated[int, msgspec.Meta(ge=1, lt=10**18)]
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1000)]


Limit = Annotated[int, QueryParameter(ge=1, le=MAX_ROWS, description="Rows, at most.")]


def operations(services: Sequence[RunningService]) -> Router:
    """Return the routes below ``/ops`` for the services of a process."""
    consumers = {service.name: service for service in services if service.declared.reads}
    senders = {service.name: service for service in services if service.relay is not None}

    def found(name: str) -> tuple[RunningService, Intents]:
        service = consumers.get(name)
        if service is None or service.intents is None:
            raise ProblemError(404, phrase(404), f"no consumer {name!r} runs here", field="consumer")
        return service, service.intents

    @get("/{consumer:str}/parked", responses=problem_responses([404, 422, 503]))
    async def list_parked(consumer: FromPath[str], limit: Limit = 100) -> list[ParkedEvent]:
        """Return what is parked, the longest waiting first."""
        rows = await found(consumer)[0].store.read(listed, limit)
        return [
            msgspec.convert({name: row[name] for name in ParkedEvent.__struct_fields__}, ParkedEvent, strict=False)
            for row in rows
        ]

    @post("/{consumer:str}/parked/{id:int}/retry", status_code=200, responses=problem_responses([404, 422, 503]))
    async def retry_parked(consumer: FromPath[str], id: FromPath[int]) -> Outcome:  # noqa: A002 - its name in HTTP
        """Try a parked event again now."""
        return Outcome(await found(consumer)[1].ask(Retry(_id(id))))

    @post(
        "/{consumer:str}/parked/{id:int}/discard",
        status_code=200,
        dto=JsonBody,
        guards=[json_only],
        responses=problem_responses([400, 404, 415, 422, 503]),
    )
    async def discard_parked(consumer: FromPath[str], id: FromPath[int], data: JSONBody[Reason]) -> Outcome:  # noqa: A002
        """Give a parked event up, on record; the later events of its key go on."""
        return Outcome(await found(consumer)[1].ask(Discard(_id(id), data.reason)))

    @get("/{consumer:str}/gaps", responses=problem_responses([404, 422, 503]))
    async def list_gaps(consumer: FromPath[str], limit: Limit = 100) -> list[Missing]:
        """Return the open holes, and the gaps and drops on record, the latest first."""
        store = found(consumer)[0].store
        return await store.read(lambda tx: [*holes(tx)[:limit], *recorded(tx, limit=limit)])

    @post(
        "/{consumer:str}/gaps",
        status_code=200,
        dto=JsonBody,
        guards=[json_only],
        responses=problem_responses([400, 404, 415, 422, 503]),
    )
    async def close_gap(consumer: FromPath[str], data: JSONBody[Hole]) -> Outcome:
        """Turn an open hole into a gap: what waits behind it takes effect, a late arrival is parked."""
        hole = CloseHole(data.node, data.service, data.epoch, data.first, data.last, data.reason)
        return Outcome(await found(consumer)[1].ask(hole))

    @post("/{service:str}/withheld/retry", status_code=200, responses=problem_responses([404, 503]))
    async def retry_withheld(service: FromPath[str]) -> Outcome:
        """Send again now what the broker refused for itself; the lanes go on meanwhile."""
        sender = senders.get(service)
        if sender is None or sender.intents is None:
            raise ProblemError(404, phrase(404), f"no service {service!r} with an outbox runs here", field="service")
        return Outcome(await sender.intents.execute(RetryWithheld()))

    handlers: list[Any] = [retry_withheld, list_parked, retry_parked, discard_parked, list_gaps, close_gap]
    return Router(path="/ops", route_handlers=handlers, tags=["operations"])


def _id(value: int) -> int:
    if not 0 < value < 2**63:
        raise invalid(f"{value} is not the id of a parked event", "id")
    return value
