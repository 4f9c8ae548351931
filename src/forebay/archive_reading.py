"""Reading from the archive and answering for it: ``archive.read``, ``.epochs`` and ``.scan`` (rules C5, F3)."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TypeVar

import anyio
import msgspec
from anyio.abc import TaskStatus

from forebay.consumer import Consumer
from forebay.delivery import Archive, Delivery
from forebay.errors import LinkError, TopologyError
from forebay.identity import PARTITIONS, Origin, partition_of
from forebay.inbox import held_between
from forebay.jetstream.connection import Connection, Incoming
from forebay.jetstream.streams import StreamState, stream_state
from forebay.jetstream.topology.confirmed_by import KEY, parse
from forebay.protocol.archive import (
    EPOCHS_SUBJECT,
    PAGE,
    SCAN_SUBJECT,
    SUBJECT,
    ArchiveAnswer,
    ArchivedEpoch,
    ArchivedMessage,
    ArchiveQuestion,
    EpochsAnswer,
    EpochsQuestion,
    ScanAnswer,
    ScanQuestion,
)
from forebay.responding import Responder
from forebay.sequences import Range
from forebay.settled import settled_end
from forebay.transaction import Transaction
from forebay.unit_of_work import UnitStore

T = TypeVar("T")

ARCHIVE = "archive"
"""The consumer that keeps every event: the one of this name in the stream's list (S3)."""

TIMEOUT = 5.0
"""Seconds for one page."""

NOTED = 60.0
"""Seconds between notes that the archive is read in its own order."""

PAGE_BYTES = 384 * 1024
"""Bytes of the bodies of one answer, at most, or one event: base64 must stay below a broker's 1 MiB."""


class ArchiveReader:
    """Asks the archive for events that a consumer lacks."""

    def __init__(self, connection: Connection, consumer: str, stream: str = "EVENTS") -> None:
        self._connection = connection
        self._consumer = consumer
        self._stream = stream
        self._known_to_be_there = False

    async def events(
        self,
        origin: Origin,
        epoch: str,
        first: int,
        last: int,
        *,
        upto: int,
        on_deleted: Callable[[list[Range]], None] = lambda _: None,
    ) -> AsyncIterator[list[ArchivedMessage]]:
        """Yield what the archive has of a range, ascending, a page at a time; nothing where there is no archive.

        Args:
            origin: whose events they are.
            epoch: their epoch.
            first: the lowest sequence.
            last: the highest.
            upto: the stream sequence up to which the archive must be complete to be believed about what it lacks; 0
                where nothing is concluded from that.
            on_deleted: called with the places that the archive had and has deleted.

        Raises:
            LinkError: the archive did not answer, or is not that far yet.
        """
        state = await stream_state(self._connection, self._stream)
        if not self._is_listed(state):
            return
        while first <= last:
            question = ArchiveQuestion(node=origin.node, service=origin.service, epoch=epoch, first=first, last=last)
            answer = await self._ask(SUBJECT, question, ArchiveAnswer)
            if upto and (answer.incarnation != state.created or answer.complete_to < upto):
                raise LinkError(f"the archive has read to {answer.complete_to}, not to {upto} of this stream")
            if answer.deleted:
                on_deleted(answer.deleted)
            if answer.events:
                yield answer.events
            if not answer.more or not answer.events:
                return
            first = answer.events[-1].sequence + 1

    async def epochs(self) -> AsyncIterator[list[ArchivedEpoch]]:
        """Yield the epochs that the archive has, a page at a time; raises as ``events`` does."""
        after: tuple[str, str, str] | None = None
        while True:
            answer = await self._ask(EPOCHS_SUBJECT, EpochsQuestion(after=after), EpochsAnswer)
            if answer.epochs:
                yield answer.epochs
            if not answer.more or not answer.epochs:
                return
            last = answer.epochs[-1]
            after = (last.node, last.service, last.epoch)

    async def scan(self, after: int, services: Sequence[str], limit: int = PAGE) -> ScanAnswer:
        """Return a page of events in the order in which they were archived.

        Raises:
            TopologyError: there is no archive.
            LinkError: it did not answer.
        """
        if not self._known_to_be_there and not await self.is_there():
            raise TopologyError(
                "no consumer called 'archive' is in the stream's list", hint="a rebuild reads what it has kept"
            )
        self._known_to_be_there = True
        return await self._ask(
            SCAN_SUBJECT, ScanQuestion(after=after, services=list(services), limit=limit), ScanAnswer
        )

    async def is_there(self) -> bool:
        """Whether there is an archive beside this consumer; raises as ``events`` does."""
        return self._is_listed(await stream_state(self._connection, self._stream))

    async def _ask(self, subject: str, question: object, form: type[T]) -> T:
        reply = await self._connection.request(subject, msgspec.json.encode(question), timeout=TIMEOUT)
        try:
            return msgspec.json.decode(reply.body, type=form)
        except msgspec.DecodeError as error:
            raise LinkError(f"the archive's answer cannot be read: {error}") from error

    def _is_listed(self, state: StreamState) -> bool:
        if self._consumer == ARCHIVE:
            return False
        known = parse(state.metadata.get(KEY))
        if known is None:
            raise LinkError("the stream has no list of consumers: whether there is an archive is not known")
        return ARCHIVE in known.consumers


