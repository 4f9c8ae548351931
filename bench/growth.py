"""What becomes slower as the core's databases grow: events in the archive, epochs in the inbox, bytes of an event."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import sqlite3
from functools import partial
from pathlib import Path

import msgspec

from bench.atomic_batches import pour
from bench.consumption import NODES, RATE, measure, start_ours, until_all
from bench.contest import Benchmark, Goal, Measure, Run
from bench.effects import SqliteEffects, check_once
from bench.failures import EffectsError
from bench.fleet import Fleet, fill
from bench.nodes import EPOCH, table_bytes
from bench.program import ENVIRONMENT, ROOT
from bench.resident import idle
from bench.services.metering import Sized
from core.archive.places import STEP, catch_up, tail
from forebay.jetstream.publishing import Outgoing
from forebay.sqlite import SqliteTransaction
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess

MOST = 10_000_000
"""Events of the largest archive unless ``--most`` says otherwise."""
SEED = 1_024
"""Events that really come into an archive before it is filled; a multiple of the nodes."""
TABLES = ("archived", "place", "listed")
"""What keeps events in the archive's database, their indexes included."""
_ROUNDS = 100
"""Times ``SEED`` events that are added to an archive in one transaction."""
EPOCHS = (1, 100, 10_000)
SIZES = (10, 100, 1_000, 10_000)

EVENT = Measure(name="archive", unit="bytes an event", more_is_better=False)
SIZE = Measure(name="database in all", unit="MiB", more_is_better=False)
BYTES = Measure(name="bodies", unit="MB/s")

_ARCHIVED = """
The archive of this project, which keeps every body with its indexes and an inbox beside them, consumes the next
events of 64 nodes; columns differ in how many it has when the first of them comes. The first thousand came as all do;
up to the size of the column its rows were multiplied by SQL, with the numbers that would have followed, and the
inbox's watermarks were set to them. What that wrote is on disk, and what the process does when it starts is done, the
check of the file included; it is halted while the next events come into the stream, and then goes on. Measured from
the first of them to the last.
"""
_EPOCHS = """
One node sends the same number of events in more and more epochs, as if its store had been opened anew so often; they
take effect in SQLite, by a handler for single events. Each epoch is a row of the inbox for ever.
"""
_SIZES = """
Events with bodies of so many bytes take effect in SQLite, by a handler for single events that keeps none of them. The
headers of a message, about 500 bytes, come on top.
"""


