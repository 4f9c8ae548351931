"""What a confirmation says and what it frees: the exchange of C1 as types, and the judgement on the node's side.

Bodies are JSON with ``"v": 1``; unknown fields are ignored (a fleet upgrades over months).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from forebay.identity import Place

VERSION = 1
MARKS = 64
"""Times remembered per epoch and consumer; when they are spent every second one goes, and old times become coarse."""


class ConfirmedBy(msgspec.Struct, frozen=True):
    """The consumers that must have a stream's events, and the services whose events each needs (S3).

    Nodes keep the highest version that they have seen; an older one frees nothing.
    """

    version: int
    consumers: dict[str, list[str]]

    def encode(self) -> str:
        """Return the JSON string that goes into the stream's metadata, with names in order."""
        return msgspec.json.encode(self, order="sorted").decode()

    def needing(self, service: str) -> list[str]:
        """Return the consumers that need this service's events, sorted."""
        return sorted(name for name, services in self.consumers.items() if service in services or "*" in services)


class ChainLink(msgspec.Struct, frozen=True):
    """One of a node's epochs and the place before it (O2)."""

    epoch: str
    prev: str


class OriginQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of one of its origins when it asks (C1)."""

    service: str
    lane: str
    chain: list[ChainLink]
    floor: str | None = None
    forwarded: str | None = None
    stream_sequence: int | None = None


class Question(msgspec.Struct, frozen=True):
    """The body of ``confirm.event.<consumer>.<node>``."""

    v: int
    origins: list[OriginQuestion]


class EpochAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a consumer is with one epoch; ``missing`` and ``wanted`` were passed without their event (B2)."""

    watermark: int
    held: list[tuple[int, int]] = []
    missing: list[tuple[int, int]] = []
    wanted: list[tuple[int, int]] = []


class Answer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A consumer's answer: the stream that it reads, how far, and what it has passed of the asking node's epochs."""

    v: int
    consumer: str
    store: str
    clock: str
    incarnation: str
    stream_end: int
    position: int
    epochs: dict[str, EpochAnswer]
    confirmed_by: ConfirmedBy | None = None


class Confirmations:
    """What one consumer has confirmed of this node's epochs, and since when.

    Times are seconds of the caller's clock. Nothing here is persisted: after a restart the node asks again, and the
    grace (O1) begins anew.
    """

    def __init__(self) -> None:
        self._latest: Mapping[str, EpochAnswer] = {}
        self._marks: dict[str, list[tuple[int, float]]] = {}
        self.answered_at: float | None = None

    def record(self, answer: Answer, now: float) -> bool:
        """Take an answer; it replaces the one before. Returns whether more is confirmed than before.

        An answer that says less than before (a consumer restored from a backup) takes back what it no longer says.
        """
        before = {epoch: self.watermark(epoch) for epoch in answer.epochs}
        self._latest = answer.epochs
        # An epoch that is not named any more is unknown to a restored consumer: its grace begins anew.
        self._marks = {epoch: self._marks.get(epoch, []) for epoch in answer.epochs}
        for epoch, marks in self._marks.items():
            confirmed = self.watermark(epoch)
            while marks and marks[-1][0] > confirmed:
                marks.pop()
            if confirmed > (marks[-1][0] if marks else 0):
                marks.append((confirmed, now))
                if len(marks) > MARKS:
                    del marks[-2::-2]
        moved = any(self.watermark(epoch) > watermark for epoch, watermark in before.items())
        self.answered_at = now
        return moved

    def confirmed(self, place: Place) -> bool:
        """Whether a place that the node still has is confirmed: passed, and passed with its event (B2)."""
        said = self._latest.get(place.epoch)
        return (
            said is not None
            and place.sequence <= said.watermark
            and not _within(place.sequence, said.missing)
            and not _within(place.sequence, said.wanted)
        )

    def watermark(self, epoch: str) -> int:
        """The sequence up to which every place of the epoch is confirmed by the latest answer."""
        said = self._latest.get(epoch)
        if said is None:
            return 0
        lowest = min((first for first, _ in [*said.missing, *said.wanted]), default=said.watermark + 1)
        return min(said.watermark, lowest - 1)

    def confirmed_at(self, place: Place) -> float | None:
        """The time of the first answer, still standing, that confirmed the place; None where it is not known."""
        if not self.confirmed(place):
            return None
        return next((at for mark, at in self._marks.get(place.epoch, ()) if mark >= place.sequence), None)

    def ripe(self, epoch: str, grace: float) -> int:
        """The sequence up to which the latest answer confirms what one ``grace`` seconds older did already (O1)."""
        if self.answered_at is None:
            return 0
        marks = self._marks.get(epoch, ())
        ripe = max((mark for mark, at in marks if self.answered_at - at >= grace and self.answered_at > at), default=0)
        return min(ripe, self.watermark(epoch))


def _within(sequence: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= sequence <= last for first, last in ranges)
