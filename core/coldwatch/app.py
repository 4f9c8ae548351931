"""Watches fridges: one that is above the limit for longer than it may be is told of once, however its readings come.

Every minute of a fridge is a window of event time. A minute is warm if all its readings are above the limit; warm
minutes with no cold one between make a stretch, and a stretch that is long enough is an excursion. A node that was away
for hours is judged by when its readings were taken, not by when they came.
"""

from __future__ import annotations

import hashlib
import math
from datetime import UTC, datetime, timedelta
from typing import Annotated

import msgspec
from litestar.params import QueryParameter

from contracts.coldchain import FridgeRead
from contracts.coldwatch import ExcursionDetected
from core.coldwatch.stretches import MINUTE, Fridge, Stretch, add_cold, add_warm, forget, mark_alerted
from forebay import Lane, Service, Transaction, UnitOfWork, UnitStore
from forebay.errors import ConfigurationError
from forebay.lanes import parse_seconds
from forebay.window import Late, Result, Tumbling

MAX_ROWS = 1000
"""Alerts of one answer, at most."""


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The table ``[coldwatch]`` of ``forebay.toml``.

    Attributes:
        limit: degrees Celsius that a fridge may have.
        minutes: for how long it may be above.
        lateness: how late a reading may come, by the other readings of its node, and still change what is known.
        gap: for how long a fridge without a reading counts as what it was; longer than the time between readings.
    """

    limit: float = 8.0
    minutes: Annotated[int, msgspec.Meta(ge=1, le=7 * 24 * 60)] = 15
    lateness: str | float = "1h"
    gap: str | float = "10m"

    def __post_init__(self) -> None:
        if not math.isfinite(self.limit):
            raise ConfigurationError(f"[coldwatch] limit {self.limit!r} is no temperature")
        parse_seconds(self.gap, "[coldwatch] gap")

    @property
    def limit_milli(self) -> int:
        """The limit in thousandths of a degree."""
        return round(self.limit * 1000)

    @property
    def gap_milliseconds(self) -> int:
        """The gap in milliseconds."""
        return round(parse_seconds(self.gap, "gap") * 1000)

    @property
    def enough(self) -> int:
        """Milliseconds from which on a stretch is told of."""
        return self.minutes * MINUTE

    @property
    def kept(self) -> int:
        """Milliseconds for which what is around a minute may change."""
        late = round(parse_seconds(self.lateness, "lateness") * 1000)
        return late + self.gap_milliseconds + self.enough + MINUTE


coldwatch = Service("coldwatch", lanes=[Lane("ledger")], settings=Settings)


class Minute(msgspec.Struct):
    """The lowest and the highest reading of a minute, in thousandths of a degree."""

    coldest: int | None = None
    warmest: int | None = None


class FridgeState(msgspec.Struct, frozen=True):
    """A fridge as of its last minute that is over; null where all its readings were too late.

    ``late`` readings came too late to count. ``warm_since`` is null for a fridge that is cold enough.
    """

    node: str
    fridge: str
    minute: datetime | None
    coldest: int | None
    warmest: int | None
    warm_since: datetime | None
    late: int


class Excursion(msgspec.Struct, frozen=True):
    """A fridge that was above the limit too long; ``alert`` is the message id of the event that told of it."""

    node: str
    fridge: str
    since: datetime
    until: datetime
    warmest: int
    alert: str


@coldwatch.window(FridgeRead, Tumbling("1m"), state=Minute, lateness=lambda settings: settings.lateness)
def minute(state: Minute, reading: FridgeRead) -> Minute:
    """Count one reading in."""
    now = reading.milli_degrees
    return Minute(
        now if state.coldest is None else min(state.coldest, now),
        now if state.warmest is None else max(state.warmest, now),
    )


@minute.closed
def judge(tx: UnitOfWork, result: Result[Minute]) -> None:
    """Add a minute to what is known of a fridge, and tell of an excursion that it completes."""
    settings: Settings = tx.settings
    coldest, warmest = result.state.coldest, result.state.warmest
    if coldest is None or warmest is None:
        return
    of, opens = Fridge(result.node, result.key), _milliseconds(result.opens)
    tx.execute(
        "insert into fridge (node, fridge, minute, coldest, warmest)"
        " values (:node, :fridge, :minute, :coldest, :warmest)"
        " on conflict (node, fridge) do update set"
        " minute = excluded.minute, coldest = excluded.coldest, warmest = excluded.warmest"
        " where fridge.minute is null or excluded.minute >= fridge.minute",
        **of._asdict(),
        minute=opens,
        coldest=coldest,
        warmest=warmest,
    )
    if coldest > settings.limit_milli:
        changed = [add_warm(tx, of, opens, warmest, settings.gap_milliseconds)]
    else:
        changed = add_cold(tx, of, opens, settings.enough)
    for stretch in changed:
        if stretch.alert is None and stretch.closes - stretch.opens >= settings.enough:
            tell(tx, of, stretch, settings)
    if result.revision == 0:
        forget(tx, of, opens - settings.kept)


def tell(tx: UnitOfWork, of: Fridge, stretch: Stretch, settings: Settings) -> None:
    """Emit the alert of an excursion.

    Its cause is the excursion, not the minute that showed it: a restored store that gets the readings in other batches
    tells of it at another minute, and has no second effect all the same (B5).
    """
    since = _moment(stretch.opens)
    digest = hashlib.blake2b("/".join(of).encode(), digest_size=12).hexdigest()
    tx.because_of_deadline(f"excursion:{digest}", since)
    event = ExcursionDetected(
        node=of.node,
        fridge=of.fridge,
        since=since,
        warmest=stretch.warmest,
        limit=settings.limit_milli,
        minutes=settings.minutes,
    )
    mark_alerted(tx, of, stretch.opens, tx.emit(event, time=since + timedelta(minutes=settings.minutes)))


@minute.late
def count_late(tx: UnitOfWork, late: Late[FridgeRead]) -> None:
    """Count a reading that came too late, so that it can be seen."""
    tx.execute(
        "insert into fridge (node, fridge, late) values (:node, :fridge, 1)"
        " on conflict (node, fridge) do update set late = fridge.late + 1",
        node=late.message.node,
        fridge=late.event.fridge,
    )


Limit = Annotated[int, QueryParameter(ge=1, le=MAX_ROWS, description="Alerts, at most.")]


@coldwatch.get("/alerts", problems=(422, 503))
async def list_alerts(store: UnitStore, limit: Limit = 100) -> list[Excursion]:
    """Return the excursions that were told, the latest first."""
    return await store.read(alerts, limit)


@coldwatch.get("/fridges", problems=(503,))
async def list_fridges(store: UnitStore) -> list[FridgeState]:
    """Return every fridge as of its last minute that is over."""
    return await store.read(fridges)


def alerts(tx: Transaction, limit: int) -> list[Excursion]:
    """Return the latest excursions."""
    rows = tx.execute(
        "select node, fridge, opens, closes, warmest, alert from stretch where alert is not null"
        " order by opens desc, node, fridge limit :limit",
        limit=limit,
    )
    return [
        Excursion(
            row["node"], row["fridge"], _moment(row["opens"]), _moment(row["closes"]), row["warmest"], row["alert"]
        )
        for row in rows
    ]


def fridges(tx: Transaction) -> list[FridgeState]:
    """Return all fridges, by node and name."""
    rows = tx.execute(
        "select f.node, f.fridge, f.minute, f.coldest, f.warmest, f.late, s.opens as warm_since"
        " from fridge f left join stretch s on s.node = f.node and s.fridge = f.fridge"
        " and s.opens <= f.minute and s.closes > f.minute order by f.node, f.fridge"
    )
    return [
        FridgeState(
            row["node"],
            row["fridge"],
            _known(row["minute"]),
            row["coldest"],
            row["warmest"],
            _known(row["warm_since"]),
            row["late"],
        )
        for row in rows
    ]


def _milliseconds(time: datetime) -> int:
    return round(time.timestamp() * 1000)


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


def _known(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else _moment(milliseconds)
