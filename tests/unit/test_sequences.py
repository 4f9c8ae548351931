from __future__ import annotations

import pytest

from forebay.sequences import SequenceSet


def test_touching_ranges_become_one_b1() -> None:
    known = SequenceSet(2, [(5, 6), (9, 9)])
    known.hold(7, 8)
    assert known.ranges == [(5, 9)]
    known.hold(4)
    assert known.ranges == [(4, 9)]


def test_a_range_that_touches_the_watermark_waits_for_its_effect() -> None:
    known = SequenceSet(2, [(3, 4)])
    assert (known.watermark, known.next_is_held) == (2, True)
    assert [known.advance(), known.advance()] == [3, 4]
    assert known == SequenceSet(4)
    assert not known.next_is_held


def test_a_million_passed_sequences_cost_one_integer_b1() -> None:
    known = SequenceSet(1_000_000)
    assert (len(known), known.ranges) == (1_000_000, [])
    assert 1 in known
    assert 1_000_000 in known
    assert 0 not in known
    assert 1_000_001 not in known


@pytest.mark.parametrize(("first", "last"), [(3, None), (1, 9), (0, None), (8, 7), (-4, -2)])
def test_only_a_range_beyond_the_watermark_can_be_held(first: int, last: int | None) -> None:
    known = SequenceSet(3, [(5, 5)])
    with pytest.raises(ValueError, match="beyond the watermark 3"):
        known.hold(first, last)
    assert known == SequenceSet(3, [(5, 5)])
