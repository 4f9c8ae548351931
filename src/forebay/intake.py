"""The intake: deliveries become effects in one transaction, with inbox and stream position (rules S5, B1 to B5, F1).

A batch is run with no savepoints. Where a handler fails, the whole transaction is undone and the caller runs it again
with that event among those to park: handlers may run twice before they count once.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime

from forebay.calls import Calls
from forebay.command import Command
from forebay.crash_points import reach
from forebay.delivery import Delivery
from forebay.envelope import Identity, Message, decode_message, identify
from forebay.errors import (
    ForgedSourceError,
    FrameFoundError,
    HeaderError,
    MessageError,
)
from forebay.event import Event
from forebay.expiring import expiry_of, record_expired
from forebay.frame import decode_frame, identify_frame
from forebay.frame_event import FrameIdentity
from forebay.gaps import record_gap
from forebay.handlers import Handlers, Registration
from forebay.identity import Origin, Place
from forebay.inbox import Ahead, Inbox
from forebay.parking import ABANDONED, BEHIND, FOREIGN_LANE, HANDLER, LATE, Parked, Parking, origin_of
from forebay.plain import Plain
from forebay.plain_event import decode_usual, plain_of
from forebay.protocol.inbox import Due, OriginInbox, Step, Verdict
from forebay.taken import RELEASED, Failing, InARow, Taken
from forebay.unframing import Event as FrameEvent
from forebay.unframing import alike, alone, identity_of, read_alone
from forebay.unit_of_work import UnitOfWork

_POSITION = """
    insert into forebay_position (stream, partition, incarnation, sequence, message_id)
    values (:stream, :partition, :incarnation, :sequence, :message_id)
    on conflict (stream, partition) do update set
      incarnation = excluded.incarnation, sequence = excluded.sequence, message_id = excluded.message_id"""

TOGETHER = 125
"""Deliveries that are read before the first of them is taken."""

_CAUSE = """
    insert into forebay_cause (node, service, cause, seen_at) values (:node, :service, :cause, :seen_at)
    on conflict do nothing returning 1"""


class Intake:
    """One transaction's intake. Make one, ``take`` the deliveries in order, ``finish``; then the store commits."""

    def __init__(
        self, work: UnitOfWork, handlers: Handlers, *, one_by_one: bool = True, failing: Failing | None = None
    ) -> None:
        self._work = work
        self._handlers = handlers
        self._failing = failing or {}
        self.inbox = Inbox(work)
        self.parking = Parking(work)
        self.taken = Taken()
        self._calls = Calls(work, self.taken, one_by_one=one_by_one)

    def take_some(self, index: int, deliveries: Sequence[Delivery], *, known: bool) -> None:
        """Take deliveries in their order, the first as the one of this index; raises as ``take`` does.

        Those that are as most are read before the first is taken, so that the inbox can look for their epochs at once;
        unless it is ``known`` what it says of them.
        """
        quick = not self._failing and self.parking.empty
        plains = [plain_of(each.headers) for each in deliveries]
        messages = [
            decode_usual(each.subject, plain, each.body, each.time) if quick and plain and plain.cause is None else None
            for each, plain in zip(deliveries, plains, strict=True)
        ]
        if not known:
            self.inbox.expect(deliveries, messages)
        for at, (delivery, plain, message) in enumerate(zip(deliveries, plains, messages, strict=True), index):
            self._calls.index = at
            if message is None or not self._take_next(message, delivery):
                self._take(delivery, plain)

    def take(self, index: int, delivery: Delivery) -> None:
        """Make one delivery's effect, hold it, park it or pass over it.

        Raises:
            HandlerFailedError: its handler, or the one of a held event that it released, raised.
            StoreError: the database failed.
        """
        self._calls.index = index
        self._take(delivery, plain_of(delivery.headers))

    def _take(self, delivery: Delivery, plain: Plain | None) -> None:
        try:
            identity = identify(delivery.subject, delivery.headers, plain)
        except FrameFoundError:
            identity = None
        except HeaderError as error:
            self._park(delivery, None, error.reason, str(error), alone=True)
            return
        if identity is None:
            self._take_frame(delivery)
        else:
            self._take_event(identity, delivery)

    def _take_next(self, message: Message, delivery: Delivery) -> bool:
        """Take an event as most are: next in its epoch, and nothing waits; False, and nothing done, for any other."""
        if message.place is None or not self.parking.empty:
            return False
        if not self.inbox.pass_next(message, message.place):
            return False
        try:
            found = self._handlers.find(message)
        except MessageError as error:
            self._park(delivery, identify(delivery.subject, delivery.headers), error.reason, str(error))
            return True
        if found is None:
            self.taken.skipped += 1
        else:
            self._calls.call(*found, message)
        return True

    def _take_frame(self, delivery: Delivery) -> None:
        """Take a frame: as a whole where it stands next to the watermark, else event by event."""
        frame = None
        try:
            frame = identify_frame(delivery.subject, delivery.headers)
            first = Place(frame.epoch, frame.first)
            known = self.inbox.of(frame, first)
            if self._handlers.repeated is None and known.repeats(first, frame.last, frame.lane):
                self.taken.duplicates += frame.last - frame.first + 1
                return
            events = decode_frame(frame, delivery.body, delivery.time)
        except MessageError as error:
            self._park_frame(frame, delivery, error)
            return
        if not known.follows(first, frame.last, frame.prev, frame.lane):
            row = InARow(self._failing, self._failing.get(frame.message_id))
            for event in events:
                self._take_event(identity_of(frame, event), alone(frame, event, delivery), event, row)
            return
        if not self._apply_alike(events):
            self._apply_each(frame, events, delivery)
        known.settle_frame(first, frame.last)
        if known.due() is not None:
            self.drain(Origin(frame.node, frame.service, frame.lane), known, delivery.partition)

    def _apply_alike(self, events: Sequence[FrameEvent]) -> bool:
        """Make the effects of a frame's events together; False, and nothing done, where each has to be looked at."""
        if self._failing or not self.parking.empty:
            return False
        messages = alike(events)
        if messages is None:
            return False
        try:
            found = self._handlers.find_all(messages)
        except MessageError:
            return False
        if found is None:
            self.taken.skipped += len(messages)
        else:
            self._calls.call_all(*found, messages)
        return True

    def _apply_each(self, frame: FrameIdentity, events: Sequence[FrameEvent], delivery: Delivery) -> None:
        """Make the effects of a frame's events, or park them, one after the other."""
        # Where it is not known which events are at fault (a COMMIT does not say), each is tried by itself, from there.
        row = InARow(self._failing, self._failing.get(frame.message_id))
        for at, event in enumerate(events, frame.first):
            message_id, applied = f"{frame.epoch}-{at}", self.taken.applied
            untried = row.untried(message_id)
            if untried is None and isinstance(event, Message) and event.cause is None and self.parking.empty:
                self._apply_event(frame, event, delivery)
            else:
                self._apply(identity_of(frame, event), alone(frame, event, delivery), event, untried)
            row.note(message_id, applied=self.taken.applied > applied)

    def _park_frame(self, frame: FrameIdentity | None, delivery: Delivery, error: MessageError) -> None:
        """Keep a frame that cannot be read: its origin waits behind it, as its places are not passed (F1)."""
        # The node sends again what was not passed, under another suffix each time: one copy is enough.
        headers = dict(delivery.headers)
        for name in [name for name in headers if name.lower() == "nats-msg-id"]:
            headers[name] = headers[name].partition("~")[0]
        delivery = delivery._replace(headers=headers)
        if frame is None:
            self._park(delivery, None, error.reason, str(error), alone=True)
        else:
            self.taken.parked += self.parking.park_frame(frame, delivery, error.reason, str(error))

    def _apply_event(self, frame: FrameIdentity, event: Message, delivery: Delivery) -> None:
        """Make the effect of an event of a frame, with nothing in its way."""
        try:
            found = self._handlers.find(event)
        except MessageError as error:
            self._park(alone(frame, event, delivery), identity_of(frame, event), error.reason, str(error))
            return
        if found is None:
            self.taken.skipped += 1
        elif event.message_id in self._failing:
            failed = self._failing[event.message_id]
            self._park(alone(frame, event, delivery), identity_of(frame, event), HANDLER, failed)
        else:
            self._calls.call(*found, event)

    def _take_event(
        self, identity: Identity, delivery: Delivery, event: FrameEvent | None = None, row: InARow | None = None
    ) -> None:
        """Take one event; where it came in a frame, ``event`` is what was read of it, and ``row`` the frame's."""
        place = identity.place
        if place is None:
            if self.inbox.seen_foreign(identity, delivery):
                self.taken.duplicates += 1
            else:
                self._apply(identity, delivery)
            return
        origin = self.inbox.of(identity, place)
        match origin.judge(place, identity.prev, identity.lane):
            case Verdict.APPLY:
                if row is None:
                    self._apply(identity, delivery)
                else:
                    self._apply_of(row, identity, delivery, event)
                origin.settle(place)
                if origin.due() is not None:
                    self.drain(origin_of(identity), origin, delivery.partition)
            case Verdict.DUPLICATE:
                self._repeated(identity, delivery, event)
            case Verdict.HOLD:
                self.inbox.hold(identity, place, delivery)
                self.taken.held += 1
                reach("consume.held")
            case Verdict.FOREIGN_LANE:
                stranger = f"epoch {place.epoch} belongs to another lane than {identity.lane!r}"
                self._park(delivery, identity, FOREIGN_LANE, stranger, alone=True)
            case Verdict.LATE:
                origin.found(place)
                self._park(delivery, identity, LATE, "its place was closed without it", alone=True, on_request=True)
            case Verdict.FILL:
                origin.found(place)
                self.parking.fill(origin_of(identity), place, delivery)
                self.taken.filled += 1

    def drain(self, origin: Origin, known: OriginInbox, partition: int) -> None:
        """Pass what is due now: held events take effect, dropped places are missing, withheld ones are parked."""
        row = InARow(self._failing, self._failing.get(RELEASED))
        while (step := known.due()) is not None:
            place = Place(step.epoch, step.first)
            if step.due is Due.HELD:
                released = self.inbox.release(origin, place, partition)
                identity, event = read_alone(released)
                self._apply_of(row, identity, released, event)
                known.settle(place)
            elif step.due is Due.DROPPED:
                self.skip(origin, known, step, "drop", "the node's budget pushed it out")
            else:
                self.parking.want(origin, place, step.key, partition)
                known.want(place)
                self.taken.parked += 1

    def _apply_of(self, row: InARow, identity: Identity, delivery: Delivery, event: FrameEvent | None) -> None:
        """Make the effect of one of the events that came together, or park it."""
        applied = self.taken.applied
        self._apply(identity, delivery, event, row.untried(identity.message_id))
        row.note(identity.message_id, applied=self.taken.applied > applied)

    def skip(self, origin: Origin, known: OriginInbox, places: Step, kind: str, reason: str) -> None:
        """Pass places without their events, on record."""
        known.skip(places.epoch, places.last)
        record_gap(self._work, origin, places.epoch, (places.first, places.last), kind, reason)
        self.taken.missing += places.last - places.first + 1

    def retry(self, parked: Parked) -> None:
        """Make the effect of a parked event and take it out, unless it was discarded since; ``finish`` afterwards.

        Raises:
            HandlerFailedError: its handler raised again.
            MessageError: it still cannot be read.
        """
        if not self.parking.take_due(parked.id):
            return
        try:
            identity, event = read_alone(parked.delivery)
        except FrameFoundError:
            self._retry_frame(parked.delivery)
            return
        place = identity.place
        if place is not None and place not in self.inbox.of(identity, place):
            self.take(0, parked.delivery)  # its envelope could not be read before: its origin waits for it
            return
        message = _read(identity, parked.delivery, event)
        self._check_sender(identity)
        found = self._handlers.find(message)
        if found is not None and self._is_first(identity, message):
            self._make(*found, message, expiry_of(message))

    def _retry_frame(self, delivery: Delivery) -> None:
        """Take a frame that could not be read as a whole; those of its events that came again since are known."""
        frame = identify_frame(delivery.subject, delivery.headers)
        decode_frame(frame, delivery.body, delivery.time)  # it stays as it is where that still fails
        self.take(0, delivery)

    def replay(self, index: int, delivery: Delivery) -> None:
        """Make the effect of an event that is known to have had one, for tables that are built anew (F3).

        The inbox does not judge it; causes are taken once, as ever (B5).

        Raises:
            HandlerFailedError: its handler raised.
            MessageError: this release cannot read it.
            StoreError: the database failed.
        """
        self._calls.index = index
        identity = identify(delivery.subject, delivery.headers)
        message = decode_message(identity, delivery.body, delivery.time)
        found = self._handlers.find(message)
        if found is None:
            self.taken.skipped += 1
        elif identity.place is not None and not self._is_first(identity, message):
            self.taken.duplicates += 1
        else:
            self._calls.call(*found, message)

    def finish(self) -> Taken:
        """Run what batch handlers still wait for and write the inbox."""
        self._calls.finish()
        self.inbox.save()
        return self.taken

    def _apply(
        self, identity: Identity, delivery: Delivery, event: FrameEvent | None = None, suspect: str | None = None
    ) -> None:
        """Make an event's effect, unless something is in its way; ``suspect`` says why that is not even tried now."""
        if identity.caused and self._is_abandoned(identity):
            branch = "a restore of its emitter left it behind: it is emitted again"
            return self._park(delivery, identity, ABANDONED, branch, alone=True, on_request=True)
        if not self.parking.empty and self.parking.blocks(identity):
            return self._park(delivery, identity, BEHIND, "an earlier event of its key is parked")
        try:
            message = _read(identity, delivery, event)
            expires = None
            if identity.destination:
                self._check_sender(identity)
                expires = expiry_of(message)
            found = self._handlers.find(message)
        except MessageError as error:
            return self._park(delivery, identity, error.reason, str(error))
        if found is None:
            self.taken.skipped += 1
            return None
        failed = self._failing.get(message.message_id, suspect)
        if failed is not None:
            return self._park(delivery, identity, HANDLER, failed)
        if message.cause is not None and identity.place is not None and not self._is_first(identity, message):
            self.taken.duplicates += 1
            return None
        if expires is None:
            self._calls.call(*found, message)
        else:
            self._make(*found, message, expires)
        return None

    def _check_sender(self, identity: Identity) -> None:
        """Refuse a command that does not come from the core."""
        if identity.destination and identity.node != self._handlers.core:
            raise ForgedSourceError(f"a command of node {identity.node!r}: only {self._handlers.core!r} sends commands")

    def _make(
        self, registration: Registration, event: Event | Command | None, message: Message, expires: datetime | None
    ) -> None:
        """Make the effect of an event, or of a command that has not expired."""
        if expires is None or self._handlers.now() <= expires:
            self._calls.call(registration, event, message)
            return
        self.taken.expired += 1
        record_expired(self._work, message, expires)
        instead = self._handlers.expired(registration)
        if instead is not None:
            self._calls.call(instead, event, message)
            self.taken.applied -= 1

    def _is_abandoned(self, identity: Identity) -> bool:
        """Whether a restore of its emitter left this event behind (B5); only what has a cause is emitted again."""
        if identity.place is None:
            return False
        known = self.inbox.of(identity, identity.place)
        if all(state.abandoned_after is None for state in known.epochs.values()):
            return False
        return self.inbox.whole(identity.node, identity.service).abandoned(identity.place)

    def _is_first(self, identity: Identity, message: Message) -> bool:
        """Whether nothing was done yet because of this message's cause (B5); what keeps everything keeps them all."""
        if message.cause is None or self._handlers.takes_everything:
            return True
        now = time.time_ns() // 1_000_000
        return bool(
            self._work.execute(_CAUSE, node=identity.node, service=identity.service, cause=message.cause, seen_at=now)
        )

    def _repeated(self, identity: Identity, delivery: Delivery, event: FrameEvent | None) -> None:
        self.taken.duplicates += 1
        if self._handlers.repeated is None:
            return
        self._calls.finish()  # what it is compared with may be among them
        try:
            message = _read(identity, delivery, event)
        except MessageError:
            return  # the first copy was parked
        self._handlers.repeated(self._work, message)

    def _park(
        self,
        delivery: Delivery,
        identity: Identity | None,
        reason: str,
        detail: str,
        *,
        alone: bool = False,
        on_request: bool = False,
    ) -> None:
        self.parking.park(delivery, identity, reason, detail, alone=alone, on_request=on_request)
        self.taken.parked += 1


