"""Problem documents (RFC 9457) for everything that HTTP answers with 4xx and 5xx.

| status | what it means here |
|---|---|
| 400 | unreadable: not JSON, a malformed request |
| 404, 405 | no such thing, or not with this method |
| 409 | the same key with other contents, a version that is not the latest, or a constraint of the schema |
| 413 | an event or a request above its limit |
| 415 | a media type that is not read here |
| 422 | readable but invalid; ``field`` names the part that is wrong |
| 500 | our mistake; it is logged, and the answer says nothing of it |
| 503 | the store cannot write now; ``Retry-After`` says when again; ``stored`` is ``unknown`` where COMMIT failed |
| 507 | the disk is full |
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Annotated, Any, Literal

import msgspec
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException
from litestar.openapi.datastructures import ResponseSpec

from forebay.errors import (
    BudgetSpentError,
    ConstraintError,
    EventTooLargeError,
    ForebayError,
    LinkError,
    MessageError,
    OutcomeUnknownError,
    StoreBusyError,
    StoreError,
    StoreFullError,
    VersionConflictError,
)

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

BUSY_RETRY_AFTER = 1.0
"""Seconds after which a locked database is worth another try."""

FAILED_RETRY_AFTER = 5.0
"""Seconds after which a failed or closing store is worth another try."""

MAX_TEXT = 500
"""Characters of ``detail`` and ``field``: what a client sent is repeated to it in part only."""

_ELSEWHERE = re.compile(r"(?P<what>.*) - at `(?:key in )?\$(?P<path>.*)`", re.DOTALL)
_NAMED = re.compile(r"Object (?:missing required|contains unknown) field `(?P<name>.*)`", re.DOTALL)
_MISSING_PARAMETER = re.compile(r"Missing required (?P<source>\w+) parameter '(?P<name>[^']+)'")

_GONE = "client disconnected prematurely"
"""What Litestar says when the connection ends within a body."""

RequestOf = Request[Any, Any, Any]


class Problem(msgspec.Struct, omit_defaults=True):
    """A problem document; ``field`` names the part of the request that is wrong."""

    title: str
    status: int
    detail: str = ""
    type: str = "about:blank"
    field: Annotated[str, msgspec.Meta(description="the part of the request that is wrong")] | None = None
    stored: Annotated[Literal["unknown"], msgspec.Meta(description="whether the request took effect")] | None = None


class ProblemError(Exception):
    """What a route or a unit of work raises to answer with a problem document; nothing of the unit is kept.

    Args:
        status: of HTTP, 400 or above.
        title: a short text that is the same for all problems of this kind.
        detail: what is wrong with this request, for the person who reads it.
        field: the part of the request that is wrong, as a path such as ``lines[0].quantity``.
        members: extension members of the document.
    """

    def __init__(self, status: int, title: str, detail: str, field: str | None = None, **members: Any) -> None:
        super().__init__(detail)
        self.status = status
        self.title = title
        self.detail = detail
        self.field = field
        self.members = members


def invalid(detail: str, field: str) -> ProblemError:
    """Return the problem of something that can be read and is wrong (422)."""
    return ProblemError(422, phrase(422), detail, field)


def problem_responses(statuses: Sequence[int]) -> dict[int, ResponseSpec]:
    """Return the OpenAPI responses that document problem documents with these statuses.

    400 is always one of them: Litestar documents it for every route with parameters, in a form of its own.
    """
    return {
        status: ResponseSpec(Problem, media_type=MEDIA_TYPE, generate_examples=False, description=phrase(status))
        for status in (400, *statuses)
    }


def exception_handlers() -> dict[int | type[Exception], Callable[[RequestOf, Any], Response[bytes]]]:
    """Return what answers every exception of an application with a problem document."""
    return {
        ProblemError: _raised,
        ForebayError: _of_the_engine,
        ValidationException: _parameters,
        HTTPException: _of_http,
        Exception: _unexpected,
    }


def body_problem(error: Exception, where: str = "") -> ProblemError:
    """Return the problem of a body that msgspec cannot decode: 422 for a wrong shape, 400 for what is not JSON.

    Args:
        error: a ``DecodeError``, a ``UnicodeDecodeError`` (msgspec raises it for text) or a ``RecursionError``.
        where: the path of what was decoded, where that is not the whole body.
    """
    if isinstance(error, msgspec.ValidationError):
        detail, field = _explained(str(error))
        return invalid(detail, _joined(where, field))
    reason = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
    return ProblemError(400, phrase(400), f"the body is not JSON: {reason}", where or None)


def phrase(status: int) -> str:
    """Return the name of a status."""
    return HTTPStatus(status).phrase


def _explained(message: str) -> tuple[str, str]:
    """Split msgspec's message into what is wrong and where; names of fields stand in the text, not in the path."""
    elsewhere = _ELSEWHERE.fullmatch(message)
    what, path = (elsewhere["what"], elsewhere["path"]) if elsewhere else (message, "")
    named = _NAMED.fullmatch(what)
    return what, _joined(path.removeprefix("."), named["name"] if named else "")


