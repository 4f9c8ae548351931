"""Pulling from one durable, from a position that the reader's database dictates."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import anyio
import msgspec

from forebay.errors import LinkError
from forebay.jetstream.connection import Connection, Incoming, Subscription
from forebay.jetstream.streams import StreamState, api_request, consumer_info, stream_state

logger = logging.getLogger(__name__)

REQUEST_EXPIRES = 30.0
"""Seconds after which the broker gives up an open pull and is asked again."""

SHARED_EXPIRES = 2.0
"""The same where other processes may take the durable over: what a frozen one has asked for swallows deliveries until
it expires, so that is over before its database session is, and with it its lock."""

HEARTBEAT = 5.0
"""Seconds of silence after which the broker says that an open pull is alive; twice that without a word is broken."""

RETRY_INTERVAL = 1.0
"""Seconds before a pull that was refused for its circumstances is tried again."""

END_TIMEOUT = 1.0
"""Seconds for the last acknowledgement to leave."""

ROOM = 8 * 1024 * 1024
"""Bytes that what is requested or delivered and not yet consumed may take, by the size of the last messages; at least
two messages are asked for: a reader of eight partitions must not fill a small machine with frames of a megabyte."""

REQUEST_BYTES = ROOM // 2
"""Bytes after which a request ends, whatever it asked for: large messages may come after many small ones."""

FIRST = 64
"""Messages that are asked for while their size is not known."""

_ACK = b"+ACK"
_EXPIRED = (404, 408)
_RETRY = ("exceeded maxwaiting", "exceeded maxrequest")
_USED_UP, _TOO_LARGE = "batch completed", "message size exceeds"
"""How a request ends that named its bytes: with its last message, or before one for which they do not suffice."""


class Delivery(NamedTuple):
    """A message as the durable delivered it.

    ``pending`` is how many of the durable come after it; ``timestamp`` is when the broker stored it, in nanoseconds
    since 1970; ``begin`` tells which ``Pull.begin`` it belongs to.
    """

    subject: str
    headers: Mapping[str, str]
    body: bytes
    stream_sequence: int
    consumer_sequence: int
    pending: int
    reply: str
    timestamp: int
    begin: int


class Pull:
    """Reads one durable in order and notices whatever breaks the order; then it stops until the next ``begin``.

    A callback on a plain subscription and our own requests: several times the rate of nats-py's ``fetch``, which
    also goes on eating messages after it was cancelled. At most ``2 * batch`` messages are requested or delivered
    and not yet ``consumed``, fewer where messages are large (``ROOM``). Consumer sequences start at 1 with each
    ``begin`` and may not jump: if they do, another reader shares the durable, and its acknowledgements and ours would
    swallow each other's messages (S6).
    """

    def __init__(
        self,
        connection: Connection,
        stream: str,
        durable: str,
        *,
        deliver: Callable[[Pull, Delivery], None],
        on_broken: Callable[[Pull, str], None],
        batch: int = 256,
        heartbeat: float = HEARTBEAT,
        expires: float = REQUEST_EXPIRES,
    ) -> None:
        """Prepare a pull; nothing is sent before ``begin``.

        Args:
            connection: the process's connection.
            stream: the stream's name.
            durable: the durable's name; its ``ack_policy`` is ``all``.
            deliver: plain function, called on the event loop for each message, in order.
            on_broken: plain function, called at most once after each ``begin``, with the reason; nothing is
                delivered after it. The reader begins again from its database's position.
            batch: messages asked for at a time.
            heartbeat: seconds, see ``HEARTBEAT``; where requests expire sooner, that they do is the sign of life.
            expires: seconds, see ``REQUEST_EXPIRES``.
        """
        self.stream = stream
        self.durable = durable
        self._connection = connection
        self._deliver = deliver
        self._on_broken = on_broken
        self._batch = batch
        self._heartbeat = heartbeat
        self._expires = expires
        self._begin = 0
        self._open = False
        self._task: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._inbox = ""
        self._wake = asyncio.Event()
        self._requested = self._unconsumed = 0
        self._mean_size: float | None = None
        self._now = time.monotonic
        self._large = False
        self._ack_reply = ""
        self._not_before = self._heard = 0.0
        self._last_consumer = self._last_stream = 0

    @property
    def open(self) -> bool:
        """Whether it is delivering: begun, and neither broken nor ended."""
        return self._open

    async def begin(self, position: int) -> StreamState:
        """Set the durable behind ``position`` and deliver from there, dropping whatever was under way (S5).

        Args:
            position: the stream sequence of the last message whose effect is in the database; 0 for none. Beyond
                the stream's end the end is taken: the caller compares it with what is returned.

        Returns:
            The stream as it stood before the first delivery.

        Raises:
            TopologyError: the stream or the durable does not exist.
            LinkError: the broker cannot be asked.
        """
        await self.end()
        generation = self._connection.generation
        state = await stream_state(self._connection, self.stream)
        await consumer_info(self._connection, self.stream, self.durable)  # a reset of a missing one is never answered
        # Beyond the stream's end the server obeys too, and leaves a durable that never delivers.
        await self._start(max(1, min(position, state.last) + 1), generation)
        return state

    async def begin_at(self, sequence: int) -> int:
        """Set the durable to ``sequence`` and deliver from there on, for a reader that may not look at the stream.

        Beyond the stream's end, as its durable shows, the whole stream is delivered.

        Returns:
            The sequence that it begins at.

        Raises:
            TopologyError: the durable does not exist.
            LinkError: the broker cannot be asked.
        """
        await self.end()
        generation = self._connection.generation
        await consumer_info(self._connection, self.stream, self.durable)
        if sequence > 1:
            await self._reset(sequence)
            if not (await consumer_info(self._connection, self.stream, self.durable)).pending:
                sequence = 1  # nothing stands there: it would never deliver
        await self._start(max(1, sequence), generation)
        return max(1, sequence)

    async def _reset(self, sequence: int) -> None:
        await api_request(self._connection, f"CONSUMER.RESET.{self.stream}.{self.durable}", {"seq": sequence})

    async def _start(self, start: int, generation: int) -> None:
        self._begin += 1
        await self._reset(start)
        self._wake = asyncio.Event()
        self._now = asyncio.get_running_loop().time
        self._requested = self._unconsumed = 0
        self._large = False
        self._ack_reply = ""
        self._not_before = self._heard = 0.0
        self._last_consumer, self._last_stream = 0, start - 1
        self._inbox = f"{self._connection.config.inbox_prefix}.{secrets.token_hex(8)}"
        self._subscription = await self._connection.subscribe(self._inbox, self._receive)
        if not self._connection.connected or self._connection.generation != generation:
            await self._subscription.unsubscribe()
            raise LinkError("the connection was lost while the durable was set")
        self._open = True
        self._connection.watch(self)
        self._task = asyncio.create_task(self._pump(self._begin), name=f"pull {self.stream}/{self.durable}")
        logger.info("pull.begun", extra={"stream": self.stream, "durable": self.durable, "sequence": start})

    def consumed(self, count: int) -> None:
        """Say that ``count`` deliveries of this ``begin`` were processed, so that as many more may come."""
        self._unconsumed = max(0, self._unconsumed - count)
        if self._room() >= self._worth_asking:
            self._wake.set()

    def acknowledge(self, delivery: Delivery) -> None:
        """Acknowledge everything up to ``delivery``; sent soon, never waited for, the newest standing for all.

        One from before the latest ``begin`` is ignored: its consumer sequence means another message now.
        """
        if self._open and delivery.begin == self._begin:
            self._ack_reply = delivery.reply
            self._wake.set()

    async def end(self) -> None:
        """Stop delivering and drop the open requests; may be called twice."""
        self._close()
        task, self._task = self._task, None
        if task is not None:
            with anyio.move_on_after(END_TIMEOUT, shield=True):
                await asyncio.wait({task})
            task.cancel()

    def lost(self, why: str) -> None:
        """Break: the connection is gone (``Watcher``)."""
        self._break(why)

    def denied(self, subject: str) -> None:
        """Break if the broker does not let us ask or listen (``Watcher``)."""
        if subject in (self._request_subject.lower(), self._inbox.lower()):
            self._break(f"the credentials do not permit {subject!r}")

    @property
    def _request_subject(self) -> str:
        return f"{self._connection.config.api_prefix}.CONSUMER.MSG.NEXT.{self.stream}.{self.durable}"

    @property
    def _fitting(self) -> int:
        return FIRST if self._mean_size is None else max(2, int(ROOM / (self._mean_size + 1)))

    @property
    def _worth_asking(self) -> int:
        return max(1, min(self._batch, self._fitting) // 2)

    def _room(self) -> int:
        return min(2 * self._batch, self._fitting) - self._requested - self._unconsumed

    def _close(self) -> None:
        self._open = False
        self._connection.unwatch(self)
        self._wake.set()

    def _break(self, reason: str) -> None:
        if self._open:
            self._close()
            self._ack_reply = ""  # after a jump it may mean another reader's message (S6)
            logger.warning("pull.broken", extra={"stream": self.stream, "durable": self.durable, "reason": reason})
            self._on_broken(self, reason)

    def _receive(self, message: Incoming) -> None:
        if not self._open:
            return
        self._heard = self._now()
        subject, reply, headers, body = message
        if not reply.startswith("$JS.ACK."):
            self._receive_status(message)
            return
        # $JS.ACK.<stream>.<durable>.<n>.<stream seq>.<consumer seq>.<time>.<pending>, or with domain and account first
        tokens = reply.split(".")
        numbers = tokens[5:] if len(tokens) == 9 else tokens[7:11]
        try:
            stream_sequence, consumer_sequence, timestamp, pending = map(int, numbers)
        except ValueError:
            self._break(f"an acknowledgement subject of a form that is not known: {reply}")
            return
        if consumer_sequence != self._last_consumer + 1:
            self._break(f"consumer sequence {consumer_sequence} came after {self._last_consumer}")
            return
        self._last_consumer = consumer_sequence
        if self._requested:
            self._requested -= 1
        if stream_sequence <= self._last_stream:  # redelivered after `ack_wait`: the reader has it already
            return
        self._last_stream = stream_sequence
        self._unconsumed += 1
        size, mean = len(body), self._mean_size
        self._mean_size = size if mean is None else mean + (size - mean) / 16
        if not self._requested:
            self._wake.set()  # now that their size is known, there may be room for more
        place = stream_sequence, consumer_sequence, pending, reply, timestamp, self._begin
        try:
            self._deliver(self, tuple.__new__(Delivery, (subject, headers, body, *place)))
        except BaseException:
            self._break("the reader failed to take a delivery")
            raise

    def _receive_status(self, message: Incoming) -> None:
        status, text = message.status, message.headers.get("Description", "")
        if status == 100:
            return
        left = message.headers.get("Nats-Pending-Messages", "")
        self._requested = max(0, self._requested - int(left)) if left.isdigit() else 0
        if status in _EXPIRED or (status == 409 and text.lower().startswith(_USED_UP)):
            self._wake.set()
        elif status == 409 and text.lower().startswith(_TOO_LARGE):
            # Usually it is used up; where it took nothing at all, what comes is larger than that: alone, then.
            self._large |= message.headers.get("Nats-Pending-Bytes") == str(REQUEST_BYTES)
            self._wake.set()
        elif status == 409 and text.lower().startswith(_RETRY):
            logger.info("pull.deferred", extra={"durable": self.durable, "reason": text})
            self._not_before = self._heard + RETRY_INTERVAL
            self._wake.set()
        else:
            self._break(f"the broker ended the pull: {text or 'nobody answers'} ({status})")

    async def _pump(self, begin: int) -> None:
        """Send requests and acknowledgements, and listen for silence, until closed."""
        wake, subscription = self._wake, self._subscription
        loop = asyncio.get_running_loop()
        try:
            while self._open and self._begin == begin:
                wake.clear()
                await self._send_acknowledgement()
                now = loop.time()
                while now >= self._not_before and self._room() >= self._worth_asking:
                    await self._ask(1 if self._large else min(self._room(), self._batch), now)
                deadline = self._not_before if now < self._not_before else None
                if self._requested:
                    silent_at = self._heard + 2 * self._heartbeat
                    if now >= silent_at:
                        self._break(f"no heartbeat for {2 * self._heartbeat:g} s")
                        break
                    deadline = min(deadline or silent_at, silent_at)
                with anyio.move_on_after(None if deadline is None else deadline - now):
                    await wake.wait()
            await self._send_acknowledgement()
        except LinkError as error:
            self._break(str(error))
        finally:
            if subscription is not None:
                await subscription.unsubscribe()

    async def _ask(self, count: int, now: float) -> None:
        if not self._requested:
            self._heard = now
        self._requested += count
        request = {"batch": count, "expires": int(self._expires * 1e9)}
        if not self._large:
            request["max_bytes"] = REQUEST_BYTES
        self._large = False
        if 2 * self._heartbeat <= self._expires:  # the server refuses others
            request["idle_heartbeat"] = int(self._heartbeat * 1e9)
        await self._connection.publish(self._request_subject, msgspec.json.encode(request), reply=self._inbox)

    async def _send_acknowledgement(self) -> None:
        reply, self._ack_reply = self._ack_reply, ""
        if reply and self._connection.connected:
            await self._connection.publish(reply, _ACK)
