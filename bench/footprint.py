"""What an edge process takes: memory, time to start, processor while idle, disk; beside a nats-server as a leaf."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from functools import partial
from pathlib import Path

import httpx

from bench.contest import Benchmark, Measure
from bench.draining import stored
from bench.effects import check_once
from bench.environments import FOLDER, python_with
from bench.fleet import Fleet, broker, publish
from bench.program import ROOT, Program
from bench.resident import folder_mib, memory_mib, processor_seconds
from forebay.jetstream.publishing import Publisher
from forebay.testing.nats_server import NatsServer, find_binary, free_port
from forebay.testing.waiting import until

SERVICES = ("edge.gateway", "edge.till", "edge.stock", "edge.coldchain")
NODE = "store-330"
SALES = 20

MEMORY = Measure(name="memory", unit="MiB", more_is_better=False)
START = Measure(name="cold start to ready", unit="s", more_is_better=False)
IDLE = Measure(name="processor while idle", unit="% of a core", more_is_better=False)
INSTALLED = Measure(name="installed", unit="MiB", more_is_better=False)

_TOLD = """
gateway, till, stock and coldchain of this project in one `forebay run`, connected to a broker; resident memory and
processor time after the start and 20 sales, over a time in which nothing is asked of it. Installed is the environment
that `pip install forebay[edge]` makes, without Python itself. The leaf is a nats-server with JetStream that is
connected to the same broker, 20 messages in its stream; it runs no service: what would take the writes comes on top.
"""


async def edge(idle: float, folder: Path) -> dict[str, float]:
    """Measure an edge process."""
    python = Path(await python_with(("edge", (f"{ROOT}[edge]",)), fresh=("forebay",)))
    packages = next((FOLDER / "edge" / "lib").glob("python*")) / "site-packages"
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    process: Program | None = None
    try:
        async with broker(server.url, ["sales"], service="till"):
            pass
        port = free_port()
        command = [str(python), "-m", "forebay", "run", *SERVICES, "--node", NODE, "--data", str(folder / "data")]
        command += ["--nats", server.url, "--port", str(port), "--log-level", "warning"]
        began = time.perf_counter()
        # Nothing of the environment with the development tools is on its path.
        process = Program(command, folder / "edge.log", {"PYTHONPATH": ""}, folder=ROOT)
        url = f"http://127.0.0.1:{port}"
        await _ready(process, url)
        started = time.perf_counter() - began
        answered = await _sell(url)
        used = await _idle(process.pid, idle)
        memory = memory_mib(process.pid)
        await asyncio.to_thread(process.stop)
        check_once(_sold(folder / "data" / "nodes" / NODE / "till.db"), answered)
    finally:
        if process is not None:
            process.kill()
        server.kill()
    return {MEMORY.name: memory, START.name: started, IDLE.name: used, INSTALLED.name: folder_mib(packages)}


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
        async with (
            broker(server.url, ["ledger"]) as connection,
            Publisher(connection, "EVENTS") as publisher,
        ):
            await publish(publisher, Fleet(1).make(SALES))
        check_once(await stored(server.url), range(SALES))
        pid = server.pid or 0
        used = await _idle(pid, idle)
        memory = memory_mib(pid)
    finally:
        server.kill()
        hub.kill()
    installed = find_binary().stat().st_blocks * 512 / 2**20
    return {MEMORY.name: memory, START.name: started, IDLE.name: used, INSTALLED.name: installed}


async def _ready(process: Program, url: str) -> None:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:

        async def says_so() -> bool:
            process.check()
            try:
                return (await http.get(f"{url}/readyz")).status_code == 200
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
            (await http.post(f"{url}/till/sales", json=sale)).raise_for_status()
    return list(range(SALES))


async def _idle(pid: int, seconds: float) -> float:
    """Return the processor time of a process, in per cent of a core, while nothing is asked of it."""
    await asyncio.sleep(min(5.0, seconds))  # what the sales left to do
    used, began = processor_seconds(pid), time.perf_counter()
    await asyncio.sleep(seconds)
    return (processor_seconds(pid) - used) / (time.perf_counter() - began) * 100


def _sold(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as database:
        return [int(row[0]) for row in database.execute("select key from forebay_outbox")]


def benchmark(quick: bool) -> Benchmark:
    """Return the benchmark; ``quick`` only shows that it works."""
    idle = 0.5 if quick else 60.0
    return Benchmark(
        name="footprint",
        title="Edge: what a process takes",
        told=" ".join(_TOLD.split()),
        measures=(MEMORY, START, IDLE, INSTALLED),
        columns={"forebay, four services": partial(edge, idle), "nats-server, leaf": partial(leaf, idle)},
    )
