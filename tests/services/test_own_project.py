"""A user's own project, in an empty folder, with nothing but the built wheel."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.faults.fleet import ROOT, Fleet, alive, until
from tests.services.own_project import NODE, write_project

pytestmark = pytest.mark.timeout(120)


def uv(*arguments: str, **options: str) -> subprocess.CompletedProcess[str]:
    """Run the uv that `make setup` uses; it is on PATH, or in the environment."""
    program = shutil.which("uv") or str(ROOT / ".venv/bin/uv")
    outside = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return subprocess.run(
        [program, *arguments], env={**outside, **options}, cwd=ROOT, capture_output=True, text=True, check=False
    )


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    built = uv("build", "--wheel", "--out-dir", str(folder))
    assert built.returncode == 0, built.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="session")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment of its own that holds ``forebay[demo]`` from the wheel, in the locked versions."""
    folder = tmp_path_factory.mktemp("venv")
    locked = uv("export", "--frozen", "--extra", "demo", "--no-emit-project", "--no-hashes", "--no-dev")
    (folder / "constraints.txt").write_text(locked.stdout)
    made = uv("venv", "--python", str(ROOT / ".venv/bin/python"), str(folder / "venv"))
    assert made.returncode == 0, made.stderr
    program = folder / "venv/bin/python"
    install = ["pip", "install", "--python", str(program), "--constraints", str(folder / "constraints.txt")]
    wanted = f"forebay[demo] @ {wheel.as_uri()}"
    done = uv(*install, "--offline", wanted)
    if done.returncode:
        done = uv(*install, wanted)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture
def fleet(python: Path, tmp_path: Path) -> Iterator[Fleet]:
    project = write_project(tmp_path / "project")
    with Fleet(tmp_path / "data", [NODE], folder=project, python=str(python)) as running:
        yield running


def test_the_wheel_holds_the_engine_alone_and_all_of_it(wheel: Path) -> None:
    names = [name for name in zipfile.ZipFile(wheel).namelist() if not name.endswith("/")]
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"forebay"}
    source = ROOT / "src"
    expected = {
        str(file.relative_to(source))
        for file in (source / "forebay").rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "forebay/py.typed" in expected
    assert any(name.startswith("forebay/migrations/") and name.endswith(".sql") for name in expected)
    assert any(name.startswith("forebay/jetstream/topology/defaults/") for name in expected)


def test_the_environment_holds_no_service_of_ours(python: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u; print([n for n in ('edge', 'core', 'contracts', 'tests') if u.find_spec(n)])"
    found = subprocess.run([python, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


async def test_an_event_gets_from_the_users_edge_service_to_the_users_core_service(fleet: Fleet) -> None:
    await fleet.ready()
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{fleet.tills[NODE]}/door/openings", json={"door": "front"})
        assert answer.status_code == 201, answer.text

        async def noted() -> bool:
            return bool((await http.get(f"{fleet.core}/audit/doors")).json() == {"front": 1})

        await until(noted, limit=10, what="the core service notes the event")
        document = (await http.get(f"{fleet.tills[NODE]}/schema/openapi.json")).json()
        assert "/door/openings" in document["paths"]
    children = fleet.children()
    assert set(children) == {NODE, "core", "broker"}
    before = time.monotonic()
    assert fleet.interrupt(limit=5) == 0
    assert time.monotonic() - before < 5
    assert not alive(children)
    assert "Traceback" not in fleet.log.read_text()
