"""What an edge process takes: memory, time to start, processor while idle, disk; beside what one would use instead."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

import httpx

from bench.contest import Benchmark, Goal, Measure
from bench.draining import finished
from bench.effects import check_once
from bench.environments import FASTSTREAM_LITESTAR, FOLDER, python_with
from bench.fleet import Fleet, broker, fill
from bench.program import ROOT, Program
from bench.resident import folder_mib, memory_mib, running_seconds
from bench.stream_reading import stored
from forebay.testing.nats_server import NatsServer, find_binary, free_port
from forebay.testing.waiting import until

SERVICES = ("edge.gateway", "edge.till", "edge.stock", "edge.coldchain")
NODE = "store-330"
SALES = 20
SETTLE = 3.0
"""Seconds for what the sales left to do."""

MEMORY = Measure(name="memory", unit="MiB", more_is_better=False)
START = Measure(name="cold start to ready", unit="s", more_is_better=False)
IDLE = Measure(name="processor while idle", unit="% of a core", more_is_better=False)
INSTALLED = Measure(name="installed", unit="MiB", more_is_better=False)
IMAGE = Measure(name="image, on top of Python's", unit="MiB", more_is_better=False)

_TOLD = """
gateway, till, stock and coldchain of this project in one `forebay run`, connected to a broker; resident memory and
processor time after the start and 20 sales, over a time in which nothing is asked of it. Installed is the environment
that `pip install forebay[edge]` makes, compiled as pip does it, without Python itself; the image is the one of `make
image`, where that was made before, without its base. FastStream + Litestar: one Litestar application with one route
that commits to SQLite and then publishes over FastStream's broker, as their documentation has it; it has no outbox,
one service, and none of the rest. The leaf is a nats-server with JetStream that is connected to the same broker, 20
messages in its stream; it runs no service: what would take the writes comes on top. The caches of the file system are
warm.
"""


async def edge(idle: float, folder: Path) -> dict[str, float]:
    """Measure an edge process."""
    python = Path(await _installed(folder))
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    port = free_port()
    command = [str(python), "-m", "forebay", "run", *SERVICES, "--node", NODE, "--data", str(folder / "data")]
    command += ["--nats", server.url, "--port", str(port), "--log-level", "warning"]
    try:
        async with broker(server.url, ["sales"], service="till"):
            pass
        # Nothing of the environment with the development tools is on its path.
        async with _serving(command, port, "/readyz", {"PYTHONPATH": ""}, folder) as (process, started):
            answered = await _sell(f"http://127.0.0.1:{port}/till/sales")
            found = await _resting(process.pid, idle)
            await asyncio.to_thread(process.stop)
        check_once(_sold(folder / "data" / "nodes" / NODE / "till.db"), answered)
    finally:
        server.kill()
    image = await asyncio.to_thread(image_mib, f"forebay-edge:{version('forebay')}")
    return {
        **found,
        START.name: started,
        INSTALLED.name: folder_mib(_packages("edge")),
        **({IMAGE.name: image} if image else {}),
    }


async def faststream(idle: float, folder: Path) -> dict[str, float]:
    """Measure one route of Litestar's that publishes over FastStream."""
    python = await python_with(FASTSTREAM_LITESTAR)
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    port = free_port()
    command = [python, "-m", "bench.peers.edge_faststream", str(port), server.url, str(folder / "sales.db")]
    try:
        async with broker(server.url, ["sales"], service="till"):
            pass
        async with _serving(command, port, "/readyz", {}, folder) as (process, started):
            answered = await _sell(f"http://127.0.0.1:{port}/till/sales")
            found = await _resting(process.pid, idle)
        check_once(await stored(server.url), answered)
    finally:
        server.kill()
    return {**found, START.name: started, INSTALLED.name: folder_mib(_packages(FASTSTREAM_LITESTAR[0]))}


