"""Which routes go the short way, and that it answers as Litestar's own way does."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
import pytest
from litestar import Litestar, Response

from forebay import Event, Lane, Service, UnitOfWork, UnitStore
from forebay.direct import form_of
from forebay.problems import exception_handlers
from forebay.testing.stores import opened
from forebay.transaction import Transaction

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class DoorOpened(Event, service="door", kind="door-opened", key="door"):
    door: str


class Opening(msgspec.Struct):
    """A body."""

    door: Annotated[str, msgspec.Meta(min_length=1)]


class Opened(msgspec.Struct):
    """An answer."""

    event: str


class Settings(msgspec.Struct):
    """The service's."""

    prefix: str = ""


def open_door(tx: UnitOfWork, door: str) -> Opened:
    return Opened(tx.emit(DoorOpened(door=door)))


def declared(short: bool) -> Service:
    """The same routes; with an option of Litestar's they go its way."""
    door = Service("door", lanes=[Lane("ledger", budget="1MiB")], settings=Settings)
    options: dict[str, Any] = {} if short else {"opt": {"long": True}}

    @door.post("/open", problems=[413, 415, 422], **options)
    async def open_one(data: Opening, store: UnitStore, settings: Settings) -> Opened:
        return await store.write(open_door, settings.prefix + data.door)

    @door.post("/again", status_code=200, **options)
    async def again(data: Opening) -> Response[Opening]:
        return Response(data, status_code=202 if data.door == "a" else None)

    @door.post("/marked", **options)
    async def marked(data: Opening) -> Response[Opening]:
        return Response(data, headers={"x-mark": "1"})

    @door.post("/break", **options)
    async def broken(data: Opening) -> Opened:
        raise RuntimeError(data.door)

    return door


@pytest.fixture(params=[True, False], ids=["short", "Litestar's"])
async def http(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, UnitStore]]:
    door = declared(request.param)
    assert [route.form is not None for route in door._routes] == [request.param] * 4
    async with opened(door, tmp_path) as store:
        app: Any = Litestar(
            [door.router(store, {"prefix": "front-"})],
            exception_handlers=exception_handlers(),
            request_max_body_size=1000,
            openapi_config=None,
            logging_config=None,
        )
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            yield client, store


Http = tuple[httpx.AsyncClient, UnitStore]


def keys(tx: Transaction) -> list[str]:
    return [row["key"] for row in tx.execute("select key from forebay_outbox")]


async def test_a_body_becomes_a_unit_of_work_and_its_answer(http: Http) -> None:
    client, store = http
    answer = await client.post("/door/open", json={"door": "a"})
    assert (answer.status_code, answer.headers["content-type"]) == (201, "application/json")
    assert answer.json()["event"].endswith("-1")
    assert await store.read(keys) == ["front-a"]


async def test_a_response_says_its_status_and_headers(http: Http) -> None:
    client, _ = http
    assert [(await client.post("/door/again", json={"door": door})).status_code for door in "ab"] == [202, 200]
    answer = await client.post("/door/marked", json={"door": "a"})
    assert (answer.status_code, answer.json(), answer.headers["x-mark"]) == (201, {"door": "a"}, "1")


@pytest.mark.parametrize(
    ("content", "headers", "status"),
    [
        (b"", {"content-type": "application/json"}, 400),
        (b"{", {"content-type": "application/json"}, 400),
        (b'{"door":""}', {"content-type": "application/json"}, 422),
        (b"{}", {"content-type": "application/json; charset=UTF-8"}, 422),
        (b"{}", {"content-type": "text/plain"}, 415),
        (b"{}", {}, 415),
        (b" " * 1001, {"content-type": "application/json"}, 413),
    ],
)
async def test_what_is_wrong_is_a_problem_document(
    http: Http, content: bytes, headers: dict[str, str], status: int
) -> None:
    client, store = http
    answer = await client.post("/door/open", content=content, headers=headers)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status
    assert await store.read(keys) == []


async def test_a_body_that_grows_above_the_limit_is_refused(http: Http) -> None:
    client, _ = http

    async def parts() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 100

    answer = await client.post("/door/open", content=parts(), headers={"content-type": "application/json"})
    assert answer.status_code == 413


async def test_a_mistake_of_ours_is_a_500(http: Http) -> None:
    client, _ = http
    answer = await client.post("/door/break", json={"door": "secret"})
    assert (answer.status_code, "secret" in answer.text) == (500, False)


async def test_other_methods_are_answered_by_litestar(http: Http) -> None:
    client, _ = http
    assert (await client.get("/door/open")).status_code == 405


async def plain(data: Opening) -> Opened: ...  # type: ignore[empty-body]
async def with_a_query(data: Opening, day: int) -> Opened: ...  # type: ignore[empty-body]
async def of_text(data: Opening) -> str: ...  # type: ignore[empty-body]
def synchronous(data: Opening) -> Opened: ...  # type: ignore[empty-body]


@pytest.mark.parametrize(
    ("function", "options", "short"),
    [
        (plain, {}, True),
        (plain, {"status_code": 200, "responses": {}}, True),
        (plain, {"guards": []}, False),
        (with_a_query, {}, False),
        (of_text, {}, False),
        (synchronous, {}, False),
    ],
)
def test_only_what_needs_nothing_else_goes_the_short_way(function: Any, options: dict[str, Any], short: bool) -> None:
    assert (form_of(function, options) is not None) == short
