"""Confirmation on the consumer's side: the reader of a node's partition answers from its inbox (rules C1, C4)."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from functools import partial

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.clock_offsets import ClockOffsets
from forebay.closing import Closing, Statement, says_something
from forebay.consumer import Consumer
from forebay.envelope import format_time
from forebay.errors import ForebayError, MessageError
from forebay.identity import NAME, PARTITIONS, partition_of
from forebay.inbox import answered
from forebay.jetstream.connection import Connection, Incoming
from forebay.jetstream.streams import StreamState, stream_state
from forebay.jetstream.topology.confirmed_by import KEY, parse
from forebay.protocol.confirmation import VERSION, Answer, ConfirmedBy, EpochAnswer, Question
from forebay.responding import Responder
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

logger = logging.getLogger(__name__)

_question = msgspec.json.Decoder(Question)


class Answering:
    """Answers nodes' questions for one consumer. Start it with ``run``.

    Nothing is answered while the consumer does not read: its state could be another reader's by now (S7).
    """

    def __init__(
        self,
        consumer: Consumer,
        closing: Closing,
        store: UnitStore,
        store_id: str,
        connection: Connection,
        offsets: ClockOffsets | None = None,
    ) -> None:
        self._consumer = consumer
        self._closing = closing
        self._store = store
        self._store_id = store_id
        self._offsets = offsets
        self._connection = connection
        answers = {f"confirm.event.{consumer.name}.*": self._answer, "confirm.list.*": self._list}
        self._responder = Responder(connection, answers, lambda: consumer.reading)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        await self._responder.run(task_status=task_status)

    async def _list(self, _: Incoming) -> ConfirmedBy | None:
        self._consumer.only_reader_of(0)  # one of several processes answers, whichever
        return parse((await self._stream()).metadata.get(KEY))

    async def _answer(self, request: Incoming) -> Answer:
        question = _question.decode(request.body)
        node = request.subject.rsplit(".", 1)[-1]
        if not NAME.fullmatch(node):
            raise MessageError(f"{node[:64]!r} is not a node's name")
        if self._offsets is not None:
            await self._offsets.told(node, question.clock_offset)
        consumer, partition = self._consumer, partition_of(node, PARTITIONS)
        consumer.only_reader_of(partition)
        state, turns = await self._stream(), consumer.turns
        # What the reader has read and committed is worth nothing in a stream that took the place of the one it reads.
        at_end = consumer.incarnation == state.created and await consumer.at_end(partition)
        statements = [Statement(node, said, state.created, state.last) for said in question.origins]
        # Where the reader stands, not what the database says: in a stream that went back that may not stand any more.
        position = consumer.committed.get(partition, 0) if consumer.incarnation == state.created else 0
        epochs, at_end = await self._settled(statements, partition, turns, at_end=at_end)
        consumer.only_reader_of(partition)  # still
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

    async def _settled(
        self, statements: list[Statement], partition: int, turns: int, *, at_end: bool
    ) -> tuple[dict[str, EpochAnswer], bool]:
        """Return how far the epochs are that were asked about, and act on what was said of them beside.

        ``at_end`` is worth nothing, and returned as such, where the consumer has turned back since.
        """
        epochs, telling = await self._store.read(self._passed, statements)
        at_end = at_end and self._consumer.turns == turns
        for statement in telling:
            ready = self._closing.heard(statement, partition, at_end=at_end)
            if ready is not None:
                self._responder.beside(partial(self._close, ready, partition))
        return epochs, at_end

    @staticmethod
    def _passed(tx: Transaction, statements: list[Statement]) -> tuple[dict[str, EpochAnswer], list[Statement]]:
        epochs: dict[str, EpochAnswer] = {}
        for statement in statements:
            asked = [link.epoch for link in statement.said.chain]
            epochs |= answered(tx, statement.node, statement.said.service, asked, statement.floor)
        telling = [statement for statement in statements if says_something(tx, statement)]
        return epochs, telling

    async def _close(self, statement: Statement, partition: int) -> None:
        try:
            await self._closing.act(statement, partition)
        except ForebayError as error:  # the node says it again
            origin = "/".join(statement.origin[:3])
            logger.warning("consumer.closing_waits", extra={"origin": origin, "reason": str(error)})

    async def _stream(self) -> StreamState:
        return await stream_state(self._connection, self._consumer.stream)
