"""What the stream holds, read beside everybody else."""

from __future__ import annotations

import nats
from nats.js.api import ConsumerConfig, DeliverPolicy

READ_TIMEOUT = 30.0
"""Seconds for the next message of those that are pending."""


async def message_ids(url: str) -> set[str]:
    """Return the ids of the messages that the stream of events has, without the suffixes of what was sent again."""
    client = await nats.connect(url)
    try:
        config = ConsumerConfig(headers_only=True, deliver_policy=DeliverPolicy.ALL)
        subscription = await client.jetstream().subscribe(
            "evt.>", stream="EVENTS", ordered_consumer=True, config=config
        )
        info = await subscription.consumer_info()
        delivered = info.delivered.consumer_seq if info.delivered else 0
        found = set()
        for _ in range((info.num_pending or 0) + (delivered or 0)):
            message = await subscription.next_msg(timeout=READ_TIMEOUT)
            found.add((message.headers or {}).get("Nats-Msg-Id", "").partition("~")[0])
        return found
    finally:
        await client.close()
