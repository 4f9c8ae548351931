"""Rebuild the sales read model over a year of the Complete Journey data set while sales go on, and compare to the cent.

    python -m bench.rebuild --json bench/results/rebuild.json
    python -m bench.rebuild --days 30 --last 5

A real nats-server and one core process with the archive and the sales. The sales are published as the stores' nodes
send them, an epoch for each store: the first days before the rebuild is asked for, the last days meanwhile. Then every
total of the read model is compared with sums made of the data directly.
"""

from __future__ import annotations

import argparse
import asyncio
import sqlite3
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio
import httpx
import msgspec

from bench.journey import FIRST_DAY, Sale, Totals, expected_totals, load_sales
from bench.peers.report import Machine, machine
from contracts.till import Line, SaleRecorded
from core.sales.departments import department_of
from forebay.envelope import JSON, Message, encode_headers
from forebay.identity import Place
from forebay.intent_box import leave_file
from forebay.intents import RebuildProjection
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.outcomes import Stored
from forebay.jetstream.publishing import Outgoing, Publisher
from forebay.jetstream.topology import apply_topology, consumer_spec, desired
from forebay.testing.nats_server import NatsServer
from forebay.testing.service_process import ServiceProcess
from forebay.testing.waiting import until

ROOT = Path(__file__).parents[1]
CONSUMERS = {"archive": ("*",), "sales": ("till",)}
LIMIT = 1800.0
"""Seconds after which a wait is given up, and the run with it."""

Amounts = tuple[int, int, int]
"""Lines, units and cents."""


class Expected(msgspec.Struct, frozen=True):
    """What the read model has to say: sums made of the data directly."""

    stores: dict[str, Totals]
    days: dict[tuple[str, str], Totals]
    hours: dict[tuple[str, str], Totals]
    departments: dict[tuple[str, str], Amounts]
    products: dict[int, Amounts]


class Result(msgspec.Struct, frozen=True):
    """Everything measured.

    Attributes:
        events, lines: replayed, and their lines.
        filling_seconds: in which the core took in what was there before, archive and sales together.
        rebuild_seconds: from the request until the new rows are in use.
        meanwhile: sales that arrived during it.
        reads_ms: HTTP reads of all stores, one after the other: median before, median and most during the rebuild.
        longest_stall_ms: the longest time during the rebuild in which no sale took effect while some were under way.
        equal: whether every total is the same to the cent.
    """

    machine: Machine
    events: int
    lines: int
    filling_seconds: float
    rebuild_seconds: float
    events_per_second: float
    meanwhile: int
    reads_ms: tuple[float, float, float]
    longest_stall_ms: float
    equal: bool


class Fleet:
    """Publishes sales as the nodes of their stores do: one epoch each, without a gap."""

    def __init__(self, publisher: Publisher) -> None:
        self._publisher = publisher
        self._sequences: Counter[str] = Counter()
        self.published = 0

    async def publish(self, sales: Sequence[Sale]) -> None:
        """Publish sales in order; raises ``RuntimeError`` if the broker refuses one."""
        outcomes = await self._publisher.publish([self._outgoing(sale) for sale in sales])
        if not all(isinstance(each, Stored) for each in outcomes):
            raise RuntimeError(f"not stored: {[each for each in outcomes if not isinstance(each, Stored)][:3]}")
        self.published += len(sales)

    def _outgoing(self, sale: Sale) -> Outgoing:
        self._sequences[sale.node] += 1
        place = Place(f"{sale.store:032x}", self._sequences[sale.node])
        lines = [Line(each.product, each.quantity, each.cents) for each in sale.lines]
        event = SaleRecorded(
            basket=sale.basket, household=sale.household, lines=lines, cents=sum(line.cents for line in lines)
        )
        spec = SaleRecorded.spec
        message = Message(
            message_id=str(place),
            node=sale.node,
            service=spec.service,
            kind=spec.kind,
            id=str(place),
            source=f"/{sale.node}/{spec.service}",
            type=spec.type,
            time=sale.at,
            key=sale.basket,
            content_type=JSON,
            attributes={},
            lane=spec.lane,
            place=place,
            prev=None,
            hlc=int(sale.at.timestamp() * 1000) << 16,
            body=msgspec.json.encode(event),
        )
        return Outgoing(f"evt.{sale.node}.{spec.service}.{spec.kind}", encode_headers(message), message.body)


