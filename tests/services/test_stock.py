"""The stock over HTTP, on a store of its own; and what follows from sales, commands and deadlines."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
import msgspec
import pytest

from contracts.stock import CollectOrder, ReleaseStock, ReserveStock, StockLine
from contracts.till import Line, SaleRecorded
from edge.stock import app as stock_app
from edge.stock import goods
from edge.stock.shelf import MOST_KEPT, Shelf
from forebay import Transaction, UnitOfWork
from forebay.aggregate import load
from forebay.timers import Timers
from tests.services.conftest import Serve, Served

NOON = datetime(2017, 1, 1, 12, tzinfo=UTC)
MILK, BREAD = 1095275, 9878513
PROBLEM = "application/problem+json"


@pytest.fixture
async def stock(serve: Serve) -> Served:
    return await serve(stock_app)


def at(minute: int) -> str:
    return (NOON + timedelta(minutes=minute)).isoformat().replace("+00:00", "Z")


def lines(**quantities: int) -> list[dict[str, int]]:
    return [{"product": globals()[name.upper()], "quantity": quantity} for name, quantity in quantities.items()]


async def post(stock: Served, what: str, **body: Any) -> Any:
    return await stock.http.post(f"/stock/{what}", json=body)


async def receive(stock: Served, request: str, minute: int = 0, **quantities: int) -> Any:
    answer = await post(stock, "receipts", request=request, at=at(minute), lines=lines(**quantities))
    assert answer.status_code == 201, answer.text
    return answer.json()


async def reserve(stock: Served, order: str, request: str = "", days: float = 1, **quantities: int) -> Any:
    until = (datetime.now(UTC) + timedelta(days=days)).isoformat()
    return await post(
        stock,
        "reservations",
        request=request or f"reserve {order}",
        order=order,
        lines=lines(**quantities),
        until=until,
    )


async def level(stock: Served, product: int, **query: str) -> tuple[int, int, int]:
    answer = await stock.http.get(f"/stock/products/{product}", params=query)
    assert answer.status_code == 200, answer.text
    body = answer.json()
    return body["on_hand"], body["reserved"], body["available"]


async def told(stock: Served) -> list[str]:
    return [event.kind for event in await stock.events()]


def sale(basket: str, **quantities: int) -> SaleRecorded:
    sold = [Line(line["product"], line["quantity"], 100) for line in lines(**quantities)]
    return SaleRecorded(basket=basket, household=1, lines=sold, cents=100 * len(sold))


async def test_a_delivery_is_on_the_shelves_and_told_product_by_product(stock: Served) -> None:
    body = await receive(stock, "D-1", milk=12, bread=3)
    assert body["products"] == [
        {"product": MILK, "on_hand": 12, "reserved": 0, "available": 12, "version": 1},
        {"product": BREAD, "on_hand": 3, "reserved": 0, "available": 3, "version": 1},
    ]
    events = await stock.events()
    assert [(event.type, event.key, event.time) for event in events] == [
        ("stock.units-received.v1", str(MILK), NOON),
        ("stock.units-received.v1", str(BREAD), NOON),
    ]
    assert msgspec.json.decode(events[0].body) == {"product": MILK, "quantity": 12, "reference": "D-1"}


async def test_the_same_request_again_gets_the_first_answer_and_changes_nothing(stock: Served) -> None:
    first = await receive(stock, "D-1", milk=12)
    await receive(stock, "D-2", milk=1)
    again = await post(stock, "receipts", request="D-1", at="2017-01-01T13:00:00+01:00", lines=lines(milk=12))
    assert (again.status_code, again.json()) == (200, first)
    assert await level(stock, MILK) == (13, 0, 13)


async def test_many_at_once_of_one_request_count_once(stock: Served) -> None:
    statuses: list[int] = []

    async def send() -> None:
        answer = await post(stock, "receipts", request="D-1", at=at(0), lines=lines(milk=12))
        statuses.append(answer.status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(10):
            tasks.start_soon(send)
    assert sorted(statuses) == [200] * 9 + [201]
    assert await level(stock, MILK) == (12, 0, 12)


@pytest.mark.parametrize("what", ["receipts", "counts"])
async def test_a_request_of_the_same_name_with_other_contents_is_a_conflict(stock: Served, what: str) -> None:
    await receive(stock, "D-1", milk=12)
    body = {"lines": lines(milk=13)} if what == "receipts" else {"product": MILK, "counted": 12}
    answer = await post(stock, what, request="D-1", at=at(0), **body)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (409, PROBLEM, "request")
    assert await level(stock, MILK) == (12, 0, 12)


async def test_a_request_is_known_for_a_month_and_forgotten_after_it(stock: Served) -> None:
    def age(tx: Transaction, request: str, days: int) -> None:
        made_at = int((datetime.now(UTC) - timedelta(days=days)).timestamp())
        tx.execute("update request set made_at = :at where request = :request", at=made_at, request=request)

    for request in ("old", "younger"):
        await receive(stock, request, milk=1)
    await stock.store.write(age, "old", 31)
    await stock.store.write(age, "younger", 29)
    await stock.store.write(lambda tx: tx.execute("insert into request (request, said, answer) values ('0.1', '', '')"))
    await receive(stock, "new", milk=1)
    rows = await stock.store.read(lambda tx: tx.execute("select request, made_at from request order by request"))
    assert [row["request"] for row in rows] == ["0.1", "new", "younger"]
    assert rows[0]["made_at"] == rows[1]["made_at"], "what an older release wrote counts from when that is noticed"


async def test_an_order_gets_all_of_its_products_or_none(stock: Served) -> None:
    await receive(stock, "D-1", milk=12, bread=3)
    refused = await reserve(stock, "o-1", milk=5, bread=4)
    assert (refused.status_code, refused.json()["short"]) == (409, lines(bread=1))
    assert await level(stock, MILK) == (12, 0, 12)
    kept = await reserve(stock, "o-1", milk=5, bread=3)
    assert (kept.status_code, kept.json()["lines"]) == (201, lines(milk=5, bread=3))
    assert await level(stock, MILK) == (12, 5, 7)
    assert (await stock.http.get("/stock/orders/o-1")).json() == kept.json()
    assert (await told(stock))[2:] == ["units-reserved", "units-reserved", "stock-reserved"]
    assert (await stock.events())[-1].key == "o-1"


async def test_what_is_kept_for_one_order_is_not_available_to_another(stock: Served) -> None:
    await receive(stock, "D-1", milk=12)
    assert (await reserve(stock, "o-1", milk=8)).status_code == 201
    assert (await reserve(stock, "o-2", milk=5)).json()["short"] == lines(milk=1)
    assert (await reserve(stock, "o-2", "again", milk=4)).status_code == 201
    assert await level(stock, MILK) == (12, 12, 0)


async def test_an_order_that_is_reserved_again_has_what_it_asked_for_last(stock: Served) -> None:
    await receive(stock, "D-1", milk=12, bread=3)
    await reserve(stock, "o-1", "1", milk=8, bread=1)
    assert (await reserve(stock, "o-1", "2", milk=12)).status_code == 201
    assert await level(stock, MILK) == (12, 12, 0)
    assert await level(stock, BREAD) == (3, 0, 3)
    assert (await reserve(stock, "o-1", "3", milk=13)).json()["short"] == lines(milk=1)
    assert await level(stock, MILK) == (12, 12, 0), "what was refused over HTTP changes nothing"


@pytest.mark.parametrize(("what", "kinds"), [("releases", "released"), ("collections", "collected")])
async def test_an_order_is_released_or_collected_once(stock: Served, what: str, kinds: str) -> None:
    await receive(stock, "D-1", milk=12)
    await reserve(stock, "o-1", milk=8)
    first = await post(stock, what, request="R-1", order="o-1")
    again = await post(stock, what, request="R-1", order="o-1")
    assert (first.status_code, again.status_code) == (201, 200)
    assert first.json() == again.json() == {"order": "o-1", "lines": lines(milk=8)}
    assert await level(stock, MILK) == ((12, 0, 12) if what == "releases" else (4, 0, 4))
    answer = "stock-released" if what == "releases" else "order-collected"
    assert (await told(stock))[-2:] == [f"units-{kinds}", answer]
    gone = await post(stock, what, request="R-2", order="o-1")
    assert (gone.status_code, gone.json()["field"]) == (404, "order")
    assert (await stock.http.get("/stock/orders/o-1")).status_code == 404


async def test_a_sale_is_a_fact_and_what_is_missing_after_it_is_told(stock: Served) -> None:
    await receive(stock, "D-1", milk=12)
    await reserve(stock, "o-1", milk=10)
    for basket, quantity in (("b-1", 2), ("b-2", 3), ("b-3", 9)):
        await stock.units.write(goods.sell, sale(basket, milk=quantity), NOON)
    assert await level(stock, MILK) == (-2, 10, -12)
    bodies = [msgspec.json.decode(each.body) for each in await stock.events() if each.kind == "shortage-found"]
    assert bodies == [
        {"product": MILK, "on_hand": 7, "reserved": 10, "missing": 3},
        {"product": MILK, "on_hand": -2, "reserved": 10, "missing": 12},
    ]
    assert (await reserve(stock, "o-2", milk=1)).status_code == 409
    assert (await post(stock, "collections", request="C-1", order="o-1")).status_code == 201
    assert await level(stock, MILK) == (-12, 0, -12)
    assert (await told(stock)).count("shortage-found") == 2, "nothing more is missing than before"


async def test_a_line_of_nothing_changes_nothing_and_the_largest_number_breaks_nothing(stock: Served) -> None:
    most = 2**63 - 1
    await stock.units.write(goods.sell, sale("b-0", bread=0), NOON)
    for basket in ("b-1", "b-2"):
        await stock.units.write(goods.sell, sale(basket, milk=most), NOON)
    assert (await stock.http.get(f"/stock/products/{BREAD}")).status_code == 404
    assert (await stock.units.read(load, Shelf, str(MILK))).on_hand == -(10**15)
    await stock.units.write(goods.receive, [StockLine(BREAD, 10**9)] * 3, "D-1", NOON)
    too_much = [{"product": BREAD, "quantity": MOST_KEPT}] * 2
    until = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    answer = await post(stock, "reservations", request="r", order="o-1", lines=too_much, until=until)
    assert answer.json()["short"] == lines(bread=MOST_KEPT)


async def test_a_count_says_what_is_there_unless_something_happened_since_it_began(stock: Served) -> None:
    version = (await receive(stock, "D-1", milk=12))["products"][0]["version"]
    await stock.units.write(goods.sell, sale("b-1", milk=1), NOON)
    body = {"product": MILK, "counted": 11, "at": at(5)}
    late = await post(stock, "counts", request="C-1", version=version, **body)
    assert (late.status_code, late.headers["content-type"]) == (409, PROBLEM)
    assert "version 2" in late.json()["detail"]
    done = await post(stock, "counts", request="C-2", version=2, **body)
    assert done.json()["products"] == [{"product": MILK, "on_hand": 11, "reserved": 0, "available": 11, "version": 3}]
    assert (await post(stock, "counts", request="C-3", **{**body, "counted": 0})).status_code == 201
    assert await level(stock, MILK) == (0, 0, 0)


async def test_a_product_can_be_seen_as_it_was_and_its_history_be_listed(stock: Served) -> None:
    await receive(stock, "D-1", 0, milk=12)
    await stock.units.write(goods.sell, sale("b-1", milk=2), NOON + timedelta(minutes=10))
    await receive(stock, "D-2", 5, milk=1)  # told late
    assert await level(stock, MILK) == (11, 0, 11)
    assert await level(stock, MILK, at=at(-1)) == (0, 0, 0)
    assert await level(stock, MILK, at="2017-01-01T13:07:00+01:00") == (13, 0, 13)
    entries = (await stock.http.get(f"/stock/products/{MILK}/history")).json()
    ids = [event.message_id for event in await stock.events()]
    assert [(each["version"], each["type"], each["time"], each["event"]) for each in entries] == [
        (1, "stock.units-received.v1", at(0), ids[0]),
        (2, "stock.units-sold.v1", at(10), ids[1]),
        (3, "stock.units-received.v1", at(5), ids[2]),
    ]
    assert entries[1]["data"] == {"product": MILK, "quantity": 2, "basket": "b-1"}
    page = await stock.http.get(f"/stock/products/{MILK}/history", params={"after": 1, "limit": 1})
    assert [each["version"] for each in page.json()] == [2]
    assert (await stock.http.get(f"/stock/products/{MILK}/history", params={"after": 9})).json() == []


@pytest.mark.parametrize("path", [f"/stock/products/{MILK}", f"/stock/products/{MILK}/history"])
async def test_a_product_of_which_nothing_is_known_is_not_found(stock: Served, path: str) -> None:
    answer = await stock.http.get(path)
    assert (answer.status_code, answer.json()["field"]) == (404, "product")


@pytest.mark.parametrize(
    ("what", "body", "field"),
    [
        ("receipts", {"request": "r", "at": "2017-01-01T12:00:00", "lines": lines(milk=1)}, "at"),
        ("receipts", {"request": "r", "at": "9999-12-31T23:59:59-01:00", "lines": lines(milk=1)}, "at"),
        ("receipts", {"request": "r", "at": at(0), "lines": lines(milk=0)}, "lines[0].quantity"),
        ("receipts", {"request": "", "at": at(0), "lines": lines(milk=1)}, "request"),
        ("counts", {"request": "r", "at": at(0), "product": MILK, "counted": -1}, "counted"),
        ("releases", {"request": "r", "order": "a b"}, "order"),
        ("reservations", {"request": "r", "order": "o", "lines": lines(milk=1), "until": at(0)}, "until"),
    ],
)
async def test_what_is_invalid_is_refused_by_name(stock: Served, what: str, body: dict[str, Any], field: str) -> None:
    await receive(stock, "D-1", milk=5)
    answer = await post(stock, what, **body)
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (422, PROBLEM, field)


async def test_a_time_without_an_offset_is_refused_by_name(stock: Served) -> None:
    await receive(stock, "D-1", milk=5)
    answer = await stock.http.get(f"/stock/products/{MILK}", params={"at": "2017-01-01T12:00:00"})
    assert (answer.status_code, answer.json()["field"]) == (422, "at")


async def test_an_order_that_is_not_collected_in_time_is_released(stock: Served) -> None:
    await receive(stock, "D-1", milk=12)
    await reserve(stock, "o%20-1", milk=8)
    await reserve(stock, "o-2", days=3, milk=2)
    await reserve(stock, "o-3", milk=1)
    await post(stock, "collections", request="C-1", order="o-3")
    later = datetime.now(UTC) + timedelta(days=2)
    timers = Timers(stock.service.timers, stock.units, later.timestamp)
    assert await timers.fire_due() == 1
    assert await level(stock, MILK) == (11, 2, 9)
    released = (await stock.events())[-2:]
    assert [each.kind for each in released] == ["units-released", "stock-released"]
    assert all(each.cause and each.cause.startswith("reservation:o%2520-1:until/") for each in released)


Do = Callable[[UnitOfWork, Any], None]


async def test_the_core_is_answered_whatever_it_asks(stock: Served) -> None:
    await receive(stock, "D-1", milk=12)
    until = datetime.now(UTC) + timedelta(days=1)

    def command(quantity: int, order: str = "o-1", until: datetime = until) -> ReserveStock:
        return ReserveStock(order=order, lines=[StockLine(MILK, quantity)], until=until)

    async def answer(do: Do, what: object) -> tuple[str, Any]:
        await stock.units.write(do, what)
        event = (await stock.events())[-1]
        return event.kind, msgspec.json.decode(event.body)

    kept = lines(milk=8)
    kind, body = await answer(stock_app.on_reserve, command(8))
    assert (kind, body["lines"]) == ("stock-reserved", kept)
    assert (await answer(stock_app.on_reserve, command(8)))[0] == "stock-reserved"
    assert await level(stock, MILK) == (12, 8, 4)
    short = await answer(stock_app.on_reserve, command(5, "o-2"))
    assert short == ("stock-refused", {"order": "o-2", "short": lines(milk=1)})
    past = await answer(stock_app.on_reserve, command(1, "o-2", NOON))
    assert past == ("stock-refused", {"order": "o-2", "short": []})
    expired = await answer(stock_app.on_reserve_expired, command(1, "o-2"))
    assert expired == ("stock-refused", {"order": "o-2", "short": []})
    nothing = await answer(stock_app.on_release, ReleaseStock(order="o-2"))
    assert nothing == ("stock-released", {"order": "o-2", "lines": []})
    collected = await answer(stock_app.on_collect, CollectOrder(order="o-1"))
    assert collected == ("order-collected", {"order": "o-1", "lines": kept})
    again = await answer(stock_app.on_collect, CollectOrder(order="o-1"))
    assert again == ("order-collected", {"order": "o-1", "lines": []})
    assert await level(stock, MILK) == (4, 0, 4)


async def test_an_order_of_the_core_that_is_refused_keeps_nothing_any_more(stock: Served) -> None:
    await receive(stock, "D-1", milk=12)
    await reserve(stock, "o-1", milk=8)
    until = datetime.now(UTC) + timedelta(days=1)
    await stock.units.write(stock_app.on_reserve, ReserveStock(order="o-1", lines=[StockLine(MILK, 13)], until=until))
    assert await level(stock, MILK) == (12, 0, 12)
    assert (await told(stock))[-2:] == ["units-released", "stock-refused"]
