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
"""Message ids of events that are to be parked, each with what its handler raised; of a frame, all of its events are."""

RELEASED = "released"
"""Stands in ``Failing`` for all held events that a delivery lets go on: which of them is at fault nobody knows."""


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


class InARow:
    """The events that one delivery brings, in order: those of a frame, or the held ones that it lets go on.

    Where so many of them failed one after the other that it is hardly their fault (F2), the rest is parked untried:
    each by itself would undo and repeat all the others every time.
    """

    __slots__ = ("_count", "_detail", "_failing")

    def __init__(self, failing: Failing, detail: str | None = None) -> None:
        """Begin; ``detail`` says why not even the first is to be tried, where that is so."""
        self._failing = failing
        self._detail = detail
        self._count = 0 if detail is None else FAILURES_IN_A_ROW

    @property
    def full(self) -> bool:
        """Whether what comes next is not to be tried."""
        return self._count >= FAILURES_IN_A_ROW

    def untried(self, message_id: str) -> str | None:
        """Return why an event is to be parked untried; None where it is tried, or known to fail."""
        return self._detail if self.full and message_id not in self._failing else None

    def note(self, message_id: str, *, applied: bool) -> None:
        """Say what became of an event. One that only waits behind another of its key says nothing of the next."""
        if message_id in self._failing:
            self._count += 1
            self._detail = self._failing[message_id]
        elif applied:
            self._count = 0


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
