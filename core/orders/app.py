"""Orders over HTTP: placed once under the customer's own name for it, and told how they stand."""

from __future__ import annotations

import time
from typing import Annotated, Literal, NamedTuple

import msgspec
from litestar import Response
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import FromPath

from contracts.orders import Cents, OrderPlaced
from contracts.stock import StockLine
from core.orders.collecting import SAGAS, OrderSettings
from core.orders.paying import Payments
from core.orders.stand_in import StandIn
from forebay import Lane, Service, Transaction, UnitOfWork, UnitStore
from forebay.problems import ProblemError
from forebay.worker import AtWork, Work

orders = Service("orders", lanes=[Lane("ledger", budget="512MiB")], settings=OrderSettings)
orders.runs(SAGAS)

OrderName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9._-]{1,64}(?![\s\S])")]
NodeName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9-]{0,62}(?![\s\S])")]


class NewOrder(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An order as it is placed; ``store`` is the node of the store where it is to be collected."""

    order: OrderName
    store: NodeName
    lines: Annotated[list[StockLine], msgspec.Meta(min_length=1, max_length=200)]
    cents: Cents


class Order(msgspec.Struct, frozen=True, omit_defaults=True):
    """An order and how it stands: ``confirmed`` and ``cancelled`` are its two ends."""

    order: str
    store: str
    lines: list[StockLine]
    cents: int
    status: Literal["placed", "reserved", "confirmed", "cancelling", "cancelled"]
    reason: str | None = None


class Placed(NamedTuple):
    """An order, and whether it was placed just now."""

    order: Order
    new: bool


@orders.post(
    "/",
    problems=[409, 413, 415, 422, 503],
    responses={200: ResponseSpec(Order, generate_examples=False, description="The same order was placed before")},
)
async def place(data: NewOrder, store: UnitStore) -> Response[Order]:
    """Place an order; it answers when the order and what it asks of the store are on disk."""
    placed = await store.write(place_order, data)
    return Response(placed.order, status_code=201 if placed.new else 200)


@orders.get("/{order:str}", problems=[404, 503])
async def get_order(order: FromPath[str], store: UnitStore) -> Order:
    """Tell how an order stands."""
    found = await store.read(find_order, order)
    if found is None:
        raise ProblemError(404, "Not Found", f"no order {order!r} was placed here", "order")
    return found


@orders.works(every=1.0)
def paying(at_work: AtWork) -> Work:
    """Ask the payment provider for what the sagas want."""
    settings: OrderSettings = at_work.settings
    return Payments(StandIn(settings.stand_in), at_work.store, settings).settle


def place_order(tx: UnitOfWork, new: NewOrder) -> Placed:
    """Place an order and begin its saga, once.

    Raises:
        ProblemError: 409, the order is there with other contents.
    """
    known = find_order(tx, new.order)
    if known is not None:
        if (known.store, known.lines, known.cents) != (new.store, new.lines, new.cents):
            raise ProblemError(409, "Conflict", f"order {new.order!r} was placed before with other contents", "order")
        return Placed(known, new=False)
    tx.execute(
        "insert into placed_order (id, store, lines, cents, status, placed_at)"
        " values (:id, :store, :lines, :cents, 'placed', :placed_at)",
        id=new.order,
        store=new.store,
        lines=msgspec.json.encode(new.lines).decode(),
        cents=new.cents,
        placed_at=time.time_ns() // 1_000_000,
    )
    event = OrderPlaced(order=new.order, store=new.store, lines=new.lines, cents=new.cents)
    tx.emit(event)
    SAGAS.tell(tx, event)
    return Placed(Order(new.order, new.store, new.lines, new.cents, "placed"), new=True)


def find_order(tx: Transaction, order: str) -> Order | None:
    """Return an order, or None."""
    rows = tx.execute("select * from placed_order where id = :id", id=order)
    if not rows:
        return None
    row = rows[0]
    lines = msgspec.json.decode(row["lines"], type=list[StockLine])
    return Order(row["id"], row["store"], lines, row["cents"], row["status"], row["reason"])
