"""The watch over the fridges: one alert for each excursion, whenever and however often its readings come."""

from __future__ import annotations

import random
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import httpx
import msgspec
import pytest

import core.coldwatch.app
from contracts.coldchain import FridgeRead
from contracts.coldwatch import ExcursionDetected
from forebay import Lane, Service, UnitOfWork
from forebay.delivery import Delivery
from forebay.jetstream.connection import Connection
from forebay.running import RunningService
from forebay.testing.nats_server import NatsServer
from forebay.testing.waiting import until
from tests.integration.arrivals import Core, Stream
from tests.integration.rig import apply, connected, rows, serving
from tests.outboxes import messages_after
from tests.services.core_app import COLDWATCH, application, client_of, open_core

TODAY = datetime(2026, 3, 1, 12, tzinfo=UTC)
COLD, WARM = 4_000, 9_000


class At(NamedTuple):
    """A reading: so many minutes after noon."""

    minute: float
    milli_degrees: int
    fridge: str = "dairy"


def every_minute(first: int, last: int, milli_degrees: int, fridge: str = "dairy") -> list[At]:
    return [At(minute + 0.5, milli_degrees, fridge) for minute in range(first, last)]


class Feed:
    """One node's readings as the stream delivers them."""

    def __init__(self, stream: Stream, node: str = "store-1") -> None:
        self._stream = stream
        self._node = node
        self._epoch = f"{int(node.rsplit('-', 1)[1]):032x}"
        self._last = 0

    def deliver(self, readings: Iterable[At]) -> list[Delivery]:
        found = []
        for reading in readings:
            self._last += 1
            event = FridgeRead(fridge=reading.fridge, milli_degrees=reading.milli_degrees)
            found.append(
                self._stream.event(
                    self._last,
                    msgspec.json.encode(event),
                    epoch=self._epoch,
                    node=self._node,
                    service="coldchain",
                    kind="fridge-read",
                    lane="telemetry",
                    key=reading.fridge,
                    time=TODAY + timedelta(minutes=reading.minute),
                )
            )
        return found


@pytest.fixture
async def watch(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path, COLDWATCH) as core:
        yield core


@pytest.fixture
async def client(watch: Core) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(application({COLDWATCH: watch})) as client:
        yield client


async def told(core: Core) -> list[tuple[str, str, datetime, datetime]]:
    """The alerts in the outbox: node, fridge, since when, and when they say that they happened."""
    found = []
    for message in await core.sqlite.read(messages_after, core.outbox, "ledger", None, limit=1000, max_bytes=1 << 30):
        event = msgspec.json.decode(message.body, type=ExcursionDetected)
        found.append((event.node, event.fridge, event.since, message.time))
    return found


def noon(minutes: int) -> datetime:
    return TODAY + timedelta(minutes=minutes)


async def test_a_fridge_that_is_warm_long_enough_is_told_once_while_it_is_still_warm(
    watch: Core, client: httpx.AsyncClient
) -> None:
    feed = Feed(Stream())
    await watch.take(feed.deliver([*every_minute(0, 5, COLD), *every_minute(5, 20, WARM)]))
    assert await told(watch) == []
    await watch.take(feed.deliver(every_minute(20, 40, WARM)))
    assert await told(watch) == [("store-1", "dairy", noon(5), noon(20))]

    (alert,) = (await client.get("/coldwatch/alerts")).json()
    assert (alert["since"], alert["until"], alert["warmest"]) == ("2026-03-01T12:05:00Z", "2026-03-01T12:39:00Z", WARM)
    (fridge,) = (await client.get("/coldwatch/fridges")).json()
    assert fridge == {
        "node": "store-1", "fridge": "dairy", "minute": "2026-03-01T12:38:00Z", "coldest": WARM, "warmest": WARM,
        "warm_since": "2026-03-01T12:05:00Z", "late": 0,
    }  # fmt: skip


async def test_one_cold_reading_in_between_makes_two_short_stretches(watch: Core, client: httpx.AsyncClient) -> None:
    readings = [*every_minute(0, 10, WARM), At(10.5, WARM), At(10.6, COLD), *every_minute(11, 22, WARM)]
    await watch.take(Feed(Stream()).deliver(readings))
    assert await told(watch) == []
    assert (await client.get("/coldwatch/alerts")).json() == []


