"""C2 against the plain statement of the rule, place by place."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from forebay.protocol.confirmation import Answer, EpochAnswer
from forebay.protocol.resending import Forwarded, missed

EPOCH = "0" * 32
LAST = 12
places = st.integers(1, LAST)


@st.composite
def ranges(draw: st.DrawFn) -> list[tuple[int, int]]:
    first = draw(places)
    return [(first, draw(st.integers(first, LAST)))] if draw(st.booleans()) else []


@st.composite
def sent(draw: st.DrawFn) -> list[Forwarded]:
    borders = sorted({0, *draw(st.lists(places, max_size=4))})
    return [
        Forwarded(low + 1, high, draw(st.sampled_from(["now", "before"])), draw(st.integers(1, 20)))
        for low, high in itertools.pairwise(borders)
    ]


@given(
    sent(),
    st.integers(0, LAST),
    ranges(),
    ranges(),
    ranges(),
    st.integers(0, 20),
    st.integers(0, 20),
    st.booleans(),
)
def test_a_place_is_sent_again_exactly_where_no_copy_of_it_can_arrive_any_more_c2(
    forwarded: list[Forwarded],
    watermark: int,
    held: list[tuple[int, int]],
    missing: list[tuple[int, int]],
    wanted: list[tuple[int, int]],
    end: int,
    position: int,
    known: bool,
) -> None:
    said = EpochAnswer(watermark=watermark, held=held, missing=missing, wanted=wanted)
    answer = Answer(1, "sales", "s", "", "now", end, min(position, end), {EPOCH: said} if known else {})
    said = said if known else EpochAnswer(watermark=0)

    def within(place: int, these: list[tuple[int, int]]) -> bool:
        return any(first <= place <= last for first, last in these)

    expected = []
    for one in forwarded:
        for place in range(one.first, one.last + 1):
            has_it = place <= said.watermark and not within(place, said.missing) and not within(place, said.wanted)
            stands = one.incarnation == answer.incarnation and one.stream_sequence <= answer.stream_end
            on_its_way = stands and one.stream_sequence > answer.position
            if not has_it and not on_its_way and not within(place, said.held):
                expected.append(place)

    result = missed(EPOCH, forwarded, answer)
    assert [place for first, last in result for place in range(first, last + 1)] == expected
    assert all(after[0] > before[1] + 1 for before, after in itertools.pairwise(result))
