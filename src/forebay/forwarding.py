"""How far one lane has been forwarded since its store was opened, what has to go again, and why it waits.

All of it is in memory (rule C3): a new process asks the consumers before it sends, and what they lack it sends again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import msgspec

from forebay.backoff import Backoff
from forebay.identity import Place
from forebay.jetstream.outcomes import OF_ITSELF, Denied, Outcome, Refused, Stored, all_stored
from forebay.jetstream.publishing import MAX_BATCH
from forebay.lanes import Frames
from forebay.packets import Packet, Room, events_of
from forebay.protocol.forwards import Forwards
from forebay.protocol.resending import Forwarded
from forebay.sequences import Range, joined, without

BATCH = MAX_BATCH
"""Events of one publish; with 500 the server stored 30 % fewer a second."""

FRAMES = 8
"""Full frames of one publish. One read of their rows takes a few megabytes, and the next one runs beside it."""

MOST_DISK = 4 * 1024 * 1024
"""Bytes of the rows that are read for one publish: frames on the wire can be a twentieth of them."""

_FIRST_SHARE = 0.1
"""Bytes on the wire for each byte of rows that packed frames are taken for, before the first one."""

_RECENT = 0.5
"""Weight of the latest batch in how much smaller frames are than their rows."""


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
        frames: how its events are framed; None where each goes alone.
        limit: events of the next publish.
        frame_limit: events of the next frames, where the broker refused a larger one; 1: each goes alone.
        wire_share: bytes on the wire for each byte of rows, as the latest batches had it.
        gathers_until: seconds of the relay's clock until which the lane waits to fill a batch; None while it is empty.
        problem: why the lane waits; None while it does not.
        not_before: seconds of the relay's clock; nothing is sent before.
    """

    frames: Frames | None = None
    sent: Place | None = None
    forwards: Forwards = msgspec.field(default_factory=Forwards)
    again: dict[str, list[Range]] = {}
    withheld: dict[str, list[Range]] = {}
    bodies: dict[str, list[Range]] = {}
    singly: bool = False
    doubtful: bool = False
    limit: int = MAX_BATCH
    frame_limit: int | None = None
    wire_share: float = 1.0
    gathers_until: float | None = None
    problem: str | None = None
    not_before: float = 0.0
    backoff: Backoff = msgspec.field(default_factory=Backoff)

    def __post_init__(self) -> None:
        self.limit = self.most
        if self.frames is not None and self.frames.zstd:
            self.wire_share = _FIRST_SHARE

    @property
    def most(self) -> int:
        """Events of one publish, at most."""
        return BATCH if self.frames is None else FRAMES * self.frames.events

    def room(self, wire: int, message: int | None) -> Room:
        """Return what there is room for in the next publish.

        Args:
            wire: bytes that the link carries in time.
            message: bytes that the server takes of one message, if that is known.
        """
        frames = self.frames
        if frames is not None and self.frame_limit is not None:
            events = min(frames.events, self.frame_limit)
            frames = None if events < 2 else msgspec.structs.replace(frames, events=events)
        disk = wire if frames is None else min(MOST_DISK, int(wire / self.wire_share))
        return Room(events=self.limit, wire=wire, message=message, disk=disk, frames=frames)

    def settled(self, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> int:
        """Return how many messages, from the first, let the lane go on: stored, or refused for themselves (O4).

        A refusal is the message's own where its code says so, or where another message of the lane got through. A
        frame is never settled by one: its events are tried in smaller ones, down to the one that is refused alone.
        """
        if all_stored(outcomes):
            return len(packets)
        through = any(isinstance(outcome, Stored) for outcome in outcomes)
        for count, (packet, outcome) in enumerate(zip(packets, outcomes, strict=True)):
            own = _is_own(outcome, through=through) and packet.events == 1
            if not own and not isinstance(outcome, Stored):
                return count
        return len(packets)

    def acknowledged(self, packets: Sequence[Packet], outcomes: Sequence[Outcome], incarnation: str) -> int:
        """Note where in the stream messages are that were settled; return how many events were stored."""
        stored = [packet for packet, outcome in zip(packets, outcomes, strict=True) if isinstance(outcome, Stored)]
        # A duplicate is acknowledged at its old sequence; a segment speaks for the highest of its places.
        highest = max([outcome.sequence for outcome in outcomes if isinstance(outcome, Stored)], default=0)
        now = time.time()
        for epoch in dict.fromkeys([packet.epoch for packet in stored]):
            places = [(first, last) for each, first, last, _, _ in stored if each == epoch]  # in order
            self.forwards.record(epoch, Forwarded(places[0][0], places[-1][1], incarnation, highest, now))
            withheld = self.withheld.get(epoch)
            if withheld and (bodies := without(withheld, without(withheld, places))):  # what is in both
                self.bodies[epoch] = joined([*self.bodies.get(epoch, ()), *bodies])
        return events_of(stored)

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
        self.limit = min(self.most, self.limit * 2)
        if self.frames is not None and self.frame_limit is not None:
            self.frame_limit *= 2
            if self.frame_limit >= self.frames.events:
                self.frame_limit = None
        self.singly, self.doubtful, self.problem, self.not_before = False, False, None, 0.0
        self.backoff.reset()

    def wrote(self, wire: int, disk: int) -> None:
        """Note how many bytes on the wire the rows of a batch came to."""
        if self.frames is not None and disk:
            self.wire_share += _RECENT * (min(1.0, max(0.01, wire / disk)) - self.wire_share)

    def stop_at(self, failed: Packet, outcome: Outcome, now: float, *, through: bool) -> bool:
        """Take note that a message was not stored; return whether the lane has to wait.

        A frame that is refused for itself is split, and that at once.
        """
        if failed.events > 1 and _is_own(outcome, through=through):
            self.frame_limit = failed.events // 2
            return False
        self.pause(outcome, now)
        return True

    def pause(self, failed: Outcome, now: float) -> None:
        """Wait with this lane: order within an origin comes before throughput."""
        self.singly = True
        self.doubtful = isinstance(failed, Refused) and failed.of_stream
        self.limit = self.most
        if isinstance(failed, Denied) or self.doubtful:
            self.limit = 1
        elif isinstance(failed, Refused):  # for itself: it shows as such only beside another that is not
            self.limit, self.frame_limit = 2, 1
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
            upto = 0
            if sent is not None:
                upto = sent.sequence if end.epoch == sent.epoch else end.sequence
                sent = None if end.epoch == sent.epoch else sent
            if segments := self.forwards.filled(end.epoch, upto):
                found[end.epoch] = segments
        return found


def _is_own(outcome: Outcome, *, through: bool) -> bool:
    """Whether a message was refused for itself: its code says so, or another message of its lane got through."""
    return isinstance(outcome, Refused) and not outcome.of_stream and (through or outcome.code in OF_ITSELF)


def _sentence(outcome: Outcome) -> str:
    if isinstance(outcome, Refused):
        return f"the broker refused it: {outcome.description} ({outcome.code})"
    if isinstance(outcome, Denied):
        return f"not permitted: {outcome}"
    return f"no acknowledgement: {outcome}"
