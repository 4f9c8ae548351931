"""Another body under a known message id: kept aside, counted and reported, never applied and never ignored."""

from __future__ import annotations

import hashlib
import logging

import msgspec

from core.archive.event import now
from core.archive.places import archived_at
from forebay import Message, Transaction, UnitOfWork
from forebay.envelope import format_time

logger = logging.getLogger(__name__)


class Conflict(msgspec.Struct, frozen=True, kw_only=True):
    """A second body under a message id.

    Attributes:
        type, bytes: of the body that was kept aside.
        seen_at: milliseconds since 1970.
    """

    id: int
    message_id: str
    node: str
    service: str
    type: str
    bytes: int
    seen_at: int


def compare(tx: UnitOfWork, message: Message) -> None:
    """Keep a repeated event aside where it is not the one that was archived."""
    if message.place is None:
        return  # ids of producers without an outbox are theirs to keep unique
    place = message.place
    known = archived_at(tx, message.node, message.service, place)
    if known is None or (known["type"], known["body"]) == (message.type, message.body):
        return
    attributes = msgspec.json.encode(message.attributes).decode() if message.attributes else None
    kept = tx.execute(
        "insert into conflict (archived, digest, type, time, attributes, body, seen_at) values (:archived, :digest,"
        " :type, :time, :attributes, :body, :seen_at) on conflict (digest) do nothing returning 1",
        archived=known["id"],
        digest=hashlib.blake2b(f"{place} {message.type} ".encode() + message.body, digest_size=16).hexdigest(),
        type=message.type,
        time=format_time(message.time),
        attributes=attributes,
        body=message.body,
        seen_at=now(),
    )
    if kept:
        logger.error("archive.conflict_found", extra={"message_id": message.message_id, "node": message.node})


def conflicts(tx: Transaction, limit: int) -> list[Conflict]:
    """Return what was kept aside, the latest first."""
    rows = tx.execute(
        "select c.id, a.epoch, a.sequence, a.node, a.service, c.type, length(c.body) as bytes, c.seen_at"
        " from conflict c join archived a on a.id = c.archived order by c.id desc limit :limit",
        limit=limit,
    )
    return [
        Conflict(
            id=row["id"],
            message_id=f"{row['epoch']}-{row['sequence']}",
            node=row["node"],
            service=row["service"],
            type=row["type"],
            bytes=row["bytes"],
            seen_at=row["seen_at"],
        )
        for row in rows
    ]
