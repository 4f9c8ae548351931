from __future__ import annotations

from threading import Thread

import pytest

from forebay.clock import MAX_AHEAD, HybridClock, format_tick, parse_tick, wall_milliseconds
from forebay.errors import HeaderError

NOW = 1_760_000_000_000


class Wall:
    def __init__(self, now: int = NOW) -> None:
        self.now = now

    def __call__(self) -> int:
        return self.now


def test_a_tick_is_the_walls_milliseconds_and_a_counter() -> None:
    clock = HybridClock(wall=Wall())
    assert clock.tick() == NOW << 16
    assert clock.tick() == (NOW << 16) + 1


def test_a_wall_that_jumps_back_does_not_turn_the_clock_back_i8() -> None:
    wall = Wall()
    clock = HybridClock(wall=wall)
    before = clock.tick()
    wall.now = 0
    assert clock.tick() == before + 1


def test_a_stored_tick_is_never_undercut_by_a_restart_with_the_wall_set_back_i8() -> None:
    stored = NOW << 16
    assert HybridClock(last=stored, wall=Wall(0)).tick() > stored


def test_a_remote_tick_within_five_minutes_is_merged_i8() -> None:
    clock = HybridClock(wall=Wall())
    remote = NOW + MAX_AHEAD << 16 | 7
    clock.merge(remote)
    assert clock.tick() == remote + 1
    assert clock.refused == 0


def test_a_remote_tick_further_ahead_is_only_counted_i8() -> None:
    clock = HybridClock(wall=Wall())
    clock.tick()
    clock.merge(NOW + MAX_AHEAD + 1 << 16)
    assert clock.refused == 1
    assert clock.last == NOW << 16
    assert clock.tick() == (NOW << 16) + 1


def test_a_remote_tick_of_the_past_changes_nothing() -> None:
    clock = HybridClock(wall=Wall())
    before = clock.tick()
    clock.merge(1)
    assert (clock.last, clock.refused) == (before, 0)


def test_no_two_threads_get_the_same_tick() -> None:
    clock = HybridClock(wall=Wall())
    ticks: list[list[int]] = [[] for _ in range(4)]
    threads = [Thread(target=lambda mine=mine: mine.extend(clock.tick() for _ in range(500))) for mine in ticks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({tick for mine in ticks for tick in mine}) == 2000
    assert all(mine == sorted(mine) for mine in ticks)


def test_ticks_are_written_so_that_they_sort_as_text() -> None:
    assert format_tick(NOW << 16 | 1) == "0199c82cc0000001"
    assert format_tick(255) < format_tick(256)
    assert parse_tick(format_tick(NOW << 16 | 1)) == NOW << 16 | 1


@pytest.mark.parametrize(
    "text", ["", "1", "0" * 15, "0" * 17, "0199C82CC0000001", "0x99c82cc0000001", "+199c82cc0000001"]
)
def test_a_tick_is_16_hex_digits_and_nothing_else(text: str) -> None:
    with pytest.raises(HeaderError, match="16 hex digits"):
        parse_tick(text)


def test_the_wall_is_in_milliseconds() -> None:
    assert 1_700_000_000_000 < wall_milliseconds() < 10_000_000_000_000
