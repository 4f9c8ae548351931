"""Frames as tests write them, from messages: a relay writes them from rows, by the same parts (``forebay.packets``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forebay.envelope import Message, format_time, is_batch
from forebay.frame import frame_headers, frames_take, join_events, quoted, write_data, write_event, write_more
from forebay.identity import MessageId
from forebay.packing import pack


def write_message(message: Message) -> str:
    """Return an event of an outbox as a JSON object."""
    return write_event(
        quoted(message.id),
        quoted(message.source),
        quoted(message.type),
        format_time(message.time),
        message.key,
        message.hlc,
        message.cause,
        write_more(message.content_type, message.attributes, message.traceparent, message.tracestate),
        write_data(message.content_type, message.body),
    )


def encode_frame(messages: Sequence[Message], *, packed: bool = False) -> tuple[dict[str, str], bytes]:
    """Return headers and body of a frame.

    Args:
        messages: two or more events of an outbox, of one epoch, lane and subject, with consecutive sequences;
            ``frames_take`` their attributes.
        packed: whether zstd packs the body.

    Raises:
        ValueError: the messages are none that one frame can hold.
    """
    first, last = messages[0].place, messages[-1].place
    if first is None or last is None or len(messages) < 2:
        raise ValueError("a frame is of two or more events of an outbox")
    for at, message in enumerate(messages):
        alike = (message.node, message.service, message.kind, message.lane) == (
            messages[0].node, messages[0].service, messages[0].kind, messages[0].lane
        )  # fmt: skip
        if message.place != (first.epoch, first.sequence + at) or not alike or not frames_take(message.attributes):
            raise ValueError(f"{message.message_id} cannot follow {first} in a frame")
    body = join_events(map(write_message, messages))
    prev = str(messages[0].prev or "none")
    message_id = str(MessageId(first.epoch, first.sequence, last.sequence))
    headers = frame_headers(message_id, messages[0].lane, prev, packed=packed)
    return headers, pack(body) if packed else body


def is_frame(headers: Mapping[str, str]) -> bool:
    """Whether a message is a frame: its ``Content-Type`` says so."""
    return is_batch(headers.get("Content-Type") or headers.get("content-type") or "")
