"""The relay: drains the lanes of one service's outbox to the stream, in order, by priority.

What it knows of the broker is in memory: how far each lane has been forwarded and at which stream sequences (C3). A
publish acknowledgement is a hint; rows leave the disk by confirmation alone. A link that is down is not a failing
event: the relay waits for it for ever and spends no attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial

import anyio
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.crash_points import reach
from forebay.errors import LinkError, StoreError, TopologyError
from forebay.forwarding import LaneState
from forebay.identity import Place
from forebay.jetstream.connection import Connection
from forebay.jetstream.outcomes import Outcome, Refused, Stored, Uncertain, all_stored
from forebay.jetstream.publishing import Prepared, Publisher, Staged
from forebay.jetstream.streams import stream_state
from forebay.jetstream.topology.checks import stream_problems
from forebay.link import Link
from forebay.looking_ahead import LookAhead
from forebay.outbox import Outbox
from forebay.packets import Batch, Found, Look, Packer, Packet, bytes_of
from forebay.protocol.resending import Forwarded
from forebay.sequences import Range
from forebay.unit_of_work import UnitStore
from forebay.withholding import Listed, listed, withhold

logger = logging.getLogger(__name__)

LIMITS_INTERVAL = 60.0
"""Seconds between looks at the broker's limits while something is withheld."""

RETRY_INTERVAL = 3600.0
"""Seconds after which withheld events are tried again although no limit is known to have changed."""


