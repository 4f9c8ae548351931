"""The relay of commands: drains the outbox of a core service to the stream COMMANDS, each destination in its own order.

One batch carries the commands of many destinations. A destination is looked at when something was written for it, or
has to be sent again; the others cost nothing. What one of them is refused holds up neither the others nor the events.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from forebay.crash_points import reach
from forebay.forwarding import BATCH, LaneState
from forebay.identity import Place
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Publisher
from forebay.link import Link
from forebay.outbox import Outbox
from forebay.packets import Packet
from forebay.relay import Relay
from forebay.sequences import Range
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore
from forebay.withholding import Listed, listed

logger = logging.getLogger(__name__)

STREAM = "COMMANDS"

OVERLAP = 10_000 << 16
"""Ticks of the hybrid clock (10 s) that are looked at again: several processes do not commit in the clock's order."""

_LATEST = """
    select o.lane, o.destination, o.clock, e.epoch, e.last from forebay_origin o
    join forebay_epoch e on e.id = (select max(id) from forebay_epoch where origin = o.id)
    where o.destination <> '' and {}"""

_WRITTEN_SINCE = _LATEST.format("o.clock > :seen")
_ON_DISK = _LATEST.format("o.bytes > 0")

_WITHHELD = """
    select distinct o.lane, o.destination from forebay_withheld w join forebay_epoch e on e.id = w.epoch
    join forebay_origin o on o.id = e.origin where o.destination <> ''"""


class Sent(NamedTuple):
    """An origin of commands: a lane, and the ``<node>/<service>`` that they are for."""

    lane: str
    destination: str


