"""The command line in processes of their own: every error is one line, and what waits for a broker says so."""

from __future__ import annotations

import json
import sqlite3
import time
from pathlib import Path

import httpx
import pytest

from forebay.sqlite import library
from forebay.testing.nats_server import NatsServer, free_port
from tests.faults.fleet import until
from tests.services.command_line import Running, called, forebay, one_line, running, taken_port
from tests.services.own_project import NODE, write_project

AWAY = "nats://127.0.0.1:1"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    return write_project(tmp_path / "project")


def edge(project: Path, *arguments: str, **settings: str) -> tuple[Path, tuple[str, ...], dict[str, str]]:
    return project, ("run", "edge.door", "--nats", AWAY, "--data", "data", "--port", "0", *arguments), settings


# --- the library


def test_a_sqlite_library_that_is_too_old_is_one_line_with_both_versions(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "data" / "core").mkdir(parents=True)
    sqlite3.connect(project / "data" / "core" / "audit.db").close()
    monkeypatch.setattr(library, "MIN_VERSION", (99, 1, 0))  # to it, the one that is here is old
    words = ["SQLite", sqlite3.sqlite_version, "99.1.0", "upgrade"]
    one_line(called(project, "outbox", "status", "--data", "data"), 78, *words)
    one_line(called(project, "parked", "ls", "--data", "data"), 78, *words)


# --- settings that are wrong


@pytest.mark.parametrize("arguments", [["up"], ["run", "edge.door", "--node", "a"], ["run", "core.audit"]])
def test_a_folder_without_a_project_is_one_line(tmp_path: Path, arguments: list[str]) -> None:
    one_line(forebay(tmp_path, *arguments), 78, str(tmp_path) if "core.audit" not in arguments else "--node")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[services]\nedge = [", ["forebay.toml", "end of document"]),
        ("[services]\nedge = 'edge.door'", ["forebay.toml", "[services]", "edge"]),
        ("[services]\nedges = []", ["[services]", "edges"]),
        ("services = 3", ["[services]"]),
        ("[run]\nprot = 1", ["[run]", "'prot'", "port"]),
        ("run = 1", ["'run'", "[run]"]),
        ("[run]\nport = 'x'", ["[run] port", "'x'"]),
        ("[run]\ngrace = '5x'", ["[run] grace", "5x"]),
        ("\x00", ["forebay.toml"]),
    ],
)
def test_a_broken_forebay_toml_is_one_line_that_says_where(project: Path, text: str, words: list[str]) -> None:
    (project / "forebay.toml").write_text(text)
    one_line(forebay(project, "run", "edge.door", "--node", "a"), 78, *words)


def test_plan_and_apply_fail_with_1_whatever_is_wrong(project: Path) -> None:
    one_line(forebay(project, "plan", "--nats", AWAY), 1, "no connection")
    one_line(forebay(project, "plan", "--nats", "http://a"), 1, "--nats")
    one_line(forebay(project, "apply", FOREBAY_NATS="::"), 1, "FOREBAY_NATS")
    (project / "core/audit/app.py").write_text("1 / 0")
    one_line(forebay(project, "plan", "--nats", AWAY), 1, "core.audit", "ZeroDivisionError")
    (project / "forebay.toml").write_text("[")
    one_line(forebay(project, "apply", "--nats", AWAY), 1, "forebay.toml")


def test_plan_says_by_its_exit_code_that_there_are_changes(project: Path, nats_server: NatsServer) -> None:
    assert forebay(project, "plan", "--nats", nats_server.url).returncode == 2
    assert forebay(project, "apply", "--nats", nats_server.url).returncode == 0
    assert forebay(project, "plan", "--nats", nats_server.url).returncode == 0


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("1 / 0", ["ZeroDivisionError"]),
        ("import nothing_there", ["nothing_there"]),
        ("def (", ["SyntaxError"]),
        ("raise SystemExit(3)", ["SystemExit"]),
        ("x = 1", ["0 services"]),
        ("from forebay import Service\na, b = Service('a'), Service('b')", ["2 services"]),
        ("from forebay import Service\na = Service('A')", ["'A'", "is not a name"]),
        ("raise ValueError('first\\nsecond')", ["ValueError: first second"]),
    ],
)
def test_a_service_that_cannot_be_loaded_is_one_line(project: Path, code: str, words: list[str]) -> None:
    (project / "edge/door/app.py").write_text(code)
    for command in (["run", "edge.door", "--node", "a"], ["up", "--data", "data"]):
        one_line(forebay(project, *command), 78, "edge.door", *words)
    assert not (project / "data").exists()


