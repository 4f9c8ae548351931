"""A backlog for nats-outbox, written as its documentation has it.

python -m bench.peers.backlog_nats_outbox DATABASE-URL COUNT

What drains it is the package's own command, ``nats-outbox relay start``.
"""

from __future__ import annotations

import asyncio
import sys

UNIT = 500
"""Events of a transaction."""


async def write(url: str, count: int) -> None:
    """Create the table, and write so many events."""
    from nats_outbox.core.models import Base  # type: ignore[import-not-found, unused-ignore]
    from nats_outbox.core.outbox import outbox_transaction  # type: ignore[import-not-found, unused-ignore]
    from sqlalchemy.ext.asyncio import (  # type: ignore[import-not-found, unused-ignore]
        async_sessionmaker,
        create_async_engine,
    )

    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    sessions = async_sessionmaker(engine, expire_on_commit=False)
    for first in range(0, count, UNIT):
        async with sessions() as session, outbox_transaction(session) as transaction:
            for number in range(first, min(first + UNIT, count)):
                reading = {"meter": f"meter-{number % 7}", "number": number, "cents": number % 1000}
                transaction.publish_event(
                    subject="evt.house-1.meter.metered",
                    payload=reading,
                    aggregate_id=reading["meter"],
                    aggregate_type="Meter",
                )
    await engine.dispose()


if __name__ == "__main__":
    asyncio.run(write(sys.argv[1], int(sys.argv[2])))
