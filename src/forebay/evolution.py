"""Versions of one event side by side: what an older release wrote becomes what this one handles.

An *upcaster* is a plain function from one version to the next. It stands in the contracts, behind both versions, and
upcasters chain: whoever handles version 3 also gets versions 1 and 2. Nothing goes the other way. An event of a newer
version than any that is known here waits, parked, for the release that knows it (S2), and fields added with a default
need no new version: readers pass over what they do not know.

Commands evolve the same way; wherever this page says event, it means both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import msgspec

from forebay.errors import BodyError, ConfigurationError, UnknownVersionError
from forebay.event import EventSpec

Old = TypeVar("Old", bound=msgspec.Struct)
New = TypeVar("New", bound=msgspec.Struct)

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for a body: text that is not UTF-8 and nesting that is too deep are no ``DecodeError``."""


class Step(NamedTuple):
    """One upcaster: from which version, to which."""

    old: type[Any]
    new: type[Any]
    function: Callable[[Any], Any]


_STEPS: dict[type[Any], Step] = {}
"""Every upcaster that was declared, by the version that it starts from."""


def upcasts(old: type[Old]) -> Callable[[Callable[[Old], New]], Callable[[Old], New]]:
    """Declare that a function turns version ``old`` of an event into the newer one that it is annotated to return.

    The function is plain and pure: it runs for every old event that is read, at any time from now on, so what it says
    must not depend on the day. Declare it in the module of both versions, so that nobody has one without the other.

    Example:
        >>> from forebay import Event, upcasts
        >>> class DoorOpenedV1(Event, service="door", kind="door-opened", version=1, key="door"):
        ...     door: str
        >>> class DoorOpened(Event, service="door", kind="door-opened", version=2, key="door"):
        ...     door: str
        ...     by: str
        >>> @upcasts(DoorOpenedV1)
        ... def with_person(old: DoorOpenedV1) -> DoorOpened:
        ...     return DoorOpened(door=old.door, by="unknown")
        >>> Reader(DoorOpened).decode(1, b'{"door": "front"}')
        DoorOpened(door='front', by='unknown')

    Raises:
        ConfigurationError: it does not say what it returns, one of the two is no event, they are not an older and a
            newer version of one kind in one lane, or ``old``, or another class of its version, has an upcaster already.
    """

    def register(function: Callable[[Old], New]) -> Callable[[Old], New]:
        name = function.__name__
        try:
            new: Any = inspect.get_annotations(function, eval_str=True).get("return")
        except NameError as error:
            raise ConfigurationError(f"upcaster {name}: {error}", hint="declare it below both versions") from error
        before, after = spec_of(old, f"upcaster {name} takes"), spec_of(new, f"upcaster {name} returns")
        if (before.service, before.kind) != (after.service, after.kind) or before.version >= after.version:
            raise ConfigurationError(
                f"upcaster {name} leads from {before.type} to {after.type}",
                hint="it leads from a version of one kind to a newer one",
            )
        if before.lane != after.lane:
            raise ConfigurationError(
                f"upcaster {name}: {before.type} is in lane {before.lane!r}, {after.type} in {after.lane!r}",
                hint="order is kept within a lane: what moves to another is another kind",
            )
        if old in _STEPS:
            raise ConfigurationError(f"{before.type} has an upcaster already: {_STEPS[old].function.__name__}")
        newest = new
        while newest in _STEPS:
            newest = _STEPS[newest].new
        if any(spec_of(each).version == before.version for each in steps_to(newest)):
            raise ConfigurationError(f"another class is {before.type} too, and leads to {spec_of(newest).type}")
        _STEPS[old] = Step(old, new, function)
        return function

    return register


def spec_of(event: Any, what: str = "this is") -> EventSpec:
    """Return what an event class says of itself.

    Raises:
        ConfigurationError: it is no class of an event; ``what`` begins the message.
    """
    spec = getattr(event, "spec", None)
    if not isinstance(spec, EventSpec) or not isinstance(event, type):
        raise ConfigurationError(f"{what} {getattr(event, '__name__', event)}, which is no event")
    return spec


def steps_to(event: type[Any]) -> dict[type[Any], list[Step]]:
    """Return the versions from which upcasters lead to an event, each with its way; the event itself has none to go."""
    ways: dict[type[Any], list[Step]] = {event: []}
    found = [event]
    for new in found:  # grows while it is walked
        for step in list(_STEPS.values()):
            if step.new is new:
                ways[step.old] = [step, *ways[new]]
                found.append(step.old)
    return ways


class Reader(Generic[New]):
    """Decodes bodies of one event, in its own version and in every one from which upcasters lead to it.

    Whatever reads old events goes through one: handlers do by themselves; an aggregate's history, a rebuild or a sink
    of your own make one. Upcasters that are declared after it was made are not known to it.
    """

    def __init__(self, event: type[New]) -> None:
        self.event = event
        self.type = spec_of(event).type
        self._ways = {
            spec_of(old).version: (msgspec.json.Decoder(old), steps) for old, steps in steps_to(event).items()
        }

    def __contains__(self, version: int) -> bool:
        return version in self._ways

    @property
    def versions(self) -> list[int]:
        """The versions that it reads, the oldest first."""
        return sorted(self._ways)

    def decode(self, version: int, body: bytes) -> New:
        """Return a body of some version as the event.

        Raises:
            UnknownVersionError: no upcaster leads from that version to the event's.
            BodyError: the body is not what that version says, or an upcaster failed on it.
        """
        way = self._ways.get(version)
        if way is None:
            known = ", ".join(f"v{each}" for each in self.versions)
            raise UnknownVersionError(f"version {version} cannot be read as {self.type}, only {known}")
        decoder, steps = way
        try:
            event = decoder.decode(body)
        except UNREADABLE as error:
            raise BodyError(f"the body is not a {self.type.rpartition('.')[0]}.v{version}: {error}") from None
        for step in steps:
            event = _taken(step, event)
        return event  # type: ignore[no-any-return]

    def decode_all(self, version: int, bodies: Sequence[bytes]) -> list[New]:
        """Return bodies of one version as events, in order. Raises as ``decode`` does, of the first that fails."""
        decoder, steps = self._ways.get(version, (None, []))
        if decoder is not None and not steps:
            try:
                return list(map(decoder.decode, bodies))
            except UNREADABLE:
                pass  # which one it is, and what is wrong with it, is said below
        return [self.decode(version, body) for body in bodies]


def _taken(step: Step, event: Any) -> Any:
    try:
        new = step.function(event)
    except Exception as error:
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise BodyError(f"upcaster {step.function.__name__} failed on a {spec_of(step.old).type}: {said}") from error
    if not isinstance(new, step.new):
        raise BodyError(f"upcaster {step.function.__name__} returned {type(new).__name__}, not {step.new.__name__}")
    return new
