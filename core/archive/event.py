"""One archived event: from a message to a row, and from a row to what HTTP answers."""

from __future__ import annotations

import base64
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec

from forebay import Message
from forebay.clock import format_tick, parse_tick
from forebay.delivery import Delivery
from forebay.envelope import JSON, encode_headers, format_time, parse_time
from forebay.identity import Place, parse_place, partition_of
from forebay.transaction import Row

INSERT = """
    insert into archived (node, service, kind, type, lane, epoch, sequence, foreign_id, ce_id, ce_source, time,
      content_type, key, attributes, hlc, prev, cause, traceparent, tracestate, archived_at, is_json, body)
    values (:node, :service, :kind, :type, :lane, :epoch, :sequence, :foreign_id, :ce_id, :ce_source, :time,
      :content_type, :key, :attributes, :hlc, :prev, :cause, :traceparent, :tracestate, :archived_at, :is_json,
      :body)"""

_valid_json = msgspec.json.Decoder(msgspec.Raw)
_attributes = msgspec.json.Decoder(dict[str, str])


class ArchivedEvent(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One event as it is kept.

    Attributes:
        lane: null for a foreign producer's event.
        time: when it happened, RFC 3339.
        archived_at: when it was archived, RFC 3339.
        envelope: the CloudEvents attributes and extensions.
        headers: ``forebay-*`` and the trace, as they were sent.
        data: the body, passed through as it is; left out where it is not JSON.
        data_base64: the body where it is not JSON.
    """

    message_id: str
    node: str
    service: str
    lane: str | None
    time: str
    archived_at: str
    envelope: dict[str, str]
    headers: dict[str, str]
    data: Any = None
    data_base64: str | None = None


def to_row(message: Message, archived_at: int) -> Mapping[str, Any]:
    """Return the parameters of ``INSERT``; ``archived_at`` is milliseconds since 1970."""
    place = message.place
    source = f"/{message.node}/{message.service}"
    return {
        "node": message.node,
        "service": message.service,
        "kind": message.kind,
        "type": message.type,
        "lane": message.lane if place else None,
        "epoch": place.epoch if place else None,
        "sequence": place.sequence if place else None,
        "foreign_id": None if place else message.message_id,
        "ce_id": None if message.id == message.message_id else message.id,
        "ce_source": None if message.source == source else message.source,
        "time": format_time(message.time),
        "content_type": None if message.content_type == JSON else message.content_type,
        "key": message.key,
        "attributes": msgspec.json.encode(message.attributes).decode() if message.attributes else None,
        "hlc": format_tick(message.hlc) if place else None,
        "prev": str(message.prev or "none") if place else None,
        "cause": message.cause,
        "traceparent": message.traceparent,
        "tracestate": message.tracestate,
        "archived_at": archived_at,
        "is_json": int(_is_json(message)),
        "body": message.body,
    }


def to_delivery(row: Row) -> Delivery:
    """Return an event of ``archived`` as a stream delivers it, a foreign producer's included (C5)."""
    place = Place(row["epoch"], row["sequence"]) if row["epoch"] is not None else None
    message_id = message_id_of(row)
    subject = f"evt.{partition_of(row['node'])}.{row['node']}.{row['service']}.{row['kind']}"
    message = Message(
        message_id=message_id,
        node=row["node"],
        service=row["service"],
        kind=row["kind"],
        id=row["ce_id"] or message_id,
        source=row["ce_source"] or f"/{row['node']}/{row['service']}",
        type=row["type"],
        time=parse_time(row["time"]),
        key=row["key"],
        content_type=row["content_type"] or JSON,
        attributes=_attributes.decode(row["attributes"]) if row["attributes"] else {},
        lane=row["lane"] or "",
        place=place,
        prev=parse_place(row["prev"]) if place else None,
        hlc=parse_tick(row["hlc"]) if place else 0,
        cause=row["cause"],
        traceparent=row["traceparent"],
        tracestate=row["tracestate"],
        body=row["body"],
    )
    return Delivery(0, 0, row["archived_at"] * 1_000_000, subject, encode_headers(message), message.body)


def now() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def message_id_of(row: Row) -> str:
    """Return the message id of a row."""
    return str(row["foreign_id"] if row["epoch"] is None else Place(row["epoch"], row["sequence"]))


def from_row(row: Row) -> ArchivedEvent:
    """Return the event of a row of ``archived``."""
    message_id = message_id_of(row)
    envelope = {
        "specversion": "1.0",
        "id": row["ce_id"] or message_id,
        "source": row["ce_source"] or f"/{row['node']}/{row['service']}",
        "type": row["type"],
        "time": row["time"],
        "datacontenttype": row["content_type"] or JSON,
    }
    if row["key"] is not None:
        envelope["partitionkey"] = row["key"]
    if row["attributes"] is not None:
        envelope.update(_attributes.decode(row["attributes"]))
    headers = {
        "forebay-lane": row["lane"],
        "forebay-prev": row["prev"],
        "forebay-hlc": row["hlc"],
        "forebay-cause": row["cause"],
        "traceparent": row["traceparent"],
        "tracestate": row["tracestate"],
    }
    is_json = bool(row["is_json"])
    return ArchivedEvent(
        message_id=message_id,
        node=row["node"],
        service=row["service"],
        lane=row["lane"],
        time=row["time"],
        archived_at=format_time(datetime.fromtimestamp(row["archived_at"] / 1000, UTC)),
        envelope=envelope,
        headers={name: value for name, value in headers.items() if value is not None},
        data=msgspec.Raw(row["body"]) if is_json else None,
        data_base64=None if is_json else base64.b64encode(row["body"]).decode(),
    )


def _is_json(message: Message) -> bool:
    """Whether the body is declared as JSON and is JSON: then answers pass it through without a look at it."""
    media_type = message.content_type.partition(";")[0].strip().lower()
    if media_type != JSON and not media_type.endswith("+json"):
        return False
    try:
        message.body.decode()  # the decoder below does not look into strings
        _valid_json.decode(message.body)
    except (UnicodeDecodeError, msgspec.DecodeError, RecursionError):
        return False
    return True
