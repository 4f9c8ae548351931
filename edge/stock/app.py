"""The stock's routes and handlers. What is done in the store stands in ``goods`` and ``reservations``.

It follows the till of its node, takes commands of the core, and answers the shop floor, all by the same functions.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

import msgspec
from litestar import Response
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath, QueryParameter

from contracts.stock import CollectOrder, ReleaseStock, ReserveStock, StockLine, StockRefused
from contracts.till import SaleRecorded
from edge.stock import goods, reservations
from edge.stock.goods import Level
from edge.stock.requests import Answered, Count, OfOrder, Receipt, Reserve, once
from edge.stock.reservations import Reservation, find_reservation
from edge.stock.shelf import Shelf
from forebay import Lane, Message, Service, Transaction, UnitOfWork, UnitStore
from forebay.aggregate import history_of
from forebay.problems import ProblemError, invalid

MAX_ROWS = 1000
"""Rows of one answer, at most."""

stock = Service("stock", lanes=[Lane("ledger", budget="64MiB")])
stock.on_timer(reservations.OWNER)(reservations.expire)


class Levels(msgspec.Struct, frozen=True):
    """The products of a request as they were right after it."""

    products: list[Level]


class Moved(msgspec.Struct, frozen=True):
    """What was kept for an order and is not any more."""

    order: str
    lines: list[StockLine]


class Happened(msgspec.Struct, frozen=True):
    """One event of a product: when it happened and was recorded, under which id it went out, and what caused it."""

    version: int
    type: str
    time: datetime
    recorded_at: datetime
    event: str
    cause: str | None
    data: dict[str, Any]


def _repeated(body: type[Any]) -> dict[int, ResponseSpec]:
    return {200: ResponseSpec(body, generate_examples=False, description="The same request was answered so before")}


WRITES = [409, 413, 415, 422, 503, 507]


@stock.post("/receipts", problems=WRITES, responses=_repeated(Levels))
async def post_receipt(data: Receipt, store: UnitStore) -> Response[Levels]:
    """Take in a delivery, all of it or nothing."""
    return _response(await store.write(take_in, data))


@stock.post("/counts", problems=WRITES, responses=_repeated(Levels))
async def post_count(data: Count, store: UnitStore) -> Response[Levels]:
    """Set how many pieces of a product are there; 409 where ``version`` is given and is not the latest any more."""
    return _response(await store.write(take_stock, data))


@stock.post("/reservations", problems=WRITES, responses=_repeated(Reservation))
async def post_reservation(data: Reserve, store: UnitStore) -> Response[Reservation]:
    """Keep pieces for an order; 409 where there are too few, with what is missing as ``short``."""
    return _response(await store.write(keep, data))


@stock.post("/releases", problems=[404, *WRITES], responses=_repeated(Moved))
async def post_release(data: OfOrder, store: UnitStore) -> Response[Moved]:
    """Keep nothing for an order any more."""
    return _response(await store.write(let_go, data))


@stock.post("/collections", problems=[404, *WRITES], responses=_repeated(Moved))
async def post_collection(data: OfOrder, store: UnitStore) -> Response[Moved]:
    """Hand over what is kept for an order: it leaves the stock."""
    return _response(await store.write(hand_over, data))


@stock.get("/orders/{order:str}", problems=[404, 503])
async def get_order(order: FromPath[str], store: UnitStore) -> Reservation:
    """Say what is kept for an order."""
    found = await store.read(find_reservation, order)
    if found is None:
        raise _nothing_kept(order)
    return found


@stock.get("/products/{product:int}", problems=[404, 422, 503])
async def get_product(
    product: FromPath[int],
    store: UnitStore,
    at: Annotated[
        datetime | None, QueryParameter(description="What was there then, with an offset from UTC: all that happened.")
    ] = None,
) -> Level:
    """Say what there is of a product, or what was there at a time."""
    if at is not None and at.tzinfo is None:
        raise invalid(f"{at.isoformat()} has no offset from UTC", "at")
    found = await store.read(goods.find_level, product, at)
    if found is None:
        raise _unknown(product)
    return found


@stock.get("/products/{product:int}/history", problems=[404, 422, 503])
async def get_history(
    product: FromPath[int],
    store: UnitStore,
    after: Annotated[int, QueryParameter(ge=0, le=2**53, description="Begin behind this version.")] = 0,
    limit: Annotated[int, QueryParameter(ge=1, le=MAX_ROWS, description="Events, at most.")] = 100,
) -> list[Happened]:
    """List what happened to a product, in the order in which it was recorded."""
    found = await store.read(list_history, product, after, limit)
    if found is None:
        raise _unknown(product)
    return found


@stock.follow(SaleRecorded)
def take_out(tx: UnitOfWork, sale: SaleRecorded, message: Message) -> None:
    """Take a sale of the node's till out of the stock."""
    goods.sell(tx, sale, message.time)


