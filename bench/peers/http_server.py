"""What a durable write over HTTP is measured beside: ``python -m bench.peers.http_server KIND PORT DATABASE``.

``nothing``: a Litestar handler that decodes and answers, and stores nothing. ``commit``: the same handler with an
insert and a commit (WAL, ``synchronous=FULL``) for each request, off the event loop as Litestar's documentation has
it for what blocks. ``inline``: on the event loop. ``bytes``: no HTTP server at all, the same answer to whatever
comes: the load generator's own limit.
"""

from __future__ import annotations

import asyncio
import sqlite3
import sys
import threading
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, post

_ANSWER = b"HTTP/1.1 201 Created\r\ncontent-type: application/json\r\ncontent-length: 12\r\n\r\n" + b'{"number":1}'


class NewReading(msgspec.Struct, frozen=True):
    """The body of a request."""

    meter: str
    number: int
    cents: int


class Taken(msgspec.Struct, frozen=True):
    """The answer."""

    number: int


def nothing() -> Litestar:
    """Return an application that stores nothing."""

    @post("/meter/readings")
    async def take_reading(data: NewReading) -> Taken:
        return Taken(data.number)

    return Litestar([take_reading], openapi_config=None)


def commit(path: str, *, inline: bool = False) -> Litestar:
    """Return an application that commits once per request, in a thread of the pool or on the event loop."""
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.executescript(
        "pragma journal_mode=wal; pragma synchronous=full;"
        "create table if not exists reading (id integer primary key, meter text, number integer, cents integer) strict;"
    )
    lock = threading.Lock()  # one connection for all threads: SQLite has one writer at a time anyway

    @post("/meter/readings", sync_to_thread=not inline)
    def take_reading(data: NewReading) -> Taken:
        with lock:
            database.execute("begin immediate")
            database.execute(
                "insert into reading (meter, number, cents) values (?, ?, ?)", (data.meter, data.number, data.cents)
            )
            database.execute("commit")
        return Taken(data.number)

    return Litestar([take_reading], openapi_config=None)


class Bytes(asyncio.Protocol):
    """Gives the answer to whatever comes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Remember where to write."""
        self._transport: Any = transport

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - whatever it is
        """Answer."""
        self._transport.write(_ANSWER)


async def _serve_bytes(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Bytes, "127.0.0.1", port)
    await server.serve_forever()


def main(kind: str, port: int, path: str) -> None:
    """Serve until killed."""
    if kind == "bytes":
        asyncio.run(_serve_bytes(port))
    else:
        application = nothing() if kind == "nothing" else commit(path, inline=kind == "inline")
        uvicorn.run(application, host="127.0.0.1", port=port, log_config=None, access_log=False)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
