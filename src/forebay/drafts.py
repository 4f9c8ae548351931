"""Events on their way into the outbox, and the end of the origin that they are appended to (rules I2, I3, I5)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from forebay.envelope import JSON
from forebay.identity import Place, new_epoch
from forebay.transaction import Row


class Extra(msgspec.Struct, frozen=True, omit_defaults=True):
    """What only some rows carry: the CloudEvents fields that are not implied by the place, and the trace."""

    id: str | None = None
    source: str | None = None
    content_type: str = JSON
    attributes: dict[str, str] = {}
    traceparent: str | None = None
    tracestate: str | None = None


NO_EXTRA = Extra()


class Draft(msgspec.Struct, frozen=True, kw_only=True):
    """An event, or a command for a ``destination``, on its way into the outbox."""

    lane: str
    kind: str
    type: str
    body: bytes
    time: datetime
    key: str | None = None
    cause: str | None = None
    extra: Extra = NO_EXTRA
    destination: str = ""


Tails = dict[tuple[str, str], "Tail"]
"""The ends of a transaction's origins, by lane and destination."""


class Tail:
    """The end of one origin within one transaction, written back by ``Outbox.flush``."""

    __slots__ = ("bytes", "drafts", "epoch", "epoch_id", "last", "origin", "prev", "size")

    def __init__(self, row: Row, opening: str) -> None:
        self.origin: int = row["origin"]
        self.bytes: int = row["bytes"]
        self.epoch_id: int | None = None
        if row["opening"] == opening:
            self.epoch_id, self.epoch, self.last, self.prev = row["epoch_id"], row["epoch"], row["last"], ""
        else:
            # The first write since the store was opened takes a new epoch (I2), which says for its whole life what
            # came before it (I5). Its row is written with its first event: an epoch without events would be a place
            # that nobody can reach.
            self.epoch, self.last = new_epoch(row["epoch"]), 0
            self.prev = "none" if row["epoch"] is None else str(Place(row["epoch"], row["last"]))
        self.size = 0
        self.drafts: list[dict[str, Any]] = []
