"""Where each partition has been read to (S5), and what a consumer's database keeps for a while (I7, B5)."""

from __future__ import annotations

import time
from typing import NamedTuple

from forebay.transaction import Transaction

CAUSES_KEPT = 30 * 24 * 3600
"""Seconds for which causes are kept: as long as backups may be old (B5)."""


class Position(NamedTuple):
    """How far a partition has been read: the stream's incarnation, a sequence, and the message id there."""

    incarnation: str
    sequence: int
    message_id: str


def positions_of(tx: Transaction, stream: str) -> dict[int, Position]:
    """Return the position of each partition of a stream that has one."""
    rows = tx.execute(
        "select partition, incarnation, sequence, message_id from forebay_position where stream = :stream",
        stream=stream,
    )
    return {row["partition"]: Position(row["incarnation"], row["sequence"], row["message_id"]) for row in rows}


def write_position(tx: Transaction, stream: str, partition: int, position: Position) -> None:
    """Set a partition back to a position."""
    tx.execute(
        "update forebay_position set incarnation = :incarnation, sequence = :sequence, message_id = :message_id"
        " where stream = :stream and partition = :partition",
        stream=stream,
        partition=partition,
        **position._asdict(),
    )


def forget_foreign(tx: Transaction, first_sequence: int, kept: float) -> None:
    """Forget foreign ids that the stream has passed and that are older than ``kept`` seconds (I7)."""
    tx.execute(
        "delete from forebay_foreign where stream_sequence < :first and seen_at < :before",
        first=first_sequence,
        before=int((time.time() - kept) * 1000),
    )


def forget_causes(tx: Transaction, kept: float = CAUSES_KEPT) -> None:
    """Forget causes that are older than ``kept`` seconds (B5)."""
    tx.execute("delete from forebay_cause where seen_at < :before", before=int((time.time() - kept) * 1000))