async def leaf(idle: float, folder: Path) -> dict[str, float]:
    """Measure a nats-server as a leaf."""
    port = free_port()
    hub = NatsServer(folder / "hub", sync_interval="2m", extra=f"leafnodes {{ listen: 127.0.0.1:{port} }}")
    extra = f'leafnodes {{ remotes: [{{ url: "nats-leaf://127.0.0.1:{port}" }}] }}'
    server = NatsServer(folder / "leaf", sync_interval="2m", extra=extra)
    try:
        await hub.start()
        began = time.perf_counter()
        await server.start()
        started = time.perf_counter() - began
        await fill(server.url, ["ledger"], Fleet(1).make(SALES))
        check_once(await stored(server.url), range(SALES))
        found = await _resting(server.pid or 0, idle)
    finally:
        server.kill()
        hub.kill()
    return {**found, START.name: started, INSTALLED.name: find_binary().stat().st_blocks * 512 / 2**20}


@asynccontextmanager
async def _serving(
    command: Sequence[str], port: int, ready: str, environment: dict[str, str], folder: Path
) -> AsyncIterator[tuple[Program, float]]:
    """Run a process; yields it, and the seconds from its start until it said that it was ready."""
    began = time.perf_counter()
    process = Program(command, folder / "edge.log", environment, folder=ROOT)
    try:
        await _ready(process, f"http://127.0.0.1:{port}{ready}")
        yield process, time.perf_counter() - began
    finally:
        process.kill()


async def _resting(pid: int, seconds: float) -> dict[str, float]:
    """Return memory and processor time of a process while nothing is asked of it."""
    await asyncio.sleep(min(SETTLE, seconds))
    used, began = running_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (running_seconds(pid) - used) / (time.perf_counter() - began) * 100
    return {MEMORY.name: memory_mib(pid), IDLE.name: share}


async def _ready(process: Program, url: str) -> None:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:

        async def says_so() -> bool:
            process.check()
            try:
                return (await http.get(url)).status_code == 200
            except httpx.HTTPError:
                return False

        await until(says_so, limit=60, what=process.tail, every=0.01)


async def _sell(url: str) -> list[int]:
    """Ring up sales; return their numbers."""
    async with httpx.AsyncClient(timeout=30, trust_env=False) as http:
        for number in range(SALES):
            sale = {
                "basket": str(number),
                "household": 1,
                "at": "2026-03-01T12:00:00Z",
                "lines": [{"product": 1, "quantity": 1, "cents": 50}],
            }
            (await http.post(url, json=sale)).raise_for_status()
    return list(range(SALES))


_made: list[str] = []


async def _installed(folder: Path) -> str:
    """Return the Python of an environment with this project's package, made anew once in a run of the benchmarks."""
    if not _made:
        python = await python_with(("edge", (f"{ROOT}[edge]",)), fresh=("forebay",))
        services = [str(ROOT / folder) for folder in ("edge", "contracts")]
        await finished(Program([python, "-m", "compileall", "-q", *services], folder / "compile.log"))
        _made.append(python)
    return _made[0]


def _packages(environment: str) -> Path:
    return next((FOLDER / environment / "lib").glob("python*")) / "site-packages"


@cache
def image_mib(image: str) -> float | None:
    """Return what an image that buildah has takes on top of its base, in MiB; None where it is not there."""
    layers = [sys.executable, str(ROOT / "deploy" / "layers.py"), f"localhost/{image}"]
    for buildah in ("buildah", "buildah --storage-driver vfs"):
        if shutil.which("buildah"):
            done = subprocess.run(layers, env={**os.environ, "BUILDAH": buildah}, capture_output=True, check=False)  # noqa: S603
            if found := re.search(rb"([\d.]+) MiB on top of the first", done.stdout):
                return float(found[1])
    return None


def _sold(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [int(row[0]) for row in database.execute("select key from forebay_outbox")]


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    idle = 0.5 if quick else 12.0
    ours, name = "forebay, four services", "edge process: gateway, till, stock, coldchain in one"
    return Benchmark(
        name="footprint",
        title="Edge: what a process takes",
        told=" ".join(_TOLD.split()),
        measures=(MEMORY, START, IDLE, INSTALLED, IMAGE),
        columns={
            ours: partial(edge, idle),
            "FastStream + Litestar": partial(faststream, idle),
            "nats-server, leaf": partial(leaf, idle),
        },
        goals=(
            Goal(name=name, column=ours, measure=MEMORY.name, value=60),
            Goal(name=name, column=ours, measure=START.name, value=1.2),
            Goal(name=name, column=ours, measure=IDLE.name, value=0.5),
        ),
    )
