"""Saying what this consumer still needs of the archive, and asking all consumers before something is deleted (C5)."""

from __future__ import annotations

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.archive_reading import ARCHIVE, TIMEOUT
from forebay.consumer import Consumer
from forebay.errors import LinkError
from forebay.filling import has_begun
from forebay.handlers import ALL
from forebay.inbox import epochs_of
from forebay.jetstream.connection import Connection, Incoming
from forebay.jetstream.streams import stream_state
from forebay.jetstream.topology.confirmed_by import KEY, parse
from forebay.projection import asked
from forebay.protocol.needs import EpochNeed, NeedsAnswer, NeedsQuestion, needs_subject
from forebay.responding import Responder
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore


class NeedsAnswering:
    """Answers the archive for one consumer. Start it with ``run``."""

    def __init__(self, consumer: Consumer, services: list[str], store: UnitStore, connection: Connection) -> None:
        self._services = services
        self._store = store
        answers = {needs_subject(consumer.name): self._answer}
        self._responder = Responder(connection, answers, lambda: consumer.reading)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        await self._responder.run(task_status=task_status)

    async def _answer(self, request: Incoming) -> NeedsAnswer:
        question = msgspec.json.decode(request.body, type=NeedsQuestion)
        return await self._store.read(needs, self._services, question.epochs)


def needs(tx: Transaction, services: list[str], epochs: list[EpochNeed]) -> NeedsAnswer:
    """Return what a consumer of these services needs: what it has not passed, and places that want their body (B7)."""
    if not has_begun(tx) or asked(tx) is not None:
        return NeedsAnswer(everything=True)
    return NeedsAnswer(done=[_done(tx, each) if {each.service, ALL} & set(services) else each.last for each in epochs])


def _done(tx: Transaction, each: EpochNeed) -> int:
    known = epochs_of(tx, each.node, each.service, [each.epoch]).get(each.epoch)
    if known is None:
        return 0
    return min([each.last, known.passed.watermark, *(first - 1 for first, _ in known.wanted)])


async def ask_all(connection: Connection, epochs: list[EpochNeed], stream: str = "EVENTS") -> list[int]:
    """Return, per epoch, up to where nobody needs the archive any more; zeros where one consumer needs everything.

    Raises:
        LinkError: a consumer did not answer, or who they are is not known.
    """
    listed = parse((await stream_state(connection, stream)).metadata.get(KEY))
    if listed is None:
        raise LinkError("the stream has no list of consumers: who needs the archive is not known")
    done = [each.last for each in epochs]
    question = msgspec.json.encode(NeedsQuestion(epochs=epochs))
    for consumer in sorted(listed.consumers):
        if consumer == ARCHIVE:
            continue
        reply = await connection.request(needs_subject(consumer), question, timeout=TIMEOUT)
        try:
            answer = msgspec.json.decode(reply.body, type=NeedsAnswer)
        except msgspec.DecodeError as error:
            raise LinkError(f"the answer of {consumer} cannot be read: {error}") from error
        if answer.everything or len(answer.done) != len(epochs):
            return [0] * len(epochs)
        done = [min(pair) for pair in zip(done, answer.done, strict=True)]
    return done
