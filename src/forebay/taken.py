"""What became of deliveries in a transaction: counts, or the failure of a handler that undid it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from forebay.envelope import Message
from forebay.errors import ForebayError, MessageError
from forebay.identity import parse_message_id

FAILURES_IN_A_ROW = 10
"""Handlers' failures over different keys, with no success between, after which the consumer stops reading (F2)."""


class HandlerFailedError(ForebayError):
    """A handler raised; nothing of its transaction was kept.

    Attributes:
        index: the delivery during which it happened, in the batch that was taken.
        message_id: of the failing event; with a batch handler, of the first of the events it had.
        alone: whether it is certain that this very event failed.
    """

    retryable = True

    def __init__(self, index: int, message: Message, *, alone: bool, cause: Exception) -> None:
        super().__init__(f"the handler of {message.type} failed on {message.message_id}: {one_line(cause)}")
        self.index = index
        self.message_id = message.message_id
        self.alone = alone


Failing = Mapping[str, str]
"""Message ids of events that are to be parked, each with what its handler raised."""


class Taken(msgspec.Struct):
    """What one transaction did with its deliveries, in events."""

    applied: int = 0
    skipped: int = 0
    duplicates: int = 0
    held: int = 0
    parked: int = 0
    filled: int = 0
    missing: int = 0
    expired: int = 0


def in_a_row(failing: Failing) -> bool:
    """Whether so many events of one delivery failed one after the other that it is hardly their fault (F2).

    The rest of a frame is then parked untried: each event by event would undo and repeat the others every time.
    """
    places = [message_id.rpartition("-") for message_id in failing][-FAILURES_IN_A_ROW:]
    epoch, _, first = places[0]
    return len(places) == FAILURES_IN_A_ROW and [(each, last) for each, _, last in places] == [
        (epoch, str(int(first) + at)) for at in range(len(places))
    ]


def message_id_of(headers: Mapping[str, str]) -> str:
    """Return a message's id without a retransmission's suffix; as it stands where it is none of ours."""
    text = headers.get("Nats-Msg-Id", "")
    try:
        found = parse_message_id(text)
    except MessageError:
        found = None
    return str(found) if found else text


def one_line(error: Exception) -> str:
    """Return an error's type and the first line of its message."""
    return f"{type(error).__name__}: {error}".splitlines()[0]
