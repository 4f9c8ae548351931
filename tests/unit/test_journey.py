import asyncio
import gzip
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from bench.journey import (
    Comparison,
    Expected,
    Line,
    Progress,
    RefusedError,
    Sale,
    StoppedError,
    Totals,
    compare,
    expected_totals,
    load_sales,
    load_slice,
    main,
    ring_up,
    save_slice,
    table,
    till_urls,
    to_cents,
)

SLICE = Path(__file__).parents[1] / "data" / "journey-store-330-week.ndjson.gz"
URLS = {"store-330": "http://till.test"}
Answer = Callable[[httpx.Request], httpx.Response]


class Waits:
    """Stands in for asyncio.sleep: remembers the seconds and goes on at once."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    async def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        await asyncio.sleep(0)


def sale(basket: str = "1", *, store: int = 330, cents: int = 50, day: int = 1) -> Sale:
    return Sale(store, basket, 900, datetime(2017, 1, day, 11, 53, 26, tzinfo=UTC), (Line(1095275, 1, cents),))


async def rung_up(
    answer: Answer, *sales: Sale, waits: Waits | None = None, stop_after: float | None = None
) -> Progress:
    return await ring_up(
        sales or (sale(),),
        URLS,
        transport=httpx.MockTransport(answer),
        sleep=waits or Waits(),
        stop_after=stop_after,
        seed=1,
    )


def one_after_another(*answers: httpx.Response | Exception) -> Answer:
    left = list(answers)

    def answer(_: httpx.Request) -> httpx.Response:
        following = left.pop(0)
        if isinstance(following, Exception):
            raise following
        return following

    return answer


def core(expected: Expected) -> Answer:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/sales/stores":
            rows = [
                {"node": node, "sales": t.sales, "lines": t.lines, "cents": t.cents}
                for node, t in expected.stores.items()
            ]
            return httpx.Response(200, json={"stores": rows})
        node = request.url.params["node"]
        days = [
            {"day": day, "sales": t.sales, "lines": t.lines, "cents": t.cents}
            for day, t in expected.days.get(node, {}).items()
        ]
        return httpx.Response(200, json={"node": node, "days": days})

    return answer


async def compared(answer: Answer, expected: Expected, *, limit: float = 0.0) -> Comparison:
    return await compare(
        "http://core.test", expected, limit=limit, transport=httpx.MockTransport(answer), sleep=Waits()
    )


def test_the_slice_is_one_week_of_store_330_with_known_sums() -> None:
    sales = load_slice(SLICE)
    expected = expected_totals(sales)
    assert expected.stores == {"store-330": Totals(sales=69, lines=461, cents=142133)}
    assert len({one.basket for one in sales}) == 69
    assert list(expected.days["store-330"]) == [f"2017-03-{day}" for day in range(20, 27)]


def test_the_days_of_the_slice_add_up_to_its_total() -> None:
    raw = [json.loads(line) for line in gzip.decompress(SLICE.read_bytes()).splitlines()]
    by_day: Counter[str] = Counter()
    for one in raw:
        by_day[one["at"][:10]] += sum(line["cents"] for line in one["lines"])
    days = expected_totals(load_slice(SLICE)).days["store-330"]
    assert {day: totals.cents for day, totals in days.items()} == dict(by_day)
    assert sum(by_day.values()) == 142133


def test_the_slice_is_exactly_what_the_package_holds(tmp_path: Path) -> None:
    made = tmp_path / "slice.ndjson.gz"
    arguments = ["slice", "--store", "330", "--from", "2017-03-20", "--days", "7", "--out", str(made)]
    assert main(arguments) == 0
    assert gzip.decompress(made.read_bytes()) == gzip.decompress(SLICE.read_bytes())
    assert SLICE.stat().st_size < 300_000


def test_the_busiest_stores_come_first_and_every_line_is_read() -> None:
    sales = load_sales(3, 7, date(2017, 1, 1))
    expected = expected_totals(sales)
    assert {node: (t.sales, t.lines) for node, t in expected.stores.items()} == {
        "store-361": (83, 652),
        "store-367": (67, 697),
        "store-381": (61, 530),
    }
    assert list(expected.stores) == ["store-361", "store-367", "store-381"]


def test_a_store_without_baskets_in_these_days_is_told() -> None:
    with pytest.raises(LookupError, match="no basket of store 9999999"):
        load_sales([9999999], 7, date(2017, 1, 1))


def test_a_slice_that_is_saved_is_read_back_the_same_and_has_the_same_bytes_each_time(tmp_path: Path) -> None:
    sales = [sale("1"), sale("2", cents=0)]
    for name in ("one", "other"):
        save_slice(tmp_path / name, sales)
    assert load_slice(tmp_path / "one") == sales
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


def test_every_price_up_to_a_thousand_becomes_its_exact_cents() -> None:
    wrong = [cents for cents in range(100_000) if to_cents(float(Decimal(cents) / 100)) != cents]
    assert wrong == []


@pytest.mark.parametrize("value", [0.0, 1.776357e-15, 5.551115e-17])
def test_what_is_left_of_a_subtraction_is_zero_cents(value: float) -> None:
    assert to_cents(value) == 0


@pytest.mark.parametrize("value", [0.005, 1.999])
def test_what_is_not_whole_cents_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not whole cents"):
        to_cents(value)


async def test_a_sale_is_posted_as_the_till_reads_it() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201)

    progress = await rung_up(answer, sale("31198570044"))
    assert str(seen[0].url) == "http://till.test/till/sales"
    assert json.loads(seen[0].content) == {
        "basket": "31198570044",
        "household": 900,
        "at": "2017-01-01T11:53:26Z",
        "lines": [{"product": 1095275, "quantity": 1, "cents": 50}],
    }
    assert (progress.created, progress.repeated, progress.retries) == (1, 0, 0)


@pytest.mark.parametrize(
    "failure",
    [
        httpx.ConnectError("refused"),
        httpx.ReadError("reset"),
        httpx.ReadTimeout("slow"),
        httpx.RemoteProtocolError("closed without an answer"),
        httpx.Response(500),
        httpx.Response(503),
        httpx.Response(507),
    ],
    ids=lambda failure: str(getattr(failure, "status_code", type(failure).__name__)),
)
async def test_a_basket_is_sent_again_after_a_failure_that_passes(failure: httpx.Response | Exception) -> None:
    progress = await rung_up(one_after_another(failure, failure, httpx.Response(201)))
    assert (progress.done, progress.retries) == (1, 2)


async def test_a_basket_whose_answer_was_lost_counts_once_though_the_till_knows_it() -> None:
    progress = await rung_up(one_after_another(httpx.ReadError("killed after the commit"), httpx.Response(200)))
    assert (progress.created, progress.repeated, progress.done) == (0, 1, 1)


async def test_retry_after_is_waited_out_and_jitter_stays_within_its_bounds() -> None:
    waits = Waits()
    busy = httpx.Response(503, headers={"Retry-After": "7"})
    await rung_up(one_after_another(busy, *[httpx.ConnectError("down")] * 20, httpx.Response(201)), waits=waits)
    assert 7.0 <= waits.seconds[0] <= 7.05
    assert max(waits.seconds[1:]) <= 2.0
    assert len(set(waits.seconds)) == 21


@pytest.mark.parametrize("status", [400, 404, 409, 422, 302])
async def test_an_answer_that_sending_again_cannot_change_stops_everything_and_is_shown(status: int) -> None:
    with pytest.raises(RefusedError, match=f"answered {status}: other content") as caught:
        await rung_up(lambda _: httpx.Response(status, text="other content"), *[sale(str(n)) for n in range(100)])
    assert caught.value.status == status


async def test_a_till_that_stays_away_is_given_up_only_after_the_limit() -> None:
    with pytest.raises(StoppedError, match=r"0 of 1 baskets after 0\.05 s"):
        await rung_up(one_after_another(*[httpx.ConnectError("down")] * 100_000), stop_after=0.05)


async def test_every_basket_of_the_slice_is_sent_once_where_nothing_fails() -> None:
    sales, seen = load_slice(SLICE), Counter[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        seen[json.loads(request.content)["basket"]] += 1
        return httpx.Response(201)

    progress = await rung_up(answer, *sales)
    assert progress.created == 69
    assert seen == Counter(one.basket for one in sales)


async def test_totals_that_are_right_are_equal_to_the_cent() -> None:
    expected = expected_totals(load_slice(SLICE))
    comparison = await compared(core(expected), expected)
    assert comparison.equal
    assert "equal to the cent" in table(comparison)


@pytest.mark.parametrize("cents", [49, 51])
async def test_one_cent_too_few_or_too_many_is_a_difference(cents: int) -> None:
    expected = expected_totals([sale(cents=50)])
    comparison = await compared(core(expected_totals([sale(cents=cents)])), expected)
    assert not comparison.equal
    assert f"store-330: cents {cents} instead of 50" in table(comparison)
    assert "equal" not in table(comparison)


async def test_a_sale_on_the_wrong_day_is_a_difference_though_the_store_is_right() -> None:
    comparison = await compared(core(expected_totals([sale(day=2)])), expected_totals([sale(day=1)]))
    assert [text[:20] for text in comparison.differences] == ["store-330 2017-01-01", "store-330 2017-01-02"]


async def test_a_core_that_knows_nothing_or_is_down_is_a_difference_after_the_limit() -> None:
    def down(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("down")

    expected = expected_totals([sale()])
    for answer in (down, core(Expected({}, {})), lambda _: httpx.Response(503)):
        comparison = await compared(answer, expected)
        assert comparison.differences == (
            "store-330: sales 0 instead of 1, lines 0 instead of 1, cents 0 instead of 50",
        )


async def test_the_core_is_asked_until_it_has_caught_up() -> None:
    expected, asked = expected_totals([sale()]), Counter[str]()

    def answer(request: httpx.Request) -> httpx.Response:
        asked[request.url.path] += 1
        return core(expected if asked["/sales/stores"] > 3 else Expected({}, {}))(request)

    comparison = await compared(answer, expected, limit=60)
    assert comparison.equal
    assert asked["/sales/stores"] == 4


async def test_a_core_that_answers_something_else_is_refused() -> None:
    with pytest.raises(RefusedError, match="answered 200"):
        await compared(lambda _: httpx.Response(200, json={"shops": []}), expected_totals([sale()]))


async def test_stores_that_were_not_rung_up_are_named_and_are_no_difference() -> None:
    comparison = await compared(core(expected_totals([sale(), sale("2", store=7)])), expected_totals([sale()]))
    assert comparison.equal
    assert comparison.others == ("store-7",)


def test_nodes_are_on_the_ports_after_the_first_unless_they_are_named() -> None:
    nodes = ["store-1", "store-2", "store-3"]
    named = {"store-2": "http://10.0.0.2"}
    assert till_urls(nodes, named=named) == {
        "store-1": "http://127.0.0.1:8100",
        "store-2": "http://10.0.0.2",
        "store-3": "http://127.0.0.1:8102",
    }
    assert till_urls(nodes[:1], template="http://{node}.lan:{port}") == {"store-1": "http://store-1.lan:8100"}


def test_the_plan_names_the_nodes_in_the_order_of_their_ports(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--stores", "3", "--plan"]) == 0
    assert capsys.readouterr().out == "forebay up --nodes store-361,store-367,store-381\n"
