"""JSON bodies of requests, read strictly: Litestar takes any media type for JSON, and ``"5"`` for a number."""

from __future__ import annotations

import re
from collections.abc import Generator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from litestar import Request
from litestar.connection import ASGIConnection
from litestar.dto import AbstractDTO, DTOConfig
from litestar.handlers import BaseRouteHandler

from forebay.problems import ProblemError, body_problem, phrase

if TYPE_CHECKING:
    from litestar._openapi.schema_generation import SchemaCreator
    from litestar.dto.data_structures import DTOFieldDefinition
    from litestar.openapi.spec import Reference, Schema
    from litestar.typing import FieldDefinition

JSON = "application/json"

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not JSON or not of the wanted shape; see ``body_problem``."""

_CHARSET = re.compile(r';\s*charset\s*=\s*"?([^\s";]*)', re.IGNORECASE)


def media_type_of(content_type: str, field: str = "Content-Type") -> str:
    """Return the media type alone, in lower case: ``application/json`` of ``Application/JSON; charset=utf-8``.

    Raises:
        ProblemError: 415, it names another charset than UTF-8, which all JSON is in (RFC 8259).
    """
    charset = _CHARSET.search(content_type)
    if charset and charset[1].lower() not in ("utf-8", "utf8", "us-ascii"):
        raise unsupported(content_type, "JSON in UTF-8", field)
    return content_type.partition(";")[0].strip().lower()


def unsupported(content_type: str, wanted: str = JSON, field: str = "Content-Type") -> ProblemError:
    """Return the problem of a media type that is not read here (415)."""
    said = f"{content_type!r} is not read here" if content_type else "the request does not name its media type"
    return ProblemError(415, phrase(415), f"{said}: send {wanted}", field)


async def json_only(connection: ASGIConnection[Any, Any, Any, Any], _: BaseRouteHandler) -> None:
    """Let only requests with a JSON body through to a route; a guard for Litestar.

    Raises:
        ProblemError: 415 for another media type, 400 for an empty body.
    """
    content_type = connection.headers.get("content-type", "")
    if media_type_of(content_type) != JSON:
        raise unsupported(content_type)
    if isinstance(connection, Request) and not await connection.body():
        raise ProblemError(400, phrase(400), "the request has no body")


class JsonBody(AbstractDTO[Any]):
    """Decodes the body straight to the type of the route's ``data``, without Litestar's conversions."""

    config = DTOConfig()

    def decode_bytes(self, value: bytes) -> Any:
        """Return the body as the type that the route asks for.

        Raises:
            ProblemError: 400 or 422, see ``body_problem``.
        """
        wanted = self.asgi_connection.route_handler.parsed_data_field.annotation
        return decoded(value, wanted)

    @classmethod
    def create_for_field_definition(cls, *_: Any, **__: Any) -> None:
        """Build no transfer model: the type itself is decoded."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: SchemaCreator
    ) -> Reference | Schema:
        """Return the schema of the type itself."""
        del handler_id
        return schema_creator.for_field_definition(field_definition)

    @classmethod
    def is_supported_model_type_field(cls, field_definition: FieldDefinition) -> bool:  # noqa: ARG003
        """Leave what the route returns to Litestar."""
        return False

    @classmethod
    def generate_field_definitions(cls, model_type: type[Any]) -> Generator[DTOFieldDefinition, None, None]:  # noqa: ARG003
        """Yield nothing: there is no transfer model."""
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:  # noqa: ARG003
        """Say no: there is no transfer model."""
        return False


def decoded(body: bytes, wanted: Any) -> Any:
    """Return a body as the type that a route asks for.

    Raises:
        ProblemError: 400 or 422, see ``body_problem``.
    """
    try:
        return _decoder(wanted).decode(body)
    except UNREADABLE as error:
        raise body_problem(error) from None


@lru_cache(256)
def _decoder(wanted: Any) -> msgspec.json.Decoder[Any]:
    return msgspec.json.Decoder(wanted)
