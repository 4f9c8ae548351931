"""Windows over a real schema in memory: whatever the order of arrival, the batches and the crashes, what comes out is
what a batch computation over the same events gives."""

from collections.abc import Callable, Iterable
from contextlib import closing
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.delivery import Delivery
from forebay.protocol.windows import Kind, Session, Sliding, Tumbling, sessions
from tests.property.window_rig import NODES, Reading, Rig, delivered

KINDS: list[Kind] = [Tumbling(10), Sliding(12, every=4), Session(7)]


def computed(kind: Kind, readings: Iterable[Reading], scope: Callable[[Reading], str]) -> dict[Any, list[int]]:
    """The batch computation: all windows of readings that are all known."""
    found: dict[Any, list[int]] = {}
    of_key: dict[tuple[str, str], list[Reading]] = {}
    for reading in readings:
        of_key.setdefault((scope(reading), reading.probe), []).append(reading)
    for (where, probe), each in of_key.items():
        spans = [span for reading in each for span in kind.spans(reading.at)]
        for whole in sessions(spans) if isinstance(kind, Session) else sorted(set(spans)):
            found[where, probe, whole] = sorted(
                reading.number for reading in each if whole.opens <= reading.at < whole.closes
            )
    return found


_LENGTHS = st.sampled_from([30, 60, 120])  # in the shortest, late readings often join two sessions


@st.composite
def arrivals(draw: st.DrawFn) -> list[Reading]:
    """Readings of up to three nodes in an order of arrival: each node with a delay and a disorder of its own."""
    nodes = NODES[: draw(st.integers(1, 3))]
    delays = {node: draw(st.sampled_from([0, 2, 50])) for node in nodes}
    disorder, keys, length = draw(st.sampled_from([0, 5, 30])), draw(st.sampled_from(["a", "ab"])), draw(_LENGTHS)
    reading = st.tuples(st.sampled_from(nodes), st.sampled_from(keys), st.integers(0, length), st.integers(0, disorder))
    readings = draw(st.lists(reading, min_size=1, max_size=40))
    timed = [
        (second + delays[node] + late, Reading(node, probe, second, number))
        for number, (node, probe, second, late) in enumerate(readings)
    ]
    return [reading for _, reading in sorted(timed, key=lambda each: each[0])]


def run(rig: Rig, readings: list[Reading], draw: Callable[[Any], Any]) -> None:
    """Deliver readings in random batches, some twice, some in transactions that crash and run again."""
    waiting = [delivered(rig.stream, reading, rig.places) for reading in readings]
    seen: list[Delivery] = []
    while waiting:
        size = draw(st.integers(1, len(waiting)))
        batch, waiting = waiting[:size], waiting[size:]
        if draw(st.booleans()):
            rig.take(batch, commit=False)
        doubled = batch + ([draw(st.sampled_from(seen))] if seen and draw(st.booleans()) else [])
        rig.take(doubled, one_by_one=draw(st.booleans()))
        seen += batch
    rig.close_all()


def check(rig: Rig, kind: Kind, readings: list[Reading], scope: Callable[[Reading], str]) -> None:
    """Results are the batch computation over what was not too late; both together are what came in."""
    by_number = {reading.number: reading for reading in readings}
    late, results = rig.late(), {at: numbers for at, numbers in rig.results().items() if at[1] != "end"}
    expected: dict[Any, list[int]] = {}
    if isinstance(kind, Session):
        missed = {number for numbers in late.values() for number in numbers}
        expected = computed(kind, [each for each in readings if each.number not in missed], scope)
    else:
        missed_by = {(scope(by_number[number]), *at[1:], number) for at, numbers in late.items() for number in numbers}
        for at, numbers in computed(kind, readings, scope).items():
            if kept := [number for number in numbers if (*at, number) not in missed_by]:
                expected[at] = kept
    assert results == expected
    assert rig.rows("select count(*) from forebay_window where key <> 'end'") == [(0,)], "what is final is deleted"
    (counted,) = rig.rows("select sum(late) from forebay_watermark")[0]
    assert counted == len({number for numbers in late.values() for number in numbers})


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), arrivals(), st.sampled_from([0, 5, 30, 1000]), st.data())
def test_each_nodes_windows_are_the_batch_computation(
    kind: Kind, readings: list[Reading], lateness: int, data: st.DataObject
) -> None:
    rig = Rig(kind, lateness=lateness)
    with closing(rig.connection):
        run(rig, readings, data.draw)
        check(rig, kind, readings, lambda reading: reading.node)
        if lateness == 1000:
            assert rig.late() == {}


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(KINDS), arrivals(), st.sampled_from([0, 5, 30, 1000]), st.data())
def test_windows_of_all_nodes_together_are_the_batch_computation(
    kind: Kind, readings: list[Reading], lateness: int, data: st.DataObject
) -> None:
    rig = Rig(kind, lateness=lateness, nodes="together")
    with closing(rig.connection):
        run(rig, readings, data.draw)
        check(rig, kind, readings, lambda _: "")
        if lateness == 1000:
            assert rig.late() == {}


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS), arrivals(), st.sampled_from([0, 5, 30]), st.sampled_from(["each", "together"]), st.data()
)
def test_the_size_of_the_batches_does_not_change_what_comes_out(
    kind: Kind, readings: list[Reading], lateness: int, nodes: str, data: st.DataObject
) -> None:
    outcomes = []
    for whole in (True, False):
        rig = Rig(kind, lateness=lateness, nodes=nodes)
        with closing(rig.connection):
            waiting = [delivered(rig.stream, reading, rig.places) for reading in readings]
            while waiting:
                size = len(waiting) if whole else data.draw(st.integers(1, len(waiting)))
                rig.take(waiting[:size])
                waiting = waiting[size:]
            standing = rig.rows("select name, scope, key, opens, closes, state, events, content from forebay_window")
            marks = rig.rows("select * from forebay_watermark")
            # A result that late events change is told at the end of a transaction, so what stands until its window is
            # final depends on where that was: of a session that another event of the batch has made longer, nothing.
            rig.close_all()
            outcomes.append((standing, marks, rig.results(), rig.late()))
    assert outcomes[0] == outcomes[1]


def test_a_corrected_session_that_grows_before_the_end_of_its_batch_is_told_as_the_longer_one() -> None:
    """Seconds 0 and 7 close a session; what is late for it, and then joins both, comes in one batch or in two."""
    early, late, joins = Reading("store-1", "a", 0, 0), Reading("store-1", "a", 0, 2), Reading("store-1", "a", 1, 3)
    told = []
    for batches in (
        [[early, Reading("store-1", "a", 7, 1), late, joins]],
        [[early, Reading("store-1", "a", 7, 1), late], [joins]],
    ):
        rig = Rig(Session(7), lateness=30)
        with closing(rig.connection):
            for batch in batches:
                rig.read(*batch)
            before = [numbers for at, numbers in rig.results().items()]
            rig.close_all()
            told.append((before, [numbers for at, numbers in rig.results().items() if at[1] != "end"]))
    assert told == [([[0]], [[0, 1, 2, 3]]), ([[0, 2]], [[0, 1, 2, 3]])]
