"""How far one lane has been forwarded since its store was opened, what has to go again, and why it waits.

All of it is in memory (rule C3): a new process asks the consumers before it sends, and what they lack it sends again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from forebay.backoff import Backoff
from forebay.envelope import Message
from forebay.identity import Place
from forebay.jetstream.publishing import OF_ITSELF, Denied, Outcome, Refused, Stored
from forebay.protocol.forwards import Forwards
from forebay.protocol.resending import Forwarded
from forebay.sequences import Range, joined, within

BATCH = 500
"""Events of one publish; a stream takes at most 1,000 in an atomic batch."""


class LaneState(msgspec.Struct):
    """One lane on its way to the stream.

    Attributes:
        sent: the last place that was acknowledged, with everything before it; None before the first.
        forwards: at which stream sequences.
        again: the places that a consumer has read past without meeting them, per epoch (C2), and those of withheld
            bodies that are to be tried again (O4).
        withheld: the places of withheld events, per epoch, as far as they are to be sent.
        bodies: those of them that were stored since.
        singly: whether the next messages go one by one, under the same ids: the batch's fate is not known (O5).
        doubtful: whether the stream may be another one by now, on the same connection.
        limit: events of the next publish.
        gathers_until: seconds of the relay's clock until which the lane waits to fill a batch; None while it is empty.
        problem: why the lane waits; None while it does not.
        not_before: seconds of the relay's clock; nothing is sent before.
    """

    sent: Place | None = None
    forwards: Forwards = msgspec.field(default_factory=Forwards)
    again: dict[str, list[Range]] = {}
    withheld: dict[str, list[Range]] = {}
    bodies: dict[str, list[Range]] = {}
    singly: bool = False
    doubtful: bool = False
    limit: int = BATCH
    gathers_until: float | None = None
    problem: str | None = None
    not_before: float = 0.0
    backoff: Backoff = msgspec.field(default_factory=Backoff)

    def settled(self, outcomes: Sequence[Outcome]) -> int:
        """Return how many outcomes, from the first, let the lane go on: stored, or refused for themselves (O4).

        A refusal is the message's own where its code says so, or where another message of the lane got through.
        """
        through = any(isinstance(outcome, Stored) for outcome in outcomes)
        for count, outcome in enumerate(outcomes):
            own = isinstance(outcome, Refused) and not outcome.of_stream and (through or outcome.code in OF_ITSELF)
            if not own and not isinstance(outcome, Stored):
                return count
        return len(outcomes)

    def acknowledged(self, messages: Sequence[Message], outcomes: Sequence[Outcome], incarnation: str) -> int:
        """Note where in the stream messages are that were settled; return how many of them were stored."""
        stored = [
            (message.place, outcome)
            for message, outcome in zip(messages, outcomes, strict=True)
            if isinstance(outcome, Stored) and message.place is not None
        ]
        # A duplicate is acknowledged at its old sequence; a segment speaks for the highest of its places.
        highest = max((outcome.sequence for _, outcome in stored), default=0)
        now = time.time()
        for epoch in dict.fromkeys(place.epoch for place, _ in stored):
            sequences = [place.sequence for place, _ in stored if place.epoch == epoch]
            self.forwards.record(epoch, Forwarded(sequences[0], sequences[-1], incarnation, highest, now))
            if bodies := [(each, each) for each in sequences if within(each, self.withheld.get(epoch, ()))]:
                self.bodies[epoch] = joined([*self.bodies.get(epoch, ()), *bodies])
        return len(stored)

    def try_withheld(self, places: Iterable[Place]) -> None:
        """Send the bodies of these places again, all that are withheld (O4)."""
        found: dict[str, list[Range]] = {}
        for place in places:
            found.setdefault(place.epoch, []).append((place.sequence, place.sequence))
        self.withheld = {epoch: joined(ranges) for epoch, ranges in found.items()}
        for epoch, ranges in self.withheld.items():
            self.missed(epoch, ranges)

    def missed(self, epoch: str, ranges: Iterable[Range]) -> bool:
        """Take note of places to send again; return whether any of them was not known."""
        known = self.again.get(epoch, [])
        merged = joined([*known, *ranges])
        if merged:
            self.again[epoch] = merged
        return merged != known

    def repaired(self, epoch: str, upto: int) -> None:
        """Forget the places up to a sequence that were to be sent again."""
        left = [(max(first, upto + 1), last) for first, last in self.again.get(epoch, ()) if last > upto]
        if left:
            self.again[epoch] = left
        else:
            self.again.pop(epoch, None)

    def go_on(self) -> None:
        """Everything was stored: nothing stands in the way."""
        # After a refusal batches grow again by and by: a stream with room for one more would refuse a full one.
        self.limit = min(BATCH, self.limit * 2)
        self.singly, self.doubtful, self.problem, self.not_before = False, False, None, 0.0
        self.backoff.reset()

    def pause(self, failed: Outcome, now: float) -> None:
        """Wait with this lane: order within an origin comes before throughput."""
        self.singly = True
        self.doubtful = isinstance(failed, Refused) and failed.of_stream
        # One that is refused for itself shows as such only beside another that is not.
        self.limit = 1 if isinstance(failed, Denied) or self.doubtful else 2 if isinstance(failed, Refused) else BATCH
        self.problem = _sentence(failed)
        self.not_before = now + self.backoff.next()

    def known_forwards(self, ends: Sequence[Place]) -> dict[str, list[Forwarded]]:
        """Return what was forwarded of each epoch that still has rows, given the epochs' last places in order.

        What an earlier process forwarded, or a consumer confirmed before this one sent anything, is there as of an
        unknown incarnation: where a consumer lacks it, it is sent again.
        """
        found: dict[str, list[Forwarded]] = {}
        sent = self.sent if self.sent is not None and self.sent.epoch in {end.epoch for end in ends} else None
        for end in ends:
            whole = Forwards()
            if sent is not None:
                last = sent.sequence if end.epoch == sent.epoch else end.sequence
                whole.record(end.epoch, Forwarded(1, last, "", 0))
                sent = None if end.epoch == sent.epoch else sent
            for segment in self.forwards.of(end.epoch):
                whole.record(end.epoch, segment)
            if segments := whole.of(end.epoch):
                found[end.epoch] = segments
        return found


def _sentence(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return f"the broker refused it: {outcome.description} ({outcome.code})"
    if isinstance(outcome, Denied):
        return f"not permitted: {outcome}"
    return f"no acknowledgement: {outcome}"
