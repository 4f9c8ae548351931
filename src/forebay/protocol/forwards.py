"""What a lane has forwarded, at which stream sequences: a few segments, never a write per acknowledgement (C3)."""

from __future__ import annotations

from collections.abc import Iterator

from forebay.identity import Place
from forebay.protocol.resending import Forwarded

SEGMENTS = 256
"""Segments remembered per epoch; the oldest two are joined beyond it, at the higher stream sequence."""


class Forwards:
    """The segments of each epoch of one lane, disjoint and ascending; what is recorded last holds.

    A segment's stream sequence is an upper bound for each of its places: a consumer that has read up to it has read
    past all of them.
    """

    def __init__(self) -> None:
        self._segments: dict[str, list[Forwarded]] = {}

    def record(self, epoch: str, sent: Forwarded) -> None:
        """Note that places were acknowledged, for the first time or again."""
        kept = [part for each in self._segments.get(epoch, ()) for part in _outside(each, sent.first, sent.last)]
        kept.append(sent)
        kept.sort()
        while len(kept) > SEGMENTS:
            kept[:2] = [_join(kept[0], kept[1])]
        self._segments[epoch] = kept

    def forget(self, epoch: str, upto: int) -> None:
        """Drop what is known of the places up to ``upto``: they were freed."""
        kept = [each for each in self._segments.get(epoch, ()) if each.last > upto]
        if kept:
            self._segments[epoch] = kept
        else:
            self._segments.pop(epoch, None)

    def of(self, epoch: str) -> list[Forwarded]:
        """Return the segments of an epoch, ascending; a copy."""
        return list(self._segments.get(epoch, ()))

    def covering(self, place: Place) -> Forwarded | None:
        """Return the segment that a place is in, or None where it was not forwarded."""
        return next((s for s in self._segments.get(place.epoch, ()) if s.first <= place.sequence <= s.last), None)


def _outside(segment: Forwarded, first: int, last: int) -> Iterator[Forwarded]:
    if segment.first < first:
        yield segment._replace(last=min(segment.last, first - 1))
    if segment.last > last:
        yield segment._replace(first=max(segment.first, last + 1))


def _join(one: Forwarded, other: Forwarded) -> Forwarded:
    """Join two segments at the later bound; of two incarnations none is known: then it is sent again in doubt."""
    incarnation = one.incarnation if one.incarnation == other.incarnation else ""
    return Forwarded(
        one.first, other.last, incarnation, max(one.stream_sequence, other.stream_sequence), max(one.at, other.at)
    )
