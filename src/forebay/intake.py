"""The intake: deliveries become effects in one transaction, with inbox and stream position (rules S5, B1 to B3).

A batch is run with no savepoints. Where a handler fails, the whole transaction is undone and the caller runs it again
without the events from the failing one on: handlers may run twice before they count once.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from forebay.delivery import Delivery
from forebay.envelope import Identity, Message, decode_message, identify
from forebay.errors import ForebayError, HeaderError, MessageError, StoreError
from forebay.event import Event
from forebay.handlers import Handlers, Registration
from forebay.inbox import Inbox
from forebay.parking import park
from forebay.protocol.inbox import Verdict
from forebay.unit_of_work import UnitOfWork

_POSITION = """
    insert into forebay_position (stream, partition, incarnation, sequence, message_id)
    values (:stream, :partition, :incarnation, :sequence, :message_id)
    on conflict (stream, partition) do update set
      incarnation = excluded.incarnation, sequence = excluded.sequence, message_id = excluded.message_id"""


class HandlerFailedError(ForebayError):
    """A handler raised; nothing of its transaction was kept.

    Attributes:
        index: the delivery during which it happened, in the batch that was taken.
        message_id: of the failing event; with a batch handler, of the first of the events it had.
        alone: whether it is certain that this very event failed.
    """

    retryable = True

    def __init__(self, index: int, message: Message, *, alone: bool, cause: Exception) -> None:
        super().__init__(f"the handler of {message.type} failed on {message.message_id}: {_one_line(cause)}")
        self.index = index
        self.message_id = message.message_id
        self.alone = alone


class Taken(msgspec.Struct):
    """What one transaction did with its deliveries, in events."""

    applied: int = 0
    skipped: int = 0
    duplicates: int = 0
    held: int = 0
    parked: int = 0


class Intake:
    """One transaction's intake. Make one, ``take`` the deliveries in order, ``finish``; then the store commits."""

    def __init__(
        self, work: UnitOfWork, handlers: Handlers, stream: str, incarnation: str, *, one_by_one: bool
    ) -> None:
        self._work = work
        self._handlers = handlers
        self._stream = stream
        self._incarnation = incarnation
        self._inbox = Inbox(work)
        self._one_by_one = one_by_one
        self._batch: list[tuple[Event | None, Message]] = []
        self._batch_of: Registration | None = None
        self._batch_from = 0
        self._positions: dict[int, Delivery] = {}
        self._index = 0
        self.taken = Taken()

    def take(self, index: int, delivery: Delivery) -> None:
        """Make one delivery's effect, hold it, park it or pass over it.

        Raises:
            HandlerFailedError: its handler, or the one of a held event that it released, raised.
            StoreError: the database failed.
        """
        self._index = index
        self._positions[delivery.partition] = delivery
        try:
            identity = identify(delivery.subject, delivery.headers)
        except HeaderError as error:
            return self._park(delivery, error, None)
        place = identity.place
        if place is None:
            if self._inbox.seen_foreign(identity, delivery):
                self.taken.duplicates += 1
            else:
                self._apply(identity, delivery)
            return None
        origin = self._inbox.of(identity, place)
        verdict = origin.judge(place, identity.prev, identity.lane)
        if verdict is Verdict.DUPLICATE:
            self.taken.duplicates += 1
        elif verdict is Verdict.FOREIGN_LANE:
            stranger = HeaderError(f"epoch {place.epoch} belongs to another lane than {identity.lane!r}")
            self._park(delivery, stranger, identity, "foreign-lane")
        elif verdict is Verdict.HOLD:
            self._inbox.hold(identity, place, delivery)
            self.taken.held += 1
        else:
            self._apply(identity, delivery)
            origin.settle(place)
            while (due := origin.due()) is not None:
                released = self._inbox.release(identity, due, delivery.partition)
                self._apply(identify(released.subject, released.headers), released)
                origin.settle(due)
        return None

    def finish(self) -> Taken:
        """Run what batch handlers still wait for and write inbox and positions."""
        self._run_batch()
        self._inbox.save()
        self._work.executemany(
            _POSITION,
            [
                {
                    "stream": self._stream,
                    "partition": partition,
                    "incarnation": self._incarnation,
                    "sequence": delivery.stream_sequence,
                    "message_id": delivery.headers.get("Nats-Msg-Id", ""),
                }
                for partition, delivery in self._positions.items()
            ],
        )
        return self.taken

    def _apply(self, identity: Identity, delivery: Delivery) -> None:
        try:
            message = decode_message(identity, delivery.body, delivery.time)
            found = self._handlers.find(message)
        except MessageError as error:
            return self._park(delivery, error, identity)
        if found is None:
            self.taken.skipped += 1
            return None
        self.taken.applied += 1
        registration, event = found
        if registration.batch:
            if registration is not self._batch_of:
                self._run_batch()
                self._batch_of, self._batch_from = registration, self._index
            self._batch.append((event, message))
            if self._one_by_one:
                self._run_batch()
            return None
        self._run_batch()
        self._work.because_of(message)
        try:
            if registration.wants_message:
                registration.function(self._work, event, message)
            else:
                registration.function(self._work, event)
        except StoreError:
            raise
        except Exception as error:
            raise HandlerFailedError(self._index, message, alone=True, cause=error) from error
        self._work.because_of(None)
        return None

    def _run_batch(self) -> None:
        registration, batch = self._batch_of, self._batch
        if registration is None or not batch:
            return
        self._batch_of, self._batch = None, []
        messages = [message for _, message in batch]
        try:
            if registration.event is None:
                registration.function(self._work, messages)
            else:
                registration.function(self._work, [event for event, _ in batch], messages)
        except StoreError:
            raise
        except Exception as error:
            alone = len(batch) == 1
            raise HandlerFailedError(self._batch_from, messages[0], alone=alone, cause=error) from error

    def _park(self, delivery: Delivery, error: MessageError, identity: Identity | None, reason: str = "") -> None:
        park(self._work, delivery, error, identity, reason)
        self.taken.parked += 1


def take_all(
    work: UnitOfWork,
    handlers: Handlers,
    stream: str,
    incarnation: str,
    deliveries: Sequence[Delivery],
    one_by_one: bool,
) -> Taken:
    """Take a batch of deliveries in one unit of work. Raises as ``Intake.take`` does."""
    intake = Intake(work, handlers, stream, incarnation, one_by_one=one_by_one)
    for index, delivery in enumerate(deliveries):
        intake.take(index, delivery)
    return intake.finish()


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]
