"""One client of nats-py, as a connection uses it: it never reconnects by itself, and knows the limits of its user."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from nats.aio.client import Client
from nats.aio.subscription import Subscription

from forebay.jetstream.outage import OutageConfig
from forebay.jetstream.parser import MessageParser, Receive


class ConnectionConfig(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach the broker.

    Attributes:
        servers: URLs, tried in random order.
        name: the client's name as the broker shows it, such as ``store-330``.
        inbox_prefix: where answers go, ``_INBOX_<node>``: permissions are given per node.
        credentials: a ``.creds`` file, read again for each connection.
        api_prefix: of JetStream's API; another one where it is imported from another account.
        connect_timeout: seconds for one server to let us in.
        ping_interval: seconds; two unanswered pings end a connection.
        outage: the delays between attempts.
    """

    servers: list[str]
    name: str
    inbox_prefix: str
    credentials: Path | None = None
    api_prefix: str = "$JS.API"
    connect_timeout: float = 2.0
    ping_interval: float = 10.0
    outage: OutageConfig = OutageConfig()


class BrokerClient(Client):
    """nats-py's client, with three changes.

    By itself it learns from the broker's first INFO alone how large a message may be. That one says what the server
    takes. What a user's account takes stands in a second one, which comes after the login (seen with nats-server 2.15
    and users of JWTs). And messages go straight from the parser to plain functions, see ``listen``. What is lost in the
    middle of a call is an ``OSError`` on every event loop.
    """

    def __init__(self) -> None:
        super().__init__()
        self._ps = self._parser = MessageParser(self)

    async def listen(self, subject: str, receive: Receive) -> Subscription:
        """Call ``receive`` on the event loop for each message of a subject, in order, until it is unsubscribed.

        Raises:
            nats.errors.Error, OSError: the client is dying.
        """
        number = self._sid + 1  # what `subscribe` takes, before it lets anything else run
        self._parser.listeners[number] = receive
        return await self.subscribe(subject)

    def _remove_sub(self, sid: int, max_msgs: int = 0) -> None:
        self._parser.listeners.pop(sid, None)
        super()._remove_sub(sid, max_msgs)

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        await super()._process_info(info, initial_connection)
        self.learn(info.get("max_payload"))

    def learn(self, max_payload: int | None) -> None:
        """Take note of how many bytes of a message the broker takes."""
        if max_payload:
            self._max_payload = max_payload

    async def send(self, commands: bytes) -> None:
        """Send whole commands of the client protocol: a batch in one piece takes a call, not one for each message."""
        await self._send_command(commands)
        if self._flush_queue is not None and self._flush_queue.empty():
            await self._flush_pending()

    async def _flush_pending(self, force_flush: bool = False) -> Any:
        try:  # where its own task has met the closed transport, nats-py writes here: in each publish and subscribe
            return await super()._flush_pending(force_flush)
        except RuntimeError as error:
            raise _lost(error) from error

    async def close(self) -> None:
        """Close; raises as nats-py does, and ``OSError``."""
        with _closed_is_lost():
            await super().close()

    async def flush(self, timeout: int = 10) -> None:  # noqa: ASYNC109 - nats-py's
        """Wait until the broker has read all that was sent; raises as nats-py does, and ``OSError``."""
        with _closed_is_lost():
            await super().flush(timeout)

    async def login(
        self,
        config: ConnectionConfig,
        server: str,
        *,
        on_error: Callable[[Exception], Awaitable[None]],
        on_gone: Callable[[], Awaitable[None]],
    ) -> None:
        """Connect once; what nats-py raises is for the caller."""
        with _closed_is_lost():
            await self.connect(
                servers=[server],
                name=config.name,
                allow_reconnect=False,
                max_reconnect_attempts=1,
                reconnect_time_wait=0,
                connect_timeout=config.connect_timeout,  # type: ignore[arg-type]
                ping_interval=config.ping_interval,  # type: ignore[arg-type]
                max_outstanding_pings=2,
                pending_size=-1,
                inbox_prefix=config.inbox_prefix,
                user_credentials=str(config.credentials) if config.credentials else None,
                error_cb=on_error,
                disconnected_cb=on_gone,
                closed_cb=on_gone,
            )

    def abort(self) -> None:
        """Drop what a frozen broker holds: nats-py's close waits for a socket that will not take its last bytes."""
        for name in ("_reading_task", "_ping_interval_task", "_flusher_task"):
            task = getattr(self, name, None)
            if task is not None:
                task.cancel()
        writer = getattr(getattr(self, "_transport", None), "_io_writer", None)
        if writer is not None:
            writer.transport.abort()


@contextmanager
def _closed_is_lost() -> Iterator[None]:
    """Raise ``ConnectionResetError`` where uvloop raises ``RuntimeError``: its transport was closed since.

    asyncio's own transport says nothing then, and the broker's answer does not come.
    """
    try:
        yield
    except RuntimeError as error:
        raise _lost(error) from error


def _lost(error: RuntimeError) -> ConnectionResetError:
    return ConnectionResetError(f"the connection was lost: {error}")
