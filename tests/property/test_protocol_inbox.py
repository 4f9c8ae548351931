from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.identity import Place
from forebay.protocol.inbox import Due, EpochState, OriginInbox, Verdict
from forebay.sequences import SequenceSet


class Reader:
    """Does with an ``OriginInbox`` what a consumer does, and notes in which order places took effect."""

    def __init__(self, prevs: dict[str, Place | None]) -> None:
        self.prevs = prevs
        self.inbox = OriginInbox({})
        self.effects: list[Place] = []
        self.bodies: set[Place] = set()

    def take(self, place: Place) -> None:
        verdict = self.inbox.judge(place, self.prevs[place.epoch], "ledger")
        if verdict is Verdict.HOLD:
            assert place not in self.bodies
            self.inbox.hold(place)
            self.bodies.add(place)
        elif verdict is Verdict.APPLY:
            self.inbox.settle(place)
            self.effects.append(place)
            while (step := self.inbox.due()) is not None:
                assert step.due is Due.HELD
                due = Place(step.epoch, step.first)
                self.bodies.remove(due)
                self.inbox.settle(due)
                self.effects.append(due)
        else:
            assert verdict is Verdict.DUPLICATE
            assert place in self.effects or place in self.bodies

    def restart(self) -> None:
        """Keep what a database keeps of each epoch, and nothing else."""
        self.inbox = OriginInbox(
            {
                epoch: EpochState(
                    state.lane, state.prev, SequenceSet(state.passed.watermark, list(state.passed.ranges))
                )
                for epoch, state in self.inbox.epochs.items()
            }
        )


@st.composite
def arrivals(draw: st.DrawFn) -> tuple[dict[str, Place | None], list[Place], list[Place | None]]:
    """A chain of epochs, its places as written, and how they arrive: any order, duplicates, restarts (None)."""
    lengths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    names = draw(st.permutations([f"{n:032x}" for n in range(len(lengths))]))
    prevs: dict[str, Place | None] = {}
    written: list[Place] = []
    for name, length in zip(names, lengths, strict=True):
        prevs[name] = written[-1] if written else None
        written += [Place(name, sequence) for sequence in range(1, length + 1)]
    order: list[Place | None] = list(draw(st.permutations(written)))
    for extra in draw(st.lists(st.sampled_from(written) | st.none(), max_size=12)):
        order.insert(draw(st.integers(0, len(order))), extra)
    return prevs, written, order


@given(arrivals())
def test_in_whatever_order_and_however_often_events_arrive_each_takes_effect_once_and_in_order_b1_b3_i5(
    case: tuple[dict[str, Place | None], list[Place], list[Place | None]],
) -> None:
    prevs, written, order = case
    reader = Reader(prevs)
    seen: set[Place] = set()
    for arrival in order:
        if arrival is None:
            reader.restart()
            continue
        reader.take(arrival)
        seen.add(arrival)
        possible = next((n for n, place in enumerate(written) if place not in seen), len(written))
        assert reader.effects == written[:possible]
    assert reader.effects == written
    assert reader.bodies == set()
    for epoch, state in reader.inbox.epochs.items():
        assert state.passed == SequenceSet(sum(place.epoch == epoch for place in written))
