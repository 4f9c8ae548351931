"""An edge service of Litestar and FastStream: ``python -m bench.peers.edge_faststream PORT NATS-URL DATABASE``.

A sale is committed to SQLite and then published, and the answer waits for both. That is how one writes it with these
two; what was committed and not published when the process or the link dies is lost to the core.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
from typing import Any

import msgspec
import uvicorn
from litestar import Litestar, get, post
from litestar.concurrency import sync_to_thread


class Line(msgspec.Struct, frozen=True):
    """One line of a sale."""

    product: int
    quantity: int
    cents: int


class NewSale(msgspec.Struct, frozen=True):
    """The body of a request."""

    basket: str
    household: int
    at: str
    lines: list[Line]


def application(url: str, path: str) -> Litestar:
    """Return the application."""
    # Imported here: the module can be looked at where the package is not installed.
    from faststream.nats import NatsBroker  # type: ignore[import-not-found, unused-ignore]

    broker: Any = NatsBroker(url, logger=None)
    database = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    database.executescript(
        "pragma journal_mode=wal; pragma synchronous=full;"
        "create table if not exists sale (basket text primary key, household integer, at text, cents integer) strict;"
    )
    lock = threading.Lock()

    def keep(sale: NewSale) -> None:
        cents = sum(line.cents for line in sale.lines)
        with lock:
            values = (sale.basket, sale.household, sale.at, cents)
            database.execute("insert into sale (basket, household, at, cents) values (?, ?, ?, ?)", values)

    @post("/till/sales")
    async def ring_up(data: NewSale) -> NewSale:
        await sync_to_thread(keep, data)
        event = {"basket": data.basket, "number": int(data.basket)}
        headers = {"Nats-Msg-Id": f"sale-{data.basket}"}
        await broker.publish(event, "evt.store-330.till.sale-recorded", headers=headers, stream="EVENTS")
        return data

    @get("/readyz")
    async def ready() -> str:
        return "ready"

    return Litestar([ring_up, ready], openapi_config=None, on_startup=[broker.start], on_shutdown=[broker.stop])


if __name__ == "__main__":
    server_port, nats_url, database_path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
    uvicorn.run(application(nats_url, database_path), host="127.0.0.1", port=server_port, log_config=None)
