"""The consumer: reads a stream's partitions, commits effects and inbox together, acknowledges afterwards.

The database's position is the truth (S5): at every start, connection, or jump in what is delivered, the durables are
set to it. A crash before the commit leaves nothing, one after it leaves a redelivery that the inbox knows.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.backoff import Backoff
from forebay.delivery import Delivery
from forebay.errors import ForebayError, LinkError, StoreError, TopologyError
from forebay.handlers import Handlers
from forebay.identity import PARTITIONS
from forebay.intake import HandlerFailedError, Taken, take_all
from forebay.jetstream.claims import claim_durable
from forebay.jetstream.connection import Connection
from forebay.jetstream.pulling import Delivery as Pulled
from forebay.jetstream.pulling import Pull
from forebay.jetstream.streams import StreamState, message_id_at, stream_state
from forebay.jetstream.topology.checks import stream_problems
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

BATCH = 500
"""Deliveries of one transaction."""

FOREIGN_KEPT = 7 * 24 * 3600
"""Seconds for which foreign ids are kept at least (I7)."""


class Position(NamedTuple):
    """How far a partition has been read: the stream's incarnation, a sequence, and the message id there."""

    incarnation: str
    sequence: int
    message_id: str


class Stall(msgspec.Struct):
    """A partition that waits behind a failing event."""

    message_id: str
    error: str
    backoff: Backoff
    attempts: int = 0
    not_before: float = 0.0


