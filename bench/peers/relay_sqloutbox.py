"""sqloutbox as its documentation has it: a producer that pushes statements, and a service that drains them to a writer.

    python -m bench.peers.relay_sqloutbox write FOLDER COUNT
    python -m bench.peers.relay_sqloutbox relay FOLDER NATS-URL

It drains to SQL databases, by a writer that is one's own; this one publishes to JetStream instead. It publishes a
batch concurrently, which is the fastest that nats-py's own calls offer, and waits for every acknowledgement. The pause
between two batches is a second unless told otherwise, which alone would make 500 events a second.
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

TABLE = "reading"
PUSHED = 500
"""Statements of a push."""
PAUSE = 0.001
"""Seconds between two batches."""


def write(folder: Path, count: int) -> None:
    """Push a backlog."""
    from sqloutbox import OutboxConfig, SQLMiddleware  # type: ignore[import-not-found, unused-ignore]

    class Producer(SQLMiddleware):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self._config = OutboxConfig(db_dir=folder)

        def push(self, numbers: range) -> None:
            self._push_many(TABLE, [("reading", [f"meter-{at % 7}", at, at % 1000]) for at in numbers])

    producer = Producer()
    for first in range(0, count, PUSHED):
        producer.push(range(first, min(first + PUSHED, count)))


class JetStreamWriter:
    """Publishes each statement's values as an event. Its ids are those of the events, so that JetStream knows them."""

    def __init__(self, context: Any) -> None:
        self._context = context

    async def write_batch(self, statements: list[tuple[str, list[Any]]]) -> list[dict[str, Any]]:
        """Publish a batch; one result for each."""
        sent = [self._publish(values) for _, values in statements]
        return [
            {"ok": False, "error": repr(answer)}
            if isinstance(answer, BaseException)
            else {"ok": True, "rows_affected": 1}
            for answer in await asyncio.gather(*sent, return_exceptions=True)
        ]

    async def _publish(self, values: list[Any]) -> None:
        meter, number, cents = values
        body = b'{"meter":"%b","number":%d,"cents":%d}' % (meter.encode(), number, cents)
        await self._context.publish("evt.house-1.meter.metered", body, headers={"Nats-Msg-Id": f"house-1-{number}"})


async def relay(folder: Path, url: str) -> None:
    """Drain until killed."""
    import nats
    from sqloutbox import (  # type: ignore[import-not-found, unused-ignore]
        OutboxConfig,
        OutboxSyncService,
        TargetConfig,
    )

    client = await nats.connect(url)
    target = TargetConfig(name="broker", tables=(TABLE,), inject_outbox_seq=False)
    config = OutboxConfig(db_dir=folder, targets=(target,), flush_interval=PAUSE, auto_schema=False)
    await OutboxSyncService(config=config, writers={"broker": JetStreamWriter(client.jetstream())}).run()


if __name__ == "__main__":
    if sys.argv[1] == "write":
        write(Path(sys.argv[2]), int(sys.argv[3]))
    else:
        asyncio.run(relay(Path(sys.argv[2]), sys.argv[3]))
