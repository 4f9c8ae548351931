"""Compare what should be with what is: pure, no connection, no clock.

``diff`` classifies each difference by what the server would do with it, as measured: some settings it never changes
back, and some that it changes at once delete messages on the spot. Only fields that the desired topology names are
compared, so the server's own defaults are never differences. Nothing is ever removed: what is live and not described
is told by ``notes``.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from enum import StrEnum
from typing import Any

import msgspec

from forebay.jetstream.topology import confirmed_by
from forebay.jetstream.topology.checks import stream_notes, stream_problems
from forebay.jetstream.topology.nodes import registered_for
from forebay.jetstream.topology.spec import Config, StreamSpec, Topology
from forebay.jetstream.topology.units import SECOND, format_duration


class Kind(StrEnum):
    """What a change does to what is there."""

    CREATE = "create"
    IN_PLACE = "in place"
    DELETES_DATA = "deletes data"
    REPLACE = "replace"


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One difference between what should be and what is.

    Attributes:
        durable: empty for a change of the stream itself.
        field: the API's field name, ``metadata.<key>`` for one key of the metadata; empty for kind ``create``.
        live: the value there now; None where it is not set.
        desired: the value that it should have; for kind ``create`` the whole configuration.
    """

    kind: Kind
    stream: str
    durable: str = ""
    field: str = ""
    live: Any = None
    desired: Any = None
    reason: str

    @property
    def target(self) -> str:
        """What is changed, in words."""
        return f"durable {self.durable} of {self.stream}" if self.durable else f"stream {self.stream}"


class Live(msgspec.Struct, kw_only=True):
    """The configurations on the server: streams by name, and the durables of each stream by name."""

    streams: dict[str, Config] = msgspec.field(default_factory=dict)
    durables: dict[str, dict[str, Config]] = msgspec.field(default_factory=dict)


_DEFAULTS: Mapping[str, Any] = {
    "max_msgs": -1,
    "max_bytes": -1,
    "max_consumers": -1,
    "max_msg_size": -1,
    "max_msgs_per_subject": -1,
    "duplicate_window": 120 * SECOND,
    "compression": "none",
    "persist_mode": "default",
    "max_deliver": -1,
    "replay_policy": "instant",
    "deliver_policy": "all",
}
"""What the server makes of a field that is 0, empty or absent."""
_DURABLE_DEFAULTS: Mapping[str, Any] = {
    "ack_wait": 30 * SECOND,
    "max_ack_pending": 1000,
    "max_waiting": 512,
    "max_bytes": 0,
}
_UNORDERED = frozenset({"subjects", "filter_subjects"})

_LIMITS = frozenset({"max_bytes", "max_msgs"})
_NEVER_UNSET = frozenset({"deny_delete", "deny_purge", "allow_msg_ttl", "allow_msg_counter", "allow_msg_schedules"})
_FIXED_STREAM = frozenset({"storage", "persist_mode", "first_seq"})
_FIXED_DURABLE = frozenset(
    {"ack_policy", "deliver_policy", "opt_start_seq", "opt_start_time", "replay_policy", "max_waiting", "mem_storage"}
)


def diff(topology: Topology, live: Live, first_version: int = 1) -> list[Change]:
    """List what has to change so that ``live`` becomes ``topology``; empty when there is nothing to do.

    ``first_version`` is that of the list of consumers of a stream that has none yet. Nodes ignore a version below the
    highest that they have seen (S3), so that of a stream made anew must be above those of the one in whose place it is:
    apply takes the seconds since 1970.
    """
    changes: list[Change] = []
    for name, stream in topology.streams.items():
        changes += _stream_changes(topology, stream, live.streams.get(name), first_version)
        durables = live.durables.get(name, {})
        for wanted in topology.durables(name):
            changes += _durable_changes(name, wanted, durables.get(wanted["durable_name"]))
    return changes


def refused(changes: Iterable[Change]) -> list[Change]:
    """The changes that apply refuses: those that would delete messages and those that need another object."""
    return [change for change in changes if change.kind in {Kind.DELETES_DATA, Kind.REPLACE}]


def applied(live: Live, changes: Iterable[Change]) -> Live:
    """Return the configurations that result from ``changes``; what they do not name stays as it is."""
    result = copy.deepcopy(live)
    for change in changes:
        durables = result.durables.setdefault(change.stream, {})
        if change.kind is Kind.CREATE:
            created = copy.deepcopy(change.desired)
            if change.durable:
                durables[change.durable] = created
            else:
                result.streams[change.stream] = created
            continue
        config = durables[change.durable] if change.durable else result.streams[change.stream]
        field, _, key = change.field.partition(".")
        if key:
            config.setdefault(field, {})[key] = change.desired
        else:
            config[field] = copy.deepcopy(change.desired)
        if field == "filter_subjects":
            config.pop("filter_subject", None)
    return result


def problems(topology: Topology) -> list[str]:
    """Say which streams no service would accept; apply makes none of them."""
    return [problem for stream in topology.streams.values() for problem in stream_problems(stream.config)]


def notes(topology: Topology, live: Live) -> list[str]:
    """Say what is worth knowing and is no change: what nobody describes, and what is allowed but not advised."""
    found = problems(topology)
    for name, stream in topology.streams.items():
        found += stream_notes(stream.config)
        wanted = {config["durable_name"] for config in topology.durables(name)}
        others = sorted(
            durable
            for durable, config in live.durables.get(name, {}).items()
            if durable not in wanted and registered_for(config) is None  # a registered node's is as it should be
        )
        found += [f"durable {other} of {name} is not described here and stays as it is" for other in others]
        listed = confirmed_by.parse((live.streams.get(name, {}).get("metadata") or {}).get(confirmed_by.KEY))
        for consumer in sorted((listed.consumers if listed else {}).keys() - topology.confirming(name).keys()):
            found.append(f"consumer {consumer} must confirm the events of {name}, is not described here and stays")
    for spec in topology.consumers.values():
        if spec.partitioned and not spec.services:
            found.append(f"consumer {spec.name} reads single nodes only: no node waits for its confirmation")
    return found


