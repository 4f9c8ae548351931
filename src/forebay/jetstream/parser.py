"""Reading what the broker sends: messages go straight to their listeners, everything else to nats-py's own parser.

nats-py matches several expressions for each message, parses its headers, and hands it through a queue to a task that
awaits a coroutine: about three times what the message itself costs (``bench/consumption.py``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from forebay.headers import NO_HEADERS, Headers
from forebay.jetstream.replies import Incoming

Receive = Callable[[Incoming], None]
"""Takes one message, on the event loop; what it raises is reported, and the next message comes all the same."""


class MessageParser(Parser):
    """Parses one connection's bytes.

    Attributes:
        listeners: by the number of the subscription; messages of other numbers are dropped.
    """

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.listeners: dict[int, Receive] = {}

    def reset(self) -> None:
        """Forget what is half read: the connection is another one."""
        super().reset()
        self._parts: list[bytes] = []
        self._lacking = 0
        self._turn = getattr(self, "_turn", 0) + 1

    async def parse(self, data: bytes = b"") -> None:
        """Take what was read from the socket, in pieces of any size.

        Raises:
            ProtocolError: it is not NATS's protocol.
        """
        if self._parts:
            self._parts.append(data)
            self._lacking -= len(data)
            if self._lacking > 0:  # a large message is joined once, not with each of its pieces
                return
            data, self._parts = b"".join(self._parts), []
        turn, at, size = self._turn, 0, len(data)
        while at < size:
            end = data.find(b"\r\n", at)
            if end < 0:
                break
            line = data[at:end]
            if line.startswith((b"HMSG", b"MSG")):
                end += 2
                try:
                    subject, number, reply, headed, length = _arguments(line)
                except ValueError:
                    raise ProtocolError(f"nats: malformed {line[:40]!r}") from None
                behind = end + length + 2
                if behind > size:
                    self._lacking = behind - size
                    break
                at = behind
                receive = self.listeners.get(number)
                if receive is not None:
                    headers = Headers(data[end : end + headed]) if headed else NO_HEADERS
                    try:
                        receive(Incoming(subject, reply, headers, data[end + headed : behind - 2]))
                    except Exception as error:  # noqa: BLE001 - reported; what comes next is another's
                        await self.nc._error_cb(error)
            else:
                at = end + 2
                await super().parse(line + b"\r\n")
            if self._turn != turn:
                return  # what follows belongs to a connection that is gone
        if at < size:
            self._parts = [data[at:] if at else data]


def _arguments(line: bytes) -> tuple[str, int, str, int, int]:
    """Return subject, subscription, reply subject, and the bytes of the headers and of the whole.

    The server divides them by single spaces, and takes any other bytes in a subject: one that nobody can read must not
    end the connection, for it would come again on the next one.

    Raises:
        ValueError: the line is of another form.
    """
    words = line.split(b" ")
    if words[0] == b"HMSG":
        if len(words) == 6:
            return _text(words[1]), int(words[2]), _text(words[3]), int(words[4]), int(words[5])
        _, subject, number, headed, length = words
        return _text(subject), int(number), "", int(headed), int(length)
    if words[0] != b"MSG":
        raise ValueError(words[0])
    if len(words) == 5:
        return _text(words[1]), int(words[2]), _text(words[3]), 0, int(words[4])
    _, subject, number, length = words
    return _text(subject), int(number), "", 0, int(length)


def _text(subject: bytes) -> str:
    return subject.decode("utf-8", "replace")
