"""What a container of each image does on a machine that has nothing but the image."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx
import pytest
import yaml

from forebay.testing.nats_server import NatsServer
from forebay.testing.postgres_server import PostgresServer
from tests.faults.fleet import until
from tests.image.conftest import ROOT
from tests.image.container import Container, Image, started

RECORDED = Path(__file__).parent / "release-0.1.0"

SALE = {
    "household": 900,
    "at": "2017-01-01T11:53:26Z",
    "lines": [{"product": 1095275, "quantity": 1, "cents": 50}],
}


def ring_up(at: Container, basket: str, padding: int = 0) -> httpx.Response:
    lines = SALE["lines"] * (1 + padding)  # type: ignore[operator]
    return httpx.post(f"{at.url}/till/sales", json={**SALE, "basket": basket, "lines": lines}, timeout=10)


def post(url: str, body: object) -> int:
    return httpx.post(url, json=body, timeout=10).status_code


def apply(core: Image, volume: Path, nats: str) -> None:
    with started(core, volume, "apply", settings={"FOREBAY_NATS": nats}) as once:
        assert once.wait() == 0, once.log.read_text()


async def test_sales_go_through_the_edge_image_into_the_core_image(
    edge: Image, core: Image, nats_server: NatsServer, tmp_path: Path
) -> None:
    nats = {"FOREBAY_NATS": nats_server.url}
    apply(core, core.volume(tmp_path / "apply"), nats_server.url)
    with (
        started(edge, edge.volume(tmp_path / "1"), settings={**nats, "FOREBAY_NODE": "store-1"}) as one,
        started(edge, edge.volume(tmp_path / "2"), settings={**nats, "FOREBAY_NODE": "store-2"}) as two,
        started(core, core.volume(tmp_path / "core"), settings=nats) as center,
    ):
        for each in (one, two, center):
            await each.answers("/readyz")
            found = each.health()
            assert (found.returncode, found.stdout) == (0, "ready, connected\n"), found
        for number in range(20):
            for node in (one, two):
                assert ring_up(node, f"b{number}").status_code == 201

        async def totals() -> bool:
            answer = await center.answers("/sales/stores")
            expected = [{"node": node, "sales": 20, "lines": 20, "cents": 1000} for node in ("store-1", "store-2")]
            return bool(answer.json()["stores"] == expected)

        await until(totals, limit=20, what=lambda: httpx.get(f"{center.url}/sales/stores").text)
        async with httpx.AsyncClient() as kept_alive:
            await kept_alive.get(f"{one.url}/livez")
            for each in (one, two, center):
                assert each.stop() < 10


@pytest.mark.parametrize("store", ["files", "postgres"])
async def test_an_order_and_a_warm_fridge_go_through_all_services_of_the_images(
    store: str, edge: Image, core: Image, nats_server: NatsServer, postgres_server: PostgresServer, tmp_path: Path
) -> None:
    nats = {"FOREBAY_NATS": nats_server.url}
    apply(core, core.volume(tmp_path / "apply"), nats_server.url)
    register = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["register"]["command"]
    with started(core, core.volume(tmp_path / "register"), *register, settings=nats) as once:
        assert once.wait() == 0, once.log.read_text()
    at = nats | ({"FOREBAY_STORE": postgres_server.create_database()} if store == "postgres" else {})
    with (
        started(edge, edge.volume(tmp_path / "1"), settings={**nats, "FOREBAY_NODE": "store-330"}) as node,
        started(core, core.volume(tmp_path / "core"), settings=at) as center,
    ):
        await node.answers("/readyz")
        await center.answers("/readyz")
        receipt = {"request": "r1", "at": SALE["at"], "lines": [{"product": 7, "quantity": 5}]}
        assert post(f"{node.url}/stock/receipts", receipt) == 201
        order = {"order": "o1", "store": "store-330", "lines": [{"product": 7, "quantity": 2}], "cents": 500}
        assert post(f"{center.url}/orders", order) == 201
        begin = datetime.now(UTC) - timedelta(hours=2)
        warm = [
            {"fridge": "f1", "at": (begin + timedelta(minutes=minute)).isoformat(), "milli_degrees": 12_000}
            for minute in range(0, 30, 5)
        ]
        assert post(f"{node.url}/coldchain/readings", {"readings": warm}) == 201

        async def confirmed() -> bool:
            return bool((await center.answers("/orders/o1")).json()["status"] == "confirmed")

        async def told() -> bool:
            return "f1" in (await center.answers("/coldwatch/alerts")).text

        await until(confirmed, limit=30, what=lambda: httpx.get(f"{center.url}/orders/o1").text)
        await until(told, limit=30, what=lambda: httpx.get(f"{center.url}/coldwatch/alerts").text)
        assert (await node.answers("/stock/products/7")).json()["reserved"] == 2
        for each in (node, center):
            assert each.stop() < 10


async def test_containers_wait_for_their_broker_and_connect_later(edge: Image, core: Image, tmp_path: Path) -> None:
    server = NatsServer(tmp_path / "nats")
    nats = {"FOREBAY_NATS": server.url}
    with (
        started(edge, edge.volume(tmp_path / "1"), settings={**nats, "FOREBAY_NODE": "store-1"}) as node,
        started(core, core.volume(tmp_path / "core"), settings=nats) as center,
    ):
        await node.answers("/readyz")
        found = node.health()
        assert (found.returncode, found.stdout) == (0, "ready, no link\n"), found
        assert ring_up(node, "early").status_code == 201
        await center.answers("/readyz", 503)
        found = center.health()
        assert found.returncode == 1
        assert found.stderr.startswith("503: ")
        assert "does not read" in found.stderr
        try:
            await server.start()
            apply(core, core.volume(tmp_path / "apply"), server.url)
            await center.answers("/readyz", limit=90)  # it tries again within a minute
            await center.answers("/sales/stores/store-1", limit=90)
            assert center.health().returncode == node.health().returncode == 0
            node.stop()
            center.stop()
        finally:
            server.kill()


@pytest.mark.parametrize("name", ["edge", "core"])
async def test_the_root_is_read_only_and_the_user_is_nobody_special(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    image: Image = request.getfixturevalue(name)
    settings = {"FOREBAY_NODE": "store-1"} if name == "edge" else {}
    with started(image, image.volume(tmp_path / "1"), settings=settings) as node:
        await node.answers("/livez")
        status = node.status()
        assert status["Uid"].split() == ["10001"] * 4
        assert status["Gid"].split() == ["10001"] * 4
        assert int(status["CapEff"], 16) == 0
        assert status["NSpid"].split()[-1] == "1"
        for path in ("/app/x", "/tmp/x", "/x"):
            assert "Read-only file system" in node.run("touch", path).stderr
        assert node.run("touch", "/data/x").returncode == 0
        node.stop()


async def test_nothing_is_left_of_a_container_that_is_killed(edge: Image, tmp_path: Path) -> None:
    with started(edge, edge.volume(tmp_path / "data"), settings={"FOREBAY_NODE": "store-1"}) as node:
        await node.answers("/livez")
        process = anyio.Path(f"/proc/{node.pid}")
        assert await process.exists()
    assert not await process.exists()


async def test_the_command_line_works_in_the_container(edge: Image, tmp_path: Path) -> None:
    with started(edge, edge.volume(tmp_path / "1"), settings={"FOREBAY_NODE": "store-1"}) as node:
        await node.answers("/readyz")
        assert ring_up(node, "b1").status_code == 201
        assert node.run("forebay", "health").stdout == "ready, no link\n"
        assert "store-1" in node.run("forebay", "outbox", "ls").stdout
        node.stop()


async def test_the_backup_of_the_docs_is_a_database_and_the_service_goes_on(edge: Image, tmp_path: Path) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    program = re.search(r'python -c "(import sqlite3.*?)"\n', text, re.DOTALL)
    assert program
    volume = edge.volume(tmp_path / "1")
    with started(edge, volume, settings={"FOREBAY_NODE": "store-330"}) as node:
        await node.answers("/readyz")
        assert ring_up(node, "b1").status_code == 201
        done = node.run("python", "-c", re.sub(r"\\\n\s*", "", program[1]))
        assert done.returncode == 0, done.stderr
        assert ring_up(node, "b2").status_code == 201
        node.stop()
    with contextlib.closing(sqlite3.connect(volume / "till-backup.db")) as backup:
        assert backup.execute("select basket from sale").fetchall() == [("b1",)]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "FOREBAY_NODE"),
        ({"FOREBAY_NODE": "Store 1"}, "node"),
        ({"FOREBAY_NODE": "a", "FOREBAY_NATS": "http://broker"}, "FOREBAY_NATS"),
        ({"FOREBAY_NODE": "a", "FOREBAY_PORT": "http"}, "FOREBAY_PORT"),
        ({"FOREBAY_NODE": "a", "FOREBAY_PORT": "70000"}, "port"),
        ({"FOREBAY_NODE": "a", "FOREBAY_GRACE": "long"}, "FOREBAY_GRACE"),
        ({"FOREBAY_NODE": "a", "FOREBAY_LOG_LEVEL": "loud"}, "FOREBAY_LOG_LEVEL"),
    ],
    ids=lambda value: " ".join(value.values()) if isinstance(value, dict) else "",
)
def test_a_wrong_setting_ends_the_container_with_one_line_and_78(
    edge: Image, tmp_path: Path, settings: dict[str, str], named: str
) -> None:
    with started(edge, edge.volume(tmp_path / "1"), settings=settings) as node:
        one_line(node, named)


@pytest.mark.parametrize(
    ("command", "settings", "named", "code"),
    [
        ([], {"FOREBAY_NATS": "http://broker"}, "FOREBAY_NATS", 78),
        ([], {"FOREBAY_GRACE": "-1"}, "FOREBAY_GRACE", 78),
        (["run", "core.nothing"], {}, "core.nothing", 78),
        (["run", "edge.till"], {"FOREBAY_NODE": "store-1"}, "edge.till", 78),
        (["apply"], {"FOREBAY_NATS": "http://broker"}, "FOREBAY_NATS", 1),
    ],
    ids=["url", "grace", "service", "side", "one-shot"],
)
def test_a_wrong_setting_ends_the_core_and_the_one_shot_too(
    core: Image, tmp_path: Path, command: list[str], settings: dict[str, str], named: str, code: int
) -> None:
    """As docs/operating.md says, apply ends with 1: its other codes are those of ``plan``."""
    with started(core, core.volume(tmp_path / "1"), *command, settings=settings) as once:
        one_line(once, named, code)


@pytest.mark.parametrize("table", ["[run]\nnodes = 'a'", "[run", "[run]\ngrace = 'long'", "[gateway]\nlane = 1"])
def test_a_wrong_mounted_file_ends_the_container_with_one_line_and_78(edge: Image, tmp_path: Path, table: str) -> None:
    file = tmp_path / "forebay.toml"
    file.write_text(f"{table}\n")
    volume, mounts = edge.volume(tmp_path / "1"), {file: "/app/forebay.toml"}
    with started(edge, volume, settings={"FOREBAY_NODE": "a"}, mounts=mounts) as node:
        one_line(node, "gateway" if "gateway" in table else "forebay.toml")


async def test_a_mounted_file_sets_what_no_variable_does(edge: Image, tmp_path: Path) -> None:
    file = tmp_path / "forebay.toml"
    file.write_text("[run]\nnode = 'store-7'\nlog-level = 'debug'\n[gateway.lanes]\n'com.example.x' = 'telemetry'\n")
    volume = edge.volume(tmp_path / "1")
    with started(edge, volume, mounts={file: "/app/forebay.toml"}) as node:
        await node.answers("/readyz")
        assert (volume / "nodes" / "store-7" / "till.db").exists()
        node.stop()


def test_a_volume_that_the_user_may_not_write_ends_the_container_with_one_line_and_78(
    edge: Image, tmp_path: Path
) -> None:
    volume = tmp_path / "roots"
    volume.mkdir(mode=0o755)
    with started(edge, volume, settings={"FOREBAY_NODE": "a"}) as node:
        one_line(node, "/data")


async def test_a_volume_of_release_0_1_0_is_brought_up_and_its_waiting_events_arrive(
    edge: Image, core: Image, nats_server: NatsServer, tmp_path: Path
) -> None:
    """The databases were recorded when the engine's schema was 0001, with a sale and an event that no broker had."""
    nats = {"FOREBAY_NATS": nats_server.url}
    apply(core, core.volume(tmp_path / "apply"), nats_server.url)
    volume = recorded(edge, tmp_path / "node")
    with started(edge, volume, settings={**nats, "FOREBAY_NODE": "store-330"}) as node:
        await node.answers("/readyz")
        old = await node.answers("/till/sales/31198570044")
        assert old.json()["event"] == "01a20b498f6d7868ae4fea01afdf2a13-1"
        assert ring_up(node, "31198570044").status_code == 200, "it is known"
        assert ring_up(node, "new").status_code == 201
        with started(core, core.volume(tmp_path / "core"), settings=nats) as center:

            async def totals() -> bool:
                answer = await center.answers("/sales/stores/store-330", limit=60)
                return bool(answer.json()["sales"] == 2)

            await until(totals, limit=60, what=lambda: httpx.get(f"{center.url}/sales/stores").text)
            center.stop()
        node.stop()
    for service in ("till", "gateway"):
        with contextlib.closing(sqlite3.connect(volume / f"nodes/store-330/{service}.db")) as database:
            applied = {name for (name,) in database.execute("select name from _sqlite_migrations")}
            assert database.execute("pragma integrity_check").fetchone() == ("ok",)
        engine = next(edge.root.glob("app/.venv/lib/python3*/site-packages/forebay/migrations"))
        shipped = [*engine.glob("*.sqlite.sql"), *(edge.root / "app/edge" / service).glob("migrations/*.sqlite.sql")]
        assert applied == {file.name.removesuffix(".sqlite.sql") for file in shipped}


