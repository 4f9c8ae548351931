"""The till over HTTP, on a store of its own."""

from __future__ import annotations

import copy
from typing import Any

import anyio
import msgspec
import pytest

from edge.till import app as till_app
from forebay import Lane, Service
from forebay.errors import (
    ConstraintError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreClosedError,
    StoreError,
    StoreFullError,
)
from tests.services.conftest import Serve, Served

SALE: dict[str, Any] = {
    "basket": "31198570044",
    "household": 900,
    "at": "2017-01-01T11:53:26Z",
    "lines": [{"product": 1095275, "quantity": 1, "cents": 50}, {"product": 9878513, "quantity": 2, "cents": 199}],
}
PROBLEM = "application/problem+json"


@pytest.fixture
async def till(serve: Serve) -> Served:
    return await serve(till_app)


def sale(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(SALE), **changes}


async def test_a_sale_is_answered_with_its_total_and_its_events_message_id(till: Served) -> None:
    answer = await till.http.post("/till/sales", json=SALE)
    assert answer.status_code == 201
    (event,) = await till.events()
    assert answer.json() == {"sale": SALE, "event": event.message_id, "cents": 249}
    assert (event.type, event.kind, event.key) == ("till.sale-recorded.v1", "sale-recorded", "31198570044")
    assert event.time.isoformat() == "2017-01-01T11:53:26+00:00"
    assert msgspec.json.decode(event.body) == {
        "basket": "31198570044",
        "household": 900,
        "lines": SALE["lines"],
        "cents": 249,
    }


async def test_the_same_basket_again_gets_the_first_answer_and_emits_nothing(till: Served) -> None:
    first = await till.http.post("/till/sales", json=SALE)
    again = await till.http.post("/till/sales", json=sale(at="2017-01-01T12:53:26+01:00"))
    assert (first.status_code, again.status_code) == (201, 200)
    assert again.json() == first.json()
    assert len(await till.events()) == 1


async def test_many_at_once_of_one_basket_are_one_sale(till: Served) -> None:
    statuses: list[int] = []

    async def ring_up() -> None:
        statuses.append((await till.http.post("/till/sales", json=SALE)).status_code)

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(ring_up)
    assert sorted(statuses) == [200] * 19 + [201]
    assert len(await till.events()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"household": 901},
        {"at": "2017-01-01T11:53:27Z"},
        {"lines": SALE["lines"][:1]},
        {"lines": SALE["lines"][::-1]},
    ],
)
async def test_the_same_basket_with_other_contents_is_a_conflict_that_names_it(
    till: Served, changes: dict[str, Any]
) -> None:
    await till.http.post("/till/sales", json=SALE)
    answer = await till.http.post("/till/sales", json=sale(**changes))
    problem = answer.json()
    assert (answer.status_code, problem["status"], problem["field"]) == (409, 409, "basket")
    assert "31198570044" in problem["detail"]
    assert len(await till.events()) == 1


async def test_a_sale_can_be_read_as_it_was_rung_up(till: Served) -> None:
    rung_up = await till.http.post("/till/sales", json=SALE)
    assert (await till.http.get("/till/sales/31198570044")).json() == rung_up.json()


async def test_a_basket_of_any_letters_can_be_read_again(till: Served) -> None:
    basket = "Bäckerei 7 #1?%41"
    assert (await till.http.post("/till/sales", json=sale(basket=basket))).status_code == 201
    answer = await till.http.get("/till/sales/B%C3%A4ckerei%207%20%231%3F%2541")
    assert answer.json()["sale"]["basket"] == basket


async def test_an_unknown_basket_is_not_found(till: Served) -> None:
    answer = await till.http.get("/till/sales/1")
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (404, PROBLEM, "basket")


async def test_totals_are_of_one_day_of_utc(till: Served) -> None:
    for basket, at in [
        ("1", "2017-01-01T23:59:59Z"),
        ("2", "2017-01-02T00:30:00+01:00"),
        ("3", "2017-01-02T00:00:00Z"),
    ]:
        await till.http.post("/till/sales", json=sale(basket=basket, at=at))
    answer = await till.http.get("/till/totals", params={"day": "2017-01-01"})
    assert answer.json() == {"day": "2017-01-01", "sales": 2, "lines": 4, "cents": 498}
    empty = await till.http.get("/till/totals", params={"day": "2018-01-01"})
    assert empty.json() == {"day": "2018-01-01", "sales": 0, "lines": 0, "cents": 0}


@pytest.mark.parametrize("query", ["", "?day=", "?day=yesterday", "?day=2017-02-30", "?day=2017-1-1", "?day=20170101"])
async def test_a_day_that_is_none_is_refused_by_name(till: Served, query: str) -> None:
    answer = await till.http.get(f"/till/totals{query}")
    assert (answer.status_code, answer.headers["content-type"], answer.json()["field"]) == (422, PROBLEM, "day")


async def test_zeros_are_taken(till: Served) -> None:
    answer = await till.http.post("/till/sales", json=sale(lines=[{"product": 1, "quantity": 0, "cents": 0}]))
    assert (answer.status_code, answer.json()["cents"]) == (201, 0)


def line(**changes: Any) -> dict[str, Any]:
    return sale(lines=[SALE["lines"][0], {**SALE["lines"][1], **changes}])


