"""Commands that expired: passed in their place without being done, on record (rule S1).

The receiver decides, in the order of the commands and in the transaction of its inbox. A broker that let messages
expire by themselves would make holes.
"""

from __future__ import annotations

import time
from datetime import datetime

from forebay.command import EXPIRY
from forebay.envelope import Message, format_time, parse_time
from forebay.transaction import Row, Transaction

KEPT = 1000
"""Expired commands that stay on record, the latest."""


def expiry_of(message: Message) -> datetime | None:
    """Return until when a command is worth doing; None for one that never expires, and for events.

    Raises:
        HeaderError: the attribute is not RFC 3339.
    """
    text = message.attributes.get(EXPIRY) if message.destination else None
    return None if text is None else parse_time(text)


def record_expired(tx: Transaction, message: Message, expires: datetime) -> None:
    """Put a command that was passed without being done on record."""
    rows = tx.execute(
        "insert into forebay_expired (message_id, node, service, type, key, expires, passed_at)"
        " values (:message_id, :node, :service, :type, :key, :expires, :now) returning id",
        message_id=message.message_id,
        node=message.node,
        service=message.service,
        type=message.type,
        key=message.key,
        expires=format_time(expires),
        now=time.time_ns() // 1_000_000,
    )
    tx.execute("delete from forebay_expired where id <= :last", last=rows[0]["id"] - KEPT)


def expired(tx: Transaction, limit: int) -> list[Row]:
    """Return the commands that expired here, the latest first."""
    return tx.execute(
        "select message_id, node, service, type, key, expires, passed_at from forebay_expired"
        " order by id desc limit :limit",
        limit=limit,
    )
