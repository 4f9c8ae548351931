"""FastStream with an idempotency table: a subscriber on a durable pull consumer, acknowledged after the handler.

python -m bench.peers.inbox_faststream NATS-URL DATABASE
"""

from __future__ import annotations

import asyncio
import sys
from typing import Any

from bench.peers.inbox_table import open_inbox

FETCH = 100
"""Messages of one request; the default is 1, which is slower by far."""


async def consume(url: str, place: str) -> None:
    """Consume until killed."""
    # Imported here: the module can be looked at where the package is not installed.
    from faststream import AckPolicy, FastStream  # type: ignore[import-not-found, unused-ignore]
    from faststream.nats import (  # type: ignore[import-not-found, unused-ignore]
        JStream,
        NatsBroker,
        NatsMessage,
        PullSub,
    )

    inbox = open_inbox(place)
    broker: Any = NatsBroker(url, logger=None)  # it would log every message

    async def enter(body: dict[str, Any], message: Any) -> None:
        inbox.apply(message.headers["Nats-Msg-Id"], message.raw_message.subject, body)

    enter.__annotations__["message"] = NatsMessage  # what FastStream injects it by
    broker.subscriber(
        "evt.>",
        durable="books",
        stream=JStream("EVENTS", declare=False),
        pull_sub=PullSub(batch_size=FETCH),
        ack_policy=AckPolicy.NACK_ON_ERROR,
    )(enter)
    await FastStream(broker, logger=None).run()


if __name__ == "__main__":
    asyncio.run(consume(*sys.argv[1:3]))
