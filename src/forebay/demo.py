"""What ``forebay up`` runs: a broker, its topology, one process per edge node and one for the core."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import anyio
import httpx
import msgspec
from anyio.abc import TaskGroup

from forebay.backoff import Backoff
from forebay.command import destination_of
from forebay.errors import ConfigurationError, LinkError
from forebay.jetstream.requesting import requests
from forebay.jetstream.topology import Topology, apply_topology, desired
from forebay.jetstream.topology.files import node_template
from forebay.jetstream.topology.registering import register
from forebay.jetstream.topology.spec import Config
from forebay.project import Project, derived_consumers, load_services
from forebay.sqlite.lock import FileLock
from forebay.supervisor import Child
from forebay.testing.nats_server import NatsServer, ServerStartError

HOST = "127.0.0.1"
"""All of it listens on loopback."""

READY_TIMEOUT = 60.0
"""Seconds for all processes to be ready before it says which ones are not; they are given the time all the same."""

STOP_TIMEOUT = 3.5
"""Seconds for the children to stop; a part of the five that Ctrl-C may take."""

LEFTOVERS_TIMEOUT = 2.0
"""Seconds for the children of an ``up`` that was killed to be gone, and their ports with them."""

APPLY_TIMEOUT = 30.0
"""Seconds to apply the topology to a broker of ours, which may be killed meanwhile."""

STORE = "FOREBAY_STORE"
"""The variable that names the core's database to ``forebay run``."""

STABLE = 30.0
"""Seconds after which a broker that died again is started with the first delay."""


class DemoConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What to run; ``command`` is how a child calls forebay, ``store`` a PostgreSQL database for the core services."""

    data: Path
    port: int
    nodes: Sequence[str]
    nats: str | None
    command: Sequence[str]
    store: str | None = None


class Place(NamedTuple):
    """One process of the demo."""

    child: Child
    what: str
    url: str


class Demo:
    """Everything on one machine, on loopback; goes on where it was when it is started again on the same folder."""

    def __init__(self, project: Project, config: DemoConfig, report: Callable[[str], None]) -> None:
        self._project = project
        self._config = config
        self._report = report
        self._places: list[Place] = []
        self._server: NatsServer | None = None
        self._commanded: list[str] = []
        self._template: Config = {}

    async def run(self) -> None:
        """Run until SIGINT or SIGTERM.

        Raises:
            ConfigurationError: the data folder is in use, a port is taken, a service cannot be loaded, or the topology
                is refused.
            LinkError: the broker that was named does not answer.
        """
        topology = desired(self._project.jetstream_config, derived_consumers(self._project))
        loaded = load_services(self._project, self._project.edge)  # its errors once, not for each node's process
        self._commanded = [each.declared.name for each in loaded if each.declared.handlers.takes_commands]
        self._template = node_template(self._project.jetstream_config)
        lock = FileLock(self._config.data / "up", of=self._config.data)
        lock.acquire()
        await self._wait_for_ports()
        with anyio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._start, tasks, topology)
                    async for _ in signals:
                        break
                    self._report("Stopping ...")
                    tasks.cancel_scope.cancel()
            finally:
                with anyio.CancelScope(shield=True):
                    await self._stop()
                    lock.release()

    async def _start(self, tasks: TaskGroup, topology: Topology) -> None:
        url = self._config.nats or await self._start_server(tasks)
        await self._apply(url, topology)
        self._places = list(self._plan(url))
        for place in self._places:
            await tasks.start(place.child.run)
        await self._wait_ready()
        self._report(self._table(url))

    async def _start_server(self, tasks: TaskGroup) -> str:
        server = self._server = NatsServer(self._config.data / "nats", port=self._config.port + 200)
        await server.start()
        tasks.start_soon(self._watch_server, server)
        return server.url

    async def _watch_server(self, server: NatsServer) -> None:
        backoff = Backoff(first=0.2, most=5.0)
        started = anyio.current_time()
        while True:
            await anyio.sleep(0.2)
            if server.running:
                continue
            if anyio.current_time() - started > STABLE:
                backoff.reset()
            delay = backoff.next()
            self._report(f"nats-server died, started again in {delay:.1f} s; its log: {server.log}")
            await anyio.sleep(delay)
            started = anyio.current_time()
            try:
                await server.start()
            except ServerStartError as error:
                self._report(str(error))

    async def _apply(self, url: str, topology: Topology) -> None:
        deadline = anyio.current_time() + (APPLY_TIMEOUT if self._server else 0)
        while True:
            try:
                async with requests(url) as request:
                    await apply_topology(request, topology)
                    for node in self._config.nodes:
                        for service in self._commanded:
                            await register(request, destination_of(node, service), self._template)
            except LinkError:
                if anyio.current_time() > deadline:
                    raise
                await anyio.sleep(0.2)
            else:
                return

    def _plan(self, nats: str) -> Iterator[Place]:
        config, project = self._config, self._project
        for at, node in enumerate(config.nodes if project.edge else ()):
            yield self._place(node, project.edge, config.port + at, nats)
        if project.core:
            yield self._place("core", project.core, config.port + 100, nats)

    def _place(self, node: str, services: Sequence[str], port: int, nats: str) -> Place:
        options = {"node": node, "data": self._config.data, "nats": nats, "host": HOST, "port": port}
        arguments = [argument for name, value in options.items() for argument in (f"--{name}", str(value))]
        command = [*self._config.command, "run", *services, *arguments]
        log = self._config.data / "logs" / f"{node}.log"
        # In the environment, not in the command: a list of processes would show the password.
        environment = {STORE: self._config.store if services is self._project.core else None}
        return Place(Child(node, command, log, self._report, environment), " ".join(services), f"http://{HOST}:{port}")

    async def _wait_for_ports(self) -> None:
        deadline = anyio.current_time() + LEFTOVERS_TIMEOUT
        while True:
            try:
                self._check_ports()
            except ConfigurationError:
                if anyio.current_time() > deadline:
                    raise
                await anyio.sleep(0.1)
            else:
                return

    def _check_ports(self) -> None:
        config = self._config
        ports = [config.port + at for at in range(len(config.nodes))] if self._project.edge else []
        ports += [config.port + 100] if self._project.core else []
        ports += [] if config.nats else [config.port + 200]
        for port in ports:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                try:
                    probe.bind((HOST, port))
                except OSError as error:
                    raise ConfigurationError(
                        f"port {port} is taken ({error.strerror})", hint="stop what uses it, or give another --port"
                    ) from error

    async def _wait_ready(self) -> None:
        waiting = {place.child.name: place for place in self._places}
        told = anyio.current_time() + READY_TIMEOUT
        async with httpx.AsyncClient(timeout=2) as client:
            while waiting:
                for name, place in list(waiting.items()):
                    try:
                        if (await client.get(f"{place.url}/readyz")).status_code == 200:
                            del waiting[name]
                    except httpx.HTTPError:
                        pass
                if waiting and anyio.current_time() > told:
                    told = float("inf")
                    for name, place in waiting.items():
                        self._report(f"{name} is not ready yet: see {place.url}/readyz and {self._config.data}/logs")
                await anyio.sleep(0.05)

    def _table(self, nats: str) -> str:
        rows = [(place.child.name, place.url, place.what) for place in self._places] + [("broker", nats, "JetStream")]
        widths = [max(len(row[at]) for row in rows) for at in range(2)]
        lines = [f"{row[0].ljust(widths[0])}  {row[1].ljust(widths[1])}  {row[2]}" for row in rows]
        example = self._project.tables.get("example", f"curl {self._places[0].url}/readyz" if self._places else "")
        return "\n".join(["", *lines, "", "Try:", "", str(example).strip(), "", "Ctrl-C stops everything."])

    async def _stop(self) -> None:
        async with anyio.create_task_group() as tasks:
            for place in self._places:
                tasks.start_soon(place.child.stop, STOP_TIMEOUT)
        if self._server is not None:
            with anyio.move_on_after(1):
                await self._server.stop()
            self._server.kill()
