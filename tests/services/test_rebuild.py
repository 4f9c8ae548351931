"""An older release's database under this one, and a rebuild that is killed around its commits, in real processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import msgspec
import pytest

from bench.journey import Sale, load_slice
from bench.rebuild import CONSUMERS, Fleet, connected, expected, read_model
from contracts.till import SaleRecorded
from core.archive.event import INSERT, now, to_row
from forebay import Message, Service, UnitOfWork, running
from forebay.crash_points import POINTS
from forebay.intent_box import leave_file
from forebay.intents import RebuildProjection
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Publisher
from forebay.running import RunningService
from forebay.scripts import MigrationSet
from forebay.sqlite.beside import path_beside
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.integration.rig import eventually, rows
from tests.services.command_line import called, forebay

ROOT = Path(__file__).parents[2]
SLICE = ROOT / "tests" / "data" / "journey-store-330-week.ndjson.gz"
NEWER = {"forebay": 10, "sales": 2, "archive": 3}
"""The first migration of each set that the older release did not have."""

CRASHES = [point for point in POINTS if point.startswith("rebuild.")]
"""All of a rebuild, in its order; no other test with real processes takes them."""


def old_archive() -> Service:
    """The archive of the older release: its indexes were SQLite's alone, and nothing is kept up."""
    archive = Service("archive")

    @archive.every
    def keep(tx: UnitOfWork, messages: list[Message]) -> None:
        archived_at = now()
        tx.executemany(INSERT, [to_row(message, archived_at) for message in messages])

    return archive


def old_sales() -> Service:
    """The sales of the older release: totals per store and day, and no version."""
    sales = Service("sales")

    @sales.on(SaleRecorded, batch=True)
    def add_up(tx: UnitOfWork, recorded: list[SaleRecorded], messages: list[Message]) -> None:
        for sale, message in zip(recorded, messages, strict=True):
            for table, keys in (("store_total", ("node",)), ("day_total", ("node", "day"))):
                values = ", ".join(f":{key}" for key in keys)
                tx.execute(
                    f"insert into {table} ({', '.join(keys)}, sales, lines, cents) values ({values}, 1, :lines, :cents)"
                    f" on conflict ({', '.join(keys)}) do update set sales = sales + 1, lines = lines + excluded.lines,"
                    " cents = cents + excluded.cents",
                    node=message.node,
                    day=message.time.date().isoformat(),
                    lines=len(sale.lines),
                    cents=sale.cents,
                )

    return sales


def old_migrations(name: str, folder: Path, to: Path) -> Path:
    """Copy the migrations that the older release had."""

    def newer(_: str, names: list[str]) -> list[str]:
        return [each for each in names if each[:4].isdigit() and int(each[:4]) >= NEWER[name]]

    shutil.copytree(folder, to / name, ignore=newer)
    return to / name


@asynccontextmanager
async def old_release(connection: Connection, folder: Path, data: Path) -> AsyncIterator[list[RunningService]]:
    """Run archive and sales as the older release did; yields the two."""
    services = [
        RunningService(declared, "core", data / "core" / f"{declared.name}.db", connection, {})
        for declared in (old_archive(), old_sales())
    ]
    try:
        for each in services:
            migrations = old_migrations(each.name, ROOT / "core" / each.name / "migrations", folder)
            await each.open(migrations, grace=3600.0)
        async with anyio.create_task_group() as tasks:
            for each in services:
                await each.start(tasks)
            yield services
            tasks.cancel_scope.cancel()
    finally:
        for each in services:
            await each.close()


async def sold(http: httpx.AsyncClient) -> int:
    """How many sales took effect."""
    answer = await http.get("/sales/stores")
    return sum(row["sales"] for row in answer.json()["stores"]) if answer.status_code == 200 else 0


@pytest.mark.timeout(300)
async def test_a_new_release_rebuilds_an_old_read_model_though_it_is_killed_around_every_commit_f3(
    nats_server: NatsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sales, data = load_slice(SLICE), tmp_path / "data"
    first, *others = _parts(sales, len(CRASHES) + 1)
    async with connected(nats_server.url) as connection, Publisher(connection, "EVENTS") as publisher:
        fleet = Fleet(publisher)
        engine = old_migrations("forebay", ROOT / "src" / "forebay" / "migrations", tmp_path)
        with monkeypatch.context() as older:
            older.setattr(running, "ENGINE", MigrationSet("forebay", engine))
            older.setattr("forebay.sqlite.writer.cache_of", lambda _: None)  # its inbox had no numbers to remember
            async with old_release(connection, tmp_path, data) as (archive, sold_before):
                await fleet.publish(first)

                async def all_there() -> bool:
                    totals = await rows(sold_before.store, "select sales from store_total")
                    archived = await rows(archive.store, "select count(*) as events from archived")
                    return (totals, archived) == ([(len(first),)], [(len(first),)])

                await eventually(all_there)

        core = ServiceProcess(
            [f"core.{name}" for name in CONSUMERS], node="core", project=ROOT, data=data, nats=nats_server.url
        )
        database = data / "core" / "sales.db"
        try:
            async with httpx.AsyncClient(base_url=core.url, timeout=10, trust_env=False) as http:
                core.start()
                await core.ready()
                await until(lambda: sold(http), limit=30)
                assert await sold(http) == len(first), "it goes on serving what the older release built"
                answer = await http.get("/sales/products")
                assert (answer.status_code, answer.json()["title"]) == (503, "Service Unavailable")
                listed = called(ROOT, "projection", "ls", "--data", str(data), "--json")
                assert '"declared": 2,\n    "in_use": 1,' in listed.stdout
                to = tmp_path / "export"
                words = ("archive", "export", "--to", str(to), "--data", str(data), "--today", "--json")
                exported = forebay(ROOT, *words)
                assert exported.returncode == 0, exported.stderr
                assert [row["events"] for row in json.loads(exported.stdout)] == [len(first)], exported.stderr
                assert forebay(ROOT, *words[:-1]).stdout == "nothing is left to export\n"
                core.kill()

                leave_file(database, msgspec.json.encode(RebuildProjection()))
                for point, part in zip(CRASHES, others, strict=True):
                    core.environment = {"FOREBAY_CRASH_AT": point}
                    core.start()
                    await fleet.publish(part)
                    assert core.wait(60) == -9, core.log.read_text()

                core.environment = {}
                core.start()
                await core.ready()
                wanted = expected(sales)

                async def equal() -> bool:
                    return await sold(http) == len(sales) and await read_model(http, database) == wanted

                await until(equal, limit=60, what=lambda: "every total is equal to the cent")
                await until(lambda: not path_beside(database).exists(), limit=30)
                assert core.log.read_text().count("projection.outdated") == len(CRASHES) + 1
                listed = called(ROOT, "projection", "ls", "--data", str(data), "--json")
                assert '"declared": 2,\n    "in_use": 2,' in listed.stdout
        finally:
            core.kill()


def _parts(sales: Sequence[Sale], count: int) -> list[Sequence[Sale]]:
    size = len(sales) // count
    return [sales[at * size : (at + 1) * size if at < count - 1 else None] for at in range(count)]
