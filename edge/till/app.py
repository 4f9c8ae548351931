"""The till's routes, and what they do in the store.

A basket is its own idempotency key: a client that got no answer sends the same sale again.
"""

from __future__ import annotations

from datetime import UTC, date, datetime
from typing import Annotated, NamedTuple

import msgspec
from litestar import Response
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, FromQuery

from contracts.till import Line, SaleRecorded
from forebay import Lane, Service, Transaction, UnitOfWork, UnitStore
from forebay.envelope import format_time
from forebay.problems import ProblemError, invalid

MAX_INTEGER = 2**63 - 1
"""The largest number that a database keeps as an integer."""

MAX_CENTS = 10**12
"""The most that a line or a sale may come to: sums over millions of the dearest sales still fit 64 bits."""

till = Service("till", lanes=[Lane("ledger", budget="128MiB")])

Number = Annotated[int, msgspec.Meta(ge=0, le=MAX_INTEGER)]
Cents = Annotated[int, msgspec.Meta(ge=0, le=MAX_CENTS)]
# No slash: the basket is one segment of a path. No control characters: it is the ordering key of its event. The end is
# not written as $, which also matches before a last line feed.
Basket = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[^/\x00-\x1f\x7f-\x9f]+(?![\s\S])")]


class NewLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One line of a sale; ``cents`` is the line's total."""

    product: Number
    quantity: Number
    cents: Cents


class NewSale(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A sale as it was rung up; ``at`` has an offset from UTC and is answered in UTC."""

    basket: Basket
    household: Number
    at: Annotated[datetime, msgspec.Meta(tz=True)]
    lines: Annotated[list[NewLine], msgspec.Meta(min_length=1)]


class RecordedSale(msgspec.Struct, frozen=True):
    """A sale that is on disk, the message id of its event, and its total."""

    sale: NewSale
    event: str
    cents: int


class DayTotals(msgspec.Struct, frozen=True):
    """What was rung up on one day of UTC."""

    day: date
    sales: int
    lines: int
    cents: int


class Recorded(NamedTuple):
    """A recorded sale, and whether it was recorded just now."""

    sale: RecordedSale
    new: bool


@till.post(
    "/sales",
    problems=[409, 413, 415, 422, 503, 507],
    responses={
        200: ResponseSpec(RecordedSale, generate_examples=False, description="The same sale was recorded before")
    },
)
async def ring_up(data: NewSale, store: UnitStore) -> Response[RecordedSale]:
    """Record a sale; it answers when the sale and its event are on disk, and gives the first answer to a repetition."""
    recorded = await store.write(record_sale, data)
    return Response(recorded.sale, status_code=201 if recorded.new else 200)


@till.get("/sales/{basket:str}", problems=[404, 503])
async def get_sale(basket: FromPath[str], store: UnitStore) -> RecordedSale:
    """Give a sale as it was rung up."""
    sale = await store.read(find_sale, basket)
    if sale is None:
        raise ProblemError(404, "Not Found", f"no basket {basket!r} was rung up here", "basket")
    return sale


@till.get("/totals", problems=[422, 503])
async def get_totals(day: FromQuery[date], store: UnitStore) -> DayTotals:
    """Add up the sales of one day of UTC."""
    return await store.read(total_day, day)


def record_sale(tx: UnitOfWork, sale: NewSale) -> Recorded:
    """Record a sale and emit its event, once.

    Raises:
        ProblemError: 409, the basket is there with other contents; 422, the sale's time or total is out of range.
    """
    sale = msgspec.structs.replace(sale, at=_in_utc(sale.at))
    known = find_sale(tx, sale.basket)
    if known is not None:
        if known.sale != sale:
            detail = f"basket {sale.basket!r} was rung up before with other contents"
            raise ProblemError(409, "Conflict", detail, "basket")
        return Recorded(known, new=False)
    cents = sum(line.cents for line in sale.lines)
    if cents > MAX_CENTS:
        raise invalid(f"the lines come to {cents} cents, at most {MAX_CENTS} can be rung up", "lines")
    lines = [Line(line.product, line.quantity, line.cents) for line in sale.lines]
    event = SaleRecorded(basket=sale.basket, household=sale.household, lines=lines, cents=cents)
    message_id = tx.emit(event, time=sale.at)
    tx.execute(
        "insert into sale (basket, household, at, day, lines, line_count, cents, event)"
        " values (:basket, :household, :at, :day, :lines, :line_count, :cents, :event)",
        basket=sale.basket,
        household=sale.household,
        at=format_time(sale.at),
        day=sale.at.date().isoformat(),
        lines=msgspec.json.encode(sale.lines).decode(),
        line_count=len(sale.lines),
        cents=cents,
        event=message_id,
    )
    return Recorded(RecordedSale(sale, message_id, cents), new=True)


def find_sale(tx: Transaction, basket: str) -> RecordedSale | None:
    """Return a sale as it was rung up, or None."""
    rows = tx.execute("select * from sale where basket = :basket", basket=basket)
    if not rows:
        return None
    row = rows[0]
    sale = NewSale(
        basket=row["basket"],
        household=row["household"],
        at=datetime.fromisoformat(row["at"]),
        lines=msgspec.json.decode(row["lines"], type=list[NewLine]),
    )
    return RecordedSale(sale, row["event"], row["cents"])


def total_day(tx: Transaction, day: date) -> DayTotals:
    """Add up the sales of one day of UTC; zeros where there are none."""
    row = tx.execute(
        "select count(*) as sales, coalesce(sum(line_count), 0) as lines, coalesce(sum(cents), 0) as cents"
        " from sale where day = :day",
        day=day.isoformat(),
    )[0]
    return DayTotals(day, row["sales"], row["lines"], row["cents"])


def _in_utc(at: datetime) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise invalid(f"{at.isoformat()} is no time in the years 1 to 9999 of UTC", "at") from None