def expected(sales: Iterable[Sale]) -> Expected:
    """Sum the sales directly, as no part of the core does it."""
    sales = list(sales)
    known = expected_totals(sales)
    hours: dict[tuple[str, str], Totals] = defaultdict(Totals)
    departments: dict[tuple[str, str], Amounts] = {}
    products: dict[int, Amounts] = {}
    for sale in sales:
        hour = sale.node, sale.at.astimezone(UTC).isoformat()[:13]
        hours[hour] = hours[hour].plus(sale)
        for line in sale.lines:
            of = sale.node, department_of(line.product)
            lines, units, cents = departments.get(of, (0, 0, 0))
            departments[of] = lines + 1, units + line.quantity, cents + line.cents
            lines, units, cents = products.get(line.product, (0, 0, 0))
            products[line.product] = lines + 1, units + line.quantity, cents + line.cents
    days = {(node, day): totals for node, by_day in known.days.items() for day, totals in by_day.items()}
    return Expected(known.stores, days, dict(hours), departments, products)


async def read_model(http: httpx.AsyncClient, database: Path) -> Expected:
    """Read the whole read model over HTTP, the hours of all days from the database.

    Raises:
        httpx.HTTPStatusError: the core does not answer with it.
    """

    async def got(path: str, **params: str | int) -> dict[str, list[dict[str, object]]]:
        answer = await http.get(path, params=params)
        answer.raise_for_status()
        return msgspec.json.decode(answer.content, type=dict)

    def totals(row: dict[str, object]) -> Totals:
        return msgspec.convert({name: row[name] for name in ("sales", "lines", "cents")}, Totals)

    def amounts(row: dict[str, object]) -> Amounts:
        lines, units, cents = (int(str(row[name])) for name in ("lines", "units", "cents"))
        return lines, units, cents

    stores = {str(row["node"]): totals(row) for row in (await got("/sales/stores"))["stores"]}
    days, departments = {}, {}
    for node in stores:
        days.update({(node, str(row["day"])): totals(row) for row in (await got("/sales/days", node=node))["days"]})
        found = (await got("/sales/departments", node=node))["departments"]
        departments.update({(node, str(row["department"])): amounts(row) for row in found})
    products: dict[int, Amounts] = {}
    after: object = ""
    while after is not None:
        page = await got("/sales/products", limit=1000, **({"after": str(after)} if after else {}))
        products.update({int(str(row["product"])): amounts(row) for row in page["products"]})
        after = page["next"]
    hours = _hours(database)
    return Expected(stores, days, hours, departments, products)


def _hours(database: Path) -> dict[tuple[str, str], Totals]:
    connection = sqlite3.connect(f"{database.absolute().as_uri()}?mode=ro", uri=True)
    try:
        rows = connection.execute("select node, hour, sales, lines, cents from hour_total")
        return {(node, hour): Totals(*sums) for node, hour, *sums in rows}
    finally:
        connection.close()


class Watch:
    """Reads the core's totals again and again; remembers how long that took, and when the number of sales moved."""

    def __init__(self, http: httpx.AsyncClient) -> None:
        self._http = http
        self.reads: list[float] = []
        self.sales = 0
        self.moved: list[float] = []

    async def run(self) -> None:
        """Read until cancelled."""
        while True:
            await self.look()
            await anyio.sleep(0.01)

    async def look(self) -> None:
        """Read once."""
        begun = time.perf_counter()
        answer = await self._http.get("/sales/stores")
        self.reads.append((time.perf_counter() - begun) * 1000)
        if answer.status_code == 200:
            count = sum(row["sales"] for row in answer.json()["stores"])
            if count != self.sales:
                self.sales = count
                self.moved.append(time.perf_counter())


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Connection]:
    """Connect, and apply the topology of archive and sales."""
    connection = Connection(ConnectionConfig(servers=[url], name="fleet", inbox_prefix="_INBOX_fleet"))
    async with anyio.create_task_group() as tasks:
        await tasks.start(connection.run)
        await connection.wait_connected()

        async def request(subject: str, body: bytes) -> bytes:
            return (await connection.request(subject, body, timeout=5)).body

        await apply_topology(request, desired(None, derived=[consumer_spec(*each) for each in CONSUMERS.items()]))
        try:
            yield connection
        finally:
            tasks.cancel_scope.cancel()


