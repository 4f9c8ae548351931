"""Taking a consumer off the list of those that must confirm: an explicit act, with a reason on record (rule S3)."""

from __future__ import annotations

from datetime import UTC, datetime

import msgspec

from forebay.errors import TopologyError
from forebay.jetstream.topology.apply import Request, call, durables_of
from forebay.jetstream.topology.confirmed_by import KEY, parse
from forebay.protocol.confirmation import ConfirmedBy

REMOVED = "forebay.removed."
"""Prefix of the stream's metadata under which a removed consumer stands, with when and why."""


class Removal(msgspec.Struct, frozen=True):
    """Why a consumer was removed, and when (RFC 3339)."""

    at: str
    reason: str


async def listed_consumers(request: Request, stream: str) -> tuple[ConfirmedBy | None, dict[str, Removal]]:
    """Return the consumers that must confirm a stream's events, and those that were removed.

    Raises:
        LinkError: there was no answer.
        TopologyError: the server answered with an error.
    """
    config = (await call(request, f"STREAM.INFO.{stream}"))["config"]
    metadata: dict[str, str] = config.get("metadata") or {}
    removed = {
        name.removeprefix(REMOVED): msgspec.json.decode(text, type=Removal)
        for name, text in metadata.items()
        if name.startswith(REMOVED)
    }
    return parse(metadata.get(KEY)), removed


async def remove_consumer(request: Request, stream: str, name: str, reason: str) -> list[str]:
    """Take a consumer off the list and delete its durables; return the durables that were deleted.

    The list comes first: should this stop half-way, nodes wait no more, and durables that nobody reads cost little.

    Raises:
        TopologyError: it is not listed, or a process reads for it now; nothing was changed.
        LinkError: there was no answer; repeat it.
    """
    config = (await call(request, f"STREAM.INFO.{stream}"))["config"]
    metadata: dict[str, str] = dict(config.get("metadata") or {})
    known = parse(metadata.get(KEY))
    own = [each for each in await durables_of(request, stream) if each.rpartition("-")[0] == name]
    if (known is None or name not in known.consumers) and not own:
        names = ", ".join(sorted(known.consumers)) if known else "none"
        raise TopologyError(f"stream {stream} lists no consumer {name!r} (it lists: {names})")
    for durable in own:
        info = await call(request, f"CONSUMER.INFO.{stream}.{durable}")
        if info.get("num_waiting"):
            raise TopologyError(f"a process reads from {durable} now", hint=f"stop the consumer {name} first")
    if known is not None and name in known.consumers:
        left = {each: services for each, services in known.consumers.items() if each != name}
        metadata[KEY] = ConfirmedBy(known.version + 1, left).encode()
        removal = Removal(datetime.now(UTC).isoformat(timespec="seconds"), reason)
        metadata[f"{REMOVED}{name}"] = msgspec.json.encode(removal).decode()
        await call(request, f"STREAM.UPDATE.{stream}", {**config, "metadata": metadata})
    for durable in own:
        await call(request, f"CONSUMER.DELETE.{stream}.{durable}")
    return own