async def archived(before: int, count: int, folder: Path) -> dict[str, float]:
    """Let ``count`` events come into an archive that has ``before``, at least about 1,000."""
    rounds = max(1, before // SEED)
    fleet = Fleet(NODES)
    filled = folder.parent / f"archive-{rounds}"
    if not filled.is_dir():  # once for all rounds
        seed = fleet.make(SEED)
        await _consume(seed, 0, SEED, folder)
        with contextlib.closing(sqlite3.connect(_path(folder))) as database:
            _multiply(database, rounds)
        (folder / "data").rename(filled)
        shutil.rmtree(folder / "nats")
        fleet = Fleet(NODES)
    shutil.copytree(filled, folder / "data")
    await asyncio.to_thread(os.sync)  # else the first checkpoint waits until the whole copy is on disk
    fleet.skip(rounds * SEED)
    rate = await _consume(fleet.make(count), rounds * SEED, count, folder)
    path = _path(folder)
    check_once(_numbers(path, rounds * SEED), range(rounds * SEED, rounds * SEED + count))
    return {
        RATE.name: rate,
        EVENT.name: sum(table_bytes(path, each) for each in TABLES) / (rounds * SEED + count),
        SIZE.name: path.stat().st_size / 2**20,
    }


async def _consume(messages: list[Outgoing], before: int, count: int, folder: Path) -> float:
    """Let the archive consume messages; return how many a second."""
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    core = ServiceProcess(
        ["core.archive"],
        node="core",
        project=ROOT,
        data=folder / "data",
        nats=server.url,
        options=["--log-level", "warning"],
        environment=ENVIRONMENT,
    )
    effects = SqliteEffects(_path(folder), "archived", before)

    def said() -> str:
        return core.log.read_text(errors="replace")[-1000:]

    try:
        await fill(server.url, ["archive"], [], service="*")
        core.start()
        await core.ready()
        await idle(core.pid)
        core.pause()
        await pour(server.url, messages)
        core.resume()
        took = await until_all(effects, count, said, core.pid, "archive")
        core.stop()
        return took.rate
    finally:
        effects.close()
        core.kill()
        server.kill()


def _multiply(database: sqlite3.Connection, rounds: int) -> None:
    """Give an archive of ``SEED`` events ``rounds`` times as many, and its inbox the watermarks of that."""
    columns = [row[1] for row in database.execute("pragma table_info(archived)") if row[1] != "id"]
    values = {
        "sequence": f"sequence + :round * {SEED // NODES}",
        "body": f"cast(json_set(cast(body as text), '$.number', json_extract(body, '$.number') + :round * {SEED})"
        " as blob)",
    }
    database.execute("pragma synchronous=off")
    database.execute("pragma cache_size=-64000")
    database.execute("create temp table seed as select * from archived order by id")
    insert = (
        f"insert into archived ({', '.join(columns)})"
        f" select {', '.join(values.get(column, column) for column in columns)} from seed"
    )
    for number in range(1, rounds):
        database.execute(insert, {"round": number})
        if not number % _ROUNDS:  # the log of one transaction would be as large as the archive
            _index(database)
    database.execute("update forebay_inbox set watermark = :last", {"last": rounds * SEED // NODES})
    _index(database)
    database.execute("drop table seed")
    database.execute("pragma wal_checkpoint(truncate)")


def _index(database: sqlite3.Connection) -> None:
    """Let the archive's own indexes follow, as they do, and commit."""
    database.row_factory = sqlite3.Row
    tx = SqliteTransaction(database, "")
    while tail(tx) >= STEP:
        catch_up(tx)
    database.commit()


def _path(folder: Path) -> Path:
    return folder / "data" / "core" / "archive.db"


def _numbers(path: Path, before: int) -> list[int]:
    """Return the numbers of the events behind the first ``before``, which have to be there too."""
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as database:
        (there,) = database.execute("select count(*) from archived where id <= ?", [before]).fetchone()
        if there != before:
            raise EffectsError(f"{there} of the {before} events are left that were archived before")
        bodies = database.execute("select body from archived where id > ?", [before])
        return [int(msgspec.json.decode(body)["number"]) for (body,) in bodies]


def _in_epochs(epochs: int, count: int) -> list[Outgoing]:
    return Fleet(1, of_epoch=-(-count // epochs)).make(count)


def _of_size(size: int, count: int) -> list[Outgoing]:
    return Fleet(NODES, Sized.spec, lambda number: _sized(number, size)).make(count)


def _sized(number: int, size: int) -> bytes:
    bare = b'{"n":%d}' % number
    room = size - len(bare) - len(b',"pad":""')
    return b'{"n":%d,"pad":"%b"}' % (number, b"x" * room) if room > 0 else bare


async def in_epochs(epochs: int, count: int, folder: Path) -> dict[str, float]:
    """Let one node send ``count`` events in so many epochs."""
    found = await measure(partial(start_ours, "ledger"), count, False, folder, make=partial(_in_epochs, epochs))
    size = table_bytes(folder / "data" / "core" / "ledger.db", "forebay_inbox")
    return {RATE.name: found[RATE.name], EPOCH.name: size / epochs}


async def of_size(size: int, count: int, folder: Path) -> dict[str, float]:
    """Let ``count`` events of so many bytes take effect."""
    found = await measure(partial(start_ours, "ledger"), count, False, folder, make=partial(_of_size, size))
    return {RATE.name: found[RATE.name], BYTES.name: found[RATE.name] * max(size, len(_sized(count, size))) / 1e6}


def archive(quick: bool, most: int = MOST) -> Benchmark:
    """Return the benchmark of the archive; ``most`` is the number of events of the largest."""
    count = 1_000 if quick else 80_000
    sizes = [1_000, 3_000] if quick else [10**power for power in range(3, 9) if 10**power <= most]
    columns: dict[str, Run] = {f"{size:,} archived": partial(archived, size, count) for size in sizes}
    first, *others = columns
    return Benchmark(
        name="archive",
        title="Core: events in the archive",
        told=" ".join(_ARCHIVED.split()),
        measures=(RATE, EVENT, SIZE),
        columns=columns,
        goals=tuple(_flat(column, first) for column in others),
    )


def epochs(quick: bool) -> Benchmark:
    """Return the benchmark of epochs."""
    count = 2_000 if quick else 80_000
    columns: dict[str, Run] = {
        f"{many:,} {'epoch' if many == 1 else 'epochs'}": partial(in_epochs, many, count)
        for many in ((1, 50) if quick else EPOCHS)
    }
    first, *others = columns
    return Benchmark(
        name="epochs",
        title="Core: epochs in the inbox",
        told=" ".join(_EPOCHS.split()),
        measures=(RATE, EPOCH),
        columns=columns,
        goals=(
            *(_flat(column, first) for column in others),
            Goal(name="inbox, constant per epoch", column=others[-1], measure=EPOCH.name, value=300),
        ),
    )


def sizes(quick: bool) -> Benchmark:
    """Return the benchmark of the bytes of an event."""
    counts = {10: 80_000, 100: 80_000, 1_000: 50_000, 10_000: 12_000}
    columns: dict[str, Run] = {
        f"{size:,} bytes": partial(of_size, size, 300 if quick else counts[size]) for size in SIZES
    }
    return Benchmark(
        name="sizes",
        title="Core: bytes of an event",
        told=" ".join(_SIZES.split()),
        measures=(RATE, BYTES),
        columns=columns,
    )


def _flat(column: str, first: str) -> Goal:
    return Goal(
        name="growth: flat (\N{PLUS-MINUS SIGN}10 %)", column=column, measure=RATE.name, value=0.9, beside=first
    )
