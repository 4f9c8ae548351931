"""What a follower reads: the outbox of another service of the same node, lane by lane, in order.

A page is one snapshot of the followed store: events, what the budget pushed out between them, and the floor. An event
that the broker refuses stands beside the outbox and is read from there: it is withheld from the core, not from here.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import NamedTuple

from forebay.delivery import Delivery
from forebay.envelope import Message, encode_headers
from forebay.freeing import Standing, chain, floor, standing
from forebay.identity import PARTITIONS, Place, partition_of
from forebay.outbox import Outbox
from forebay.protocol.confirmation import ChainLink, DroppedRange
from forebay.protocol.inbox import EpochState
from forebay.sequences import Range
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

EVENTS = 500
"""Events of one page, at most."""

PAGE_BYTES = 1024 * 1024
"""Bytes of the rows of one page, at most, or one event."""

DROPS = 500
"""Dropped ranges of one page, at most."""

_EPOCHS = """
    select e.id, e.epoch, e.prev, e.last from forebay_epoch e join forebay_origin o on o.id = e.origin
    where o.lane = :lane and o.destination = ''
      and e.id >= coalesce((select id from forebay_epoch where epoch = :epoch),
                           (select id from forebay_epoch where epoch = o.floor_epoch), 0)
    order by e.id"""

_DROPS = """
    select first, last from forebay_dropped where epoch = :id and last > :after and first <= :upto
    order by first limit :limit"""


class Page(NamedTuple):
    """What follows in a lane, all of one epoch.

    Attributes:
        messages: the events, in order.
        drops: what was pushed out between and behind them.
        upto: the place behind which the next page begins.
        floor: what the node no longer has, where that was not known; else None.
        chain: the epochs that a reader needs to know to understand drops and floor.
    """

    messages: list[Message]
    drops: list[DroppedRange]
    upto: Place
    floor: str | None
    chain: list[ChainLink]


class FollowedLane:
    """One lane of a followed outbox, and how far it has been read. The inbox decides, this is only where to go on.

    Attributes:
        after: the last place that was read; None before the first.
        again: places that are here although the inbox has passed them without their event, to be read once more.
        floor: the latest one that was acted on.
    """

    def __init__(self, outbox: Outbox, store: UnitStore, lane: str) -> None:
        self.node = outbox.node
        self.service = outbox.service
        self.name = lane
        self.after: Place | None = None
        self.again: list[tuple[str, Range]] = []
        self.floor: str | None = None
        self._outbox = outbox
        self._store = store

    async def standing(self) -> list[Standing]:
        """Return the epochs of which something is here. Raises ``StoreError`` where the followed store fails."""
        return await self._store.read(standing, self.name)

    def begin(self, epochs: list[Standing], known: Mapping[str, EpochState]) -> None:
        """Go on behind what an inbox has passed without a hole; what it lacks before that, and is here, comes again."""
        self.after, self.again, self.floor = None, [], None
        for epoch in epochs:
            state = known.get(epoch.epoch)
            if state is not None:
                self.again += [(epoch.epoch, each) for each in state.missing if each[1] >= epoch.first]
        for epoch in epochs:
            state = known.get(epoch.epoch)
            watermark = state.passed.watermark if state else 0
            self.after = Place(epoch.epoch, watermark)
            if watermark < epoch.last:
                break

    async def next(self) -> Page | None:
        """Return what follows, or None at the end. Raises ``StoreError`` where the followed store fails."""
        while self.again:
            messages = await self._store.read(self._missed, *self.again[0])
            if messages:
                return Page(messages, [], _place(messages[-1]), None, [])
            self.again.pop(0)
        return await self._store.read(self._page, self.after, self.floor)

    def read(self, page: Page, events: int) -> None:
        """Note that a page was taken in, or only so many events of it."""
        upto = page.upto if events == len(page.messages) else _place(page.messages[events - 1]) if events else None
        if upto is None:
            return
        if self.again:
            epoch, (_, last) = self.again[0]
            self.again[0] = (epoch, (upto.sequence + 1, last))
        else:
            self.after = upto

    def deliveries(self, page: Page) -> list[Delivery]:
        """Return the events of a page as a stream would deliver them."""
        partition, now = partition_of(self.node, PARTITIONS), time.time_ns()
        return [
            Delivery(
                partition,
                0,
                now,
                f"evt.{partition}.{self.node}.{self.service}.{message.kind}",
                encode_headers(message),
                message.body,
            )
            for message in page.messages
        ]

    def _missed(self, tx: Transaction, epoch: str, places: Range) -> list[Message]:
        return self._outbox.within(tx, self.name, epoch, places, limit=EVENTS, max_bytes=PAGE_BYTES)

    def _page(self, tx: Transaction, after: Place | None, known_floor: str | None) -> Page | None:
        for epoch in tx.execute(_EPOCHS, lane=self.name, epoch=after.epoch if after else ""):
            name, begin = epoch["epoch"], 0
            if after is not None and name == after.epoch:
                begin = after.sequence
            if begin >= epoch["last"]:
                continue
            whole = (begin + 1, epoch["last"])
            messages = self._outbox.within(tx, self.name, name, whole, limit=EVENTS, max_bytes=PAGE_BYTES)
            upto = _place(messages[-1]).sequence if messages else epoch["last"]
            rows = tx.execute(_DROPS, id=epoch["id"], after=begin, upto=upto, limit=DROPS)
            if len(rows) == DROPS and rows[-1]["last"] < upto:
                upto = rows[-1]["last"]
                messages = [message for message in messages if _place(message).sequence <= upto]
            drops = [DroppedRange(name, row["first"], row["last"]) for row in rows]
            at = floor(tx, self.name)
            new = at is not None and at != known_floor
            links = [ChainLink(name, epoch["prev"])]
            if new:  # the first says everything; from then on the floor passes only what was read
                links = chain(tx, self.name, None if known_floor is None else ())
            return Page(messages, drops, Place(name, upto), at if new else None, links)
        return None


def _place(message: Message) -> Place:
    if message.place is None:
        raise ValueError(f"{message.message_id} stands in no outbox")
    return message.place