def without(body: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != name}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (without(SALE, "basket"), "basket"),
        (without(SALE, "lines"), "lines"),
        (sale(lines=[SALE["lines"][0], {"product": 1, "cents": 1}]), "lines[1].quantity"),
        (sale(tip=1), "tip"),
        (line(vat=7), "lines[1].vat"),
        (sale(basket=31198570044), "basket"),
        (sale(basket=""), "basket"),
        (sale(basket="a/b"), "basket"),
        (sale(basket="a\n"), "basket"),
        (sale(basket="x" * 129), "basket"),
        (sale(household="900"), "household"),
        (sale(household=-1), "household"),
        (sale(household=2**63), "household"),
        (sale(household=True), "household"),
        (sale(household=None), "household"),
        (sale(at="2017-01-01T11:53:26"), "at"),
        (sale(at="yesterday"), "at"),
        (sale(at=1483271606), "at"),
        (sale(at="0001-01-01T00:00:00+23:00"), "at"),
        (sale(lines=[]), "lines"),
        (sale(lines={}), "lines"),
        (line(quantity=-1), "lines[1].quantity"),
        (line(quantity=1.5), "lines[1].quantity"),
        (line(cents="50"), "lines[1].cents"),
        (line(cents=-1), "lines[1].cents"),
        (line(cents=2**63), "lines[1].cents"),
        (line(product=2**70), "lines[1].product"),
        (line(cents=10**12), "lines"),
        (sale(lines=[1]), "lines[0]"),
    ],
)
async def test_what_is_readable_but_wrong_is_refused_by_name_and_leaves_nothing(
    till: Served, body: Any, field: str
) -> None:
    answer = await till.http.post("/till/sales", json=body)
    problem = answer.json()
    assert (answer.status_code, answer.headers["content-type"], problem["status"]) == (422, PROBLEM, 422)
    assert problem["field"] == field
    assert problem["detail"]
    assert await till.events() == []
    assert (await till.http.get("/till/totals?day=2017-01-01")).json()["sales"] == 0


@pytest.mark.parametrize("content", [b"", b"{", b"basket=1", b'{"basket":"\xff"}', b'{"household":01}'])
async def test_what_is_not_json_is_unreadable(till: Served, content: bytes) -> None:
    answer = await till.http.post("/till/sales", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (400, PROBLEM)


@pytest.mark.parametrize("content", [b"[]", b"null", b"5"])
async def test_json_that_is_no_object_is_invalid(till: Served, content: bytes) -> None:
    answer = await till.http.post("/till/sales", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (422, PROBLEM)


@pytest.mark.parametrize("media_type", ["text/plain", "application/xml", "", "application/json; charset=latin-1"])
async def test_another_media_type_is_refused(till: Served, media_type: str) -> None:
    answer = await till.http.post(
        "/till/sales", content=msgspec.json.encode(SALE), headers={"content-type": media_type}
    )
    assert (answer.status_code, answer.headers["content-type"]) == (415, PROBLEM)


async def test_parameters_of_the_media_type_are_allowed(till: Served) -> None:
    headers = {"content-type": 'Application/JSON; charset="UTF-8"'}
    answer = await till.http.post("/till/sales", content=msgspec.json.encode(SALE), headers=headers)
    assert answer.status_code == 201


async def test_a_sale_above_the_size_of_an_event_is_refused(till: Served) -> None:
    answer = await till.http.post("/till/sales", json=sale(lines=[SALE["lines"][0]] * 8000))
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    assert (await till.http.get("/till/sales/31198570044")).status_code == 404


@pytest.mark.parametrize("announced", [True, False])
async def test_a_request_above_its_limit_is_refused(till: Served, announced: bool) -> None:
    async def chunks() -> Any:
        for _ in range(9):
            yield b" " * (1024 * 1024)

    content: Any = b" " * (9 * 1024 * 1024) if announced else chunks()
    answer = await till.http.post("/till/sales", content=content, headers={"content-type": "application/json"})
    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)


async def test_unknown_paths_and_methods_are_problem_documents_too(till: Served) -> None:
    missing = await till.http.get("/till/nothing")
    wrong = await till.http.delete("/till/sales")
    assert (missing.status_code, missing.headers["content-type"]) == (404, PROBLEM)
    assert (wrong.status_code, wrong.headers["content-type"]) == (405, PROBLEM)
    assert "POST" in wrong.headers["allow"]


async def test_a_spent_budget_says_when_to_try_again_but_repeats_are_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = Service("till", lanes=[Lane("ledger", budget="1KiB")])
    small._routes = till_app.till._routes
    monkeypatch.setattr(till_app, "till", small)
    till = await serve(till_app)
    assert (await till.http.post("/till/sales", json=SALE)).status_code == 201
    answer = await till.http.post("/till/sales", json=sale(basket="2"))
    while answer.status_code == 201:
        answer = await till.http.post("/till/sales", json=sale(basket=answer.json()["sale"]["basket"] + "0"))
    assert (answer.status_code, answer.headers["content-type"]) == (503, PROBLEM)
    assert int(answer.headers["retry-after"]) >= 1
    assert (await till.http.post("/till/sales", json=SALE)).status_code == 200


@pytest.mark.parametrize(
    ("error", "status", "retry", "stored"),
    [
        (StoreFullError("disk I/O at /secret"), 507, False, None),
        (StoreBusyError("locked at /secret"), 503, True, None),
        (StoreClosedError("closed /secret"), 503, True, None),
        (StoreError("failed /secret"), 503, True, None),
        (OutcomeUnknownError("COMMIT /secret"), 503, True, "unknown"),
        (ConstraintError("UNIQUE /secret"), 409, False, None),
        (ZeroDivisionError("/secret"), 500, False, None),
    ],
)
async def test_failures_are_answered_without_their_inside(
    till: Served, monkeypatch: pytest.MonkeyPatch, error: Exception, status: int, retry: bool, stored: str | None
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(till_app, "record_sale", fail)
    answer = await till.http.post("/till/sales", json=SALE)
    assert (answer.status_code, answer.headers["content-type"]) == (status, PROBLEM)
    assert ("retry-after" in answer.headers) is retry
    assert answer.json().get("stored") == stored
    assert "secret" not in answer.text
