"""The headers that most events have, read in one go: the common case of consumers (relays: ``plain_heads``).

Most events have the same few headers, in the order in which ``envelope.encode_headers`` writes them, in plain ASCII.
One expression takes all their values out of the bytes; a third of the time of a dictionary (``bench/consumption.py``).
Whatever it does not match in full is read name by name, with the same result.
"""

from __future__ import annotations

import re
from typing import NamedTuple

_VALUE = "[!-$&-~]+"
"""Printable ASCII without spaces, and without the percent sign that would have to be decoded."""
_BARE = "[!-~]+"
"""What is not percent-encoded anyway."""

# What a value nearly always is stands before what it may be: a text is compared faster than characters are looked up.
_PLAIN = re.compile(
    "NATS/1\\.0\r\n"
    "Nats-Msg-Id: (([0-9a-f]{32})-([1-9][0-9]{0,17}))(?:~[0-9a-z]{1,16})?\r\n"
    "ce-specversion: 1\\.0\r\n"
    f"ce-id: (\\1|{_VALUE})\r\n"
    f"ce-source: ({_VALUE})\r\n"
    f"ce-type: ({_VALUE})\r\n"
    f"ce-time: ({_VALUE})\r\n"
    f"ce-datacontenttype: (application/json|{_VALUE})\r\n"
    f"(?:ce-partitionkey: ({_VALUE})\r\n)?"
    "forebay-lane: ([a-z0-9][a-z0-9-]{0,62})\r\n"
    f"forebay-prev: (none|{_VALUE})\r\n"
    "forebay-hlc: ([0-9a-f]{16})\r\n"
    f"(?:forebay-cause: ({_BARE})\r\n)?"
    f"(?:traceparent: ({_BARE})\r\n)?"
    f"(?:tracestate: ({_BARE})\r\n)?"
    f"(?:Nats-Expected-Stream: {_BARE}\r\n)?"
    f"(?:Nats-Batch-Id: {_BARE}\r\nNats-Batch-Sequence: [0-9]+\r\n(?:Nats-Batch-Commit: 1\r\n)?)?"
    "\r\n"
)


class Plain(NamedTuple):
    """The values of an event's headers, as they stand there; None for one that is not there."""

    message_id: str
    epoch: str
    sequence: str
    id: str
    source: str
    type: str
    time: str
    content_type: str
    key: str | None
    lane: str
    prev: str
    hlc: str
    cause: str | None
    traceparent: str | None
    tracestate: str | None


def read_plain(raw: bytes) -> Plain | None:
    """Return the values of headers in the form that a relay writes; None for those of any other form."""
    try:
        match = _PLAIN.fullmatch(raw.decode("ascii"))
    except UnicodeDecodeError:
        return None
    return None if match is None else tuple.__new__(Plain, match.groups())
