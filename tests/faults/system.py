"""The whole of forebay as real processes: a broker, edge nodes and a core, with a faulty link to each."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import struct
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Sequence, Set
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Literal

import anyio
import httpx

from forebay.jetstream.requesting import requests
from forebay.testing.link import Link
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until
from tests.faults.databases import Follower, consumer_state, outbox_rows, outbox_state
from tests.faults.history import FreedEarly, History
from tests.faults.services.readings import NOTICE_EVERY
from tests.faults.small_disk import SmallDisk
from tests.faults.users import Users
from tests.faults.workload import Workload

ROOT = Path(__file__).parents[2]
SERVICES = "tests.faults.services"
MOVED_CLOCK = Path(__file__).parent / "moved_clock"
"""On PYTHONPATH it lets a process live in another time."""

PREVIOUS = Path(__file__).parent / "release-0.1.0" / "forebay.tar.xz"
"""The package of the nodes' previous release."""

PREVIOUS_OF_CORE = Path(__file__).parent / "release-schema-0011" / "forebay.tar.xz"
"""The same for the core, whose services need what the first one had not."""

CORE = "core"
EMITTING = ("audit",)
"""Core services with an outbox of their own."""

ACK_WAIT = 2.0
"""Seconds until the broker delivers again what was not acknowledged; 30 in production, which no test wants to wait."""

FILTERS = {"books": ("meter", "audit"), "audit": ("meter",), "late": ("meter",)}

DRAIN_TIMEOUT = 150.0
"""Seconds until everything that was acknowledged has taken effect everywhere and is confirmed, after the last fault."""


Begins = Literal["", "nodes", "core"]
"""Who begins with the previous release."""


