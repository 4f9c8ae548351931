"""What a link carries and whose turn it is: O5."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest

from forebay.errors import ConfigurationError
from forebay.lanes import Lane
from forebay.link import ANSWER_TIMEOUT, LEAST_BATCH, LOWEST_SHARE, MOST_BATCH, Link
from forebay.project import LINK_KBIT, Project, read_project

KIB = 1024


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_first_batch_is_small_and_the_next_ones_are_what_the_link_carries_in_two_seconds_o5() -> None:
    link = Link()
    assert (link.bytes_per_second, link.batch_bytes, link.narrow) == (None, LEAST_BATCH, False)
    link.carried(16 * KIB, 0.5, lowest=False)
    assert link.batch_bytes == 64 * KIB
    for _ in range(30):
        link.carried(link.batch_bytes, link.batch_bytes / (50 * KIB), lowest=False)
    assert link.batch_bytes == pytest.approx(100 * KIB, rel=0.01)
    assert link.narrow


def test_a_batch_stays_between_16_kib_and_1_mib_o5() -> None:
    link = Link()
    link.carried(100, 10, lowest=False)
    assert link.batch_bytes == LEAST_BATCH
    link.carried(MOST_BATCH, 0.001, lowest=False)
    assert (link.batch_bytes, link.narrow) == (MOST_BATCH, False)


def test_a_small_batch_that_took_long_says_nothing_of_the_link_o5() -> None:
    link = Link()
    link.carried(200 * KIB, 1, lowest=False)
    before = link.batch_bytes
    link.carried(300, 0.5, lowest=False)
    assert link.batch_bytes == before
    link.failed()
    assert link.batch_bytes == before // 2


def test_a_time_out_leaves_room_for_the_bytes_of_a_thin_link_o5() -> None:
    link = Link()
    assert link.timeout(LEAST_BATCH) >= ANSWER_TIMEOUT + 8
    link.carried(2 * KIB, 1, lowest=False)
    assert link.timeout(LEAST_BATCH) == ANSWER_TIMEOUT + 32
    assert link.timeout(0) == ANSWER_TIMEOUT


def test_the_lowest_lane_gets_a_tenth_of_the_bytes_while_others_have_more_to_send() -> None:
    link = Link()
    link.carried(64 * KIB, 1, lowest=False)
    sent = {"high": 0, "lowest": 0}
    for _ in range(2000):
        share = link.lowest_bytes
        size = share or link.batch_bytes
        sent["lowest" if share else "high"] += size
        link.carried(size, size / (64 * KIB), lowest=bool(share))
    assert sent["lowest"] / sum(sent.values()) == pytest.approx(LOWEST_SHARE, rel=0.05)


async def test_a_cap_holds_over_all_who_share_the_link() -> None:
    link = Link(kbit=800)  # 100,000 bytes per second
    assert link.batch_bytes == LEAST_BATCH  # and not before the link has shown that it carries that much
    began = anyio.current_time()

    async def send() -> None:
        for _ in range(5):
            async with link.turn(0, 3000):
                pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        tasks.start_soon(send)
    await link.ready()
    assert 0.3 <= anyio.current_time() - began < 1.5


async def test_on_a_narrow_link_one_sends_after_the_other_the_urgent_first() -> None:
    link = Link()
    link.carried(10 * KIB, 1, lowest=True)
    order: list[int] = []
    release = anyio.Event()
    holding = anyio.Event()

    async def hold() -> None:
        async with link.turn(1, 10):
            holding.set()
            await release.wait()

    async def send(rank: int) -> None:
        async with link.turn(rank, 10):
            order.append(rank)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(hold)
        await holding.wait()
        for rank in (2, 1, 0, 1):
            tasks.start_soon(send, rank)
        await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        release.set()
    assert order == [0, 1, 1, 2]


async def test_who_stops_waiting_leaves_the_link_to_the_next() -> None:
    link = Link()
    link.carried(10 * KIB, 1, lowest=True)
    async with link.turn(0, 10):
        with anyio.move_on_after(0.01):
            async with link.turn(0, 10):
                pytest.fail("the link is taken")
    with anyio.fail_after(1):
        async with link.turn(1, 10):
            pass
        async with link.turn(1, 10):
            pass


@pytest.mark.parametrize("kbit", [0, -1, float("inf"), float("nan")])
def test_a_cap_that_is_none_is_refused(kbit: float) -> None:
    with pytest.raises(ConfigurationError, match="is not above 0"):
        Link(kbit)


def test_the_cap_comes_from_the_variable_or_from_the_projects_file(tmp_path: Path) -> None:
    assert Project(folder=tmp_path).link_kbit({}) is None
    (tmp_path / "forebay.toml").write_text("[link]\nkbit = 64\n")
    project = read_project(tmp_path)
    assert project.link_kbit({}) == 64
    assert project.link_kbit({LINK_KBIT: "9.6"}) == 9.6


@pytest.mark.parametrize(
    ("tables", "environment", "match"),
    [
        ({"link": {"kbit": "much"}}, {}, r"forebay.toml: \[link\] kbit: 'much' is not a number"),
        ({"link": {"kbit": 0}}, {}, "0 is not a number"),
        ({"link": {"kbits": 64}}, {}, "one setting, kbit"),
        ({"link": 7}, {}, "one setting, kbit"),
        ({}, {LINK_KBIT: "-3"}, f"{LINK_KBIT}: '-3' is not a number"),
    ],
)
def test_a_wrong_cap_is_one_line(tables: Any, environment: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigurationError, match=match):
        Project(folder=Path("/project"), tables=tables).link_kbit(environment)


@pytest.mark.parametrize(("text", "seconds"), [(0, 0), ("1s", 1), ("500ms", 0.5), (1.5, 1.5), ("2m", 120)])
def test_a_flush_interval_is_seconds_or_a_text_with_its_unit(text: Any, seconds: float) -> None:
    assert Lane("telemetry", flush_after=text).flush_seconds == seconds


@pytest.mark.parametrize("wrong", ["soon", "", -1, "2h", "1 day"])
def test_any_other_flush_interval_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigurationError, match="lane telemetry: flush_after"):
        Lane("telemetry", flush_after=wrong)
