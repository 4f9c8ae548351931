"""Questions to JetStream's API: what a stream and a durable look like now."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from forebay.errors import LinkError, TopologyError
from forebay.jetstream.connection import Connection

API_TIMEOUT = 5.0
"""Seconds for an answer of JetStream's API."""

_STREAM_NOT_FOUND = 10059
_CONSUMER_NOT_FOUND = 10014


class StreamState(NamedTuple):
    """A stream as it stands; ``created`` names its incarnation (S5). An empty stream has ``last == first - 1``."""

    created: str
    first: int
    last: int
    metadata: dict[str, str]
    config: dict[str, Any]


class ConsumerState(NamedTuple):
    """A durable as it stands; sequences are those of the stream."""

    delivered: int
    ack_floor: int
    pending: int
    metadata: dict[str, str]
    config: dict[str, Any]


async def api_request(
    connection: Connection, call: str, body: object = None, *, wait_limit: float = API_TIMEOUT
) -> dict[str, Any]:
    """Call JetStream's API, such as ``STREAM.INFO.EVENTS``, and return its answer.

    Raises:
        TopologyError: the stream or the durable does not exist.
        LinkError: no answer, or another error of the API.
    """
    payload = b"" if body is None else msgspec.json.encode(body)
    reply = await connection.request(f"{connection.config.api_prefix}.{call}", payload, timeout=wait_limit)
    try:
        answer = msgspec.json.decode(reply.body, type=dict[str, Any])
    except msgspec.MsgspecError as error:
        raise LinkError(f"JetStream's answer to {call} cannot be read") from error
    if failure := answer.get("error"):
        code, name = failure.get("err_code", failure.get("code", 0)), call.split(".")[-1]
        if code == _STREAM_NOT_FOUND:
            raise TopologyError(f"{call}: the stream does not exist", hint="apply the stream's file")
        if code == _CONSUMER_NOT_FOUND:
            raise TopologyError(f"{call}: the durable {name!r} does not exist", hint="apply the durable's file")
        raise LinkError(f"{call}: {failure.get('description', 'failed')} ({code})")
    return answer


async def stream_state(connection: Connection, stream: str) -> StreamState:
    """Return how a stream stands. Raises as ``api_request`` does."""
    answer = await api_request(connection, f"STREAM.INFO.{stream}")
    state, config = answer["state"], answer["config"]
    return StreamState(
        answer["created"], state["first_seq"], state["last_seq"], dict(config.get("metadata") or {}), config
    )


async def consumer_info(connection: Connection, stream: str, durable: str) -> ConsumerState:
    """Return how a durable stands. Raises as ``api_request`` does."""
    answer = await api_request(connection, f"CONSUMER.INFO.{stream}.{durable}")
    config = answer["config"]
    return ConsumerState(
        answer["delivered"]["stream_seq"],
        answer["ack_floor"]["stream_seq"],
        answer["num_pending"],
        dict(config.get("metadata") or {}),
        config,
    )


async def message_id_at(connection: Connection, stream: str, sequence: int) -> str | None:
    """Return the ``Nats-Msg-Id`` of the message that stands at a stream sequence now; None if none stands there.

    Raises:
        LinkError: no answer.
    """
    reply = await connection.request(
        f"{connection.config.api_prefix}.DIRECT.GET.{stream}",
        msgspec.json.encode({"seq": sequence}),
        timeout=API_TIMEOUT,
    )
    if reply.status:
        return None
    return reply.headers.get("Nats-Msg-Id", "")
