"""A compact set of sequences: a contiguous watermark and the few ranges held beyond it (rule B1)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator

Range = tuple[int, int]
"""First and last sequence, both included."""


class SequenceSet:
    """The sequences of one epoch that are known: passed up to ``watermark``, and ``ranges`` held beyond it.

    ``ranges`` are inclusive, disjoint, never adjacent to one another, ascending and all above the watermark. The
    watermark moves only by ``advance``: a range that touches it waits until its effect is made. One million passed
    sequences cost one integer.
    """

    __slots__ = ("ranges", "watermark")

    def __init__(self, watermark: int = 0, ranges: Iterable[tuple[int, int]] = ()) -> None:
        self.watermark = watermark
        self.ranges: list[tuple[int, int]] = []
        for first, last in ranges:
            self.hold(first, last)

    def __contains__(self, sequence: int) -> bool:
        if sequence <= self.watermark:
            return sequence > 0
        at = bisect_left(self.ranges, (sequence + 1, 0)) - 1
        return at >= 0 and self.ranges[at][1] >= sequence

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SequenceSet) and (self.watermark, self.ranges) == (other.watermark, other.ranges)

    __hash__ = None  # type: ignore[assignment]

    def __len__(self) -> int:
        return self.watermark + sum(last - first + 1 for first, last in self.ranges)

    def __repr__(self) -> str:
        return f"SequenceSet({self.watermark}, {self.ranges})"

    @property
    def next_is_held(self) -> bool:
        """Whether the place right above the watermark is held."""
        return bool(self.ranges) and self.ranges[0][0] == self.watermark + 1

    def held(self) -> Iterator[int]:
        """Yield the sequences beyond the watermark, ascending."""
        for first, last in self.ranges:
            yield from range(first, last + 1)

    def hold(self, first: int, last: int | None = None) -> None:
        """Add ``first`` to ``last``, both included, beyond the watermark.

        Raises:
            ValueError: the range is empty or not beyond the watermark.
        """
        last = first if last is None else last
        if first <= self.watermark or last < first:
            raise ValueError(f"{first} to {last} is not a range beyond the watermark {self.watermark}")
        low = bisect_left(self.ranges, (first, 0))
        if low and self.ranges[low - 1][1] >= first - 1:
            low -= 1
        high = low
        while high < len(self.ranges) and self.ranges[high][0] <= last + 1:
            first, last = min(first, self.ranges[high][0]), max(last, self.ranges[high][1])
            high += 1
        self.ranges[low:high] = [(first, last)]

    def advance_to(self, sequence: int) -> None:
        """Move the watermark up to ``sequence``: places that nobody has an event for are passed together.

        Raises:
            ValueError: it is not beyond the watermark, or an event is held on the way.
        """
        if sequence <= self.watermark or (self.ranges and self.ranges[0][0] <= sequence):
            raise ValueError(f"the watermark {self.watermark} cannot pass {sequence} at once")
        self.watermark = sequence

    def release(self, sequence: int) -> None:
        """Take a held place out: its event was given up.

        Raises:
            ValueError: it is not held.
        """
        for at, (first, last) in enumerate(self.ranges):
            if first <= sequence <= last:
                self.ranges[at : at + 1] = without([(first, last)], [(sequence, sequence)])
                return
        raise ValueError(f"{sequence} is not held")

    def advance(self) -> int:
        """Move the watermark up by one, taking that place out of what is held; return the new watermark."""
        self.watermark += 1
        if self.ranges and self.ranges[0][0] == self.watermark:
            last = self.ranges[0][1]
            self.ranges[:1] = [(self.watermark + 1, last)] if last > self.watermark else []
        return self.watermark


def joined(ranges: Iterable[Range]) -> list[Range]:
    """Return the same places in the fewest ranges, ascending."""
    result: list[Range] = []
    for first, last in sorted(ranges):
        if result and first <= result[-1][1] + 1:
            result[-1] = (result[-1][0], max(result[-1][1], last))
        else:
            result.append((first, last))
    return result


def without(ranges: Iterable[Range], holes: Iterable[Range]) -> list[Range]:
    """Return the places of ``ranges`` that are in none of ``holes``, ascending."""
    left: list[Range] = []
    apart = joined(holes)
    at = 0
    for first, last in joined(ranges):
        while at < len(apart) and apart[at][1] < first:
            at += 1
        low, hole = first, at
        while hole < len(apart) and apart[hole][0] <= last:
            if low < apart[hole][0]:
                left.append((low, apart[hole][0] - 1))
            low = max(low, apart[hole][1] + 1)
            hole += 1
        if low <= last:
            left.append((low, last))
    return left


def within(sequence: int, ranges: Iterable[Range]) -> bool:
    """Whether a place is in one of the ranges."""
    return any(first <= sequence <= last for first, last in ranges)
