"""A node's database that its disk damages, while the node is away with a backlog.

What may be lost is what the node itself says to be lost, and nothing else. It can say nothing of a log that is gone
together with all that knew of its events: there the harness knows what neither the stream nor the rest of the file has.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import anyio

from forebay.sqlite.frames import read_frames
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.faults.databases import integrity, known_epochs, lost_places, outbox_rows, reading, written
from tests.faults.nemeses.nemesis import Nemesis
from tests.faults.observing import WITHIN, Heard
from tests.faults.stream import message_ids
from tests.faults.system import System
from tests.integration.small_disk import fill as fill_up

REQUESTS = 40
"""Requests whose events wait on the node when its disk fails."""

PAGE = 4096
FILLING, WRITTEN = 120, 24_000_000
"""Requests while the disk is full, and the bytes of all their readings: more than the room that the log has already."""

FLIPS = 3
"""Bits that are flipped at once."""

HEADER = 12
"""Bytes of a page that say what it holds and where. A bit in a text that still reads well is nothing that SQLite, which
keeps no checksum of a page, could tell from the truth; the log has checksums."""

Harm = Callable[[Path, random.Random], None]


async def truncate(system: System) -> None:
    """The file ends early: a file system that was repaired, or a copy that was not finished."""
    await _damage(system, _truncated)


async def flip_bits(system: System) -> None:
    """Bits are flipped where a page says what it holds, or in the log before what was confirmed last."""
    await _damage(system, _flipped)


async def zero_pages(system: System) -> None:
    """Pages read as zeros: sectors that were never written, or that the disk has replaced."""
    await _damage(system, _zeroed)


async def lose_log(system: System) -> None:
    """The log is gone: somebody copied the database without it, or tidied up."""
    await _lose(system, ("-wal", "-shm"))


async def wipe(system: System) -> None:
    """The disk is gone, and the node starts anew under its name."""
    await _lose(system, ("", "-wal", "-shm"))


async def _lose(system: System, suffixes: Collection[str]) -> None:
    async with _with_backlog(system) as (process, store):
        for suffix in suffixes:
            store.with_name(store.name + suffix).unlink(missing_ok=True)
        heard = Heard(process)
        copy = system.folder / "without-log.db"
        copy.write_bytes(store.read_bytes() if store.exists() else b"")  # whoever reads itself makes another log
        left = written(copy)
        sent = await message_ids(system.broker.url)
        gone = {number for number, each in system.workload.message_ids(process.node) if each not in left | sent}
        system.lost_with_disk |= gone - system.taken_everywhere()
        system.damaged.add(process.node)
        system.disown(process.node)
        process.start()
        await process.ready()
        assert heard.lines("store.log_missing") or heard.lines("store.file_missing"), "it does not say so"


async def _damage(system: System, harm: Harm) -> None:
    async with _with_backlog(system) as (process, store):
        harm(store, system.dice)
        heard = Heard(process)
        process.start()
        await _until_sound(process, store)
        reported, here, epochs = lost_places(store), set(outbox_rows(store)), known_epochs(store)
        assert not reported & here, f"told as lost, and here: {sorted(reported & here)[:5]}"
        unreadable = "".join(heard.lines("store.salvaged"))
        if "forebay_epoch" in unreadable or "the schema" in unreadable:
            # It says that it cannot read which epochs there were: their events are those that it cannot name.
            named = {each for _, each in system.workload.message_ids(process.node)}
            reported |= {each for each in named if each.partition("-")[0] not in epochs}
        ids = {each: number for number, each in system.workload.message_ids(process.node)}
        system.lost_with_disk |= {ids[each] for each in reported if each in ids}
        system.damaged.add(process.node)
        system.disown(process.node)


@asynccontextmanager
async def _with_backlog(system: System) -> AsyncIterator[tuple[ServiceProcess, Path]]:
    """Kill a node whose last events nobody else has; it has its link again when the body is done.

    It is one of this release: what the previous one says of a damaged disk, or does not, is settled.
    """
    name = system.dice.choice([name for name in system.nodes if not system.runs_previous(name)])
    process, link = system.edges[name], system.links[name]
    link.cut()
    await system.workload.round(REQUESTS, name)
    process.kill()
    yield process, system.database(name, "meter")
    link.heal()


async def _until_sound(process: ServiceProcess, store: Path) -> None:
    """Start the process as often as it ends, as a supervisor does, until it runs on a database that is whole."""

    async def sound() -> bool:
        if not process.running:
            process.start()
        with suppress(AssertionError, sqlite3.Error):
            await process.ready()
            with reading(store) as connection:
                return integrity(connection) == "ok"
        await anyio.sleep(0.1)
        return False

    await until(sound, limit=WITHIN, what=lambda: f"a sound database: {process.log.read_text()[-2000:]}")


def _truncated(store: Path, dice: random.Random) -> None:
    size = store.stat().st_size
    with store.open("r+b") as file:
        file.truncate(dice.choice((0, dice.randrange(size), dice.randrange(size // 2, size))))


def _zeroed(store: Path, dice: random.Random) -> None:
    pages = store.stat().st_size // PAGE
    with store.open("r+b") as file:
        for page in dice.sample(range(pages), max(1, pages // 20)):
            file.seek(page * PAGE)
            file.write(bytes(PAGE))


def _flipped(store: Path, dice: random.Random) -> None:
    pages, log = store.stat().st_size // PAGE, store.with_name(f"{store.name}-wal")
    frames = read_frames(log)
    commits = [at for at, frame in enumerate(frames.frames) if frame.pages] if frames else []
    for _ in range(FLIPS):
        if frames and len(commits) > 3 and dice.random() < 0.5:
            # A bad frame in what was confirmed last looks like a transaction that a power cut tore.
            frame = frames.frames[dice.randrange(commits[-3])]
            _flip(log, frame.offset + dice.randrange(frames.page_size), dice)
        else:
            _flip(store, dice.randrange(pages) * PAGE + dice.randrange(HEADER), dice)


def _flip(path: Path, at: int, dice: random.Random) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 1 << dice.randrange(8)]))


async def fill(system: System) -> None:
    """Another program fills the disk: writes are refused, what is stored goes on draining, and later there is room."""
    name = system.dice.choice(system.nodes)
    process, workload = system.edges[name], system.workload
    filler = system.seen(name, process.data / "filler")
    workload.padding_of |= dict.fromkeys(workload.meters(name), int(WRITTEN / FILLING / workload.mean_size))
    refused = workload.refused[507]
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(workload.round, FILLING, name)
            await anyio.lowlevel.checkpoint()
            await workload.progress(system.dice.randrange(1, FILLING // 4))
            await anyio.to_thread.run_sync(fill_up, filler)
            await until(
                lambda: workload.refused[507] > refused or workload.idle, limit=WITHIN, what="writes are refused"
            )
            assert workload.refused[507] > refused, "a full disk takes everything"
            await system.arrive({number for number, _ in workload.message_ids(name)} - system.lost_with_disk)
            if system.dice.random() < 0.5:
                process.kill()
                process.start()
            filler.unlink()
    finally:
        for meter in workload.meters(name):
            workload.padding_of.pop(meter, None)
    await process.ready()


DISKS = (
    Nemesis("edge-disk-full", fill, quiet=True, small_disks=True),
    Nemesis("edge-truncated", truncate, quiet=True),
    Nemesis("edge-bits-flipped", flip_bits, quiet=True),
    Nemesis("edge-pages-zeroed", zero_pages, quiet=True),
    Nemesis("edge-log-lost", lose_log, quiet=True),
    Nemesis("edge-wiped", wipe, quiet=True, in_soak=False),
)
