"""``forebay contracts`` on a user's own project, and on this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.services.command_line import forebay, one_line
from tests.services.own_project import write_project

ROOT = Path(__file__).parents[2]

DOORS = """
from forebay import Event


class DoorOpened(Event, service="door", kind="door-opened", key="door"):
    door: str
"""
TABLE = '\n[contracts]\nmodules = ["doors"]\ngolden = "golden"\n'


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = write_project(tmp_path / "project")
    toml = folder / "forebay.toml"
    toml.write_text(toml.read_text() + TABLE)
    return folder


def test_this_repositorys_contracts_keep_to_what_was_published() -> None:
    done = forebay(ROOT, "contracts", "check")
    assert (done.returncode, done.stdout) == (0, "Nothing that was published is broken.\n"), done.stderr


def test_a_users_contracts_are_accepted_and_then_a_change_that_breaks_them_is_told(project: Path) -> None:
    done = forebay(project, "contracts", "check")
    assert done.returncode == 1
    assert done.stdout == "door.door-opened.v1: is not on record; run `forebay contracts accept`\n"
    done = forebay(project, "contracts", "accept")
    assert done.stdout.splitlines() == [
        "golden/door.door-opened.v1.json",
        "golden/door.door-opened.v1.schema.json",
    ]
    assert forebay(project, "contracts", "check").returncode == 0
    (project / "doors.py").write_text(DOORS.replace("door: str", "door: int"))
    done = forebay(project, "contracts", "check", "--json")
    assert done.returncode == 1
    (problem,) = json.loads(done.stdout)
    assert (problem["type"], problem["where"], problem["acceptable"]) == ("door.door-opened.v1", "door", False)
    done = forebay(project, "contracts", "accept")
    assert done.returncode == 1
    assert done.stderr.splitlines()[0].startswith("door.door-opened.v1: door: was string and is integer; undo it")
    assert done.stderr.splitlines()[1].startswith("forebay: nothing was accepted")


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("[contracts]\nmodules = 'doors'", ["[contracts]", "modules"]),
        ("[contracts]\nmodule = ['doors']", ["[contracts]", "module"]),
        ("[contracts]\nmodules = ['gates']", ["'gates'", "gates"]),
        ("", ["'contracts'", "[contracts]"]),
        ("[contracts]\nmodules = ['json']", ["no event is declared in json", "[contracts]"]),
    ],
)
def test_contracts_that_are_not_found_are_one_line_that_says_where(project: Path, table: str, words: list[str]) -> None:
    (project / "forebay.toml").write_text(table)
    one_line(forebay(project, "contracts", "check"), 78, *words)