class Consumer:
    """Reads all partitions of a stream for one service. Start it with ``run``.

    Attributes:
        problem: why nothing is read at the moment, in a sentence; None while it reads.
        stalled: the partitions that wait behind a failing event.
        totals: what was done since the start, in events.
        committed: the last stream sequence committed per partition since the durables were set.
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
        partitions: int = PARTITIONS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.stream = stream
        self._handlers = handlers
        self._store = store
        self._store_id = store_id
        self._connection = connection
        self._partitions = range(partitions)
        self._clock = clock
        self._buffers: dict[int, deque[Pulled]] = {partition: deque() for partition in self._partitions}
        self._pulls: dict[int, Pull] = {}
        self._wakened = anyio.Event()
        self._broken: str | None = None
        self.problem: str | None = "not started"
        self.stalled: dict[int, Stall] = {}
        self.totals = Taken()
        self.incarnation: str | None = None
        self.committed: dict[int, int] = {}

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
    def reading(self) -> bool:
        """Whether it reads its partitions now."""
        return self.problem is None

    def outstanding(self, partition: int) -> bool:
        """Whether something of the partition was delivered here and not committed yet."""
        return bool(self._buffers[partition])

    # --- beginning and ending

    async def _begin(self) -> None:
        state = await stream_state(self._connection, self.stream)
        _check_stream(state)
        if state.created != self.incarnation:
            self.stalled.clear()  # what they waited behind was an event of another stream
        self.incarnation = state.created
        self._broken = None
        self.committed.clear()
        positions = await self._store.read(positions_of, self.stream)
        await self._store.write(forget_foreign, state.first, FOREIGN_KEPT)
        for partition in self._partitions:
            durable = f"{self.name}-{partition}"
            await claim_durable(
                self._connection, self.stream, self.name, self._handlers.services, partition, self._store_id
            )
            self._buffers[partition].clear()
            sequence = await self._standing(state, positions.get(partition))
            pull = Pull(
                self._connection,
                self.stream,
                durable,
                deliver=partial(self._deliver, partition),
                on_broken=self._pull_broken,
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
        self._buffers[partition].append(pulled)
        self._wakened.set()

    def _pull_broken(self, _: Pull, reason: str) -> None:
        self._break(reason)

    def _break(self, reason: str) -> None:
        self._broken = self._broken or reason
        self._wakened.set()

    async def _read(self, generation: int) -> None:
        failure: StoreError | None = None
        async with anyio.create_task_group() as tasks:

            async def lost() -> None:
                await self._connection.wait_lost(generation)
                self._break("the connection was lost")

            tasks.start_soon(lost)
            try:
                while self._broken is None:
                    self._wakened = anyio.Event()
                    if batch := self._next_batch():
                        with anyio.CancelScope(shield=True):  # a commit is never cut off from its acknowledgement
                            await self._commit(batch)
                    else:
                        with anyio.move_on_after(self._until_retry()):
                            await self._wakened.wait()
                    await anyio.lowlevel.checkpoint()
            except StoreError as error:
                failure = error  # raised outside: a task group would wrap it
            finally:
                tasks.cancel_scope.cancel()
        if failure is not None:
            raise failure
        if self._broken:
            raise LinkError(self._broken)

    def _next_batch(self) -> list[tuple[int, Pulled]]:
        """Take what waits, in order per partition, a fair share of each partition that is not stalled."""
        now = self._clock()
        ready = [
            partition
            for partition, buffer in self._buffers.items()
            if buffer and not (partition in self.stalled and self.stalled[partition].not_before > now)
        ]
        share = BATCH // len(ready) if ready else 0
        batch: list[tuple[int, Pulled]] = []
        for partition in ready:
            buffer = self._buffers[partition]
            # A stalled partition is tried with the failing event alone.
            count = 1 if partition in self.stalled else min(share, len(buffer))
            batch.extend((partition, buffer.popleft()) for _ in range(count))
        return batch

    def _until_retry(self) -> float | None:
        waits = [stall.not_before - self._clock() for p, stall in self.stalled.items() if self._buffers[p]]
        return max(0.01, min(waits)) if waits else None

    async def _commit(self, batch: list[tuple[int, Pulled]]) -> None:
        one_by_one, size = False, len(batch)
        retried = {partition for partition, _ in batch if partition in self.stalled}
        while batch:
            part = batch[:size]
            deliveries = [_delivery(partition, pulled) for partition, pulled in part]
            try:
                taken = await self._store.write(
                    take_all, self._handlers, self.stream, self.incarnation or "", deliveries, one_by_one
                )
            except HandlerFailedError as error:
                if error.alone:
                    batch = self._stall(batch, error.index, error.message_id, error)
                else:
                    one_by_one = True
            except StoreError:
                raise
            except Exception as error:  # noqa: BLE001 - stalls loudly, as a handler's failure does
                # Not in a handler: a deferred constraint that COMMIT found, or an event that the intake itself fails
                # on. Whose it is shows only singly.
                if size == 1:
                    message_id = part[0][1].headers.get("Nats-Msg-Id", "")
                    batch = self._stall(batch, 0, message_id, error)
                size = 1
            else:
                self._acknowledge(part)
                # Not one that stalls in this very batch, with events in it that came before the failing one.
                for partition in retried & {partition for partition, _ in part}:
                    logger.warning("consumer.resumed", extra={"consumer": self.name, "partition": partition})
                    del self.stalled[partition]
                self._count(taken)
                batch = batch[size:]

    def _acknowledge(self, batch: list[tuple[int, Pulled]]) -> None:
        last = dict(batch)  # the last of each partition: ack_policy all
        for partition, pulled in last.items():
            self.committed[partition] = pulled.stream_sequence
            pull = self._pulls.get(partition)
            if pull is not None and self._broken is None:
                pull.acknowledge(pulled)
                pull.consumed(sum(1 for each, _ in batch if each == partition))

    def _stall(
        self, batch: list[tuple[int, Pulled]], index: int, message_id: str, error: Exception
    ) -> list[tuple[int, Pulled]]:
        """Put the failing event and what follows in its partition back; return the rest of the batch."""
        reason = str(error) if isinstance(error, ForebayError) else f"{type(error).__name__}: {error}"
        failing = batch[index][0]
        kept = [each for at, each in enumerate(batch) if each[0] != failing or at < index]
        back = [pulled for at, (partition, pulled) in enumerate(batch) if partition == failing and at >= index]
        self._buffers[failing].extendleft(reversed(back))
        stall = self.stalled.setdefault(failing, Stall(message_id, reason, Backoff(first=0.5)))
        stall.message_id, stall.error = message_id, reason
        stall.attempts += 1
        stall.not_before = self._clock() + stall.backoff.next()
        logger.error(
            "consumer.stalled",
            extra={
                "consumer": self.name,
                "partition": failing,
                "message_id": message_id,
                "attempts": stall.attempts,
                "reason": reason,
            },
            exc_info=(error.__cause__ or error) if stall.attempts == 1 else None,
        )
        return kept

    def _count(self, taken: Taken) -> None:
        for field in Taken.__struct_fields__:
            setattr(self.totals, field, getattr(self.totals, field) + getattr(taken, field))
        if taken.parked:
            logger.error("consumer.parked", extra={"consumer": self.name, "events": taken.parked})


def positions_of(tx: Transaction, stream: str) -> dict[int, Position]:
    """Return the position of each partition of a stream that has one."""
    rows = tx.execute(
        "select partition, incarnation, sequence, message_id from forebay_position where stream = :stream",
        stream=stream,
    )
    return {row["partition"]: Position(row["incarnation"], row["sequence"], row["message_id"]) for row in rows}


def forget_foreign(tx: Transaction, first_sequence: int, kept: float) -> None:
    """Forget foreign ids that the stream has passed and that are older than ``kept`` seconds (I7)."""
    tx.execute(
        "delete from forebay_foreign where stream_sequence < :first and seen_at < :before",
        first=first_sequence,
        before=int((time.time() - kept) * 1000),
    )


def _check_stream(state: StreamState) -> None:
    """Raise ``TopologyError`` if the stream is not set as the reader relies on, with what is wrong."""
    problems = stream_problems(state.config)
    if not state.config.get("allow_direct"):
        problems.append("allow_direct must be set: a reader looks whether its position still stands")
    if problems:
        raise TopologyError("; ".join(problems), hint="see `forebay plan`")


def _delivery(partition: int, pulled: Pulled) -> Delivery:
    return Delivery(partition, pulled.stream_sequence, pulled.timestamp, pulled.subject, pulled.headers, pulled.body)
