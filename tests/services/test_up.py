"""``forebay up`` with the repository's own project, as the README has it."""

from __future__ import annotations

import fcntl
import itertools
import json
import shlex
import socket
import subprocess
import time
import tomllib
from pathlib import Path

import httpx
import pytest

from forebay.testing.nats_server import NatsServer
from tests.faults.fleet import ROOT, Fleet, alive, until
from tests.services.command_line import forebay, one_line, taken_port
from tests.services.own_project import write_project

pytestmark = pytest.mark.timeout(120)

NODE = "store-330"


def example(fleet: Fleet) -> list[list[str]]:
    """The commands that ``up`` prints to try, at the fleet's ports."""
    text = tomllib.loads((ROOT / "forebay.toml").read_text())["example"]
    text = text.replace("http://127.0.0.1:8100", fleet.tills[NODE]).replace("http://127.0.0.1:8200", fleet.core)
    words = shlex.split(text)
    starts = [at for at, word in enumerate(words) if word == "curl"]
    return [words[start:end] for start, end in zip(starts, [*starts[1:], len(words)], strict=True)]


async def curl(http: httpx.AsyncClient, words: list[str]) -> httpx.Response:
    """Do what curl does with these words."""
    (url,) = [word for word in words if word.startswith("http")]
    options = dict(itertools.pairwise(words))
    if "-d" not in options:
        return await http.get(url)
    name, _, value = options["-H"].partition(": ")
    return await http.post(url, content=options["-d"], headers={name: value})


async def confirmed(http: httpx.AsyncClient, fleet: Fleet, event: str) -> bool:
    """Tell whether the edge knows that every consumer has confirmed an event."""
    found = (await http.get(f"{fleet.tills[NODE]}/outbox/{event}")).json()
    return found["state"] == "confirmed" and {"archive", "sales"} <= set(found["consumers"])