def _stream_changes(topology: Topology, stream: StreamSpec, live: Config | None, first_version: int) -> list[Change]:
    metadata = dict(stream.config.get("metadata") or {})
    live_metadata = (live or {}).get("metadata") or {}
    known = confirmed_by.parse(live_metadata.get(confirmed_by.KEY))
    listed = confirmed_by.merged([known, stream.carried], topology.confirming(stream.name), first_version)
    metadata.pop(confirmed_by.KEY, None)
    if listed is not None and (live is None or listed != known):
        metadata[confirmed_by.KEY] = listed.encode()
    wanted = {field: value for field, value in stream.config.items() if field != "metadata"}
    if live is None:
        whole = wanted | ({"metadata": metadata} if metadata else {})
        return [Change(kind=Kind.CREATE, stream=stream.name, desired=whole, reason="it does not exist")]
    # Without this line a transform that only the server has would go unnoticed, like any field nobody asked for.
    wanted.setdefault("subject_transform", None)
    changes = []
    for field, value in wanted.items():
        now = live.get(field)
        if _normal(field, now, _DEFAULTS) != _normal(field, value, _DEFAULTS):
            kind, reason = _stream_kind(field, live, wanted)
            changes.append(Change(kind=kind, stream=stream.name, field=field, live=now, desired=value, reason=reason))
    return changes + _metadata_changes(stream.name, "", metadata, live_metadata)


def _durable_changes(stream: str, wanted: Config, live: Config | None) -> list[Change]:
    durable = wanted["durable_name"]
    if live is None:
        return [Change(kind=Kind.CREATE, stream=stream, durable=durable, desired=wanted, reason="it does not exist")]
    if live.get("filter_subject"):
        live = live | {"filter_subjects": [live["filter_subject"]]}
    defaults = {**_DEFAULTS, **_DURABLE_DEFAULTS}
    changes = []
    for field, value in wanted.items():
        now = live.get(field)
        if field == "metadata" or _normal(field, now, defaults) == _normal(field, value, defaults):
            continue
        kind, reason = Kind.IN_PLACE, "the server changes it in place"
        if field in _FIXED_DURABLE:
            kind, reason = Kind.REPLACE, f"the server never changes a durable's {field}"
        changes.append(
            Change(kind=kind, stream=stream, durable=durable, field=field, live=now, desired=value, reason=reason)
        )
    return changes + _metadata_changes(stream, durable, wanted.get("metadata") or {}, live.get("metadata") or {})


def _metadata_changes(stream: str, durable: str, wanted: Mapping[str, str], live: Mapping[str, str]) -> list[Change]:
    changes = []
    for key, value in wanted.items():
        now = live.get(key)
        if now == value:
            continue
        reason = "other keys stay as they are"
        if key == confirmed_by.KEY and now is not None:
            readable = confirmed_by.parse(now) is not None
            reason = (
                "the consumers change" if readable else "the live value cannot be read; carry its version in the file"
            )
        changes.append(
            Change(
                kind=Kind.IN_PLACE,
                stream=stream,
                durable=durable,
                field=f"metadata.{key}",
                live=now,
                desired=value,
                reason=reason,
            )
        )
    return changes


def _stream_kind(field: str, live: Config, wanted: Config) -> tuple[Kind, str]:
    """Classify a stream field whose value differs, by what the server does with the update."""
    now, then = _normal(field, live.get(field), _DEFAULTS), _normal(field, wanted.get(field), _DEFAULTS)
    if field == "subject_transform":
        return Kind.REPLACE, "partitions are fixed for the stream's life: stored messages would keep their old subjects"
    if field in _FIXED_STREAM:
        return Kind.REPLACE, f"a stream's {field} is fixed when it is created"
    if field in _NEVER_UNSET and not then:
        return Kind.REPLACE, f"the server never takes {field} back"
    if field == "retention":
        if "workqueue" in (now, then):
            return Kind.REPLACE, "the server never changes retention to or from workqueue"
        if then == "interest":
            return Kind.DELETES_DATA, "messages that no consumer waits for are deleted at once"
    if field == "discard" and then == "old":
        return Kind.DELETES_DATA, "the oldest messages beyond a limit are deleted, now and later"
    if field in _LIMITS and _tighter(now, then) and wanted.get("discard", live.get("discard")) != "new":
        return Kind.DELETES_DATA, "with discard old, a smaller limit deletes the oldest messages at once"
    if field == "max_age" and _tighter(now, then):
        return Kind.DELETES_DATA, f"messages older than {format_duration(then)} are deleted at once"
    if field == "max_msgs_per_subject" and _tighter(now, then):
        return Kind.DELETES_DATA, "the older messages of each subject are deleted at once"
    return Kind.IN_PLACE, "the server changes it in place"


def _tighter(now: int | None, then: int | None) -> bool:
    """Whether a limit becomes smaller, where nothing, 0 and -1 stand for none."""
    return (then or -1) > 0 and ((now or -1) <= 0 or (then or -1) < (now or -1))


def _normal(field: str, value: Any, defaults: Mapping[str, Any]) -> Any:
    if isinstance(value, dict):
        value = {key: one for key, one in value.items() if one}
    if field in _UNORDERED and value:
        return sorted(value)
    return value or defaults.get(field) or None
