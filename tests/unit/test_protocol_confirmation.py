from __future__ import annotations

import pytest

from forebay.identity import Place
from forebay.protocol.confirmation import (
    MARKS,
    Answer,
    ChainLink,
    Confirmations,
    ConfirmedBy,
    EpochAnswer,
    OriginQuestion,
    Question,
    unpassed,
)

A, B, C = "a" * 32, "b" * 32, "c" * 32


def answer(**epochs: EpochAnswer) -> Answer:
    return Answer(
        v=1, consumer="sales", store="s", clock="2026-03-01T12:00:00Z", incarnation="i", stream_end=0, position=0,
        epochs={{"a": A, "b": B}[name]: said for name, said in epochs.items()},
    )  # fmt: skip


def upto(watermark: int, **more: list[tuple[int, int]]) -> EpochAnswer:
    return EpochAnswer(watermark, **more)


def test_a_passed_place_is_confirmed_b2() -> None:
    known = Confirmations()
    known.record(answer(a=upto(5)), now=0)
    assert known.confirmed(Place(A, 5))
    assert not known.confirmed(Place(A, 6))
    assert not known.confirmed(Place(B, 1))
    assert known.watermark(A) == 5
    assert known.watermark(B) == 0


def test_what_is_held_is_not_confirmed_b2() -> None:
    known = Confirmations()
    known.record(answer(a=upto(5, held=[(7, 9)])), now=0)
    assert not known.confirmed(Place(A, 8))
    assert known.ripe(A, 0) == 0


@pytest.mark.parametrize("how", ["missing", "wanted"])
def test_what_was_passed_without_its_event_is_not_confirmed_b2(how: str) -> None:
    known = Confirmations()
    known.record(answer(a=upto(9, **{how: [(3, 4)]})), now=0)
    known.record(answer(a=upto(9, **{how: [(3, 4)]})), now=100)
    assert [known.confirmed(Place(A, n)) for n in (2, 3, 4, 5)] == [True, False, False, True]
    assert known.watermark(A) == 2
    assert known.ripe(A, 10) == 2


def test_a_row_is_ripe_when_the_latest_answer_came_a_grace_after_the_first_that_confirmed_it_o1() -> None:
    known = Confirmations()
    assert known.ripe(A, 10) == 0
    known.record(answer(a=upto(5)), now=0)
    assert known.ripe(A, 10) == 0
    known.record(answer(a=upto(8)), now=9.5)
    assert known.ripe(A, 10) == 0
    known.record(answer(a=upto(8)), now=10)
    assert known.ripe(A, 10) == 5
    known.record(answer(a=upto(8)), now=19.5)
    assert known.ripe(A, 10) == 8


def test_one_answer_alone_frees_nothing_even_without_a_grace_o1() -> None:
    known = Confirmations()
    known.record(answer(a=upto(5)), now=0)
    assert known.ripe(A, 0) == 0
    known.record(answer(a=upto(5)), now=0.1)
    assert known.ripe(A, 0) == 5


def test_time_that_passes_without_an_answer_frees_nothing_o1() -> None:
    known = Confirmations()
    known.record(answer(a=upto(5)), now=0)
    assert known.ripe(A, 10) == 0  # whatever time it is now: nobody said it again


def test_a_consumer_restored_from_a_backup_takes_back_what_it_no_longer_says_o1() -> None:
    known = Confirmations()
    known.record(answer(a=upto(9)), now=0)
    known.record(answer(a=upto(4)), now=100)
    assert known.ripe(A, 10) == 0
    assert not known.confirmed(Place(A, 9))
    known.record(answer(a=upto(9)), now=101)
    assert known.ripe(A, 10) == 0
    known.record(answer(a=upto(9)), now=111)
    assert known.ripe(A, 10) == 9


