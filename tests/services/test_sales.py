from collections.abc import AsyncIterator
from datetime import datetime, timedelta, timezone
from pathlib import Path

import httpx
import msgspec
import pytest

from contracts.till import Line, SaleRecorded
from tests.integration.arrivals import NEW, Core, Stream
from tests.services.core_app import SALES, application, client_of, open_core


@pytest.fixture
async def core(tmp_path: Path) -> AsyncIterator[Core]:
    async with open_core(tmp_path, SALES) as core:
        yield core


@pytest.fixture
async def client(core: Core) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(application({SALES: core})) as client:
        yield client


def sale(*cents: int) -> bytes:
    lines = [Line(product=1095275, quantity=1, cents=each) for each in cents]
    return msgspec.json.encode(SaleRecorded(basket="31198570044", household=900, lines=lines, cents=sum(cents)))


def at(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_sales_lines_and_cents_add_up_per_node(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take(
        [stream.event(1, sale(50, 0)), stream.event(2, sale(199)), stream.event(1, sale(7), node="store-1")]
    )
    await core.take([stream.event(3, sale(1, 2, 3)), stream.event(2, sale(199))])

    assert (await client.get("/sales/stores")).json() == {
        "stores": [
            {"node": "store-1", "sales": 1, "lines": 1, "cents": 7},
            {"node": "store-330", "sales": 3, "lines": 6, "cents": 255},
        ]
    }
    assert (await client.get("/sales/stores/store-330")).json() == {
        "node": "store-330",
        "sales": 3,
        "lines": 6,
        "cents": 255,
    }


async def test_a_sale_counts_for_the_utc_day_on_which_it_happened(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    late = at("2017-01-01T20:00:00").replace(tzinfo=timezone(-timedelta(hours=5)))
    await core.take(
        [
            stream.event(1, sale(1), time=at("2017-01-01T23:59:59.999999+00:00")),
            stream.event(2, sale(20), time=at("2017-01-02T00:00:00+00:00")),
            stream.event(3, sale(300), headers={"ce-time": late.isoformat()}),
            stream.event(1, sale(4000), node="store-1", epoch=NEW),
        ]
    )

    assert (await client.get("/sales/days?node=store-330")).json() == {
        "node": "store-330",
        "days": [
            {"day": "2017-01-01", "sales": 1, "lines": 1, "cents": 1},
            {"day": "2017-01-02", "sales": 2, "lines": 2, "cents": 320},
        ],
    }


async def test_sales_one_by_one_make_the_same_totals_as_in_a_batch(tmp_path: Path) -> None:
    totals = []
    for one_by_one in (True, False):
        stream = Stream()
        async with open_core(tmp_path / str(one_by_one), SALES) as core:
            await core.take([stream.event(n, sale(n, n)) for n in range(1, 40)], one_by_one=one_by_one)
            totals.append((await core.rows("select * from store_total"), await core.rows("select * from day_total")))
    assert totals[0] == totals[1]
    assert totals[0][0] == [{"node": "store-330", "sales": 39, "lines": 78, "cents": 1560}]


async def test_a_core_without_sales_has_no_stores(client: httpx.AsyncClient) -> None:
    assert (await client.get("/sales/stores")).json() == {"stores": []}


async def test_a_node_that_never_sold_anything_is_not_found_and_has_no_days(client: httpx.AsyncClient) -> None:
    answer = await client.get("/sales/stores/store-404")

    assert answer.status_code == 404
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == "node"
    assert (await client.get("/sales/days?node=store-404")).json() == {"node": "store-404", "days": []}


@pytest.mark.parametrize(
    "path", ["/sales/stores/Store%20330", "/sales/stores/-", "/sales/days?node=%00", "/sales/days?node=", "/sales/days"]
)
async def test_what_is_no_nodes_name_is_a_problem_that_names_the_field(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)

    assert answer.status_code == 422
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["field"] == "node"


async def test_a_sale_that_no_sum_can_hold_is_parked_and_the_next_ones_count(core: Core) -> None:
    stream = Stream()
    await core.take([stream.event(1, sale(10**30)), stream.event(2, sale(2**63 - 1)), stream.event(3, sale(7))])

    assert [reason for reason, _ in await core.parked()] == ["undecodable-body"] * 2
    assert (await core.rows("select sales, cents from store_total")) == [{"sales": 1, "cents": 7}]


def basket(*lines: tuple[int, int, int]) -> bytes:
    known = [Line(product=product, quantity=quantity, cents=cents) for product, quantity, cents in lines]
    total = sum(line.cents for line in known)
    return msgspec.json.encode(SaleRecorded(basket="31198570044", household=900, lines=known, cents=total))


async def test_products_add_up_over_all_nodes_and_departments_per_node(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    await core.take(
        [
            stream.event(1, basket((1095275, 2, 100), (25671, 1, 350), (7, 3, 30))),
            stream.event(1, basket((1095275, 1, 50)), node="store-1", epoch=NEW),
        ]
    )

    assert (await client.get("/sales/products")).json() == {
        "products": [
            {"product": 7, "department": "unknown", "lines": 1, "units": 3, "cents": 30},
            {"product": 25671, "department": "GROCERY", "lines": 1, "units": 1, "cents": 350},
            {"product": 1095275, "department": "PASTRY", "lines": 2, "units": 3, "cents": 150},
        ],
        "next": None,
    }
    assert (await client.get("/sales/departments?node=store-330")).json() == {
        "node": "store-330",
        "departments": [
            {"department": "GROCERY", "lines": 1, "units": 1, "cents": 350},
            {"department": "PASTRY", "lines": 1, "units": 2, "cents": 100},
            {"department": "unknown", "lines": 1, "units": 3, "cents": 30},
        ],
    }
    assert (await client.get("/sales/departments?node=store-404")).json() == {"node": "store-404", "departments": []}
    assert (await client.get("/sales/products/25671")).json()["cents"] == 350
    answer = await client.get("/sales/products/8")
    assert (answer.status_code, answer.json()["field"]) == (404, "product")


async def test_products_come_page_by_page(core: Core, client: httpx.AsyncClient) -> None:
    await core.take([Stream().event(1, basket(*((product, 1, product) for product in range(5))))])
    found, after = [], ""
    for _ in range(3):
        page = (await client.get(f"/sales/products?limit=2{after}")).json()
        found.append([each["product"] for each in page["products"]])
        after = f"&after={page['next']}"
    assert (found, page["next"]) == ([[0, 1], [2, 3], [4]], None)


async def test_a_sale_counts_for_the_utc_hour_in_which_it_happened(core: Core, client: httpx.AsyncClient) -> None:
    stream = Stream()
    late = at("2017-01-01T20:30:00").replace(tzinfo=timezone(-timedelta(hours=5)))
    await core.take(
        [
            stream.event(1, sale(1), time=at("2017-01-01T23:59:59.999999+00:00")),
            stream.event(2, sale(20), time=at("2017-01-02T00:00:00+00:00")),
            stream.event(3, sale(300), headers={"ce-time": late.isoformat()}),
        ]
    )
    assert (await client.get("/sales/hours?node=store-330&day=2017-01-02")).json() == {
        "node": "store-330",
        "day": "2017-01-02",
        "hours": [
            {"hour": "2017-01-02T00", "sales": 1, "lines": 1, "cents": 20},
            {"hour": "2017-01-02T01", "sales": 1, "lines": 1, "cents": 300},
        ],
    }
    assert [
        row["hour"] for row in (await client.get("/sales/hours?node=store-330&day=2017-01-01")).json()["hours"]
    ] == ["2017-01-01T23"]


async def test_what_an_older_read_model_does_not_have_is_not_shown_until_it_was_rebuilt(
    core: Core, client: httpx.AsyncClient
) -> None:
    await core.take([Stream().event(1, sale(7))])
    await core.store.write(lambda tx: tx.execute("update forebay_projection set version = 1"))
    for path in ("products", "products/1095275", "departments?node=store-330", "hours?node=store-330&day=2017-01-01"):
        answer = await client.get(f"/sales/{path}")
        assert (answer.status_code, answer.headers["content-type"]) == (503, "application/problem+json"), path
    assert (await client.get("/sales/stores/store-330")).status_code == 200


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("products?after=x", "after"),
        ("products?after=-1", "after"),
        ("products?limit=0", "limit"),
        ("products/abc", "product"),
        ("products/9223372036854775808", "product"),
        ("departments?node=%00", "node"),
        ("hours?node=store-330&day=2017-1-1", "day"),
        ("hours?node=store-330&day=20170101", "day"),
        ("hours?node=store-330", "day"),
    ],
)
async def test_what_cannot_be_asked_is_a_problem_that_names_the_field(
    client: httpx.AsyncClient, path: str, field: str
) -> None:
    answer = await client.get(f"/sales/{path}")
    assert (answer.status_code, answer.json()["field"]) == (422, field)


async def test_more_units_than_any_sum_can_hold_are_parked_and_the_next_sales_count(core: Core) -> None:
    stream = Stream()
    handled = await core.take([stream.event(1, basket((1, 10**9, 1))), stream.event(2, basket((1, 10**9, 1)))])
    assert handled.applied == 2
    with pytest.raises(Exception, match="units of product 1"):
        await core.take([stream.event(3, basket((1, 10**9 + 1, 1)))])