async def measure(folder: Path, days: int, last: int, rate: float) -> Result:
    """Run it once.

    Args:
        folder: for the broker's store, the databases and the log.
        days: of the data, from its first day.
        last: of them, how many are published while the rebuild runs.
        rate: sales per second that are published meanwhile.
    """
    sales = sorted(load_sales(10_000, days), key=lambda sale: (sale.at, sale.basket))
    border = datetime.combine(FIRST_DAY + timedelta(days=days - last), datetime.min.time(), UTC)
    before = [sale for sale in sales if sale.at < border]
    meanwhile = sales[len(before) :]
    server = NatsServer(folder / "nats", sync_interval="2m")
    await server.start()
    core = ServiceProcess(
        ["core.archive", "core.sales"], node="core", project=ROOT, data=folder / "data", nats=server.url
    )
    try:
        async with (
            connected(server.url) as connection,
            Publisher(connection, "EVENTS") as publisher,
            httpx.AsyncClient(base_url=core.url, timeout=60, trust_env=False) as http,
        ):
            fleet, watch = Fleet(publisher), Watch(http)
            core.start()
            await core.ready()
            begun = time.perf_counter()
            for at in range(0, len(before), 1000):
                await fleet.publish(before[at : at + 1000])
            await _reach(watch, len(before))
            filling = time.perf_counter() - begun
            print(f"{len(before)} sales took effect in {filling:.1f} s", file=sys.stderr)
            quiet = statistics.median(watch.reads[-20:])
            watch.reads.clear()
            watch.moved.clear()
            seconds, sent = await _rebuild(core, fleet, watch, meanwhile, rate)
            reads = (quiet, statistics.median(watch.reads), max(watch.reads))
            stall = max((b - a for a, b in zip(watch.moved, watch.moved[1:], strict=False)), default=0.0) * 1000
            await fleet.publish(meanwhile[sent:])
            await _reach(watch, len(sales))
            wanted = expected(sales)
            equal = await read_model(http, core.data / "core" / "sales.db") == wanted
    finally:
        core.kill()
        server.kill()
    events = len(before) + sent
    return Result(
        machine=machine(folder),
        events=events,
        lines=sum(len(sale.lines) for sale in sales[:events]),
        filling_seconds=round(filling, 1),
        rebuild_seconds=round(seconds, 1),
        events_per_second=round(events / seconds),
        meanwhile=sent,
        reads_ms=(round(reads[0], 1), round(reads[1], 1), round(reads[2], 1)),
        longest_stall_ms=round(stall, 1),
        equal=equal,
    )


async def _rebuild(
    core: ServiceProcess, fleet: Fleet, watch: Watch, sales: Sequence[Sale], rate: float
) -> tuple[float, int]:
    """Ask for the rebuild and go on with sales until it has ended; return its seconds and the sales meanwhile."""
    database = core.data / "core" / "sales.db"
    begun, published = time.perf_counter(), fleet.published
    leave_file(database, msgspec.json.encode(RebuildProjection()))
    async with anyio.create_task_group() as tasks:

        async def sell() -> None:
            for at in range(0, len(sales), 10):
                await fleet.publish(sales[at : at + 10])
                await anyio.sleep(max(0.0, (at + 10) / rate - (time.perf_counter() - begun)))

        tasks.start_soon(sell)
        tasks.start_soon(watch.run)
        await until(lambda: "rebuild.swapped" in core.log.read_text(), limit=LIMIT)
        seconds = time.perf_counter() - begun
        tasks.cancel_scope.cancel()
    return seconds, fleet.published - published


async def _reach(watch: Watch, count: int) -> None:
    with anyio.fail_after(LIMIT):
        while watch.sales < count:
            await watch.look()
            await anyio.sleep(0.02)
    if watch.sales != count:
        raise RuntimeError(f"{watch.sales} sales took effect, {count} were published")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print, and say by the exit code whether all is equal."""
    parser = argparse.ArgumentParser(prog="python -m bench.rebuild", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--days", type=int, default=366, help="days of the data (366: all of it)")
    parser.add_argument("--last", type=int, default=31, help="how many of them are sold during the rebuild (31)")
    parser.add_argument("--rate", type=float, default=100.0, help="sales per second meanwhile (100)")
    parser.add_argument("--json", type=Path, help="write the result here as well")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        result = asyncio.run(measure(Path(folder), options.days, options.last, options.rate))
    text = msgspec.json.format(msgspec.json.encode(result), indent=2).decode()
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return 0 if result.equal else 1


if __name__ == "__main__":
    sys.exit(main())
