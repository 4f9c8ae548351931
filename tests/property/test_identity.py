from __future__ import annotations

import re

from hypothesis import example, given
from hypothesis import strategies as st

from forebay.errors import HeaderError
from forebay.identity import MessageId, Place, parse_message_id, parse_place, retransmission_id

# As docs/guarantee.md has it.
WIRE = re.compile(r"^[0-9a-f]{32}-[1-9][0-9]{0,17}(-[1-9][0-9]{0,17})?(~[0-9a-z]{1,16})?\Z")
EPOCH = "0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"
EPOCHS = st.integers(0, 2**128 - 1).map("{:032x}".format)
SEQUENCES = st.integers(1, 10**18 - 1)
IDS = st.builds(
    lambda epoch, pair: MessageId(epoch, *sorted(pair)), EPOCHS, st.tuples(SEQUENCES, SEQUENCES)
) | st.builds(lambda epoch, first: MessageId(epoch, first, first), EPOCHS, SEQUENCES)
NEAR_MISSES = st.builds(
    "".join,
    st.lists(
        st.sampled_from([EPOCH, "-", "~", "0", "1", "9", "12", "a", "A", " ", "\n", "٣", "x" * 16, "9" * 18, "1" * 19]),
        max_size=7,
    ),
)


@given(IDS)
def test_a_message_id_is_read_as_it_was_written_i4(message_id: MessageId) -> None:
    assert WIRE.match(str(message_id))
    assert parse_message_id(str(message_id)) == message_id


@given(IDS)
def test_a_retransmission_is_the_same_message_under_another_id_i4(message_id: MessageId) -> None:
    repeat = retransmission_id(str(message_id))
    assert WIRE.match(repeat)
    assert repeat != str(message_id)
    assert parse_message_id(repeat) == message_id


@given(st.text(max_size=60) | NEAR_MISSES | st.builds(lambda tail: f"{EPOCH}-{tail}", NEAR_MISSES))
@example(f"{EPOCH}-1\n")
@example(f"{EPOCH}-12-7")
@example(f"{EPOCH}-{'1' * 19}")
@example(f"{EPOCH}-1-{'9' * 19}")
def test_ours_is_exactly_what_the_protocols_pattern_matches(text: str) -> None:
    try:
        read = parse_message_id(text)
    except HeaderError:
        # Begins as one of ours: malformed, or a frame that ends before it begins.
        assert re.match("[0-9a-f]{32}-", text)
        if WIRE.match(text):
            _, first, last = text.partition("~")[0].split("-")
            assert int(last) <= int(first)
    else:
        assert (read is not None) == bool(WIRE.match(text))


@given(EPOCHS, SEQUENCES)
def test_a_place_is_read_as_it_was_written_i5(epoch: str, sequence: int) -> None:
    assert parse_place(str(Place(epoch, sequence))) == Place(epoch, sequence)
