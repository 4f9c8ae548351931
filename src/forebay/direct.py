"""The short way of a request that writes: body, unit of work, answer, with nothing in between that is not needed.

Litestar finds the route and answers exceptions; what it does in between for any imaginable route (guards, dependencies,
transfer models, a response object) took several times as long as the unit of work. A route that needs none of it is
answered here: an asynchronous function of ``data``, ``request``, ``store`` and ``settings`` that returns a msgspec
Struct, or Litestar's ``Response`` with one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple, get_origin

import msgspec
from litestar import Request, Response
from litestar.exceptions import ClientException, InternalServerException
from litestar.handlers import HTTPRouteHandler
from litestar.serialization import default_serializer
from litestar.status_codes import HTTP_413_REQUEST_ENTITY_TOO_LARGE
from litestar.types import ASGIApp, Receive, Scope, Send

from forebay.json_body import JSON, decoded, media_type_of, unsupported
from forebay.problems import ProblemError, phrase
from forebay.unit_of_work import NO_TRACE, TRACE, Trace

MAX_TRACESTATE = 512
"""Characters of ``tracestate`` that are carried on, as W3C Trace Context asks for at least."""

_GIVEN = frozenset({"data", "request", "store", "settings"})
_DOCUMENTATION = frozenset({"responses", "operation_class", "status_code", "summary", "description", "tags"})
"""What a route may say of itself and still go this way."""

_TRACEPARENT = re.compile(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
_ENCODER = msgspec.json.Encoder(enc_hook=default_serializer)


def trace_of(headers: Iterable[tuple[bytes, bytes]]) -> Trace:
    """Return the trace that a request belongs to; what is no W3C trace context is ignored."""
    traceparent, tracestate = b"", b""
    for name, value in headers:
        if name == b"traceparent":
            traceparent = value
        elif name == b"tracestate":
            tracestate = value
    if not _TRACEPARENT.fullmatch(traceparent):
        return NO_TRACE
    state = tracestate.decode("latin-1") if 0 < len(tracestate) <= MAX_TRACESTATE else None
    return Trace(traceparent.decode(), state)


class Form(NamedTuple):
    """What a route on the short way takes: its parameters, and the type of ``data`` where that is one of them."""

    parameters: frozenset[str]
    data: Any


def form_of(function: Callable[..., Any], options: Mapping[str, Any]) -> Form | None:
    """Return what a route takes; None where it cannot go the short way.

    Args:
        function: the route's, its annotations as they were written.
        options: what it says to Litestar.
    """
    if not inspect.iscoroutinefunction(function) or set(options) - _DOCUMENTATION:
        return None
    try:
        signature = inspect.signature(function, eval_str=True)
    except NameError:  # a type that is known to type checkers alone
        return None
    answer, parameters = signature.return_annotation, signature.parameters
    a_struct = isinstance(answer, type) and issubclass(answer, msgspec.Struct)
    if not (a_struct or get_origin(answer) is Response) or parameters.keys() - _GIVEN:
        return None
    return Form(frozenset(parameters), parameters["data"].annotation if "data" in parameters else None)


class Direct:
    """One route of a service on the short way.

    Args:
        function: the route's.
        form: what it takes.
        given: what is given to it beside ``data`` and ``request``.
        status: of the answer, where the function says none.
    """

    def __init__(self, function: Callable[..., Any], form: Form, given: Mapping[str, Any], status: int) -> None:
        self._function = function
        self._form = form
        self._given = {name: value for name, value in given.items() if name in form.parameters}
        self._status = status
        self._limit: int | None = None

    def __deepcopy__(self, _: dict[int, Any]) -> Direct:
        # Litestar copies the handlers of a router, with all that they have.
        return self

    def middleware(self, app: ASGIApp) -> ASGIApp:  # noqa: ARG002 - it is never called
        """Stand in for the rest of Litestar's way; a middleware of the route's handler."""
        return self

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request.

        Raises:
            ProblemError: 400, 413, 415 or 422, or what the function raises; Litestar's exception handlers answer it.
        """
        headers: list[tuple[bytes, bytes]] = scope["headers"]  # type: ignore[assignment]
        if (trace := trace_of(headers)) is not NO_TRACE:
            TRACE.set(trace)
        arguments = dict(self._given)
        if "data" in self._form.parameters:
            _check_media_type(headers)
            body = await self._body(scope, headers, receive)
            if not body:
                raise ProblemError(400, phrase(400), "the request has no body")
            arguments["data"] = decoded(body, self._form.data)
        if "request" in self._form.parameters:
            arguments["request"] = Request[Any, Any, Any](scope, receive, send)
        answer = await self._function(**arguments)
        status = self._status
        if isinstance(answer, Response):
            if answer.headers or answer.cookies or answer.background or answer.media_type:
                request = Request[Any, Any, Any](scope, receive, send)
                await answer.to_asgi_response(app=None, request=request, status_code=status)(scope, receive, send)
                return
            status, answer = answer.status_code or status, answer.content
        content = _ENCODER.encode(answer)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [
                    (b"content-type", b"application/json"),
                    (b"content-length", str(len(content)).encode()),
                ],
            }
        )
        await send({"type": "http.response.body", "body": content, "more_body": False})

    async def _body(self, scope: Scope, headers: Iterable[tuple[bytes, bytes]], receive: Receive) -> bytes:
        """Read the body, up to the route's limit."""
        if self._limit is None:
            handler = scope["route_handler"]
            assert isinstance(handler, HTTPRouteHandler)  # noqa: S101
            self._limit = handler.resolve_request_max_body_size() or 0
        limit = self._limit
        for name, value in headers:
            if name == b"content-length":
                if not value.isdigit():
                    raise ClientException(f"Invalid content-length: {value.decode('latin-1')!r}")
                if 0 < limit < int(value):
                    raise _too_large(limit)
        parts, size = [], 0
        while True:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                raise InternalServerException("client disconnected prematurely")
            part: bytes = message.get("body", b"")
            parts.append(part)
            size += len(part)
            if 0 < limit < size:
                raise _too_large(limit)
            if not message.get("more_body"):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _check_media_type(headers: Iterable[tuple[bytes, bytes]]) -> None:
    content_type = b""
    for name, value in headers:
        if name == b"content-type":
            content_type = value
    if content_type != b"application/json":
        said = content_type.decode("latin-1")
        if media_type_of(said) != JSON:
            raise unsupported(said)


def _too_large(limit: int) -> ProblemError:
    status = HTTP_413_REQUEST_ENTITY_TOO_LARGE
    return ProblemError(status, phrase(status), f"the request's body has more than {limit} bytes")
