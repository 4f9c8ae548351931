"""Simulated nodes: what they would have sent is published to the stream, as their relays do it."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import anyio
import msgspec

from bench.services.metering import Metered
from forebay.envelope import JSON, Message, encode_headers
from forebay.identity import Place
from forebay.jetstream.connection import Connection, ConnectionConfig
from forebay.jetstream.publishing import MAX_BATCH, Outgoing, Publisher, Stored
from forebay.jetstream.topology import apply_topology, consumer_spec, desired

AT = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Fleet:
    """Nodes with one epoch each, without a gap; event after event goes to the next node."""

    def __init__(self, nodes: int) -> None:
        self._nodes = nodes
        self._sequences: Counter[int] = Counter()
        self.numbers = 0

    def make(self, count: int) -> list[Outgoing]:
        """Return the next ``count`` events as messages; their numbers go on from the last call's."""
        made = [self._outgoing(number) for number in range(self.numbers, self.numbers + count)]
        self.numbers += count
        return made

    def _outgoing(self, number: int) -> Outgoing:
        at = number % self._nodes
        self._sequences[at] += 1
        node, spec = f"house-{at}", Metered.spec
        place = Place(f"{at + 1:032x}", self._sequences[at])
        event = Metered(meter=f"meter-{number % 7}", number=number, cents=number % 1000)
        message = Message(
            message_id=str(place),
            node=node,
            service=spec.service,
            kind=spec.kind,
            id=str(place),
            source=f"/{node}/{spec.service}",
            type=spec.type,
            time=AT,
            key=event.meter,
            content_type=JSON,
            attributes={},
            lane=spec.lane,
            place=place,
            prev=None,
            hlc=int(AT.timestamp() * 1000) << 16,
            body=msgspec.json.encode(event),
        )
        return Outgoing(f"evt.{node}.{spec.service}.{spec.kind}", encode_headers(message), message.body)


async def publish(publisher: Publisher, messages: Sequence[Outgoing]) -> None:
    """Publish in atomic batches, one after the other; raises ``RuntimeError`` if the broker refuses one."""
    for start in range(0, len(messages), MAX_BATCH):
        outcomes = await publisher.publish(messages[start : start + MAX_BATCH])
        if not all(isinstance(each, Stored) for each in outcomes):
            raise RuntimeError(f"not stored: {[each for each in outcomes if not isinstance(each, Stored)][:3]}")


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