async def test_a_few_minutes_without_a_reading_do_not_end_an_excursion_and_many_do(watch: Core) -> None:
    stream = Stream()
    brief = [*every_minute(0, 7, WARM), *every_minute(15, 20, WARM)]
    await watch.take(Feed(stream).deliver(brief))
    apart = [*every_minute(0, 7, WARM), *every_minute(30, 40, WARM)]
    await watch.take(Feed(stream, "store-2").deliver(apart))
    assert await told(watch) == [("store-1", "dairy", noon(0), noon(15))]


async def test_readings_in_any_order_and_doubled_make_the_same_alerts(tmp_path: Path) -> None:
    """A node's readings come in disorder, some twice, in batches of any size, and some transactions run again."""
    readings = [
        *every_minute(0, 20, COLD), *every_minute(20, 45, WARM), *every_minute(45, 50, COLD),
        *every_minute(50, 60, WARM), At(60.5, COLD), *every_minute(61, 90, WARM), *every_minute(90, 120, COLD),
        *every_minute(0, 120, WARM, "meat"),
    ]  # fmt: skip
    outcomes = []
    for seed in range(4):
        chance = random.Random(seed)
        disorder = sorted(readings, key=lambda at: at.minute + chance.uniform(0, 40)) if seed else readings
        deliveries = Feed(Stream()).deliver([*disorder, At(300, COLD)])
        (tmp_path / str(seed)).mkdir()
        async with open_core(tmp_path / str(seed), COLDWATCH, lateness="2h") as core:
            while deliveries:
                size = chance.randint(1, 60)
                batch, deliveries = deliveries[:size], deliveries[size:]
                await core.take([*batch, *chance.sample(batch, min(3, len(batch)))])
            assert len(await told(core)) == 3
            outcomes.append(await core.rows("select node, fridge, opens, closes, warmest from stretch"))
            expected = {("dairy", 20, 45), ("dairy", 61, 90), ("meat", 0, 120)}
            alerted = await core.rows("select fridge, opens, closes from stretch where alert is not null")
            assert {(row["fridge"], noon_(row["opens"]), noon_(row["closes"])) for row in alerted} == expected
    assert all(outcome == outcomes[0] for outcome in outcomes)


def noon_(at: datetime | int) -> int:
    """Minutes after noon."""
    seconds = at.timestamp() if isinstance(at, datetime) else at / 1000
    return round((seconds - TODAY.timestamp()) / 60)


async def test_a_late_cold_reading_takes_an_excursion_apart_and_nothing_is_told_again(watch: Core) -> None:
    feed = Feed(Stream())
    await watch.take(feed.deliver(every_minute(0, 20, WARM)))
    await watch.take(feed.deliver([At(9.7, COLD)]))
    await watch.take(feed.deliver(every_minute(20, 60, WARM)))
    assert len(await told(watch)) == 1
    assert await watch.rows("select (closes - opens) / 60000 as minutes from stretch") == [
        {"minutes": 9},
        {"minutes": 49},
    ]


async def test_a_reading_that_comes_later_than_the_lateness_is_counted(watch: Core, client: httpx.AsyncClient) -> None:
    feed = Feed(Stream())
    await watch.take(feed.deliver([At(0, COLD), At(200, COLD), At(1, WARM), At(2, WARM, "meat")]))
    dairy, meat = (await client.get("/coldwatch/fridges")).json()
    assert (dairy["fridge"], dairy["late"], dairy["warmest"]) == ("dairy", 1, COLD)
    assert (meat["fridge"], meat["late"], meat["minute"]) == ("meat", 1, None)


async def test_a_restored_store_tells_of_the_same_excursion_under_the_same_cause_b5(tmp_path: Path) -> None:
    deliveries = Feed(Stream()).deliver(every_minute(0, 40, WARM))
    causes = []
    for size in (40, 7):
        folder = tmp_path / str(size)
        folder.mkdir()
        async with open_core(folder, COLDWATCH) as core:
            for first in range(0, 40, size):
                await core.take(deliveries[first : first + size])
            causes.append(await core.rows("select cause, body from forebay_outbox"))
        shutil.rmtree(folder)
    assert causes[0] == causes[1]
    assert len(causes[0]) == 1
    assert causes[0][0]["cause"].startswith("excursion:")


