"""How many events a second take effect in the core, exactly once, everything durable."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from bench.contest import Benchmark, Goal, Measure, Run
from bench.effects import Effects, PostgresEffects, SqliteEffects, check_once
from bench.environments import FASTSTREAM, NATS_PY, python_with
from bench.failures import LeftOutError
from bench.fleet import Fleet, Pack, fill
from bench.program import ENVIRONMENT, Program
from bench.services.metering import Sampled, frames_are_there
from bench.watching import Took, watch
from forebay.errors import ConfigurationError
from forebay.jetstream.publishing import Outgoing
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from forebay.testing.postgres_server import PostgresServer

NODES = 64
LOOK = 0.005
"""Seconds between two looks at a consumer's database."""

FRAME = 1_000
"""Events of a frame, as a node sends a backlog; a trickle goes in smaller ones."""

RATE = Measure(name="events", unit="events/s")
PROCESSOR = Measure(name="processor", unit="\N{MICRO SIGN}s an event", more_is_better=False)

_TOLD = """
A stream holds the events of 64 nodes; then the consumer starts. Measured from outside of its process, in its
database: from the first look that finds effects, without those, to the first that finds all. Every column has one
process, one row for the effect, and has it on disk before it acknowledges: SQLite with WAL and `synchronous=FULL`,
PostgreSQL with its defaults. The peers keep a row for each message id in the transaction of its effect, and fetch 100
messages at a time. "In frames" has 1,000 events of a node in a message unless it says otherwise, packed with zstd
where that is installed. The processor time is that of the consumer's process, without PostgreSQL's and the broker's.
"""


class Stoppable(Protocol):
    """A process that is measured."""

    @property
    def pid(self) -> int | None:
        """Its process id."""

    def kill(self) -> None:
        """End it at once."""


Start = Callable[[str, Path, str], Awaitable[tuple[Stoppable, Effects, Callable[[], str]]]]
"""Starts a consumer: broker's URL, folder, PostgreSQL's URL or nothing; returns it, its effects and how it does."""

Make = Callable[[int], list[Outgoing]]
"""Makes the messages of so many events."""


def singles(count: int) -> list[Outgoing]:
    """Make messages of one event each."""
    return Fleet(NODES).make(count)


def in_frames(count: int, of: int = FRAME) -> list[Outgoing]:
    """Make frames of so many events, packed as a node packs them.

    Raises:
        LeftOutError: this forebay cannot read frames.
    """
    if not frames_are_there():
        raise LeftOutError("this forebay has no frames")
    return Fleet(NODES, Sampled.spec).frames(count, of, packing())


def packing() -> Pack | None:
    """Return what packs a frame; None where zstd is not installed: then frames go as they are."""
    try:
        frame: Any = import_module("forebay.packing")
    except ImportError:
        return None
    pack: Pack = frame.pack
    return pack if frame.can_pack() else None


async def measure(start: Start, count: int, postgres: bool, folder: Path, *, make: Make = singles) -> dict[str, float]:
    """Publish ``count`` events, start the consumer, return events a second and its processor time.

    Args:
        start: the consumer.
        count: events.
        postgres: whether the consumer has a database there.
        folder: an empty one.
        make: makes the messages; else 64 nodes send one an event.
    """
    messages = make(count)
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    try:
        async with _database(postgres) as database:
            await fill(server.url, ["ledger", "ledger-batch"], messages)
            process, effects, said = await start(server.url, folder, database.create_database() if database else "")
            try:
                took = await until_all(effects, count, said, process.pid)
            finally:
                process.kill()
            check_once(effects.numbers(), range(count))
            effects.close()
    finally:
        server.kill()
    return {RATE.name: took.rate, PROCESSOR.name: took.processor / took.events * 1e6}


async def until_all(
    effects: Effects, count: int, said: Callable[[], str], pid: int | None, process: str = "consumer"
) -> Took:
    """Wait for all effects of a process; return what was seen."""

    async def look() -> int:
        return effects.count(count)  # a moment, and nothing else is to be done here

    return await watch(look, count, every=LOOK, said=said, pid=pid, process=process)


async def start_ours(name: str, nats: str, folder: Path, url: str) -> tuple[Stoppable, Effects, Callable[[], str]]:
    """Start ``forebay run`` with a consumer, as a user would."""
    module = f"bench.services.{name}"
    project = folder / "project"
    project.mkdir()
    (project / "forebay.toml").write_text(f'[services]\nedge = []\ncore = ["{module}"]\n')
    environment = {**ENVIRONMENT, **({"FOREBAY_STORE": url} if url else {})}
    process = ServiceProcess(
        [module],
        node="core",
        project=project,
        data=folder / "data",
        nats=nats,
        options=["--log-level", "warning"],
        environment=environment,
    )
    process.start()
    service = name.replace("_", "-")
    effects: Effects = (
        PostgresEffects(url, service) if url else SqliteEffects(folder / "data" / "core" / f"{service}.db")
    )
    return process, effects, lambda: process.log.read_text(errors="replace")[-1000:]