def _joined(path: str, name: str) -> str:
    return path + name if not (path and name) or name.startswith("[") else f"{path}.{name}"


def _raised(_: RequestOf, error: ProblemError) -> Response[bytes]:
    return _answer(error.status, error.title, error.detail, error.field, members=error.members)


def _of_the_engine(request: RequestOf, error: ForebayError) -> Response[bytes]:
    match error:
        case BudgetSpentError():
            return _answer(503, phrase(503), str(error), retry_after=error.retry_after)
        case StoreFullError():
            _log(logging.ERROR, "request.refused", request, error)
            return _answer(507, phrase(507), "there is no room on the disk; nothing of the request was kept")
        case OutcomeUnknownError():
            _log(logging.ERROR, "request.uncertain", request, error)
            detail = "the disk failed while the request was written: read back before you repeat it"
            return _answer(503, phrase(503), detail, stored="unknown", retry_after=FAILED_RETRY_AFTER)
        case StoreBusyError():
            detail = "the database is busy; nothing of the request was kept"
            return _answer(503, phrase(503), detail, retry_after=BUSY_RETRY_AFTER)
        case StoreError() | LinkError():
            _log(logging.ERROR, "request.refused", request, error)
            detail = "the service cannot do this now; nothing of the request was kept"
            return _answer(503, phrase(503), detail, retry_after=FAILED_RETRY_AFTER)
        case EventTooLargeError():
            return _answer(413, phrase(413), str(error))
        case MessageError():
            return _answer(422, phrase(422), str(error))
        case VersionConflictError():
            return _answer(409, phrase(409), str(error))
        case ConstraintError():
            _log(logging.WARNING, "request.refused", request, error)
            return _answer(409, phrase(409), "it contradicts what is stored already; nothing of the request was kept")
        case _:
            return _unexpected(request, error)


def _parameters(request: RequestOf, error: ValidationException) -> Response[bytes]:
    """Answer a query or path parameter, or a body that Litestar itself decoded, that is invalid."""
    missing = _MISSING_PARAMETER.search(error.detail)
    if missing:
        detail = f"the {missing['source']} parameter is missing"
        return _answer(422, phrase(422), detail, missing["name"])
    for found in error.extra if isinstance(error.extra, list) else ():
        detail, name = _explained(found.get("message", ""))
        key = found.get("key", "")
        return _answer(422, phrase(422), detail, _joined("" if key == "data" else key, name) or None)
    return _of_http(request, error)


def _of_http(request: RequestOf, error: HTTPException) -> Response[bytes]:
    status = error.status_code
    if error.detail == _GONE:
        return _answer(400, phrase(400), error.detail)  # nobody reads it, and it is not our mistake
    if status >= 500:
        return _unexpected(request, error)
    detail = "" if error.detail == phrase(status) else error.detail
    return _answer(status, phrase(status), detail, headers=error.headers)


def _unexpected(request: RequestOf, error: Exception) -> Response[bytes]:
    _log(logging.ERROR, "request.failed", request, error)
    return _answer(500, phrase(500), "the service made a mistake; it has been logged")


def _log(level: int, event: str, request: RequestOf, error: Exception) -> None:
    logger.log(level, event, exc_info=error, extra={"method": request.method, "path": request.url.path})


def _answer(
    status: int,
    title: str,
    detail: str,
    field: str | None = None,
    *,
    stored: Literal["unknown"] | None = None,
    retry_after: float | None = None,
    headers: Mapping[str, str] | None = None,
    members: Mapping[str, Any] | None = None,
) -> Response[bytes]:
    problem = Problem(title, status, _cut(detail), field=None if field is None else _cut(field), stored=stored)
    document = {**(members or {}), **msgspec.to_builtins(problem)}
    sent = dict(headers or {})
    if retry_after is not None:
        sent["Retry-After"] = str(max(1, math.ceil(retry_after)))
    return Response(msgspec.json.encode(document), status_code=status, media_type=MEDIA_TYPE, headers=sent)


def _cut(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[: MAX_TEXT - 1]}…"
