"""What a process answers beside its services' routes: metrics, health, its OpenAPI document, where events are."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from forebay.taken import Taken
from forebay.testing.nats_server import NatsServer
from tests.faults.fleet import ROOT
from tests.services.command_line import Running, forebay, running

pytestmark = pytest.mark.timeout(120)

Case = schemathesis.Case[Any]
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
AWAY = "nats://127.0.0.1:1"
SALE = {
    "basket": "31198570044",
    "household": 900,
    "at": "2017-01-01T11:53:26Z",
    "lines": [{"product": 1095275, "quantity": 1, "cents": 50}],
}
PROCESS = {"/livez", "/readyz", "/metrics", "/outbox/{message_id}"}
EDGE_PATHS = {"/till/sales", "/till/sales/{basket}", "/till/totals", "/gateway/events"}
OPERATIONS = {
    "/ops/{service}/withheld/retry",
    "/ops/{consumer}/gaps",
    "/ops/{consumer}/parked",
    "/ops/{consumer}/parked/{id}/discard",
    "/ops/{consumer}/parked/{id}/retry",
}
CORE_PATHS = {
    "/sales/departments",
    "/sales/hours",
    "/sales/products",
    "/sales/products/{product}",
    "/archive/conflicts",
    "/archive/events",
    "/archive/events/{message_id}",
    "/sales/stores",
    "/sales/stores/{node}",
    "/sales/days",
}
UNKNOWN = f"{'0' * 32}-1"


def wait_for(process: Running, path: str) -> None:
    """Wait until a process answers with 200; these tests are plain functions."""

    async def wait() -> None:
        await process.answers(path, 200, limit=60)

    anyio.run(wait)


@pytest.fixture(scope="module")
def edge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("edge")
    with running(ROOT, ["edge.till", "edge.gateway"], node="store-330", data=data, nats=AWAY) as process:
        wait_for(process, "/livez")
        yield process


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("core")
    server = NatsServer(data / "nats")
    anyio.run(server.start)
    try:
        assert forebay(ROOT, "apply", "--nats", server.url).returncode == 0
        with running(ROOT, ["core.archive", "core.sales"], data=data, nats=server.url) as process:
            wait_for(process, "/readyz")
            yield process
    finally:
        server.kill()


@pytest.fixture(scope="module")
def event(edge: Running) -> str:
    """The message id of a sale that is on the edge node's disk."""
    answer = httpx.post(f"{edge.url}/till/sales", json=SALE)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["event"])


def families(process: Running) -> dict[str, list[Any]]:
    """The samples of /metrics, by family."""
    answer = httpx.get(f"{process.url}/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain; version=")
    return {family.name: family.samples for family in text_string_to_metric_families(answer.text)}


def value(samples: list[Any], **labels: str) -> float:
    (found,) = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
    return float(found)


@pytest.mark.usefixtures("event")
def test_the_edges_metrics_are_prometheus_text_and_count_what_was_written(edge: Running) -> None:
    found = families(edge)
    till = {"service": "till", "lane": "ledger"}
    assert value(found["forebay_connected"]) == 0
    assert value(found["forebay_outbox_written"], **till) >= 1
    assert value(found["forebay_outbox_freed"], **till) == 0
    assert 0 < value(found["forebay_outbox_bytes"], **till) < value(found["forebay_outbox_budget_bytes"], **till)
    assert value(found["forebay_outbox_budget_bytes"], **till) == 128 * 2**20
    assert value(found["forebay_relay_paused"], **till) == 0


def test_the_cores_metrics_are_prometheus_text_and_say_that_it_reads(core: Running) -> None:
    found = families(core)
    assert value(found["forebay_connected"]) == 1
    for service in ("archive", "sales"):
        assert value(found["forebay_consumer_reading"], service=service) == 1
        assert value(found["forebay_consumer_suspended"], service=service) == 0
        outcomes = {s.labels["outcome"] for s in found["forebay_consumer_events"] if s.labels["service"] == service}
        assert outcomes == set(Taken.__struct_fields__)


def test_every_metric_is_documented_and_every_documented_one_is_there(edge: Running, core: Running) -> None:
    documented = set(
        re.findall(r"^\| `(forebay_\w+)` \|", (ROOT / "docs/metrics-and-logs.md").read_text(), re.MULTILINE)
    )
    texts = [httpx.get(f"{process.url}/metrics").text for process in (edge, core)]
    declared = {name for text in texts for name in re.findall(r"^# TYPE (\w+) ", text, re.MULTILINE)}
    assert declared == documented  # some have no value here: no service has timers, or follows another


