"""The consumer: reads a stream's partitions, commits effects and inbox together, acknowledges afterwards.

The database's position is the truth (S5): at every start, connection, or jump in what is delivered, the durables are
set to it. A crash before the commit leaves nothing, one after it leaves a redelivery that the inbox knows. An event
whose handler fails is parked with its key and tried again from there (F1); the other keys go on.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import anyio
from anyio.abc import TaskStatus

from forebay.arrivals import Arrivals, Arrived
from forebay.backoff import Backoff
from forebay.committing import Committing
from forebay.crash_points import reach
from forebay.delivery import Delivery
from forebay.errors import ForebayError, LinkError, StoreError, TopologyError
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS
from forebay.jetstream.claims import claim_durable
from forebay.jetstream.connection import Connection
from forebay.jetstream.pulling import REQUEST_EXPIRES, SHARED_EXPIRES, Pull
from forebay.jetstream.pulling import Delivery as Pulled
from forebay.jetstream.streams import StreamState, consumer_info, message_id_at, stream_state
from forebay.jetstream.topology.checks import stream_problems
from forebay.parking import Whose
from forebay.partitions import LOOK, AllPartitions, NotTheReaderError, Partitions
from forebay.positions import Position, forget_foreign, positions_of, write_position
from forebay.redrive import PartitionRows
from forebay.responding import NotAskedError
from forebay.taken import Taken
from forebay.unit_of_work import UnitOfWork, UnitStore

logger = logging.getLogger(__name__)

FOREIGN_KEPT = 7 * 24 * 3600
"""Seconds for which foreign ids are kept at least (I7)."""

DISTURBED = 0.05
"""Seconds before a partition is begun again whose delivery another reader disturbed."""


class Consumer:
    """Reads all partitions of a stream for one service. Start it with ``run``.

    Attributes:
        committing: what its events go through.
        problem: why nothing is read at the moment, in a sentence; None while it reads.
        committed: the last stream sequence committed per partition since the durables were set.
        turns: how often it went back in the stream, or began anew; what was known of its reading before is void then.
    """

    def __init__(
        self,
        name: str,
        handlers: Handlers,
        store: UnitStore,
        store_id: str,
        connection: Connection,
        *,
        stream: str = "EVENTS",
        partitions: Partitions | None = None,
        clock: Callable[[], float] = time.monotonic,
        whose: Whose | None = None,
    ) -> None:
        self.name = name
        self.stream = stream
        self._handlers = handlers
        self._store = store
        self._store_id = store_id
        self._connection = connection
        self._partitions = partitions or AllPartitions(PARTITIONS)
        self._clock = clock
        self._looked_at = 0.0
        self._settling: Counter[int] = Counter()
        self._again: set[int] = set()
        self._arrivals = Arrivals()
        self._pulls: dict[int, Pull] = {}
        self._wakened = anyio.Event()
        self._broken: str | None = None
        self.problem: str | None = "not started"
        mine = PartitionRows(self._partitions, whose) if self._partitions.shared else whose
        self.committing = Committing(
            name, handlers, store, clock, mine, self._partitions.require, shared=self._partitions.shared
        )
        self._retries = self.committing.retries
        self._rewinds: dict[int, tuple[Position, Callable[[UnitOfWork], None]]] = {}
        self.incarnation: str | None = None
        self.committed: dict[int, int] = {}
        self.turns = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Read until cancelled; the transaction under way is finished and acknowledged first."""
        task_status.started()
        backoff = Backoff()
        while True:
            self.problem = self.problem or "not connected"
            generation = await self._connection.wait_connected()
            try:
                await self._begin()
                self.problem = None
                backoff.reset()
                logger.info("consumer.started", extra={"consumer": self.name})
                await self._read(generation)
            except (LinkError, TopologyError, StoreError) as error:
                self.problem = str(error)
                logger.warning("consumer.paused", extra={"consumer": self.name, "reason": self.problem})
                await anyio.sleep(backoff.next())
            finally:
                with anyio.move_on_after(1, shield=True):
                    await self._end()

    @property
    def totals(self) -> Taken:
        """What was done since the start, in events."""
        return self.committing.totals

    @property
    def reading(self) -> bool:
        """Whether it reads its partitions now."""
        return self.problem is None

    @property
    def partitions(self) -> list[int]:
        """The partitions that it reads now."""
        return sorted(self._pulls)

    def reads(self, partition: int) -> bool:
        """Whether it reads this partition now; only then it changes the state of its origins or answers for it (S7)."""
        return self.reading and partition in self._pulls

    def only_reader_of(self, partition: int) -> None:
        """Refuse a question about a partition that another process reads.

        Raises:
            NotAskedError: it is not read here.
        """
        if not self.reads(partition):
            raise NotAskedError(f"partition {partition} is not read here")

    async def at_end(self, partition: int) -> bool:
        """Whether nothing of the partition is pending or under way: then the stream's end counts as read.

        Raises:
            LinkError: the broker did not answer.
        """
        info = await consumer_info(self._connection, self.stream, self.durable(partition))
        committed = self.committed.get(partition, 0)
        return info.pending == 0 and info.delivered <= committed and not self._arrivals.any_of(partition)

    def durable(self, partition: int) -> str:
        """The name of a partition's durable."""
        return f"{self.name}-{partition}"

    async def position_before(self, sequence: int) -> Position:
        """Return the position from which a stream sequence is read again.

        Raises:
            LinkError: the broker did not answer.
        """
        before = sequence - 1
        message_id = await message_id_at(self._connection, self.stream, before) if before > 0 else None
        # Where nothing stands any more it is the beginning: dedup does the rest.
        return Position(self.incarnation or "", before if message_id else 0, message_id or "")

    # --- beginning and ending

    async def _begin(self) -> None:
        state = await stream_state(self._connection, self.stream)
        _check_stream(state)
        self.incarnation = state.created
        self._broken = None
        self._again.clear()
        self.turns += 1
        self.committed.clear()
        await self._store.write(forget_foreign, state.first, FOREIGN_KEPT)
        await self._share()
        await self._retries.begin()

    async def _share(self) -> None:
        """Read the partitions that are this process's now, and give up what is too much for it."""
        self._looked_at = self._clock()
        shares = await self._partitions.look()
        excess = frozenset(sorted(shares.held, key=lambda each: (each in self._pulls, each))[: shares.give])
        for partition in sorted(set(self._pulls) - (shares.held - excess)):
            await self._leave(partition)
        if excess:
            while any(self._settling[partition] for partition in excess):  # noqa: ASYNC110 -- moments, and rarely
                await anyio.sleep(0.01)
            await self._partitions.release(excess)
            logger.info("consumer.partitions_given", extra={"consumer": self.name, "partitions": sorted(excess)})
        new = sorted(shares.held - excess - set(self._pulls))
        if new:
            await self._take_on(new)

    async def _leave(self, partition: int) -> None:
        pull = self._pulls.pop(partition)
        self.turns += 1
        await pull.end()
        self._arrivals.clear(partition)
        self.committed.pop(partition, None)
        self._rewinds.pop(partition, None)

    async def _take_on(self, partitions: Sequence[int]) -> None:
        """Set the durables to the database's positions, which are nobody else's to move any more (S5)."""
        state = await stream_state(self._connection, self.stream)
        if state.created != self.incarnation:
            raise LinkError(f"stream {self.stream} was replaced")
        positions = await self._store.read(positions_of, self.stream)
        for partition in partitions:
            durable = self.durable(partition)
            await claim_durable(
                self._connection, self.stream, self.name, self._handlers.services, partition, self._store_id
            )
            self._arrivals.clear(partition)
            sequence = await self._standing(state, positions.get(partition))
            pull = Pull(
                self._connection,
                self.stream,
                durable,
                deliver=partial(self._deliver, partition),
                on_broken=partial(self._pull_broken, partition),
                expires=SHARED_EXPIRES if self._partitions.shared else REQUEST_EXPIRES,
            )
            self._pulls[partition] = pull
            self.committed[partition] = sequence
            begun = await pull.begin(sequence)
            if begun.created != state.created or begun.last < sequence:
                raise LinkError(f"stream {self.stream} was replaced while the durables were set")

    async def _standing(self, state: StreamState, position: Position | None) -> int:
        """Return the position's sequence if it stands in this very stream, else 0: read again, dedup does the rest."""
        if position is None or position.incarnation != state.created or position.sequence > state.last:
            return 0
        found = await message_id_at(self._connection, self.stream, position.sequence)
        return position.sequence if found == position.message_id else 0

    async def _end(self) -> None:
        for pull in self._pulls.values():
            await pull.end()
        self._pulls.clear()

    # --- reading

    def _deliver(self, partition: int, _: Pull, pulled: Pulled) -> None:
        self._arrivals.add(partition, pulled)
        self._wakened.set()

    def _pull_broken(self, partition: int, _: Pull, reason: str) -> None:
        if self._partitions.shared:
            # A frozen reader's open pulls still swallow what a durable delivers: begun again at once they run dry.
            self._again.add(partition)
            self._wakened.set()
        else:
            self._break(reason)

    async def _begin_again(self) -> None:
        """Set the durables of partitions anew whose delivery was disturbed; the others go on."""
        again, self._again = self._again & set(self._pulls), set()
        for partition in again:
            await self._leave(partition)
        if again:
            await anyio.sleep(DISTURBED)
            await self._take_on(sorted(again))

    def _break(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._wakened.set()

    async def _read(self, generation: int) -> None:
        failure: ForebayError | None = None
        async with anyio.create_task_group() as tasks:

            async def lost() -> None:
                await self._connection.wait_lost(generation)
                self._break("the connection was lost")

            tasks.start_soon(lost)
            try:
                while self._broken is None:
                    self._wakened = anyio.Event()
                    if self._partitions.shared and self._looked_at + LOOK <= self._clock():
                        await self._share()
                        self._retries.look_again()
                    if self._again:
                        await self._begin_again()
                    if self._rewinds:
                        await self._rewind()
                    retried = await self.committing.retry_due()
                    batch = [] if self.suspended else self._arrivals.next_batch()
                    if batch:
                        reach("consume.delivered")
                        with anyio.CancelScope(shield=True):  # a commit is never cut off from its acknowledgement
                            await self._commit(batch)
                    elif not retried:
                        with anyio.move_on_after(self._pause()):
                            await self._wakened.wait()
                    await anyio.lowlevel.checkpoint()
            except (StoreError, LinkError, TopologyError) as error:
                failure = error  # raised outside: a task group would wrap it
            finally:
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._broken:
            raise LinkError(self._broken)

    def _pause(self) -> float | None:
        """Return the seconds after which something is to be done in any case; None where nothing is."""
        pauses = [self._retries.until_next(), LOOK if self._partitions.shared else None]
        return min((each for each in pauses if each is not None), default=None)

    async def _commit(self, batch: list[Arrived]) -> None:
        def committed(first: int, end: int) -> None:
            self._acknowledge(batch[first:end])
            reach("consume.acknowledged")

        deliveries = [_delivery(partition, pulled) for partition, pulled in batch]
        done = await self.committing.commit(self.stream, self.incarnation or "", deliveries, committed)
        self._arrivals.put_back(batch[done:])  # suspended

    # --- what else changes the state of origins (S7)

    async def settle(self, unit: Callable[..., Taken], /, *args: Any, partition: int) -> Taken:
        """Run ``unit(work, *args, failing)`` until no handler fails in it that is not parked; count what it did.

        Args:
            unit: what is done.
            args: for it.
            partition: whose origins it changes.

        Raises:
            NotTheReaderError: the partition is another process's.
            StoreError: the database failed; nothing of it was kept.
        """
        if not self.reads(partition):
            raise NotTheReaderError(f"partition {partition} is not read here")
        self._settling[partition] += 1
        try:
            taken = await self.committing.settle(unit, *args, partition=partition)
        finally:
            self._settling[partition] -= 1
        self.look_again()
        return taken

    def rewind(self, partition: int, position: Position, also: Callable[[UnitOfWork], None]) -> None:
        """Read a partition again from behind a position, after the batch under way.

        ``also`` runs in the transaction that sets the position.
        """
        self._rewinds[partition] = (position, also)
        # At once: what it had read counts no more, also for questions that are being answered now.
        self.turns += 1
        self.committed.pop(partition, None)
        self._wakened.set()

    def still(self) -> AbstractAsyncContextManager[None]:
        """Let nothing take effect for a moment; see ``Committing.still``."""
        return self.committing.still()

    def look_again(self) -> None:
        """Say that parked events may be due earlier than was known."""
        self._retries.look_again()
        self._wakened.set()

    @property
    def suspended(self) -> str | None:
        """Why it only retries what is parked and reads nothing new; None while it reads (F2)."""
        return self._retries.suspended

    async def _rewind(self) -> None:
        for partition, (position, also) in self._rewinds.items():

            def unit(work: UnitOfWork, at: tuple[int, Position] = (partition, position), also: Any = also) -> None:
                self._partitions.require(at[0])
                write_position(work, self.stream, *at)
                also(work)

            await self._store.write(unit)
        self._rewinds.clear()
        self._break("events that were given up are read again")

    def only_while_not_suspended(self) -> None:
        """Refuse what would take in more while nothing succeeds.

        Raises:
            StoreError: it is suspended.
        """
        if self.suspended:
            raise StoreError(f"{self.name} takes nothing in: {self.suspended}")

    def _acknowledge(self, batch: list[Arrived]) -> None:
        last = dict(batch)  # the last of each partition: ack_policy all
        counts = Counter([partition for partition, _ in batch])
        for partition, pulled in last.items():
            if partition not in self._rewinds and partition in self._pulls:
                self.committed[partition] = pulled.stream_sequence
            pull = self._pulls.get(partition)
            if pull is not None and self._broken is None:
                pull.acknowledge(pulled)
                pull.consumed(counts[partition])


def _check_stream(state: StreamState) -> None:
    """Raise ``TopologyError`` if the stream is not set as the reader relies on, with what is wrong."""
    problems = stream_problems(state.config)
    if not state.config.get("allow_direct"):
        problems.append("allow_direct must be set: a reader looks whether its position still stands")
    if problems:
        raise TopologyError("; ".join(problems), hint="see `forebay plan`")


def _delivery(partition: int, pulled: Pulled) -> Delivery:
    subject, headers, body, stream_sequence, _, _, _, timestamp, _ = pulled
    return tuple.__new__(Delivery, (partition, stream_sequence, timestamp, subject, headers, body))
