from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.sequences import SequenceSet

LIMIT = 40


class SequenceSetBesideAPlainSet(RuleBasedStateMachine):
    """B1: whatever is held and passed, the compact set says what a plain Python set says."""

    def __init__(self) -> None:
        super().__init__()
        self.known = SequenceSet()
        self.held: set[int] = set()

    @rule(first=st.integers(-2, LIMIT), length=st.integers(-1, 6))
    def hold(self, first: int, length: int) -> None:
        last = first + length
        if first <= self.known.watermark or last < first:
            try:
                self.known.hold(first, last)
            except ValueError:
                return
            raise AssertionError("an empty range, or one that is not beyond the watermark, was taken")
        self.known.hold(first, last)
        self.held |= set(range(first, last + 1))

    @rule()
    def advance(self) -> None:
        before = self.known.watermark
        assert self.known.advance() == before + 1
        self.held.discard(before + 1)

    @precondition(lambda self: self.known.next_is_held)
    @rule()
    def drain(self) -> None:
        while self.known.next_is_held:
            self.held.remove(self.known.advance())

    @rule()
    def write_and_read_back(self) -> None:
        self.known = SequenceSet(self.known.watermark, list(self.known.ranges))

    @invariant()
    def it_contains_what_the_set_contains(self) -> None:
        watermark = self.known.watermark
        assert list(self.known.held()) == sorted(self.held)
        assert len(self.known) == watermark + len(self.held)
        assert self.known.next_is_held == (watermark + 1 in self.held)
        for sequence in range(-2, LIMIT + 10):
            assert (sequence in self.known) == (0 < sequence <= watermark or sequence in self.held)

    @invariant()
    def its_ranges_are_ascending_apart_and_above_the_watermark(self) -> None:
        ends = [self.known.watermark - 1, *(end for one in self.known.ranges for end in one)]
        starts, lasts = ends[1::2], ends[2::2]
        assert all(first <= last for first, last in zip(starts, lasts, strict=True))
        assert all(first > last + 1 for first, last in zip(starts, ends[0::2], strict=False))


TestSequenceSet = SequenceSetBesideAPlainSet.TestCase
TestSequenceSet.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
