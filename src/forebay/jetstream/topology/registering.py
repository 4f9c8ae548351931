"""Registering nodes: making, listing and deleting the durables that a node's services take their commands from."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec

from forebay.command import Destination
from forebay.errors import TopologyError
from forebay.jetstream.topology.apply import Request, call
from forebay.jetstream.topology.nodes import durable_of, node_config, registered_for
from forebay.jetstream.topology.removal import REMOVED, Removal
from forebay.jetstream.topology.spec import COMMANDS, Config

STORE = "forebay.store"


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """A service of a node that takes commands.

    Attributes:
        node, service: whose durable it is.
        store: the database that reads it; None before it was first heard of.
        waiting: commands in the stream that it has not read yet.
        since: when it was registered, RFC 3339.
    """

    node: str
    service: str
    store: str | None
    waiting: int
    since: str

    @property
    def destination(self) -> Destination:
        """Whom commands are sent to."""
        return Destination(self.node, self.service)


async def register(request: Request, destination: Destination, settings: Config | None = None) -> bool:
    """Make the durable of a service of a node; return False where it is there already.

    Args:
        request: sends a request to JetStream's API.
        destination: the node and its service.
        settings: the fields of the template.

    Raises:
        TopologyError: the stream does not exist, or a durable of this name belongs to somebody else.
        LinkError: there was no answer.
    """
    durable = durable_of(destination)
    stream = await call(request, f"STREAM.INFO.{COMMANDS}")
    try:
        known = await call(request, f"CONSUMER.INFO.{COMMANDS}.{durable}")
    except TopologyError:
        config = node_config(destination, stream["created"], settings)
        body = {"stream_name": COMMANDS, "config": config, "action": "create"}
        await call(request, f"CONSUMER.CREATE.{COMMANDS}.{durable}", body)
        return True
    owner = registered_for(known["config"])
    if owner != destination:
        whose = f"belongs to {owner}" if owner else "was not made for a node"
        raise TopologyError(f"durable {durable} of {COMMANDS} {whose}: {destination} needs another name")
    return False


async def registered(request: Request, node: str | None = None) -> list[Registered]:
    """Return what is registered, of one node or of all, by node and service; raises as ``register`` does."""
    found: list[Registered] = []
    offset = 0
    while True:
        page = await call(request, f"CONSUMER.LIST.{COMMANDS}", {"offset": offset})
        consumers: list[dict[str, Any]] = page.get("consumers") or []
        for each in consumers:
            owner = registered_for(each["config"])
            if owner is not None and node in (None, owner.node):
                found.append(
                    Registered(
                        node=owner.node,
                        service=owner.service,
                        store=(each["config"].get("metadata") or {}).get(STORE),
                        waiting=each["num_pending"],
                        since=each["created"],
                    )
                )
        offset += len(consumers)
        if not consumers or offset >= page.get("total", 0):
            return sorted(found, key=lambda each: each.destination)


async def unregister(request: Request, node: str, reason: str) -> list[Registered]:
    """Delete a node's durables, and keep the reason in the stream's metadata; return what was deleted.

    Raises:
        TopologyError: nothing of it is registered, or a process of it reads now; nothing was changed.
        LinkError: there was no answer; repeat it.
    """
    found = await registered(request, node)
    if not found:
        raise TopologyError(f"no node {node!r} is registered", hint="see `forebay nodes ls`")
    for each in found:
        info = await call(request, f"CONSUMER.INFO.{COMMANDS}.{durable_of(each.destination)}")
        if info.get("num_waiting"):
            raise TopologyError(f"service {each.service} of {node} reads now", hint="stop the node first")
    config = (await call(request, f"STREAM.INFO.{COMMANDS}"))["config"]
    removal = Removal(datetime.now(UTC).isoformat(timespec="seconds"), reason)
    metadata = {**(config.get("metadata") or {}), f"{REMOVED}{node}": msgspec.json.encode(removal).decode()}
    await call(request, f"STREAM.UPDATE.{COMMANDS}", {**config, "metadata": metadata})
    for each in found:
        await call(request, f"CONSUMER.DELETE.{COMMANDS}.{durable_of(each.destination)}")
    return found


async def removed(request: Request) -> dict[str, Removal]:
    """Return the nodes that were removed, each with when and why; raises as ``register`` does."""
    config = (await call(request, f"STREAM.INFO.{COMMANDS}"))["config"]
    metadata: dict[str, str] = config.get("metadata") or {}
    return {
        name.removeprefix(REMOVED): msgspec.json.decode(text, type=Removal)
        for name, text in metadata.items()
        if name.startswith(REMOVED)
    }
