"""What an inbox accepts: duplicates, holes, the order of epochs, and places that are passed without their event.

Rules I5, B1 to B5 and B7. A place is *passed* once it is at or below its epoch's watermark: its effect is made, or it
is ``missing`` (a gap or a drop), or ``wanted`` (withheld: parked without its body).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from enum import Enum
from itertools import islice
from typing import NamedTuple

from forebay.identity import Place
from forebay.sequences import Range, SequenceSet, joined, within, without

HELD_EVENTS = 10_000
"""Events that one origin may hold above its holes (B3); beyond it the highest is given up, and read again later."""

HELD_BYTES = 64 * 1024 * 1024
"""Bytes that these may take: 10,000 of the largest would be 2.5 GiB."""


class Verdict(Enum):
    """What to do with an arriving event."""

    APPLY = "apply"
    DUPLICATE = "duplicate"
    HOLD = "hold"
    FOREIGN_LANE = "foreign-lane"
    LATE = "late"
    """It arrives inside a gap or a drop: kept, and blocks nothing (B4)."""
    FILL = "fill"
    """The body of a place that is parked without one (O4)."""


class Due(Enum):
    """Why the place above a watermark may be passed now."""

    HELD = "held"
    DROPPED = "dropped"
    WITHHELD = "withheld"


class Step(NamedTuple):
    """Places of an epoch that may be passed now, in this manner; more than one only where they were dropped."""

    due: Due
    epoch: str
    first: int
    last: int
    key: str | None = None


class EpochState:
    """How far a consumer is with one epoch: ``passed`` up to the watermark, its ranges beyond are held.

    Attributes:
        lane, prev: as its events say.
        missing: passed places without an event, gaps and drops.
        wanted: passed places that are parked without their body.
        dropped, withheld: what a request said of places beyond the watermark; they count when they are reached.
        given_up: the lowest and the highest place that were given up for lack of room, and the stream sequence to read
            them from again.
        abandoned_after: what lies beyond was left behind by a restore of the emitter (B5).
        changed: whether it has to be written back.
    """

    __slots__ = (
        "abandoned_after",
        "changed",
        "dropped",
        "given_up",
        "lane",
        "missing",
        "passed",
        "prev",
        "wanted",
        "withheld",
    )

    def __init__(self, lane: str, prev: Place | None, passed: SequenceSet, *, changed: bool = False) -> None:
        self.lane = lane
        self.prev = prev
        self.passed = passed
        self.missing: list[Range] = []
        self.wanted: list[Range] = []
        self.dropped: list[Range] = []
        self.withheld: dict[int, str | None] = {}
        self.given_up: tuple[int, int, int] | None = None
        self.abandoned_after: int | None = None
        self.changed = changed

    @property
    def decided(self) -> bool:
        """Whether something is decided of places beyond the watermark."""
        return bool(self.dropped or self.withheld)

    @property
    def simple(self) -> bool:
        """Whether nothing is known of it but its watermark, as of most."""
        return not (
            self.passed.ranges
            or self.missing
            or self.wanted
            or self.dropped
            or self.withheld
            or self.given_up
            or self.abandoned_after is not None
        )

    @property
    def extent(self) -> int:
        """The highest place that is known of, what was given up for lack of room included."""
        ends = [self.passed.watermark, *self.withheld]
        ends += [last for _, last in [*self.passed.ranges[-1:], *self.dropped[-1:]]]
        if self.given_up is not None:
            ends.append(self.given_up[1])
        return max(ends)


class OriginInbox:
    """The epochs that one consumer knows of one node's service.

    Epochs may be added to ``epochs``, never taken out or replaced; what changes in one of them changes here.

    The caller asks ``judge``, makes the effect durable, says ``settle`` or ``hold``, and then drains ``due``. States
    that moved are marked ``changed`` for the caller to write back in the same transaction.
    """

    def __init__(self, epochs: Mapping[str, EpochState], held_events: int = HELD_EVENTS) -> None:
        self.epochs = dict(epochs)
        self._held_events = held_events
        self._calm = 0

    def __contains__(self, place: Place) -> bool:
        """Whether a place is passed or held."""
        state = self.epochs.get(place.epoch)
        return state is not None and place.sequence in state.passed

    # --- arrivals

    def judge(self, place: Place, prev: Place | None, lane: str) -> Verdict:
        """Tell what to do with an event; an epoch not seen before is taken on with its lane and ``prev``.

        An epoch belongs to one origin (I1): under a second lane it is ``FOREIGN_LANE``, and nothing changes. An event
        that arrives before a drop or a withheld place of it was reached takes the decision's place.
        """
        epoch, sequence = place
        state = self.epochs.get(epoch) or self.take_on(epoch, lane, prev)
        if state.lane != lane:
            return Verdict.FOREIGN_LANE
        passed = state.passed
        if sequence <= passed.watermark:
            if within(sequence, state.wanted):
                return Verdict.FILL
            return Verdict.LATE if within(sequence, state.missing) else Verdict.DUPLICATE
        if passed.ranges and sequence in passed:
            return Verdict.DUPLICATE
        if state.dropped or state.withheld:
            state.dropped = without(state.dropped, [(sequence, sequence)])
            state.withheld.pop(sequence, None)
            state.changed = True
        if sequence == passed.watermark + 1 and (state.prev is None or self._reached(state.prev)):
            return Verdict.APPLY
        return Verdict.HOLD

    def pass_next(self, place: Place, prev: Place | None, lane: str) -> bool:
        """Pass a place where ``judge`` would let it take effect, and nothing would be due once it is settled.

        That is so of the next place of an epoch, one not seen before included, while nothing waits in any of its
        origin's. False for every other, which is left as it was.
        """
        epoch, sequence = place
        state = self.epochs.get(epoch)
        if state is None:
            if sequence != 1 or not self._reached(prev) or self._waits():
                return False
            self.epochs[epoch] = EpochState(lane, prev, SequenceSet(1), changed=True)
            return True
        if state.lane != lane or sequence != state.passed.watermark + 1 or state.given_up is not None:
            return False
        if state.prev is not None and not self._reached(state.prev):
            return False
        if self._waits():
            return False
        state.passed.watermark = sequence
        state.changed = True
        return True

    def is_calm(self, epoch: str) -> bool:
        """Whether what an epoch follows is reached, and nothing waits in any of its origin's."""
        return self._reached(self.epochs[epoch].prev) and not self._waits()

    def follows(self, first: Place, last: int, prev: Place | None, lane: str) -> bool:
        """Whether a frame's events, ``first`` to ``last``, may all take effect now, one after the other.

        They may if they stand next to the watermark, and nothing is known yet of a place above it. Everything else is
        ``judge``'s to say, event by event. An epoch not seen before is taken on.
        """
        state = self.take_on(first.epoch, lane, prev)
        return (
            state.lane == lane
            and first.sequence == state.passed.watermark + 1
            and not (state.passed.ranges or state.dropped or state.withheld or state.given_up)
            and last >= first.sequence
            and self._reached(state.prev)
        )

    def repeats(self, first: Place, last: int, lane: str) -> bool:
        """Whether all of a frame's events took effect before."""
        state = self.epochs.get(first.epoch)
        return (
            state is not None
            and state.lane == lane
            and last <= state.passed.watermark
            and not (state.missing or state.wanted)
        )

    def settle_frame(self, first: Place, last: int) -> None:
        """Pass the places of a frame that ``follows``."""
        state = self.epochs[first.epoch]
        state.passed.advance_to(last)
        self._moved(state)

    def settle(self, place: Place) -> None:
        """Pass the place next to the watermark.

        Raises:
            ValueError: it is not next: settling it would skip a hole.
        """
        state = self.epochs[place.epoch]
        if place.sequence != state.passed.watermark + 1:
            raise ValueError(f"{place} is not next to the watermark {state.passed.watermark}")
        state.passed.advance()
        self._moved(state)

    def hold(self, place: Place) -> None:
        """Remember an event that waits; its body is in the caller's hands."""
        state = self.epochs[place.epoch]
        state.passed.hold(place.sequence)
        state.changed = True
        self._calm = 0

    def held(self, lane: str) -> int:
        """Return how many events of an origin are held."""
        return sum(last - first + 1 for _, state in self._holding(lane) for first, last in state.passed.ranges)

    def overfull(self, lane: str, held_bytes: int = 0) -> Place | None:
        """Return the event to give up, the highest that is held, where an origin holds more than it may (B3).

        ``held_bytes`` is what its held events take in the caller's hands.
        """
        states = self._holding(lane)
        if not states or (self.held(lane) <= self._held_events and held_bytes <= HELD_BYTES):
            return None
        epoch, state = max(states, key=lambda each: each[0])
        return Place(epoch, state.passed.ranges[-1][1])

    def _holding(self, lane: str) -> list[tuple[str, EpochState]]:
        return [(epoch, state) for epoch, state in self.epochs.items() if state.lane == lane and state.passed.ranges]

    def give_up(self, place: Place, stream_sequence: int) -> None:
        """Hold an event no longer; it stands at ``stream_sequence``, or did."""
        state = self.epochs[place.epoch]
        state.passed.release(place.sequence)
        low, high, at = state.given_up or (place.sequence, place.sequence, stream_sequence)
        state.given_up = min(low, place.sequence), max(high, place.sequence), min(at, stream_sequence)
        state.changed = True

    def found(self, place: Place) -> None:
        """Note that the event of a missing or wanted place is here after all."""
        state = self.epochs[place.epoch]
        here = [(place.sequence, place.sequence)]
        state.missing, state.wanted = without(state.missing, here), without(state.wanted, here)
        state.changed = True

    # --- what may be passed now

    def due(self) -> Step | None:
        """Return what may be passed now, or None; pass it before asking again."""
        if not self._waits():
            return None
        for epoch, state in islice(self.epochs.items(), self._calm, None):
            if (state.passed.ranges or state.dropped or state.withheld) and self._reached(state.prev):
                following = state.passed.watermark + 1
                if state.passed.next_is_held:
                    return Step(Due.HELD, epoch, following, following)
                if state.dropped and state.dropped[0][0] == following:
                    return Step(Due.DROPPED, epoch, *state.dropped[0])
                if following in state.withheld:
                    return Step(Due.WITHHELD, epoch, following, following, state.withheld[following])
        return None

    def _waits(self) -> bool:
        """Whether anything is known of places above a watermark."""
        # Asked with every event, of a node that was restarted ten thousand times too: what was found to have nothing
        # above its watermark, the first so many, is not looked at again until something comes there.
        if self._calm == len(self.epochs):
            return False
        for state in islice(self.epochs.values(), self._calm, None):
            if state.passed.ranges or state.dropped or state.withheld:
                return True
            self._calm += 1
        return False

    def skip(self, epoch: str, upto: int) -> None:
        """Pass the places above the watermark up to ``upto`` without their events: they are missing.

        Raises:
            ValueError: an event is held on the way.
        """
        state = self.epochs[epoch]
        first = state.passed.watermark + 1
        state.passed.advance_to(upto)
        state.missing = joined([*state.missing, (first, upto)])
        self._moved(state)

    def want(self, place: Place) -> None:
        """Pass the place next to the watermark without its body, which may still come."""
        self.settle(place)
        state = self.epochs[place.epoch]
        state.wanted = joined([*state.wanted, (place.sequence, place.sequence)])

    def lose(self, place: Place) -> None:
        """Note that nobody has the body of a wanted place any more: it is missing."""
        state = self.epochs[place.epoch]
        here = (place.sequence, place.sequence)
        state.wanted = without(state.wanted, [here])
        state.missing = joined([*state.missing, here])
        state.changed = True

    # --- what a node says of its places

    def drop(self, places: Iterable[tuple[str, int, int]], lane: str, prevs: Mapping[str, Place | None]) -> list[Place]:
        """Take note of ranges (epoch, first, last) that the node dropped; return those that were wanted: they are lost.

        What is held, or passed, stays as it is: an event can reach the core and be dropped at the same time (O3).
        """
        lost: list[Place] = []
        self._calm = 0
        for epoch, first, last in places:
            state = self.take_on(epoch, lane, prevs.get(epoch))
            if state.lane != lane:
                continue
            lost += [Place(epoch, each) for a, b in state.wanted for each in range(max(a, first), min(b, last) + 1)]
            beyond = [(max(first, state.passed.watermark + 1), last)]
            if beyond[0][0] <= last:
                dropped = joined([*state.dropped, *without(beyond, state.passed.ranges)])
                state.changed |= dropped != state.dropped
                state.dropped = dropped
                state.withheld = {place: key for place, key in state.withheld.items() if not within(place, dropped)}
        return lost

    def withhold(
        self, places: Iterable[tuple[str, int, str | None]], lane: str, prevs: Mapping[str, Place | None]
    ) -> None:
        """Take note of places (epoch, sequence, key) whose events the broker refuses (O4)."""
        self._calm = 0
        for epoch, sequence, key in places:
            state = self.take_on(epoch, lane, prevs.get(epoch))
            decided = sequence in state.passed or within(sequence, state.dropped) or sequence in state.withheld
            if state.lane == lane and not decided:
                state.withheld[sequence] = key
                state.changed = True

    def take_on(self, epoch: str, lane: str, prev: Place | None) -> EpochState:
        """Return the state of an epoch, a new one where it was not known."""
        state = self.epochs.get(epoch)
        if state is None:
            state = self.epochs[epoch] = EpochState(lane, prev, SequenceSet(), changed=True)
        return state

    def changed(self) -> Iterator[tuple[str, EpochState]]:
        """Yield the epochs whose state has to be written back."""
        return ((epoch, state) for epoch, state in self.epochs.items() if state.changed)

    # --- branches that a restore left behind

    def abandoned(self, place: Place) -> bool:
        """Whether a place, or one that its epoch descends from, was left behind by a restore of the emitter (B5)."""
        at: Place | None = place
        seen: set[str] = set()
        while at is not None and at.epoch in self.epochs and at.epoch not in seen:
            seen.add(at.epoch)
            state = self.epochs[at.epoch]
            if state.abandoned_after is not None and at.sequence > state.abandoned_after:
                return True
            at = state.prev
        return False

    def _moved(self, state: EpochState) -> None:
        watermark = state.passed.watermark
        if state.dropped and state.dropped[0][0] <= watermark:
            state.dropped = without(state.dropped, [(1, watermark)])
        if state.withheld:
            state.withheld = {place: key for place, key in state.withheld.items() if place > watermark}
        if state.given_up:
            low, high, at = state.given_up
            state.given_up = (max(low, watermark + 1), high, at) if high > watermark else None
        state.changed = True

    def _reached(self, prev: Place | None) -> bool:
        if prev is None:
            return True
        state = self.epochs.get(prev.epoch)
        return state is not None and state.passed.watermark >= prev.sequence
