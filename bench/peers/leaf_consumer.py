"""The consumer behind a leaf node as a process of its own.

python -m bench.peers.leaf_consumer NATS-URL DATABASE
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from nats.aio.client import Client

from bench.peers.leaf_pair import consume, open_database


async def run(url: str, path: Path) -> None:
    """Consume until killed."""
    client = Client()
    await client.connect(url)
    with contextlib.closing(open_database(path, check_same_thread=False)) as database:
        await consume(client, database)


if __name__ == "__main__":
    asyncio.run(run(sys.argv[1], Path(sys.argv[2])))
