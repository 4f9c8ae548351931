"""The inbox: what a consumer has seen, at constant cost per epoch, in the effects' transaction (rules B1 to B3)."""

from __future__ import annotations

import time

import msgspec

from forebay.delivery import Delivery
from forebay.envelope import Identity
from forebay.identity import Place, parse_place
from forebay.protocol.inbox import EpochState, OriginInbox
from forebay.sequences import SequenceSet
from forebay.transaction import Row, Transaction

_ranges = msgspec.json.Decoder(list[tuple[int, int]])
_headers = msgspec.json.Decoder(dict[str, str])

_EPOCHS = """
    select epoch, lane, prev, watermark, held from forebay_inbox
    where node = :node and service = :service and (epoch in (:epoch, :prev) or held <> '[]')"""

_SAVE = """
    insert into forebay_inbox (node, service, epoch, lane, prev, watermark, held)
    values (:node, :service, :epoch, :lane, :prev, :watermark, :held)
    on conflict (node, service, epoch) do update set watermark = excluded.watermark, held = excluded.held"""

_HOLD = """
    insert into forebay_held (node, service, epoch, sequence, subject, headers, body, stream_sequence, stored_at)
    values (:node, :service, :epoch, :sequence, :subject, :headers, :body, :stream_sequence, :stored_at)"""

_RELEASE = """
    delete from forebay_held
    where node = :node and service = :service and epoch = :epoch and sequence = :sequence
    returning subject, headers, body, stream_sequence, stored_at"""


class Inbox:
    """The inbox within one transaction: epochs are read when they are first met and written back by ``save``."""

    def __init__(self, tx: Transaction) -> None:
        self._tx = tx
        self._origins: dict[tuple[str, str], OriginInbox] = {}

    def of(self, identity: Identity, place: Place) -> OriginInbox:
        """Return the epochs of a message's node and service: its own, the one before it, and all that hold events."""
        key = (identity.node, identity.service)
        origin = self._origins.get(key)
        if origin is None:
            origin = self._origins[key] = OriginInbox({})
        prev = identity.prev.epoch if identity.prev else ""
        if place.epoch not in origin.epochs or (prev and prev not in origin.epochs):
            rows = self._tx.execute(_EPOCHS, node=key[0], service=key[1], epoch=place.epoch, prev=prev)
            for row in rows:
                origin.epochs.setdefault(row["epoch"], _state(row))
        return origin

    def seen_foreign(self, identity: Identity, delivery: Delivery) -> bool:
        """Record a foreign producer's id; return whether it was there already (I7).

        What is recorded is where its latest copy stands: the id is kept until the stream has passed that.
        """
        known = self._tx.execute(
            "update forebay_foreign set stream_sequence = max(stream_sequence, :stream_sequence)"
            " where node = :node and service = :service and message_id = :message_id returning 1",
            node=identity.node,
            service=identity.service,
            message_id=identity.message_id,
            stream_sequence=delivery.stream_sequence,
        )
        if known:
            return True
        self._tx.execute(
            "insert into forebay_foreign (node, service, message_id, stream_sequence, seen_at)"
            " values (:node, :service, :message_id, :stream_sequence, :seen_at)",
            node=identity.node,
            service=identity.service,
            message_id=identity.message_id,
            stream_sequence=delivery.stream_sequence,
            seen_at=time.time_ns() // 1_000_000,
        )
        return False

    def hold(self, identity: Identity, place: Place, delivery: Delivery) -> None:
        """Keep an event that waits for a hole to be repaired."""
        self.of(identity, place).hold(place)
        self._tx.execute(
            _HOLD,
            node=identity.node,
            service=identity.service,
            epoch=place.epoch,
            sequence=place.sequence,
            subject=delivery.subject,
            headers=msgspec.json.encode(dict(delivery.headers)).decode(),
            body=delivery.body,
            stream_sequence=delivery.stream_sequence,
            stored_at=delivery.stored_at,
        )

    def release(self, identity: Identity, place: Place, partition: int) -> Delivery:
        """Take a held event out; it takes effect in this transaction."""
        row = self._tx.execute(
            _RELEASE, node=identity.node, service=identity.service, epoch=place.epoch, sequence=place.sequence
        )[0]
        return Delivery(
            partition,
            row["stream_sequence"],
            row["stored_at"],
            row["subject"],
            _headers.decode(row["headers"]),
            row["body"],
        )

    def save(self) -> None:
        """Write back the epochs that moved: one row each, whatever the number of their events."""
        changed = [
            {
                "node": node,
                "service": service,
                "epoch": epoch,
                "lane": state.lane,
                "prev": str(state.prev or "none"),
                "watermark": state.passed.watermark,
                "held": msgspec.json.encode(state.passed.ranges).decode(),
            }
            for (node, service), origin in self._origins.items()
            for epoch, state in origin.changed()
        ]
        if changed:
            self._tx.executemany(_SAVE, changed)


def epochs_of(tx: Transaction, node: str, service: str, epochs: list[str]) -> dict[str, SequenceSet]:
    """Return how far the inbox is with the named epochs of a node's service; the unknown ones are left out."""
    found = {}
    for epoch in epochs:
        rows = tx.execute(
            "select watermark, held from forebay_inbox where node = :node and service = :service and epoch = :epoch",
            node=node,
            service=service,
            epoch=epoch,
        )
        if rows:
            found[epoch] = SequenceSet(rows[0]["watermark"], _ranges.decode(rows[0]["held"]))
    return found


def _state(row: Row) -> EpochState:
    passed = SequenceSet(row["watermark"], _ranges.decode(row["held"]))
    return EpochState(row["lane"], parse_place(row["prev"]), passed)
