"""What a rebuild replays, whatever the archive's order and however the consumer moves on between the passes (F3)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from forebay.identity import Origin, Place
from forebay.protocol.rebuilding import EpochWork, Plan
from forebay.sequences import Range, joined, without

ORIGIN = Origin("house-1", "door", "ledger")
LENGTH = 12
EPOCHS = [f"{number:032x}" for number in (7, 3, 5)]
"""In the order of their chain, which is not the order of their names."""

PREVS = ["none", *(str(Place(epoch, LENGTH)) for epoch in EPOCHS[:-1])]
PLACES = [Place(epoch, sequence) for epoch in EPOCHS for sequence in range(1, LENGTH + 1)]

sets = st.frozensets(st.sampled_from(PLACES))


def ranges(places: frozenset[Place], epoch: str) -> list[Range]:
    return joined((each.sequence, each.sequence) for each in places if each.epoch == epoch)


def key(place: Place) -> tuple[str, str, str, int]:
    return (ORIGIN.node, ORIGIN.service, place.epoch, place.sequence)


def kept(plan: Plan) -> Plan:
    """A plan as it comes back from the disk."""
    return Plan(
        EpochWork(each.origin, each.epoch, each.prev, list(each.todo), list(each.done))
        for each in plan._epochs.values()
    )


@given(
    passes=st.lists(sets, min_size=1, max_size=4),
    orders=st.permutations(PLACES),
    archived=sets,
    killed=st.integers(0, len(PLACES)),
)
def test_each_effect_is_replayed_once_and_in_the_order_of_its_origin_within_a_pass(
    passes: list[frozenset[Place]], orders: list[Place], archived: frozenset[Place], killed: int
) -> None:
    plan, replayed, effects = Plan([]), list[Place](), frozenset[Place]()
    for more in passes:
        effects = effects | more  # what had an effect has had it
        begun = len(replayed)
        for epoch, prev in zip(EPOCHS, PREVS, strict=True):
            plan.set(ORIGIN, epoch, prev, ranges(effects, epoch))
        for at, place in enumerate(orders):
            if at == killed:
                plan = kept(plan)
            if place in archived and plan.due(*key(place)):
                plan.take(*key(place))
                replayed.append(place)
        for each, (first, last) in plan.left():
            for sequence in range(first, last + 1):
                if Place(each.epoch, sequence) in archived:
                    each.take(sequence)
                    replayed.append(Place(each.epoch, sequence))
        of_pass = [PLACES.index(place) for place in replayed[begun:]]
        assert of_pass == sorted(of_pass)
        assert plan.count == len(effects - archived), "what is left is what the archive lacks"
    assert sorted(replayed) == sorted(effects & archived)


@given(taken=st.permutations(range(1, LENGTH + 1)), holes=st.frozensets(st.integers(1, LENGTH)))
def test_what_is_left_and_what_is_done_are_all_of_an_epoch(taken: list[int], holes: frozenset[int]) -> None:
    whole = without([(1, LENGTH)], [(hole, hole) for hole in holes])
    work = EpochWork(ORIGIN, EPOCHS[0], "none", list(whole), [])
    for sequence in taken:
        if sequence not in holes:
            work.take(sequence)
            assert joined([*work.todo, *work.done]) == joined(whole)
    assert (work.todo, work.done) == ([], whole)


def test_a_chain_that_goes_round_in_a_circle_ends() -> None:
    circle = [(EPOCHS[0], str(Place(EPOCHS[1], 1))), (EPOCHS[1], str(Place(EPOCHS[0], 1)))]
    plan = Plan(EpochWork(ORIGIN, epoch, prev, [(1, 1)], []) for epoch, prev in circle)
    assert len(plan.left()) == 2
