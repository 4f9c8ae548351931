"""A reader's claim on its durables: they are as it relies on, and read by its database alone (rule S4)."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.errors import TopologyError
from forebay.jetstream.connection import Connection
from forebay.jetstream.streams import api_request, consumer_info
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
    owner = state.metadata.get(STORE)
    if owner == store_id:
        return
    if owner is not None:
        raise TopologyError(
            f"durable {durable} is read by the store {owner}, this one is {store_id}",
            hint="start it with that database, or delete the durable and `forebay apply` to begin with this one",
        )
    config = {**state.config, "metadata": {**state.metadata, STORE: store_id}}
    await api_request(
        connection,
        f"CONSUMER.CREATE.{stream}.{durable}",
        {"stream_name": stream, "config": config, "action": "update"},
    )
