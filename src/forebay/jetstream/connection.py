"""The one connection of a process to the broker, kept for ever."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import re
from collections.abc import Callable, Mapping
from typing import Protocol

import anyio
import anyio.abc
import nats.errors
from nats.aio.client import Client
from nats.aio.subscription import Subscription as NatsSubscription

from forebay.errors import LinkError, PublishRefusedError
from forebay.jetstream.client import BrokerClient, ConnectionConfig
from forebay.jetstream.outage import Outage
from forebay.jetstream.replies import Incoming, Replies, Reply

__all__ = ["Connection", "ConnectionConfig", "Incoming", "Reply", "Subscription", "Watcher"]

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 1.0
"""Seconds for the last flush and the close; a frozen broker must not keep a process from stopping."""

WATCH_INTERVAL = 1.0
"""Seconds between looks at a client whose own callbacks may be stuck in a write to a frozen broker."""

MESSAGE_TOO_LARGE = 10054
"""JetStream's code for a message over a size limit."""

_VIOLATION = re.compile(r'permissions violation for (?:publish|subscription)(?: with reply of)?(?: to)? "([^"]+)"')
_PASSWORD = re.compile(r"//[^/@\s]*@")


class Watcher(Protocol):
    """What wants to know at once what happens to the connection. Plain functions, called on the event loop."""

    def lost(self, why: str) -> None:
        """The connection is gone, and with it every answer that was under way."""

    def denied(self, subject: str) -> None:
        """The broker refused a publish or subscription for want of permission; ``subject`` is in lower case."""


class Subscription:
    """Interest in a subject that outlives connections; messages in between are missed, as ever with core NATS."""

    def __init__(self, connection: Connection, subject: str, callback: Callable[[Incoming], None]) -> None:
        self.subject = subject
        self._connection = connection
        self._callback = callback
        self._client: BrokerClient | None = None
        self._bound: NatsSubscription | None = None
        self._closed = False

    async def unsubscribe(self) -> None:
        """End the interest; no callback runs after this was called."""
        self._closed = True
        self._connection._subscriptions.pop(self, None)
        if self._bound is not None:
            with contextlib.suppress(nats.errors.Error, OSError):
                await self._bound.unsubscribe()

    async def _bind(self, client: BrokerClient) -> None:
        self._client = client
        self._bound = await client.listen(self.subject, self._receive)

    def _receive(self, message: Incoming) -> None:
        if not self._closed:
            self._callback(message)


