"""Commands as types: what the core tells one service of one node to do (rule I1).

A command is declared where both sides see it, and belongs to the service that *receives* it. It is sent in the unit of
work that decided it (``UnitOfWork.send``) and handled there like an event (``@service.on``); what came of it is told by
an ordinary event.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec

from forebay.errors import HeaderError
from forebay.event import EventMeta, EventSpec
from forebay.identity import NAME, checked_name

EXPIRY = "expirytime"
"""The CloudEvents extension that says until when a command is worth doing (CloudEvents "expirytime", RFC 3339)."""


class CommandMeta(EventMeta):
    """Takes a command's keywords: ``service`` receives it, ``lane`` is one of the service that sends it."""

    noun = "command"


class Command(msgspec.Struct, metaclass=CommandMeta):
    """The base of every command.

    Example:
        >>> class CloseDoor(Command, service="door", kind="close-door", key="door"):
        ...     door: str
        >>> CloseDoor.spec.type
        'door.close-door.v1'
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


class Destination(NamedTuple):
    """Whom a command is for. Order is kept per destination: two services of a node never see one another's commands."""

    node: str
    service: str

    def __str__(self) -> str:
        return f"{self.node}/{self.service}"


def destination_of(node: str, service: str) -> Destination:
    """Return a destination; raises ``ConfigurationError`` where one of the two is not a name."""
    return Destination(checked_name(node, "the destination"), checked_name(service, "service"))


def parse_destination(text: str) -> Destination:
    """Read ``<node>/<service>``; raises ``HeaderError`` where it is not."""
    node, _, service = text.partition("/")
    if not (NAME.fullmatch(node) and NAME.fullmatch(service)):
        raise HeaderError(f"destination {text!r} is not <node>/<service>")
    return Destination(node, service)