@stock.on(ReserveStock)
def on_reserve(tx: UnitOfWork, command: ReserveStock) -> None:
    """Keep pieces for an order of the core, or refuse."""
    reservations.reserve(tx, command.order, command.lines, command.until, datetime.now(UTC))


@stock.expired(ReserveStock)
def on_reserve_expired(tx: UnitOfWork, command: ReserveStock) -> None:
    """Refuse what came too late to be done: the core waits for an answer."""
    tx.emit(StockRefused(order=command.order, short=[]))


@stock.on(ReleaseStock)
def on_release(tx: UnitOfWork, command: ReleaseStock) -> None:
    """Keep nothing for an order of the core any more."""
    reservations.release(tx, command.order)


@stock.on(CollectOrder)
def on_collect(tx: UnitOfWork, command: CollectOrder) -> None:
    """Take what was kept for an order of the core out of the stock."""
    reservations.collect(tx, command.order)


def take_in(tx: UnitOfWork, receipt: Receipt) -> Answered[Levels]:
    """Take in a delivery, once."""
    at = _in_utc(receipt.at, "at")

    def act() -> Levels:
        return Levels(goods.receive(tx, receipt.lines, receipt.request, at))

    return once(tx, "receipt", msgspec.structs.replace(receipt, at=at), Levels, act)


def take_stock(tx: UnitOfWork, counted: Count) -> Answered[Levels]:
    """Set how many pieces are there, once.

    Raises:
        VersionConflictError: something happened to the product since the version that was counted on.
    """
    at = _in_utc(counted.at, "at")

    def act() -> Levels:
        level = goods.count(tx, counted.product, counted.counted, counted.request, at, counted.version)
        return Levels([level])

    return once(tx, "count", msgspec.structs.replace(counted, at=at), Levels, act)


def keep(tx: UnitOfWork, asked: Reserve) -> Answered[Reservation]:
    """Keep pieces for an order, once.

    Raises:
        ProblemError: 409, there are too few; what was kept for the order before stays. 422, the time is past.
    """
    until = _in_utc(asked.until, "until")

    def act() -> Reservation:
        now = datetime.now(UTC)
        done = reservations.reserve(tx, asked.order, asked.lines, until, now)
        if isinstance(done, Reservation):
            return done
        if until <= now:
            raise invalid(f"{until.isoformat()} is past", "until")
        detail = "there is too little of " + ", ".join(str(line.product) for line in done)
        short = [msgspec.to_builtins(line) for line in done]
        raise ProblemError(409, "Conflict", detail, "lines", short=short)  # undoes the refusal, which is for the core

    return once(tx, "reservation", msgspec.structs.replace(asked, until=until), Reservation, act)


def let_go(tx: UnitOfWork, asked: OfOrder) -> Answered[Moved]:
    """Release an order, once; 404 where nothing is kept for it."""

    def act() -> Moved:
        return Moved(asked.order, reservations.release(tx, _kept(tx, asked.order)))

    return once(tx, "release", asked, Moved, act)


def hand_over(tx: UnitOfWork, asked: OfOrder) -> Answered[Moved]:
    """Hand over an order, once; 404 where nothing is kept for it."""

    def act() -> Moved:
        return Moved(asked.order, reservations.collect(tx, _kept(tx, asked.order)))

    return once(tx, "collection", asked, Moved, act)


def list_history(tx: Transaction, product: int, after: int, limit: int) -> list[Happened] | None:
    """Return a product's events behind a version; None where nothing is known of it."""
    entries = history_of(tx, Shelf, str(product), after=after, limit=limit)
    if not entries and not history_of(tx, Shelf, str(product), limit=1):
        return None
    return [
        Happened(
            each.version,
            each.event.spec.type,
            each.time,
            each.recorded_at,
            each.message_id,
            each.cause,
            msgspec.to_builtins(each.event),
        )
        for each in entries
    ]


def _kept(tx: UnitOfWork, order: str) -> str:
    if find_reservation(tx, order) is None:
        raise _nothing_kept(order)
    return order


def _response(answered: Answered[Any]) -> Response[Any]:
    return Response(answered.body, status_code=201 if answered.new else 200)


def _nothing_kept(order: str) -> ProblemError:
    return ProblemError(404, "Not Found", f"nothing is kept for order {order!r}", "order")


def _unknown(product: int) -> ProblemError:
    return ProblemError(404, "Not Found", f"nothing is known of product {product}", "product")


def _in_utc(at: datetime, field: str) -> datetime:
    try:
        return at.astimezone(UTC)
    except OverflowError:
        raise invalid(f"{at.isoformat()} is no time in the years 1 to 9999 of UTC", field) from None