def test_health_is_what_others_rely_on(edge: Running, core: Running) -> None:
    for process in (edge, core):
        assert httpx.get(f"{process.url}/livez").text == "ok"
    ready = httpx.get(f"{edge.url}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "connected": False, "problems": []})
    ready = httpx.get(f"{core.url}/readyz")
    assert (ready.status_code, ready.json()) == (200, {"ready": True, "connected": True, "problems": []})


def test_where_an_event_is_can_be_asked_of_the_process_that_wrote_it(edge: Running, event: str) -> None:
    found = httpx.get(f"{edge.url}/outbox/{event}").json()
    assert (found["message_id"], found["service"], found["lane"], found["state"]) == (event, "till", "ledger", "stored")
    for unknown in (UNKNOWN, f"{event}0", "x", "0" * 32 + "-0", "%2F", "1" * 4000):
        answer = httpx.get(f"{edge.url}/outbox/{unknown}")
        assert answer.status_code == 404, unknown
        assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/nothing", 404), ("PUT", "/till/sales", 405), ("POST", "/readyz", 405)]
)
def test_what_is_not_there_is_a_problem_document_too(edge: Running, method: str, path: str, status: int) -> None:
    answer = httpx.request(method, f"{edge.url}{path}")
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert answer.json()["status"] == status


def test_one_document_describes_all_services_of_a_process(edge: Running, core: Running) -> None:
    for url, paths in ((edge.url, EDGE_PATHS), (core.url, CORE_PATHS)):
        assert set(httpx.get(f"{url}/schema/openapi.json").json()["paths"]) == paths | PROCESS | OPERATIONS


@pytest.fixture(scope="module")
def edge_document(edge: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{edge.url}/schema/openapi.json")


@pytest.fixture(scope="module")
def core_document(core: Running) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{core.url}/schema/openapi.json")


def probe(document: schemathesis.BaseSchema, process: Running, path: str, method: str) -> None:
    """Ask a route for things that its document allows and for things that it does not."""
    operation = document[path][method]
    for mode in GenerationMode:

        @settings(max_examples=20, deadline=None, database=None, suppress_health_check=list(HealthCheck))
        @given(operation.as_strategy(generation_mode=mode))
        def answer(case: Case) -> None:
            case.call_and_validate(base_url=process.url, checks=CHECKS)

        try:
            answer()
        except Unsatisfiable:  # nothing can be wrong with a request that takes nothing
            assert mode is GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *((path, "GET") for path in sorted(PROCESS)),
        ("/till/sales", "POST"),
        ("/till/sales/{basket}", "GET"),
        ("/till/totals", "GET"),
        ("/gateway/events", "POST"),
    ],
)
def test_the_edge_answers_as_its_document_says(
    edge_document: schemathesis.BaseSchema, edge: Running, path: str, method: str
) -> None:
    probe(edge_document, edge, path, method)


@pytest.mark.parametrize(
    ("path", "method"),
    [
        *((path, "GET") for path in [*sorted(PROCESS), *sorted(CORE_PATHS)]),
        ("/ops/{consumer}/gaps", "GET"),
        ("/ops/{consumer}/gaps", "POST"),
        ("/ops/{consumer}/parked", "GET"),
        ("/ops/{consumer}/parked/{id}/discard", "POST"),
        ("/ops/{consumer}/parked/{id}/retry", "POST"),
    ],
)
def test_the_core_answers_as_its_document_says(
    core_document: schemathesis.BaseSchema, core: Running, path: str, method: str
) -> None:
    probe(core_document, core, path, method)


def test_known_events_are_answered_as_the_document_says(
    edge_document: schemathesis.BaseSchema, edge: Running, event: str
) -> None:
    for message_id, status in ((event, 200), (UNKNOWN, 404)):
        case = edge_document["/outbox/{message_id}"]["GET"].Case(path_parameters={"message_id": message_id})
        assert case.call_and_validate(base_url=edge.url, checks=CHECKS).status_code == status


def test_nothing_of_it_left_a_traceback(edge: Running, core: Running) -> None:
    for process in (edge, core):
        said = Path(process.log).read_text()
        assert "Traceback" not in said
        assert "request.failed" not in said
