"""An edge node with a backlog: a store that was filled while the link was away, and the process that sends it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec

from bench.failures import LeftOutError
from bench.program import ENVIRONMENT
from bench.services.meter.app import meter
from bench.services.metering import Metered, Plain, Sampled, frames_are_there
from forebay import UnitOfWork
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.running import RunningService
from forebay.testing.service_process import ServiceProcess

NODE = "house-1"
UNIT = 500
"""Events that are written in one unit of work."""
MODULE = "bench.services.meter"


class Kind(msgspec.Struct, frozen=True):
    """What a backlog is of: single messages, or a lane whose events go in frames."""

    event: type[Metered] | type[Sampled] | type[Plain]

    @property
    def stored_subject(self) -> str:
        """Where the stream has the node's events."""
        return f"evt.*.{NODE}.meter.{self.event.spec.kind}"

    def check(self) -> None:
        """Make sure that this forebay can send it.

        Raises:
            LeftOutError: it cannot.
        """
        if self.event is not Metered and not frames_are_there():
            raise LeftOutError("this forebay has no frames")


SINGLE, FRAMED, UNPACKED = Kind(Metered), Kind(Sampled), Kind(Plain)


async def write_backlog(kind: Kind, count: int, folder: Path) -> None:
    """Write so many events into the store of a node that has no link."""
    kind.check()
    path = folder / "data" / "nodes" / NODE / "meter.db"
    path.parent.mkdir(parents=True)
    away = Connection(ConnectionConfig(servers=["nats://127.0.0.1:1"], name=NODE, inbox_prefix=f"_INBOX_{NODE}"))
    service = RunningService(meter, NODE, path, away, {})

    def write(tx: UnitOfWork, numbers: range) -> None:
        for number in numbers:
            tx.emit(kind.event(meter=f"meter-{number % 7}", number=number, cents=cents(number)))

    await service.open(None, grace=3600.0)
    try:
        for first in range(0, count, UNIT):
            await service.store.write(write, range(first, min(first + UNIT, count)))
    finally:
        await service.close()


@asynccontextmanager
async def relaying(nats: str, folder: Path) -> AsyncIterator[ServiceProcess]:
    """Run the node's process as a user would, connected to a broker or to a link that leads there."""
    project = folder / "project"
    project.mkdir()
    (project / "forebay.toml").write_text(f'[services]\nedge = ["{MODULE}"]\ncore = []\n')
    process = ServiceProcess(
        [MODULE],
        node=NODE,
        project=project,
        data=folder / "data",
        nats=nats,
        options=["--log-level", "warning"],
        environment=ENVIRONMENT,
    )
    process.start()
    try:
        yield process
    finally:
        process.kill()


def cents(number: int) -> int:
    """Return a value of five digits that looks like chance: what repeats itself would pack too well."""
    return (number * 2_654_435_761 >> 7) % 100_000
