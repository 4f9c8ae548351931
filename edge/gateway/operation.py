"""How the gateway's route stands in the OpenAPI document: it reads its requests itself, so Litestar cannot know."""

from __future__ import annotations

from dataclasses import dataclass

from litestar.openapi.spec import (
    OpenAPIMediaType,
    OpenAPIType,
    Operation,
    Parameter,
    RequestBody,
    Schema,
)
from litestar.openapi.spec.enums import OpenAPIFormat

from edge.gateway.arrivals import MAX_EVENTS
from edge.gateway.cloudevents import BATCH, LINES, STRUCTURED
from forebay.json_body import JSON

_TEXT = "^[^\\x00-\\x1f\\x7f-\\x9f]+$"
_EXTENSION = Schema(
    one_of=[
        Schema(type=OpenAPIType.STRING, max_length=256, pattern="^[^\\x00-\\x1f\\x7f-\\x9f]*$"),
        Schema(type=OpenAPIType.BOOLEAN),
        Schema(type=OpenAPIType.INTEGER, minimum=-(2**31) + 1, maximum=2**31 - 1),
    ]
)


def _text(description: str) -> Schema:
    return Schema(type=OpenAPIType.STRING, min_length=1, max_length=512, description=description, pattern=_TEXT)


_EVENT = Schema(
    type=OpenAPIType.OBJECT,
    description="A CloudEvent in the JSON format, version 1.0; further attributes are extensions",
    required=["specversion", "id", "source", "type"],
    properties={
        "specversion": Schema(type=OpenAPIType.STRING, const="1.0"),
        "id": _text("unique for its source"),
        "source": _text("where it happened, a URI reference"),
        "type": _text("what happened"),
        "subject": _text("what it happened to"),
        "time": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME, description="when it happened"),
        "datacontenttype": Schema(type=OpenAPIType.STRING, enum=[JSON], description="a JSON media type"),
        "dataschema": _text("a URI"),
        "partitionkey": _text("events of one key keep their order"),
        "data": Schema(description="any JSON"),
    },
    property_names=Schema(pattern="^(?!forebay)[a-z0-9]{1,20}$"),
    additional_properties=_EXTENSION,
)

_HEADERS = {
    "ce-specversion": Schema(type=OpenAPIType.STRING, const="1.0"),
    "ce-id": _text("unique for its source"),
    "ce-source": _text("where it happened, a URI reference"),
    "ce-type": _text("what happened"),
    "ce-subject": _text("what it happened to"),
    "ce-time": Schema(type=OpenAPIType.STRING, format=OpenAPIFormat.DATE_TIME, description="when it happened"),
    "ce-partitionkey": _text("events of one key keep their order"),
}


@dataclass
class EventsOperation(Operation):
    """Four media types, and the ``ce-*`` headers of binary mode."""

    def __post_init__(self) -> None:
        self.parameters = [
            Parameter(name=name, param_in="header", required=False, schema=schema, description="binary mode")
            for name, schema in _HEADERS.items()
        ]
        self.request_body = RequestBody(
            required=False,
            description="An event with `ce-*` headers (its body is the data alone), a whole event, a batch, or lines",
            content={
                JSON: OpenAPIMediaType(schema=Schema(description="the event's data, any JSON")),
                STRUCTURED: OpenAPIMediaType(schema=_EVENT),
                BATCH: OpenAPIMediaType(schema=Schema(type=OpenAPIType.ARRAY, items=_EVENT, max_items=MAX_EVENTS)),
                LINES[0]: OpenAPIMediaType(
                    schema=Schema(
                        type=OpenAPIType.ARRAY, items=_EVENT, max_items=MAX_EVENTS, description="one event a line"
                    )
                ),
            },
        )
