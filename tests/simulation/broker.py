"""An in-memory stream, and what brokers do to it: known ids are swallowed, messages lost, the store goes back."""

from __future__ import annotations

import pickle
from bisect import bisect_left, bisect_right

from forebay.protocol.confirmation import ConfirmedBy
from tests.simulation.events import Message


class Stream:
    """A stream of one incarnation.

    Attributes:
        created: its incarnation.
        messages: by stream sequence.
        last: the highest sequence that it ever gave.
        known: the message ids of the duplicate window, each with the sequence that it was stored at.
        confirmed_by: its metadata (S3).
    """

    def __init__(self, created: str, confirmed_by: ConfirmedBy | None) -> None:
        self.created = created
        self.messages: dict[int, Message] = {}
        self.last = 0
        self.known: dict[str, int] = {}
        self.confirmed_by = confirmed_by
        self._order: list[int] = []

    def publish(self, message: Message) -> int:
        """Store a message, unless its id is known; return its sequence."""
        at = self.known.get(message.message_id)
        if at is None:
            at = self.last = self.last + 1
            self.known[message.message_id] = at
            self.messages[at] = message
            self._order.append(at)
        return at

    def between(self, first: int, last: int | None = None) -> list[int]:
        """Return the sequences of the messages from ``first`` on, ascending."""
        low = bisect_left(self._order, first)
        return self._order[low:] if last is None else self._order[low : bisect_right(self._order, last)]

    def remove(self, sequence: int) -> Message:
        """Lose a message; its id stays known."""
        self._order.remove(sequence)
        return self.messages.pop(sequence)

    def message_id_at(self, sequence: int) -> str | None:
        """Return the id of the message that stands there, or None."""
        message = self.messages.get(sequence)
        return message.message_id if message else None

    def copy(self) -> Stream:
        """Return a copy of the store directory."""
        copied: Stream = pickle.loads(pickle.dumps(self, -1))
        return copied


class Durable:
    """A consumer's durable of one partition: what it delivers next, and what it delivered into a lost connection.

    ``delivered`` is the last stream sequence of it. A destination's is there while it is ``registered``.
    """

    def __init__(self) -> None:
        self.next: int | None = None
        self.delivered = 0
        self.registered = True
        self.lost: list[int] = []