class CommandRelay(Relay):
    """Forwards the commands of one outbox. Start it with ``run``; wake it with ``wake`` when rows were committed.

    Args:
        outbox, store, connection, publisher, link: as for events; the publisher is one for ``STREAM``.
        confirmed_to: asked once before the first command: up to where each destination has everything (O1).
        on_forwarded_to: called with the destination when commands were acknowledged by the broker.
    """

    def __init__(
        self,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        publisher: Publisher,
        *,
        link: Link | None = None,
        confirmed_to: Callable[[], Awaitable[Mapping[tuple[str, str], Place]]] | None = None,
        on_forwarded_to: Callable[[str], None] = lambda _: None,
    ) -> None:
        super().__init__(outbox, store, connection, publisher, link=link, stream=STREAM)
        self._confirmed_to = confirmed_to
        self._on_forwarded_to = on_forwarded_to
        self._states: dict[str, dict[str, LaneState]] = {}
        self._unsent: dict[Sent, Place] = {}
        self._nothing_to: dict[Sent, Place] = {}
        self._again: dict[Sent, None] = {}
        self._seen: int | None = None
        self._doubtful = False

    def states(self, destination: str) -> Mapping[str, LaneState]:
        """Return how far each lane is forwarded to a destination."""
        return self._states.setdefault(destination, {name: LaneState() for name in self._outbox.lanes})

    def forget(self, destination: str) -> None:
        """Forget a destination that nothing is here for; what is written for it later is met anew."""
        if not any(each.destination == destination for each in (*self._unsent, *self._again)):
            self._states.pop(destination, None)
            for lane in self._outbox.lanes:
                self._nothing_to.pop(Sent(lane, destination), None)

    def send_again(self, lane: str, epoch: str, ranges: Sequence[Range], destination: str = "") -> None:
        """Send places again, under fresh ids, before anything new of the origin (C2, I4)."""
        self._again[Sent(lane, destination)] = None
        super().send_again(lane, epoch, ranges, destination)

    def doubt_stream(self) -> None:
        """Say that a node reads another incarnation of the stream: look at it before the next command."""
        self._doubtful = True
        self.wake()

    @property
    def paused(self) -> list[Sent]:
        """The origins that wait behind a refusal."""
        return [each for each in (*self._unsent, *self._again) if self._state(each).problem is not None]

    def _state(self, origin: Sent) -> LaneState:
        return self.states(origin.destination)[origin.lane]

    def _origins(self) -> Iterable[LaneState]:
        return [self._state(each) for each in (*self._unsent, *self._again)]

    async def _begin(self) -> None:
        if self._confirmed_to is not None:
            for (lane, destination), place in (await self._confirmed_to()).items():
                self.states(destination)[lane].sent = place
            self._confirmed_to = None

    async def _aside(self) -> list[tuple[LaneState, list[Listed]]]:
        def query(tx: Transaction) -> list[tuple[Sent, list[Listed]]]:
            origins = [Sent(row["lane"], row["destination"]) for row in tx.execute(_WITHHELD)]
            return [(each, listed(tx, *each)) for each in origins]

        found = await self._store.read(query)
        self._again |= dict.fromkeys(origin for origin, _ in found)
        return [(self._state(origin), withheld) for origin, withheld in found]

    def _note_forwarded(self, destination: str) -> None:
        self._on_forwarded_to(destination)

    async def _look(self) -> None:
        """Take note of the destinations that something was written for since the last look."""
        if self._seen is None:
            rows = await self._store.read(lambda tx: tx.execute(_ON_DISK))
        else:
            rows = await self._store.read(lambda tx, seen: tx.execute(_WRITTEN_SINCE, seen=seen), self._seen - OVERLAP)
        for row in rows:
            origin = Sent(row["lane"], row["destination"])
            last = Place(row["epoch"], row["last"])
            # Its last commands may be gone unsent by us: freed before a restart, dropped, or withheld.
            if last not in (self._state(origin).sent, self._nothing_to.get(origin)):
                self._unsent[origin] = last
        self._seen = max([self._seen or 0, *(row["clock"] for row in rows)])

    async def _send_next(self) -> bool:
        """Send one batch of the first lane that has something to send; False where none has."""
        await self._link.ready()
        await self._look()
        now, room = self._clock(), self._link.batch_bytes
        if self._doubtful or any(state.doubtful for state in self._origins() if state.not_before <= now):
            await self._check_stream()
            self._doubtful = False
            for state in self._origins():
                state.doubtful = False
        for lane in self._outbox.lanes:
            for origin in [each for each in self._again if each.lane == lane]:
                state = self._state(origin)
                if not state.again:
                    del self._again[origin]
                elif state.not_before <= now:
                    await self._repair(lane, state, room, origin.destination)
                    return True
            # An origin with something to send again waits here: else that went first, above.
            ready = [each for each in self._unsent if each.lane == lane and self._state(each).not_before <= now][:BATCH]
            if ready:
                await self._send_some(lane, ready, room)
                return True
        return False

    async def _send_some(self, lane: str, origins: Sequence[Sent], room: int) -> None:
        parts = await self._store.read(self._read, origins, room)
        reach("relay.read")
        for origin, part in zip(origins, parts, strict=False):  # those that were not read have their turn first
            looked_to = self._unsent.pop(origin)
            (self._unsent if part else self._nothing_to)[origin] = looked_to
        origins = origins[: len(parts)]
        if not any(parts):
            return
        packets: list[Packet] = []
        size = 0
        for packet in [packet for part in parts for packet in part]:
            size += packet.size
            if packets and size > room:
                break
            packets.append(packet)
        size = sum(packet.size for packet in packets)
        singly = any(self._state(origin).singly for origin, part in zip(origins, parts, strict=True) if part)
        reach("relay.publishing")
        outcomes = await self._publish(lane, packets, size, atomic=not singly)
        reach("relay.published")
        at = 0
        for origin, part in zip(origins, parts, strict=True):
            mine = outcomes[at : at + len(part)]
            at += len(part)
            if not mine:
                continue
            state = self._state(origin)
            # Judged by itself: what is refused to one destination may be the destination's, and then it has to wait.
            settled, _ = await self._settle(lane, state, part[: len(mine)], mine, origin.destination)
            if settled:
                state.sent = part[settled - 1].place

    def _read(self, tx: Transaction, origins: Sequence[Sent], room: int) -> list[list[Packet]]:
        """Return what is to be sent of each origin, as far as there is room, a fair share of each."""
        share, left, found = max(1, BATCH // len(origins)), BATCH, []
        for origin in origins:
            state = self._state(origin)
            this = state.room(room, self._publisher.max_payload)
            this = msgspec.structs.replace(this, events=min(share, left, state.limit))
            packets = self._packer.after(tx, origin.lane, state.sent, this, origin.destination).packets
            found.append(packets)
            left -= len(packets)
            room -= sum(packet.size for packet in packets)
            if left <= 0 or room <= 0:
                break
        return found
