"""Confirmation on the consumer's side: the reader of a node's partition answers from its inbox (rules C1, C4)."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from functools import partial

import anyio
import msgspec
from anyio.abc import TaskGroup, TaskStatus

from forebay.consumer import Consumer, positions_of
from forebay.envelope import format_time
from forebay.errors import ForebayError, MessageError
from forebay.identity import NAME, PARTITIONS, partition_of
from forebay.inbox import epochs_of
from forebay.jetstream.connection import Connection, Incoming
from forebay.jetstream.streams import StreamState, consumer_info, stream_state
from forebay.jetstream.topology.confirmed_by import KEY, parse
from forebay.protocol.confirmation import VERSION, Answer, ConfirmedBy, EpochAnswer, Question
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

_question = msgspec.json.Decoder(Question)


class Answering:
    """Answers nodes' questions for one consumer. Start it with ``run``.

    Nothing is answered while the consumer does not read: its state could be another reader's by now (S7).
    """

    def __init__(self, consumer: Consumer, store: UnitStore, store_id: str, connection: Connection) -> None:
        self._consumer = consumer
        self._store = store
        self._store_id = store_id
        self._connection = connection
        self.answered = 0

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        async with anyio.create_task_group() as tasks:
            subscribe = self._connection.subscribe
            subscriptions = [
                await subscribe(f"confirm.event.{self._consumer.name}.*", partial(self._start, tasks, self._answer)),
                await subscribe("confirm.list.*", partial(self._start, tasks, self._list)),
            ]
            task_status.started()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.move_on_after(1, shield=True):
                    for subscription in subscriptions:
                        await subscription.unsubscribe()

    def _start(self, tasks: TaskGroup, answer: Callable[[Incoming], Awaitable[object]], request: Incoming) -> None:
        if request.reply and self._consumer.reading:
            tasks.start_soon(self._reply, answer, request)

    async def _reply(self, answer: Callable[[Incoming], Awaitable[object]], request: Incoming) -> None:
        try:
            body = msgspec.json.encode(await answer(request))
            await self._connection.publish(request.reply, body)
            self.answered += 1
        except (ForebayError, msgspec.DecodeError) as error:  # the node asks again
            logger.warning("confirmation.failed", extra={"subject": request.subject[:128], "reason": str(error)})

    async def _list(self, _: Incoming) -> ConfirmedBy | None:
        return parse((await self._stream()).metadata.get(KEY))

    async def _answer(self, request: Incoming) -> Answer:
        question = _question.decode(request.body)
        node = request.subject.rsplit(".", 1)[-1]
        if not NAME.fullmatch(node):
            raise MessageError(f"{node[:64]!r} is not a node's name")
        consumer, partition = self._consumer, partition_of(node, PARTITIONS)
        state = await self._stream()
        # What the reader has read and committed is worth nothing in a stream that took the place of the one it reads.
        at_end = consumer.incarnation == state.created and await self._at_end(partition)
        position, epochs = await self._store.read(self._passed, node, partition, question, state.created)
        return Answer(
            v=VERSION,
            consumer=consumer.name,
            store=self._store_id,
            clock=format_time(datetime.now(UTC)),
            incarnation=state.created,
            stream_end=state.last,
            position=state.last if at_end else position,
            epochs=epochs,
            confirmed_by=parse(state.metadata.get(KEY)),
        )

    def _passed(
        self, tx: Transaction, node: str, partition: int, question: Question, incarnation: str
    ) -> tuple[int, dict[str, EpochAnswer]]:
        position = positions_of(tx, self._consumer.stream).get(partition)
        epochs: dict[str, EpochAnswer] = {}
        for origin in question.origins:
            wanted = [link.epoch for link in origin.chain]
            for epoch, passed in epochs_of(tx, node, origin.service, wanted).items():
                epochs[epoch] = EpochAnswer(watermark=passed.watermark, held=list(passed.ranges))
        return position.sequence if position and position.incarnation == incarnation else 0, epochs

    async def _at_end(self, partition: int) -> bool:
        """Whether nothing of the partition is pending or under way: then the stream's end counts as read."""
        info = await consumer_info(self._connection, self._consumer.stream, f"{self._consumer.name}-{partition}")
        committed = self._consumer.committed.get(partition, 0)
        return info.pending == 0 and info.delivered <= committed and not self._consumer.outstanding(partition)

    async def _stream(self) -> StreamState:
        return await stream_state(self._connection, self._consumer.stream)
