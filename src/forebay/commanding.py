"""The parts that commands need: those that send them from the core, and those that take them on a node."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import NamedTuple

from forebay.closing import Closing
from forebay.command import Destination
from forebay.command_answering import CommandAnswering
from forebay.destinations import Destinations
from forebay.dispatching import STREAM, CommandRelay
from forebay.errors import ConfigurationError
from forebay.handlers import Handlers
from forebay.jetstream.connection import Connection
from forebay.jetstream.publishing import Publisher
from forebay.link import Link
from forebay.outbox import Outbox
from forebay.parking import Whose
from forebay.receiving import CommandConsumer
from forebay.registry import Registry
from forebay.unit_of_work import UnitStore


class Sending(NamedTuple):
    """What sends the commands of one service of the core; ``publisher`` starts before the others."""

    publisher: Publisher
    relay: CommandRelay
    destinations: Destinations
    registry: Registry


def sending(
    outbox: Outbox,
    store: UnitStore,
    connection: Connection,
    *,
    grace: float,
    short_of_room: Callable[[], object],
    link: Link | None,
) -> Sending:
    """Return what sends commands, asks their destinations, and frees what those have confirmed."""
    publisher = Publisher(connection, STREAM)
    destinations = Destinations(outbox, store, connection, grace=grace, short_of_room=short_of_room)
    relay = CommandRelay(
        outbox,
        store,
        connection,
        publisher,
        link=link,
        confirmed_to=destinations.confirmed_to,
        on_forwarded_to=destinations.forwarded,
    )
    destinations.attach(relay)
    return Sending(publisher, relay, destinations, Registry(store, connection, relay))


class Taking(NamedTuple):
    """What takes the commands for one service of a node, and answers for them."""

    consumer: CommandConsumer
    answering: CommandAnswering


def taking(
    outbox: Outbox,
    handlers: Handlers,
    store: UnitStore,
    store_id: str,
    connection: Connection,
    *,
    core: str,
    now: Callable[[], datetime],
    whose: Whose | None,
) -> Taking:
    """Return what takes commands.

    Args:
        outbox: the service's.
        handlers: the service's; they are told the time, and whom to take commands from.
        store: where its inbox is.
        store_id: of the database.
        connection: to the broker.
        core: the node that may send commands.
        now: the core's time, as far as it is known.
        whose: whose parked rows are its own.

    Raises:
        ConfigurationError: this is the core.
    """
    if outbox.sends:
        raise ConfigurationError(
            f"service {outbox.service!r} of the core handles commands", hint="commands go to other nodes"
        )
    handlers.now, handlers.core = now, core
    to = Destination(outbox.node, outbox.service)
    consumer = CommandConsumer(to, handlers, store, store_id, connection, whose=whose)
    closing = Closing(consumer, handlers, store, None)
    return Taking(consumer, CommandAnswering(to, core, consumer, closing, store, store_id, connection))
