"""Read the files of ``jetstream-config`` and join them with what services derive: files -> desired topology."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
from msgspec import UNSET, Struct, UnsetType

from forebay.errors import ConfigurationError, TopologyError
from forebay.identity import checked_name
from forebay.jetstream.topology.nodes import NODE_DURABLE, NODE_FILTER
from forebay.jetstream.topology.spec import (
    COMMANDS,
    PLACEHOLDER,
    Config,
    ConsumerSpec,
    StreamSpec,
    Topology,
    filter_problem,
    standard_settings,
)
from forebay.jetstream.topology.units import parse_duration, parse_size

T = TypeVar("T")
Quantity = int | str


class _Transform(Struct, forbid_unknown_fields=True):
    src: str
    dest: str


class _Placement(Struct, forbid_unknown_fields=True):
    cluster: str | UnsetType = UNSET
    tags: list[str] | UnsetType = UNSET


class _Republish(Struct, forbid_unknown_fields=True):
    src: str
    dest: str
    headers_only: bool | UnsetType = UNSET


class _ConsumerLimits(Struct, forbid_unknown_fields=True):
    inactive_threshold: Quantity | UnsetType = UNSET
    max_ack_pending: int | UnsetType = UNSET


class _StreamFile(Struct, forbid_unknown_fields=True):
    """The fields of STREAM.CREATE.

    ``mirror`` and ``sources`` are left out, as such a stream can lose events in silence.
    """

    name: str
    subjects: list[str]
    description: str | UnsetType = UNSET
    subject_transform: _Transform | UnsetType = UNSET
    storage: Literal["file", "memory"] | UnsetType = UNSET
    retention: Literal["limits", "interest", "workqueue"] | UnsetType = UNSET
    discard: Literal["new", "old"] | UnsetType = UNSET
    discard_new_per_subject: bool | UnsetType = UNSET
    max_bytes: Quantity | UnsetType = UNSET
    max_age: Quantity | UnsetType = UNSET
    max_msgs: int | UnsetType = UNSET
    max_msgs_per_subject: int | UnsetType = UNSET
    max_msg_size: Quantity | UnsetType = UNSET
    max_consumers: int | UnsetType = UNSET
    duplicate_window: Quantity | UnsetType = UNSET
    num_replicas: int | UnsetType = UNSET
    placement: _Placement | UnsetType = UNSET
    compression: Literal["none", "s2"] | UnsetType = UNSET
    persist_mode: Literal["default", "async"] | UnsetType = UNSET
    first_seq: int | UnsetType = UNSET
    no_ack: bool | UnsetType = UNSET
    allow_atomic: bool | UnsetType = UNSET
    allow_batched: bool | UnsetType = UNSET
    allow_direct: bool | UnsetType = UNSET
    mirror_direct: bool | UnsetType = UNSET
    allow_rollup_hdrs: bool | UnsetType = UNSET
    allow_msg_ttl: bool | UnsetType = UNSET
    allow_msg_counter: bool | UnsetType = UNSET
    allow_msg_schedules: bool | UnsetType = UNSET
    subject_delete_marker_ttl: Quantity | UnsetType = UNSET
    deny_delete: bool | UnsetType = UNSET
    deny_purge: bool | UnsetType = UNSET
    republish: _Republish | UnsetType = UNSET
    consumer_limits: _ConsumerLimits | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET


class _ConsumerFile(Struct, forbid_unknown_fields=True):
    """The fields of CONSUMER.CREATE for a durable pull consumer, and its stream."""

    stream: str
    durable_name: str
    filter_subject: str | UnsetType = UNSET
    filter_subjects: list[str] | UnsetType = UNSET
    description: str | UnsetType = UNSET
    ack_policy: Literal["all", "explicit", "none"] | UnsetType = UNSET
    deliver_policy: (
        Literal["all", "last", "new", "by_start_sequence", "by_start_time", "last_per_subject"] | UnsetType
    ) = UNSET
    opt_start_seq: int | UnsetType = UNSET
    opt_start_time: str | UnsetType = UNSET
    replay_policy: Literal["instant", "original"] | UnsetType = UNSET
    ack_wait: Quantity | UnsetType = UNSET
    backoff: list[Quantity] | UnsetType = UNSET
    max_deliver: int | UnsetType = UNSET
    max_ack_pending: int | UnsetType = UNSET
    max_waiting: int | UnsetType = UNSET
    max_batch: int | UnsetType = UNSET
    max_expires: Quantity | UnsetType = UNSET
    max_bytes: Quantity | UnsetType = UNSET
    inactive_threshold: Quantity | UnsetType = UNSET
    num_replicas: int | UnsetType = UNSET
    mem_storage: bool | UnsetType = UNSET
    headers_only: bool | UnsetType = UNSET
    sample_freq: str | UnsetType = UNSET
    metadata: dict[str, str] | UnsetType = UNSET


_DURATIONS = frozenset(
    {"max_age", "duplicate_window", "subject_delete_marker_ttl", "ack_wait", "backoff", "max_expires"}
    | {"inactive_threshold"}
)
_SIZES = frozenset({"max_bytes", "max_msg_size"})


def desired(config_dir: Path | None = None, derived: Iterable[ConsumerSpec] = ()) -> Topology:
    """Join files, derived consumers and the packaged streams into what should be there.

    A file wins over a derived consumer of the same name, and over a packaged stream of the same name.

    Args:
        config_dir: a folder with ``streams/`` and ``consumers/``; None for a project without files.
        derived: consumers that services declare in code.

    Raises:
        TopologyError: a file cannot be read, or says what cannot be; one line that names file and field.
    """
    if config_dir is not None and not config_dir.is_dir():
        raise TopologyError(f"{config_dir} is not a folder", hint="it should hold streams/ and consumers/")
    streams = {spec.name: spec for spec in default_streams()}
    origins: dict[str, str] = {}
    for path in _yaml_files(config_dir, "streams"):
        stream = _stream(path, str(path))
        _claim(origins, f"stream {stream.name}", path)
        streams[stream.name] = stream
    consumers = {spec.name: spec for spec in derived}
    for path in _yaml_files(config_dir, "consumers"):
        consumer = _consumer(path, streams)
        _claim(origins, f"consumer {consumer.name}", path)
        consumers[consumer.name] = consumer
    for spec in consumers.values():
        if spec.stream not in streams:
            raise TopologyError(f"consumer {spec.name!r} reads the stream {spec.stream}, which no file describes")
        if spec.partitioned != (streams[spec.stream].partitions is not None):
            raise TopologyError(f"consumer {spec.name!r}: its filters do not fit the partitions of {spec.stream}")
    return Topology(streams=streams, consumers=dict(sorted(consumers.items())))


def node_template(config_dir: Path | None = None) -> Config:
    """Return the settings of the durables of nodes: those of ``nodes/commands.yaml``, else the engine's own.

    Raises:
        TopologyError: the file cannot be read, or says what cannot be.
    """
    paths = list(_yaml_files(config_dir, "nodes"))
    if not paths:
        return standard_settings()
    if len(paths) > 1:
        raise TopologyError(f"{paths[1]}: nodes are described by {paths[0]} already")
    path = paths[0]
    config = _read(path, str(path), _ConsumerFile)
    wanted = {"stream": COMMANDS, "durable_name": NODE_DURABLE, "filter_subjects": [NODE_FILTER]}
    for field, value in wanted.items():
        if config.pop(field, None) != value:
            raise TopologyError(f"{path}: {field} must be {value!r}")
    return standard_settings() | config


def default_streams() -> Sequence[StreamSpec]:
    """The streams EVENTS and COMMANDS as they come with the package."""
    folder = files("forebay.jetstream.topology") / "defaults"
    return [_stream(folder / name, f"the packaged {name}") for name in ("events.yaml", "commands.yaml")]


def _claim(origins: dict[str, str], what: str, path: Path) -> None:
    if what in origins:
        raise TopologyError(f"{path}: {what} is described by {origins[what]} already")
    origins[what] = str(path)


def _yaml_files(config_dir: Path | None, folder: str) -> Iterator[Path]:
    if config_dir is not None:
        yield from sorted(path for path in (config_dir / folder).glob("*") if path.suffix in {".yaml", ".yml"})


def _stream(path: Traversable, label: str) -> StreamSpec:
    config = _read(path, label, _StreamFile)
    if not config["name"] or not set(config["name"]).isdisjoint(" .*>/\\\t"):
        raise TopologyError(f"{label}: name: {config['name']!r} cannot be a stream's name")
    return StreamSpec(config=config)


def _consumer(path: Path, streams: dict[str, StreamSpec]) -> ConsumerSpec:
    config = _read(path, str(path), _ConsumerFile)
    stream, durable = config.pop("stream"), config.pop("durable_name")
    if stream not in streams:
        raise TopologyError(f"{path}: stream: no file describes a stream {stream!r}")
    single = config.pop("filter_subject", None)
    subjects = config.pop("filter_subjects", [single] if single else [])
    if single and subjects != [single]:
        raise TopologyError(f"{path}: filter_subject and filter_subjects cannot both be set")
    partitioned = streams[stream].partitions is not None
    suffix = f"-{PLACEHOLDER}" if partitioned else ""
    if not durable.endswith(suffix):
        raise TopologyError(f"{path}: durable_name: {durable!r} must be <consumer>{suffix}: one durable per partition")
    try:
        name = checked_name(durable.removesuffix(suffix), "durable_name")
    except ConfigurationError as error:
        raise TopologyError(f"{path}: {error}") from error
    if problem := filter_problem(subjects, partitioned=partitioned):
        raise TopologyError(f"{path}: {problem}")
    return ConsumerSpec(name=name, stream=stream, filters=tuple(subjects), settings=standard_settings() | config)


def _read(path: Traversable, label: str, kind: type[T]) -> Config:
    """Decode one file into the fields that it sets, durations in nanoseconds and sizes in bytes."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise TopologyError(f"{label}: cannot be read: {error.strerror or error}") from error
    try:
        # PyYAML comes with the extra `core` only: nothing else of this package may need it.
        config: Config = msgspec.to_builtins(msgspec.yaml.decode(content, type=kind))
    except ImportError as error:
        raise TopologyError(f"{label}: PyYAML is not installed", hint="install forebay[core]") from error
    except msgspec.MsgspecError as error:
        raise TopologyError(f"{label}: {_one_line(str(error))}") from error
    return _in_units(config, label)


def _one_line(message: str) -> str:
    """Put the field first and join the lines of a syntax error; ``- at `$.max_bytes`` becomes ``max_bytes:``."""
    text, _, place = " ".join(message.split()).partition(" - at `$.")
    text = text.replace('in "<byte string>", ', "at ")
    return f"{place.removesuffix('`')}: {text}" if place else text


def _in_units(config: Config, label: str, prefix: str = "") -> Config:
    return {field: _value(field, value, label, prefix) for field, value in config.items()}


def _value(field: str, value: Any, label: str, prefix: str) -> Any:
    convert = parse_duration if field in _DURATIONS else parse_size if field in _SIZES else None
    if convert is None:
        return _in_units(value, label, f"{field}.") if isinstance(value, dict) and field != "metadata" else value
    try:
        return [convert(one) for one in value] if isinstance(value, list) else convert(value)
    except ValueError as error:
        raise TopologyError(f"{label}: {prefix}{field}: {error}") from error
