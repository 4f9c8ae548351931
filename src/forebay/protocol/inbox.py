"""What an inbox accepts: duplicates, holes and the order of epochs (rules B1 to B3, I5)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from enum import Enum

from forebay.identity import Place
from forebay.sequences import SequenceSet


class Verdict(Enum):
    """What to do with an arriving event."""

    APPLY = "apply"
    DUPLICATE = "duplicate"
    HOLD = "hold"
    FOREIGN_LANE = "foreign-lane"


class EpochState:
    """How far a consumer is with one epoch: ``passed`` up to the watermark, its ranges beyond are held."""

    __slots__ = ("changed", "lane", "passed", "prev")

    def __init__(self, lane: str, prev: Place | None, passed: SequenceSet, *, changed: bool = False) -> None:
        self.lane = lane
        self.prev = prev
        self.passed = passed
        self.changed = changed


class OriginInbox:
    """The epochs that one consumer knows of one node's service.

    The caller asks ``judge``, makes the effect durable, says ``settle`` or ``hold``, and then drains ``due``. States
    that moved are marked ``changed`` for the caller to write back in the same transaction.
    """

    def __init__(self, epochs: Mapping[str, EpochState]) -> None:
        self.epochs = dict(epochs)

    def judge(self, place: Place, prev: Place | None, lane: str) -> Verdict:
        """Tell what to do with an event; an epoch not seen before is taken on with its lane and ``prev``.

        An epoch belongs to one origin (I1): under a second lane it is ``FOREIGN_LANE``, and nothing changes.
        """
        state = self.epochs.get(place.epoch)
        if state is None:
            state = self.epochs[place.epoch] = EpochState(lane, prev, SequenceSet(), changed=True)
        elif state.lane != lane:
            return Verdict.FOREIGN_LANE
        if place.sequence in state.passed:
            return Verdict.DUPLICATE
        if place.sequence == state.passed.watermark + 1 and self._reached(state.prev):
            return Verdict.APPLY
        return Verdict.HOLD

    def settle(self, place: Place) -> None:
        """Pass the place next to the watermark.

        Raises:
            ValueError: it is not next: settling it would skip a hole.
        """
        state = self.epochs[place.epoch]
        if place.sequence != state.passed.watermark + 1:
            raise ValueError(f"{place} is not next to the watermark {state.passed.watermark}")
        state.passed.advance()
        state.changed = True

    def hold(self, place: Place) -> None:
        """Remember an event that waits; its body is in the caller's hands."""
        state = self.epochs[place.epoch]
        state.passed.hold(place.sequence)
        state.changed = True

    def due(self) -> Place | None:
        """Return a held place that may take effect now, or None; settle it before asking again."""
        for epoch, state in self.epochs.items():
            if state.passed.next_is_held and self._reached(state.prev):
                return Place(epoch, state.passed.watermark + 1)
        return None

    def changed(self) -> Iterator[tuple[str, EpochState]]:
        """Yield the epochs whose state has to be written back."""
        return ((epoch, state) for epoch, state in self.epochs.items() if state.changed)

    def _reached(self, prev: Place | None) -> bool:
        if prev is None:
            return True
        state = self.epochs.get(prev.epoch)
        return state is not None and state.passed.watermark >= prev.sequence
