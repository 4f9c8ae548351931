"""What is read from the archive: the exchanges on ``archive.read``, ``.epochs`` and ``.scan`` as types (C5, F3).

Bodies are JSON with ``"v": 1``; unknown fields are ignored.
"""

from __future__ import annotations

import msgspec

from forebay.protocol.confirmation import VERSION

SUBJECT = "archive.read"
EPOCHS_SUBJECT = "archive.epochs"
SCAN_SUBJECT = "archive.scan"
PAGE = 500
"""Events of one answer, at most; the archive may send fewer."""


class ArchiveQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for the events ``first`` to ``last`` of an epoch, both included."""

    v: int = VERSION
    node: str
    service: str
    epoch: str
    first: int
    last: int
    limit: int = PAGE


class ArchivedMessage(msgspec.Struct, frozen=True):
    """An event as the stream delivered it; the body is base64 in JSON, ``stored_at`` nanoseconds since 1970."""

    sequence: int
    subject: str
    headers: dict[str, str]
    body: bytes
    stored_at: int


class ArchiveAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """What the archive has of what was asked for, ascending and from the lowest.

    Attributes:
        incarnation, complete_to: the archive has read this stream up to this sequence.
        events: not all of them where ``more`` is set: ask again above the last.
        more: whether it has more of the range.
        deleted: the places of the range that it had and has deleted since, both ends included.
    """

    v: int = VERSION
    incarnation: str
    complete_to: int
    events: list[ArchivedMessage]
    more: bool = False
    deleted: list[tuple[int, int]] = []


class EpochsQuestion(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Asks which epochs the archive has, a page at a time; ``after`` is the last of the page before."""

    v: int = VERSION
    after: tuple[str, str, str] | None = None


class ArchivedEpoch(msgspec.Struct, frozen=True):
    """An epoch of which the archive has everything up to ``watermark``, except what is missing everywhere."""

    node: str
    service: str
    lane: str
    epoch: str
    watermark: int


class EpochsAnswer(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A page of epochs, in the order of node, service and epoch; ``more`` where there are further ones."""

    v: int = VERSION
    epochs: list[ArchivedEpoch]
    more: bool = False


class ScanQuestion(msgspec.Struct, frozen=True, kw_only=True):
    """Asks for events in the order in which they were archived, foreign producers' included.

    Attributes:
        after: the archive's position to go on behind; 0 for the beginning.
        services: whose events are wanted; ``["*"]`` for all.
    """

    v: int = VERSION
    after: int
    services: list[str]
    limit: int = PAGE


class ScanAnswer(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A page of events.

    Attributes:
        store: the archive's store id: in another store the positions are others.
        events: each with its position in the archive as its ``sequence``.
        position: the ``after`` of the next question.
        end: the position of the last event that was archived.
        more: whether there are further events of these services.
    """

    v: int = VERSION
    store: str
    events: list[ArchivedMessage]
    position: int
    end: int
    more: bool = False
