"""Streams and durables as they should be: spec -> plan -> apply, and the checks of services when they connect."""

from __future__ import annotations

from forebay.jetstream.topology.apply import (
    RefusedChangesError,
    Request,
    apply_topology,
    plan_topology,
    read_live,
)
from forebay.jetstream.topology.checks import durable_problems, stream_notes, stream_problems
from forebay.jetstream.topology.files import default_streams, desired
from forebay.jetstream.topology.plan import Change, Kind, Live, applied, diff, notes, refused
from forebay.jetstream.topology.spec import (
    COMMANDS,
    EVENTS,
    ConsumerSpec,
    StreamSpec,
    Topology,
    consumer_spec,
)
from forebay.protocol.confirmation import ConfirmedBy

__all__ = [
    "COMMANDS",
    "EVENTS",
    "Change",
    "ConfirmedBy",
    "ConsumerSpec",
    "Kind",
    "Live",
    "RefusedChangesError",
    "Request",
    "StreamSpec",
    "Topology",
    "applied",
    "apply_topology",
    "consumer_spec",
    "default_streams",
    "desired",
    "diff",
    "durable_problems",
    "notes",
    "plan_topology",
    "read_live",
    "refused",
    "stream_notes",
    "stream_problems",
]
