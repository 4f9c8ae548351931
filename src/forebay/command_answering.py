"""Confirmation on the node's side of commands: the receiver answers the core from its inbox (rules C1, C4).

The core tells in its question what the stream looks like, as the node may not look itself; there is no archive here, so
that what nobody has any more is a gap at once.
"""

from __future__ import annotations

from datetime import UTC, datetime

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.answering import Answering
from forebay.closing import Closing, Statement
from forebay.command import Destination
from forebay.envelope import format_time
from forebay.errors import MessageError
from forebay.jetstream.connection import Connection, Incoming
from forebay.protocol.confirmation import VERSION, Answer, Question
from forebay.receiving import CommandConsumer
from forebay.responding import Responder
from forebay.unit_of_work import UnitStore

_question = msgspec.json.Decoder(Question)


class CommandAnswering(Answering):
    """Answers the core's questions for one service of a node. Start it with ``run``."""

    def __init__(
        self,
        destination: Destination,
        core: str,
        consumer: CommandConsumer,
        closing: Closing,
        store: UnitStore,
        store_id: str,
        connection: Connection,
    ) -> None:
        super().__init__(consumer, closing, store, store_id, connection)
        self._core = core
        subject = f"confirm.command.{destination.node}.{destination.service}"
        self._responder = Responder(connection, {subject: self._answer}, lambda: consumer.reading)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        await self._responder.run(task_status=task_status)

    async def _answer(self, request: Incoming) -> Answer:
        question = _question.decode(request.body)
        if question.incarnation is None or question.stream_end is None:
            raise MessageError("a question about commands says how their stream stands, this one does not")
        consumer, end, turns = self._consumer, question.stream_end, self._consumer.turns
        mine = consumer.incarnation == question.incarnation
        at_end = mine and await consumer.at_end(0)
        statements = [Statement(self._core, said, question.incarnation, end) for said in question.origins]
        position = consumer.committed.get(0, 0) if mine else 0
        epochs, at_end = await self._settled(statements, 0, turns, at_end=at_end)
        return Answer(
            v=VERSION,
            consumer=consumer.name,
            store=self._store_id,
            clock=format_time(datetime.now(UTC)),
            incarnation=question.incarnation,
            stream_end=end,
            position=end if at_end else min(position, end),
            epochs=epochs,
        )
