"""The relay: drains the lanes of one service's outbox to the stream, in order, by priority.

What it knows of the broker is in memory: how far each lane has been forwarded and at which stream sequences (C3). A
publish acknowledgement is a hint; rows leave the disk by confirmation alone. A link that is down is not a failing
event: the relay waits for it for ever and spends no attempt.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence

import anyio
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.envelope import Message, encode_headers
from forebay.errors import LinkError, StoreError, TopologyError
from forebay.forwarding import LaneState
from forebay.identity import Place, retransmission_id
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Outgoing, Publisher
from forebay.jetstream.streams import stream_state
from forebay.jetstream.topology.checks import stream_problems
from forebay.outbox import Outbox
from forebay.protocol.resending import Forwarded, Range
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

BATCH_BYTES = 1024 * 1024
"""Bytes of one publish, of rows on disk."""


class Relay:
    """Forwards one outbox. Start it with ``run``; wake it with ``wake`` when rows were committed."""

    def __init__(
        self,
        outbox: Outbox,
        store: UnitStore,
        connection: Connection,
        publisher: Publisher,
        *,
        stream: str = "EVENTS",
        confirmed_upto: Callable[[], Awaitable[Mapping[str, Place]]] | None = None,
        on_forwarded: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._outbox = outbox
        self._store = store
        self._connection = connection
        self._publisher = publisher
        self._stream = stream
        self._confirmed_upto = confirmed_upto
        self._on_forwarded = on_forwarded
        self._clock = clock
        self._wakened = anyio.Event()
        self.lanes = {name: LaneState() for name in outbox.lanes}
        self.incarnation: str | None = None
        self.problem: str | None = None
        self.published = 0
        self.resent = 0

    @property
    def service(self) -> str:
        """The service whose outbox this is."""
        return self._outbox.service

    def wake(self) -> None:
        """Say that there may be rows to send; cheap, may be called from the event loop at any time."""
        self._wakened.set()

    def forwarded(self, lane: str, place: Place) -> Forwarded | None:
        """Return where in the stream a place is, or None where this process has not seen it acknowledged."""
        state = self.lanes.get(lane)
        return state.forwards.covering(place) if state else None

    def send_again(self, lane: str, epoch: str, ranges: Sequence[Range]) -> None:
        """Send places again, under fresh ids, before anything new of the lane (C2, I4)."""
        if self.lanes[lane].missed(epoch, ranges):
            logger.warning(
                "relay.repairing",
                extra={"service": self.service, "lane": lane, "epoch": epoch, "ranges": list(ranges)[:8]},
            )
            self.wake()

    def doubt_stream(self) -> None:
        """Say that a consumer reads another incarnation of the stream: look at it before the next message."""
        for state in self.lanes.values():
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

    async def _drain(self, generation: int) -> None:
        for state in self.lanes.values():  # a new connection is a reason to try at once
            state.not_before = 0.0
        while self._connection.connected and self._connection.generation == generation:
            self._wakened = anyio.Event()
            if await self._send_next():
                continue
            waits = [state.not_before - self._clock() for state in self.lanes.values() if state.problem]
            with anyio.move_on_after(max(0.01, min(waits)) if waits else None):
                await self._woken_or_lost(generation)

    async def _woken_or_lost(self, generation: int) -> None:
        async with anyio.create_task_group() as tasks:

            async def lost() -> None:
                await self._connection.wait_lost(generation)
                tasks.cancel_scope.cancel()

            tasks.start_soon(lost)
            await self._wakened.wait()
            tasks.cancel_scope.cancel()

    async def _send_next(self) -> bool:
        """Send one batch of the first lane that has something to send; False where none has."""
        for lane, state in self.lanes.items():
            if state.not_before > self._clock():
                continue
            if state.doubtful:
                await self._check_stream()
                state.doubtful = False
            if state.again:
                await self._repair(lane, state)
                return True
            messages = await self._store.read(
                self._outbox.after, lane, state.sent, limit=state.limit, max_bytes=BATCH_BYTES
            )
            if messages:
                stored = await self._send(lane, state, messages, [message.message_id for message in messages])
                if stored:
                    state.sent = messages[stored - 1].place
                return True
        return False

    async def _repair(self, lane: str, state: LaneState) -> None:
        """Send the first of the places that a consumer missed. What was freed meanwhile is passed over."""
        epoch, ((first, last), *_) = next(iter(state.again.items()))
        messages = await self._store.read(
            self._outbox.within, lane, epoch, (first, last), limit=state.limit, max_bytes=BATCH_BYTES
        )
        if not messages:
            state.repaired(epoch, last)
            return
        # The broker swallows what it takes for known, so that every copy goes under an id of its own.
        ids = [retransmission_id(message.message_id) for message in messages]
        stored = await self._send(lane, state, messages, ids)
        place = messages[stored - 1].place if stored else None
        if place is not None:
            self.resent += stored
            state.repaired(epoch, place.sequence)

    async def _send(self, lane: str, state: LaneState, messages: list[Message], ids: list[str]) -> int:
        """Publish messages under their ids; return how many of them, from the first, were stored."""
        outgoing = [
            Outgoing(
                self._outbox.subject(message), {**encode_headers(message), "Nats-Msg-Id": message_id}, message.body
            )
            for message, message_id in zip(messages, ids, strict=True)
        ]
        outcomes = await self._publisher.publish(outgoing, atomic=not state.singly)
        stored = state.acknowledged(messages, outcomes, self.incarnation or "")
        if stored:
            self.published += stored
            self._on_forwarded()
        if stored == len(messages):
            state.go_on()
        else:
            state.pause(outcomes[stored], self._clock())
            logger.warning("relay.lane_paused", extra={"service": self.service, "lane": lane, "reason": state.problem})
        return stored
