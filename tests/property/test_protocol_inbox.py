from __future__ import annotations

import copy

from hypothesis import given
from hypothesis import strategies as st

from forebay.identity import Place
from forebay.protocol.inbox import Due, EpochState, OriginInbox, Verdict
from forebay.sequences import SequenceSet, joined, without


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


RANGES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 2)), max_size=2).map(
    lambda found: joined((first, first + more) for first, more in found)
)


@st.composite
def epoch_states(draw: st.DrawFn, prev: Place | None) -> EpochState:
    watermark = draw(st.integers(0, 6))
    beyond = [(first, last) for first, last in draw(RANGES) if first > watermark]
    state = EpochState(draw(st.sampled_from(["ledger", "telemetry"])), prev, SequenceSet(watermark, beyond))
    state.missing = [(first, last) for first, last in draw(RANGES) if last <= watermark]
    state.wanted = [(first, last) for first, last in draw(RANGES) if last <= watermark]
    state.dropped = without([(first, last) for first, last in draw(RANGES) if first > watermark], beyond)
    state.withheld = dict.fromkeys(draw(st.sets(st.integers(watermark + 1, 12), max_size=1)))
    state.given_up = draw(st.none() | st.just((watermark + 3, watermark + 4, 99)))
    return state


def seen(inbox: OriginInbox) -> dict[str, dict[str, object]]:
    return {
        epoch: {name: getattr(state, name) for name in EpochState.__slots__} for epoch, state in inbox.epochs.items()
    }


@given(st.data())
def test_passing_the_next_place_at_once_is_to_judge_and_to_settle_it_with_nothing_due(data: st.DataObject) -> None:
    quiet = data.draw(st.booleans())
    states = {}
    for name, prev in (("a", None), ("b", Place("a", 3)), ("c", Place("unknown", 1))):
        states[name] = state = data.draw(epoch_states(prev))
        if quiet:
            state.passed = SequenceSet(state.passed.watermark)
            state.dropped, state.withheld, state.given_up = [], {}, None
    at_once, slowly = OriginInbox(states), OriginInbox(copy.deepcopy(states))
    before = copy.deepcopy(seen(at_once))
    epoch = data.draw(st.sampled_from(["a", "b", "c", "d"]))
    state_of = states.get(epoch)
    following = 1 if state_of is None else state_of.passed.watermark + 1
    place = Place(epoch, data.draw(st.just(following) | st.integers(1, 9)))
    lane = data.draw(st.sampled_from(["ledger", "telemetry"]))
    said = st.sampled_from([None, Place("a", 1), Place("b", 3), Place("unknown", 1)])
    prev = data.draw(said) if state_of is None else state_of.prev

    passed = at_once.pass_next(place, prev, lane)

    if passed:
        assert slowly.judge(place, prev, lane) is Verdict.APPLY
        slowly.settle(place)
        assert slowly.due() is None
        assert seen(at_once) == seen(slowly)
    else:
        assert seen(at_once) == before
        assert not (quiet and slowly.judge(place, prev, lane) is Verdict.APPLY)


@given(st.data())
def test_a_simple_epoch_is_calm_where_its_next_place_would_be_passed_at_once(data: st.DataObject) -> None:
    states = {}
    for name, prev in (("a", None), ("b", Place("a", 3)), ("c", Place("unknown", 1)), ("d", Place("b", 2))):
        states[name] = state = data.draw(epoch_states(prev))
        if data.draw(st.booleans()):
            states[name] = EpochState(state.lane, prev, SequenceSet(state.passed.watermark))
    for name, state in states.items():
        if state.simple:
            place = Place(name, state.passed.watermark + 1)
            calm = OriginInbox(copy.deepcopy(states)).is_calm(name)
            assert calm == OriginInbox(copy.deepcopy(states)).pass_next(place, state.prev, state.lane)
