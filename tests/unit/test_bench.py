"""The benchmarks' harness: what it makes of the values, and that its check sees what is wrong."""

from __future__ import annotations

import asyncio
import sqlite3
import time
import xml.etree.ElementTree as Xml
from pathlib import Path

import pytest

from bench.contest import Benchmark, Goal, Held, Measure, Run, hold, order
from bench.disk import fsync_ms
from bench.effects import SqliteEffects, check_once
from bench.environments import python_with
from bench.failures import EffectsError, LeftOutError
from bench.fleet import Fleet
from bench.load import run
from bench.page import BEGIN, END, GOALS_BEGIN, GOALS_END, goals, markdown, publish, reached, read_limits, table
from bench.peers.http_server import Bytes
from bench.peers.report import Machine, MarkerError
from bench.plot import bars, number
from bench.profiling import Function, summary
from bench.results_file import Results, load, merged
from bench.services.metering import Metered
from bench.spread import Spread, percentile, ratio, spread
from bench.stream_reading import numbers_of
from bench.suite import BENCHMARKS, main
from bench.watching import watch

RATE = Measure(name="events", unit="events/s")
WAIT = Measure(name="p99", unit="ms", more_is_better=False)
GOALS = (
    Goal(column="forebay", measure="events", value=3.0, beside="a peer"),
    Goal(column="forebay", measure="events", value=1000.0),
    Goal(column="forebay", measure="p99", value=5.0),
    Goal(column="another", measure="events", value=1.0),
)
HELD = Held(
    name="trial",
    title="A trial",
    told="One sentence.",
    measures=(RATE, WAIT),
    values={
        "forebay": {"events": [300.0, 600.0, 900.0], "p99": [4.0, 6.0, 5.0]},
        "a peer": {"events": [100.0, 100.0, 300.0]},
    },
    goals=GOALS,
    left_out={"absent": "it is not installed"},
)
HERE = Machine("a processor", 2, "6.1", "ext2/ext3", 0.5, "2.15.1", "3.11.7", "3.40.1", "0.1.0")


def results(**changes: object) -> Results:
    values: dict[str, object] = {
        "at": "2026-03-01T12:00:00+00:00",
        "quick": False,
        "rounds": 3,
        "machine": HERE,
        "fsync_ms": Spread(0.5, 0.2, 9.0),
        "versions": {"litestar": "2.25.0"},
        "benchmarks": [HELD],
    }
    return Results(**{**values, **changes})  # type: ignore[arg-type]


def test_a_spread_has_the_median_the_least_and_the_most() -> None:
    assert spread([3.0, 1.0, 9.0]) == Spread(3.0, 1.0, 9.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    with pytest.raises(ValueError, match="no values"):
        spread([])


def test_a_ratio_is_taken_within_each_round() -> None:
    """The second round was slow for both: of medians it would be 4."""
    assert ratio([400.0, 40.0, 800.0], [100.0, 10.0, 100.0]) == Spread(4.0, 4.0, 8.0)
    with pytest.raises(ValueError, match="2 rounds beside 1"):
        ratio([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="multiple of 0"):
        ratio([1.0], [0.0])


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 1001)]
    assert [percentile(values, share) for share in (0.0, 0.5, 0.99, 0.999, 1.0)] == [1.0, 500.0, 990.0, 999.0, 1000.0]
    assert percentile([7.0], 0.999) == 7.0
    with pytest.raises(ValueError, match="no values"):
        percentile([], 0.5)


def test_the_check_sees_what_was_lost_doubled_or_never_written() -> None:
    assert check_once([3, 1, 2], [1, 2, 3]) == 3
    assert check_once([1, 2, 3], [1, 2], possible=[3, 4]) == 3
    with pytest.raises(EffectsError, match="1 lost, 0 doubled, 0 unknown of 3"):
        check_once([1, 3], [1, 2, 3])
    with pytest.raises(EffectsError, match="0 lost, 1 doubled, 0 unknown of 2"):
        check_once([1, 2, 2], [1, 2])
    with pytest.raises(EffectsError, match="0 lost, 0 doubled, 1 unknown of 2"):
        check_once([1, 2, 9], [1, 2])


