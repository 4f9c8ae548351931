"""What became of a message that was published, as the broker's acknowledgement or its silence tells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat
from typing import NamedTuple

import msgspec

from forebay.errors import LinkError, NotPermittedError
from forebay.jetstream.replies import Incoming

OF_ITSELF = frozenset({10054, 10097})
"""Codes that concern a message whatever the others meet: its size, the size of its headers."""

NO_BATCHES, BATCH_INCOMPLETE, TOO_MANY_BATCHES = 10174, 10176, 10199
"""Codes with which the server refuses a batch as such."""

_WRONG_STREAM, _IN_FLIGHT = 10060, 10158


class Stored(NamedTuple):
    """The broker says that it has the message, at this sequence; as ``duplicate`` it had its id before."""

    sequence: int
    duplicate: bool


class Refused(NamedTuple):
    """The broker said no: ``code`` is its ``err_code``, or 503 where no stream takes the subject.

    ``of_stream``: it concerns the stream (full, another one, gone) and would meet any message; else this one alone.
    """

    code: int
    description: str
    of_stream: bool = False


class Uncertain(NamedTuple):
    """No answer came: the message may be stored, may be stored later, or not at all."""

    why: str


class Denied(NamedTuple):
    """The credentials do not allow the subject."""

    subject: str
    why: str


class NotSent(NamedTuple):
    """Nothing that could be stored was sent: there was no connection, or an earlier message met a wall."""

    why: str


Outcome = Stored | Refused | Uncertain | Denied | NotSent


class _ApiError(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class PubAck(msgspec.Struct):
    """An acknowledgement, or why there is none."""

    seq: int = 0
    duplicate: bool = False
    count: int = 0
    error: _ApiError | None = None


_decode_ack = msgspec.json.Decoder(PubAck).decode


def stored_from(first: int, count: int) -> list[Outcome]:
    """Return the outcomes of messages that were stored one behind the other from a sequence on."""
    return list(map(_stored, zip(range(first, first + count), repeat(False))))


_stored = partial(tuple.__new__, Stored)
"""Makes one in a third of the time that its constructor takes; a batch has a thousand."""


def all_stored(outcomes: Sequence[Outcome]) -> bool:
    """Whether every message was stored, of none too."""
    return set(map(type, outcomes)) <= {Stored}


def is_wall(outcome: Outcome) -> bool:
    """Whether nothing may be stored behind a message that came to this."""
    return not isinstance(outcome, Stored) and not (isinstance(outcome, Refused) and not outcome.of_stream)


def verdict(result: Incoming | LinkError, subject: str) -> Outcome:
    """Return what a message came to that was published on ``subject``."""
    if isinstance(result, NotPermittedError):
        return Denied(subject, str(result))
    if isinstance(result, LinkError):
        return Uncertain(str(result))
    ack = read_ack(result)
    if isinstance(ack, PubAck) and ack.error is not None and ack.error.err_code == _IN_FLIGHT:
        return Uncertain(ack.error.description)
    return refused_by(ack) or (Stored(ack.seq, ack.duplicate) if isinstance(ack, PubAck) else Uncertain(str(ack)))


def read_ack(result: Incoming | LinkError) -> PubAck | LinkError:
    """Return what an answer says; a ``LinkError`` is passed on, and stands for what cannot be read."""
    if isinstance(result, LinkError):
        return result
    if result.status:
        description = result.headers.get("Description") or "no stream takes this subject"
        return PubAck(error=_ApiError(result.status, result.status, description))
    try:
        return _decode_ack(result.body)
    except msgspec.MsgspecError:
        return LinkError("the broker's acknowledgement cannot be read")


def refused_by(ack: PubAck | LinkError) -> Refused | None:
    """Return the refusal that an acknowledgement is; None where it is none."""
    if isinstance(ack, LinkError) or ack.error is None:
        return None
    code = ack.error.err_code or ack.error.code
    return Refused(code, ack.error.description, of_stream=ack.error.code >= 500 or code == _WRONG_STREAM)
