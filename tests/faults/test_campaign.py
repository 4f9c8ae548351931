"""The campaign goes on where it was stopped, counts what it found, and writes its table between the markers."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from tests.faults.campaign import Finding, Item, State, seed_of, work_off
from tests.faults.nemeses import NEMESES
from tests.faults.report import BEGIN, END, MEANING, results, table, write_table


def state() -> State:
    return State(seed=7, started="2026-01-01T00:00:00+00:00", versions={"SQLite": "3"})


async def good(seed: int, folder: Path) -> Finding:
    (folder / "kept").touch()
    return Finding(kind="mixed", seed=seed, faults={"kill-edge": 2, "resets": 1}, events=1500)


async def bad(seed: int, _: Path) -> Finding:
    return Finding(kind="kill-core", seed=seed, faults={"kill-core": 1}, events=10, violations=["lost: x"])


async def stuck(_: int, folder: Path) -> Finding:
    (folder / "log").touch()
    raise AssertionError("not within 150 s: everything takes effect")


async def test_what_is_done_is_not_done_again_and_what_fails_leaves_its_folder(tmp_path: Path) -> None:
    known, kept = state(), list[int]()
    parts = [Item("soak/0", "mixed", good), Item("fault/0", "kill-core", bad), Item("fault/1", "kill-core", stuck)]
    await work_off(known, parts[:1], tmp_path, math.inf, lambda found: kept.append(len(found.findings)))
    first = known.findings["soak/0"]
    await work_off(known, parts, tmp_path, math.inf, lambda found: kept.append(len(found.findings)))
    assert kept == [1, 2, 3]
    assert known.findings["soak/0"] is first
    assert known.findings["fault/1"].violations == ["stuck: AssertionError: not within 150 s: everything takes effect"]
    assert {folder.name for folder in (tmp_path / "runs").iterdir()} == {"fault-0", "fault-1"}
    assert first.seed == seed_of(7, parts[0]) != seed_of(8, parts[0])


async def test_the_campaign_stops_when_its_time_is_up(tmp_path: Path) -> None:
    known = state()
    await work_off(known, [Item("soak/0", "mixed", good)], tmp_path, 0.0, lambda _: None)
    assert not known.findings


def test_the_table_adds_up_and_names_every_kind() -> None:
    known = state()
    known.findings = {
        f"soak/{number}": Finding(kind="mixed", seed=number, faults={"kill-edge": 2}, events=1000)
        for number in range(5)
    }
    known.findings["fault/0"] = Finding(
        kind="kill-core", seed=9, faults={"kill-core": 1}, events=10, violations=["lost: x", "lost: y"]
    )
    found = results(known, complete=False)
    text = table(found)
    assert "It is not complete." in text
    assert "| the core process is killed | 1 | 10 | 2 | 9 |" in text
    assert "| all of these, in a random order | 10 | 5,000 | 0 | 0, 1, 2 and 2 more |" in text
    assert "| **all** | **11** | **5,010** | **2** | |" in text
    assert found.violations == {"fault/0": ["lost: x", "lost: y"]}
    assert NEMESES.keys() <= MEANING.keys()


def test_the_table_stands_between_the_markers_and_nothing_else_changes(tmp_path: Path) -> None:
    page = tmp_path / "guarantee.md"
    page.write_text("# Page\n\nText.\n")
    write_table(page, "first")
    write_table(page, "second")
    assert page.read_text() == f"# Page\n\nText.\n\n## Broken on purpose\n\n{BEGIN}\nsecond\n{END}\n"
    page.write_text(f"{END}{BEGIN}")
    with pytest.raises(ValueError, match="has not both"):
        write_table(page, "third")