class Connection:
    """Keeps a connection for ever and tells everyone when it is lost; one per process, shared by its services.

    nats-py may not reconnect by itself: what it does differs with the cause, some causes close it for good, and it
    buffers meanwhile. Instead each connection is a client of its own, built by ``run`` with its own backoff. Nothing
    is buffered without a connection: publishing fails at once and the outbox keeps the message. Not thread-safe.

    Attributes:
        generation: grows with every connection established.
        last_error: what went wrong last, without secrets; None once connected again.
    """

    def __init__(self, config: ConnectionConfig) -> None:
        self.config = config
        self.generation = 0
        self.last_error: str | None = None
        self._client: BrokerClient | None = None
        self._gone = asyncio.Event()
        self._up = asyncio.Event()
        self._down = asyncio.Event()
        self._subscriptions: dict[Subscription, None] = {}
        self._pings: set[asyncio.Future[None]] = set()
        self._replies = Replies(config.inbox_prefix)
        self._watchers: dict[Watcher, None] = {self._replies: None}
        self._subscriptions[Subscription(self, self._replies.pattern, self._replies.receive)] = None

    @property
    def connected(self) -> bool:
        """Whether the broker can be used now."""
        return self._client is not None and bool(self._client.is_connected)

    @property
    def max_payload(self) -> int | None:
        """Bytes of a message, headers included, that the server takes; None without a connection."""
        return int(self._client.max_payload) if self._client is not None else None

    async def look_at_max_payload(self) -> None:
        """Ask the broker anew how large a message may be; does nothing without a connection.

        A server that reads its configuration again tells nobody who is connected, only who comes anew.

        Raises:
            LinkError: a second connection could not be made.
        """
        current = self._client
        if current is None or current.connected_url is None:
            return
        asking = BrokerClient()

        async def ignored(_: Exception | None = None) -> None:
            """Nobody else uses it, and what ends it is raised."""

        try:
            with anyio.fail_after(self.config.connect_timeout + 1):
                await asking.login(self.config, current.connected_url.geturl(), on_error=ignored, on_gone=ignored)
                await asking.flush()  # whatever the broker says after the login has come before this
                current.learn(asking.max_payload)
                await asking.close()
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            raise LinkError(f"the broker's limits cannot be looked at: {error}") from error
        finally:
            asking.abort()

    def watch(self, watcher: Watcher) -> None:
        """Tell ``watcher`` of losses and violations until ``unwatch``."""
        self._watchers[watcher] = None

    def unwatch(self, watcher: Watcher) -> None:
        """Stop telling ``watcher``."""
        self._watchers.pop(watcher, None)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep a connection until cancelled; ready at once, connected or not. Flushes and closes within 1 s."""
        task_status.started()
        backoff = Outage(self.config.outage, asyncio.get_running_loop().time)
        attempts = 0
        while True:
            for server in random.sample(self.config.servers, len(self.config.servers)):
                attempts += 1
                if await self._serve(server, backoff):
                    attempts = 0
                    break
            told = {"attempt": attempts, "error": self.last_error}
            if attempts:
                level = logging.INFO if attempts <= len(self.config.servers) else logging.DEBUG
                logger.log(level, "connection.attempt_failed", extra=told)
            else:
                logger.info("connection.lost", extra=told)
            await anyio.sleep(backoff.delay())

    async def wait_connected(self) -> int:
        """Wait for a connection and return its generation."""
        while True:
            if self._client is None:
                await self._up.wait()
            elif self._client.is_connected:
                return self.generation
            else:  # nats-py has noticed the loss, `run` has not been told yet
                self._gone.set()
                await self._down.wait()

    async def wait_lost(self, generation: int) -> None:
        """Wait until the connection of this generation is lost; returns at once if it is."""
        if self._client is not None and generation == self.generation:
            await self._down.wait()

    async def publish(
        self, subject: str, body: bytes, *, headers: Mapping[str, str] | None = None, reply: str = ""
    ) -> None:
        """Hand a message to the socket; that it arrives only an answer can tell.

        Raises:
            LinkError: there is no connection; the message was not sent.
            PublishRefusedError: it is larger than the server takes; it was not sent.
        """
        client = self._require()
        try:
            await client.publish(subject, body, reply=reply, headers=dict(headers) if headers else None)
        except nats.errors.MaxPayloadError as error:
            raise PublishRefusedError(
                MESSAGE_TOO_LARGE, f"{len(body)} bytes, and the server takes {client.max_payload}"
            ) from error
        except (nats.errors.Error, OSError) as error:
            raise LinkError(f"cannot publish to {subject!r}: {error}") from error

    async def send(self, commands: bytes) -> None:
        """Hand whole commands of the client protocol to the socket, as ``publish`` does one message.

        Raises:
            LinkError: there is no connection; nothing was sent.
        """
        client = self._require()
        try:
            await client.send(commands)
        except (nats.errors.Error, OSError) as error:
            raise LinkError(f"cannot send: {error}") from error

    async def request(
        self,
        subject: str,
        body: bytes = b"",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float,  # noqa: ASYNC109
    ) -> Incoming:
        """Publish and wait for one answer, at most ``timeout`` seconds.

        Raises:
            NotPermittedError: the credentials do not allow the subject.
            LinkError: not connected, the connection was lost, nobody listens, or no answer came in time.
        """
        reply, answer = self._replies.expect((subject,), timeout)
        try:
            await self.publish(subject, body, headers=headers, reply=reply)
            result = await answer
        finally:
            self._replies.forget(reply)
        if isinstance(result, LinkError):
            raise type(result)(f"request to {subject!r}: {result}") from result
        if result.status == 503:
            raise LinkError(f"request to {subject!r}: nobody answers there")
        return result

    async def subscribe(self, subject: str, callback: Callable[[Incoming], None]) -> Subscription:
        """Call ``callback``, a plain function, on the event loop for each message, on this and later connections."""
        subscription = Subscription(self, subject, callback)
        self._subscriptions[subscription] = None
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):  # a dying client: the next one binds it
                await subscription._bind(self._client)
        return subscription

    async def flush(self, timeout: float) -> None:  # noqa: ASYNC109
        """Wait until the broker has read all that was sent.

        Raises:
            LinkError: it did not within ``timeout`` seconds.
        """
        client = self._require()
        # nats-py's own time-out cancels a future that its read loop later stumbles over, which ends the loop: the
        # ping is left waiting instead, and cancelled with its client.
        ping = asyncio.ensure_future(client.flush(timeout=86_400))
        self._pings.add(ping)
        ping.add_done_callback(self._pings.discard)
        await asyncio.wait({ping}, timeout=timeout)
        if not ping.done():
            raise LinkError(f"the broker did not answer a ping within {timeout:g} s")
        if ping.cancelled():
            raise LinkError("the connection was lost")
        if error := ping.exception():
            raise LinkError(f"cannot flush: {error}") from error

    def _require(self) -> BrokerClient:
        if self._client is None or not self._client.is_connected:
            raise LinkError("not connected to the broker")
        return self._client

    async def _serve(self, server: str, backoff: Outage) -> bool:
        """Connect and stay until the connection is lost. Returns whether there was one."""
        client, gone = BrokerClient(), asyncio.Event()
        established = False
        try:
            if not await self._connect(client, server, gone):
                return False
            backoff.connected()
            self._established(client, gone)
            established = True
            while client.is_connected and not gone.is_set():
                with anyio.move_on_after(WATCH_INTERVAL):
                    await gone.wait()
            self.last_error = self.last_error or "the connection was lost"
            return True
        finally:
            with anyio.move_on_after(CLOSE_TIMEOUT, shield=True):
                if established and client.is_connected:
                    with contextlib.suppress(LinkError):
                        await self.flush(CLOSE_TIMEOUT / 2)
                self._lost(client)
                with contextlib.suppress(Exception):  # close() on a dead server raises what it likes
                    await client.close()
            client.abort()

    async def _connect(self, client: BrokerClient, server: str, gone: asyncio.Event) -> bool:
        config = self.config

        async def on_gone() -> None:
            gone.set()

        try:
            with anyio.fail_after(config.connect_timeout + 1):
                await client.login(config, server, on_error=self._report, on_gone=on_gone)
                while unbound := [each for each in self._subscriptions if each._client is not client]:
                    for subscription in unbound:
                        await subscription._bind(client)
                    await client.flush()
        except nats.errors.NoServersError:
            pass  # `_report` has been told why
        except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
            await self._report(error)
        return bool(client.is_connected)

    def _established(self, client: BrokerClient, gone: asyncio.Event) -> None:
        self._client, self._gone = client, gone
        self.generation += 1
        self.last_error = None
        self._down = asyncio.Event()
        self._up.set()
        logger.info(
            "connection.established",
            extra={
                "generation": self.generation,
                "server": client.connected_url.netloc.rpartition("@")[2] if client.connected_url else "",
            },
        )

    def _lost(self, client: Client) -> None:
        if self._client is not client:
            return
        self._client = None
        self._up = asyncio.Event()
        self._down.set()
        for ping in list(self._pings):
            ping.cancel()
        for watcher in list(self._watchers):
            watcher.lost("the connection was lost")

    async def _report(self, error: Exception) -> None:
        text = str(error) or type(error).__name__
        self.last_error = _PASSWORD.sub("//", text)
        violation = _VIOLATION.search(text.lower())
        if violation is not None:
            logger.warning("connection.permission_denied", extra={"subject": violation[1]})
            for watcher in list(self._watchers):
                watcher.denied(violation[1])
        elif not isinstance(error, (nats.errors.Error, OSError, TimeoutError)):
            logger.error("subscription.callback_failed", exc_info=error)
