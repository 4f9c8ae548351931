"""What a service checks each time it connects: the live configuration, against what the promise rests on.

Pure functions on the ``config`` objects of STREAM.INFO and CONSUMER.INFO; an empty list means all is well. They need no
YAML, so that they run on edge nodes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from forebay.identity import PARTITIONS
from forebay.jetstream.topology.spec import COMMANDS, EVENTS, ConsumerSpec
from forebay.jetstream.topology.units import SECOND, format_duration

MIN_DUPLICATE_WINDOW = 120 * SECOND
"""Nanoseconds (rule S1)."""

EVENT_SUBJECTS = ["evt.*.*.*"]
COMMAND_SUBJECTS = ["cmd.*.*.*"]
EVENT_TRANSFORM = {
    "src": "evt.*.*.*",
    "dest": f"evt.{{{{partition({PARTITIONS},1)}}}}.{{{{wildcard(1)}}}}.{{{{wildcard(2)}}}}.{{{{wildcard(3)}}}}",
}

_REQUIRED = {
    "retention": ("limits", "an acknowledged message would be gone for later consumers"),
    "discard": ("new", "a full stream would drop its oldest messages instead of refusing new ones"),
    "storage": ("file", "a restart of the broker would lose every message"),
}
_SERVER_DEFAULTS = {"retention": "limits", "discard": "old", "storage": "file"}
_FORBIDDEN = {
    "no_ack": "publishers could never know that a message was stored",
    "allow_rollup_hdrs": "a header could erase messages",
    "allow_msg_ttl": "a header could erase messages",
    "mirror": "a mirror takes no publishes",
}


def stream_problems(config: Mapping[str, Any]) -> list[str]:
    """Say what is wrong with a stream, one sentence for each setting: which it is and what it must be (S1)."""
    name = config.get("name", "")
    problems = []
    if name == EVENTS:
        problems += _differences(name, config, EVENT_SUBJECTS, EVENT_TRANSFORM)
    elif name == COMMANDS:
        problems += _differences(name, config, COMMAND_SUBJECTS, None)
    for field, (wanted, why) in _REQUIRED.items():
        found = config.get(field) or _SERVER_DEFAULTS[field]
        if found != wanted:
            problems.append(f"stream {name}: {field} is {found!r} and must be {wanted!r}: {why}")
    problems += [
        f"stream {name}: {field} must not be set: {why}" for field, why in _FORBIDDEN.items() if config.get(field)
    ]
    if config.get("persist_mode") == "async":
        problems.append(f"stream {name}: persist_mode must not be 'async': what is acknowledged could be lost")
    if (config.get("max_msgs_per_subject") or -1) > 0:
        problems.append(f"stream {name}: max_msgs_per_subject must be -1: older messages of a subject would be dropped")
    window = config.get("duplicate_window") or MIN_DUPLICATE_WINDOW
    if window < MIN_DUPLICATE_WINDOW:
        least = format_duration(MIN_DUPLICATE_WINDOW)
        problems.append(f"stream {name}: duplicate_window is {format_duration(window)} and must be at least {least}")
    return problems


def stream_notes(config: Mapping[str, Any]) -> list[str]:
    """Say what is allowed but not advised: forebay works, only slower, or with less protection."""
    name = config.get("name", "")
    advised = {
        "allow_atomic": "events are published one by one, which is slower",
        "allow_batched": "fast batches are refused",
        "allow_direct": "single messages cannot be read directly",
        "deny_delete": "messages can be deleted",
        "deny_purge": "the stream can be purged",
    }
    notes = [
        f"stream {name}: {field} is not set: {effect}" for field, effect in advised.items() if not config.get(field)
    ]
    if (config.get("max_bytes") or -1) < 0:
        notes.append(f"stream {name}: max_bytes is not set: it can fill the broker's disk")
    if not config.get("max_age"):
        notes.append(f"stream {name}: max_age is not set: once it is full, every node waits")
    return notes


def durable_problems(config: Mapping[str, Any], expected: ConsumerSpec, partition: int | None) -> list[str]:
    """Say what is wrong with a partition's durable, one sentence for each setting (S2, S6)."""
    durable = expected.durable(partition)
    problems = []
    live = config.get("durable_name") or config.get("name")
    if live != durable:
        problems.append(f"durable {durable}: the one that was read is called {live!r}")
    if config.get("ack_policy") != "all":
        problems.append(f"durable {durable}: ack_policy is {config.get('ack_policy')!r} and must be 'all'; recreate it")
    if config.get("deliver_policy", "all") != "all":
        problems.append(f"durable {durable}: deliver_policy is {config['deliver_policy']!r} and must be 'all'")
    if config.get("deliver_subject"):
        problems.append(f"durable {durable}: deliver_subject must not be set: it must be a pull consumer")
    filters = filters_of(config)
    wanted = sorted(expected.config(partition)["filter_subjects"])
    if filters != wanted:
        problems.append(f"durable {durable}: filter_subjects are {filters} and must be {wanted}")
    if (config.get("max_deliver") or -1) != -1:
        problems.append(
            f"durable {durable}: max_deliver is {config['max_deliver']} and must be -1: "
            "a message vanishes from the durable after so many attempts"
        )
    if config.get("headers_only"):
        problems.append(f"durable {durable}: headers_only must not be set: bodies would be missing")
    return problems


def filters_of(config: Mapping[str, Any]) -> list[str]:
    """The filter subjects of a durable, in order, whichever of the API's two fields holds them."""
    single = config.get("filter_subject")
    return sorted(config.get("filter_subjects") or ([single] if single else []))


def _differences(
    name: str, config: Mapping[str, Any], subjects: list[str], transform: Mapping[str, str] | None
) -> list[str]:
    problems = []
    if sorted(config.get("subjects") or []) != subjects:
        problems.append(f"stream {name}: subjects are {config.get('subjects')} and must be {subjects}")
    live = config.get("subject_transform") or None
    if live != transform:
        found = f"{live['dest']!r}" if live else "missing"
        must = f"{transform['dest']!r}, {PARTITIONS} partitions by node" if transform else "absent"
        problems.append(
            f"stream {name}: subject_transform is {found} and must be {must}; it is fixed for the stream's life, "
            "so the stream must be recreated"
        )
    return problems
