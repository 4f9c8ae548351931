"""The shelf: whatever happens to it, nothing is promised twice, and nothing that is missing goes untold."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import given
from hypothesis import strategies as st

from contracts.stock import ShortageFound
from edge.stock.shelf import Shelf
from forebay import Event

UNTIL = datetime(2026, 3, 1, tzinfo=UTC)
ORDERS = st.sampled_from(["o-1", "o-2", "o-3"])
PIECES = st.integers(1, 9)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("receive"), st.just(""), PIECES),
        st.tuples(st.just("sell"), st.just(""), PIECES),
        st.tuples(st.just("count"), st.just(""), st.integers(0, 20)),
        st.tuples(st.just("reserve"), ORDERS, PIECES),
        st.tuples(st.just("release"), ORDERS, st.just(0)),
        st.tuples(st.just("collect"), ORDERS, st.just(0)),
    ),
    max_size=40,
)


def decide(shelf: Shelf, what: str, order: str, pieces: int) -> list[Event]:
    match what:
        case "receive":
            return shelf.receive(pieces, "D-1")
        case "sell":
            return shelf.sell(pieces, "b-1")
        case "count":
            return shelf.count(pieces, "C-1")
        case "reserve":
            return shelf.reserve(order, pieces, UNTIL)
        case "release":
            return shelf.release(order)
        case _:
            return shelf.collect(order)


def fold(shelf: Shelf, events: list[Event]) -> Shelf:
    for event in events:
        shelf = Shelf.spec.folds[event.spec.kind].function(shelf, event)
    return shelf


@given(steps=STEPS)
def test_a_shelf_promises_only_what_is_there_and_tells_what_is_missing(steps: list[tuple[str, str, int]]) -> None:
    shelf = Shelf(id="7")
    on_hand = 0
    kept: dict[str, int] = {}
    for what, order, pieces in steps:
        before = shelf
        room = on_hand - sum(kept.values()) + kept.get(order, 0)
        try:
            events = decide(shelf, what, order, pieces)
        except ValueError:
            assert what == "reserve"
            assert pieces > room
            assert shelf.lacking(order, pieces) == pieces - max(0, room)
            continue
        shelf = fold(shelf, events)
        match what:
            case "receive":
                on_hand += pieces
            case "sell":
                on_hand -= pieces
            case "count":
                on_hand = pieces
            case "reserve":
                assert pieces <= room
                kept[order] = pieces
            case "release":
                kept.pop(order, None)
            case _:
                on_hand -= kept.pop(order, 0)
        assert (shelf.on_hand, shelf.reserved) == (on_hand, kept)
        told = [event for event in events if isinstance(event, ShortageFound)]
        more_missing = shelf.available < min(0, before.available)
        assert bool(told) == more_missing
        assert [event.missing for event in told] == [-shelf.available] * more_missing
        if what in ("reserve", "release", "collect", "receive"):
            assert shelf.available >= min(0, before.available), "what is wanted never makes anything missing"