def recorded(edge: Image, folder: Path) -> Path:
    """Return a volume with the databases that release 0.1.0 left when it was stopped without having met a broker."""
    volume = edge.volume(folder)
    databases = volume / "nodes" / "store-330"
    databases.mkdir(parents=True)
    for file in RECORDED.glob("*.db.gz"):
        (databases / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    for path in (databases.parent, databases, *databases.iterdir()):
        os.chown(path, *edge.user)
    return volume


async def test_a_volume_of_an_older_schema_is_brought_up_and_serves_the_previous_release_too(
    edge: Image, tmp_path: Path
) -> None:
    """The next release is this image with one more migration; then back, as a rollback does."""
    volume, settings = edge.volume(tmp_path / "1"), {"FOREBAY_NODE": "store-1"}
    with started(edge, volume, settings=settings) as older:
        await older.answers("/readyz")
        assert ring_up(older, "before").status_code == 201
        older.stop()
    folder = tmp_path / "migrations"
    folder.mkdir(mode=0o755)
    for file in (edge.root / "app/edge/till/migrations").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    last = max(int(file.name[:4]) for file in folder.iterdir())
    (folder / f"{last + 1:04}_operator.sqlite.sql").write_text(
        "-- Who stood at the till.\nalter table sale add column operator text;\n"
    )
    with started(edge, volume, settings=settings, mounts={folder: "/app/edge/till/migrations"}) as newer:
        await newer.answers("/till/sales/before")
        assert ring_up(newer, "after").status_code == 201
        newer.stop()
    with started(edge, volume, settings=settings) as older:
        await older.answers("/till/sales/after")
        assert ring_up(older, "again").status_code == 201
        older.stop()
    with sqlite3.connect(volume / "nodes/store-1/till.db") as database:
        assert database.execute("select basket, operator from sale order by basket").fetchall() == [
            ("after", None),
            ("again", None),
            ("before", None),
        ]
    database.close()


@pytest.fixture
def small(edge: Image, tmp_path: Path) -> Iterator[Path]:
    """A volume of 192 MiB that is a file system of its own: a store leaves 64 of it alone, and has 8 of ballast."""
    volume = tmp_path / "small"
    volume.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=192m", "small", str(volume)], check=True, timeout=30)
    try:
        yield edge.volume(volume)
    finally:
        subprocess.run(["umount", str(volume)], check=True, timeout=30)


def fill(volume: Path) -> Path:
    """Take every byte that is left, with a file of somebody else's."""
    filler = volume / "filler"
    with filler.open("ab", buffering=0) as file:
        for block in (bytes(1024 * 1024), bytes(4096)):
            with contextlib.suppress(OSError):
                while True:
                    file.write(block)
    assert os.statvfs(volume).f_bavail == 0
    return filler


async def test_a_volume_that_fills_up_and_is_freed_again_loses_nothing(edge: Image, small: Path) -> None:
    settings = {"FOREBAY_NODE": "store-1"}
    with started(edge, small, settings=settings) as node:
        await node.answers("/readyz")
        assert ring_up(node, "before").status_code == 201
        filler = fill(small)
        kept = ["before", *until_refused(node, "first")]
        assert {ring_up(node, f"refused-{number}", padding=400).status_code for number in range(4)} == {507}
        filler.unlink()
        assert ring_up(node, "room-again", padding=400).status_code == 201
        for basket in (*kept, "room-again"):
            await node.answers(f"/till/sales/{basket}")
        node.stop()


async def test_a_full_volume_answers_507_and_reads_work_from_the_start_on(edge: Image, small: Path) -> None:
    settings = {"FOREBAY_NODE": "store-1"}
    with started(edge, small, settings=settings) as node:
        await node.answers("/readyz")
        assert ring_up(node, "before").status_code == 201
        filler = fill(small)
        kept = ["before", *until_refused(node, "first")]
        for again in ("second", "third"):
            assert ring_up(node, again, padding=400).status_code == 507
        for basket in kept:
            await node.answers(f"/till/sales/{basket}")
        node.stop()
    with started(edge, small, settings=settings) as node:
        await node.answers("/livez")
        for basket in kept:
            await node.answers(f"/till/sales/{basket}")
        kept += until_refused(node, "still-full")
        filler.unlink()
        assert ring_up(node, "room-again", padding=400).status_code == 201
        for basket in kept:
            await node.answers(f"/till/sales/{basket}")
        node.stop()


def until_refused(node: Container, name: str) -> list[str]:
    """Ring up sales until one is refused with 507; return those that were accepted, a store may have a reserve."""
    accepted: list[str] = []
    while (answer := ring_up(node, f"{name}-{len(accepted)}", padding=400)).status_code == 201:
        accepted.append(f"{name}-{len(accepted)}")
        assert len(accepted) < 500, "the volume is full, and every sale is accepted"
    assert answer.status_code == 507, answer.text
    return accepted


def one_line(container: Container, named: str, code: int = 78) -> None:
    """Assert that a container has ended with an exit code and a single line that names the setting."""
    assert container.wait() == code, container.log.read_text()
    said = container.log.read_text()
    assert said.count("\n") == 1, said
    assert said.startswith("forebay: ")
    assert named in said