async def start_peer(
    module: str, environment: tuple[str, tuple[str, ...]], nats: str, folder: Path, url: str
) -> tuple[Stoppable, Effects, Callable[[], str]]:
    """Start a consumer that stands on an inbox table, in an environment of its own."""
    python = await python_with(environment)
    place = folder / "books.db"
    program = Program([python, "-m", module, nats, url or str(place)], folder / "consumer.log")
    effects: Effects = PostgresEffects(url) if url else SqliteEffects(place)

    def said() -> str:
        program.check()
        return program.tail()

    return program, effects, said


@asynccontextmanager
async def _database(postgres: bool) -> AsyncIterator[PostgresServer | None]:
    """Yield a PostgreSQL server, or None."""
    if not postgres:
        yield None
        return
    server = postgres_server()
    server.start()  # from this thread: the server is tied to the thread that made it
    try:
        yield server
    finally:
        server.close()


def postgres_server() -> PostgresServer:
    """Return a PostgreSQL server that is not started.

    Raises:
        LeftOutError: it is not installed.
    """
    try:
        from forebay.testing.postgres_server import PostgresServer  # only where psycopg is installed

        # Not below the run's folder: the server runs as another user, who has to be able to reach it.
        return PostgresServer(settings={"shared_buffers": "128MB"})
    except (ImportError, ConfigurationError) as error:
        raise LeftOutError(str(error)) from error


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    ours, peers = (2_000, 100) if quick else (120_000, 8_000)
    framed = 70_000 if quick else 400_000
    ours_postgres, peers_postgres = (1_000, 100) if quick else (40_000, 8_000)
    single, batch = partial(start_ours, "ledger"), partial(start_ours, "ledger_batch")
    plain = partial(start_peer, "bench.peers.inbox_nats_py", NATS_PY)
    faststream = partial(start_peer, "bench.peers.inbox_faststream", FASTSTREAM)
    columns: dict[str, Run] = {
        "forebay": partial(measure, single, ours, False),
        "forebay, batch handler": partial(measure, batch, ours, False),
        "forebay, in frames": partial(measure, single, framed, False, make=in_frames),
        "forebay, in frames, batch handler": partial(measure, batch, framed, False, make=in_frames),
        "forebay, in frames of 100, batch handler": partial(
            measure, batch, framed, False, make=partial(in_frames, of=100)
        ),
        "nats-py": partial(measure, plain, peers, False),
        "FastStream": partial(measure, faststream, peers, False),
        "forebay, PostgreSQL": partial(measure, single, ours_postgres, True),
        "forebay, batch handler, PostgreSQL": partial(measure, batch, ours_postgres, True),
        "nats-py, PostgreSQL": partial(measure, plain, peers_postgres, True),
        "FastStream, PostgreSQL": partial(measure, faststream, peers_postgres, True),
    }
    sqlite = "exactly-once consumption, single messages, SQLite"
    frames = "exactly-once consumption, frames"
    postgres = "exactly-once consumption, single messages, PostgreSQL"
    goals = (
        Goal(name=sqlite, column="forebay", measure=RATE.name, value=10, beside="nats-py"),
        Goal(name=sqlite, column="forebay", measure=RATE.name, value=5, beside="FastStream"),
        Goal(name=sqlite, column="forebay", measure=RATE.name, value=40_000, hint=True),
        Goal(name=frames, column="forebay, in frames", measure=RATE.name, value=5, beside="forebay"),
        Goal(
            name=frames,
            column="forebay, in frames, batch handler",
            measure=RATE.name,
            value=5,
            beside="forebay, batch handler",
        ),
        Goal(name=frames, column="forebay, in frames", measure=RATE.name, value=250_000, hint=True),
        Goal(name=frames, column="forebay, in frames, batch handler", measure=RATE.name, value=250_000, hint=True),
        Goal(name=postgres, column="forebay, PostgreSQL", measure=RATE.name, value=5, beside="nats-py, PostgreSQL"),
        Goal(name=postgres, column="forebay, PostgreSQL", measure=RATE.name, value=5, beside="FastStream, PostgreSQL"),
    )
    return Benchmark(
        name="consumption",
        title="Core: events that take effect exactly once",
        told=" ".join(_TOLD.split()),
        measures=(RATE, PROCESSOR),
        columns=columns,
        goals=goals,
    )
