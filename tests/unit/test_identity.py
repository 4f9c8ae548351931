from __future__ import annotations

from uuid import UUID

import pytest

from forebay.errors import ConfigurationError, HeaderError
from forebay.identity import (
    MessageId,
    Place,
    checked_name,
    new_epoch,
    parse_message_id,
    parse_place,
    partition_of,
    retransmission_id,
)

EPOCH = "0190a1b2c3d47e5f8a9b0c1d2e3f4a5b"


@pytest.mark.parametrize("name", ["till", "store-330", "0", "a" * 63, "7-eleven", "a-"])
def test_a_name_is_letters_digits_and_hyphens(name: str) -> None:
    assert checked_name(name, "node") == name


@pytest.mark.parametrize("name", ["", "-a", "A", "a.b", "*", ">", "a b", "a_b", "ä", "a" * 64, "till\n", "\u0661"])
def test_anything_else_is_refused_when_it_is_configured(name: str) -> None:
    with pytest.raises(ConfigurationError, match="is not a name"):
        checked_name(name, "node")


def test_an_epoch_is_a_uuid_of_version_7_in_32_hex_digits_i2() -> None:
    epochs = [new_epoch() for _ in range(200)]
    assert all(len(epoch) == 32 and epoch == epoch.lower() for epoch in epochs)
    assert {(UUID(epoch).version, UUID(epoch).variant) for epoch in epochs} == {(7, UUID(EPOCH).variant)}
    assert len(set(epochs)) == len(epochs)
    times = [int(epoch[:12], 16) for epoch in epochs]
    assert times == sorted(times)


def test_a_message_id_is_its_epoch_and_sequence_i4() -> None:
    assert parse_message_id(f"{EPOCH}-7") == MessageId(EPOCH, 7, 7)
    assert str(MessageId(EPOCH, 7, 7)) == f"{EPOCH}-7"
    assert MessageId(EPOCH, 7, 9).place == Place(EPOCH, 7)


def test_a_frame_is_named_by_its_first_and_last_sequence_i4() -> None:
    assert parse_message_id(f"{EPOCH}-7-12") == MessageId(EPOCH, 7, 12)
    assert str(MessageId(EPOCH, 7, 12)) == f"{EPOCH}-7-12"


@pytest.mark.parametrize("tail", ["12-7", "12-11"])
def test_a_frame_does_not_end_before_it_begins(tail: str) -> None:
    with pytest.raises(HeaderError, match="ends before it begins"):
        parse_message_id(f"{EPOCH}-{tail}")


@pytest.mark.parametrize(
    "tail", ["", "0", "01", "-1", "1-", "1-0", "1-2-3", "1~", "1~A", "1~" + "a" * 17, "x", "1" * 19, "1 ", "1\n", "٣"]
)
def test_what_begins_as_ours_and_is_malformed_is_no_foreign_id(tail: str) -> None:
    with pytest.raises(HeaderError, match="malformed"):
        parse_message_id(f"{EPOCH}-{tail}")


@pytest.mark.parametrize("text", ["order-1", "", EPOCH, EPOCH[:-1] + "-1", f"{EPOCH.upper()}-1", str(UUID(EPOCH)), "ü"])
def test_any_other_id_is_a_foreign_producers_i7(text: str) -> None:
    assert parse_message_id(text) is None


def test_a_retransmission_has_a_random_suffix_that_reading_ignores_i4() -> None:
    original = f"{EPOCH}-7"
    repeats = {retransmission_id(original) for _ in range(100)}
    assert len(repeats) == 100
    assert {parse_message_id(repeat) for repeat in repeats} == {parse_message_id(original)}


def test_the_place_before_an_epoch_is_a_place_or_none_i5() -> None:
    assert parse_place("none") is None
    assert parse_place(f"{EPOCH}-41") == Place(EPOCH, 41)
    assert str(Place(EPOCH, 41)) == f"{EPOCH}-41"


@pytest.mark.parametrize("text", ["", "None", EPOCH, f"{EPOCH}-0", f"{EPOCH}-1-2", f"{EPOCH}-1~a", "order-1"])
def test_the_place_before_an_epoch_is_nothing_else_i5(text: str) -> None:
    with pytest.raises(HeaderError, match="forebay-prev"):
        parse_place(text)


def test_partitions_are_what_the_broker_counts_s1() -> None:
    # FNV-1a 32, with the test vectors of its authors: 0xE40C292C for "a", 0xBF9CF968 for "foobar".
    assert partition_of("a", 1 << 32) == 0xE40C292C
    assert partition_of("foobar", 1 << 32) == 0xBF9CF968
    assert partition_of("foobar") == 0xBF9CF968 % 8