class Relay:
    """Forwards one outbox. Start it with ``run``; wake it with ``wake`` when rows were committed."""

    def __init__(
        self,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        publisher: Publisher,
        *,
        link: Link | None = None,
        stream: str = "EVENTS",
        confirmed_upto: Callable[[], Awaitable[Mapping[str, Place]]] | None = None,
        on_forwarded: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._connection = connection
        self._publisher = publisher
        self._link = link or Link()
        self._stream = stream
        self._confirmed_upto = confirmed_upto
        self._on_forwarded = on_forwarded
        self._clock = clock
        self._wakened = anyio.Event()
        self._wakes = 0
        self._packer = Packer(outbox, publisher.wire_bytes, publisher.prepare)
        self._ahead = LookAhead(store, self._packer, publisher)
        self.lanes = {name: LaneState(frames=lane.framing) for name, lane in outbox.lanes.items()}
        self.incarnation: str | None = None
        self.problem: str | None = None
        self.published = 0
        self.messages = 0
        self.sent_bytes = 0
        self.resent = 0
        self.withheld = 0
        self._limits: tuple[int | None, int] | None = None
        self._look_at = 0.0
        self._retry_at = 0.0

    @property
    def service(self) -> str:
        """The service whose outbox this is."""
        return self._outbox.service

    def wake(self) -> None:
        """Say that there may be rows to send; cheap, may be called from the event loop at any time."""
        self._wakes += 1
        self._wakened.set()

    def forwarded(self, lane: str, place: Place, destination: str = "") -> Forwarded | None:
        """Return where in the stream a place is, or None where this process has not seen it acknowledged."""
        state = self.states(destination).get(lane)
        return state.forwards.covering(place) if state else None

    def states(self, destination: str) -> Mapping[str, LaneState]:  # noqa: ARG002 - events have none
        """Return how far each lane of a destination is forwarded; of events it is empty."""
        return self.lanes

    def send_again(self, lane: str, epoch: str, ranges: Sequence[Range], destination: str = "") -> None:
        """Send places again, under fresh ids, before anything new of the origin (C2, I4)."""
        if self.states(destination)[lane].missed(epoch, ranges):
            logger.warning(
                "relay.repairing",
                extra={
                    "service": self.service,
                    "lane": lane,
                    "destination": destination,
                    "epoch": epoch,
                    "ranges": list(ranges)[:8],
                },
            )
            self.wake()

    def retry_withheld(self) -> None:
        """Try what the broker refused for itself again (O4): somebody says that its limits have changed."""
        self._limits = None
        self._look_at = 0.0
        self.wake()

    def doubt_stream(self) -> None:
        """Say that a consumer reads another incarnation of the stream: look at it before the next message."""
        for state in self._origins():
            state.doubtful = True

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Forward until cancelled."""
        task_status.started()
        backoff = Backoff()
        while True:
            generation = await self._connection.wait_connected()
            try:
                await self._check_stream()
                self.problem = None
                backoff.reset()
                await self._begin()
                await self._drain(generation)
            except (LinkError, TopologyError, StoreError) as error:
                self.problem = str(error)
                logger.warning("relay.paused", extra={"service": self._outbox.service, "reason": str(error)})
                await anyio.sleep(backoff.next())

    async def _begin(self) -> None:
        """Once, before the first message: pass over what every consumer has, such as the grace tail (O1)."""
        if self._confirmed_upto is not None:
            for lane, place in (await self._confirmed_upto()).items():
                self.lanes[lane].sent = place
            self._confirmed_upto = None

    async def _check_stream(self) -> None:
        state = await stream_state(self._connection, self._stream)
        if problems := stream_problems(state.config):
            raise TopologyError(f"stream {self._stream}: {'; '.join(problems)}", hint="see `forebay plan`")
        self.incarnation = state.created
        await self._look_at_limits((self._publisher.max_payload, state.config.get("max_msg_size", -1)))

    async def _look_at_limits(self, limits: tuple[int | None, int]) -> None:
        """Send withheld bodies again where the limits have changed, or after a long time (O4)."""
        now = self._clock()
        changed = limits != self._limits or now >= self._retry_at
        self._limits = limits
        self._look_at = now + LIMITS_INTERVAL
        self.withheld = 0
        for state, withheld in await self._aside():
            self.withheld += len(withheld)
            if changed and withheld:
                state.try_withheld(Place(place.epoch, place.sequence) for place, _ in withheld)
        if changed:
            self._retry_at = now + RETRY_INTERVAL

    async def _aside(self) -> list[tuple[LaneState, list[Listed]]]:
        """Return what is withheld of each origin."""
        return [(state, await self._store.read(listed, lane)) for lane, state in self.lanes.items()]

    def _origins(self) -> Iterable[LaneState]:
        """The origins that may have to be waited for."""
        return self.lanes.values()

    async def _drain(self, generation: int) -> None:
        self._ahead.drop()
        for state in self._origins():  # a new connection is a reason to try at once
            state.not_before = 0.0
        self._connection.watch(self)
        try:
            while self._connection.connected and self._connection.generation == generation:
                self._wakened = anyio.Event()
                if self.withheld and self._clock() >= self._look_at:
                    await self._connection.look_at_max_payload()
                    await self._check_stream()
                if not await self._send_next():
                    await self._wait()
        finally:
            self._connection.unwatch(self)

    async def _wait(self) -> None:
        """Wait until there may be something to do: until it is woken, or a time comes."""
        waits = [state.not_before - self._clock() for state in self._origins() if state.problem]
        waits += [state.gathers_until - self._clock() for state in self._origins() if state.gathers_until]
        if self.withheld:
            waits.append(self._look_at - self._clock())
        with anyio.move_on_after(max(0.01, min(waits)) if waits else None):
            await self._wakened.wait()

    def lost(self, why: str) -> None:  # noqa: ARG002 - the connection keeps it
        """Wait no more: the connection is gone (``Watcher``)."""
        self.wake()

    def denied(self, subject: str) -> None:
        """Do nothing: whoever published hears of it (``Watcher``)."""

    async def _send_next(self) -> bool:
        """Send one batch of the first lane that has something to send; return whether there may be more by now.

        What is written after this began wakes the relay. So where nothing is left it has nothing to look for.
        """
        await self._link.ready()
        room = self._link.batch_bytes
        turns = [(lane, room) for lane in self.lanes]
        if len(turns) > 1 and (share := self._link.lowest_bytes):
            turns.insert(0, (turns[-1][0], share))  # its share, before it starves
        looks: list[Look] = []
        for lane, max_bytes in turns:
            state = self.lanes[lane]
            if state.not_before > self._clock():
                continue
            if state.doubtful:
                await self._check_stream()
                state.doubtful = False
            if state.again:
                if not await self._send_first(looks):
                    await self._repair(lane, state, max_bytes)
                return True
            if not await self._gathers(lane, state):
                looks.append(Look(lane, state.sent, state.room(max_bytes, self._publisher.max_payload)))
        return await self._send_first(looks)

    async def _send_first(self, looks: Sequence[Look]) -> bool:
        """Send what the first of these looks finds; return whether there may be more."""
        while looks:
            found = await self._next(looks)
            for look in looks[: found.at]:
                self.lanes[look.lane].gathers_until = None
            if not found.batch.packets:
                break
            reach("relay.read")
            lane = looks[found.at].lane
            if not self._begins_to_gather(lane, self.lanes[lane], found.batch):
                return not await self._send_on(lane, self.lanes[lane], found.batch) or found.rest
            looks = [each for each in looks[found.at + 1 :] if each.lane != lane]
        return False

    async def _gathers(self, lane: str, state: LaneState) -> bool:
        """Whether a lane waits to fill a batch or a frame, and has not filled one yet."""
        if state.gathers_until is None or self._clock() >= state.gathers_until:
            return False
        frames = state.frames
        full = (state.limit, self._link.batch_bytes) if frames is None else (frames.events, frames.most_bytes)
        events, size = await self._store.read(self._outbox.waiting, lane, state.sent, full[0])
        return events < full[0] and size < full[1]

    def _begins_to_gather(self, lane: str, state: LaneState, batch: Batch) -> bool:
        """Let a lane wait for more to send with what it has, unless it has waited or has enough."""
        seconds, frames = self._outbox.lanes[lane].flush_seconds, state.frames
        if seconds and state.gathers_until is None and not batch.more:
            full = frames is not None and (batch.events >= frames.events or batch.disk >= frames.most_bytes)
            if not full:
                state.gathers_until = self._clock() + seconds
                return True
        if not batch.more:
            state.gathers_until = None
        return False

    async def _next(self, looks: Sequence[Look]) -> Found:
        """Return what there is to send next."""
        if (at := self._ahead.at(looks)) is None:
            return await self._store.read(self._packer.first, looks)
        if at and not self._ahead.alone(self._wakes):
            found = await self._store.read(self._packer.first, looks[:at])
            if found.batch.packets:
                return found._replace(rest=True)
        if batch := self._ahead.take(looks[at]):
            return Found(at, batch, rest=True)
        found = await self._store.read(self._packer.first, looks[at:])
        return found._replace(at=at + found.at)

    async def _send_on(self, lane: str, state: LaneState, batch: Batch) -> bool:
        """Send a batch of a lane, and read the next one meanwhile where there is more; return whether all is settled.

        Raises:
            StoreError: what the broker refuses could not be withheld.
        """
        room = state.room(self._link.batch_bytes, self._publisher.max_payload)
        look = Look(lane, batch.packets[-1].place, room)
        others = [(name, each.sent) for name, each in self.lanes.items() if name != lane]
        wide = self._link.cap is None and not self._link.narrow
        settled, failure = 0, None
        if batch.more and not state.singly:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(partial(self._ahead.read, look, others, self._wakes, wide=wide))
                try:
                    settled, _ = await self._send(lane, state, batch)
                except StoreError as error:
                    failure = error  # raised outside: a task group would wrap it
        else:
            settled, _ = await self._send(lane, state, batch)
        if failure is not None:
            raise failure
        if settled:
            state.sent = batch.packets[settled - 1].place
        return settled == len(batch.packets)

    async def _repair(self, lane: str, state: LaneState, max_bytes: int, destination: str = "") -> None:
        """Send the first of the places that a consumer missed. What was freed meanwhile is passed over."""
        epoch, ((first, last), *_) = next(iter(state.again.items()))
        room = state.room(max_bytes, self._publisher.max_payload)
        batch = await self._store.read(self._packer.within, lane, epoch, (first, last), room, destination)
        if not batch.packets:
            state.repaired(epoch, last)
            return
        reach("relay.repairing")
        settled, stored = await self._send(lane, state, batch, destination)
        if settled:
            self.resent += stored
            state.repaired(epoch, batch.packets[settled - 1].last)

    async def _send(self, lane: str, state: LaneState, batch: Batch, destination: str = "") -> tuple[int, int]:
        """Publish a batch; return how many messages, from the first, are settled, and how many events were stored."""
        size = batch.size
        state.wrote(size, batch.disk)
        reach("relay.publishing")
        outcomes = await self._publish(lane, batch.packets, size, batch.prepared, atomic=not state.singly)
        reach("relay.published")
        return await self._settle(lane, state, batch.packets, outcomes, destination)

    async def _settle(
        self, lane: str, state: LaneState, packets: Sequence[Packet], outcomes: Sequence[Outcome], destination: str
    ) -> tuple[int, int]:
        """Note what became of an origin's messages; return what ``_send`` does."""
        settled = state.settled(packets, outcomes)
        await self._withhold(lane, packets[:settled], outcomes[:settled])
        stored = state.acknowledged(packets[:settled], outcomes[:settled], self.incarnation or "")
        reach("relay.noted")
        if settled:
            self.published += stored
            self.messages += settled
            self.sent_bytes += bytes_of(packets[:settled])
            self._note_forwarded(destination)
        if settled == len(packets):
            state.go_on()
            return settled, stored
        through = any(isinstance(outcome, Stored) for outcome in outcomes)
        if state.stop_at(packets[settled], outcomes[settled], self._clock(), through=through):
            logger.warning("relay.lane_paused", extra={"service": self.service, "lane": lane, "reason": state.problem})
        return settled, stored

    def _note_forwarded(self, destination: str) -> None:  # noqa: ARG002 - events have none
        self._on_forwarded()

    async def _publish(
        self,
        lane: str,
        packets: Sequence[Packet],
        size: int,
        prepared: Prepared | Staged | None = None,
        *,
        atomic: bool,
    ) -> list[Outcome]:
        """Publish when the link is free for this lane, and learn from it how much the link carries."""
        names = list(self.lanes)
        async with self._link.turn(names.index(lane), size):
            began = self._clock()
            self._publisher.timeout = self._link.timeout(size)
            messages = [packet.outgoing for packet in packets]
            outcomes = await self._publisher.publish(messages, atomic=atomic, prepared=prepared)
            seconds = self._clock() - began
        self._ahead.acknowledged_in = float("inf")
        if all_stored(outcomes):
            self._ahead.acknowledged_in = seconds
            self._link.carried(size, seconds, lowest=len(names) > 1 and lane == names[-1])
        elif any(isinstance(outcome, Uncertain) for outcome in outcomes):
            self._link.failed()
        return outcomes

    async def _withhold(self, lane: str, packets: Sequence[Packet], outcomes: Sequence[Outcome]) -> None:
        """Move what the broker refuses for itself beside the outbox, so that the lane goes on (O4)."""
        if all_stored(outcomes):
            return
        refused = {
            packet.place: f"{outcome.description} ({outcome.code})"
            for packet, outcome in zip(packets, outcomes, strict=True)
            if isinstance(outcome, Refused)
        }
        if not refused:
            return
        moved = await self._store.write(withhold, refused, time.time_ns() // 1_000_000)
        if moved:
            self.withheld += moved
            place, reason = next(iter(refused.items()))
            logger.warning(
                "relay.withheld",
                extra={"service": self.service, "lane": lane, "events": moved, "first": str(place), "reason": reason},
            )
