"""Damaged databases, made from real ones: the node comes up, keeps what can be read, and tells what it cannot."""

from __future__ import annotations

import hashlib
import logging
import random
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import pytest

from forebay import Message, Service, UnitOfWork
from forebay.errors import ConfigurationError, StoreError
from forebay.freeing import free
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.losses import mend
from forebay.opening import ENGINE
from forebay.running import RunningService
from forebay.sqlite import Salvaging, SqliteStore
from forebay.sqlite.damage import Examined, examine, marked_open, note_damage, noted_damage
from forebay.sqlite.failures import DamagedError
from forebay.sqlite.frames import read_frames
from forebay.sqlite.salvage import salvage
from forebay.transaction import Row, Transaction
from tests.integration.rig import NODE, DoorOpened, door, measure, open_doors

PAGE = 4096
DOMAIN = "create table opened (number integer primary key, door text not null) strict;"
EVENTS = 2000
FREED = 100
"""Events that all consumers had confirmed and that were freed before the damage."""

NOBODY = Connection(ConnectionConfig(servers=["nats://127.0.0.1:1"], name=NODE, inbox_prefix="_INBOX_x"))
"""A connection that is never made: a node without a link."""


def opened(tx: UnitOfWork, first: int, last: int) -> None:
    open_doors(tx, first, last)
    tx.executemany(
        "insert into opened (number, door) values (:number, 'front')", [{"number": n} for n in range(first, last + 1)]
    )


class Node:
    """An edge service in a folder of its own; opened and closed without a broker."""

    def __init__(self, folder: Path, declared: Service | None = None) -> None:
        self.folder = folder
        self.declared = declared or door()
        self.path = folder / f"{self.declared.name}.db"
        self.service: RunningService | None = None

    async def __aenter__(self) -> RunningService:
        migrations = self.folder / "migrations"
        migrations.mkdir(parents=True, exist_ok=True)
        (migrations / "0001_door.sqlite.sql").write_text(DOMAIN)
        self.service = RunningService(self.declared, NODE, self.path, NOBODY, {})
        await self.service.open(migrations, grace=3600)
        return self.service

    async def __aexit__(self, *_: object) -> None:
        if self.service is not None:
            await self.service.close()

    @property
    def log(self) -> Path:
        return self.path.with_name(f"{self.path.name}-wal")

    def set_aside(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.path.name}.damaged-*"))

    def leftovers(self) -> list[Path]:
        return [*self.folder.glob("*.image"), *self.folder.glob("*.salvag*")]


class Found(NamedTuple):
    """What a database says after it was opened again."""

    here: set[int]
    lost: set[int]
    ranges: int
    domain: set[int]
    epochs: list[str]


async def filled(node: Node, events: int = EVENTS) -> None:
    """Write events, free the oldest of them, close in order."""
    async with node as service:
        for first in range(1, events, 100):
            await service.store.write(opened, first, first + 99)
        await service.store.write(measure, 1, 50)
        epoch = await service.store.read(lambda tx: tx.execute("select epoch from forebay_epoch order by id")[0])
        freed = await service.store.write(free, "ledger", epoch["epoch"], FREED, limit=FREED)
        assert freed.events == FREED


async def crashed(node: Node, folder: Path, events: int) -> Node:
    """Return a node as a SIGKILL leaves it: its newest events are in the log alone."""
    await anyio.Path(folder).mkdir()
    async with node as service:
        for number in range(1, events + 1):
            await service.store.write(opened, number, number)
        left = Node(folder)
        for file in (node.path, node.log, node.path.with_name(f"{node.path.name}.open")):
            shutil.copy(file, folder / file.name)
    return left


async def examined(service: RunningService) -> Found:
    def query(tx: Transaction) -> Found:
        def numbers(sql: str) -> set[int]:
            return {row["n"] for row in tx.execute(sql)}

        of_lane = "select e.id from forebay_epoch e join forebay_origin o on o.id = e.origin where o.lane = 'ledger'"
        lost: list[Row] = tx.execute("select * from forebay_lost where lane = 'ledger' order by id")
        first = tx.execute(f"select epoch from forebay_epoch where id in ({of_lane}) order by id")
        return Found(
            here=numbers(f"select sequence as n from forebay_outbox where epoch = (select min(id) from ({of_lane}))"),
            lost={n for row in lost for n in range(row["first"], row["last"] + 1)},
            ranges=len(lost),
            domain=numbers("select number as n from opened"),
            epochs=[row["epoch"] for row in first],
        )

    return await service.store.read(query)


