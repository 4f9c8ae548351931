from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from forebay.clock import MAX_AHEAD, HybridClock, format_tick, parse_tick

TEN_YEARS = 10 * 366 * 24 * 3600 * 1000
NOW = 1_760_000_000_000
WALLS = st.integers(0, 2**47) | st.integers(NOW - TEN_YEARS, NOW + TEN_YEARS) | st.just(NOW)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wall"), WALLS),
        st.tuples(st.just("tick"), st.just(0)),
        st.tuples(st.just("restart"), st.just(0)),
        st.tuples(st.just("merge"), st.integers(-TEN_YEARS, TEN_YEARS) | st.integers(-2 * MAX_AHEAD, 2 * MAX_AHEAD)),
    ),
    max_size=40,
)


@given(start=WALLS, steps=STEPS, counter=st.integers(0, 0xFFFF))
def test_the_clock_never_goes_back_and_no_remote_time_carries_it_away_i8(
    start: int, steps: list[tuple[str, int]], counter: int
) -> None:
    wall, highest, ticks, refused = [start], start, [], 0
    clock = HybridClock(wall=lambda: wall[0])
    for step, value in steps:
        if step == "wall":
            wall[0] = value
            highest = max(highest, value)
        elif step == "tick":
            ticks.append(clock.tick())
        elif step == "restart":
            stored = clock.last
            clock = HybridClock(wall=lambda: wall[0])
            clock.resume(stored)
            refused = 0
        else:
            remote = max(0, wall[0] + value) << 16 | counter
            before = clock.last
            clock.merge(remote)
            if value > MAX_AHEAD:
                refused += 1
                assert clock.last == before
            else:
                ticks.append(clock.tick())
                assert ticks[-1] > remote
        assert clock.refused == refused
    assert all(earlier < later for earlier, later in pairwise(ticks))
    # Never further ahead than the furthest wall it saw, the five minutes of a merge, and its own ticks.
    assert clock.last <= (highest + MAX_AHEAD << 16 | 0xFFFF) + len(ticks)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_ticks_survive_a_header_and_sort_as_text(one: int, other: int) -> None:
    assert parse_tick(format_tick(one)) == one
    assert (format_tick(one) < format_tick(other)) == (one < other)