@pytest.mark.parametrize("name", ["edge.window", "nothing", "edge..door", ".door", "edge/door", "", "edge.door.app.x"])
def test_an_unknown_service_is_one_line(project: Path, name: str) -> None:
    one_line(forebay(project, "run", name, "--node", "a"), 78, repr(name))


def test_a_package_that_cannot_be_imported_is_one_line(project: Path) -> None:
    (project / "edge/door/__init__.py").write_text("import nothing_there")
    one_line(forebay(project, "run", "edge.door", "--node", "a"), 78, "edge.door", "nothing_there")


def test_a_service_twice_is_one_line(project: Path) -> None:
    one_line(forebay(project, "run", "edge.door", "edge.door", "--node", "a"), 78, "'door'")


def test_an_edge_service_needs_a_node(project: Path) -> None:
    folder, arguments, settings = edge(project)
    one_line(forebay(folder, *arguments, **settings), 78, "edge.door", "--node", "FOREBAY_NODE")
    one_line(forebay(project, "run", "core.audit", "edge.door"), 78, "--node")


@pytest.mark.parametrize("node", ["Store", "a.b", "../x", "", "a b", "x" * 64, "*"])
def test_a_node_name_that_is_none_is_one_line(project: Path, node: str) -> None:
    folder, arguments, _ = edge(project, "--node", node)
    one_line(forebay(folder, *arguments), 78, "node", "is not a name")


@pytest.mark.parametrize(("port", "status"), [("70000", 78), ("-1", 78), ("http", 2)])
def test_a_port_that_is_none_is_one_line(project: Path, port: str, status: int) -> None:
    one_line(forebay(project, "run", "edge.door", "--node", "a", "--port", port), status, port)


def test_wrong_usage_is_one_line_with_exit_code_2(project: Path) -> None:
    one_line(forebay(project, "run"), 2, "SERVICE", "--help")
    one_line(forebay(project, "fly"), 2, "fly")
    one_line(forebay(project, "run", "edge.door", "--nodes", "a"), 2, "--nodes")
    one_line(forebay(project, "run", "edge.door", "--nats", "nats://a:b"), 2, "--nats", "nats://host:port")
    one_line(forebay(project, "run", "edge.door", "--log-level", "loud"), 2, "--log-level")
    one_line(forebay(project, "run", "edge.door", FOREBAY_PORT="x"), 78, "FOREBAY_PORT")


def failed(folder: Path, arguments: tuple[str, ...], *words: str) -> None:
    """Assert that a process that had begun to log ended with one line for people, without a traceback."""
    result = forebay(folder, *arguments)
    assert result.returncode == 78, result.stderr
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("forebay: ")]
    for word in words:
        assert word in line


def test_a_taken_port_is_one_line(project: Path) -> None:
    with taken_port() as port:
        failed(project, ("run", "edge.door", "--node", "a", "--port", str(port)), f":{port}", "--port")
    failed(project, ("run", "edge.door", "--node", "a", "--host", "no-such-host.invalid"), "no-such-host.invalid")


def test_a_data_folder_that_cannot_be_is_one_line(project: Path) -> None:
    (project / "file").write_text("")
    failed(project, ("run", "edge.door", "--node", "a", "--port", "0", "--data", "file/data"), "file/data")
    one_line(forebay(project, "run", "edge.door", "--node", "a", "--data", "file"), 2, "--data")
    failed(project, ("run", "edge.door", "--node", "a", "--port", "0", "--data", "/proc/nothing"), "/proc/nothing")


