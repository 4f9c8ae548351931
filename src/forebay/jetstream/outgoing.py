"""Messages as the client protocol has them, single and in atomic batches."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from typing import NamedTuple

MAX_BATCH = 1_000
"""Messages of one atomic batch; a limit of the server."""

FRAMING = len(b"NATS/1.0\r\n\r\n")
"""Bytes that the server counts to a message's headers beside them."""


class Outgoing(NamedTuple):
    """A message to publish; ``headers`` holds its ``Nats-Msg-Id``, without which no retry is safe.

    Attributes:
        head: the headers as ``encode_head`` writes them, where that was done already.
        divisible: refused for itself it comes again in parts; nothing that follows it may be stored before.
    """

    subject: str
    headers: Mapping[str, str]
    body: bytes
    head: bytes = b""
    divisible: bool = False


class Prepared(NamedTuple):
    """Messages as one atomic batch sends them, made where there is time for it.

    Attributes:
        first, last: the messages that are answered; their commands are made when they are sent.
        messages: how many they are.
        subjects: of all messages.
        batch: the batch's id.
        between: the commands of all but the first message and the last.
        largest: bytes of the largest message.
    """

    first: Outgoing
    last: Outgoing
    messages: int
    subjects: frozenset[str]
    batch: str
    between: bytes
    largest: int


def encode_head(headers: Mapping[str, str]) -> bytes:
    """Return headers as they stand on the wire, each on its line; a line break in a value becomes a space."""
    text = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    if text.count("\n") != len(headers):
        text = "".join([f"{name}: {_LINE_BREAKS.sub(' ', value)}\r\n" for name, value in headers.items()])
    return text.encode()


_LINE_BREAKS = re.compile(r"[\r\n]+")


def prepare_batch(messages: Sequence[Outgoing]) -> Prepared:
    """Return two or more messages as one atomic batch sends them. From any thread."""
    batch = secrets.token_hex(8)
    subjects = {subject: subject.encode() for subject in {message.subject for message in messages}}
    more = of_batch(batch)
    begin, parts, largest = FRAMING + len(more) + len(b"\r\n"), [], 0
    for number, (subject, headers, body, head, _) in enumerate(messages, 1):
        head = head or encode_head(headers)
        size = begin + len(head) + len(str(number))
        whole = size + len(body)
        largest = max(largest, whole)
        parts.append(
            b"HPUB %b  %d %d\r\nNATS/1.0\r\n%b%b%d\r\n\r\n%b\r\n"
            % (subjects[subject], size, whole, head, more, number, body)
        )
    between = b"".join(parts[1:-1])
    return Prepared(messages[0], messages[-1], len(messages), frozenset(subjects), batch, between, largest)


def of_batch(batch: str) -> bytes:
    """Return the headers of a batch's message, up to its number."""
    return b"Nats-Batch-Id: %b\r\nNats-Batch-Sequence: " % batch.encode()


def encode_command(message: Outgoing, reply: str, more: bytes) -> bytes:
    """Return a message as the client protocol has it, with ``more`` headers."""
    head = (message.head or encode_head(message.headers)) + more
    size = FRAMING + len(head)
    return b"HPUB %b %b %d %d\r\nNATS/1.0\r\n%b\r\n%b\r\n" % (
        message.subject.encode(), reply.encode(), size, size + len(message.body), head, message.body
    )  # fmt: skip
