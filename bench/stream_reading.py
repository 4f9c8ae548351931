"""What a stream holds: how many events while it fills, and every number at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import msgspec
import nats

from bench.watching import Took, watch
from forebay.identity import parse_message_id

LOOK = 0.01
"""Seconds between two looks at a stream."""
PULL, PULL_BYTES = 1_000, 8 * 2**20
"""Messages of a request, and bytes of about as many as it may bring: a server hangs up on what reads too slowly."""


class _Numbered(msgspec.Struct):
    number: int


class _Framed(msgspec.Struct):
    data: _Numbered


_number = msgspec.json.Decoder(_Numbered).decode
_numbers = msgspec.json.Decoder(list[_Framed]).decode


class Look:
    """Looks at a stream of a broker; a context manager.

    Args:
        url: of the broker.
        stream: its name.
        subject: of one node; then what is counted is the sequence of its last message, of a frame its last event's.
    """

    def __init__(self, url: str, stream: str = "EVENTS", subject: str = "") -> None:
        self._url = url
        self._stream = stream
        self._subject = subject
        self._client: Any = None

    async def __aenter__(self) -> Look:
        self._client = await nats.connect(self._url)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def events(self) -> int:
        """How many events it has; 0 where it is not there."""
        if self._subject:
            found = await self._ask(f"STREAM.MSG.GET.{self._stream}", {"last_by_subj": self._subject})
            if "message" not in found:
                return 0
            context = self._client.jetstream()
            last = await context.get_msg(self._stream, seq=found["message"]["seq"])
            message_id = parse_message_id((last.headers or {})["Nats-Msg-Id"])
            return message_id.last if message_id else 0
        found = await self._ask(f"STREAM.INFO.{self._stream}", None)
        return int(found["state"]["messages"]) if "state" in found else 0

    async def until(self, count: int, said: Callable[[], str] = str, relay: int | None = None) -> Took:
        """Wait for so many events; return what was seen.

        Args:
            count: how many.
            said: tells how the relay does.
            relay: its process id.
        """
        return await watch(self.events, count, every=LOOK, said=said, pid=relay, process="edge process")

    async def _ask(self, subject: str, body: object) -> dict[str, Any]:
        request = b"" if body is None else msgspec.json.encode(body)
        answer = await self._client.request(f"$JS.API.{subject}", request, timeout=30)
        return msgspec.json.decode(answer.data, type=dict[str, Any])


async def stored(url: str, stream: str = "EVENTS") -> list[int]:
    """Return the numbers of all events in a stream, those of frames too."""
    client: Any = await nats.connect(url)
    try:
        info = await client.jetstream().stream_info(stream)
        left = info.state.messages
        most = max(1, min(PULL, PULL_BYTES * left // max(1, info.state.bytes)))
        config = {"ack_policy": "none", "deliver_policy": "all", "mem_storage": True}
        answer = await client.request(
            f"$JS.API.CONSUMER.CREATE.{stream}",
            msgspec.json.encode({"stream_name": stream, "config": config}),
            timeout=30,
        )
        pull = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{msgspec.json.decode(answer.data)['name']}"
        found: list[int] = []
        inbox = client.new_inbox()
        subscription = await client.subscribe(inbox, pending_msgs_limit=-1, pending_bytes_limit=-1)
        while left:
            batch = min(most, left)
            await client.publish(pull, msgspec.json.encode({"batch": batch, "expires": 30_000_000_000}), reply=inbox)
            for _ in range(batch):
                message = await subscription.next_msg(timeout=30)
                if not message.data:
                    raise RuntimeError(f"the stream {stream} gave {message.headers} for a message")
                found += numbers_of(message.headers or {}, message.data)
            left -= batch
        return found
    finally:
        await client.close()


def numbers_of(headers: Mapping[str, str], body: bytes) -> list[int]:
    """Return the numbers of a message's events: one, or those of a frame."""
    lower = {name.lower(): value for name, value in headers.items()}
    if "batch" not in lower.get("content-type", ""):
        return [_number(body).number]
    if encoding := lower.get("content-encoding"):
        body = import_module("forebay.packing").unpack(encoding, body)
    return [each.data.number for each in _numbers(body)]
