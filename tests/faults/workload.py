"""A seeded workload with a known answer: every reading has a number of its own, and a meter's numbers rise."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator

import anyio
import httpx
import msgspec

from tests.faults.history import Write

REQUEST_TIMEOUT = 5.0
"""Seconds until a request without an answer is sent again."""

GIVE_UP_AFTER = 240.0
"""Seconds for which one request is sent again and again."""

NUMBERS = 10_000_000
"""Numbers of one meter."""

UNIT_SIZES = (1, 1, 1, 2, 3, 8)
"""Readings of one request, drawn by the dice."""

_TRANSIENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)


class WorkloadError(AssertionError):
    """A request was answered in a way that must not be, or for too long not at all."""


class Meter:
    """One client: it sends its readings one request after the other, each until it is acknowledged.

    Args:
        name: the ordering key.
        index: tells its numbers from those of other meters.
        node: whose readings they are.
        url: where its node is now.
        seed: of the run.
    """

    def __init__(self, name: str, index: int, node: str, url: Callable[[], str], seed: int) -> None:
        self.name = name
        self.index = index
        self.node = node
        self.url = url
        self.dice = random.Random(f"{seed}/{name}")
        self.requests = 0
        self._next = index * NUMBERS

    def unit(self, sizes: tuple[int, ...], padding: int) -> list[dict[str, object]]:
        """Make up the next request."""
        self.requests += 1
        lane = self.dice.choice(("ledger", "ledger", "telemetry"))
        readings = []
        for _ in range(self.dice.choice(sizes)):
            self._next += 1
            readings.append({"number": self._next, "meter": self.name, "lane": lane, "padding": "x" * padding})
        return readings


class Workload:
    """The clients of all nodes, and what they were told.

    Attributes:
        writes: every reading that was sent, by number; with its message id once that was acknowledged.
        acknowledged: requests that were answered with success.
        refused: answers that were no success, by status.
        padding_of: bytes by which the readings of one meter are longer than those of others.
    """

    def __init__(self, seed: int, *, sizes: tuple[int, ...] = UNIT_SIZES, padding: int = 0) -> None:
        self._seed = seed
        self._sizes = sizes
        self._padding = padding
        self._meters: list[Meter] = []
        self._dice = random.Random(f"{seed}/workload")
        self.writes: dict[int, Write] = {}
        self.acknowledged = 0
        self.idle = True
        self.padding_of: dict[str, int] = {}
        self.refused: Counter[int] = Counter()

    def add_node(self, node: str, url: Callable[[], str], meters: int = 4) -> None:
        """Let so many new meters write to a node."""
        for _ in range(meters):
            index = len(self._meters)
            self._meters.append(Meter(f"meter-{index}", index, node, url, self._seed))

    @property
    def mean_size(self) -> float:
        """Readings of one request, on average."""
        return sum(self._sizes) / len(self._sizes)

    def meters(self, node: str) -> list[str]:
        """The names of the meters that write to a node."""
        return [meter.name for meter in self._meters if meter.node == node]

    async def round(self, requests: int, node: str | None = None) -> None:
        """Send so many requests, over the meters of all nodes or of one, and return when all are acknowledged."""
        shares = [0] * len(self._meters)
        chosen = [index for index, meter in enumerate(self._meters) if node in (None, meter.node)]
        for _ in range(requests):
            shares[chosen[self._dice.randrange(len(chosen))]] += 1
        self.idle = False
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(timeout=REQUEST_TIMEOUT, limits=limits, trust_env=False) as http,
            anyio.create_task_group() as tasks,
        ):
            for meter, share in zip(self._meters, shares, strict=True):
                tasks.start_soon(self._write, http, meter, share)
        self.idle = True

    async def progress(self, requests: int) -> None:
        """Wait until so many more requests are acknowledged, or the round is over."""
        goal = self.acknowledged + requests
        while self.acknowledged < goal and not self.idle:  # noqa: ASYNC110 - counted in many tasks
            await anyio.sleep(0.005)

    def message_ids(self, node: str) -> Iterator[tuple[int, str]]:
        """Yield number and message id of what was acknowledged for a node."""
        for write in list(self.writes.values()):
            if write.node == node and write.message_id is not None:
                yield write.number, write.message_id

    async def _write(self, http: httpx.AsyncClient, meter: Meter, requests: int) -> None:
        for _ in range(requests):
            readings = meter.unit(self._sizes, self.padding_of.get(meter.name, self._padding))
            unit = meter.index * NUMBERS + meter.requests
            for each in readings:
                number = int(str(each["number"]))
                self.writes[number] = Write(number, meter.node, meter.name, str(each["lane"]), unit)
            events = await self._until_acknowledged(http, meter, msgspec.json.encode(readings))
            for each, event in zip(readings, events, strict=True):
                number = int(str(each["number"]))
                self.writes[number] = msgspec.structs.replace(self.writes[number], message_id=event)
            self.acknowledged += 1

    async def _until_acknowledged(self, http: httpx.AsyncClient, meter: Meter, body: bytes) -> list[str]:
        deadline = time.monotonic() + GIVE_UP_AFTER
        said = "nothing"
        while time.monotonic() < deadline:
            try:
                answer = await http.post(
                    f"{meter.url()}/meter/readings", content=body, headers={"content-type": "application/json"}
                )
            except _TRANSIENT as error:
                said = repr(error)
            else:
                if answer.status_code == 201:
                    return list(answer.json()["events"])
                said = f"{answer.status_code} {answer.text}"
                self.refused[answer.status_code] += 1
                if answer.status_code not in (503, 507):
                    raise WorkloadError(f"{meter.node} answered {said}")
            await anyio.sleep(meter.dice.uniform(0.02, 0.2))
        raise WorkloadError(f"{meter.node} did not acknowledge a write for {GIVE_UP_AFTER:g} s, last it said {said}")