class System:
    """Processes, links, databases and the workload of one run.

    Attributes:
        nodes: names of the edge nodes.
        edges: their processes, and those of clones, by name.
        consumers: names of the core's consumers.
        links: by process name.
        lost_with_disk: numbers that went with a database that a fault replaced.
        restored: nodes whose database was replaced.
        damaged: nodes whose disk took a part of their tables.
        clocks: seconds by which edge processes' clocks are ahead, by name, where they were moved.
        waited: meters of which an event had to wait by itself.
        crashed: the crash points at which a process ended.
    """

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        nodes: Sequence[str] = ("house-1", "house-2"),
        consumers: Sequence[str] = ("books", "audit"),
        grace: str = "0",
        workload: Workload | None = None,
        sync_interval: str = "always",
        begins_previous: Begins = "",
        small_disks: bool = False,
    ) -> None:
        self.folder = folder
        self.seed = seed
        self.dice = random.Random(f"{seed}/faults")
        self.data = folder / "data"
        self.project = folder / "project"
        self.users = Users([*nodes, CORE])
        self.broker = NatsServer(folder / "nats", extra=self.users.configuration(), sync_interval=sync_interval)
        self.nodes = list(nodes)
        self.consumers = list(consumers)
        self.edges: dict[str, ServiceProcess] = {}
        self.links: dict[str, Link] = {}
        self.workload = workload or Workload(seed)
        self.faults: Counter[str] = Counter()
        self.crashed: Counter[str] = Counter()
        self.lost_with_disk: set[int] = set()
        self.rewritten: set[int] = set()
        self.restored: set[str] = set()
        self.damaged: set[str] = set()
        self.waited: set[str] = set()
        self.clocks: dict[str, float] = {}
        self.freed_early: list[FreedEarly] = []
        self._options = ["--grace", grace]
        self._begins_previous = begins_previous
        self.disks = {node: SmallDisk(folder / f"disk-{node}") for node in nodes if small_disks}
        self._unfreed: dict[str, set[str]] = {node: set() for node in nodes}
        self._freed: dict[str, set[str]] = {node: set() for node in nodes}
        self._numbers: dict[str, int] = {}
        self._stores = {node: [self.database(node, "meter")] for node in nodes}
        self.followers = {name: Follower(name, self.database(CORE, name)) for name in consumers}
        self.core = self._process(CORE)
        for node in nodes:
            self.edges[node] = self._process(node)
            self.workload.add_node(node, self._url_of(node))
            if begins_previous == "nodes":
                self.use_release(node, previous=True)
        if begins_previous == "core":
            self.use_release(CORE, previous=True)

    # --- processes

    async def __aenter__(self) -> System:
        try:
            for link in self.links.values():
                link.start()
            await self.broker.start()
            self.write_project()
            for process in self.edges.values():  # a node needs neither stream nor consumer to start
                process.start()
            await self.apply()
            self.core.start()
            for process in self.processes():
                await process.ready()
        except BaseException:
            self._end()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._end()

    def _end(self) -> None:
        for process in self.processes():
            process.kill()
        self.broker.kill()
        for link in self.links.values():
            link.stop()
        for disk in self.disks.values():
            disk.end()

    def processes(self) -> list[ServiceProcess]:
        """The edge nodes' processes and the core's."""
        return [*self.edges.values(), self.core]

    def database(self, node: str, service: str) -> Path:
        """Where a service's database is."""
        if node == CORE:
            return self.data / CORE / f"{service}.db"
        data = self.disks[node].folder if node in self.disks else self.data
        return self.seen(node, data / "nodes" / node / f"{service}.db")

    def seen(self, name: str, path: Path) -> Path:
        """Return where the harness finds what an edge process has at a path: its disk may be seen by it alone."""
        return self.disks[name].seen(path) if name in self.disks else path

    def data_of(self, process: ServiceProcess) -> Path:
        """Return where the harness finds an edge process's data folder."""
        return self.seen(process.node, process.data) if process is self.edges.get(process.node) else process.data

    def _process(self, name: str, *, node: str = "", data: Path | None = None) -> ServiceProcess:
        link = self.links[name] = Link(self.broker.port)
        wanted = [f"{SERVICES}.{each}" for each in (self.consumers if name == CORE else ["meter"])]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        disk = self.disks.get(name)
        own = {"FOREBAY_DISK_RESERVE": "0"} if disk else {}
        if name != CORE:
            paths.append(str(MOVED_CLOCK))
            own["HARNESS_CLOCK"] = str(self._set_clock(name, 0.0))
            own["HARNESS_FRAMES"] = "" if self._begins_previous == "core" else "1"  # whose previous release reads none
        return ServiceProcess(
            wanted,
            node=node or name,
            project=self.project,
            data=data or (disk.folder if disk else self.data),
            launcher=disk.launcher(self.project) if disk else (),
            nats=self.users.url(node or name, link.port),
            options=self._options,
            environment={"PYTHONPATH": os.pathsep.join(path for path in reversed(paths) if path), **own},
        )

    def _url_of(self, name: str) -> Callable[[], str]:
        return lambda: self.edges[name].url

    def write_project(self) -> None:
        """Write the project's files for the consumers that there are."""
        consumers = self.project / "jetstream-config" / "consumers"
        consumers.mkdir(parents=True, exist_ok=True)
        modules = ", ".join(f'"{SERVICES}.{name}"' for name in self.consumers)
        (self.project / "forebay.toml").write_text(f'[services]\nedge = ["{SERVICES}.meter"]\ncore = [{modules}]\n')
        # sqlite-utils loads pandas where the development tools brought it: a second of every start.
        (self.project / "pandas.py").write_text("raise ImportError('not in a forebay process')\n")
        for name in self.consumers:
            filters = ", ".join(f'"evt.{{partition}}.*.{service}.*"' for service in FILTERS[name])
            (consumers / f"{name}.yaml").write_text(
                f'stream: EVENTS\ndurable_name: "{name}-{{partition}}"\nfilter_subjects: [{filters}]\n'
                f"ack_policy: all\ndeliver_policy: all\nmax_deliver: -1\nack_wait: {ACK_WAIT:g}s\n"
                "max_ack_pending: 20000\n"
            )

    async def apply(self) -> None:
        """Run ``forebay apply`` for the consumers that there are."""
        self.write_project()
        command = [sys.executable, "-m", "forebay", "apply", "--nats", self.broker.url]
        done = await anyio.run_process(
            command, cwd=self.project, env={**os.environ, **self.core.environment}, check=False
        )
        assert done.returncode == 0, (done.stdout + done.stderr).decode()

    async def restart(self, process: ServiceProcess) -> None:
        """Kill a process and start it again; returns when it is ready."""
        process.kill()
        process.start()
        await process.ready()

    def use_release(self, name: str, *, previous: bool) -> None:
        """Let an edge process, or the core, run the previous release from its next start on, or this one again."""
        archive = PREVIOUS_OF_CORE if name == CORE else PREVIOUS
        source = self.folder / archive.parent.name
        if previous and not source.exists():
            with tarfile.open(archive) as package:
                package.extractall(source, filter="data")
        environment = self._named(name).environment
        paths = [path for path in environment["PYTHONPATH"].split(os.pathsep) if path != str(source)]
        environment["PYTHONPATH"] = os.pathsep.join([str(source), *paths] if previous else paths)

    def runs_previous(self, name: str) -> bool:
        """Whether an edge process, or the core, is of the previous release."""
        archive = PREVIOUS_OF_CORE if name == CORE else PREVIOUS
        return archive.parent.name in self._named(name).environment["PYTHONPATH"]

    def _named(self, name: str) -> ServiceProcess:
        return self.core if name == CORE else self.edges[name]

    def move_clock(self, process: ServiceProcess, seconds: float) -> None:
        """Set the wall clock of an edge process so far ahead of the machine's, whether it runs or not."""
        name = next(name for name, each in self.edges.items() if each is process)
        self.clocks[name] = seconds
        self._set_clock(name, seconds)

    def _set_clock(self, name: str, seconds: float) -> Path:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.clock"
        path.touch()
        with path.open("r+b") as file:
            file.write(struct.pack("<d", seconds))
        return path

    async def reload_broker(self) -> None:
        """Let the broker read again who may do what, and its limits."""
        self.broker.extra = self.users.configuration()
        await self.broker.reload()

    async def api(self, subject: str, body: bytes = b"") -> bytes:
        """Send one request to the broker's JetStream API."""
        async with requests(self.broker.url) as request:
            return await request(f"$JS.API.{subject}", body)

    def disown(self, node: str) -> None:
        """Stop looking at what leaves a node too early: a fault takes it all away."""
        self._freed[node] |= {each for _, each in self.workload.message_ids(node)}

    def clone(self, node: str, name: str) -> ServiceProcess:
        """Add a second process under a node's name, on a copy of its data folder that the caller has made."""
        data = self.folder / name
        process = self.edges[name] = self._process(name, node=node, data=data)
        self._stores[node].append(data / "nodes" / node / "meter.db")
        self.workload.add_node(node, self._url_of(name))
        self.links[name].start()
        return process

    async def add_consumer(self, name: str) -> None:
        """Add a consumer: the topology first, then the core with one more service."""
        self.consumers.append(name)
        self.followers[name] = Follower(name, self.database(CORE, name))
        await self.apply()
        self.core.services = [f"{SERVICES}.{each}" for each in self.consumers]
        await self.restart(self.core)

    # --- looking

    def taken_everywhere(self) -> set[int]:
        """Return the numbers that have taken effect at every consumer."""
        for follower in self.followers.values():
            follower.refresh()
        return set.intersection(*(follower.numbers for follower in self.followers.values()))

    def sample(self) -> None:
        """Note each acknowledged event that is off its node while a consumer has no effect of it.

        What cannot be read at this moment, because its process is just starting or dying, is looked at the next time.
        """
        writes = list(self.workload.writes.values())
        for write in writes:
            # What waits behind another event of its key is in a consumer's parking, which keeps it: it need not stay.
            if write.message_id is not None and write.meter not in self.waited:
                self._unfreed[write.node].add(write.message_id)
                self._numbers[write.message_id] = write.number
        gone = {}
        for node, waiting in self._unfreed.items():
            waiting -= self._freed[node]
            try:
                there = {row for store in self._stores[node] for row in outbox_rows(store)}
            except sqlite3.OperationalError:
                continue
            gone[node] = {each for each in waiting - there if self._numbers[each] not in self.lost_with_disk}
        # The nodes were read first: whatever a consumer does meanwhile, it only gets more.
        read = [follower.refresh() for follower in self.followers.values()]
        if not all(read):
            return
        for node, ids in gone.items():
            for name, follower in self.followers.items():
                if name != "late":
                    self.freed_early += [FreedEarly(node, each, name) for each in sorted(ids - follower.ids)]
            self._freed[node] |= ids

    async def arrive(self, numbers: set[int], limit: float = DRAIN_TIMEOUT) -> None:
        """Wait until these numbers have taken effect at every consumer.

        Raises:
            AssertionError: they have not within the limit.
        """

        def missing() -> int:
            for follower in self.followers.values():
                follower.refresh()
            return sum(len(numbers - follower.numbers) for follower in self.followers.values())

        await until(lambda: not missing(), limit=limit, every=0.1, what=lambda: f"{missing()} take effect meanwhile")

    async def drain(self, limit: float = DRAIN_TIMEOUT) -> None:
        """Wait until all that was acknowledged has taken effect everywhere, and the outboxes know it.

        Raises:
            AssertionError: it did not within the limit; the message tells what is missing.
        """
        expected = {each.number for each in self.workload.writes.values() if each.message_id} - self.lost_with_disk

        def missing() -> dict[str, int]:
            found = {}
            for name, follower in self.followers.items():
                follower.refresh()
                found[name] = len(expected - follower.numbers)
            if {"books", "audit"} <= self.followers.keys():
                found["notices"] = len(_notices_due(self) - self.followers["books"].notices)
            return {name: count for name, count in found.items() if count}

        await until(
            lambda: not missing(),
            limit=limit,
            every=0.1,
            what=lambda: f"everything takes effect; missing are {missing()}; seed {self.seed}, {self.folder}",
        )
        await self._come_to({"confirmed"}, self._last_events(), limit)

    async def forwarded(self, limit: float = DRAIN_TIMEOUT) -> None:
        """Wait until the broker has acknowledged the last event of each node.

        Raises:
            AssertionError: it did not within the limit.
        """
        await self._come_to({"forwarded", "confirmed"}, self._last_events(emitting=False), limit)

    async def _come_to(self, states: Set[str], asks: Sequence[str], limit: float) -> None:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            for ask in asks:
                await until(
                    partial(_is_in, http, ask, states),
                    limit=limit,
                    every=0.1,
                    what=f"{ask} is {' or '.join(sorted(states))}; seed {self.seed}, {self.folder}",
                )

    def _last_events(self, *, emitting: bool = True) -> list[str]:
        """Return where to ask for the last event of each epoch of each store."""
        asks = []
        stores = [
            (process.url, self.data_of(process) / "nodes" / process.node / "meter.db")
            for process in self.edges.values()
        ]
        if emitting:
            stores += [(self.core.url, self.database(CORE, name)) for name in EMITTING if name in self.consumers]
        for url, store in stores:
            rows = outbox_rows(store)
            last = {row.partition("-")[0]: row for row in rows}
            asks += [f"{url}/outbox/{row}" for row in last.values()]
        return asks

    def stop(self) -> None:
        """Stop all processes in order, so that their databases can be read as a whole."""
        for process in self.processes():
            if process.running:
                code = process.stop()
                assert code == 0, f"{process.node} ended with {code}"

    def history(self, scenario: str) -> History:
        """Return what there is to judge; stop everything before."""
        outboxes = [outbox_state(store, node, "meter") for node, stores in self._stores.items() for store in stores]
        outboxes += [outbox_state(self.database(CORE, name), CORE, name) for name in EMITTING if name in self.consumers]
        return History(
            seed=self.seed,
            scenario=scenario,
            faults=dict(self.faults),
            crashed=dict(self.crashed),
            writes=[self.workload.writes[number] for number in sorted(self.workload.writes)],
            outboxes=outboxes,
            consumers=[consumer_state(self.database(CORE, name), name) for name in self.consumers],
            freed_early=self.freed_early,
            lost_with_disk=self.lost_with_disk,
            rewritten=self.rewritten,
            restored=self.restored,
            damaged=self.damaged,
            waited=self.waited,
        )

    # --- broker's store

    @property
    def broker_store(self) -> Path:
        """The folder of the broker's store."""
        return self.broker.folder / "store"

    def copy_broker_store(self, to: Path) -> None:
        """Copy the store of a broker that does not run."""
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(self.broker_store, to)

    def replace_broker_store(self, copy: Path | None) -> None:
        """Put a copy, or nothing, in the place of the store of a broker that does not run."""
        shutil.rmtree(self.broker_store)
        if copy is not None:
            shutil.copytree(copy, self.broker_store)


def _notices_due(system: System) -> set[int]:
    writes = system.workload.writes
    taken = system.followers["audit"].numbers
    return {number for number in taken if number % NOTICE_EVERY == 0 and writes[number].lane == "ledger"}


async def _is_in(http: httpx.AsyncClient, url: str, states: Set[str]) -> bool:
    try:
        answer = await http.get(url)
    except httpx.HTTPError:
        return False
    return answer.status_code == 200 and answer.json()["state"] in states
