"""Requests to the broker over a connection of their own, for commands that ask, act and end."""

from __future__ import annotations

import asyncio
import contextlib
import math
from collections.abc import AsyncIterator, Awaitable, Callable
from urllib.parse import urlsplit

import nats.errors
from nats.aio.client import Client

from forebay.errors import LinkError

TIMEOUT = 5.0
"""Seconds to wait for the connection and for each answer."""

Request = Callable[[str, bytes], Awaitable[bytes]]
"""Sends a body to a subject and returns the answer's."""


@contextlib.asynccontextmanager
async def requests(urls: str) -> AsyncIterator[Request]:
    """Connect to one of the brokers, given by comma, and yield a function that sends a request.

    Raises:
        LinkError: there is no connection, or a request gets no answer; one line, without secrets.
    """
    servers = [url.strip() for url in urls.split(",") if url.strip()]
    place = ", ".join(_place(server) for server in servers)
    complaints: list[str] = []

    async def complain(error: Exception) -> None:
        complaints.append(str(error))

    def failure(what: str, error: Exception) -> LinkError:
        return LinkError(f"{what}: {complaints[-1] if complaints else str(error) or type(error).__name__}")

    link = Client()
    try:
        connecting = link.connect(
            servers,
            error_cb=complain,
            connect_timeout=math.ceil(TIMEOUT),
            allow_reconnect=False,
            # Without a limit nats-py tries a refused connection again and again, even where it may not reconnect.
            max_reconnect_attempts=1,
            reconnect_time_wait=0,
        )
        await asyncio.wait_for(connecting, TIMEOUT)
    except (nats.errors.Error, OSError, TimeoutError, ValueError) as error:
        await _close(link)
        raise failure(f"no connection to the broker at {place}", error) from error

    async def request(subject: str, body: bytes) -> bytes:
        try:
            return bytes((await link.request(subject, body, timeout=TIMEOUT)).data)
        except nats.errors.NoRespondersError as error:
            raise LinkError(f"the broker at {place} has no JetStream for {subject}") from error
        except (nats.errors.Error, OSError, TimeoutError) as error:
            raise failure(f"no answer from the broker at {place} to {subject}", error) from error

    try:
        yield request
    finally:
        await _close(link)


def _place(url: str) -> str:
    return (urlsplit(url).netloc or url).rpartition("@")[2]


async def _close(link: Client) -> None:
    """Close what there is of a connection; on a dead server that raises, and would hide the error that matters."""
    with contextlib.suppress(nats.errors.Error, OSError, AttributeError, AssertionError):
        await link.close()
