from __future__ import annotations

import re
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from forebay.errors import HeaderError
from forebay.identity import MessageId, Place, new_epoch, parse_message_id, parse_place, retransmission_id

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


@given(walls=st.lists(st.integers(0, (1 << 48) - 2), min_size=2, max_size=20))
def test_the_epochs_of_an_origin_sort_in_their_order_however_the_wall_is_set_i2(walls: list[int]) -> None:
    epochs: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        for milliseconds in walls:
            wall = SimpleNamespace(time_ns=lambda now=milliseconds: now * 1_000_000)
            patch.setattr("forebay.identity.time", wall)
            epochs.append(new_epoch(epochs[-1] if epochs else None))
    room = (1 << 48) - 1 - max(walls) >= len(walls)  # but at the end of all times
    assert not room or epochs == sorted(set(epochs))
    assert all(re.fullmatch(r"[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}", epoch) for epoch in epochs)
