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
from forebay.jetstream.publishing import Denied, Outcome, Refused, Stored
from forebay.protocol.forwards import Forwards
from forebay.protocol.resending import Forwarded, Range, joined

BATCH = 500
"""Events of one publish; a stream takes at most 1,000 in an atomic batch."""


class LaneState(msgspec.Struct):
    """One lane on its way to the stream.

    Attributes:
        sent: the last place that was acknowledged, with everything before it; None before the first.
        forwards: at which stream sequences.
        again: the places that a consumer has read past without meeting them, per epoch (C2).
        singly: whether the next messages go one by one, under the same ids: the batch's fate is not known (O5).
        doubtful: whether the stream may be another one by now, on the same connection.
        limit: events of the next publish.
        problem: why the lane waits; None while it does not.
        not_before: seconds of the relay's clock; nothing is sent before.
    """

    sent: Place | None = None
    forwards: Forwards = msgspec.field(default_factory=Forwards)
    again: dict[str, list[Range]] = {}
    singly: bool = False
    doubtful: bool = False
    limit: int = BATCH
    problem: str | None = None
    not_before: float = 0.0
    backoff: Backoff = msgspec.field(default_factory=Backoff)

    def acknowledged(self, messages: Sequence[Message], outcomes: Sequence[Outcome], incarnation: str) -> int:
        """Note how far the acknowledgements reach without a break; return how many they are."""
        places: list[Place] = []
        highest = 0
        for message, outcome in zip(messages, outcomes, strict=True):
            if not isinstance(outcome, Stored) or message.place is None:
                break
            places.append(message.place)
            # A duplicate is acknowledged at its old sequence; a segment speaks for the highest of its places.
            highest = max(highest, outcome.sequence)
        now = time.time()
        for epoch in dict.fromkeys(place.epoch for place in places):
            sequences = [place.sequence for place in places if place.epoch == epoch]
            self.forwards.record(epoch, Forwarded(sequences[0], sequences[-1], incarnation, highest, now))
        return len(places)

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
        self.limit = 1 if isinstance(failed, Refused | Denied) else BATCH
        self.problem = _sentence(failed)
        self.not_before = now + self.backoff.next()

    def known_forwards(self, ends: Sequence[Place]) -> dict[str, list[Forwarded]]:
        """Return what was forwarded of each epoch that still has rows, given the epochs' last places in order.

        What an earlier process forwarded, or a consumer confirmed before this one sent anything, is there as of an
        unknown incarnation: where a consumer lacks it, it is sent again.
        """
        if self.sent is None or self.sent.epoch not in {end.epoch for end in ends}:
            return {}
        found: dict[str, list[Forwarded]] = {}
        for end in ends:
            last = self.sent.sequence if end.epoch == self.sent.epoch else end.sequence
            whole = Forwards()
            whole.record(end.epoch, Forwarded(1, last, "", 0))
            for segment in self.forwards.of(end.epoch):
                whole.record(end.epoch, segment)
            found[end.epoch] = whole.of(end.epoch)
            if end.epoch == self.sent.epoch:
                break
        return found


def _sentence(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return f"the broker refused it: {outcome.description} ({outcome.code})"
    if isinstance(outcome, Denied):
        return f"not permitted: {outcome}"
    return f"no acknowledgement: {outcome}"
