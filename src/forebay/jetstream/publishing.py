"""Publishing to one stream, with one outcome for each message."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Sequence
from enum import Enum, auto
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

import anyio

from forebay.errors import LinkError, NotPermittedError
from forebay.jetstream.connection import MESSAGE_TOO_LARGE, Connection, Incoming, Subscription
from forebay.jetstream.outcomes import (
    BATCH_INCOMPLETE,
    NO_BATCHES,
    TOO_MANY_BATCHES,
    NotSent,
    Outcome,
    PubAck,
    Refused,
    Uncertain,
    is_wall,
    read_ack,
    refused_by,
    stored_from,
    verdict,
)
from forebay.jetstream.outgoing import (
    FRAMING,
    MAX_BATCH,
    Outgoing,
    Prepared,
    encode_command,
    encode_head,
    of_batch,
    prepare_batch,
)
from forebay.jetstream.replies import Replies

__all__ = ["MAX_BATCH", "Outgoing", "Prepared", "Publisher", "Staged", "encode_head"]

logger = logging.getLogger(__name__)

BATCH_ATTEMPTS = 4
"""How often one batch is tried while the server answers that it timed out or that too many are open."""

STAGED_FOR = 5.0
"""Seconds after which a staged batch is not committed any more: the server abandons it after ten."""

CROWDED = 10.0
"""Seconds for which no batch is staged after the server had too many open, or one was given up: it abandons one after
as long."""

PUBLISH_TIMEOUT = 5.0
"""Seconds for an acknowledgement."""

BATCH_HEADERS = 128
"""Bytes of the headers that a message has more in a batch."""


class Staged(NamedTuple):
    """A batch of which the server has everything but what commits it.

    Attributes:
        prepared: the batch.
        generation: of the connection that it was sent on.
        reply: where the answer to its first message goes.
        begun: that answer.
        at: seconds of the event loop's clock when it was sent.
    """

    prepared: Prepared
    generation: int
    reply: str
    begun: asyncio.Future[Incoming | LinkError]
    at: float


class _Next(Enum):
    AGAIN = auto()
    SINGLES = auto()
    SINGLES_AFTER_LOSS = auto()


class Publisher:
    """Publishes to one stream and tells what became of each message. Safe for any number of tasks of one loop.

    More than one message go as atomic batches: one sync to disk for up to 1,000 messages, about fourteen times the
    rate of single publishes where the broker syncs always. A batch is refused as a whole if any id in it is known, so
    whatever was uncertain is repeated singly, where a duplicate is a yes. An outcome ``Stored`` is still a hint: only
    what the consumers confirm is safe.
    """

    def __init__(
        self, connection: Connection, stream: str, *, timeout: float = PUBLISH_TIMEOUT, window: int = 256
    ) -> None:
        """Prepare a publisher; ``start`` it, or use it as an async context manager.

        Args:
            connection: the process's connection.
            stream: the stream that every message names as the expected one.
            timeout: seconds for each acknowledgement; whoever publishes over a thin link sets it for each call.
            window: single messages that may await their acknowledgement at a time, over all calls.
        """
        self._connection = connection
        self._stream = stream
        self._expected = f"Nats-Expected-Stream: {stream}\r\n".encode()
        self.timeout = timeout
        self._slots = asyncio.Semaphore(window)
        self._replies = Replies(connection.config.inbox_prefix)
        self._subscription: Subscription | None = None
        self._batches_proven = False
        self._no_batches_in = 0
        self._crowded_until = 0.0

    @property
    def pending(self) -> int:
        """Acknowledgements that are awaited now."""
        return len(self._replies)

    @property
    def max_payload(self) -> int | None:
        """Bytes of a message, headers included, that the server takes; None without a connection."""
        return self._connection.max_payload

    async def start(self) -> None:
        """Begin to listen for acknowledgements."""
        if self._subscription is None:
            self._connection.watch(self._replies)
            self._subscription = await self._connection.subscribe(self._replies.pattern, self._replies.receive)

    async def stop(self) -> None:
        """Stop listening; what is still awaited becomes uncertain."""
        subscription, self._subscription = self._subscription, None
        if subscription is not None:
            self._connection.unwatch(self._replies)
            self._replies.lost("the publisher was stopped")
            await subscription.unsubscribe()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def prepare(self, messages: Sequence[Outgoing]) -> Prepared | None:
        """Return messages as one atomic batch sends them; None where they are no batch. From any thread."""
        return prepare_batch(messages) if 1 < len(messages) <= MAX_BATCH else None

    async def stage(self, prepared: Prepared) -> Staged | None:
        """Send a batch but for its last message, which commits it: nothing of it is stored before ``publish``.

        So the server takes it in while it stores the batch before, and nothing overtakes that one.

        Returns:
            None where that cannot be done now; nothing is under way then. ``drop`` what is not published.
        """
        now = asyncio.get_running_loop().time()
        if now < self._crowded_until or not (self._batches_proven and self._takes_batches and self._fits(prepared)):
            return None
        generation = self._connection.generation
        reply, begun = self._replies.expect(prepared.subjects, self.timeout)
        begin = self._batched(prepared.batch, 1, prepared.first, reply)
        try:
            await self._connection.send(begin + prepared.between)
        except BaseException as error:
            self._replies.forget(reply)
            if isinstance(error, LinkError):
                return None
            raise
        return Staged(prepared, generation, reply, begun, now)

    def drop(self, staged: Staged) -> None:
        """Give a staged batch up. Until the server has forgotten it no other one is staged."""
        self._replies.forget(staged.reply)
        if staged.generation == self._connection.generation:
            self._crowded_until = asyncio.get_running_loop().time() + CROWDED

    async def publish(
        self, messages: Sequence[Outgoing], *, atomic: bool = True, prepared: Prepared | Staged | None = None
    ) -> list[Outcome]:
        """Publish in order and return one outcome per message, in the same order.

        Nothing is raised for the broker's or the link's sake. A wall (no answer, no permission, a stream that is full
        or another) stops the call: what comes after is ``NotSent``. Messages refused for themselves do not. One that is
        larger than the server takes is refused here: the server would close the connection for it.

        Args:
            messages: any number; more than 1,000 go as several batches, one after the other.
            atomic: use atomic batches where the stream allows them.
            prepared: what ``prepare`` or ``stage`` returned for these very messages; used where they go as a batch.
        """
        limit = self.max_payload
        staged = prepared if isinstance(prepared, Staged) else None
        ready = prepared.prepared if isinstance(prepared, Staged) else prepared
        if staged is not None and not (atomic and self._stands(staged)):
            self.drop(staged)
            staged = ready = None  # under its id the server may have it yet
        if atomic and ready is not None and self._takes_batches and self._fits(ready):
            return await self._batch(messages, ready, staged)
        outcomes: list[Outcome] = []
        for start in range(0, len(messages), MAX_BATCH):
            chunk = messages[start : start + MAX_BATCH]
            sizes = [self.wire_bytes(message) for message in chunk]
            fits = [limit is None or size <= limit for size in sizes]
            fitting = [message for message, fit in zip(chunk, fits, strict=True) if fit]
            largest = max((size for size, fit in zip(sizes, fits, strict=True) if fit), default=0)
            roomy = limit is None or largest + BATCH_HEADERS <= limit
            if any(map(is_wall, outcomes[-MAX_BATCH:])):
                found: list[Outcome] = [NotSent("an earlier message was not stored")] * len(fitting)
            elif atomic and roomy and len(fitting) > 1 and self._takes_batches:
                found = await self._batch(fitting)
            else:
                found = await self._singles(fitting)
            answers = iter(found)
            outcomes += [
                next(answers) if fit else Refused(MESSAGE_TOO_LARGE, f"{size} bytes, and the server takes {limit}")
                for size, fit in zip(sizes, fits, strict=True)
            ]
        return outcomes

    @property
    def _takes_batches(self) -> bool:
        return self._no_batches_in != self._connection.generation

    def _fits(self, prepared: Prepared) -> bool:
        limit = self.max_payload
        return limit is None or prepared.largest + BATCH_HEADERS <= limit

    def _stands(self, staged: Staged) -> bool:
        """Whether the server still has what was staged, and takes it."""
        late = asyncio.get_running_loop().time() > staged.at + STAGED_FOR
        same = staged.generation == self._connection.generation
        return same and not late and self._takes_batches and self._fits(staged.prepared)

    async def _batch(
        self, messages: Sequence[Outgoing], prepared: Prepared | None = None, staged: Staged | None = None
    ) -> list[Outcome]:
        for attempt in range(BATCH_ATTEMPTS):
            if attempt or prepared is None:  # each attempt is a batch of its own
                prepared, staged = self.prepare(messages), None
            assert prepared is not None  # noqa: S101 - it is two or more
            result = await self._try_batch(prepared, staged)
            if isinstance(result, list):
                return result
            if result is not _Next.AGAIN:
                break
            self._crowded_until = asyncio.get_running_loop().time() + CROWDED
            await anyio.sleep(random.uniform(0, 0.05 * 2**attempt))  # noqa: S311
        logger.info("batch.split", extra={"stream": self._stream, "messages": len(messages)})
        outcomes = await self._singles(messages)
        if result is _Next.SINGLES_AFTER_LOSS:  # the batch may be stored although these were not sent again
            return [Uncertain(each.why) if isinstance(each, NotSent) else each for each in outcomes]
        return outcomes

    async def _try_batch(self, prepared: Prepared, staged: Staged | None) -> list[Outcome] | _Next:
        batch, count = prepared.batch, prepared.messages
        generation = self._connection.generation
        if staged is not None:
            begun_reply, begun, parts = staged.reply, staged.begun, b""
        else:
            begun_reply, begun = self._replies.expect(prepared.subjects, self.timeout)
            parts = self._batched(batch, 1, prepared.first, begun_reply)
        commit_reply = ""
        try:
            # Until the stream is known to take batches, one message is enough to find out.
            if parts and not self._batches_proven:
                await self._connection.send(parts)
                parts = b""
                if refusal := self._refusal(await begun, count):
                    return refusal
            commit_reply, committed = self._replies.expect(prepared.subjects, self.timeout)
            between = b"" if staged is not None else prepared.between
            end = self._batched(batch, count, prepared.last, commit_reply, b"Nats-Batch-Commit: 1\r\n")
            await self._connection.send(b"".join((parts, between, end)))
            result = await committed
        except LinkError as error:
            return [NotSent(str(error))] * count
        finally:
            self._replies.forget(begun_reply)
            self._replies.forget(commit_reply)
        if isinstance(result, LinkError) and not isinstance(result, NotPermittedError):
            if self._connection.connected and self._connection.generation == generation:
                return _Next.SINGLES_AFTER_LOSS
            return [Uncertain(str(result))] * count
        # A batch that was refused at its first message ends with a commit that only says "incomplete".
        answer = begun.result() if begun.done() and not begun.cancelled() else None
        refusal = (isinstance(answer, Incoming) and self._refusal(answer, count)) or self._refusal(result, count)
        if refusal:
            return refusal
        self._batches_proven = True
        ack = read_ack(result)
        if not isinstance(ack, PubAck) or ack.count != count:
            return _Next.SINGLES_AFTER_LOSS
        return stored_from(ack.seq - count + 1, count)

    def _refusal(self, result: Incoming | LinkError, count: int) -> list[Outcome] | _Next | None:
        """Return what a refused batch comes to; None if this answer does not refuse it."""
        if isinstance(result, NotPermittedError):
            return _Next.SINGLES
        if isinstance(result, LinkError):
            return [Uncertain(str(result)), *[NotSent("the batch was not taken up")] * (count - 1)]
        if not result.body and not result.status:
            return None
        ack = read_ack(result)
        code = ack.error.err_code if isinstance(ack, PubAck) and ack.error else 0
        if code == NO_BATCHES:
            self._no_batches_in, self._batches_proven = self._connection.generation, False
            return _Next.SINGLES
        if code in (BATCH_INCOMPLETE, TOO_MANY_BATCHES):
            return _Next.AGAIN
        refused = refused_by(ack)
        if refused is None:
            return None
        return [refused] * count if refused.of_stream else _Next.SINGLES

    async def _singles(self, messages: Sequence[Outgoing]) -> list[Outcome]:
        outcomes: dict[int, Outcome] = {}
        sent: dict[str, asyncio.Future[Incoming | LinkError]] = {}
        wall = ""

        def settled(index: int, answer: asyncio.Future[Incoming | LinkError]) -> None:
            nonlocal wall
            self._slots.release()
            if not answer.cancelled():
                outcome = outcomes.setdefault(index, verdict(answer.result(), messages[index].subject))
                if is_wall(outcome) or (messages[index].divisible and isinstance(outcome, Refused)):
                    wall = wall or "an earlier message was not stored"

        try:
            for index, message in enumerate(messages):
                await self._slots.acquire()
                if wall:
                    self._slots.release()
                    break
                reply, answer = self._replies.expect((message.subject,), self.timeout)
                answer.add_done_callback(partial(settled, index))
                sent[reply] = answer
                try:
                    await self._connection.send(encode_command(message, reply, self._expected))
                except LinkError as error:
                    outcomes[index] = NotSent(str(error))
                    self._replies.settle(reply, error)
                    wall = str(error)
                if message.divisible:
                    await asyncio.wait({answer})
                    await asyncio.sleep(0)  # let `settled` run
            if sent:
                await asyncio.wait(sent.values())
                await asyncio.sleep(0)  # let the last `settled` run
        finally:
            for reply in sent:
                self._replies.forget(reply)
        return [outcomes.get(index) or NotSent(wall) for index in range(len(messages))]

    def wire_bytes(self, message: Outgoing) -> int:
        """The size that the server holds against its limit: ``NATS/1.0``, the headers, an empty line and the body."""
        head = message.head or encode_head(message.headers)
        return FRAMING + len(head) + len(self._expected) + len(message.body)

    def _batched(self, batch: str, number: int, message: Outgoing, reply: str, commit: bytes = b"") -> bytes:
        # One stream takes a whole batch or nothing of it: that it is the expected one the first message alone asks.
        expected = self._expected if number == 1 else b""
        return encode_command(message, reply, b"%b%b%d\r\n%b" % (expected, of_batch(batch), number, commit))
