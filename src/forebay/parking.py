"""Parking: what no handler may see is kept as it came, with the reason, never acknowledged away."""

from __future__ import annotations

import hashlib
import time

import msgspec

from forebay.delivery import Delivery
from forebay.envelope import Identity
from forebay.errors import MessageError
from forebay.transaction import Transaction


def park(tx: Transaction, delivery: Delivery, error: MessageError, identity: Identity | None, reason: str = "") -> None:
    """Keep a message in ``forebay_parked``; ``identity`` is None where not even that could be read."""
    headers = msgspec.json.encode(dict(delivery.headers), order="deterministic")
    tx.execute(
        "insert into forebay_parked (digest, reason, detail, subject, headers, body, node, service, message_id, key,"
        " stream_sequence, parked_at) values (:digest, :reason, :detail, :subject, :headers, :body, :node, :service,"
        " :message_id, :key, :stream_sequence, :parked_at) on conflict (digest) do nothing",
        digest=_digest(delivery.subject.encode(), headers, delivery.body),
        reason=reason or error.reason,
        detail=str(error),
        subject=delivery.subject,
        headers=headers.decode(),
        body=delivery.body,
        node=identity.node if identity else None,
        service=identity.service if identity else None,
        message_id=identity.message_id if identity else None,
        key=identity.headers.get("ce-partitionkey") if identity else None,
        stream_sequence=delivery.stream_sequence,
        parked_at=time.time_ns() // 1_000_000,
    )


def _digest(*parts: bytes) -> str:
    whole = hashlib.blake2b(digest_size=16)
    for part in parts:
        whole.update(len(part).to_bytes(8, "big") + part)
    return whole.hexdigest()
