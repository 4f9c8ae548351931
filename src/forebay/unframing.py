"""An event of a frame as a delivery of its own: what is held or parked of a frame is kept event by event (rule F1).

What becomes of a frame is decided for each of its events, so that its borders matter to nobody (I4): an event that is
held, parked, or asked for again is the same whether it came alone or among others.
"""

from __future__ import annotations

from collections.abc import Sequence

from forebay.delivery import Delivery
from forebay.envelope import BATCH, Identity, Message, encode_headers, identify, percent_encode
from forebay.errors import FrameFoundError, MessageError
from forebay.frame import Unreadable, decode_frame, identify_frame
from forebay.frame_event import FrameIdentity
from forebay.identity import Place

Event = Message | Unreadable


def alike(events: Sequence[Event]) -> Sequence[Message] | None:
    """Return a frame's events if each can be read, all are of one type, and none names a cause; else None."""
    messages = [event for event in events if isinstance(event, Message) and event.cause is None]
    same = len(messages) == len(events) and len({message.type for message in messages}) == 1
    return messages if same else None


def alone(frame: FrameIdentity, event: Event, delivery: Delivery) -> Delivery:
    """Return an event of a frame as if it had come alone; one that cannot be read as a frame of itself."""
    if isinstance(event, Message):
        return delivery._replace(headers=encode_headers(event), body=event.body)
    headers = {
        "Nats-Msg-Id": str(event.place),
        "Content-Type": BATCH,
        "forebay-lane": frame.lane,
        "forebay-prev": str(frame.prev or "none"),
    }
    return delivery._replace(headers=headers, body=b"[" + event.text + b"]")


def identity_of(frame: FrameIdentity, event: Event) -> Identity:
    """Return who wrote an event of a frame and where it stands."""
    if isinstance(event, Message):
        key, cause, place, message_id = event.key, event.cause, event.place, event.message_id
    else:
        key, cause, place, message_id = event.key, None, event.place, str(event.place)
    headers = {} if key is None else {"ce-partitionkey": percent_encode(key)}
    if cause is not None:
        headers["forebay-cause"] = cause
    return Identity(headers, message_id, frame.node, frame.service, frame.kind, place, frame.prev, frame.lane)


def read_alone(delivery: Delivery) -> tuple[Identity, Event | None]:
    """Read one event that was held or parked, however it came; it is None where ``decode_message`` reads it.

    Raises:
        MessageError: it cannot be read, or is a frame of several.
    """
    try:
        return identify(delivery.subject, delivery.headers), None
    except FrameFoundError:
        frame = identify_frame(delivery.subject, delivery.headers)
        if frame.first != frame.last:
            raise
    try:
        (event,) = decode_frame(frame, delivery.body, delivery.time)
    except MessageError as error:
        event = Unreadable(Place(frame.epoch, frame.first), error, None, b"")
    return identity_of(frame, event), event