def test_a_database_that_is_corrupt_is_one_line(project: Path) -> None:
    """Half of what a consumer has done would be worse than none: it is not salvaged."""
    database = project / "data" / "core" / "audit.db"
    database.parent.mkdir(parents=True)
    database.write_bytes(b"no database " * 1000)
    result = forebay(project, "run", "core.audit", "--port", "0", "--nats", AWAY)
    assert result.returncode == 78
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("forebay: ")]
    assert "audit.db" in line
    assert "Traceback" not in result.stderr


async def test_a_database_of_another_node_is_refused(project: Path) -> None:
    """PROTOCOL I6."""
    data = project / "data"
    with running(project, ["edge.door"], node=NODE, data=data, nats=AWAY) as process:
        await process.answers("/readyz", 200)
        assert process.stop() == 0
    (data / "nodes" / NODE).rename(data / "nodes" / "house-2")
    failed(project, ("run", "edge.door", "--node", "house-2", "--port", "0"), NODE, "house-2")


async def test_a_second_process_on_a_database_is_refused(project: Path) -> None:
    data = project / "data"
    with running(project, ["edge.door"], node=NODE, data=data, nats=AWAY) as process:
        await process.answers("/readyz", 200)
        failed(
            project, ("run", "edge.door", "--node", NODE, "--port", "0"), "door.db", f"process {process.process.pid}"
        )
        assert process.stop() == 0
    with running(project, ["edge.door"], node=NODE, data=data, nats=AWAY) as process:
        await process.answers("/readyz", 200)


# --- a broker that is away


async def test_an_edge_node_without_a_broker_is_ready_and_takes_writes(project: Path) -> None:
    with running(project, ["edge.door"], node=NODE, data=project / "data", nats=AWAY) as process:
        ready = await process.answers("/readyz", 200)
        assert ready.json() == {"ready": True, "connected": False, "problems": []}
        async with httpx.AsyncClient() as http:
            answer = await http.post(f"{process.url}/door/openings", json={"door": "front"})
            assert answer.status_code == 201
            found = await http.get(f"{process.url}/outbox/{answer.json()['event']}")
            assert found.json()["state"] == "stored"
        assert process.stop() == 0
    assert "Traceback" not in process.log.read_text()


