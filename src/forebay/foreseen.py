"""What deliveries will ask the inbox for, by a glance at each: node, service, epoch, and the epoch before it.

It only says where to look, for many at once; each message is read with care when it is taken.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from forebay.delivery import Delivery
from forebay.envelope import Message
from forebay.errors import HeaderError
from forebay.headers import Headers
from forebay.identity import Place
from forebay.subjects import subject_parts

_MESSAGE_ID, _PREV = b"NATS/1.0\r\nNats-Msg-Id: ", b"\r\nforebay-prev: "
_EPOCH_BEGINS, _EPOCH_ENDS = len(_MESSAGE_ID), len(_MESSAGE_ID) + 32

Met = tuple[str, str, str, str]
"""Node, service, an epoch, and the epoch before it, which is empty where there is none."""


def met_of(message: Message, place: Place) -> Met:
    """Return what the inbox will be asked for when an event is taken that was read already."""
    return message.node, message.service, place.epoch, message.prev.epoch if message.prev else ""


def foreseen(deliveries: Sequence[Delivery]) -> set[Met]:
    """Return what the inbox will be asked for; nothing of what a glance does not show."""
    try:  # as a reader has them, which is cheaper to tell
        first = {(each.subject, each.headers.raw[:_EPOCH_ENDS]): each for each in deliveries}  # type: ignore[attr-defined]
    except AttributeError:
        first = {(each.subject, _begin(each.headers)): each for each in deliveries}
    return set(filter(None, map(_glance, first.values())))


def _begin(headers: Mapping[str, str]) -> str | bytes:
    """Return as much of a message's headers as tells its epoch from others, for next to nothing."""
    return headers.raw[:_EPOCH_ENDS] if isinstance(headers, Headers) else headers.get("Nats-Msg-Id", "")[:32]


def _glance(delivery: Delivery) -> Met | None:
    headers = delivery.headers
    if isinstance(headers, Headers):
        raw = headers.raw
        if not raw.startswith(_MESSAGE_ID):
            return None
        epoch, before = raw[_EPOCH_BEGINS:_EPOCH_ENDS].decode("latin-1"), ""
        at = raw.find(_PREV)
        if at > 0 and not raw.startswith(b"none", at := at + len(_PREV)):
            before = raw[at : at + 32].decode("latin-1")
    else:
        epoch, before = headers.get("Nats-Msg-Id", "")[:32], headers.get("forebay-prev", "none")
        before = "" if before == "none" else before[:32]
    if not epoch.isalnum() or (before and not before.isalnum()):
        return None  # of another form: the database must not stumble over it
    try:
        node, service, _ = subject_parts(delivery.subject)
    except HeaderError:
        return None  # a command, or one that will be parked
    return node, service, epoch, before
