"""Who wrote what: names, origins, epochs, message ids and partitions (rules I1 to I4)."""

from __future__ import annotations

import os
import re
import secrets
import time
from typing import NamedTuple

from forebay.errors import ConfigurationError, FrameFoundError, HeaderError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
PARTITIONS = 8
"""Partitions of the stream EVENTS; fixed for the stream's life (S1)."""

_MESSAGE_ID = re.compile(r"([0-9a-f]{32})-([1-9][0-9]{0,17})(?:-([1-9][0-9]{0,17}))?(?:~[0-9a-z]{1,16})?")
_LOOKS_OURS = re.compile(r"[0-9a-f]{32}-")
_SUFFIX = "0123456789abcdefghijklmnopqrstuvwxyz"


def checked_name(value: str, what: str) -> str:
    """Return ``value`` if it can be a node, service, lane or event name.

    Raises:
        ConfigurationError: it does not match ``[a-z0-9][a-z0-9-]{0,62}``.
    """
    if not NAME.fullmatch(value):
        raise ConfigurationError(
            f"{what} {value!r} is not a name",
            hint="use 1 to 63 of a-z, 0-9 and '-', beginning with a letter or digit",
        )
    return value


CORE = "core"
"""The node that the central services are, unless told otherwise."""


class Origin(NamedTuple):
    """Where order is kept. ``destination`` is ``<node>/<service>`` for commands and empty for events (I1).

    A service that saw every third command of a sequence that it shared would wait for ever, a node's second one too.
    """

    node: str
    service: str
    lane: str
    destination: str = ""


class Place(NamedTuple):
    """One event of an origin: its epoch (32 hex digits) and its sequence there (from 1)."""

    epoch: str
    sequence: int

    def __str__(self) -> str:
        return f"{self.epoch}-{self.sequence}"


class MessageId(NamedTuple):
    """A message id: one event, or the consecutive events ``first`` to ``last`` of a frame (I4)."""

    epoch: str
    first: int
    last: int

    @property
    def place(self) -> Place:
        """The place of the first event."""
        return Place(self.epoch, self.first)

    def __str__(self) -> str:
        tail = "" if self.last == self.first else f"-{self.last}"
        return f"{self.epoch}-{self.first}{tail}"


def parse_message_id(text: str) -> MessageId | None:
    """Read a ``Nats-Msg-Id``; the random suffix of a retransmission is ignored (I4).

    Returns:
        None for a foreign producer's id (I7), which may be any text.

    Raises:
        HeaderError: it begins as one of ours (32 hex digits and a hyphen) and is malformed.
    """
    match = _MESSAGE_ID.fullmatch(text)
    if match is None:
        if _LOOKS_OURS.match(text):
            raise HeaderError(f"message id {text!r} begins as <epoch>-<sequence> and is malformed")
        return None
    epoch, first, last = match[1], int(match[2]), match[3]
    if last is not None and int(last) <= int(first):
        raise HeaderError(f"message id {text!r} names a frame that ends before it begins")
    return MessageId(epoch, int(first), int(last) if last else int(first))


def parse_event_id(text: str) -> Place | None:
    """Read the ``Nats-Msg-Id`` of a message that is one event, as ``parse_message_id`` does.

    Raises:
        HeaderError: it is malformed.
        FrameFoundError: it names a frame.
    """
    match = _MESSAGE_ID.fullmatch(text)
    if match is not None and match[3] is None:
        return Place(match[1], int(match[2]))
    message_id = parse_message_id(text)
    if message_id is None:
        return None
    raise FrameFoundError(f"message id {message_id} names a frame, and this body is a single event")


def parse_place(text: str) -> Place | None:
    """Read a ``forebay-prev`` value: a place, or None for ``none``.

    Raises:
        HeaderError: it is neither.
    """
    if text == "none":
        return None
    match = _MESSAGE_ID.fullmatch(text)
    if match is None or match[3] is not None or "~" in text:
        raise HeaderError(f"forebay-prev {text!r} is neither 'none' nor <epoch>-<sequence>")
    return Place(match[1], int(match[2]))


def retransmission_id(message_id: str) -> str:
    """Return ``message_id`` under a fresh random suffix: known ids are swallowed, guessable ones occupied (I4)."""
    return f"{message_id}~{''.join(secrets.choice(_SUFFIX) for _ in range(12))}"


def new_epoch(after: str | None = None) -> str:
    """Return a fresh UUIDv7 (RFC 9562) in 32 hex digits.

    Args:
        after: the origin's epoch before it. The new one sorts after it even where the wall clock was set back: its
            milliseconds are at least one above.
    """
    milliseconds = time.time_ns() // 1_000_000
    if after is not None:
        milliseconds = max(milliseconds, int(after[:12], 16) + 1)
    random = int.from_bytes(os.urandom(10), "big")
    milliseconds = min(milliseconds, 0xFFFFFFFFFFFF)
    value = milliseconds << 80 | 0x7 << 76 | (random >> 68 & 0xFFF) << 64 | 0b10 << 62 | random & (1 << 62) - 1
    return f"{value:032x}"


def partition_of(node: str, partitions: int = PARTITIONS) -> int:
    """Return the partition of a node: FNV-1a 32 modulo ``partitions``, as nats-server's ``partition(n, 1)``."""
    digest = 2166136261
    for byte in node.encode():
        digest = (digest ^ byte) * 16777619 & 0xFFFFFFFF
    return digest % partitions
