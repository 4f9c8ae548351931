"""What a trial needs of a column: an edge, a hub and a consumer, each of which can be broken by itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Protocol

import msgspec

from forebay.errors import LinkError
from forebay.jetstream.requesting import requests


class Event(msgspec.Struct, frozen=True):
    """One event of the workload; the numbers of a key rise, and no number is given out twice."""

    key: str
    number: int


class Pair(Protocol):
    """An edge node and a hub with a consumer that writes each effect to a SQLite database.

    Attributes:
        edge_store: the folder of what the edge keeps. Replace it only while the edge is down.
        hub_store: the folder of the hub's store, likewise.
        effects: the consumer's database, with a table ``effect (position, key or meter, number)``.
        effects_query: yields key and number in the order of the effects.
        edge_pid: the process that keeps the edge's store; None while it is down.
    """

    edge_store: Path
    hub_store: Path
    effects: Path
    effects_query: str

    @property
    def edge_pid(self) -> int | None:
        """The process that keeps the edge's store."""

    async def start(self) -> None:
        """Start everything, and return when a write can be accepted."""

    async def close(self) -> None:
        """End everything."""

    async def write(self, event: Event) -> bool:
        """Try once to write an event at the edge; true once it was acknowledged, repeatable until then."""

    async def stop_edge(self) -> None:
        """End the edge as an operator would."""

    def kill_edge(self) -> None:
        """End the edge with SIGKILL."""

    async def start_edge(self) -> None:
        """Start the edge, and make anew what an operator finds missing there."""

    async def stop_hub(self) -> None:
        """End the hub's broker as an operator would."""

    def kill_hub(self) -> None:
        """End the hub's broker with SIGKILL."""

    async def start_hub(self) -> None:
        """Start the hub's broker, and make anew what an operator finds missing there."""

    async def stop_consumer(self) -> None:
        """End the consumer."""

    async def start_consumer(self) -> None:
        """Start the consumer."""

    async def stored_at_hub(self) -> int:
        """How many messages the hub's stream has."""

    async def says_done(self) -> bool:
        """Whether the column itself says that nothing is on its way any more."""


async def api(url: str, subject: str, body: object = None, domain: str = "") -> dict[str, object]:
    """Send one request to a broker's JetStream API, or to that of another domain; ``{}`` where nothing answers."""
    try:
        async with requests(url) as request:
            answer = await request(
                f"$JS.{domain}{'.' if domain else ''}API.{subject}", b"" if body is None else msgspec.json.encode(body)
            )
    except LinkError:
        return {}
    found: dict[str, object] = json.loads(answer)
    return found


async def messages(url: str, stream: str) -> int:
    """Return how many messages a stream has; 0 where it or the broker is not there."""
    state = (await api(url, f"STREAM.INFO.{stream}")).get("state")
    return int(state["messages"]) if isinstance(state, dict) else 0