def test_effects_are_counted_before_there_is_a_table(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    effects = SqliteEffects(path)
    assert effects.count(1) == 0
    database = sqlite3.connect(path)
    database.execute("create table other (number integer)")
    assert effects.count(1) == 0
    database.execute("create table effect (position integer primary key, number integer)")
    database.execute("insert into effect (number) values (7), (7), (8)")
    database.commit()
    assert effects.count(1) == 3
    assert SqliteEffects(path, before=2).count(1) == 1
    assert effects.numbers() == [7, 7, 8]
    effects.close()
    database.close()


def test_every_column_comes_first_once() -> None:
    columns = ["a", "b", "c"]
    assert [order(columns, number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


async def test_rounds_are_interleaved_each_in_a_folder_of_its_own(tmp_path: Path) -> None:
    ran: list[str] = []
    folders: set[Path] = set()

    def column(name: str) -> Run:
        async def measure(folder: Path) -> dict[str, float]:
            folders.add(folder)
            ran.append(name)
            if name == "absent":
                raise LeftOutError("it is not installed")
            return {"events": float(len(ran))}

        return measure

    columns = {name: column(name) for name in ("forebay", "a peer", "absent")}
    benchmark = Benchmark(name="trial", title="A trial", told="", measures=(RATE,), columns=columns)
    held = await hold(benchmark, 2, tmp_path)
    assert ran == ["forebay", "a peer", "absent", "a peer", "forebay"]
    assert len(folders) == len(ran)
    assert held.values == {"forebay": {"events": [1.0, 5.0]}, "a peer": {"events": [2.0, 4.0]}}
    assert held.left_out == {"absent": "it is not installed"}


async def test_a_check_that_fails_ends_the_run(tmp_path: Path) -> None:
    async def doubled(_: Path) -> dict[str, float]:
        check_once([1, 1], [1])
        return {"events": 1.0}

    benchmark = Benchmark(name="trial", title="A trial", told="", measures=(RATE,), columns={"forebay": doubled})
    with pytest.raises(EffectsError):
        await hold(benchmark, 1, tmp_path)


def test_a_goal_is_reached_by_the_median_in_the_direction_of_its_measure() -> None:
    assert reached(HELD, GOALS[0]) == (Spread(3.0, 3.0, 6.0), True)
    assert reached(HELD, GOALS[1]) == (Spread(600.0, 300.0, 900.0), False)
    assert reached(HELD, GOALS[2]) == (Spread(5.0, 4.0, 6.0), True)
    assert reached(HELD, GOALS[3]) is None


def test_the_table_has_a_row_for_each_column() -> None:
    assert table(HELD) == (
        "| | events, events/s | p99, ms |\n|---|---:|---:|\n"
        "| forebay | 600 (300 to 900) | 5.00 (4.00 to 6.00) |\n| a peer | 100 (100 to 300) |  |"
    )
    said = markdown(results())
    assert "- events, forebay beside a peer: 3.00 (3.00 to 6.00) \N{MULTIPLICATION SIGN}, goal 3.00: reached" in said
    assert "- events, forebay: 600 (300 to 900) events/s, goal 1,000: **missed**" in said
    assert "goal 1.00 events/s, not measured" in said
    assert "Left out, absent: it is not installed" in said
    assert "synced to disk in 0.50 (0.20 to 9.00) ms" in said


def test_the_page_is_written_between_its_markers_with_pictures_beside_it(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text("before\n")
    with pytest.raises(MarkerError, match="goals:begin"):
        publish(results(), page)
    page.write_text(f"{GOALS_BEGIN}\nold\n{GOALS_END}\nbetween\n{BEGIN}\nold\n{END}\nafter\n")
    publish(results(), page)
    said = page.read_text()
    assert said.startswith(f"{GOALS_BEGIN}\n\n| Goal | ")
    assert f"{GOALS_END}\nbetween\n{BEGIN}\n" in said
    assert said.endswith(f"{END}\nafter\n")
    assert "old" not in said
    assert "![events](performance/trial-events.svg)" in said
    assert sorted(path.name for path in (tmp_path / "performance").iterdir()) == ["trial-events.svg", "trial-p99.svg"]


def test_a_quick_run_is_not_published(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ValueError, match="quick"):
        publish(results(quick=True), tmp_path / "performance.md")
    with pytest.raises(SystemExit):
        main(["--quick", "--publish"])
    assert "says nothing" in capsys.readouterr().err
    assert "its figures say nothing" in markdown(results(quick=True))


def test_a_picture_is_an_image_with_a_bar_for_each_column() -> None:
    picture = bars("A <trial>", "ms", {"forebay": Spread(5.0, 4.0, 6.0), "a & b": Spread(0.0, 0.0, 0.0)})
    root = Xml.fromstring(picture)
    space = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f".//{space}rect")) == 2
    assert root.findtext(f".//{space}title") == "A <trial>"
    widths = [float(each.attrib["width"]) for each in root.findall(f".//{space}rect")]
    assert widths[0] > 0 == widths[1]
    with pytest.raises(ValueError, match="nothing to draw"):
        bars("nothing", "ms", {})


def test_figures_have_the_digits_that_mean_something() -> None:
    assert [number(value) for value in (0.0, 0.123, 9.87, 43.21, 654.3, 41234.5)] == [
        "0",
        "0.12",
        "9.87",
        "43.2",
        "654",
        "41,234",
    ]


def test_results_are_kept_and_one_benchmark_is_put_into_those_of_all(tmp_path: Path) -> None:
    earlier = results()
    earlier.save(tmp_path / "performance.json")
    assert load(tmp_path / "performance.json") == earlier
    again = Held(name="trial", title="Again", told="", measures=(RATE,), values={})
    other = Held(name="other", title="Other", told="", measures=(RATE,), values={})
    assert [each.title for each in merged(earlier, results(benchmarks=[other, again])).benchmarks] == ["Again", "Other"]
    with pytest.raises(ValueError, match="another machine"):
        merged(earlier, results(quick=True))


async def test_the_load_generator_counts_what_was_answered() -> None:
    server = await asyncio.get_running_loop().create_server(Bytes, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    came, numbers = await run(port, 3, 0.2, 0.05, 11)
    server.close()
    await server.wait_closed()
    assert sorted(numbers) == list(range(11, came.sent + 1))
    assert 0 < came.requests <= len(numbers)
    assert came.refused == 0
    assert 0 < came.p50_ms <= came.p99_ms


async def test_an_environment_that_is_there_is_used_as_it_is(tmp_path: Path) -> None:
    python = tmp_path / "peer" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.touch()
    (tmp_path / "peer" / "packages.txt").write_text("one==1\ntwo==2\n")
    assert await python_with(("peer", ("one==1", "two==2")), tmp_path) == str(python)


def test_syncing_takes_time(tmp_path: Path) -> None:
    found = fsync_ms(tmp_path, times=5)
    assert 0 < found.least <= found.median <= found.most


def test_the_table_of_goals_says_what_was_reached() -> None:
    named = Goal(name="a ratio", column="forebay", measure="events", value=5.0, beside="a peer", hint=True)
    held = Held(
        name="trial", title="A trial", told="", measures=(RATE, WAIT), values=HELD.values, goals=(named, GOALS[2])
    )
    times = "\N{MULTIPLICATION SIGN}"
    found = f"3.00 (3.00 to 6.00) {times} | **not reached**"
    assert goals(results(benchmarks=[held])).splitlines() == [
        "| Goal | Figure | To reach | Reached: median (least to most) | |",
        "|---|---|---:|---:|---|",
        f"| a ratio | forebay: events, beside a peer | at least 5.00 {times} (a hint) | {found} |",
        "| A trial | forebay: p99 | at most 5.00 ms | 5.00 (4.00 to 6.00) ms | reached |",
    ]


def test_a_goal_beside_nothing_is_not_measured() -> None:
    values = {"forebay": {"events": [3.0]}, "a peer": {"events": [0.0]}}
    held = Held(name="trial", title="A trial", told="", measures=(RATE,), values=values, goals=GOALS[:1])
    assert reached(held, GOALS[0]) is None
    assert "| not measured |" in goals(results(benchmarks=[held]))


def test_limits_are_of_goals_that_there_are() -> None:
    names = {goal.name for made in BENCHMARKS.values() for goal in made(False).goals}
    assert read_limits().keys() <= names


def test_every_goal_is_about_columns_and_measures_that_there_are() -> None:
    for made in BENCHMARKS.values():
        for quick in (True, False):
            benchmark = made(quick)
            measures = {measure.name for measure in benchmark.measures}
            for goal in benchmark.goals:
                assert goal.name
                assert goal.column in benchmark.columns
                assert not goal.beside or goal.beside in benchmark.columns
                assert goal.measure in measures


def test_a_profile_adds_up_what_was_seen() -> None:
    stacks = (
        "run (asyncio/runners.py);consume (forebay/consumer.py);decode (/x/site-packages/msgspec/json.py) 6\n"
        "run (asyncio/runners.py);consume (forebay/consumer.py) 1\n"
        "run (asyncio/runners.py);poll (asyncio/base_events.py) 3\n"
    )
    found = summary("consumer", stacks)
    assert (found.process, found.looks) == ("consumer", 10)
    assert found.functions[0] == Function("decode (msgspec/json.py)", 0.6, 0.6)
    assert found.callers[0] == Function("consume (forebay/consumer.py)", 0.1, 0.7)
    held = Held(name="t", title="T", told="", measures=(RATE,), values={}, profiles={"forebay": [found]})
    said = markdown(results(benchmarks=[held]))
    assert "<details><summary>Profile of forebay: the consumer, 10 looks</summary>" in said
    assert "| `decode (msgspec/json.py)` | 60.0% | 60.0% |" in said


async def test_columns_are_run_again_for_their_profiles(tmp_path: Path) -> None:
    ran: list[str] = []

    async def measure(folder: Path) -> dict[str, float]:
        ran.append(folder.name)
        return {"events": 1.0}

    benchmark = Benchmark(name="trial", title="A trial", told="", measures=(RATE,), columns={"forebay": measure})
    held = await hold(benchmark, 1, tmp_path, lambda found: list(found.values))
    assert ran == ["trial-0-0", "trial-profile-0"]
    assert held.values == {"forebay": {"events": [1.0]}}
    assert not any(tmp_path.iterdir())  # noqa: ASYNC240


async def test_what_a_task_of_a_column_raises_is_raised_as_itself(tmp_path: Path) -> None:
    async def fails(_: Path) -> dict[str, float]:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(raises())
        return {}

    async def raises() -> None:
        raise EffectsError("one is lost")

    benchmark = Benchmark(name="trial", title="A trial", told="", measures=(RATE,), columns={"forebay": fails})
    with pytest.raises(EffectsError, match="one is lost"):
        await hold(benchmark, 1, tmp_path)


def test_simulated_nodes_leave_no_gap_in_any_epoch() -> None:
    fleet = Fleet(2, of_epoch=2)
    made = fleet.make(6)
    first, second = fleet.epoch(0), fleet.epoch(0, 1)
    assert [each.headers["Nats-Msg-Id"] for each in made[::2]] == [f"{first}-1", f"{first}-2", f"{second}-1"]
    assert [each.headers["forebay-prev"] for each in made[::2]] == ["none", "none", f"{first}-2"]
    assert [number for each in made for number in numbers_of(each.headers, each.body)] == list(range(6))


def test_simulated_nodes_go_on_where_they_were_told_that_they_are() -> None:
    fleet = Fleet(2)
    fleet.skip(6)
    assert [each.headers["Nats-Msg-Id"] for each in fleet.make(2)] == [f"{fleet.epoch(0)}-4", f"{fleet.epoch(1)}-4"]
    assert fleet.numbers == 8


def test_a_frame_of_simulated_nodes_holds_consecutive_events_of_one() -> None:
    fleet = Fleet(2)
    made = fleet.frames(8, 2)
    ids = [each.headers["Nats-Msg-Id"] for each in made]
    one, other = fleet.epoch(0), fleet.epoch(1)
    assert ids == [f"{one}-1-2", f"{other}-1-2", f"{one}-3-4", f"{other}-3-4"]
    assert [number for each in made for number in numbers_of(each.headers, each.body)] == list(range(8))
    assert {each.subject for each in made} == {f"evt.house-{node}.meter.{Metered.spec.kind}" for node in (0, 1)}


async def test_what_the_first_look_finds_does_not_count() -> None:
    seen = iter([0, 40, 70, 100])
    looks: list[float] = []

    async def look() -> int:
        looks.append(time.perf_counter())
        return next(seen)

    took = await watch(look, 100, every=0.01)
    assert took.events == 60
    assert took.seconds == pytest.approx(looks[3] - looks[1], abs=0.005)
    assert took.rate == took.events / took.seconds


async def test_what_one_look_finds_whole_counts_from_the_last_empty_one() -> None:
    seen = iter([0, 100])

    async def look() -> int:
        return next(seen)

    took = await watch(look, 100, every=0.01)
    assert took.events == 100
    assert took.seconds >= 0.01
