from __future__ import annotations

import pytest

from forebay.identity import Place
from forebay.protocol.closing import given_up, targets
from forebay.protocol.inbox import Due, EpochState, OriginInbox, Step, Verdict
from forebay.sequences import SequenceSet

A, B, C = "a" * 32, "b" * 32, "c" * 32


def origin(**epochs: SequenceSet) -> OriginInbox:
    names = {"a": (A, None), "b": (B, Place(A, 3)), "c": (C, Place(B, 2))}
    return OriginInbox({names[k][0]: EpochState("ledger", names[k][1], passed) for k, passed in epochs.items()})


def test_the_next_place_takes_effect() -> None:
    inbox = origin(a=SequenceSet(2))
    assert inbox.judge(Place(A, 3), None, "ledger") is Verdict.APPLY
    inbox.settle(Place(A, 3))
    assert inbox.epochs[A].passed == SequenceSet(3)


@pytest.mark.parametrize("sequence", [1, 2, 5])
def test_what_is_passed_or_held_is_a_duplicate_b1(sequence: int) -> None:
    inbox = origin(a=SequenceSet(2, [(5, 5)]))
    assert inbox.judge(Place(A, sequence), None, "ledger") is Verdict.DUPLICATE
    assert list(inbox.changed()) == []


def test_a_place_above_a_hole_is_held_until_the_hole_is_repaired_b3() -> None:
    inbox = origin(a=SequenceSet(2))
    assert inbox.judge(Place(A, 4), None, "ledger") is Verdict.HOLD
    inbox.hold(Place(A, 4))
    assert inbox.due() is None
    inbox.settle(Place(A, 3))
    assert inbox.due() == Step(Due.HELD, A, 4, 4)
    inbox.settle(Place(A, 4))
    assert inbox.due() is None


def test_an_epoch_waits_for_the_place_that_it_names_i5_b3() -> None:
    inbox = origin(a=SequenceSet(2))
    assert inbox.judge(Place(B, 1), Place(A, 3), "ledger") is Verdict.HOLD
    inbox.hold(Place(B, 1))
    inbox.settle(Place(A, 3))
    assert inbox.due() == Step(Due.HELD, B, 1, 1)


def test_an_epoch_whose_predecessor_was_never_seen_waits_b3() -> None:
    inbox = OriginInbox({})
    assert inbox.judge(Place(C, 1), Place(B, 2), "ledger") is Verdict.HOLD


def test_an_older_epoch_is_not_closed_by_a_younger_one_i5() -> None:
    inbox = origin(a=SequenceSet(3), b=SequenceSet(2))
    assert inbox.judge(Place(A, 4), None, "ledger") is Verdict.APPLY


def test_an_epoch_belongs_to_one_lane_i1() -> None:
    inbox = origin(a=SequenceSet(2))
    assert inbox.judge(Place(A, 3), None, "telemetry") is Verdict.FOREIGN_LANE
    assert list(inbox.changed()) == []


def test_settling_never_skips_a_hole() -> None:
    inbox = origin(a=SequenceSet(2))
    with pytest.raises(ValueError, match="not next to the watermark 2"):
        inbox.settle(Place(A, 4))


def test_only_what_moved_is_written_back() -> None:
    inbox = origin(a=SequenceSet(2), b=SequenceSet(0))
    inbox.settle(Place(A, 3))
    assert [epoch for epoch, _ in inbox.changed()] == [A]


def test_an_epoch_that_is_met_for_the_first_time_is_written_back() -> None:
    inbox = OriginInbox({})
    inbox.judge(Place(B, 1), Place(A, 3), "ledger")
    ((epoch, state),) = inbox.changed()
    assert (epoch, state.lane, state.prev, state.passed) == (B, "ledger", Place(A, 3), SequenceSet())


@pytest.mark.parametrize(
    ("field", "ranges", "repeated"), [("missing", [], True), ("missing", [(2, 2)], False), ("wanted", [(2, 2)], False)]
)
def test_a_frame_that_may_bring_what_is_missing_or_wanted_is_no_repetition_b4_o4(
    field: str, ranges: list[tuple[int, int]], repeated: bool
) -> None:
    inbox = origin(a=SequenceSet(5))
    setattr(inbox.epochs[A], field, ranges)

    assert inbox.repeats(Place(A, 1), 5, "ledger") is repeated
    assert not inbox.repeats(Place(A, 1), 6, "ledger")
    assert not inbox.repeats(Place(A, 1), 5, "telemetry")
    assert not inbox.repeats(Place(B, 1), 5, "ledger")


def test_a_floor_of_a_later_epoch_reaches_back_to_what_was_given_up_of_an_older_one_b3_b4() -> None:
    inbox = origin(a=SequenceSet(2), b=SequenceSet(1))
    inbox.epochs[B].prev = Place(A, 2)  # a restored node goes on from there: its third event is of a branch left behind
    inbox.judge(Place(A, 4), None, "ledger")
    inbox.hold(Place(A, 4))
    inbox.give_up(Place(A, 4), 17)
    upto = targets(inbox, "ledger", Place(B, 1), {})
    assert upto == {A: 4, B: 1}
    assert given_up(inbox, upto) == 17


def test_what_is_said_after_it_was_asked_what_is_due_is_due() -> None:
    for due in (Due.DROPPED, Due.WITHHELD, Due.HELD):
        known = OriginInbox({})
        epochs = [f"{number:032x}" for number in range(3)]
        for epoch in epochs:
            assert known.judge(Place(epoch, 1), None, "ledger") is Verdict.APPLY
            known.settle(Place(epoch, 1))
            assert known.due() is None
        at = epochs[1]
        if due is Due.DROPPED:
            known.drop([(at, 2, 3)], "ledger", {})
        elif due is Due.WITHHELD:
            known.withhold([(at, 2, "a key")], "ledger", {})
        else:
            known.hold(Place(at, 2))
        step = known.due()
        assert step is not None
        assert (step.due, step.epoch, step.first) == (due, at, 2)


def test_the_first_event_of_an_epoch_is_passed_at_once_where_nothing_is_in_its_way() -> None:
    inbox = OriginInbox({"a": EpochState("ledger", None, SequenceSet(3))})
    assert not inbox.pass_next(Place("b", 2), Place("a", 3), "ledger")
    assert not inbox.pass_next(Place("b", 1), Place("a", 4), "ledger")
    assert not inbox.pass_next(Place("b", 1), Place("unknown", 1), "ledger")
    inbox.drop([("a", 4, 5)], "ledger", {})
    assert not inbox.pass_next(Place("b", 1), Place("a", 3), "ledger"), "something is due"
    inbox.skip("a", 5)
    assert list(inbox.epochs) == ["a"]
    assert inbox.pass_next(Place("b", 1), Place("a", 3), "ledger")
    assert (inbox.epochs["b"].passed.watermark, inbox.epochs["b"].changed) == (1, True)
