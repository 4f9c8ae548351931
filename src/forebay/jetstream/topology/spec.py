"""What streams and durables should be: the values that files and services are read into.

A ``config`` is the JSON object of the JetStream API itself, with its field names, nanoseconds and bytes. Only the
fields that someone asked for are in it; the rest is the server's own choice and never a difference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from forebay.errors import TopologyError
from forebay.identity import NAME, checked_name
from forebay.jetstream.topology.confirmed_by import EVERY_SERVICE, KEY, parse
from forebay.jetstream.topology.units import SECOND
from forebay.protocol.confirmation import ConfirmedBy

EVENTS = "EVENTS"
COMMANDS = "COMMANDS"
PLACEHOLDER = "{partition}"
ACK_WAIT = 30 * SECOND
MAX_ACK_PENDING = 20_000
"""Messages that a durable delivers beyond its ack floor: well above what a reader has in flight in one batch."""

Config = dict[str, Any]

_PARTITIONS = re.compile(r"\{\{\s*partition\(\s*(\d+)\s*,")
_FORMS = (
    "the forms are evt.{partition}.>, evt.{partition}.<node>.> and evt.{partition}.*.<service>.*, never finer: "
    "a sequence runs over all event types of its lane, and a finer filter would make holes"
)
_COMMAND_FORMS = "the forms are cmd.<node>.> and cmd.<node>.<service>.*"


class StreamSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A stream as it should be."""

    config: Config

    @property
    def name(self) -> str:
        """The stream's name."""
        return str(self.config["name"])

    @property
    def partitions(self) -> int | None:
        """How many partitions its subject transform makes; None without a transform."""
        return partitions_of(self.config)

    @property
    def carried(self) -> ConfirmedBy | None:
        """The list of confirming consumers that the file carries, to go on from when a stream is recreated (S3)."""
        return parse(self.config.get("metadata", {}).get(KEY))


class ConsumerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """A consumer as it should be: one durable per partition, all alike but for the partition in name and filters (S2).

    Attributes:
        name: the consumer's name, which is its service's.
        filters: filter subjects, with ``{partition}`` where the stream is partitioned.
        settings: the fields of the durables' configuration other than name and filters.
    """

    name: str
    filters: tuple[str, ...]
    stream: str = EVENTS
    settings: Config = msgspec.field(default_factory=lambda: standard_settings())

    @property
    def partitioned(self) -> bool:
        """Whether there is one durable per partition, or a single one (a stream without partitions)."""
        return any(PLACEHOLDER in subject for subject in self.filters)

    @property
    def services(self) -> tuple[str, ...]:
        """The services whose events it needs, ``("*",)`` for all; none if it reads single nodes or commands."""
        if not self.partitioned:
            return ()
        tokens = [subject.split(".") for subject in self.filters]
        if any(len(parts) == 3 for parts in tokens):
            return (EVERY_SERVICE,)
        return tuple(sorted({parts[3] for parts in tokens if len(parts) == 5}))

    def durable(self, partition: int | None) -> str:
        """The name of a partition's durable, ``<consumer>-<p>``."""
        return self.name if partition is None else f"{self.name}-{partition}"

    def config(self, partition: int | None) -> Config:
        """The configuration of a partition's durable."""
        number = "" if partition is None else str(partition)
        filters = [subject.replace(PLACEHOLDER, number) for subject in self.filters]
        return {"durable_name": self.durable(partition), "filter_subjects": filters, **self.settings}


class Topology(msgspec.Struct, frozen=True, kw_only=True):
    """All that should be there, by name."""

    streams: dict[str, StreamSpec]
    consumers: dict[str, ConsumerSpec]

    def durables(self, stream: str) -> Iterator[Config]:
        """Yield the configuration of every durable that a stream should have."""
        partitions = self.streams[stream].partitions
        numbers: Sequence[int | None] = [None] if partitions is None else range(partitions)
        for consumer in self.consumers.values():
            if consumer.stream == stream:
                yield from (consumer.config(number) for number in numbers)

    def confirming(self, stream: str) -> Mapping[str, tuple[str, ...]]:
        """The consumers of a stream that nodes must hear from, with the services whose events each needs (S3)."""
        mine = (consumer for consumer in self.consumers.values() if consumer.stream == stream)
        return {consumer.name: consumer.services for consumer in mine if consumer.services}


def standard_settings() -> Config:
    """The settings of a durable that forebay reads; ``ack_policy: all`` is right for its one reader (S6)."""
    return {
        "ack_policy": "all",
        "deliver_policy": "all",
        "max_deliver": -1,
        "ack_wait": ACK_WAIT,
        "max_ack_pending": MAX_ACK_PENDING,
    }


def consumer_spec(name: str, services: Iterable[str], stream: str = EVENTS) -> ConsumerSpec:
    """Derive a consumer from code: ``services`` are those whose events it handles, ``"*"`` stands for all.

    Raises:
        ConfigurationError: a name is not one.
        TopologyError: no service is given.
    """
    checked_name(name, "consumer")
    wanted = sorted(set(services))
    if not wanted:
        raise TopologyError(f"consumer {name!r} needs the events of no service", hint='name them, or "*" for all')
    if EVERY_SERVICE in wanted:
        return ConsumerSpec(name=name, stream=stream, filters=(f"evt.{PLACEHOLDER}.>",))
    filters = tuple(f"evt.{PLACEHOLDER}.*.{checked_name(service, 'service')}.*" for service in wanted)
    return ConsumerSpec(name=name, stream=stream, filters=filters)


def partitions_of(config: Mapping[str, Any]) -> int | None:
    """How many partitions a stream's configuration makes; None without a partitioning transform."""
    match = _PARTITIONS.search((config.get("subject_transform") or {}).get("dest", ""))
    return int(match[1]) if match else None


def filter_problem(subjects: Sequence[str], *, partitioned: bool) -> str | None:
    """Say why a consumer must not have these filters (S2), or None if it may."""
    if not subjects:
        return f"filter_subjects is empty; {_FORMS if partitioned else _COMMAND_FORMS}"
    for subject in subjects:
        if not (_is_event_filter(subject) if partitioned else _is_command_filter(subject)):
            return f"filter_subjects: {subject!r} is not allowed; {_FORMS if partitioned else _COMMAND_FORMS}"
    for at, one in enumerate(subjects):
        for other in subjects[at + 1 :]:
            if _overlap(one.split("."), other.split(".")):
                return f"filter_subjects: {one!r} and {other!r} overlap, which the server refuses"
    return None


def _is_event_filter(subject: str) -> bool:
    match subject.split("."):
        case ["evt", place, ">"]:
            return place == PLACEHOLDER
        case ["evt", place, node, ">"]:
            return place == PLACEHOLDER and _is_name(node)
        case ["evt", place, "*", service, "*"]:
            return place == PLACEHOLDER and _is_name(service)
    return False


def _is_command_filter(subject: str) -> bool:
    match subject.split("."):
        case ["cmd", node, ">"]:
            return _is_name(node)
        case ["cmd", node, service, "*"]:
            return _is_name(node) and _is_name(service)
    return False


def _is_name(token: str) -> bool:
    return NAME.fullmatch(token) is not None


def _overlap(one: Sequence[str], other: Sequence[str]) -> bool:
    for mine, theirs in zip(one, other, strict=False):
        if ">" in (mine, theirs):
            return True
        if mine != theirs and "*" not in (mine, theirs):
            return False
    return len(one) == len(other)
