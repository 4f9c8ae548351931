"""What the core's OpenAPI document says is what the core answers."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import schemathesis
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, given, settings
from litestar import Litestar
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.arrivals import OLD, Stream
from tests.services.core_app import ARCHIVE, COLDWATCH, SALES, application, client_of, open_core

Case = schemathesis.Case[Any]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


RESPONSES = {
    "/sales/stores": ["200", "400", "503"],
    "/sales/stores/{node}": ["200", "400", "404", "422", "503"],
    "/sales/days": ["200", "400", "422", "503"],
    "/sales/hours": ["200", "400", "422", "503"],
    "/sales/departments": ["200", "400", "422", "503"],
    "/sales/products": ["200", "400", "422", "503"],
    "/sales/products/{product}": ["200", "400", "404", "422", "503"],
    "/archive/events": ["200", "400", "422", "503"],
    "/archive/conflicts": ["200", "400", "422", "503"],
    "/coldwatch/alerts": ["200", "400", "422", "503"],
    "/coldwatch/fridges": ["200", "400", "503"],
    "/archive/events/{message_id}": ["200", "400", "404", "409", "422", "503"],
}


class Running:
    """The core on an event loop of its own, for tests that are plain functions."""

    def __init__(self, portal: BlockingPortal, app: Litestar, client: httpx.AsyncClient) -> None:
        self._portal = portal
        self._client = client
        self.app = app

    def send(self, case: Case) -> httpx.Response:
        sent = case.as_transport_kwargs(base_url="http://core")
        kept = {name: sent[name] for name in ("method", "url", "headers", "params", "cookies") if sent.get(name)}

        async def request() -> httpx.Response:
            return await self._client.request(**kept)

        return self._portal.call(request)


@asynccontextmanager
async def _running(folder: Path) -> AsyncIterator[tuple[Litestar, httpx.AsyncClient]]:
    stream = Stream()
    events = [stream.event(1), stream.foreign("f", b"{"), stream.foreign("f", node="store-1"), stream.foreign("0")]
    async with (
        open_core(folder, SALES) as sales,
        open_core(folder, ARCHIVE) as archive,
        open_core(folder, COLDWATCH) as coldwatch,
    ):
        for core in (sales, archive):
            await core.take(events)
        app = application({SALES: sales, ARCHIVE: archive, COLDWATCH: coldwatch})
        async with client_of(app) as client:
            yield app, client


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(_running(tmp_path_factory.mktemp("core"))) as (app, client),
    ):
        yield Running(portal, app, client)


@pytest.fixture(scope="module")
def document(running: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_dict(running.app.openapi_schema.to_schema())


@pytest.mark.parametrize(
    ("path", "mode"),
    [
        *((path, GenerationMode.POSITIVE) for path in RESPONSES),
        # Only what has a query can be made wrong: any text is a string of a path.
        *(
            (path, GenerationMode.NEGATIVE)
            for path in RESPONSES
            if not path.startswith(("/sales/stores", "/sales/products/", "/coldwatch/fridges"))
        ),
    ],
)
def test_every_answer_is_as_the_document_says(
    document: schemathesis.BaseSchema, running: Running, path: str, mode: GenerationMode
) -> None:
    operation = document[path]["GET"]

    @settings(max_examples=40, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(operation.as_strategy(generation_mode=mode))
    def answer(case: Case) -> None:
        case.validate_response(running.send(case), checks=CHECKS)

    answer()


def test_known_paths_answer_as_the_document_says(document: schemathesis.BaseSchema, running: Running) -> None:
    expected = {
        ("/sales/stores/{node}", "node", "store-330"): 200,
        ("/sales/stores/{node}", "node", "store-2"): 404,
        ("/archive/events/{message_id}", "message_id", f"{OLD}-1"): 200,
        ("/archive/events/{message_id}", "message_id", "0"): 200,
        ("/archive/events/{message_id}", "message_id", "f"): 409,
        ("/archive/events/{message_id}", "message_id", "g"): 404,
    }
    for (path, name, value), status in expected.items():
        case = document[path]["GET"].Case(path_parameters={name: value})
        answer = running.send(case)
        assert answer.status_code == status
        case.validate_response(answer, checks=CHECKS)


def test_the_document_names_every_route_and_its_problems(running: Running) -> None:
    paths = running.app.openapi_schema.to_schema()["paths"]

    assert {path: sorted(operations["get"]["responses"]) for path, operations in paths.items()} == RESPONSES
