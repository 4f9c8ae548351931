"""Simulated nodes: what they would have sent is published to the stream, as their relays do it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta

import anyio
import msgspec

from bench.atomic_batches import pour
from bench.services.metering import Metered
from forebay.clock import format_tick
from forebay.envelope import JSON, Message, encode_headers
from forebay.event import EventSpec
from forebay.identity import Place
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.publishing import Outgoing
from forebay.jetstream.topology import apply_topology, consumer_spec, desired
from forebay.subjects import event_subject

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)
BATCH_TYPE = "application/cloudevents-batch+json"

Body = Callable[[int], bytes]
"""Makes the body of the event of a number."""
Pack = Callable[[bytes], bytes]
"""Packs the body of a frame."""


def reading(number: int) -> bytes:
    """Return the body of a reading, about 40 bytes."""
    return b'{"meter":"meter-%d","number":%d,"cents":%d}' % (number % 7, number, number % 1000)


class Fleet:
    """Nodes whose events have no gap; event after event, or frame after frame, goes to the next node.

    Args:
        nodes: how many.
        spec: of the events.
        body: makes the body of the event of a number.
        of_epoch: events of an epoch, before the node opens the next; None for one epoch that never ends.
    """

    def __init__(
        self, nodes: int, spec: EventSpec = Metered.spec, body: Body = reading, of_epoch: int | None = None
    ) -> None:
        self.numbers = 0
        self._nodes = nodes
        self._spec = spec
        self._body = body
        self._of_epoch = of_epoch
        self._written: Counter[int] = Counter()
        self._headers: dict[str, dict[str, str]] = {}
        self._turn = 0

    def subject(self, node: int) -> str:
        """Return what a node publishes its events on."""
        return event_subject(f"house-{node}", self._spec.service, self._spec.kind)

    def epoch(self, node: int, number: int = 0) -> str:
        """Return the epoch of a node that it opened as the one of a number."""
        return f"{node + 1:016x}{number:016x}"

    def skip(self, count: int) -> None:
        """Go on as if the next ``count`` events, as many of each node, had been made."""
        for _ in range(self._nodes):
            self._written[self._turn % self._nodes] += count // self._nodes
            self._turn += 1
        self.numbers += count

    def make(self, count: int) -> list[Outgoing]:
        """Return the next ``count`` events as messages; their numbers go on from the last call's."""
        made = []
        for number in range(self.numbers, self.numbers + count):
            node, place, prev = self._next()
            headers = self._template(node, place.epoch, prev).copy()
            headers["Nats-Msg-Id"] = headers["ce-id"] = str(place)
            headers["ce-partitionkey"] = f"meter-{number % 7}"
            made.append(Outgoing(self.subject(node), headers, self._body(number)))
            self._turn += 1
        self.numbers += count
        return made

    def frames(self, count: int, of: int, pack: Pack | None = None) -> list[Outgoing]:
        """Return the next ``count`` events as frames of ``of`` each; ``pack`` compresses one with zstd."""
        made = []
        for first in range(self.numbers, self.numbers + count, of):
            numbers = range(first, min(first + of, self.numbers + count))
            parts = []
            for number in numbers:
                node, place, prev = self._next()
                parts.append(self._framed(node, place, number))
            self._turn += 1
            headers = {
                "Nats-Msg-Id": f"{place.epoch}-{place.sequence - len(numbers) + 1}-{place.sequence}",
                "Content-Type": BATCH_TYPE,
                "forebay-lane": self._spec.lane,
                "forebay-prev": prev,
            }
            body = b"[" + b",".join(parts) + b"]"
            if pack:
                headers["Content-Encoding"], body = "zstd", pack(body)
            made.append(Outgoing(self.subject(node), headers, body))
        self.numbers += count
        return made

    def _next(self) -> tuple[int, Place, str]:
        """Return the node whose turn it is, its next place, and what its messages name as the epoch before."""
        node = self._turn % self._nodes
        written = self._written[node]
        self._written[node] += 1
        if self._of_epoch is None:
            return node, Place(self.epoch(node), written + 1), "none"
        at, before = divmod(written, self._of_epoch)
        prev = f"{self.epoch(node, at - 1)}-{self._of_epoch}" if at else "none"
        return node, Place(self.epoch(node, at), before + 1), prev

    def _template(self, node: int, epoch: str, prev: str) -> dict[str, str]:
        if found := self._headers.get(epoch):
            return found
        spec = self._spec
        message = Message(
            message_id="",
            node=f"house-{node}",
            service=spec.service,
            kind=spec.kind,
            id="",
            source=f"/house-{node}/{spec.service}",
            type=spec.type,
            time=AT,
            key="",
            content_type=JSON,
            attributes={},
            lane=spec.lane,
            place=Place(epoch, 1),
            prev=None,
            hlc=int(AT.timestamp() * 1000) << 16,
        )
        self._headers[epoch] = headers = encode_headers(message) | {"forebay-prev": prev}
        return headers

    def _framed(self, node: int, place: Place, number: int) -> bytes:
        at = AT + timedelta(milliseconds=number)
        attributes = {
            "specversion": "1.0",
            "source": f"/house-{node}/{self._spec.service}",
            "type": self._spec.type,
            "id": str(place),
            "forebayhlc": format_tick(int(at.timestamp() * 1000) << 16),
            "time": at,
            "partitionkey": f"meter-{number % 7}",
            "data": msgspec.Raw(self._body(number)),
        }
        return msgspec.json.encode(attributes)


@asynccontextmanager
async def broker(url: str, consumers: Iterable[str], service: str = "meter") -> AsyncIterator[Connection]:
    """Connect to a broker and create the streams there.

    Args:
        url: of the broker.
        consumers: which get durables.
        service: whose events they need; ``*`` for all.
    """
    connection = Connection(ConnectionConfig(servers=[url], name="fleet", inbox_prefix="_INBOX_fleet"))
    failed: Exception | None = None
    async with anyio.create_task_group() as tasks:
        await tasks.start(connection.run)
        try:
            await connection.wait_connected()

            async def request(subject: str, body: bytes) -> bytes:
                return (await connection.request(subject, body, timeout=30)).body

            await apply_topology(request, desired(None, derived=[consumer_spec(name, [service]) for name in consumers]))
            yield connection
        except Exception as error:  # noqa: BLE001 - raised below, as itself: a task group would wrap it
            failed = error
        finally:
            tasks.cancel_scope.cancel()
    if failed is not None:
        raise failed


async def fill(url: str, consumers: Iterable[str], messages: list[Outgoing], service: str = "meter") -> None:
    """Create the streams at a broker and put messages there; raises ``RuntimeError`` if it refuses some."""
    async with broker(url, consumers, service):
        pass
    await pour(url, messages)
