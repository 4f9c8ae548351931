"""Calling handlers within one transaction: a single one for each event, a batch handler for many events together."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.command import Command
from forebay.crash_points import reach
from forebay.envelope import Message
from forebay.errors import StoreError
from forebay.event import Event
from forebay.handlers import Registration
from forebay.taken import HandlerFailedError, Taken
from forebay.unit_of_work import UnitOfWork

BATCH_BYTES = 8 * 1024 * 1024
"""Bytes of bodies from which on a batch handler is called with what there is: the few bytes of a packed frame can stand
for thousands of times as many, and a transaction takes in many frames."""

BATCH_EVENTS = 1_000
"""Events from which on it is called as well. More of them make no statement cheaper, and what they take in memory is no
longer near when the handler comes to it: with 58 frames at a time an event took a fifth more."""

Handled = Event | Command | None
"""What a handler gets beside the message; None where it gets the message alone."""


class Calls:
    """Calls what handles the events of one transaction, in their order, and counts them as applied.

    Attributes:
        index: the delivery that is being taken, in the batch; whoever takes it says so.
    """

    def __init__(self, work: UnitOfWork, taken: Taken, *, one_by_one: bool) -> None:
        self._work = work
        self._taken = taken
        self._one_by_one = one_by_one
        self._events: list[Handled] = []
        self._messages: list[Message] = []
        self._batch_of: Registration | None = None
        self._from = self._bytes = self.index = 0

    def call(self, registration: Registration, event: Handled, message: Message) -> None:
        """Have one event handled, at once or with its batch.

        Raises:
            HandlerFailedError: the handler raised.
            StoreError: the database failed.
        """
        if registration.batch:
            self._gather(registration, [event], [message], len(message.body))
            return
        self._taken.applied += 1
        self.finish()
        self._work.because_of(message)
        try:
            if registration.wants_message:
                registration.function(self._work, event, message)
            else:
                registration.function(self._work, event)
        except StoreError:
            raise
        except Exception as error:
            raise HandlerFailedError(self.index, message, alone=True, cause=error) from error
        self._work.because_of(None)
        reach("consume.applied")

    def call_all(self, registration: Registration, events: Sequence[Handled], messages: Sequence[Message]) -> None:
        """Have events handled that one handler is for, each with its message. Raises as ``call`` does."""
        if registration.batch:
            size = sum([len(message.body) for message in messages])
            if not self._one_by_one and self._bytes + size < BATCH_BYTES:
                self._gather(registration, events, messages, size)
                return
        if registration.batch or not registration.wants_message:
            for event, message in zip(events, messages, strict=True):
                self.call(registration, event, message)
            return
        self.finish()
        work, function = self._work, registration.function
        for event, message in zip(events, messages, strict=True):
            work.because_of(message)
            try:
                function(work, event, message)
            except StoreError:
                raise
            except Exception as error:
                raise HandlerFailedError(self.index, message, alone=True, cause=error) from error
            reach("consume.applied")
        work.because_of(None)
        self._taken.applied += len(messages)

    def finish(self) -> None:
        """Call the batch handler that events still wait for; raises as ``call`` does."""
        registration, events, messages = self._batch_of, self._events, self._messages
        if registration is None:
            return
        self._batch_of, self._events, self._messages, self._bytes = None, [], [], 0
        try:
            if registration.event is None:
                registration.function(self._work, messages)
            else:
                registration.function(self._work, events, messages)
        except StoreError:
            raise
        except Exception as error:
            raise HandlerFailedError(self._from, messages[0], alone=len(messages) == 1, cause=error) from error
        reach("consume.applied")

    def _gather(
        self, registration: Registration, events: Sequence[Handled], messages: Sequence[Message], size: int
    ) -> None:
        self._taken.applied += len(messages)
        if registration is not self._batch_of:
            self.finish()
            self._batch_of, self._from = registration, self.index
        self._events += events
        self._messages += messages
        self._bytes += size
        if self._one_by_one or self._bytes >= BATCH_BYTES or len(self._messages) >= BATCH_EVENTS:
            self.finish()
