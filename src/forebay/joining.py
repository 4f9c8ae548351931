"""An answer's head goes out with the first part of its body: one call of the system and one packet, not two of each.

uvicorn writes them one after the other, and its transport sends at once what it is given.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.auto import AutoHTTPProtocol

_HEAD = b"HTTP/1.1 "


class JoiningProtocol(AutoHTTPProtocol):  # type: ignore[valid-type,misc] # whichever of its two is installed
    """uvicorn's protocol of one connection, over a ``JoiningTransport``."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        """Take the connection."""
        super().connection_made(cast(asyncio.Transport, JoiningTransport(transport)))


class JoiningTransport:
    """A transport that keeps an answer's head until something follows it, or the event loop comes round.

    All else is the transport's below.
    """

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._head = b""
        self._sending: asyncio.Handle | None = None

    def write(self, data: bytes) -> None:
        """Send ``data``, or keep it where it is a head."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
            self._transport.writelines((self._head, data))
        elif data.startswith(_HEAD):
            self._head = data
            self._sending = self._loop.call_soon(self._send)
        elif data:
            self._transport.write(data)

    def close(self) -> None:
        """Send what is kept, and close."""
        self._send()
        self._transport.close()

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        """Send what is kept, and hand the connection over."""
        self._send()
        self._transport.set_protocol(protocol)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None
            self._transport.write(self._head)
