"""The comparison with a leaf node says what happened: on planted histories, without a broker."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import anyio
import pytest

from bench.peers.judging import Acknowledged, Effect, Outcome, add_up, judge
from bench.peers.leaf import COLUMNS, main
from bench.peers.report import Machine, MarkerError, Report, load, publish, table
from forebay.testing.waiting import until
from tests.faults.power_cut import PowerCut, RecordingError

HEALED = 10.0
BEFORE = [Acknowledged("a", 1, 1.0), Acknowledged("a", 2, 2.0), Acknowledged("b", 1001, 2.0)]
AFTER = [Acknowledged("a", 3, 11.0), Acknowledged("b", 1002, 12.0)]
EFFECTS = [
    Effect("a", 1, 1.5),
    Effect("b", 1001, 2.5),
    Effect("a", 2, 10.5),
    Effect("a", 3, 12.25),
    Effect("b", 1002, 13.0),
]


def test_a_history_without_a_violation_has_none() -> None:
    outcome = judge([*BEFORE, *AFTER], EFFECTS, HEALED)
    assert outcome == Outcome(5, 0, 0, 0, 0, 2.25)


def test_what_was_acknowledged_and_has_no_effect_is_lost_and_told_apart_by_the_heal() -> None:
    outcome = judge([*BEFORE, *AFTER], [EFFECTS[0], EFFECTS[1], EFFECTS[3]], HEALED)
    assert (outcome.lost_before, outcome.lost_after, outcome.lost) == (1, 1, 2)


def test_an_effect_that_nobody_acknowledged_is_no_violation() -> None:
    outcome = judge(BEFORE, [*EFFECTS, Effect("c", 7, 14.0)], HEALED)
    assert (outcome.lost, outcome.doubled, outcome.reordered) == (0, 0, 0)


def test_each_effect_beyond_the_first_is_doubled_and_not_reordered() -> None:
    outcome = judge(BEFORE, [*EFFECTS, EFFECTS[0], EFFECTS[0]], HEALED)
    assert (outcome.doubled, outcome.reordered) == (2, 0)


def test_an_effect_after_a_later_one_of_its_key_is_reordered_whatever_other_keys_do() -> None:
    effects = [Effect("b", 1002, 1.0), Effect("a", 3, 1.0), Effect("a", 1, 1.0), Effect("a", 2, 1.0)]
    assert judge([], effects, HEALED).reordered == 2


def test_the_next_event_is_one_that_was_acknowledged_after_the_heal() -> None:
    """What was on its way before is no sign that the link works again."""
    assert judge([*BEFORE, *AFTER], EFFECTS[:3], HEALED).next_event is None
    assert judge([*BEFORE, *AFTER], EFFECTS[:4], HEALED).next_event == 2.25


def test_the_table_says_how_much_was_lost_in_how_many_runs(tmp_path: Path) -> None:
    good, bad = Outcome(600, 0, 0, 0, 0, 0.5), Outcome(600, 30, 2, 1, 4, None)
    sums = {"hub killed": {column: add_up([good, bad, good]) for column in COLUMNS}}
    sums["hub killed"]["forebay"] = add_up([good, good, good])
    where = Machine("a processor", 2, "6.1", "ext2/ext3", 0.5, "2.15.1", "3.11.7", "3.40.1", "0.1.0")
    report = Report("2026-03-01T12:00:00+00:00", where, 200, 1, 1, 60.0, sums, {}, [])
    said = table(report)
    bad_cell = "**32, 1, 4** of 1,800: 30 before and 2 after the heal, in 1 of 3 runs"
    assert f"| hub killed | lost, doubled, reordered | {bad_cell} | {bad_cell} | 0, 0, 0 of 1,800 |" in said
    assert "0.50 (0.50 to 0.50), never in 1 of 3 runs" in said
    report.save(tmp_path / "leaf.json")
    assert load(tmp_path / "leaf.json") == report
    page = tmp_path / "page.md"
    page.write_text("before\n")
    with pytest.raises(MarkerError, match="leaf:begin"):
        publish(report, page)
    page.write_text("before\n<!-- leaf:begin -->\nold\n<!-- leaf:end -->\nafter\n")
    publish(report, page)
    assert page.read_text() == f"before\n<!-- leaf:begin -->\n\n{said}\n<!-- leaf:end -->\nafter\n"


def test_bad_options_are_told_in_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--runs", "0"])
    assert "--runs, --events and --jobs are at least 1" in capsys.readouterr().err


PROGRAM = """
import os, sys, time
folder = sys.argv[1]
log = os.open(f"{folder}/log", os.O_RDWR)
print("ready", flush=True)
sys.stdin.readline()
os.pwrite(log, b"synced ", 6)
os.fsync(log)
os.pwrite(log, b"forgotten", 13)
new = os.open(f"{folder}/new", os.O_CREAT | os.O_WRONLY)
os.write(new, b"forgotten")
always = os.open(f"{folder}/always", os.O_CREAT | os.O_WRONLY | os.O_SYNC)
os.write(always, b"kept")
with open(f"{folder}/log.tmp", "w") as file:
    file.write("renamed")
os.rename(f"{folder}/log.tmp", f"{folder}/meta")
os.unlink(f"{folder}/old")
print("done", flush=True)
time.sleep(60)
"""


@pytest.mark.strace
async def test_a_power_cut_takes_what_was_written_and_not_synced(tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    for name in ("log", "old", "meta"):
        (store / name).write_text("begun ")
    program = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PROGRAM, str(store), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
    )
    assert program.stdin is not None
    assert program.stdout is not None
    try:
        assert await program.stdout.readline() == b"ready\n"
        power = PowerCut(store, tmp_path / "power")
        await power.attach(program.pid)
        program.stdin.write(b"\n")
        assert await program.stdout.readline() == b"done\n"
    finally:
        program.kill()
    with anyio.fail_after(10):
        await program.wait()
    cut = await anyio.to_thread.run_sync(power.cut)
    left = {path.name: path.read_bytes() for path in store.iterdir()}
    assert left == {"log": b"begun synced ", "new": b"", "always": b"kept", "meta": b"renamed"}
    assert (cut.files, cut.dropped_bytes) == (["log", "new"], 18)


@pytest.mark.strace
async def test_a_recorder_that_does_not_understand_says_so(tmp_path: Path) -> None:
    """A cut is only as good as the recording: with nothing dropped it must give what is really there."""
    store = tmp_path / "store"
    store.mkdir()
    program = await asyncio.create_subprocess_exec("sleep", "60")
    power = PowerCut(store, tmp_path / "power")
    await power.attach(program.pid)
    (store / "behind-its-back").write_text("x")
    program.kill()
    await program.wait()
    with pytest.raises(RecordingError, match="behind-its-back"):
        await anyio.to_thread.run_sync(power.cut)
    await until(lambda: not Path(f"/proc/{program.pid}").exists())
