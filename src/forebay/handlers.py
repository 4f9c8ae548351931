"""Which function handles which event, and how a message becomes the event that it gets."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from forebay.command import Command
from forebay.envelope import GATEWAY, Message
from forebay.errors import ConfigurationError, HeaderError, UnknownVersionError
from forebay.event import Event, parse_type
from forebay.evolution import Reader
from forebay.identity import CORE

Handler = Callable[..., None]
ALL = "*"


class Registration(msgspec.Struct, frozen=True):
    """One handler. Single: ``f(tx, event[, message])``; batch: ``f(tx, events, messages)``, lists of equal length.

    A handler of everything (``event`` is None) gets the messages alone, as a list.
    """

    function: Handler
    event: type[Event] | type[Command] | None
    batch: bool
    wants_message: bool

    @property
    def name(self) -> str:
        """The function's name."""
        return self.function.__name__


class Way(NamedTuple):
    """How events of one type get to their handler: what reads them, and in which version; None for messages alone."""

    registration: Registration
    reader: Reader[Event | Command] | None
    version: int


class Handlers:
    """The handlers of one consumer, by service and kind of event."""

    def __init__(self) -> None:
        self._by_kind: dict[tuple[str, str], dict[int, Registration]] = {}
        self._everything: Registration | None = None
        self.repeated: Callable[..., None] | None = None
        """Sees each event whose id was taken before: ``f(tx, message)``; the archive compares bodies with it."""
        self._readers: dict[type[Event] | type[Command], Reader[Event | Command]] = {}
        self._known: dict[tuple[str, str, str], Way] = {}
        self._commands: dict[str, dict[int, Registration]] = {}
        self._expired: dict[type[Command], Registration] = {}
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)
        """The time by which commands expire: the wall's, or the core's as far as it is known."""
        self.core = CORE
        """The node that may send commands."""

    def __bool__(self) -> bool:
        """Whether there are handlers of events."""
        return bool(self._by_kind) or self._everything is not None

    @property
    def takes_commands(self) -> bool:
        """Whether there are handlers of commands."""
        return bool(self._commands)

    @property
    def services(self) -> list[str]:
        """The services whose events this consumer reads, sorted; ``["*"]`` for all."""
        return [ALL] if self._everything else sorted({service for service, _ in self._by_kind})

    @property
    def takes_everything(self) -> bool:
        """Whether one handler gets every event of every service."""
        return self._everything is not None

    def add(self, event: type[Event], function: Handler, *, batch: bool) -> None:
        """Let ``function`` handle one version of one event, and older ones from which upcasters lead to it.

        Raises:
            ConfigurationError: that version has a handler already, or the function is a coroutine's or takes other
                parameters.
        """
        spec = event.spec
        if self._everything:
            raise ConfigurationError(f"{spec.type} has a handler already, of everything: {self._everything.name}")
        versions = self._by_kind.get((spec.service, spec.kind), {})
        if spec.version in versions:
            raise ConfigurationError(f"{spec.type} has a handler already: {versions[spec.version].name}")
        count = _parameters(function)
        if count not in ({3} if batch else {2, 3}):
            wanted = "(tx, events, messages)" if batch else "(tx, event) or (tx, event, message)"
            raise ConfigurationError(f"handler {function.__name__} takes {count} parameters", hint=f"take {wanted}")
        versions[spec.version] = Registration(function, event, batch, count == 3)
        self._by_kind[spec.service, spec.kind] = versions
        self._known.clear()

    def add_command(self, service: str, command: type[Command], function: Handler) -> None:
        """Let ``function`` handle one version of one command of ``service``, which is the one that has it done.

        Raises:
            ConfigurationError: the command is another service's, that version has a handler already, or the function is
                a coroutine's or takes other parameters.
        """
        spec = command.spec
        if spec.service != service:
            raise ConfigurationError(f"{spec.type} is a command for service {spec.service!r}, this is {service!r}")
        versions = self._commands.get(spec.kind, {})
        if spec.version in versions:
            raise ConfigurationError(f"{spec.type} has a handler already: {versions[spec.version].name}")
        versions[spec.version] = _of_command(command, function)
        self._commands[spec.kind] = versions

    def add_expired(self, command: type[Command], function: Handler) -> None:
        """Let ``function`` see the commands of one type that expired before they were done; raises as ``add`` does."""
        if command in self._expired:
            raise ConfigurationError(f"the expiry of {command.spec.type} has a handler already")
        self._expired[command] = _of_command(command, function)

    def expired(self, registration: Registration) -> Registration | None:
        """Return what handles the expiry of the commands of a handler, where there is such a thing."""
        command = registration.event
        if command is None or not issubclass(command, Command):
            return None
        return self._expired.get(command)

    def add_everything(self, function: Handler) -> None:
        """Let ``function(tx, messages)`` handle every event of every service, in batches.

        Raises:
            ConfigurationError: there are handlers already, or the function is a coroutine's or takes other parameters.
        """
        if self._everything:
            raise ConfigurationError(f"there is a handler of everything already: {self._everything.name}")
        if self._by_kind:
            raise ConfigurationError(
                "a handler of everything would hide the others", hint="give it a service of its own"
            )
        if _parameters(function) != 2:
            raise ConfigurationError(
                f"handler {function.__name__} has the wrong parameters", hint="take (tx, messages)"
            )
        self._everything = Registration(function, None, batch=True, wants_message=True)

    def joined(self, other: Handlers) -> Handlers:
        """Return the handlers of both; they handle no kind both, or the other's are not reached."""
        both = Handlers()
        both._by_kind = {**other._by_kind, **self._by_kind}
        both._everything = self._everything
        both.repeated = self.repeated
        both._commands = {**other._commands, **self._commands}
        both._expired = {**other._expired, **self._expired}
        both.now, both.core = self.now, self.core
        return both

    def find(self, message: Message) -> tuple[Registration, Event | Command | None] | None:
        """Return the handler of a message and the event it gets, or None where nothing handles its kind.

        Raises:
            UnknownVersionError: its kind is handled, its version is not, nor a newer one to which upcasters lead; or
                it is a command that nothing handles: a newer core may know more than this node, and what is asked for
                is never passed over in silence.
            HeaderError: its type does not belong to its subject.
            BodyError: the body does not decode to the event's type, or an upcaster failed on it.
        """
        known = None if message.destination else self._known.get((message.service, message.kind, message.type))
        way = known or self._way(message)
        if way is None:
            return None
        registration, reader, version = way
        return registration, None if reader is None else reader.decode(version, message.body)

    def find_all(self, messages: Sequence[Message]) -> tuple[Registration, Sequence[Event | Command | None]] | None:
        """Return the handler of messages of one service, kind and type, and the event of each, or None as ``find``.

        Raises as ``find`` does, of the first message that has no event.
        """
        way = self._way(messages[0])
        if way is None:
            return None
        registration, reader, version = way
        if reader is None:
            return registration, [None] * len(messages)
        return registration, reader.decode_all(version, [message.body for message in messages])

    def _way(self, message: Message) -> Way | None:
        """Return what handles a message and what reads it; raises as ``find`` does for what it is, not what it says."""
        if message.destination:
            versions = self._commands.get(message.kind)
            if versions is None:
                raise UnknownVersionError(f"{message.type} is a command that nothing handles here")
            version = _version_of(message, message.destination.partition("/")[2])
            return self._read_by(self._nearest(versions, version, message.type), version)
        if self._everything:
            return Way(self._everything, None, 0)
        key = message.service, message.kind, message.type
        known = self._known.get(key)
        if known is not None:
            return known
        versions = self._by_kind.get((message.service, message.kind))
        if versions is None:
            return None
        if message.service == GATEWAY:  # its clients' types carry no version of ours, and may be any number of texts
            version = max(versions)
            return self._read_by(versions[version], version)
        version = _version_of(message, message.service)
        way = self._known[key] = self._read_by(self._nearest(versions, version, message.type), version)
        return way

    def _read_by(self, registration: Registration, version: int) -> Way:
        return Way(registration, None if registration.event is None else self._reader(registration.event), version)

    def _nearest(self, versions: dict[int, Registration], version: int, event_type: str) -> Registration:
        """Return the handler of that version, else of the lowest newer one to which upcasters lead from it."""
        if version in versions:
            return versions[version]
        for newer in sorted(each for each in versions if each > version):
            event = versions[newer].event
            if event is not None and version in self._reader(event):
                return versions[newer]
        known = ", ".join(f"v{each}" for each in sorted(versions))
        raise UnknownVersionError(f"{event_type} is not a version that is handled here ({known})")

    def _reader(self, event: type[Event] | type[Command]) -> Reader[Event | Command]:
        """Return the reader of an event; made at its first use: upcasters may be declared later."""
        reader = self._readers.get(event)
        if reader is None:
            reader = self._readers[event] = Reader(event)
        return reader


def _version_of(message: Message, service: str) -> int:
    parsed = parse_type(message.type)
    if parsed is None or parsed[:2] != (service, message.kind):
        raise HeaderError(f"ce-type {message.type!r} is not {service}.{message.kind}.v<N>, as its subject")
    return parsed[2]


def _of_command(command: type[Command], function: Handler) -> Registration:
    count = _parameters(function)
    if count not in {2, 3}:
        raise ConfigurationError(
            f"handler {function.__name__} takes {count} parameters", hint="take (tx, command) or (tx, command, message)"
        )
    return Registration(function, command, batch=False, wants_message=count == 3)


def _parameters(function: Handler) -> int:
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(
            f"handler {function.__name__} is a coroutine function", hint="make it a plain function"
        )
    kinds: Any = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return sum(parameter.kind in kinds for parameter in inspect.signature(function).parameters.values())
