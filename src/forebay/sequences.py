"""A compact set of sequences: a contiguous watermark and the few ranges held beyond it (rule B1)."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator


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

    def advance(self) -> int:
        """Move the watermark up by one, taking that place out of what is held; return the new watermark."""
        self.watermark += 1
        if self.ranges and self.ranges[0][0] == self.watermark:
            last = self.ranges[0][1]
            self.ranges[:1] = [(self.watermark + 1, last)] if last > self.watermark else []
        return self.watermark