async def test_the_core_is_not_ready_until_it_reads(project: Path, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats", port=free_port())
    with running(project, ["core.audit"], data=project / "data", nats=server.url) as process:
        away = await process.answers("/readyz", 503)
        assert away.json()["connected"] is False
        assert away.json()["problems"][0].startswith("audit: does not read: no connection to the broker")
        await server.start()
        try:
            assert forebay(project, "apply", "--nats", server.url).returncode == 0
            ready = await process.answers("/readyz", 200, limit=90)
            assert ready.json() == {"ready": True, "connected": True, "problems": []}
            before = time.monotonic()
            assert process.stop() == 0
            assert time.monotonic() - before < 4
        finally:
            server.kill()


async def test_sigterm_ends_a_process_whose_broker_is_frozen(project: Path, nats_server: NatsServer) -> None:
    assert forebay(project, "apply", "--nats", nats_server.url).returncode == 0
    with running(project, ["core.audit"], data=project / "data", nats=nats_server.url) as process:
        await process.answers("/readyz", 200)
        nats_server.pause()
        try:
            assert process.stop() == 0
        finally:
            nats_server.resume()


# --- the commands that read a data folder


async def write_one(process: Running) -> str:
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{process.url}/door/openings", json={"door": "front"})
    return str(answer.json()["event"])


def listed(folder: Path, *arguments: str) -> list[dict[str, object]]:
    result = called(folder, *arguments, "--json")
    assert result.returncode == 0, result.stderr
    rows = json.loads(result.stdout)
    assert isinstance(rows, list)
    return rows


async def test_outboxes_are_listed_while_the_process_runs_and_after_it_was_killed(project: Path) -> None:
    with running(project, ["edge.door"], node=NODE, data=project / "data", nats=AWAY) as process:
        await process.answers("/readyz", 200)
        event = await write_one(process)
        while_it_runs = listed(project, "outbox", "ls")
    assert listed(project, "outbox", "ls") == while_it_runs
    (lane,) = while_it_runs
    assert (lane["node"], lane["service"], lane["lane"], lane["written"], lane["on_disk"]) == (
        NODE,
        "door",
        "ledger",
        1,
        1,
    )
    (newest,) = listed(project, "outbox", "ls", "--events", "5")
    assert newest["message_id"] == event
    (shown,) = listed(project, "outbox", "show", event)
    assert shown["body"] == '{"door":"front"}'
    assert event in called(project, "outbox", "show", event).stdout
    assert NODE in called(project, "outbox", "ls").stdout
    assert listed(project, "outbox", "ls", "--node", "house-2") == []
    assert listed(project, "inbox", "ls") == []
    one_line(called(project, "outbox", "show", f"{event}0"), 1, event)


async def test_inboxes_are_listed_while_nothing_runs(project: Path, nats_server: NatsServer) -> None:
    data = project / "data"
    assert forebay(project, "apply", "--nats", nats_server.url).returncode == 0
    with (
        running(project, ["core.audit"], data=data, nats=nats_server.url) as core,
        running(project, ["edge.door"], node=NODE, data=data, nats=nats_server.url) as door,
    ):
        await core.answers("/readyz", 200)
        await door.answers("/readyz", 200)
        event = await write_one(door)
        await until(lambda: listed(project, "inbox", "ls"), limit=20, what="the event is in the inbox")
    (row,) = listed(project, "inbox", "ls", "--service", "audit", "--origin", NODE)
    assert (row["consumer"], row["origin_node"], row["origin_service"]) == ("audit", NODE, "door")
    assert (row["epoch"], row["watermark"]) == (event.partition("-")[0], 1)
    assert listed(project, "inbox", "ls", "--origin", "house-2") == []


COMMANDS = [["outbox", "ls"], ["outbox", "ls", "--events", "3"], ["inbox", "ls"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_an_empty_data_folder_has_nothing_to_list(tmp_path: Path, command: list[str]) -> None:
    one_line(called(tmp_path, *command), 78, "data", "--data")
    (tmp_path / "data" / "core").mkdir(parents=True)
    assert listed(tmp_path, *command) == []
    (tmp_path / "data" / "core" / "new.db").touch()  # a process has just begun to create it
    assert listed(tmp_path, *command) == []
    assert called(tmp_path, *command).returncode == 0


@pytest.mark.parametrize("command", [*COMMANDS, ["outbox", "show", f"{'0' * 32}-1"]])
def test_a_corrupt_database_is_one_line_that_names_it(tmp_path: Path, command: list[str]) -> None:
    broken = tmp_path / "data" / "core" / "broken.db"
    broken.parent.mkdir(parents=True)
    broken.write_bytes(b"no database " * 1000)
    one_line(called(tmp_path, *command), 1, str(broken.relative_to(tmp_path)))
    broken.unlink()
    with sqlite3.connect(broken) as database:
        database.execute("create table forebay_origin (id integer)")
    database.close()
    one_line(called(tmp_path, *command), 1, "no such")


def test_the_reading_commands_take_the_data_folder_of_up(tmp_path: Path) -> None:
    (tmp_path / "forebay.toml").write_text('[up]\ndata = "elsewhere"\n')
    (tmp_path / "elsewhere").mkdir()
    assert listed(tmp_path, "outbox", "ls") == []
    one_line(forebay(tmp_path, "outbox", "ls", FOREBAY_DATA="nowhere"), 78, "nowhere")


def test_an_id_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for text in ("x", f"{'0' * 32}-0", f"{'0' * 32}-"):
        one_line(called(tmp_path, "outbox", "show", text), 1, text)