def test_a_restored_consumer_that_does_not_know_the_epoch_any_more_begins_a_new_grace_o1() -> None:
    known = Confirmations()
    known.record(answer(a=upto(9)), now=0)
    known.record(answer(), now=100)
    assert known.ripe(A, 10) == 0
    known.record(answer(a=upto(9)), now=101)
    assert known.ripe(A, 10) == 0
    assert known.confirmed_at(Place(A, 9)) == 101
    known.record(answer(a=upto(9)), now=111)
    assert known.ripe(A, 10) == 9


def test_a_gap_that_is_filled_begins_its_grace_when_it_was_filled_o1_b2() -> None:
    known = Confirmations()
    known.record(answer(a=upto(9, missing=[(3, 3)])), now=0)
    known.record(answer(a=upto(9)), now=100)
    assert known.ripe(A, 10) == 2
    known.record(answer(a=upto(9)), now=110)
    assert known.ripe(A, 10) == 9


def test_recording_says_whether_more_is_confirmed() -> None:
    known = Confirmations()
    assert known.record(answer(a=upto(5)), now=0)
    assert not known.record(answer(a=upto(5)), now=1)
    assert not known.record(answer(a=upto(4)), now=2)
    assert known.record(answer(a=upto(5), b=upto(1)), now=3)
    assert known.answered_at == 3


def test_the_time_of_a_confirmation_is_that_of_the_first_answer_that_stands() -> None:
    known = Confirmations()
    known.record(answer(a=upto(5)), now=1)
    known.record(answer(a=upto(8)), now=2)
    assert [known.confirmed_at(Place(A, n)) for n in (1, 5, 6, 8)] == [1, 1, 2, 2]
    assert known.confirmed_at(Place(A, 9)) is None
    assert known.confirmed_at(Place(B, 1)) is None


def test_remembered_times_are_bounded_and_never_become_earlier_o1() -> None:
    known = Confirmations()
    for n in range(1, 10 * MARKS):
        known.record(answer(a=upto(n)), now=float(n))
        assert known.ripe(A, 50) <= max(0, n - 50)
        assert len(known._marks[A]) <= MARKS
    for n in range(1, 10 * MARKS):
        at = known.confirmed_at(Place(A, n))
        assert at is not None
        assert at >= n
    known.record(answer(a=upto(10 * MARKS)), now=1e9)
    assert known.ripe(A, 50) == 10 * MARKS - 1


def test_a_consumer_needs_the_services_it_names_or_all_s3() -> None:
    listed = ConfirmedBy(3, {"sales": ["till"], "archive": ["*"], "stock": ["delivery", "till"]})
    assert listed.needing("till") == ["archive", "sales", "stock"]
    assert listed.needing("price") == ["archive"]
    assert ConfirmedBy(1, {}).needing("till") == []


def asked(*chain: tuple[str, str]) -> Question:
    return Question(1, [OriginQuestion("till", "ledger", [ChainLink(*link) for link in chain])])


def said(**watermarks: int) -> Answer:
    names = {"a": A, "b": B, "c": C}
    return Answer(1, "audit", "s", "", "i", 9, 9, {names[k]: EpochAnswer(mark) for k, mark in watermarks.items()})


WHOLE = asked((A, "none"), (B, f"{A}-3"), (C, f"{B}-2"))


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (said(a=3, b=2, c=7), C),
        (said(a=3, b=1), B),
        (said(a=2, b=2, c=7), A),
        (said(), A),
    ],
)
def test_the_oldest_epoch_that_a_consumer_has_not_passed_is_asked_about_o2(answer: Answer, expected: str) -> None:
    assert unpassed(WHOLE, answer, lambda _: 0) == {"ledger": expected}


def test_a_consumer_that_says_less_than_before_is_asked_about_all_epochs_o2() -> None:
    """It was restored from a backup: of the epochs that it was not asked about nothing is known."""
    assert unpassed(asked((C, f"{B}-2")), said(c=4), lambda _: 5) == {}
    assert unpassed(asked((C, f"{B}-2")), said(), lambda _: 1) == {}
    assert unpassed(asked((C, f"{B}-2")), said(c=5), lambda _: 5) == {"ledger": C}
