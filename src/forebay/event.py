"""Events as types: msgspec Structs that know their service, kind, version, lane and ordering key."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import msgspec

from forebay.errors import ConfigurationError
from forebay.identity import checked_name

E = TypeVar("E", bound="Event")

_TYPE = re.compile(
    r"(?P<service>[a-z0-9][a-z0-9-]{0,62})\.(?P<kind>[a-z0-9][a-z0-9-]{0,62})\.v(?P<version>[1-9][0-9]{0,5})"
)


class EventSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What an event class says of itself. ``key`` names the field whose value orders events of this origin."""

    service: str
    kind: str
    version: int
    lane: str
    key: str | None

    @property
    def type(self) -> str:
        """The CloudEvents type: ``<service>.<kind>.v<version>``."""
        return f"{self.service}.{self.kind}.v{self.version}"


class HasSpec(Protocol):
    """An event or a command."""

    spec: ClassVar[EventSpec]


class EventMeta(msgspec.StructMeta):
    """Takes the event's own keywords, which msgspec would refuse, and makes every event frozen and keyword-only."""

    noun = "event"

    def __new__(
        mcls,
        name: str,
        bases: tuple[type, ...],
        namespace: dict[str, Any],
        *,
        service: str | None = None,
        kind: str | None = None,
        version: int = 1,
        lane: str = "ledger",
        key: str | None = None,
        **struct_options: Any,
    ) -> EventMeta:
        """Create the class; raises ``ConfigurationError`` where a keyword is missing or wrong."""
        struct_options.setdefault("frozen", True)
        struct_options.setdefault("kw_only", True)
        struct_options.setdefault("gc", False)  # what is frozen has no cycles, and tens of thousands live for a moment
        cls = super().__new__(mcls, name, bases, namespace, **struct_options)
        if not bases or bases == (msgspec.Struct,):
            return cls
        if service is None or kind is None:
            raise ConfigurationError(
                f"{mcls.noun} {name} does not say what it is", hint="give it service=... and kind=..."
            )
        if version < 1:
            raise ConfigurationError(f"{mcls.noun} {name}: version {version} is below 1")
        if key is not None and key not in cls.__struct_fields__:
            raise ConfigurationError(f"{mcls.noun} {name}: key {key!r} is not one of its fields")
        spec = EventSpec(
            service=checked_name(service, f"{mcls.noun} {name}: service"),
            kind=checked_name(kind, f"{mcls.noun} {name}: kind"),
            version=version,
            lane=checked_name(lane, f"{mcls.noun} {name}: lane"),
            key=key,
        )
        type.__setattr__(cls, "spec", spec)
        return cls


class Event(msgspec.Struct, metaclass=EventMeta):
    """The base of every event.

    Example:
        >>> class DoorOpened(Event, service="door", kind="door-opened", key="door"):
        ...     door: str
        >>> DoorOpened.spec.type
        'door.door-opened.v1'
    """

    spec: ClassVar[EventSpec]

    if TYPE_CHECKING:

        def __init_subclass__(
            cls,
            *,
            service: str,
            kind: str,
            version: int = 1,
            lane: str = "ledger",
            key: str | None = None,
            **struct_options: Any,
        ) -> None: ...


def key_of(event: HasSpec) -> str | None:
    """Return the value of the ordering key of an event or a command as text; None where its type or field has none."""
    field = event.spec.key
    value = None if field is None else getattr(event, field)
    return None if value is None else str(value)


def parse_type(text: str) -> tuple[str, str, int] | None:
    """Split ``<service>.<kind>.v<N>``; None for a type of another form (a gateway's client's)."""
    match = _TYPE.fullmatch(text)
    return (match["service"], match["kind"], int(match["version"])) if match else None
