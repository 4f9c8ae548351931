"""The HTTP application of a process: its services' routes, and what is the process's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from litestar import Litestar, MediaType, Request, Response, get
from litestar.openapi import OpenAPIConfig
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.params import FromPath

from forebay.direct import trace_of
from forebay.operations import operations
from forebay.problems import ProblemError, exception_handlers, problem_responses
from forebay.running import RunningService
from forebay.tracking import Whereabouts
from forebay.unit_of_work import NO_TRACE, TRACE

MAX_REQUEST_BYTES = 8 * 1024 * 1024
"""Bytes of one request's body."""


class Readiness(msgspec.Struct):
    """Whether the process does its work, and what stands in the way.

    Where it is ready, ``problems`` are those of services that follow others on the node: writes are accepted.
    """

    ready: bool
    connected: bool
    problems: list[str]


_NOT_READY = ResponseSpec(Readiness, generate_examples=False, description="The process does not do all of its work")


def build_application(services: Sequence[RunningService], connected: Callable[[], bool], version: str) -> Litestar:
    """Return the application: each service under ``/<service>``, and what every process has beside them."""

    @get("/livez", media_type=MediaType.TEXT, tags=["process"], sync_to_thread=False)
    def livez() -> str:
        """Answer as long as the process runs."""
        return "ok"

    @get("/readyz", tags=["process"], sync_to_thread=False, responses={503: _NOT_READY})
    def readyz() -> Response[Readiness]:
        """Tell whether the process does its work: an edge node accepts writes, the core reads every partition."""
        problems = [problem for service in services for problem in service.problems()]
        notices = [notice for service in services for notice in service.notices()]
        body = Readiness(ready=not problems, connected=connected(), problems=[*problems, *notices])
        return Response(body, status_code=503 if problems else 200)

    @get("/metrics", media_type=MediaType.TEXT, tags=["process"], responses=problem_responses([503]))
    async def metrics() -> Response[str]:
        """Give the metrics in Prometheus' text format."""
        from forebay.metrics import CONTENT_TYPE, render  # a node that nobody scrapes does without

        return Response(await render(services, connected=connected()), headers={"content-type": CONTENT_TYPE})

    @get("/outbox/{message_id:str}", tags=["process"], responses=problem_responses([404, 503]))
    async def outbox(message_id: FromPath[str]) -> Whereabouts:
        """Tell where an event is: stored, forwarded, confirmed by which consumers."""
        for service in services:
            found = await service.find(message_id)
            if found is not None:
                return found
        raise ProblemError(404, "Not Found", f"no event {message_id!r} was written here", field="message_id")

    return Litestar(
        route_handlers=[
            *(livez, readyz, metrics, outbox),
            *([operations(services)] if any(service.declared.reads or service.relay for service in services) else []),
            *(service.declared.router(service.store, service.settings) for service in services),
        ],
        openapi_config=OpenAPIConfig(
            title="forebay",
            version=version,
            path="/schema",
            create_examples=False,
            render_plugins=[JsonRenderPlugin()],
        ),
        before_request=_take_trace,
        exception_handlers=exception_handlers(),
        request_max_body_size=MAX_REQUEST_BYTES,
        logging_config=None,
        debug=False,
    )


async def _take_trace(request: Request[Any, Any, Any]) -> None:
    """Let the events that this request writes carry its trace; what is no W3C trace context is ignored."""
    if (trace := trace_of(request.scope["headers"])) is not NO_TRACE:
        TRACE.set(trace)