def take_all(
    work: UnitOfWork,
    handlers: Handlers,
    stream: str,
    incarnation: str,
    deliveries: Sequence[Delivery],
    one_by_one: bool,
    failing: Failing | None = None,
    ahead: Ahead | None = None,
) -> Taken:
    """Take a batch of a stream's deliveries in one unit of work, with the position that it leads to.

    ``ahead`` is what the inbox says of them, where that was read before. Raises as ``Intake.take`` does.
    """
    reach("consume.begun")
    intake = Intake(work, handlers, one_by_one=one_by_one, failing=failing)
    positions: dict[int, Delivery] = {}
    if ahead is not None:
        intake.inbox.know(ahead)
    for at in range(0, len(deliveries), TOGETHER):
        intake.take_some(at, deliveries[at : at + TOGETHER], known=ahead is not None)
    for delivery in deliveries:
        positions[delivery.partition] = delivery
    taken = intake.finish()
    reach("consume.saved")
    work.executemany(
        _POSITION,
        [
            {
                "stream": stream,
                "partition": partition,
                "incarnation": incarnation,
                "sequence": delivery.stream_sequence,
                "message_id": delivery.headers.get("Nats-Msg-Id", ""),
            }
            for partition, delivery in positions.items()
        ],
    )
    reach("consume.positioned")
    return taken


def _read(identity: Identity, delivery: Delivery, event: FrameEvent | None) -> Message:
    """Return a delivery's event; what a frame said of it is known already. Raises as ``decode_message``."""
    if event is None:
        return decode_message(identity, delivery.body, delivery.time)
    if isinstance(event, Message):
        return event
    raise event.error
