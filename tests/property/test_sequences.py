from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.sequences import Range, SequenceSet, joined, within, without

LIMIT = 40
ranges = st.lists(st.tuples(st.integers(1, 40), st.integers(0, 8)).map(lambda each: (each[0], each[0] + each[1])))


def places(of: Iterable[Range]) -> set[int]:
    return {each for first, last in of for each in range(first, last + 1)}


@given(ranges)
def test_joined_ranges_hold_the_same_places_apart_and_ascending(some: list[Range]) -> None:
    found = joined(some)
    assert places(found) == places(some)
    assert all(found[at][1] + 1 < found[at + 1][0] for at in range(len(found) - 1))


@given(ranges, ranges)
def test_ranges_without_others_hold_what_is_in_none_of_them(some: list[Range], holes: list[Range]) -> None:
    found = without(some, holes)
    assert places(found) == places(some) - places(holes)
    assert found == sorted(found)
    assert all(within(each, some) and not within(each, holes) for each in places(found))


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