async def books(service: RunningService) -> None:
    """Assert that every written event is somewhere, and that the bytes are those of the rows."""

    def query(tx: Transaction) -> list[Row]:
        return tx.execute(
            "select o.written, o.confirmed, o.dropped, o.bytes,"
            " (select count(*) from forebay_outbox"
            "  where epoch in (select id from forebay_epoch where origin = o.id)) as n,"
            " (select coalesce(sum(bytes), 0) from forebay_outbox"
            "  where epoch in (select id from forebay_epoch where origin = o.id)) as size,"
            " (select coalesce(sum(last - first + 1), 0) from forebay_dropped"
            "  where epoch in (select id from forebay_epoch where origin = o.id)) as places"
            " from forebay_origin o"
        )

    for row in await service.store.read(query):
        assert row["written"] == row["confirmed"] + row["dropped"] + row["n"]
        assert (row["bytes"], row["dropped"]) == (row["size"], row["places"])


def overwrite(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size * 2 // 3)


def truncate_within_a_page(path: Path) -> None:
    pages = sorted(leaves(path))
    with path.open("r+b") as file:
        file.truncate((pages[len(pages) // 2] - 1) * PAGE + 1000)


def wipe_header(path: Path) -> None:
    overwrite(path, 0, bytes(100))


def flip_bit_of_header(path: Path) -> None:
    overwrite(path, 3, bytes([path.read_bytes()[3] ^ 4]))


def root_of(path: Path, name: str) -> int:
    connection = sqlite3.connect(path)
    root = connection.execute("select rootpage from sqlite_master where name = ?", (name,)).fetchone()[0]
    connection.close()
    return int(root)


def leaves(path: Path) -> list[int]:
    """The pages that hold rows of the outbox."""
    root = root_of(path, "forebay_outbox")
    data = path.read_bytes()
    found, waiting = [], [root]
    while waiting:
        page = waiting.pop()
        start = (page - 1) * PAGE
        if data[start] == 0x0D:
            found.append(page)
        elif data[start] == 0x05:
            cells = int.from_bytes(data[start + 3 : start + 5], "big")
            pointers = [int.from_bytes(data[start + 12 + 2 * n : start + 14 + 2 * n], "big") for n in range(cells)]
            waiting += [int.from_bytes(data[start + at : start + at + 4], "big") for at in pointers]
            waiting.append(int.from_bytes(data[start + 8 : start + 12], "big"))
    return sorted(found)


def wipe_leaves(path: Path) -> None:
    for page in random.Random(7).sample(leaves(path), 5):
        overwrite(path, (page - 1) * PAGE, bytes(PAGE))


def wipe_root(path: Path) -> None:
    """The page that all others of the outbox hang from."""
    overwrite(path, (root_of(path, "forebay_outbox") - 1) * PAGE, bytes(PAGE))


def scribble(path: Path) -> None:
    dice = random.Random(11)
    for page in dice.sample(leaves(path), 12):
        overwrite(path, (page - 1) * PAGE + dice.randrange(PAGE - 64), dice.randbytes(64))


def miscount(path: Path) -> None:
    """One bit in the number of a page's rows: SQLite gives rows that are none, with lower rowids, and fails then."""
    for page in random.Random(3).sample(leaves(path), 5):
        at = (page - 1) * PAGE + 3
        overwrite(path, at, bytes([path.read_bytes()[at] ^ 0x02]))


DAMAGES: list[Callable[[Path], None]] = [
    truncate,
    truncate_within_a_page,
    wipe_header,
    flip_bit_of_header,
    wipe_leaves,
    wipe_root,
    scribble,
    miscount,
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__)
async def test_a_damaged_database_is_set_aside_and_salvaged_and_what_is_lost_is_told_exactly(
    tmp_path: Path, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    """Bounds: nothing is ever lost in silence. I2: what comes next has a new epoch. O3: the books balance."""
    node = Node(tmp_path)
    await filled(node)
    damage(node.path)
    before = digest(node.path)
    with caplog.at_level(logging.ERROR):
        async with node as service:
            found = await examined(service)
            await books(service)
            await service.store.write(opened, EVENTS + 1, EVENTS + 1)
            after = await examined(service)
            await books(service)
    assert found.here | found.lost == set(range(FREED + 1, EVENTS + 1))
    assert not found.here & found.lost
    if damage in (wipe_header, flip_bit_of_header, wipe_root):
        assert not found.lost
    assert len(found.here) > EVENTS // 5
    assert len(after.epochs) == 2
    [aside] = node.set_aside()
    assert digest(aside) == before
    [salvaged] = [record for record in caplog.records if record.message == "store.salvaged"]
    assert vars(salvaged)["set_aside"] == str(aside)
    assert len([each for each in vars(salvaged)["lost"] if each.startswith("ledger ")]) == found.ranges
    assert len(found.domain) > EVENTS // 5

    async with node as service:  # it is sound now, and stays as it is
        assert (await examined(service)).here >= found.here
    assert node.set_aside() == [aside]


async def test_a_file_that_was_never_a_database_is_set_aside_too(tmp_path: Path) -> None:
    node = Node(tmp_path)
    node.path.write_text("this is not a database\n" * 1000)
    async with node as service:
        await service.store.write(opened, 1, 1)
    assert [path.read_text()[:8] for path in node.set_aside()] == ["this is "]


async def test_a_damaged_index_loses_nothing(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await filled(node)
    root = root_of(node.path, "sqlite_autoindex_forebay_outbox_1")
    overwrite(node.path, (root - 1) * PAGE, bytes(PAGE))
    async with node as service:
        found = await examined(service)
    assert found.here == set(range(FREED + 1, EVENTS + 1))
    assert not found.lost
    assert len(node.set_aside()) == 1


# --- the log


async def test_transactions_behind_a_flipped_bit_of_the_log_are_not_lost(tmp_path: Path) -> None:
    """No loss: SQLite alone stops at the first wrong checksum and forgets what was confirmed behind it."""
    node = await crashed(Node(tmp_path / "live"), tmp_path / "left", 60)
    frames = read_frames(node.log)
    assert frames is not None
    flipped = frames.frames[len(frames.frames) // 2].offset + 2000
    overwrite(node.log, flipped, bytes([node.log.read_bytes()[flipped] ^ 1]))
    alone = tmp_path / "alone"
    shutil.copytree(node.folder, alone)
    connection = sqlite3.connect(alone / node.path.name)
    kept = connection.execute("select count(*) from forebay_outbox").fetchone()[0]
    connection.close()
    assert kept < 55

    async with node as service:
        found = await examined(service)
        await books(service)
    assert found.here | found.lost == set(range(1, 61))
    assert len(found.lost) <= 1
    assert [path.name.endswith("-wal") for path in node.set_aside()] == [False, True]


async def test_the_torn_end_of_a_log_is_no_damage(tmp_path: Path) -> None:
    """A power cut tears the transaction that nobody was told about; what was confirmed before it is all there."""
    node = await crashed(Node(tmp_path / "live"), tmp_path / "left", 20)
    frames = read_frames(node.log)
    assert frames is not None
    ends = [at for at, frame in enumerate(frames.frames) if frame.pages]
    overwrite(node.log, frames.frames[ends[-2] + 1].offset, b"torn")
    async with node as service:
        assert (await examined(service)).here == set(range(1, 20))
    assert node.set_aside() == []


async def test_a_log_that_was_taken_away_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    node = await crashed(Node(tmp_path / "live"), tmp_path / "left", 20)
    node.log.unlink()
    with caplog.at_level(logging.ERROR):
        async with node as service:
            await service.store.write(opened, 100, 100)
    assert [record.message for record in caplog.records] == ["store.log_missing"]


async def test_a_database_of_which_only_the_log_is_left_gives_back_what_that_holds(tmp_path: Path) -> None:
    node = await crashed(Node(tmp_path / "live"), tmp_path / "left", 20)
    node.path.unlink()
    async with node as service:
        await books(service)
        await service.store.write(opened, 100, 100)
    assert [path.name.endswith("-wal") for path in node.set_aside()] == [True]


async def test_a_database_that_was_closed_in_order_and_opened_again_is_not_suspected(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    node = Node(tmp_path)
    with caplog.at_level(logging.WARNING):
        for number in range(1, 4):
            async with node as service:
                assert marked_open(node.path)
                await service.store.write(opened, number, number)
            assert not marked_open(node.path)
    assert caplog.records == []


# --- who wants all or nothing


async def test_a_consumer_is_not_opened_with_half_of_its_tables(tmp_path: Path) -> None:
    """No double effect: an inbox that forgot, beside effects that stayed, would make them again."""
    node = Node(tmp_path)
    await filled(node)
    truncate(node.path)
    before = digest(node.path)
    listener = door()

    @listener.on(DoorOpened)
    def write_down(tx: UnitOfWork, event: DoorOpened, message: Message) -> None:
        raise NotImplementedError

    with pytest.raises(ConfigurationError, match="restore a backup"):
        async with Node(tmp_path, listener):
            pass
    assert digest(node.path) == before
    assert node.set_aside() == []
    assert node.leftovers() == []


# --- crashes and damage while it runs


async def test_a_salvage_that_was_cut_short_is_finished_by_the_next_opening(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await filled(node)
    wipe_leaves(node.path)
    # The moment after the new database is whole and the old one is moved away.
    reference = tmp_path / "reference"
    reference.mkdir()
    shutil.copy(node.path, reference / node.path.name)
    async with Node(reference) as service:
        whole = await examined(service)
    shutil.copy(reference / node.path.name, tmp_path / "door.db.salvaged")
    node.path.rename(tmp_path / "door.db.damaged-20260101T000000Z")
    async with node as service:
        assert await examined(service) == whole
    assert not (tmp_path / "door.db.salvaged").exists()


async def test_damage_that_a_query_meets_is_noted_and_salvaged_by_the_next_opening(tmp_path: Path) -> None:
    node = Node(tmp_path)
    await filled(node)
    async with node as service:
        sqlite = service._opened
        assert sqlite is not None
        wipe_leaves(node.path)
        with pytest.raises(StoreError):
            await service.store.read(lambda tx: tx.execute("select sum(length(body)) from forebay_outbox"))
        with anyio.fail_after(10):
            assert isinstance(await sqlite.damaged(), DamagedError)
    assert noted_damage(node.path)
    async with node as service:
        found = await examined(service)
    assert found.here | found.lost == set(range(FREED + 1, EVENTS + 1))
    assert not noted_damage(node.path)


async def test_the_check_goes_on_beside_the_service_where_opening_had_no_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node(tmp_path)
    await filled(node)
    wipe_leaves(node.path)
    monkeypatch.setattr("forebay.sqlite.store.examine", lambda _: Examined(whole=False))
    async with node as service:
        sqlite = service._opened
        assert sqlite is not None
        assert node.set_aside() == []
        await sqlite.check()
        with anyio.fail_after(10):
            await sqlite.damaged()
    assert noted_damage(node.path)


def test_a_large_backlog_is_salvaged_within_the_time_that_a_node_has(tmp_path: Path) -> None:
    """The node comes up within 30 s; 100,000 events have a fifth of that here, on a machine that does other things."""
    path = tmp_path / "door.db"
    anyio.run(_large, path, 100_000)
    wipe_leaves(path)
    begun = time.monotonic()
    salvage(path, [ENGINE], "a test", Salvaging(partial=True, mend=mend))
    assert time.monotonic() - begun < 6


async def _large(path: Path, events: int) -> None:
    store = await SqliteStore.open(path, migrations=[ENGINE])

    def write(tx: Transaction, /, first: int, **row: Any) -> None:
        tx.executemany(
            "insert into forebay_outbox (epoch, sequence, kind, type, time, hlc, body, bytes, written_at)"
            " values (1, :sequence, 'k', 't', '2026-01-01T00:00:00Z', 1, :body, :bytes, 1)",
            [{**row, "sequence": sequence} for sequence in range(first, first + 10_000)],
        )

    def origin(tx: Transaction) -> None:
        tx.execute("insert into forebay_origin (lane) values ('ledger')")
        tx.execute(
            "insert into forebay_epoch (origin, epoch, opening, prev, last) values (1, :epoch, 'x', 'none', :last)",
            epoch="0" * 32,
            last=events,
        )

    await store.write(origin)
    for first in range(1, events, 10_000):
        await store.write(write, first, body=bytes(350), bytes=160 + 350 + 2)
    await store.close()


def test_the_check_before_opening_ends_when_its_time_is_over(tmp_path: Path) -> None:
    """Start-up does not depend on the backlog."""
    path = tmp_path / "door.db"
    anyio.run(_large, path, 100_000)
    assert examine(path, check_time=0.005) == Examined(whole=False)
    assert examine(path, check_time=30.0) == Examined()
    wipe_leaves(path)
    assert examine(path, check_time=30.0).damage


def test_a_note_that_cannot_be_written_is_no_failure(tmp_path: Path) -> None:
    note_damage(tmp_path / "nowhere" / "door.db", "a test")
