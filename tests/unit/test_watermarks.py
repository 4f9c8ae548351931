"""How far event time has come: the least over the nodes that count."""

from __future__ import annotations

import pytest

from forebay.protocol.watermarks import LONG_AGO, MOST_BEHIND, Watermark, is_plausible

IDLE = 1000
YEARS = 10 * 365 * 24 * 3600 * 1000


def two(slow: int = 10, fast: int = 50) -> Watermark:
    watermark = Watermark(idle=IDLE)
    watermark.observe("slow", slow, now=0)
    watermark.observe("fast", fast, now=0)
    return watermark


def test_the_watermark_is_the_least_over_the_nodes() -> None:
    watermark = two()
    assert watermark.mark == 10
    assert watermark.observe("fast", 90, now=1) == 10
    assert watermark.observe("slow", 60, now=2) == 60
    assert watermark.observe("slow", 95, now=3) == 90


def test_an_older_event_takes_nothing_back() -> None:
    watermark = Watermark(idle=IDLE)
    assert watermark.mark == LONG_AGO
    assert watermark.observe("one", 50, now=0) == 50
    assert watermark.observe("one", 20, now=0) == 50
    assert watermark.observe("one", 51, now=0) == 51


def test_a_silent_node_holds_back_the_others_until_the_time_out() -> None:
    watermark = two()
    watermark.observe("fast", 90, now=500)
    assert watermark.silent_at() == IDLE
    assert watermark.pass_silent(IDLE - 1) == 10
    assert watermark.pass_silent(IDLE) == 90
    assert watermark.silent_at() is None, "one node alone holds back nobody"


def test_a_node_that_comes_back_counts_again_once_it_has_caught_up() -> None:
    watermark = two()
    watermark.observe("fast", 90, now=500)
    watermark.pass_silent(IDLE)
    assert watermark.observe("slow", 70, now=1100) == 90
    assert watermark.observe("fast", 95, now=1100) == 95
    assert watermark.observe("slow", 96, now=1200) == 95
    assert watermark.observe("fast", 99, now=1300) == 96


def test_after_a_time_in_which_nobody_was_heard_no_node_is_left_behind() -> None:
    watermark = two()
    watermark.pass_silent(5000)
    assert watermark.observe("fast", 200, now=5001) == 10
    assert watermark.observe("slow", 150, now=5002) == 150


def test_a_node_that_speaks_more_seldom_than_the_time_out_is_not_held_back_for_ever() -> None:
    watermark = two()
    for now in (5000, 10_000, 15_000):
        watermark.observe("fast", now, now=now)
        due = watermark.silent_at()
        assert due is not None
        assert now < due <= now + IDLE
        assert watermark.pass_silent(due) == now


def test_where_all_are_silent_the_watermark_stays() -> None:
    watermark = two()
    assert watermark.pass_silent(IDLE) == 10
    assert watermark.silent_at() is None


def test_a_node_at_1970_holds_back_nobody_even_if_it_came_first() -> None:
    watermark = Watermark(idle=IDLE)
    watermark.observe("unset", 5, now=0)
    watermark.observe("one", YEARS, now=0)
    watermark.observe("other", YEARS + 5, now=0)
    assert watermark.mark == YEARS
    assert watermark.observe("unset", 6, now=1) == YEARS
    assert watermark.observe("one", YEARS + 9, now=2) == YEARS + 5


def test_a_node_a_day_behind_the_foremost_holds_back_nobody_until_it_has_caught_up() -> None:
    watermark = two(slow=0, fast=MOST_BEHIND)
    assert watermark.mark == MOST_BEHIND
    assert watermark.observe("slow", MOST_BEHIND - 1, now=1) == MOST_BEHIND
    watermark.observe("fast", MOST_BEHIND + 9, now=2)
    assert watermark.observe("slow", MOST_BEHIND + 5, now=3) == MOST_BEHIND + 5


@pytest.mark.parametrize(("ahead", "plausible"), [(0, True), (300_000, True), (300_001, False), (YEARS, False)])
def test_a_time_that_has_not_come_is_not_plausible_i8(ahead: int, plausible: bool) -> None:
    assert is_plausible(1_000_000 + ahead, now=1_000_000) is plausible
