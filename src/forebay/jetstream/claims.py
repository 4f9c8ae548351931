"""A reader's claim on its durables: they are as it relies on, and read by its database alone (rule S4)."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.errors import TopologyError
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import ConsumerState, api_request, consumer_info
from forebay.jetstream.topology.checks import durable_problems
from forebay.jetstream.topology.spec import consumer_spec

STORE = "forebay.store"
"""The key of a durable's metadata that names the store whose reader reads it."""


async def claim_durable(
    connection: Connection, stream: str, consumer: str, services: Sequence[str], partition: int, store_id: str
) -> None:
    """Check a partition's durable, and write this store's id into its metadata if no store has claimed it yet.

    Raises:
        TopologyError: it is missing, set otherwise than the reader relies on, or claimed by another store.
        LinkError: the broker cannot be asked.
    """
    expected = consumer_spec(consumer, services, stream)
    durable = expected.durable(partition)
    state = await consumer_info(connection, stream, durable)
    if problems := durable_problems(state.config, expected, partition):
        raise TopologyError("; ".join(problems), hint="see `forebay plan`")
    await _write_claim(connection, stream, durable, state, store_id)


async def claim(connection: Connection, stream: str, durable: str, store_id: str) -> None:
    """Write a store's id into a durable's metadata if none has claimed it yet; raises as ``claim_durable`` does."""
    await _write_claim(connection, stream, durable, await consumer_info(connection, stream, durable), store_id)


def check_claim(durable: str, state: ConsumerState, store_id: str) -> None:
    """Raise ``TopologyError`` where another store has claimed a durable."""
    owner = state.metadata.get(STORE)
    if owner not in (None, store_id):
        raise TopologyError(
            f"durable {durable} is read by the store {owner}, this one is {store_id}",
            hint="start it with that database, or delete the durable and `forebay apply` to begin with this one",
        )


async def _write_claim(connection: Connection, stream: str, durable: str, state: ConsumerState, store_id: str) -> None:
    check_claim(durable, state, store_id)
    if state.metadata.get(STORE) == store_id:
        return
    config = {**state.config, "metadata": {**state.metadata, STORE: store_id}}
    await api_request(
        connection,
        f"CONSUMER.CREATE.{stream}.{durable}",
        {"stream_name": stream, "config": config, "action": "update"},
    )
