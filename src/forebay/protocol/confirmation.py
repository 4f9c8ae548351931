"""What a confirmation says and what it frees: the exchange of C1 as types, and the judgement on the node's side.

Bodies are JSON with ``"v": 1``; unknown fields are ignored (a fleet upgrades over months).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise

import msgspec

from forebay.identity import Place, parse_place
from forebay.sequences import Range, joined, within, without

VERSION = 1
"""Of the bodies of questions and answers, their ``v``."""

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


class DroppedRange(msgspec.Struct, frozen=True):
    """Places ``first`` to ``last`` of an epoch that the node's budget pushed out (O3)."""

    epoch: str
    first: int
    last: int


class WithheldPlace(msgspec.Struct, frozen=True, omit_defaults=True):
    """A place that the broker refuses for itself, and its ordering key: the body may follow (O4)."""

    epoch: str
    sequence: int
    key: str | None = None


class OriginQuestion(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of one of its origins when it asks (C1)."""

    service: str
    lane: str
    chain: list[ChainLink]
    floor: str | None = None
    forwarded: str | None = None
    stream_sequence: int | None = None
    drops: list[DroppedRange] = []
    withheld: list[WithheldPlace] = []


class Question(msgspec.Struct, frozen=True, omit_defaults=True):
    """The body of ``confirm.event.<consumer>.<node>``, and of ``confirm.command.<node>.<service>``.

    A node may not look at the stream of commands, so that the core tells it what a consumer of the core sees itself.

    Attributes:
        clock_offset: the seconds that the core's clock is ahead of the node's, as the node last measured it.
        incarnation: of the stream of commands.
        stream_end: its last sequence.
    """

    v: int
    origins: list[OriginQuestion]
    clock_offset: float | None = None
    incarnation: str | None = None
    stream_end: int | None = None


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
        self._filled: dict[str, list[tuple[int, int, float]]] = {}
        self.answered_at: float | None = None

    def record(self, answer: Answer, now: float) -> bool:
        """Take an answer; it replaces the one before. Returns whether more is confirmed than before.

        An answer that says less than before (a consumer restored from a backup) takes back what it no longer says.
        """
        before = self._latest
        self._latest = answer.epochs
        # An epoch that is not named any more is unknown to a restored consumer: its grace begins anew.
        self._marks = {epoch: self._marks.get(epoch, []) for epoch in answer.epochs}
        self._filled = {epoch: self._filled.get(epoch, []) for epoch in answer.epochs}
        for epoch, said in answer.epochs.items():
            _mark(self._marks[epoch], said.watermark, now)
            known = before.get(epoch, _NOTHING)
            # What was passed without its event, and has it now, is confirmed from now on only.
            for first, last in without(_lacking(known), _lacking(said)):
                if first <= said.watermark:
                    self._filled[epoch].append((first, min(last, said.watermark), now))
            self._filled[epoch] = _few(self._filled[epoch])
        self.answered_at = now
        return any(_count(said) > _count(before.get(epoch, _NOTHING)) for epoch, said in answer.epochs.items())

    def confirmed(self, place: Place) -> bool:
        """Whether a place that the node still has is confirmed: passed, and passed with its event (B2)."""
        said = self._latest.get(place.epoch)
        return said is not None and place.sequence <= said.watermark and not within(place.sequence, _lacking(said))

    def passed(self, place: Place) -> bool:
        """Whether the consumer has passed a place, with its event or without."""
        return place.sequence <= self.passed_upto(place.epoch)

    def passed_upto(self, epoch: str) -> int:
        """The sequence up to which the consumer has passed an epoch."""
        return self._latest.get(epoch, _NOTHING).watermark

    def lacking(self, epoch: str) -> list[Range]:
        """The places of an epoch that it has passed without their event, ascending."""
        return _lacking(self._latest.get(epoch, _NOTHING))

    def missing(self, place: Place) -> bool:
        """Whether it has passed a place without its event, as a gap or a drop."""
        said = self._latest.get(place.epoch, _NOTHING)
        return self.passed(place) and within(place.sequence, said.missing)

    def wanted(self, place: Place) -> bool:
        """Whether it has passed a place without its event and waits for the body."""
        said = self._latest.get(place.epoch, _NOTHING)
        return self.passed(place) and within(place.sequence, said.wanted)

    def watermark(self, epoch: str, first: int = 1, aside: Iterable[Range] = ()) -> int:
        """The sequence up to which the latest answer confirms every place from ``first`` on; below it where none.

        Args:
            epoch: the places' epoch.
            first: what lies below is finished here.
            aside: places that the node dropped or withheld itself: these only have to be passed.
        """
        said = self._latest.get(epoch, _NOTHING)
        lacking = without(_lacking(said), aside)
        return min([said.watermark, *(max(low, first) - 1 for low, high in lacking if high >= first)])

    def ended(self, epoch: str, first: int, last: int) -> int:
        """The sequence up to which drops from ``first`` to ``last`` are finished: passed, no body is wanted (O3)."""
        said = self._latest.get(epoch, _NOTHING)
        wanted = [max(low, first) - 1 for low, high in said.wanted if high >= first]
        return min([said.watermark, last, *wanted])

    def applied(self, epoch: str, first: int, last: int) -> int:
        """The number of places from ``first`` to ``last`` whose event the consumer has: some were dropped too late."""
        said = self._latest.get(epoch, _NOTHING)
        return _size(without([(first, min(last, said.watermark))], _lacking(said)))

    def confirmed_at(self, place: Place) -> float | None:
        """The time of the first answer, still standing, that confirmed the place; None where it is not known."""
        if not self.confirmed(place):
            return None
        times = [at for first, last, at in self._filled.get(place.epoch, ()) if first <= place.sequence <= last]
        marked = next((at for mark, at in self._marks.get(place.epoch, ()) if mark >= place.sequence), None)
        return None if marked is None else max([marked, *times])

    def ripe(self, epoch: str, grace: float, first: int = 1) -> int:
        """The sequence up to which places from ``first`` on may be freed (O1).

        The latest answer confirms them, and came at least ``grace`` seconds after the first one that did.
        """
        now = self.answered_at
        if now is None:
            return 0
        marks = self._marks.get(epoch, ())
        ripe = max((mark for mark, at in marks if now - at >= grace and now > at), default=0)
        young = [max(low, first) - 1 for low, high, at in self._filled.get(epoch, ()) if high >= first > 0
                 and not (now - at >= grace and now > at)]  # fmt: skip
        return min([ripe, self.watermark(epoch, first), *young])


def unpassed(question: Question, answer: Answer, before: Callable[[str], int]) -> dict[str, str]:
    """Return per lane the oldest epoch of a question's chain that the consumer has not passed (O2).

    A lane is left out where the consumer says less of an epoch than ``before`` (it was restored from a backup): then it
    has to be asked about all of them.
    """
    found: dict[str, str] = {}
    for origin in question.origins:
        reached = {link.epoch: answer.epochs.get(link.epoch, _NOTHING).watermark for link in origin.chain}
        if any(reached[link.epoch] < before(link.epoch) for link in origin.chain):
            continue
        for link, following in pairwise(origin.chain):
            end = parse_place(following.prev)
            if end is None or end.epoch != link.epoch or reached[link.epoch] < end.sequence:
                found[origin.lane] = link.epoch
                break
        else:
            found[origin.lane] = origin.chain[-1].epoch
    return found


_NOTHING = EpochAnswer(watermark=0)


def _lacking(said: EpochAnswer) -> list[Range]:
    return joined([*said.missing, *said.wanted])


def _size(ranges: Iterable[Range]) -> int:
    return sum(last - first + 1 for first, last in ranges if last >= first)


def _count(said: EpochAnswer) -> int:
    """How many places an answer confirms."""
    return said.watermark - _size(_lacking(said))


def _mark(marks: list[tuple[int, float]], watermark: int, now: float) -> None:
    while marks and marks[-1][0] > watermark:
        marks.pop()
    if watermark > (marks[-1][0] if marks else 0):
        marks.append((watermark, now))
        if len(marks) > MARKS:
            del marks[-2::-2]


def _few(filled: list[tuple[int, int, float]]) -> list[tuple[int, int, float]]:
    """Join neighbours, at the later time, until they are no more than ``MARKS``; times never become earlier."""
    filled.sort()
    while len(filled) > MARKS:
        (first, last, at), (_, high, then) = filled[:2]
        filled[:2] = [(first, max(last, high), max(at, then))]
    return filled