class ArchiveAnswering:
    """Answers for the service that keeps every event. Start it with ``run``."""

    def __init__(
        self, consumer: Consumer, store: UnitStore, connection: Connection, archive: Archive, store_id: str
    ) -> None:
        self._consumer = consumer
        self._store = store
        self._connection = connection
        self._archive = archive
        self._store_id = store_id
        self._noted_at: float | None = None
        self._settled = 0
        answers = {SUBJECT: self._events, EPOCHS_SUBJECT: self._epochs, SCAN_SUBJECT: self._scan}
        self._responder = Responder(connection, answers, lambda: consumer.reading)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Answer until cancelled."""
        await self._responder.run(task_status=task_status)

    async def _epochs(self, request: Incoming) -> EpochsAnswer:
        self._consumer.only_reader_of(0)  # one of several processes answers, whichever
        question = msgspec.json.decode(request.body, type=EpochsQuestion)
        return await self._store.read(_epochs_after, question.after or ("", "", ""))

    async def _events(self, request: Incoming) -> ArchiveAnswer:
        question = msgspec.json.decode(request.body, type=ArchiveQuestion)
        state = await stream_state(self._connection, self._consumer.stream)
        partition = partition_of(question.node, PARTITIONS)
        self._consumer.only_reader_of(partition)
        at_end = self._consumer.incarnation == state.created and await self._consumer.at_end(partition)
        read = self._consumer.committed.get(partition, 0) if self._consumer.incarnation == state.created else 0
        complete_to = state.last if at_end else read  # before the events are looked up: there may be more by then
        events, more, deleted = await self._store.read(self._page, question)
        return ArchiveAnswer(
            incarnation=state.created, complete_to=complete_to, events=events, more=more, deleted=deleted
        )

    async def _scan(self, request: Incoming) -> ScanAnswer:
        question = msgspec.json.decode(request.body, type=ScanQuestion)
        if self._noted_at is None or anyio.current_time() - self._noted_at > NOTED:
            await self._store.write(self._archive.scanned)  # before the answer: what it tells of must not go
            self._noted_at = anyio.current_time()
        question = msgspec.structs.replace(question, limit=min(question.limit, PAGE))
        page = await self._store.read(self._archive.scan, question, PAGE_BYTES, self._settled)
        if not page.more:  # as far as that is known: there may be more by now
            self._settled = await settled_end(self._store, self._archive.end)
            page = await self._store.read(self._archive.scan, question, PAGE_BYTES, self._settled)
        events = [_archived(position, delivery) for position, delivery in page.events]
        return ScanAnswer(store=self._store_id, events=events, position=page.position, end=page.end, more=page.more)

    def _page(self, tx: Transaction, question: ArchiveQuestion) -> tuple[list[ArchivedMessage], bool, list[Range]]:
        limit = min(question.limit, PAGE)
        # What waits for a hole in the archive's own inbox is not archived yet, and is here all the same.
        held = held_between(tx, question.node, question.service, question.epoch, question.first, question.last, limit)
        kept = self._archive.read(tx, msgspec.structs.replace(question, limit=limit))
        found = sorted([*kept, *held], key=lambda each: each[0])
        events: list[ArchivedMessage] = []
        size = 0
        for sequence, delivery in found:
            size += len(delivery.body)
            if events and (size > PAGE_BYTES or len(events) == limit):
                break
            events.append(_archived(sequence, delivery))
        return events, len(events) < len(found) or len(found) >= limit, self._archive.deleted(tx, question)


def _archived(sequence: int, delivery: Delivery) -> ArchivedMessage:
    return ArchivedMessage(sequence, delivery.subject, dict(delivery.headers), delivery.body, delivery.stored_at)


def _epochs_after(tx: Transaction, after: tuple[str, str, str]) -> EpochsAnswer:
    rows = tx.execute(
        "select node, service, lane, epoch, watermark from forebay_inbox"
        " where (node, service, epoch) > (:node, :service, :epoch) order by node, service, epoch limit :limit",
        node=after[0],
        service=after[1],
        epoch=after[2],
        limit=PAGE + 1,
    )
    epochs = [ArchivedEpoch(*(row[name] for name in ArchivedEpoch.__struct_fields__)) for row in rows]
    return EpochsAnswer(epochs=epochs[:PAGE], more=len(epochs) > PAGE)
