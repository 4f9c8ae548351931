"""Plain nats-py as its documentation has it: fetch, take effect, acknowledge, message by message.

python -m bench.peers.inbox_nats_py NATS-URL DATABASE
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import nats
import nats.errors

from bench.peers.inbox_table import open_inbox

FETCH = 100
"""Messages of one fetch."""


async def consume(url: str, place: str) -> None:
    """Consume until killed."""
    inbox = open_inbox(place)
    client: Any = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe("evt.>", durable="books", stream="EVENTS")
    while True:
        try:
            messages = await subscription.fetch(FETCH, timeout=5)
        except nats.errors.TimeoutError:
            continue
        for message in messages:
            inbox.apply(message.headers["Nats-Msg-Id"], message.subject, json.loads(message.data))
            await message.ack()


if __name__ == "__main__":
    asyncio.run(consume(*sys.argv[1:3]))
