"""Read what is live, and make it what it should be: all of it, or nothing where something cannot be done safely."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from forebay.errors import LinkError, TopologyError
from forebay.jetstream.topology.plan import Change, Kind, Live, applied, diff, problems, refused
from forebay.jetstream.topology.spec import Config, Topology

Request = Callable[[str, bytes], Awaitable[bytes]]
"""Sends a JSON body to a subject and returns the JSON reply; raises ``LinkError`` when there is none."""

ROUNDS = 5
"""How often apply plans anew while another apply is at work on the same objects."""

_NOT_FOUND = 10059
_OVERTAKEN = frozenset({10058, 10148, 10149, 10014})
"""The stream or the durable was created, or removed, since it was read."""


class RefusedChangesError(TopologyError):
    """Some changes would delete messages or need another stream or durable; nothing was applied.

    Attributes:
        changes: the changes that were refused.
    """

    retryable = False

    def __init__(self, changes: list[Change]) -> None:
        what = "; ".join(f"{change.target}: {change.field} ({change.kind}: {change.reason})" for change in changes)
        super().__init__(f"nothing was applied, because of {what}")
        self.changes = changes


class _ApiError(TopologyError):
    """The JetStream API answered with an error."""

    def __init__(self, subject: str, code: int, description: str) -> None:
        super().__init__(f"the server refused {subject}: {description} ({code})")
        self.code = code


async def read_live(request: Request, topology: Topology) -> Live:
    """Read the streams that ``topology`` names, and all their durables.

    Raises:
        LinkError: there was no answer.
        TopologyError: the server answered with an error.
    """
    live = Live()
    for name in topology.streams:
        try:
            live.streams[name] = (await call(request, f"STREAM.INFO.{name}"))["config"]
            live.durables[name] = await durables_of(request, name)
        except _ApiError as error:
            if error.code != _NOT_FOUND:
                raise
            live.streams.pop(name, None)
    return live


async def plan_topology(request: Request, topology: Topology) -> list[Change]:
    """List what has to change on the server. Changes nothing; raises as ``read_live`` does."""
    return diff(topology, await read_live(request, topology), int(time.time()))


async def apply_topology(request: Request, topology: Topology) -> list[Change]:
    """Create what is missing and change in place what differs; safe to repeat, and while another apply runs.

    Streams come first, with the list of consumers that must confirm: should this stop half-way, nodes wait for a
    consumer that does not read yet, and free nothing that it needs. JetStream has no compare-and-set for a stream's
    metadata, so two runs with *different* consumers may overwrite each other's list; each reads again until it finds
    its own, and the next run repairs what is left.

    Returns:
        What was changed; empty when there was nothing to do.

    Raises:
        RefusedChangesError: something would delete messages or must be replaced; nothing was changed.
        TopologyError: no service would accept a stream as described (nothing was changed), or the server refused a
            change that only it could judge; what was changed before that stays.
        LinkError: there was no answer; repeat it.
    """
    if wrong := problems(topology):
        raise TopologyError("; ".join(wrong), hint="nothing was applied")
    done: list[Change] = []
    for _ in range(ROUNDS):
        live = await read_live(request, topology)
        changes = diff(topology, live, int(time.time()))
        if not changes:
            return done
        if impossible := refused(changes):
            raise RefusedChangesError(impossible)
        try:
            for group in _by_target(changes):
                await _change(request, live, group)
                done += group
        except _ApiError as error:
            if error.code not in _OVERTAKEN:
                raise
    left = ", ".join(f"{change.target} {change.field}".strip() for change in changes)
    raise TopologyError(f"still different after {ROUNDS} rounds: {left}", hint="does another apply undo it?")


def _by_target(changes: list[Change]) -> list[list[Change]]:
    groups: dict[tuple[str, str], list[Change]] = {}
    for change in changes:
        groups.setdefault((change.stream, change.durable), []).append(change)
    return list(groups.values())


async def _change(request: Request, live: Live, group: list[Change]) -> None:
    """Make the changes of one stream or durable in one call, which carries its whole configuration."""
    stream, durable = group[0].stream, group[0].durable
    creates = group[0].kind is Kind.CREATE
    result = applied(live, group)
    if not durable:
        verb = "CREATE" if creates else "UPDATE"
        await call(request, f"STREAM.{verb}.{stream}", result.streams[stream])
        return
    body = {
        "stream_name": stream,
        "config": result.durables[stream][durable],
        "action": "create" if creates else "update",
    }
    await call(request, f"CONSUMER.CREATE.{stream}.{durable}", body)


async def durables_of(request: Request, stream: str) -> dict[str, Config]:
    """Return a stream's durables by name, each with its configuration; raises as ``read_live`` does."""
    found: dict[str, Config] = {}
    offset = 0
    while True:
        page = await call(request, f"CONSUMER.LIST.{stream}", {"offset": offset})
        consumers = page.get("consumers") or []
        found |= {one["name"]: one["config"] for one in consumers if one["config"].get("durable_name")}
        offset += len(consumers)
        if not consumers or offset >= page.get("total", 0):
            return found


async def call(request: Request, endpoint: str, body: Any = None) -> Config:
    """Call JetStream's API, such as ``STREAM.INFO.EVENTS``, and return its answer; raises as ``read_live`` does."""
    subject = f"$JS.API.{endpoint}"
    content = await request(subject, b"" if body is None else msgspec.json.encode(body))
    try:
        reply: Config = msgspec.json.decode(content, type=dict[str, Any])
    except msgspec.DecodeError as error:
        raise LinkError(f"the answer to {subject} is not JSON") from error
    if failure := reply.get("error"):
        raise _ApiError(subject, failure.get("err_code", failure.get("code", 0)), failure.get("description", "unknown"))
    return reply
