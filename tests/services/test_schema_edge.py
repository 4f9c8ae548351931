"""What schemathesis makes up from the OpenAPI document of the edge services is answered as the document says."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from litestar import Litestar
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from edge.coldchain import app as coldchain_app
from edge.gateway import app as gateway_app
from edge.stock import app as stock_app
from edge.till import app as till_app
from forebay import Service, UnitStore
from tests.services.conftest import application, open_store, served_over_http

Case = schemathesis.Case[Any]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]

NEED_MORE = {"/stock/reservations", "/stock/releases"}
"""What is well-formed and refused all the same, since nothing is on the shelves."""


@schemathesis.serializer("application/x-ndjson")
def write_lines(_: schemathesis.SerializationContext, value: Any) -> bytes:
    """One JSON value a line; what is no list is one line."""
    return b"\n".join(json.dumps(each).encode() for each in (value if isinstance(value, list) else [value]))


@pytest.fixture(scope="module")
def edge_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder: Path = tmp_path_factory.mktemp("edge")

    async def build(stack: AsyncExitStack) -> Litestar:
        served: list[tuple[Service, UnitStore, dict[str, Any]]] = []
        for module, service in (
            (till_app, till_app.till),
            (gateway_app, gateway_app.gateway),
            (coldchain_app, coldchain_app.coldchain),
            (stock_app, stock_app.stock),
        ):
            store, outbox = await open_store(stack, service, module, folder)
            served.append((service, UnitStore(store, outbox), {}))
        return application(*served)

    with served_over_http(build) as url:
        yield url


@pytest.fixture(scope="module")
def document(edge_url: str) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{edge_url}/schema/openapi.json")


@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [
        ("/till/sales", "POST", GenerationMode.POSITIVE),
        ("/till/sales", "POST", GenerationMode.NEGATIVE),
        ("/till/sales/{basket}", "GET", GenerationMode.POSITIVE),  # any text is a basket: nothing can be made wrong
        ("/till/totals", "GET", GenerationMode.POSITIVE),
        ("/till/totals", "GET", GenerationMode.NEGATIVE),
        ("/gateway/events", "POST", GenerationMode.POSITIVE),
        ("/gateway/events", "POST", GenerationMode.NEGATIVE),
        ("/coldchain/readings", "POST", GenerationMode.POSITIVE),
        ("/coldchain/readings", "POST", GenerationMode.NEGATIVE),
        ("/coldchain/limits", "POST", GenerationMode.POSITIVE),
        ("/coldchain/fridges/{fridge}", "GET", GenerationMode.POSITIVE),
        ("/coldchain/alarms", "GET", GenerationMode.NEGATIVE),
        ("/stock/receipts", "POST", GenerationMode.POSITIVE),
        ("/stock/counts", "POST", GenerationMode.NEGATIVE),
        ("/stock/reservations", "POST", GenerationMode.POSITIVE),
        ("/stock/releases", "POST", GenerationMode.POSITIVE),
        ("/stock/orders/{order}", "GET", GenerationMode.POSITIVE),
        ("/stock/products/{product}", "GET", GenerationMode.POSITIVE),
        ("/stock/products/{product}", "GET", GenerationMode.NEGATIVE),
        ("/stock/products/{product}/history", "GET", GenerationMode.NEGATIVE),
    ],
)
def test_every_answer_is_as_the_document_says(
    document: schemathesis.BaseSchema, edge_url: str, path: str, method: str, mode: GenerationMode
) -> None:
    statuses: Counter[int] = Counter()

    @settings(max_examples=60, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(document[path][method].as_strategy(generation_mode=mode))
    def answer(case: Case) -> None:
        response = case.call(base_url=edge_url)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    answer()
    if mode is GenerationMode.POSITIVE and method == "POST" and path not in NEED_MORE:
        assert statuses[201] or statuses[200], f"nothing that was made up was accepted: {statuses}"
