"""Nodes: a durable on the stream of commands for each service of a node that takes them.

The durables are the registry. Each is made from a template when its node is registered, and is not described by any
file; its metadata says whose it is, and in which incarnation of the stream it was made: a node may look at its own
durables alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forebay.command import Destination, parse_destination
from forebay.errors import HeaderError
from forebay.jetstream.topology.spec import COMMANDS, Config, ConsumerSpec, standard_settings

NODE = "forebay.node"
"""The key of a durable's metadata that names its destination, ``<node>/<service>``."""

INCARNATION = "forebay.stream"
"""The key of a durable's metadata that holds when its stream was created."""


NODE_DURABLE, NODE_FILTER = "{node}-{service}", "cmd.{node}.{service}.*"
"""What a template says in place of a node's and a service's name."""


def durable_of(destination: Destination) -> str:
    """The name of a destination's durable."""
    return f"{destination.node}-{destination.service}"


def node_spec(destination: Destination, settings: Config | None = None) -> ConsumerSpec:
    """Return a destination's durable as it should be; ``settings`` are a template's."""
    return ConsumerSpec(
        name=durable_of(destination),
        stream=COMMANDS,
        filters=(f"cmd.{destination.node}.{destination.service}.*",),
        settings=standard_settings() | (settings or {}),
    )


def node_config(destination: Destination, incarnation: str, settings: Config | None = None) -> Config:
    """Return what a destination's durable is created with, in a stream that was created at ``incarnation``."""
    config = node_spec(destination, settings).config(None)
    metadata = {**config.get("metadata", {}), NODE: str(destination), INCARNATION: incarnation}
    return {**config, "metadata": metadata}


def registered_for(config: Mapping[str, Any]) -> Destination | None:
    """Return the destination that a durable was registered for; None for any other durable."""
    try:
        return parse_destination((config.get("metadata") or {}).get(NODE, ""))
    except HeaderError:
        return None