async def test_the_settings_say_what_is_too_warm_and_for_how_long(tmp_path: Path) -> None:
    async with open_core(tmp_path, COLDWATCH, limit=3.5, minutes=2) as core:
        await core.take(Feed(Stream()).deliver([*every_minute(0, 5, COLD)]))
        assert await told(core) == [("store-1", "dairy", noon(0), noon(2))]


@pytest.mark.parametrize(
    "wrong", [{"limit": "cold"}, {"minutes": 0}, {"lateness": "soon"}, {"gap": "-"}, {"limits": 8.0}]
)
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(Exception, match=r"coldwatch|lateness|minute"):
        COLDWATCH.windows.check(COLDWATCH.configured(wrong))


# --- with a broker

SENDING = "coldchain"


def chain() -> Service:
    return Service(SENDING, lanes=[Lane("telemetry", budget="8MiB")])


def read_fridge(tx: UnitOfWork, readings: Sequence[At], start: datetime) -> None:
    for reading in readings:
        event = FridgeRead(fridge=reading.fridge, milli_degrees=reading.milli_degrees)
        tx.emit(event, time=start + timedelta(minutes=reading.minute))


_ALERTED = "select node, opens from stretch where alert is not null order by node"


async def has(service: RunningService, sql: str, wanted: list[tuple[object, ...]]) -> bool:
    return await rows(service.store, sql) == wanted


@asynccontextmanager
async def watching(connection: Connection, folder: Path) -> AsyncIterator[RunningService]:
    async with AsyncExitStack() as stack:
        await apply(connection, "coldwatch", services=[SENDING])
        migrations = Path(core.coldwatch.app.__file__).parent / "migrations"
        (folder / "coldwatch-migrations").mkdir(parents=True)
        schema = (migrations / "0001_coldwatch.sqlite.sql").read_text()
        yield await stack.enter_async_context(serving(COLDWATCH, connection, folder, node="core", schema=schema))


async def test_a_node_that_was_away_for_hours_and_one_that_was_not_are_each_told_once(
    tmp_path: Path, nats_server: NatsServer
) -> None:
    """Both were warm at the same time; one of them only gets through when the other is long cold again."""
    now = datetime.now(UTC).replace(second=0, microsecond=0)
    start = now - timedelta(hours=6)
    readings = [*every_minute(0, 20, WARM), *every_minute(20, 30, COLD), At(355, COLD)]
    async with (
        connected(nats_server.url) as connection,
        watching(connection, tmp_path) as watch,
        serving(chain(), connection, tmp_path, node="store-1") as here,
    ):
        await here.store.write(read_fridge, readings, start)

        since = round(start.timestamp() * 1000)
        await until(lambda: has(watch, _ALERTED, [("store-1", since)]), limit=30)
        async with serving(chain(), connection, tmp_path, node="store-2") as away:
            await away.store.write(read_fridge, readings, start)
            await until(lambda: has(watch, _ALERTED, [("store-1", since), ("store-2", since)]), limit=30)
        assert await rows(watch.store, "select count(*) from forebay_outbox") == [(2,)]


async def test_a_node_tells_how_far_its_clock_is_off_and_its_readings_are_set_right_c1(
    tmp_path: Path, nats_server: NatsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ten_years = timedelta(days=3650)
    monkeypatch.setattr("forebay.confirming.clock_offset", lambda *_: -ten_years.total_seconds())
    start = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=40)
    async with (
        connected(nats_server.url) as connection,
        watching(connection, tmp_path) as watch,
        serving(chain(), connection, tmp_path, node="store-9") as ahead,
    ):
        await until(lambda: has(watch, "select node from forebay_clock_offset", [("store-9",)]), limit=30)
        await ahead.store.write(read_fridge, every_minute(0, 20, WARM), start + ten_years)
        since = round(start.timestamp() * 1000)
        await until(lambda: has(watch, "select node, opens from stretch", [("store-9", since)]), limit=30)
