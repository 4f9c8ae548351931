"""The segments against a plain dictionary of places (C3)."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from forebay.identity import Place
from forebay.protocol.forwards import SEGMENTS, Forwards
from forebay.protocol.resending import Forwarded

EPOCH = "0" * 32


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(0, 10), st.sampled_from("ab"), st.integers(1, 99))),
    st.integers(0, 45),
)
def test_what_was_recorded_last_of_a_place_holds(records: list[tuple[int, int, str, int]], upto: int) -> None:
    forwards = Forwards()
    model: dict[int, tuple[str, int]] = {}
    for first, more, incarnation, sequence in records:
        forwards.record(EPOCH, Forwarded(first, first + more, incarnation, sequence))
        model |= dict.fromkeys(range(first, first + more + 1), (incarnation, sequence))

    for place in range(1, 45):
        found = forwards.covering(Place(EPOCH, place))
        assert (found and (found.incarnation, found.stream_sequence)) == model.get(place)
    segments = forwards.of(EPOCH)
    assert all(one.last < other.first for one, other in itertools.pairwise(segments))
    filled = forwards.filled(EPOCH, upto)
    assert all(one.last < other.first for one, other in itertools.pairwise(filled))
    unknown = dict.fromkeys(range(1, upto + 1), ("", 0))
    assert {
        place: (each.incarnation, each.stream_sequence) for each in filled for place in range(each.first, each.last + 1)
    } == unknown | model


def test_old_segments_are_joined_at_a_bound_that_holds_for_all_their_places() -> None:
    forwards = Forwards()
    for at in range(1, 2 * SEGMENTS):
        forwards.record(EPOCH, Forwarded(at, at, "now", 1000 + at))

    assert len(forwards.of(EPOCH)) == SEGMENTS
    for at in range(1, 2 * SEGMENTS):
        found = forwards.covering(Place(EPOCH, at))
        assert found is not None
        assert found.stream_sequence >= 1000 + at
    forwards.forget(EPOCH, 2 * SEGMENTS)
    assert forwards.of(EPOCH) == []
