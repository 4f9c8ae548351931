from __future__ import annotations

import pytest

from forebay.draining import MOST_RETRY_AFTER, UNKNOWN_RETRY_AFTER, WINDOW, DrainRate


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_where_nothing_has_drained_yet_the_wait_is_a_guess(clock: Clock) -> None:
    rate = DrainRate(clock)
    assert (rate.bytes_per_second, rate.retry_after(1000)) == (0.0, UNKNOWN_RETRY_AFTER)


def test_the_wait_follows_from_the_rate_at_which_the_lane_drains(clock: Clock) -> None:
    rate = DrainRate(clock)
    for _ in range(10):
        rate.left(1000)
        clock.now += 1
    assert rate.bytes_per_second == 1000
    assert rate.retry_after(5000) == 5


@pytest.mark.parametrize(("need", "seconds"), [(1, 0.1), (1_000_000, 60)])
def test_the_wait_is_between_a_tenth_of_a_second_and_a_minute(clock: Clock, need: int, seconds: float) -> None:
    rate = DrainRate(clock)
    rate.left(1000)
    assert rate.retry_after(need) == seconds


def test_a_lane_that_has_stopped_draining_is_tried_again_after_the_longest_wait(clock: Clock) -> None:
    rate = DrainRate(clock)
    rate.left(10_000_000)
    clock.now += WINDOW + 1
    assert (rate.bytes_per_second, rate.retry_after(1)) == (0.0, MOST_RETRY_AFTER)
    rate.left(1000)
    assert rate.bytes_per_second == 1000


def test_what_is_remembered_is_bounded_by_the_window(clock: Clock) -> None:
    rate = DrainRate(clock)
    for _ in range(1000):
        rate.left(1)
        clock.now += 1
    assert len(rate._left) <= WINDOW + 1
