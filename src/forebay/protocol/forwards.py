"""What a lane has forwarded, at which stream sequences: a few segments, never a write per acknowledgement (C3)."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from operator import attrgetter

from forebay.identity import Place
from forebay.protocol.resending import Forwarded

SEGMENTS = 256
"""Segments remembered per epoch; the oldest two are joined beyond it, at the higher stream sequence."""

_first, _last = attrgetter("first"), attrgetter("last")


class Forwards:
    """The segments of each epoch of one lane, disjoint and ascending; what is recorded last holds.

    A segment's stream sequence is an upper bound for each of its places: a consumer that has read up to it has read
    past all of them. One thread records; any may ask meanwhile, each answer is of one moment.
    """

    def __init__(self) -> None:
        self._segments: dict[str, list[Forwarded]] = {}

    def record(self, epoch: str, sent: Forwarded) -> None:
        """Note that places were acknowledged, for the first time or again."""
        segments = self._segments.setdefault(epoch, [])
        low = bisect_left(segments, sent.first, key=_last)
        high = bisect_right(segments, sent.last, lo=low, key=_first)
        # Only the outermost of those that it meets reach beyond it: nearly always it meets none, and is the newest.
        before = [each._replace(last=sent.first - 1) for each in segments[low:high][:1] if each.first < sent.first]
        after = [each._replace(first=sent.last + 1) for each in segments[low:high][-1:] if each.last > sent.last]
        segments[low:high] = [*before, sent, *after]
        while len(segments) > SEGMENTS:
            segments[:2] = [_join(segments[0], segments[1])]

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

    def filled(self, epoch: str, upto: int) -> list[Forwarded]:
        """Return the segments of an epoch, and between them what else was forwarded of its places up to ``upto``.

        That is as of an unknown incarnation: another process forwarded it, or did not have to.
        """
        found: list[Forwarded] = []
        next_place = 1
        for each in self.of(epoch):
            if next_place < each.first and next_place <= upto:
                found.append(Forwarded(next_place, min(upto, each.first - 1), "", 0))
            found.append(each)
            next_place = each.last + 1
        if next_place <= upto:
            found.append(Forwarded(next_place, upto, "", 0))
        return found

    def covering(self, place: Place) -> Forwarded | None:
        """Return the segment that a place is in, or None where it was not forwarded."""
        segments = self.of(place.epoch)
        at = bisect_left(segments, place.sequence, key=_last)
        return segments[at] if at < len(segments) and segments[at].first <= place.sequence else None


def _join(one: Forwarded, other: Forwarded) -> Forwarded:
    """Join two segments at the later bound; of two incarnations none is known: then it is sent again in doubt."""
    incarnation = one.incarnation if one.incarnation == other.incarnation else ""
    return Forwarded(
        one.first, other.last, incarnation, max(one.stream_sequence, other.stream_sequence), max(one.at, other.at)
    )