def up(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forebay(ROOT, "up", *arguments)


async def test_the_examples_sale_is_in_the_books_within_a_second_and_survives_a_stop(tmp_path: Path) -> None:
    with Fleet(tmp_path / "data", [NODE]) as fleet:
        await fleet.ready()
        ring_up, look = example(fleet)
        async with httpx.AsyncClient() as http:
            await curl(http, look)  # the connections are there, as on an idle fleet
            before = time.monotonic()
            rung_up = await curl(http, ring_up)
            assert rung_up.status_code == 201, rung_up.text

            async def booked() -> bool:
                answer = await curl(http, look)
                return answer.status_code == 200 and answer.json()["sales"] == 1

            await until(booked, limit=10, what="the sale is in the books")
            assert time.monotonic() - before <= 1
            assert (await curl(http, look)).json() == {"node": NODE, "sales": 1, "lines": 1, "cents": 50}
            event = rung_up.json()["event"]

            await until(lambda: confirmed(http, fleet, event), limit=10, what="every consumer has confirmed it")

        assert fleet.data.stat().st_mode & 0o077 == 0  # sales are for its user alone
        children = fleet.children()
        assert set(children) == {NODE, "core", "broker"}
        assert fleet.interrupt(limit=5) == 0
        assert not alive(children)

        fleet.start()
        await fleet.ready()
        async with httpx.AsyncClient() as http:
            assert (await curl(http, ring_up)).status_code == 200  # the same basket again
            await until(lambda: confirmed(http, fleet, event), limit=10, what="it is known as confirmed again")
            second = json.loads(ring_up[ring_up.index("-d") + 1]) | {"basket": "2"}
            assert (await http.post(f"{fleet.tills[NODE]}/till/sales", json=second)).status_code == 201

            async def both_booked() -> bool:
                return bool((await curl(http, look)).json()["sales"] == 2)

            await until(both_booked, limit=10, what="the second sale is in the books")
        assert fleet.interrupt(limit=5) == 0
    assert "Traceback" not in fleet.log.read_text()
    assert "did not stop" not in fleet.log.read_text()
    assert " died" not in fleet.log.read_text()


async def test_a_killed_child_is_started_again_and_none_outlives_up(tmp_path: Path) -> None:
    with Fleet(tmp_path / "data", [NODE]) as fleet:
        await fleet.ready()
        for name in (NODE, "core", "broker"):
            killed = fleet.children()[name]
            assert fleet.kill(name)

            def replaced(name: str = name, killed: int = killed) -> bool:
                return fleet.children().get(name, killed) != killed

            await until(replaced, limit=10, what=f"{name} is started again")
        await fleet.ready()
        said = fleet.log.read_text()
        for name in (NODE, "core", "nats-server"):
            assert any(line.startswith(f"{name} died") and "started again" in line for line in said.splitlines()), said

        children = fleet.children()
        fleet.kill_all()
        await until(lambda: not alive(children), limit=5, what="the children are gone")
        fleet.start()
        await fleet.ready()
        async with httpx.AsyncClient() as http:
            ring_up, _ = example(fleet)
            assert (await curl(http, ring_up)).status_code == 201
        assert fleet.interrupt(limit=5) == 0


async def test_up_starts_at_once_after_it_was_killed(tmp_path: Path) -> None:
    """Without waiting for the children: their ports and locks may be held for a moment more."""
    with Fleet(tmp_path / "data", [NODE]) as fleet:
        await fleet.ready()
        fleet.kill_all()
        fleet.start()
        await fleet.ready()
        assert fleet.interrupt(limit=5) == 0


async def test_up_stops_while_it_starts(tmp_path: Path) -> None:
    with Fleet(tmp_path / "data", [NODE]) as fleet:
        await until(lambda: "broker" in fleet.children(), limit=20, what="the broker is started")
        assert fleet.interrupt(limit=5) == 0
        assert not fleet.children()


async def test_up_uses_a_broker_that_is_there(
    tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FOREBAY_NATS", nats_server.url)
    with Fleet(tmp_path / "data", [NODE]) as fleet:
        await fleet.ready()
        assert set(fleet.children()) == {NODE, "core"}
        assert not (tmp_path / "data" / "nats").exists()
        assert fleet.interrupt(limit=5) == 0
    assert nats_server.running


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with taken_port() as port:  # the core's
        result = up("--data", str(tmp_path / "data"), "--port", str(port - 100))
    one_line(result, 78, f"port {port} is taken", "--port")


def test_a_data_folder_that_is_in_use_is_one_line(tmp_path: Path) -> None:
    """Two brokers on one store would ruin it."""
    with (tmp_path / "up.lock").open("w") as lock:
        lock.write("4711\n")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        result = up("--data", str(tmp_path), "--port", str(Fleet(tmp_path / "data", [NODE]).port))
    one_line(result, 78, str(tmp_path), "in use by process 4711")


@pytest.mark.parametrize("nodes", ["Store-1", "a,a", "core", "a b", "", ",", "x" * 64, ",".join(map(str, range(101)))])
def test_node_names_that_are_none_are_one_line(tmp_path: Path, nodes: str) -> None:
    one_line(up("--data", str(tmp_path / "data"), "--nodes", nodes), 78)
    assert not (tmp_path / "data").exists()


def test_a_broker_that_is_named_and_away_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        url = f"nats://user:secret@127.0.0.1:{nobody.getsockname()[1]}"
        port = Fleet(tmp_path / "data", [NODE]).port
        result = up("--data", str(tmp_path / "data"), "--port", str(port), "--nats", url)
    one_line(result, 1, "no connection to the broker at 127.0.0.1:")
    assert "secret" not in result.stderr


async def test_a_child_that_cannot_start_is_tried_again_with_a_line_that_says_why(tmp_path: Path) -> None:
    project = write_project(tmp_path / "project")
    migration = project / "edge/door/migrations/0001_door.sqlite.sql"
    right = migration.read_text()
    migration.write_text("create nonsense;")
    with Fleet(tmp_path / "data", ["house-1"], folder=project) as fleet:
        await until(
            lambda: "house-1 died (exit code 78: forebay: " in fleet.log.read_text(), limit=30, what="it says so"
        )
        migration.write_text(right)
        await fleet.ready()
        assert fleet.interrupt(limit=5) == 0
    assert "0001_door" in fleet.log.read_text()
    assert "Traceback" not in fleet.log.read_text()
