"""Backup and restore: of running processes, all or nothing, and safe for the promise (rules B5, I2)."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest

from forebay import Message, Service, UnitOfWork
from forebay.backup import MANIFEST, PLAN, back_up, finish_restore, restore
from forebay.cli.databases import files
from forebay.errors import ConfigurationError, ForebayError, StoreError
from forebay.jetstream.connection import Connection
from forebay.running import RunningService
from forebay.sqlite.lock import FileLock
from forebay.testing.nats_server import NatsServer
from tests.integration.rig import (
    NODE,
    NOTES,
    DoorOpened,
    apply,
    connected,
    door,
    eventually,
    note,
    numbers,
    open_doors,
    rows,
    serving,
)

SCHEMA = "create table item (id integer primary key, body text not null) strict;"


def notes() -> Service:
    service = Service("notes")

    @service.on(DoorOpened)
    def write_down(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        note(tx, message.node, event.number)

    return service


def paths(data: Path) -> list[Path]:
    return [found.path for found in files(data)]


@asynccontextmanager
async def edge_and_core(
    data: Path, edge: Connection, core: Connection
) -> AsyncIterator[tuple[RunningService, RunningService]]:
    async with (
        serving(door(), edge, data / "nodes") as node,
        serving(notes(), core, data, node="core", schema=NOTES) as center,
    ):
        yield node, center


async def noted(center: RunningService, last: int) -> bool:
    return last in await numbers(center.store)


async def test_a_node_that_was_restored_loses_and_doubles_nothing(nats_server: NatsServer, tmp_path: Path) -> None:
    """I2: what it writes after the backup has a new epoch. No double effect: what it sends again is known."""
    data, archive = tmp_path / "data", tmp_path / "backup.tar"
    async with connected(nats_server.url, node=NODE) as edge, connected(nats_server.url, node="core") as core:
        await apply(edge, "notes")
        async with serving(notes(), core, data, node="core", schema=NOTES) as center:
            async with serving(door(), edge, data / "nodes") as node:
                await node.store.write(open_doors, 1, 50)
                await eventually(partial(noted, center, 50))
                entries = back_up(data, [node.path], archive)
                assert [(entry.node, entry.service) for entry in entries] == [(NODE, "door")]
                await node.store.write(open_doors, 51, 80)
                await eventually(partial(noted, center, 80))
                path = node.path
            restore(data, archive)
            assert len(list(path.parent.glob("door.db.replaced-*"))) == 1
            async with serving(door(), edge, data / "nodes") as node:
                first = await node.store.write(open_doors, 101, 120)
                await eventually(partial(noted, center, 120))
                epochs = await rows(node.store, "select epoch, last from forebay_epoch order by id")
                assert [last for _, last in epochs] == [50, 20]
                assert first[0].startswith(epochs[1][0])
            assert await numbers(center.store) == [*range(1, 81), *range(101, 121)]


async def test_a_consumer_that_was_restored_gets_the_rest_again(nats_server: NatsServer, tmp_path: Path) -> None:
    """S5, B5: its database is its truth; what it had done since the backup it does again, once."""
    data, archive = tmp_path / "data", tmp_path / "backup.tar"
    async with connected(nats_server.url, node=NODE) as edge, connected(nats_server.url, node="core") as core:
        await apply(edge, "notes")
        async with edge_and_core(data, edge, core) as (node, center):
            await node.store.write(open_doors, 1, 50)
            await eventually(partial(noted, center, 50))
            back_up(data, [center.path], archive)
            await node.store.write(open_doors, 51, 100)
            await eventually(partial(noted, center, 100))
        restore(data, archive)
        async with edge_and_core(data, edge, core) as (node, center):
            await node.store.write(open_doors, 101, 120)
            await eventually(partial(noted, center, 120), limit=30)
            assert await numbers(center.store) == list(range(1, 121))


async def test_a_whole_data_folder_that_was_restored_goes_on(nats_server: NatsServer, tmp_path: Path) -> None:
    """Both sides go back, to moments that are not the same, and another machine takes them over."""
    data, archive, other = tmp_path / "data", tmp_path / "backup.tar", tmp_path / "other"
    async with connected(nats_server.url, node=NODE) as edge, connected(nats_server.url, node="core") as core:
        await apply(edge, "notes")
        async with edge_and_core(data, edge, core) as (node, center):
            await node.store.write(open_doors, 1, 50)
            await eventually(partial(noted, center, 50))
            assert len(back_up(data, paths(data), archive)) == 2
            await node.store.write(open_doors, 51, 60)
            await eventually(partial(noted, center, 60))
        restore(other, archive)
        assert [path.name for path in paths(other)] == ["door.db", "notes.db"]
        async with edge_and_core(other, edge, core) as (node, center):
            await node.store.write(open_doors, 101, 120)
            await eventually(partial(noted, center, 120), limit=30)
            # The stream still has what the node forgot.
            assert sorted(await numbers(center.store)) == [*range(1, 61), *range(101, 121)]


# --- archives, without services


def make(data: Path, *names: str, rows: int = 3) -> list[Path]:
    made = []
    for name in names:
        path = data / name
        path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(path)
        connection.executescript(f"pragma journal_mode=wal; {SCHEMA}")
        connection.executemany("insert into item (body) values (?)", [("old",)] * rows)
        connection.commit()
        connection.close()
        made.append(path)
    return made


def bodies(path: Path) -> list[str]:
    connection = sqlite3.connect(path)
    found = [body for (body,) in connection.execute("select body from item order by id")]
    connection.close()
    return found


def change(path: Path) -> None:
    connection = sqlite3.connect(path)
    connection.execute("update item set body = 'new'")
    connection.commit()
    connection.close()


NAMES = ("nodes/store-1/till.db", "nodes/store-2/till.db", "core/sales.db")


def test_what_is_committed_counts_and_what_is_under_way_does_not(tmp_path: Path) -> None:
    [path] = make(tmp_path / "data", NAMES[0])
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("begin immediate")
    writer.execute("insert into item (body) values ('half')")
    back_up(tmp_path / "data", [path], tmp_path / "b.tar")
    writer.execute("commit")
    restore(tmp_path / "other", tmp_path / "b.tar")
    assert bodies(tmp_path / "other" / NAMES[0]) == ["old"] * 3
    writer.close()


def test_nodes_and_services_can_be_chosen(tmp_path: Path) -> None:
    back_up(tmp_path / "data", make(tmp_path / "data", *NAMES), tmp_path / "b.tar")
    chosen = restore(tmp_path / "other", tmp_path / "b.tar", lambda entry: entry.node == "store-2")
    assert [entry.path for entry in chosen] == [NAMES[1]]
    assert paths(tmp_path / "other") == [tmp_path / "other" / NAMES[1]]


def test_a_backup_replaces_nothing(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_text("precious")
    with pytest.raises(ConfigurationError, match="there already"):
        back_up(tmp_path / "data", make(tmp_path / "data", NAMES[0]), tmp_path / "b.tar")
    assert (tmp_path / "b.tar").read_text() == "precious"


def test_a_damaged_database_is_not_backed_up_in_silence(tmp_path: Path) -> None:
    [path] = make(tmp_path / "data", NAMES[0], rows=3000)
    content = bytearray(path.read_bytes())
    content[3 * 4096 : 3 * 4096 + 200] = b"\x99" * 200
    path.write_bytes(content)
    with pytest.raises(StoreError, match=r"damaged|malformed"):
        back_up(tmp_path / "data", [path], tmp_path / "b.tar")
    assert [file.name for file in tmp_path.iterdir()] == ["data"]


def test_a_database_in_use_is_not_restored(tmp_path: Path) -> None:
    data = tmp_path / "data"
    made = make(data, *NAMES)
    back_up(data, made, tmp_path / "b.tar")
    for path in made:
        change(path)
    lock = FileLock(made[1])
    lock.acquire()
    try:
        with pytest.raises(ConfigurationError, match="in use by process"):
            restore(data, tmp_path / "b.tar")
    finally:
        lock.release()
    assert [bodies(path)[0] for path in made] == ["new"] * 3
    restore(data, tmp_path / "b.tar")
    assert [bodies(path)[0] for path in made] == ["old"] * 3


def cut(archive: Path) -> None:
    archive.write_bytes(archive.read_bytes()[:20_000])


def flip(archive: Path) -> None:
    content = bytearray(archive.read_bytes())
    content[2000] ^= 1
    archive.write_bytes(content)


def scribble(archive: Path) -> None:
    archive.write_text("not a backup")


def escape(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        member = tar.extractfile(MANIFEST)
        assert member is not None
        manifest = member.read().replace(NAMES[0].encode(), b"nodes/../../../etc.db")
    with tarfile.open(archive, "w") as tar:
        info = tarfile.TarInfo(MANIFEST)
        info.size = len(manifest)
        part = archive.with_name("part")
        part.write_bytes(manifest)
        tar.add(part, MANIFEST)


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (cut, "cannot be read|no whole backup"),
        (flip, "another checksum"),
        (scribble, "cannot be read as a backup"),
        (escape, "no database of a data folder"),
        (Path.unlink, "there is no backup"),
    ],
)
def test_an_archive_that_is_not_whole_changes_nothing(
    tmp_path: Path, damage: Callable[[Path], None], told: str
) -> None:
    data, archive = tmp_path / "data", tmp_path / "b.tar"
    made = make(data, *NAMES)
    back_up(data, made, archive)
    for path in made:
        change(path)
    damage(archive)
    with pytest.raises(ForebayError, match=told):
        restore(data, archive)
    assert [bodies(path)[0] for path in made] == ["new"] * 3
    assert not (data / PLAN).exists()


RESTORING = """
import os, signal, sys
from pathlib import Path
from forebay.backup import restore

data, archive, call, at = sys.argv[1:]
real, left = getattr(os, call), int(at)

def counted(*args, **kwargs):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(os, call, counted)
restore(Path(data), Path(archive))
"""
"""Restores, and is killed before the n-th call of a function of ``os``."""


@pytest.mark.parametrize("call", ["rename", "unlink", "fsync"])
def test_a_restore_that_is_killed_anywhere_restores_all_or_nothing(tmp_path: Path, call: str) -> None:
    """The next start carries out what was decided; what was not decided has changed nothing."""
    data, archive = tmp_path / "data", tmp_path / "b.tar"
    back_up(data, make(data, *NAMES), archive)
    for at in range(1, 40):
        for name in NAMES:
            change(data / name)
        command = [sys.executable, "-c", RESTORING, str(data), str(archive), call, str(at)]
        done = subprocess.run(command, check=False, capture_output=True, timeout=60)
        finish_restore(data)
        found = {bodies(data / name)[0] for name in NAMES}
        assert len(found) == 1
        if done.returncode == 0:
            assert found == {"old"}
            assert at > 1
            return
        assert done.returncode == -signal.SIGKILL, done.stderr
    raise AssertionError("it never came to its end")
